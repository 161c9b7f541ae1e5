"""The five notebooks: every parameter arrives, and a whole study runs through `w2s run`."""

import ast
import json
import subprocess
import sys

import nbformat
import numpy as np
import pandas as pd
import papermill
import pytest
import yaml
from conftest import SMALL
from papermill.parameterize import parameterize_notebook

from w2s.app import cli, headless
from w2s.params import HOME, Lora, StudyParams
from w2s.study import Study

NOTEBOOKS = sorted((HOME / "notebooks").glob("*.ipynb"))
POCKET = yaml.safe_load((HOME / "params" / "pocket.yaml").read_text())

# A valid value other than the default for every parameter.
CHANGED = {
    "study": "other", "data": "hh", "data_dir": "somewhere", "bad_pairs": "drop", "target": "helpful",
    "weak_models": ["a"],
    "strong_models": ["b"], "intermediate_models": ["c"], "conflicts": ["none", "implicit"], "seeds": [3, 4],
    "n_gt": 11, "n_w2s": 12, "n_helpful": 13, "n_validation": 14, "n_test": 15, "alpha": 0.25, "threshold": 0.9,
    "beta": 0.3, "gamma": 0.7, "weak_filter": "confidence", "confidence": "calibrated", "method": "dpo",
    "known_by": "gold", "tax_reference": "ceiling", "bootstrap": 123, "learning_rate": 1e-6, "epochs": 2,
    "sft_learning_rate": 1e-6, "sft_epochs": 3, "lora": {"rank": 2, "alpha": 4.0}, "batch_pairs": 5,
    "max_length": 99, "tokens_per_batch": 77, "device": "cpu", "dtype": "bfloat16", "threads": 2, "workers": 3,
    "shards": 4, "gradient_checkpointing": True, "offline": True, "scheduler": "tcp://host:1", "save_models":
    True, "frozen": True, "show_text": False, "output_dir": "elsewhere",
}  # fmt: skip
# What a value needs beside it to be valid.
NEEDS = {
    "beta": {"method": "simpo"},
    "gamma": {"method": "simpo"},
    "sft_learning_rate": {"method": "dpo"},
    "sft_epochs": {"method": "dpo"},
}


def code_cells(notebook) -> list[str]:
    return [cell.source for cell in notebook.cells if cell.cell_type == "code"]


def configuration(notebook, monkeypatch) -> StudyParams:
    """What the parameters cell, papermill's injected cell and the next cell make of the parameters."""
    monkeypatch.setattr(Study, "open", lambda params: None)
    namespace: dict = {}
    for source in code_cells(notebook):
        exec(source, namespace)
        if isinstance(namespace.get("params"), StudyParams):
            return namespace["params"]
    pytest.fail("no cell builds params")


def test_there_are_five_in_order():
    assert [path.stem for path in NOTEBOOKS][:5] == [
        "01_data_conflict", "02_weak_training", "03_strong_training", "04_deception_analysis", "05_bootstrapping",
    ]  # fmt: skip


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_every_parameter_reaches_the_configuration(path, monkeypatch):
    notebook = papermill.iorw.load_notebook_node(str(path))
    declared = headless.declared(path)
    assert set(declared) <= set(StudyParams.model_fields)
    for key in declared:
        # "hh" frees data_dir from the check that belongs to the pocket world
        injected = ({"data": "hh"} if "data" in declared else {}) | NEEDS.get(key, {}) | {key: CHANGED[key]}
        params = configuration(parameterize_notebook(notebook, injected), monkeypatch)
        expected = Lora(**CHANGED[key]) if key == "lora" else CHANGED[key]
        assert getattr(params, key) == expected != StudyParams.model_fields[key].default, key


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_literals_are_typed_commented_and_those_of_the_pocket_study(path):
    source = code_cells(nbformat.read(path, 4))[0]
    for node in ast.parse(source).body:
        assert isinstance(node, ast.AnnAssign), ast.unparse(node)
        key = node.target.id
        assert ast.literal_eval(node.value) == POCKET[key], key
    assert source.count("#") >= len(headless.declared(path))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_no_cell_rebinds_a_parameter(path):
    """A cell that did would make the second code cell fail, or mean something else, when run again."""
    others = code_cells(nbformat.read(path, 4))[1:]
    for source in others:
        bound = {n.id for n in ast.walk(ast.parse(source)) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
        inside = {
            n.id
            for f in ast.walk(ast.parse(source))
            if isinstance(
                f, ast.FunctionDef | ast.ListComp | ast.DictComp | ast.SetComp | ast.GeneratorExp | ast.Lambda
            )
            for n in ast.walk(f)
            if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)
        }
        assert not (bound - inside) & set(headless.declared(path)), source


def test_extensions_run_when_they_are_asked_for():
    def planned(**given):
        return [path.stem for path, _ in headless.plan(given)]

    assert [name[:2] for name in planned()] == ["01", "02", "03", "04", "05"]
    assert planned(extensions=["controls"]) == [*planned(), "06_controls"]
    assert planned(extensions=["mitigations", "controls"]) == [*planned(), "06_controls", "07_mitigations"]


def test_every_parameter_is_known_to_a_notebook():
    known = {key for path in NOTEBOOKS for key in headless.declared(path)} | {
        "extensions",
        "also",
    }  # which w2s run reads itself
    assert known == set(StudyParams.model_fields)


PREFERENCE = {
    "dpo": {"confidence": "calibrated", "lora": {"rank": 2, "alpha": 4}, "weak_filter": "confidence", "threshold": 0.5},
    "simpo": {"gradient_checkpointing": True},
}


@pytest.fixture(scope="module")
def studies(tiny_models, tmp_path_factory):
    """Tiny studies through the command line, all at once: method -> folder, parameter file, what was printed."""
    started = {}
    for method in ("reward", *PREFERENCE):
        folder = tmp_path_factory.mktemp(method)
        values = SMALL | {"study": "tiny", "weak_models": tiny_models[:1], "strong_models": tiny_models[1:]}
        values |= {"intermediate_models": tiny_models[1:2], "output_dir": str(folder), "method": method}
        values |= {"extensions": ["controls", "mitigations"]} if method == "reward" else {"extensions": ["mitigations"]}
        values |= {} if method == "reward" else {"seeds": [3]} | PREFERENCE[method]
        file, log = folder / "tiny.yaml", folder / "log"
        file.write_text(yaml.safe_dump(values))
        command = [sys.executable, "-m", "w2s.app.cli", "run", str(file)]
        with log.open("w") as out:
            run = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT)
        started[method] = run, folder / "tiny", file, log
    for run, *_, log in started.values():
        assert run.wait() == 0, log.read_text()[-5000:]
    return {method: (folder, file, log.read_text()) for method, (_, folder, file, log) in started.items()}


@pytest.fixture(scope="module")
def executed(studies):
    """The one of reward models, with both extensions."""
    return studies["reward"]


@pytest.mark.parametrize("method", PREFERENCE)
def test_all_five_run_by_preference_optimization(method, studies):
    folder, _, _ = studies[method]
    report = (folder / "report.html").read_text()
    left_out = pd.read_parquet(folder / "tables" / "07_findings.parquet")["sentence"].str.cat()
    assert "left out: reverse loss" in left_out and "left out: ensemble of sizes" in left_out
    assert ("adapters (rank 2)" in report) == ("lora" in PREFERENCE[method])
    predictions = pd.read_parquet(folder / "tables" / "predictions.parquet")
    assert predictions["run"].str.startswith(method).all() and np.isfinite(predictions["margin"]).all()


def test_a_study_leaves_notebooks_tables_figures_and_report(executed):
    folder, _, output = executed
    for path in NOTEBOOKS:
        cells = nbformat.read(folder / path.name, 4).cells
        assert all(cell.execution_count for cell in cells if cell.cell_type == "code"), path.name
        assert not [o for c in cells if c.cell_type == "code" for o in c.outputs if o.output_type == "error"]
    for number in ("01", "02", "03", "04", "05", "06", "07"):
        pictures = sorted((folder / "figures").glob(f"{number}_*.png"))
        assert pictures and all(p.with_suffix(".svg").exists() for p in pictures), number
        tables = sorted((folder / "tables").glob(f"{number}_*.parquet"))
        assert tables and all(t.with_suffix(".csv").exists() for t in tables), number
    report = (folder / "report.html").read_text()
    assert "data:image/png;base64," in report and "<script" not in report
    assert "runs to train" in output and "about" in output


def test_a_second_time_trains_nothing_and_changes_no_table(executed, capsys):
    folder, file, _ = executed
    marks = {path: path.stat().st_mtime_ns for path in (folder.parent / "runs").glob("*/DONE")}
    tables = {path: path.read_bytes() for path in (folder / "tables").iterdir()}
    pictures = {path: path.read_bytes() for path in (folder / "figures").glob("*.png")}
    assert cli.main(["run", str(file)]) == 0
    assert capsys.readouterr().out.count("as before") == len(NOTEBOOKS)
    assert cli.main(["run", str(file), "--again"]) == 0
    out = capsys.readouterr().out
    assert "runs are in the cache" in out and "as before" not in out
    assert {path: path.stat().st_mtime_ns for path in (folder.parent / "runs").glob("*/DONE")} == marks
    assert {path: path.read_bytes() for path in (folder / "tables").iterdir()} == tables
    assert {path: path.read_bytes() for path in (folder / "figures").glob("*.png")} == pictures


def test_the_analysis_runs_on_predictions_alone(executed, tmp_path):
    folder, _, _ = executed
    tables = tmp_path / "alone" / "tables"
    tables.mkdir(parents=True)
    (tables / "predictions.parquet").write_bytes((folder / "tables" / "predictions.parquet").read_bytes())
    given = {"study": "alone", "output_dir": str(tmp_path), "bootstrap": 100}
    notebook = HOME / "notebooks" / "04_deception_analysis.ipynb"
    papermill.execute_notebook(
        str(notebook), str(tmp_path / "04.ipynb"), given, cwd=str(notebook.parent), progress_bar=False
    )
    scores = pd.read_parquet(tables / "04_scores.parquet")
    pd.testing.assert_frame_equal(scores, pd.read_parquet(folder / "tables" / "04_scores.parquet"), check_exact=False)


def test_a_notebook_that_fails_ends_the_study_with_its_name(tmp_path, capsys, monkeypatch):
    """Without predictions, 04 stops with one clear line; the status is not 0 and no report appears."""
    monkeypatch.setattr(headless, "plan", lambda given: [(HOME / "notebooks" / "04_deception_analysis.ipynb", {
        "study": "pocket", "output_dir": str(tmp_path)})])  # fmt: skip
    file = tmp_path / "p.yaml"
    file.write_text(json.dumps(SMALL))
    assert cli.main(["run", str(file), "--output-dir", str(tmp_path)]) == 1
    errors = capsys.readouterr().err
    assert "04_deception_analysis.ipynb" in errors and "03" in errors
    assert not (tmp_path / "pocket" / "report.html").exists()
