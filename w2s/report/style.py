"""What all figures share: palette, axes, legend, intervals; and saving, the same bytes every time.

Colours are seaborn's colour-blind-safe palette, text is 9 points or more.
"""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from w2s.files import write_atomic

PALETTE = sns.color_palette("colorblind")
COLOURS = {"none": PALETTE[0], "explicit": PALETTE[1], "implicit": PALETTE[2]}
MARKERS = "osD^v"
GREY, SMALL, LABEL = "0.45", 9, 10


def new_axes(width: float, height: float, columns: int = 1, gap: float = 0.08) -> Axes | np.ndarray:
    """Axes at fixed places; width and height in inches, gap in widths of one of them.

    What reaches beyond the figure is kept by `save`, and no layout engine moves it twice.
    """
    return plt.subplots(1, columns, figsize=(width, height), dpi=100, gridspec_kw={"wspace": gap})[1]


def finish(ax: Axes, xlabel: str, ylabel: str) -> Axes:
    """Axis labels, sizes for print, and no frame above and right."""
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
    """Distances to the interval's ends, (2, n), as errorbar takes them; nan draws none.

    The ends are the columns <measure>_low and <measure>_high, or low and high where there are none.
    """
    own = f"{measure}_low" in rows
    low, high = rows[f"{measure}_low" if own else "low"], rows[f"{measure}_high" if own else "high"]
    return np.maximum([rows[measure] - low, high - rows[measure]], 0)


def conflict_name(conflict: str, before: str = "") -> str:
    """A conflict in words: no conflict, explicit conflict, implicit conflict."""
    return before + ("no conflict" if conflict == "none" else f"{conflict} conflict")


def save(
    figure: Figure | Axes | np.ndarray,
    folder: str | Path,
    name: str,
    table: pd.DataFrame | None = None,
    caption: str = "",
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
            write = partial(figure.savefig, format=kind, metadata=metadata | described, **look)
            paths.append(write_atomic(Path(folder) / "figures" / f"{name}.{kind}", write))
    return paths if table is None else paths + save_table(table, folder, name)


def save_table(table: pd.DataFrame, folder: str | Path, name: str) -> list[Path]:
    """Write tables/<name>.csv and .parquet under `folder`, for a table without a figure.

    Raises:
        ValueError: a name that is not a plain file name.
    """
    _check_name(name)
    place = Path(folder) / "tables"
    return [
        write_atomic(place / f"{name}.csv", lambda p: table.to_csv(p, index=False, lineterminator="\n")),
        write_atomic(place / f"{name}.parquet", lambda p: table.to_parquet(p, index=False)),
    ]


def _check_name(name: str) -> None:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name):
        raise ValueError(f"name {name!r}: use letters, digits, '_', '-' and '.' alone")
