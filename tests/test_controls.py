"""Notebook 06: other labels, other strengths of the conflict, no training."""

import itertools

import numpy as np
import pandas as pd
import pytest
from conftest import small_params, texts

from w2s import files
from w2s.course import checks
from w2s.models import RewardModel, load_tokenizer
from w2s.params import ParameterError
from w2s.predict import predict
from w2s.report import plots_extensions
from w2s.runs import cluster, estimate, store
from w2s.runs.labels import labelled_pairs, relabelled, weak_labels
from w2s.study import LABELS, Study


def test_shuffled_labels_are_the_same_numbers_elsewhere():
    label = np.linspace(0.1, 0.9, 200)
    shuffled = relabelled(label, "shuffled", seed=1)
    assert sorted(shuffled) == sorted(label) and (shuffled != label).mean() > 0.9
    np.testing.assert_array_equal(shuffled, relabelled(label, "shuffled", seed=1))
    assert not np.array_equal(shuffled, relabelled(label, "shuffled", seed=2))


def test_random_labels_say_nothing_on_average():
    label = np.full(4000, 0.9)
    turned = relabelled(label, "random", seed=0)
    assert set(np.round(turned, 6)) == {0.1, 0.9} and abs(turned.mean() - 0.5) < 0.03


@pytest.mark.parametrize("method", ["reward", "dpo"])
def test_each_kind_of_labels_is_a_run_of_its_own(tiny_models, tmp_path, method):
    study = Study.open(small_params(tiny_models, tmp_path, method=method))
    weak, strong = tiny_models[0], tiny_models[2]
    specs = {labels: study.control(weak, strong, labels, "explicit", 0) for labels in LABELS}
    assert len({spec.name for spec in specs.values()}) == len(LABELS)
    assert specs["weak"] == study.student(weak, strong, "explicit", 0)
    assert specs["gold"].teacher is None and specs["own"].teacher == study.gold(strong, 0)
    assert study.control(weak, strong, "weak", "explicit", 0, strength=0.25).alpha == 0.25
    if method == "dpo":  # the warm start is on the responses that these labels prefer
        assert len({spec.start.name for spec in specs.values()}) == len(LABELS)


def test_gold_labels_are_all_one_and_own_labels_are_the_ceilings(small_study):
    weak, strong = small_study.params.weak_models[0], small_study.params.strong_models[-1]
    cluster.results(small_study, small_study.gold_runs([weak, strong]))
    label = {k: labelled_pairs(small_study.control(weak, strong, k, "none", 0), small_study.root) for k in LABELS}
    assert (label["gold"]["label"] == 1).all()
    own = weak_labels(small_study.gold(strong, 0), small_study.root, "w2s")
    np.testing.assert_array_equal(label["own"]["label"], own["weak_label"])
    assert sorted(label["shuffled"]["label"]) == sorted(label["weak"]["label"])


def test_without_training_the_unit_is_fresh(small_study):
    strong = small_study.params.strong_models[-1]
    table = cluster.results(small_study, {small_study.untrained(strong, 0): {}})
    model, tokenizer = RewardModel.load(strong, seed=0), load_tokenizer(strong)
    expected = predict(model, small_study.data.test, tokenizer, 128, 10_000).set_index("id")["margin"]
    found = table[table["split"] == "test"].set_index("id")["margin"]
    pd.testing.assert_series_equal(found, expected, check_names=False, atol=1e-5)


def test_a_conflict_of_strength_zero_changes_nothing(small_study):
    weak, strong = small_study.params.weak_models[0], small_study.params.strong_models[-1]
    calm, zero = (
        small_study.control(weak, strong, "gold", conflict, 0, strength)
        for conflict, strength in (("none", None), ("explicit", 0.0))
    )
    cluster.results(small_study, {calm: {}, zero: {}})
    a, b = (store.load_predictions(spec, small_study.root).query("split == 'test'") for spec in (calm, zero))
    np.testing.assert_array_equal(a["margin"], b["margin"])


def test_a_perfect_teacher_makes_the_ceiling_of_its_pairs(small_study):
    """Labels of a teacher that is sure and right everywhere: the student is the gold-trained model, bit for bit."""
    weak, strong = small_study.params.weak_models[0], small_study.params.strong_models[-1]
    teacher = small_study.gold(weak, 0)
    cluster.results(small_study, {teacher: {}})
    labels = store.load_predictions(teacher, small_study.root).assign(probability=1.0, margin=100.0, correct=True)
    files.write_table(small_study.root / "runs" / teacher.name / "predictions.parquet", labels)
    student, ceiling = (small_study.control(weak, strong, labels, "none", 0) for labels in ("weak", "gold"))
    cluster.results(small_study, {student: {}, ceiling: {}})
    a, b = (store.load_predictions(spec, small_study.root).set_index(["split", "id"]) for spec in (student, ceiling))
    assert student.teacher == teacher and ceiling.teacher is None
    pd.testing.assert_series_equal(a["margin"], b["margin"].reindex(a.index), check_exact=True)


@pytest.mark.parametrize("method", ["reward", "dpo"])
def test_no_pairs_of_the_conflict_are_no_conflict(tiny_models, tmp_path, method):
    study = Study.open(small_params(tiny_models, tmp_path, method=method))
    weak, strong = study.params.weak_models[0], study.params.strong_models[-1]
    calm = study.control(weak, strong, "weak", "none", 0)
    zero = study.control(weak, strong, "weak", "implicit", 0, helpful=study.helpful_pairs(0))
    cluster.results(study, {study.gold(weak, 0): {}, calm: {}, zero: {}})
    assert calm.name != zero.name and labelled_pairs(zero, study.root)["target"].all()
    a, b = (store.load_predictions(spec, study.root).query("split == 'test'") for spec in (calm, zero))
    np.testing.assert_array_equal(a["margin"], b["margin"])


def test_shares_of_the_helpful_pairs_are_nested_and_keep_the_teacher(small_study):
    weak, strong = small_study.params.weak_models[0], small_study.params.strong_models[-1]
    cluster.results(small_study, small_study.gold_runs([weak]))
    specs = {
        times: small_study.control(weak, strong, "weak", "implicit", 0, helpful=small_study.helpful_pairs(times))
        for times in (0.25, 1, 2)
    }
    assert specs[1] == small_study.student(weak, strong, "implicit", 0)  # the name of the study's own run
    assert {spec.teacher.name for spec in specs.values()} == {small_study.gold(weak, 0).name}
    assert len({spec.name for spec in specs.values()}) == 3
    added = {
        times: labelled_pairs(spec, small_study.root).query("not target").reset_index(drop=True)
        for times, spec in specs.items()
    }
    assert {times: len(pairs) for times, pairs in added.items()} == {0.25: 8, 1: 32, 2: 64}
    pd.testing.assert_frame_equal(added[1].head(8), added[0.25])
    pd.testing.assert_frame_equal(added[2].head(32), added[1])
    with pytest.raises(ParameterError, match="n_helpful = 3200: .* the world has 1600 prompts"):
        small_study.helpful_pairs(100)


@pytest.mark.parametrize("method", ["reward", "dpo"])
def test_more_helpful_pairs_than_the_study_has_can_be_trained_on(tiny_models, tmp_path, method):
    study = Study.open(small_params(tiny_models, tmp_path, method=method))
    strong = study.params.strong_models[-1]
    one, two = (
        study.control(strong, strong, "gold", "implicit", 0, helpful=study.helpful_pairs(times)) for times in (1, 2)
    )
    assert estimate.run_seconds(two, study.root) > estimate.run_seconds(one, study.root)
    table = cluster.results(study, {one: {}, two: {}})
    test = table[table["split"] == "test"].pivot(index="id", columns="run", values="margin")
    assert test.notna().all().all() and (test[one.name] != test[two.name]).any()


def test_the_exchanged_study_has_runs_and_pairs_of_its_own(small_study):
    params = small_study.params
    swapped = Study.open(params.model_copy(update={"target": params.conflicting}))
    assert swapped.params.conflicting == "harmless" and swapped.data.test.dimension.unique().tolist() == ["helpful"]
    weak = params.weak_models[0]
    assert swapped.gold(weak, 0).name != small_study.gold(weak, 0).name
    again = Study.open(swapped.params.model_copy(update={"target": "harmless"}))
    assert again.gold(weak, 0).name == small_study.gold(weak, 0).name


def pooled_rows(**columns) -> pd.DataFrame:
    """Rows as `pooled_table` makes them, one a combination of the values of `columns`."""
    ends = {"": 0.5, "_low": 0.4, "_high": 0.6, "_min": 0.3, "_max": 0.7}
    measured = {m + end: value for m in ("tax_share", "score", "student_accuracy") for end, value in ends.items()}
    usual = {"pairs": 77, "tax": 30, "null": 0.4, "seeds": 2} | measured
    return pd.DataFrame([dict(zip(columns, row, strict=True)) | usual for row in itertools.product(*columns.values())])


def test_the_figure_of_controls_shows_every_kind_with_its_sample_size(close_figures):
    rows = pooled_rows(labels=LABELS, conflict=("none", "explicit", "implicit"))
    rows.loc[rows["labels"] == "gold", "tax"] = 9
    tax, score = plots_extensions.plot_controls(rows)
    assert "77" in texts(tax) and set(LABELS) <= set(texts(score).split("\n")) and "explicit conflict" in texts(tax)
    hollow = [line for line in score.lines if line.get_markerfacecolor() == "white"]
    assert [line.get_xdata().tolist() for line in hollow] == [[pytest.approx(0.9)], [pytest.approx(1.1)]]
    assert not [line for line in tax.lines if line.get_markerfacecolor() == "white"]


def test_the_figure_of_strengths_has_a_panel_a_conflict(close_figures):
    alphas = pooled_rows(labels=("weak", "gold"), alpha=(0.0, 1.0))
    shares = pooled_rows(labels=("weak", "gold"), times=(0.0, 2.0))
    (alone,) = plots_extensions.plot_strength(alphas)
    assert all(words in texts(alone) for words in ("gold labels", "weak labels", "chance", "77", "alpha"))
    left, right = plots_extensions.plot_strength(alphas, shares)
    assert "alpha" in texts(left) and "pairs of the implicit conflict" in texts(right)
    assert left.get_ylim() == right.get_ylim() and len(right.collections) == 4  # error bars and bands of two lines


@pytest.mark.parametrize(
    ("answer", "words"),
    [(None, "not answered"), ("gold", "correct"), ("own", "not yet: the ceiling"), ("noise", "one of the five")],
)
def test_the_check_names_the_usual_slip(answer, words, capsys):
    checks.check_control(answer)
    assert words in capsys.readouterr().out
