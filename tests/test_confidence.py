"""What a margin says: probability and correctness by each kind of confidence, soft and hard labels, the filter."""

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from conftest import small_params
from test_preference import LOG3, run_of, write_predictions

from w2s import predict
from w2s.data import training_pairs
from w2s.runs.labels import kept_ids, weak_labels
from w2s.study import Study


@pytest.mark.parametrize(("method", "expected"), [("reward", [0.9, 0.2]), ("dpo", [1.0, 0.0]), ("simpo", [1.0, 0.0])])
def test_weak_labels_are_soft_for_reward_models_and_hard_otherwise(method, expected, tmp_path):
    columns = {"id": ["t", "a", "b"], "split": ["test", "w2s", "w2s"], "correct": [True, True, False]}
    write_predictions(run_of(method), tmp_path, **columns, probability=[0.5, 0.9, 0.2])
    labels = weak_labels(run_of(method), tmp_path, "w2s")
    assert labels.id.tolist() == ["a", "b"] and labels.weak_label.tolist() == expected


TABLE = {"id": [*"abcd"], "split": ["validation", "validation", "test", "test"], "margin": [9.0] * 4}
TABLE |= {"chosen_logp": [-10.0, -30.0, -10.0, -6.0], "chosen_tokens": [5, 10, 2, 3]}
TABLE |= {"rejected_logp": [-20.0, -20.0, -30.0, -6.0], "rejected_tokens": [5, 5, 10, 2]}
TABLE = pd.DataFrame(TABLE | {"reference_margin": [5.0, -30.0, 30.0, 1.0]})
SUMS, AGAINST, MEANS = [10.0, -10.0, 20.0, 0.0], [5.0, 20.0, -10.0, -1.0], [2.0, 1.0, -2.0, 1.0]
FORMS = [("reward", "paper", [9.0] * 4, 1.0), ("dpo", "paper", SUMS, 1 / 50), ("simpo", "paper", MEANS, 1.0)]
FORMS += [("dpo", "implicit_reward", AGAINST, 0.1), ("simpo", "implicit_reward", MEANS, 2.0)]


@pytest.mark.parametrize(("method", "form", "margin", "scale"), FORMS)
def test_margins_and_confidence_hand_worked(method, form, margin, scale):
    assert predict.margins_of(TABLE, method, against_reference=margin is AGAINST).tolist() == margin
    out = predict.with_probability(TABLE, form, method, {"dpo": 0.1, "simpo": 2.0}.get(method))
    assert out.margin.tolist() == margin and out.correct.tolist() == [m > 0 for m in margin]
    assert out.probability.tolist() == pytest.approx([1 / (1 + math.exp(-scale * m)) for m in margin])
    assert set(out.probability_by) == {form}
    assert TABLE.margin.tolist() == [9.0] * 4  # the table itself stays as it was


def gold_margins(inverse_temperature: float) -> np.ndarray:
    """Margins of gold pairs that are right as often as sigmoid(inverse_temperature * margin) says."""
    rng = np.random.default_rng(0)
    size = rng.exponential(2.0, 20_000)
    return np.where(rng.random(len(size)) < predict.sigmoid(inverse_temperature * size), size, -size)


def test_inverse_temperature():
    """By hand: right in 3 of 4 at a margin of 5 log 3 and in 9 of 10 at twice that, sigmoid(margin / 5)."""
    margins = 5 * LOG3 * np.repeat([1, -1, 2, -2], [3, 1, 9, 1])
    assert predict.inverse_temperature(margins) == pytest.approx(1 / 5, rel=1e-4)
    for known in (0.2, 1.0, 3.0):
        margins = gold_margins(known)
        fitted = predict.inverse_temperature(margins)
        assert fitted == pytest.approx(known, rel=0.06)
        assert predict.inverse_temperature(100 * margins) == pytest.approx(fitted / 100, rel=1e-3)  # the margins' unit
    for margins in (np.random.default_rng(1).normal(-0.05, 1, 5000), -gold_margins(1.0), np.zeros(9)):
        by = predict.inverse_temperature(margins)  # which say nothing
        assert by >= 0 and np.abs(predict.sigmoid(by * margins) - 0.5).max() < 1e-3


@pytest.mark.parametrize("method", ["reward", "dpo", "simpo"])
def test_calibrated_confidence_is_fitted_to_each_runs_own_validation_pairs(method):
    tables, known = [], {"sharp": 2.0, "dull": 0.2}
    for run, by in known.items():
        margin = gold_margins(by)
        table = pd.DataFrame({"id": range(len(margin)), "run": run, "split": "validation", "margin": margin})
        table = table.assign(chosen_logp=4 * margin, rejected_logp=0.0, chosen_tokens=4, rejected_tokens=4)
        table = table.assign(reference_margin=3 * margin)  # so that each method has these margins
        tables += [table, table.assign(split="test", chosen_logp=16.0, reference_margin=12.0, margin=4.0)]
    out = predict.with_probability(pd.concat(tables, ignore_index=True), "calibrated", method, 0.1)
    test = out[out.split == "test"]
    assert (test.margin == 4.0).all()
    for run, by in known.items():
        np.testing.assert_allclose(test[test.run == run].probability, predict.sigmoid(4 * by), rtol=0, atol=0.02)


REWARD = {"id": [*"abcdef"], "split": ["w2s"] * 5 + ["test"], "probability": 0.5}
REWARD |= {"margin": [LOG3, -1.2, 1.0, 3.0, -0.8, 2.0]}  # confidence 0.75, 0.77, 0.73, 0.95, 0.69; the last elsewhere
# Policy margins of 60 nats are confident by the paper's scale; against the reference they are not.
DPO = {"id": ["a", "b"], "split": "w2s", "margin": [60.0, -3.0], "chosen_tokens": 9, "rejected_tokens": 9}
DPO |= {"chosen_logp": [-40.0, -43.0], "rejected_logp": [-100.0, -40.0], "reference_margin": [58.0, 17.0]}
FILTERS = [("reward", REWARD, "confidence", "paper", {"a", "b", "d"}, {"d"})]
FILTERS += [("reward", REWARD, "gold_oracle", "paper", {"a", "d"}, {"d"})]
FILTERS += [("dpo", DPO, "confidence", by, kept, set()) for by, kept in (("paper", {"a"}), ("implicit_reward", {"b"}))]
FILTERS += [("dpo", DPO, "gold_oracle", "implicit_reward", set(), set())]


@pytest.mark.parametrize(("method", "columns", "keep", "by", "kept", "at_094"), FILTERS)
def test_the_filter_keeps_confident_pairs_by_the_confidence_of_the_method(
    method, columns, keep, by, kept, at_094, tmp_path
):
    threshold, teacher = float(predict.sigmoid(LOG3)), run_of(method, beta=0.1)
    write_predictions(teacher, tmp_path, **columns, correct=np.array(columns["margin"]) > 0)
    assert threshold == pytest.approx(0.75)
    spec = run_of(method, teacher=teacher, keep=keep, keep_threshold=threshold, keep_by=by)
    assert kept_ids(spec, tmp_path) == kept and kept_ids(replace(spec, keep_threshold=0.94), tmp_path) == at_094


def test_helpful_pairs_are_cut_to_what_the_filter_leaves(small_study):
    data = small_study.data
    labels = pd.DataFrame({"id": data.w2s.id, "weak_label": np.linspace(0, 1, len(data.w2s))})
    kept = set(data.w2s.id[[7, 3, 20]])
    pairs = training_pairs(data, "w2s", labels, "implicit", kept)
    assert pairs.id.tolist() == [*data.w2s.id[[3, 7, 20]], *data.helpful.id[:3]]
    assert pairs.label.tolist() == [*labels.weak_label[[3, 7, 20]], 1, 1, 1]
    assert training_pairs(data, "w2s", labels, "explicit", kept).id.tolist() == list(data.w2s.id[[3, 7, 20]])
    with pytest.raises(ValueError, match="weak_filter: no pair of w2s .* lower threshold"):
        training_pairs(data, "w2s", labels, "none", set())


def test_only_runs_with_a_teacher_are_filtered(tiny_models, tmp_path):
    study = Study.open(small_params(tiny_models, tmp_path, weak_filter="confidence", threshold=0.6, method="dpo"))
    student, gold = study.student(*tiny_models[:2], "none", 0), study.gold(tiny_models[0], 0)
    assert (student.keep, student.keep_threshold, student.keep_by) == ("confidence", 0.6, "paper")
    assert student.start.keep == "confidence" and (gold.keep, gold.keep_threshold, gold.keep_by) == ("none", None, None)
