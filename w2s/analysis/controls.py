"""Controls of notebook 06: students against a reference, in the areas of a weak model and a strong ceiling."""

from __future__ import annotations

import pandas as pd

from w2s.analysis.pooled import POOLED, Counts, difference, stack
from w2s.analysis.scoring import indicators

PARTS = ["weak", "ceiling", "reference", "student"]


def count_controls(rows: pd.DataFrame, chances: pd.DataFrame, threshold=0.75, known_by="confidence") -> Counts:
    """What is counted of every test pair for each control; the start of `pooled.pooled_table` and `tax_difference`.

    `rows`, one a control: PARTS (names of runs), seed, and what tells controls apart. `chances`: P of the truly
    preferred response, one column a run, one row a pair. ValueError names what is missing.
    """
    if rows.empty:
        raise ValueError("rows: no control to count; give one row or more")
    for run in pd.unique(rows[PARTS].to_numpy().ravel()):
        if run not in chances or chances[run].isna().any():
            raise ValueError(f"run {run}: it lacks predictions of test pairs; score all runs on one split")
    settings = rows.drop(columns=PARTS)
    settings = settings.assign(**{name: "" for name in POOLED if name not in settings} | {"role": "student"})
    each = ({part: chances[row[part]].to_numpy() for part in PARTS} for row in rows.to_dict("records"))
    return stack(zip(settings.to_dict("records"), (indicators(p, threshold, known_by) for p in each)))


def tax_difference(counts: Counts, first: dict, second: dict, bootstrap: int = 2000) -> dict:
    """The tax share of one control less that of another as in `pooled.difference`: estimate, low, high, seeds."""
    row = difference(counts, first, second, bootstrap).set_index("difference").loc["tax_share"]
    return row[["estimate", "low", "high"]].to_dict() | {"seeds": int(row["seeds"])}
