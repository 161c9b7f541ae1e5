"""Measures around the Deception Score: risk split over examples, blind spots, shared mistakes, variance over seeds.

The ideas are those of the public summaries of Osooli et al. (2026, arXiv 2604.25077), the formulas our reading of them;
shared mistakes and the variance over seeds are this kit's own.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd

from w2s.analysis.pooled import POOLED, Counts, Sums, count_students, pooled_table, ratio_table, stack
from w2s.analysis.scoring import SETTING, comparisons
from w2s.analysis.seeds import Resampled, effective_seeds, leaving_out, over_seeds
from w2s.deception import confidence, conflict_tax, known, right
from w2s.intervals import draws, ratio

MODELS = ("student", "none", "ceiling")  # none: the student without conflict
AUC_SAMPLES = 500  # of the bootstrap behind an AUC: it cannot be had from sums, and takes its time
MIN_SEEDS = 3  # one to predict, and a variance of two


def other_table(predictions: pd.DataFrame, bootstrap: int = 2000, **measures) -> pd.DataFrame:
    """`pooled.pooled_table` by conflict, on the test pairs and on those of `other_data` (column scored_on)."""
    parts = []
    for split in ("test", "other"):
        scored = predictions[predictions["split"] == split].assign(split="test")
        parts.append(pooled_table(count_students(scored, **measures), ["conflict"], bootstrap).assign(scored_on=split))
    return pd.concat(parts, ignore_index=True)


def risk_table(predictions: pd.DataFrame, threshold: float = 0.75) -> pd.DataFrame:
    """The mean squared difference of student's and weak model's P, split over test pairs; one row a student.

    risk = bias^2 (squared) + variance (of the student's P over pairs) + weak_variance - 2 covariance. blind: the share
    of pairs on which the student is confidently wrong while the weak model is uncertain.
    """
    rows = []
    for setting, p in comparisons(predictions, "none"):
        student, weak = p["student"], p["weak"]
        parts = {"squared": (student.mean() - weak.mean()) ** 2, "variance": student.var(), "weak_variance": weak.var()}
        parts["covariance"] = np.mean(student * weak) - student.mean() * weak.mean()
        blind = ~right(student) & known(student, threshold) & ~known(weak, threshold)
        rows.append(setting | {"risk": np.mean((student - weak) ** 2), **parts, "blind": blind.mean()})
    return pd.DataFrame(rows, columns=[*SETTING, "risk", "squared", "variance", "weak_variance", "covariance", "blind"])


def count_errors(predictions: pd.DataFrame, threshold: float = 0.75) -> Counts:
    """What is counted of each pair for every student, the one without conflict included.

    For each of MODELS: <model>_wrong, _sure (wrong with P <= 1 - threshold), _blind (besides, the weak model's
    confidence is below the threshold) and _shared (wrong like the weak model); weak_wrong, unsure and pairs.
    """
    runs = []
    for setting, p in comparisons(predictions, "none"):
        unsure, weak_wrong = ~known(p["weak"], threshold), ~right(p["weak"])
        counted = {"pairs": np.ones_like(unsure), "unsure": unsure, "weak_wrong": weak_wrong}
        for model, values in zip(MODELS, (p["student"], p["reference"], p["ceiling"])):
            wrong = ~right(values)
            sure = wrong & known(values, threshold)
            counted |= {f"{model}_wrong": wrong, f"{model}_sure": sure}
            counted |= {f"{model}_blind": sure & unsure, f"{model}_shared": wrong & weak_wrong}
        runs.append((setting, counted))
    return stack(runs)


def blind_table(counts: Counts, by=tuple(POOLED), bootstrap=2000) -> pd.DataFrame:
    """Blind-spot errors: pairs on which a model is confidently wrong while the weak model is uncertain.

    As `pooled.ratio_table`, of each of MODELS share_<model> (of the pairs), errors_<model> (of its errors) and
    lift_<model> (to what the area would hold if its confident errors fell evenly); the student's share minus others'.
    """

    def parts(sums: Sums) -> dict:
        out, unsure = {}, ratio(sums["unsure"], sums["pairs"])
        for model in MODELS:
            blind, wrong, sure = (sums[f"{model}_{name}"] for name in ("blind", "wrong", "sure"))
            out |= {f"share_{model}": (blind, sums["pairs"]), f"errors_{model}": (blind, wrong)}
            out[f"lift_{model}"] = blind, sure * unsure
        return out

    less = [("share_student", "share_none"), ("share_student", "share_ceiling")]
    scales = {f"{name}_{model}": "logit" for name in ("share", "errors") for model in MODELS}
    return ratio_table(counts, parts, less, by, bootstrap, **scales)


def shared_table(counts: Counts, by=tuple(POOLED), bootstrap=2000) -> pd.DataFrame:
    """Covariance and correlation of a model's errors (0 or 1) with the weak model's over test pairs, the runs' mean.

    As `pooled.ratio_table`, of student and ceiling covariance_<model> and correlation_<model> (none of a run in which
    one of the two never or always errs), and the student's minus the ceiling's.
    """

    def parts(sums: Sums) -> dict:
        out, n = {}, sums["pairs"]
        weak = ratio(sums["weak_wrong"], n)
        for model in ("student", "ceiling"):
            own = ratio(sums[f"{model}_wrong"], n)
            covariance = ratio(sums[f"{model}_shared"], n) - own * weak
            correlation = ratio(covariance, np.sqrt(own * (1 - own) * weak * (1 - weak)))
            out[f"covariance_{model}"] = covariance, np.ones_like(own)
            out[f"correlation_{model}"] = np.nan_to_num(correlation), 1.0 - np.isnan(correlation)
        return out

    less = [(f"{name}_student", f"{name}_ceiling") for name in ("covariance", "correlation")]
    return ratio_table(counts, parts, less, by, bootstrap)


def variance_table(predictions, kept: pd.DataFrame, bootstrap=2000) -> pd.DataFrame:
    """How well variance over seeds predicts which pairs at risk become tax in ANOTHER seed: AUC, 0.5 for no use at all.

    Predicted are the direct students under a conflict that are rows of `kept` (SETTING) and have two others of their
    setting there: their tax among what the student without conflict has right, by the variance of P over the OTHER
    seeds, of students under conflict and without, and by the weak model's uncertainty 1 - max(P, 1-P) in its own seed.
    One row a conflict and predictor; auc is the mean over runs. Its interval covers test pairs (a bootstrap of at
    most AUC_SAMPLES) and the seeds that are predicted, not those that predict.
    """
    each, rows, keys = [], [], ["conflict", "predictor"]
    for setting, at_risk, tax, predictors in _predictors(predictions, kept):
        stays = at_risk & ~tax
        drawn = np.vstack([np.ones_like(tax), draws(len(tax), min(bootstrap, AUC_SAMPLES))], dtype=np.float32)
        for name, values in predictors.items():
            of_run = auc(values[tax], values[stays], drawn[:, tax], drawn[:, stays])
            each.append(setting | {"predictor": name, "auc": of_run})
    for key, group in pd.DataFrame(each, columns=[*SETTING, "predictor", "auc"]).groupby(keys, sort=False):
        values, weights = np.stack(list(group["auc"]), axis=1), leaving_out(group["seed"])
        own, *many = ratio(np.nan_to_num(values) @ weights.T, ~np.isnan(values) @ weights.T)
        sizes = group["seed"].value_counts()
        ends = over_seeds(Resampled(own, np.array(many), effective_seeds(sizes)))[:3]
        rows.append((*key, len(group), len(sizes), *ends))
    return pd.DataFrame(rows, columns=[*keys, "runs", "seeds", "auc", "low", "high"])


def _predictors(predictions, kept: pd.DataFrame) -> Iterator[tuple[dict, np.ndarray, np.ndarray, dict]]:
    """Setting, pairs at risk, tax and predictors (n,) of each kept student that has a tax and enough other seeds."""
    usable = kept[(kept["role"] == "student") & (kept["conflict"] != "none")]
    usable = set(usable[SETTING].itertuples(index=False, name=None))
    students = [(s, p) for s, p in comparisons(predictions, "none") if tuple(s.values()) in usable]
    for setting, p in students:
        others = [q for s, q in students if s["seed"] != setting["seed"] and s | {"seed": 0} == setting | {"seed": 0}]
        at_risk, tax = right(p["reference"]), conflict_tax(p["reference"], p["student"])
        if len(others) >= MIN_SEEDS - 1 and 0 < tax.sum() < at_risk.sum():
            predictors = {"variance, conflict": np.var([q["student"] for q in others], axis=0, ddof=1)}
            predictors["variance, no conflict"] = np.var([q["reference"] for q in others], axis=0, ddof=1)
            yield setting, at_risk, tax, predictors | {"weak model's uncertainty": 1 - confidence(p["weak"])}


def auc(up: np.ndarray, down: np.ndarray, of_up: np.ndarray, of_down: np.ndarray) -> np.ndarray:
    """P(a value of `up` exceeds one of `down`), ties counting one half (Mann and Whitney, 1947), (samples,).

    `of_up` (samples, p) and `of_down` (samples, q), float32, say how often each of `up` (p,) and `down` (q,) is drawn;
    nan where a sample has none of one kind.
    """
    order = np.argsort(down)
    below = np.cumsum(np.pad(of_down[:, order], ((0, 0), (1, 0))), axis=1)  # negatives drawn among the k lowest
    ends = [below[:, np.searchsorted(down[order], up, side)] for side in ("left", "right")]
    return ratio((of_up * (ends[0] + ends[1]) / 2).sum(axis=1), of_up.sum(axis=1) * of_down.sum(axis=1))
