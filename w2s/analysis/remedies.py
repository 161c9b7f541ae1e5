"""What each remedy buys: pooled tables, differences to doing nothing, sentences by rule. Knows tables alone."""

from __future__ import annotations

import numpy as np
import pandas as pd

from w2s.analysis.pooled import Counts, measured, pooled_table
from w2s.analysis.scoring import indicators
from w2s.analysis.seeds import Resampled, effective_seeds, leaving_out, over_seeds, with_seeds
from w2s.intervals import ratio, resample

NOTHING, WEIGHTS, CONTROL = "nothing", "reliability weights", "even weights (control)"
MEASURES = {"accuracy": 1, "conflicting": 1, "tax_share": -1, "score_minus_null": -1}  # which way is better


def count_remedies(rows: list[dict], threshold: float, known_by: str) -> tuple[Counts, np.ndarray]:
    """What `pooled` starts from, and the conflicting goal's hits, bool (runs, m), of all runs.

    `rows`: remedy, conflict, seed, p (arrays (n,) of weak, ceiling, reference and student) and helpful (bool (m,)).
    """
    counted = [indicators(row["p"], threshold, known_by) for row in rows]
    settings = pd.DataFrame([{key: row[key] for key in ("remedy", "conflict", "seed")} for row in rows])
    stacked = {name: np.stack([c[name] for c in counted]) for name in counted[0]}
    return Counts(settings, stacked), np.stack([row["helpful"] for row in rows])


def _share(hits: np.ndarray, seeds: np.ndarray, samples: int) -> Resampled:
    """The share of True in bool (runs, m); nan without m."""
    weights = leaving_out(seeds)
    size = hits.shape[1] * weights.sum(1)
    drawn = resample({"hits": hits}, samples)["hits"] if hits.shape[1] else np.zeros((samples, len(hits)))
    effective = effective_seeds(np.unique(seeds, return_counts=True)[1])
    return Resampled(ratio(hits.sum(1) @ weights.T, size), ratio(drawn @ weights.T, size), effective)


def _measures(counts: Counts, hits: np.ndarray, remedy: str, conflict: str, samples: int) -> dict[str, Resampled]:
    """The MEASURES of one remedy under one conflict, as found and in every bootstrap sample."""
    chosen = ((counts.settings["remedy"] == remedy) & (counts.settings["conflict"] == conflict)).to_numpy()
    group = counts.where(chosen)
    found = measured(group, samples)
    own = {"accuracy": found["student_accuracy"]} | {name: found[name] for name in ("tax_share", "score_minus_null")}
    return own | {"conflicting": _share(hits[chosen], group.settings["seed"].to_numpy(), samples)}


def remedy_table(counts: Counts, hits: np.ndarray, samples: int) -> pd.DataFrame:
    """`pooled.pooled_table` by remedy and conflict, and conflicting (accuracy on that goal) with _low and _high."""
    table = pooled_table(counts, by=("remedy", "conflict"), bootstrap=samples)
    ends = []
    for row in table.itertuples():
        ends.append(over_seeds(_measures(counts, hits, row.remedy, row.conflict, samples)["conflicting"], "logit")[:3])
    extra = pd.DataFrame(ends, columns=["conflicting", "conflicting_low", "conflicting_high"])
    return pd.concat([table, extra], axis=1).assign(conflicting_pairs=hits.shape[1])


def differences(counts: Counts, hits: np.ndarray, samples: int, base: str = NOTHING) -> pd.DataFrame:
    """Each remedy less doing nothing (or another `base`), on the same samples.

    Columns: remedy, conflict, measure (one of MEASURES), estimate, low, high (95%), p, holm.
    p is the two-sided bootstrap p of no difference, never below 2 / (samples + 1). holm is p adjusted (Holm, 1979)
    for all remedies under all conflicts but none, each measure by itself; nan where there is no conflict.
    """
    rows = []
    pairs = counts.settings[["remedy", "conflict"]].drop_duplicates()
    for remedy, conflict in pairs[pairs["remedy"] != base].itertuples(index=False):
        own, other = (_measures(counts, hits, name, conflict, samples) for name in (remedy, base))
        for measure in MEASURES:
            delta = own[measure].minus(other[measure])
            ends = over_seeds(delta)[:3]
            p = bootstrap_p(with_seeds(delta)) if np.isfinite(ends[1]) else np.nan
            rows.append((remedy, conflict, measure, *ends, p))
    table = pd.DataFrame(rows, columns=["remedy", "conflict", "measure", "estimate", "low", "high", "p"])
    tested = table["conflict"] != "none"
    return table.assign(holm=table[tested].groupby("measure")["p"].transform(holm))


def bootstrap_p(differences: np.ndarray) -> float:
    """Two-sided p that there is no difference, from samples of the difference (samples,); nan left out."""
    d = differences[~np.isnan(differences)]
    return float(min(1.0, 2 * (1 + min((d <= 0).sum(), (d >= 0).sum())) / (len(d) + 1)))


def holm(p) -> np.ndarray:
    """Adjusted p (n,) by Holm's step-down method (Holm, 1979); nan stays nan and counts as no test."""
    p = np.asarray(p, dtype=float)
    order = np.argsort(p)[: np.isfinite(p).sum()]
    adjusted = np.full(len(p), np.nan)
    adjusted[order] = np.minimum(1, np.maximum.accumulate(p[order] * np.arange(len(order), 0, -1)))
    return adjusted
