"""The figures of data and training draw from small tables, label their axes, and show what they say."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from conftest import assert_own_axes, assert_same_picture, smallest, texts
from matplotlib.patches import StepPatch

from w2s.report import plots_training as plots

pytestmark = pytest.mark.usefixtures("close_figures")


@pytest.fixture
def substances():
    return pd.DataFrame({"name": list("abcde"), "mentions": [3, 100, 10, 30, 3]})


@pytest.fixture
def lengths():
    """Four pairs of each dimension: chosen of 10 to 40 characters, rejected ten longer."""
    rows = [
        (d, side, 10 * k + 10 * (side == "rejected"))
        for d in ("harmless", "helpful")
        for side in ("chosen", "rejected")
        for k in range(1, 5)
    ]
    return pd.DataFrame(rows, columns=["dimension", "response", "characters"])


@pytest.fixture
def choices():
    rows = [("harmless", "goes along", 0.52, 52), ("harmless", "warns", 0.48, 48), ("helpful", "goes along", 1.0, 80)]
    return pd.DataFrame(rows, columns=["dimension", "choice", "share", "pairs"])


@pytest.fixture
def log():
    steps = [1, 10, 20]
    losses = {"small": [0.7, 0.6, 0.5], "large": [0.69, 0.4, 0.2]}
    return pd.concat([pd.DataFrame({"run": run, "step": steps, "loss": v}) for run, v in losses.items()])


@pytest.fixture
def predictions():
    margin = np.random.default_rng(0).normal(0.8, 1.5, 300)
    runs = np.repeat(["run-a", "run-b"], 150)
    return pd.DataFrame({"run": runs, "margin": margin, "probability": 1 / (1 + np.exp(-margin))})


@pytest.fixture
def frequency():
    rows = [
        (model, mentions, 0.5 + 0.05 * k * j, 0.4, 0.95, 40)
        for j, model in enumerate(("m-8", "m-16", "m-32"))
        for k, mentions in enumerate((2, 8, 32))
    ]
    return pd.DataFrame(rows, columns=["model", "mentions_bin", "accuracy", "low", "high", "pairs"])


@pytest.fixture
def curves():
    z = np.array([-1.0, -0.5, 0.5, 1.0])
    tables = [
        pd.DataFrame({"conflict": conflict, "margin": z, "loss": np.exp(-z) + rise * (z < 0), "slope": -np.exp(-z)})
        for conflict, rise in (("none", 0.0), ("explicit", 0.5))
    ]
    return pd.concat(tables)


FIGURES = {
    "mentions": lambda t, ax: plots.plot_mentions(t("substances"), ax),
    "lengths": lambda t, ax: plots.plot_lengths(t("lengths"), ax),
    "choices": lambda t, ax: plots.plot_choices(t("choices"), ax),
    "loss": lambda t, ax: plots.plot_loss(t("log"), ax),
    "labels": lambda t, ax: plots.plot_labels(t("predictions"), ax=ax),
    "reliability": lambda t, ax: plots.plot_reliability(t("predictions"), ax=ax),
    "frequency": lambda t, ax: plots.plot_frequency(t("frequency"), ax=ax),
}


@pytest.mark.parametrize("name", FIGURES)
def test_figure_draws_on_the_given_axes_with_labels_in_print_size(name, request):
    _, given = plt.subplots()
    ax = FIGURES[name](request.getfixturevalue, given)
    assert ax is given and ax.get_xlabel()
    assert ax.get_ylabel() or name in ("lengths", "choices")  # their rows are named by their ticks
    assert smallest(ax) >= 9
    assert "n = " in texts(ax) or name == "loss"  # its points are single batches


@pytest.mark.parametrize("name", FIGURES)
def test_figure_makes_its_own_axes(name, request):
    assert_own_axes(lambda: FIGURES[name](request.getfixturevalue, None))


@pytest.mark.parametrize("name", FIGURES)
def test_the_same_table_gives_the_same_picture(name, request, tmp_path):
    assert_same_picture(lambda: FIGURES[name](request.getfixturevalue, None), tmp_path, name)


def test_mentions_fall_from_the_most_common_substance_with_their_median(substances):
    ax = plots.plot_mentions(substances)
    curve, median = ax.lines
    assert curve.get_xdata().tolist() == [1, 2, 3, 4, 5]
    assert curve.get_ydata().tolist() == [100, 30, 10, 3, 3]
    assert set(median.get_ydata()) == {10} and "median: 10 mentions" in texts(ax)
    assert ax.get_xscale() == ax.get_yscale() == "log" and "n = 5 substances" in texts(ax)


def test_lengths_have_a_box_for_each_dimension_and_response_and_count_pairs(lengths):
    ax = plots.plot_lengths(lengths)
    medians = [[line.get_xdata()[0] for line in container.medians] for container in ax.containers]
    assert medians == [[25, 25], [35, 35]]  # chosen, rejected
    assert [t.get_text() for t in ax.get_yticklabels()] == ["harmless\nn = 4 pairs", "helpful\nn = 4 pairs"]
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["chosen", "rejected"]


def test_choices_fill_each_bar_in_the_order_of_the_table(choices):
    ax = plots.plot_choices(choices)
    widths = [[bar.get_width() for bar in container] for container in ax.containers]
    assert widths == [[0.52, 1.0], [0.48, 0.0]]
    assert [bar.get_x() for bar in ax.containers[1]] == [0.52, 1.0]
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["goes along", "warns"]
    assert "helpful\nn = 80 pairs" in texts(ax)
    assert [t.get_text() for t in ax.texts] == ["0.52", "1.00", "0.48", ""]  # no number in an empty part


def test_loss_has_a_line_for_each_run_and_the_loss_at_margin_zero(log):
    ax = plots.plot_loss(log)
    small, large, chance = ax.lines
    assert small.get_ydata().tolist() == [0.7, 0.6, 0.5] and large.get_xdata().tolist() == [1, 10, 20]
    assert set(chance.get_ydata()) == {np.log(2)}
    assert [t.get_text() for t in ax.get_legend().get_texts()][:2] == ["small", "large"]
    assert ax.get_ylim()[0] == 0
    *_, known = plots.plot_loss(log, level=1.3, meaning="log(1 + e)").lines
    assert set(known.get_ydata()) == {1.3} and "log(1 + e)" in texts(known.axes)


def test_labels_show_shares_of_the_run_and_the_thresholds(predictions):
    ax = plots.plot_labels(predictions, threshold=0.9)
    steps = [patch for patch in ax.patches if isinstance(patch, StepPatch)]
    assert len(steps) == 2
    for patch in steps:
        assert np.isclose(patch.get_data().values.sum(), 1.0)
    wrong = steps[0].get_data().values[:10].sum()
    assert np.isclose(wrong, (predictions["probability"][:150] < 0.5).mean())
    assert sorted(round(line.get_xdata()[0], 6) for line in ax.lines) == [0.1, 0.5, 0.9]
    assert "run-a (n = 150)" in texts(ax)


def test_margin_curves_draw_loss_and_slope_of_each_conflict(curves):
    axes = plots.plot_margin_curves(curves)
    assert [ax.get_ylabel() for ax in axes] == ["loss (nats)", "derivative (nats a logit)"]
    assert all("logits" in ax.get_xlabel() and smallest(ax) >= 9 for ax in axes)
    none, explicit = axes[0].lines[:2]
    assert none.get_linestyle() == "-" and explicit.get_linestyle() == "--"
    np.testing.assert_allclose(explicit.get_ydata() - none.get_ydata(), [0.5, 0.5, 0, 0])
    assert [t.get_text() for t in axes[0].get_legend().get_texts()] == ["no conflict", "explicit conflict"]
    _, given = plt.subplots(1, 2)
    assert list(plots.plot_margin_curves(curves, given)) == list(given)
    (loss, slope) = plots.plot_margin_curves(curves, unit="nat")
    assert "(nats)" in loss.get_xlabel() and slope.get_ylabel() == "derivative (nats a nat)"


def test_reliability_of_one_run_needs_no_run_column(predictions):
    ax = plots.plot_reliability(predictions)
    assert "run-a (n = 150)" in texts(ax) and "calibrated" in texts(ax)
    assert "this run (n = 300)" in texts(plots.plot_reliability(predictions.drop(columns="run")))


def test_frequency_has_a_log_axis_with_the_bins_as_ticks(frequency):
    ax = plots.plot_frequency(frequency)
    assert ax.get_xscale() == "log" and "m-16 (n = 120)" in texts(ax)
    assert [t.get_text() for t in ax.get_xticklabels()] == ["2", "8", "32"]
