"""Ratios of sums over runs, and their differences, with 95% intervals over test pairs and seeds."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd

from w2s.intervals import interval, ratio, resample, seed_weights
from w2s.pooled import POOLED, Counts

Sums = dict[str, np.ndarray]
Parts = Callable[[Sums], dict[str, tuple[np.ndarray, np.ndarray]]]


def ratios(
    indicators: Sums, parts: Parts, less: Sequence[tuple[str, str]], seeds, samples: int = 2000, seed: int = 0
) -> dict[str, tuple]:
    """Numerators added up over runs, divided by denominators added up: estimate, low, high, undefined, by name.

    `indicators` are bool (runs, n); `parts` maps their sums over pairs (..., runs) to the numerator and the
    denominator of each run; `less` are pairs of names, for each of which first_minus_second is added. `seeds`
    (runs,) are the training seeds. The samples are those of `intervals`: the same pairs for every run.
    """

    def over_runs(sums: Sums, weights) -> Sums:
        each = {name: [(part * weights).sum(axis=-1) for part in both] for name, both in parts(sums).items()}
        found = {name: ratio(*both) for name, both in each.items()}
        return found | {f"{one}_minus_{other}": found[one] - found[other] for one, other in less}

    estimates = over_runs({name: values.sum(axis=1).astype(float) for name, values in indicators.items()}, 1.0)
    many = over_runs(resample(indicators, samples, seed), seed_weights(seeds, samples, seed))
    return {name: interval(float(estimates[name]), many[name]) for name in estimates}


def ratio_table(
    counts: Counts, parts: Parts, less: Sequence[tuple[str, str]] = (), by=tuple(POOLED), bootstrap=2000, seed=0
) -> pd.DataFrame:
    """`ratios` of each group of runs, one row a group: those of `by`, runs, seeds, pairs (of one run), and for each
    name of `parts` and `less` name, name_low, name_high. The indicators must hold "pairs", 1 everywhere.
    """
    group_of = counts.settings.groupby(list(by), sort=False).ngroup()
    rows = []
    for number in group_of.unique():
        group = counts.where(group_of == number)
        seeds, n = group.settings["seed"].to_numpy(), group.indicators["pairs"].shape[1]
        row = group.settings.loc[0, list(by)].to_dict() | {"runs": len(seeds), "seeds": len(set(seeds)), "pairs": n}
        for name, ends in ratios(group.indicators, parts, less, seeds, bootstrap, seed).items():
            row |= dict(zip((name, f"{name}_low", f"{name}_high"), ends, strict=False))
        rows.append(row)
    names = [
        *parts({name: np.zeros(1) for name in counts.indicators}),
        *(f"{one}_minus_{other}" for one, other in less),
    ]
    ends = [name + end for name in names for end in ("", "_low", "_high")]
    return pd.DataFrame(rows, columns=[*by, "runs", "seeds", "pairs", *ends])
