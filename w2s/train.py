"""What a run minimizes, and the one loop that does it: weak models, ceilings, students, the ladder's pretraining."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from w2s.batches import PairTexts
from w2s.losses import Clock, dpo_loss, explicit_conflict_loss, label_loss, reward_loss, simpo_loss
from w2s.models import autocast, fast_products, pair_margins, text_logps
from w2s.spec import RunSpec

Report = Callable[[int, float], None]
Objective = Callable[[nn.Module, Any], Tensor]


class NotFinite(FloatingPointError):
    """A loss that is infinite or no number: at which `step`, with the row numbers of that step's pairs."""

    def __init__(self, loss: float, step: int, rows: list[int]):
        super().__init__(f"the loss is {loss} at step {step}; lower learning_rate")
        self.step, self.rows = step, rows

    def __reduce__(self):
        return FloatingPointError, (str(self),)  # which crosses processes


@dataclass(frozen=True)
class Schedule:
    """Adam's settings: peak rate, share of steps to warm up over, largest norm of a gradient, cosine decay or none."""

    learning_rate: float
    warmup: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    clip: float | None = None
    decay: bool = True

    def factor(self, step: int, total: int) -> float:
        """The share of the peak learning rate at a step, from 0 to 1."""
        rise = min(1.0, (step + 1) / max(1.0, self.warmup * total))
        return rise * (0.5 * (1 + math.cos(math.pi * step / total)) if self.decay else 1.0)


@fast_products()
def fit(
    model: nn.Module,
    steps: Iterable[tuple[int, Iterable[Any]]],
    objective: Objective,
    schedule: Schedule,
    total: int,
    dtype: torch.dtype = torch.float32,
    report: Report = lambda step, loss: None,
) -> None:
    """Train `model` in place.

    `steps` gives for each of `total` optimizer steps its number of units n (pairs, or tokens) and its batches;
    `objective` the loss of each unit of a batch, (units,). The gradient of a step is that of the sum over its units
    divided by n, however they are cut into batches. `dtype`: of the forward pass; `report` gets each step's number,
    from 1, and its mean loss. Raises NotFinite, with the weights as before that step.
    """
    model.train()
    device = next(model.parameters()).device
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=schedule.learning_rate, betas=schedule.betas, fused=True)
    for step, (n, batches) in enumerate(steps):
        for group in optimizer.param_groups:
            group["lr"] = schedule.learning_rate * schedule.factor(step, total)
        optimizer.zero_grad()
        total_loss, rows = torch.zeros((), device=device), []
        for batch in batches:
            with autocast(device, dtype):
                part = objective(model, batch.to(device)).sum() / n
            part.backward()
            total_loss += part.detach()
            rows.extend(getattr(batch, "index", ()))
        loss = total_loss.item()  # once a step: on a GPU it waits for all that was started
        if not math.isfinite(loss):
            raise NotFinite(loss, step + 1, [int(row) for row in rows])
        if schedule.clip is not None:
            nn.utils.clip_grad_norm_(trained, schedule.clip)
        optimizer.step()
        report(step + 1, loss)
    model.eval()


def training_texts(spec: RunSpec, pairs: pd.DataFrame, tokenizer) -> PairTexts:
    """Both texts of each pair; for a warm start the response alone that the label prefers."""
    if spec.method == "sft":
        preferred = pairs["chosen"].where(pairs["label"] > 0.5, pairs["rejected"])
        return PairTexts(pairs.assign(chosen=preferred), tokenizer, spec.max_length, end=True, sides=("chosen",))
    return PairTexts(pairs, tokenizer, spec.max_length, end=spec.method != "reward")


def training_objective(spec: RunSpec, pairs: pd.DataFrame, device, clock=None, reference=None) -> Objective:
    """The loss of each pair of a batch, by the run's method, conflict and remedy.

    The caller advances the `clock` of losses that change with time. `reference`: margins (pairs,) of the warm start
    in nats, for dpo.
    """
    if spec.method == "reward":
        weak_loss = label_loss(spec.label_loss, spec.confidence_weight, clock or Clock())
        return reward_objective(pairs, spec.conflict, spec.alpha, device, weak_loss)
    if spec.method == "sft":
        return lambda model, batch: -text_logps(model, batch, average=True)
    return preference_objective(spec, pairs, reference, device)


def reward_objective(
    pairs: pd.DataFrame, conflict: str, alpha: float, device: torch.device, weak_loss: Callable = reward_loss
) -> Objective:
    """The reward loss of each pair of a batch, times the column weight; and the explicit conflict's term, unweighted.

    `weak_loss` replaces it on the pairs of the target dimension, whose labels a teacher may have given; helpful
    pairs (target False) keep it.
    """
    label, weight, target = (_column(pairs, name, device) for name in ("label", "weight", "target"))

    def objective(model, batch):
        margin, given = pair_margins(model, batch), label[batch.index]
        loss = reward_loss(margin, given)
        if weak_loss is not reward_loss:
            loss = torch.where(target[batch.index] > 0, weak_loss(margin, given), loss)
        loss = weight[batch.index] * loss
        if conflict == "explicit":  # chosen is the truly preferred one in every pair table
            loss = loss + explicit_conflict_loss(margin, torch.ones_like(margin), alpha)
        return loss

    return objective


def preference_objective(spec: RunSpec, pairs: pd.DataFrame, reference: np.ndarray, device: torch.device) -> Objective:
    """The DPO or SimPO loss of each pair of a batch, turned round where the label says so, times the column weight.

    The explicit conflict adds alpha times the loss of the REVERSED gold pair, where the policy's
    log-probabilities contradict gold at present.
    """
    weight = _column(pairs, "weight", device)
    sign = torch.tensor(np.where(pairs["label"] > 0.5, 1.0, -1.0), dtype=torch.float32, device=device)
    reference = torch.tensor(reference, dtype=torch.float32, device=device)

    def loss_of(margin, held):
        return dpo_loss(margin, held, spec.beta) if spec.method == "dpo" else simpo_loss(margin, spec.beta, spec.gamma)

    def objective(model, batch):
        chosen, rejected = text_logps(model, batch, average=spec.method == "simpo").chunk(2)
        margin, held, turned = chosen - rejected, reference[batch.index], sign[batch.index]
        loss = weight[batch.index] * loss_of(turned * margin, turned * held)
        if spec.conflict == "explicit":
            loss = loss + spec.alpha * (margin <= 0) * loss_of(-margin, -held)
        return loss

    return objective


def _column(pairs: pd.DataFrame, name: str, device: torch.device) -> Tensor:
    """A column as float32 (pairs,); ones where the table has none, such as weights."""
    values = pairs[name].to_numpy(dtype=np.float32) if name in pairs else np.ones(len(pairs), dtype=np.float32)
    return torch.tensor(values, device=device)


def check_steps(total: int, checks: int) -> list[int]:
    """At which of `total` steps (from 1) to look, evenly spaced and the last among them; fewer steps give fewer."""
    return sorted({-(-total * k // checks) for k in range(1, checks + 1)})


class BestWeights:
    """Early stopping: keeps a copy of a model's trained weights at the first step where `measure` is highest."""

    def __init__(self, model: nn.Module, measure: Callable[[], float], steps: list[int]):
        self.model, self.measure, self.steps = model, measure, set(steps)
        self.names = {name for name, p in model.named_parameters() if p.requires_grad}
        self.best, self.step, self.weights = -np.inf, 0, {}

    def look(self, step: int) -> None:
        """Measure the model if it is time to (which may leave it in eval mode), and keep it if it is better."""
        if step not in self.steps:
            return
        value = self.measure()
        self.model.train()
        if value > self.best:
            self.best, self.step = value, step
            state = self.model.state_dict()  # which a sharded model hands out as shards, whatever it gathered before
            self.weights = {name: state[name].detach().clone() for name in self.names}

    def restore(self) -> None:
        """Put the best weights back into the model."""
        self.model.load_state_dict(self.weights, strict=False)
