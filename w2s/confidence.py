"""What turns a margin into a probability, and so decides which pairs count as known.

A run's table has `margin`; runs of dpo and simpo also have what it was made of: chosen_logp and
rejected_logp (nats, summed), chosen_tokens and rejected_tokens, and for dpo reference_margin.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy.optimize import minimize_scalar

PAPER_SCALE = {"reward": 1.0, "dpo": 1 / 50, "simpo": 1.0}  # the 50 is the authors' constant


def margins(table: pd.DataFrame, method: str, against_reference: bool = False) -> np.ndarray:
    """A run's margins (n,): logits for reward, nats for dpo (summed) and simpo (mean per token).

    `against_reference` (dpo alone) subtracts the reference's margin: without it, a model that
    learned nothing prefers the shorter response, whose fewer tokens sum to more.
    """
    if method == "reward":
        return table["margin"].to_numpy()
    if method == "simpo":
        chosen, rejected = (table[f"{side}_logp"] / table[f"{side}_tokens"] for side in ("chosen", "rejected"))
        return (chosen - rejected).to_numpy()
    margin = table["chosen_logp"] - table["rejected_logp"]
    return (margin - table["reference_margin"] if against_reference else margin).to_numpy()


def sigmoid(margin) -> np.ndarray:
    """P from a margin in logits, (n,)."""
    return 1 / (1 + np.exp(-np.asarray(margin, dtype=np.float64)))


def inverse_temperature(margin) -> float:
    """The scale s >= 0 that makes sigmoid(s * margin) most likely, margins being those of gold pairs.

    Near 0 when the margins say nothing about what is preferred. Source: Guo et al. (2017).
    """
    margin = np.asarray(margin, dtype=np.float64)
    size = np.abs(margin).mean() or 1.0
    found = minimize_scalar(
        lambda log_scale: np.logaddexp(0, -np.exp(log_scale) / size * margin).mean(), bounds=(-12, 12), method="bounded"
    )
    return float(np.exp(found.x) / size)


def scale(confidence: str, method: str, beta: float | None, validation_margin) -> float:
    """What a margin is multiplied with before the sigmoid.

    paper: 1, and 1/50 for dpo. implicit_reward: beta, the scale inside the loss. calibrated: the
    inverse temperature of the run's own gold validation pairs.
    """
    if confidence == "paper":
        return PAPER_SCALE[method]
    return inverse_temperature(validation_margin) if confidence == "calibrated" else beta


def with_confidence(table: pd.DataFrame, confidence: str, method: str, beta: float | None = None) -> pd.DataFrame:
    """The predictions of one run or of many (column run), with margin, probability and correct by `confidence`.

    For dpo, paper takes the policy's margin alone, and the other two take it against the reference.
    """
    out = table.assign(margin=margins(table, method, method == "dpo" and confidence != "paper"))
    runs = out["run"] if "run" in out else pd.Series("", index=out.index)
    validation = out["split"] == "validation"
    for run in runs.unique():
        of_run = runs == run
        by = scale(confidence, method, beta, out.loc[of_run & validation, "margin"])
        out.loc[of_run, "probability"] = sigmoid(by * out.loc[of_run, "margin"])
    return out.assign(correct=out["margin"] > 0)
