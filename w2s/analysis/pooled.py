"""Several runs in one number: settings pooled over seeds, their differences, the slope over the capability gap.

A bootstrap sample draws the same test pairs for all runs; seeds enter by `seeds.over_seeds`. Few seeds make an interval
wide, two of them useless: their number stands beside each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from w2s.analysis.scoring import (
    ESTIMATES,
    MEANS,
    MIN_TAX,
    OF_SCORE,
    SETTING,
    comparisons,
    extremes,
    indicators,
    no_score,
    statistics,
    turned,
)
from w2s.analysis.seeds import Resampled, effective_seeds, leaving_out, over_seeds
from w2s.deception import conflict_tax, known, right
from w2s.intervals import newcombe, ratio, resample, with_ends

POOLED = SETTING[:-1]  # a setting without its seed
SLOPES = ("score", "score_minus_even")
BY_TAX = ("score", "even_share", "score_minus_even", "lift")  # over runs, each counts by its tax
SCALE = dict.fromkeys(("student_accuracy", "tax_share", "score", "even_share"), "logit") | {"lift": "log"}
HITS = {"student_accuracy": "student", "accuracy": "student", "tax_share": "tax"}  # shares of the pairs
LEVELS = (0.5, 0.6, 0.7, 0.75, 0.8, 0.9, 0.95, 0.99)
THRESHOLDS = ["weak_threshold", "strong_threshold"]

Sums = dict[str, np.ndarray]  # of indicators over pairs, (..., runs) by name
Parts = Callable[[Sums], dict[str, tuple[np.ndarray, np.ndarray]]]  # numerator and denominator of each run, by name


class Counts(NamedTuple):
    """What is counted of every pair under each setting and seed, one row a run: SETTING, and bool (runs, n) by name."""

    settings: pd.DataFrame
    indicators: dict[str, np.ndarray]

    def rows(self, numbers) -> Counts:
        """The runs of these row numbers, in their order."""
        kept = {name: values[numbers] for name, values in self.indicators.items()}
        return Counts(self.settings.iloc[numbers].reset_index(drop=True), kept)

    def where(self, chosen) -> Counts:
        """The runs that a bool array (runs,) marks."""
        return self.rows(np.flatnonzero(chosen))

    def once(self) -> Counts:
        """Every run once."""
        return self.where(~self.settings.duplicated())

    def among(self, rows: pd.DataFrame) -> Counts:
        """The runs whose setting and seed is a row of `rows`, such as those of a score table."""
        return self.where(pd.MultiIndex.from_frame(self.settings).isin(pd.MultiIndex.from_frame(rows[SETTING])))

    def groups(self, by: Sequence[str]) -> Iterator[tuple[dict, np.ndarray]]:
        """What each group of runs has in the columns `by`, and its row numbers."""
        for key, rows in self.settings.groupby(list(by), sort=False, dropna=False):
            yield dict(zip(by, key)), rows.index.to_numpy()

    def sums(self) -> Sums:
        """How many pairs each run has of everything that is counted, (runs,) by name."""
        return {name: values.sum(axis=1).astype(float) for name, values in self.indicators.items()}


def stack(runs: Iterable[tuple[dict, dict[str, np.ndarray]]]) -> Counts:
    """The counts of runs, given of each its setting and what is counted of each pair, bool (n,) by name."""
    runs = list(runs)
    counted = {name: np.stack([of_run[name] for _, of_run in runs]) for name in (runs[0][1] if runs else ())}
    return Counts(pd.DataFrame([setting for setting, _ in runs], columns=None if runs else SETTING), counted)


def count_students(predictions: pd.DataFrame, threshold=0.75, known_by="confidence", reference="none") -> Counts:
    """What every other function here starts from; as `scoring.score_table`, of runs scored on one test split."""
    students = list(comparisons(predictions, reference))
    test = predictions[predictions["split"] == "test"]
    lacking = test.pivot(index="id", columns="run", values="probability").isna().sum()
    if lacking.any():
        raise ValueError(f"run {lacking.idxmax()}: {lacking.max()} test pairs are missing; score all runs on one split")
    return stack((setting, indicators(p, threshold, known_by)) for setting, p in students)


def pooled_table(counts: Counts, by=tuple(POOLED), bootstrap=2000) -> pd.DataFrame:
    """One row a setting (or group of `by`) over its seeds, with 95% intervals over test pairs and seeds.

    Numerators and denominators are added up over runs, then divided; even_share is what a tax that falls evenly within
    each run would give (weighed by tax: else a run with much tax and a large blind area would pass for deception).
    covers is "pairs" with one seed, else "pairs and seeds"; pairs are those of one run, tax that of all; undefined is
    the share of samples without a Score; _seed_min and _seed_max are those of the seeds' own estimates; turned is the
    number of runs whose student turned round, lift_max what the lift could be at most (see `scoring.score_table`).
    """
    rows, ends = [], ("", "_low", "_high", "_seed_min", "_seed_max")
    for row, runs in counts.groups(by):
        group = counts.rows(runs)
        sums, pooled, seeds = group.sums(), measured(group, bootstrap), group.settings["seed"].to_numpy()
        each = _added_up(sums, seeds == np.unique(seeds)[:, None])
        tax = group.indicators["tax"]
        row |= {"runs": len(runs), "seeds": len(set(seeds)), "pairs": tax.shape[1], "tax": tax.sum()}
        row |= {"covers": "pairs" if row["seeds"] == 1 else "pairs and seeds"}
        row |= {name: pooled[name].estimates[0] for name in MEANS}
        row["undefined"] = np.isnan(pooled["score"].drawn[:, 0]).mean()
        row |= {"turned": int(turned(sums).sum()), "lift_max": float(ratio(sums["reference"].sum(), row["tax"]))}
        total = {name: values.sum() for name, values in (sums | {"even_tax": even_tax(sums)}).items()}
        of_itself = not total["tax"] and set(group.settings["conflict"]) == {"none"}
        certain = extremes(total, of_itself, len(runs), int(tax.any(axis=0).sum()))
        for name in ESTIMATES:
            estimate, *interval, _ = over_seeds(pooled[name], SCALE.get(name, "plain"))
            values = estimate, *certain.get(name, interval), np.fmin.reduce(each[name]), np.fmax.reduce(each[name])
            row |= dict(zip(with_ends(name, ends=ends), values))
        rows.append(row)
    columns = [*by, "runs", "seeds", "covers", "pairs", "tax", *MEANS, "undefined", "turned", "lift_max"]
    return pd.DataFrame(rows, columns=[*columns, *with_ends(*ESTIMATES, ends=ends)])


def by_conflict(counts: Counts, bootstrap=2000) -> pd.DataFrame:
    """`pooled_table` by conflict, and again without the students that turned round, where there are any."""
    tables = [pooled_table(counts, ["conflict"], bootstrap).assign(students="all settings")]
    with_turned = counts.settings["conflict"].isin(tables[0].loc[tables[0]["turned"] > 0, "conflict"])
    rest = counts.where(with_turned & ~turned(counts.sums()))
    if len(rest.settings):
        rest = pooled_table(rest, ["conflict"], bootstrap)
        tables.append(rest.assign(students="without students that turned round"))
    return pd.concat(tables, ignore_index=True)


def ratio_table(counts: Counts, parts: Parts, less=(), by=tuple(POOLED), bootstrap=2000, **scales) -> pd.DataFrame:
    """Ratios of `parts` over the runs of each group, one row a group: by, runs, seeds, pairs (of one run), the ratios.

    `less` are pairs of names whose difference first_minus_second is added; intervals are by `seeds.over_seeds` on
    `scales` (else SCALE, or plain). The indicators must hold "pairs", 1 everywhere.
    """
    rows = []
    for row, runs in counts.groups(by):
        group, n = counts.rows(runs), counts.indicators["pairs"].shape[1]
        row |= {"runs": len(runs), "seeds": group.settings["seed"].nunique(), "pairs": n}
        ratios = measured(group, bootstrap, parts)
        ratios |= {f"{one}_minus_{other}": ratios[one].minus(ratios[other]) for one, other in less}
        for name, values in ratios.items():
            row |= dict(zip(with_ends(name), over_seeds(values, (SCALE | scales).get(name, "plain"))))
        rows.append(row)
    names = [*parts({name: np.zeros(1) for name in counts.indicators}), *(f"{a}_minus_{b}" for a, b in less)]
    return pd.DataFrame(rows, columns=[*by, "runs", "seeds", "pairs", *with_ends(*names)])


def measured(counts: Counts, samples: int = 2000, parts: Parts | None = None) -> dict[str, Resampled]:
    """The `statistics` pooled over runs (or the ratios of `parts`) by name, of which `over_seeds` makes intervals."""
    seeds, sums, drawn = counts.settings["seed"].to_numpy(), counts.sums(), resample(counts.indicators, samples)
    weights, of_seed = leaving_out(seeds), seeds == np.unique(seeds)[:, None]
    sizes = {name: bottom for name, (_, bottom) in parts(sums).items()} if parts else {}
    sizes |= {name: sums["tax"] for name in BY_TAX if "tax" in sums}
    effective = {name: effective_seeds(of_seed @ size) for name, size in sizes.items()}
    one, many = (_added_up(of, weights, parts) for of in (sums, drawn))
    all_alike = effective_seeds(of_seed @ sums["pairs"])
    return {name: Resampled(one[name], many[name], effective.get(name, all_alike)) for name in one}


def _added_up(sums: Sums, weights: np.ndarray, parts: Parts | None = None) -> Sums:
    """`statistics` (or ratios of `parts`) of sums added up by each row of weights (rows, runs), (..., rows) by name."""
    if parts:
        return {name: ratio(top @ weights.T, bottom @ weights.T) for name, (top, bottom) in parts(sums).items()}
    return statistics({name: values @ weights.T for name, values in (sums | {"even_tax": even_tax(sums)}).items()})


def even_tax(sums: Sums) -> np.ndarray:
    """How much tax an even tax of each run would put into S-known/W-unknown, (..., runs)."""
    return np.nan_to_num(sums["tax"] * ratio(sums["blind_at_risk"], sums["reference"]))


def difference(counts: Counts, first: dict, second: dict, bootstrap=2000) -> pd.DataFrame:
    """First setting minus second, over the seeds of both: difference, estimate, low, high, undefined, seeds.

    A setting names the columns that single it out, such as {"weak": ..., "strong": ..., "conflict": "explicit"}; role
    is "student" unless it says otherwise. Both are measured on the same samples. Where one has fewer than MIN_TAX tax
    pairs, or all or none of them in the area (no sample differs), OF_SCORE have no interval. ValueError for a setting
    that no run has, or several settings have, or without a common seed. Coverage: docs/measurements.md.
    """
    pair = []
    for setting in (first, second):
        wanted = {"role": "student"} | setting
        runs = counts.where(np.all([counts.settings[column] == value for column, value in wanted.items()], axis=0))
        n = len(runs.settings[POOLED].drop_duplicates())
        if n != 1:
            raise ValueError(f"{setting}: {n} settings have it; name weak, strong, conflict, and teacher where needed")
        pair.append(runs)
    common = np.intersect1d(*(runs.settings["seed"] for runs in pair))
    if not len(common):
        raise ValueError(f"{first} and {second}: no seed in common; train both with one seed")
    return contrast(*(runs.where(runs.settings["seed"].isin(common)) for runs in pair), bootstrap)


def contrast(first: Counts, second: Counts, bootstrap=2000) -> pd.DataFrame:
    """As `difference`, of two groups of runs with the same seeds, each pooled."""
    one, other = measured(first, bootstrap), measured(second, bootstrap)
    sums, n_seeds = (first.sums(), second.sums()), first.settings["seed"].nunique()
    rows = [(name, *compared(name, one[name].minus(other[name]), *sums), n_seeds) for name in ESTIMATES]
    return pd.DataFrame(rows, columns=["difference", "estimate", "low", "high", "undefined", "seeds"])


def compared(measure: str, delta: Resampled, first: Sums, second: Sums) -> tuple[float, float, float, float]:
    """As `over_seeds` of a difference; no interval where Scores cannot be compared (`no_score`).

    That of shares which differ by the same in every bootstrap sample is `intervals.newcombe`.
    """
    estimate, low, high, undefined = over_seeds(delta)
    if measure in OF_SCORE and no_score(first, second):
        low = high = np.nan
    elif measure in HITS and np.isnan(low) and np.isfinite(estimate):
        low, high = newcombe(*((of[HITS[measure]].mean(), of["pairs"].mean()) for of in (first, second)))
    return estimate, low, high, undefined


def both_ways(counts: Counts) -> tuple[Counts, Counts]:
    """Direct and bootstrapped runs of one weak and strong model, conflict and seed, row by row (others left out)."""
    key, numbered = ["weak", "strong", "conflict", "seed"], counts.settings.rename_axis("row").reset_index()
    direct, chains = (numbered.loc[numbered["role"] == role, ["row", *key]] for role in ("student", "bootstrapped"))
    both = chains.merge(direct, on=key, suffixes=("_chain", "_direct"))
    return counts.rows(both["row_direct"]), counts.rows(both["row_chain"])


def slope_table(counts: Counts, bootstrap=2000) -> pd.DataFrame:
    """The slope of Score, and of Score minus even share, over the capability gap, one row a conflict and measure.

    Least squares over all direct students (weak-strong pairs and seeds: points, of which some `turned` round) with a
    tax of MIN_TAX pairs: slope per unit of accuracy, nan with fewer than 3 gaps; mean_gap and mean are a point of the
    line. The interval covers test pairs and seeds alone: weak-strong pairs share models, and other models would give
    another slope. Gaps are estimated too, which flattens it. Coverage: docs/measurements.md.
    """
    direct, rows = counts.settings["role"] == "student", []
    usable = counts.where(direct & (counts.sums()["tax"] >= MIN_TAX))
    for name, runs in usable.groups(["conflict"]):
        group = usable.rows(runs)
        of_runs, drawn = statistics(group.sums()), statistics(resample(group.indicators, bootstrap))
        weights, sizes = leaving_out(group.settings["seed"]), group.settings["seed"].value_counts()
        for measure in SLOPES:
            slopes = (np.stack([slope(of["gap"], of[measure], w) for w in weights], axis=-1) for of in (of_runs, drawn))
            means = of_runs["gap"].mean(), of_runs[measure].mean()
            ends = over_seeds(Resampled(*slopes, effective_seeds(sizes)))
            points = len(runs), int(turned(group.sums()).sum()), len(sizes)
            rows.append((name["conflict"], measure, *ends, *points, *means))
    columns = ["conflict", "measure", "slope", "low", "high", "undefined", "points", "turned", "seeds"]
    columns += ["mean_gap", "mean"]
    return pd.DataFrame(rows, columns=columns)


def slope(x: np.ndarray, y: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Weighted least-squares slope of y on x, (..., n) -> (...); a nan y counts nothing, fewer than 3 x give nan."""
    weights = np.where(np.isnan(y), 0, weights)
    total = weights.sum(axis=-1, keepdims=True)
    x, y = (np.where(weights > 0, v, 0) for v in (x, y))
    dx, dy = (v - ratio((weights * v).sum(axis=-1, keepdims=True), total) for v in (x, y))
    steps = np.diff(np.sort(np.where(weights > 0, x.round(12), np.nan)), axis=-1) > 0  # nan come last: no step
    fitted = ratio((weights * dx * dy).sum(axis=-1), (weights * dx**2).sum(axis=-1))
    return np.where(steps.sum(axis=-1) < 2, np.nan, fitted)


def surface_table(predictions: pd.DataFrame, known_by="confidence", reference="none") -> pd.DataFrame:
    """How much tax lies in S-known/W-unknown, one row a setting with a tax and pair of THRESHOLDS from LEVELS.

    tax and blind_tax are pairs, in all and in the area, even_tax pairs in the area if the tax fell evenly.
    """
    columns, tables = [*SETTING, *THRESHOLDS, "tax", "blind_tax", "even_tax"], []
    grid = pd.MultiIndex.from_product([LEVELS, LEVELS], names=THRESHOLDS).to_frame(index=False)
    for setting, p in comparisons(predictions, reference):
        tax, at_risk = conflict_tax(p["reference"], p["student"]), right(p["reference"])
        if tax.any():
            strong, weak = (np.stack([known(p[m], level, known_by) for level in LEVELS]) for m in ("ceiling", "weak"))
            blind, exposed = (((~weak * of).astype(int) @ strong.T.astype(int)).ravel() for of in (tax, at_risk))
            even = tax.sum() * exposed / at_risk.sum()
            tables.append(grid.assign(**setting, tax=tax.sum(), blind_tax=blind, even_tax=even)[columns])
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=columns)


def over_thresholds(table: pd.DataFrame, by: Sequence[str] = ("conflict",)) -> pd.DataFrame:
    """Score, even share and lift of a `surface_table` at each pair of thresholds, over the runs of each group."""
    sums = ["tax", "blind_tax", "even_tax"]
    groups = table.groupby([*by, *THRESHOLDS], sort=False)
    out = groups[sums].sum().assign(runs=groups.size()).reset_index()
    out["score"], out["even_share"] = ratio(out["blind_tax"], out["tax"]), ratio(out["even_tax"], out["tax"])
    out["lift"] = ratio(out["blind_tax"], out["even_tax"])
    return out[[*by, *THRESHOLDS, "runs", *sums, "score", "even_share", "lift"]]
