"""What the follow-up sections of notebook 04 support, in plain sentences with numbers and intervals."""

from __future__ import annotations

import pandas as pd

from w2s.figures import named
from w2s.followups import MODELS
from w2s.sentences import MIN_TAX

WAYS = ("knowledge", "sure_knowledge", "confidence")


def by_knowledge(table: pd.DataFrame) -> list[str]:
    """One sentence a conflict from `knowledge.score_table` by conflict: what its lift and Score are by knowledge."""
    lines, leans = [], {1: "the tax leans towards them", -1: "the tax avoids them", 0: "not supported in this study"}
    for conflict, rows in table[table["tax"] >= MIN_TAX].groupby("conflict", sort=False):
        known, sure, confident = (rows.set_index("known_by").loc[way] for way in WAYS)
        sides = {_side(row["lift_low"], row["lift_high"], 1) for row in (known, sure)}
        verdict = leans[sides.pop()] if len(sides) == 1 else "it hangs on what counts as knowledge"
        lines.append(
            f"{named(conflict)}, areas by what the language models know before fine-tuning: lift "
            f"{_ranged(known, 'lift')}, by sure knowledge {_ranged(sure, 'lift')}, by confidence "
            f"{_ranged(confident, 'lift')}; Score {known['score']:.2f} against {confident['score']:.2f} by confidence, "
            f"difference {_ranged(known, 'lost')} ({known['tax']} tax pairs); more tax on pairs that the strong model "
            f"knows and the weak one does not: {verdict}."
        )
    return lines


def blind_spots(table: pd.DataFrame, threshold: float, way: str) -> list[str]:
    """One sentence a conflict from `followups.blind_table` by conflict: how often a student is confidently wrong."""
    lines = []
    for _, row in table[table["conflict"] != "none"].iterrows():
        less = "share_student_minus_share_calm"
        side = _side(row[f"{less}_low"], row[f"{less}_high"], 0)
        student, calm, ceiling = (_share(row, f"share_{model}") for model in MODELS)
        lines.append(
            f"{named(row['conflict'])}: wrong with confidence {threshold:g} or more (confidence: {way}) where the weak "
            f"model's is lower, on {student} of the pairs; the student without conflict on {calm}, the ceiling on "
            f"{ceiling}: {('no difference is shown', 'more', 'fewer')[side]}{' than without conflict' if side else ''}."
        )
    return lines


def shared_errors(table: pd.DataFrame) -> list[str]:
    """One sentence from `followups.shared_table` by conflict: does the student copy its teacher's mistakes?"""
    rows = table.set_index("conflict")
    if "none" not in rows.index or pd.isna(rows.loc["none", "correlation_student_low"]):
        return []
    calm, less = rows.loc["none"], "correlation_student_minus_correlation_ceiling"
    side = _side(calm[f"{less}_low"], calm[f"{less}_high"], 0)
    verdict = ("no difference is shown", "it shares more of them than the ceiling does", "it shares fewer")[side]
    each = ", ".join(f"{named(conflict)} {_ranged(row, 'correlation_student')}" for conflict, row in rows.iterrows())
    return [
        f"correlation of the student's errors with its teacher's: {each}; of the errors of the ceiling, which never "
        f"saw the teacher: {_ranged(calm, 'correlation_ceiling')}; difference without conflict {_ranged(calm, less)}: "
        f"{verdict}."
    ]


def variance(table: pd.DataFrame) -> list[str]:
    """One sentence a conflict from `followups.variance_table`: does variance over seeds tell what becomes tax?"""
    lines = []
    for conflict, rows in table.groupby("conflict", sort=False):
        row = rows.set_index("predictor").loc["variance, conflict"]
        side = _side(row["low"], row["high"], 0.5)
        verdict = ("tells nothing that can be shown", "is larger on pairs that become tax", "is smaller on these")[side]
        lines.append(
            f"{named(conflict)}: the variance of the student's P over the other seeds {verdict} (AUC "
            f"{row['auc']:.2f} [{row['low']:.2f}, {row['high']:.2f}], {row['runs']} runs)."
        )
    return lines


def _side(low: float, high: float, value: float) -> int:
    """1 where an interval lies above a value, -1 below, 0 where it holds the value or is not defined."""
    return 1 if low > value else -1 if high < value else 0


def _ranged(row: pd.Series, name: str) -> str:
    return f"{row[name]:.2f} [{row[f'{name}_low']:.2f}, {row[f'{name}_high']:.2f}]"


def _share(row: pd.Series, name: str) -> str:
    """A share in percent; "none" where no pair was counted, since a bootstrap of nothing has no width."""
    return f"{row[name]:.3%} [{row[f'{name}_low']:.3%}, {row[f'{name}_high']:.3%}]" if row[name] else "none"
