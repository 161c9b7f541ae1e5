"""Hand-worked cases of the paper's measures, their intervals and the study tables."""

import numpy as np
import pandas as pd
import pytest
import torch

from w2s import deception as d
from w2s import intervals
from w2s.analysis import scoring

# Eight pairs, T = 0.75. "known" is max(P, 1-P) >= 0.75, "right" is P > 0.5.
#            pair      0     1     2     3     4     5     6     7
CEILING = np.array([0.90, 0.80, 0.95, 0.90, 0.60, 0.55, 0.10, 0.75])  # known: all but 4 and 5
WEAK = np.array([0.80, 0.60, 0.40, 0.55, 0.90, 0.50, 0.60, 0.20])  # known: 0, 4, 7
REFERENCE = np.array([0.90, 0.70, 0.60, 0.80, 0.70, 0.60, 0.30, 0.90])  # right: all but 6 (7 at risk)
STUDENT = np.array([0.80, 0.30, 0.20, 0.90, 0.40, 0.50, 0.20, 0.60])  # wrong: 1, 2, 4, 5 (a tie), 6
# Tax: 1, 2, 4, 5. S-known/W-unknown: 1, 2, 3, 6, of which 1, 2, 3 are at risk.
KNOWN, BLIND, WEAK_ONLY, NEITHER = d.AREAS
GOLD, FIRST = "gold-m-8-none", "student-m-16-m-8-none"  # runs of the study below
AREA = [KNOWN, BLIND, BLIND, BLIND, WEAK_ONLY, NEITHER, BLIND, KNOWN]
FOUR = (REFERENCE, STUDENT, CEILING, WEAK)


def study(models=("m-8", "m-16", "m-128"), n=240, seed=0, conflicts=scoring.CONFLICTS, middle="m-16") -> pd.DataFrame:
    """A made-up predictions table: bigger models are right on more pairs, conflict hurts where the weak is unsure."""
    rng, tables = np.random.default_rng(seed), []
    ease, ids = rng.random(n), [f"test-{i:05d}" for i in range(n)]

    def add(margin, *names):  # role, model, teacher, via, conflict
        columns = dict(zip(scoring.RUN, names)) | {"seed": 0, "run": "-".join(filter(None, names)), "split": "test"}
        p = 1 / (1 + np.exp(-margin))
        tables.append(pd.DataFrame(columns | {"id": ids, "margin": margin, "probability": p, "correct": margin > 0}))

    skill = np.linspace(0.3, 0.9, len(models))
    gold = {m: np.where(ease < s, 2.2, 0) + rng.normal(0, 1, n) for m, s in zip(models, skill)}
    for model, margin in gold.items():
        add(margin, "gold", model, "", "", "none")
    for conflict in conflicts:
        hit = 0 if conflict == "none" else 2 * (np.abs(gold[models[0]]) < 1)
        for i, weak in enumerate(models):
            for strong in models[i + 1 :]:
                add(0.7 * gold[strong] + 0.3 * gold[weak] - hit, "student", strong, weak, "", conflict)
        if middle:
            add(gold[models[-1]] - 0.7 * hit, "bootstrapped", models[-1], middle, models[0], conflict)
    return pd.concat(tables, ignore_index=True)


def probabilities(table, *runs):
    return [table[table["run"] == run].sort_values("id")["probability"].to_numpy() for run in runs]


def one_row(scores, strong="m-128", role="student", conflict="explicit"):
    names = {"weak": "m-8", "strong": strong, "role": role, "conflict": conflict}
    return scores[(scores[list(names)] == list(names.values())).all(axis=1)].iloc[0]


def test_known_by_hand():
    assert d.known([0.75, 0.25, 0.7499, 0.2501, 0.5]).tolist() == [True, True, False, False, False]  # errors count
    assert d.known([0.75, 0.25, 0.74, 0.9], known_by="gold").tolist() == [True, False, False, True]  # here they do not
    assert d.known([0.5, 0.1, 0.9], threshold=0.5).all()


def test_areas_by_hand():
    assert d.right([0.5, 0.5000001, 0.4]).tolist() == [False, True, False]  # a tie counts as wrong
    assert d.areas(CEILING, WEAK).tolist() == AREA
    # By gold, pair 6: the ceiling is confidently wrong (0.10); pair 7: the weak model is (0.20).
    assert d.areas(CEILING, WEAK, known_by="gold").tolist() == [*AREA[:6], NEITHER, BLIND]
    assert d.areas([0.9, 0.9, 0.1, 0.1], [0.9, 0.1, 0.9, 0.1], 0.5, "gold").tolist() == list(d.AREAS)


def test_tax_score_and_null_by_hand():
    assert np.flatnonzero(d.conflict_tax(REFERENCE, STUDENT)).tolist() == [1, 2, 4, 5]
    assert d.deception_score(*FOUR) == 2 / 4  # of the tax 1, 2, 4, 5 the area holds 1 and 2
    # T = 0.9: the ceiling knows 0, 2, 3, 6, the weak model 4, so of the tax only pair 2 counts.
    assert d.deception_score(*FOUR, threshold=0.9) == 1 / 4
    assert d.null_score(REFERENCE, CEILING, WEAK) == 3 / 7
    # If every pair that the reference has right is lost, the tax is as even as can be.
    assert d.deception_score(REFERENCE, np.zeros(8), CEILING, WEAK) == d.null_score(REFERENCE, CEILING, WEAK)


def test_scores_are_nan_without_tax_and_without_anything_at_risk():
    no_tax = (REFERENCE, REFERENCE, CEILING, WEAK)
    assert np.isnan(d.deception_score(*no_tax)) and np.isnan(d.fisher_p(0, 7, 3, 0))
    assert np.isnan(d.null_score(np.zeros(8), CEILING, WEAK)) and np.isnan(d.deception_score([], [], [], []))


@pytest.mark.parametrize("convert", [list, lambda a: pd.Series(a, index=range(8)[::-1]), torch.tensor])
def test_measures_accept_lists_series_and_tensors(convert):
    assert d.deception_score(*map(convert, FOUR)) == 0.5


def test_tax_rates_by_hand():
    table = d.tax_rates(*FOUR).set_index("area")
    assert list(table.index) == list(d.AREAS)
    assert table[["pairs", "at_risk", "tax"]].to_numpy().T.tolist() == [[2, 4, 1, 1], [2, 3, 1, 1], [0, 2, 1, 1]]
    assert table["rate"].tolist() == pytest.approx([0, 2 / 3, 1, 1]) and table["share"].tolist() == [0, 0.5, 0.25, 0.25]
    assert (table["low"] <= table["rate"] + 1e-12).all() and (table["rate"] <= table["high"] + 1e-12).all()
    table = d.tax_rates([0.9, 0.9], [0.9, 0.1], [0.9, 0.9], [0.9, 0.6]).set_index("area")
    assert table.loc[[WEAK_ONLY, NEITHER], ["rate", "low", "high"]].isna().all(axis=None)  # empty areas
    assert table.loc[BLIND, "share"] == 1


def test_fisher_p_by_hand():
    # 7 at risk, 3 of them blind (1, 2, 3), 4 tax pairs, 2 of them blind: C(7,4) = 35 choices.
    chances = np.array([1, 12, 18, 4]) / 35  # C(3,k) C(4,4-k) for k = 0..3; 18 is the likeliest
    assert d.fisher_p(blind_tax=2, at_risk=7, blind_at_risk=3, tax=4) == pytest.approx(1)
    assert d.fisher_p(blind_tax=3, at_risk=7, blind_at_risk=3, tax=4) == pytest.approx(chances[[0, 3]].sum())


def test_wilson_by_hand():
    # Wilson (1927) with z = 1.959964: centre (p + z²/2n) / (1 + z²/n), here p = 0.5, n = 10.
    assert intervals.wilson(5, 10) == pytest.approx((0.23659, 0.76341), abs=1e-5)
    assert all(np.isnan(intervals.wilson(0, 0)))


def accuracy_of(sums):
    return {"accuracy": intervals.ratio(sums["hits"], sums["pairs"])}


def test_draws_keep_the_number_of_pairs_and_depend_on_the_seed():
    counts = intervals.draws(7, 50, seed=3)
    assert counts.shape == (50, 7) and (counts.sum(axis=1) == 7).all()
    assert not np.array_equal(counts, intervals.draws(7, 50, seed=4))
    with pytest.raises(ValueError, match="read-only"):
        counts[0, 0] = 1


def test_bootstrap_of_an_accuracy_is_close_to_wilson_and_covers_the_truth_about_as_often_as_it_says():
    row = intervals.bootstrap({"hits": np.arange(400) < 260, "pairs": np.ones(400)}, accuracy_of).loc["accuracy"]
    assert row["estimate"] == 0.65 and row["undefined"] == 0
    assert (row["low"], row["high"]) == pytest.approx(intervals.wilson(260, 400), abs=0.01)
    rng, inside = np.random.default_rng(1), 0
    for _ in range(200):
        counted = {"hits": rng.random(150) < 0.7, "pairs": np.ones(150)}
        row = intervals.bootstrap(counted, accuracy_of, samples=300).loc["accuracy"]
        inside += row["low"] <= 0.7 <= row["high"]
    assert 0.90 <= inside / 200 <= 0.99


def test_bootstrap_is_paired():
    # Two models that are right on the same pairs never differ, whatever is drawn.
    hits = np.arange(50) % 3 > 0
    table = intervals.bootstrap({"a": hits, "b": hits}, lambda s: {"difference": s["a"] - s["b"], "a": s["a"]})
    assert table.loc["difference", "estimate"] == 0 and table.loc["difference", ["low", "high"]].isna().all()
    assert table.loc["a", "low"] < table.loc["a", "high"]


def test_bootstrap_counts_undefined_samples_and_gives_no_interval_where_they_are_the_most():
    tax = np.arange(100) == 0  # left out of a sample with probability (1 - 1/100) ** 100 = 0.366
    row = intervals.bootstrap({"tax": tax}, lambda s: {"score": intervals.ratio(s["tax"], s["tax"])}).loc["score"]
    assert row["undefined"] == pytest.approx(0.366, abs=0.04)
    assert row["estimate"] == 1 and row[["low", "high"]].isna().all()

    def fragile(sums):  # defined by the estimate, but only where pair 0 is drawn twice or more, or not resampled
        return {"x": np.where((sums["pair"] >= 2) | (np.ndim(sums["pair"]) == 0), sums["pair"], np.nan)}

    row = intervals.bootstrap({"pair": tax}, fragile).loc["x"]
    assert row["undefined"] > 0.5 and row["estimate"] == 1 and row[["low", "high"]].isna().all()


@pytest.fixture(scope="module")
def predictions():
    return study()


@pytest.fixture(scope="module")
def scores(predictions):
    return scoring.score_table(predictions, bootstrap=200)


def test_score_table_agrees_with_the_measures(predictions, scores):
    assert list(scores.columns) == scoring.SCORE_COLUMNS
    row = one_row(scores, conflict="implicit")
    runs = ("student-m-128-m-8-none", "student-m-128-m-8-implicit", "gold-m-128-none", "gold-m-8-none")
    reference, student, ceiling, weak = four = probabilities(predictions, *runs)
    tax = d.conflict_tax(reference, student)
    assert row["tax"] == tax.sum() > 10 and row["tax_share"] == tax.mean() and row["pairs"] == 240
    assert row["score"] == d.deception_score(*four) and row["even_share"] == d.null_score(reference, ceiling, weak)
    at_risk, blind = d.right(reference), d.areas(ceiling, weak) == BLIND
    assert row["p"] == d.fisher_p((tax & blind).sum(), at_risk.sum(), (at_risk & blind).sum(), tax.sum())
    assert row["lift"] == pytest.approx(row["score"] / row["even_share"])
    assert row["score_minus_even"] == pytest.approx(row["score"] - row["even_share"])
    accuracies = [d.right(p).mean() for p in (weak, ceiling, reference, student)]
    assert row[[f"{r}_accuracy" for r in ("weak", "ceiling", "reference", "student")]].tolist() == accuracies
    assert row["gap"] == accuracies[1] - accuracies[0]
    assert row["pgr"] == pytest.approx((accuracies[3] - accuracies[0]) / (accuracies[1] - accuracies[0]))
    for name in scoring.ESTIMATES:
        assert row[f"{name}_low"] <= row[name] <= row[f"{name}_high"]


def test_without_conflict_there_is_a_score_against_the_ceiling_alone(predictions, scores):
    rows = scores[scores["conflict"] == "none"]
    assert (rows["tax"] == 0).all() and rows[["score", "score_low", "score_minus_even", "lift"]].isna().all(axis=None)
    assert rows["even_share"].notna().all()
    row = one_row(scoring.score_table(predictions, reference="ceiling", bootstrap=100), "m-16", conflict="none")
    ceiling, student, weak = probabilities(predictions, "gold-m-16-none", "student-m-16-m-8-none", "gold-m-8-none")
    assert row["score"] == d.deception_score(ceiling, student, ceiling, weak)
    assert row["reference_accuracy"] == row["ceiling_accuracy"]


def test_bootstrapped_students_are_measured_against_the_original_weak_model(predictions, scores):
    row = one_row(scores, role="bootstrapped")
    assert (row["weak"], row["teacher"], row["via"], row["strong"]) == ("m-8", "m-16", "m-8", "m-128")
    runs = [f"bootstrapped-m-128-m-16-m-8-{c}" for c in ("none", "explicit")] + ["gold-m-128-none", "gold-m-8-none"]
    assert row["score"] == d.deception_score(*probabilities(predictions, *runs))


def test_tables_count_test_pairs_alone_in_any_order(predictions, scores):
    shuffled = predictions.sample(frac=1, random_state=0).reset_index(drop=True)
    pd.testing.assert_frame_equal(scoring.score_table(shuffled, bootstrap=200), scores, check_exact=True)
    tables = [scoring.accuracy_table(t) for t in (predictions, shuffled)]
    pd.testing.assert_frame_equal(*tables, check_exact=True)
    labels = predictions[predictions["role"] == "gold"].assign(split="w2s", probability=0.01)
    pd.testing.assert_frame_equal(scoring.score_table(pd.concat([labels, predictions]), bootstrap=200), scores)
    # models sorted by their numbers, conflicts as they are listed
    students = scores[(scores["role"] == "student") & (scores["conflict"] == "none")]
    assert list(zip(students["weak"], students["strong"])) == [("m-8", "m-16"), ("m-8", "m-128"), ("m-16", "m-128")]
    assert list(dict.fromkeys(scores["conflict"])) == list(scoring.CONFLICTS)


def run_table(p, role="gold", model="m", teacher=""):
    names = {"run": role + model, "role": role, "model": model, "teacher": teacher, "conflict": "none", "seed": 0}
    return pd.DataFrame({"id": [f"test-{i}" for i in range(len(p))], "split": "test", "probability": p, **names})


def test_pgr_is_nan_when_weak_and_ceiling_are_alike():
    runs = (("gold", "a", "", 70), ("gold", "b", "", 71), ("student", "b", "a", 70))
    tables = [run_table(np.where(np.arange(100) < n, 0.9, 0.1), *names) for *names, n in runs]
    row = scoring.score_table(pd.concat(tables), bootstrap=100).iloc[0]  # without a column via: nothing is bootstrapped
    assert row["gap"] == pytest.approx(0.01) and row[["pgr", "pgr_low", "pgr_high"]].isna().all()


def test_an_intermediate_teacher_without_a_ceiling_has_no_row(predictions):
    # m-16 taught the bootstrapped student; without its gold run it is no strong model of the study.
    gone = ["gold-m-16-none", *(f"student-m-128-m-16-{c}" for c in scoring.CONFLICTS)]
    table = scoring.score_table(predictions[~predictions["run"].isin(gone)], bootstrap=100)
    assert set(table["strong"]) == {"m-128"}


def test_area_table_stacks_the_rates_of_every_setting(predictions, scores):
    table = scoring.area_table(predictions)
    assert len(table) == 4 * len(scores) and list(table.columns[: len(scoring.SETTING)]) == scoring.SETTING
    assert table.groupby(scoring.SETTING, sort=False)["tax"].sum().tolist() == scores["tax"].tolist()


def test_accuracy_table_by_hand():
    # Confidences 0.9, 0.8, 0.6, 0.8: right, wrong, right, right. Bins of width 0.05, so 0.8 shares one.
    row = scoring.accuracy_table(run_table([0.9, 0.2, 0.6, 0.8])).iloc[0]
    assert row["accuracy"] == 0.75 and (row["low"], row["high"]) == intervals.wilson(3, 4)
    assert row["confidence"] == pytest.approx(0.775) and row["confident_share"] == 0.75
    assert row["confident_accuracy"] == pytest.approx(2 / 3)
    assert row["confident_confidence"] == pytest.approx(2.5 / 3)
    assert row["ece"] == pytest.approx(1.1 / 4)  # (1 * |1 - 0.9| + 2 * |0.5 - 0.8| + 1 * |1 - 0.6|) / 4
    row = scoring.accuracy_table(run_table([0.6, 0.4])).iloc[0]  # nobody is confident
    assert row["confident_share"] == 0 and np.isnan(row["confident_accuracy"])
    table = scoring.calibration_bins([1.0, 0.0, 0.5], bins=10)  # full confidence is in the last bin
    assert table["pairs"].tolist() == [1, 2] and table["accuracy"].tolist() == [0, 0.5]


# Pairs whose chosen response is longer, shorter, equal, shorter, shorter than the other.
LENGTHS = pd.DataFrame({"chosen": ["aaa", "a", "aa", "a", "a"], "rejected": ["a", "aaa", "bb", "bb", "bbb"]})
LENGTHS["id"] = [f"test-{i:05d}" for i in range(5)]
SHARES = [([0.2, 0.9, 0.9, 0.5, 0.7], 0.75)]  # of the 4 pairs of unequal length: shorter, shorter, longer, shorter
SHARES += [([0.1, 0.9, 0.9, 0.9, 0.9], 1), ([0.9, 0.1, 0.1, 0.1, 0.1], 0)]


@pytest.mark.parametrize(("p", "share"), SHARES)
def test_shorter_table_by_hand(p, share):
    table = study(n=5).query("run == 'gold-m-8-none'").assign(probability=p)
    (row,) = scoring.shorter_table(table.sample(frac=1, random_state=1), LENGTHS).itertuples()
    assert (row.run, row.role, row.model, row.unequal_pairs) == ("gold-m-8-none", "gold", "m-8", 4)
    assert (row.shorter, row.truly_shorter) == (share, 0.75)
    assert (row.shorter_low, row.shorter_high) == intervals.wilson(int(4 * share), 4)


def test_shorter_table_has_a_row_for_each_run_and_nan_where_all_lengths_are_equal():
    table = scoring.shorter_table(study(n=5), LENGTHS.assign(chosen="a", rejected="b"))
    assert set(table["run"]) == set(study(n=5)["run"]) and table["shorter"].isna().all()
    assert (table["unequal_pairs"] == 0).all()


MESSAGES = [
    (lambda: d.areas([0.5, 1.2], [0.5, 0.5]), r"ceiling: 1\.2 at position 1 is no probability"),
    (lambda: d.areas([0.5], [np.nan]), "weak: nan at position 0 is no probability"),
    (lambda: d.conflict_tax([0.5, 0.5], [0.5]), "conflicted: 1 pairs, but reference has 2; join the runs by id"),
    (lambda: d.deception_score([0.5], [0.5], [[0.5]], [0.5]), r"ceiling: shape \(1, 1\), expected one probability"),
    (lambda: d.deception_score([0.5], [0.5], [0.5], []), "weak: 0 pairs, but reference has 1"),
    (lambda: d.null_score([0.5], [0.5, 0.5], [0.5, 0.5]), "ceiling: 2 pairs, but reference has 1"),
    (lambda: d.tax_rates([0.5], [0.5], [0.5] * 2, [0.5] * 2), "ceiling: 2 pairs, but reference has 1"),
    (lambda: d.known([0.5], threshold=1.0), r"threshold = 1\.0: choose a confidence from 0\.5 to below 1"),
    (lambda: d.known([0.5], threshold=0.4), r"threshold = 0\.4"),
    (lambda: d.known([0.5], known_by="margin"), "known_by = 'margin': choose 'confidence' or 'gold'"),
    (lambda: intervals.bootstrap({"a": [1, 0], "b": [1]}, dict), "indicators: give arrays"),
    (lambda: intervals.bootstrap({"a": []}, dict), "at least 1 pair"),
    (lambda: intervals.bootstrap({"a": [0.3, 1]}, dict), "indicators: only 0 and 1"),
    (lambda: scoring.score_table(study(n=5), reference="weak"), "reference = 'weak': choose 'none' or 'ceiling'"),
    (lambda: scoring.shorter_table(study(n=5), LENGTHS.head(4)), f"no pair test-00004, which run {GOLD} was scored on"),
]
MADE_UP = study(n=5)
CHANGES = [
    (lambda t: t.drop(t.index[t["run"] == GOLD][0]), f"run {GOLD}: 1 test ids differ from those of run {FIRST}"),
    (lambda t: t[t["run"] != GOLD], f"run {FIRST}: its weak is missing; add test predictions of role 'gold', "
     "model 'm-8', conflict 'none', seed 0"),
    (lambda t: t[t["run"] != "student-m-128-m-8-none"], "run student-m-128-m-8-explicit: its reference is missing"),
    (lambda t: t[t["role"] == "gold"], "no student run was scored"),
    (lambda t: t.assign(split="w2s"), "no row has split 'test'"),
    (lambda t: t.drop(columns=["teacher", "seed"]), "predictions: no column seed, teacher"),
    (lambda t: pd.concat([t, t[t["run"] == GOLD]]), f"run {GOLD}: id test-00000 has two predictions"),
    (lambda t: pd.concat([t, t[t["run"] == GOLD].assign(run="again")]), "run again: its setting and its name"),
    (lambda t: t.assign(probability=t["probability"].where(t["run"] != GOLD)), f"run {GOLD}: nan at"),
]  # fmt: skip
MESSAGES += [
    (lambda change=change: scoring.score_table(change(MADE_UP), bootstrap=10), text) for change, text in CHANGES
]


@pytest.mark.parametrize(("call", "message"), MESSAGES)
def test_messages(call, message):
    with pytest.raises(ValueError, match=message):
        call()
