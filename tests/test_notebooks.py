"""The notebooks: short parameters cells, every parameter arrives, twice in one kernel; a whole study by `w2s run`."""

import ast
import shutil
from symtable import symtable
from types import SimpleNamespace

import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from conftest import small_params
from papermill.iorw import load_notebook_node
from papermill.parameterize import parameterize_notebook
from transformers import GPT2LMHeadModel

from w2s import files
from w2s.analysis import scoring
from w2s.app import cli, headless
from w2s.lab import Lab
from w2s.params import HOME, StudyParams
from w2s.report import style
from w2s.report.html import write_report
from w2s.sources.audit import DROPS
from w2s.world import World

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
    "epochs": 3, "sft_learning_rate": 1e-6, "sft_epochs": 3, "lora": {"rank": 2, "alpha": 4.0}, "batch_pairs": 5,
    "max_length": 99, "tokens_per_batch": 77, "device": "cpu", "dtype": "bfloat16", "threads": 2, "workers": 3,
    "shards": 4, "gradient_checkpointing": True, "offline": True, "scheduler": "tcp://host:1", "save_models": True,
    "frozen": True, "also": ["a.yaml"], "extensions": ["controls"], "show_text": False, "output_dir": "elsewhere",
    "read_from": "shared", "other_data": "pairs", "trained_blocks": 2, "model_pairs": "all", "baseline": True,
}  # fmt: skip
OTHERS = {  # besides a study of reward models
    "dpo": {"weak_filter": "confidence", "threshold": 0.5, "confidence": "calibrated", "lora": {"rank": 2, "alpha": 4}},
    "simpo": {"gradient_checkpointing": True, "conflicts": ["none", "explicit"]},
}


def code_cells(notebook) -> list[str]:
    return [cell.source for cell in notebook.cells if cell.cell_type == "code"]


def given_cells(path, params: dict) -> list[str]:
    return code_cells(parameterize_notebook(load_notebook_node(str(path)), params))


def test_a_study_is_five_notebooks_and_the_extensions_asked_for():
    def planned(**given):
        return [path.stem for path in headless.plan(given)]

    words = ("data_conflict", "weak_training", "strong_training", "deception_analysis", "bootstrapping")
    assert planned() == [f"0{number}_{word}" for number, word in enumerate(words, 1)]
    assert planned(extensions=["controls"]) == [*planned(), "06_controls"]
    assert planned(extensions=["mitigations", "controls"]) == [*planned(), "06_controls", "07_mitigations"]
    every = ["06_controls", "07_mitigations", "08_chance", "09_known", "10_knowledge", "11_followups"]
    every += ["12_preference", "13_turned_round", "14_remedies_by_hand"]
    assert planned(**StudyParams.check({"extensions": "all"}).given) == [*planned(), *every]


@each
def test_it_is_kept_clean_and_its_parameters_cell_short_and_at_the_defaults(path):
    notebook = nbformat.read(path, 4)
    assert {"name": "python3", "display_name": "Python 3 (ipykernel)"}.items() <= notebook.metadata.kernelspec.items()
    assert not [cell.id for cell in notebook.cells if cell.get("outputs") or cell.get("execution_count")]
    assert [c.source for c in notebook.cells if "parameters" in c.metadata.get("tags", [])] == code_cells(notebook)[:1]
    lines = code_cells(notebook)[0].splitlines()
    for line in lines:
        (node,) = ast.parse(line).body
        assert isinstance(node, ast.AnnAssign) and "  # " in line, line
        assert ast.literal_eval(node.value) == FIELDS[node.target.id].default, line
    assert len(lines) <= 12


@each
def test_no_cell_binds_a_parameter_or_hides_an_import(path):
    """Such a cell would mean something else, or stop, when the notebook is run again in the same kernel."""
    cells = code_cells(nbformat.read(path, 4))[1:]
    symbols = [symbol for cell in cells for symbol in symtable(cell, path.name, "exec").get_symbols()]
    imported = {symbol.get_name() for symbol in symbols if symbol.is_imported()}
    assigned = {symbol.get_name() for symbol in symbols if symbol.is_assigned()}
    assert imported and not assigned & (FIELDS.keys() | imported)


@each
# No study has both.
@pytest.mark.parametrize("left_out", ["frozen trained_blocks", "extensions baseline other_data lora shards"])
def test_every_parameter_reaches_the_study(path, left_out, monkeypatch, capsys):
    """Those that the cell does not name as well: papermill adds them."""
    monkeypatch.setattr(Lab, "open", classmethod(lambda cls, params: cls(params)))
    monkeypatch.setattr("w2s.data.load", lambda params: SimpleNamespace(gt=World().pairs("gt", 3)))
    assert CHANGED.keys() == FIELDS.keys() and not [key for key in FIELDS if CHANGED[key] == FIELDS[key].default]
    given = {key: value for key, value in CHANGED.items() if key not in left_out.split()}
    names: dict = {}
    for source in given_cells(path, given):
        exec(source, names)
        if "params" in names:
            break
    assert names["params"] == StudyParams.check(given) and ("lab" in names) == (path.stem != "00_start_here")
    assert files.open_study == names["params"].root / "other"  # where the checks keep answers
    printed = capsys.readouterr().out
    assert "chosen:" not in printed  # show_text is false
    if "lab" in names:
        assert names["lab"].params == names["params"]
        assert printed.startswith("changed from the defaults: study = 'other'")


@pytest.fixture(scope="module")
def tiny_study(tiny_models, tmp_path_factory):
    """A tiny study of twins that has trained its direct runs, and holds their predictions alone."""
    folder = tmp_path_factory.mktemp("twice")
    twin = GPT2LMHeadModel.from_pretrained(tiny_models[0])
    torch.manual_seed(1)
    twin.apply(lambda module: torch.nn.init.normal_(module.weight, std=0.02) if hasattr(module, "nf") else None)
    twin.save_pretrained(shutil.copytree(tiny_models[0], folder / "twin"))
    lab = Lab.open(small_params(tiny_models, folder, weak_models=[tiny_models[0], str(folder / "twin")]))
    assert lab.twins == [tuple(lab.params.weak_models)]
    predictions = lab.train(lab.direct_runs())
    files.write_table(lab.folder / "tables" / "predictions.parquet", predictions)
    answers = lab.train(lab.known_answers()) if lab.known_answers() else predictions.head(0)
    files.write_table(lab.folder / "tables" / "known_answers.parquet", answers)
    return lab


def run(path, params: StudyParams, names: dict) -> None:
    """Run a notebook in the kernel whose names these are."""
    for source in given_cells(path, params.model_dump(exclude_defaults=True)):
        exec(source, names)
        plt.close("all")
    assert names["params"] == params


def twice(path, lab: Lab):
    """Run a notebook twice in one kernel, with a changed threshold the second time; yields the parameters each time."""
    names: dict = {"__name__": "__main__"}
    for params in (lab.params, lab.params.model_copy(update={"threshold": 0.6})):
        run(path, params, names)
        yield params


def assert_tables_and_figures(folder, notebooks) -> None:  # 10 has none to draw of random models, at chance
    for path in notebooks:
        pictures = sorted((folder / "figures").glob(f"{path.stem[:2]}_*.png"))
        tables = sorted((folder / "tables").glob(f"{path.stem[:2]}_*.parquet"))
        assert pictures or path.stem == "10_knowledge", path.name
        assert all(p.with_suffix(".svg").exists() for p in pictures), path.name
        assert tables and all(t.with_suffix(".csv").exists() for t in tables), path.name


def assert_scores_of(params: StudyParams, tables) -> None:
    predictions = pd.read_parquet(tables / "predictions.parquet")
    expected = scoring.score_table(predictions, params.threshold, bootstrap=params.bootstrap)
    pd.testing.assert_frame_equal(pd.read_parquet(tables / "04_scores.parquet"), expected)


def test_every_row_of_the_audit_is_explained():
    text = (HOME / "notebooks" / "01_data_conflict.ipynb").read_text(encoding="utf-8")
    assert not [name for name in ("spelt_special", *DROPS) if f"`{name}`" not in text]


def test_the_analysis_runs_on_predictions_alone(tiny_study):
    assert_scores_of(next(twice(ANALYSIS, tiny_study)), tiny_study.folder / "tables")


def test_a_table_has_no_row_numbers_and_keeps_short_texts_on_one_line():
    table = pd.DataFrame({"model": ["pocket-40a"], "accuracy": [0.5]}, index=[29])
    html = style._table_html(table)
    assert "29" not in html and "white-space: nowrap" in html and "pocket-40a" in html
    assert "29" in style._table_html(table.rename_axis("rank"))
    assert "white-space: nowrap" not in style._table_html(table.assign(text="x" * 41))


def test_students_read_the_cache_of_their_class_and_write_to_their_own_folders(tiny_study, tmp_path, capsys):
    """Two other thresholds, a cache that nobody may write; runs of another alpha are not those of the class."""
    shared = tiny_study.root
    before = {path: path.stat().st_mtime_ns for path in shared.rglob("*")}
    for path in [shared, *before]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        for name, threshold in {"ann": 0.6, "bob": 0.9}.items():
            own = {"output_dir": str(tmp_path / name), "read_from": str(shared), "threshold": threshold}
            run(ANALYSIS, tiny_study.params.model_copy(update=own), {"__name__": "__main__"})
        other = Lab(tiny_study.params.model_copy(update=own | {"alpha": 0.25, "threshold": 0.75}))
        taken = {path.name for path in (shared / "runs").iterdir()}
        explicit = {spec.name for spec, tags in other.direct_runs().items() if tags["conflict"] == "explicit"}
        assert explicit and not explicit & taken
    finally:
        for path in [shared, *before]:
            path.chmod(0o755 if path.is_dir() else 0o644)
    assert {path: path.stat().st_mtime_ns for path in shared.rglob("*")} == before
    assert "runs taken from" in capsys.readouterr().out
    predictions = pd.read_parquet(tiny_study.folder / "tables" / "predictions.parquet")
    for name, threshold in {"ann": 0.6, "bob": 0.9}.items():
        expected = scoring.score_table(predictions, threshold, bootstrap=tiny_study.params.bootstrap)
        scores = pd.read_parquet(tmp_path / name / "small" / "tables" / "04_scores.parquet")
        pd.testing.assert_frame_equal(scores, expected)


@pytest.mark.slow
@each
def test_each_notebook_runs_twice_in_one_kernel(path, tiny_study):
    first, second = twice(path, tiny_study)
    assert first.threshold != second.threshold
    assert_tables_and_figures(tiny_study.folder, [] if path.stem == "00_start_here" else [path])
    if path == ANALYSIS:
        assert_scores_of(second, tiny_study.folder / "tables")


@pytest.mark.slow
@pytest.mark.parametrize("method", OTHERS)
def test_all_run_by_preference_optimization(method, tiny_models, tmp_path):
    how = OTHERS[method] | {"extensions": ["mitigations", "preference", "turned_round"], "seeds": [3]}
    params = small_params(tiny_models, tmp_path, method=method, **how)
    for path in headless.plan(how):
        run(path, params, {"__name__": "__main__"})
    folder = tmp_path / "small"
    assert_tables_and_figures(folder, headless.plan(how))
    left_out = pd.read_parquet(folder / "tables" / "07_findings.parquet")["sentence"].str.cat()
    assert "left out: reverse loss" in left_out and "left out: ensemble of sizes" in left_out
    assert ("adapters (rank 2)" in write_report(params).read_text()) == ("lora" in how)
    predictions = pd.read_parquet(folder / "tables" / "predictions.parquet")
    assert predictions["run"].str.startswith(method).all() and np.isfinite(predictions["margin"]).all()


@pytest.mark.slow
def test_a_study_leaves_results_and_a_second_time_trains_nothing_and_changes_no_table(tiny_models, tmp_path, capfd):
    """By the command line: notebooks, tables, figures and report; "as before", and the same bytes when done again."""
    params = small_params(tiny_models, tmp_path, extensions=["controls"])
    folder, file, plan = tmp_path / "small", str(tmp_path / "tiny.yaml"), headless.plan(vars(params))
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(params.model_dump(mode="json", exclude_defaults=True)))
    assert cli.main(["run", file]) == 0
    output = capfd.readouterr().out
    assert "runs to train" in output and "about" in output
    for path in plan:
        cells = [cell for cell in nbformat.read(folder / path.name, 4).cells if cell.cell_type == "code"]
        assert all(cell.execution_count for cell in cells), path.name
        kinds = {kind for cell in cells for out in cell.outputs for kind in (out.output_type, out.get("name"))}
        assert not kinds & {"error", "stderr"}, path.name
    assert_tables_and_figures(folder, plan)
    report = (folder / "report.html").read_text()
    assert "data:image/png;base64," in report and "<script" not in report

    def state():
        results = [*(folder / "tables").iterdir(), *(folder / "figures").glob("*.png")]
        trained = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").glob("*/DONE")}
        return trained, {path: path.read_bytes() for path in results}

    before = state()
    assert cli.main(["run", file]) == 0
    assert capfd.readouterr().out.count("as before") == len(plan) == 6
    assert cli.main(["run", file, "--again"]) == 0
    output = capfd.readouterr().out
    assert "runs are in the cache" in output and "as before" not in output and state() == before
