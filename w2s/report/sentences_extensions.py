"""What the follow-ups of notebook 04, the controls of 06 and the remedies of 07 support; words as in `sentences`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import pandas as pd

from w2s.analysis.followups import MODELS
from w2s.analysis.remedies import CONTROL, MEASURES, WEIGHTS
from w2s.analysis.scoring import MIN_GAP, MIN_TAX, verdict
from w2s.report.sentences import answer, chance, mute_ceilings, words
from w2s.report.style import ranged

WEAK_LESS = ("gold", "shuffled")  # the labels that weak ones are compared with


def yardsticks(table: pd.DataFrame) -> list[str]:
    """What `yardsticks.yardstick_table` of an instrument says of students whose answer is known, and of each conflict.

    The twin contrast can be believed where it is above 0 for the deceiver planted with the largest dose, and not above
    0 where nothing follows the teacher's blindness; else nothing is said of the conflicts. Without twins there is none.
    """
    rows = {row["conflict"]: row for row in table.to_dict("records")}
    planted = [name for name in rows if name.startswith("planted") and name != "planted 0%"]
    nothing = [name for name in rows if name.startswith(("other seed", "noise", "gold", "planted 0%"))]
    if not planted or not nothing:
        return []
    if table["contrast"].isna().all():
        each = [words("yardsticks_planted", rows[name], name=name) for name in planted]
        each += [words("yardsticks_nothing", rows[name], name=name) for name in nothing]
        return [words("yardsticks_alone", each="; ".join(each))]
    above = {name for name in rows if verdict(rows[name], "contrast") == "above"}
    largest = max(planted, key=lambda name: int(name.split()[1].rstrip("%")))
    passed = largest in above and not above.intersection(nothing)
    each = "; ".join(words("yardsticks_each", rows[name], name=name) for name in (*planted, *nothing))
    result = words("yardsticks_pass" if passed else "yardsticks_fail")
    lines = [words("yardsticks", each=each, answer=result)]
    conflicts = [name for name in rows if name not in (*planted, *nothing)]
    p = {name: f"p {rows[name]['p']:.3f}".replace("p 0.000", "p < 0.001") for name in conflicts}
    return lines + ([words("twins", rows[name], p_value=p[name]) for name in conflicts] if passed else [])


def other_pairs(table: pd.DataFrame) -> list[str]:
    """One sentence a conflict from `followups.other_table`: what its students do on the pairs of `other_data`."""
    rows = table[(table["scored_on"] == "other") & (table["conflict"] != "none")]
    return [words("other_pairs", row) for row in rows.to_dict("records")]


def twin_claims(table: pd.DataFrame) -> list[str]:
    """One sentence a claim and conflict from `yardsticks.twin_claims`."""
    return [words(f"claim_{row['claim']}", row) for row in table.to_dict("records")]


def by_knowledge(table: pd.DataFrame) -> list[str]:
    """One sentence a conflict from `knowledge.score_table` by conflict: what its lift and Score are by knowledge."""
    lines = []
    for _, rows in table[table["tax"] >= MIN_TAX].groupby("conflict", sort=False):
        by_way = {row["known_by"]: row for row in rows.to_dict("records")}
        known, sure, confident = (by_way[way] for way in ("knowledge", "sure_knowledge", "confidence"))
        lifts = {"sure": ranged(sure, "lift"), "confidence": ranged(confident, "lift")}
        results = {answer("knowledge", row, "lift") for row in (known, sure)}
        result = results.pop() if len(results) == 1 else words("knowledge_differs")
        lines.append(words("knowledge", known, answer=result, confidence_score=confident["score"], **lifts))
    return lines


def blind_spots(table: pd.DataFrame, threshold: float, way: str) -> list[str]:
    """One sentence a conflict from `followups.blind_table` by conflict: how often a student is confidently wrong."""
    lines = []
    for row in table[table["conflict"] != "none"].to_dict("records"):
        shares = {  # a bootstrap of nothing has no width, so that 0 is "none"
            f"{model}_share": ranged(row, f"share_{model}", ".3%") if row[f"share_{model}"] else words("none")
            for model in MODELS
        }
        lines.append(words("blind_spots", row, threshold=threshold, way=way, **shares))
    return lines


def shared_errors(table: pd.DataFrame) -> list[str]:
    """One sentence from `followups.shared_table` by conflict: does the student copy its teacher's mistakes?"""
    rows = {row["conflict"]: row for row in table.to_dict("records")}
    if "none" not in rows or np.isnan(rows["none"]["correlation_student_low"]):
        return []
    each = ", ".join(words("shared_errors_each", row) for row in rows.values())
    return [words("shared_errors", rows["none"], each=each)]


def control_warnings(accuracies: pd.DataFrame, strong: str, controls: pd.DataFrame) -> list[str]:
    """Of each seed whose ceiling, or student with weak labels and no conflict (`controls`, by seed), says nothing."""
    mute = mute_ceilings(accuracies[(accuracies["role"] == "gold") & (accuracies["model"] == strong)])
    lines = [words("control_ceiling", model=model, seed=seed, why=why) for (model, seed), why in mute.items()]
    without = controls[(controls["labels"] == "weak") & (controls["conflict"] == "none")]
    for row in without.to_dict("records"):
        if why := chance(row, "student"):
            lines.append(words("control_reference", row, why=why))
    return lines


def label_lines(settings: pd.DataFrame, differences: pd.DataFrame, pair: str) -> list[str]:
    """Two sentences a conflict: the tax by labels (`pooled_table`), and what weak ones add to each of WEAK_LESS."""
    lines = []
    for conflict, compared in differences.groupby("conflict", sort=False):
        rows = settings[settings["conflict"] == conflict]
        where = {"conflict": conflict, "pair": pair, "seeds": rows["seeds"].max()}
        rows, compared = rows.to_dict("records"), compared.set_index("less")
        shares = ", ".join(words("labels_tax_each", row) for row in rows)
        noise = ", ".join(row["labels"] for row in rows if chance(row))
        noise = words("labels_tax_noise", names=noise) if noise else ""
        lines.append(words("labels_tax", where, shares=shares, noise=noise))
        changes = {less: words(f"labels_{less}", compared.loc[less]) for less in WEAK_LESS}
        lines.append(words("labels_compared", where, **changes))
    return lines


def no_conflict_line(row: Mapping, pair: str) -> str:
    """The Score of the student without conflict against the ceiling; `row` of a `pooled_table`."""
    return words("no_conflict", row, pair=pair, score_found=_score(row))


def strength_lines(changes: pd.DataFrame, pair: str) -> list[str]:
    """Whether the tax rises with each measure of strength: its difference, largest less smallest, by labels."""
    lines = []
    for _, rows in changes.groupby(["conflict", "measure"], sort=False):
        steps = [words("strength_step", row) for row in rows.to_dict("records")]
        lines.append(words("strength", rows.iloc[0], pair=pair, steps=words("strength_and").join(steps)))
    return lines


def swapped_lines(table: pd.DataFrame, pair: str) -> list[str]:
    """What the exchanged roles show (`pooled_table` by conflict): nothing without a gap or a ceiling above chance."""
    first = table.iloc[0]
    start = words("swapped", first, pair=pair)
    if first["gap"] < MIN_GAP:
        return [words("swapped_no_gap", start=start)]
    if why := chance(first, "ceiling"):
        return [words("swapped_at_chance", start=start, why=why)]
    rows = table[table["conflict"] != "none"].to_dict("records")
    return [words("swapped_student", row, start=start, score_found=_score(row)) for row in rows]


def coverage(seeds: Iterable[int]) -> str:
    """What the intervals of all these sentences cover."""
    n = len(set(seeds))
    return words("coverage" if n == 1 else "coverage_of_seeds", seeds=n)


def _score(row: Mapping) -> str:
    if row["tax"] < MIN_TAX:
        return words("score_few", row)
    why = chance(row)
    return words("score_at_chance" if why else "score", row, why=why)


def remedy_warnings(table: pd.DataFrame) -> list[str]:
    """A warning for the remedies whose accuracy WITHOUT conflict cannot be told from chance; from `remedy_table`."""
    noise = _at_chance(table)
    return [] if noise.empty else [words("remedy_warning", names=_named(noise))]


def _at_chance(table: pd.DataFrame) -> pd.DataFrame:
    return table[(table["conflict"] == "none") & (table["student_accuracy_low"] <= 0.5)]


def _named(table: pd.DataFrame) -> str:
    return ", ".join(words("remedy", row) for row in table.to_dict("records")) or words("none")


def remedy_findings(compared: pd.DataFrame, table: pd.DataFrame) -> list[str]:
    """Sentences by rule: which remedies beat doing nothing, which do not, one for each conflict and measure.

    `compared` is from `differences`, `table` from `remedy_table` with the column uses_gold. Under a conflict nothing
    is said of a remedy that cannot be told from chance without one.
    """
    noise, gold = set(_at_chance(table)["remedy"]), table.set_index(["remedy", "conflict"])["uses_gold"]
    lines = []
    for (conflict, measure), rows in compared.groupby(["conflict", "measure"], sort=False):
        if measure == "conflicting" or (conflict == "none" and measure != "accuracy"):
            continue
        lists = {"better": [], "worse": [], "unclear": [], "silent": [], "remain": []}
        for row in rows.to_dict("records"):
            kind = "silent" if conflict != "none" and row["remedy"] in noise else _kind(row, measure)
            name = words("remedy_with_gold", row) if gold[row["remedy"], conflict] else row["remedy"]
            change = "remedy_undefined" if np.isnan(row["estimate"]) else "remedy_change"
            lists[kind].append(words(change, row, name=name))
            if kind in ("better", "worse") and row["holm"] < 0.05:
                lists["remain"].append(name)
        said = {kind: ", ".join(names) or words("none") for kind, names in lists.items() if names or kind != "silent"}
        if conflict == "none":  # without adjustment
            del said["remain"]
        parts = "; ".join(words(f"remedies_{kind}", names=names) for kind, names in said.items())
        lines.append(words("remedies", conflict=conflict, measure=words(f"remedies_{measure}"), parts=parts))
        if measure == "accuracy":  # to beat a bad one is not to be good
            good = table[(table["conflict"] == conflict) & (table["student_accuracy_low"] > 0.5)]
            lines.append(words("remedies_good", conflict=conflict, names=_named(good)))
    return lines


def _kind(row: Mapping, measure: str) -> str:
    above, below = ("better", "worse") if MEASURES[measure] > 0 else ("worse", "better")
    return {"above": above, "below": below}.get(verdict(row, "estimate"), "unclear")


def against_control(compared: pd.DataFrame) -> list[str]:
    """What reliability weights gain beyond even ones that pull as hard; from `differences` with base CONTROL."""
    rows = compared[(compared["remedy"] == WEIGHTS) & (compared["measure"] == "accuracy")].to_dict("records")
    return [words("weights", row, control=CONTROL) for row in rows]
