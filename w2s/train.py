"""The one training loop: weak models, ceilings, students, and the ladder's pretraining."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

Report = Callable[[int, float], None]


@dataclass(frozen=True)
class Schedule:
    """Adam's settings: peak learning rate, share of steps to warm up over, cosine decay to zero or none.

    `clip` is the largest norm of a step's gradient; the paper's runs do not clip.
    """

    learning_rate: float
    warmup: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    clip: float | None = None
    decay: bool = True

    def factor(self, step: int, total: int) -> float:
        """The share of the peak learning rate at a step, from 0 to 1."""
        rise = min(1.0, (step + 1) / max(1.0, self.warmup * total))
        return rise * (0.5 * (1 + math.cos(math.pi * step / total)) if self.decay else 1.0)


def autocast(device: torch.device, dtype: torch.dtype):
    """The forward pass in `dtype` where that is not float32; weights keep their own."""
    return torch.autocast(device.type, dtype, enabled=dtype != torch.float32)


def fit(
    model: nn.Module,
    steps: Iterable[tuple[int, Iterable[Any]]],
    objective: Callable[[nn.Module, Any], Tensor],
    schedule: Schedule,
    total: int,
    dtype: torch.dtype = torch.float32,
    report: Report = lambda step, loss: None,
) -> None:
    """Train `model` in place.

    Args:
        steps: one item an optimizer step: its number of units n (pairs, or tokens), and its batches.
        objective: gives the loss of each unit of a batch, (units,). The gradient of a step is
            that of the sum over its units divided by n, however they are cut into batches.
        total: the number of steps, for the schedule.
        dtype: of the forward pass (autocast); weights and optimizer keep their own.
        report: called after each step with its number (from 1) and its mean loss.

    Raises:
        FloatingPointError: the loss is not finite, with the step.
    """
    model.train()
    device = next(model.parameters()).device
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=schedule.learning_rate, betas=schedule.betas, fused=True)
    for step, (n, batches) in enumerate(steps):
        for group in optimizer.param_groups:
            group["lr"] = schedule.learning_rate * schedule.factor(step, total)
        optimizer.zero_grad()
        total_loss = torch.zeros((), device=device)
        for batch in batches:
            with autocast(device, dtype):
                part = objective(model, batch.to(device)).sum() / n
            part.backward()
            total_loss += part.detach()
        loss = total_loss.item()  # once a step: on a GPU it waits for all that was started
        if not math.isfinite(loss):
            raise FloatingPointError(f"the loss is {loss} at step {step + 1}; lower learning_rate")
        if schedule.clip is not None:
            nn.utils.clip_grad_norm_(trained, schedule.clip)
        optimizer.step()
        report(step + 1, loss)
    model.eval()
