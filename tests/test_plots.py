"""Every figure draws from a small table, labels its axes, shows what it says, and is saved as the same bytes again."""

import inspect

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from conftest import shown, texts
from matplotlib.axes import Axes
from PIL import Image

from w2s.analysis import knowledge
from w2s.deception import AREAS
from w2s.report import plots, plots_extensions, plots_training, style

pytestmark = pytest.mark.usefixtures("close_figures")

CONFLICTS = ("none", "explicit", "implicit")
PAIRS = (("m-8", "m-16"), ("m-8", "m-32"), ("m-16", "m-32"))
RIGHT = {"m-8": 0.6, "m-16": 0.7, "m-32": 0.85}
TABLE = pd.DataFrame({"name": ["a", "b", "c"], "accuracy": [0.5, 0.75, np.nan], "pairs": [4, 8, 0]})


def frame(columns, rows, **more):
    return pd.DataFrame(rows, columns=columns.split()).assign(**more)


def reach(table, *measures):
    """The table with an interval of 0.1 to both sides of each measure."""
    return table.assign(**{f"{m}_{end}": table[m] + by for m in measures for end, by in (("low", -0.1), ("high", 0.1))})


STUDENTS = [("student", strong, weak, c, 0.65) for weak, strong in PAIRS for c in CONFLICTS]
ACCURACIES = [("gold", model, "", "none", accuracy) for model, accuracy in RIGHT.items()] + STUDENTS
ACCURACIES = frame("role model teacher conflict accuracy", ACCURACIES, via="", seed=0, pairs=200)
ACCURACIES = reach(ACCURACIES, "accuracy")

# Three pairs under each conflict, one chain, no tax (nan) without conflict and in one cell.
SCORES = [("student", w, s, w, "") for w, s in PAIRS] + [("bootstrapped", "m-8", "m-32", "m-16", "m-8")]
SCORES = [(c, 12 * (c != "none" and row[1:3] != ("m-8", "m-16")), *row) for c in CONFLICTS for row in SCORES]
SCORES = frame(
    "conflict tax role weak strong teacher via", SCORES, student_accuracy=0.7, even_share=0.3, seed=0, pairs=200
).assign(turned=False)
SCORES["score"] = 0.55 + 0 / SCORES["tax"]
SCORES["weak_accuracy"], SCORES["ceiling_accuracy"] = SCORES["weak"].map(RIGHT), SCORES["strong"].map(RIGHT)
SCORES = SCORES.eval("gap = ceiling_accuracy - weak_accuracy").eval("score_minus_even = score - even_share")
SCORES = reach(SCORES, "score", "score_minus_even", "student_accuracy")

AREA_TABLE = [(c, area, 30 * (k != 2), 3 * k * (c != "none")) for c in CONFLICTS for k, area in enumerate(AREAS)]
AREA_TABLE = frame("conflict area at_risk tax", AREA_TABLE, weak="m-8", strong="m-32", turned=False).eval(
    "rate = tax / at_risk"
)
AREA_TABLE = reach(AREA_TABLE.assign(rate=AREA_TABLE["rate"].where(AREA_TABLE["at_risk"] > 0)), "rate")
SHARES = [("paper", 9, 0.02, 0.2, 0.05, 0.73), ("own", 9, 0.3, 0.4, 0, 0.3)]
SHARES = frame("confidence pairs " + " ".join(AREAS), SHARES)
SURFACE = [(0.5, 0.5, 14, 10), (0.5, 0.75, 8, 10), (0.75, 0.5, 4, 2), (0.75, 0.75, 0, 10)]  # third: too small an area
SURFACE = frame("weak_threshold strong_threshold blind_tax even_tax", SURFACE, tax=20)
SURFACE = SURFACE.eval("score = blind_tax / 20").eval("lift = blind_tax / even_tax")
SIDES = [(d, side) for d in ("harmless", "helpful") for side in ("chosen", "rejected")]
LENGTHS = [(d, side, 10 * k + 10 * (side == "rejected")) for d, side in SIDES for k in range(1, 5)]
LENGTHS = frame("dimension response characters", LENGTHS)
OFTEN = [(m, n, 0.5 + 0.05 * k * j) for j, m in enumerate(RIGHT) for k, n in enumerate((2, 8, 32))]
OFTEN = frame("model mentions_bin accuracy", OFTEN, low=0.4, high=0.95, pairs=40)
P = np.random.default_rng(1).random((2, 200))
SUBSTANCES = pd.DataFrame({"name": list("abcde"), "mentions": [3, 100, 10, 30, 3]})
LOG = [("small", 1, 0.7), ("small", 10, 0.6), ("small", 20, 0.5), ("large", 1, 0.69), ("large", 10, 0.4)]
LOG = frame("run step loss", [*LOG, ("large", 20, 0.2)])
PREDICTIONS = pd.DataFrame({"run": np.repeat(["run-a", "run-b"], 150), "probability": 0.9 * P.ravel()[:300] + 0.1})
CURVES = [(c, z, np.exp(-z) + up * (z < 0), -np.exp(-z)) for c, up in (("none", 0), ("explicit", 0.5)) for z in (-1, 1)]
CURVES = frame("conflict margin loss derivative", CURVES)
CROSS = frame("by_confidence by_knowledge", [(a, b) for a in AREAS for b in knowledge.AREAS], pairs=10)
LIFTS = frame("conflict known_by", [(c, way) for c in CONFLICTS[1:] for way in knowledge.WAYS], pairs=160, lift=1.1)
LIFTS = reach(LIFTS, "lift")
MEASURES = [f"{measure}_{model}" for measure in ("share", "correlation") for model in ("student", "ceiling")]
FOLLOWED = reach(pd.DataFrame({"conflict": CONFLICTS, "pairs": 160, **dict.fromkeys(MEASURES, 0.2)}), *MEASURES)
FOLLOWED = (FOLLOWED, FOLLOWED)

DIFFERENCES = [
    (way, c, m, 0.1 * k) for k, way in enumerate("xyz") for c in CONFLICTS[1:] for m in ("accuracy", "score")
]
DIFFERENCES = frame("label conflict measure estimate", DIFFERENCES).eval("low = estimate - 0.1\nhigh = estimate + 0.1")

LABELS = ("weak", "gold", "shuffled")
TAXED = frame("labels conflict", [(k, c) for k in LABELS for c in CONFLICTS], tax_share=0.5, score=0.5, pairs=77)
TAXED = reach(TAXED, "tax_share", "score").assign(even_share=0.4, tax=np.where(TAXED["labels"] == "gold", 9, 30))
STRENGTHS = frame("labels alpha", [(k, x) for k in LABELS[:2] for x in (0.0, 1.0)], student_accuracy=0.5, pairs=77)
STRENGTHS = reach(STRENGTHS, "student_accuracy").assign(student_accuracy_seed_min=0.3, student_accuracy_seed_max=0.7)
REMEDIES = frame("remedy conflict", [(r, c) for r in ("nothing", "better") for c in CONFLICTS[:2]], pairs=77)
REMEDIES = REMEDIES.assign(student_accuracy=0.6, conflicting=0.5, conflicting_pairs=55, uses_gold=["", "", "x", "x"])
REMEDIES = reach(REMEDIES, "student_accuracy", "conflicting")
TRIED = frame("conflict", [("planted 50%",), ("explicit",)], score=0.5, lift=1.2, odds_ratio=2.0, contrast=0.3)
TRIED = reach(TRIED, *plots_extensions.YARDSTICKS).assign(even_share=0.4)

FIGURES = {  # each figure, its input, and words that it shows
    plots.plot_accuracy: ((ACCURACIES,), "m-16 → m-32; weak model; strong ceiling; chance; student, implicit conflict"),
    plots.plot_areas: ((*P, P[0] > 0.2, P[1] > 0.5), "W-known; S-unknown"),
    plots.plot_area_shares: ((SHARES,), "paper; 0.73"),
    plots.plot_tax_by_area: ((AREA_TABLE,), "explicit (18 tax pairs)"),
    plots.plot_score_heatmap: ((SCORES, "explicit"), "0.55\ntax 12; no tax"),
    plots.plot_surface: ((SURFACE,), "n = 20 tax pairs"),
    plots.plot_score_by_gap: ((SCORES,), "even share; explicit conflict"),
    plots.plot_differences: ((DIFFERENCES, {"accuracy": "accuracy", "score": "Score"}, 200), "accuracy; Score"),
    plots_training.plot_mentions: ((SUBSTANCES,), "n = 5 substances; median: 10 mentions"),
    plots_training.plot_lengths: ((LENGTHS,), "harmless\nn = 4 pairs; chosen; rejected"),
    plots_training.plot_loss: ((LOG, 1.3, "log(1 + e)"), "small; large; log(1 + e)"),
    plots_training.plot_labels: ((PREDICTIONS,), "run-a (n = 150)"),
    plots_training.plot_margin_curves: ((CURVES, "nat"), "(nats); derivative (nats a nat); explicit conflict"),
    plots_training.plot_reliability: ((PREDICTIONS,), "run-a (n = 150); calibrated"),
    plots_training.plot_frequency: ((OFTEN,), "m-16 (n = 120); 32"),
    plots_extensions.plot_knowledge: (
        (CROSS, LIFTS, pd.concat([LIFTS, LIFTS.assign(lift=np.nan)])),  # one without tax
        "S-knows\nW-not; 6.2%; judged rightly; implicit conflict"),
    plots_extensions.plot_followups: (
        ({"paper": FOLLOWED, "calibrated": FOLLOWED}, FOLLOWED),
        "confidence: calibrated; errors shared with the teacher; strong ceiling; no conflict"),
    plots_extensions.plot_controls: ((TAXED,), "77; shuffled; explicit conflict"),
    plots_extensions.plot_strength: (
        (STRENGTHS, STRENGTHS.rename(columns={"alpha": "times"})),
        "n = 77; gold labels; chance; alpha; pairs of the implicit conflict"),
    plots_extensions.plot_tradeoff: ((REMEDIES,), "n = 77; n = 55; nothing; better (gold); explicit conflict"),
    plots_extensions.plot_yardsticks: ((TRIED,), "planted 50%; twin contrast; even share"),
}  # fmt: skip
NAMED_ROWS = ("accuracy", "area_shares", "lengths", "differences", "followups", "yardsticks")  # and so no label of y
NO_N = ("loss", "margin_curves", "controls", "yardsticks")  # single batches, a formula; and it is in words


@pytest.mark.parametrize("plot", FIGURES, ids=lambda plot: plot.__name__[5:])
def test_a_figure_has_labels_in_print_size_shows_its_words_in_axes_of_its_own_and_is_the_same_again(plot):
    (given, words), name, before = FIGURES[plot], plot.__name__[5:], len(plt.get_fignums())
    axes = np.ravel(plot(*given))
    assert len(plt.get_fignums()) == before + 1 and all(isinstance(ax, Axes) for ax in axes)
    assert all(ax.get_xlabel() for ax in axes) and (axes[0].get_ylabel() or name in NAMED_ROWS)
    drawn, figures = shown(axes[0].figure), [axes[0].figure, np.ravel(plot(*given))[0].figure]
    every = "\n".join(text.get_text() for text in drawn)
    assert [word for word in words.split("; ") if word not in every] == [] and ("n = " in every or name in NO_N)
    assert min(text.get_fontsize() for text in drawn) >= 9
    figures[1].canvas.draw()
    assert np.array_equal(*(np.asarray(figure.canvas.buffer_rgba()) for figure in figures))
    if "ax" in inspect.signature(plot).parameters:
        given_axes = plt.subplots()[1]
        assert plot(*given, ax=given_axes) is given_axes


def ticks(labels):
    return [label.get_text() for label in labels]


def test_accuracy_shows_each_pair_on_its_row_and_the_seed_where_there_are_several():
    assert "seed" not in texts(plots.plot_accuracy(ACCURACIES))
    both = pd.concat([ACCURACIES, ACCURACIES.assign(seed=1)])
    assert "m-8 → m-16, seed 1" in texts(plots.plot_accuracy(both))
    ax = plots.plot_accuracy(ACCURACIES)  # each model on the row of its pair
    lines = {bars.get_label(): bars[0].get_xydata().round(2).tolist() for bars in ax.containers}
    assert lines["weak model"] == [[0.6, -0.27], [0.6, 0.73], [0.7, 1.73]]
    assert lines["strong ceiling"] == [[0.7, -0.27], [0.85, 0.73], [0.85, 1.73]]
    (gaps,) = [part for part in ax.collections if len(part.get_segments()) == 3 and part.get_linewidth()[0] == 3]
    assert [part[:, 0].round(2).tolist() for part in gaps.get_segments()] == [[0.6, 0.7], [0.6, 0.85], [0.7, 0.85]]
    assert lines["student, no conflict"] == [[0.65, -0.09], [0.65, 0.91], [0.65, 1.91]]


def test_areas_put_pairs_at_risk_into_squares_with_the_part_that_is_lost():
    ceiling, weak = [0.92, 0.93, 0.61, 0.92, 0.92], [0.93, 0.58, 0.61, 0.57, 0.57]
    ax = plots.plot_areas(ceiling, weak, [1, 1, 1, 1, 0], tax=[False, True, False, False, True])
    (squares,) = ax.collections
    found = {tuple(at.round(3)): lost for at, lost in zip(squares.get_offsets(), squares.get_array())}
    assert found == {(0.575, 0.925): 0.5, (0.625, 0.625): 0, (0.925, 0.925): 0}  # the fifth was not at risk
    assert "n = 4 pairs at risk" in ax.get_xlabel() and "tax: 1 pairs" in ax.figure.axes[-1].get_ylabel()
    assert {"W-known", "W-unknown", "S-known", "S-unknown"} == set(ticks(ax.texts))
    assert not [text for text in ax.texts if max(text.get_position()) < 1]  # no label lies on the squares
    ax = plots.plot_areas([0.1, 0.9], [0.2, 0.8], [True, True], [False, True], known_by="gold")
    assert ax.get_xlim()[0] == 0.0 and "P of the preferred response" in ax.get_xlabel()


def test_tax_by_area_leaves_out_a_conflict_without_tax():
    assert "none" not in texts(plots.plot_tax_by_area(AREA_TABLE))
    assert "no tax" in texts(plots.plot_tax_by_area(AREA_TABLE.assign(tax=0)))


def test_heatmap_hatches_cells_without_tax_and_leaves_absent_pairs_blank():
    ax = plots.plot_score_heatmap(SCORES, "explicit")
    assert sorted(ticks(ax.texts)) == ["0.55\ntax 12", "0.55\ntax 12", "no tax"]
    lifts = ax.collections[0].get_array().ravel()
    assert lifts.compressed().tolist() == pytest.approx([plots.MAX_LIFT] * 2)  # 0.55 / 0.3, where the colours end
    assert [patch.get_hatch() for patch in ax.patches].count("///") == 1
    assert ticks(ax.get_xticklabels()) == ["m-16", "m-32"]
    assert set(ticks(plots.plot_score_heatmap(SCORES, "none").texts)) == {"no tax"}


def test_score_by_gap_leaves_out_nan_and_shows_the_even_share_and_the_line_of_a_slope():
    ax, difference = plots.plot_score_by_gap(SCORES)
    assert "even share" in texts(ax) and "no conflict" not in texts(ax)
    even = next(line for line in ax.lines if line.get_label() == "even share")
    assert set(even.get_ydata()) == {0.3} and len(even.get_xdata()) == SCORES.query("role == 'student'").score.count()
    assert [line.get_ydata()[0] for line in difference.lines if line.get_linestyle() == ":"] == [0]
    assert "no tax" in texts(plots.plot_score_by_gap(SCORES.assign(score=np.nan))[0])
    slope = {"conflict": "implicit", "measure": "score", "slope": 2.0, "mean_gap": 0.2, "mean": 0.5}
    both = pd.DataFrame([slope, slope | {"measure": "score_minus_even", "mean": 0.1}])
    ax, difference = plots.plot_score_by_gap(SCORES, both)
    assert [line.get_ydata()[0] for line in difference.lines if line.get_linestyle() == "--"] == pytest.approx([0.0])
    (line,) = [line for line in ax.lines if line.get_linestyle() == "--"]
    x, y = line.get_data()
    assert list(x) == pytest.approx([0.15, 0.25]) and list(y) == pytest.approx([0.4, 0.6])


def test_surfaces_hatch_small_areas_write_scores_frame_the_threshold_and_share_one_bar():
    fig, axes = plt.subplots(1, 2)
    for ax in axes:
        plots.plot_surface(SURFACE, ax, at=0.75, title="explicit")
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


def test_differences_have_a_zero_line_and_the_colours_of_the_conflicts():
    axes = plots.plot_differences(*FIGURES[plots.plot_differences][0])
    for ax in axes:
        assert [line.get_xdata()[0] for line in ax.lines if line.get_linestyle() == ":"] == [0]
        colours = [bars[0].get_color() for bars in ax.containers]
        assert colours == [style.COLOURS["explicit"], style.COLOURS["implicit"]]
        assert ax.containers[0][0].get_xdata().tolist() == [0, 0.1, 0.2]
    assert "nothing to compare" in texts(plots.plot_differences(DIFFERENCES.head(0), {"score": "Score"}, 200)[0])
    assert ticks(axes[0].get_yticklabels()) == ["x", "y", "z"] and "accuracy" in axes[0].get_xlabel()


def test_small_bins_are_left_out_few_tax_pairs_are_hollow_and_thresholds_are_drawn():
    few = pd.DataFrame({"run": "a", "probability": [0.93] * 20 + [0.63] * 19})
    assert [len(bars[0].get_xdata()) for bars in plots_training.plot_reliability(few).containers] == [1]
    tax, score = plots_extensions.plot_controls(TAXED)
    hollow = [line for line in score.lines if line.get_markerfacecolor() == "white"]
    assert [line.get_xdata().tolist() for line in hollow] == [[pytest.approx(0.9)], [pytest.approx(1.1)]]
    assert not [line for line in tax.lines if line.get_markerfacecolor() == "white"]
    ax = plots_training.plot_labels(PREDICTIONS, threshold=0.9)
    assert sorted(round(line.get_xdata()[0], 6) for line in ax.lines) == [0.1, 0.5, 0.9]
    assert set(plots_training.plot_loss(LOG, 1.3, "log(1 + e)").lines[-1].get_ydata()) == {1.3}


MESSAGES = {
    plots.plot_tax_by_area: (AREA_TABLE, "area_table: several values of weak; draw one"),
    plots.plot_surface: (SURFACE, "surface: several rows for one pair of thresholds"),
}


@pytest.mark.parametrize("plot", MESSAGES)
def test_messages(plot):
    table, message = MESSAGES[plot]
    with pytest.raises(ValueError, match=message):
        plot(pd.concat([table, table.assign(weak="x")]))  # the rows of one weak model and again those of another


@pytest.fixture
def ax():
    ax = style.new_axes(3, 2)
    ax.errorbar(TABLE["pairs"], TABLE["accuracy"], [0.1, 0.2, 0.1], label="runs")
    return style.finish(ax, "pairs", "accuracy", 1)


def test_conflicts_have_names_and_colours_that_differ_in_lightness_and_new_axes_their_size():
    assert list(style.COLOURS) == ["none", "explicit", "implicit"]
    lightness = sorted(np.dot(colour, (0.2126, 0.7152, 0.0722)) for colour in style.COLOURS.values())
    assert np.diff(lightness).min() > 0.02  # in print without colours they are not one grey
    names = [style.conflict_name(conflict, "student, ") for conflict in style.COLOURS]
    assert names == ["student, no conflict", "student, explicit conflict", "student, implicit conflict"]
    assert tuple(style.new_axes(5, 2).figure.get_size_inches()) == (5, 2)
    near, far = (style.new_axes(6, 2, 2, gap) for gap in (0.1, 0.5))
    assert near.shape == far.shape == (2,)
    between = [axes[1].get_position().x0 - axes[0].get_position().x1 for axes in (near, far)]
    assert between[0] < between[1]


def test_finished_axes_have_no_frame_and_lie_below_their_legend(ax):
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
    png, svg = paths[:2]  # they keep the caption, but no date and no version
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
