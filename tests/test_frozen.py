"""The shipped predictions: those of the full pocket studies, as training them again gives them."""

import json

import numpy as np
import pandas as pd
import pytest

from w2s.app import cli, headless
from w2s.params import HOME, ParameterError, StudyParams
from w2s.runs import cluster, execute, frozen
from w2s.study import Study

FILES = {"reward": "pocket_full", "simpo": "pocket_full_simpo", "dpo": "pocket_full_dpo"}


@pytest.fixture(scope="module")
def studies(tmp_path_factory):
    root = str(tmp_path_factory.mktemp("frozen"))
    return {
        method: Study.open(StudyParams.load(HOME / "params" / f"{file}.yaml", output_dir=root))
        for method, file in FILES.items()
    }


@pytest.mark.parametrize("method", FILES)
def test_every_run_of_the_full_study_ships_with_its_spec(studies, method):
    """Fails when a change to the kit gives runs another identity: then freeze the study anew."""
    wanted = {spec.name: frozen.described(spec) for spec in studies[method].all_runs()}
    assert json.loads((frozen.FOLDER / f"{method}.json").read_text()) == wanted


@pytest.mark.parametrize("method", FILES)
def test_a_run_trained_again_predicts_the_same(studies, method):
    study = studies[method]
    spec = study.student("pocket-27", "pocket-32", "explicit", 3)
    trained = cluster.results(study, {spec: {}})
    shipped = frozen.load_predictions(spec)
    again = trained.merge(shipped, on=["id", "split"], suffixes=("", "_shipped"))
    assert again.groupby("split").size().to_dict() == {"test": 1280, "validation": 400}
    for quantity in frozen.KEPT[method]:
        np.testing.assert_allclose(again[quantity], again[f"{quantity}_shipped"], atol=0.02, err_msg=quantity)


def test_a_frozen_study_trains_nothing_and_names_what_does_not_ship(tmp_path, monkeypatch):
    monkeypatch.setattr(execute, "execute", lambda *a, **k: pytest.fail("trained"))
    given = {"output_dir": str(tmp_path), "frozen": True}
    study = Study.open(StudyParams.load(HOME / "params" / "pocket.yaml", seeds=[4], **given))
    table = cluster.results(study, study.direct_runs())
    assert set(table["split"]) == {"test", "validation", "w2s", "gt"}
    assert table["seed"].unique().tolist() == [4]
    assert ((table["probability"] > 0.5) == table["correct"]).all()
    other = Study.open(StudyParams.load(HOME / "params" / "pocket.yaml", seeds=[5], **given))
    with pytest.raises(ParameterError, match=r"frozen = True.*s5.*frozen: false"):
        cluster.results(other, other.direct_runs())


def test_a_study_of_shipped_predictions_needs_no_training_notebook():
    planned = [path.stem[:2] for path, _ in headless.plan({"frozen": True, "show_text": False})]
    assert planned == ["04", "05"]


def test_extensions_would_train():
    with pytest.raises(ParameterError, match="controls.*do not ship"):
        StudyParams.check({"frozen": True, "extensions": ["controls"]})


def test_packing_keeps_what_analyses_read(small_study, tmp_path):
    study, specs = small_study, list(small_study.all_runs())
    with pytest.raises(ValueError, match="not in"):
        frozen.pack(specs, study.root, tmp_path)
    trained = cluster.results(study, study.all_runs())
    frozen.pack(specs, study.root, tmp_path)
    weak = specs[0]
    shipped = frozen.load_predictions(weak, tmp_path)
    rows = trained[(trained["run"] == weak.name) & trained["split"].isin(["test", "validation", "w2s"])]
    joined = rows.merge(shipped, on=["split", "id"], suffixes=("", "_shipped"))
    assert len(joined) == len(rows) == len(shipped)
    assert (joined["margin"] - joined["margin_shipped"]).abs().max() <= frozen.STEP
    pd.testing.assert_series_equal(joined["margin_shipped"] > 0, joined["correct"], check_names=False)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("also: [b.yaml]", ["study", "'pocket'", "own folder"]),
        ("also: [c.yaml]", ["c.yaml", "also", "itself"]),
        ("also: [none.yaml]", ["none.yaml", "no such"]),
    ],
)
def test_wrong_lists_of_other_studies(tmp_path, capsys, content, words):
    (tmp_path / "a.yaml").write_text(content)
    (tmp_path / "b.yaml").write_text("study: pocket")
    (tmp_path / "c.yaml").write_text("study: other\nalso: [b.yaml]")
    assert cli.main(["run", str(tmp_path / "a.yaml"), "--output-dir", str(tmp_path)]) == 2
    line = capsys.readouterr().err.strip()
    assert "\n" not in line and all(word in line for word in words), line
