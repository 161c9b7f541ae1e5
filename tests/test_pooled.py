"""Runs pooled over seeds, differences, slopes and threshold surfaces, by hand on small tables."""

import time

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from test_deception import study

from w2s import deception as d
from w2s import intervals
from w2s.analysis import pooled, scoring, seeds
from w2s.report import sentences

ENDS = ("", "_low", "_high")
POOLED_NAMES = intervals.with_ends(*scoring.ESTIMATES)


def seeded(tables):
    """One table a seed, as one study."""
    return pd.concat([t.assign(seed=k, run=t["run"] + f"-{k}") for k, t in enumerate(tables)], ignore_index=True)


def runs_of(rights: dict[str, list[int]], seed=0):
    """A study of a weak and a strong model; 1 where a run is right (P = 0.9, known) and 0 where not; others are P."""
    names = {"weak": ("gold", "a", "", "none"), "ceiling": ("gold", "b", "", "none")}
    names |= {c: ("student", "b", "a", c) for c in scoring.CONFLICTS}
    tables = []
    for part, values in rights.items():
        p = np.select([np.equal(values, 1), np.equal(values, 0)], [0.9, 0.1], values)
        columns = dict(zip(("role", "model", "teacher", "conflict"), names[part])) | {"run": f"{part}-{seed}"}
        ids = [f"test-{i}" for i in range(len(p))]
        tables.append(pd.DataFrame(columns | {"id": ids, "split": "test", "probability": p}))
    return pd.concat(tables).assign(seed=seed, via="")


def counted(*rights):
    """The counts of one study of `runs_of` a seed."""
    return pooled.count_students(pd.concat([runs_of(of, k) for k, of in enumerate(rights)]))


def explicit(counts):
    return pooled.pooled_table(counts).set_index("conflict").loc["explicit"]


@pytest.fixture(scope="module")
def one():
    return study()


@pytest.fixture(scope="module")
def three():
    return seeded([study(seed=k) for k in range(3)])


@pytest.fixture(scope="module")
def counts(three):
    return pooled.count_students(three)


@pytest.fixture(scope="module")
def scores(three):
    return scoring.score_table(three, bootstrap=100)


def test_with_one_seed_the_pooled_row_is_that_of_the_score_table(one):
    scores = scoring.score_table(one, bootstrap=200)
    table = pooled.pooled_table(pooled.count_students(one), bootstrap=200)
    assert (table["covers"] == "pairs").all() and (table[["runs", "seeds"]] == 1).all(axis=None)
    both = scores.merge(table, on=pooled.POOLED, suffixes=("", "_pooled"))
    assert len(both) == len(scores)
    for name in ["tax", "pairs", "gap", *POOLED_NAMES]:
        np.testing.assert_allclose(both[f"{name}_pooled"], both[name], atol=1e-12)


def test_seeds_that_differ_and_pairs_that_do_not():
    """Two seeds, pairs all alike: the student is right everywhere in one, nowhere in the other."""
    alike = {"weak": [0.6] * 6, "ceiling": [1] * 6, "none": [1] * 6}
    rows = pooled.pooled_table(counted(alike | {"explicit": [1] * 6}, alike | {"explicit": [0] * 6}))
    rows = rows.set_index("conflict")
    row = rows.loc["explicit"]
    assert (row["seeds"], row["covers"], row["pairs"], row["tax"]) == (2, "pairs and seeds", 6, 6)
    # t with one degree of freedom: from two seeds as far apart as can be nothing follows
    accuracy = row[["student_accuracy" + e for e in (*ENDS, "_seed_min", "_seed_max")]].astype(float)
    np.testing.assert_allclose(accuracy, [0.5, 0, 1, 0, 1], atol=1e-6)
    low, high = intervals.wilson(6, 6)  # all of the tax in the area, 6 pairs
    assert row[["score", "score_low", "score_high", "even_share", "lift_low"]].tolist() == [1, low, high, 1, low]
    assert row["undefined"] == 0
    assert rows.loc["none", ["score", "score_low", "lift"]].isna().all() and rows.loc["none", "undefined"] == 1


def test_pairs_that_differ_and_seeds_that_do_not():
    """Seeds that are copies of one another add nothing: the interval is that of one seed."""
    rng = np.random.default_rng(0)
    rights = {"weak": list(rng.uniform(0.5, 1, 80))} | {c: rng.integers(0, 2, 80) for c in ("ceiling", "explicit")}
    rights["none"] = np.ones(80, dtype=int)
    alone, copies = (pooled.pooled_table(counted(*[rights] * n)) for n in (1, 4))
    np.testing.assert_allclose(copies[POOLED_NAMES], alone[POOLED_NAMES], atol=1e-12)
    assert (copies["seeds"] == 4).all() and (copies["tax"] == 4 * alone["tax"]).all()
    assert (copies["student_accuracy_seed_min"] == copies["student_accuracy_seed_max"]).all()


def test_pooling_does_not_take_a_large_tax_in_a_large_area_for_deception():
    """Simpson: seed 0 loses 10 of 10 with 8 blind, seed 1 loses 5 of 10 with 2 blind, both evenly."""
    all_right = {"ceiling": [1] * 10, "none": [1] * 10}
    wide = all_right | {"weak": [0.6] * 8 + [0.9] * 2, "explicit": [0] * 10}
    narrow = all_right | {"weak": [0.6] * 2 + [0.9] * 8, "explicit": [0, 1, 1, 1, 1, 0, 0, 0, 0, 1]}
    row = explicit(counted(wide, narrow))
    assert row["tax"] == 15 and row["score"] == pytest.approx(9 / 15)
    assert row["even_share"] == pytest.approx((10 * 0.8 + 5 * 0.2) / 15) and row["lift"] == pytest.approx(1)


def test_pooled_by_conflict_adds_up_all_settings(counts, scores):
    table = pooled.pooled_table(counts, ["conflict"], bootstrap=100).set_index("conflict")
    assert (table["runs"] == 12).all() and (table["seeds"] == 3).all()
    row, sums = table.loc["explicit"], scores[scores["conflict"] == "explicit"]
    assert row["tax"] == sums["tax"].sum()
    assert row["score"] == pytest.approx((sums["tax"] * sums["score"]).sum() / sums["tax"].sum())
    assert row["even_share"] == pytest.approx((sums["tax"] * sums["even_share"]).sum() / sums["tax"].sum())
    assert row["lift_low"] < row["lift"] < row["lift_high"]


def test_among_keeps_the_rows_that_are_named(counts, scores):
    kept = counts.among(scores[scores["seed"] > 0])
    assert set(kept.settings["seed"]) == {1, 2} and kept.indicators["tax"].shape == (24, 240)
    empty = kept.among(scores.head(0))
    assert pooled.pooled_table(empty).empty and pooled.slope_table(empty).empty


WIDE = {"weak": "m-8", "strong": "m-128", "conflict": "explicit"}
IMPLICIT = WIDE | {"conflict": "implicit"}


def test_difference_is_that_of_the_pooled_rows_and_turns_with_its_sides(three, counts):
    table = pooled.difference(counts, WIDE, WIDE, bootstrap=100)
    assert list(table["difference"]) == list(scoring.ESTIMATES)
    shares = table["difference"].isin(["student_accuracy", "tax_share"])
    assert (table["estimate"] == 0).all() and (table["seeds"] == 3).all() and (table["low"].isna() == ~shares).all()
    shuffled = pooled.count_students(three.sample(frac=1, random_state=0))
    other = IMPLICIT | {"strong": "m-16"}
    rows = pooled.pooled_table(shuffled).set_index(["role", "weak", "strong", "conflict"])
    first, second = (rows.loc[("student", s["weak"], s["strong"], s["conflict"])] for s in (WIDE, other))
    forth, back = pooled.difference(shuffled, WIDE, other), pooled.difference(shuffled, other, WIDE)
    for name, value in forth.set_index("difference")["estimate"].items():
        assert value == pytest.approx(first[name] - second[name])
    np.testing.assert_allclose(forth["low"], -back["high"])
    assert (forth["low"] <= forth["estimate"]).all() and (forth["estimate"] <= forth["high"]).all()


def test_messages_of_difference_and_count(three, counts):
    conflict, seed = counts.settings["conflict"], counts.settings["seed"]
    for first, of_seeds, message in (
        ({"weak": "m-8"}, (0, 1), "6 settings have it; name weak, strong"),
        (WIDE | {"strong": "x"}, (0, 1), "0 settings have it"),
        (WIDE, (1,), "no seed in common; train both with one seed"),
    ):
        few = counts.where(np.where(conflict == "explicit", seed.isin(of_seeds), seed == 0))
        with pytest.raises(ValueError, match=message):
            pooled.difference(few, first, IMPLICIT)
    short = three[(three["seed"] != 2) | (three["id"] != "test-00000")]
    with pytest.raises(ValueError, match="1 test pairs are missing; score all runs on one split"):
        pooled.count_students(short)


def test_slope_by_hand():
    x = np.array([[0.1, 0.2, 0.3, 0.4], [0.1, 0.2, 0.3, 0.4], [0.1, 0.1, 0.3, 0.3]])
    y = np.array([[1.0, 3.0, 5.0, np.nan], [1.0, 1.0, 2.0, 2.0], [1.0, 2.0, 3.0, 4.0]])
    slopes = pooled.slope(x, y, np.ones_like(x))
    assert slopes[:2] == pytest.approx([20, 4]) and np.isnan(slopes[2])  # the third has two gaps alone
    expected = np.polyfit([0.1, 0.1, 0.2, 0.3], [1, 1, 1, 2], 1)[0]
    assert pooled.slope(x[1:2], y[1:2], np.array([[2.0, 1.0, 1.0, 0.0]])) == pytest.approx([expected])


def test_slope_table_is_that_of_the_score_table(counts, scores):
    rows = scores[(scores["conflict"] == "explicit") & (scores["role"] == "student")]
    table = pooled.slope_table(counts, bootstrap=200).set_index(["conflict", "measure"])
    assert set(table.index.get_level_values(0)) == {"explicit", "implicit"}
    for measure in pooled.SLOPES:
        row = table.loc[("explicit", measure)]
        assert row["slope"] == pytest.approx(np.polyfit(rows["gap"], rows[measure], 1)[0])
        assert row["low"] < row["slope"] < row["high"] and (row["points"], row["seeds"]) == (9, 3)


def test_speed_of_ten_settings_with_five_seeds():
    models = tuple(f"m-{k}" for k in (8, 16, 32, 64, 128))
    counts = pooled.count_students(seeded([study(models, 1280, seed=k, middle=None) for k in range(5)]))
    start = time.process_time()
    assert len(pooled.pooled_table(counts)) == 30
    assert time.process_time() - start < 10


def test_p_is_fishers_and_that_of_the_score_table(one):
    scores = scoring.score_table(one, bootstrap=100)
    row = scores.query("conflict == 'explicit'").iloc[0]
    assert np.isnan(scores["p"].iloc[0])  # without conflict
    blind_risk, risk = (
        round(row["even_share"] * row["reference_accuracy"] * 240),
        round(row["reference_accuracy"] * 240),
    )
    blind = round(row["score"] * row["tax"])
    table = [[blind, row["tax"] - blind], [blind_risk - blind, risk - blind_risk - row["tax"] + blind]]
    assert row["p"] == pytest.approx(stats.fisher_exact(table).pvalue)


def test_surface_agrees_with_the_areas(one):
    table, scores = pooled.surface_table(one, "gold"), scoring.score_table(one, 0.8, "gold", bootstrap=100)
    assert set(table["conflict"]) == {"explicit", "implicit"}
    key, rows = next(iter(table.groupby(scoring.SETTING, sort=False)))
    (row,) = scores[(scores[scoring.SETTING] == list(key)).all(axis=1)].to_dict("records")
    cell = pooled.over_thresholds(rows).query("weak_threshold == 0.8 and strong_threshold == 0.8").iloc[0]
    names = ["tax", "score", "even_share", "lift"]
    assert cell[names].tolist() == pytest.approx([row[name] for name in names])
    p = next(p for setting, p in scoring.comparisons(one, "none") if tuple(setting.values()) == key)
    blind = d.known(p["ceiling"], 0.9, "gold") & ~d.known(p["weak"], 0.6, "gold")
    cell = rows.query("weak_threshold == 0.6 and strong_threshold == 0.9").iloc[0]
    assert cell["blind_tax"] == (d.conflict_tax(p["reference"], p["student"]) & blind).sum() > 0
    assert pooled.surface_table(one[one["conflict"] == "none"]).empty


def ratios_of(indicators, parts, less=(), of_seeds=(0,), bootstrap=300):
    """The one row of `ratio_table` of runs of one setting."""
    settings = pd.DataFrame([dict.fromkeys(pooled.POOLED, "x") | {"seed": seed} for seed in of_seeds])
    indicators = indicators | {"pairs": np.ones_like(next(iter(indicators.values())))}
    return pooled.ratio_table(pooled.Counts(settings, indicators), parts, less, bootstrap=bootstrap).iloc[0]


def test_ratios_of_one_run_are_those_of_the_bootstrap_and_runs_are_added_up_before_they_divide():
    hits, n = np.random.default_rng(1).random((1, 50)) < 0.3, np.ones(50, dtype=bool)
    row = ratios_of({"hits": hits}, lambda s: {"share": (s["hits"], s["pairs"])})
    ratio = intervals.bootstrap({"hits": hits[0], "n": n}, lambda s: {"share": intervals.ratio(s["hits"], s["n"])}, 300)
    expected = ratio.loc["share", ["estimate", "low", "high"]].tolist()
    assert row[["share", "share_low", "share_high"]].tolist() == pytest.approx(expected)
    indicators = {"up": np.array([[1, 1, 0, 0], [1, 0, 0, 0]]), "down": np.array([[1, 1, 1, 1], [1, 0, 0, 0]])}
    row = ratios_of(indicators, lambda s: {"a": (s["up"], s["down"]), "b": (s["down"],) * 2}, [("b", "a")], (0, 1))
    assert row["a"] == 3 / 5 and row["b_minus_a"] == pytest.approx(2 / 5) and row["pairs"] == 4


def test_weights_that_leave_a_seed_out_and_effective_seeds_by_hand():
    weights = seeds.leaving_out([0, 0, 1, 7])  # all runs of a seed
    assert weights.astype(int).tolist() == [[1, 1, 1, 1], [0, 0, 1, 1], [1, 1, 0, 1], [1, 1, 1, 0]]
    assert seeds.leaving_out([4, 4]).tolist() == [[1, 1]]
    assert seeds.effective_seeds([7, 7, 7]) == pytest.approx(3)
    assert seeds.effective_seeds([3, 1]) == pytest.approx(16 / 10)
    assert seeds.effective_seeds([5, 0, 0]) == 1 and np.isnan(seeds.effective_seeds([0, 0]))


def over(values, effective=None, scale="plain", noise=0.0):
    """`over_seeds` of the mean of seeds' values, with the same normal noise of pairs in every seed."""
    values = np.array(values)
    found = np.array([values.mean(), *((values.sum() - v) / (len(values) - 1) for v in values)])
    pairs = noise * np.random.default_rng(0).normal(size=(2000, 1))
    return np.array(seeds.over_seeds(seeds.Resampled(found, found + pairs, effective or len(values)), scale)[:3])


def test_without_noise_of_pairs_the_interval_over_seeds_is_students_and_without_differences_that_of_the_pairs():
    values = np.array([0.31, 0.4, 0.44, 0.52, 0.6])
    for df, effective in ((4, 5), (2.5, 3.5)):
        half = stats.t.ppf(0.975, df) * stats.sem(values)
        expected = [values.mean(), values.mean() - half, values.mean() + half]
        np.testing.assert_allclose(over(values, effective), expected, atol=0.02 * half)
    pairs = 0.4 + 0.1 * np.random.default_rng(0).normal(size=2000)
    assert over([0.4] * 5, noise=0.1) == pytest.approx(intervals.interval(0.4, pairs)[:3])


def test_the_scale_keeps_an_interval_inside_its_range():
    values = [0.1, 0.7, 0.95]
    assert over(values)[1] < 0 and over(values)[2] > 1
    low, high = over(values, scale="logit")[1:]
    assert 0 < low < over(values)[0] < high < 1
    assert over(values, scale="log")[1] > 0


def test_seeds_that_differ_by_their_pairs_alone_add_little():
    """The jackknife holds the sampling of pairs inside each seed, which is in the samples of pairs already."""
    own = np.random.default_rng(4).normal(size=(2000, 5)) * 0.1  # each seed's own noise of pairs, sd 0.1
    values = 0.1 * stats.norm.ppf((np.arange(5) + 0.5) / 5)  # as far apart as that noise makes them
    weights = seeds.leaving_out(range(5)) / np.array([[5]] + [[4]] * 5)
    _, low, high, _ = seeds.over_seeds(seeds.Resampled(weights @ values, (values + own) @ weights.T, 5))
    pairs = 1.96 * 0.1 / np.sqrt(5)
    assert pairs < (high - low) / 2 < 1.5 * pairs


SPLIT = {"weak": [0.6] * 20 + [0.9] * 20, "ceiling": [1] * 40, "none": [1] * 40}  # the first 20 pairs are the area


def losing(*lost):
    """One run a seed of 40 pairs, all right without conflict; the pairs lost under the explicit one."""
    return counted(*(SPLIT | {"explicit": [int(i not in pairs) for i in range(40)]} for pairs in lost))


def test_a_tax_that_lies_all_in_the_area_has_wilsons_interval_over_distinct_pairs():
    row = explicit(losing(range(8), range(4, 12)))  # 12 pairs, 4 of them in both seeds
    low, high = intervals.wilson(12, 12)
    assert row[["score", "score_low", "score_high"]].tolist() == [1, low, high]
    assert row[["lift", "lift_low", "lift_high"]].tolist() == pytest.approx([2, 2 * low, 2 * high])
    assert row[["score_minus_even_low", "score_minus_even_high"]].tolist() == pytest.approx([low - 0.5, high - 0.5])
    row = explicit(losing(range(30, 36)))
    assert row[["score", "score_low", "score_high"]].tolist() == [0, *intervals.wilson(0, 6)]
    assert row["lift_high"] == pytest.approx(2 * row["score_high"])


def test_seeds_without_tax_count_and_without_a_tax_in_two_seeds_there_is_no_interval():
    some = [*range(15, 25)]
    row = explicit(losing(some, some[1:], some[2:], some[:-1], []))
    assert 0 < row["score_low"] < row["score"] < row["score_high"] < 1
    assert row["tax_share_low"] < 37 / 200 < row["tax_share_high"]
    alone = explicit(losing(some, [], [], [], []))
    assert alone["score"] == 0.5 and alone[["score_low", "score_high", "lift_low", "lift_high"]].isna().all()
    assert alone["tax_share_high"] > alone["tax_share"] == 10 / 200
    row = explicit(losing([], []))
    assert row[["score", "score_low", "score_high", "lift", "lift_low"]].isna().all() and row["undefined"] == 1
    assert row["student_accuracy"] == 1 and (row["student_accuracy_low"], 1) == pytest.approx(intervals.wilson(40, 40))


def test_a_difference_has_no_interval_of_scores_where_one_tax_lies_all_in_the_area():
    lost = {"explicit": range(8), "implicit": range(15, 25)}
    counts = counted(SPLIT | {name: [int(i not in pairs) for i in range(40)] for name, pairs in lost.items()})
    table = pooled.difference(counts, {"conflict": "explicit"}, {"conflict": "implicit"}).set_index("difference")
    assert table.loc["score", "estimate"] == 0.5
    assert table.loc[list(scoring.OF_SCORE), ["low", "high"]].isna().all(axis=None)
    assert table.loc["tax_share", "low"] < 0 < table.loc["tax_share", "high"]


def test_a_reference_at_chance_silences_its_scores(one):
    scores, accuracies = scoring.score_table(one, bootstrap=100), scoring.accuracy_table(one)
    noisy = scores.assign(reference_accuracy=scores["reference_accuracy"].where(scores["strong"] != "m-16", 0.51))
    assert set(sentences.with_statement(noisy, accuracies)["strong"]) == {"m-128"}
    lines = sentences.findings(noisy, accuracies)
    (warning,) = [x for x in lines if x.startswith("Warning")]
    assert "cannot be told from chance in m-8 -> m-16, seed 0 (0.51): what it loses is noise" in warning


def test_findings_count_settings_and_speak_of_seeds(three, counts, scores):
    settings = pooled.pooled_table(counts, pooled.POOLED, 100)
    lines = sentences.findings(scores, scoring.accuracy_table(three), settings)
    assert "in 3 of the 3 usable settings" in next(x for x in lines if x.startswith("explicit conflict: more tax than"))
    assert "by Student's t, and are wide where these are few (3 here)" in lines[-1]
    assert not any("seed 1" in x for x in lines)
