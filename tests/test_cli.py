"""The command line: wrong input costs one clear line and a status, and runs nothing."""

import gc
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import yaml
from conftest import small_params

from w2s.app import cli, headless
from w2s.params import ParameterError
from w2s.report import html
from w2s.runs import execute


@pytest.fixture
def nothing_runs(monkeypatch):
    import papermill

    monkeypatch.setattr(papermill, "execute_notebook", lambda *a, **k: pytest.fail("a notebook ran"))


@pytest.mark.parametrize(
    ("content", "options", "words"),
    [
        ("treshold: 0.8", [], ["treshold", "0.8", "'threshold'"]),
        ("threshold: 3", [], ["threshold", "3"]),
        ("seeds: [0", [], ["YAML"]),
        ("alpha: 0.5", ["--set", "alpah=1"], ["alpah", "'alpha'"]),
        ("alpha: 0.5", ["--set", "alpha"], ["key=value"]),
        ("alpha: 0.5", ["--set", "alpha=[1"], ["alpha=[1"]),
        ("weak_models: [pocket-270]", [], ["pocket-270", "'pocket-27'"]),
        ("data: nowhere", [], ["nowhere", "folder"]),
        ("n_test: 100000", [], ["n_test", "100000"]),
        ("device: cuda:7", [], ["cuda:7", "auto"]),
    ],
)
def test_wrong_input_is_one_line_and_status_2(tmp_path, capsys, nothing_runs, content, options, words):
    file = tmp_path / "p.yaml"
    file.write_text(content + "\n")
    assert cli.main(["run", str(file), "--output-dir", str(tmp_path / "out"), *options]) == 2
    line = capsys.readouterr().err.strip()
    assert "\n" not in line and line.startswith("w2s: ")
    assert all(word in line for word in words), line
    assert not (tmp_path / "out" / "pocket").exists()


def test_a_missing_file_is_named(capsys, nothing_runs):
    assert cli.main(["run", "params/nowhere.yaml"]) == 2
    assert "params/nowhere.yaml" in capsys.readouterr().err


def test_a_parameter_that_no_notebook_declares(tmp_path, capsys, nothing_runs, monkeypatch):
    monkeypatch.setattr(headless, "declared", lambda path: ["study", "alpha", "output_dir"])
    file = tmp_path / "p.yaml"
    file.write_text("epochs: 2\n")
    assert cli.main(["run", str(file)]) == 2
    assert "'epochs' = 2 is known to no notebook" in capsys.readouterr().err


def test_set_reaches_the_notebooks(tmp_path):
    file = tmp_path / "p.yaml"
    file.write_text("alpha: 0.25\n")
    args = cli._parser().parse_args(["run", str(file), "--set", "alpha=1e-3", "--set", "seeds=[1, 2]"])
    params, given = cli.read_params(args, args.params)
    assert (params.alpha, params.seeds) == (0.001, [1, 2])
    assert given == {"alpha": 0.001, "seeds": [1, 2]}
    assert any(parameters == given for _, parameters in headless.plan(given))


def test_interrupt_keeps_what_is_done(tmp_path, capsys, monkeypatch):
    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "read_params", interrupted)
    assert cli.main(["run", "p.yaml"]) == 130
    assert "the same command goes on" in capsys.readouterr().err


def small_file(models, folder):
    file = folder / "p.yaml"
    file.write_text(yaml.safe_dump(small_params(models, folder).model_dump()))
    return file


def test_the_forecast_is_made_beside_the_first_notebook(tiny_models, tmp_path, capfd, monkeypatch):
    """Which does not wait for it; those that train do."""
    import papermill

    ran, out = [], []

    def execute_notebook(source, *args, **options):
        out.append(capfd.readouterr().out)
        ran.append((Path(source).name[:2], "12 runs to train, 12 wanted: about" in "".join(out)))

    monkeypatch.setattr(papermill, "execute_notebook", execute_notebook)
    monkeypatch.setattr(html, "write_report", lambda params: "report.html")
    assert cli.main(["run", str(small_file(tiny_models, tmp_path))]) == 0
    assert ran == [("01", False), ("02", True), ("03", True), ("04", True), ("05", True)]


@pytest.mark.skipif(sys.platform == "win32", reason="sends a signal as Ctrl-C does")
def test_an_interruption_of_the_imports_waits_for_their_end():
    """In the middle of them it can be lost, which a sweep over the first seconds of a study showed."""
    before, reached = signal.getsignal(signal.SIGINT), []
    with pytest.raises(KeyboardInterrupt), headless.quick_imports():
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.01)
        reached.append(gc.isenabled())
    assert reached == [False] and gc.isenabled() and signal.getsignal(signal.SIGINT) is before


def test_a_forecast_that_fails_says_so(tmp_path):
    with headless.forecast_beside("not runs", 0, tmp_path, 1, None) as wait, pytest.raises(AttributeError):
        wait()


def soon(holds: Callable[[], bool], seconds: float = 20) -> None:
    """Of a process that the pool's own thread may be waiting for as well, and be the one that hears of its end."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_the_process_of_the_forecast_ends_with_the_forecast_or_with_the_block(tmp_path):
    """It would hold memory while others train. One that dies says so, and holds up nobody."""
    others = set(multiprocessing.active_children())
    for died in (False, True):
        with headless.forecast_beside([], 0, tmp_path, 1, None) as wait:
            [process] = set(multiprocessing.active_children()) - others
            if died:
                process.kill()
                with pytest.raises(ParameterError, match="the process that tries the models died"):
                    wait()
            else:
                wait()
            soon(lambda process=process: not psutil.pid_exists(process.pid))
    began = time.monotonic()
    with headless.forecast_beside([], 0, tmp_path, 1, None):
        pass
    assert time.monotonic() - began < 2
    soon(lambda: set(multiprocessing.active_children()) <= others)


@pytest.mark.skipif(sys.platform == "win32", reason="sends a signal as Ctrl-C does")
def test_an_interrupted_forecast(tiny_models, tmp_path):
    """The status is 130 also where a model is being tried at that moment."""
    command = [sys.executable, "-m", "w2s.app.cli", "run", str(small_file(tiny_models, tmp_path))]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **streams, start_new_session=True) as run:
        while "01_data_conflict" not in run.stdout.readline():
            assert run.poll() is None
        os.killpg(run.pid, signal.SIGINT)
        assert run.wait(60) == 130
        assert "w2s: interrupted; finished runs are kept" in run.stderr.read()


def test_status_counts_the_runs(tiny_models, tmp_path, capsys):
    from w2s.study import Study

    file, study = small_file(tiny_models, tmp_path), Study.open(small_params(tiny_models, tmp_path))
    execute.execute(study.gold(tiny_models[0], 0), study.root)
    assert cli.main(["status", str(file)]) == 0
    out = capsys.readouterr().out
    assert out.count("to do") == 11 and f"1 of 12 runs are in {tmp_path / 'runs'}" in out


def test_zoo_list_shows_the_ladder(capsys):
    assert cli.main(["zoo", "list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) >= 6 and lines[0].split()[:3] == ["size", "parameters", "knowledge"]


def test_importing_the_package_does_no_work():
    code = "import sys, w2s, w2s.cli, w2s.params; sys.exit('torch' in sys.modules or 'matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
