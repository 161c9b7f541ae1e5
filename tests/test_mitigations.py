"""Notebook 07: the remedies' labels, weights and stopping; which runs are compared; what is said of them."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import small_params
from torch import nn

from w2s import data, train
from w2s.analysis import remedies as tables
from w2s.analysis.pooled import Counts
from w2s.losses import reverse_loss, reward_loss
from w2s.report import sentences_extensions
from w2s.runs import cluster, execute, remedies, store
from w2s.runs.labels import even_weights, labelled_pairs, mean_chance, reliability_weights, weak_labels
from w2s.study import Study


def test_reliability_weights_are_by_distance_from_one_half_and_have_mean_one():
    np.testing.assert_allclose(reliability_weights([0.5, 0.75, 0.0, 0.25]), [0, 1, 2, 1])
    np.testing.assert_allclose(reliability_weights([0.0, 1.0, 1.0]), 1)
    # Pulls w |2 y - 1|: 0, 1/2, 2, 1/2 of mean 3/4, where labels without weights have a mean of 1/2.
    np.testing.assert_allclose(even_weights([0.5, 0.75, 0.0, 0.25]), 1.5)
    np.testing.assert_allclose(even_weights([0.0, 1.0, 1.0]), 1)
    with pytest.raises(ValueError, match="every weak label is 1/2"):
        reliability_weights([0.5, 0.5])


def test_early_stopping_looks_evenly_and_keeps_the_best_step_and_the_earliest_of_equals():
    for total, checks, steps in ((50, 5, [10, 20, 30, 40, 50]), (7, 3, [3, 5, 7]), (2, 5, [1, 2]), (7, 0, [])):
        assert train.check_steps(total, checks) == steps
    model, values = nn.Linear(1, 1), iter([0.5, 0.8, 0.8, 0.6])
    frozen = model.bias.requires_grad_(False).clone()
    best = train.BestWeights(model, lambda: [model.eval(), next(values)][1], [2, 4, 6, 8])
    for step in range(1, 9):
        model.weight.data.fill_(step)
        best.look(step)
    assert (best.step, best.best, model.training) == (4, 0.8, True)
    best.restore()
    assert model.weight.item() == 4 and torch.equal(model.bias, frozen)


def offered_by(models: list[str], folder, **changes) -> tuple[Study, list[remedies.Remedy], dict[str, str]]:
    """A study with two weak models and one strong, and the remedies of the weakest; every confidence will do."""
    changes |= {"weak_models": models[:2], "strong_models": models[2:], "threshold": 0.5}
    study = Study.open(small_params(models, folder, **changes))
    cluster.results(study, study.gold_runs([models[0], models[2]]))
    return study, *remedies.remedies(study, models[0], models[2])


@pytest.fixture(scope="module")
def trained(tiny_models, tmp_path_factory):
    """A small study whose remedies for one pair are trained."""
    study, offered, left_out = offered_by(tiny_models, tmp_path_factory.mktemp("remedies"), save_models=False)
    conflicts = 4 * study.params.conflicts  # each remedy under one of them, which takes turns
    every = [r.build(conflict, 0) for r, conflict in zip(offered, conflicts, strict=False)]
    every += [r.build("none", 0) for r in offered if r.name.startswith(("one", "ensemble"))]
    every += [offered[0].build(conflict, 0) for conflict in ("explicit", "implicit")]
    cluster.results(study, {spec: {} for spec in [*every, offered[-1].build("explicit", 0)]})
    return study, {r.name: r for r in offered}, left_out


def test_every_remedy_is_a_run_of_its_own_and_doing_nothing_is_the_study(trained, tiny_models):
    study, offered, left_out = trained
    assert list(left_out) == ["two intermediates"] and "fewer than 2" in left_out["two intermediates"]
    assert len({r.build("explicit", 0).name for r in offered.values()}) == len(offered) == 11
    nothing = offered["nothing"].build("explicit", 0)
    assert nothing.name == study.student(tiny_models[0], tiny_models[2], "explicit", 0).name
    assert offered["one intermediate"].build("none", 0).name == study.bootstrapped(*tiny_models, "none", 0).name
    strict = replace(study, params=study.params.model_copy(update={"threshold": 0.99}))
    fewer, left_out = remedies.remedies(strict, tiny_models[0], tiny_models[2])
    filters = {"confident labels", "confident, right labels"}  # which keep nothing
    assert filters <= set(left_out) and left_out["confident labels"].endswith("0.99 with seed 0")
    assert not filters & {r.name for r in fewer}


def test_the_label_of_an_ensemble_is_the_mean_of_its_teachers(trained):
    study, offered, _ = trained
    for name, size in (("ensemble of seeds", 3), ("ensemble of sizes", 2)):
        spec = offered[name].build("none", 0)
        teachers = [spec.teacher, *spec.ensemble]
        assert len({t.name for t in teachers}) == size and set(spec.before) == set(teachers)
        each = [weak_labels(t, study.root, "w2s").set_index("id")["weak_label"] for t in teachers]
        pairs = labelled_pairs(spec, study.root).set_index("id")
        np.testing.assert_allclose(pairs["label"], np.mean(each, axis=0))
    assert replace(spec, ensemble=()).name != spec.name != replace(spec, ensemble=spec.ensemble * 2).name


def test_weights_count_for_weak_labels_and_not_for_gold_ones(trained):
    study, offered, _ = trained
    pairs = labelled_pairs(offered["reliability weights"].build("implicit", 0), study.root)
    own = pairs["target"]
    assert pairs.loc[own, "weight"].mean() == pytest.approx(1) and (pairs.loc[~own, "weight"] == 1).all()
    np.testing.assert_allclose(pairs.loc[own, "weight"], reliability_weights(pairs.loc[own, "label"]))
    even = labelled_pairs(offered["even weights (control)"].build("implicit", 0), study.root)
    np.testing.assert_allclose(even.loc[own, "weight"], even_weights(pairs.loc[own, "label"]))
    assert "weight" not in labelled_pairs(offered["nothing"].build("implicit", 0), study.root)


@pytest.mark.parametrize("changed", ["loss", "weights"])
def test_a_remedy_changes_the_loss_of_weak_labels_alone(monkeypatch, changed):
    """The conflict's term and the helpful pairs have the loss that they have without a remedy."""
    margin = torch.tensor([-1.0, 2.0, 0.5])
    monkeypatch.setattr(train, "pair_margins", lambda model, batch: margin)
    pairs = pd.DataFrame({"label": [0.7, 0.4, 1.0], "target": [True, True, False]})
    pairs = pairs.assign(weight=[0.5, 1.5, 1.0]) if changed == "weights" else pairs
    weight = torch.tensor([0.5, 1.5]) if changed == "weights" else torch.ones(2)
    loss = reverse_loss if changed == "loss" else reward_loss
    objective = train.reward_objective(pairs, "explicit", 0.5, torch.device("cpu"), loss)
    own = weight * loss(margin[1:], torch.tensor([0.7, 0.4]))
    helpful = reward_loss(margin[:1], torch.ones(1)) + 0.5 * reward_loss(margin[:1], torch.zeros(1))
    values = objective(None, SimpleNamespace(index=np.array([2, 0, 1])))
    torch.testing.assert_close(values, torch.cat([helpful, own]))


def test_early_stopping_scores_the_kept_step(trained):
    """The accuracy on validation pairs of the saved predictions is the best that was seen."""
    study, offered, _ = trained
    spec, nothing = (offered[name].build("explicit", 0) for name in ("early stopping", "nothing"))
    best = pd.read_json(study.root / "runs" / spec.name / "best.json", typ="series")
    kept, last = (store.load_predictions(run, study.root).query("split == 'validation'") for run in (spec, nothing))
    assert kept["correct"].mean() == best["validation_accuracy"] >= last["correct"].mean()
    assert best["step"] in train.check_steps(int(best["steps"]), spec.gold_checks)
    assert not (study.root / "runs" / nothing.name / "best.json").exists()


def test_what_a_remedy_costs(trained):
    study, offered, _ = trained
    costs = remedies.cost_table(study, list(offered.values())).set_index("remedy")
    others = {"one intermediate": 1, "ensemble of seeds": 2, "ensemble of sizes": 1}
    assert costs["other_models"].to_dict() == dict.fromkeys(offered, 0) | others
    gold, weak = costs["gold_pairs"], costs["weak_pairs"]
    assert gold["early stopping"] == study.params.n_validation and gold["nothing"] == gold["confident labels"] == 0
    assert gold["confident, right labels"] == weak["confident labels"] == study.params.n_w2s
    assert weak["confident, right labels"] < study.params.n_w2s
    assert set(costs.index[costs["uses_gold"] != ""]) == {"confident, right labels", "early stopping"}


def test_splits_alternate_along_a_chain(small_study, tiny_models):
    link, chain = small_study.bootstrapped(tiny_models[0], tiny_models[1:], tiny_models[2], "explicit", 0), []
    while link:
        chain.insert(0, (link.split, link.conflict, link.model))
        link = link.teacher
    splits, conflicts, names = zip(*chain, strict=True)
    assert splits == ("gt", "w2s", "gt", "w2s") and conflicts == ("none", "none", "none", "explicit")
    assert names == (*tiny_models, tiny_models[2])
    one = small_study.bootstrapped(*tiny_models, "none", 0)
    assert one == small_study.bootstrapped(tiny_models[0], tiny_models[1:2], tiny_models[2], "none", 0)


def test_intermediates_are_those_that_lie_most_evenly(monkeypatch):
    size = {"w": 10, "a": 11, "b": 40, "c": 300, "s": 1000, "t": 2000}
    monkeypatch.setattr(remedies.models, "n_parameters", size.get)
    for names, n, chosen in (("cabt", 1, "b"), ("cabt", 2, "bc"), ("ct", 2, "")):
        assert remedies.evenly_between("w", "s", list(names), n) == tuple(chosen)


OPTIMIZED = [("dpo", "calibrated"), ("simpo", "paper"), pytest.param("dpo", "paper", marks=pytest.mark.slow)]


@pytest.mark.parametrize(("method", "confidence"), OPTIMIZED)
def test_preference_optimization_has_the_remedies_that_hard_labels_allow(tiny_models, tmp_path, method, confidence):
    study, offered, left_out = offered_by(tiny_models, tmp_path, method=method, confidence=confidence)
    assert {"confidence loss", "reverse loss"} <= set(left_out) and "hard labels" in left_out["reverse loss"]
    run = {r.name: r.build("explicit", 0) for r in offered}
    sizes, weights, stopping = (run[k] for k in ("ensemble of sizes", "reliability weights", "early stopping"))
    assert weights.start == stopping.start == run["nothing"].start  # neither is a remedy for the warm start
    assert sizes.start != run["nothing"].start
    cluster.results(study, {sizes: {}, weights: {}, stopping: {}})
    label, mean = labelled_pairs(sizes, study.root)["label"], mean_chance(sizes, study.root)
    assert set(label) <= {0.0, 1.0} and label.tolist() == (mean > 0.5).astype(float).tolist()
    weight = labelled_pairs(weights, study.root)["weight"]
    assert weight.mean() == pytest.approx(1) and weight.std() > 0
    # The saved model gives elsewhere what it gave on the test split.
    table, helpful = store.load_predictions(stopping, study.root), remedies.held_out_helpful(study)[0]
    again = remedies.scores_elsewhere(stopping, study.root, study.data.test)
    np.testing.assert_allclose(again["margin"], table[table["split"] == "test"]["margin"], atol=1e-4)
    assert len(remedies.scores_elsewhere(stopping, study.root, helpful)) == len(helpful)


def test_held_out_helpful_pairs_are_fresh_or_the_reason_is_said(trained):
    study, n = trained[0], trained[0].params.n_helpful
    helpful, why = remedies.held_out_helpful(study)
    assert why == "" and len(helpful) == n and set(helpful["dimension"]) == {"helpful"}
    assert not set(helpful["prompt"]) & set(study.data.helpful["prompt"])
    larger = data.load(study.params.model_copy(update={"n_helpful": 2 * n}))
    pd.testing.assert_frame_equal(larger.helpful.head(n), study.data.helpful)
    exchanged = Study.open(study.params.model_copy(update={"target": "helpful"}))
    assert set(exchanged.data.test["dimension"]) == {"helpful"}
    assert set(remedies.held_out_helpful(exchanged)[0]["dimension"]) == {"harmless"}
    for n, words in ((0, "n_helpful is 0"), (1000, "the source has no more")):
        none, why = remedies.held_out_helpful(Study.open(study.params.model_copy(update={"n_helpful": n})))
        assert none.empty and words in why


def test_scores_elsewhere_are_those_of_the_saved_model_and_are_kept(trained, monkeypatch):
    study, offered, _ = trained
    spec, test = offered["nothing"].build("implicit", 0), study.data.test
    table, first = store.load_predictions(spec, study.root), remedies.scores_elsewhere(spec, study.root, test)
    np.testing.assert_allclose(first["margin"], table[table["split"] == "test"]["margin"], atol=1e-5)
    monkeypatch.setattr(execute, "load_model", lambda *a: pytest.fail("scored again"))
    pd.testing.assert_frame_equal(remedies.scores_elsewhere(spec, study.root, test), first)
    with pytest.raises(FileNotFoundError, match="save_model=True"):
        remedies.scores_elsewhere(study.gold(study.params.weak_models[0], 0), study.root, test)


def test_holm_by_hand_and_a_bootstrap_p_that_is_two_sided_and_never_zero():
    """Of p = .01, .04, .03: .01 x 3, then .03 x 2, then .04, which may not be below the one before."""
    np.testing.assert_allclose(tables.holm([0.01, 0.04, 0.03]), [0.03, 0.06, 0.06])
    np.testing.assert_allclose(tables.holm([0.9, 0.8, np.nan]), [1, 1, np.nan])
    assert tables.bootstrap_p(np.ones(199)) == pytest.approx(2 / 200)
    assert tables.bootstrap_p(np.array([-1.0] * 10 + [1.0] * 189)) == pytest.approx(2 * 11 / 200)
    assert tables.bootstrap_p(np.array([0.0, 0.0, np.nan])) == 1


N = 200
GOOD, BAD = np.full(N, 0.9), np.full(N, 0.1)
HALF = np.where(np.arange(N) % 2 == 0, 0.9, 0.1)


def counted(students: dict[str, dict[str, np.ndarray]], helpful: int = 50, seeds=(0, 1)) -> tuple[Counts, np.ndarray]:
    rows = []
    for remedy, by_conflict in students.items():
        for conflict, student in by_conflict.items():
            p = {"weak": HALF, "ceiling": GOOD, "reference": by_conflict["none"], "student": student}
            hits = np.full(helpful, remedy != "worse")
            rows += [{"remedy": remedy, "conflict": conflict, "seed": s, "p": p, "helpful": hits} for s in seeds]
    return tables.count_remedies(rows, 0.75, "confidence")


STUDENTS = {
    "nothing": {"none": GOOD, "explicit": HALF},
    "same": {"none": GOOD, "explicit": HALF},
    "better": {"none": GOOD, "explicit": GOOD},
    "worse": {"none": GOOD, "explicit": BAD},
    "bad anyway": {"none": BAD, "explicit": BAD},
}


@pytest.fixture
def results() -> pd.DataFrame:
    """The pooled table of STUDENTS, where the better remedy looks at gold."""
    table = tables.remedy_table(*counted(STUDENTS), 200).assign(uses_gold="")
    table.loc[table["remedy"] == "better", "uses_gold"] = "validation pairs"
    return table


def test_the_table_pools_seeds_and_knows_the_conflicting_goal(results):
    table = results.set_index(["remedy", "conflict"])
    row = table.loc["nothing", "explicit"]
    assert (row["student_accuracy"], row["tax_share"], row["conflicting"]) == (0.5, 0.5, 1.0)
    assert (row["runs"], row["pairs"], row["conflicting_pairs"]) == (2, N, 50)
    assert table.loc[("worse", "explicit"), "conflicting"] == 0
    without = tables.remedy_table(*counted(STUDENTS, helpful=0), 200)
    assert without["conflicting"].isna().all() and (without["conflicting_pairs"] == 0).all()


def test_differences_are_paired_and_adjusted():
    table = tables.differences(*counted(STUDENTS), 200).set_index(["remedy", "conflict", "measure"])
    same, better = (table.loc[name, "explicit", "accuracy"] for name in ("same", "better"))
    assert (same["estimate"], same["p"]) == (0, 1) and -0.2 < same["low"] == -same["high"] < 0
    assert better["estimate"] == 0.5 and better["low"] > 0.35 and better["p"] == pytest.approx(2 / 201)
    assert better["holm"] == pytest.approx(4 * 2 / 201)  # the smallest of four
    assert np.isnan(table.loc[("better", "none", "accuracy"), "holm"])
    # Without tax there is no Score, and so no difference of it.
    assert np.isnan(table.loc[("better", "explicit", "score_minus_even"), "estimate"])
    assert table.loc[("worse", "explicit", "conflicting"), "estimate"] == -1


def test_findings_are_made_by_rule(results):
    lines = sentences_extensions.remedy_findings(tables.differences(*counted(STUDENTS), 200), results)
    accuracy, tax, score = (
        next(s for s in lines if words in s)
        for words in ("explicit conflict, accuracy", "explicit conflict, conflict tax", "Deception Score")
    )
    kinds = accuracy.partition("confidence: ")[2].split("; ")
    assert kinds[0].startswith("beats doing nothing: better (uses gold) +0.50 [")
    assert kinds[1].startswith("worse: worse -0.50 [") and "bad anyway" not in kinds[1]
    assert kinds[2].startswith("not shown: same +0.00 [-0.")
    assert kinds[3].startswith("no statement: bad anyway -0.50")
    assert kinds[4] == "after Holm's adjustment there remain: better (uses gold), worse."
    # Being bad without conflict pays no tax.
    assert "better (uses gold) -0.50" in tax.split("; ")[0] and "no statement: bad anyway -0.50" in tax
    assert "better (uses gold) (not defined)" in score
    none = [s for s in lines if "no conflict" in s]
    assert "worse: bad anyway -1.00" in none[0] and len(none) == 2 and not any("nan" in s for s in lines)
    assert none[1].endswith("above 0.5 with: nothing (1.00), same (1.00), better (1.00), worse (1.00).")
    shown = "explicit conflict: accuracy on the target goal lies above 0.5 with: better (1.00)."
    assert any(s.endswith(shown) for s in lines)


@pytest.mark.parametrize(("weights", "words"), [(GOOD, "+0.50 ["), (HALF, "is not shown to buy"), (BAD, "buys less")])
def test_weights_are_compared_with_their_control(weights, words):
    names = {tables.WEIGHTS: weights, tables.CONTROL: HALF}
    both = counted({"nothing": {"none": GOOD}} | {name: {"none": GOOD, "explicit": s} for name, s in names.items()})
    compared = tables.differences(*both, 200, base=tables.CONTROL)
    (line,) = sentences_extensions.against_control(compared[compared["conflict"] == "explicit"])
    assert words in line and "explicit conflict" in line


def test_a_remedy_that_is_bad_without_conflict_is_named_first(results):
    (line,) = sentences_extensions.remedy_warnings(results)
    assert line.startswith("Warning:") and line.endswith("say nothing: bad anyway (0.00).")
    assert sentences_extensions.remedy_warnings(results[results["remedy"].isin(["nothing", "better"])]) == []
