"""Figures of the analysis: one function each, plot_x(table, ax=None) -> Axes, on the tables of `w2s.analysis`.

Intervals are those of the tables (95%). A function draws on `ax`, or makes a figure of its own.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colorbar import Colorbar
from matplotlib.colors import LogNorm
from matplotlib.patches import Rectangle

from w2s.analysis.pooled import THRESHOLDS
from w2s.deception import AREAS, areas, confidence
from w2s.report import style
from w2s.report.style import COLOURS, GREY, LABEL, MARKERS, PALETTE, SMALL, conflict_name, count, finish, new_axes

MIN_EVEN = 5  # expected tax pairs below which the lift of a cell is noise
MAX_LIFT = 1.5  # where the colours of a lift end
PATH = ["weak", "strong", "role", "teacher", "via", "seed"]
ON_LINES = [name.replace("/", "\n") for name in AREAS]


def plot_accuracy(accuracies: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Accuracy of weak model, students and ceiling, one row a weak-strong pair, with intervals and the chance line."""
    gold = accuracies[accuracies["role"] == "gold"].set_index(["model", "seed"])
    students = accuracies[accuracies["role"] == "student"]
    pairs = _distinct(students, ["teacher", "model", "seed"])
    ax = ax or new_axes(6.2, 1.4 + 0.5 * len(pairs))
    for k, (conflict, colour) in enumerate(COLOURS.items()):
        rows = students[students["conflict"] == conflict]
        if len(rows):
            at = [pairs.index(key) for key in rows[["teacher", "model", "seed"]].itertuples(index=False, name=None)]
            label = conflict_name(conflict, "student, ")
            _points(ax, np.array(at) + 0.18 * k - 0.09, rows, "accuracy", colour, "o", label)
    for column, label, marker in ((0, "weak model", "<"), (1, "strong ceiling", ">")):
        at = {i: (pair[column], pair[2]) for i, pair in enumerate(pairs) if (pair[column], pair[2]) in gold.index}
        _points(ax, np.array([*at]) - 0.27, gold.loc[[*at.values()]], "accuracy", GREY, marker, label)
    style.dotted(ax, label="chance")
    _name_rows(ax, [_arrow(*pair, students["seed"].nunique() > 1) for pair in pairs])
    return finish(ax, f"accuracy (share of test pairs, n = {count(accuracies['pairs'])}; 95% interval)", "", 3)


def plot_areas(ceiling, weak, threshold=0.75, known_by="confidence", tax=None, ax: Axes | None = None) -> Axes:
    """Each pair by the weak model's and the ceiling's P, (n,), with the four areas and their counts.

    The axes show max(P, 1-P), or P itself when known by gold. `tax` (bool (n,)) marks tax pairs.
    """
    ax = ax or new_axes(5.6, 5.2)
    area, sure = areas(ceiling, weak, threshold, known_by), known_by == "confidence"
    bottom, what = (0.5, "confidence max(P, 1-P)") if sure else (0.0, "P of the preferred response")
    x, y = (confidence(p) if sure else np.asarray(p, dtype=float) for p in (weak, ceiling))
    marked = np.zeros(len(x), dtype=bool) if tax is None else np.asarray(tax, dtype=bool)
    dots = {"s": 9, "linewidths": 0, "rasterized": True}  # thousands of vector dots make a slow SVG
    ax.scatter(x[~marked], y[~marked], color=PALETTE[0], alpha=0.35, **dots)
    if tax is not None:
        ax.scatter(x[marked], y[marked], color=PALETTE[3], label=f"conflict tax ({marked.sum()} pairs)", **dots)
    for line in (ax.axvline, ax.axhline):
        line(threshold, color="black", linestyle="--", linewidth=1)
    box = {"facecolor": "white", "alpha": 0.85, "edgecolor": "none", "pad": 2}
    for name, text in zip(AREAS, ON_LINES):
        strong, weak = ((1 if "-known" in part else bottom) for part in name.split("/"))
        place = (weak + threshold) / 2, (strong + threshold) / 2
        style.write(ax, *place, f"{text}\n{(area == name).sum()} pairs", bbox=box)
    ax.set(xlim=(bottom - 0.01, 1.01), ylim=(bottom - 0.01, 1.01))
    return finish(ax, f"weak model: {what} (n = {len(x)} pairs)", f"strong ceiling: {what}", int(tax is not None))


def plot_tax_by_area(area_table: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Tax rate in each area with Wilson intervals, one colour a conflict, for ONE weak-strong pair of `area_table`.

    Raises:
        ValueError: the table holds several pairs, roles or seeds.
    """
    several = [column for column in PATH if column in area_table and area_table[column].nunique() > 1]
    if several:
        names = ", ".join(several)
        raise ValueError(f"area_table: several values of {names}; draw one figure for each, on its own rows")
    ax = ax or new_axes(6.4, 3.8)
    taxed = area_table.groupby("conflict")["tax"].sum()
    conflicts = [c for c in COLOURS if taxed.get(c, 0) > 0]
    ax.axvspan(0.5, 1.5, color=PALETTE[8], alpha=0.25, linewidth=0, label="strong sees, weak is blind")
    for k, conflict in enumerate(conflicts):
        rows = area_table[area_table["conflict"] == conflict].set_index("area").loc[list(AREAS)]
        at = np.arange(len(AREAS)) + 0.3 * (k - (len(conflicts) - 1) / 2)
        look = {"color": COLOURS[conflict], "edgecolor": "black", "linewidth": 0.5}
        ax.bar(at, rows["rate"], 0.28, label=f"{conflict} ({rows['tax'].sum()} tax pairs)", **look)
        errors = style.spread(rows, "rate")
        ax.errorbar(at, rows["rate"], errors, fmt="none", ecolor="black", capsize=3, linewidth=1)
    if not conflicts:
        style.no_tax(ax)
    at_risk = area_table[area_table["conflict"].isin(conflicts or COLOURS)].groupby("area")["at_risk"].first()
    ax.set_xticks(range(4), [f"{text}\nn = {at_risk.get(name, 0)}" for name, text in zip(AREAS, ON_LINES)])
    ax.set(xlim=(-0.5, 3.5), ylim=(0, None))
    return finish(ax, "area (n = pairs that the reference has right)", "tax rate (share of n; 95% interval)", 2)


def plot_area_shares(table: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Where the pairs lie, as stacked shares of the four areas, one bar a confidence.

    Columns: confidence, pairs (test pairs of one run), and each of AREAS (share, 0 to 1).
    """
    ax = ax or new_axes(6.8, 1.2 + 0.6 * len(table))
    style.stack(ax, table[list(AREAS)], [PALETTE[k] for k in (2, 8, 4, 7)], table["confidence"], 0.06)
    ax.invert_yaxis()
    return finish(ax, f"share of the test pairs (n = {count(table['pairs'])}; mean over weak and strong models)", "", 2)


def plot_score_heatmap(scores: pd.DataFrame, conflict: str, ax: Axes | None = None, order=None) -> Axes:
    """Deception Score of each weak x strong pair under a conflict, with tax counts; grey and hatched without tax.

    Students alone, mean over seeds (tax: sum). `order` names the models by size; else they are sorted by accuracy.
    """
    rows = scores[(scores["conflict"] == conflict) & (scores["role"] == "student")]
    cells = rows.groupby(["weak", "strong"]).agg(score=("score", "mean"), tax=("tax", "sum"))
    if order is None:
        names = pd.concat([rows["weak"], rows["strong"]])
        order = pd.concat([rows["weak_accuracy"], rows["ceiling_accuracy"]]).groupby(names).mean()
        order = order.sort_values(kind="stable").index
    weak, strong = ([m for m in order if m in set(rows[part])] for part in ("weak", "strong"))
    ax = ax or new_axes(2.4 + 1.0 * len(strong), 1.6 + 0.75 * len(weak))
    grid = cells["score"].unstack().reindex(index=weak, columns=strong)
    ax.grid(False)
    image = ax.imshow(grid.to_numpy(dtype=float), cmap="viridis", vmin=0, vmax=1, aspect="auto")
    for (row, column), cell in cells.iterrows():
        x, y = strong.index(column), weak.index(row)
        if np.isnan(cell["score"]):
            style.hatch(ax, x, y)
            style.write(ax, x, y, "no tax", bbox={"facecolor": "0.85", "edgecolor": "none", "pad": 1})
        else:
            text, colour = f"{cell['score']:.2f}\ntax {cell['tax']:.0f}", "black" if cell["score"] > 0.6 else "white"
            style.write(ax, x, y, text, color=colour)
    ax.set_xticks(range(len(strong)), strong, rotation=20)
    ax.set_yticks(range(len(weak)), weak)
    _name_bar(ax.figure.colorbar(image, ax=ax), "Deception Score")
    ax.set_title(f"{conflict_name(conflict)} (n = {count(rows['pairs'])} test pairs)", fontsize=LABEL)
    return finish(ax, "strong model", "weak model")


def plot_score_by_gap(scores: pd.DataFrame, ax: Axes | None = None, slopes: pd.DataFrame | None = None) -> Axes:
    """Deception Score of the students against capability gap, with intervals, and what an even tax would give.

    Rows of `score_table`, one a run, or of `pooled_table`, one a setting. `slopes`: `slope_table`, a line a conflict.
    """
    ax = ax or new_axes(6.4, 4.0)
    rows = scores[(scores["role"] == "student") & scores["score"].notna()]
    conflicts = [c for c in COLOURS if c in set(rows["conflict"])]
    for k, conflict in enumerate(conflicts):
        here = rows[rows["conflict"] == conflict]
        at = here["gap"] + 0.002 * (k - (len(conflicts) - 1) / 2)
        look = {"fmt": MARKERS[k], "color": COLOURS[conflict], "capsize": 3, "label": conflict_name(conflict)}
        ax.errorbar(at, here["score"], style.spread(here, "score"), **look)
    for line in () if slopes is None else slopes[slopes["measure"] == "score"].dropna().itertuples():
        gaps = rows.loc[rows["conflict"] == line.conflict, "gap"]
        ends = np.array([gaps.min(), gaps.max()])
        heights = line.mean + line.slope * (ends - line.mean_gap)
        ax.plot(ends, heights, color=COLOURS[line.conflict], linestyle="--", linewidth=1)
    even = rows.drop_duplicates(["weak", "strong", "null"])  # the null of one seed is the same under every conflict
    look = {"marker": "d", "color": GREY, "fillstyle": "none", "label": "expected if the tax fell evenly"}
    ax.plot(even["gap"], even["null"], linestyle="none", **look)
    if rows.empty:
        style.no_tax(ax)
    ax.set_ylim(-0.03, 1.03)
    gap = f"capability gap: ceiling - weak accuracy (n = {count(scores['pairs'])} pairs)"
    return finish(ax, gap, "Deception Score (95% interval)", 0 if rows.empty else 3)


def plot_surface(surface: pd.DataFrame, ax: Axes | None = None, at: float | None = None, title: str = "") -> Axes:
    """Lift (colour) and Score (number) over the thresholds of weak model and ceiling, for one group of runs.

    Cells where an even tax would put fewer than MIN_EVEN pairs into the area are grey and hatched: their lift
    is noise. `at` frames the cell in which both thresholds have this value.

    Raises:
        ValueError: the table holds several rows for one pair of thresholds.
    """
    if surface.duplicated(THRESHOLDS).any():
        raise ValueError("surface: several rows for one pair of thresholds; draw one figure for each group")
    cells = surface.assign(lift=surface["lift"].where(surface["even_tax"] >= MIN_EVEN)).set_index(THRESHOLDS)
    grid, scores = cells["lift"].unstack(0), cells["score"].unstack(0)  # strong thresholds upwards, weak ones across
    ax = ax or new_axes(1.2 + 0.42 * grid.shape[1], 1.2 + 0.36 * grid.shape[0])
    ax.grid(False)
    ax.set_facecolor("0.85")
    colours = {"cmap": "PuOr_r", "norm": LogNorm(1 / MAX_LIFT, MAX_LIFT)}
    shown = np.ma.masked_invalid(grid.clip(1 / MAX_LIFT, MAX_LIFT))
    ax.imshow(shown, origin="lower", aspect="auto", **colours)
    for (y, x), lift in np.ndenumerate(grid.to_numpy()):
        if np.isnan(lift):
            style.hatch(ax, x, y)
            continue
        dark = not 1 / MAX_LIFT**0.6 < lift < MAX_LIFT**0.6
        text = f"{scores.iloc[y, x]:.2f}".removeprefix("0").replace("1.00", "1")
        style.write(ax, x, y, text, color="white" if dark else "black")
        if at is not None and grid.columns[x] == grid.index[y] == at:
            ax.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, fill=False, ec="black", linewidth=2))
    ax.set_xticks(range(grid.shape[1]), [f"{level:g}" for level in grid.columns], rotation=60)
    ax.set_yticks(range(grid.shape[0]), [f"{level:g}" for level in grid.index])
    ax.set_title(f"{title}\nn = {surface['tax'].max()} tax pairs".strip(), fontsize=LABEL)
    return finish(ax, "weak threshold", "strong threshold")


def lift_bar(axes: Sequence[Axes]) -> None:
    """The colour bar that all surfaces of a figure share."""
    axes = list(np.ravel(axes))
    image = ScalarMappable(LogNorm(1 / MAX_LIFT, MAX_LIFT), "PuOr_r")
    bar = axes[0].figure.colorbar(image, ax=axes, extend="both", shrink=0.8, pad=0.02)
    ticks = [1 / MAX_LIFT, 0.8, 1, 1.25, MAX_LIFT]
    bar.set_ticks(ticks, labels=[f"{tick:.2f}" for tick in ticks])
    bar.ax.minorticks_off()
    _name_bar(bar, "lift: Score / even tax (numbers: Score)")


def plot_mitigation(scores: pd.DataFrame, axes: Sequence[Axes] | None = None) -> np.ndarray:
    """Direct and bootstrapped students side by side, two Axes: accuracy and Deception Score, with intervals.

    Raises:
        ValueError: the table holds no bootstrapped student.
    """
    chains = scores[scores["role"] == "bootstrapped"]
    if chains.empty:
        raise ValueError("scores: no bootstrapped student; name intermediate_models between weak and strong")
    key = ["weak", "strong", "conflict", "seed"]
    settings = _distinct(chains, key)
    axes = np.array(new_axes(7.5, 1.5 + 0.6 * len(settings), 2) if axes is None else axes)
    compared = scores.assign(
        row=[settings.index(s) if s in settings else -1 for s in scores[key].itertuples(index=False, name=None)],
        way=np.where(scores["via"] == "", "direct", "through " + scores["teacher"]),
    ).query("row >= 0")
    ways = list(compared["way"].unique())  # score_table lists direct students first
    seeds = scores["seed"].nunique() > 1
    labels = [f"{_arrow(weak, strong, seed, seeds)}\n{conflict_name(c)}" for weak, strong, c, seed in settings]
    measures = {"student_accuracy": "student accuracy", "score": "Deception Score"}
    for ax, (measure, label) in zip(axes, measures.items(), strict=True):
        for k, way in enumerate(ways):
            rows = compared[compared["way"] == way]
            at = rows["row"].to_numpy() + 0.5 * ((k + 0.5) / len(ways) - 0.5)
            _points(ax, at, rows, measure, PALETTE[k % len(PALETTE)], MARKERS[k % 5], way)
        _name_rows(ax, labels)
        finish(ax, f"{label} (95% interval,\nn = {count(scores['pairs'])} test pairs)", "")
    for y, tax in compared.groupby("row")["tax"].sum().items():
        if not tax:
            axes[1].text(0.5, y, "no tax", transform=axes[1].get_yaxis_transform(), ha="center", fontsize=SMALL)
    axes[1].set_yticklabels([])
    style.legend(axes[1], 2)
    return axes


def _points(ax: Axes, at: np.ndarray, rows: pd.DataFrame, measure: str, colour, marker: str, label: str) -> None:
    """Points with horizontal intervals at heights `at`."""
    look = {"fmt": marker, "color": colour, "markersize": 5, "capsize": 2, "label": label}
    ax.errorbar(rows[measure], at, xerr=style.spread(rows, measure), **look)


def _name_rows(ax: Axes, labels: list[str]) -> None:
    style.name_rows(ax, labels)
    ax.locator_params(axis="x", nbins=6)


def _name_bar(bar: Colorbar, label: str) -> None:
    bar.set_label(label, fontsize=LABEL)
    bar.ax.tick_params(labelsize=SMALL)


def _distinct(table: pd.DataFrame, columns: list[str]) -> list[tuple]:
    return list(table[columns].drop_duplicates().itertuples(index=False, name=None))


def _arrow(weak: str, strong: str, seed: int, name_seed: bool) -> str:
    return f"{weak} \N{RIGHTWARDS ARROW} {strong}" + (f", seed {seed}" if name_seed else "")
