"""Notebook 06: other labels, other strengths of the conflict, no training."""

import os

import numpy as np
import pandas as pd
import pytest
from conftest import small_params

from w2s import files
from w2s.models import RewardModel, load_tokenizer
from w2s.params import ParameterError
from w2s.predict import predict
from w2s.runs import cluster, estimate, store
from w2s.runs.labels import labelled_pairs, relabelled, weak_labels
from w2s.study import LABELS, Study


@pytest.fixture(scope="module")
def trained(tiny_models, tmp_path_factory):
    """A study of each method with its weak model, its ceiling and an undisturbed student trained."""
    studies = {}
    for method in ("reward", "dpo"):
        study = Study.open(small_params(tiny_models, tmp_path_factory.mktemp(method), method=method))
        weak, strong = tiny_models[0], tiny_models[2]
        cluster.results(study, study.gold_runs([weak, strong]) | {study.control(weak, strong, "weak", "none", 0): {}})
        studies[method] = study
    return studies


def test_shuffled_labels_are_the_same_numbers_elsewhere_and_random_ones_say_nothing_on_average():
    label = np.linspace(0.1, 0.9, 200)
    shuffled, again, other = (relabelled(label, "shuffled", seed) for seed in (1, 1, 2))
    assert sorted(shuffled) == sorted(label) and (shuffled != label).mean() > 0.9
    assert np.array_equal(shuffled, again) and not np.array_equal(shuffled, other)
    turned = relabelled(np.full(4000, 0.9), "random", seed=0)
    assert set(np.round(turned, 6)) == {0.1, 0.9} and abs(turned.mean() - 0.5) < 0.03


@pytest.mark.parametrize("method", ["reward", "dpo"])
def test_each_kind_of_labels_is_a_run_of_its_own(trained, tiny_models, method):
    study, weak, strong = trained[method], tiny_models[0], tiny_models[2]
    specs = {labels: study.control(weak, strong, labels, "explicit", 0) for labels in LABELS}
    assert len({spec.name for spec in specs.values()}) == len(LABELS)
    assert specs["weak"] == study.student(weak, strong, "explicit", 0)
    assert specs["gold"].teacher is None and specs["own"].teacher == study.gold(strong, 0)
    assert study.control(weak, strong, "weak", "explicit", 0, alpha=0.25).alpha == 0.25
    if method == "dpo":  # the warm start is on the responses that these labels prefer
        assert len({spec.start.name for spec in specs.values()}) == len(LABELS)
    label = {k: labelled_pairs(study.control(weak, strong, k, "none", 0), study.root)["label"] for k in LABELS}
    assert (label["gold"] == 1).all() and sorted(label["shuffled"]) == sorted(label["weak"])
    np.testing.assert_array_equal(label["own"], weak_labels(study.gold(strong, 0), study.root, "w2s")["weak_label"])


def test_without_training_the_unit_is_fresh(trained, tiny_models):
    study, strong = trained["reward"], tiny_models[2]
    table = cluster.results(study, {study.untrained(strong, 0): {}})
    fresh = predict(RewardModel.load(strong, seed=0), study.data.test, load_tokenizer(strong), 128, 10_000)
    margin, expected = (t.set_index("id")["margin"] for t in (table[table["split"] == "test"], fresh))
    pd.testing.assert_series_equal(margin, expected, check_names=False, atol=1e-5)


def test_a_perfect_teacher_makes_the_ceiling_of_its_pairs(small_study, tiny_models):
    """Labels of a teacher that is sure and right everywhere: the student is the gold-trained model, bit for bit."""
    weak, strong = tiny_models[0], tiny_models[2]
    teacher = small_study.gold(weak, 0)
    cluster.results(small_study, {teacher: {}})
    labels = store.load_predictions(teacher, small_study.root).assign(probability=1.0, margin=100.0, correct=True)
    folder = store.folder_of(teacher, small_study.root)
    os.replace(folder, store.beside(folder, "part"))
    files.write_table(store.beside(folder, "part") / "predictions.parquet", labels)
    store.finish(folder)
    student, ceiling = (small_study.control(weak, strong, labels, "none", 0) for labels in ("weak", "gold"))
    cluster.results(small_study, {student: {}, ceiling: {}})
    a, b = (store.load_predictions(spec, small_study.root).set_index(["split", "id"]) for spec in (student, ceiling))
    assert student.teacher == teacher and ceiling.teacher is None
    pd.testing.assert_series_equal(a["margin"], b["margin"].reindex(a.index), check_exact=True)


@pytest.mark.parametrize("method", ["reward", "dpo"])
def test_a_conflict_of_strength_zero_or_without_pairs_changes_nothing(trained, tiny_models, method):
    study, names = trained[method], (tiny_models[0], tiny_models[2], "weak")
    weightless = study.control(*names, "explicit", 0, alpha=0.0)
    without = study.control(*names, "implicit", 0, **cluster.helpful_pairs(study, 0))
    specs = [study.control(*names, "none", 0), weightless, without]
    cluster.results(study, {spec: {} for spec in specs})
    assert len({spec.name for spec in specs}) == 3 and labelled_pairs(without, study.root)["target"].all()
    none, *others = (store.load_predictions(spec, study.root).query("split == 'test'") for spec in specs)
    for other in others:
        np.testing.assert_array_equal(none["margin"], other["margin"])


def test_shares_of_the_helpful_pairs_are_nested_and_keep_the_teacher(trained, tiny_models):
    study, names = trained["reward"], (tiny_models[0], tiny_models[2])
    shares = {times: cluster.helpful_pairs(study, times) for times in (0.25, 1, 2)}
    specs = {t: study.control(*names, "weak", "implicit", 0, **fields) for t, fields in shares.items()}
    assert specs[1] == study.student(*names, "implicit", 0)  # the name of the study's own run
    assert {spec.teacher.name for spec in specs.values()} == {study.gold(names[0], 0).name}
    assert len({spec.name for spec in specs.values()}) == 3
    pairs = {times: labelled_pairs(spec, study.root) for times, spec in specs.items()}
    added = {times: table[~table["target"]].reset_index(drop=True) for times, table in pairs.items()}
    assert {times: len(table) for times, table in added.items()} == {0.25: 8, 1: 32, 2: 64}
    pd.testing.assert_frame_equal(added[1].head(8), added[0.25])
    pd.testing.assert_frame_equal(added[2].head(32), added[1])
    with pytest.raises(ParameterError, match="n_helpful = 3200: .* the world has 1600 prompts"):
        cluster.helpful_pairs(study, 100)


@pytest.mark.parametrize("method", ["reward", "dpo"])
def test_more_helpful_pairs_than_the_study_has_can_be_trained_on(trained, tiny_models, method):
    study, names = trained[method], (tiny_models[2], tiny_models[2], "gold", "implicit", 0)
    one, two = (study.control(*names, **cluster.helpful_pairs(study, times)) for times in (1, 2))
    assert estimate.run_seconds(two, study.root) > estimate.run_seconds(one, study.root)
    table = cluster.results(study, {one: {}, two: {}}).query("split == 'test'")
    test = table.pivot(index="id", columns="run", values="margin")
    assert test.notna().all().all() and (test[one.name] != test[two.name]).any()


def test_the_exchanged_study_has_runs_and_pairs_of_its_own(small_study):
    params, weak = small_study.params, small_study.params.weak_models[0]
    swapped = Study.open(params.model_copy(update={"target": params.conflicting}))
    assert swapped.params.conflicting == "harmless" and swapped.data.test.dimension.unique().tolist() == ["helpful"]
    assert swapped.gold(weak, 0).name != small_study.gold(weak, 0).name
    again = Study.open(swapped.params.model_copy(update={"target": "harmless"}))
    assert again.gold(weak, 0).name == small_study.gold(weak, 0).name
