"""Hand-worked cases of each equation, and identities; the losses of DPO and SimPO are in test_preference."""

import math

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from w2s import losses
from w2s.losses import confidence_loss, explicit_conflict_loss, next_token_loss, reverse_loss, reward_loss

Z, Y = torch.tensor([-3.0, -0.5, 0.0, 0.5, 3.0]), torch.tensor([0.9, 0.2, 0.7, 0.5, 1.0])
LOG2, LOG_3, HALF = math.log(2), torch.tensor([math.log(3)]), torch.tensor([0.5])  # LOG_3: the margin of P = 3/4


def gradient(loss, margin: torch.Tensor, *more) -> torch.Tensor:
    margin = margin.clone().requires_grad_()
    loss(margin, *more).sum().backward()
    return margin.grad


def test_reward_loss_hand_worked_its_gradient_at_large_margins_and_where_it_is_least():
    margin, target = torch.cat([0 * LOG_3, LOG_3, LOG_3, -LOG_3]), torch.tensor([1.0, 1.0, 0.0, 0.5])
    # sigmoid(log 3) = 3/4: -log 3/4, -log 1/4, and half of each.
    expected = [LOG2, math.log(4 / 3), math.log(4), (math.log(4) + math.log(4 / 3)) / 2]
    assert_close(reward_loss(margin, target), torch.tensor(expected))
    assert gradient(reward_loss, torch.tensor([-40.0]), torch.ones(1)).item() == pytest.approx(-1.0)
    margin = torch.linspace(-3, 3, 601)
    best = margin[reward_loss(margin, torch.full_like(margin, 0.8)).argmin()]
    assert torch.sigmoid(best).item() == pytest.approx(0.8, abs=2e-3)


def test_explicit_conflict_hand_worked_and_its_gradient():
    margin, gold = torch.cat([LOG_3, -LOG_3, LOG_3, -LOG_3]), torch.tensor([1.0, 1.0, 0.0, 0.0])
    # Against gold in the second and the third pair alone; there, the flipped label is met with 3/4.
    term = 0.5 * math.log(4 / 3)
    assert_close(explicit_conflict_loss(margin, gold), torch.tensor([0.0, term, term, 0.0]))
    assert explicit_conflict_loss(Z, torch.ones(5), alpha=0.0).abs().max() == 0  # no conflict
    wrong, right = gradient(explicit_conflict_loss, torch.tensor([-0.5, 0.5]), torch.ones(2), 2.0)
    assert wrong > 0 and right == 0  # descending makes the wrong margin more negative, and no other


def test_next_token_loss_of_a_uniform_model():
    assert_close(next_token_loss(torch.zeros(3, 7), torch.tensor([0, 3, 6])), torch.full((3,), math.log(7)))


def test_the_confidence_loss_by_hand_and_its_verdict_without_gradient():
    """Without weight the reward loss, with all of it the own verdict's cross-entropy; label and weight 1/2: of 3/4."""
    assert_close(confidence_loss(Z, Y, 0.0), reward_loss(Z, Y))
    assert_close(confidence_loss(Z, Y, 1.0), torch.log1p(torch.exp(-Z.abs())))
    loss = confidence_loss(LOG_3, HALF, 0.5).item()
    assert loss == pytest.approx(-0.75 * math.log(0.75) - 0.25 * math.log(0.25))
    assert gradient(confidence_loss, LOG_3, HALF, 0.5).item() == pytest.approx(0.75 - 0.75, abs=1e-6)


@pytest.mark.parametrize("loss", [lambda z, y: confidence_loss(z, y, 0.4), reverse_loss])
def test_chosen_and_rejected_are_treated_alike(loss):
    """Else the loss would know which response is the truly preferred one."""
    assert_close(loss(Z, Y), loss(-Z, 1 - Y))


def test_the_reverse_loss_by_hand_and_its_gradient():
    """P = 3/4, y = 4/5: -(3/4 log 4/5 + 1/4 log 1/5); flat at undecided labels, and linear in P at hard ones."""
    loss = reverse_loss(LOG_3, torch.tensor([0.8])).item()
    assert loss == pytest.approx(-0.75 * math.log(0.8) - 0.25 * math.log(0.2))
    assert_close(reverse_loss(Z, torch.full((5,), 0.5)), torch.full((5,), LOG2))
    p, most = torch.sigmoid(Z), -math.log1p(-math.exp(losses.LOG_ZERO))
    assert_close(reverse_loss(Z, torch.ones(5)), p * most - (1 - p) * losses.LOG_ZERO)
    assert_close(reverse_loss(Z, torch.zeros(5)), (1 - p) * most - p * losses.LOG_ZERO)
    label = torch.tensor([0.9, 0.2, 0.7, 0.5, 0.6])  # log-odds times P (1 - P)
    assert_close(gradient(reverse_loss, Z, label), -p * (1 - p) * torch.logit(label))


def test_the_weight_of_the_own_verdict_rises_over_a_fifth_of_the_steps():
    weights, clock = [losses.confidence_weight(0.5, done) for done in (0, 0.1, 0.2, 0.7, 1)], losses.Clock()
    np.testing.assert_allclose(weights, [0, 0.25, 0.5, 0.5, 0.5])
    loss = losses.label_loss("confidence", 0.5, clock)
    assert_close(loss(Z, Y), reward_loss(Z, Y))
    clock.done = 0.2
    assert_close(loss(Z, Y), confidence_loss(Z, Y, 0.5))
