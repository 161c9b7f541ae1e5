"""The training loop: micro-batches, determinism, schedule, a loss that is not finite."""

import numpy as np
import pytest
import torch

from w2s import models
from w2s.batches import PairTexts
from w2s.models import RewardModel
from w2s.train import Schedule, fit, reward_objective
from w2s.world import World

PAIRS, CPU = World().pairs("gt", 24).assign(label=np.linspace(0, 1, 24)), torch.device("cpu")


def trained(name, tokens=300, conflict="none", alpha=0.5, pairs=PAIRS, batch=24, rate=1e-3, epochs=1, objective=None):
    """The model after some epochs, and the loss of each step."""
    losses, model, texts = [], RewardModel.load(name), PairTexts(pairs, models.load_tokenizer(name), 128)
    objective = objective or reward_objective(pairs, conflict, alpha, CPU)
    steps, total = texts.steps(batch, epochs, tokens, seed=0), epochs * len(pairs) // batch
    fit(model, steps, objective, Schedule(rate), total, report=lambda step, loss: losses.append(loss))
    return model, losses


def test_micro_batches_do_not_change_the_gradient(tiny_models):
    """The gradient of a step, which is what Adam gets to see (Adam itself blows up rounding near 0)."""
    (whole, one), (parts, other) = (trained(tiny_models[0], tokens, "explicit") for tokens in (100_000, 100))
    assert one == pytest.approx(other, abs=1e-6)
    whole, parts = ({k: p.grad for k, p in m.named_parameters() if p.grad is not None} for m in (whole, parts))
    assert "unit.weight" in whole
    torch.testing.assert_close(parts, whole, atol=1e-7, rtol=1e-4)


def test_the_first_step_is_adams(tiny_models):
    """It moves each weight by the learning rate, against its gradient's sign."""
    before, (model, _) = RewardModel.load(tiny_models[0]), trained(tiny_models[0], 100_000)
    texts = PairTexts(PAIRS, models.load_tokenizer(tiny_models[0]), 128)
    reward_objective(PAIRS, "none", 0.0, CPU)(before, texts.batch(np.arange(24))).mean().backward()
    moved, gradient = model.unit.weight - before.unit.weight, before.unit.weight.grad
    clear = gradient.abs() > 1e-6
    assert clear.any()
    torch.testing.assert_close(moved[clear], -1e-3 * gradient[clear].sign(), atol=1e-5, rtol=1e-2)


def test_the_same_seed_gives_the_same_bytes_and_alpha_zero_those_of_no_conflict(tiny_models):
    how = [("none", 0.5), ("none", 0.5), ("explicit", 0.0), ("explicit", 0.5)]
    first, *others = (trained(tiny_models[0], 300, *h, batch=8, epochs=2)[0].state_dict() for h in how)
    assert [all(torch.equal(first[key], other[key]) for key in first) for other in others] == [True, True, False]


def test_schedule_is_a_cosine_to_zero_after_a_warm_up():
    factors = [Schedule(1.0, warmup=0.1).factor(step, 100) for step in range(100)]
    assert factors[0] == pytest.approx(0.1) and max(factors) == pytest.approx(1.0, abs=0.03)
    assert factors[50] == pytest.approx(0.5) and factors[99] < 1e-3 and Schedule(1.0).factor(0, 100) == 1.0


def test_a_loss_that_is_not_finite_stops_with_its_step(tiny_models):
    with pytest.raises(FloatingPointError, match=r"nan at step 1; lower learning_rate"):
        trained(tiny_models[0], batch=8, objective=lambda m, b: m(b.input_ids, b.attention_mask) * float("nan"))
