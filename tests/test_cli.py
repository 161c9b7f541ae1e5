"""The command line: wrong input costs one clear line and a status, and runs nothing."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import yaml
from conftest import small_params

from w2s.app import cli, headless
from w2s.report import claims, compare, html
from w2s.runs import execute, judges, store
from w2s.study import Study


@pytest.fixture
def executed(monkeypatch):
    """The numbers of the notebooks that were executed, where none is."""
    import papermill

    numbers = []
    monkeypatch.setattr(papermill, "execute_notebook", lambda source, *rest, **_: numbers.append(Path(source).name[:2]))
    monkeypatch.setattr(html, "write_report", lambda params, *rest: "report.html")
    monkeypatch.setattr(claims, "claim_table", lambda folder: pd.DataFrame())
    return numbers


@pytest.mark.parametrize(
    ("content", "options", "words"),
    [
        ("treshold: 0.8", [], ["treshold", "0.8", "'threshold'"]),
        ("alpha: 0.5", ["--set", "alpah=1"], ["alpah", "'alpha'"]),
        ("alpha: 0.5", ["--set", "alpha"], ["key=value"]),
        ("alpha: 0.5", ["--set", "alpha=[1"], ["alpha=[1"]),
        ("alpha: 0.5", ["--set", "n_gt=48", "--set", "n_gt=50"], ["n_gt=50", "given twice"]),
        ("output_dir: p.yaml\nn_gt: 2", ["--output-dir", "/dev/null"], ["output_dir", "/dev/null is no folder"]),
        ("alpha: 0.5", ["--grid"], ["--grid", "alpha=0.25,0.5"]),
        ("alpha: 0.5", ["--grid", "--set", "alpha=0.5,-1"], ["alpha", "-1"]),
        ("weak_models: [pocket-40c]", [], ["pocket-40c", "'pocket-40b'"]),
        ("data: nowhere", [], ["nowhere", "folder"]),
        ("n_test: 100000", [], ["n_test", "100000"]),
        ("device: cuda:7", [], ["cuda:7", "auto"]),
        ("also: [p.yaml]", [], ["p.yaml", "`also` itself"]),
        ("also: [no.yaml]", [], ["no.yaml", "no such"]),
        ("also: [other.yaml]", [], ["study = 'pocket'", "each needs its own folder"]),
    ],
)
def test_wrong_input_is_one_line_and_status_2(tmp_path, capsys, executed, content, options, words):
    file = tmp_path / "p.yaml"
    file.write_text(content + "\n")
    (tmp_path / "other.yaml").write_text("alpha: 0.5\n")
    assert cli.main(["run", str(file), "--output-dir", str(tmp_path / "out"), *options]) == 2
    line = capsys.readouterr().err.strip()
    assert "\n" not in line and line.startswith("w2s: ")
    assert all(word in line for word in words), line
    assert not (tmp_path / "out" / "pocket").exists() and not executed


def test_options_that_only_the_benchmark_may_know(tmp_path, monkeypatch, capfd):
    (tmp_path / "bench.py").write_text("import sys; print(sys.argv[1:]); sys.exit(7)\n")
    monkeypatch.setattr(cli, "BENCHMARK", tmp_path / "bench.py")
    assert cli.main(["bench", "dpo", "4x128", "--quick", "--to", "x", "--help"]) == 7
    assert "['--to', 'outputs/bench', 'dpo', '4x128', '--quick', '--to', 'x', '--help']" in capfd.readouterr().out
    with pytest.raises(SystemExit, match="2"):
        cli.main(["zoo", "list", "--quick"])
    assert "unrecognized arguments: --quick" in capfd.readouterr().err


def test_set_reaches_the_notebooks(tmp_path):
    file = tmp_path / "p.yaml"
    file.write_text("alpha: 0.25\n")
    args = cli._parser().parse_args(["run", str(file), "--set", "alpha=1e-3", "--set", "seeds=[1, 2]"])
    [params] = cli.read_all(args)
    assert (params.alpha, params.seeds) == (0.001, [1, 2])
    assert params.given == {"alpha": 0.001, "seeds": [1, 2]}


def test_a_grid_is_one_study_a_combination_and_a_comparison(tmp_path, monkeypatch):
    studies, compared = [], []
    monkeypatch.setattr(cli, "execute", lambda params, again: studies.append(params) or 0)
    monkeypatch.setattr(compare, "write", lambda folders, to: compared.extend(folders))
    (tmp_path / "p.yaml").write_text("method: dpo\n")
    options = ["--set", "alpha=0.25,0.5", "--set", "seeds=[0,1]", "--set", "study=mine"]
    for name in ("mine_alpha_0.25", "mine_alpha_0.5"):
        (tmp_path / "out" / name).mkdir(parents=True)
    assert cli.main(["run", str(tmp_path / "p.yaml"), "--grid", *options, "--output-dir", str(tmp_path / "out")]) == 0
    assert [(p.study, p.alpha, p.seeds) for p in studies] == [
        ("mine_alpha_0.25", 0.25, [0, 1]), ("mine_alpha_0.5", 0.5, [0, 1])]  # fmt: skip
    assert [folder.name for folder in compared] == [p.study for p in studies]


def test_compare_names_a_study_that_is_not_there(tmp_path, capsys):
    (tmp_path / "pocket").mkdir()
    (tmp_path / "pocket" / "report.html").touch()
    assert cli.main(["compare", "pocketed", "--output-dir", str(tmp_path)]) == 2
    assert "study 'pocketed': did you mean 'pocket'?" in capsys.readouterr().err


def test_interrupt_keeps_what_is_done(capsys, monkeypatch):
    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "read_params", interrupted)
    assert cli.main(["run", "p.yaml"]) == 130
    assert "the same command goes on" in capsys.readouterr().err


def small_file(models, folder, **changes):
    file = folder / "p.yaml"
    file.write_text(yaml.safe_dump(small_params(models, folder, **changes).model_dump()))
    return file


def test_a_study_is_forecast_executed_reported_and_left_alone(tiny_models, tmp_path, capsys, executed, monkeypatch):
    """While runs are to do, every notebook is executed; afterwards those that nothing has changed for stand."""
    file = small_file(tiny_models, tmp_path)
    monkeypatch.setattr(headless.Executed, "holds", lambda record, name, key: name.startswith("03"))
    assert cli.main(["run", str(file)]) == 0
    out = capsys.readouterr().out
    assert out.index("16 runs to train, 16 wanted: about") < out.index("01_data_conflict")
    assert executed == ["01", "02", "03", "04", "05"] and "done: report.html" in out
    assert "measured with" not in out
    monkeypatch.setattr("w2s.runs.store.is_done", lambda spec, root: True)
    assert cli.main(["run", str(file)]) == 0
    out = capsys.readouterr().out
    assert "all 16 runs are in the cache" in out and "03_strong_training.ipynb: as before, nothing it depends" in out
    assert executed[5:] == ["01", "02", "04", "05"]
    assert cli.main(["run", str(file), "--again"]) == 0 and executed[9:] == ["01", "02", "03", "04", "05"]
    named = file.rename(tmp_path / "pocket.yaml")
    for changed, said in ((["--set", "seeds=[0]"], False), ([], True)):
        assert cli.main(["run", str(named), *changed]) == 0
        last = capsys.readouterr().out.splitlines()[-1]
        assert last.startswith("measured with pocket.yaml as it ships") == said


def test_a_notebook_that_fails_is_named_and_ends_the_study(tiny_models, tmp_path, capsys, executed, monkeypatch):
    import papermill

    def fail(source, *rest, **how):
        executed.append(source)
        raise papermill.PapermillExecutionError(3, 3, "source", "ParameterError", "n_test = 7:\n too few", [])

    monkeypatch.setattr(papermill, "execute_notebook", fail)
    assert cli.main(["run", str(small_file(tiny_models, tmp_path))]) == 1 and len(executed) == 1
    error = capsys.readouterr().err
    assert "w2s: 01_data_conflict.ipynb, cell 3: ParameterError: n_test = 7: too few\n" in error
    assert f"w2s: see {tmp_path / 'small' / '01_data_conflict.ipynb'}; finished runs are kept\n" in error


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="sends a signal as Ctrl-C does")
def test_an_interrupted_notebook(tiny_models, tmp_path):
    command = [sys.executable, "-m", "w2s.app.cli", "run", str(small_file(tiny_models, tmp_path))]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **streams, start_new_session=True) as run:
        while "01_data_conflict" not in run.stdout.readline():
            assert run.poll() is None
        os.killpg(run.pid, signal.SIGINT)
        assert run.wait(60) == 130
        assert "w2s: interrupted; finished runs are kept" in run.stderr.read()


def test_status_counts_the_runs(tiny_models, tmp_path, capsys):
    file, study = small_file(tiny_models, tmp_path), Study.open(small_params(tiny_models, tmp_path))
    store.store_data(study.root, study.data)
    execute.execute(study.gold(tiny_models[0], 0), study.root)
    assert cli.main(["status", str(file)]) == 0
    out = capsys.readouterr().out
    assert out.count("to do") == 15 and f"1 of 16 runs are in {tmp_path / 'runs'}" in out


def test_zoo_list_shows_the_ladder(capsys, monkeypatch):
    monkeypatch.setattr(judges, "judge", lambda name, pairs: pd.DataFrame({"correct": pairs["id"] > ""}))
    assert cli.main(["zoo", "list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) >= 6 and lines[0].split()[:3] == ["size", "parameters", "knowledge"] and "1.000" in lines[1]


def test_importing_the_package_does_no_work():
    code = "import sys, w2s, w2s.app.cli; sys.exit(bool({'torch', 'pandas', 'matplotlib'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
