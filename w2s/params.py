"""StudyParams: the one schema of params/*.yaml and of every notebook's parameters cell."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, get_args

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


class ParameterError(ValueError):
    """A parameter that cannot be used; its text is one line with the key, the value, the remedy."""


class Lora(BaseModel, extra="forbid", frozen=True):
    """Low-rank adaptation (Hu et al., 2021): its rank, scale alpha, dropout, and the layers that it adapts."""

    rank: int = Field(ge=1)
    alpha: float = Field(gt=0)
    dropout: float = Field(0.0, ge=0, lt=1)
    target_modules: tuple[str, ...] | None = Field(None, min_length=1)  # None: the usual ones of the architecture


class StudyParams(BaseModel, extra="forbid", frozen=True, strict=True, protected_namespaces=()):
    """Everything that a study's results depend on, checked when it is made.

    `load`, `check` and `from_cell` raise a ParameterError, one line that names key, value and remedy.
    """

    study: str = Field(
        "pocket", pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", description="name of the folder under outputs/"
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
    seeds: list[int] = Field([0], min_length=1, description="one repetition of every run for each seed")
    n_gt: int = Field(1600, ge=2, description="pairs with gold labels, for weak models and ceilings")
    n_w2s: int = Field(1600, ge=2, description="pairs that the weak model labels")
    n_helpful: int = Field(400, ge=0, description="pairs of the conflicting dimension")
    n_validation: int = Field(400, ge=2, description="gold pairs for choices and calibration, never for results")
    n_test: int = Field(1280, ge=2, description="pairs that every figure is measured on")
    alpha: float = Field(0.5, ge=0, description="weight of the explicit conflict")
    beta: float | None = Field(None, gt=0, description="scale of the implicit reward; None: 0.1 for dpo, 2 for simpo")
    gamma: float | None = Field(None, ge=0, description="target margin of simpo; None: 1")
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
    bootstrap: int = Field(2000, ge=100, description="bootstrap samples behind each interval")
    learning_rate: float = Field(4.5e-4, gt=0, lt=1, description="Adam's peak learning rate")
    epochs: int = Field(1, ge=1, description="passes over the training pairs")
    sft_learning_rate: float | None = Field(None, gt=0, lt=1, description="peak rate of the warm start; None: the same")
    sft_epochs: int | None = Field(None, ge=1, description="passes of the warm start of dpo and simpo; None: 1")
    lora: Lora | None = Field(None, description="train low-rank adapters instead of all weights")
    batch_pairs: int = Field(32, ge=1, description="pairs in one optimizer step")
    max_length: int = Field(512, ge=8, description="longest text in tokens; the beginning is cut")
    tokens_per_batch: int = Field(4096, ge=8, description="token budget of a forward pass; changes speed, not results")
    device: str = Field("auto", pattern=r"^(auto|cpu|cuda(:\d+)?|mps)$", description="where to compute")
    dtype: Literal["float32", "bfloat16"] = Field(
        "float32", description="precision of the forward pass; weights stay float32"
    )
    gradient_checkpointing: bool = Field(False, description="less memory, a third more time, the same results")
    threads: int = Field(1, ge=1, description="CPU threads of one run")
    shards: int = Field(1, ge=1, description="devices that one run is sharded over (FSDP); with device cpu, processes")
    workers: int = Field(2, ge=1, description="runs that train at the same time")
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
            try:
                return float(value)
            except ValueError:
                raise ValueError("write a number such as 1.0e-6") from None
        return value

    @field_validator("weak_models", "strong_models", "intermediate_models", "conflicts", "seeds", "extensions", "also")
    @classmethod
    def _no_repeats(cls, value: list) -> list:
        if len(set(value)) < len(value):
            raise ValueError("name each entry once")
        return value

    @model_validator(mode="after")
    def _cross_checks(self) -> StudyParams:
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
            content = yaml.safe_load(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise ParameterError(f"{path}: no such parameter file; the shipped ones are in params/") from None
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ParameterError(f"{path}: not readable as YAML: {' '.join(str(error).split())}") from None
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
        """Build the parameters from a notebook's globals: every name that is a parameter counts."""
        return cls.check({key: namespace[key] for key in cls.model_fields if key in namespace}, "parameters cell")


def nearest(word: str, candidates: Iterable[str]) -> str:
    """A remedy for a misspelt word: the nearest candidate, else all of them."""
    candidates = [str(c) for c in candidates]
    close = difflib.get_close_matches(str(word), candidates, n=1)
    return f"did you mean {close[0]!r}?" if close else f"choose one of {', '.join(candidates)}"


def _one_line(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    message, shown = first["msg"].removeprefix("Value error, "), repr(first["input"])
    if not first["loc"]:
        return message
    if first["type"] == "literal_error":
        choices = first["ctx"]["expected"].replace(" or ", ",").split(",")
        message = nearest(first["input"], [choice.strip(" '") for choice in choices])
    if first["type"] == "extra_forbidden":
        message = f"unknown key {first['loc'][-1]!r}"
    key = ".".join(part for part in first["loc"] if isinstance(part, str))
    return f"{key} = {shown if len(shown) <= 80 else shown[:77] + '...'}: {message}"
