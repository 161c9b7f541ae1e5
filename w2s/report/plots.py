"""Figures of the analysis: one function each, plot_x(table, ax=None) -> Axes, on the tables of `w2s.deception`.

Intervals are those of the tables (95%). A function draws on `ax`, or makes a figure of its own.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm
from matplotlib.patches import Rectangle

from w2s.analysis.pooled import THRESHOLDS
from w2s.deception import AREAS, areas, confidence
from w2s.report.style import (
    COLOURS,
    GREY,
    LABEL,
    MARKERS,
    PALETTE,
    SMALL,
    conflict_name,
    finish,
    legend,
    new_axes,
    spread,
)

MIN_EVEN = 5  # expected tax pairs below which the lift of a cell is noise
MAX_LIFT = 1.5  # where the colours of a lift end
PATH = ["weak", "strong", "role", "teacher", "via", "seed"]


def plot_accuracy(accuracies: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Accuracy of weak model, students and ceiling, one row a weak-strong pair, with intervals and the chance line."""
    gold = accuracies[accuracies["role"] == "gold"].set_index(["model", "seed"])
    students = accuracies[accuracies["role"] == "student"]
    key = ["teacher", "model", "seed"]
    pairs = list(students[key].drop_duplicates().itertuples(index=False, name=None))
    ax = ax or new_axes(6.2, 1.4 + 0.5 * len(pairs))
    for conflict in [c for c in COLOURS if c in set(students["conflict"])]:
        rows = students[students["conflict"] == conflict]
        at = [pairs.index(key) for key in rows[key].itertuples(index=False, name=None)]
        shift = 0.18 * list(COLOURS).index(conflict) - 0.09
        _points(
            ax, np.array(at) + shift, rows, "accuracy", COLOURS[conflict], "o", conflict_name(conflict, "student, ")
        )
    for column, label, marker in ((0, "weak model", "<"), (1, "strong ceiling", ">")):
        keys = [(pair[column], pair[2]) for pair in pairs]
        found = [i for i, key in enumerate(keys) if key in gold.index]
        _points(ax, np.array(found) - 0.27, gold.loc[[keys[i] for i in found]], "accuracy", GREY, marker, label)
    ax.axvline(0.5, color="black", linestyle=":", linewidth=1, label="chance")
    _rows(ax, [_arrow(*pair, students["seed"].nunique() > 1) for pair in pairs])
    legend(ax, 3)
    return finish(ax, f"accuracy (share of test pairs, n = {_count(accuracies['pairs'])}; 95% interval)", "")


def plot_areas(ceiling, weak, threshold=0.75, known_by="confidence", tax=None, ax: Axes | None = None) -> Axes:
    """Each pair by the weak model's and the ceiling's P, (n,), with the four areas and their counts.

    The axes show max(P, 1-P), or P itself when known by gold. `tax` (bool (n,)) marks tax pairs.
    """
    ax = ax or new_axes(5.6, 5.2)
    area = areas(ceiling, weak, threshold, known_by)
    x, y = (confidence(p) if known_by == "confidence" else np.asarray(p, dtype=float) for p in (weak, ceiling))
    marked = np.zeros(len(x), dtype=bool) if tax is None else np.asarray(tax, dtype=bool)
    dots = {"s": 9, "linewidths": 0, "rasterized": True}  # thousands of vector dots make a slow SVG
    ax.scatter(x[~marked], y[~marked], color=PALETTE[0], alpha=0.35, **dots)
    if tax is not None:
        ax.scatter(x[marked], y[marked], color=PALETTE[3], label=f"conflict tax ({marked.sum()} pairs)", **dots)
        legend(ax, 1)
    bottom = 0.5 if known_by == "confidence" else 0.0
    for line in (ax.axvline, ax.axhline):
        line(threshold, color="black", linestyle="--", linewidth=1)
    for name in AREAS:
        place = [(1 + threshold) / 2 if "-known" in part else (bottom + threshold) / 2 for part in name.split("/")]
        box = {"facecolor": "white", "alpha": 0.85, "edgecolor": "none", "pad": 2}
        text = f"{name.replace('/', chr(10))}\n{(area == name).sum()} pairs"
        ax.text(place[1], place[0], text, ha="center", va="center", fontsize=SMALL, bbox=box)
    ax.set(xlim=(bottom - 0.01, 1.01), ylim=(bottom - 0.01, 1.01))
    what = "confidence max(P, 1-P)" if known_by == "confidence" else "P of the preferred response"
    return finish(ax, f"weak model: {what} (n = {len(x)} pairs)", f"strong ceiling: {what}")


def plot_tax_by_area(area_table: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Tax rate in each area with Wilson intervals, one colour a conflict, for ONE weak-strong pair of `area_table`.

    Raises:
        ValueError: the table holds several pairs, roles or seeds.
    """
    _one(area_table, PATH, "area_table")
    ax = ax or new_axes(6.4, 3.8)
    taxed = area_table.groupby("conflict")["tax"].sum()
    conflicts = [c for c in COLOURS if taxed.get(c, 0) > 0]
    ax.axvspan(0.5, 1.5, color=PALETTE[8], alpha=0.25, linewidth=0, label="strong sees, weak is blind")
    for k, conflict in enumerate(conflicts):
        rows = area_table[area_table["conflict"] == conflict].set_index("area").loc[list(AREAS)]
        at = np.arange(len(AREAS)) + 0.3 * (k - (len(conflicts) - 1) / 2)
        label = f"{conflict} ({rows['tax'].sum()} tax pairs)"
        ax.bar(at, rows["rate"], 0.28, color=COLOURS[conflict], edgecolor="black", linewidth=0.5, label=label)
        ax.errorbar(at, rows["rate"], spread(rows, "rate"), fmt="none", ecolor="black", capsize=3, linewidth=1)
    if not conflicts:
        ax.text(0.5, 0.5, "no tax", transform=ax.transAxes, ha="center", fontsize=LABEL)
    at_risk = area_table[area_table["conflict"].isin(conflicts or COLOURS)].groupby("area")["at_risk"].first()
    ax.set_xticks(range(4), [f"{name.replace('/', chr(10))}\nn = {at_risk.get(name, 0)}" for name in AREAS])
    ax.set(xlim=(-0.5, 3.5), ylim=(0, None))
    legend(ax, 2)
    return finish(ax, "area (n = pairs that the reference has right)", "tax rate (share of n; 95% interval)")


def plot_area_shares(table: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Where the pairs lie, as stacked shares of the four areas, one bar a confidence.

    Columns: confidence, pairs (test pairs of one run), and each of AREAS (share, 0 to 1).
    """
    ax = ax or new_axes(6.8, 1.2 + 0.6 * len(table))
    left = np.zeros(len(table))
    for k, name in enumerate(AREAS):
        style = {"color": PALETTE[(2, 8, 4, 7)[k]], "edgecolor": "black", "linewidth": 0.5, "label": name}
        bars = ax.barh(range(len(table)), table[name], left=left, **style)
        texts = [f"{share:.2f}" if share > 0.06 else "" for share in table[name]]
        ax.bar_label(bars, texts, label_type="center", fontsize=SMALL)
        left += table[name].to_numpy()
    ax.set_yticks(range(len(table)), table["confidence"])
    ax.set_xlim(0, 1)
    ax.invert_yaxis()
    legend(ax, 2)
    return finish(ax, f"share of the test pairs (n = {_count(table['pairs'])}; mean over weak and strong models)", "")


def plot_score_heatmap(
    scores: pd.DataFrame, conflict: str, ax: Axes | None = None, order: Sequence[str] | None = None
) -> Axes:
    """Deception Score of each weak x strong pair under a conflict, with tax counts; grey and hatched without tax.

    Students alone, mean over seeds (tax: sum). `order` names the models by size; else they are sorted by accuracy.
    """
    rows = scores[(scores["conflict"] == conflict) & (scores["role"] == "student")]
    cells = rows.groupby(["weak", "strong"]).agg(score=("score", "mean"), tax=("tax", "sum"))
    order = list(order) if order is not None else _by_accuracy(rows)
    weak, strong = ([m for m in order if m in set(rows[part])] for part in ("weak", "strong"))
    ax = ax or new_axes(2.4 + 1.0 * len(strong), 1.6 + 0.75 * len(weak))
    grid = cells["score"].unstack().reindex(index=weak, columns=strong)
    ax.grid(False)
    image = ax.imshow(grid.to_numpy(dtype=float), cmap="viridis", vmin=0, vmax=1, aspect="auto")
    for (row, column), cell in cells.iterrows():
        x, y = strong.index(column), weak.index(row)
        empty = np.isnan(cell["score"])
        if empty:
            ax.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, fc="0.85", ec="0.6", hatch="///", linewidth=0))
        text = "no tax" if empty else f"{cell['score']:.2f}\ntax {cell['tax']:.0f}"
        colour = "black" if empty or cell["score"] > 0.6 else "white"
        box = {"facecolor": "0.85", "edgecolor": "none", "pad": 1} if empty else None
        ax.text(x, y, text, ha="center", va="center", color=colour, fontsize=SMALL, bbox=box)
    ax.set_xticks(range(len(strong)), strong, rotation=20)
    ax.set_yticks(range(len(weak)), weak)
    bar = ax.figure.colorbar(image, ax=ax)
    bar.set_label("Deception Score", fontsize=LABEL)
    bar.ax.tick_params(labelsize=SMALL)
    ax.set_title(f"{conflict_name(conflict)} (n = {_count(rows['pairs'])} test pairs)", fontsize=LABEL)
    return finish(ax, "strong model", "weak model")


def plot_score_by_gap(scores: pd.DataFrame, ax: Axes | None = None, slopes: pd.DataFrame | None = None) -> Axes:
    """Deception Score of the students against capability gap, with intervals, and what an even tax would give.

    Rows of `deception.score_table`, one a run, or of `pooled.pooled_table`, one a setting.
    `slopes`, a table of `pooled.slope_table`, adds each conflict's line.
    """
    ax = ax or new_axes(6.4, 4.0)
    rows = scores[(scores["role"] == "student") & scores["score"].notna()]
    conflicts = [c for c in COLOURS if c in set(rows["conflict"])]
    for k, conflict in enumerate(conflicts):
        here = rows[rows["conflict"] == conflict]
        at = here["gap"] + 0.002 * (k - (len(conflicts) - 1) / 2)
        style = {"fmt": MARKERS[k], "color": COLOURS[conflict], "capsize": 3, "label": conflict_name(conflict)}
        ax.errorbar(at, here["score"], spread(here, "score"), **style)
    for line in () if slopes is None else slopes[slopes["measure"] == "score"].dropna().itertuples():
        here = rows[rows["conflict"] == line.conflict]
        ends = np.array([here["gap"].min(), here["gap"].max()])
        ax.plot(
            ends,
            line.mean + line.slope * (ends - line.mean_gap),
            color=COLOURS[line.conflict],
            linestyle="--",
            linewidth=1,
        )
    even = rows.drop_duplicates(["weak", "strong", "null"])  # the null of one seed is the same under every conflict
    label = "expected if the tax fell evenly"
    ax.plot(even["gap"], even["null"], linestyle="none", marker="d", color=GREY, fillstyle="none", label=label)
    if rows.empty:
        ax.text(0.5, 0.5, "no tax", transform=ax.transAxes, ha="center", fontsize=LABEL)
    else:
        legend(ax, 3)
    ax.set_ylim(-0.03, 1.03)
    gap = f"capability gap: ceiling - weak accuracy (n = {_count(scores['pairs'])} pairs)"
    return finish(ax, gap, "Deception Score (95% interval)")


def plot_surface(surface: pd.DataFrame, ax: Axes | None = None, at: float | None = None, title: str = "") -> Axes:
    """Lift (colour) and Score (number) over the thresholds of weak model and ceiling, for one group of `over_runs`.

    Cells where an even tax would put fewer than MIN_EVEN pairs into the area are grey and hatched: their lift
    is noise. `at` frames the cell in which both thresholds have this value.

    Raises:
        ValueError: the table holds several rows for one pair of thresholds.
    """
    if surface.duplicated(THRESHOLDS).any():
        raise ValueError("surface: several rows for one pair of thresholds; draw one figure for each group")
    cells = surface.assign(lift=surface["lift"].where(surface["even_tax"] >= MIN_EVEN)).set_index(THRESHOLDS)
    grid = cells["lift"].unstack(0)  # strong thresholds upwards, weak ones across
    ax = ax or new_axes(1.2 + 0.42 * grid.shape[1], 1.2 + 0.36 * grid.shape[0])
    ax.grid(False)
    ax.set_facecolor("0.85")
    norm = LogNorm(1 / MAX_LIFT, MAX_LIFT)
    ax.imshow(
        np.ma.masked_invalid(grid.clip(1 / MAX_LIFT, MAX_LIFT)), cmap="PuOr_r", norm=norm, origin="lower", aspect="auto"
    )
    for y, strong in enumerate(grid.index):
        for x, weak in enumerate(grid.columns):
            if np.isnan(grid.iloc[y, x]):
                ax.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, fc="0.85", ec="0.6", hatch="///", linewidth=0))
                continue
            dark = not 1 / MAX_LIFT**0.6 < grid.iloc[y, x] < MAX_LIFT**0.6
            text = f"{cells.loc[(weak, strong), 'score']:.2f}".removeprefix("0").replace("1.00", "1")
            ax.text(x, y, text, ha="center", va="center", fontsize=SMALL, color="white" if dark else "black")
            if at is not None and weak == strong == at:
                ax.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, fill=False, ec="black", linewidth=2))
    ax.set_xticks(range(grid.shape[1]), [f"{level:g}" for level in grid.columns], rotation=60)
    ax.set_yticks(range(grid.shape[0]), [f"{level:g}" for level in grid.index])
    ax.set_title(f"{title}\nn = {surface['tax'].max()} tax pairs".strip(), fontsize=LABEL)
    return finish(ax, "weak threshold", "strong threshold")


def lift_bar(axes: Sequence[Axes]) -> None:
    """The colour bar that all surfaces of a figure share."""
    figure = np.ravel(axes)[0].figure
    image = ScalarMappable(LogNorm(1 / MAX_LIFT, MAX_LIFT), "PuOr_r")
    bar = figure.colorbar(image, ax=list(np.ravel(axes)), extend="both", shrink=0.8, pad=0.02)
    ticks = [1 / MAX_LIFT, 0.8, 1, 1.25, MAX_LIFT]
    bar.set_ticks(ticks, labels=[f"{tick:.2f}" for tick in ticks])
    bar.ax.minorticks_off()
    bar.set_label("lift: Score / even tax (numbers: Score)", fontsize=LABEL)
    bar.ax.tick_params(labelsize=SMALL)


def plot_mitigation(scores: pd.DataFrame, axes: Sequence[Axes] | None = None) -> np.ndarray:
    """Direct and bootstrapped students side by side, two Axes: accuracy and Deception Score, with intervals.

    Raises:
        ValueError: the table holds no bootstrapped student.
    """
    chains = scores[scores["role"] == "bootstrapped"]
    if chains.empty:
        raise ValueError("scores: no bootstrapped student; name intermediate_models between weak and strong")
    key = ["weak", "strong", "conflict", "seed"]
    settings = list(chains[key].drop_duplicates().itertuples(index=False, name=None))
    axes = np.array(new_axes(7.5, 1.5 + 0.6 * len(settings), 2) if axes is None else axes)
    compared = scores[[s in settings for s in scores[key].itertuples(index=False, name=None)]]
    names = [f"through {r.teacher}" if r.via else "direct" for r in compared.itertuples()]
    ways = list(dict.fromkeys(names))  # score_table lists direct students first
    for ax, measure in zip(axes, ("student_accuracy", "score"), strict=True):
        for k, way in enumerate(ways):
            rows = compared[[name == way for name in names]]
            at = [settings.index(s) for s in rows[key].itertuples(index=False, name=None)]
            shift = 0.5 * ((k + 0.5) / len(ways) - 0.5)
            _points(ax, np.array(at) + shift, rows, measure, PALETTE[k % len(PALETTE)], MARKERS[k % 5], way)
        _rows(
            ax,
            [f"{_arrow(w, s, seed, scores['seed'].nunique() > 1)}\n{conflict_name(c)}" for w, s, c, seed in settings],
        )
        label = "student accuracy" if measure == "student_accuracy" else "Deception Score"
        finish(ax, f"{label} (95% interval,\nn = {_count(scores['pairs'])} test pairs)", "")
    for y, setting in enumerate(settings):
        if not compared.loc[(compared[key] == list(setting)).all(axis=1), "tax"].any():
            axes[1].text(0.5, y, "no tax", transform=axes[1].get_yaxis_transform(), ha="center", fontsize=SMALL)
    axes[1].set_yticklabels([])
    legend(axes[1], 2)
    return axes


def _rows(ax: Axes, labels: list[str]) -> None:
    ax.set_yticks(range(len(labels)), labels)
    ax.set_ylim(len(labels) - 0.5, -0.5)
    ax.grid(axis="x", alpha=0.3)
    ax.locator_params(axis="x", nbins=6)


def _points(ax: Axes, at: np.ndarray, rows: pd.DataFrame, measure: str, colour, marker: str, label: str) -> None:
    """Points with horizontal intervals at heights `at`; accuracy tables name their interval low and high."""
    style = {"fmt": marker, "color": colour, "markersize": 5, "capsize": 2, "label": label}
    ax.errorbar(rows[measure], at, xerr=spread(rows, measure), **style)


def _by_accuracy(rows: pd.DataFrame) -> list[str]:
    """The models of a score table, the weakest first."""
    pieces = [
        rows[[part, f"{kind}_accuracy"]].set_axis(["model", "accuracy"], axis=1)
        for part, kind in (("weak", "weak"), ("strong", "ceiling"))
    ]
    return list(pd.concat(pieces).groupby("model")["accuracy"].mean().sort_values(kind="stable").index)


def _one(table: pd.DataFrame, columns: list[str], name: str) -> None:
    columns = [column for column in columns if column in table and table[column].nunique() > 1]
    if columns:
        raise ValueError(f"{name}: several values of {', '.join(columns)}; draw one figure for each, on its own rows")


def _arrow(weak: str, strong: str, seed: int, name_seed: bool) -> str:
    return f"{weak} \N{RIGHTWARDS ARROW} {strong}" + (f", seed {seed}" if name_seed else "")


def _count(pairs: pd.Series) -> str:
    return " to ".join(str(n) for n in sorted({pairs.min(), pairs.max()}))
