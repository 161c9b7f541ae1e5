"""Figures of the extension notebooks and of the follow-ups, on the tables that they save."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from w2s.analysis import knowledge
from w2s.analysis.scoring import MIN_TAX
from w2s.deception import AREAS
from w2s.report import style
from w2s.report.plots import ON_LINES
from w2s.report.style import COLOURS, DOTTED, GREY, MARKERS, conflict_name, finish, new_axes, points

WAYS = {"confidence": "confidence", "knowledge": "judged rightly", "sure_knowledge": "rightly, surely"}
YARDSTICKS = {"score": "Deception Score\n(diamond: even share)", "lift": "lift"}
YARDSTICKS |= {"odds_ratio": "odds ratio within\nequal sureness", "contrast": "twin contrast"}


def plot_yardsticks(table: pd.DataFrame) -> np.ndarray:
    """Each yardstick of a `yardsticks.yardstick_table`, one Axes each; no twin contrast where there are no twins.

    Dotted: what no deception would give, if the yardstick were right. Black are the students whose answer is known.
    """
    names = list(table["conflict"])
    shown = {name: label for name, label in YARDSTICKS.items() if name != "contrast" or table[name].notna().any()}
    axes = new_axes(11.0, 1.2 + 0.33 * len(names), columns=len(shown), gap=0.1, sharey=True)
    for ax, (measure, label) in zip(axes, shown.items(), strict=True):
        for k, name in enumerate(names):
            points(ax, [k], table.iloc[[k]], measure, across=True, fmt="o", color=COLOURS.get(name, "black"))
        if measure == "score":
            ax.scatter(table["even_share"], range(len(names)), marker="D", facecolors="none", edgecolors=GREY, s=26)
        else:
            ax.axvline(0 if measure == "contrast" else 1, **DOTTED)
        style.name_rows(ax, names)
        finish(ax, label, "")
    axes[2].set_xscale("log", base=2)
    axes[2].xaxis.set_major_formatter("{x:g}")
    return axes


def plot_controls(controls: pd.DataFrame) -> np.ndarray:
    """Tax share and Score with intervals, of a `pooled.pooled_table` by labels and conflict; diamonds: even share.

    A Score over fewer than MIN_TAX tax pairs is hollow: its interval is not to be believed.
    """
    axes = new_axes(8.6, 3.6, columns=2, gap=0.3)
    kinds = list(controls["labels"].unique())
    for k, conflict in enumerate(["explicit", "implicit"]):
        rows = controls[controls["conflict"] == conflict]
        at, few = rows["labels"].map(kinds.index) + 0.2 * k - 0.1, rows["tax"] < MIN_TAX
        axes[1].scatter(at, rows["even_share"], marker="D", facecolors="none", edgecolors=GREY, s=26)
        for ax, measure in zip(axes, ("tax_share", "score"), strict=True):
            points(ax, at, rows, measure, fmt=MARKERS[k], color=COLOURS[conflict], label=conflict_name(conflict))
        axes[1].plot(at[few], rows["score"][few], MARKERS[k], mfc="white", mec=COLOURS[conflict], zorder=3)
    for ax in axes:
        ax.set_xticks(range(len(kinds)), kinds)
        ax.set_ylim(bottom=-0.03)
    finish(axes[0], "labels", f"conflict tax (share of {controls['pairs'].iloc[0]} test pairs)", 2)
    finish(axes[1], "labels", f"Deception Score\n(diamond: even share; hollow: under {MIN_TAX} tax pairs)")
    return axes


def plot_strength(alphas: pd.DataFrame, shares: pd.DataFrame) -> np.ndarray:
    """Student accuracy against the strength of a conflict, one line a kind of labels; bands are the range of seeds.

    One panel for `alphas` (explicit, column alpha), and one for `shares` (implicit, column times: of the study's
    pairs) where there are any: rows of `pooled.pooled_table`.
    """
    panels = {"alpha": (alphas, "weight of the explicit conflict, alpha")}
    if len(shares):
        panels["times"] = shares, "pairs of the implicit conflict (study: 1)"
    axes = np.atleast_1d(new_axes(4.4 * len(panels), 3.6, len(panels), gap=0.12, sharey=True))
    for ax, (column, (table, xlabel)) in zip(axes, panels.items(), strict=True):
        for k, (labels, rows) in enumerate(table.groupby("labels", sort=False)):
            points(ax, rows[column], rows, "student_accuracy", label=f"{labels} labels", **style.look(k))
            low, high = (rows[f"student_accuracy_seed_{end}"] for end in ("min", "max"))
            ax.fill_between(rows[column], low, high, color=style.look(k)["color"], alpha=0.15, linewidth=0)
        ax.axhline(0.5, label="chance", **DOTTED)
        ax.set_ylim(-0.02, 1.02)
        finish(ax, xlabel, "", 3 * (ax is axes[0]))
    n = alphas["pairs"].iloc[0]
    axes[0].set_ylabel(f"student accuracy (n = {n}; 95% interval)", fontsize=style.LABEL)
    return axes


def plot_tradeoff(remedies: pd.DataFrame) -> np.ndarray:
    """Accuracy on the conflicting goal against that on the target goal, one panel a conflict, one point a remedy.

    Columns: remedy, conflict, uses_gold, student_accuracy and conflicting with _low and _high, pairs,
    conflicting_pairs. Dotted lines mark the remedy "nothing"; hollow points use gold labels.
    """
    shown = remedies[remedies["conflict"] != "none"]
    conflicts, names = shown["conflict"].unique(), remedies["remedy"].unique()
    axes = np.atleast_1d(new_axes(4.4 * len(conflicts), 4.0, len(conflicts), gap=0.3))
    for ax, conflict in zip(axes, conflicts, strict=True):
        rows = shown[shown["conflict"] == conflict].set_index("remedy")
        for k, name in enumerate(names):
            row, look, gold = rows.loc[[name]], style.look(k), bool(rows.loc[name, "uses_gold"])
            mark = {"mfc": "white" if gold else look["color"], "mec": look["color"] if gold else "white"}
            mark |= {"markersize": 7, "linestyle": "", "label": name + " (gold)" * gold}
            bars = {"xerr": style.spread(row, "student_accuracy"), "elinewidth": 1, "zorder": 2 + k / 100}
            points(ax, row["student_accuracy"], row, "conflicting", **look, **mark, **bars)
        nothing = rows.loc[names[0]]
        ax.axvline(nothing["student_accuracy"], **DOTTED)
        ax.axhline(nothing["conflicting"], **DOTTED)
        xlabel = f"accuracy, target goal (n = {nothing['pairs']:.0f})"
        ylabel = f"accuracy, conflicting goal (n = {nothing['conflicting_pairs']:.0f})"
        finish(ax, xlabel, ylabel, title=conflict_name(conflict))
    marks = axes[-1].containers  # shown without their bars
    place = {"loc": "center left", "bbox_to_anchor": (1.02, 0.5), "fontsize": style.SMALL, "frameon": False}
    axes[-1].legend([mark[0] for mark in marks], [mark.get_label() for mark in marks], **place)
    return axes


def plot_knowledge(cross: pd.DataFrame, conflicts: pd.DataFrame, settings: pd.DataFrame) -> np.ndarray:
    """Areas by confidence and by knowledge (a `knowledge.cross_table`), and the lift by each way to know, two Axes.

    `knowledge.scores_by_knowledge` gives `conflicts` (with intervals) and `settings` (dots).
    """
    left, right = axes = new_axes(11.0, 4.2, columns=2, gap=0.5)
    grid = cross.pivot_table(index="by_confidence", columns="by_knowledge", values="pairs", aggfunc="sum")
    grid = grid.loc[list(AREAS), list(knowledge.AREAS)].set_axis(ON_LINES) / grid.to_numpy().sum()
    columns = [name.replace("/", "\n") for name in knowledge.AREAS]
    style.heat(left, grid, annot=True, fmt=".1%", cmap="Greys", vmin=0, xticklabels=columns)
    title = f"share of the test pairs (n = {conflicts['pairs'].max()}, mean over runs)"
    finish(left, "area by knowledge", "area by confidence", title=title)
    _dotted(right, *(table.replace({"known_by": WAYS}) for table in (conflicts, settings)), "known_by", "lift", 0.28)
    right.axvline(1, **DOTTED)
    finish(right, "lift: Score / even share (dots: models)", "known by", conflicts["conflict"].nunique())
    return axes


def plot_followups(blind: dict[str, tuple], shared: tuple[pd.DataFrame, pd.DataFrame]) -> np.ndarray:
    """Blind-spot errors by each confidence (the keys), and the correlation of errors with the teacher's, one Axes each.

    Pairs of tables of `followups`: by conflict (with intervals), and by setting (dots).
    """
    drawn = [(f"confidence: {way}", "share", "blind-spot errors, share", tables) for way, tables in blind.items()]
    drawn.append(("errors shared with the teacher", "correlation", "correlation of errors", shared))
    axes = new_axes(4.2 * len(drawn), 3.2, columns=len(drawn), gap=0.12, sharey=True)
    for ax, (title, measure, what, tables) in zip(axes, drawn, strict=True):
        _dotted(ax, *(_by_model(table) for table in tables), "model", measure)
        xlabel = f"{what}\n(n = {tables[0]['pairs'].max()} pairs; 95% interval;\ndots: one weak and strong model)"
        finish(ax, xlabel, "", title=title)
        ax.axvline(0, **DOTTED)
    return axes


def _by_model(table: pd.DataFrame) -> pd.DataFrame:
    """The students' measures under their plain names, below the ceiling's, which are those without conflict."""
    student, ceiling = (table.set_axis(table.columns.str.replace(m, ""), axis=1) for m in ("_student", "_ceiling"))
    ceiling = ceiling[ceiling["conflict"] == "none"].assign(model="strong ceiling", conflict="ceiling")
    return pd.concat([ceiling, student.assign(model=student["conflict"].map(conflict_name))])


def _dotted(ax: Axes, pooled: pd.DataFrame, settings: pd.DataFrame, key: str, measure: str, apart: float = 0) -> None:
    """The pooled values with their intervals, one height a value of `key`, and the settings as dots below them."""
    kinds, conflicts = list(pooled[key].unique()), list(pooled["conflict"].unique())
    for k, conflict in enumerate(conflicts):
        dots = settings[settings["conflict"] == conflict]
        at = dots[key].map(kinds.index) + apart * (k - (len(conflicts) - 1) / 2) + 0.09
        ax.scatter(dots[measure], at, s=14, color=COLOURS.get(conflict, GREY), alpha=0.45, linewidths=0)
    style.strips(ax, pooled, key, measure, apart, 0.05, fmt="D", markeredgecolor="black")
