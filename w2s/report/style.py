"""What figures and sentences share: a colour-blind-safe palette, axes, shapes, intervals, names, and saving."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from IPython.core.interactiveshell import InteractiveShell
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from w2s.files import write_atomic
from w2s.intervals import ends

PALETTE = sns.color_palette("colorblind")
COLOURS = dict(zip(("none", "explicit", "implicit"), PALETTE))
OTHERS = [PALETTE[4], PALETTE[9], "0.25", PALETTE[5], PALETTE[6]]  # of anything but a conflict
AREA_COLOURS = ["0.9", PALETTE[8], "0.72", "0.55"]  # yellow: where the supervisor is blind
MARKERS = "osD^v"
DOTTED = {"color": "black", "linestyle": ":", "linewidth": 1}  # a line to compare with, such as chance
NOTEBOOKS = ("01_data_conflict", "04_deception_analysis", "05_bootstrapping", "06_controls", "07_mitigations",
             "10_knowledge", "11_followups")  # fmt: skip
GREY, SMALL, LABEL = "0.45", 9, 10
SHORT = 40  # characters of a text that a table does not break


def new_axes(width: float, height: float, columns: int = 1, gap: float = 0.08, **more) -> Axes | np.ndarray:
    """Axes at fixed places; width and height in inches, gap in widths of one of them."""
    return plt.subplots(1, columns, figsize=(width, height), dpi=100, gridspec_kw={"wspace": gap}, **more)[1]


def finish(ax: Axes, xlabel: str, ylabel: str, columns: int = 0, title: str = "") -> Axes:
    """Labels in print size, no frame, and a title, or a legend of so many columns above, where it hides no data."""
    if columns:
        place = {"loc": "lower center", "bbox_to_anchor": (0.5, 1.0), "ncols": columns, "columnspacing": 1}
        ax.legend(fontsize=SMALL, frameon=False, **place)
    if title:
        ax.set_title(title, fontsize=LABEL)
    ax.set_xlabel(xlabel, fontsize=LABEL)
    ax.set_ylabel(ylabel, fontsize=LABEL)
    ax.tick_params(labelsize=SMALL)
    sns.despine(ax=ax)
    return ax


def look(k: int, **more) -> dict:
    """Colour and marker of the k-th line of a figure."""
    marker = MARKERS[(k + k // len(OTHERS)) % len(MARKERS)]
    return {"color": OTHERS[k % len(OTHERS)], "marker": marker, **more}


def spread(rows: pd.DataFrame, measure: str) -> np.ndarray:
    """Distances to the `ends` of a measure, (2, n), as errorbar takes them; nan draws none."""
    low, high = ends(rows, measure)
    return np.maximum([rows[measure] - low, high - rows[measure]], 0)


def points(ax: Axes, at: pd.Series, rows: pd.DataFrame, measure: str, across: bool = False, **more) -> None:
    """A measure of each row with its interval, upright over the places `at`, or across at these heights."""
    xy, reach = (rows[measure], at) if across else (at, rows[measure]), "xerr" if across else "yerr"
    ax.errorbar(*xy, **{reach: spread(rows, measure), "markersize": 5, "capsize": 2, **more})


def name_rows(ax: Axes, labels: list[str]) -> None:
    """Rows from the top down with their names, and a light grid across them."""
    ax.set_yticks(range(len(labels)), labels)
    ax.set_ylim(max(len(labels), 1) - 0.5, -0.5)
    ax.grid(axis="x", alpha=0.3)
    ax.locator_params(axis="x", nbins=6)


def strips(ax: Axes, table: pd.DataFrame, key: str, measure: str, apart: float, below: float = 0, **look) -> None:
    """A row for each value of `key`: a measure with its interval, one mark a conflict, `apart` from the next."""
    kinds, conflicts = list(table[key].unique()), list(table["conflict"].unique())
    for k, conflict in enumerate(conflicts):
        rows = table[table["conflict"] == conflict]
        at = rows[key].map(kinds.index) + apart * (k - (len(conflicts) - 1) / 2) - below
        mark = {"fmt": MARKERS[k], "color": COLOURS.get(conflict, GREY), "label": conflict_name(conflict)}
        points(ax, at, rows, measure, across=True, **mark | look)
    name_rows(ax, kinds)


def heat(ax: Axes, grid: pd.DataFrame, empty: np.ndarray = (), word: str = "", **more) -> None:
    """seaborn's heat map; cells that are `empty` (bool, as the grid) are grey and hatched, and may say a word."""
    shown = {"fmt": "", "annot_kws": {"fontsize": SMALL}, "xticklabels": True, "yticklabels": True, "cbar": False}
    sns.heatmap(grid, ax=ax, **shown | more)
    colours = ax.collections[0].get_facecolors().reshape(*grid.shape, 4)
    for text in ax.texts:  # seaborn writes white on middle tones, which is hard to read
        x, y = map(int, text.get_position())
        text.set_color("black" if sns.utils.relative_luminance(colours[y, x]) > 0.18 else "white")
    for y, x in np.argwhere(empty):
        ax.add_patch(Rectangle((x, y), 1, 1, fc="0.85", ec="0.6", hatch="///", linewidth=0))
        ax.text(x + 0.5, y + 0.5, word, ha="center", va="center", fontsize=SMALL, backgroundcolor="0.85")
    ax.tick_params("y", rotation=0)


def conflict_name(conflict: str, before: str = "") -> str:
    """A conflict in words: no conflict, explicit conflict, implicit conflict."""
    return before + ("no conflict" if conflict == "none" else f"{conflict} conflict")


def ranged(row: Mapping, name: str, digits: str = ".2f") -> str:
    """A measure and its interval, such as "0.52 [0.48, 0.56]"; a share of nothing is undefined."""
    if np.isnan(ends(row, name)[0]):
        return "undefined" if np.isnan(row[name]) else f"{row[name]:{digits}} (no interval)"
    return "{} [{}, {}]".format(*(format(number, digits) for number in (row[name], *ends(row, name))))


def tidy_tables() -> None:
    """Have a notebook show tables without a column of row numbers, and short texts, such as models, on one line."""
    if InteractiveShell.initialized():
        html = InteractiveShell.instance().display_formatter.formatters["text/html"]
        html.for_type(pd.DataFrame, _table_html)


def _table_html(table: pd.DataFrame) -> str:
    numbered = table.index.names == [None] and pd.api.types.is_integer_dtype(table.index)
    limits = {"max_rows": pd.get_option("display.max_rows"), "max_cols": pd.get_option("display.max_columns")}
    html = table.to_html(index=not numbered, notebook=True, show_dimensions="truncate", **limits)
    texts = table.select_dtypes(exclude=["number", "bool"])
    if not texts.map(lambda value: len(str(value)) > SHORT).to_numpy().any():
        html = html.replace(
            "<style scoped>", "<style scoped>\n    .dataframe td, .dataframe th { white-space: nowrap }", 1
        )
    return html


def n_seeds(n: int) -> str:
    """A number of seeds in words."""
    return "1 seed" if n == 1 else f"{n} seeds"


def count(pairs: pd.Series) -> str:
    """A number of pairs, or the smallest and the largest of several."""
    return " to ".join(str(n) for n in sorted({pairs.min(), pairs.max()}))


def save(figure: Figure | Axes | np.ndarray, folder: str | Path, name: str, table=None, caption="") -> list[Path]:
    """Write figures/<name>.png and .svg, and the table as `save_table` does; ValueError for no plain file name.

    Both pictures keep the caption, where report.html finds it, and are the same bytes again: no dates, fixed ids.
    """
    paths, figure = [], np.ravel(figure)[0].figure
    with plt.rc_context({"svg.hashsalt": "w2s", "svg.fonttype": "path"}):
        for kind, no_date in (("png", {"Software": None}), ("svg", {"Date": None, "Creator": None})):
            metadata, print_size = no_date | {"Description": caption or None}, {"dpi": 200, "bbox_inches": "tight"}
            draw = partial(figure.savefig, format=kind, metadata=metadata, facecolor="white", **print_size)
            paths.append(write_atomic(_path(folder, "figures", name, kind), draw))
    return paths if table is None else paths + save_table(table, folder, name)


def save_table(table: pd.DataFrame, folder: str | Path, name: str) -> list[Path]:
    """Write tables/<name>.csv and .parquet under `folder`; raises ValueError as `save`."""
    csv, parquet = (_path(folder, "tables", name, kind) for kind in ("csv", "parquet"))
    write_atomic(csv, lambda path: table.to_csv(path, index=False, lineterminator="\n"))
    return [csv, write_atomic(parquet, lambda path: table.to_parquet(path, index=False))]


def _path(folder: str | Path, part: str, name: str, kind: str) -> Path:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name):
        raise ValueError(f"name {name!r}: use letters, digits, '_', '-' and '.' alone")
    return Path(folder) / part / f"{name}.{kind}"


def read_table(folder: Path, name: str) -> pd.DataFrame:
    """A table of the study's folder; ValueError naming the notebook that writes it, where it is missing."""
    path = folder / "tables" / f"{name}.parquet"
    if not path.exists():
        notebook = next((n for n in NOTEBOOKS if n[:3] == name[:3]), "03_strong_training")
        raise ValueError(f"{path}: no such table; run notebook {notebook} first, or the whole study with w2s run")
    return pd.read_parquet(path)
