"""A plain loop as small research code has it, written for comparison: one pair at a time, nothing saved.

Two forwards a pair, log-softmax over the vocabulary at every position, the reference model run in every step,
gradients accumulated over the step's pairs; evaluation in padded batches, in the order of the table.
"""

from __future__ import annotations

import copy

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from w2s.batches import encode, pad
from w2s.losses import dpo_loss, response_logps, reward_loss, simpo_loss
from w2s.models import autocast

EVALUATED = 32  # pairs in one batch of the evaluation

Text = tuple[Tensor, Tensor, Tensor]  # ids, attention mask and response mask, each (rows, length)


def texts_of(
    pairs: pd.DataFrame, tokenizer, max_length: int, side: str, end: bool, rows: int, device: torch.device
) -> list[Text]:
    """The texts of one side, `rows` at a time, padded to the longest of them."""
    ids, starts = encode(tokenizer, pairs["prompt"], pairs[side], max_length, end)
    made = []
    for begin in range(0, len(ids), rows):
        padded, mask = pad(ids[begin : begin + rows])
        first = torch.tensor(starts[begin : begin + rows])
        response = mask * (torch.arange(padded.shape[1])[None] >= first[:, None])
        made.append((padded.to(device), mask.to(device), response.to(device)))
    return made


def value(model, text: Text, method: str) -> Tensor:
    """What a method compares: the reward, or the log-probability of the response (its mean per token for SimPO, SFT).

    (rows,)
    """
    ids, mask, response = text
    if method == "reward":
        return model(ids, mask)
    return response_logps(model(input_ids=ids, attention_mask=mask).logits, ids, response, method in ("simpo", "sft"))


def loss_of(method: str, model, reference, chosen: Text, rejected: Text) -> Tensor:
    """The loss of one pair."""
    if method == "sft":
        return -value(model, chosen, method)
    margin = value(model, chosen, method) - value(model, rejected, method)
    if method == "reward":
        return reward_loss(margin, torch.ones_like(margin))
    if method == "simpo":
        return simpo_loss(margin)
    with torch.no_grad():
        held = value(reference, chosen, method) - value(reference, rejected, method)
    return dpo_loss(margin, held)


def train(
    model,
    pairs: pd.DataFrame,
    tokenizer,
    method: str,
    max_length: int,
    batch_pairs: int,
    learning_rate: float,
    dtype: torch.dtype = torch.float32,
) -> float:
    """One pass over the pairs in their order; returns the mean loss of the last step."""
    model.train()
    reference = copy.deepcopy(model).eval() if method == "dpo" else None
    optimizer, device = torch.optim.Adam(model.parameters(), lr=learning_rate), next(model.parameters()).device
    chosen, rejected = (
        texts_of(pairs, tokenizer, max_length, side, method != "reward", 1, device) for side in ("chosen", "rejected")
    )
    total = 0.0
    for i, (one, other) in enumerate(zip(chosen, rejected, strict=True)):
        if i % batch_pairs == 0:
            optimizer.zero_grad()
            total, n = 0.0, min(batch_pairs, len(pairs) - i)
        with autocast(device, dtype):
            loss = loss_of(method, model, reference, one, other).sum() / n
        loss.backward()
        total += loss.item()
        if (i + 1) % batch_pairs == 0 or i + 1 == len(pairs):
            optimizer.step()
    return total


@torch.no_grad()
def score(
    model, pairs: pd.DataFrame, tokenizer, method: str, max_length: int, dtype: torch.dtype = torch.float32
) -> np.ndarray:
    """Margins (n,) of a pair table; log-probabilities summed, but for SimPO's means."""
    model.eval()
    compared, device = "dpo" if method == "sft" else method, next(model.parameters()).device
    sides = []
    for side in ("chosen", "rejected"):
        texts = texts_of(pairs, tokenizer, max_length, side, method != "reward", EVALUATED, device)
        with autocast(device, dtype):
            sides.append(torch.cat([value(model, text, compared).float() for text in texts]))
    return (sides[0] - sides[1]).cpu().numpy()
