"""Notebooks executed without a screen: which kernel, what happens when it dies, and which ones stand already."""

import json
import os
import signal
import subprocess
import sys
import time

import nbformat
import psutil
import pytest
import yaml
from conftest import small_params

from w2s import files
from w2s.app import headless
from w2s.app.headless import Executed
from w2s.params import PACKAGE
from w2s.runs import workers


def notebook(folder, code: str, name="01_one.ipynb"):
    cell = nbformat.v4.new_code_cell("study = ''", metadata={"tags": ["parameters"]})
    book = nbformat.v4.new_notebook(cells=[cell, nbformat.v4.new_code_cell(code)])
    book.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3 (ipykernel)", "language": "python"}
    folder.mkdir(parents=True, exist_ok=True)
    nbformat.write(book, folder / name)
    return folder / name


@pytest.mark.parametrize("place", ["kit{x}", "out}", "ü {study} 😀"])
def test_a_notebook_runs_in_this_interpreter_whatever_is_installed_and_wherever_it_lies(tmp_path, monkeypatch, place):
    stray = tmp_path / "stray" / "kernels" / "python3"
    stray.mkdir(parents=True)
    spec = {"argv": ["/nowhere/python"], "display_name": "x", "language": "python"}
    (stray / "kernel.json").write_text(json.dumps(spec))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "stray"))
    source = notebook(tmp_path / place, "import sys; open('made.txt', 'w').write(sys.executable + ' ' + study)")
    assert headless._execute(source, tmp_path / place / "copies" / source.name, {"study": "{a}"})
    assert (tmp_path / place / "made.txt").read_text() == f"{sys.executable} {{a}}"
    copy = nbformat.read(tmp_path / place / "copies" / source.name, 4)
    assert copy.metadata.kernelspec.name == "python3" and os.environ["JUPYTER_PATH"] == str(tmp_path / "stray")


def test_a_kernel_that_imports_another_package_says_so():
    environment = os.environ | {files.HEADLESS: "/somewhere/else/w2s"}
    result = subprocess.run([sys.executable, "-c", "import w2s.lab"], env=environment, capture_output=True, text=True)
    assert f"imports w2s from {PACKAGE}, but the study is run by /somewhere/else/w2s" in result.stderr


@pytest.mark.parametrize("code", ["import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "import os; os._exit(3)"])
def test_a_kernel_that_dies_is_one_line_with_a_log(tmp_path, capsys, code):
    source = notebook(tmp_path / "kit", code)
    assert not headless._execute(source, tmp_path / "study" / source.name, {})
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("w2s: 01_one.ipynb: ") and error.endswith(f"see {tmp_path / 'study' / 'error.log'}")
    assert "DeadKernelError" in (tmp_path / "study" / "error.log").read_text()


def test_a_kernel_that_dies_at_its_start_is_one_line(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys, "executable", "/bin/false")
    source = notebook(tmp_path / "kit", "1")
    assert not headless._execute(source, tmp_path / "study" / source.name, {})
    assert "finished runs are kept; see" in capsys.readouterr().err.strip().splitlines()[-1]


@pytest.mark.slow
@pytest.mark.parametrize("kill", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_no_kernel_is_left_when_the_command_is_killed(tmp_path, kill):
    source = notebook(tmp_path / "kit", "import time\nopen('begun', 'w').close()\ntime.sleep(600)")
    script = "import sys; from pathlib import Path; from w2s.app import headless"
    script += "; headless._execute(Path(sys.argv[1]), Path(sys.argv[1]).parent / 'copy.ipynb', {})"
    process = subprocess.Popen([sys.executable, "-c", script, str(source)], stderr=subprocess.DEVNULL)
    while not (source.parent / "begun").exists():
        time.sleep(0.1)
    children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(kill)
    process.wait(20)
    assert children and not psutil.wait_procs(children, timeout=10)[1]


def executed(folder, given, *names):
    """Record notebooks that each write figures/<name>.png, as `w2s run` does."""
    record = Executed(folder, [], given)
    for name in names:
        before = record.written()
        (folder / "figures").mkdir(parents=True, exist_ok=True)
        (folder / "figures" / f"{name}.png").write_text(str(given))
        record.add(f"{name}.ipynb", "key", before)
    return record


def test_what_an_earlier_study_of_the_name_left_is_removed_and_said(tmp_path):
    executed(tmp_path, {"alpha": 0.5}, "one", "six")
    (tmp_path / "own.txt").write_text("of the user")
    record = Executed(tmp_path, [], {"alpha": 1.0, "data": "pairs"})
    assert record.changes() == "alpha = 0.5 (now 1.0), data = pocket (now pairs)"
    executed(tmp_path, {"alpha": 1.0, "data": "pairs"}, "one").drop({"one.ipynb"})
    assert sorted(p.name for p in tmp_path.rglob("*") if p.is_file()) == [".executed.json", "one.png", "own.txt"]
    assert Executed(tmp_path, [], {"alpha": 1.0, "data": "pairs"}).changes() == ""


@pytest.mark.parametrize("content", ["", '{"one.ipynb": {"key": "k", "fi', "[]", '{"a": 1}', "null"])
def test_a_damaged_record_is_named_and_executes_again(tmp_path, capsys, content):
    (tmp_path / ".executed.json").write_text(content)
    assert not Executed(tmp_path, [], {}).holds("one.ipynb", "key")
    assert f"{tmp_path / '.executed.json'} is damaged" in capsys.readouterr().out


def test_what_a_terminal_lacks_is_spelt_out_by_workers_too(monkeypatch):
    script = "from w2s.files import spell_out; spell_out(); print('run of ü😀')"
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    assert subprocess.check_output([sys.executable, "-c", script], env=environment) == b"run of \\xfc\\U0001f600\n"
    called = []
    monkeypatch.setattr(workers, "spell_out", lambda: called.append("spelt"))
    monkeypatch.setattr(workers.cpu, "keep_memory", lambda: called.append("kept"))
    workers._Prepare().setup(None)
    assert sorted(called) == ["kept", "spelt"]


@pytest.mark.slow
def test_a_terminal_of_few_characters_and_a_path_of_many_do(tiny_models, tmp_path):
    place = tmp_path / "kit {x} ü😀"
    place.mkdir()
    file = place / "p.yaml"
    file.write_text(yaml.safe_dump(small_params(tiny_models, place / "out{study}").model_dump()), encoding="utf-8")
    environment = os.environ | {"PYTHONIOENCODING": "cp1252", "LC_ALL": "C"}
    run = [sys.executable, "-m", "w2s.app.cli", "run", str(file)]
    result = subprocess.run(run, env=environment, capture_output=True, encoding="cp1252", errors="replace")
    assert result.returncode == 0, result.stderr
    assert (place / "out{study}" / "small" / "report.html").exists() and "\\U0001f600" in result.stdout
    status = subprocess.run([*run[:3], "status", str(file)], env=environment, capture_output=True, check=True)
    assert b"16 of 16 runs" in status.stdout


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
