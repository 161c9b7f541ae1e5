"""The paper's three claims, and what a finished study says of each: one row a claim and conflict."""

from __future__ import annotations

from collections.abc import Sequence
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
    names = [name for name in ("04_claims", "05_claims") if name < "05" or "bootstrapping" in asked]
    conflicts, slopes = read_table(folder, "04_conflicts"), read_table(folder, "04_slopes")
    overall = read_table(folder, "05_bootstrapping") if "bootstrapping" in asked else slopes.head(0)
    twins = pd.concat([read_table(folder, name) for name in names])
    pooled = conflicts[conflicts["students"] == "all settings"].set_index("conflict")
    rows, apart = [], ceilings_apart(read_table(folder, "04_scores"))
    for conflict in (c for c in pooled.index if c != "none"):
        enough = apart and pooled.loc[conflict, "tax"] >= MIN_TAX
        by_twins = {row["claim"]: row for row in twins[twins["conflict"] == conflict].to_dict("records")}
        of_claims = {
            "loss": {name: _ends(pooled.loc[conflict], name) for name in MEASURES},
            "gap": {row["measure"]: _ends(row, "slope", 0.1) for row in _of(slopes, conflict)},
            "bootstrapping": {row["difference"]: _ends(row, "estimate") for row in _of(overall, conflict)},
        }
        for claim in asked:
            measured = {name: of_claims[claim].get(name, {}) for name in MEASURES}
            verdicts = [_verdict(row if enough else {}) for row in measured.values()]
            twin = by_twins.get(claim, {})
            said = ONCE if twin.get("seeds") == 1 else WORDS
            verdicts.append(_verdict(_ends(twin, "estimate") if twin else {}, said))
            numbers = {name: ranged(row, "value") if row else words("no_number") for name, row in measured.items()}
            rows.append((claim, conflict, *verdicts, words(f"claim_of_{claim}", **numbers)))
    return pd.DataFrame(rows, columns=COLUMNS)


def _verdict(row: dict, said=WORDS) -> str:
    return said[verdict(row, "value") if row else "none"]


def _of(table: pd.DataFrame, conflict: str) -> list[dict]:
    return table[table["conflict"] == conflict].to_dict("records")


def _ends(row, measure: str, unit: float = 1.0) -> dict[str, float]:
    """A measure with its interval as "value", in so many units; nothing where it is not defined."""
    numbers = unit * np.array([row[measure], *ends(row, measure)])
    return {} if np.isnan(numbers[0]) else dict(zip(with_ends("value"), numbers))
