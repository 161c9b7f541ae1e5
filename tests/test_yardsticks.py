"""Twin supervisors and odds within sureness, on tables worked by hand and in simulated studies."""

from itertools import product

import numpy as np
import pandas as pd
import pytest
from statsmodels.stats.contingency_tables import StratifiedTable

from w2s.analysis import yardsticks
from w2s.analysis.pooled import stack
from w2s.analysis.seeds import over_seeds
from w2s.params import GOLD, SECOND
from w2s.report import plots_extensions, sentences, sentences_extensions

SURE, UNSURE, WRONG = 0.9, 0.6, 0.2
# Eight pairs that the ceiling knows and all references have right. one is blind on the first four, other on the rest.
ONE = {"weak": [UNSURE] * 4 + [SURE] * 4, "student": [WRONG] * 3 + [SURE] * 4 + [WRONG]}
OTHER = {"weak": [SURE] * 4 + [UNSURE] * 4, "student": [WRONG] + [SURE] * 5 + [WRONG] * 2}
ONE, OTHER = ({"reference": [SURE] * 8, "second": [SURE] * 8} | table for table in (ONE, OTHER))
COUPLE = {"weak": "a", "other": "b", "strong": "s", "middle": "", "conflict": "explicit", "seed": 0, "gap": 0.2}


def arrays(table):
    return {name: np.array(values) for name, values in table.items()}


def counted(one=ONE, other=OTHER, ceiling=(SURE,) * 8):
    return stack([(COUPLE, yardsticks.twin_indicators(np.array(ceiling), arrays(one), arrays(other)))])


def test_twin_contrast_by_hand():
    row = yardsticks.twin_table(counted()).iloc[0]
    assert row[["pairs_one", "pairs_other"]].tolist() == [4, 4]
    rates = [f"{who}_{how}_rate" for who, how in product(("one", "other"), ("blind", "seeing"))]
    assert row[rates].tolist() == [0.75, 0.25, 0.5, 0.25]
    assert row["contrast"] == ((0.75 - 0.25) + (0.5 - 0.25)) / 2  # own blind less own seeing, mean of both twins
    # Names matter in pairs 2 and 3 (for the contrast) and 7; of the 8 ways to exchange them 2 are as far from 0.
    assert row["p"] == pytest.approx(2 / 8)


def test_a_pair_counts_where_the_ceiling_knows_and_both_second_references_are_right_and_gains_are_taken_off():
    ceiling = [UNSURE] + [SURE] * 7
    wrong = OTHER | {"second": [SURE] * 7 + [WRONG], "reference": [SURE] * 4 + [WRONG] + [SURE] * 3}
    counts = counted(other=wrong, ceiling=ceiling)
    assert counts.indicators["one_blind"].tolist() == [[False, True, True, True, *[False] * 4]]
    assert counts.indicators["other_blind"].tolist() == [[*[False] * 4, True, True, True, False]]
    row = yardsticks.twin_table(counts).iloc[0]
    assert row["one_blind_rate"] == 2 / 3 and row["one_seeing_rate"] == 0  # the eighth pair does not count
    assert row["other_blind_rate"] == 0  # one of three lost, another gained against its reference


def test_the_contrast_is_zero_where_losses_follow_difficulty():
    """The pairs that one twin is blind on are hard for both students: lost at once, whoever taught."""
    row = yardsticks.twin_table(counted(ONE, OTHER | {"student": ONE["student"]})).iloc[0]
    assert (row["contrast"], row["p"]) == (0, 1)
    lost_too = [WRONG] * 4 + ONE["student"][4:]  # a single pair on which the students differ
    row = yardsticks.twin_table(counted(ONE, OTHER | {"student": lost_too})).iloc[0]
    assert (row["contrast"], row["p"]) == (-1 / 8, 1)


def run(role, model, teacher, conflict, p, via="", seed=0):
    """Predictions of one run on the eight pairs."""
    table = pd.DataFrame({"id": list("abcdefgh"), "split": "test", "probability": p, "role": role, "model": model})
    names = {"teacher": teacher, "via": via, "conflict": conflict, "seed": seed}
    names["run"] = "/".join((role, model, teacher, via, conflict, str(seed)))
    return table.assign(correct=table["probability"] > 0.5, **names)


def predictions(seeds=(0, 1)):
    """The couple `one` and `other` of both tables above as teachers of `large`, with students through `middle`."""
    parts = []
    for seed in seeds:
        parts.append(run("gold", "large", "", "none", [SURE] * 8, seed=seed))
        for name, table in (("one", ONE), ("other", OTHER)):
            weak = [p if k else WRONG for k, p in enumerate(table["weak"])]  # of one accuracy, below the ceiling's
            parts.append(run("gold", name, "", "none", weak, seed=seed))
            for conflict, p in (("none", table["reference"]), ("explicit", table["student"])):
                parts.append(run("student", "large", name, conflict, p, seed=seed))
                chained = p if conflict == "none" else ONE["student"]  # through the middle model both lose the same
                parts.append(run("bootstrapped", "large", "middle", conflict, chained, via=name, seed=seed))
    return pd.concat(parts, ignore_index=True)


def test_twins_are_weak_models_of_one_accuracy_and_each_is_in_one_couple():
    right = {"a": 6, "b": 6, "c": 2, "d": 3, "e": 6}  # of 8: c and d lie 0.125 apart
    parts = [run("gold", name, "", "none", [SURE] * n + [WRONG] * (8 - n)) for name, n in right.items()]
    parts += [run("student", "large", name, "none", [SURE] * 8) for name in "abcd"]  # e teaches nobody
    assert yardsticks.twins(pd.concat(parts)) == [("a", "b")]
    assert yardsticks.twins(pd.concat(parts), apart=0.2) == [("a", "b"), ("c", "d")]


def test_claims_by_twins_direct_and_through_a_middle_model():
    table = predictions()
    direct, chained = (yardsticks.count_twins(table, [("one", "other")], role=r) for r in ("student", "bootstrapped"))
    assert direct.settings[["middle", "gap"]].values.tolist() == 2 * [["", 1 / 8]]
    assert chained.settings["middle"].tolist() == ["middle"] * 2
    claims = yardsticks.twin_claims(direct, 200, chained).set_index("claim")
    # One pair less than above: `one` is confident, and wrong, on the first, so that nobody is blind there.
    loss = ((2 / 3 - 1 / 4) + (2 / 4 - 0 / 3)) / 2
    assert claims.loc["loss", "estimate"] == pytest.approx(loss)
    assert claims.loc["bootstrapping", "estimate"] == pytest.approx(loss - 0)  # both lose alike: a contrast of 0
    assert list(claims.index) == ["loss", "bootstrapping"]  # one gap alone has no widest and narrowest


def test_one_seed_takes_a_second_reference():
    table = predictions(seeds=[0])
    assert yardsticks.count_twins(table, [("one", "other")]).settings.empty
    second = [run("student", "large", name, SECOND, [SURE] * 7 + [WRONG]) for name in ("one", "other")]
    counts = yardsticks.count_twins(pd.concat([table, *second]), [("one", "other")])
    assert counts.indicators["other_blind"].sum() == 3 and len(counts.settings) == 1


def test_controls_join_the_study_as_students_of_the_same_teachers():
    table = predictions()
    parts = [run("control", "large", name, "planted 50%", ONE["student"]) for name in ("one", "other")]
    parts += [run("control", "large", name, GOLD, [WRONG] + [SURE] * 7) for name in ("one", "other")]
    parts += [run("control", "large", "one", name, [SURE] * 8, seed=7) for name in ("other seed", "noise 20%")]
    tried = yardsticks.with_answers(table, pd.concat(parts))  # seed 7 has no student without conflict, nor of gold
    assert set(tried["conflict"]) == {"none", "explicit", GOLD, "planted 50%"}
    assert set(tried["role"]) == {"gold", "student"} and set(tried["seed"]) == {0, 1}
    shown = yardsticks.yardstick_table(tried, [("one", "other")], bootstrap=200).set_index("conflict")
    assert set(shown.index) == {"explicit", "planted 50%"}  # a reference is compared with nothing
    assert shown.loc["planted 50%", "contrast"] == 0 and shown.loc["explicit", "contrast"] > 0
    assert shown.loc["planted 50%", "tax"] == 2 * 3  # of the four pairs that are lost gold labels had lost the first


def test_without_twins_the_yardsticks_of_the_paper_alone_are_tried():
    table = predictions()
    table = table[table["teacher"].isin(["", "one"]) & (table["model"] != "other")]
    named = {GOLD: [SURE] * 8, "planted 100%": ONE["student"], "noise 20%": [SURE] * 4 + [WRONG] * 2 + [SURE] * 2}
    parts = [run("control", "large", "one", name, p, seed=seed) for name, p in named.items() for seed in (0, 1)]
    answers = pd.concat(parts)
    tried, couple = yardsticks.with_answers(table, answers), yardsticks.couple_of(answers)
    assert couple == ("one",)
    shown = yardsticks.yardstick_table(tried, [couple], bootstrap=200)
    # `one` is blind on the second to fourth of eight pairs; the deceiver loses the first three and the last.
    planted, noise = (shown.set_index("conflict").loc[name] for name in ("planted 100%", "noise 20%"))
    assert planted[["score", "even_share", "lift"]].tolist() == pytest.approx([2 / 4, 3 / 8, 4 / 3])
    assert noise["score"] == 0 and shown["contrast"].isna().all()
    (line,) = sentences_extensions.yardsticks(shown)
    assert line.startswith(sentences.words("yardsticks_begin")) and "No twin contrast: it takes two" in line
    assert "taught to fail where its teacher is blind (planted 100%) shows Score 0.50 [" in line
    assert "even share 0.38" in line and "one that is not (noise 20%) shows Score 0.00" in line
    assert len(plots_extensions.plot_yardsticks(shown)) == 3
    print(line)


def test_odds_ratio_is_that_of_mantel_and_haenszel():
    rng = np.random.default_rng(0)
    p = {"ceiling": np.where(rng.random(400) < 0.8, 0.9, 0.6), "weak": np.where(rng.random(400) < 0.5, 0.9, 0.6)}
    p |= {"reference": rng.uniform(0.3, 1, 400), "student": rng.uniform(0, 1, 400)}
    of = yardsticks.odds_indicators(p)
    cells = ("lost_blind", "kept_blind", "lost_seeing", "kept_seeing")
    tables = [np.reshape([of[f"{cell}_{k}"].sum() for cell in cells], (2, 2)).T for k in range(yardsticks.STRATA)]
    assert sum(map(np.sum, tables)) == ((p["ceiling"] == 0.9) & (p["reference"] > 0.5)).sum()
    expected = StratifiedTable(tables).oddsratio_pooled
    sums = {name: values.sum().astype(float) for name, values in of.items()}
    top, bottom = yardsticks._odds(sums)["odds_ratio"]
    assert top / bottom == pytest.approx(expected)


def study(rng, effect, seeds=5, n=1280, tax=0.15):
    """A couple's counts: students are right by luck, less often where their teacher is blind; a conflict costs `tax`.

    And `effect` more where the own teacher is blind.
    """
    sees = rng.random((2, n)) < 0.5
    easy = rng.normal(0.9, 0.05, n) - 0.15 * ~sees  # each student's chance without conflict
    rows = []
    for seed in range(seeds):
        sides = []
        for k in range(2):
            chances = {"reference": easy[k], "second": easy[k]}
            chances["student"] = easy[k] - tax - effect * (~sees[k] - 0.5) + rng.normal(0, 0.02)
            side = {name: np.where(rng.random(n) < p, 0.9, 0.1) for name, p in chances.items()}
            sides.append(side | {"weak": np.where(sees[k], 0.9, 0.6)})
        rows.append((COUPLE | {"seed": seed}, yardsticks.twin_indicators(np.full(n, 0.9), *sides)))
    return stack(rows)


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [1, 5])
def test_size_and_power_in_simulated_studies(seeds):
    """400 null studies, then 100 with the effect that a study of this kind says it would see 8 times in 10."""
    rng, nulls = np.random.default_rng(seeds), []
    for _ in range(400):
        counts = study(rng, 0.0, seeds)
        contrast = yardsticks.twin_contrast(counts, 400)[1]
        wrong = not over_seeds(contrast)[1] <= 0 <= over_seeds(contrast)[2]
        nulls.append((wrong, yardsticks.permuted(counts, 999) < 0.05, yardsticks.smallest_effect(contrast)))
    wrong, by_p, seen_from = zip(*nulls)
    effect = np.median(seen_from)  # that of one study is as uncertain as its few seeds
    seen = [over_seeds(yardsticks.twin_contrast(study(rng, effect, seeds), 400)[1])[1] > 0 for _ in range(100)]
    assert np.mean(wrong) <= 0.07 and 0.03 <= np.mean(by_p) <= 0.07 and 0.65 <= np.mean(seen) <= 0.95
