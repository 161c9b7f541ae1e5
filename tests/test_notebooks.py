"""The notebooks: short parameters cells, every parameter arrives, twice in one kernel; whole studies by `w2s run`."""

import ast
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pandas as pd
import pytest
import yaml
from conftest import small_params
from papermill.iorw import load_notebook_node
from papermill.parameterize import parameterize_notebook

from w2s import files
from w2s.analysis import scoring
from w2s.app import cli, headless
from w2s.lab import Lab
from w2s.params import HOME, StudyParams

NOTEBOOKS = sorted((HOME / "notebooks").glob("*.ipynb"))
ANALYSIS = HOME / "notebooks" / "04_deception_analysis.ipynb"
FIELDS = StudyParams.model_fields
each = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)

# A value other than the default for every parameter, valid together but for `frozen`.
CHANGED = {
    "study": "other", "data": "hh", "data_dir": "somewhere", "bad_pairs": "drop", "target": "helpful",
    "weak_models": ["a"], "strong_models": ["b"], "intermediate_models": ["c"], "conflicts": ["none", "implicit"],
    "seeds": [3, 4], "n_gt": 11, "n_w2s": 12, "n_helpful": 13, "n_validation": 14, "n_test": 15, "alpha": 0.25,
    "threshold": 0.9, "beta": 0.3, "gamma": 0.7, "weak_filter": "confidence", "confidence": "calibrated",
    "method": "simpo", "known_by": "gold", "tax_reference": "ceiling", "bootstrap": 123, "learning_rate": 1e-6,
    "epochs": 2, "sft_learning_rate": 1e-6, "sft_epochs": 3, "lora": {"rank": 2, "alpha": 4.0}, "batch_pairs": 5,
    "max_length": 99, "tokens_per_batch": 77, "device": "cpu", "dtype": "bfloat16", "threads": 2, "workers": 3,
    "shards": 4, "gradient_checkpointing": True, "offline": True, "scheduler": "tcp://host:1", "save_models": True,
    "frozen": True, "also": ["a.yaml"], "extensions": ["controls"], "show_text": False, "output_dir": "elsewhere",
}  # fmt: skip
STUDIES = {
    "reward": {"extensions": ["controls", "mitigations"]},
    "dpo": {"extensions": ["mitigations"], "seeds": [3], "weak_filter": "confidence", "threshold": 0.5,
            "confidence": "calibrated", "lora": {"rank": 2, "alpha": 4}},
    "simpo": {"extensions": ["mitigations"], "seeds": [3], "gradient_checkpointing": True},
}  # fmt: skip


def code_cells(notebook) -> list[str]:
    return [cell.source for cell in notebook.cells if cell.cell_type == "code"]


def bound(source: str) -> tuple[set, set]:
    """The names that a cell binds in the notebook, and those that it imports; what functions bind inside is theirs."""
    names, imported, todo = set(), set(), [ast.parse(source)]
    inner = ast.FunctionDef, ast.ClassDef, ast.Lambda, ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp
    while todo:
        node = todo.pop()
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.alias):
            imported.add((node.asname or node.name).split(".")[0])
        elif isinstance(node, inner):
            names.add(getattr(node, "name", ""))
        else:
            todo += ast.iter_child_nodes(node)
    return names, imported


def test_a_study_is_five_notebooks_and_the_extensions_asked_for():
    def planned(**given):
        return [path.stem for path in headless.plan(given)]

    words = ("data_conflict", "weak_training", "strong_training", "deception_analysis", "bootstrapping")
    assert planned() == [f"0{number}_{word}" for number, word in enumerate(words, 1)]
    assert planned(extensions=["controls"]) == [*planned(), "06_controls"]
    assert planned(extensions=["mitigations", "controls"]) == [*planned(), "06_controls", "07_mitigations"]


@each
def test_it_is_kept_clean_and_its_parameters_cell_short_and_at_the_defaults(path):
    notebook = nbformat.read(path, 4)
    assert {"name": "python3", "display_name": "Python 3 (ipykernel)"}.items() <= notebook.metadata.kernelspec.items()
    assert not [cell.id for cell in notebook.cells if cell.get("outputs") or cell.get("execution_count")]
    assert [cell.source for cell in notebook.cells if cell.metadata.get("tags")] == code_cells(notebook)[:1]
    lines = code_cells(notebook)[0].splitlines()
    for line in lines:
        (node,) = ast.parse(line).body
        assert isinstance(node, ast.AnnAssign) and "  # " in line, line
        assert ast.literal_eval(node.value) == FIELDS[node.target.id].default, line
    assert len(lines) <= 12


@each
def test_no_cell_binds_a_parameter_or_hides_an_import(path):
    """Such a cell would mean something else, or stop, when the notebook is run again in the same kernel."""
    names, imported = (set().union(*sets) for sets in zip(*map(bound, code_cells(nbformat.read(path, 4))[1:])))
    assert names & (FIELDS.keys() | imported) == set()


@each
@pytest.mark.parametrize("left_out", ["frozen", "extensions"])
def test_every_parameter_reaches_the_study(path, left_out, monkeypatch, capsys):
    """Those that the cell does not name as well: papermill adds them."""
    monkeypatch.setattr(Lab, "open", classmethod(lambda cls, params: cls(params)))
    assert CHANGED.keys() == FIELDS.keys() and not [key for key in FIELDS if CHANGED[key] == FIELDS[key].default]
    given = {key: value for key, value in CHANGED.items() if key != left_out}
    names: dict = {}
    for source in code_cells(parameterize_notebook(load_notebook_node(str(path)), given)):
        exec(source, names)
        if "lab" in names:
            break
    assert names["lab"].params == names["params"] == StudyParams.check(given)
    assert capsys.readouterr().out.startswith("changed from the defaults: study = 'other'")


@pytest.fixture(scope="module")
def tiny_study(tiny_models, tmp_path_factory):
    """The folder of a tiny study that has trained its direct runs and holds their predictions alone."""
    lab = Lab.open(small_params(tiny_models, tmp_path_factory.mktemp("twice")))
    files.write_table(lab.folder / "tables" / "predictions.parquet", lab.train(lab.direct_runs()))
    return lab


def twice(path, lab: Lab):
    """Run a notebook twice in one kernel, with a changed threshold the second time; yields the parameters each time."""
    names: dict = {"__name__": "__main__"}
    for params in (lab.params, lab.params.model_copy(update={"threshold": 0.6})):
        given = params.model_dump(exclude_defaults=True)
        for source in code_cells(parameterize_notebook(load_notebook_node(str(path)), given)):
            exec(source, names)
            plt.close("all")
        assert names["params"] == params
        yield params


def test_the_analysis_runs_twice_in_one_kernel_on_predictions_alone(tiny_study):
    tables = tiny_study.folder / "tables"
    predictions = pd.read_parquet(tables / "predictions.parquet")
    for params in twice(ANALYSIS, tiny_study):
        expected = scoring.score_table(predictions, params.threshold, bootstrap=params.bootstrap)
        pd.testing.assert_frame_equal(pd.read_parquet(tables / "04_scores.parquet"), expected)


@pytest.mark.slow
@pytest.mark.parametrize("path", [path for path in NOTEBOOKS if path != ANALYSIS], ids=lambda p: p.stem)
def test_each_notebook_runs_twice_in_one_kernel(path, tiny_study):
    assert len(list(twice(path, tiny_study))) == 2


def test_a_notebook_that_fails_ends_the_study_with_its_name(tiny_study, tmp_path, capsys, monkeypatch):
    """Without predictions, 04 stops with one clear line; the status is not 0 and no report appears."""
    monkeypatch.setattr(headless, "plan", lambda given: [ANALYSIS])
    values = tiny_study.params.model_dump(exclude_defaults=True) | {"study": "failing", "intermediate_models": []}
    (tmp_path / "p.yaml").write_text(yaml.safe_dump(values))
    assert cli.main(["run", str(tmp_path / "p.yaml")]) == 1
    errors = capsys.readouterr().err
    assert "04_deception_analysis.ipynb" in errors and "03" in errors
    assert not (tiny_study.root / "failing" / "report.html").exists()


@pytest.fixture(scope="module")
def studies(tiny_models, tmp_path_factory):
    """Tiny studies through the command line, all at once: method -> folder with tiny.yaml and results, output."""

    def study(method):
        folder = tmp_path_factory.mktemp(method)
        params = small_params(tiny_models, folder, study="tiny", method=method, **STUDIES[method])
        (folder / "tiny.yaml").write_text(yaml.safe_dump(params.model_dump(mode="json", exclude_defaults=True)))
        command = [sys.executable, "-m", "w2s.app.cli", "run", str(folder / "tiny.yaml")]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        assert done.returncode == 0, done.stdout[-5000:]
        return folder, done.stdout

    with ThreadPoolExecutor() as pool:
        return dict(zip(STUDIES, pool.map(study, STUDIES)))


@pytest.mark.slow
@pytest.mark.parametrize("method", ["dpo", "simpo"])
def test_all_five_run_by_preference_optimization(method, studies):
    folder = studies[method][0] / "tiny"
    left_out = pd.read_parquet(folder / "tables" / "07_findings.parquet")["sentence"].str.cat()
    assert "left out: reverse loss" in left_out and "left out: ensemble of sizes" in left_out
    assert ("adapters (rank 2)" in (folder / "report.html").read_text()) == ("lora" in STUDIES[method])
    predictions = pd.read_parquet(folder / "tables" / "predictions.parquet")
    assert predictions["run"].str.startswith(method).all() and np.isfinite(predictions["margin"]).all()


@pytest.mark.slow
def test_a_study_leaves_notebooks_tables_figures_and_report(studies):
    root, output = studies["reward"]
    folder = root / "tiny"
    for path in headless.plan(STUDIES["reward"]):
        cells = [cell for cell in nbformat.read(folder / path.name, 4).cells if cell.cell_type == "code"]
        assert all(cell.execution_count for cell in cells), path.name
        assert not [out for cell in cells for out in cell.outputs if out.output_type == "error"]
        pictures = sorted((folder / "figures").glob(f"{path.stem[:2]}_*.png"))
        assert pictures and all(p.with_suffix(".svg").exists() for p in pictures), path.name
        tables = sorted((folder / "tables").glob(f"{path.stem[:2]}_*.parquet"))
        assert tables and all(t.with_suffix(".csv").exists() for t in tables), path.name
    report = (folder / "report.html").read_text()
    assert "data:image/png;base64," in report and "<script" not in report
    assert "runs to train" in output and "about" in output


@pytest.mark.slow
def test_a_second_time_trains_nothing_and_changes_no_table(studies, capsys):
    root, file = studies["reward"][0], str(studies["reward"][0] / "tiny.yaml")

    def state():
        results = [*(root / "tiny" / "tables").iterdir(), *(root / "tiny" / "figures").glob("*.png")]
        trained = {path: path.stat().st_mtime_ns for path in (root / "runs").glob("*/DONE")}
        return trained, {path: path.read_bytes() for path in results}

    before = state()
    assert cli.main(["run", file]) == 0
    assert capsys.readouterr().out.count("as before") == len(headless.plan(STUDIES["reward"])) == 7
    assert cli.main(["run", file, "--again"]) == 0
    output = capsys.readouterr().out
    assert "runs are in the cache" in output and "as before" not in output
    assert state() == before
