"""What trained models think of pairs: margins by pair id, and what turns a margin into a probability.

A run's table has `margin`; runs of dpo and simpo also have what it was made of: chosen_logp and
rejected_logp (nats, summed), chosen_tokens and rejected_tokens, and for dpo reference_margin.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd
import torch
from scipy.optimize import minimize_scalar
from scipy.special import expit

from w2s.batches import Batch, PairTexts
from w2s.models import autocast, fast_products, pair_margins, text_logps


@fast_products()
@torch.no_grad()
def predict(model, pairs: pd.DataFrame, tokenizer, max_length: int, tokens: int, dtype=torch.float32) -> pd.DataFrame:
    """The predictions table of a reward model; `tokens` in one forward pass (padded) change speed, not scores."""
    texts = PairTexts(pairs, tokenizer, max_length)
    margin = np.empty(len(pairs), dtype=np.float32)
    for batch in _blocks(model, texts, tokens):
        with autocast(batch.input_ids.device, dtype):
            margin[batch.index] = pair_margins(model, batch).float().cpu().numpy()
    return predictions(pairs["id"], margin)


@fast_products()
@torch.no_grad()
def predict_logps(model, pairs: pd.DataFrame, tokenizer, max_length: int, tokens: int, dtype=torch.float32):
    """A language model's table of pairs: id, and of each side its logp (nats, summed) and tokens."""
    texts = PairTexts(pairs, tokenizer, max_length, end=True)
    logp, count = np.empty((2, len(pairs)), dtype=np.float32), np.empty((2, len(pairs)), dtype=np.int32)
    for batch in _blocks(model, texts, tokens):
        with autocast(batch.input_ids.device, dtype):
            logp[:, batch.index] = text_logps(model, batch).float().cpu().numpy().reshape(2, -1)
        count[:, batch.index] = batch.response_mask[:, 1:].sum(1).cpu().numpy().reshape(2, -1)
    chosen = {"chosen_logp": logp[0], "chosen_tokens": count[0]}
    rejected = {"rejected_logp": logp[1], "rejected_tokens": count[1]}
    return pd.DataFrame({"id": list(pairs["id"])} | chosen | rejected)


def _blocks(model, texts: PairTexts, tokens: int) -> Iterator[Batch]:
    """All pairs, on the model's device."""
    device = next(model.eval().parameters()).device
    return (batch.to(device) for batch in texts.batches(np.arange(len(texts)), tokens))


def predictions(ids, margin: np.ndarray) -> pd.DataFrame:
    """The predictions table from margins (n,): id, margin, probability (of the preferred response), correct."""
    table = pd.DataFrame({"id": list(ids), "margin": margin})
    return table.assign(probability=sigmoid(margin), correct=np.asarray(margin) > 0)


PAPER_SCALE = {"reward": 1.0, "dpo": 1 / 50, "simpo": 1.0}  # the 50 is the authors' constant


def margins_of(table: pd.DataFrame, method: str, against_reference: bool = False) -> np.ndarray:
    """A run's margins (n,): logits for reward, nats for dpo (summed) and simpo (mean per token).

    `against_reference` (dpo alone) subtracts the reference's margin: without it, a model that learned nothing prefers
    the shorter response, whose fewer tokens sum to more. A baseline, which has no log-probabilities, keeps its margin.
    """
    if method == "reward":
        return table["margin"].to_numpy()
    chosen, rejected = table["chosen_logp"], table["rejected_logp"]
    if method == "simpo":
        chosen, rejected = chosen / table["chosen_tokens"], rejected / table["rejected_tokens"]
    margin = chosen - rejected - (table["reference_margin"] if against_reference else 0)
    return (margin.where(chosen.notna(), table["margin"]) if "margin" in table else margin).to_numpy()


def sigmoid(margin) -> np.ndarray:
    """P from a margin in logits, (n,)."""
    return expit(np.asarray(margin, dtype=np.float64))


def inverse_temperature(margin) -> float:
    """The scale s >= 0 that makes sigmoid(s * margin) of gold pairs most likely. Source: Guo et al. (2017)."""
    margin = np.asarray(margin, dtype=np.float64)
    size = np.abs(margin).mean() or 1.0

    def loss(log_scale: float) -> float:
        return np.logaddexp(0, -np.exp(log_scale) / size * margin).mean()

    return float(np.exp(minimize_scalar(loss, bounds=(-12, 12), method="bounded").x) / size)


def with_probability(table: pd.DataFrame, confidence: str, method: str, beta: float | None = None) -> pd.DataFrame:
    """The predictions of one run or of many (column run), with margin, probability and correct by `confidence`.

    A margin is multiplied, before the sigmoid, with PAPER_SCALE (paper), beta (implicit_reward), or the inverse
    temperature of the run's own gold validation pairs (calibrated); probability_by says with which. For dpo, the latter
    two are against the reference.
    """
    out = table.assign(margin=margins_of(table, method, method == "dpo" and confidence != "paper"))
    runs = out.get("run", pd.Series("", index=out.index))
    validation, fixed = out["split"] == "validation", PAPER_SCALE[method] if confidence == "paper" else beta
    for run in runs.unique():
        of_run = runs == run
        by = inverse_temperature(out.loc[of_run & validation, "margin"]) if confidence == "calibrated" else fixed
        out.loc[of_run, "probability"] = sigmoid(by * out.loc[of_run, "margin"])
    return out.assign(correct=out["margin"] > 0, probability_by=confidence)
