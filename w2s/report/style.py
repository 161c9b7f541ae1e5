"""What figures and sentences share: palette, axes, intervals, names; and saving, the same bytes every time.

Colours are seaborn's colour-blind-safe palette, text is 9 points or more.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from w2s.files import write_atomic

PALETTE = sns.color_palette("colorblind")
COLOURS = {"none": PALETTE[0], "explicit": PALETTE[1], "implicit": PALETTE[2]}
MARKERS = "osD^v"
GREY, SMALL, LABEL = "0.45", 9, 10


def new_axes(width: float, height: float, columns: int = 1, gap: float = 0.08) -> Axes | np.ndarray:
    """Axes at fixed places; width and height in inches, gap in widths of one of them."""
    return plt.subplots(1, columns, figsize=(width, height), dpi=100, gridspec_kw={"wspace": gap})[1]


def finish(ax: Axes, xlabel: str, ylabel: str, columns: int = 0) -> Axes:
    """Axis labels, sizes for print, no frame above and right, and a `legend` where it has columns."""
    if columns:
        legend(ax, columns)
    ax.set_xlabel(xlabel, fontsize=LABEL)
    ax.set_ylabel(ylabel, fontsize=LABEL)
    ax.tick_params(labelsize=SMALL)
    sns.despine(ax=ax)
    return ax


def legend(ax: Axes, columns: int) -> None:
    """A legend above the axes, where it hides no data and makes the figure no wider."""
    place = {"loc": "lower center", "bbox_to_anchor": (0.5, 1.0), "ncols": columns, "columnspacing": 1}
    ax.legend(fontsize=SMALL, frameon=False, **place)


def spread(rows: pd.DataFrame, measure: str) -> np.ndarray:
    """Distances to the `ends` of a measure, (2, n), as errorbar takes them; nan draws none."""
    low, high = ends(rows, measure)
    return np.maximum([rows[measure] - low, high - rows[measure]], 0)


def look(k: int, **more) -> dict:
    """Colour and marker of the k-th line of a figure."""
    return {"color": PALETTE[k % len(PALETTE)], "marker": MARKERS[k % len(MARKERS)], **more}


def dotted(ax: Axes, at: float = 0.5, across: bool = False, **more) -> None:
    """A dotted line to compare with, such as chance: upright, or across."""
    (ax.axhline if across else ax.axvline)(at, color="black", linestyle=":", linewidth=1, **more)


def conflict_name(conflict: str, before: str = "") -> str:
    """A conflict in words: no conflict, explicit conflict, implicit conflict."""
    return before + ("no conflict" if conflict == "none" else f"{conflict} conflict")


def ends(row: Mapping, name: str) -> tuple[float, float]:
    """A measure's interval: <name>_low and <name>_high of a row (or table), or low and high where it has none."""
    return (row[f"{name}_low"], row[f"{name}_high"]) if f"{name}_low" in row else (row["low"], row["high"])


def ranged(row: Mapping, name: str, digits: str = ".2f") -> str:
    """A measure and its interval, such as "0.52 [0.48, 0.56]"."""
    value, low, high = (format(number, digits) for number in (row[name], *ends(row, name)))
    return f"{value} [{low}, {high}]"


def verdict(row: Mapping, name: str, value: float, above: str, below: str, neither: str) -> str:
    """The words for an interval above a value, below it, or neither, as where it is not defined."""
    low, high = ends(row, name)
    return above if low > value else below if high < value else neither


def n_seeds(n: int) -> str:
    """A number of seeds in words."""
    return "1 seed" if n == 1 else f"{n} seeds"


def count(pairs: pd.Series) -> str:
    """A number of pairs, or the smallest and the largest of several."""
    return " to ".join(str(n) for n in sorted({pairs.min(), pairs.max()}))


def write(ax: Axes, x: float, y: float, text: str, **look) -> None:
    """Small text around a point."""
    ax.text(x, y, text, ha="center", va="center", fontsize=SMALL, **look)


def hatch(ax: Axes, x: float, y: float) -> None:
    """A cell of a heat map that has no value."""
    ax.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, fc="0.85", ec="0.6", hatch="///", linewidth=0))


def no_tax(ax: Axes) -> None:
    """Said in the middle of an empty figure."""
    ax.text(0.5, 0.5, "no tax", transform=ax.transAxes, ha="center", fontsize=LABEL)


def name_rows(ax: Axes, labels: list[str]) -> None:
    """Rows from the top down with their names, and a light grid across them."""
    ax.set_yticks(range(len(labels)), labels)
    ax.set_ylim(len(labels) - 0.5, -0.5)
    ax.grid(axis="x", alpha=0.3)


def stack(ax: Axes, shares: pd.DataFrame, colours: list, labels: list[str], least: float) -> None:
    """Stacked bars, one a row of `shares` and one colour a column, with the numbers of those above `least`."""
    left = np.zeros(len(shares))
    for colour, name in zip(colours, shares):
        style = {"color": colour, "edgecolor": "black", "linewidth": 0.5, "label": name}
        bars = ax.barh(range(len(shares)), shares[name], left=left, **style)
        texts = [f"{share:.2f}" if share > least else "" for share in shares[name]]
        ax.bar_label(bars, texts, label_type="center", fontsize=SMALL)
        left += shares[name].to_numpy()
    ax.set_yticks(range(len(shares)), labels)
    ax.set_xlim(0, 1)


def save(
    figure: Figure | Axes | np.ndarray, folder: str | Path, name: str, table=None, caption: str = ""
) -> list[Path]:
    """Write figures/<name>.png and .svg under `folder`, and the table as tables/<name>.csv and .parquet.

    The caption is kept inside both pictures, where report.html finds it. The same figure gives the
    same bytes: no dates, no versions, fixed ids in the SVG. The figure stays open.

    Raises:
        ValueError: a name that is not a plain file name.
    """
    _check_name(name)
    if not isinstance(figure, Figure):
        figure = np.ravel(figure)[0].figure
    described = {"Description": caption} if caption else {}
    no_date = {"png": {"Software": None}, "svg": {"Date": None, "Creator": None}}
    paths = []
    with plt.rc_context({"svg.hashsalt": "w2s", "svg.fonttype": "path"}):
        for kind, metadata in no_date.items():
            look = {"bbox_inches": "tight", "facecolor": "white", "dpi": 200}
            draw = partial(figure.savefig, format=kind, metadata=metadata | described, **look)
            paths.append(write_atomic(Path(folder) / "figures" / f"{name}.{kind}", draw))
    return paths if table is None else paths + save_table(table, folder, name)


def save_table(table: pd.DataFrame, folder: str | Path, name: str) -> list[Path]:
    """Write tables/<name>.csv and .parquet under `folder`; raises ValueError as `save`."""
    _check_name(name)
    place = Path(folder) / "tables"
    return [
        write_atomic(place / f"{name}.csv", lambda p: table.to_csv(p, index=False, lineterminator="\n")),
        write_atomic(place / f"{name}.parquet", lambda p: table.to_parquet(p, index=False)),
    ]


def _check_name(name: str) -> None:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name):
        raise ValueError(f"name {name!r}: use letters, digits, '_', '-' and '.' alone")
