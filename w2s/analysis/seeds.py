"""Intervals over test pairs and training seeds."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from scipy import special, stats

from w2s.intervals import interval, ratio

SCALES = {  # forward, back and the derivative of forward
    "plain": (lambda x: x, lambda x: x, lambda x: 1.0),
    "log": (np.log, np.exp, lambda x: 1 / x),
    "logit": (special.logit, special.expit, lambda x: 1 / (x * (1 - x))),
}


def leaving_out(seeds) -> np.ndarray:
    """Weights of the runs (1 + seeds, runs): all of them first, then without each training seed; (1, runs) of one."""
    values, of_run = np.unique(np.asarray(seeds), return_inverse=True)
    weights = np.vstack([np.ones(len(of_run)), np.arange(len(values))[:, None] != of_run])
    return weights if len(values) > 1 else weights[:1]


def effective_seeds(sizes) -> float:
    """How many seeds of one size say as much as these, (sum of sizes)^2 / sum of squares (Kish, 1965); nan of 0."""
    sizes = np.asarray(sizes, dtype=float)
    return float(ratio(sizes.sum() ** 2, (sizes**2).sum()))


class Resampled(NamedTuple):
    """One statistic with all seeds (first) and without each of them in turn; a single value where there is one seed."""

    estimates: np.ndarray  # (1 + seeds,)
    drawn: np.ndarray  # (samples, 1 + seeds), in each bootstrap sample of pairs
    effective: float  # effective number of seeds

    def minus(self, other: Resampled) -> Resampled:
        """The paired difference, with the smaller effective number of seeds."""
        effective = min(self.effective, other.effective)
        return Resampled(self.estimates - other.estimates, self.drawn - other.drawn, effective)


def over_seeds(statistic: Resampled, scale: str = "plain") -> tuple[float, float, float, float]:
    """As `intervals.interval`, over test pairs and training seeds (with one seed, pairs alone).

    nan also where leaving out one seed leaves nothing. Method, sources and coverage: docs/measurements.md.
    """
    estimate = float(statistic.estimates[0])
    if np.isnan(statistic.estimates).any():
        return estimate, np.nan, np.nan, float(np.isnan(statistic.drawn[:, 0]).mean())
    return interval(estimate, with_seeds(statistic, scale))


def with_seeds(statistic: Resampled, scale: str = "plain") -> np.ndarray:
    """The values (samples,) or (2 samples,) whose quantiles are the ends of `over_seeds`; `scale` is one of SCALES.

    To each sample of pairs a deviation of the seeds is added, by the jackknife's variances over seeds and inside them.
    """
    estimate, drawn = float(statistic.estimates[0]), statistic.drawn
    seeds = len(statistic.estimates) - 1
    between = (seeds - 1) * statistic.estimates[1:].var() if seeds else 0
    if between < 1e-20:  # one seed, or all alike but for rounding
        return drawn[:, 0]
    noise = (seeds - 1) * np.nanvar(drawn[:, 1:] - drawn[:, 1:].mean(axis=1, keepdims=True), axis=0).mean()
    forward, back, derivative = SCALES[scale]
    inverse, normal = _deviates(max(statistic.effective - 1, 1), len(drawn))
    deviation = np.sqrt(np.maximum(0, between * inverse - noise)) * normal * derivative(estimate)
    with np.errstate(divide="ignore", over="ignore"):  # a Score of 0 in a sample stays 0
        centre = forward(drawn[:, 0])
        return back(np.concatenate([centre + deviation, centre - deviation]))


@lru_cache(maxsize=4)
def _deviates(df: float, samples: int) -> tuple[np.ndarray, np.ndarray]:
    """df / chi2(df) and N(0, 1), (samples,) each, spread evenly: the tails of so few random ones would be rough."""
    u = stats.qmc.Halton(2, rng=np.random.default_rng(0)).random(samples)
    return df / special.chdtri(df, u[:, 0]), special.ndtri(u[:, 1])
