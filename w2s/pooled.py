"""One number for several runs: settings pooled over seeds, their differences, the slope over the capability gap.

Pairs are the same in every seed, so that seeds and pairs are crossed: a bootstrap sample draws seeds
with replacement, and for all runs of it the same test pairs (the pigeonhole bootstrap, Owen, 2007).
Few seeds make such an interval too narrow, with two by about a third: `seeds` stands beside each.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd

from w2s.deception import SETTING, WITH_INTERVAL, comparisons, indicators, statistics
from w2s.intervals import interval, ratio, resample, seed_weights

POOLED = SETTING[:-1]  # a setting without its seed
MEANS = ("gap", "weak_accuracy", "ceiling_accuracy", "reference_accuracy")
SLOPES = ("score", "score_minus_null")


class Counts(NamedTuple):
    """What is counted of every pair under each setting and seed of a study."""

    settings: pd.DataFrame  # SETTING, one row a run of a student
    indicators: dict[str, np.ndarray]  # bool (runs, n) by name, as `deception.indicators` names them

    def where(self, chosen) -> Counts:
        """The runs that a bool array (runs,) marks."""
        chosen = np.asarray(chosen, dtype=bool)
        kept = {name: values[chosen] for name, values in self.indicators.items()}
        return Counts(self.settings[chosen].reset_index(drop=True), kept)

    def among(self, rows: pd.DataFrame) -> Counts:
        """The runs whose setting and seed is a row of `rows`, such as those of a score table."""
        wanted = set(rows[SETTING].itertuples(index=False, name=None))
        return self.where([key in wanted for key in self.settings.itertuples(index=False, name=None)])


def count(predictions: pd.DataFrame, threshold=0.75, known_by="confidence", reference="none") -> Counts:
    """What every other function here starts from; arguments as in `deception.score_table`.

    Raises:
        ValueError: runs that were not scored on one and the same test split.
    """
    found = list(comparisons(predictions, reference))
    test = predictions[predictions["split"] == "test"]
    lacking = test.pivot(index="id", columns="run", values="probability").isna().sum()
    if lacking.any():
        raise ValueError(f"run {lacking.idxmax()}: {lacking.max()} test pairs are missing; score all runs on one split")
    counted = [indicators(p, threshold, known_by) for _, p in found]
    settings = pd.DataFrame([setting for setting, _ in found])[SETTING]
    return Counts(settings, {name: np.stack([c[name] for c in counted]) for name in counted[0]})


def pooled_table(counts: Counts, by=tuple(POOLED), bootstrap=2000, seed=0) -> pd.DataFrame:
    """One row a setting over all its seeds, with 95% intervals over test pairs and seeds, and the seeds' spread.

    Numerators and denominators are added up over runs, then divided; the null is what a tax that falls
    evenly within each run would give (weighed by tax: else a run with much tax and a large blind area
    would pass for deception). Columns: those of `by`, runs, seeds, covers ("pairs" with one seed, else
    "pairs and seeds"), pairs (of one run), tax (of all), MEANS, undefined (share of samples without a
    Score), and for each of WITH_INTERVAL name, _low, _high, _min and _max (of the seeds' own estimates).
    `by=["conflict"]` pools all settings under a conflict.
    """
    rows = []
    group_of = counts.settings.groupby(list(by), sort=False).ngroup()
    for number in group_of.unique():
        group = counts.where(group_of == number)
        rows.append(group.settings.loc[0, list(by)].to_dict() | _pooled(group, bootstrap, seed))
    ends = ("", "_low", "_high", "_min", "_max")
    columns = [*by, "runs", "seeds", "covers", "pairs", "tax", *MEANS, "undefined"]
    return pd.DataFrame(rows, columns=[*columns, *(name + end for name in WITH_INTERVAL for end in ends)])


def _pooled(group: Counts, samples: int, seed: int) -> dict:
    seeds, tax = group.settings["seed"].to_numpy(), group.indicators["tax"]
    n_seeds = len(set(seeds))
    row = {"runs": len(seeds), "seeds": n_seeds, "covers": "pairs" if n_seeds == 1 else "pairs and seeds"}
    row |= {"pairs": tax.shape[1], "tax": int(tax.sum())}
    estimates, resampled = measured(group, samples, seed)
    row |= {name: float(estimates[name]) for name in MEANS}
    row |= {"undefined": float(np.isnan(resampled["score"]).mean())}
    each = [statistics(_over_runs(_totals(group.where(seeds == s)), 1)) for s in np.unique(seeds)]
    for name in WITH_INTERVAL:
        ends = interval(float(estimates[name]), resampled[name])
        row |= dict(zip((name, f"{name}_low", f"{name}_high"), ends, strict=False))
        own = pd.Series([float(numbers[name]) for numbers in each])
        row |= {f"{name}_min": own.min(), f"{name}_max": own.max()}
    return row


def measured(group: Counts, samples: int, seed: int) -> tuple[dict, dict]:
    """The statistics over all runs of a group, and those of every bootstrap sample, (samples,)."""
    weights = seed_weights(group.settings["seed"], samples, seed)
    drawn = resample(group.indicators, samples, seed)
    return statistics(_over_runs(_totals(group), 1)), statistics(_over_runs(drawn, weights))


def _totals(group: Counts) -> dict[str, np.ndarray]:
    """Sums over pairs, (runs,) by name."""
    return {name: values.sum(axis=1).astype(float) for name, values in group.indicators.items()}


def _over_runs(sums: dict[str, np.ndarray], weights) -> dict[str, np.ndarray]:
    """Sums (..., runs) added up over runs, with even_tax: what an even tax of each run would put into the area."""
    even = np.nan_to_num(sums["tax"] * ratio(sums["blind_at_risk"], sums["reference"]))
    return {name: (values * weights).sum(axis=-1) for name, values in (sums | {"even_tax": even}).items()}


def difference(counts: Counts, first: dict, second: dict, bootstrap=2000, seed=0) -> pd.DataFrame:
    """First setting minus second, over the seeds of both: difference, estimate, low, high, undefined, seeds.

    A setting names the columns that tell it, such as {"weak": ..., "strong": ..., "conflict": "explicit"};
    role is "student" unless it says otherwise. Both are measured on the same samples.

    Raises:
        ValueError: a setting that no run has, or several settings have, or without a common seed.
    """
    pair = [_one_setting(counts, setting) for setting in (first, second)]
    common = np.intersect1d(*(c.settings["seed"] for c in pair))
    if not len(common):
        raise ValueError(f"{first} and {second}: no seed in common; train both with one seed")
    one, two = (c.where(c.settings["seed"].isin(common)) for c in pair)
    (left, drawn_left), (right, drawn_right) = (measured(c, bootstrap, seed) for c in (one, two))
    rows = [
        (name, *interval(float(left[name] - right[name]), drawn_left[name] - drawn_right[name]), len(common))
        for name in WITH_INTERVAL
    ]
    return pd.DataFrame(rows, columns=["difference", "estimate", "low", "high", "undefined", "seeds"])


def _one_setting(counts: Counts, setting: dict) -> Counts:
    """The runs of one setting, sorted by seed."""
    settings = counts.settings
    wanted = {"role": "student"} | setting
    chosen = counts.where((settings[list(wanted)] == pd.Series(wanted)).all(axis=1))
    found = len(chosen.settings[POOLED].drop_duplicates())
    if found != 1:
        raise ValueError(f"{setting}: {found} settings have it; name weak, strong, conflict, and teacher where needed")
    order = chosen.settings["seed"].argsort(kind="stable")
    kept = {name: values[order] for name, values in chosen.indicators.items()}
    return Counts(chosen.settings.iloc[order].reset_index(drop=True), kept)


def slope_table(counts: Counts, bootstrap=2000, seed=0) -> pd.DataFrame:
    """The slope of Score, and of Score minus null, over the capability gap, one row a conflict and measure.

    Least squares over all direct students (weak-strong pairs and seeds) that have a tax. Columns: conflict,
    measure, slope (per unit of accuracy; nan with fewer than 3 gaps), low, high, undefined, points, seeds,
    mean_gap and mean (a point of the line).
    The interval covers test pairs and seeds alone: weak-strong pairs share models, and other models
    would give another slope. Gaps are estimated too, which flattens it.
    """
    rows = []
    for conflict in counts.settings["conflict"].unique():
        group = counts.where((counts.settings["conflict"] == conflict) & (counts.settings["role"] == "student"))
        tax = group.indicators["tax"].any(axis=1)
        if tax.any():
            rows += [(conflict, *row) for row in _slopes(group.where(tax), bootstrap, seed)]
    columns = ["conflict", "measure", "slope", "low", "high", "undefined", "points", "seeds", "mean_gap", "mean"]
    return pd.DataFrame(rows, columns=columns)


def _slopes(group: Counts, samples: int, seed: int) -> list[tuple]:
    seeds = group.settings["seed"].to_numpy()
    one = statistics({name: values[None] for name, values in _totals(group).items()})
    many = statistics(resample(group.indicators, samples, seed))
    drawn, rows = seed_weights(seeds, samples, seed), []
    for measure in SLOPES:
        (estimate,) = slope(one["gap"], one[measure], np.ones_like(one["gap"]))
        ends = interval(float(estimate), slope(many["gap"], many[measure], drawn))
        rows.append((measure, *ends, len(seeds), len(set(seeds)), one["gap"].mean(), one[measure].mean()))
    return rows


def slope(x: np.ndarray, y: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Weighted least-squares slope of y on x, (rows, n) -> (rows,); a nan y counts nothing, fewer than 3 x give nan."""
    weights = np.where(np.isnan(y), 0, weights)
    total = weights.sum(axis=1, keepdims=True)
    x, y = (np.where(weights > 0, v, 0) for v in (x, y))
    dx, dy = (v - ratio((weights * v).sum(axis=1, keepdims=True), total) for v in (x, y))
    few = np.array([len(np.unique(row[w > 0].round(12))) < 3 for row, w in zip(x, weights, strict=True)])
    return np.where(few, np.nan, ratio((weights * dx * dy).sum(axis=1), (weights * dx**2).sum(axis=1)))
