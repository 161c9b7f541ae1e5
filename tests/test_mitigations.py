"""Notebook 07: the remedies' losses, labels, weights and stopping; which runs are compared; what is said of them."""

import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import assert_own_axes, small_params, texts
from torch import nn

from w2s import data, losses, train
from w2s.analysis import remedies as tables
from w2s.analysis.pooled import Counts
from w2s.losses import LOG_ZERO, confidence_loss, reverse_loss, reward_loss
from w2s.report import plots_extensions, sentences_extensions
from w2s.runs import cluster, execute, remedies, store
from w2s.runs.labels import even_weights, labelled_pairs, mean_chance, reliability_weights, weak_labels
from w2s.study import Study

Z = torch.tensor([-3.0, -0.5, 0.0, 0.5, 3.0])
Y = torch.tensor([0.9, 0.2, 0.7, 0.5, 1.0])


def test_without_weight_the_confidence_loss_is_the_reward_loss():
    torch.testing.assert_close(confidence_loss(Z, Y, 0.0), reward_loss(Z, Y))


def test_with_all_the_weight_it_is_the_cross_entropy_of_the_own_verdict():
    expected = [math.log1p(math.exp(-abs(z))) for z in Z.tolist()]
    torch.testing.assert_close(confidence_loss(Z, Y, 1.0), torch.tensor(expected))


def test_the_confidence_loss_by_hand():
    """margin log 3 is P = 3/4; label 1/2, weight 1/2: the target is 3/4, and the loss the entropy of 3/4."""
    loss = confidence_loss(torch.tensor([math.log(3)]), torch.tensor([0.5]), 0.5)
    assert loss.item() == pytest.approx(-0.75 * math.log(0.75) - 0.25 * math.log(0.25))


def test_the_own_verdict_has_no_gradient():
    z = torch.tensor([math.log(3)], requires_grad=True)
    confidence_loss(z, torch.tensor([0.5]), 0.5).sum().backward()
    assert z.grad.item() == pytest.approx(0.75 - 0.75, abs=1e-6)


@pytest.mark.parametrize("loss", [lambda z, y: confidence_loss(z, y, 0.4), reverse_loss])
def test_chosen_and_rejected_are_treated_alike(loss):
    """Else the loss would know which response is the truly preferred one."""
    torch.testing.assert_close(loss(Z, Y), loss(-Z, 1 - Y))


def test_the_reverse_loss_by_hand():
    """P = 3/4, y = 4/5: -(3/4 log 4/5 + 1/4 log 1/5)."""
    loss = reverse_loss(torch.tensor([math.log(3)]), torch.tensor([0.8]))
    assert loss.item() == pytest.approx(-0.75 * math.log(0.8) - 0.25 * math.log(0.2))


def test_the_reverse_loss_is_flat_at_undecided_labels_and_linear_in_p_at_hard_ones():
    torch.testing.assert_close(reverse_loss(Z, torch.full((5,), 0.5)), torch.full((5,), math.log(2)))
    p, most = torch.sigmoid(Z), -math.log1p(-math.exp(LOG_ZERO))
    torch.testing.assert_close(reverse_loss(Z, torch.ones(5)), p * most - (1 - p) * LOG_ZERO)
    torch.testing.assert_close(reverse_loss(Z, torch.zeros(5)), (1 - p) * most - p * LOG_ZERO)


def test_the_gradient_of_the_reverse_loss_is_the_log_odds_times_p_and_1_minus_p():
    z = Z.clone().requires_grad_()
    label = torch.tensor([0.9, 0.2, 0.7, 0.5, 0.6])
    reverse_loss(z, label).sum().backward()
    p = torch.sigmoid(Z)
    torch.testing.assert_close(z.grad, -p * (1 - p) * torch.logit(label))


def test_the_weight_of_the_own_verdict_rises_over_a_fifth_of_the_steps():
    weights = [losses.confidence_weight(0.5, done) for done in (0, 0.1, 0.2, 0.7, 1)]
    np.testing.assert_allclose(weights, [0, 0.25, 0.5, 0.5, 0.5])
    clock = losses.Clock()
    loss = losses.label_loss("confidence", 0.5, clock)
    torch.testing.assert_close(loss(Z, Y), reward_loss(Z, Y))
    clock.done = 0.2
    torch.testing.assert_close(loss(Z, Y), confidence_loss(Z, Y, 0.5))


def test_reliability_weights_are_by_distance_from_one_half_and_have_mean_one():
    np.testing.assert_allclose(reliability_weights([0.5, 0.75, 0.0, 0.25]), [0, 1, 2, 1])
    np.testing.assert_allclose(reliability_weights([0.0, 1.0, 1.0]), 1)
    # Pulls w |2 y - 1|: 0, 1/2, 2, 1/2 of mean 3/4, where labels without weights have a mean of 1/2.
    np.testing.assert_allclose(even_weights([0.5, 0.75, 0.0, 0.25]), 1.5)
    np.testing.assert_allclose(even_weights([0.0, 1.0, 1.0]), 1)
    with pytest.raises(ValueError, match="every weak label is 1/2"):
        reliability_weights([0.5, 0.5])


@pytest.mark.parametrize(
    ("total", "checks", "steps"), [(50, 5, [10, 20, 30, 40, 50]), (7, 3, [3, 5, 7]), (2, 5, [1, 2])]
)
def test_checks_are_evenly_spaced_and_end_with_the_last_step(total, checks, steps):
    assert train.check_steps(total, checks) == steps


def test_early_stopping_keeps_the_best_step_and_the_earliest_of_equals():
    model = nn.Linear(1, 1)
    frozen = model.bias.requires_grad_(False).clone()
    values = iter([0.5, 0.8, 0.8, 0.6])
    best = train.BestWeights(model, lambda: [model.eval(), next(values)][1], [2, 4, 6, 8])
    for step in range(1, 9):
        model.weight.data.fill_(step)
        best.look(step)
    assert (best.step, best.best, model.training) == (4, 0.8, True)
    best.restore()
    assert model.weight.item() == 4 and torch.equal(model.bias, frozen)


@pytest.fixture(scope="module")
def trained(tiny_models, tmp_path_factory):
    """A small study with three weak models, whose remedies for one pair are trained; every confidence will do."""
    changes = {"weak_models": tiny_models[:2], "strong_models": tiny_models[2:], "threshold": 0.5, "save_models": False}
    study = Study.open(small_params(tiny_models, tmp_path_factory.mktemp("remedies"), **changes))
    weak, strong = tiny_models[0], tiny_models[2]
    cluster.results(study, study.gold_runs([weak, strong]))
    found, left_out = remedies.remedies(study, weak, strong)
    grid = {r.build(c, 0): {"remedy": r.name} for r in found for c in study.params.conflicts}
    cluster.results(study, grid)
    return study, {r.name: r for r in found}, left_out


def test_every_remedy_is_a_run_of_its_own_and_doing_nothing_is_the_study(trained, tiny_models):
    study, found, left_out = trained
    assert list(left_out) == ["two intermediates"] and "fewer than 2" in left_out["two intermediates"]
    assert len({r.build("explicit", 0).name for r in found.values()}) == len(found) == 11
    nothing = found["nothing"].build("explicit", 0)
    assert nothing.name == study.student(tiny_models[0], tiny_models[2], "explicit", 0).name
    assert found["one intermediate"].build("none", 0).name == study.bootstrapped(*tiny_models, "none", 0).name


def test_the_label_of_an_ensemble_is_the_mean_of_its_teachers(trained):
    study, found, _ = trained
    for name, size in (("ensemble of seeds", 3), ("ensemble of sizes", 2)):
        spec = found[name].build("none", 0)
        teachers = [spec.teacher, *spec.ensemble]
        assert len({t.name for t in teachers}) == size and set(spec.before) == set(teachers)
        each = [weak_labels(t, study.root, "w2s").set_index("id")["weak_label"] for t in teachers]
        pairs = labelled_pairs(spec, study.root).set_index("id")
        np.testing.assert_allclose(pairs["label"], np.mean(each, axis=0))
    assert replace(spec, ensemble=()).name != spec.name != replace(spec, ensemble=spec.ensemble * 2).name


def test_weights_count_for_weak_labels_and_not_for_gold_ones(trained):
    study, found, _ = trained
    pairs = labelled_pairs(found["reliability weights"].build("implicit", 0), study.root)
    own = pairs["target"]
    assert pairs.loc[own, "weight"].mean() == pytest.approx(1) and (pairs.loc[~own, "weight"] == 1).all()
    np.testing.assert_allclose(pairs.loc[own, "weight"], reliability_weights(pairs.loc[own, "label"]))
    even = labelled_pairs(found["even weights (control)"].build("implicit", 0), study.root)
    np.testing.assert_allclose(even.loc[own, "weight"], even_weights(pairs.loc[own, "label"]))
    assert "weight" not in labelled_pairs(found["nothing"].build("implicit", 0), study.root)


@pytest.mark.parametrize("changes", [{"label_loss": "reverse"}, {"weighting": "reliability"}])
def test_a_remedy_changes_the_loss_of_weak_labels_alone(monkeypatch, changes):
    """The conflict's term and the helpful pairs have the loss that they have without a remedy."""
    margin = torch.tensor([-1.0, 2.0, 0.5])
    monkeypatch.setattr(train, "pair_margins", lambda model, batch: margin)
    batch = SimpleNamespace(index=np.array([2, 0, 1]))
    pairs = pd.DataFrame({"label": [0.7, 0.4, 1.0], "target": [True, True, False], "weight": [0.5, 1.5, 1.0]})
    pairs = pairs if "weighting" in changes else pairs.drop(columns="weight")
    device = torch.device("cpu")
    loss = reverse_loss if "label_loss" in changes else reward_loss
    found = train.reward_objective(pairs, "explicit", 0.5, device, loss)(None, batch)
    weight = torch.tensor([0.5, 1.5]) if "weighting" in changes else torch.ones(2)
    own = weight * loss(margin[1:], torch.tensor([0.7, 0.4]))
    helpful = reward_loss(margin[:1], torch.ones(1)) + 0.5 * reward_loss(margin[:1], torch.zeros(1))
    torch.testing.assert_close(found, torch.cat([helpful, own]))


def test_early_stopping_scores_the_kept_step(trained):
    """The accuracy on validation pairs of the saved predictions is the best that was seen."""
    study, found, _ = trained
    spec = found["early stopping"].build("explicit", 0)
    best = pd.read_json(study.root / "runs" / spec.name / "best.json", typ="series")
    table = store.load_predictions(spec, study.root)
    validation = table[table["split"] == "validation"]
    assert validation["correct"].mean() == best["validation_accuracy"]
    assert best["step"] in train.check_steps(int(best["steps"]), spec.gold_checks)
    last = store.load_predictions(found["nothing"].build("explicit", 0), study.root)
    assert best["validation_accuracy"] >= last[last["split"] == "validation"]["correct"].mean()


def test_what_a_remedy_costs(trained):
    study, found, _ = trained
    costs = remedies.cost_table(study, list(found.values())).set_index("remedy")
    assert costs["other_models"].to_dict() == dict.fromkeys(found, 0) | {
        "one intermediate": 1, "ensemble of seeds": 2, "ensemble of sizes": 1,
    }  # fmt: skip
    gold = costs["gold_pairs"]
    assert gold["early stopping"] == study.params.n_validation and gold["nothing"] == gold["confident labels"] == 0
    assert gold["confident, right labels"] == costs["weak_pairs"]["confident labels"] == study.params.n_w2s
    assert costs["weak_pairs"]["confident, right labels"] < study.params.n_w2s
    assert set(costs.index[costs["uses_gold"] != ""]) == {"confident, right labels", "early stopping"}


def test_a_filter_that_keeps_nothing_is_left_out(trained):
    study, _, _ = trained
    strict = replace(study, params=study.params.model_copy(update={"threshold": 0.99}))
    found, left_out = remedies.remedies(strict, study.params.weak_models[0], study.params.strong_models[0])
    assert {"confident labels", "confident, right labels"} <= set(left_out) and left_out["confident labels"].endswith(
        "0.99 with seed 0"
    )
    assert "confident labels" not in [r.name for r in found]


def test_splits_alternate_along_a_chain(small_study, tiny_models):
    two = small_study.bootstrapped(tiny_models[0], tiny_models[1:], tiny_models[2], "explicit", 0)
    chain = []
    while two:
        chain.insert(0, (two.split, two.conflict, two.model))
        two = two.teacher
    assert [split for split, _, _ in chain] == ["gt", "w2s", "gt", "w2s"]
    assert [conflict for _, conflict, _ in chain] == ["none", "none", "none", "explicit"]
    assert [model for _, _, model in chain] == [*tiny_models, tiny_models[2]]
    one = small_study.bootstrapped(*tiny_models, "none", 0)
    assert one == small_study.bootstrapped(tiny_models[0], tiny_models[1:2], tiny_models[2], "none", 0)


def test_intermediates_are_those_that_lie_most_evenly(monkeypatch):
    size = {"w": 10, "a": 11, "b": 40, "c": 300, "s": 1000, "t": 2000}
    monkeypatch.setattr(remedies.models, "n_parameters", size.get)
    assert remedies.evenly_between("w", "s", list("cabt"), 1) == ("b",)
    assert remedies.evenly_between("w", "s", list("cabt"), 2) == ("b", "c")
    assert remedies.evenly_between("w", "s", list("ct"), 2) == ()


def test_default_fields_leave_the_names_of_runs(small_study, tiny_models):
    spec = small_study.student(tiny_models[0], tiny_models[2], "explicit", 0)
    new = ("ensemble", "chance_by", "weighting", "label_loss", "confidence_weight", "gold_checks")
    assert not set(new) & set(spec.identity)
    changes = {"weighting": "reliability", "label_loss": "reverse", "confidence_weight": 0.1, "gold_checks": 3}
    changes |= {"ensemble": (spec.teacher,), "chance_by": "paper"}
    assert set(changes) == set(new)
    assert len({replace(spec, **{key: value}).name for key, value in changes.items()} | {spec.name}) == 7


@pytest.mark.parametrize(("method", "confidence"), [("dpo", "calibrated"), ("dpo", "paper"), ("simpo", "paper")])
def test_preference_optimization_has_the_remedies_that_hard_labels_allow(tiny_models, tmp_path, method, confidence):
    changes = {"weak_models": tiny_models[:2], "strong_models": tiny_models[2:], "threshold": 0.5}
    study = Study.open(small_params(tiny_models, tmp_path, method=method, confidence=confidence, **changes))
    weak, strong = tiny_models[0], tiny_models[2]
    cluster.results(study, study.gold_runs([weak, strong]))
    found, left_out = remedies.remedies(study, weak, strong)
    assert {"confidence loss", "reverse loss"} <= set(left_out) and "hard labels" in left_out["reverse loss"]
    run = {r.name: r.build("explicit", 0) for r in found}
    for same in ("reliability weights", "early stopping"):  # neither is a remedy for the warm start
        assert run[same].start == run["nothing"].start
    assert run["ensemble of sizes"].start != run["nothing"].start
    helpful, _ = remedies.held_out_helpful(study)
    cluster.results(study, {run[name]: {} for name in ("ensemble of sizes", "reliability weights", "early stopping")})
    label = labelled_pairs(run["ensemble of sizes"], study.root)["label"]
    mean = mean_chance(run["ensemble of sizes"], study.root)
    assert set(label) <= {0.0, 1.0} and label.tolist() == (mean > 0.5).astype(float).tolist()
    weight = labelled_pairs(run["reliability weights"], study.root)["weight"]
    assert weight.mean() == pytest.approx(1) and weight.std() > 0
    # The saved model gives elsewhere what it gave on the test split.
    table = store.load_predictions(run["early stopping"], study.root)
    again = remedies.scores_elsewhere(run["early stopping"], study.root, study.data.test)
    np.testing.assert_allclose(again["margin"], table[table["split"] == "test"]["margin"], atol=1e-4)
    assert len(remedies.scores_elsewhere(run["early stopping"], study.root, helpful)) == len(helpful)


def test_held_out_helpful_pairs_are_fresh(trained):
    study, _, _ = trained
    helpful, why = remedies.held_out_helpful(study)
    assert why == "" and len(helpful) == study.params.n_helpful and set(helpful["dimension"]) == {"helpful"}
    assert not set(helpful["prompt"]) & set(study.data.helpful["prompt"])
    larger = data.load(study.params.model_copy(update={"n_helpful": 2 * study.params.n_helpful}))
    pd.testing.assert_frame_equal(larger.helpful.head(study.params.n_helpful), study.data.helpful)


@pytest.mark.parametrize(("n", "why"), [(0, "n_helpful is 0"), (1000, "the source has no more")])
def test_without_more_helpful_pairs_the_reason_is_said(tiny_models, tmp_path, n, why):
    helpful, reason = remedies.held_out_helpful(Study.open(small_params(tiny_models, tmp_path, n_helpful=n)))
    assert helpful.empty and why in reason


def test_scores_elsewhere_are_those_of_the_saved_model_and_are_kept(trained, monkeypatch):
    study, found, _ = trained
    spec = found["nothing"].build("implicit", 0)
    table = store.load_predictions(spec, study.root)
    first = remedies.scores_elsewhere(spec, study.root, study.data.test)
    np.testing.assert_allclose(first["margin"], table[table["split"] == "test"]["margin"], atol=1e-5)
    monkeypatch.setattr(execute, "load_model", lambda *a: pytest.fail("scored again"))
    pd.testing.assert_frame_equal(remedies.scores_elsewhere(spec, study.root, study.data.test), first)
    teacher = study.gold(study.params.weak_models[0], 0)
    with pytest.raises(FileNotFoundError, match="save_model=True"):
        remedies.scores_elsewhere(teacher, study.root, study.data.test)


def test_holm_by_hand():
    """Of p = .01, .04, .03: .01 x 3, then .03 x 2, then .04, which may not be below the one before."""
    np.testing.assert_allclose(tables.holm([0.01, 0.04, 0.03]), [0.03, 0.06, 0.06])
    np.testing.assert_allclose(tables.holm([0.9, 0.8, np.nan]), [1, 1, np.nan])


def test_bootstrap_p_is_two_sided_and_never_zero():
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


def test_the_table_pools_seeds_and_knows_the_conflicting_goal():
    table = tables.remedy_table(*counted(STUDENTS), 200).set_index(["remedy", "conflict"])
    row = table.loc["nothing", "explicit"]
    assert (row["student_accuracy"], row["tax_share"], row["conflicting"]) == (0.5, 0.5, 1.0)
    assert (row["runs"], row["pairs"], row["conflicting_pairs"]) == (2, N, 50)
    assert table.loc[("worse", "explicit"), "conflicting"] == 0
    without = tables.remedy_table(*counted(STUDENTS, helpful=0), 200)
    assert without["conflicting"].isna().all() and (without["conflicting_pairs"] == 0).all()


def test_differences_are_paired_and_adjusted():
    table = tables.differences(*counted(STUDENTS), 200).set_index(["remedy", "conflict", "measure"])
    same = table.loc["same", "explicit", "accuracy"]
    assert (same["estimate"], same["low"], same["high"], same["p"]) == (0, 0, 0, 1)
    better = table.loc["better", "explicit", "accuracy"]
    assert better["estimate"] == 0.5 and better["low"] > 0.35 and better["p"] == pytest.approx(2 / 201)
    assert better["holm"] == pytest.approx(4 * 2 / 201)  # the smallest of four
    assert np.isnan(table.loc[("better", "none", "accuracy"), "holm"])
    # Without tax there is no Score, and so no difference of it.
    assert np.isnan(table.loc[("better", "explicit", "score_minus_null"), "estimate"])
    assert table.loc[("worse", "explicit", "conflicting"), "estimate"] == -1


def test_findings_are_made_by_rule():
    both = counted(STUDENTS)
    table = tables.remedy_table(*both, 200).assign(uses_gold="")
    table.loc[table["remedy"] == "better", "uses_gold"] = "validation pairs"
    lines = sentences_extensions.remedy_findings(tables.differences(*both, 200), table)
    accuracy = next(s for s in lines if "explicit conflict, accuracy" in s)
    kinds = accuracy.partition("confidence: ")[2].split("; ")
    assert kinds[0].startswith("beats doing nothing: better (uses gold) +0.50 [")
    assert kinds[1].startswith("worse: worse -0.50 [") and "bad anyway" not in kinds[1]
    assert kinds[2] == "not shown: same +0.00 [+0.00, +0.00]"
    assert kinds[3].startswith("no statement: bad anyway -0.50")
    assert kinds[4] == "after Holm's adjustment there remain: better (uses gold), worse."
    tax = next(s for s in lines if "explicit conflict, conflict tax" in s)  # being bad without conflict pays no tax
    assert "better (uses gold) -0.50" in tax.split("; ")[0] and "no statement: bad anyway -0.50" in tax
    score = next(s for s in lines if "Deception Score" in s)
    assert "better (uses gold) (not defined)" in score
    calm = [s for s in lines if "no conflict" in s]
    assert "worse: bad anyway -1.00" in calm[0] and len(calm) == 2 and not any("nan" in s for s in lines)
    assert calm[1].endswith("above 0.5 with: nothing (1.00), same (1.00), better (1.00), worse (1.00).")
    assert any(
        s.endswith("explicit conflict: accuracy on the target goal lies above 0.5 with: better (1.00).") for s in lines
    )


@pytest.mark.parametrize(("weights", "words"), [(GOOD, "+0.50 ["), (HALF, "is not shown to buy"), (BAD, "buys less")])
def test_weights_are_compared_with_their_control(weights, words):
    names = {tables.WEIGHTS: weights, tables.CONTROL: HALF}
    both = counted({"nothing": {"none": GOOD}} | {name: {"none": GOOD, "explicit": s} for name, s in names.items()})
    compared = tables.differences(*both, 200, base=tables.CONTROL)
    lines = sentences_extensions.against_control(compared[compared["conflict"] == "explicit"])
    assert len(lines) == 1 and words in lines[0] and "explicit conflict" in lines[0]


def test_a_remedy_that_is_bad_without_conflict_is_named_first():
    (line,) = sentences_extensions.remedy_warnings(tables.remedy_table(*counted(STUDENTS), 200))
    assert line.startswith("Warning:") and line.endswith("say nothing: bad anyway (0.00).")
    fine = {name: STUDENTS[name] for name in ("nothing", "better")}
    assert sentences_extensions.remedy_warnings(tables.remedy_table(*counted(fine), 200)) == []


def test_the_tradeoff_names_every_remedy_and_both_sample_sizes(close_figures):
    table = tables.remedy_table(*counted(STUDENTS), 100).assign(uses_gold="")
    table.loc[table["remedy"] == "better", "uses_gold"] = "validation pairs"
    (ax,) = plots_extensions.plot_tradeoff(table)
    shown = texts(ax)
    assert set(STUDENTS) - {"better"} <= set(shown.split("\n")) and "better (gold)" in shown
    assert str(N) in shown and "50" in shown and "explicit conflict" in shown
    assert_own_axes(lambda: plots_extensions.plot_tradeoff(table)[0])
