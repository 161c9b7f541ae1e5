"""Figures of the extension notebooks and of the follow-ups, on the tables that they save."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from w2s.analysis import knowledge
from w2s.deception import AREAS
from w2s.report import style
from w2s.report.sentences import MIN_TAX
from w2s.report.style import COLOURS, GREY, LABEL, MARKERS, PALETTE, SMALL, conflict_name, finish, new_axes, spread

WAYS = {"confidence": "confidence", "knowledge": "judged rightly", "sure_knowledge": "rightly, surely"}


def plot_controls(controls: pd.DataFrame, axes: Sequence[Axes] | None = None) -> np.ndarray:
    """Tax share and Score by kind of labels, one colour a conflict, with intervals; diamonds are the null.

    Rows of `pooled.pooled_table` by labels and conflict. A Score over fewer than MIN_TAX tax pairs is hollow: its
    interval is not to be believed.
    """
    axes = np.asarray(new_axes(8.6, 3.6, columns=2, gap=0.3) if axes is None else axes)
    kinds = list(controls["labels"].unique())
    for k, conflict in enumerate(["explicit", "implicit"]):
        rows = controls[controls["conflict"] == conflict]
        at = np.array([kinds.index(kind) for kind in rows["labels"]]) + 0.2 * k - 0.1
        axes[1].scatter(at, rows["null"], marker="D", facecolors="none", edgecolors=GREY, s=26)
        look = {"fmt": MARKERS[k], "color": COLOURS[conflict], "capsize": 3, "label": conflict_name(conflict)}
        for ax, measure in zip(axes, ("tax_share", "score"), strict=True):
            ax.errorbar(at, rows[measure], yerr=spread(rows, measure), **look)
        few = (rows["tax"] < MIN_TAX).to_numpy()
        axes[1].plot(at[few], rows["score"][few], MARKERS[k], mfc="white", mec=COLOURS[conflict], zorder=3)
    for ax in axes:
        ax.set_xticks(range(len(kinds)), kinds)
        ax.set_ylim(bottom=-0.03)
    finish(axes[0], "labels", f"conflict tax (share of {controls['pairs'].iloc[0]} test pairs)", 2)
    finish(axes[1], "labels", f"Deception Score\n(diamond: null; hollow: under {MIN_TAX} tax pairs)")
    return axes


def plot_strength(alphas: pd.DataFrame, shares=None, axes: Sequence[Axes] | None = None) -> np.ndarray:
    """Student accuracy against the strength of a conflict, one line a kind of labels, with intervals and chance.

    One panel for `alphas` (explicit conflict, column alpha) and one for `shares` (implicit conflict, column times:
    of the study's pairs of the conflict), where there are any: rows of `pooled.pooled_table`. Bands are the range of
    the seeds.
    """
    panels = [(alphas, "alpha", "weight of the explicit conflict, alpha")]
    if shares is not None and len(shares):
        panels.append((shares, "times", "pairs of the implicit conflict (study: 1)"))
    axes = np.atleast_1d(new_axes(4.4 * len(panels), 3.6, columns=len(panels), gap=0.12) if axes is None else axes)
    for ax, (table, column, label) in zip(axes, panels, strict=True):
        for k, (labels, rows) in enumerate(table.groupby("labels", sort=False)):
            look = style.look(k, capsize=3, label=f"{labels} labels")
            ax.errorbar(rows[column], rows["student_accuracy"], spread(rows, "student_accuracy"), **look)
            band = (rows["student_accuracy_min"], rows["student_accuracy_max"])
            ax.fill_between(rows[column], *band, color=PALETTE[k], alpha=0.15, linewidth=0)
        style.dotted(ax, across=True, label="chance")
        ax.set_ylim(-0.02, 1.02)
        finish(ax, label, "")
        ax.tick_params(labelleft=ax is axes[0])
    axes[0].set_ylabel(f"student accuracy (n = {alphas['pairs'].iloc[0]}; 95% interval)", fontsize=LABEL)
    style.legend(axes[0], 3)
    return axes


def plot_tradeoff(remedies: pd.DataFrame, axes: Sequence[Axes] | None = None) -> np.ndarray:
    """Accuracy on the conflicting goal against that on the target goal, one panel a conflict, one point a remedy.

    Columns: remedy, conflict, uses_gold, student_accuracy and conflicting with _low and _high, pairs,
    conflicting_pairs. Dotted lines mark the remedy "nothing"; hollow points use gold labels.
    """
    shown = remedies[remedies["conflict"] != "none"]
    conflicts, names = shown["conflict"].unique(), remedies["remedy"].unique()
    axes = np.atleast_1d(new_axes(4.4 * len(conflicts), 4.0, len(conflicts), gap=0.3) if axes is None else axes)
    for ax, conflict in zip(axes, conflicts, strict=True):
        rows = shown[shown["conflict"] == conflict].set_index("remedy")
        for k, name in enumerate(names):
            row, above = rows.loc[[name]], 2 + k / 100
            colour, gold = PALETTE[k % len(PALETTE)], bool(row["uses_gold"].iloc[0])
            x, y = row["student_accuracy"], row["conflicting"]
            errors = spread(row, "conflicting"), spread(row, "student_accuracy")
            ax.errorbar(x, y, *errors, fmt="none", color=colour, capsize=2, linewidth=1, alpha=0.7, zorder=above)
            look = {"marker": MARKERS[(k + k // len(PALETTE)) % len(MARKERS)], "label": name + " (gold)" * gold}
            look |= {"facecolors": "white" if gold else colour, "edgecolors": colour if gold else "white"}
            ax.scatter(x, y, s=48, linewidths=1.2 if gold else 0.6, zorder=above + 0.5, **look)
        for line, value in ((ax.axvline, "student_accuracy"), (ax.axhline, "conflicting")):
            line(rows.loc[names[0], value], color=GREY, linestyle=":", linewidth=1, zorder=1)
        ax.set_title(conflict_name(conflict), fontsize=LABEL)
        pairs, others = int(rows["pairs"].iloc[0]), int(rows["conflicting_pairs"].iloc[0])
        finish(ax, f"accuracy, target goal (n = {pairs})", f"accuracy, conflicting goal (n = {others})")
    axes[-1].legend(fontsize=SMALL, frameon=False, loc="center left", bbox_to_anchor=(1.02, 0.5))
    return axes


def plot_knowledge(cross: pd.DataFrame, conflicts: pd.DataFrame, settings: pd.DataFrame) -> np.ndarray:
    """Areas by confidence against areas by knowledge, and the lift by each way to know, two Axes.

    `cross` is a table of `knowledge.cross_table` (its pairs are added up over the rows), `conflicts` and `settings`
    are those of `knowledge.scores_by_knowledge` by conflict (with intervals) and by setting (dots).
    """
    left, right = axes = new_axes(11.0, 4.2, columns=2, gap=0.5)
    grid = cross.pivot_table(index="by_confidence", columns="by_knowledge", values="pairs", aggfunc="sum")
    grid = grid.loc[list(AREAS), list(knowledge.AREAS)].to_numpy() / grid.to_numpy().sum()
    left.imshow(grid, cmap="Blues", vmin=0, aspect="auto")
    for (row, column), share in np.ndenumerate(grid):
        style.write(left, column, row, f"{share:.1%}", color="white" if share > 0.6 * grid.max() else "black")
    left.set_xticks(range(4), [name.replace("/", "\n") for name in knowledge.AREAS])
    left.set_yticks(range(4), [name.replace("/", "\n") for name in AREAS])
    left.set_title(f"share of the test pairs (n = {conflicts['pairs'].max()}, mean over runs)", fontsize=LABEL)
    finish(left, "area by knowledge", "area by confidence")
    _strips(right, conflicts, settings, "known_by", "lift", WAYS)
    style.dotted(right, 1)
    finish(right, "lift: Score / even tax (dots: settings; 95% interval)", "known by")
    return axes


def plot_followups(blind: dict[str, tuple], shared: tuple[pd.DataFrame, pd.DataFrame]) -> np.ndarray:
    """Blind-spot errors by each confidence (the keys), and the correlation of errors with the teacher's, one Axes each.

    Pairs of tables of `followups`: by conflict (with intervals), and by setting (dots).
    """
    drawn = [(f"confidence: {way}", "share", "blind-spot errors, share", tables) for way, tables in blind.items()]
    drawn.append(("errors shared with the teacher", "correlation", "correlation of errors", shared))
    axes = new_axes(4.2 * len(drawn), 3.2, columns=len(drawn), gap=0.12)
    for ax, (title, name, what, tables) in zip(axes, drawn, strict=True):
        _strips(ax, *(_by_model(table, name) for table in tables), "model", name, {"ceiling": "strong ceiling"})
        finish(ax, f"{what}\n(n = {tables[0]['pairs'].max()} pairs; 95% interval;\ndots: settings)", "")
        ax.set_title(title, fontsize=LABEL)
        style.dotted(ax, 0)
        ax.locator_params(axis="x", nbins=5)
    for ax in axes[1:]:
        ax.set_yticklabels([])
    return axes


def _by_model(table: pd.DataFrame, name: str) -> pd.DataFrame:
    """One row a student, and the ceiling's once: model, conflict (none for the ceiling), <name> and its interval."""
    ends = ("", "_low", "_high")
    student, ceiling = (
        table.rename(columns={f"{name}_{model}{end}": name + end for end in ends}) for model in ("student", "ceiling")
    )
    ceiling = ceiling[ceiling["conflict"] == "none"].assign(model="ceiling", conflict="ceiling")
    student = student.assign(model=student["conflict"].map(conflict_name))
    columns = ["model", "conflict", *(name + end for end in ends)]
    return pd.concat([ceiling[columns], student[columns]])


def _strips(ax: Axes, pooled: pd.DataFrame, settings: pd.DataFrame, key: str, measure: str, names: dict) -> None:
    """One height a value of `key`: the settings as dots, and the pooled value with its interval on top."""
    kinds, conflicts = list(pooled[key].unique()), pooled["conflict"].unique()
    several = pooled.groupby(key)["conflict"].nunique().max() > 1
    for k, conflict in enumerate(conflicts):
        colour = COLOURS.get(conflict, GREY)
        shift = 0.28 * (k - (len(conflicts) - 1) / 2) if several else 0.0
        rows, dots = (table[table["conflict"] == conflict] for table in (pooled, settings))
        at, of_dots = (np.array([kinds.index(v) for v in t[key]], dtype=float) + shift for t in (rows, dots))
        ax.scatter(dots[measure], of_dots + 0.09, s=14, color=colour, alpha=0.45, linewidths=0)
        look = {"fmt": "D", "color": colour, "markersize": 5, "capsize": 3, "markeredgecolor": "black"}
        ax.errorbar(rows[measure], at - 0.05, xerr=spread(rows, measure), label=conflict_name(conflict), **look)
    style.name_rows(ax, [names.get(kind, kind) for kind in kinds])
    if several:
        style.legend(ax, len(conflicts))
