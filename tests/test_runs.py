"""The run cache: identity, atomic folders, locks, resume after a kill, the same bytes."""

import json
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import small_params
from distributed import LocalCluster
from filelock import FileLock

from w2s import files, models
from w2s.analysis import followups
from w2s.files import duration
from w2s.params import Lora, ParameterError, StudyParams
from w2s.predict import predict
from w2s.report import sentences_extensions
from w2s.runs import cluster, execute, progress, store
from w2s.runs.labels import weak_labels
from w2s.runs.progress import Progress
from w2s.study import Study


@pytest.fixture(scope="module")
def finished(tiny_models, tmp_path_factory):
    """A small study with every run trained, and its predictions."""
    study = Study.open(small_params(tiny_models, tmp_path_factory.mktemp("finished")))
    return study, cluster.results(study, study.all_runs())


def assert_same_bytes(one: Study, two: Study, *specs) -> None:
    for spec in specs:
        for file in ("predictions.parquet", "metrics.json", "spec.json"):
            first, second = (study.root / "runs" / spec.name / file for study in (one, two))
            assert first.read_bytes() == second.read_bytes()


def assert_failed_runs_are_marked(study: Study, names: list[str]) -> None:
    broken = [replace(study.gold(name, 0), learning_rate=1e30) for name in names]
    with pytest.raises(execute.RunFailed, match=r"none of the runs is left: .*lower learning_rate"):
        cluster.results(study, {spec: {} for spec in broken})
    assert not any(store.is_done(spec, study.root) for spec in broken)
    assert all("failed: the loss is nan at step" in store.state(spec, study.root) for spec in broken)


def test_a_study_has_the_runs_of_the_paper(small_study):
    weak, middle, strong = (Path(m).name for m in [*small_study.params.weak_models, *small_study.params.strong_models])
    tags = pd.DataFrame(small_study.all_runs().values())
    students, boot = tags[tags.role == "student"], tags[tags.role == "bootstrapped"]
    assert set(zip(students.teacher, students.model, strict=True)) == {(weak, middle), (weak, strong)}
    assert students.groupby(["teacher", "model"]).conflict.apply(set).eq({"none", "explicit", "implicit"}).all()
    assert set(zip(boot.via, boot.teacher, boot.model, strict=True)) == {(weak, middle, strong)}
    assert set(tags[tags.role == "gold"].model) == {weak, middle, strong}
    known = tags[tags.role == "control"]  # without twins, of the largest pair
    assert set(zip(known.teacher, known.model, strict=True)) == {(weak, strong)}
    assert known.conflict.tolist() == ["other seed", "gold labels", "noise 20%", "planted 100%"]
    assert not replace(small_study, params=small_study.params.model_copy(update={"frozen": True})).known_answers()


def test_everything_that_changes_a_result_changes_the_name(small_study):
    weak, strong = small_study.params.weak_models[0], small_study.params.strong_models[-1]
    spec = small_study.student(weak, strong, "explicit", 0)
    changes = {
        "model_fingerprint": "x", "data": "x", "split": "gt", "seed": 1, "conflict": "none", "alpha": 0.1,
        "teacher": None, "learning_rate": 0.5, "epochs": 2, "batch_pairs": 7, "max_length": 64, "device": "cuda",
        "dtype": "bfloat16", "threads": 2, "recipe": 99, "weighting": "reliability", "label_loss": "reverse",
        "confidence_weight": 0.1, "gold_checks": 3, "ensemble": (spec.teacher,), "chance_by": "paper",
    }  # fmt: skip
    taught = replace(spec, teacher=replace(spec.teacher, learning_rate=0.5))
    others = [replace(spec, **{key: value}) for key, value in changes.items()]
    assert len({run.name for run in (spec, taught, *others)}) == len(changes) + 2
    added = {"ensemble", "chance_by", "weighting", "label_loss", "confidence_weight", "gold_checks"}
    assert not added & set(spec.identity)  # a field that came later leaves the names of old runs as they are
    assert replace(spec, tokens_per_batch=1, save_model=True).name == spec.name
    adapted = [replace(spec, lora=Lora(rank=2, alpha=4, dropout=share)) for share in (0.0, 0.1)]
    assert [replace(s, tokens_per_batch=1).name == s.name for s in adapted] == [True, False]
    louder = replace(small_study, params=small_study.params.model_copy(update={"alpha": 1.0}))
    for conflict, same in (("none", True), ("implicit", True), ("explicit", False)):  # to which alone alpha matters
        assert (small_study.student(weak, strong, conflict, 0) == louder.student(weak, strong, conflict, 0)) == same


@pytest.mark.parametrize("how", ["reward", "dpo", "blocks"])
def test_with_other_data_every_run_is_scored_on_these_pairs_too(how, small_study, tiny_models, tmp_path):
    texts = [{"prompt": f"\n\nHuman: {i}?\n\nAssistant:", "chosen": f" yes {i}", "rejected": " no"} for i in range(6)]
    texts += [small_study.data.gt.loc[0, ["prompt", "chosen", "rejected"]].to_dict()]  # a pair that is trained on
    (tmp_path / "other.jsonl").write_text("\n".join(map(json.dumps, texts)))
    changes = {"trained_blocks": 1} if how == "blocks" else {"method": how}
    changes |= {"other_data": str(tmp_path / "other.jsonl"), "conflicts": ["none", "explicit"]}
    study = Study.open(small_params(tiny_models[:2], tmp_path, intermediate_models=[], **changes))
    assert sorted(study.data.other["chosen"]) == [f" yes {i}" for i in range(6)]
    assert study.data.fingerprint == small_study.data.fingerprint
    table = cluster.results(study, study.direct_runs())
    assert (table.groupby(["run", "split"]).size().xs("other", level="split") == 6).all()
    assert set(table.loc[table["split"] == "other", "run"]) == set(table["run"])
    both = followups.other_table(table, 100)
    assert both.groupby("scored_on")["pairs"].first().to_dict() == {"other": 6, "test": 40}
    (line,) = sentences_extensions.other_pairs(both)
    assert line.startswith("explicit conflict, on 6 pairs of other_data: accuracy ")
    gold = [of.gold(tiny_models[0], 0) for of in (small_study, study)]
    assert "other" not in gold[0].identity and gold[1].identity["other"] == study.data.other_fingerprint


def test_other_data_of_the_pocket_world_are_its_other_dimension_and_what_is_no_data_says_so(tiny_models, tmp_path):
    study = Study.open(small_params(tiny_models, tmp_path, other_data="helpful"))
    assert set(study.data.other["dimension"]) == {"helpful"} and len(study.data.other) == study.params.n_test
    assert study.data.other["id"].str.startswith("other-").all()
    with pytest.raises(ParameterError, match=r"other_data = .*nowhere.*: no pairs there with other prompts"):
        Study.open(small_params(tiny_models, tmp_path, other_data=str(tmp_path / "nowhere")))
    for given, words in ({"frozen": True}, "does not ship"), ({"data": "hh"}, "of the pocket world alone"):
        with pytest.raises(ParameterError, match=words):
            StudyParams.check({"other_data": "helpful", **given})


def test_a_second_time_trains_nothing(finished, capsys, monkeypatch):
    study, first = finished
    monkeypatch.setattr(execute, "execute", lambda *a, **k: pytest.fail("trained again"))
    pd.testing.assert_frame_equal(first, cluster.results(study, study.all_runs()))
    assert "in the cache" in capsys.readouterr().out


def test_predictions_and_the_source_of_the_data_are_as_promised(finished):
    study, table = finished
    assert list(table.columns[:5]) == ["id", "split", "margin", "probability", "correct"]
    assert {"run", "role", "model", "teacher", "via", "conflict", "seed"} <= set(table.columns)
    assert (table[table.split == "test"].groupby(["run", "role"]).size() == study.params.n_test).all()
    np.testing.assert_allclose(table.probability, 1 / (1 + np.exp(-table.margin.astype(float))))
    (file,) = (study.root / "runs" / "data").glob("*/source.json")
    source = json.loads(file.read_text())
    assert source["data"] == "pocket" and source["sizes"]["gt"] == study.params.n_gt
    gold = study.root / "runs" / study.gold(study.params.weak_models[0], 0).name
    last = json.loads((gold / "log.jsonl").read_text().splitlines()[-1])
    assert last["step"] == last["steps"] == 2 and {"loss", "seconds"} <= set(last)


def test_students_are_taught_by_their_teachers_labels(finished):
    study, table = finished
    weak, strong = study.params.weak_models[0], study.params.strong_models[0]
    labels = weak_labels(study.gold(weak, 0), study.root, "w2s").set_index("id").weak_label
    rows = table[(table.role == "gold") & (table.model == Path(weak).name) & (table.split == "w2s")]
    pd.testing.assert_series_equal(rows.set_index("id").probability, labels, check_names=False)
    chained = study.bootstrapped(weak, strong, study.params.strong_models[1], "none", 0)
    assert chained.teacher == study.student(weak, strong, "none", 0)


def test_the_same_study_elsewhere_gives_the_same_bytes_also_of_a_run_that_was_broken_off(finished, small_study):
    weak, strong = small_study.params.weak_models[0], small_study.params.strong_models[0]
    specs = [small_study.gold(weak, 0), small_study.student(weak, strong, "implicit", 0)]
    folder = small_study.root / "runs" / specs[0].name
    folder.mkdir(parents=True)
    (folder / "predictions.parquet").write_bytes(b"half a file")
    assert not store.is_done(specs[0], small_study.root)
    cluster.results(small_study, {spec: {} for spec in specs})
    assert_same_bytes(finished[0], small_study, *specs)


def test_a_dask_scheduler_takes_the_runs_and_marks_those_that_fail(finished, tiny_models, tmp_path):
    here = {"processes": False, "protocol": "tcp://", "dashboard_address": ":0"}
    with LocalCluster(n_workers=1, threads_per_worker=1, **here) as workers:
        again = Study.open(small_params(tiny_models, tmp_path, scheduler=workers.scheduler_address))
        spec = again.gold(tiny_models[0], 0)
        cluster.results(again, {spec: {}})
        assert_same_bytes(finished[0], again, spec)
        assert_failed_runs_are_marked(again, tiny_models[:1])


def test_a_second_process_waits_for_the_first_and_a_saved_model_scores_the_same(small_study, capfd):
    root, spec = small_study.root, small_study.gold(small_study.params.weak_models[0], 0)
    store.store_data(root, small_study.data)
    folder = root / "runs" / spec.name
    with FileLock(f"{folder}.lock"):
        thread = threading.Thread(target=execute.execute, args=(spec, root))
        thread.start()
        time.sleep(0.5)
        assert not folder.exists()
    thread.join(60)
    assert store.is_done(spec, root) and "waiting for" in capfd.readouterr().out
    keeping = replace(spec, save_model=True)
    assert not store.is_done(keeping, root)  # in the cache, but without the model that is asked for now
    execute.execute(keeping, root)
    saved, tokenizer = (load(str(folder / "model")) for load in (models.RewardModel.load, models.load_tokenizer))
    scores, kept = predict(saved, small_study.data.test, tokenizer, 512, 8192), store.load_predictions(spec, root)
    np.testing.assert_allclose(scores.margin, kept[kept.split == "test"].margin, atol=1e-6)


def test_a_study_without_pairs_of_models_or_helpful_pairs(tiny_models, tmp_path):
    small = {"weak_models": tiny_models[2:], "strong_models": tiny_models[:1]}
    for changes, words in ((small, "none is larger"), ({"n_helpful": 0}, "n_helpful = 0.*leave implicit out")):
        with pytest.raises(ValueError, match=words):
            Study.open(small_params(tiny_models, tmp_path, **changes)).student_runs()
    without = Study.open(small_params(tiny_models, tmp_path, n_helpful=0, conflicts=["none", "explicit"]))
    assert len(without.student_runs()) == 4


@pytest.mark.parametrize(("live", "seconds_between"), [(False, 10.0), (False, 0.0), (True, 10.0)])
def test_a_log_gets_few_lines_and_the_last_and_a_person_a_bar(capsys, monkeypatch, live, seconds_between):
    monkeypatch.setattr(progress, "is_live", lambda: live)
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", seconds_between)
    with Progress(["a", "b"]) as shown:
        shown.update("a", 25, 50)
        assert shown.bar.disable != live and (not live or shown.bar.n == pytest.approx(25))
        shown.finish("a")
        shown.finish("b")
        assert not live or shown.bar.n == pytest.approx(100)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == (0 if live else 1 if seconds_between else 3)
    assert live or ("100%" in lines[-1] and "2/2 runs" in lines[-1])
    assert len(lines) < 3 or "25% 0/2 runs" in lines[0]


def test_w2s_run_marks_its_notebooks_as_headless(monkeypatch):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.setenv(files.HEADLESS, "1")
    assert not progress.is_live()


@pytest.mark.parametrize(("seconds", "words"), [(0.2, "1 s"), (61, "61 s"), (240, "4 min"), (7200, "2.0 h")])
def test_durations_as_a_person_says_them(seconds, words):
    assert duration(seconds) == words
