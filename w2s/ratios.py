"""Ratios of sums over runs, and their differences, with 95% intervals over test pairs and seeds."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd

from w2s.intervals import Resampled, effective_seeds, leaving_out, over_seeds, ratio, resample
from w2s.pooled import BY_TAX, POOLED, SCALE, Counts

Sums = dict[str, np.ndarray]
Parts = Callable[[Sums], dict[str, tuple[np.ndarray, np.ndarray]]]


def ratios(
    indicators: Sums, parts: Parts, less: Sequence[tuple[str, str]], seeds, samples=2000, seed=0, **scales: str
) -> dict[str, tuple]:
    """Numerators added up over runs, divided by denominators added up: estimate, low, high, undefined, by name.

    `indicators` are bool (runs, n); `parts` maps their sums over pairs (..., runs) to the numerator and the
    denominator of each run; `less` are pairs of names, for each of which first_minus_second is added. `seeds`
    (runs,) are the training seeds, which enter as in `intervals.over_seeds`, by name on its `scales` (else as
    `pooled` has it, or plain).
    """
    weights = leaving_out(seeds)
    by_seed = np.asarray(seeds) == np.unique(seeds)[:, None]
    each = parts({name: values.sum(axis=1).astype(float) for name, values in indicators.items()})
    drawn = parts(resample(indicators, samples, seed))
    found = {}
    for name, both in each.items():
        own, many = (ratio(*(part @ weights.T for part in pair)) for pair in (both, drawn[name]))
        size = indicators["tax"].sum(axis=1) if name in BY_TAX else both[1]
        found[name] = Resampled(own, many, effective_seeds(by_seed @ size))
    found |= {f"{one}_minus_{other}": found[one].minus(found[other]) for one, other in less}
    return {name: over_seeds(statistic, (SCALE | scales).get(name, "plain")) for name, statistic in found.items()}


def ratio_table(
    counts: Counts,
    parts: Parts,
    less: Sequence[tuple[str, str]] = (),
    by=tuple(POOLED),
    bootstrap=2000,
    seed=0,
    **scales: str,
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
        for name, ends in ratios(group.indicators, parts, less, seeds, bootstrap, seed, **scales).items():
            row |= dict(zip((name, f"{name}_low", f"{name}_high"), ends, strict=False))
        rows.append(row)
    names = [
        *parts({name: np.zeros(1) for name in counts.indicators}),
        *(f"{one}_minus_{other}" for one, other in less),
    ]
    ends = [name + end for name in names for end in ("", "_low", "_high")]
    return pd.DataFrame(rows, columns=[*by, "runs", "seeds", "pairs", *ends])
