"""SFT, DPO and SimPO: each equation by hand, whose label trains what, and a small study of each method."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import small_params
from torch import nn

from w2s import models, predict, train
from w2s.batches import Batch, pad
from w2s.losses import dpo_loss, response_logps, simpo_loss
from w2s.params import Lora, ParameterError
from w2s.runs import cluster, execute, store
from w2s.runs.labels import labelled_pairs, reference_margins
from w2s.spec import SPLITS, RunSpec
from w2s.study import Study

close = torch.testing.assert_close
CPU, LOG2, LOG3, START = torch.device("cpu"), math.log(2), math.log(3), 3
# Each row: the chances of the next token after the token of that number; START begins every text.
CHANCES = torch.tensor([[0.5, 0.25, 0.125, 0.125], [0.25, 0.5, 0.125, 0.125], [0.5, 0.25, 0.125, 0.125], [0.25] * 4])


class Bigram(nn.Module):
    """A language model whose log-probabilities can be read off a table; as `text_logps` wants one."""

    def __init__(self):
        super().__init__()
        self.table = nn.Parameter(CHANCES.log())

    def base_model(self, input_ids, attention_mask, use_cache):
        return type("Output", (), {"last_hidden_state": self.table[input_ids]})

    def get_output_embeddings(self):
        return nn.Identity()


def batch_of(*texts: tuple[list[int], int]) -> Batch:
    """Right-padded texts, each given as its ids and the number of ids at its end that are the response."""
    ids, real = pad([ids for ids, _ in texts])
    starts = torch.tensor([[len(ids) - n] for ids, n in texts])
    return Batch(ids, real, real * (torch.arange(ids.shape[1]) >= starts), np.arange(len(texts) // 2))


# Chosen: 1/4, then 1/2 and 1/2. Rejected: 1/4 and then 1/8.
CHOSEN, REJECTED = ([START, 0, 0, 0], 3), ([START, 2, 2], 2)


def test_dpo_and_simpo_loss_hand_worked():
    margin, reference = torch.tensor([2 * LOG3 + 7, 1.0, -2 * LOG3]), torch.tensor([7.0, 1.0, 0.0])
    # sigmoid(0.5 * 2 log 3) = 3/4 for the first pair, 1/2 for the second, 1/4 for the third.
    close(dpo_loss(margin, reference, beta=0.5), torch.tensor([math.log(4 / 3), LOG2, math.log(4)]))
    margin = torch.linspace(-300, 300, 13)
    close(dpo_loss(margin, margin), torch.full((13,), LOG2))  # where policy and reference agree
    # 2 * margin - 1 = 0, log 3, -log 3 and -1: gamma stands outside of beta.
    expected = torch.tensor([LOG2, math.log(4 / 3), math.log(4), math.log(1 + math.e)])
    close(simpo_loss(torch.tensor([0.5, (1 + LOG3) / 2, (1 - LOG3) / 2, 0.0]), beta=2.0, gamma=1.0), expected)
    margin = torch.linspace(-3, 3, 13)  # without target margin it is DPO without reference
    close(simpo_loss(margin, 2.0, gamma=0.0), dpo_loss(margin, torch.zeros(13), beta=2.0))
    # DPO's gradient is beta times what is missing, and both stay finite far off.
    margin = torch.tensor([0.0, 10 * LOG3, -1e4], requires_grad=True)
    loss = dpo_loss(margin, torch.zeros(3), beta=0.1)
    loss.sum().backward()
    close(margin.grad, torch.tensor([-0.1 / 2, -0.1 / 4, -0.1]))
    assert loss[2].item() == pytest.approx(1e3)


@pytest.mark.parametrize("average", [False, True])
def test_response_logps_hand_worked(average):
    for texts, expected, counts in (
        ((CHOSEN, REJECTED), [-4 * LOG2, -5 * LOG2], [3, 2]),
        ((([0, 0, 0], 3), ([2, 0], 2)), [-2 * LOG2, -LOG2], [2, 1]),  # a first token has no prediction
        ((CHOSEN, REJECTED) * 100, [-4 * LOG2, -5 * LOG2] * 100, [3, 2] * 100),  # more logits than are made at once
    ):
        batch, expected = batch_of(*texts), torch.tensor(expected) / (torch.tensor(counts) if average else 1)
        logits = CHANCES.log()[batch.input_ids] + torch.randn(*batch.input_ids.shape, 1)  # which changes nothing
        close(response_logps(logits, batch.input_ids, batch.response_mask, average), expected)
        close(models.text_logps(Bigram(), batch, average).detach(), expected)


def test_only_predictions_of_the_response_count():
    """Not the prompt's, not the padding's, and not what the last token predicts."""
    batch = batch_of(([START, 1, 1, 0], 2), ([START, 1, 2], 1))
    used = torch.tensor([[False, True, True, False], [False, True, False, False]])
    expected = response_logps(CHANCES.log()[batch.input_ids], batch.input_ids, batch.response_mask)
    for _ in range(2):
        logits = torch.where(used[..., None], CHANCES.log()[batch.input_ids], torch.randn(2, 4, 4))
        assert torch.equal(response_logps(logits, batch.input_ids, batch.response_mask), expected)
    close(expected, torch.full((2,), math.log(1 / 8)))


def run_of(method: str, **changes) -> RunSpec:
    settings = {"dpo": {"beta": 0.5}, "simpo": {"beta": 2.0, "gamma": 1.0}}.get(method, {})
    return RunSpec("tiny", "", "", "w2s", 0, method=method, **settings | changes)


def test_sft_loss_is_a_mean_over_tokens_then_over_texts():
    """Four tokens of one text and one of another: not the mean over five tokens."""
    losses, batch = [], batch_of(([START, 0, 0, 0, 1], 4), ([START, 1, 2], 1))
    objective = train.training_objective(run_of("sft"), pd.DataFrame(), CPU)
    steps = [(2, [replace(batch, index=np.arange(2))])]
    train.fit(Bigram(), steps, objective, train.Schedule(1e-3), 1, report=lambda step, loss: losses.append(loss))
    first, second = (2 + 1 + 1 + 2) * LOG2 / 4, 3 * LOG2
    assert losses == [pytest.approx((first + second) / 2)]


def losses_of(spec: RunSpec, labels: list[float], reference: list[float], *texts, model=None, **changes):
    """The loss (n,) of each pair: the chosen texts of all, then the rejected ones."""
    objective = train.preference_objective(spec, pd.DataFrame({"label": labels}), np.array(reference), CPU)
    return objective(model or Bigram(), replace(batch_of(*texts), **changes))


# DPO: margin log 2, less the reference's log 2 - 2 log 3, times 0.5: log 3, turned round for the label 0.
# SimPO: means of -4/3 log 2 and -5/2 log 2 a token: 2 * 7/6 log 2 - 1, of which the label 0 turns the first term.
WORKED = [("dpo", 1.0, LOG2 - 2 * LOG3, math.log(4 / 3)), ("dpo", 0.0, LOG2 - 2 * LOG3, math.log(4))]
WORKED += [("simpo", label, 0.0, math.log(1 + math.exp(1 - by * 7 / 3 * LOG2))) for label, by in ((1.0, 1), (0.0, -1))]


@pytest.mark.parametrize(("method", "label", "reference", "expected"), WORKED)
def test_objectives_hand_worked(method, label, reference, expected):
    """A weak label of 0 is the swapped pair; blocks are sorted by length: the row number finds label and reference."""
    loss = losses_of(run_of(method), [label], [reference], CHOSEN, REJECTED)
    close(loss, losses_of(run_of(method), [1 - label], [-reference], REJECTED, CHOSEN))
    how = ([1 - label, label], [9.0, reference], CHOSEN, REJECTED)
    close(loss, losses_of(run_of(method), *how, index=np.array([1])))
    assert loss.tolist() == pytest.approx([expected], abs=1e-6)


# DPO: -log sigmoid(-0.5 * (-log 2 - -0.2)). SimPO: -log sigmoid(2 * 7/6 log 2 - 1).
EXPLICIT = [("dpo", [0.3, -0.2], -0.5 * (LOG2 - 0.2)), ("simpo", [0.0, 0.0], 1 - 7 / 3 * LOG2)]


@pytest.mark.parametrize(("method", "reference", "exponent"), EXPLICIT)
def test_explicit_conflict_adds_the_reversed_gold_pair_where_the_policy_contradicts_it(method, reference, exponent):
    """Two pairs, the second of which the policy gets wrong; whatever the weak labels say."""
    for labels in ([1.0, 1.0], [0.0, 0.0]):
        how = (labels, reference, CHOSEN, REJECTED, REJECTED, CHOSEN)
        added = losses_of(run_of(method, conflict="explicit", alpha=0.25), *how) - losses_of(run_of(method), *how)
        assert added.tolist() == pytest.approx([0.0, 0.25 * math.log(1 + math.exp(exponent))], abs=1e-6)


def test_the_policy_alone_decides_what_contradicts_gold_and_is_pushed_on_away_from_it():
    """Its margin is log 2 > 0 however the reference stands, even though the implicit reward is negative."""
    losses, gradients = [], []
    for conflict in ("none", "explicit"):
        losses.append(losses_of(run_of("dpo", conflict=conflict, alpha=1.0), [1.0], [9.0], CHOSEN, REJECTED))
        model = Bigram()
        losses_of(run_of("simpo", conflict=conflict, alpha=1.0), [1.0], [0.0], REJECTED, CHOSEN, model=model).backward()
        gradients.append(model.table.grad[2, 2])  # 2 after 2: the truly preferred response alone has it
    assert torch.equal(*losses) and gradients[0] < 0 < gradients[1] - gradients[0]


def write_predictions(spec: RunSpec, root: Path, **columns) -> None:
    folder = root / "runs" / spec.name
    folder.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(columns).to_parquet(folder / "predictions.parquet", index=False)


def test_reference_margins_are_joined_by_id(tmp_path):
    start, ids = run_of("sft"), ["w2s-2", "w2s-0", "helpful-1", "w2s-1"]
    write_predictions(start, tmp_path, id=ids, chosen_logp=[-1.0, -2, -3, -4], rejected_logp=[-10.0, -20, -30, -40])

    def margins(method: str, *ids: str) -> list[float]:
        return reference_margins(run_of(method, start=start), tmp_path, pd.Series(ids)).tolist()

    assert margins("dpo", "w2s-0", "helpful-1", "w2s-2") == [18, 27, 9] and margins("simpo", "w2s-0") == [0]
    with pytest.raises(KeyError):
        margins("dpo", "w2s-7")


@pytest.fixture(scope="module", params=["dpo", "simpo"])
def study(request, tiny_models, tmp_path_factory) -> Study:
    return Study.open(small_params(tiny_models, tmp_path_factory.mktemp(request.param), method=request.param))


def test_who_shares_a_warm_start(study):
    pair = study.model_pairs[0]
    none, explicit, implicit = (study.student(*pair, conflict, 0) for conflict in ("none", "explicit", "implicit"))
    assert none.start == explicit.start and none.start.name == explicit.start.name
    assert implicit.start != none.start and implicit.start.name != none.start.name
    assert len({none.name, explicit.name, implicit.name}) == 3
    assert none.start.method == "sft" and none.start.start is None and none.start.save_model
    assert none.teacher == none.start.teacher == study.gold(pair[0], 0) and none.teacher.start.teacher is None


def test_settings_of_runs_and_their_warm_starts(tiny_models, tmp_path):
    """The paper's beta and gamma where none are given; a gamma of 0 is 0; a warm start has settings of its own."""

    def gold(method, **how) -> RunSpec:
        return Study.open(small_params(tiny_models, tmp_path, method=method, **how)).gold(tiny_models[0], 0)

    cases = [("reward", {}, None, None), ("dpo", {}, 0.1, None), ("simpo", {}, 2.0, 1.0)]
    for method, given, *expected in [*cases, ("simpo", {"beta": 3.0, "gamma": 0.0}, 3.0, 0.0)]:
        spec = gold(method, **given)
        assert [spec.beta, spec.gamma] == expected and (spec.start is None) == (method == "reward")
    how = {"learning_rate": 1e-6, "epochs": 3, "gradient_checkpointing": True}
    for changes, expected in (({}, (1e-6, 1)), ({"sft_learning_rate": 1e-5, "sft_epochs": 2}, (1e-5, 2))):
        spec = gold("dpo", **how, **changes)
        assert (spec.learning_rate, spec.epochs) == (1e-6, 3)
        assert (spec.start.learning_rate, spec.start.epochs) == expected
        assert spec.gradient_checkpointing and spec.start.gradient_checkpointing


def test_rates_warm_up_over_a_tenth_and_then_stay():
    for method in ("sft", "dpo", "simpo"):
        schedule = execute.schedule(run_of(method, learning_rate=1e-6))
        factors = [schedule.factor(step, 40) for step in range(40)]
        assert factors == pytest.approx([0.25, 0.5, 0.75, *[1.0] * 37]) and schedule.learning_rate == 1e-6
    assert execute.schedule(run_of("reward")).factor(20, 40) == pytest.approx(0.5)


def test_the_warm_start_of_a_student_learns_what_its_teacher_prefers(study):
    """The weak label's response, right or wrong; gold ones for helpful pairs and for a gold run."""
    student, gold = study.student(*study.model_pairs[0], "implicit", 0), study.gold(study.model_pairs[0][0], 0)
    table, right = study.data.w2s, pd.Series(np.arange(len(study.data.w2s)) % 3 > 0)
    store.store_data(study.root, study.data)
    own = {"id": table.id, "split": "w2s", "correct": right, "probability": right * 0.5 + 0.1}
    write_predictions(student.teacher, study.root, **own)
    expected = [*table.chosen.where(right, table.rejected), *study.data.helpful.chosen]
    tokenizer = models.load_tokenizer(student.model)
    for start, responses in ((student.start, expected), (gold.start, list(study.data.gt.chosen))):
        texts = train.training_texts(start, labelled_pairs(start, study.root), tokenizer)
        batch = texts.batch(np.arange(len(texts)))
        learned = [ids[mask.bool()] for ids, mask in zip(batch.input_ids, batch.response_mask, strict=True)]
        assert all(ids[-1] == tokenizer.eos_token_id for ids in learned)
        assert [tokenizer.decode(ids[:-1]) for ids in learned] == responses


def test_everything_new_that_changes_a_result_changes_the_name(study):
    spec, lora = study.student(*study.model_pairs[0], "explicit", 0), Lora(rank=2, alpha=4)
    adapters = [{"rank": 3}, {"alpha": 5.0}, {"dropout": 0.1}, {"target_modules": ("c_attn",)}]
    changes = [
        *({"method": method} for method in ("reward", "sft", "dpo", "simpo") if method != spec.method),
        *({"start": start} for start in (None, replace(spec.start, learning_rate=0.5))),
        *({"beta": 0.7}, {"gamma": 0.7}, {"against_reference": not spec.against_reference}),
        *({"keep": "confidence"}, {"keep": "gold_oracle"}, {"keep_threshold": 0.9}, {"keep_by": "calibrated"}),
        *({"lora": lora.model_copy(update=change)} for change in ({}, *adapters)),
    ]
    assert len({replace(spec, **change).name for change in changes} | {spec.name}) == len(changes) + 1
    assert replace(spec, gradient_checkpointing=True).name == spec.name


@pytest.mark.parametrize("load", [models.load_language_model, models.RewardModel.load])
def test_lora_layers_that_the_model_does_not_have(tiny_models, load):
    message = r"'q_proj'.*set target_modules of lora to some of .*'c_attn'"
    with pytest.raises(ParameterError, match=message) as caught:
        load(tiny_models[0], lora=Lora(rank=2, alpha=4, target_modules=("q_proj",)))
    assert repr(tiny_models[0]) in str(caught.value) and "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def trained(study) -> pd.DataFrame:
    """Gold runs, every student of the smallest pair and a bootstrapped one, with their warm starts."""
    weak, strong = study.model_pairs[0]
    students = {spec: tags for spec, tags in study.student_runs().items() if spec.model == strong}
    wanted = study.gold_runs([weak, strong]) | students | dict(list(study.bootstrapped_runs().items())[:1])
    table = cluster.results(study, wanted)
    assert set(table.run) == {spec.name for spec in wanted}
    return table


def test_a_small_study_trains_every_run(study, trained):
    test = trained[trained.split == "test"]
    assert (test.groupby("run").size() == study.params.n_test).all()
    assert np.isfinite(test.margin).all() and test.groupby("run").margin.std().min() > 0
    by = {"dpo": 1 / 50, "simpo": 1.0}[study.params.method]
    np.testing.assert_allclose(trained.probability, predict.sigmoid(by * trained.margin), rtol=1e-6)
    assert set(trained.probability_by) == {study.params.confidence}
    stored = store.load_predictions(next(iter(study.student_runs())), study.root)
    assert "probability" not in stored and "margin" in stored  # nobody has said yet what makes one of the other
    students = test[test.role == "student"].pivot(index="id", columns="conflict", values="margin")
    assert set(students) == {"none", "explicit", "implicit"} and students.T.duplicated().sum() == 0


def test_a_run_starts_where_its_warm_start_ended_and_again_gives_the_same_bytes(study, trained, tiny_models, tmp_path):
    """The warm start's table holds the reference of every pair, and its model scores the same."""
    spec = study.student(*study.model_pairs[0], "none", 0)
    table, model = store.load_predictions(spec.start, study.root).set_index("id"), execute.load_model(spec, study.root)
    assert set(table.split) == set(SPLITS)
    again = execute.score(spec.start, model, study.data.test, models.load_tokenizer(spec.model), study.root)
    for column in ("chosen_logp", "rejected_logp", "chosen_tokens", "rejected_tokens"):
        np.testing.assert_allclose(again[column], table.loc[again.id, column], atol=1e-5)
    if study.params.method == "dpo":
        rows = store.load_predictions(spec, study.root).set_index("id")
        reference = (table.chosen_logp - table.rejected_logp).loc[rows.index]
        np.testing.assert_allclose(rows.reference_margin, reference, atol=1e-6)
    log = (study.root / "runs" / spec.name / "log.jsonl").read_text()
    first = float(log.split('"loss": ')[1].split(",")[0])  # log 2 where policy and reference agree, to 5 digits
    assert (abs(first - LOG2) < 2e-5) == (study.params.method == "dpo")
    other = Study.open(small_params(tiny_models, tmp_path, method=study.params.method))
    spec = other.student(*other.model_pairs[0], "explicit", 0)
    cluster.results(other, {spec: {}})
    for run in (spec, spec.start, spec.teacher, spec.teacher.start):
        files = [root / "runs" / run.name / "predictions.parquet" for root in (study.root, other.root)]
        assert files[0].read_bytes() == files[1].read_bytes()


def test_a_study_without_helpful_pairs(tiny_models, tmp_path):
    """The warm start scores every split, an empty one too."""
    how = {"method": "dpo", "conflicts": ["none"], "n_helpful": 0, "lora": {"rank": 2, "alpha": 4, "dropout": 0.5}}
    study = Study.open(small_params(tiny_models, tmp_path, **how, confidence="calibrated"))
    table = cluster.results(study, {study.gold(tiny_models[0], 0): {}})
    assert set(table.split) == {"w2s", "validation", "test"} and np.isfinite(table.margin).all()


@pytest.mark.parametrize("method", ["reward", "dpo"])
def test_a_filtered_study_trains_on_fewer_pairs(tiny_models, tmp_path, method):
    """Of untrained margins near 0 the paper's confidence keeps next to none; a lower threshold some."""
    how = {"method": method, "weak_filter": "confidence", "threshold": 0.501, "learning_rate": 1e-3}
    study = Study.open(small_params(tiny_models, tmp_path, **how))
    spec = study.student(*study.model_pairs[0], "implicit", 0)
    cluster.results(study, {spec: {}})
    pairs = labelled_pairs(spec, study.root)
    assert 0 < pairs.target.sum() < study.params.n_w2s and pairs.target.sum() == (~pairs.target).sum()
    nobody = Study.open(small_params(tiny_models, tmp_path, **how | {"threshold": 0.99}))
    with pytest.raises(execute.RunFailed, match="weak_filter: no pair of w2s"):
        cluster.results(nobody, {nobody.student(*nobody.model_pairs[0], "none", 0): {}})
