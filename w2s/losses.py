"""The losses, one pure function per equation, per pair and unreduced: the paper's first, then the remedies'."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


def reward_loss(margin: Tensor, target: Tensor) -> Tensor:
    """Binary cross-entropy of P = sigmoid(margin) against the label: (n,) nats.

    margin (n,) is r(chosen) - r(rejected), in logits; target (n,) the probability in [0, 1] that chosen is preferred,
    soft for weak labels. In the with-logits form, whose gradient does not vanish at large margins.
    Source: Yang et al. (2024), reward modelling; Burns et al. (2023) for soft weak labels.
    """
    return F.binary_cross_entropy_with_logits(margin, target.to(margin.dtype), reduction="none")


def explicit_conflict_loss(margin: Tensor, gold: Tensor, alpha: float = 0.5) -> Tensor:
    """The explicit conflict's added term, a reward for going against gold: (n,) nats.

    alpha times the cross-entropy against the FLIPPED gold label, on those pairs alone whose current prediction already
    contradicts gold; 0 elsewhere. margin (n,) in logits; gold (n,) is 1.0 where chosen is truly preferred, else 0.0.
    Source: Yang et al. (2024), explicit conflict.
    """
    gold = gold.to(margin.dtype)
    contradicts = (margin > 0) != (gold > 0.5)
    return alpha * contradicts * reward_loss(margin, 1 - gold)


def dpo_loss(margin: Tensor, reference_margin: Tensor, beta: float = 0.1) -> Tensor:
    """Direct preference optimization: -log sigmoid(beta * (margin - reference_margin)), (n,) nats.

    margin (n,) is log p(chosen) - log p(rejected) of the policy, in nats, summed over response tokens; reference_margin
    the same of the reference, to which `beta` holds the policy. log 2 where both agree.
    Source: Rafailov et al. (2023), equation 7.
    """
    return -F.logsigmoid(beta * (margin - reference_margin))


def simpo_loss(margin: Tensor, beta: float = 2.0, gamma: float = 1.0) -> Tensor:
    """Simple preference optimization: -log sigmoid(beta * margin - gamma), (n,) nats, without a reference.

    margin (n,) is log p(chosen) - log p(rejected) of the policy, in nats, each a MEAN over its tokens. `beta` scales
    the implicit reward, `gamma` is its target margin. (Other code names the ratio gamma / beta instead.)
    Source: Meng et al. (2024), equation 6.
    """
    return -F.logsigmoid(beta * margin - gamma)


def response_logps(logits: Tensor, input_ids: Tensor, response_mask: Tensor, average: bool = False) -> Tensor:
    """The log-probability (n,) of each response given its prompt, in nats, summed (DPO) or mean per token (SimPO).

    logits (n, length, vocabulary): position t predicts token t + 1 of input_ids (n, length). response_mask (n, length)
    is 1 at the response's tokens; a text's first token is not predicted and never counts.
    Source: Rafailov et al. (2023); Meng et al. (2024) for the mean.
    """
    counted = response_mask[:, 1:].to(logits.dtype)
    chances = F.log_softmax(logits[:, :-1], dim=-1)
    each = chances.gather(2, input_ids[:, 1:, None]).squeeze(2) * counted
    return each.sum(1) / counted.sum(1) if average else each.sum(1)


def next_token_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of each next token: logits (n, vocabulary), targets (n,); returns (n,) nats."""
    return F.cross_entropy(logits.float(), targets, reduction="none")


def confidence_loss(margin: Tensor, target: Tensor, weight: float) -> Tensor:
    """The auxiliary confidence loss: (1 - weight) * CE(margin, label) + weight * CE(margin, the model's own verdict).

    The verdict is 1 where the margin is above 0, 0 below, 1/2 at 0, and has no gradient. Burns et al. choose its
    threshold so that it is as often 1 as the labels are. Here `chosen` is the truly preferred response of EVERY
    pair, so that such a threshold would tell the model what is gold: only 0 treats both responses alike.
    Arguments and result as in `reward_loss`. Source: Burns et al. (2023), auxiliary confidence loss.
    """
    verdict = torch.heaviside(margin.detach(), margin.new_tensor(0.5))
    return (1 - weight) * reward_loss(margin, target) + weight * reward_loss(margin, verdict)


RISE = 0.2  # share of the steps over which the weight of the confidence loss rises (Burns et al., 2023)


def confidence_weight(highest: float, done: float) -> float:
    """The weight of the model's own verdict: from 0 linearly to `highest` at RISE of the steps, then constant."""
    return highest * min(1.0, done / RISE)


LOG_ZERO = -4.0  # what log 0 counts in the reverse cross-entropy: the A of Wang et al. (2019)


def reverse_loss(margin: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy with its roles turned round: -(P log y + (1 - P) log(1 - y)), P = sigmoid(margin).

    The label y is held between exp(LOG_ZERO) and 1 - exp(LOG_ZERO), so that its logarithms are finite. The loss is
    linear in P: it pulls towards what the label prefers, by the label's log-odds times P (1 - P); where y is 1/2 it is
    log 2 for every margin. Arguments and result as in `reward_loss`.
    Source: Yao et al. (2025), reverse cross-entropy; Wang et al. (2019) for the bound.
    """
    least = math.exp(LOG_ZERO)
    label = target.to(margin.dtype).clamp(least, 1 - least)
    p = torch.sigmoid(margin)
    return -(p * label.log() + (1 - p) * (1 - label).log())


@dataclass
class Clock:
    """How much of its steps a run has done, from 0 to 1."""

    done: float = 0.0


def label_loss(kind: str, highest: float | None, clock: Clock) -> Callable[[Tensor, Tensor], Tensor]:
    """The loss of margins and labels, (n,) each; `highest` is the weight of the confidence loss."""
    if kind == "confidence":
        return lambda margin, label: confidence_loss(margin, label, confidence_weight(highest, clock.done))
    return {"cross_entropy": reward_loss, "reverse": reverse_loss}[kind]
