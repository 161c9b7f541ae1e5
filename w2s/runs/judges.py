"""What language models know of pocket pairs before any fine-tuning, and what notebook 03 keeps of a study's pairs."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pandas as pd
import torch

from w2s import models
from w2s.batches import encode, pad
from w2s.predict import predictions
from w2s.study import short_names
from w2s.world import OUCH, THANKS, World

CONTEXT = 512


@models.fast_products()
@torch.no_grad()
def judge(name: str, pairs: pd.DataFrame) -> pd.DataFrame:
    """What the language model itself, before any fine-tuning, thinks of pocket pairs: the predictions table.

    Margin (nats): log-odds of "thanks" against "ouch" as the next word after `chosen`, less those after `rejected`.
    """
    tokenizer, model = models.load_tokenizer(name), models.load_language_model(name).eval()
    (thanks,), (ouch,) = tokenizer([THANKS, OUCH])["input_ids"]
    odds = {}
    for side in ("chosen", "rejected"):
        rows, _ = encode(tokenizer, pairs["prompt"].tolist(), pairs[side].tolist(), CONTEXT)
        ids, mask = pad(rows)
        hidden = model.base_model(input_ids=ids, attention_mask=mask).last_hidden_state
        logits = model.get_output_embeddings()(hidden[torch.arange(len(ids)), mask.sum(1) - 1])
        odds[side] = logits[:, thanks] - logits[:, ouch]
    return predictions(pairs["id"], (odds["chosen"] - odds["rejected"]).numpy())


def judge_all(names: Iterable[str], pairs: pd.DataFrame) -> pd.DataFrame:
    """`judge` of each model whose tokenizer has single tokens for both reactions, with its short name as `model`."""
    able = [m for m in names if set(map(len, models.load_tokenizer(m)([THANKS, OUCH])["input_ids"])) == {1}]
    short = short_names(names)
    tables = [judge(name, pairs).assign(model=short[name]) for name in able]
    none = pd.DataFrame(columns=["id", "margin", "probability", "correct", "model"])
    return pd.concat(tables, ignore_index=True) if tables else none


def judged_of_study(folder: Path, data: str, test: pd.DataFrame, target: str) -> tuple[pd.DataFrame | None, str]:
    """The table of `judge_all` for the models and pairs of `test` (predictions of a study), or None and why."""
    if data != "pocket":
        return None, f"data = {data!r}: what a model knows before fine-tuning is known in the pocket world alone"
    path, names = folder / "tables" / "knowledge.parquet", test["model"].unique()  # notebook 03 writes it
    if path.exists():
        table = pd.read_parquet(path)
    elif all((models.LADDER / name / "config.json").is_file() for name in names):
        table = judge_all(names, World().pairs("test", test["id"].nunique(), target))
    else:
        return None, f"{path.name} is missing, and some of the models do not ship with the kit; run notebook 03 first"
    if table.empty:
        return None, "no model of the study has the pocket world's reactions as single tokens"
    if set(table["id"]) != set(test["id"]):
        return None, f"{path.name} holds other test pairs than the predictions; run notebook 03 again"
    return table, ""


def pair_texts(folder: Path, data: str, ids, target: str) -> tuple[pd.DataFrame | None, str]:
    """The test pairs with their texts, or None and why not; `ids` are those of the predictions."""
    path = folder / "tables" / "test_pairs.parquet"  # notebook 03 writes it
    if not path.exists() and data != "pocket":
        return None, f"{path.name} is not in the study's folder; run notebook 03 for the texts"
    pairs = pd.read_parquet(path) if path.exists() else World().pairs("test", len(set(ids)), target)
    if not set(ids) <= set(pairs["id"]):
        return None, f"{path.name} holds other pairs than the predictions; run notebook 03 again for the texts"
    return pairs, ""
