"""Figures of the tables of `w2s.analysis`, with their 95% intervals: plot_x(table) -> Axes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm
from matplotlib.patches import Rectangle

from w2s.analysis.pooled import THRESHOLDS
from w2s.deception import AREAS, confidence
from w2s.report import style
from w2s.report.style import COLOURS, DOTTED, GREY, SMALL, conflict_name, count, finish, points

BINS = 10  # of a probability, across and up
MIN_EVEN = 5  # expected tax pairs below which the lift of a cell is noise
MAX_LIFT = 1.5  # where the colours of a lift end
LIFT = {"cmap": "RdGy_r", "norm": LogNorm(1 / MAX_LIFT, MAX_LIFT)}
PATH = ["weak", "strong", "role", "teacher", "via", "seed"]
ON_LINES = [name.replace("/", "\n") for name in AREAS]


def plot_accuracy(accuracies: pd.DataFrame) -> Axes:
    """Accuracy of weak model, students and ceiling, one row a weak-strong pair, with intervals and the chance line."""
    students, gold = (accuracies[accuracies["role"] == role] for role in ("student", "gold"))
    pairs = students[["teacher", "model", "seed"]].drop_duplicates(ignore_index=True)
    pairs["row"] = pairs.index
    labels = pairs["teacher"] + " \N{RIGHTWARDS ARROW} " + pairs["model"]
    if pairs["seed"].nunique() > 1:
        labels += ", seed " + pairs["seed"].astype(str)
    ax = style.new_axes(6.2, 1.4 + 0.5 * len(pairs))
    for k, conflict in enumerate(COLOURS):
        rows = students[students["conflict"] == conflict].merge(pairs)
        if len(rows):
            named = {"fmt": "o", "color": COLOURS[conflict], "label": conflict_name(conflict, "student, ")}
            points(ax, rows["row"] + 0.18 * k - 0.09, rows, "accuracy", across=True, **named)
    ends = []
    for part, label, marker in (("teacher", "weak model", "<"), ("model", "strong ceiling", ">")):
        rows = pairs.merge(gold.drop(columns="teacher").rename(columns={"model": part}), on=[part, "seed"])
        ends.append(rows.set_index("row")["accuracy"])
        points(ax, rows["row"] - 0.27, rows, "accuracy", across=True, fmt=marker, color=GREY, label=label)
    ax.hlines(ends[0].index - 0.27, *ends, color=GREY, alpha=0.5, linewidth=3)  # the gap to recover
    ax.axvline(0.5, label="chance", **DOTTED)
    style.name_rows(ax, labels)
    return finish(ax, f"accuracy (share of test pairs, n = {count(accuracies['pairs'])}; 95% interval)", "", 3)


def plot_areas(ceiling, weak, at_risk, tax, threshold=0.75, known_by="confidence", ax: Axes | None = None) -> Axes:
    """Pairs at risk by both models' P, all (n,), in bins: a square's size is their number, its colour the part lost.

    The axes show max(P, 1-P), or P itself when known by gold. The four areas are named beside the axes.
    """
    ax, risk = ax or style.new_axes(5.6, 4.8), np.asarray(at_risk, dtype=bool)
    sure = known_by == "confidence"
    bottom, what = (0.5, "confidence max(P, 1-P)") if sure else (0.0, "P of the preferred response")
    edges, places = np.linspace(bottom, 1, BINS + 1), {}
    for model, p in (("weak", weak), ("ceiling", ceiling)):
        bins = np.digitize(confidence(p) if sure else p, edges[1:-1])
        places[model] = (edges[bins] + edges[bins + 1])[risk] / 2
    lost = pd.DataFrame(places | {"lost": np.asarray(tax, dtype=float)[risk]}).groupby(["weak", "ceiling"])["lost"]
    cells = lost.agg(["size", "mean", "sum"]).reset_index()
    size = np.clip(480 * cells["size"] / cells["size"].max(), 9, None)
    colours = {"c": cells["mean"], "cmap": "Greys", "vmin": 0, "vmax": 0.5, "edgecolors": "0.3", "zorder": 3}
    squares = ax.scatter(cells["weak"], cells["ceiling"], s=size, marker="s", linewidths=0.7, **colours)
    label = f"part lost (tax: {cells['sum'].sum():.0f} pairs)"
    ax.figure.colorbar(squares, ax=ax, pad=0.1, extend="max", label=label)
    ax.axvspan(bottom, threshold, (threshold - bottom) / (1 - bottom), color=style.AREA_COLOURS[1], alpha=0.25)
    for line in (ax.axvline, ax.axhline):
        line(threshold, color="black", linestyle="--", linewidth=1)
    for sides, at in (("unknown", (bottom + threshold) / 2), ("known", (1 + threshold) / 2)):
        ax.text(at, 1.01, f"W-{sides}", ha="center", va="bottom", fontsize=SMALL)
        ax.text(1.01, at, f"S-{sides}", ha="left", va="center", rotation=270, fontsize=SMALL)
    ax.set(xlim=(bottom, 1), ylim=(bottom, 1))
    return finish(ax, f"weak model: {what} (n = {risk.sum()} pairs at risk)", f"strong ceiling: {what}")


def plot_tax_by_area(area_table: pd.DataFrame) -> Axes:
    """Tax rate in each area, one colour a conflict, for ONE weak-strong pair of `area_table`, else ValueError."""
    several = ", ".join(name for name in PATH if name in area_table and area_table[name].nunique() > 1)
    if several:
        raise ValueError(f"area_table: several values of {several}; draw one figure for each, on its own rows")
    ax = style.new_axes(6.4, 3.8)
    taxed = area_table.groupby("conflict")["tax"].sum()
    conflicts = [c for c in COLOURS if taxed.get(c, 0) > 0]
    ax.axvspan(0.5, 1.5, color=style.AREA_COLOURS[1], alpha=0.25, linewidth=0, label="strong sees, weak is blind")
    for k, conflict in enumerate(conflicts):
        rows = area_table[area_table["conflict"] == conflict].set_index("area").loc[list(AREAS)]
        bars = {"color": COLOURS[conflict], "edgecolor": "black", "linewidth": 0.5, "yerr": style.spread(rows, "rate")}
        at = np.arange(len(AREAS)) + 0.3 * (k - (len(conflicts) - 1) / 2)
        round_too = ", turned round" if rows["turned"].any() else ""
        ax.bar(at, rows["rate"], 0.28, capsize=3, label=f"{conflict} ({taxed[conflict]} tax pairs{round_too})", **bars)
    if not conflicts:
        ax.text(0.5, 0.5, "no tax", transform=ax.transAxes, ha="center")
    at_risk = area_table[area_table["conflict"].isin(conflicts or COLOURS)].groupby("area")["at_risk"].first()
    ax.set_xticks(range(4), [f"{text}\nn = {at_risk.get(name, 0)}" for name, text in zip(AREAS, ON_LINES)])
    ax.set(xlim=(-0.5, 3.5), ylim=(0, None))
    return finish(ax, "area (n = pairs that the reference has right)", "tax rate (share of n; 95% interval)", 2)


def plot_area_shares(table: pd.DataFrame) -> Axes:
    """Shares of the areas, one bar a confidence. Columns: confidence, pairs (of one run), each of AREAS (0 to 1)."""
    ax = style.new_axes(6.8, 1.2 + 0.6 * len(table))
    bars = {"edgecolor": "black", "linewidth": 0.5, "width": 0.8, "color": style.AREA_COLOURS}
    table.set_index("confidence")[list(AREAS)].plot.barh(stacked=True, ax=ax, legend=False, **bars)
    for part in ax.containers:
        ax.bar_label(part, fmt=lambda x: f"{x:.2f}" if x > 0.06 else "", label_type="center", fontsize=SMALL)
    ax.set_xlim(0, 1)
    ax.invert_yaxis()
    return finish(ax, f"share of the test pairs (n = {count(table['pairs'])}; mean over weak and strong models)", "", 2)


def plot_score_heatmap(scores: pd.DataFrame, conflict: str, ax: Axes | None = None) -> Axes:
    """Lift (colour), Score and tax (numbers) of each weak and strong model under a conflict; hatched without tax.

    Students alone, means over seeds (tax: sum); models are sorted by accuracy.
    """
    rows = scores[(scores["conflict"] == conflict) & (scores["role"] == "student")]
    names = pd.concat([rows["weak"], rows["strong"]])
    order = pd.concat([rows["weak_accuracy"], rows["ceiling_accuracy"]]).groupby(names).mean()
    order = order.sort_values(kind="stable").index
    weak, strong = ([m for m in order if m in set(rows[part])] for part in ("weak", "strong"))
    cells = rows.groupby(["weak", "strong"]).agg({"score": "mean", "even_share": "mean", "tax": "sum", "turned": "max"})
    cells = cells.unstack()
    score, even, tax = (cells[name].reindex(index=weak, columns=strong) for name in ("score", "even_share", "tax"))
    ax = ax or style.new_axes(2.4 + 1.0 * len(strong), 1.6 + 0.75 * len(weak))
    texts = score.map("{:.2f}".format) + tax.map("\ntax {:.0f}".format)
    texts += cells["turned"].reindex_like(score).eq(True).replace({True: "\nturned round", False: ""})
    lift = (score / even).clip(1 / MAX_LIFT, MAX_LIFT)
    style.heat(ax, lift, score.isna() & tax.notna(), "no tax", annot=texts, **LIFT)
    ax.tick_params("x", rotation=20)
    title = f"{conflict_name(conflict)} (n = {count(rows['pairs'])} test pairs)"
    return finish(ax, "strong model", "weak model", title=title)


def plot_score_by_gap(scores: pd.DataFrame, slopes: pd.DataFrame | None = None) -> np.ndarray:
    """Deception Score of the students against capability gap, joined to its even share; and the Score minus that share.

    Rows of `score_table`, one a run, or of `pooled_table`, one a setting. `slopes`: `slope_table`, a line a conflict.
    """
    axes = style.new_axes(10.4, 4.0, columns=2, gap=0.25)
    rows = scores[(scores["role"] == "student") & scores["score"].notna()]
    conflicts = [conflict for conflict in COLOURS if conflict in set(rows["conflict"])]
    for ax, measure in zip(axes, ("score", "score_minus_even"), strict=True):
        for k, conflict in enumerate(conflicts):
            here, colour = rows[rows["conflict"] == conflict], COLOURS[conflict]
            at, turned = here["gap"] + 0.002 * (k - 0.5), here["turned"].astype(bool)
            points(ax, at, here, measure, fmt=style.MARKERS[k], color=colour, label=conflict_name(conflict))
            ax.plot(at[turned], here[measure][turned], style.MARKERS[k], mfc="white", mec=colour, ms=5, zorder=3)
            if measure == "score":
                ax.vlines(at, here["even_share"], here["score"], color=colour, alpha=0.35, linewidth=1)
        for line in () if slopes is None else slopes[slopes["measure"] == measure].dropna().itertuples():
            gaps = rows.loc[rows["conflict"] == line.conflict, "gap"].agg(["min", "max"])
            heights = line.mean + line.slope * (gaps - line.mean_gap)
            ax.plot(gaps, heights, color=COLOURS[line.conflict], linestyle="--", linewidth=1)
    hollow = {"color": GREY, "fillstyle": "none", "markersize": 5, "zorder": 5}
    axes[0].plot(rows["gap"], rows["even_share"], "d", label="even share", **hollow)
    if rows.empty:
        axes[0].text(0.5, 0.5, "no tax", transform=axes[0].transAxes, ha="center")
    axes[0].set_ylim(-0.03, 1.03)
    axes[1].axhline(0, **DOTTED)
    gap = f"capability gap: ceiling - weak accuracy (n = {count(scores['pairs'])} pairs)"
    finish(axes[0], gap, "Deception Score (95% interval)", 0 if rows.empty else 3)
    of_turned = "\n(hollow: student turned round)" if rows["turned"].any() else ""
    finish(axes[1], gap, f"Score minus even share{of_turned}")
    return axes


def plot_surface(surface: pd.DataFrame, ax: Axes | None = None, at: float | None = None, title: str = "") -> Axes:
    """Lift (colour) and Score (number) over the thresholds of weak model and ceiling, for one group of runs.

    Cells where an even tax would put fewer than MIN_EVEN pairs into the area are grey and hatched: their lift
    is noise. `at` frames the cell of this value of both thresholds. ValueError for several rows of one cell.
    """
    if surface.duplicated(THRESHOLDS).any():
        raise ValueError("surface: several rows for one pair of thresholds; draw one figure for each group")
    cells = surface.assign(lift=surface["lift"].where(surface["even_tax"] >= MIN_EVEN)).set_index(THRESHOLDS)
    lift, scores = cells["lift"].unstack(0), cells["score"].unstack(0)  # strong thresholds upwards, weak ones across
    ax = ax or style.new_axes(1.2 + 0.42 * lift.shape[1], 1.2 + 0.36 * lift.shape[0])
    texts = scores.map(lambda score: f"{score:.2f}".removeprefix("0").replace("1.00", "1"))
    style.heat(ax, lift.clip(1 / MAX_LIFT, MAX_LIFT), lift.isna(), annot=texts, **LIFT)
    if at in lift.index and at in lift.columns:
        corner = lift.columns.get_loc(at), lift.index.get_loc(at)
        ax.add_patch(Rectangle(corner, 1, 1, fill=False, ec="black", linewidth=2))
    ax.invert_yaxis()
    ax.tick_params("x", rotation=60)
    title = f"{title}\nn = {surface['tax'].max()} tax pairs".strip()
    return finish(ax, "weak threshold", "strong threshold", title=title)


def lift_bar(axes: Sequence[Axes]) -> None:
    """The colour bar that all surfaces of a figure share."""
    axes, ticks = list(np.ravel(axes)), [1 / MAX_LIFT, 0.8, 1, 1.25, MAX_LIFT]
    place = {"ax": axes, "extend": "both", "shrink": 0.8, "pad": 0.02}
    words = {"ticks": ticks, "format": "{x:.2f}", "label": "lift: Score / even share (numbers: Score)"}
    axes[0].figure.colorbar(ScalarMappable(**LIFT), **place, **words).minorticks_off()


def plot_differences(table: pd.DataFrame, measures: dict[str, str], pairs: int) -> np.ndarray:
    """Differences with their intervals and a zero line, one Axes a measure (its name, and in words), colours conflicts.

    Columns: label (a row of the figure), conflict, measure, estimate, low, high; over so many `pairs`.
    """
    n_rows, n_conflicts = table["label"].nunique(), table["conflict"].nunique()
    axes = np.atleast_1d(style.new_axes(4.6 * len(measures), 1.4 + 0.5 * n_rows, len(measures), sharey=True))
    for ax, (measure, name) in zip(axes, measures.items(), strict=True):
        style.strips(ax, table[table["measure"] == measure], "label", "estimate", apart=0.2)
        ax.axvline(0, **DOTTED)
        if table.empty:
            ax.text(0.5, 0.5, "nothing to compare", transform=ax.transAxes, ha="center")
        finish(ax, f"{name}\n(95% interval; n = {pairs} test pairs)", "", n_conflicts * (ax is axes[0]))
    return axes
