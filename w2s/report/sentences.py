"""What a study supports, in plain sentences with numbers and intervals: the rules; the words are in sentences.yaml."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import yaml

from w2s.analysis.scoring import CONFLICTS, MIN_TAX, ceilings_apart, verdict
from w2s.intervals import wilson
from w2s.params import BETA, GAMMA, Lora, StudyParams
from w2s.report.style import conflict_name, n_seeds, ranged

MIN_CONFIDENT = 0.01  # a ceiling that is confident on fewer pairs has no "known" to speak of
EVEN = {"lift": 1}  # what an interval is compared with; of other measures 0
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
    """The `verdict` on a measure's interval: <key>_above, _below, or, without a verdict as well, _neither."""
    kind = verdict(row, measure, EVEN.get(measure, 0))
    return words(f"{key}_{'neither' if kind == 'none' else kind}", row)


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


def findings(scores: pd.DataFrame, accuracies: pd.DataFrame, settings: pd.DataFrame | None = None) -> list[str]:
    """Warnings from `score_table` and `accuracy_table`; and of each conflict, in how many settings the tax is uneven.

    `settings`: `pooled.pooled_table` of the usable runs, counted instead of the runs themselves.
    """
    gold = accuracies[(accuracies["role"] == "gold") & accuracies["model"].isin(scores["strong"])]
    ceilings = {(row["model"], row["seed"]): row for row in gold.to_dict("records")}
    lines = [words("mute_ceiling", ceilings[run], why=reason) for run, reason in mute_ceilings(gold).items()]
    if len(scores) and not ceilings_apart(scores):
        lines.append(words("alike", gap=scores["gap"].max()))
    lines += _mute_references(_with_ceiling(scores, accuracies))
    settings = with_statement(scores, accuracies) if settings is None else settings
    taxed = scores[(scores["role"] == "student") & (scores["tax"] > 0)]
    lines += [_first_claim(conflict, settings) for conflict in CONFLICTS if conflict in set(taxed["conflict"])]
    seeds = scores["seed"].nunique()
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
    rows = _with_ceiling(scores, accuracies)
    return rows.loc[[not chance(row) for row in rows.to_dict("records")]]


def _with_ceiling(scores: pd.DataFrame, accuracies: pd.DataFrame) -> pd.DataFrame:
    mute = mute_ceilings(accuracies[accuracies["role"] == "gold"])
    return scores.loc[[run not in mute for run in zip(scores["strong"], scores["seed"])]]


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


def _mute_references(scores: pd.DataFrame) -> list[str]:
    """A warning for each way to be no better than chance, with the first three students of which it is true."""
    lines = []
    for why in (words("at_chance"), words("below_chance")):
        rows = (row for row in scores.to_dict("records") if chance(row) == why)
        names = list(dict.fromkeys(words("mute_reference", row) for row in rows))
        more = words("mute_references_more", n=len(names) - 3) if len(names) > 3 else ""
        if names:
            lines.append(words("mute_references", names="; ".join(names[:3]) + more, why=why))
    return lines


def _first_claim(conflict: str, table: pd.DataFrame) -> str:
    rows = table[(table["conflict"] == conflict) & (table["role"] == "student") & (table["tax"] >= MIN_TAX)]
    if rows.empty:
        return words("no_usable_setting", conflict=conflict, least=MIN_TAX)
    above = [verdict(row, "score_minus_even") for row in rows.to_dict("records")].count("above")
    result = words("first_claim_holds" if above == len(rows) else "first_claim_fails")
    return words("first_claim", conflict=conflict, above=above, n=len(rows), answer=result)
