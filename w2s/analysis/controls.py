"""Controls of notebook 06: what is counted of them, and differences between two of them.

A control is a student against a reference, in the areas of a weak model and a strong ceiling. All are
scored on the same test pairs, so that differences are taken inside a bootstrap sample (`pooled.difference`).
"""

from __future__ import annotations

import pandas as pd

from w2s.analysis.pooled import POOLED, Counts, difference, stack
from w2s.analysis.scoring import indicators

PARTS = ["weak", "ceiling", "reference", "student"]


def count_controls(rows: pd.DataFrame, chances: pd.DataFrame, threshold=0.75, known_by="confidence") -> Counts:
    """What is counted of every test pair for each control; the start of `pooled.pooled_table` and `tax_difference`.

    rows: one a control, with the columns of PARTS (names of runs), seed, and those that tell controls apart.
    chances: P of the truly preferred response, one column a run, one row a pair.

    Raises:
        ValueError: no rows, a run without a column in `chances`, or one that was not scored on every pair.
    """
    if rows.empty:
        raise ValueError("rows: no control to count; give one row or more")
    for run in pd.unique(rows[PARTS].to_numpy().ravel()):
        if run not in chances or chances[run].isna().any():
            raise ValueError(f"run {run}: it lacks predictions of test pairs; score all runs on one split")
    settings = rows.drop(columns=PARTS)
    missing = {column: "" for column in POOLED if column not in settings}
    settings = settings.assign(**missing | {"role": "student"}).to_dict("records")
    probabilities = [{part: chances[row[part]].to_numpy() for part in PARTS} for row in rows.to_dict("records")]
    return stack(zip(settings, (indicators(p, threshold, known_by) for p in probabilities), strict=True))


def tax_difference(counts: Counts, first: dict, second: dict, bootstrap: int = 2000) -> dict:
    """The tax share of one control less that of another: estimate, low, high (95%), seeds.

    Both are named by columns of the settings, such as {"labels": "weak", "conflict": "explicit"}. Same pairs and
    seeds in every bootstrap sample of both. Raises as `pooled.difference`.
    """
    table = difference(counts, first, second, bootstrap).set_index("difference")
    return table.loc["tax_share", ["estimate", "low", "high"]].to_dict() | {"seeds": int(table["seeds"].iloc[0])}
