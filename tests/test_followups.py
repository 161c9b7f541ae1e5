"""Blind-spot errors, shared mistakes and variance over seeds, by hand and against scipy; their sentences."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from test_pooled import runs_of, seeded

from w2s.analysis import followups
from w2s.analysis.scoring import SETTING, score_table
from w2s.report import sentences_extensions

# wrong and sure (0.1) or right and sure (0.9); the weak model gives its P as it is
RIGHTS = {"weak": [0.9, 0.6, 0.6, 0.4, 0.1, 0.2], "ceiling": [1, 1, 1, 0, 1, 0], "none": [1, 1, 0, 1, 1, 0]}
RIGHTS |= {"explicit": [1, 0, 0, 0, 1, 1]}
COPY = {"explicit": [int(p > 0.5) for p in RIGHTS["weak"]]}  # right where its teacher is


def rows_of(make, table, by=("conflict",), threshold=0.75):
    return make(followups.count_errors(table, threshold), by, bootstrap=100).set_index("conflict")


def test_the_risk_is_the_sum_of_its_parts_over_examples():
    row = followups.risk_table(runs_of(RIGHTS)).set_index("conflict").loc["explicit"]
    student, weak = np.where(np.array(RIGHTS["explicit"]) == 1, 0.9, 0.1), np.array(RIGHTS["weak"])
    assert row["risk"] == pytest.approx(np.mean((student - weak) ** 2))
    assert row["risk"] == pytest.approx(row["squared"] + row["variance"] + row["weak_variance"] - 2 * row["covariance"])
    assert row["variance"] == pytest.approx(0.16) and row["blind"] == 3 / 6  # three right of six, each 0.4 from 0.5


def test_blind_spots_by_hand():
    rows = rows_of(followups.blind_table, runs_of(RIGHTS))
    row = rows.loc["explicit"]
    # the weak model is uncertain on pairs 1, 2 and 3; the student is confidently wrong on all three
    assert (row["share_student"], row["share_none"], row["share_ceiling"]) == (3 / 6, 1 / 6, 1 / 6)
    assert (row["errors_student"], row["errors_none"], row["errors_ceiling"]) == (1, 1 / 2, 1 / 2)
    assert (row["lift_student"], row["lift_none"]) == (2, 1)  # uncertain on half of the pairs
    less = row[[f"share_student_minus_share_none{end}" for end in ("_low", "", "_high")]].astype(float)
    assert less.iloc[1] == pytest.approx(1 / 3) and less.iloc[0] <= 1 / 3 <= less.iloc[2]
    assert rows.loc["none", "share_student_minus_share_none"] == 0
    assert rows.loc["none", "share_student"] == row["share_none"]


def test_an_error_without_confidence_is_no_blind_spot():
    table = runs_of(RIGHTS | {"explicit": [0.4] * 6})
    row = rows_of(followups.blind_table, table).loc["explicit"]
    assert row["share_student"] == 0 and row["errors_student"] == 0 and np.isnan(row["lift_student"])
    strict = rows_of(followups.blind_table, table, threshold=0.5)  # then nobody is uncertain
    assert strict["share_ceiling"].eq(0).all()


def test_covariance_and_correlation_are_numpys():
    row = rows_of(followups.shared_table, runs_of(RIGHTS)).loc["explicit"]
    wrong = {"weak": np.array(RIGHTS["weak"]) <= 0.5} | {c: np.array(RIGHTS[c]) == 0 for c in ("explicit", "ceiling")}
    for name, run in (("student", "explicit"), ("ceiling", "ceiling")):
        pair = np.stack([wrong[run], wrong["weak"]]).astype(float)
        assert row[f"covariance_{name}"] == pytest.approx(np.cov(pair, ddof=0)[0, 1])
        assert row[f"correlation_{name}"] == pytest.approx(np.corrcoef(pair)[0, 1])
    less = row["correlation_student"] - row["correlation_ceiling"]
    assert row["correlation_student_minus_correlation_ceiling"] == pytest.approx(less)


def test_a_student_that_copies_its_teacher_one_that_never_errs_and_the_mean_of_two_seeds():
    row = rows_of(followups.shared_table, runs_of(RIGHTS | COPY | {"ceiling": [1] * 6})).loc["explicit"]
    assert row["correlation_student"] == pytest.approx(1)
    assert row["covariance_ceiling"] == 0 and np.isnan(row["correlation_ceiling"])
    assert np.isnan(row["correlation_student_minus_correlation_ceiling_low"])
    # One seed has all wrong where the teacher is, the other none: pooled cells would give another correlation.
    both = seeded([runs_of(RIGHTS | COPY), runs_of(RIGHTS | {"explicit": [1 - right for right in COPY["explicit"]]})])
    row = rows_of(followups.shared_table, both).loc["explicit"]
    assert row["seeds"] == 2 and row["correlation_student"] == pytest.approx(0, abs=1e-12)


def test_the_auc_is_that_of_mann_and_whitney():
    rng = np.random.default_rng(0)
    values, positive = rng.integers(0, 6, 60).astype(float), rng.random(60) < 0.4  # many ties
    up, down = values[positive], values[~positive]
    once = [np.ones((1, len(side)), dtype=np.float32) for side in (up, down)]
    expected = stats.mannwhitneyu(up, down).statistic / (len(up) * len(down))
    assert followups.auc(up, down, *once)[0] == pytest.approx(expected)
    # a pair drawn twice counts as two pairs
    twice, zero = once[0].copy(), np.zeros_like(once[0])
    twice[0, 0] = 2
    expected = stats.mannwhitneyu(np.append(up, up[0]), down).statistic / ((len(up) + 1) * len(down))
    assert followups.auc(up, down, twice, once[1])[0] == pytest.approx(expected)
    assert np.isnan(followups.auc(up, down, zero, once[1])[0])


def varied(n_seeds, n=300):
    """Tax falls on the pairs whose P varies over seeds: the first third; with its score table."""
    rng, tables = np.random.default_rng(3), []
    for seed in range(n_seeds):
        swing = np.where(np.arange(n) < n // 3, rng.normal(0, 0.15, n), rng.normal(0, 0.01, n))
        rights = {"weak": [0.6] * n, "ceiling": [1] * n, "none": [1] * n, "explicit": np.clip(0.55 + swing, 0.01, 0.99)}
        tables.append(runs_of(rights, seed))
    table = pd.concat(tables, ignore_index=True)
    return table, score_table(table, bootstrap=100)


def test_variance_predicts_the_tax_of_a_seed_that_it_has_not_seen():
    rows = followups.variance_table(*varied(4), bootstrap=100).set_index("predictor")
    assert list(rows.index) == ["variance, conflict", "variance, no conflict", "weak model's uncertainty"]
    own = rows.loc["variance, conflict"]
    assert (own["runs"], own["seeds"]) == (4, 4) and own["low"] > 0.7 and own["low"] <= own["auc"] <= own["high"]
    assert rows.loc["variance, no conflict", "auc"] == rows.loc["weak model's uncertainty", "auc"] == 0.5  # all equal


def test_the_predicted_seed_has_no_part_in_its_variance():
    table, kept = varied(3)
    before = {s["seed"]: p for s, _, _, p in followups._predictors(table, kept)}
    changed = table.copy()
    changed.loc[changed["run"] == "explicit-1", "probability"] = np.linspace(0, 1, 300)
    after = {s["seed"]: p for s, _, _, p in followups._predictors(changed, kept)}
    np.testing.assert_array_equal(before[1]["variance, conflict"], after[1]["variance, conflict"])
    assert not np.allclose(before[0]["variance, conflict"], after[0]["variance, conflict"])


def test_variance_takes_three_usable_seeds_and_uses_no_other():
    for n_seeds in (1, 2):
        assert followups.variance_table(*varied(n_seeds), bootstrap=100).empty
    table, kept = varied(4)
    assert set(followups.variance_table(table, kept[kept["seed"] != 2], bootstrap=100)["runs"]) == {3}
    assert followups.variance_table(table, kept[kept["seed"] < 2], bootstrap=100).empty


def test_no_usable_run_gives_empty_tables_with_columns():
    counts = followups.count_errors(runs_of(RIGHTS)).where([False] * 2)
    blind, shared = (make(counts, bootstrap=100) for make in (followups.blind_table, followups.shared_table))
    for made in (blind, shared):
        assert made.empty and set(SETTING[:-1]) <= set(made)
    assert sentences_extensions.blind_spots(blind, 0.75, "paper") == sentences_extensions.shared_errors(shared) == []


def ranged(name, value, low, high):
    return {name: value, f"{name}_low": low, f"{name}_high": high}


def test_the_sentence_on_knowledge_follows_both_intervals():
    for lifts, verdict in (
        ([(1.2, 1.1, 1.3), (1.1, 1.01, 1.2)], "the tax leans towards them."),
        ([(0.8, 0.7, 0.9), (0.9, 0.8, 0.99)], "the tax avoids them."),
        ([(1.0, 0.9, 1.1), (1.1, 0.9, 1.2)], "not supported in this study."),
        ([(1.2, 1.1, 1.3), (1.1, 0.9, 1.2)], "it hangs on what counts as knowledge."),
    ):
        usual = {"conflict": "explicit", "tax": 50, "score": 0.5} | ranged("lost", 0.1, 0, 0.2)
        ways = zip(("knowledge", "sure_knowledge", "confidence"), [*lifts, (1.0, 0.9, 1.1)])
        table = pd.DataFrame([usual | {"known_by": way} | ranged("lift", *lift) for way, lift in ways])
        (line,) = sentences_extensions.by_knowledge(table)
        assert line.endswith(verdict) and "lift {:.2f} [{:.2f}, {:.2f}]".format(*lifts[0]) in line
        assert sentences_extensions.by_knowledge(table.assign(tax=9)) == []


def test_sentences_on_blind_spots_and_shared_errors():
    row = {"conflict": "explicit"} | ranged("share_student", 0.0, 0, 0) | ranged("share_none", 0.01, 0.005, 0.02)
    row |= ranged("share_ceiling", 0.1, 0.09, 0.11) | ranged("share_student_minus_share_none", -0.01, -0.02, -0.005)
    (line,) = sentences_extensions.blind_spots(pd.DataFrame([row]), 0.75, "paper")
    assert "on none of the pairs; the student without conflict on 1.000% [0.500%, 2.000%]" in line
    assert line.endswith("fewer than without conflict.")
    row = ranged("correlation_student", 0.2, 0.1, 0.3) | ranged("correlation_ceiling", 0.1, 0.05, 0.15)
    less = "correlation_student_minus_correlation_ceiling"
    for low, ending in ((0.02, "it shares more of them than the ceiling does."), (-0.02, "no difference is shown.")):
        table = pd.DataFrame([row | ranged(less, 0.1, low, 0.2) | {"conflict": c} for c in ("none", "explicit")])
        (line,) = sentences_extensions.shared_errors(table)
        assert line.endswith(ending)
