"""Margins and log-probabilities of trained models, by pair id."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from w2s.batches import Batch, PairTexts
from w2s.confidence import sigmoid
from w2s.losses import next_token_loss
from w2s.models import RewardModel
from w2s.packed import last_states
from w2s.train import autocast

AT_ONCE = {"cpu": 256, "cuda": 1024, "mps": 1024}  # tokens whose logits are made at once: more of them take memory


def pair_margins(model: RewardModel, batch: Batch) -> Tensor:
    """r(chosen) - r(rejected) of a batch of pairs: (n,) logits; one forward for both."""
    chosen, rejected = model(batch.input_ids, batch.attention_mask, batch.layout).chunk(2)
    return chosen - rejected


def text_logps(model, batch: Batch, average: bool = False) -> Tensor:
    """The log-probability of each text's response: (rows,) nats, summed or mean per token.

    Equals `losses.response_logps` on the full logits; here the head sees the response tokens alone.
    """
    counted = batch.response_mask[:, 1:].bool()
    rows, before = counted.nonzero(as_tuple=True)
    targets = batch.input_ids[:, 1:][counted]
    states = last_states(model.base_model, batch.input_ids, batch.attention_mask, batch.layout, rows, before)
    head, blocks = model.get_output_embeddings(), (x.split(AT_ONCE[states.device.type]) for x in (states, targets))
    each = -torch.cat([next_token_loss(head(block), following) for block, following in zip(*blocks, strict=True)])
    total = torch.zeros(len(counted), dtype=each.dtype, device=each.device).index_add(0, rows, each)
    return total / counted.sum(1) if average else total


@torch.no_grad()
def predict(
    model: RewardModel, pairs: pd.DataFrame, tokenizer, max_length: int, tokens: int, dtype: torch.dtype = torch.float32
) -> pd.DataFrame:
    """Score a pair table with a reward model: the predictions table.

    `tokens` is the padded token budget of one forward pass; it changes speed, not scores.
    """
    texts = PairTexts(pairs, tokenizer, max_length)
    margin = np.empty(len(pairs), dtype=np.float32)
    for batch in _blocks(model, texts, tokens):
        with autocast(batch.input_ids.device, dtype):
            margin[batch.index] = pair_margins(model, batch).float().cpu().numpy()
    return predictions(pairs["id"], margin)


@torch.no_grad()
def predict_logps(
    model, pairs: pd.DataFrame, tokenizer, max_length: int, tokens: int, dtype: torch.dtype = torch.float32
) -> pd.DataFrame:
    """Score a pair table with a language model: id, and of each side its logp (nats, summed) and tokens."""
    texts = PairTexts(pairs, tokenizer, max_length, end=True)
    logp, count = np.empty((2, len(pairs)), dtype=np.float32), np.empty((2, len(pairs)), dtype=np.int32)
    for batch in _blocks(model, texts, tokens):
        with autocast(batch.input_ids.device, dtype):
            logp[:, batch.index] = text_logps(model, batch).float().cpu().numpy().reshape(2, -1)
        count[:, batch.index] = batch.response_mask[:, 1:].sum(1).cpu().numpy().reshape(2, -1)
    table = pd.DataFrame({"id": list(pairs["id"])})
    for side, values, tokens_of in zip(("chosen", "rejected"), logp, count, strict=True):
        table[f"{side}_logp"], table[f"{side}_tokens"] = values, tokens_of
    return table


def _blocks(model, texts: PairTexts, tokens: int) -> Iterator[Batch]:
    """All pairs, on the model's device."""
    model.eval()
    device = next(model.parameters()).device
    return (batch.to(device) for batch in texts.batches(np.arange(len(texts)), tokens))


def predictions(ids, margin: np.ndarray) -> pd.DataFrame:
    """The predictions table from margins (n,): id, margin, probability (of the preferred response), correct."""
    return pd.DataFrame(
        {"id": list(ids), "margin": margin, "probability": sigmoid(margin), "correct": np.asarray(margin) > 0}
    )
