"""The figures of the analysis draw from small tables, label their axes, and survive missing scores."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from conftest import assert_own_axes, assert_same_picture, smallest, texts

from w2s.analysis.scoring import SCORE_COLUMNS
from w2s.deception import AREAS
from w2s.intervals import wilson
from w2s.report import plots

pytestmark = pytest.mark.usefixtures("close_figures")

CONFLICTS = ("none", "explicit", "implicit")
PAIRS = (("m-8", "m-16"), ("m-8", "m-32"), ("m-16", "m-32"))
ACCURACY = {"m-8": 0.6, "m-16": 0.7, "m-32": 0.85}


@pytest.fixture
def accuracies():
    def row(role, model, teacher, conflict, accuracy):
        low, high = wilson(round(200 * accuracy), 200)
        names = {"run": f"{role}-{model}-{teacher}-{conflict}", "role": role, "model": model, "teacher": teacher}
        numbers = {"pairs": 200, "accuracy": accuracy, "low": low, "high": high}
        return {**names, "via": "", "conflict": conflict, "seed": 0, **numbers}

    gold = [row("gold", model, "", "none", accuracy) for model, accuracy in ACCURACY.items()]
    return pd.DataFrame([*gold, *(row("student", s, w, c, 0.65) for w, s in PAIRS for c in CONFLICTS)])


@pytest.fixture
def scores():
    """Three pairs under each conflict, one chain, no tax (nan) without conflict and in one cell."""
    rows = []
    for conflict in CONFLICTS:
        settings = [("student", w, s, w, "") for w, s in PAIRS] + [("bootstrapped", "m-8", "m-32", "m-16", "m-8")]
        for role, weak, strong, teacher, via in settings:
            taxed = conflict != "none" and (weak, strong) != ("m-8", "m-16")
            row = dict.fromkeys(SCORE_COLUMNS, 0.5) | dict(zip(SCORE_COLUMNS, (weak, strong, role), strict=False))
            row |= {"teacher": teacher, "via": via, "conflict": conflict, "seed": 0, "pairs": 200, "tax": 12 * taxed}
            row |= {"weak_accuracy": ACCURACY[weak], "ceiling_accuracy": ACCURACY[strong]}
            row |= {"gap": ACCURACY[strong] - ACCURACY[weak], "student_accuracy": 0.7, "null": 0.3}
            row |= {"student_accuracy_low": 0.6, "student_accuracy_high": 0.8}
            score = (0.55, 0.4, 0.7) if taxed else (np.nan,) * 3
            rows.append(row | dict(zip(("score", "score_low", "score_high"), score, strict=True)))
    return pd.DataFrame(rows)


@pytest.fixture
def area_table():
    rows = []
    for conflict in CONFLICTS:
        for k, area in enumerate(AREAS):
            tax, at_risk = (0 if conflict == "none" else 3 * k), 30 * (k != 2)
            low, high = wilson(min(tax, at_risk), at_risk)
            rate = tax / at_risk if at_risk else np.nan
            names = {"weak": "m-8", "strong": "m-32", "role": "student", "teacher": "m-8", "via": "", "seed": 0}
            counts = {"area": area, "pairs": 50, "at_risk": at_risk, "tax": tax, "rate": rate, "low": low, "high": high}
            rows.append({**names, "conflict": conflict, **counts})
    return pd.DataFrame(rows)


@pytest.fixture
def area_shares():
    rows = [("paper", 200, 0.02, 0.2, 0.05, 0.73), ("calibrated", 200, 0.3, 0.4, 0.0, 0.3)]
    return pd.DataFrame(rows, columns=["confidence", "pairs", *AREAS])


@pytest.fixture
def surface():
    """Four cells: lift 1.4, below 1, too small an area, and no tax in it at all."""
    rows = [(0.5, 0.5, 14, 10), (0.5, 0.75, 8, 10), (0.75, 0.5, 4, 2), (0.75, 0.75, 0, 10)]
    table = pd.DataFrame(rows, columns=["weak_threshold", "strong_threshold", "blind_tax", "even_tax"])
    return table.assign(tax=20, score=table["blind_tax"] / 20, lift=table["blind_tax"] / table["even_tax"])


P = np.random.default_rng(1).random((2, 200))
FIGURES = {
    "accuracy": lambda t, ax: plots.plot_accuracy(t("accuracies"), ax=ax),
    "areas": lambda t, ax: plots.plot_areas(*P, ax=ax),
    "shares": lambda t, ax: plots.plot_area_shares(t("area_shares"), ax=ax),
    "tax": lambda t, ax: plots.plot_tax_by_area(t("area_table"), ax=ax),
    "heatmap": lambda t, ax: plots.plot_score_heatmap(t("scores"), "explicit", ax=ax),
    "surface": lambda t, ax: plots.plot_surface(t("surface"), ax=ax),
    "gap": lambda t, ax: plots.plot_score_by_gap(t("scores"), ax=ax),
}


@pytest.mark.parametrize("name", FIGURES)
def test_figure_draws_on_the_given_axes_with_labels_in_print_size(name, request):
    _, given = plt.subplots()
    ax = FIGURES[name](request.getfixturevalue, given)
    assert ax is given and ax.get_xlabel()
    assert ax.get_ylabel() or name in ("accuracy", "shares")  # their rows are named by their ticks
    assert smallest(ax) >= 9
    assert "n = " in texts(ax)


@pytest.mark.parametrize("name", FIGURES)
def test_figure_makes_its_own_axes(name, request):
    assert_own_axes(lambda: FIGURES[name](request.getfixturevalue, None))


@pytest.mark.parametrize("name", FIGURES)
def test_the_same_table_gives_the_same_picture(name, request, tmp_path):
    assert_same_picture(lambda: FIGURES[name](request.getfixturevalue, None), tmp_path, name)


def test_accuracy_shows_each_pair_each_conflict_and_chance(accuracies):
    ax = plots.plot_accuracy(accuracies)
    shown = texts(ax)
    for label in ("m-8 → m-16", "m-16 → m-32", "weak model", "strong ceiling", "chance", "student, implicit conflict"):
        assert label in shown
    assert "seed" not in shown


def test_accuracy_names_the_seed_when_there_are_several(accuracies):
    both = pd.concat([accuracies, accuracies.assign(seed=1)])
    assert "m-8 → m-16, seed 1" in texts(plots.plot_accuracy(both))


def test_areas_counts_its_pairs_and_marks_the_tax():
    ceiling, weak = [0.9, 0.9, 0.6, 0.9], [0.9, 0.6, 0.6, 0.55]
    shown = texts(plots.plot_areas(ceiling, weak, tax=[False, True, False, False]))
    assert "S-known\nW-unknown\n2 pairs" in shown and "S-unknown\nW-known\n0 pairs" in shown
    assert "conflict tax (1 pairs)" in shown


def test_areas_by_gold_show_the_whole_range_of_p():
    ax = plots.plot_areas([0.1, 0.9], [0.2, 0.8], known_by="gold")
    assert ax.get_xlim()[0] < 0.0 and "P of the preferred response" in ax.get_xlabel()


def test_area_shares_fill_each_bar_in_the_order_of_the_areas(area_shares):
    ax = plots.plot_area_shares(area_shares)
    widths = [[bar.get_width() for bar in container] for container in ax.containers]
    np.testing.assert_allclose(widths, [[0.02, 0.3], [0.2, 0.4], [0.05, 0.0], [0.73, 0.3]])
    assert [round(bar.get_x(), 9) for bar in ax.containers[3]] == [0.27, 0.7]
    assert [t.get_text() for t in ax.get_legend().get_texts()] == list(AREAS)
    assert [t.get_text() for t in ax.get_yticklabels()] == ["paper", "calibrated"] and ax.yaxis_inverted()
    assert [t.get_text() for t in ax.texts] == ["", "0.30", "0.20", "0.40", "", "", "0.73", "0.30"]


def test_tax_by_area_leaves_out_a_conflict_without_tax(area_table):
    shown = texts(plots.plot_tax_by_area(area_table))
    assert "explicit (18 tax pairs)" in shown and "none" not in shown
    assert "no tax" in texts(plots.plot_tax_by_area(area_table.assign(tax=0)))


def test_heatmap_hatches_cells_without_tax_and_leaves_absent_pairs_blank(scores):
    ax = plots.plot_score_heatmap(scores, "explicit")
    assert sorted(t.get_text() for t in ax.texts) == ["0.55\ntax 12", "0.55\ntax 12", "no tax"]
    assert [patch.get_hatch() for patch in ax.patches].count("///") == 1
    assert [t.get_text() for t in ax.get_xticklabels()] == ["m-16", "m-32"]


def test_heatmap_of_nan_alone(scores):
    ax = plots.plot_score_heatmap(scores, "none")
    assert {t.get_text() for t in ax.texts} == {"no tax"}


def test_heatmap_takes_an_order_of_models(scores):
    ax = plots.plot_score_heatmap(scores, "implicit", order=["m-32", "m-16", "m-8"])
    assert [t.get_text() for t in ax.get_yticklabels()] == ["m-16", "m-8"]


def test_score_by_gap_leaves_out_nan_and_shows_the_null(scores):
    ax = plots.plot_score_by_gap(scores)
    assert "expected if the tax fell evenly" in texts(ax) and "no conflict" not in texts(ax)
    null = next(line for line in ax.lines if line.get_fillstyle() == "none")
    assert len(null.get_xdata()) == 2
    assert "no tax" in texts(plots.plot_score_by_gap(scores.assign(score=np.nan)))


def test_score_by_gap_draws_the_line_of_a_slope(scores):
    slopes = {"conflict": "implicit", "measure": "score", "slope": 2.0, "mean_gap": 0.2, "mean": 0.5}
    ax = plots.plot_score_by_gap(scores, slopes=pd.DataFrame([slopes, slopes | {"measure": "score_minus_null"}]))
    (line,) = [line for line in ax.lines if line.get_linestyle() == "--"]
    x, y = line.get_data()
    assert list(x) == pytest.approx([0.15, 0.25]) and list(y) == pytest.approx([0.4, 0.6])


def test_surface_hatches_small_areas_writes_scores_and_frames_the_threshold(surface):
    ax = plots.plot_surface(surface, at=0.75, title="explicit")
    assert {t.get_text(): t.get_position() for t in ax.texts} == {".70": (0, 0), ".40": (0, 1), ".00": (1, 1)}
    hatched = [patch.get_xy() for patch in ax.patches if patch.get_hatch() == "///"]
    framed = [patch.get_xy() for patch in ax.patches if not patch.get_fill()]
    assert hatched == [(0.5, -0.5)] and framed == [(0.5, 0.5)]
    assert ax.get_title() == "explicit\nn = 20 tax pairs"
    assert [t.get_text() for t in ax.get_xticklabels()] == ["0.5", "0.75"] and ax.get_xlabel() == "weak threshold"


def test_surfaces_share_one_colour_bar(surface):
    fig, axes = plt.subplots(1, 2)
    for ax in axes:
        plots.plot_surface(surface, ax)
    plots.lift_bar(axes)
    bar = fig.axes[-1]
    assert len(fig.axes) == 3 and "lift" in bar.get_ylabel()
    assert [t.get_text() for t in bar.get_yticklabels()] == ["0.67", "0.80", "1.00", "1.25", "1.50"]


def test_mitigation_compares_direct_and_bootstrapped(scores):
    axes = plots.plot_mitigation(scores)
    assert "student accuracy" in axes[0].get_xlabel() and "Deception Score" in axes[1].get_xlabel()
    legend = [t.get_text() for t in axes[1].get_legend().get_texts()]
    assert legend == ["direct", "through m-16"]
    assert [t.get_text() for t in axes[1].texts] == ["no tax"]  # the row without conflict
    assert all(len(c[0].get_xdata()) == 3 for c in axes[0].containers)
    assert min(map(smallest, axes)) >= 9
    _, given = plt.subplots(1, 2)
    assert list(plots.plot_mitigation(scores, given)) == list(given)


def twice(table):
    """The rows of one weak model and again those of another."""
    return pd.concat([table, table.assign(weak="x")])


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda t: plots.plot_tax_by_area(twice(t("area_table"))), "area_table: several values of weak; draw one"),
        (lambda t: plots.plot_surface(twice(t("surface"))), "surface: several rows for one pair of thresholds"),
        (lambda t: plots.plot_mitigation(t("scores").query("role == 'student'")), "scores: no bootstrapped student"),
    ],
)
def test_messages(draw, message, request):
    with pytest.raises(ValueError, match=message):
        draw(request.getfixturevalue)
