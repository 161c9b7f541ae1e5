"""Notebook 06: other labels, other strengths of the conflict, no training."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from conftest import small_params, texts

from w2s import checks, plots_extensions, runs
from w2s.models import RewardModel, load_tokenizer
from w2s.predict import predict
from w2s.study import LABELS, Study


def test_shuffled_labels_are_the_same_numbers_elsewhere():
    label = np.linspace(0.1, 0.9, 200)
    shuffled = runs.relabelled(label, "shuffled", seed=1)
    assert sorted(shuffled) == sorted(label) and (shuffled != label).mean() > 0.9
    np.testing.assert_array_equal(shuffled, runs.relabelled(label, "shuffled", seed=1))
    assert not np.array_equal(shuffled, runs.relabelled(label, "shuffled", seed=2))


def test_random_labels_say_nothing_on_average():
    label = np.full(4000, 0.9)
    turned = runs.relabelled(label, "random", seed=0)
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
    small_study.train(small_study.gold_runs([weak, strong]))
    label = {k: runs.labelled_pairs(small_study.control(weak, strong, k, "none", 0), small_study.root) for k in LABELS}
    assert (label["gold"]["label"] == 1).all()
    own = runs.weak_labels(small_study.gold(strong, 0), small_study.root, "w2s")
    np.testing.assert_array_equal(label["own"]["label"], own["weak_label"])
    assert sorted(label["shuffled"]["label"]) == sorted(label["weak"]["label"])


def test_without_training_the_unit_is_fresh(small_study):
    strong = small_study.params.strong_models[-1]
    table = small_study.train({small_study.untrained(strong, 0): {}})
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
    small_study.train({calm: {}, zero: {}})
    a, b = (runs.load_predictions(spec, small_study.root).query("split == 'test'") for spec in (calm, zero))
    np.testing.assert_array_equal(a["margin"], b["margin"])


def test_a_perfect_teacher_makes_the_ceiling_of_its_pairs(small_study):
    """Labels of a teacher that is sure and right everywhere: the student is the gold-trained model, bit for bit."""
    weak, strong = small_study.params.weak_models[0], small_study.params.strong_models[-1]
    teacher = small_study.gold(weak, 0)
    small_study.train({teacher: {}})
    labels = runs.load_predictions(teacher, small_study.root).assign(probability=1.0, margin=100.0, correct=True)
    runs.write_table(small_study.root / "runs" / teacher.name / "predictions.parquet", labels)
    student, ceiling = (small_study.control(weak, strong, labels, "none", 0) for labels in ("weak", "gold"))
    small_study.train({student: {}, ceiling: {}})
    a, b = (runs.load_predictions(spec, small_study.root).set_index(["split", "id"]) for spec in (student, ceiling))
    assert student.teacher == teacher and ceiling.teacher is None
    pd.testing.assert_series_equal(a["margin"], b["margin"].reindex(a.index), check_exact=True)


def test_the_figures_show_every_kind_with_its_sample_size(close_figures):
    rows = [
        {"labels": k, "conflict": c, "seed": 0, "pairs": 77, "tax_share": 0.2, "score": 0.5, "null": 0.4}
        | {f"{m}_{end}": 0.2 + 0.4 * (end == "high") for m in ("tax_share", "score") for end in ("low", "high")}
        for k in LABELS
        for c in ("none", "explicit", "implicit")
    ]
    tax, score = plots_extensions.plot_controls(pd.DataFrame(rows))
    assert "77" in texts(tax) and set(LABELS) <= set(texts(score).split("\n")) and "explicit conflict" in texts(tax)
    plt.close("all")
    low_high = {"student_accuracy_low": 0.6, "student_accuracy_high": 0.8, "pairs": 77}
    rows = [
        {"labels": k, "alpha": a, "seed": 0, "student_accuracy": 0.7} | low_high
        for k in ("weak", "gold")
        for a in (0, 1)
    ]
    shown = texts(plots_extensions.plot_strength(pd.DataFrame(rows)))
    assert all(words in shown for words in ("gold labels", "weak labels", "chance", "77", "alpha"))


@pytest.mark.parametrize(
    ("answer", "words"),
    [(None, "not answered"), ("gold", "correct"), ("own", "not yet: the ceiling"), ("noise", "one of the five")],
)
def test_the_check_names_the_usual_slip(answer, words, capsys):
    checks.check_control(answer)
    assert words in capsys.readouterr().out
