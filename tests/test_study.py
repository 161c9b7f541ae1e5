"""Opening a study: what is checked and said before anything is trained; and the walkthrough of notebook 00."""

import json
from unittest.mock import Mock

import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pandas as pd
import pytest
from conftest import small_params

from w2s.analysis import scoring
from w2s.app.headless import Executed
from w2s.files import HEADLESS
from w2s.lab import Lab
from w2s.params import HOME, ParameterError
from w2s.runs.cluster import Interrupted
from w2s.study import Study

SIZES = {"n_gt": 2, "n_w2s": 2, "n_test": 2, "n_validation": 2, "n_helpful": 0, "conflicts": ["none", "explicit"]}
TABLE = pd.DataFrame({"x": [1]})


def study_of(models, folder, response: str, **changes) -> Study:
    """Of two pairs a split, of which the last one of w2s has the given chosen response."""
    for split in ("gt", "w2s", "validation", "test"):
        chosen = [" yes", response if split == "w2s" else " yes"]
        prompts = [f"\n\nHuman: {split} {i}?\n\nAssistant:" for i in range(2)]
        rows = [{"prompt": p, "chosen": c, "rejected": " no"} for p, c in zip(prompts, chosen, strict=True)]
        (folder / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return Study.open(small_params(models, folder, data=str(folder), **SIZES, **changes))


def test_a_response_longer_than_the_context_is_named(tiny_models, tmp_path):
    how = (tiny_models, tmp_path, " " + "9" * 40)
    with pytest.raises(ParameterError) as caught:
        study_of(*how, max_length=32)
    message = str(caught.value)
    parts = ("max_length = 32", "chosen response", "w2s-0000", "41 tokens", tiny_models[0], "bad_pairs: drop")
    assert "\n" not in message and all(words in message for words in parts)
    study_of(*how, max_length=41)
    study_of(*how, max_length=32, bad_pairs="drop")
    study_of(tiny_models, tmp_path, " yes, try" * 4, max_length=32)  # 36 bytes; each word is one token


@pytest.fixture
def lab_of(tmp_path, capsys):
    """Opens a study of the folder `mine` by hand; gives it, and what is said beyond the changes from the defaults."""

    def opened(**cell) -> tuple[Lab, str]:
        lab = Lab.of({"study": "mine", "output_dir": str(tmp_path), **cell})
        lines = capsys.readouterr().out.splitlines()
        return lab, "\n".join(line for line in lines if " holds " in line)

    return opened


def run_headless(folder, given, *names):
    """Record notebooks as `w2s run` does, each with a table."""
    record = Executed(folder, [], {"study": "mine", **given})
    for name in names:
        before = record.written()
        Lab.of({"study": "mine", "output_dir": str(folder.parent)} | given).keep(TABLE, name[:2] + "_table")
        record.add(name, str(given), before)
    return record


def test_results_of_other_parameters_are_named_once_and_no_others(lab_of, tmp_path, monkeypatch):
    folder, names = tmp_path / "mine", ("01_data.ipynb", "02_weak.ipynb")
    said = f"{folder} holds results of "
    kept = ": this notebook replaces its own; study = NAME keeps both"
    monkeypatch.setenv(HEADLESS, "set")
    run_headless(folder, {"n_gt": 800, "workers": 4, "alpha": 0.5}, *names)
    assert lab_of()[1] == ""  # `w2s run` itself has said it
    monkeypatch.delenv(HEADLESS)
    assert lab_of(n_gt=800)[1] == ""  # workers make no other results, and a parameter left out has its default
    lab, line = lab_of(seeds=[0, 1])
    assert line == f"{said}n_gt = 800 (now 1600), seeds = [0] (now [0, 1]){kept}"
    lab.keep(TABLE, "predictions")  # of no notebook's number
    assert lab_of(n_gt=800)[1] == ""
    lab.show(plt.figure().add_subplot(), "01_figure")
    plt.close("all")
    assert lab_of(n_gt=800)[1] == f"{said}n_gt = 1600 (now 800), seeds = [0, 1] (now [0]){kept}"
    assert lab_of(n_gt=8)[1] == f"{said}n_gt = 1600 or 800 (now 8), seeds = [0, 1] (now [0]){kept}"
    record = Executed(folder, [], {"n_gt": 800})  # the next `w2s run` says it as well, and makes 01 anew
    assert record.changes() == "n_gt = 1600 (now 800), seeds = [0, 1] (now [0]), workers = 4 (now 2)"
    assert [record.holds(name, str({"n_gt": 800, "workers": 4, "alpha": 0.5})) for name in names] == [False, True]


def test_results_by_hand_alone_are_recorded_until_a_headless_run(lab_of, tmp_path, monkeypatch):
    changes = {"alpha": 0.25, "lora": {"rank": 2, "alpha": 4}}
    lab_of(**changes)[0].conclude(["A sentence."], "04_findings")
    assert lab_of(**changes)[1] == ""
    assert "holds results of alpha = 0.25 (now 0.5), lora = {'alpha': 4.0, 'rank': 2} (now None)" in lab_of()[1]
    monkeypatch.setenv(HEADLESS, "set")
    run_headless(tmp_path / "mine", {}, "04_analysis.ipynb").drop({"04_analysis.ipynb"})
    monkeypatch.delenv(HEADLESS)
    assert lab_of()[1] == ""


@pytest.mark.parametrize("content", ["", "[]", '{"a": 1}', "null"])
def test_a_damaged_record_is_one_line(lab_of, tmp_path, content):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / ".executed.json").write_text(content)
    with pytest.raises(ParameterError, match=r"\.executed\.json: damaged; delete it"):
        lab_of()


def test_the_walkthrough_is_short_and_has_the_numbers_of_a_study(tiny_models, tmp_path):
    notebook = nbformat.read(HOME / "notebooks" / "00_start_here.ipynb", 4)
    cells = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    assert sum(bool(line.strip()) for source in cells for line in source.splitlines()) <= 70
    params = small_params(tiny_models, tmp_path, seeds=[1], alpha=0.7, intermediate_models=[])
    names: dict = {}
    exec(cells[0], names)
    names |= params.model_dump(exclude_unset=True)
    for source in cells[1:]:
        exec(source, names)

    lab = Lab.open(params)
    table = lab.train(lab.direct_runs()).query("split == 'test'")
    named = {"weak": "gold tiny-8 none", "ceiling": "gold tiny-24 none"}
    named |= {conflict: f"student tiny-24 {conflict}" for conflict in params.conflicts}
    who = table["role"] + " " + table["model"] + " " + table["conflict"]
    for column, run in named.items():
        cached = table[who == run].set_index("id")["probability"]
        np.testing.assert_array_equal(names["P"][column].to_numpy(), cached[names["P"].index].to_numpy())
    score = scoring.score_table(table, bootstrap=100).set_index(["strong", "conflict"])["score"]
    np.testing.assert_equal(names["ds"], score["tiny-24", "implicit"])

    names["fit"] = Mock(side_effect=KeyboardInterrupt)
    with pytest.raises(Interrupted, match=r"^interrupted: .*; run this cell again"):  # one line, as of runs of a study
        names["train"](tiny_models[0], names["pairs"])
