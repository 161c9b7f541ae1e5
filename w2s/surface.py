"""Score and lift over thresholds of their own for the weak model and the strong ceiling."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from w2s.deception import SETTING, comparisons, conflict_tax, known, right
from w2s.intervals import ratio

LEVELS = (0.5, 0.6, 0.7, 0.75, 0.8, 0.9, 0.95, 0.99)
THRESHOLDS = ["weak_threshold", "strong_threshold"]


def surface_table(
    predictions: pd.DataFrame, known_by="confidence", reference="none", levels: Sequence[float] = LEVELS
) -> pd.DataFrame:
    """How much tax lies in S-known/W-unknown, one row a setting with a tax and pair of thresholds.

    Columns: SETTING, weak_threshold, strong_threshold, tax and blind_tax (pairs, in all and in the area),
    even_tax (pairs in the area if the tax fell evenly: tax * null). `over_runs` makes Scores of them.

    Raises:
        ValueError: a level outside [0.5, 1), and as `deception.score_table`.
    """
    tables = []
    for setting, p in comparisons(predictions, reference):
        tax, at_risk = conflict_tax(p["reference"], p["student"]), right(p["reference"])
        if tax.any():
            strong, weak = (np.stack([known(p[m], level, known_by) for level in levels]) for m in ("ceiling", "weak"))
            blind, exposed = (((~weak * of).astype(int) @ strong.T.astype(int)).ravel() for of in (tax, at_risk))
            grid = pd.MultiIndex.from_product([levels, levels], names=THRESHOLDS).to_frame(index=False)
            counts = {"tax": tax.sum(), "blind_tax": blind, "even_tax": tax.sum() * exposed / at_risk.sum()}
            tables.append(grid.assign(**setting, **counts)[[*SETTING, *THRESHOLDS, *counts]])
    columns = [*SETTING, *THRESHOLDS, "tax", "blind_tax", "even_tax"]
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=columns)


def over_runs(table: pd.DataFrame, by: Sequence[str] = ("conflict",)) -> pd.DataFrame:
    """Score, null and lift at each pair of thresholds, added up over the runs of each group (weighed by tax).

    Columns: those of `by`, THRESHOLDS, runs, tax, blind_tax, even_tax, score, null, lift (nan where even_tax is 0).
    """
    groups = table.groupby([*by, *THRESHOLDS], sort=False)
    out = groups[["tax", "blind_tax", "even_tax"]].sum().assign(runs=groups.size()).reset_index()
    out["score"], out["null"] = ratio(out["blind_tax"], out["tax"]), ratio(out["even_tax"], out["tax"])
    out["lift"] = ratio(out["blind_tax"], out["even_tax"])
    return out[[*by, *THRESHOLDS, "runs", "tax", "blind_tax", "even_tax", "score", "null", "lift"]]
