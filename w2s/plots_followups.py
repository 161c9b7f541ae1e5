"""Figures of the follow-up sections of notebook 04, on the tables of `w2s.knowledge` and `w2s.followups`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from w2s import knowledge
from w2s.deception import AREAS
from w2s.figures import COLOURS, GREY, LABEL, SMALL, finish, legend, named, new_axes, spread

WAYS = {"confidence": "confidence", "knowledge": "judged rightly", "sure_knowledge": "rightly, surely"}


def plot_knowledge(
    cross: pd.DataFrame, conflicts: pd.DataFrame, settings: pd.DataFrame, axes: Sequence[Axes] | None = None
) -> np.ndarray:
    """Areas by confidence against areas by knowledge, and the lift by each way to know, two Axes.

    `cross` is a table of `knowledge.cross_table` (its pairs are added up over the rows), `conflicts` and `settings`
    are those of `knowledge.score_table` by conflict (with intervals) and by setting (dots).
    """
    axes = np.asarray(new_axes(11.0, 4.2, columns=2, gap=0.5) if axes is None else axes)
    grid = cross.pivot_table(index="by_confidence", columns="by_knowledge", values="pairs", aggfunc="sum")
    grid = grid.loc[list(AREAS), list(knowledge.AREAS)] / grid.to_numpy().sum()
    axes[0].imshow(grid, cmap="Blues", vmin=0, aspect="auto")
    for (row, column), share in np.ndenumerate(grid.to_numpy()):
        colour = "white" if share > 0.6 * grid.to_numpy().max() else "black"
        axes[0].text(column, row, f"{share:.1%}", ha="center", va="center", fontsize=SMALL, color=colour)
    axes[0].set_xticks(range(4), [name.replace("/", "\n") for name in grid.columns])
    axes[0].set_yticks(range(4), [name.replace("/", "\n") for name in grid.index])
    finish(axes[0], "area by knowledge", "area by confidence")
    axes[0].set_title(f"share of the test pairs (n = {conflicts['pairs'].max()}, mean over runs)", fontsize=LABEL)
    _strips(axes[1], conflicts, settings, "known_by", "lift", WAYS)
    axes[1].axvline(1, color="black", linestyle=":", linewidth=1)
    finish(axes[1], "lift: Score / even tax (dots: settings; 95% interval)", "known by")
    return axes


def plot_followups(
    blind: dict[str, tuple[pd.DataFrame, pd.DataFrame]], shared: tuple[pd.DataFrame, pd.DataFrame]
) -> np.ndarray:
    """Blind-spot errors by each confidence (the keys), and the correlation of errors with the teacher's, one Axes each.

    Pairs of tables of `followups`: by conflict (with intervals), and by setting (dots).
    """
    drawn = [(f"confidence: {way}", "share", tables) for way, tables in blind.items()]
    drawn.append(("errors shared with the teacher", "correlation", shared))
    axes = new_axes(4.2 * len(drawn), 3.2, columns=len(drawn), gap=0.12)
    for ax, (title, name, tables) in zip(axes, drawn, strict=True):
        _strips(ax, *(_by_model(table, name) for table in tables), "model", name, {"ceiling": "strong ceiling"})
        what = "correlation of errors" if name == "correlation" else "blind-spot errors, share"
        finish(ax, f"{what}\n(n = {tables[0]['pairs'].max()} pairs; 95% interval;\ndots: settings)", "")
        ax.set_title(title, fontsize=LABEL)
        ax.axvline(0, color="black", linestyle=":", linewidth=1)
        ax.locator_params(axis="x", nbins=5)
    for ax in axes[1:]:
        ax.set_yticklabels([])
    return axes


def _by_model(table: pd.DataFrame, name: str) -> pd.DataFrame:
    """One row a student, and the ceiling's once: model, conflict (none for the ceiling), <name> and its interval."""
    ends = ("", "_low", "_high")
    student = table.rename(columns={f"{name}_student{end}": name + end for end in ends})
    student = student.assign(model=student["conflict"].map(named))
    ceiling = table[table["conflict"] == "none"].rename(columns={f"{name}_ceiling{end}": name + end for end in ends})
    columns = ["model", "conflict", *(name + end for end in ends)]
    return pd.concat([ceiling.assign(model="ceiling", conflict="ceiling")[columns], student[columns]])


def _strips(ax: Axes, pooled: pd.DataFrame, settings: pd.DataFrame, key: str, measure: str, names: dict) -> None:
    """One height a value of `key`: the settings as dots, and the pooled value with its interval on top."""
    kinds = list(dict.fromkeys(pooled[key]))
    conflicts = list(dict.fromkeys(pooled["conflict"]))
    several = pooled.groupby(key)["conflict"].nunique().max() > 1
    for k, conflict in enumerate(conflicts):
        colour = COLOURS.get(conflict, GREY)
        shift = 0.28 * (k - (len(conflicts) - 1) / 2) if several else 0.0
        rows, dots = (table[table["conflict"] == conflict] for table in (pooled, settings))
        at, of_dots = (np.array([kinds.index(v) for v in t[key]], dtype=float) + shift for t in (rows, dots))
        ax.scatter(dots[measure], of_dots + 0.09, s=14, color=colour, alpha=0.45, linewidths=0)
        style = {"fmt": "D", "color": colour, "markersize": 5, "capsize": 3, "markeredgecolor": "black"}
        ax.errorbar(rows[measure], at - 0.05, xerr=spread(rows, measure), label=named(conflict), **style)
    ax.set_yticks(range(len(kinds)), [names.get(kind, kind) for kind in kinds])
    ax.set_ylim(len(kinds) - 0.5, -0.5)
    ax.grid(axis="x", alpha=0.3)
    if several:
        legend(ax, len(conflicts))
