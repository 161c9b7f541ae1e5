"""Every figure draws from a small table, labels its axes, shows what it says, and survives missing values."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from conftest import assert_own_axes, assert_same_picture, smallest, texts
from matplotlib.patches import StepPatch

from w2s.analysis import knowledge
from w2s.analysis.scoring import SCORE_COLUMNS
from w2s.deception import AREAS
from w2s.intervals import wilson
from w2s.report import plots, plots_extensions, plots_training

pytestmark = pytest.mark.usefixtures("close_figures")

CONFLICTS = ("none", "explicit", "implicit")
PAIRS = (("m-8", "m-16"), ("m-8", "m-32"), ("m-16", "m-32"))
RIGHT = {"m-8": 0.6, "m-16": 0.7, "m-32": 0.85}


def ranged(name, value, by=0.1):
    return {name: value, f"{name}_low": value - by, f"{name}_high": value + by}


def accuracies():
    rows = [("gold", model, "", "none", accuracy) for model, accuracy in RIGHT.items()]
    rows += [("student", strong, weak, c, 0.65) for weak, strong in PAIRS for c in CONFLICTS]
    table = pd.DataFrame(rows, columns=["role", "model", "teacher", "conflict", "accuracy"])
    return table.assign(via="", seed=0, pairs=200, low=table["accuracy"] - 0.07, high=table["accuracy"] + 0.07)


def scores():
    """Three pairs under each conflict, one chain, no tax (nan) without conflict and in one cell."""
    rows = []
    for conflict in CONFLICTS:
        settings = [("student", w, s, w, "") for w, s in PAIRS] + [("bootstrapped", "m-8", "m-32", "m-16", "m-8")]
        for role, weak, strong, teacher, via in settings:
            taxed = conflict != "none" and (weak, strong) != ("m-8", "m-16")
            row = dict.fromkeys(SCORE_COLUMNS, 0.5) | {"weak": weak, "strong": strong, "role": role, "null": 0.3}
            row |= {"teacher": teacher, "via": via, "conflict": conflict, "seed": 0, "pairs": 200, "tax": 12 * taxed}
            row |= {"weak_accuracy": RIGHT[weak], "ceiling_accuracy": RIGHT[strong], "gap": RIGHT[strong] - RIGHT[weak]}
            rows.append(row | ranged("student_accuracy", 0.7) | ranged("score", 0.55 if taxed else np.nan))
    return pd.DataFrame(rows)


def area_table():
    rows = []
    for conflict in CONFLICTS:
        for k, area in enumerate(AREAS):
            tax, at_risk = (0 if conflict == "none" else 3 * k), 30 * (k != 2)
            low, high = wilson(min(tax, at_risk), at_risk)
            row = {"conflict": conflict, "area": area, "pairs": 50, "at_risk": at_risk, "tax": tax}
            rows.append(row | {"rate": tax / at_risk if at_risk else np.nan, "low": low, "high": high})
    return pd.DataFrame(rows).assign(weak="m-8", strong="m-32", role="student", teacher="m-8", via="", seed=0)


def area_shares():
    rows = [("paper", 200, 0.02, 0.2, 0.05, 0.73), ("calibrated", 200, 0.3, 0.4, 0.0, 0.3)]
    return pd.DataFrame(rows, columns=["confidence", "pairs", *AREAS])


def surface():
    """Four cells: lift 1.4, below 1, too small an area, and no tax in it at all."""
    rows = [(0.5, 0.5, 14, 10), (0.5, 0.75, 8, 10), (0.75, 0.5, 4, 2), (0.75, 0.75, 0, 10)]
    table = pd.DataFrame(rows, columns=["weak_threshold", "strong_threshold", "blind_tax", "even_tax"])
    return table.assign(tax=20, score=table["blind_tax"] / 20, lift=table["blind_tax"] / table["even_tax"])


def lengths():
    """Four pairs of each dimension: chosen of 10 to 40 characters, rejected ten longer."""
    sides = [(d, side) for d in ("harmless", "helpful") for side in ("chosen", "rejected")]
    rows = [(d, side, 10 * k + 10 * (side == "rejected")) for d, side in sides for k in range(1, 5)]
    return pd.DataFrame(rows, columns=["dimension", "response", "characters"])


def choices():
    rows = [("harmless", "goes along", 0.52, 52), ("harmless", "warns", 0.48, 48), ("helpful", "goes along", 1.0, 80)]
    return pd.DataFrame(rows, columns=["dimension", "choice", "share", "pairs"])


def frequency():
    rows = [(m, n, 0.5 + 0.05 * k * j) for j, m in enumerate(RIGHT) for k, n in enumerate((2, 8, 32))]
    return pd.DataFrame(rows, columns=["model", "mentions_bin", "accuracy"]).assign(low=0.4, high=0.95, pairs=40)


def known():
    cells = [{"by_confidence": a, "by_knowledge": b, "pairs": 10} for a in AREAS for b in knowledge.AREAS]
    rows = [
        {"conflict": c, "known_by": way, "pairs": 160} | ranged("lift", 1 + 0.1 * k)
        for c in ("explicit", "implicit")
        for k, way in enumerate(knowledge.WAYS)
    ]
    settings = pd.concat([pd.DataFrame(rows), pd.DataFrame(rows).assign(lift=np.nan)])  # a setting without a tax
    return pd.DataFrame(cells), pd.DataFrame(rows), settings


def followed():
    row = {"pairs": 160}
    for name in ("share_student", "share_ceiling", "correlation_student", "correlation_ceiling"):
        row |= ranged(name, 0.2)
    table = pd.DataFrame([row | {"conflict": conflict} for conflict in CONFLICTS])
    return {"paper": (table, table), "calibrated": (table, table)}, (table, table)


P = np.random.default_rng(1).random((2, 200))
SUBSTANCES = pd.DataFrame({"name": list("abcde"), "mentions": [3, 100, 10, 30, 3]})
LOSSES = {"small": [0.7, 0.6, 0.5], "large": [0.69, 0.4, 0.2]}
LOG = pd.concat([pd.DataFrame({"run": run, "step": [1, 10, 20], "loss": loss}) for run, loss in LOSSES.items()])
PREDICTIONS = pd.DataFrame({"run": np.repeat(["run-a", "run-b"], 150), "probability": 0.9 * P.ravel()[:300] + 0.1})
Z = np.array([-1.0, -0.5, 0.5, 1.0])
CURVES = pd.concat([
    pd.DataFrame({"conflict": conflict, "margin": Z, "loss": np.exp(-Z) + rise * (Z < 0), "slope": -np.exp(-Z)})
    for conflict, rise in (("none", 0.0), ("explicit", 0.5))
])  # fmt: skip

FIGURES = {
    "accuracy": lambda ax: plots.plot_accuracy(accuracies(), ax),
    "areas": lambda ax: plots.plot_areas(*P, ax=ax),
    "shares": lambda ax: plots.plot_area_shares(area_shares(), ax),
    "tax": lambda ax: plots.plot_tax_by_area(area_table(), ax),
    "heatmap": lambda ax: plots.plot_score_heatmap(scores(), "explicit", ax),
    "surface": lambda ax: plots.plot_surface(surface(), ax),
    "gap": lambda ax: plots.plot_score_by_gap(scores(), ax),
    "mentions": lambda ax: plots_training.plot_mentions(SUBSTANCES, ax),
    "lengths": lambda ax: plots_training.plot_lengths(lengths(), ax),
    "choices": lambda ax: plots_training.plot_choices(choices(), ax),
    "loss": lambda ax: plots_training.plot_loss(LOG, ax),
    "labels": lambda ax: plots_training.plot_labels(PREDICTIONS, ax=ax),
    "reliability": lambda ax: plots_training.plot_reliability(PREDICTIONS, ax),
    "frequency": lambda ax: plots_training.plot_frequency(frequency(), ax),
}


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_has_labels_in_print_size_makes_its_own_axes_and_is_the_same_again(name, tmp_path):
    _, given = plt.subplots()
    ax = FIGURES[name](given)
    assert ax is given and ax.get_xlabel() and smallest(ax) >= 9
    assert ax.get_ylabel() or name in ("accuracy", "shares", "lengths", "choices")  # their ticks name the rows
    assert "n = " in texts(ax) or name == "loss"  # its points are single batches
    assert_own_axes(lambda: FIGURES[name](None))
    assert_same_picture(lambda: FIGURES[name](None), tmp_path, name)


def ticks(labels):
    return [label.get_text() for label in labels]


def legend_of(ax):
    return ticks(ax.get_legend().get_texts())


def test_accuracy_shows_each_pair_each_conflict_chance_and_the_seed_where_there_are_several():
    shown = texts(plots.plot_accuracy(accuracies()))
    for label in ("m-8 → m-16", "m-16 → m-32", "weak model", "strong ceiling", "chance", "student, implicit conflict"):
        assert label in shown
    assert "seed" not in shown
    both = pd.concat([accuracies(), accuracies().assign(seed=1)])
    assert "m-8 → m-16, seed 1" in texts(plots.plot_accuracy(both))


def test_areas_count_their_pairs_mark_the_tax_and_show_all_of_p_by_gold():
    shown = texts(plots.plot_areas([0.9, 0.9, 0.6, 0.9], [0.9, 0.6, 0.6, 0.55], tax=[False, True, False, False]))
    assert "S-known\nW-unknown\n2 pairs" in shown and "S-unknown\nW-known\n0 pairs" in shown
    assert "conflict tax (1 pairs)" in shown
    ax = plots.plot_areas([0.1, 0.9], [0.2, 0.8], known_by="gold")
    assert ax.get_xlim()[0] < 0.0 and "P of the preferred response" in ax.get_xlabel()


def test_stacked_shares_fill_each_bar_in_the_order_of_the_table():
    ax = plots.plot_area_shares(area_shares())
    widths = [[bar.get_width() for bar in container] for container in ax.containers]
    np.testing.assert_allclose(widths, [[0.02, 0.3], [0.2, 0.4], [0.05, 0.0], [0.73, 0.3]])
    assert [round(bar.get_x(), 9) for bar in ax.containers[3]] == [0.27, 0.7]
    assert legend_of(ax) == list(AREAS) and ticks(ax.get_yticklabels()) == ["paper", "calibrated"]
    assert ax.yaxis_inverted() and ticks(ax.texts) == ["", "0.30", "0.20", "0.40", "", "", "0.73", "0.30"]
    ax = plots_training.plot_choices(choices())
    assert [[bar.get_width() for bar in container] for container in ax.containers] == [[0.52, 1.0], [0.48, 0.0]]
    assert [bar.get_x() for bar in ax.containers[1]] == [0.52, 1.0]
    assert legend_of(ax) == ["goes along", "warns"] and "helpful\nn = 80 pairs" in texts(ax)
    assert ticks(ax.texts) == ["0.52", "1.00", "0.48", ""]  # no number in an empty part


def test_tax_by_area_leaves_out_a_conflict_without_tax():
    shown = texts(plots.plot_tax_by_area(area_table()))
    assert "explicit (18 tax pairs)" in shown and "none" not in shown
    assert "no tax" in texts(plots.plot_tax_by_area(area_table().assign(tax=0)))


def test_heatmap_hatches_cells_without_tax_leaves_absent_pairs_blank_and_takes_an_order():
    ax = plots.plot_score_heatmap(scores(), "explicit")
    assert sorted(ticks(ax.texts)) == ["0.55\ntax 12", "0.55\ntax 12", "no tax"]
    assert [patch.get_hatch() for patch in ax.patches].count("///") == 1
    assert ticks(ax.get_xticklabels()) == ["m-16", "m-32"]
    assert set(ticks(plots.plot_score_heatmap(scores(), "none").texts)) == {"no tax"}
    ax = plots.plot_score_heatmap(scores(), "implicit", order=["m-32", "m-16", "m-8"])
    assert ticks(ax.get_yticklabels()) == ["m-16", "m-8"]


def test_score_by_gap_leaves_out_nan_and_shows_the_null_and_the_line_of_a_slope():
    ax = plots.plot_score_by_gap(scores())
    assert "expected if the tax fell evenly" in texts(ax) and "no conflict" not in texts(ax)
    null = next(line for line in ax.lines if line.get_fillstyle() == "none")
    assert len(null.get_xdata()) == 2
    assert "no tax" in texts(plots.plot_score_by_gap(scores().assign(score=np.nan)))
    slope = {"conflict": "implicit", "measure": "score", "slope": 2.0, "mean_gap": 0.2, "mean": 0.5}
    ax = plots.plot_score_by_gap(scores(), slopes=pd.DataFrame([slope, slope | {"measure": "score_minus_null"}]))
    (line,) = [line for line in ax.lines if line.get_linestyle() == "--"]
    x, y = line.get_data()
    assert list(x) == pytest.approx([0.15, 0.25]) and list(y) == pytest.approx([0.4, 0.6])


def test_surfaces_hatch_small_areas_write_scores_frame_the_threshold_and_share_one_bar():
    fig, axes = plt.subplots(1, 2)
    for ax in axes:
        plots.plot_surface(surface(), ax, at=0.75, title="explicit")
    assert {t.get_text(): t.get_position() for t in ax.texts} == {".70": (0, 0), ".40": (0, 1), ".00": (1, 1)}
    assert [patch.get_xy() for patch in ax.patches if patch.get_hatch() == "///"] == [(0.5, -0.5)]
    assert [patch.get_xy() for patch in ax.patches if not patch.get_fill()] == [(0.5, 0.5)]
    assert ax.get_title() == "explicit\nn = 20 tax pairs" and ax.get_xlabel() == "weak threshold"
    assert ticks(ax.get_xticklabels()) == ["0.5", "0.75"]
    plots.lift_bar(axes)
    bar = fig.axes[-1]
    assert len(fig.axes) == 3 and "lift" in bar.get_ylabel()
    assert ticks(bar.get_yticklabels()) == ["0.67", "0.80", "1.00", "1.25", "1.50"]


def test_mitigation_compares_direct_and_bootstrapped():
    axes = plots.plot_mitigation(scores())
    assert "student accuracy" in axes[0].get_xlabel() and "Deception Score" in axes[1].get_xlabel()
    assert legend_of(axes[1]) == ["direct", "through m-16"]
    assert ticks(axes[1].texts) == ["no tax"]  # the row without conflict
    assert all(len(c[0].get_xdata()) == 3 for c in axes[0].containers)
    assert min(map(smallest, axes)) >= 9
    _, given = plt.subplots(1, 2)
    assert list(plots.plot_mitigation(scores(), given)) == list(given)


def test_mentions_fall_from_the_most_common_substance_with_their_median():
    ax = plots_training.plot_mentions(SUBSTANCES)
    curve, median = ax.lines
    assert curve.get_xdata().tolist() == [1, 2, 3, 4, 5] and curve.get_ydata().tolist() == [100, 30, 10, 3, 3]
    assert set(median.get_ydata()) == {10} and "median: 10 mentions" in texts(ax)
    assert ax.get_xscale() == ax.get_yscale() == "log" and "n = 5 substances" in texts(ax)


def test_lengths_have_a_box_for_each_dimension_and_response_and_count_pairs():
    ax = plots_training.plot_lengths(lengths())
    medians = [[line.get_xdata()[0] for line in container.medians] for container in ax.containers]
    assert medians == [[25, 25], [35, 35]]  # chosen, rejected
    assert ticks(ax.get_yticklabels()) == ["harmless\nn = 4 pairs", "helpful\nn = 4 pairs"]
    assert legend_of(ax) == ["chosen", "rejected"]


def test_loss_has_a_line_for_each_run_and_the_loss_at_margin_zero():
    ax = plots_training.plot_loss(LOG)
    small, large, chance = ax.lines
    assert small.get_ydata().tolist() == [0.7, 0.6, 0.5] and large.get_xdata().tolist() == [1, 10, 20]
    assert set(chance.get_ydata()) == {np.log(2)} and legend_of(ax)[:2] == ["small", "large"] and ax.get_ylim()[0] == 0
    *_, level = plots_training.plot_loss(LOG, level=1.3, meaning="log(1 + e)").lines
    assert set(level.get_ydata()) == {1.3} and "log(1 + e)" in texts(level.axes)


def test_labels_show_shares_of_the_run_and_the_thresholds():
    ax = plots_training.plot_labels(PREDICTIONS, threshold=0.9)
    steps = [patch.get_data().values for patch in ax.patches if isinstance(patch, StepPatch)]
    np.testing.assert_allclose([values.sum() for values in steps], [1, 1])
    assert np.isclose(steps[0][:10].sum(), (PREDICTIONS["probability"][:150] < 0.5).mean())
    assert sorted(round(line.get_xdata()[0], 6) for line in ax.lines) == [0.1, 0.5, 0.9]
    assert "run-a (n = 150)" in texts(ax)


def test_margin_curves_draw_loss_and_slope_of_each_conflict():
    axes = plots_training.plot_margin_curves(CURVES)
    assert [ax.get_ylabel() for ax in axes] == ["loss (nats)", "derivative (nats a logit)"]
    assert all("logits" in ax.get_xlabel() and smallest(ax) >= 9 for ax in axes)
    none, explicit = axes[0].lines[:2]
    assert none.get_linestyle() == "-" and explicit.get_linestyle() == "--"
    np.testing.assert_allclose(explicit.get_ydata() - none.get_ydata(), [0.5, 0.5, 0, 0])
    assert legend_of(axes[0]) == ["no conflict", "explicit conflict"]
    _, given = plt.subplots(1, 2)
    assert list(plots_training.plot_margin_curves(CURVES, given)) == list(given)
    loss, slope = plots_training.plot_margin_curves(CURVES, unit="nat")
    assert "(nats)" in loss.get_xlabel() and slope.get_ylabel() == "derivative (nats a nat)"


def test_reliability_names_its_runs_and_needs_no_run_column():
    shown = texts(plots_training.plot_reliability(PREDICTIONS))
    assert "run-a (n = 150)" in shown and "calibrated" in shown
    assert "this run (n = 300)" in texts(plots_training.plot_reliability(PREDICTIONS.drop(columns="run")))


def test_frequency_has_a_log_axis_with_the_bins_as_ticks():
    ax = plots_training.plot_frequency(frequency())
    assert ax.get_xscale() == "log" and "m-16 (n = 120)" in texts(ax)
    assert ticks(ax.get_xticklabels()) == ["2", "8", "32"]


def test_knowledge_shows_shares_that_add_up_and_each_way(tmp_path):
    left, right = plots_extensions.plot_knowledge(*known())
    shares = [float(text.rstrip("%")) for text in ticks(left.texts)]
    assert len(shares) == 16 and sum(shares) == pytest.approx(100, abs=1)
    assert "n = 160" in texts(left) and "S-knows\nW-not" in texts(left)
    assert all(name in texts(right) for name in ("judged rightly", "explicit conflict", "implicit conflict", "lift"))
    assert min(smallest(left), smallest(right)) >= 9
    assert_same_picture(lambda: plots_extensions.plot_knowledge(*known()), tmp_path, "known")


def test_followups_have_one_picture_a_confidence_and_one_of_shared_errors(tmp_path):
    axes = plots_extensions.plot_followups(*followed())
    titles = ["confidence: paper", "confidence: calibrated", "errors shared with the teacher"]
    assert [ax.get_title() for ax in axes] == titles
    rows = ["strong ceiling", "no conflict", "explicit conflict", "implicit conflict"]
    assert ticks(axes[0].get_yticklabels()) == rows and not any(ticks(axes[1].get_yticklabels()))
    assert all("n = 160 pairs" in texts(ax) and smallest(ax) >= 9 for ax in axes)
    assert_same_picture(lambda: plots_extensions.plot_followups(*followed()), tmp_path, "followed")


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda: plots.plot_tax_by_area(twice(area_table())), "area_table: several values of weak; draw one"),
        (lambda: plots.plot_surface(twice(surface())), "surface: several rows for one pair of thresholds"),
        (lambda: plots.plot_mitigation(scores().query("role == 'student'")), "scores: no bootstrapped student"),
    ],
)
def test_messages(draw, message):
    with pytest.raises(ValueError, match=message):
        draw()


def twice(table):
    """The rows of one weak model and again those of another."""
    return pd.concat([table, table.assign(weak="x")])
