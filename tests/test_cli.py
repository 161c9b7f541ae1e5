"""The command line: wrong input costs one clear line and a status, and runs nothing."""

import subprocess
import sys
import threading
from pathlib import Path

import pytest
import yaml
from conftest import small_params

from w2s import cli, fanout, headless, report, runs
from w2s.params import ParameterError


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


@pytest.mark.parametrize("fails", [False, True])
def test_the_forecast_is_made_beside_the_first_notebook(tiny_models, tmp_path, capsys, monkeypatch, fails):
    """Which need not wait for it; those that train do, and one that fails stops them."""
    import papermill

    begun, told, ran = threading.Event(), threading.Event(), []

    def announce(*args):
        assert begun.wait(60)
        if fails:
            raise ParameterError("too large")
        told.set()

    def execute_notebook(source, *args, **options):
        ran.append((Path(source).name[:2], told.is_set()))
        begun.set()

    monkeypatch.setattr(fanout, "announce", announce)
    monkeypatch.setattr(papermill, "execute_notebook", execute_notebook)
    monkeypatch.setattr(report, "write_report", lambda params: "report.html")
    file = tmp_path / "p.yaml"
    file.write_text(yaml.safe_dump(small_params(tiny_models, tmp_path).model_dump()))
    assert cli.main(["run", str(file)]) == (2 if fails else 0)
    assert ran[0] == ("01", False) and ran[1:] == ([] if fails else [(f"0{n}", True) for n in range(2, 6)])
    assert ("w2s: too large\n" in capsys.readouterr().err) == fails


def test_status_counts_the_runs(tiny_models, tmp_path, capsys):
    from w2s.study import Study

    params = small_params(tiny_models, tmp_path)
    file = tmp_path / "p.yaml"
    file.write_text(yaml.safe_dump(params.model_dump()))
    study = Study.open(params)
    runs.execute(study.gold(tiny_models[0], 0), study.root)
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
