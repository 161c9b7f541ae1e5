"""The record of executed notebooks: a second `w2s run` leaves alone what nothing has changed for, and only that."""

import pytest

from w2s.app.headless import Executed


@pytest.fixture
def folder(tmp_path):
    """A study's folder and notebook 1, executed once: it wrote a table, and itself."""
    (tmp_path / "one.ipynb").write_text("source")
    folder = tmp_path / "study"
    folder.mkdir()
    (folder / "older.txt").write_text("from another notebook")
    record = Executed(folder, ["run-a"])
    key, before = record.key(tmp_path / "one.ipynb", {"alpha": 1}), record.written()
    (folder / "tables").mkdir()
    (folder / "tables" / "t.csv").write_text("1")
    (folder / "one.ipynb").write_text("executed")
    record.add("one.ipynb", key, before)
    return folder


def stands(folder, depends_on=("run-a",), **parameters):
    record = Executed(folder, depends_on)
    return record.holds("one.ipynb", record.key(folder.parent / "one.ipynb", parameters or {"alpha": 1}))


def test_it_stands_when_nothing_changed(folder):
    assert stands(folder)
    files = Executed(folder, []).record["one.ipynb"]["files"]
    assert sorted(files) == ["one.ipynb", "tables/t.csv"]


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


def test_it_does_not_stand_for_other_parameters_or_runs(folder):
    assert not stands(folder, alpha=2)
    assert not stands(folder, depends_on=["run-b"])


def test_it_does_not_stand_for_other_code_or_libraries(folder, monkeypatch):
    monkeypatch.setattr("w2s.app.headless.version", lambda library: "0.0.1")
    assert not stands(folder)
    monkeypatch.undo()
    monkeypatch.setattr("w2s.app.headless._code", lambda: "edited")
    assert not stands(folder)


def test_a_notebook_depends_on_those_before_it(folder):
    keys = []
    for alpha in (1, 2):
        record = Executed(folder, [])
        record.key(folder.parent / "one.ipynb", {"alpha": alpha})
        keys.append(record.key(folder.parent / "one.ipynb", {}))
    assert keys[0] != keys[1]


def test_files_of_other_notebooks_do_not_matter(folder):
    (folder / "older.txt").write_text("changed")
    assert stands(folder)
