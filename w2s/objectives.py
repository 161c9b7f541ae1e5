"""What a run minimizes: the loss of each pair of a batch, by its method, conflict and remedy."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from w2s import mitigations
from w2s.batches import PairTexts
from w2s.losses import dpo_loss, explicit_conflict_loss, reward_loss, simpo_loss
from w2s.mitigations import Clock
from w2s.predict import pair_margins, text_logps
from w2s.runspec import RunSpec
from w2s.store import load_predictions


def training_texts(spec: RunSpec, pairs: pd.DataFrame, tokenizer) -> PairTexts:
    """Both texts of each pair; for a warm start the response alone that the label prefers."""
    if spec.method == "sft":
        preferred = pairs["chosen"].where(pairs["label"] > 0.5, pairs["rejected"])
        return PairTexts(pairs.assign(chosen=preferred), tokenizer, spec.max_length, end=True, sides=("chosen",))
    return PairTexts(pairs, tokenizer, spec.max_length, end=spec.method != "reward")


def training_objective(spec: RunSpec, pairs: pd.DataFrame, root: Path, device: torch.device, clock=None):
    """The loss of each pair of a batch, by the run's method, conflict and remedy; the caller advances `clock`."""
    if spec.method == "reward":
        weak_loss = mitigations.label_loss(spec.label_loss, spec.confidence_weight, clock or Clock())
        return reward_objective(pairs, spec.conflict, spec.alpha, device, weak_loss)
    if spec.method == "sft":
        return lambda model, batch: -text_logps(model, batch, average=True)
    return preference_objective(spec, pairs, reference_margins(spec, root, pairs["id"]), device)


def _column(pairs: pd.DataFrame, name: str, device: torch.device) -> torch.Tensor:
    """A column as float32 (pairs,); ones where the table has none, such as weights."""
    values = pairs[name].to_numpy(dtype=np.float32) if name in pairs else np.ones(len(pairs), dtype=np.float32)
    return torch.tensor(values, device=device)


def reward_objective(
    pairs: pd.DataFrame, conflict: str, alpha: float, device: torch.device, weak_loss: Callable = reward_loss
):
    """The reward loss of each pair of a batch, and the explicit conflict's term.

    `weak_loss` replaces it on the pairs of the target dimension, whose labels a teacher may have given; helpful
    pairs (target False) keep it. The column weight (1 where there is none) multiplies the label's loss alone.
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


def preference_objective(spec: RunSpec, pairs: pd.DataFrame, reference: np.ndarray, device: torch.device):
    """The DPO or SimPO loss of each pair of a batch, turned round where the label says so.

    The explicit conflict adds alpha times the loss of the REVERSED gold pair, where the policy's
    log-probabilities contradict gold at present. `reference`: margins (pairs,) in nats, for dpo.
    The column weight (1 where there is none) multiplies the label's loss alone.
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


def reference_margins(spec: RunSpec, root: Path, ids: pd.Series) -> np.ndarray:
    """log p(chosen) - log p(rejected) of the warm start, (n,) nats, from its table; zeros for simpo."""
    if spec.method != "dpo":
        return np.zeros(len(ids), dtype=np.float32)
    table = load_predictions(spec.start, root).set_index("id")
    return (table["chosen_logp"] - table["rejected_logp"]).loc[ids].to_numpy()
