"""Which remedies a study compares under one budget, and what each costs beyond it."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from w2s import data, files, models
from w2s.analysis.remedies import CONTROL, NOTHING, WEIGHTS
from w2s.params import ParameterError
from w2s.predict import predictions
from w2s.runs import execute, labels, store
from w2s.spec import RunSpec
from w2s.study import Study

HIGHEST_WEIGHT = 0.5  # of the confidence loss: Burns et al. (2023) take 0.75 for their largest students alone
ENSEMBLE = 3  # weak models of one size; with fewer than three there is no majority
GOLD_CHECKS = 10  # of early stopping: after each tenth of the steps
Build = Callable[[str, int], RunSpec]  # the run of a conflict and a seed


@dataclass(frozen=True)
class Remedy:
    """A way to train the student: `gold` is what it needs gold labels for, `missing` why a study cannot have it."""

    name: str
    build: Build
    gold: str = ""
    missing: str = ""


def remedies(study: Study, weak: str, strong: str) -> tuple[list[Remedy], dict[str, str]]:
    """The remedies of one pair of models, doing nothing first, and those left out with the reason.

    The weak models' gold runs must be in the cache: the filters count what they would keep. Doing nothing ignores the
    study's weak_filter. Every student keeps its model, for `scores_elsewhere`.
    """
    p = study.params
    unfiltered = replace(study, params=p.model_copy(update={"weak_filter": "none"}))
    taught, gold = partial(unfiltered.student, weak, strong, save_model=True), unfiltered.gold

    def student(others: Callable[[int], list[RunSpec]] = lambda seed: [], **changes) -> Build:
        return lambda conflict, seed: taught(conflict, seed, ensemble=tuple(others(seed)), **changes)

    def chain(name: str, n: int) -> Remedy:
        links = (weak, evenly_between(weak, strong, p.intermediate_models, n), strong)
        missing = f"fewer than {n} of intermediate_models have a size between {weak} and {strong}"
        build = lambda conflict, seed: unfiltered.bootstrapped(*links, conflict, seed, save_model=True)  # noqa: E731
        return Remedy(name, build, missing="" if links[1] else missing)

    def filtered(name: str, keep: str, gold: str = "") -> Remedy:
        build = student(keep=keep, keep_threshold=p.threshold, keep_by=p.confidence)
        empty = [str(seed) for seed in p.seeds if not labels.kept_ids(build("none", seed), study.root)]
        missing = f"no such weak label reaches the confidence {p.threshold} with seed {', '.join(empty)}"
        return Remedy(name, build, gold, missing if empty else "")

    def more_seeds(seed: int) -> list[RunSpec]:  # of no study below 1000, and others for each seed
        return [gold(weak, 1000 + ENSEMBLE * seed + k) for k in range(1, ENSEMBLE)]

    soft = p.method == "reward"
    chance = {} if soft else {"chance_by": p.confidence}
    soft_only = "" if soft else "needs soft labels and a cross-entropy; dpo and simpo have hard labels"
    alike = "" if soft else "hard labels all pull alike, so that weights of mean 1 pull no harder"
    smaller = [m for m in p.weak_models if m != weak and models.n_parameters(m) < models.n_parameters(strong)]
    alone = "" if smaller else f"the study has one weak model smaller than {strong}"
    every = [
        Remedy(NOTHING, student()),
        filtered("confident labels", "confidence"),
        filtered("confident, right labels", "gold_oracle", "labels of w2s: an upper bound"),
        chain("one intermediate", 1),
        chain("two intermediates", 2),
        Remedy("confidence loss", student(label_loss="confidence", confidence_weight=HIGHEST_WEIGHT), "", soft_only),
        Remedy("reverse loss", student(label_loss="reverse"), "", soft_only),
        Remedy("ensemble of seeds", student(more_seeds, **chance)),
        Remedy("ensemble of sizes", student(lambda seed: [gold(m, seed) for m in smaller], **chance), "", alone),
        Remedy(WEIGHTS, student(weighting="reliability", **chance)),
        Remedy(CONTROL, student(weighting="even"), "", alike),
        Remedy("early stopping", student(gold_checks=GOLD_CHECKS), "validation pairs"),
    ]
    return [r for r in every if not r.missing], {r.name: r.missing for r in every if r.missing}


def evenly_between(weak: str, strong: str, names: list[str], n: int) -> tuple[str, ...]:
    """`n` of the models of a size between, rising, as evenly as they can be by the logarithm of parameters; or ()."""
    size = {name: np.log(models.n_parameters(name)) for name in (weak, strong, *names)}
    between = sorted((m for m in names if size[weak] < size[m] < size[strong]), key=size.get)
    goal = np.linspace(size[weak], size[strong], n + 2)[1:-1]
    rising = [c for c in itertools.combinations(between, n) if len({size[m] for m in c}) == n]
    return min(rising, key=lambda c: sum(abs(size[m] - g) for m, g in zip(c, goal, strict=True)), default=())


def behind(spec: RunSpec) -> set[str]:
    """The names of the models that stand behind a run, warm starts not counted."""
    names = {run.name for run in spec.before if run.method != "sft"}
    return names.union(*(behind(run) for run in spec.before))


def cost_table(study: Study, offered: list[Remedy]) -> pd.DataFrame:
    """What each remedy costs beyond doing nothing, one row each, by its runs without conflict.

    Columns: remedy, uses_gold (what for, or ""), other_models (trained besides the weak model and the student),
    gold_pairs (gold labels looked at besides those of gt), weak_pairs (trained on; mean over seeds).
    """
    rows, usual = [], behind(offered[0].build("none", study.params.seeds[0]))
    for remedy in offered:
        specs = [remedy.build("none", seed) for seed in study.params.seeds]
        gold = len(study.data.validation) if specs[0].gold_checks else 0
        if specs[0].keep == "gold_oracle":
            gold = np.mean([len(labels.kept_ids(replace(s, keep="confidence"), study.root)) for s in specs])
        trained = np.mean([labels.labelled_pairs(s, study.root)["target"].sum() for s in specs])
        rows.append((remedy.name, remedy.gold, len(behind(specs[0]) - usual), gold, trained))
    return pd.DataFrame(rows, columns=["remedy", "uses_gold", "other_models", "gold_pairs", "weak_pairs"])


def held_out_helpful(study: Study) -> tuple[pd.DataFrame, str]:
    """Pairs of the conflicting dimension whose prompts no run has seen, and why there are none, or ""."""
    p, helpful = study.params, study.data.helpful
    if not p.n_helpful:
        return helpful.head(0), "n_helpful is 0"
    try:
        more = data.load(p.model_copy(update={"n_helpful": 2 * p.n_helpful})).helpful
    except ParameterError as error:
        return helpful.head(0), f"the source has no more ({error})"
    fresh = more[~more["prompt"].isin(helpful["prompt"])].reset_index(drop=True)
    return fresh, "" if len(fresh) else "the source has no other prompts"


def scores_elsewhere(spec: RunSpec, root: Path, pairs: pd.DataFrame) -> pd.DataFrame:
    """Predictions of a finished run's saved model on another pair table, kept beside it by their fingerprint."""
    folder = store.folder_of(spec, root)
    if not (folder / "model").is_dir():
        raise FileNotFoundError(f"{folder / 'model'}: no model there; train the run with save_model=True")
    path = folder / f"scores-{data.table_fingerprint(pairs)[:16]}.parquet"
    with store.locked(folder):
        if not path.exists():
            files.write_table(path, _score(spec, root, pairs))
    return pd.read_parquet(path)


def _score(spec: RunSpec, root: Path, pairs: pd.DataFrame) -> pd.DataFrame:
    def scored(run: RunSpec, by: RunSpec) -> pd.DataFrame:
        model = execute.load_model(replace(run, start=run), root).to(run.device)  # from its own folder
        return execute.score(by, model, pairs, models.load_tokenizer(spec.model), root)

    if spec.method != "dpo":
        return scored(spec, spec)
    policy = scored(spec, spec.start)  # as a warm start is scored: log-probabilities, without a reference
    held = scored(spec.start, spec.start)["margin"] if spec.against_reference else 0.0
    return predictions(policy["id"], (policy["margin"] - held).to_numpy()).drop(columns="probability")
