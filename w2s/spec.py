"""What a training run is: everything that changes its result, and the name that follows from it."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path

from w2s.params import NO_RESULT, Lora

RECIPE = 1  # raise it when a change to the code changes results
ALWAYS = ("recipe", "learning_rate", "epochs", "batch_pairs", "max_length", "device", "dtype", "threads")
SPLITS = ("gt", "w2s", "helpful", "validation", "test")


@dataclass(frozen=True)
class RunSpec:
    """Everything that changes a run's result; its hash names the run's folder."""

    model: str
    model_fingerprint: str
    data: str
    split: str
    seed: int
    conflict: str = "none"
    alpha: float = 0.0
    teacher: RunSpec | None = None
    start: RunSpec | None = None
    method: str = "reward"
    beta: float | None = None
    gamma: float | None = None
    against_reference: bool = False
    keep: str = "none"
    keep_threshold: float | None = None
    keep_by: str | None = None
    relabel: str = "none"
    relabel_share: float | None = None  # of the labels, or of the blind pairs, that are turned round
    ceiling: RunSpec | None = None  # planted: whose knowledge tells where the teacher is blind
    n_helpful: int | None = None  # None: all of the data's
    helpful_from: str | None = None  # fingerprint of a data set with more helpful pairs; None: `data`
    ensemble: tuple[RunSpec, ...] = ()  # further teachers: the label is the mean of all
    chance_by: str | None = None  # dpo, simpo: what makes the teachers' margins P, for their mean and for weights
    weighting: str = "none"
    label_loss: str = "cross_entropy"
    confidence_weight: float | None = None
    gold_checks: int = 0  # early stopping: how often gold validation pairs are looked at
    learning_rate: float = 1e-3
    epochs: int = 1
    lora: Lora | None = None
    trained_blocks: int | None = None  # of the last ones; None: all, and the embeddings
    batch_pairs: int = 32
    max_length: int = 512
    device: str = "cpu"
    dtype: str = "float32"
    threads: int = 1
    recipe: int = RECIPE
    tokens_per_batch: int = 4096
    gradient_checkpointing: bool = False
    shards: int = 1
    save_model: bool = False
    other: str | None = None  # fingerprint of further pairs that the run is scored on

    @cached_property
    def identity(self) -> dict:
        """The fields that change the result; one at its default is left out, so that a new field leaves old names."""
        values = {f.name: (getattr(self, f.name), f.default) for f in fields(self) if f.name not in NO_RESULT}
        identity = {name: _plain(v) for name, (v, default) in values.items() if name in ALWAYS or v != default}
        if self.lora and self.lora.dropout:  # the order of its random draws
            identity["tokens_per_batch"] = self.tokens_per_batch
        return identity

    @cached_property
    def name(self) -> str:
        """A readable and unique folder name."""
        digest = hashlib.sha256(json.dumps(self.identity, sort_keys=True).encode()).hexdigest()[:10]
        parts = [_in_folders(self.model), f"on-{self.split}"]
        if self.method != "reward":
            parts.insert(0, self.method)
        if self.teacher:
            parts += ["from", _in_folders(self.teacher.model), self.conflict]
        if self.lora:
            parts.append(f"lora{self.lora.rank}")
        return "-".join([*parts, f"s{self.seed}", digest])

    @cached_property
    def before(self) -> list[RunSpec]:
        """The runs that this one needs: its teachers, and the warm start of its weights."""
        return [run for run in (self.teacher, *self.ensemble, self.ceiling, self.start) if run]

    @cached_property
    def depth(self) -> int:
        """How many runs stand behind this one, one needing the next."""
        return max((1 + run.depth for run in self.before), default=0)


def _in_folders(model: str) -> str:
    """A model as names of folders have it: org/gpt2[:6] is gpt2-first6."""
    return re.sub(r"\[:(\d+)\]$", r"-first\1", Path(model).name)


def _plain(value):
    """A field as it stands in an identity: a run by its own identity."""
    if isinstance(value, tuple):
        return [_plain(part) for part in value]
    if isinstance(value, Lora):
        return value.model_dump()
    return value.identity if isinstance(value, RunSpec) else value
