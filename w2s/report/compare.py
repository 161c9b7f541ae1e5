"""Several finished studies side by side: their claims, accuracies and Scores, as a page and a CSV."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd

from w2s.files import write_atomic
from w2s.report import style
from w2s.report.claims import claim_table
from w2s.report.html import render
from w2s.report.style import COLOURS, DOTTED, conflict_name, finish, n_seeds, points, ranged, read_table

SHOWN = {"student_accuracy": "Student accuracy", "tax_share": "Conflict tax", "score": "Deception Score"}
SHOWN |= {"score_minus_even": "Score minus even share"}
VERDICTS = {"paper": "by the Score", "beyond_even": "beyond its even share", "twins": "by twins"}


def comparison(folders: list[Path]) -> pd.DataFrame:
    """One row a study and conflict: seeds, weak and ceiling accuracy, SHOWN with intervals, and each claim's verdicts.

    ValueError names a study of which a table lacks.
    """
    rows = []
    for folder in folders:
        pooled = read_table(folder, "04_conflicts")
        claims = claim_table(folder).set_index(["conflict", "claim"])
        for row in pooled[(pooled["students"] == "all settings") & (pooled["conflict"] != "none")].to_dict("records"):
            verdicts = {
                f"{claim}, {words}": claims.loc[(row["conflict"], claim), column]
                for claim in ("loss", "gap", "bootstrapping")
                for column, words in VERDICTS.items()
            }
            rows.append({"study": folder.name} | row | verdicts)
    return pd.DataFrame(rows)


def write(folders: list[Path], to: Path) -> Path:
    """Write the comparison as <to>.csv and <to>.html; returns the page's path."""
    table = comparison(folders)
    write_atomic(to.with_suffix(".csv"), lambda path: table.to_csv(path, index=False, lineterminator="\n"))
    head = ["Study", "Conflict", "Seeds", *SHOWN.values()]
    numbers = [head] + [
        [row["study"], row["conflict"], n_seeds(row["seeds"]), *(ranged(row, name) for name in SHOWN)]
        for row in table.to_dict("records")
    ]
    verdicts = [name for name in table if name.endswith(tuple(VERDICTS.values()))]
    claims = [["Study", "Conflict", *verdicts], *table[["study", "conflict", *verdicts]].to_numpy().tolist()]
    picture = io.BytesIO()
    plot(table).figure.savefig(picture, format="png", dpi=150, bbox_inches="tight", metadata={"Software": None})
    plt.close("all")
    page = render("compare.html", numbers=numbers, claims=claims, png=base64.b64encode(picture.getvalue()).decode())
    return write_atomic(to.with_suffix(".html"), lambda path: path.write_text(page, encoding="utf-8", newline="\n"))


def plot(table: pd.DataFrame):
    """The Score of each study minus its even share, one mark a conflict."""
    studies = list(dict.fromkeys(table["study"]))
    ax = style.new_axes(7.2, 1.2 + 0.45 * len(studies))
    for k, (conflict, rows) in enumerate(table.groupby("conflict", sort=False)):
        at = rows["study"].map(studies.index) + 0.16 * k - 0.08
        mark = {"fmt": style.MARKERS[k], "color": COLOURS[conflict], "label": conflict_name(conflict)}
        points(ax, at, rows, "score_minus_even", across=True, **mark)
    ax.axvline(0, **DOTTED)
    style.name_rows(ax, studies)
    return finish(ax, "Deception Score minus its even share (95% interval)", "", 2)
