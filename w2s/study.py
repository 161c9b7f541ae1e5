"""A study as a plan: which runs it needs, and who teaches whom. It trains nothing and writes nothing."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import pandas as pd

from w2s import models
from w2s.data import StudyData, load
from w2s.params import BETA, GAMMA, ParameterError, StudyParams, short_names
from w2s.spec import SPLITS, RunSpec

LABELS = ("weak", "gold", "own", "shuffled", "random")
# Parameters of a study that are fields of its runs under the same name.
SAME_NAME = ("learning_rate", "epochs", "lora", "batch_pairs", "max_length", "dtype", "threads", "tokens_per_batch")
SAME_NAME += ("gradient_checkpointing", "shards")
TAGS = ("role", "model", "teacher", "via", "conflict", "seed")


@dataclass(frozen=True)
class Study:
    """The pairs, the runs and the folders of one parameter file."""

    params: StudyParams

    @cached_property
    def data(self) -> StudyData:
        """The pair tables, read when they are first asked for."""
        return load(self.params)

    @classmethod
    def open(cls, params: StudyParams) -> Study:
        """Load the pairs and check that the models are there; trains nothing.

        Raises:
            ParameterError: something that is not there (or not fetched, with `offline`), a tokenizer that does
                not belong to its model, a response longer than max_length while bad_pairs is "error".
        """
        study = cls(params)
        if params.root.exists() and not params.root.is_dir():
            raise ParameterError(f"output_dir = {params.output_dir!r}: {params.root} is no folder; name another")
        tables = pd.concat([getattr(study.data, split) for split in SPLITS])
        texts = tables.melt("id", ["chosen", "rejected"], "side", "text")
        long = texts["text"].str.encode("utf-8").str.len() > params.max_length  # no token is shorter than a byte
        for name in study.models:
            tokenizer = models.matching_tokenizer(name)
            if params.bad_pairs == "error" and long.any():
                _check_lengths(texts[long], name, tokenizer, params.max_length)
        return study

    @property
    def models(self) -> list[str]:
        """Every model of the study, once."""
        p = self.params
        return list(dict.fromkeys([*p.weak_models, *p.strong_models, *p.intermediate_models]))

    def short(self, name: str) -> str:
        """A model's name as tables have it."""
        return short_names(self.models)[name]

    def _tags(self, role: str, model: str, teacher: str, via: str, conflict: str, seed: int) -> dict:
        short = [self.short(name) if name else "" for name in (model, teacher, via)]
        return dict(zip(TAGS, [role, *short, conflict, seed], strict=True))

    @property
    def root(self) -> Path:
        """The outputs folder, whose cache of runs all studies share."""
        return self.params.root

    @property
    def folder(self) -> Path:
        """This study's own folder: executed notebooks, figures, tables, report."""
        return self.root / self.params.study

    @property
    def beta(self) -> float | None:
        """The scale of the implicit reward in the loss; None for reward models."""
        return self.params.beta or BETA.get(self.params.method)

    def gold(self, model: str, seed: int) -> RunSpec:
        """Trained on `gt` with gold labels: a weak model and a strong ceiling alike."""
        return self._spec(model, "gt", seed)

    def student(self, weak: str, strong: str, conflict: str, seed: int, **changes) -> RunSpec:
        """A strong model trained on `w2s` with the weak model's labels; `changes` replace fields, for a remedy."""
        return self._spec(strong, "w2s", seed, conflict, self.gold(weak, seed), **changes)

    def bootstrapped(
        self, weak: str, middle: str | Sequence[str], strong: str, conflict: str, seed: int, **changes
    ) -> RunSpec:
        """A strong model taught by an intermediate one, or by the last of several, each taught by the one before.

        Splits alternate from `gt` of the weak model on, so that each teacher labels pairs that it has not seen.
        """
        link = self.gold(weak, seed)
        for name in [middle] if isinstance(middle, str) else middle:
            link = self._spec(name, _other(link.split), seed, "none", link)
        return self._spec(strong, _other(link.split), seed, conflict, link, **changes)

    def control(self, weak: str, strong: str, labels: str, conflict: str, seed: int, **changes) -> RunSpec:
        """A student on `w2s` with labels of one of LABELS: weak, gold, its own ceiling's, or weak ones dealt out anew.

        `changes` replace fields of the run, such as alpha, or those of `runs.cluster.helpful_pairs`.
        """
        teacher = None if labels == "gold" else self.gold(strong if labels == "own" else weak, seed)
        relabel = labels if labels in ("shuffled", "random") else "none"
        return self._spec(strong, "w2s", seed, conflict, teacher, relabel=relabel, **changes)

    def untrained(self, strong: str, seed: int) -> RunSpec:
        """A reward model before its first step: the pretrained body with a fresh unit."""
        return self._spec(strong, "w2s", seed, epochs=0)

    def _spec(self, model: str, split: str, seed: int, conflict="none", teacher=None, **changes) -> RunSpec:
        p = self.params
        fields = {name: getattr(p, name) for name in SAME_NAME} | {"save_model": p.save_models}
        fields["alpha"] = p.alpha if conflict == "explicit" else 0.0
        fields["device"] = "cpu" if p.frozen else str(models.choose_device(p.device))  # shipped runs were trained there
        if teacher and p.weak_filter != "none":
            fields |= {"keep": p.weak_filter, "keep_threshold": p.threshold, "keep_by": p.confidence}
        identity = (model, models.fingerprint(model), self.data.fingerprint, split, seed, conflict)
        spec = RunSpec(*identity, teacher=teacher, **fields | changes)
        return spec if p.method == "reward" else self._preference(spec)

    def _preference(self, spec: RunSpec) -> RunSpec:
        """The same run by DPO or SimPO, after a warm start on the responses that its labels prefer.

        The explicit conflict changes no pair, so that it shares the warm start of the run without.
        """
        p, changes = self.params, {"method": "sft", "alpha": 0.0, "weighting": "none", "gold_checks": 0}
        changes |= {"learning_rate": p.sft_learning_rate or p.learning_rate, "epochs": p.sft_epochs or 1}
        changes |= {"conflict": spec.conflict if spec.conflict == "implicit" else "none", "save_model": True}
        start = replace(spec, **changes, chance_by=spec.chance_by if spec.ensemble else None)
        gamma = (GAMMA if p.gamma is None else p.gamma) if p.method == "simpo" else None
        against = p.method == "dpo" and p.confidence != "paper"
        return replace(spec, start=start, method=p.method, beta=self.beta, gamma=gamma, against_reference=against)

    @property
    def model_pairs(self) -> list[tuple[str, str]]:
        """Every (weak, strong) with weak smaller than strong, by parameters; a ParameterError where there is none."""
        size = models.n_parameters
        every = itertools.product(self.params.weak_models, self.params.strong_models)
        rising = [(weak, strong) for weak, strong in every if size(weak) < size(strong)]
        if not rising:
            words = f"none is larger than a weak model of {self.params.weak_models}; name a larger one"
            raise ParameterError(f"strong_models = {self.params.strong_models}: {words}")
        return rising

    @property
    def chains(self) -> list[tuple[str, str, str]]:
        """Every (weak, intermediate, strong) of rising size."""
        size = models.n_parameters
        every = itertools.product(self.model_pairs, self.params.intermediate_models)
        return [(weak, m, strong) for (weak, strong), m in every if size(weak) < size(m) < size(strong)]

    def gold_runs(self, names: list[str]) -> dict[RunSpec, dict]:
        """Gold-trained runs with the columns that name them in the predictions table."""
        each = itertools.product(self.params.seeds, dict.fromkeys(names))
        return {self.gold(m, seed): self._tags("gold", m, "", "", "none", seed) for seed, m in each}

    def student_runs(self) -> dict[RunSpec, dict]:
        """One student for every pair of models, conflict and seed; a ParameterError where helpful pairs are missing."""
        p = self.params
        if "implicit" in p.conflicts and not len(self.data.helpful):
            remedy = "raise it, or leave implicit out of conflicts"
            raise ParameterError(f"n_helpful = {p.n_helpful}: the implicit conflict needs helpful pairs; {remedy}")
        each = itertools.product(p.seeds, self.model_pairs, p.conflicts)
        return {self.student(w, s, c, seed): self._tags("student", s, w, "", c, seed) for seed, (w, s), c in each}

    def bootstrapped_runs(self) -> dict[RunSpec, dict]:
        """One bootstrapped student for every chain, conflict and seed."""
        each = itertools.product(self.params.seeds, self.chains, self.params.conflicts)
        return {
            self.bootstrapped(w, m, s, c, seed): self._tags("bootstrapped", s, m, w, c, seed)
            for seed, (w, m, s), c in each
        }

    def direct_runs(self) -> dict[RunSpec, dict]:
        """Every run of notebooks 02 and 03: weak models, ceilings, and students of weak models."""
        return self.gold_runs([*self.params.weak_models, *self.params.strong_models]) | self.student_runs()

    def all_runs(self) -> dict[RunSpec, dict]:
        """Every run of the five notebooks."""
        return self.direct_runs() | self.bootstrapped_runs()


def _other(split: str) -> str:
    return "w2s" if split == "gt" else "gt"


def _check_lengths(texts: pd.DataFrame, name: str, tokenizer, most: int) -> None:
    """Stop at a response (columns id, side, text) that is longer than `most` tokens by itself."""
    ids = tokenizer(texts["text"].tolist(), add_special_tokens=False)["input_ids"]
    for row, n in zip(texts.itertuples(), map(len, ids), strict=True):
        if n > most:
            raise ParameterError(
                f"max_length = {most}: the {row.side} response of {row.id} has {n} tokens with the tokenizer of "
                f"{name!r}; raise max_length, or set bad_pairs: drop to cut its beginning"
            )
