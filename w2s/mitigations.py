"""Remedies inside a training run: weights of pairs, losses of labels, the best weights by gold pairs.

Which runs a study compares, and what each remedy costs, is in `remedies`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from torch import Tensor, nn

from w2s.losses import confidence_loss, reverse_loss, reward_loss

LABEL_LOSSES = ("cross_entropy", "confidence", "reverse")
RISE = 0.2  # share of the steps over which the weight of the confidence loss rises (Burns et al., 2023)


@dataclass
class Clock:
    """How much of its steps a run has done, from 0 to 1."""

    done: float = 0.0


def confidence_weight(highest: float, done: float) -> float:
    """The weight of the model's own verdict: from 0 linearly to `highest` at RISE of the steps, then constant."""
    return highest * min(1.0, done / RISE)


def label_loss(kind: str, highest: float | None, clock: Clock) -> Callable[[Tensor, Tensor], Tensor]:
    """The loss of margins and labels, (n,) each, by one of LABEL_LOSSES; `highest` is the confidence loss's weight."""
    if kind == "confidence":
        return lambda margin, label: confidence_loss(margin, label, confidence_weight(highest, clock.done))
    return {"cross_entropy": reward_loss, "reverse": reverse_loss}[kind]


def reliability(label) -> np.ndarray:
    """Weights (n,) of weak-labelled pairs: |2 y - 1| divided by its mean, so that the mean weight is 1. No gold.

    Raises:
        ValueError: every label is 1/2, so that no pair can be trained on.
    """
    size = np.abs(2 * np.asarray(label, dtype=float) - 1)
    if not size.any():
        raise ValueError("weighting: every weak label is 1/2, so that all weights are 0; take another weak model")
    return size / size.mean()


def even_weights(label) -> np.ndarray:
    """The control of `reliability`: weights (n,), all equal, that pull as hard in total at margin 0.

    There a label pulls by w |2 y - 1| / 2, so that weights of mean 1 in favour of sure labels pull harder than none.
    """
    size = np.abs(2 * np.asarray(label, dtype=float) - 1)
    return np.full(len(size), (reliability(label) * size).mean() / size.mean())


def check_steps(total: int, checks: int) -> list[int]:
    """At which of `total` steps (from 1) to look, evenly spaced and the last among them; fewer steps give fewer."""
    return sorted({-(-total * k // checks) for k in range(1, checks + 1)})


class BestWeights:
    """Early stopping: keeps a copy of a model's trained weights at the step where `measure` is highest.

    Of equal steps the earliest counts. `measure` may leave the model in eval mode.
    """

    def __init__(self, model: nn.Module, measure: Callable[[], float], steps: list[int]):
        self.model, self.measure, self.steps = model, measure, set(steps)
        self.names = {name for name, p in model.named_parameters() if p.requires_grad}
        self.best, self.step, self.weights = -np.inf, 0, {}

    def look(self, step: int) -> None:
        """Measure the model if it is time to, and keep it if it is better than before."""
        if step not in self.steps:
            return
        value = self.measure()
        self.model.train()
        if value > self.best:
            self.best, self.step = value, step
            state = self.model.state_dict()
            self.weights = {name: state[name].detach().clone() for name in self.names}

    def restore(self) -> None:
        """Put the best weights back into the model."""
        self.model.load_state_dict(self.weights, strict=False)
