"""The training loop: micro-batches, determinism, schedule, a loss that is not finite."""

import numpy as np
import pytest
import torch

from w2s import models
from w2s.batches import PairTexts
from w2s.models import RewardModel
from w2s.train import Schedule, fit, reward_objective
from w2s.world import World

PAIRS = World().pairs("gt", 24).assign(label=np.linspace(0, 1, 24))


def trained(name: str, tokens: int, conflict: str = "none", alpha: float = 0.5) -> dict[str, torch.Tensor]:
    model, texts = RewardModel.load(name, seed=0), PairTexts(PAIRS, models.load_tokenizer(name), 128)
    objective = reward_objective(PAIRS, conflict, alpha, torch.device("cpu"))
    fit(model, texts.steps(8, 2, tokens, seed=0), objective, Schedule(1e-3), total=6)
    return model.state_dict()


def test_micro_batches_do_not_change_the_gradient(tiny_models):
    """The gradient of a step, which is what Adam gets to see (Adam itself blows up rounding near 0)."""
    gradients, losses = [], []
    for tokens in (100_000, 100):
        model, texts = (
            RewardModel.load(tiny_models[0], seed=0),
            PairTexts(PAIRS, models.load_tokenizer(tiny_models[0]), 128),
        )
        objective = reward_objective(PAIRS, "explicit", 0.5, torch.device("cpu"))
        steps = texts.steps(24, 1, tokens, seed=0)
        fit(model, steps, objective, Schedule(1e-3), total=1, report=lambda step, loss: losses.append(loss))
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)
    assert gradients[0].keys() == gradients[1].keys() and "unit.weight" in gradients[0]
    for name, whole in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], whole, atol=1e-7, rtol=1e-4)


def test_the_same_seed_gives_the_same_bytes(tiny_models):
    a, b = trained(tiny_models[0], 300), trained(tiny_models[0], 300)
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_the_first_gradient_step_is_adams(tiny_models):
    """One step of Adam moves each weight by the learning rate, against its gradient's sign."""
    before = RewardModel.load(tiny_models[0], seed=0)
    model = RewardModel.load(tiny_models[0], seed=0)
    texts = PairTexts(PAIRS, models.load_tokenizer(tiny_models[0]), 128)
    objective = reward_objective(PAIRS, "none", 0.0, torch.device("cpu"))
    fit(model, texts.steps(24, 1, 100_000, seed=0), objective, Schedule(1e-3), total=1)
    objective(before, texts.batch(np.arange(24))).mean().backward()
    moved, gradient = model.unit.weight - before.unit.weight, before.unit.weight.grad
    clear = gradient.abs() > 1e-6
    assert clear.any()
    torch.testing.assert_close(moved[clear], -1e-3 * gradient[clear].sign(), atol=1e-5, rtol=1e-2)


def test_the_loss_starts_near_log_2_and_falls(tiny_models):
    losses, model = [], RewardModel.load(tiny_models[2], seed=0)
    texts = PairTexts(PAIRS, models.load_tokenizer(tiny_models[2]), 128)
    objective = reward_objective(PAIRS.assign(label=1.0), "none", 0.0, torch.device("cpu"))
    steps = texts.steps(24, 30, 100_000, seed=0)
    fit(model, steps, objective, Schedule(1e-2), total=30, report=lambda step, loss: losses.append(loss))
    assert losses[0] == pytest.approx(np.log(2), abs=0.05)
    assert losses[-1] < 0.5 * losses[0]


def test_alpha_zero_equals_no_conflict(tiny_models):
    a, b = trained(tiny_models[0], 300), trained(tiny_models[0], 300, "explicit", alpha=0.0)
    assert all(torch.equal(a[k], b[k]) for k in a)
    c = trained(tiny_models[0], 300, "explicit", alpha=0.5)
    assert any(not torch.equal(a[k], c[k]) for k in a)


def test_schedule_is_a_cosine_to_zero_after_a_warm_up():
    schedule = Schedule(1.0, warmup=0.1)
    factors = [schedule.factor(step, 100) for step in range(100)]
    assert factors[0] == pytest.approx(0.1) and max(factors) == pytest.approx(1.0, abs=0.03)
    assert factors[50] == pytest.approx(0.5) and factors[99] < 1e-3
    assert Schedule(1.0).factor(0, 100) == 1.0


def test_a_loss_that_is_not_finite_stops_with_its_step(tiny_models):
    texts = PairTexts(PAIRS, models.load_tokenizer(tiny_models[0]), 128)
    with pytest.raises(FloatingPointError, match=r"nan at step 1; lower learning_rate"):
        fit(
            RewardModel.load(tiny_models[0]),
            texts.steps(8, 1, 1000, seed=0),
            lambda model, batch: model(batch.input_ids, batch.attention_mask) * float("nan"),
            Schedule(1e-3),
            total=3,
        )
