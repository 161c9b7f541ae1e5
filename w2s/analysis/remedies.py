"""What each remedy buys: pooled tables and differences to doing nothing."""

from __future__ import annotations

import numpy as np
import pandas as pd

from w2s.analysis.pooled import Counts, Sums, compared, measured, pooled_table, ratio_table, stack
from w2s.analysis.scoring import indicators
from w2s.analysis.seeds import with_seeds

NOTHING, WEIGHTS, CONTROL = "nothing", "reliability weights", "even weights (control)"
MEASURES = {"accuracy": 1, "conflicting": 1, "tax_share": -1, "score_minus_even": -1}  # which way is better
BY = ("remedy", "conflict")


def count_remedies(rows: list[dict], threshold: float, known_by: str) -> tuple[Counts, Counts]:
    """What is counted of the test pairs, and of the conflicting goal's pairs, of all runs.

    `rows`: remedy, conflict, seed, p (arrays (n,) of weak, ceiling, reference and student) and helpful (bool (m,)).
    Where the conflicting goal has no pairs, one that counts nothing stands for them, so that every share is nan.
    """
    settings = [{key: row[key] for key in (*BY, "seed")} for row in rows]
    hits, nothing = [row["helpful"] for row in rows], np.zeros(1, dtype=bool)
    goal = [{"hits": h, "pairs": np.ones_like(h)} if len(h) else {"hits": nothing, "pairs": nothing} for h in hits]
    counted = (indicators(row["p"], threshold, known_by) for row in rows)
    return stack(zip(settings, counted)), stack(zip(settings, goal))


def _share(sums: Sums) -> dict:
    return {"conflicting": (sums["hits"], sums["pairs"])}


def remedy_table(counts: Counts, goal: Counts, samples: int) -> pd.DataFrame:
    """`pooled.pooled_table` by remedy and conflict, and conflicting (accuracy on that goal), conflicting_pairs."""
    shares = ratio_table(goal, _share, (), BY, samples, conflicting="logit")
    ends = shares[["conflicting", "conflicting_low", "conflicting_high"]]
    pairs = goal.indicators["pairs"][0].sum()
    return pd.concat([pooled_table(counts, BY, samples), ends], axis=1).assign(conflicting_pairs=pairs)


def differences(counts: Counts, goal: Counts, samples: int, base: str = NOTHING) -> pd.DataFrame:
    """Each remedy less doing nothing (or another `base`), on the same samples: one row a measure of MEASURES.

    p is that of `bootstrap_p`, holm the same adjusted for all remedies under all conflicts but none, each measure by
    itself; nan where there is no conflict, and where `pooled.difference` has no interval.
    """
    measures, sums, rows = {}, {}, []
    for names, runs in counts.groups(BY):
        statistics = measured(counts.rows(runs), samples) | measured(goal.rows(runs), samples, _share)
        measures[tuple(names.values())] = statistics | {"accuracy": statistics["student_accuracy"]}
        sums[tuple(names.values())] = counts.rows(runs).sums()
    for remedy, conflict in [key for key in measures if key[0] != base]:
        for measure in MEASURES:
            delta = measures[remedy, conflict][measure].minus(measures[base, conflict][measure])
            *ends, _ = compared(measure, delta, sums[remedy, conflict], sums[base, conflict])
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
