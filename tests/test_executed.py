"""The record of executed notebooks: a second `w2s run` leaves alone what nothing has changed for, and only that."""

import pytest

from w2s.app.headless import Executed


@pytest.fixture
def folder(tmp_path):
    """A study's folder and notebook 1, executed once: it wrote a table, and itself."""
    (tmp_path / "one.ipynb").write_text("source")
    folder = tmp_path / "study"
    (folder / "tables").mkdir(parents=True)
    (folder / "older.txt").write_text("from another notebook")
    record = Executed(folder, ["run-a"])
    key, before = record.key(tmp_path / "one.ipynb", {"alpha": 1}), record.written()
    (folder / "tables" / "t.csv").write_text("1")
    (folder / "one.ipynb").write_text("executed")
    record.add("one.ipynb", key, before)
    return folder


def stands(folder, depends_on=("run-a",), alpha=1):
    record = Executed(folder, depends_on)
    return record.holds("one.ipynb", record.key(folder.parent / "one.ipynb", {"alpha": alpha}))


def test_it_stands_when_nothing_changed_that_it_wrote(folder):
    assert stands(folder)
    assert sorted(Executed(folder, []).record["one.ipynb"]["files"]) == ["one.ipynb", "tables/t.csv"]
    (folder / "older.txt").write_text("changed")
    assert stands(folder)


@pytest.mark.parametrize(
    "change",
    [
        lambda folder: (folder / "tables" / "t.csv").write_text("2"),
        lambda folder: (folder / "tables" / "t.csv").unlink(),
        lambda folder: (folder / "one.ipynb").write_text("edited by hand"),
        lambda folder: (folder.parent / "one.ipynb").write_text("another source"),
        lambda folder: (folder / ".executed.json").unlink(),
    ],
    ids=["table edited", "table gone", "copy edited", "source edited", "record gone"],
)
def test_it_does_not_stand_after_a_change_of_files(folder, change):
    change(folder)
    assert not stands(folder)


def test_it_does_not_stand_for_other_parameters_runs_libraries_or_code(folder, monkeypatch):
    assert not stands(folder, alpha=2) and not stands(folder, depends_on=["run-b"])
    for name, value in {"version": lambda library: "0.0.1", "_code": lambda: "edited"}.items():
        with monkeypatch.context() as patch:
            patch.setattr(f"w2s.app.headless.{name}", value)
            assert not stands(folder)
    assert stands(folder)


def test_a_notebook_depends_on_those_before_it(folder):
    keys = set()
    for alpha in (1, 2):
        record = Executed(folder, [])
        record.key(folder.parent / "one.ipynb", {"alpha": alpha})
        keys.add(record.key(folder.parent / "one.ipynb", {}))
    assert len(keys) == 2
