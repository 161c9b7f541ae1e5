"""What figures share, and saving: atomic, and the same bytes every time."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from conftest import smallest
from PIL import Image

from w2s.report import style

pytestmark = pytest.mark.usefixtures("close_figures")

TABLE = pd.DataFrame({"name": ["a", "b", "c"], "accuracy": [0.5, 0.75, np.nan], "pairs": [4, 8, 0]})


@pytest.fixture
def ax():
    ax = style.new_axes(3, 2)
    ax.errorbar(TABLE["pairs"], TABLE["accuracy"], [0.1, 0.2, 0.1], label="runs")
    style.legend(ax, 1)
    return style.finish(ax, "pairs", "accuracy")


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
    table = TABLE.copy()
    write = {
        "picture": lambda: style.save(ax, tmp_path, "accuracy"),
        "table": lambda: style.save_table(table, tmp_path, "accuracy"),
    }[kind]
    paths = write()
    before = [path.read_bytes() for path in paths]

    def fail(path, **options):
        path.write_bytes(b"half")
        raise OSError("disk full")

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
