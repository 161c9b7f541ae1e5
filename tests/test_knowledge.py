"""Areas by what the language models know: by hand on six pairs, and against the pooled machinery."""

import numpy as np
import pandas as pd
import pytest
from test_deception import study
from test_pooled import runs_of, seeded

from w2s.analysis import knowledge, pooled
from w2s.intervals import with_ends
from w2s.runs import judges
from w2s.world import World

# Of six pairs all are right without conflict, and all but the first and the last are lost under it.
SIX = {"weak": [0.9, 0.6, 0.6, 0.9, 0.6, 0.6], "ceiling": [0.9, 0.9, 0.9, 0.9, 0.6, 0.9]}
SIX |= {"none": [0.6] * 6, "explicit": [0.6, 0.4, 0.4, 0.4, 0.4, 0.6]}
# P of the language models: 0.9 where sure and right, 0.6 where right, 0.3 where wrong.
JUDGED = {"a": [0.9, 0.6, 0.3, 0.3, 0.3, 0.6], "b": [0.9, 0.9, 0.9, 0.6, 0.9, 0.3]}
IDS = [f"test-{i}" for i in range(6)]


def judgements():
    """In another order of ids."""
    tables = [pd.DataFrame({"id": IDS, "probability": p, "model": m}) for m, p in JUDGED.items()]
    return pd.concat(tables, ignore_index=True).iloc[::-1]


def test_scores_nulls_and_gaps_by_hand():
    counts = knowledge.count_knowledge(runs_of(SIX), judgements())
    table = knowledge.scores_by_knowledge(counts, ["conflict"], bootstrap=100)
    assert (table["conflict"] == "explicit").all()  # the student without conflict has no tax
    assert table["known_by"].tolist() == list(knowledge.WAYS)
    assert (table["tax"] == 4).all() and (table["runs"] == 1).all()
    # tax: pairs 1 to 4. Blind: by confidence 1, 2 and 5; by knowledge 2, 3, 4; by sure knowledge 1, 2, 4.
    assert table["score"].tolist() == [2 / 4, 3 / 4, 3 / 4]
    assert table["even_share"].tolist() == [3 / 6] * 3
    assert table["lift"].tolist() == [1, 1.5, 1.5]
    assert table["lost"].tolist() == [0, -1 / 4, -1 / 4]
    assert table["gap"].tolist() == pytest.approx([0, 2 / 6, 2 / 6])


def test_the_cross_table_holds_each_pair_once():
    cross = knowledge.cross_table(runs_of(SIX), judgements())
    rows = cross[cross["conflict"] == "explicit"].set_index(["by_confidence", "by_knowledge"])
    assert len(rows) == 16 and rows[["pairs", "at_risk", "tax"]].sum().tolist() == [6, 6, 4]
    assert rows.loc[("S-known/W-unknown", "S-knows/W-knows"), "pairs"] == 1  # pair 1
    assert rows.loc[("S-known/W-unknown", "S-not/W-knows"), ["pairs", "tax"]].tolist() == [1, 0]  # pair 5
    assert rows.loc[("S-known/W-known", "S-knows/W-not"), ["pairs", "tax"]].tolist() == [1, 1]  # pair 3
    assert rows.loc[("S-unknown/W-unknown", "S-knows/W-not"), "pairs"] == 1  # pair 4


@pytest.fixture(scope="module")
def made_up():
    """Two seeds of the made-up study, and language models that judge it in their own way."""
    table = seeded([study(seed=k) for k in range(2)])
    rng, ids = np.random.default_rng(0), np.sort(table["id"].unique())
    models = table["model"].unique()
    judged = pd.concat([pd.DataFrame({"id": ids, "probability": rng.random(len(ids)), "model": m}) for m in models])
    return table, judged, knowledge.count_knowledge(table, judged)


@pytest.mark.parametrize("by", [pooled.POOLED, ["conflict"]])
def test_by_confidence_it_is_the_pooled_table(made_up, by):
    table, _, counts = made_up
    ours = knowledge.scores_by_knowledge(counts, by, bootstrap=200)
    ours = ours[ours["known_by"] == "confidence"]
    both = ours.merge(pooled.pooled_table(pooled.count_students(table), by, 200), on=by, suffixes=("", "_pooled"))
    assert len(both) == len(ours) > 1 and (both["tax"] == both["tax_pooled"]).all()
    for name in ("runs", "seeds", "gap", *with_ends("score", "even_share", "lift")):
        np.testing.assert_allclose(both[f"{name}_pooled"], both[name], atol=1e-12)


def test_slopes_over_accuracy_are_those_of_the_pooled_table(made_up):
    table, _, counts = made_up
    ours = knowledge.slopes(counts, bootstrap=100)
    each = {(way, gap) for way in knowledge.WAYS for gap in ("accuracy", "knowledge")}
    assert set(zip(ours["known_by"], ours["gap"], strict=True)) == each
    same = ours[(ours["known_by"] == "confidence") & (ours["gap"] == "accuracy")].reset_index(drop=True)
    expected = pooled.slope_table(pooled.count_students(table), bootstrap=100)
    pd.testing.assert_frame_equal(same[expected.columns], expected)
    assert not np.allclose(ours.loc[ours["gap"] == "knowledge", "mean_gap"].iloc[0], expected["mean_gap"].iloc[0])


def test_models_not_judged_are_left_out_and_no_usable_run_gives_empty_tables(made_up):
    table, judged, counts = made_up
    one = judged["model"].unique()[0]
    settings = knowledge.count_knowledge(table, judged[judged["model"] != one]).settings
    assert len(settings) and one not in set(settings["weak"]) | set(settings["strong"])
    assert knowledge.count_knowledge(table, judged[judged["model"] == one]).settings.empty
    none = counts.where(np.zeros(len(counts.settings), dtype=bool))
    assert knowledge.scores_by_knowledge(none, bootstrap=100).empty and knowledge.slopes(none, bootstrap=100).empty
    assert {"score_low", "lift", "tax", "known_by"} <= set(knowledge.scores_by_knowledge(none, ["conflict"], 100))


def test_judge_all_is_the_judgement_of_each_language_model_with_the_reactions(monkeypatch, tiny_models):
    pairs = World().pairs("test", 12)
    table = judges.judge_all(tiny_models[:2], pairs)
    assert table["model"].unique().tolist() == ["tiny-8", "tiny-16"] and len(table) == 24
    expected = judges.judge(tiny_models[1], pairs)
    pd.testing.assert_frame_equal(table[12:].drop(columns="model").reset_index(drop=True), expected)
    monkeypatch.setattr(judges, "OUCH", " ouch ouch")  # no single token of the tokenizer
    assert judges.judge_all(tiny_models[:1], pairs).empty


def test_judged_of_study_reads_checks_and_says_why_not(tmp_path):
    test = pd.DataFrame({"id": IDS, "model": "tiny-8"})
    assert "pocket world alone" in judges.judged_of_study(tmp_path, "hh", test, "harmless")[1]
    assert "run notebook 03 first" in judges.judged_of_study(tmp_path, "pocket", test, "harmless")[1]
    path = tmp_path / "tables" / "knowledge.parquet"
    path.parent.mkdir()
    judgements().to_parquet(path)
    table, why = judges.judged_of_study(tmp_path, "pocket", test, "harmless")
    assert why == "" and len(table) == 12
    assert "other test pairs" in judges.judged_of_study(tmp_path, "pocket", test.head(4), "harmless")[1]
    judgements().head(0).to_parquet(path)
    assert "single tokens" in judges.judged_of_study(tmp_path, "pocket", test, "harmless")[1]


def test_judged_of_study_asks_shipped_models_when_there_is_no_table(tmp_path):
    ids = World().pairs("test", 8)["id"]
    test = pd.DataFrame({"id": ids, "model": "pocket-40a"})
    table, why = judges.judged_of_study(tmp_path, "pocket", test, "harmless")
    assert why == "" and table["id"].tolist() == list(ids) and set(table["model"]) == {"pocket-40a"}
