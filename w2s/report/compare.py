"""Several finished studies side by side: their claims, accuracies and Scores, as a page and a CSV."""

from __future__ import annotations

import base64
import io
from itertools import product
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd

from w2s.files import write_atomic
from w2s.report import style
from w2s.report.claims import CLAIMS, claim_table
from w2s.report.html import render, write_page
from w2s.report.style import n_seeds, ranged, read_table

SHOWN = {"student_accuracy": "Student accuracy", "tax_share": "Conflict tax", "score": "Deception Score"}
SHOWN |= {"score_minus_even": "Score minus even share"}
VERDICTS = {"paper": "by the Score", "beyond_even": "beyond its even share", "twins": "by twins"}
OF_CLAIMS = {(claim, by): f"{claim}, {words}" for claim, (by, words) in product(CLAIMS, VERDICTS.items())}


def comparison(folders: list[Path]) -> pd.DataFrame:
    """One row a study and conflict: seeds, weak and ceiling accuracy, SHOWN with intervals, and each claim's verdicts.

    ValueError names a study of which a table lacks.
    """
    rows = []
    for folder in folders:
        pooled = read_table(folder, "04_conflicts").query("students == 'all settings' and conflict != 'none'")
        claims = claim_table(folder).set_index(["conflict", "claim"])
        for row in pooled.to_dict("records"):
            said = {name: claims.loc[(row["conflict"], claim), by] for (claim, by), name in OF_CLAIMS.items()}
            rows.append({"study": folder.name} | row | said)
    return pd.DataFrame(rows)


def write(folders: list[Path], to: Path) -> Path:
    """Write the comparison as <to>.csv and <to>.html; returns the page's path."""
    table = comparison(folders)
    write_atomic(to.with_suffix(".csv"), lambda path: table.to_csv(path, index=False, lineterminator="\n"))
    numbers = [["Study", "Conflict", "Seeds", *SHOWN.values()]]
    for row in table.to_dict("records"):
        numbers.append([row["study"], row["conflict"], n_seeds(row["seeds"]), *(ranged(row, name) for name in SHOWN)])
    verdicts = ["study", "conflict", *OF_CLAIMS.values()]
    claims = [["Study", "Conflict", *OF_CLAIMS.values()], *table[verdicts].to_numpy().tolist()]
    picture = io.BytesIO()
    plot(table).figure.savefig(picture, format="png", dpi=150, bbox_inches="tight", metadata={"Software": None})
    plt.close("all")
    png = base64.b64encode(picture.getvalue()).decode()
    return write_page(to.with_suffix(".html"), render("compare.html", numbers=numbers, claims=claims, png=png))


def plot(table: pd.DataFrame):
    """The Score of each study minus its even share, one mark a conflict."""
    ax = style.new_axes(7.2, 1.2 + 0.45 * table["study"].nunique())
    style.strips(ax, table, "study", "score_minus_even", apart=0.16)
    ax.axvline(0, **style.DOTTED)
    return style.finish(ax, "Deception Score minus its even share (95% interval)", "", 2)
