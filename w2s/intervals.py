"""Intervals over test pairs: Wilson's for a proportion, and the paired bootstrap. With seeds: `analysis.seeds`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache

import numpy as np
import pandas as pd
from scipy import stats

LEVEL = 0.95  # of every interval


def ratio(numerator, denominator) -> np.ndarray:
    """Elementwise quotient, nan where the denominator is 0."""
    numerator, denominator = np.asarray(numerator, dtype=float), np.asarray(denominator, dtype=float)
    empty = denominator == 0
    return np.where(empty, np.nan, numerator / np.where(empty, 1, denominator))


def wilson(successes: int, n: int) -> tuple[float, float]:
    """Wilson's 95% interval of a proportion (Wilson, 1927); nan, nan when n is 0."""
    if n == 0:
        return np.nan, np.nan
    ends = stats.binomtest(int(successes), int(n)).proportion_ci(LEVEL, method="wilson")
    return float(ends.low), float(ends.high)


def newcombe(first: tuple[float, float], second: tuple[float, float]) -> tuple[float, float]:
    """95% interval of a difference of two proportions (successes, n each), from Wilson's of both (Newcombe, 1998).

    As if they were of different pairs, and so wide; for what the bootstrap finds alike in every sample.
    """
    (p, low, high), (q, q_low, q_high) = ((hits / n, *wilson(round(hits), round(n))) for hits, n in (first, second))
    return p - q - np.hypot(p - low, q_high - q), p - q + np.hypot(high - p, q - q_low)


def with_ends(*names: str, ends=("", "_low", "_high")) -> list[str]:
    """The columns of estimates and their intervals."""
    return [name + end for name in names for end in ends]


def ends(row: Mapping, name: str) -> tuple[float, float]:
    """A measure's interval: <name>_low and <name>_high of a row (or table), or low and high where it has none."""
    return (row[f"{name}_low"], row[f"{name}_high"]) if f"{name}_low" in row else (row["low"], row["high"])


@lru_cache(maxsize=4)
def draws(n_pairs: int, samples: int = 2000, seed: int = 0) -> np.ndarray:
    """How often each pair is drawn in each bootstrap sample, float32 (samples, n_pairs), read-only."""
    picks = np.random.default_rng(seed).integers(n_pairs, size=(samples, n_pairs))
    cells = (picks + n_pairs * np.arange(samples)[:, None]).ravel()
    counts = np.bincount(cells, minlength=samples * n_pairs).reshape(samples, n_pairs).astype(np.float32)
    counts.flags.writeable = False
    return counts


def resample(indicators: Mapping[str, np.ndarray], samples: int = 2000) -> dict[str, np.ndarray]:
    """The sums of bool arrays (runs, n) over the pairs of each bootstrap sample, (samples, runs) by name.

    A sample draws the same pairs for every run. ValueError where arrays differ in shape, are empty, or not 0 and 1.
    """
    columns = {name: np.asarray(values) for name, values in indicators.items()}
    if len({values.shape for values in columns.values()}) != 1 or not next(iter(columns.values())).size:
        raise ValueError("indicators: give arrays (n,) of one length, with at least 1 pair")
    if not all(values.dtype == bool or np.isin(values, (0, 1)).all() for values in columns.values()):
        raise ValueError("indicators: only 0 and 1 (or False and True) can be summed")
    matrix = np.concatenate(list(columns.values()), dtype=np.float32).T  # sums of 0 and 1 are exact in float32
    totals = (draws(len(matrix), samples) @ matrix).astype(float)
    return dict(zip(columns, np.split(totals, len(columns), axis=1)))


def bootstrap(indicators: Mapping, statistics: Callable[[dict], dict], samples=2000) -> pd.DataFrame:
    """Paired 95% percentile bootstrap over test pairs: estimate, low, high, undefined, one row a statistic.

    `indicators` are named bool arrays (n,). `statistics` maps their sums over pairs (a dict of floats, or of arrays
    (samples,)) to a dict of statistics. `undefined` is the share of samples with nan; the interval is that of the
    defined ones, and nan where the estimate is nan or fewer than half are defined (Efron, 1979). Raises as `resample`.
    """
    arrays = {name: np.atleast_2d(np.asarray(values)) for name, values in indicators.items()}
    resampled = statistics({name: sums[:, 0] for name, sums in resample(arrays, samples).items()})
    estimates = statistics({name: float(values.sum()) for name, values in arrays.items()})
    rows = {name: interval(float(estimates[name]), resampled[name]) for name in estimates}
    return pd.DataFrame.from_dict(rows, orient="index", columns=["estimate", "low", "high", "undefined"])


def interval(estimate: float, values: np.ndarray) -> tuple[float, float, float, float]:
    """The estimate, low and high of its percentile interval from samples (samples,), and the share that is nan.

    Samples that are all alike give nan, nan: where no pair drawn makes a difference, pairs say nothing of others.
    """
    defined = values[~np.isnan(values)]
    undefined = 1 - len(defined) / len(values)
    if np.isnan(estimate) or undefined > 0.5:
        return estimate, np.nan, np.nan, undefined
    low, high = np.quantile(defined, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    if np.isclose(low, high, rtol=0, atol=1e-12):
        return estimate, np.nan, np.nan, undefined
    return estimate, float(low), float(high), undefined
