"""What each remedy buys: pooled tables and differences to doing nothing."""

from __future__ import annotations

import numpy as np
import pandas as pd

from w2s.analysis.pooled import Counts, Sums, measured, pooled_table, ratio_table, stack
from w2s.analysis.scoring import indicators
from w2s.analysis.seeds import over_seeds, with_seeds

NOTHING, WEIGHTS, CONTROL = "nothing", "reliability weights", "even weights (control)"
MEASURES = {"accuracy": 1, "conflicting": 1, "tax_share": -1, "score_minus_null": -1}  # which way is better
BY = ("remedy", "conflict")


def count_remedies(rows: list[dict], threshold: float, known_by: str) -> tuple[Counts, np.ndarray]:
    """What `pooled` starts from, and the conflicting goal's hits, bool (runs, m), of all runs.

    `rows`: remedy, conflict, seed, p (arrays (n,) of weak, ceiling, reference and student) and helpful (bool (m,)).
    """
    runs = [({key: row[key] for key in (*BY, "seed")}, indicators(row["p"], threshold, known_by)) for row in rows]
    return stack(runs), np.stack([row["helpful"] for row in rows])


def _conflicting(counts: Counts, hits: np.ndarray) -> Counts:
    """The conflicting goal's pairs counted; where it has none, one that counts nothing, so that its share is nan."""
    nothing = np.zeros((len(hits), 1), dtype=bool)
    hits, pairs = (hits, np.ones_like(hits)) if hits.shape[1] else (nothing, nothing)
    return Counts(counts.settings, {"hits": hits, "pairs": pairs})


def _share(sums: Sums) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    return {"conflicting": (sums["hits"], sums["pairs"])}


def remedy_table(counts: Counts, hits: np.ndarray, samples: int) -> pd.DataFrame:
    """`pooled.pooled_table` by remedy and conflict, and conflicting (accuracy on that goal) with _low and _high."""
    table = pooled_table(counts, BY, samples)
    goal = ratio_table(_conflicting(counts, hits), _share, (), BY, samples, conflicting="logit")
    ends = goal[["conflicting", "conflicting_low", "conflicting_high"]]
    return pd.concat([table, ends], axis=1).assign(conflicting_pairs=hits.shape[1])


def differences(counts: Counts, hits: np.ndarray, samples: int, base: str = NOTHING) -> pd.DataFrame:
    """Each remedy less doing nothing (or another `base`), on the same samples.

    Columns: remedy, conflict, measure (one of MEASURES), estimate, low, high (95%), p (`bootstrap_p`), and holm, which
    is p adjusted for all remedies under all conflicts but none, each measure by itself; nan where there is no conflict.
    """
    goal, measures, rows = _conflicting(counts, hits), {}, []
    for names, runs in counts.groups(BY):
        statistics = measured(counts.rows(runs), samples) | measured(goal.rows(runs), samples, parts=_share)
        measures[tuple(names.values())] = statistics | {"accuracy": statistics["student_accuracy"]}
    for remedy, conflict in [key for key in measures if key[0] != base]:
        for measure in MEASURES:
            delta = measures[remedy, conflict][measure].minus(measures[base, conflict][measure])
            ends = over_seeds(delta)[:3]
            p = bootstrap_p(with_seeds(delta)) if np.isfinite(ends[1]) else np.nan
            rows.append((remedy, conflict, measure, *ends, p))
    table = pd.DataFrame(rows, columns=[*BY, "measure", "estimate", "low", "high", "p"])
    tested = table["conflict"] != "none"
    return table.assign(holm=table[tested].groupby("measure")["p"].transform(holm))


def bootstrap_p(differences: np.ndarray) -> float:
    """Two-sided p of no difference from samples of it (samples,), never below 2 / (samples + 1); nan left out."""
    d = differences[~np.isnan(differences)]
    return float(min(1.0, 2 * (1 + min((d <= 0).sum(), (d >= 0).sum())) / (len(d) + 1)))


def holm(p) -> np.ndarray:
    """Adjusted p (n,) by Holm's step-down method (Holm, 1979); nan stays nan and counts as no test."""
    p = np.asarray(p, dtype=float)
    order = np.argsort(p)[: np.isfinite(p).sum()]
    adjusted = np.full(len(p), np.nan)
    adjusted[order] = np.minimum(1, np.maximum.accumulate(p[order] * np.arange(len(order), 0, -1)))
    return adjusted
