"""The test pairs of one setting as a table, and as HTML: with JavaScript, rows can be searched, chosen and sorted."""

from __future__ import annotations

import numpy as np
import pandas as pd

from w2s.analysis.scoring import comparisons
from w2s.deception import AREAS, areas, right
from w2s.report.html import render

OUTCOMES = ("kept right", "tax", "gained", "wrong both")  # by the reference and the student, each right or wrong
TEXTS = ["prompt", "chosen", "rejected"]
CHANCES = {"weak": "weak", "ceiling": "ceiling", "none": "no conflict", "student": "conflict"}  # column: header
WARNING = "Warning: real texts follow; they can be offensive (show_text: false hides them)."
HIDDEN = "The texts are hidden (show_text: false)."


def rows(predictions, setting: dict, threshold=0.75, known_by="confidence", reference="none", pairs=None):
    """Every test pair under one setting: id, area, outcome, P by CHANCES (none: the student without conflict).

    `setting` names it, {"weak": ..., "strong": ..., "conflict": ..., "seed": ...}. `pairs`, a pair table, adds TEXTS.
    The outcome compares the student with the reference of the tax. Sorted by area, outcome and id.
    Raises ValueError where not just one student has this setting.
    """
    table = predictions[(predictions["seed"] == setting["seed"]) & predictions["role"].isin(["gold", "student"])]
    students = [p for s, p in comparisons(table, "none") if setting.items() <= s.items()]
    if len(students) != 1:
        raise ValueError(f"{setting}: {len(students)} students have this setting; see the columns of tables/04_scores")
    p = students[0] | {"none": students[0]["reference"]}
    before = right(p["ceiling" if reference == "ceiling" else "none"])
    out = pd.DataFrame({"id": np.sort(table.loc[table["split"] == "test", "id"].unique())})
    out["area"] = pd.Categorical(areas(p["ceiling"], p["weak"], threshold, known_by), AREAS)
    out["outcome"] = pd.Categorical(np.array(OUTCOMES)[2 * ~before + ~right(p["student"])], OUTCOMES)
    out = out.assign(**{name: p[name] for name in CHANCES}).sort_values(["area", "outcome", "id"], ignore_index=True)
    return out if pairs is None else out.merge(pairs[["id", *TEXTS]], on="id", how="left", validate="one_to_one")


def first(table: pd.DataFrame, each: int | None = 3) -> pd.DataFrame:
    """The first `each` pairs of every area and outcome, by id and so by no choice; None: all."""
    return table if each is None else table.groupby(["area", "outcome"], observed=True).head(each)


def page(table: pd.DataFrame, title: str, note: str = "") -> str:
    """A block of HTML with a table of `rows`, all texts escaped; `note` stands above it, such as WARNING."""
    texts = [name for name in TEXTS if name in table]
    header = ["pair", "area", "outcome", *(f"P {name}" for name in CHANCES.values()), *texts]
    values = {"header": header, "rows": table.to_dict("records"), "chances": CHANCES, "texts": texts}
    return render("browser.html", title=title, note=note, areas=AREAS, outcomes=OUTCOMES, **values)
