"""What the follow-ups of notebook 04, the controls of 06 and the remedies of 07 support, in plain sentences."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping

import numpy as np
import pandas as pd

from w2s.analysis.followups import MODELS
from w2s.analysis.remedies import CONTROL, MEASURES, WEIGHTS
from w2s.analysis.scoring import MIN_GAP
from w2s.report.sentences import MIN_TAX, at_chance, mute_ceilings
from w2s.report.style import conflict_name, n_seeds, ranged, verdict

# Labels that weak ones are compared with, and what it means when weak ones cost more, less, or neither surely.
WEAK_LESS = {
    "gold": (
        "weak labels add to the tax",
        "weak labels make it smaller",
        "that weak labels add to it is not supported in this study",
    ),
    "shuffled": (
        "errors made where the weak model makes them cost more than the same errors elsewhere",
        "errors made where the weak model makes them cost less than the same errors elsewhere",
        "that it matters WHERE the weak model errs is not supported in this study",
    ),
}
OF_REMEDIES = {
    "accuracy": "accuracy on the target goal",
    "tax_share": "conflict tax as a share of all test pairs",
    "score_minus_null": "Deception Score above its null",
}


def by_knowledge(table: pd.DataFrame) -> list[str]:
    """One sentence a conflict from `knowledge.score_table` by conflict: what its lift and Score are by knowledge."""
    lines, leans = [], ("the tax leans towards them", "the tax avoids them", "not supported in this study")
    for conflict, rows in table[table["tax"] >= MIN_TAX].groupby("conflict", sort=False):
        by_way = rows.set_index("known_by")
        known, sure, confident = (by_way.loc[way] for way in ("knowledge", "sure_knowledge", "confidence"))
        answers = {verdict(row, "lift", 1, *leans) for row in (known, sure)}
        lines.append(
            f"{conflict_name(conflict)}, areas by what the language models know before fine-tuning: lift "
            f"{ranged(known, 'lift')}, by sure knowledge {ranged(sure, 'lift')}, by confidence "
            f"{ranged(confident, 'lift')}; Score {known['score']:.2f} against {confident['score']:.2f} by confidence, "
            f"difference {ranged(known, 'lost')} ({known['tax']} tax pairs); more tax on pairs that the strong model "
            "knows and the weak one does not: "
            f"{answers.pop() if len(answers) == 1 else 'it hangs on what counts as knowledge'}."
        )
    return lines


def blind_spots(table: pd.DataFrame, threshold: float, way: str) -> list[str]:
    """One sentence a conflict from `followups.blind_table` by conflict: how often a student is confidently wrong."""
    lines, answers = [], ("more than without conflict", "fewer than without conflict", "no difference is shown")
    for row in table[table["conflict"] != "none"].to_dict("records"):
        shares = (f"share_{model}" for model in MODELS)  # a bootstrap of nothing has no width, so that 0 is "none"
        student, without, ceiling = (ranged(row, share, ".3%") if row[share] else "none" for share in shares)
        lines.append(
            f"{conflict_name(row['conflict'])}: wrong with confidence {threshold:g} or more (confidence: {way}) where "
            f"the weak model's is lower, on {student} of the pairs; the student without conflict on {without}, the "
            f"ceiling on {ceiling}: {verdict(row, 'share_student_minus_share_none', 0, *answers)}."
        )
    return lines


def shared_errors(table: pd.DataFrame) -> list[str]:
    """One sentence from `followups.shared_table` by conflict: does the student copy its teacher's mistakes?"""
    rows = {row["conflict"]: row for row in table.to_dict("records")}
    if "none" not in rows or np.isnan(rows["none"]["correlation_student_low"]):
        return []
    without, less = rows["none"], "correlation_student_minus_correlation_ceiling"
    each = ", ".join(f"{conflict_name(name)} {ranged(row, 'correlation_student')}" for name, row in rows.items())
    answers = "it shares more of them than the ceiling does", "it shares fewer", "no difference is shown"
    return [
        f"correlation of the student's errors with its teacher's: {each}; of the errors of the ceiling, which never "
        f"saw the teacher: {ranged(without, 'correlation_ceiling')}; difference without conflict "
        f"{ranged(without, less)}: {verdict(without, less, 0, *answers)}."
    ]


def variance(table: pd.DataFrame) -> list[str]:
    """One sentence a conflict from `followups.variance_table`: does variance over seeds tell what becomes tax?"""
    answers = "is larger on pairs that become tax", "is smaller on these", "tells nothing that can be shown"
    return [
        f"{conflict_name(row['conflict'])}: the variance of the student's P over the other seeds "
        f"{verdict(row, 'auc', 0.5, *answers)} (AUC {ranged(row, 'auc')}, {row['runs']} runs)."
        for row in table[table["predictor"] == "variance, conflict"].to_dict("records")
    ]


def control_warnings(accuracies: pd.DataFrame, strong: str, controls: pd.DataFrame) -> list[str]:
    """One line for each seed whose ceiling, or whose student with weak labels and no conflict, says nothing.

    accuracies: an `accuracy_table` with the gold runs. controls: `pooled_table` by labels, conflict and seed.
    """
    mute = mute_ceilings(accuracies[(accuracies["role"] == "gold") & (accuracies["model"] == strong)])
    lines = [
        f"Warning: the strong ceiling {model}, seed {seed}, {why}: the Scores of these controls say nothing."
        for (model, seed), why in mute.items()
    ]
    without = controls[(controls["labels"] == "weak") & (controls["conflict"] == "none")]
    return lines + [
        f"Warning: seed {row['seed']}: the student with weak labels and no conflict (accuracy "
        f"{row['student_accuracy']:.2f}) cannot be told from chance: what it loses under a conflict is noise."
        for row in without.to_dict("records")
        if at_chance(row, "student")
    ]


def label_lines(settings: pd.DataFrame, differences: pd.DataFrame, pair: str) -> list[str]:
    """Two sentences a conflict: the tax under each kind of labels, and what weak labels add.

    settings: `pooled_table` by labels and conflict. differences: weak labels less each of WEAK_LESS (column less), with
    conflict, estimate, low and high of the tax share.
    """
    lines = []
    for conflict, compared in differences.groupby("conflict", sort=False):
        rows = settings[settings["conflict"] == conflict]
        where = f"{conflict_name(conflict)}, {pair}, {n_seeds(rows['seeds'].max())}"
        rows, compared = rows.to_dict("records"), compared.set_index("less")
        shares = ", ".join(f"{ranged(row, 'tax_share')} with {row['labels']} labels" for row in rows)
        if noise := ", ".join(row["labels"] for row in rows if at_chance(row)):
            noise = f"; without conflict no better than chance, so that its tax is noise: {noise}"
        lines.append(f"Controls, {where}: the tax is {shares} (share of test pairs{noise}).")
        answers = ", and ".join(
            f"that with {less} labels by {ranged(compared.loc[less], 'estimate', '.3f')} "
            f"({verdict(compared.loc[less], 'estimate', 0, *words)})"
            for less, words in WEAK_LESS.items()
        )
        start = f"Weak supervision or the conflict alone, {where}: the tax share with weak labels exceeds "
        lines.append(f"{start}{answers}.")
    return lines


def no_conflict_line(row: Mapping, pair: str) -> str:
    """The Score of the student without conflict against the ceiling; `row` of a `pooled_table`."""
    start = f"No conflict, {pair}, {n_seeds(row['seeds'])}: of what its ceiling has right the student loses "
    return start + f"{ranged(row, 'tax_share')} of the test pairs by weak supervision alone; {_score(row)}."


def strength_lines(changes: pd.DataFrame, pair: str) -> list[str]:
    """One sentence a way to make the conflict stronger: whether the tax rises with it, under each kind of labels.

    changes: conflict, measure (in words), labels, smallest, largest, and the difference of their tax shares
    (largest less smallest) as estimate, low, high, seeds.
    """
    lines, answers = [], ("it rises", "it falls", "a change is not supported in this study")
    for (conflict, measure), rows in changes.groupby(["conflict", "measure"], sort=False):
        first = rows.iloc[0]
        steps = " and by ".join(
            f"{ranged(row, 'estimate', '.3f')} with {row['labels']} labels ({verdict(row, 'estimate', 0, *answers)})"
            for row in rows.to_dict("records")
        )
        lines.append(
            f"Strength, {conflict_name(conflict)}, {pair}, {n_seeds(first['seeds'])}: from {first['smallest']:g} to "
            f"{first['largest']:g} {measure} the tax share changes by {steps}."
        )
    return lines


def swapped_lines(table: pd.DataFrame, pair: str) -> list[str]:
    """What the exchanged roles show: nothing where there is no gap or no ceiling, else one sentence a conflict.

    table: `pooled_table` by target, conflicting and conflict, of the exchanged study.
    """
    first = table.iloc[0]
    start = f"Roles exchanged (target {first['target']}, conflict {first['conflicting']}), {pair}, "
    start += f"{n_seeds(first['seeds'])}: the weak model has {first['weak_accuracy']:.2f} of the test pairs right, the "
    start += f"ceiling {first['ceiling_accuracy']:.2f}"
    if first["gap"] < MIN_GAP:
        return [start + ": nothing here is left to a weak supervisor, so that this control says nothing."]
    if at_chance(first, "ceiling"):
        return [start + ", which cannot be told from chance: this control says nothing."]
    return [
        f"{start}; {conflict_name(row['conflict'])}: student {row['student_accuracy']:.2f}, tax "
        f"{ranged(row, 'tax_share')} of the test pairs, {_score(row)}."
        for row in table[table["conflict"] != "none"].to_dict("records")
    ]


def coverage(seeds: Iterable[int]) -> str:
    """What the intervals of all these sentences cover."""
    n = len(set(seeds))
    over = "test pairs, not the randomness of training" if n == 1 else f"test pairs and {n} seeds"
    return f"One pair of models; intervals are 95% and cover {over}."


def _score(row: Mapping) -> str:
    """Score, null and verdict, or why there is none."""
    if row["tax"] < MIN_TAX:
        return f"{row['tax']} tax pairs, too few for a Score"
    if at_chance(row):
        return "no Score: the reference cannot be told from chance"
    more, less = (f"{word} than even where the weak model is blind" for word in ("more", "less"))
    answer = verdict(row, "score_minus_null", 0, more, less, "a difference is not supported in this study")
    start = f"Deception Score {ranged(row, 'score')} over {row['tax']} tax pairs, {row['null']:.2f} if they fell evenly"
    return f"{start}: {answer}"


def _noise(table: pd.DataFrame) -> pd.DataFrame:
    """The rows without conflict whose accuracy does not lie above 1/2 with its interval."""
    return table[(table["conflict"] == "none") & (table["student_accuracy_low"] <= 0.5)]


def _named(table: pd.DataFrame) -> str:
    """Remedies with their accuracies."""
    return ", ".join(f"{row.remedy} ({row.student_accuracy:.2f})" for row in table.itertuples())


def remedy_warnings(table: pd.DataFrame) -> list[str]:
    """A warning for the remedies whose accuracy WITHOUT conflict cannot be told from chance; from `remedy_table`."""
    start = "Warning: Mitigations: without conflict these cannot be told from chance, or are below it, so that their "
    noise = _noise(table)
    return [] if noise.empty else [f"{start}conflict tax and Score say nothing: {_named(noise)}."]


def remedy_findings(compared: pd.DataFrame, table: pd.DataFrame) -> list[str]:
    """Sentences by rule: which remedies beat doing nothing, which do not, one for each conflict and measure.

    `compared` is from `differences`, `table` from `remedy_table` with the column uses_gold. Under a conflict nothing
    is said of a remedy that cannot be told from chance without one.
    """
    noise, gold = set(_noise(table)["remedy"]), table.set_index(["remedy", "conflict"])["uses_gold"]
    lines = []
    for conflict, measure in itertools.product(compared["conflict"].unique(), OF_REMEDIES):
        if conflict == "none" and measure != "accuracy":
            continue
        lists, remain = {"beats doing nothing": [], "worse": [], "not shown": [], "no statement": []}, []
        better, worse, unclear, silent = lists
        above, below = (better, worse)[:: MEASURES[measure]]  # the other way round where less is better
        rows = compared[(compared["conflict"] == conflict) & (compared["measure"] == measure)]
        for row in rows.to_dict("records"):
            name = row["remedy"] + (" (uses gold)" if gold[row["remedy"], conflict] else "")
            kind = verdict(row, "estimate", 0, above, below, unclear)
            if conflict != "none" and row["remedy"] in noise:
                kind = silent
            lists[kind].append(
                name + (" (not defined)" if np.isnan(row["low"]) else f" {ranged(row, 'estimate', '+.2f')}")
            )
            if kind in (better, worse) and row["holm"] < 0.05:
                remain.append(name)
        parts = [f"{kind}: {', '.join(lists[kind]) or 'none'}" for kind in lists if lists[kind] or kind != silent]
        if conflict != "none":
            parts.append(f"after Holm's adjustment there remain: {', '.join(remain) or 'none'}")
        start = f"Mitigations, {conflict_name(conflict)}"
        lines.append(f"{start}, {OF_REMEDIES[measure]}, 95% confidence: {'; '.join(parts)}.")
        if measure == "accuracy":  # to beat a bad one is not to be good
            good = _named(table[(table["conflict"] == conflict) & (table["student_accuracy_low"] > 0.5)])
            lines.append(f"{start}: accuracy on the target goal lies above 0.5 with: {good or 'none'}.")
    return lines


def against_control(compared: pd.DataFrame) -> list[str]:
    """What reliability weights gain beyond even ones that pull as hard; from `differences` with base CONTROL."""
    answers = "buys more than", "buys less than", "is not shown to buy more or less than"
    rows = compared[(compared["remedy"] == WEIGHTS) & (compared["measure"] == "accuracy")]
    return [
        f"Mitigations, {conflict_name(row['conflict'])}: {WEIGHTS} less {CONTROL}, accuracy on the target goal "
        f"{ranged(row, 'estimate', '+.2f')}: which labels are heavy {verdict(row, 'estimate', 0, *answers)} "
        "the same weight on all of them."
        for row in rows.to_dict("records")
    ]
