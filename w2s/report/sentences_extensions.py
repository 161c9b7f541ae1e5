"""What the follow-up sections of notebook 04 support, in plain sentences with numbers and intervals."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import numpy as np
import pandas as pd

from w2s.analysis.followups import MODELS
from w2s.analysis.remedies import CONTROL, MEASURES, WEIGHTS
from w2s.analysis.scoring import MIN_GAP
from w2s.report.sentences import MIN_TAX, at_chance, mute_ceilings, n_seeds
from w2s.report.style import conflict_name

WAYS = ("knowledge", "sure_knowledge", "confidence")


def by_knowledge(table: pd.DataFrame) -> list[str]:
    """One sentence a conflict from `knowledge.score_table` by conflict: what its lift and Score are by knowledge."""
    lines, leans = [], {1: "the tax leans towards them", -1: "the tax avoids them", 0: "not supported in this study"}
    for conflict, rows in table[table["tax"] >= MIN_TAX].groupby("conflict", sort=False):
        known, sure, confident = (rows.set_index("known_by").loc[way] for way in WAYS)
        sides = {_side(row["lift_low"], row["lift_high"], 1) for row in (known, sure)}
        verdict = leans[sides.pop()] if len(sides) == 1 else "it hangs on what counts as knowledge"
        lines.append(
            f"{conflict_name(conflict)}, areas by what the language models know before fine-tuning: lift "
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
            f"{conflict_name(row['conflict'])}: wrong with confidence {threshold:g} or more (confidence: {way}) where the weak "
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
    each = ", ".join(
        f"{conflict_name(conflict)} {_ranged(row, 'correlation_student')}" for conflict, row in rows.iterrows()
    )
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
            f"{conflict_name(conflict)}: the variance of the student's P over the other seeds {verdict} (AUC "
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


# Labels that weak ones are compared with, and what it means when weak ones cost more, less, or neither surely.
WEAK_LESS = {
    "gold": ("weak labels add to the tax", "weak labels make it smaller", "that weak labels add to it"),
    "shuffled": (
        "errors made where the weak model makes them cost more than the same errors elsewhere",
        "errors made where the weak model makes them cost less than the same errors elsewhere",
        "that it matters WHERE the weak model errs",
    ),
}


def control_warnings(accuracies: pd.DataFrame, strong: str, controls: pd.DataFrame) -> list[str]:
    """One line for each seed whose ceiling, or whose student with weak labels and no conflict, says nothing.

    accuracies: an `accuracy_table` with the gold runs. controls: `pooled_table` by labels, conflict and seed.
    """
    mute = mute_ceilings(accuracies[(accuracies["role"] == "gold") & (accuracies["model"] == strong)])
    lines = [
        f"Warning: the strong ceiling {model}, seed {seed}, {why}: the Scores of these controls say nothing."
        for (model, seed), why in mute.items()
    ]
    calm = controls[(controls["labels"] == "weak") & (controls["conflict"] == "none")]
    return lines + [
        f"Warning: seed {row['seed']}: the student with weak labels and no conflict (accuracy "
        f"{row['student_accuracy']:.2f}) cannot be told from chance: what it loses under a conflict is noise."
        for _, row in calm.iterrows()
        if at_chance(row, "student")
    ]


def label_lines(settings: pd.DataFrame, differences: pd.DataFrame, pair: str) -> list[str]:
    """Two sentences a conflict: the tax under each kind of labels, and what weak labels add.

    settings: `pooled_table` by labels and conflict. differences: weak labels less each of WEAK_LESS (column less), with
    conflict, estimate, low and high of the tax share.
    """
    lines = []
    for conflict in differences["conflict"].unique():
        rows = settings[settings["conflict"] == conflict]
        told = [row for _, row in rows.iterrows()]
        shares = [f"{_ranged(row, 'tax_share')} with {row['labels']} labels" for row in told]
        noise = [row["labels"] for row in told if at_chance(row)]
        where = f"{conflict} conflict, {pair}, {_seeds(rows)}"
        end = f"; without conflict no better than chance, so that its tax is noise: {', '.join(noise)}" if noise else ""
        lines.append(f"Controls, {where}: the tax is {', '.join(shares)} (share of test pairs{end}).")
        of = differences[differences["conflict"] == conflict].set_index("less")
        told = [
            f"that with {less} labels by {_told(of.loc[less])} ({_verdict(of.loc[less], *WEAK_LESS[less])})"
            for less in WEAK_LESS
        ]
        lines.append(
            f"Weak supervision or the conflict alone, {where}: the tax share with weak labels exceeds "
            f"{', and '.join(told)}."
        )
    return lines


def no_conflict_line(row: pd.Series, pair: str) -> str:
    """The Score of the student without conflict against the ceiling; `row` of a `pooled_table`."""
    start = f"No conflict, {pair}, {_seeds(row)}: of what its ceiling has right the student loses "
    return start + f"{_ranged(row, 'tax_share')} of the test pairs by weak supervision alone; {_score(row)}."


def strength_lines(changes: pd.DataFrame, pair: str) -> list[str]:
    """One sentence a way to make the conflict stronger: whether the tax rises with it, under each kind of labels.

    changes: conflict, measure (in words), labels, smallest, largest, and the difference of their tax shares
    (largest less smallest) as estimate, low, high, seeds.
    """
    lines = []
    for (conflict, measure), rows in changes.groupby(["conflict", "measure"], sort=False):
        first = rows.iloc[0]
        told = [
            f"{_told(row)} with {row['labels']} labels ({_verdict(row, 'it rises', 'it falls', 'a change')})"
            for _, row in rows.iterrows()
        ]
        lines.append(
            f"Strength, {conflict} conflict, {pair}, {_seeds(first)}: from {first['smallest']:g} to "
            f"{first['largest']:g} {measure} the tax share changes by {' and by '.join(told)}."
        )
    return lines


def swapped_lines(table: pd.DataFrame, pair: str) -> list[str]:
    """What the exchanged roles show: nothing where there is no gap or no ceiling, else one sentence a conflict.

    table: `pooled_table` by target, conflicting and conflict, of the exchanged study.
    """
    first = table.iloc[0]
    start = f"Roles exchanged (target {first['target']}, conflict {first['conflicting']}), {pair}, {_seeds(first)}: "
    start += f"the weak model has {first['weak_accuracy']:.2f} of the test pairs right, the ceiling "
    start += f"{first['ceiling_accuracy']:.2f}"
    if first["gap"] < MIN_GAP:
        return [start + ": nothing here is left to a weak supervisor, so that this control says nothing."]
    if at_chance(first, "ceiling"):
        return [start + ", which cannot be told from chance: this control says nothing."]
    return [
        f"{start}; {row['conflict']} conflict: student {row['student_accuracy']:.2f}, tax "
        f"{_ranged(row, 'tax_share')} of the test pairs, {_score(row)}."
        for _, row in table[table["conflict"] != "none"].iterrows()
    ]


def coverage(seeds: Iterable[int]) -> str:
    """What the intervals of all these sentences cover."""
    n = len(set(seeds))
    over = "test pairs, not the randomness of training" if n == 1 else f"test pairs and {n} seeds"
    return f"One pair of models; intervals are 95% and cover {over}."


def _score(row: pd.Series) -> str:
    """Score, null and verdict, or why there is none."""
    if row["tax"] < MIN_TAX:
        return f"{row['tax']} tax pairs, too few for a Score"
    if at_chance(row):
        return "no Score: the reference cannot be told from chance"
    above = pd.Series({"low": row["score_minus_null_low"], "high": row["score_minus_null_high"]})
    more, less = "more than even where the weak model is blind", "less than even where the weak model is blind"
    return (
        f"Deception Score {_ranged(row, 'score')} over {row['tax']} tax pairs, {row['null']:.2f} if they fell evenly: "
        + _verdict(above, more, less, "a difference")
    )


def _verdict(row, above: str, below: str, neither: str) -> str:
    if row["low"] > 0:
        return above
    return below if row["high"] < 0 else f"{neither} is not supported in this study"


def _told(row) -> str:
    return f"{row['estimate']:.3f} [{row['low']:.3f}, {row['high']:.3f}]"


def _ranged(row: pd.Series, name: str) -> str:
    return f"{row[name]:.2f} [{row[f'{name}_low']:.2f}, {row[f'{name}_high']:.2f}]"


def _seeds(rows) -> str:
    return n_seeds(int(np.max(rows["seeds"])))


def _at_chance(table: pd.DataFrame) -> pd.DataFrame:
    """The rows without conflict whose accuracy does not lie above 1/2 with its interval."""
    return table[(table["conflict"] == "none") & (table["student_accuracy_low"] <= 0.5)]


def remedy_warnings(table: pd.DataFrame) -> list[str]:
    """A warning for the remedies whose accuracy WITHOUT conflict cannot be told from chance; from `remedy_table`."""
    calm = _at_chance(table)
    if calm.empty:
        return []
    named = ", ".join(f"{row.remedy} ({row.student_accuracy:.2f})" for row in calm.itertuples())
    start = "Warning: Mitigations: without conflict these cannot be told from chance, or are below it, so that their "
    return [start + f"conflict tax and Score say nothing: {named}."]


def remedy_findings(compared: pd.DataFrame, table: pd.DataFrame) -> list[str]:
    """Sentences by rule: which remedies beat doing nothing, which do not, one for each conflict and measure.

    `compared` is from `differences`, `table` from `remedy_table` with the column uses_gold. Under a conflict nothing
    is said of a remedy that cannot be told from chance without one.
    """
    words = {"accuracy": "accuracy on the target goal", "tax_share": "conflict tax as a share of all test pairs"}
    words |= {"score_minus_null": "Deception Score above its null"}
    mute = set(_at_chance(table)["remedy"])
    gold = table.set_index(["remedy", "conflict"])["uses_gold"]
    lines = []
    for conflict, measure in itertools.product(compared["conflict"].unique(), words):
        if conflict == "none" and measure != "accuracy":
            continue
        rows = compared[(compared["conflict"] == conflict) & (compared["measure"] == measure)]
        lists: dict[str, list[str]] = {"beats doing nothing": [], "worse": [], "not shown": [], "no statement": []}
        survive = []
        for row in rows.itertuples():
            name = row.remedy + (" (uses gold)" if gold[row.remedy, conflict] else "")
            kind = _kind(row, MEASURES[measure]) if conflict == "none" or row.remedy not in mute else "no statement"
            numbers = "(not defined)" if np.isnan(row.low) else f"{row.estimate:+.2f} [{row.low:+.2f}, {row.high:+.2f}]"
            lists[kind].append(f"{name} {numbers}")
            survive += [name] if kind in ("beats doing nothing", "worse") and row.holm < 0.05 else []
        parts = [
            f"{kind}: {', '.join(names) or 'none'}" for kind, names in lists.items() if names or kind != "no statement"
        ]
        if conflict != "none":
            parts.append(f"after Holm's adjustment there remain: {', '.join(survive) or 'none'}")
        lines.append(f"Mitigations, {conflict_name(conflict)}, {words[measure]}, 95% confidence: {'; '.join(parts)}.")
        if measure == "accuracy":
            lines.append(_above_chance(table, conflict))
    return lines


def against_control(compared: pd.DataFrame) -> list[str]:
    """What reliability weights gain beyond even ones that pull as hard; from `differences` with base CONTROL."""
    rows = compared[(compared["remedy"] == WEIGHTS) & (compared["measure"] == "accuracy")]
    lines = []
    for row in rows.itertuples():
        verdict = {1: "buys more than", -1: "buys less than", 0: "is not shown to buy more or less than"}[
            (row.low > 0) - (row.high < 0)
        ]
        lines.append(
            f"Mitigations, {conflict_name(row.conflict)}: {WEIGHTS} less {CONTROL}, accuracy on the target goal "
            f"{row.estimate:+.2f} [{row.low:+.2f}, {row.high:+.2f}]: which labels are heavy {verdict} "
            "the same weight on all of them."
        )
    return lines


def _kind(row, better: int) -> str:
    low, high = sorted((better * row.low, better * row.high))
    return "beats doing nothing" if low > 0 else "worse" if high < 0 else "not shown"


def _above_chance(table: pd.DataFrame, conflict: str) -> str:
    """Which students are right on more than half of the test pairs: to beat a bad one is not to be good."""
    rows = table[(table["conflict"] == conflict) & (table["student_accuracy_low"] > 0.5)]
    named = ", ".join(f"{row.remedy} ({row.student_accuracy:.2f})" for row in rows.itertuples())
    return (
        f"Mitigations, {conflict_name(conflict)}: accuracy on the target goal lies above 0.5 with: {named or 'none'}."
    )
