"""Every figure draws from a small table, labels its axes, shows what it says, and is saved as the same bytes again."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from conftest import assert_own_axes, assert_same_picture, smallest, texts
from matplotlib.patches import StepPatch
from PIL import Image

from w2s.analysis import knowledge
from w2s.analysis.scoring import SCORE_COLUMNS
from w2s.deception import AREAS
from w2s.intervals import wilson
from w2s.report import plots, plots_extensions, plots_training, style

pytestmark = pytest.mark.usefixtures("close_figures")

CONFLICTS = ("none", "explicit", "implicit")
PAIRS = (("m-8", "m-16"), ("m-8", "m-32"), ("m-16", "m-32"))
RIGHT = {"m-8": 0.6, "m-16": 0.7, "m-32": 0.85}
TABLE = pd.DataFrame({"name": ["a", "b", "c"], "accuracy": [0.5, 0.75, np.nan], "pairs": [4, 8, 0]})


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


def known():
    cells = [{"by_confidence": a, "by_knowledge": b, "pairs": 10} for a in AREAS for b in knowledge.AREAS]
    ways = [(c, k, way) for c in ("explicit", "implicit") for k, way in enumerate(knowledge.WAYS)]
    rows = pd.DataFrame(
        [{"conflict": c, "known_by": w, "pairs": 160} | ranged("lift", 1 + 0.1 * k) for c, k, w in ways]
    )
    settings = pd.concat([rows, rows.assign(lift=np.nan)])  # a setting without a tax
    return pd.DataFrame(cells), rows, settings


def followed():
    names = [f"{measure}_{model}" for measure in ("share", "correlation") for model in ("student", "ceiling")]
    row = {"pairs": 160} | {key: value for name in names for key, value in ranged(name, 0.2).items()}
    table = pd.DataFrame([row | {"conflict": conflict} for conflict in CONFLICTS])
    return {"paper": (table, table), "calibrated": (table, table)}, (table, table)


SHARES = [("paper", 200, 0.02, 0.2, 0.05, 0.73), ("calibrated", 200, 0.3, 0.4, 0.0, 0.3)]
SHARES = pd.DataFrame(SHARES, columns=["confidence", "pairs", *AREAS])
CHOICES = [("harmless", "goes along", 0.52, 52), ("harmless", "warns", 0.48, 48), ("helpful", "goes along", 1.0, 80)]
CHOICES = pd.DataFrame(CHOICES, columns=["dimension", "choice", "share", "pairs"])
OFTEN = [(m, n, 0.5 + 0.05 * k * j) for j, m in enumerate(RIGHT) for k, n in enumerate((2, 8, 32))]
OFTEN = pd.DataFrame(OFTEN, columns=["model", "mentions_bin", "accuracy"]).assign(low=0.4, high=0.95, pairs=40)
P = np.random.default_rng(1).random((2, 200))
SUBSTANCES = pd.DataFrame({"name": list("abcde"), "mentions": [3, 100, 10, 30, 3]})
LOSSES = {"small": [0.7, 0.6, 0.5], "large": [0.69, 0.4, 0.2]}
LOG = pd.concat([pd.DataFrame({"run": run, "step": [1, 10, 20], "loss": loss}) for run, loss in LOSSES.items()])
PREDICTIONS = pd.DataFrame({"run": np.repeat(["run-a", "run-b"], 150), "probability": 0.9 * P.ravel()[:300] + 0.1})
Z = np.array([-1.0, -0.5, 0.5, 1.0])
CURVES = [("none", np.exp(-Z)), ("explicit", np.exp(-Z) + 0.5 * (Z < 0))]
CURVES = [{"conflict": c, "margin": z, "loss": v, "slope": -v} for c, loss in CURVES for z, v in zip(Z, loss)]
CURVES = pd.DataFrame(CURVES)

FIGURES = {  # each figure and its input
    plots.plot_accuracy: (accuracies(),),
    plots.plot_areas: P,
    plots.plot_area_shares: (SHARES,),
    plots.plot_tax_by_area: (area_table(),),
    plots.plot_score_heatmap: (scores(), "explicit"),
    plots.plot_surface: (surface(),),
    plots.plot_score_by_gap: (scores(),),
    plots_training.plot_mentions: (SUBSTANCES,),
    plots_training.plot_lengths: (lengths(),),
    plots_training.plot_choices: (CHOICES,),
    plots_training.plot_loss: (LOG,),
    plots_training.plot_labels: (PREDICTIONS,),
    plots_training.plot_reliability: (PREDICTIONS,),
    plots_training.plot_frequency: (OFTEN,),
}
PANELS = {plots.plot_mitigation: (scores(),), plots_training.plot_margin_curves: (CURVES,)}
PANELS |= {plots_extensions.plot_knowledge: known(), plots_extensions.plot_followups: followed()}


@pytest.mark.parametrize("plot", FIGURES, ids=lambda plot: plot.__name__)
def test_a_figure_has_labels_in_print_size_makes_its_own_axes_or_takes_others(plot):
    _, given = plt.subplots()
    ax = plot(*FIGURES[plot], ax=given)
    assert ax is given and ax.get_xlabel() and smallest(ax) >= 9
    assert ax.get_ylabel() or plot.__name__[5:] in ("accuracy", "area_shares", "lengths", "choices")  # rows have names
    assert "n = " in texts(ax) or plot is plots_training.plot_loss  # its points are single batches
    assert_own_axes(lambda: plot(*FIGURES[plot]))


@pytest.mark.parametrize("plot", PANELS, ids=lambda plot: plot.__name__)
def test_figures_of_several_panels_have_print_size_and_take_other_axes(plot):
    axes = plot(*PANELS[plot])
    assert all(ax.get_xlabel() and smallest(ax) >= 9 for ax in axes)
    if "axes" in plot.__code__.co_varnames[: plot.__code__.co_argcount]:
        _, given = plt.subplots(1, 2)
        assert list(plot(*PANELS[plot], given)) == list(given)


@pytest.mark.parametrize("plot", [*FIGURES, *PANELS], ids=lambda plot: plot.__name__)
def test_a_figure_is_the_same_again(plot, tmp_path):
    assert_same_picture(lambda: plot(*(FIGURES | PANELS)[plot]), tmp_path, "again")


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


def test_accuracy_puts_each_model_on_the_row_of_its_pair():
    ax = plots.plot_accuracy(accuracies())
    lines = {bars.get_label(): bars[0].get_xydata().round(2).tolist() for bars in ax.containers}
    assert lines["weak model"] == [[0.6, -0.27], [0.6, 0.73], [0.7, 1.73]]
    assert lines["strong ceiling"] == [[0.7, -0.27], [0.85, 0.73], [0.85, 1.73]]
    assert lines["student, no conflict"] == [[0.65, -0.09], [0.65, 0.91], [0.65, 1.91]]


def test_areas_count_their_pairs_mark_the_tax_and_show_all_of_p_by_gold():
    shown = texts(plots.plot_areas([0.9, 0.9, 0.6, 0.9], [0.9, 0.6, 0.6, 0.55], tax=[False, True, False, False]))
    assert "S-known\nW-unknown\n2 pairs" in shown and "S-unknown\nW-known\n0 pairs" in shown
    assert "conflict tax (1 pairs)" in shown
    ax = plots.plot_areas([0.1, 0.9], [0.2, 0.8], known_by="gold")
    assert ax.get_xlim()[0] < 0.0 and "P of the preferred response" in ax.get_xlabel()


def test_stacked_shares_fill_each_bar_in_the_order_of_the_table():
    ax = plots.plot_area_shares(SHARES)
    widths = [[bar.get_width() for bar in container] for container in ax.containers]
    np.testing.assert_allclose(widths, [[0.02, 0.3], [0.2, 0.4], [0.05, 0.0], [0.73, 0.3]])
    assert [round(bar.get_x(), 9) for bar in ax.containers[3]] == [0.27, 0.7]
    assert legend_of(ax) == list(AREAS) and ticks(ax.get_yticklabels()) == ["paper", "calibrated"]
    assert ax.yaxis_inverted() and ticks(ax.texts) == ["", "0.30", "0.20", "0.40", "", "", "0.73", "0.30"]
    ax = plots_training.plot_choices(CHOICES)
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
    places = {text.get_text(): text.get_position() for text in ax.texts if text.get_text()}
    assert places == {".70": (0.5, 0.5), ".40": (0.5, 1.5), ".00": (1.5, 1.5)} and not ax.yaxis_inverted()
    assert [patch.get_xy() for patch in ax.patches if patch.get_hatch() == "///"] == [(1, 0)]
    assert [patch.get_xy() for patch in ax.patches if not patch.get_fill()] == [(1, 1)]
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
    assert all("logits" in ax.get_xlabel() for ax in axes)
    none, explicit = axes[0].lines[:2]
    assert none.get_linestyle() == "-" and explicit.get_linestyle() == "--"
    np.testing.assert_allclose(explicit.get_ydata() - none.get_ydata(), [0.5, 0.5, 0, 0])
    assert legend_of(axes[0]) == ["no conflict", "explicit conflict"]
    loss, slope = plots_training.plot_margin_curves(CURVES, unit="nat")
    assert "(nats)" in loss.get_xlabel() and slope.get_ylabel() == "derivative (nats a nat)"


def test_reliability_names_its_runs_and_needs_no_run_column():
    shown = texts(plots_training.plot_reliability(PREDICTIONS))
    assert "run-a (n = 150)" in shown and "calibrated" in shown
    assert "this run (n = 300)" in texts(plots_training.plot_reliability(PREDICTIONS.drop(columns="run")))


def test_frequency_has_a_log_axis_with_the_bins_as_ticks():
    ax = plots_training.plot_frequency(OFTEN)
    assert ax.get_xscale() == "log" and "m-16 (n = 120)" in texts(ax)
    assert ticks(ax.get_xticklabels()) == ["2", "8", "32"]


def test_knowledge_shows_shares_that_add_up_and_each_way():
    left, right = plots_extensions.plot_knowledge(*known())
    shares = [float(text.rstrip("%")) for text in ticks(left.texts)]
    assert len(shares) == 16 and sum(shares) == pytest.approx(100, abs=1)
    assert "n = 160" in texts(left) and "S-knows\nW-not" in texts(left)
    assert all(name in texts(right) for name in ("judged rightly", "explicit conflict", "implicit conflict", "lift"))


def test_followups_have_one_picture_a_confidence_and_one_of_shared_errors():
    axes = plots_extensions.plot_followups(*followed())
    titles = ["confidence: paper", "confidence: calibrated", "errors shared with the teacher"]
    assert [ax.get_title() for ax in axes] == titles and all("n = 160 pairs" in texts(ax) for ax in axes)
    rows = ["strong ceiling", "no conflict", "explicit conflict", "implicit conflict"]
    assert ticks(axes[0].get_yticklabels()) == rows and not any(ticks(axes[1].get_yticklabels()))


@pytest.mark.parametrize(
    ("plot", "table", "message"),
    [
        (plots.plot_tax_by_area, area_table(), "area_table: several values of weak; draw one"),
        (plots.plot_surface, surface(), "surface: several rows for one pair of thresholds"),
        (plots.plot_mitigation, scores().query("role == 'student'"), "scores: no bootstrapped student"),
    ],
)
def test_messages(plot, table, message):
    with pytest.raises(ValueError, match=message):
        plot(pd.concat([table, table.assign(weak="x")]))  # the rows of one weak model and again those of another


# What figures share, and saving.


@pytest.fixture
def ax():
    ax = style.new_axes(3, 2)
    ax.errorbar(TABLE["pairs"], TABLE["accuracy"], [0.1, 0.2, 0.1], label="runs")
    return style.finish(ax, "pairs", "accuracy", 1)


def test_every_conflict_has_a_name_and_a_colour_of_its_own_and_they_differ_in_lightness():
    assert list(style.COLOURS) == ["none", "explicit", "implicit"]
    lightness = sorted(np.dot(colour, (0.2126, 0.7152, 0.0722)) for colour in style.COLOURS.values())
    assert np.diff(lightness).min() > 0.02  # in print without colours they are not one grey
    names = [style.conflict_name(conflict, "student, ") for conflict in style.COLOURS]
    assert names == ["student, no conflict", "student, explicit conflict", "student, implicit conflict"]


def test_new_axes_have_the_size_in_inches_and_the_columns():
    assert tuple(style.new_axes(5, 2).figure.get_size_inches()) == (5, 2)
    near, far = (style.new_axes(6, 2, 2, gap) for gap in (0.1, 0.5))
    assert near.shape == far.shape == (2,)
    between = [axes[1].get_position().x0 - axes[0].get_position().x1 for axes in (near, far)]
    assert between[0] < between[1]


def test_finished_axes_are_labelled_in_print_size_without_a_frame_and_below_their_legend(ax):
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("pairs", "accuracy")
    assert smallest(ax) >= 9
    assert not ax.spines["top"].get_visible() and not ax.spines["right"].get_visible()
    ax.figure.canvas.draw()
    legend = ax.get_legend().get_window_extent()
    assert legend.y0 >= ax.get_window_extent().y1 and not ax.get_legend().get_frame_on()


def test_spread_by_hand():
    rows = pd.DataFrame({"accuracy": [0.6, 0.5], "low": [0.5, 0.5], "high": [0.9, np.nan], "score": 0.4})
    np.testing.assert_allclose(style.spread(rows, "accuracy"), [[0.1, 0.0], [0.3, np.nan]])
    own = rows.assign(score_low=0.1, score_high=0.6)
    np.testing.assert_allclose(style.spread(own, "score"), [[0.3, 0.3], [0.2, 0.2]])
    # Rounding can put an estimate of 1 above its upper end; errorbar refuses a negative distance.
    above = pd.DataFrame({"accuracy": [1.0], "low": [0.8], "high": [1.0 - 1e-12]})
    assert style.spread(above, "accuracy")[1] == 0


def test_save_writes_figure_and_table_keeps_the_figure_open_and_gives_the_same_bytes_again(ax, tmp_path):
    paths = style.save(ax, tmp_path / "a", "accuracy", TABLE, "Pairs & models.")
    kinds = (("figures", "png"), ("figures", "svg"), ("tables", "csv"), ("tables", "parquet"))
    assert paths == [tmp_path / "a" / folder / f"accuracy.{end}" for folder, end in kinds]
    assert sorted(tmp_path.rglob("*.*")) == sorted(paths)  # no temporary file is left
    pd.testing.assert_frame_equal(pd.read_parquet(paths[3]), TABLE)
    pd.testing.assert_frame_equal(pd.read_csv(paths[2]), TABLE)
    assert plt.fignum_exists(ax.figure.number)
    first = [path.read_bytes() for path in paths]
    for given in (ax.figure, np.array([ax])):  # a figure, or the array of its axes, is saved the same
        again = style.save(given, tmp_path / "b", "accuracy", TABLE, "Pairs & models.")
        assert [path.read_bytes() for path in again] == first


def test_pictures_keep_the_caption_but_no_date_and_no_version(ax, tmp_path):
    png, svg = style.save(ax, tmp_path, "accuracy", caption="Pairs & models.")
    assert Image.open(png).text["Description"] == "Pairs & models."
    assert "Pairs &amp; models." in svg.read_text(encoding="utf-8")
    assert b"Software" not in png.read_bytes() and b"tIME" not in png.read_bytes()
    assert b"dc:date" not in svg.read_bytes() and b"Matplotlib v" not in svg.read_bytes()
    assert "Description" not in Image.open(style.save(ax, tmp_path, "silent")[0]).text


@pytest.mark.parametrize("kind", ["picture", "table"])
def test_a_failed_picture_or_table_leaves_the_old_file_and_no_other(ax, kind, tmp_path, monkeypatch):
    def write():
        return style.save(ax, tmp_path, "a") if kind == "picture" else style.save_table(table, tmp_path, "a")

    def fail(path, **options):
        path.write_bytes(b"half")
        raise OSError("disk full")

    table = TABLE.copy()
    paths = write()
    before = [path.read_bytes() for path in paths]
    monkeypatch.setattr(*(ax.figure, "savefig") if kind == "picture" else (table, "to_csv"), fail)
    with pytest.raises(OSError, match="disk full"):
        write()
    assert [path.read_bytes() for path in paths] == before and sorted(paths[0].parent.iterdir()) == sorted(paths)


@pytest.mark.parametrize("name", ["../escape", "", ".hidden", "a/b", "two words"])
def test_a_name_that_is_no_plain_file_name_is_refused_and_nothing_is_written(ax, name, tmp_path):
    for save in (lambda: style.save(ax, tmp_path, name), lambda: style.save_table(TABLE, tmp_path, name)):
        with pytest.raises(ValueError, match="use letters, digits"):
            save()
    assert not list(tmp_path.iterdir())
