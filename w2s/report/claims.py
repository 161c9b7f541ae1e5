"""The paper's three claims, and what a finished study says of each: one row a claim and conflict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd

from w2s.analysis.scoring import MIN_TAX, ceilings_apart, verdict
from w2s.intervals import ends, with_ends
from w2s.report.sentences import words
from w2s.report.style import ranged, read_table

CLAIMS = ("loss", "gap", "bootstrapping")
WORDS = {"above": "supported", "below": "not supported", "neither": "unclear", "none": "no statement"}
# By twins in one seed: where nothing happens, one interval in five leaves out 0, as it knows of no other training.
ONCE = WORDS | {"above": "seen once", "below": "not seen"}
MEASURES = ("score", "score_minus_even")  # the paper's, and what there is beyond an even tax
COLUMNS = ["claim", "conflict", "paper", "beyond_even", "twins", "sentence"]


def claim_table(folder: Path, asked: Sequence[str] = CLAIMS) -> pd.DataFrame:
    """The claims by the tables of a study's folder, columns COLUMNS: three verdicts of one or two words, a sentence.

    asked: without "bootstrapping" the tables of notebook 05 need not be there.

    paper: the sign of the Score, of its slope over the capability gap, of what bootstrapping takes from it;
    beyond_even: the same of the Score minus its even share; twins: of the twin contrast. No statement where no ceiling
    can be told from its weak model, or the tax is tiny. ValueError: a table lacks.
    """
    pooled = read_table(folder, "04_conflicts").query("students == 'all settings' and conflict != 'none'")
    twins, measured = read_table(folder, "04_claims"), {}
    for row, name in product(pooled.to_dict("records"), MEASURES):
        measured["loss", row["conflict"], name] = _value(row, name)
    for row in read_table(folder, "04_slopes").to_dict("records"):
        measured["gap", row["conflict"], row["measure"]] = _value(row, "slope", 0.1)
    if "bootstrapping" in asked:
        twins = pd.concat([twins, read_table(folder, "05_claims")])
        for row in read_table(folder, "05_bootstrapping").to_dict("records"):
            measured["bootstrapping", row["conflict"], row["difference"]] = _value(row, "estimate")
    of_twins = {(row["claim"], row["conflict"]): row for row in twins.to_dict("records")}
    enough, rows = pooled.set_index("conflict")["tax"] >= MIN_TAX, []
    enough &= ceilings_apart(read_table(folder, "04_scores"))
    for conflict, claim in product(pooled["conflict"], asked):
        values = {name: measured.get((claim, conflict, name), {}) for name in MEASURES}
        verdicts = [WORDS[_verdict(value if enough[conflict] else {})] for value in values.values()]
        twin = of_twins.get((claim, conflict), {})
        by_twins = (ONCE if twin.get("seeds") == 1 else WORDS)[_verdict(_value(twin, "estimate"))]
        numbers = {name: ranged(value, "value") if value else words("no_number") for name, value in values.items()}
        rows.append((claim, conflict, *verdicts, by_twins, words(f"claim_of_{claim}", **numbers)))
    return pd.DataFrame(rows, columns=COLUMNS)


def _value(row: Mapping, measure: str, unit: float = 1.0) -> dict[str, float]:
    """A measure with its interval as "value", in so many units; nothing where it is not defined."""
    if np.isnan(row.get(measure, np.nan)):
        return {}
    return dict(zip(with_ends("value"), unit * np.array([row[measure], *ends(row, measure)])))


def _verdict(value: Mapping) -> str:
    return verdict(value, "value") if value else "none"
