"""Areas by what the language models know: by hand on six pairs, and against the pooled machinery."""

import numpy as np
import pandas as pd
import pytest
from test_deception import study

from w2s import deception, zoo
from w2s.analysis import knowledge, pooled
from w2s.world import World

IDS = [f"test-{i:05d}" for i in range(6)]
# Of six pairs all are right without conflict, and all but the first and the last are lost under it.
CONFIDENCE = {"weak": [0.9, 0.6, 0.6, 0.9, 0.6, 0.6], "ceiling": [0.9, 0.9, 0.9, 0.9, 0.6, 0.9]}
KNOWS = {"weak": [1, 1, 0, 0, 0, 1], "strong": [1, 1, 1, 1, 1, 0]}
SURE = {"weak": [1, 0, 0, 0, 0, 0], "strong": [1, 1, 1, 0, 1, 0]}
STUDENTS = {"none": [0.6] * 6, "explicit": [0.6, 0.4, 0.4, 0.4, 0.4, 0.6]}


def runs(seed=0):
    named = [("gold", "weak", "", "none", CONFIDENCE["weak"]), ("gold", "strong", "", "none", CONFIDENCE["ceiling"])]
    named += [("student", "strong", "weak", conflict, p) for conflict, p in STUDENTS.items()]
    tables = [
        pd.DataFrame({"id": IDS, "split": "test", "probability": p, "run": f"{role}{model}{conflict}{seed}"}).assign(
            role=role, model=model, teacher=teacher, via="", conflict=conflict, seed=seed
        )
        for role, model, teacher, conflict, p in named
    ]
    return pd.concat(tables, ignore_index=True)


def judgements():
    """P of the language models: 0.9 where sure and right, 0.6 where right, 0.3 where wrong; ids in another order."""
    p = {m: np.where(SURE[m], 0.9, np.where(KNOWS[m], 0.6, 0.3)) for m in KNOWS}
    tables = [pd.DataFrame({"id": IDS, "probability": p[m], "correct": p[m] > 0.5, "model": m}) for m in p]
    return pd.concat(tables, ignore_index=True).iloc[::-1]


@pytest.fixture
def by_way():
    counts = knowledge.count_knowledge(runs(), judgements())
    table = knowledge.scores_by_knowledge(counts, ["conflict"], bootstrap=100)
    assert (table["conflict"] == "explicit").all()  # the student without conflict has no tax
    return table.set_index("known_by")


def test_scores_nulls_and_gaps_by_hand(by_way):
    assert (by_way["tax"] == 4).all() and (by_way["runs"] == 1).all()
    # tax: pairs 1 to 4. Blind: by confidence 1, 2 and 5; by knowledge 2, 3, 4; by sure knowledge 1, 2, 4.
    assert by_way["score"].tolist() == [2 / 4, 3 / 4, 3 / 4]
    assert by_way["null"].tolist() == [3 / 6] * 3
    assert by_way["lift"].tolist() == [1, 1.5, 1.5]
    assert by_way["lost"].tolist() == [0, -1 / 4, -1 / 4]
    assert by_way["gap"].tolist() == pytest.approx([0, 2 / 6, 2 / 6])


def test_the_cross_table_holds_each_pair_once():
    cross = knowledge.cross_table(runs(), judgements())
    rows = cross[cross["conflict"] == "explicit"].set_index(["by_confidence", "by_knowledge"])
    assert len(rows) == 16 and rows[["pairs", "at_risk", "tax"]].sum().tolist() == [6, 6, 4]
    assert rows.loc[("S-known/W-unknown", "S-knows/W-knows"), "pairs"] == 1  # pair 1
    assert rows.loc[("S-known/W-unknown", "S-not/W-knows"), ["pairs", "tax"]].tolist() == [1, 0]  # pair 5
    assert rows.loc[("S-known/W-known", "S-knows/W-not"), ["pairs", "tax"]].tolist() == [1, 1]  # pair 3
    assert rows.loc[("S-unknown/W-unknown", "S-knows/W-not"), "pairs"] == 1  # pair 4


@pytest.fixture(scope="module")
def made_up():
    """Two seeds of the made-up study, and language models that judge it in their own way."""
    tables = [study(seed=k).assign(seed=k) for k in range(2)]
    table = pd.concat([t.assign(run=t["run"] + f"-{k}") for k, t in enumerate(tables)], ignore_index=True)
    rng, ids = np.random.default_rng(0), np.sort(table["id"].unique())
    models = table["model"].unique()
    judged = [pd.DataFrame({"id": ids, "probability": rng.random(len(ids)), "model": m}) for m in models]
    return table, pd.concat(judged, ignore_index=True)


@pytest.mark.parametrize("by", [pooled.POOLED, ["conflict"]])
def test_by_confidence_it_is_the_pooled_table(made_up, by):
    table, judged = made_up
    ours = knowledge.scores_by_knowledge(knowledge.count_knowledge(table, judged), by, bootstrap=200)
    ours = ours[ours["known_by"] == "confidence"]
    both = ours.merge(pooled.pooled_table(pooled.count_students(table), by, 200), on=by, suffixes=("", "_pooled"))
    assert len(both) == len(ours) > 1 and (both["tax"] == both["tax_pooled"]).all()
    for name in ("runs", "seeds", "gap", *(n + e for n in ("score", "null", "lift") for e in ("", "_low", "_high"))):
        np.testing.assert_allclose(both[f"{name}_pooled"], both[name], atol=1e-12)


def test_slopes_over_accuracy_are_those_of_the_pooled_table(made_up):
    table, judged = made_up
    ours = knowledge.slopes(knowledge.count_knowledge(table, judged), bootstrap=100)
    assert set(zip(ours["known_by"], ours["gap"], strict=True)) == {
        (way, gap) for way in knowledge.WAYS for gap in ("accuracy", "knowledge")
    }
    same = ours[(ours["known_by"] == "confidence") & (ours["gap"] == "accuracy")].reset_index(drop=True)
    expected = pooled.slope_table(pooled.count_students(table), bootstrap=100)
    pd.testing.assert_frame_equal(same[expected.columns], expected)
    assert not np.allclose(ours.loc[ours["gap"] == "knowledge", "mean_gap"].iloc[0], expected["mean_gap"].iloc[0])


def test_a_model_that_was_not_judged_leaves_its_settings_out(made_up):
    table, judged = made_up
    one = judged["model"].unique()[0]
    counts = knowledge.count_knowledge(table, judged[judged["model"] != one])
    assert len(counts.settings) and one not in set(counts.settings["weak"]) | set(counts.settings["strong"])
    assert knowledge.count_knowledge(table, judged[judged["model"] == one]).settings.empty


def test_no_usable_run_gives_empty_tables(made_up):
    table, judged = made_up
    none = knowledge.count_knowledge(table, judged)
    none = none.where(np.zeros(len(none.settings), dtype=bool))
    assert knowledge.scores_by_knowledge(none, bootstrap=100).empty and knowledge.slopes(none, bootstrap=100).empty
    assert {"score_low", "lift", "tax", "known_by"} <= set(knowledge.scores_by_knowledge(none, ["conflict"], 100))


def test_judged_is_the_judgement_of_the_language_model(tiny_models):
    pairs = World().pairs("test", 12)
    table = zoo.judge_all(tiny_models[:2], pairs)
    assert table["model"].unique().tolist() == ["tiny-8", "tiny-16"] and len(table) == 24
    expected = zoo.judge(tiny_models[1], pairs)
    pd.testing.assert_frame_equal(table[12:].drop(columns="model").reset_index(drop=True), expected)


def test_a_tokenizer_without_the_reactions_is_left_out(monkeypatch, tiny_models):
    monkeypatch.setattr(knowledge, "OUCH", " ouch ouch")
    assert zoo.judge_all(tiny_models[:1], World().pairs("test", 4)).empty


def test_of_study_reads_checks_and_says_why_not(tmp_path):
    test = pd.DataFrame({"id": IDS, "model": "tiny-8"})
    assert "pocket world alone" in zoo.judged_of_study(tmp_path, "hh", test)[1]
    assert "run notebook 03 first" in zoo.judged_of_study(tmp_path, "pocket", test)[1]
    (tmp_path / "tables").mkdir()
    path = tmp_path / "tables" / "knowledge.parquet"
    judgements().to_parquet(path)
    table, why = zoo.judged_of_study(tmp_path, "pocket", test)
    assert why == "" and len(table) == 12
    assert "other test pairs" in zoo.judged_of_study(tmp_path, "pocket", test.head(4))[1]
    judgements().head(0).to_parquet(path)
    assert "single tokens" in zoo.judged_of_study(tmp_path, "pocket", test)[1]


def test_of_study_asks_shipped_models_when_there_is_no_table(tmp_path):
    ids = World().pairs("test", 8)["id"]
    table, why = zoo.judged_of_study(tmp_path, "pocket", pd.DataFrame({"id": ids, "model": "pocket-27"}))
    assert why == "" and table["id"].tolist() == list(ids) and set(table["model"]) == {"pocket-27"}


def test_ratios_of_one_run_are_those_of_the_bootstrap():
    from w2s.intervals import bootstrap, ratio

    rng = np.random.default_rng(1)
    hits, n = rng.random((1, 50)) < 0.3, np.ones((1, 50), dtype=bool)
    found = pooled.ratios({"hits": hits, "n": n}, lambda s: {"share": (s["hits"], s["n"])}, [], [0], 300)
    expected = bootstrap({"hits": hits[0], "n": n[0]}, lambda s: {"share": ratio(s["hits"], s["n"])}, 300)
    assert found["share"][:3] == pytest.approx(expected.loc["share", ["estimate", "low", "high"]].tolist())


def test_ratios_add_up_runs_before_they_divide():
    indicators = {"up": np.array([[1, 1, 0, 0], [1, 0, 0, 0]]), "down": np.array([[1, 1, 1, 1], [1, 0, 0, 0]])}
    parts = {"r": lambda s: {"a": (s["up"], s["down"]), "b": (s["down"], s["down"])}}["r"]
    found = pooled.ratios(indicators, parts, [("b", "a")], [0, 1], 100)
    assert found["a"][0] == 3 / 5 and found["b_minus_a"][0] == pytest.approx(2 / 5)


def test_areas_keep_their_order():
    table = deception.areas([0.9, 0.9, 0.1, 0.1], [0.9, 0.1, 0.9, 0.1], 0.5, "gold")
    assert list(table) == list(deception.AREAS) and len(knowledge.AREAS) == 4
