"""StudyParams: the one schema of params/*.yaml and of every notebook's parameters cell."""

from __future__ import annotations

import ast
import difflib
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, Field, ValidationError, field_validator, model_validator

from w2s.files import HOME, PACKAGE, located, read_yaml

WEAK, STRONG = ["pocket-40a", "pocket-40b", "pocket-48a", "pocket-48b"], ["pocket-60", "pocket-64"]
MODELS = ("weak_models", "strong_models", "intermediate_models")
Training = Literal["controls", "mitigations", "preference", "turned_round"]  # notebooks 06, 07, 12, 13
Extension = Literal[Training, "chance", "known", "knowledge", "followups", "remedies_by_hand"]  # 08 to 11, 14
Conflict = Literal["none", "explicit", "implicit"]
Dimension = Literal["harmless", "helpful"]
Method, Confidence = Literal["reward", "dpo", "simpo"], Literal["paper", "implicit_reward", "calibrated"]
Count = Annotated[int, Field(ge=2, le=10**7)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Rate = Annotated[float, Field(gt=0, lt=1)]
NO_RESULT = ("tokens_per_batch", "gradient_checkpointing", "shards", "save_model")  # of a run: these change no result
# In the column conflict: a student without one from another seed, and one with gold labels.
SECOND, GOLD = "second reference", "gold labels"
BETA, GAMMA = {"dpo": 0.1, "simpo": 2.0}, 1.0  # the paper's
FOLDER_NAME = r"^[A-Za-z0-9]([A-Za-z0-9_.-]{0,98}[A-Za-z0-9_-])?$"
RESERVED = {"runs", "hub", "bench", "con", "prn", "aux", "nul", *(f"{d}{n}" for d in ("com", "lpt") for n in range(10))}
CELLS = 2**31  # of a bootstrap's table of draws, samples x test pairs: 8 GiB
PEFT = {"r": "rank", "lora_alpha": "alpha", "lora_dropout": "dropout", "modules": "target_modules"}  # its names
METHOD_HAS_NO = {"reward": ("beta", "gamma", "sft_learning_rate", "sft_epochs"), "dpo": ("gamma",), "simpo": ()}


class ParameterError(ValueError):
    """A parameter that cannot be used; its text is one line with the key, the value, the remedy."""


class Lora(BaseModel, extra="forbid", frozen=True, strict=True, allow_inf_nan=False):
    """Low-rank adaptation (Hu et al., 2021) of target_modules; None: of the usual ones of the architecture."""

    rank: int = Field(ge=1)
    alpha: float = Field(gt=0)
    dropout: float = Field(0.0, ge=0, lt=1)
    target_modules: tuple[str, ...] | None = Field(None, min_length=1, strict=False)


def about(default: Any, meaning: str, **bounds: Any) -> Any:
    """A parameter's default, its meaning (which the report shows), and its bounds as pydantic's Field takes them."""
    return Field(default, description=meaning, **bounds)


class StudyParams(BaseModel, extra="forbid", frozen=True, strict=True, protected_namespaces=(), allow_inf_nan=False):
    """Everything that a study's results depend on; `load`, `check` and `from_cell` raise a ParameterError."""

    study: str = about("pocket", "name of the folder under outputs/", pattern=FOLDER_NAME)
    data: str = about("pocket", "pocket, hh, cai, or the path of a folder of pairs", min_length=1)
    data_dir: str | None = about(None, "folder of the HH or CAI files, instead of the hub")
    other_data: str | None = about(None, "further pairs that every run is scored on: a folder, a file, or helpful")
    target: Dimension = about("harmless", "dimension that is supervised; the other one is the conflict")
    bad_pairs: Literal["error", "drop"] = about("error", "what to do with a pair that cannot be used")
    method: Method = about("reward", "how the models are trained")
    weak_models: list[str] = about(WEAK, "supervisors", min_length=1)
    strong_models: list[str] = about(STRONG, "students and ceilings", min_length=1)
    intermediate_models: list[str] = about(STRONG[:1], "teachers between weak and strong, for bootstrapping")
    model_pairs: Literal["larger", "all"] = about(
        "larger", "each weak model with every larger strong one, or with all of them, itself included"
    )
    baseline: bool = about(False, "also score what the strong models prefer before any training, without a teacher")
    conflicts: list[Conflict] = about([*get_args(Conflict)], "conflicts of the students", min_length=1)
    seeds: list[Seed] = about([0], "one repetition of every run for each seed", min_length=1)
    n_gt: Count = about(1600, "pairs with gold labels, for weak models and ceilings")
    n_w2s: Count = about(1600, "pairs that the weak model labels")
    n_helpful: int = about(400, "pairs of the conflicting dimension", ge=0, le=10**7)
    n_validation: Count = about(400, "gold pairs for choices and calibration, never for results")
    n_test: Count = about(1280, "pairs that every figure is measured on")
    alpha: float = about(0.5, "weight of the explicit conflict", ge=0, le=1000)
    beta: float | None = about(None, "scale of the implicit reward; None: 0.1 for dpo, 2 for simpo", gt=0, le=1000)
    gamma: float | None = about(None, "target margin of simpo; None: 1", ge=0, le=1000)
    weak_filter: Literal["none", "confidence", "gold_oracle"] = about(
        "none", "which weak-labelled pairs are kept: those with confidence at the threshold or above"
    )
    confidence: Confidence = about("paper", "what turns a margin into a probability")
    threshold: float = about(0.75, "confidence from which a pair is known", ge=0.5, lt=1)
    known_by: Literal["confidence", "gold"] = about("confidence", "known by max(P, 1-P) or by P")
    extensions: list[Extension] = about([], f"notebooks beyond the five: {', '.join(get_args(Extension))}; or all")
    tax_reference: Literal["none", "ceiling"] = about("none", "the conflict tax is counted against this run")
    bootstrap: int = about(2000, "bootstrap samples behind each interval", ge=10)
    learning_rate: Rate = about(4.5e-4, "Adam's peak learning rate")
    epochs: int = about(2, "passes over the training pairs", ge=1, le=1000)
    sft_learning_rate: Rate | None = about(None, "peak rate of the warm start; None: the same")
    sft_epochs: int | None = about(None, "passes of the warm start of dpo and simpo; None: 1", ge=1, le=1000)
    lora: Lora | None = about(None, "train low-rank adapters instead of all weights")
    trained_blocks: int | None = about(
        None, "train so many of the last blocks, and the reward unit or the head; None: all of the model", ge=0, le=1000
    )
    batch_pairs: int = about(32, "pairs in one optimizer step", ge=1, le=10**6)
    max_length: int = about(512, "longest text in tokens; the beginning is cut", ge=8, le=10**6)
    tokens_per_batch: int = about(4096, "token budget of a forward pass; changes speed, not results", ge=8, le=10**9)
    device: str = about("auto", "where to compute", pattern=r"^(auto|cpu|cuda(:\d+)?|mps)$")
    dtype: Literal["float32", "bfloat16"] = about("float32", "precision of the forward pass; weights stay float32")
    gradient_checkpointing: bool = about(False, "less memory, a third more time, the same results")
    threads: int = about(1, "CPU threads of one run", ge=1, le=1024)
    shards: int = about(1, "devices that one run is sharded over (FSDP); with device cpu, processes", ge=1, le=1024)
    workers: int = about(2, "runs that train at the same time", ge=1, le=1024)
    scheduler: str | None = about(
        None, "address of a Dask scheduler, instead of local workers", pattern=r"^(tcp|tls)://.+"
    )
    save_models: bool = about(False, "keep each trained model beside its predictions")
    frozen: bool = about(False, "take the predictions that ship with the kit, and train nothing")
    also: list[str] = about([], "parameter files that w2s run executes as well, after this one")
    show_text: bool = about(True, "show examples of the pairs in the notebooks")
    offline: bool = about(False, "look nothing up; every model and dataset must have been fetched")
    output_dir: str = about("outputs", "where results go; relative to the kit's folder", min_length=1)
    read_from: str | None = about(None, "another outputs folder, whose finished runs are used and never written")

    @field_validator("extensions", mode="before")
    @classmethod
    def _all(cls, value: Any) -> Any:
        return list(get_args(Extension)) if value == "all" else value

    @field_validator("study")
    @classmethod
    def _free_name(cls, value: str) -> str:
        if value.partition(".")[0].lower() in RESERVED:
            raise ValueError("a name that the kit or a system uses; take another, such as my_" + value)
        return value

    @field_validator("data", "data_dir", "other_data", "output_dir", "read_from", "also", *MODELS)
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

    @field_validator(*MODELS, "conflicts", "seeds", "extensions", "also")
    @classmethod
    def _no_repeats(cls, value: list) -> list:
        if len(set(value)) < len(value):
            raise ValueError("name each entry once")
        return value

    @model_validator(mode="after")
    def _cross_checks(self) -> StudyParams:
        if self.bootstrap * self.n_test > CELLS:
            fit = f"with n_test = {self.n_test}, {CELLS // self.n_test} fit into memory"
            raise ValueError(f"bootstrap = {self.bootstrap}: {fit}; lower it")
        if "none" not in self.conflicts:
            raise ValueError("conflicts: add none, the student that the others are compared with")
        if self.data == "pocket" and self.data_dir:
            raise ValueError("data_dir: the pocket world needs no folder; leave data_dir out, or set data to hh or cai")
        if self.trained_blocks is not None and (self.lora or self.shards > 1):
            other = "lora" if self.lora else f"shards = {self.shards}"
            raise ValueError(f"trained_blocks = {self.trained_blocks}: not together with {other}; leave one out")
        if self.frozen and (train := [name for name in self.extensions if name in get_args(Training)]):
            raise ValueError(f"extensions = {train}: their runs do not ship; leave them out, or frozen")
        if self.frozen and self.baseline:
            raise ValueError("baseline = True: it does not ship; leave it out, or frozen")
        if self.frozen and self.other_data:
            raise ValueError(f"other_data = {self.other_data!r}: what is predicted there does not ship; leave one out")
        if self.other_data == "helpful" and self.data != "pocket":
            raise ValueError("other_data = 'helpful': of the pocket world alone; name a folder or a file of pairs")
        for key in METHOD_HAS_NO[self.method]:
            if getattr(self, key) is not None:
                raise ValueError(f"{key} = {getattr(self, key)!r}: method {self.method} has no {key}; leave it out")
        if self.method == "reward" and self.confidence == "implicit_reward":
            raise ValueError("confidence = 'implicit_reward': method reward has none; choose paper or calibrated")
        return self

    @property
    def conflicting(self) -> str:
        """The dimension of the conflict: the one that is not the target."""
        return "harmless" if self.target == "helpful" else "helpful"

    @property
    def given(self) -> dict[str, Any]:
        """The values that were given, as JSON and YAML have them."""
        return self.model_dump(mode="json", exclude_unset=True)

    def changed(self) -> str:
        """One line that names every parameter that is not at its default."""
        values = self.model_dump()
        differ = [f"{key} = {values[key]!r}" for key in self.model_dump(exclude_defaults=True)]
        return f"changed from the defaults: {', '.join(differ) or 'nothing'}"

    @property
    def root(self) -> Path:
        return located(self.output_dir)

    @classmethod
    def load(cls, path: str | Path, **overrides: Any) -> StudyParams:
        """Read a flat YAML file; `overrides` replace its keys."""
        try:
            content = read_yaml(Path(path).read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise ParameterError(f"{path}: no such parameter file; the shipped ones are in params/") from None
        except (OSError, ValueError) as error:
            what = " ".join((getattr(error, "strerror", None) or str(error)).split())
            raise ParameterError(f"{path}: not readable as YAML, lines of the form key: value ({what})") from None
        if not isinstance(content, dict):
            raise ParameterError(f"{path}: expected lines of the form key: value")
        return cls.check({**content, **overrides}, str(path))

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
        """The parameters among a notebook's globals; in the cell that papermill puts in, every name has to be one."""
        _check_package(Path.cwd())
        names = [*cls.model_fields]
        for source in namespace.get("In", ()):  # the cells that were run, as IPython keeps them
            if source.startswith("# Parameters\n"):
                nodes = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Name)]
                names += [node.id for node in nodes if isinstance(node.ctx, ast.Store)]
        return cls.check({key: namespace[key] for key in names if key in namespace}, "parameters cell")


def _check_package(folder: Path) -> None:
    """Stop a notebook that lies in one checkout of the kit while its kernel imports another, with another outputs/."""
    checkout = next((above for above in (folder, *folder.parents) if (above / "w2s" / "params.py").is_file()), None)
    if checkout is None or (checkout / "w2s").samefile(PACKAGE):
        return
    both = checkout / "w2s", PACKAGE
    here, imported = ({path.relative_to(w2s): path.read_bytes() for path in w2s.rglob("*.py")} for w2s in both)
    if PACKAGE.parent == HOME or here != imported:  # a plain install, without notebooks, may be the same code
        remedy = f"run make lab in {checkout} and take its kernel, or install it there: pip install -e {checkout}"
        raise ParameterError(f"this kernel imports w2s from {PACKAGE}, the notebook lies in {checkout}: {remedy}")


def differences(results: Iterable[Mapping], now: Mapping, leave_out: Iterable[str] = ()) -> str:
    """The parameters that earlier results were given otherwise, with old and new values; left out means default."""
    defaults = StudyParams().model_dump(mode="json")
    now, earlier, words = defaults | {**now}, [defaults | {**given} for given in results], []
    for key in sorted({key for given in (now, *earlier) for key in given}.difference(leave_out)):
        others = {str(given.get(key)) for given in earlier if given.get(key) != now.get(key)}
        if others:
            words.append(f"{key} = {' or '.join(sorted(others))} (now {now.get(key)})")
    return ", ".join(words)


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
        message = nearest(first["input"], re.findall(r"'(.*?)'", first["ctx"]["expected"]))
    elif first["type"] == "extra_forbidden":
        name = str(first["loc"][-1])
        message = f"unknown key {name!r}; {nearest(PEFT.get(name, name), Lora.model_fields)}"
    elif first["type"] == "float_type":
        message = "write a number such as 1.0e-6"
    elif first["type"] in ("list_type", "tuple_type") and isinstance(first["input"], str):
        message = "write a list, such as [a, b]"
        message += " (papermill's -p gives text: use -y 'key: [a, b]')" * first["input"].startswith("[")
    key = ".".join(part for part in first["loc"] if isinstance(part, str))
    return f"{key} = {shown if len(shown) <= 80 else shown[:77] + '...'}: {message}"
