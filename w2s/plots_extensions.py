"""Figures of the extension notebooks, on the tables that they save."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from w2s.figures import COLOURS, GREY, LABEL, MARKERS, PALETTE, SMALL, finish, legend, named, new_axes, spread


def plot_controls(controls: pd.DataFrame, axes: Sequence[Axes] | None = None) -> np.ndarray:
    """Tax share and Score by kind of labels, one colour a conflict, with intervals; diamonds are the null.

    Columns: labels, conflict, seed, tax_share, score and null, with _low and _high of the first two.
    """
    axes = np.asarray(new_axes(8.6, 3.6, columns=2, gap=0.3) if axes is None else axes)
    kinds = list(dict.fromkeys(controls["labels"]))
    for ax, measure in zip(axes, ("tax_share", "score"), strict=True):
        for k, conflict in enumerate(["explicit", "implicit"]):
            rows = controls[controls["conflict"] == conflict]
            at = np.array([kinds.index(kind) for kind in rows["labels"]]) + 0.2 * k - 0.1
            if measure == "score":
                ax.scatter(at, rows["null"], marker="D", facecolors="none", edgecolors=GREY, s=26)
            errors = spread(rows, measure)
            style = {"fmt": MARKERS[k], "color": COLOURS[conflict], "capsize": 3, "label": named(conflict)}
            ax.errorbar(at, rows[measure], yerr=errors, **style)
        ax.set_xticks(range(len(kinds)), kinds)
        ax.set_ylim(bottom=0)
    legend(axes[0], 2)
    pairs = int(controls["pairs"].iloc[0])
    finish(axes[0], "labels", f"conflict tax (share of {pairs} test pairs)")
    finish(axes[1], "labels", "Deception Score (diamond: null)")
    return axes


def plot_strength(strengths: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Student accuracy against alpha, one line a kind of labels and seed, with intervals and the chance line.

    Columns: labels, alpha, seed, student_accuracy with _low and _high, pairs.
    """
    ax = ax or new_axes(5.6, 3.6)
    for k, ((labels, seed), rows) in enumerate(strengths.groupby(["labels", "seed"], sort=False)):
        name = f"{labels} labels" + (f", seed {seed}" if strengths["seed"].nunique() > 1 else "")
        style = {"label": name, "color": PALETTE[k], "marker": MARKERS[k % 5], "capsize": 3}
        ax.errorbar(rows["alpha"], rows["student_accuracy"], spread(rows, "student_accuracy"), **style)
    ax.axhline(0.5, color="black", linestyle=":", linewidth=1, label="chance")
    legend(ax, 3)
    pairs = int(strengths["pairs"].iloc[0])
    return finish(ax, "weight of the explicit conflict, alpha", f"student accuracy (n = {pairs}; 95% interval)")


def plot_tradeoff(remedies: pd.DataFrame, axes: Sequence[Axes] | None = None) -> np.ndarray:
    """Accuracy on the conflicting goal against that on the target goal, one panel a conflict, one point a remedy.

    Columns: remedy, conflict, uses_gold, student_accuracy and conflicting with _low and _high, pairs,
    conflicting_pairs. Dotted lines mark the remedy "nothing"; hollow points use gold labels.
    """
    shown = remedies[remedies["conflict"] != "none"]
    conflicts, names = shown["conflict"].unique(), list(dict.fromkeys(remedies["remedy"]))
    if axes is None:
        axes = new_axes(4.4 * len(conflicts), 4.0, columns=len(conflicts), gap=0.3)
    for ax, conflict in zip(np.ravel(axes), conflicts, strict=True):
        rows = shown[shown["conflict"] == conflict].set_index("remedy")
        for k, name in enumerate(names):
            row, above = rows.loc[[name]], 2 + k / 100
            colour, gold = PALETTE[k % len(PALETTE)], bool(row["uses_gold"].iloc[0])
            x, y = row["student_accuracy"], row["conflicting"]
            errors = spread(row, "conflicting"), spread(row, "student_accuracy")
            ax.errorbar(x, y, *errors, fmt="none", color=colour, capsize=2, linewidth=1, alpha=0.7, zorder=above)
            style = {"marker": MARKERS[(k + k // len(PALETTE)) % len(MARKERS)], "label": name + " (gold)" * gold}
            style |= {"facecolors": "white" if gold else colour, "edgecolors": colour if gold else "white"}
            ax.scatter(x, y, s=48, linewidths=1.2 if gold else 0.6, zorder=above + 0.5, **style)
        for line, value in ((ax.axvline, "student_accuracy"), (ax.axhline, "conflicting")):
            line(rows.loc[names[0], value], color=GREY, linestyle=":", linewidth=1, zorder=1)
        ax.set_title(named(conflict), fontsize=LABEL)
        pairs, others = int(rows["pairs"].iloc[0]), int(rows["conflicting_pairs"].iloc[0])
        finish(ax, f"accuracy, target goal (n = {pairs})", f"accuracy, conflicting goal (n = {others})")
    place = {"loc": "center left", "bbox_to_anchor": (1.02, 0.5)}
    np.ravel(axes)[-1].legend(fontsize=SMALL, frameon=False, **place)
    return np.atleast_1d(axes)
