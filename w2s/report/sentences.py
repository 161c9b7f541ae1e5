"""What a study supports, in plain sentences with numbers and intervals: the rules; the words are in sentences.yaml."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import yaml

from w2s.analysis.scoring import CONFLICTS, MIN_TAX, ceilings_apart, verdict
from w2s.intervals import ends, wilson
from w2s.params import BETA, GAMMA, Lora, StudyParams
from w2s.report.style import conflict_name, n_seeds, ranged

MIN_CONFIDENT = 0.01  # a ceiling that is confident on fewer pairs has no "known" to speak of
EVEN = {"lift": 1, "auc": 0.5}  # what an interval is compared with; of other measures 0
FEW_SAMPLES = 1000  # of a bootstrap: with fewer the ends of intervals are rough
CONFIDENCES = ("paper", "implicit_reward", "calibrated")


@cache
def texts() -> dict[str, str]:
    """The texts of sentences.yaml by key."""
    return yaml.safe_load((Path(__file__).parent / "sentences.yaml").read_text(encoding="utf-8"))


def expected(file: str) -> str:
    """One line on what was measured with a parameter file of that name as it ships; "" where nothing was."""
    table = yaml.safe_load((Path(__file__).parent / "expected.yaml").read_text(encoding="utf-8"))
    each = "; ".join(f"{name}: {value}" for name, value in table.get(file, {}).items())
    return each and f"measured with {file} as it ships (docs/measurements.md): {each}"


class _Interval(NamedTuple):
    row: Mapping
    measure: str

    def __format__(self, digits: str) -> str:
        return ranged(self.row, self.measure, digits or ".2f")


class _Fields(dict):
    """A row, what goes beside it, and what a text may make of them: see the head of sentences.yaml."""

    def __missing__(self, name: str) -> str | _Interval:
        measure, _, kind = name.rpartition("_")
        if kind == "interval":
            return _Interval(self, measure)
        if kind == "answer":
            return answer(self["key"], self, measure)
        if name == "path":
            return " -> ".join([self["weak"], *([self["teacher"]] if self["via"] else []), self["strong"]])
        make, column = {"conflict_name": (conflict_name, "conflict"), "n_seeds": (n_seeds, "seeds")}[name]
        return make(self[column])


def words(key: str, row: Mapping | Iterable = (), **fields) -> str:
    """A text of sentences.yaml with its fields filled in from a row of a table and from `fields`, which go first."""
    return texts()[key].format_map(_Fields(dict(row) | fields | {"key": key}))


def answer(key: str, row: Mapping, measure: str) -> str:
    """The `verdict` on a measure's interval: <key>_above, _below, _neither or, where there is one, _undefined."""
    kind = verdict(row, measure, EVEN.get(measure, 0))
    if kind == "none":
        kind = "undefined" if f"{key}_undefined" in texts() and np.isnan(ends(row, measure)[0]) else "neither"
    return words(f"{key}_{kind}", row)


def setup(params: StudyParams) -> dict[str, str]:
    """In words, how the runs of a study were trained and what makes their margins probabilities."""
    method, confidence = params.method, params.confidence
    beta, gamma = params.beta or BETA.get(method, 0), GAMMA if params.gamma is None else params.gamma
    reference = words("reference_unused" if confidence == "paper" else "reference_used")
    margin = words(f"margin_{method}", reference=reference)
    scale = words(f"scale_{method if confidence == 'paper' else confidence}", beta=beta)
    labels, kept = "labels_soft" if method == "reward" else "labels_hard", words(f"kept_{params.weak_filter}")
    return {
        "Target": words("target", target=params.target, conflicting=params.conflicting),
        "Method": words(f"method_{method}", beta=beta, gamma=gamma),
        "Weights": words("weights_lora", rank=params.lora.rank) if params.lora else words("weights_all"),
        "Weak labels": words(labels, kept=kept),
        "Probability": words("probability", scale=scale, margin=margin),
    }


def mark(lora: Lora | None) -> str:
    """What a caption ends with where low-rank adapters were trained; nothing for full fine-tuning."""
    return words("mark", rank=lora.rank) if lora else ""


def caveats(params: StudyParams) -> list[str]:
    """What must stand before any finding: roles exchanged, adapters instead of all weights, a filter on the labels."""
    lines = [words("caveat_roles")] if params.target == "helpful" else []
    lines += [words("caveat_lora", rank=params.lora.rank)] if params.lora else []
    lines += [words("caveat_bootstrap", samples=params.bootstrap)] if params.bootstrap < FEW_SAMPLES else []
    kept = words(f"kept_{params.weak_filter}")
    return lines + ([words("caveat_filter", kept=kept)] if params.weak_filter != "none" else [])


def findings(scores: pd.DataFrame, accuracies: pd.DataFrame, conflicts=None, slopes=None, settings=None) -> list[str]:
    """Warnings from `score_table` and `accuracy_table`, a summary of each conflict, and one sentence a setting.

    `conflicts` and `settings` (said instead of every seed, where there are several): `pooled.pooled_table` of the
    usable runs by conflict and by setting; `slopes`: `pooled.slope_table`.
    """
    gold = accuracies[(accuracies["role"] == "gold") & accuracies["model"].isin(scores["strong"])]
    ceilings = {(row["model"], row["seed"]): row for row in gold.to_dict("records")}
    lines = [words("mute_ceiling", ceilings[run], why=reason) for run, reason in mute_ceilings(gold).items()]
    if len(scores) and not ceilings_apart(scores):
        lines.append(words("alike", gap=scores["gap"].max()))
    why, several = why_no_statement(scores, accuracies), scores["seed"].nunique() > 1
    for chance in ("at_chance", "below_chance"):
        lines += _mute_references(scores[why == words("setting_reference", why=words(chance))], chance)
    claimed, shown, where = scores[why == ""], scores, "setting_of_seed" if several else "setting_alone"
    if several and settings is not None:
        claimed, shown, where, why = settings, settings, "setting_of_seeds", [""] * len(settings)
    for conflict in CONFLICTS:
        rows = scores[(scores["conflict"] == conflict) & (scores["role"] == "student")]
        if rows["tax"].sum():
            lines += [] if conflicts is None else _pooled(conflict, conflicts)
            lines += _first_claim(conflict, claimed)
            lines += [] if slopes is None else _slope(conflict, slopes)
    lines += [_sentence(row, reason, where) for row, reason in zip(shown.to_dict("records"), why, strict=True)]
    seeds = 1 if conflicts is None or conflicts.empty else conflicts["seeds"].max()
    return [*lines, words("intervals_of_seeds" if seeds > 1 else "intervals", seeds=seeds)]


def bootstrapping(overall: pd.DataFrame) -> list[str]:
    """One sentence a conflict on the third claim, from `pooled.contrast` with columns conflict, chains and runs."""
    lines = []
    for _, rows in overall.groupby("conflict", sort=False):
        of = {row["difference"]: row for row in rows.to_dict("records")}
        changes = {name: ranged(row, "estimate") for name, row in of.items()}
        lines.append(words("bootstrapping", of["score"], **changes))
    return lines


def with_statement(scores: pd.DataFrame, accuracies: pd.DataFrame) -> pd.DataFrame:
    """The rows of a score table whose ceiling and reference can be told from chance, however small their tax."""
    return scores[why_no_statement(scores, accuracies) == ""]


def why_no_statement(scores: pd.DataFrame, accuracies: pd.DataFrame) -> pd.Series:
    """Why the Score of each row says nothing, "" where it may; the index is that of `scores`."""
    mute = mute_ceilings(accuracies[accuracies["role"] == "gold"])
    reasons = []
    for row in scores.to_dict("records"):
        ceiling = mute.get((row["strong"], row["seed"]))
        of_reference = words("setting_reference", why=chance(row)) if chance(row) else ""
        reasons.append(words("setting_ceiling", why=ceiling) if ceiling else of_reference)
    return pd.Series(reasons, index=scores.index, dtype=object)


def chance(row: Mapping, role: str = "reference") -> str:
    """That a role's accuracy cannot be told from chance, or lies below it, in words; "" where it lies above."""
    return by_chance(*wilson(round(row[f"{role}_accuracy"] * row["pairs"]), row["pairs"]))


def by_chance(low: float, high: float) -> str:
    """As `chance`, of the interval of an accuracy."""
    return "" if low > 0.5 else words("below_chance" if high < 0.5 else "at_chance")


def mute_ceilings(gold: pd.DataFrame) -> dict[tuple[str, int], str]:
    """The (model, seed) whose Deception Scores say nothing, and why; `gold` are rows of `accuracy_table`."""
    return {
        (row["model"], row["seed"]): by_chance(row["low"], row["high"]) or words("never_confident", row)
        for row in gold.to_dict("records")
        if row["low"] <= 0.5 or row["confident_share"] < MIN_CONFIDENT
    }


def _mute_references(rows: pd.DataFrame, chance: str) -> list[str]:
    names = list(dict.fromkeys(words("mute_reference", row) for row in rows.to_dict("records")))
    more = words("mute_references_more", n=len(names) - 3) if len(names) > 3 else ""
    return [words("mute_references", names="; ".join(names[:3]) + more, why=words(chance))] if names else []


def _pooled(conflict: str, table: pd.DataFrame) -> list[str]:
    rows = table[(table["conflict"] == conflict) & (table["tax"] >= MIN_TAX)].to_dict("records")
    return [words("pooled", row) for row in rows]


def _slope(conflict: str, table: pd.DataFrame) -> list[str]:
    rows = table[(table["conflict"] == conflict) & table["low"].notna()].set_index("measure")
    if len(rows) < 2:
        return []
    score, above_null = (0.1 * rows.loc[measure, ["slope", "low", "high"]] for measure in ("score", "score_minus_even"))
    counts = rows.loc["score", ["points", "turned", "seeds"]].to_dict()
    counts["turned_round"] = words("slope_turned", counts) if counts["turned"] else ""
    return [words("slope", above_null, conflict=conflict, score=ranged(score, "slope"), **counts)]


def _first_claim(conflict: str, table: pd.DataFrame) -> list[str]:
    rows = table[(table["conflict"] == conflict) & (table["role"] == "student") & (table["tax"] >= MIN_TAX)]
    if rows.empty:
        return [words("no_usable_setting", conflict=conflict, least=MIN_TAX)]
    above = [verdict(row, "score_minus_even") for row in rows.to_dict("records")].count("above")
    result = words("first_claim_holds" if above == len(rows) else "first_claim_fails")
    return [words("first_claim", conflict=conflict, above=above, n=len(rows), answer=result)]


def _sentence(row: Mapping, silence: str, where: str) -> str:
    tax = words("setting_no_tax")
    if row["tax"]:
        silence = silence or (words("setting_few") if row["tax"] < MIN_TAX else "")
        result = words("setting_silent", why=silence) if silence else answer("setting", row, "score_minus_even")
        lift = "" if np.isnan(row["lift"]) else words("setting_lift", row)
        tax = words("setting_tax", row, lift_found=lift, answer=result)
    recovered = "" if np.isnan(row["pgr"]) else words("setting_recovered", row)
    recovered += words("setting_turned", row) if row["turned"] else ""
    return words("setting", row, where=words(where, row), recovered=recovered, tax_found=tax)
