"""StudyParams: the one schema of params/*.yaml and of every notebook's parameters cell."""

from __future__ import annotations

import ast
import difflib
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, get_args

import yaml
from pydantic import BaseModel, Field, ValidationError, field_validator, model_validator

from w2s.files import HOME as HOME
from w2s.files import PACKAGE as PACKAGE
from w2s.files import located

POCKET = ["pocket-27", "pocket-32", "pocket-40", "pocket-48", "pocket-64"]
Conflict = Literal["none", "explicit", "implicit"]
Method = Literal["reward", "dpo", "simpo"]
Dimension = Literal["harmless", "helpful"]
Extension = Literal["controls", "mitigations"]
TaxReference = Literal["none", "ceiling"]
BETA = {"dpo": 0.1, "simpo": 2.0}  # the paper's
GAMMA = 1.0


RESERVED = {"runs", "hub", "bench", "con", "prn", "aux", "nul", *(f"{d}{n}" for d in ("com", "lpt") for n in range(10))}
CELLS = 2**31  # of a bootstrap's table of draws, samples x test pairs: 8 GiB
PEFT = {"r": "rank", "lora_alpha": "alpha", "lora_dropout": "dropout", "modules": "target_modules"}  # its names


class ParameterError(ValueError):
    """A parameter that cannot be used; its text is one line with the key, the value, the remedy."""


class Lora(BaseModel, extra="forbid", frozen=True, allow_inf_nan=False):
    """Low-rank adaptation (Hu et al., 2021): its rank, scale alpha, dropout, and the layers that it adapts."""

    rank: int = Field(ge=1)
    alpha: float = Field(gt=0)
    dropout: float = Field(0.0, ge=0, lt=1)
    target_modules: tuple[str, ...] | None = Field(None, min_length=1)  # None: the usual ones of the architecture


class StudyParams(BaseModel, extra="forbid", frozen=True, strict=True, protected_namespaces=(), allow_inf_nan=False):
    """Everything that a study's results depend on, checked when it is made.

    `load`, `check` and `from_cell` raise a ParameterError, one line that names key, value and remedy.
    """

    study: str = Field(
        "pocket",
        pattern=r"^[A-Za-z0-9]([A-Za-z0-9_.-]{0,98}[A-Za-z0-9_-])?$",
        description="name of the folder under outputs/",
    )
    data: str = Field("pocket", min_length=1, description="pocket, hh, cai, or the path of a folder of pairs")
    data_dir: str | None = Field(None, description="folder of the HH or CAI files, instead of the hub")
    target: Dimension = Field("harmless", description="dimension that is supervised; the other one is the conflict")
    bad_pairs: Literal["error", "drop"] = Field("error", description="what to do with a pair that cannot be used")
    method: Method = Field("reward", description="how the models are trained")
    weak_models: list[str] = Field(POCKET[:4], min_length=1, description="supervisors")
    strong_models: list[str] = Field(POCKET[1:], min_length=1, description="students and ceilings")
    intermediate_models: list[str] = Field(
        POCKET[2:4], description="teachers between weak and strong, for bootstrapping"
    )
    conflicts: list[Conflict] = Field([*get_args(Conflict)], min_length=1, description="conflicts of the students")
    seeds: list[Annotated[int, Field(ge=0, lt=2**32)]] = Field(
        [0], min_length=1, description="one repetition of every run for each seed"
    )
    n_gt: int = Field(1600, ge=2, le=10**7, description="pairs with gold labels, for weak models and ceilings")
    n_w2s: int = Field(1600, ge=2, le=10**7, description="pairs that the weak model labels")
    n_helpful: int = Field(400, ge=0, le=10**7, description="pairs of the conflicting dimension")
    n_validation: int = Field(
        400, ge=2, le=10**7, description="gold pairs for choices and calibration, never for results"
    )
    n_test: int = Field(1280, ge=2, le=10**7, description="pairs that every figure is measured on")
    alpha: float = Field(0.5, ge=0, le=1000, description="weight of the explicit conflict")
    beta: float | None = Field(
        None, gt=0, le=1000, description="scale of the implicit reward; None: 0.1 for dpo, 2 for simpo"
    )
    gamma: float | None = Field(None, ge=0, le=1000, description="target margin of simpo; None: 1")
    weak_filter: Literal["none", "confidence", "gold_oracle"] = Field(
        "none", description="which weak-labelled pairs are kept: those with confidence at the threshold or above"
    )
    confidence: Literal["paper", "implicit_reward", "calibrated"] = Field(
        "paper", description="what turns a margin into a probability"
    )
    threshold: float = Field(0.75, ge=0.5, lt=1, description="confidence from which a pair is known")
    known_by: Literal["confidence", "gold"] = Field("confidence", description="known by max(P, 1-P) or by P")
    extensions: list[Extension] = Field([], description="notebooks beyond the five: controls (06), mitigations (07)")
    tax_reference: TaxReference = Field("none", description="the conflict tax is counted against this run")
    bootstrap: int = Field(2000, ge=10, description="bootstrap samples behind each interval")
    learning_rate: float = Field(4.5e-4, gt=0, lt=1, description="Adam's peak learning rate")
    epochs: int = Field(1, ge=1, le=1000, description="passes over the training pairs")
    sft_learning_rate: float | None = Field(None, gt=0, lt=1, description="peak rate of the warm start; None: the same")
    sft_epochs: int | None = Field(
        None, ge=1, le=1000, description="passes of the warm start of dpo and simpo; None: 1"
    )
    lora: Lora | None = Field(None, description="train low-rank adapters instead of all weights")
    batch_pairs: int = Field(32, ge=1, le=10**6, description="pairs in one optimizer step")
    max_length: int = Field(512, ge=8, le=10**6, description="longest text in tokens; the beginning is cut")
    tokens_per_batch: int = Field(
        4096, ge=8, le=10**9, description="token budget of a forward pass; changes speed, not results"
    )
    device: str = Field("auto", pattern=r"^(auto|cpu|cuda(:\d+)?|mps)$", description="where to compute")
    dtype: Literal["float32", "bfloat16"] = Field(
        "float32", description="precision of the forward pass; weights stay float32"
    )
    gradient_checkpointing: bool = Field(False, description="less memory, a third more time, the same results")
    threads: int = Field(1, ge=1, le=1024, description="CPU threads of one run")
    shards: int = Field(
        1, ge=1, le=1024, description="devices that one run is sharded over (FSDP); with device cpu, processes"
    )
    workers: int = Field(2, ge=1, le=1024, description="runs that train at the same time")
    scheduler: str | None = Field(
        None, pattern=r"^(tcp|tls)://.+", description="address of a Dask scheduler, instead of local workers"
    )
    save_models: bool = Field(False, description="keep each trained model beside its predictions")
    frozen: bool = Field(False, description="take the predictions that ship with the kit, and train nothing")
    also: list[str] = Field([], description="parameter files that w2s run executes as well, after this one")
    show_text: bool = Field(True, description="show examples of the pairs in the notebooks")
    offline: bool = Field(False, description="look nothing up; every model and dataset must have been fetched")
    output_dir: str = Field("outputs", min_length=1, description="where results go; relative to the kit's folder")

    @field_validator("learning_rate", "sft_learning_rate", "alpha", "beta", "gamma", "threshold", mode="before")
    @classmethod
    def _read_exponent(cls, value: Any) -> Any:
        """YAML reads 1e-6 (no dot) as text: read it as the number that was meant."""
        if isinstance(value, str):
            if not re.fullmatch(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?", value):
                raise ValueError("write a number such as 1.0e-6")
            return float(value)
        return value

    @field_validator("study")
    @classmethod
    def _free_name(cls, value: str) -> str:
        if value.partition(".")[0].lower() in RESERVED:
            raise ValueError("a name that the kit or a system uses; take another, such as my_" + value)
        return value

    @field_validator("data", "data_dir", "output_dir", "weak_models", "strong_models", "intermediate_models", "also")
    @classmethod
    def _nameable(cls, value: str | list[str] | None) -> str | list[str] | None:
        for path in [value] if isinstance(value, str) else value or ():
            try:
                longest = max((len(os.fsencode(part)) for part in Path(path).parts), default=0)
            except UnicodeEncodeError:
                raise ValueError("half a character (a surrogate) is in no file's name; write the whole one") from None
            if not path or "\0" in path or longest > 255:
                raise ValueError("no path: each part has 1 to 255 bytes, without the character NUL")
        return value

    @field_validator("weak_models", "strong_models", "intermediate_models", "conflicts", "seeds", "extensions", "also")
    @classmethod
    def _no_repeats(cls, value: list) -> list:
        if len(set(value)) < len(value):
            raise ValueError("name each entry once")
        return value

    @model_validator(mode="after")
    def _cross_checks(self) -> StudyParams:
        if self.bootstrap * self.n_test > CELLS:
            most = CELLS // self.n_test
            raise ValueError(
                f"bootstrap = {self.bootstrap}: with n_test = {self.n_test}, {most} fit into memory; lower it"
            )
        if "none" not in self.conflicts:
            raise ValueError("conflicts: add none, the student that the others are compared with")
        if self.data == "pocket" and self.data_dir:
            raise ValueError("data_dir: the pocket world needs no folder; leave data_dir out, or set data to hh or cai")
        if self.frozen and self.extensions:
            raise ValueError(f"extensions = {self.extensions}: their runs do not ship; leave them out, or frozen")
        ignored = {"reward": ("beta", "gamma", "sft_learning_rate", "sft_epochs"), "dpo": ("gamma",), "simpo": ()}
        for key in ignored[self.method]:
            if getattr(self, key) is not None:
                raise ValueError(f"{key} = {getattr(self, key)!r}: method {self.method} has no {key}; leave it out")
        if self.method == "reward" and self.confidence == "implicit_reward":
            raise ValueError("confidence = 'implicit_reward': method reward has none; choose paper or calibrated")
        return self

    @property
    def conflicting(self) -> str:
        """The dimension of the conflict: the one that is not the target."""
        return "harmless" if self.target == "helpful" else "helpful"

    def changed(self) -> str:
        """One line that names every parameter that is not at its default."""
        values = self.model_dump()
        differ = [f"{key} = {values[key]!r}" for key, f in type(self).model_fields.items() if values[key] != f.default]
        return f"changed from the defaults: {', '.join(differ) or 'nothing'}"

    @property
    def root(self) -> Path:
        """The outputs folder, absolute."""
        return located(self.output_dir)

    @classmethod
    def load(cls, path: str | Path, **overrides: Any) -> StudyParams:
        """Read a flat YAML file; `overrides` replace its keys."""
        path = Path(path)
        try:
            content = read_yaml(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise ParameterError(f"{path}: no such parameter file; the shipped ones are in params/") from None
        except (OSError, ValueError) as error:
            what = " ".join((getattr(error, "strerror", None) or str(error)).split())
            raise ParameterError(f"{path}: not readable as YAML, lines of the form key: value ({what})") from None
        if not isinstance(content, dict):
            raise ParameterError(f"{path}: expected lines of the form key: value")
        return cls.check({**content, **overrides}, where=str(path))

    @classmethod
    def check(cls, values: Mapping[str, Any], where: str = "parameters") -> StudyParams:
        """Build the parameters from a mapping, with one-line errors."""
        for key in values:
            if key not in cls.model_fields:
                remedy = nearest(key, cls.model_fields)
                raise ParameterError(f"{where}: unknown parameter {key!r} = {values[key]!r}; {remedy}")
        try:
            return cls(**values)
        except ValidationError as error:
            raise ParameterError(f"{where}: {_one_line(error)}") from None

    @classmethod
    def from_cell(cls, namespace: Mapping[str, Any]) -> StudyParams:
        """Build the parameters from a notebook's globals: every name that is a parameter counts.

        Of the cell that papermill puts in, every name has to be one.
        """
        names = [key for key in cls.model_fields if key in namespace]
        for source in namespace.get("In", ()):  # the cells that were run, as IPython keeps them
            if source.startswith("# Parameters\n"):
                targets = [t for node in ast.parse(source).body if isinstance(node, ast.Assign) for t in node.targets]
                names += [t.id for t in targets if isinstance(t, ast.Name) and t.id not in names]
        return cls.check({key: namespace[key] for key in names if key in namespace}, "parameters cell")


class _Strict(yaml.SafeLoader):
    """YAML without surprises: 0100, yes, 1:30, 1_000 and 2026-01-01 are the texts that they look like."""

    yaml_implicit_resolvers: ClassVar[dict] = {}

    def construct_mapping(self, node, deep=False):
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise ValueError(f"the key {key!r} stands there {keys.count(key)} times; leave one")
        return super().construct_mapping(node, deep)


for _tag, _form, _first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"), ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("int", r"[-+]?(0|[1-9]\d*)", "-+0123456789"),
    ("float", r"[-+]?(\d+\.\d*|\.\d+|(0|[1-9]\d*)(?=[eE]))([eE][-+]?\d+)?", "-+.0123456789"),
):  # fmt: skip
    _Strict.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_form})$"), list(_first))


def read_yaml(text: str) -> Any:
    """What a YAML text says; ValueError on one line for one that cannot be read, or has a key twice."""
    try:
        return yaml.load(text, _Strict)
    except (yaml.YAMLError, RecursionError, TypeError) as error:
        raise ValueError(" ".join(str(error).split())) from None


def short_names(names: Iterable[str]) -> dict[str, str]:
    """Models as tables name them: the last part of each path, or as many as tell them apart."""
    names, short = list(dict.fromkeys(names)), {}
    for name in names:
        parts = Path(name).parts
        tails = [{Path(other).parts[-k:] for other in names if other != name} for k in range(1, len(parts) + 1)]
        kept = next((k for k, tail in enumerate(tails, 1) if parts[-k:] not in tail), len(parts))
        short[name] = "/".join(parts[-kept:])
    return short


def nearest(word: str, candidates: Iterable[str]) -> str:
    """A remedy for a misspelt word: the nearest candidate, else all of them."""
    candidates = [str(c) for c in candidates]
    close = difflib.get_close_matches(str(word), candidates, n=1)
    return f"did you mean {close[0]!r}?" if close else f"choose one of {', '.join(candidates)}"


def _one_line(error: ValidationError) -> str:
    errors = error.errors(include_url=False)
    first = next((e for e in errors if e["type"] == "extra_forbidden"), errors[0])
    message, shown = first["msg"].removeprefix("Value error, "), repr(first["input"])
    if not first["loc"]:
        return message
    if first["type"] == "literal_error":
        choices = first["ctx"]["expected"].replace(" or ", ",").split(",")
        message = nearest(first["input"], [choice.strip(" '") for choice in choices])
    if first["type"] == "extra_forbidden":
        name = str(first["loc"][-1])
        fields = list(Lora.model_fields)
        message = f"unknown key {name!r}; {nearest(PEFT.get(name, name), fields)}"
    if first["type"] in ("list_type", "tuple_type") and isinstance(first["input"], str):
        message = "write a list, such as [a, b]"
        message += " (papermill's -p gives text: use -y 'key: [a, b]')" if first["input"].startswith("[") else ""
    key = ".".join(part for part in first["loc"] if isinstance(part, str))
    return f"{key} = {shown if len(shown) <= 80 else shown[:77] + '...'}: {message}"
