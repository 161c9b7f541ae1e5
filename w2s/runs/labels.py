"""The labels that a run trains on: gold, its teachers', filtered, weighted, or dealt out anew for controls."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd

from w2s.data import training_pairs
from w2s.predict import with_probability
from w2s.runs.store import load_predictions, split_table
from w2s.spec import SPLITS, RunSpec


def weak_labels(teacher: RunSpec, root: Path, split: str) -> pd.DataFrame:
    """The teacher's labels on a split it was not trained on: id, weak_label (P of `chosen`; hard for dpo and simpo)."""
    table = load_predictions(teacher, root).query("split == @split").reset_index(drop=True)
    label = table["probability"] if teacher.method == "reward" else table["correct"].astype(float)
    return pd.DataFrame({"id": table["id"], "weak_label": label})


def labelled_pairs(spec: RunSpec, root: Path) -> pd.DataFrame:
    """The pairs that a run trains on, with their labels: `data.training_pairs` after the filter."""
    tables = SimpleNamespace(**{split: split_table(spec, root, split) for split in SPLITS})
    labels = weak_labels(spec.teacher, root, spec.split) if spec.teacher else None
    if spec.relabel != "none" and not spec.teacher:
        labels = pd.DataFrame({"id": getattr(tables, spec.split)["id"], "weak_label": 1.0})  # gold ones
    if spec.ensemble:
        mean = mean_chance(spec, root).loc[labels["id"]].to_numpy()
        labels["weak_label"] = mean if spec.teacher.method == "reward" else (mean > 0.5).astype(float)
    if spec.relabel == "planted":
        labels["weak_label"] = planted_labels(spec, root, labels["id"])
    elif spec.relabel != "none":
        labels["weak_label"] = relabelled(labels["weak_label"].to_numpy(), spec.relabel, spec.seed, spec.relabel_share)
    kept = kept_ids(spec, root) if spec.keep != "none" else None
    pairs = training_pairs(tables, spec.split, labels, spec.conflict, kept, spec.n_helpful)
    if spec.weighting != "none":  # of the weak labels; helpful pairs are gold and count as before
        own, weigh = pairs["target"], {"reliability": reliability_weights, "even": even_weights}[spec.weighting]
        pairs = pairs.assign(weight=1.0)
        pairs.loc[own, "weight"] = weigh(mean_chance(spec, root).loc[pairs["id"][own]])
    return pairs


def _with_chance(teacher: RunSpec, root: Path, split: str, confidence: str) -> pd.DataFrame:
    """A teacher's predictions on a split, with what a kind of confidence makes of its margins as probability."""
    table = with_probability(load_predictions(teacher, root), confidence, teacher.method, teacher.beta)
    return table[table["split"] == split]


def mean_chance(spec: RunSpec, root: Path) -> pd.Series:
    """The mean over a run's teachers of P that `chosen` is preferred (by `chance_by`), by id of its split."""
    teachers, by = (spec.teacher, *spec.ensemble), spec.chance_by or "paper"
    each = [_with_chance(teacher, root, spec.split, by).set_index("id")["probability"] for teacher in teachers]
    return pd.concat(each, axis=1).mean(axis=1)


def kept_ids(spec: RunSpec, root: Path) -> set[str]:
    """Pairs whose weak confidence reaches the threshold; "gold_oracle": of them those whose weak label is right."""
    table = _with_chance(spec.teacher, root, spec.split, spec.keep_by)
    kept = _confident(table["probability"], spec.keep_threshold)
    return set(table["id"][kept & table["correct"] if spec.keep == "gold_oracle" else kept])


def _confident(probability: pd.Series, threshold: float) -> pd.Series:
    return np.maximum(probability, 1 - probability) >= threshold


def planted_labels(spec: RunSpec, root: Path, ids: pd.Series) -> np.ndarray:
    """Gold labels (n,), turned round on a share of the pairs that the ceiling knows and the teacher does not."""
    tables = (_with_chance(run, root, spec.split, spec.keep_by).set_index("id") for run in (spec.ceiling, spec.teacher))
    ceiling, weak = (_confident(table.loc[ids, "probability"], spec.keep_threshold) for table in tables)
    blind = ceiling & ~weak
    drawn = np.random.default_rng([spec.seed, len(blind), 1]).random(len(blind)) < spec.relabel_share
    return np.where(blind & drawn, 0.0, 1.0)


def relabelled(label: np.ndarray, how: str, seed: int, share: float | None = None) -> np.ndarray:
    """Labels (n,) dealt out anew, for controls: "shuffled" to other pairs, "random" turned round by a fair coin too.

    "noise" turns a share of them round. As `chosen` is preferred in every pair, shuffled ones are right as often.
    """
    rng = np.random.default_rng([seed, len(label)])
    if how == "noise":
        return np.where(rng.random(len(label)) < share, 1 - label, label)
    shuffled = rng.permutation(label)
    return shuffled if how == "shuffled" else np.where(rng.random(len(label)) < 0.5, shuffled, 1 - shuffled)


def reference_margins(spec: RunSpec, root: Path, ids: pd.Series) -> np.ndarray:
    """log p(chosen) - log p(rejected) of the warm start, (n,) nats, from its table; zeros but for dpo."""
    if spec.method != "dpo":
        return np.zeros(len(ids), dtype=np.float32)
    table = load_predictions(spec.start, root).set_index("id").loc[ids]
    return (table["chosen_logp"] - table["rejected_logp"]).to_numpy()


def reliability_weights(label) -> np.ndarray:
    """Weights (n,) of weak-labelled pairs, without gold: |2 y - 1| by its mean. ValueError: every label is 1/2."""
    size = np.abs(2 * np.asarray(label, dtype=float) - 1)
    if not size.any():
        raise ValueError("weighting: every weak label is 1/2, so that all weights are 0; take another weak model")
    return size / size.mean()


def even_weights(label) -> np.ndarray:
    """The control of `reliability`: equal weights (n,) that pull as hard in total at margin 0, by w |2 y - 1| / 2."""
    size = np.abs(2 * np.asarray(label, dtype=float) - 1)
    return np.full(len(size), (reliability_weights(label) * size).mean() / size.mean())
