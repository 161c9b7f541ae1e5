"""What notebook 03 keeps of a study beside its predictions: the texts of test pairs, and what models knew of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from w2s.world import World
from w2s.zoo import judge_all, ladder


def judged_of_study(folder: Path, data: str, test: pd.DataFrame, target: str) -> tuple[pd.DataFrame | None, str]:
    """The table of `judge_all` for the models and pairs of `test` (predictions of a study), or None and why."""
    if data != "pocket":
        return None, f"data = {data!r}: what a model knows before fine-tuning is known in the pocket world alone"
    path, ids, names = folder / "tables" / "knowledge.parquet", np.sort(test["id"].unique()), test["model"].unique()
    if not path.exists() and not set(names) <= set(ladder()):
        return None, f"{path.name} is missing, and some of the models do not ship with the kit; run notebook 03 first"
    # Notebook 03 writes the file.
    table = pd.read_parquet(path) if path.exists() else judge_all(names, World().pairs("test", len(ids), target))
    if table.empty:
        return None, "no model of the study has the pocket world's reactions as single tokens"
    if not np.array_equal(np.sort(table["id"].unique()), ids):
        return None, f"{path.name} holds other test pairs than the predictions; run notebook 03 again"
    return table, ""


def pair_texts(folder: Path, data: str, ids, target: str) -> tuple[pd.DataFrame | None, str]:
    """The test pairs with their texts, or None and why not; `ids` are those of the predictions."""
    path, ids = folder / "tables" / "test_pairs.parquet", pd.unique(np.asarray(ids))
    if not path.exists() and data != "pocket":
        return None, f"{path.name} is not in the study's folder; run notebook 03 for the texts"
    # Notebook 03 writes the file.
    pairs = pd.read_parquet(path) if path.exists() else World().pairs("test", len(ids), target)
    if not np.isin(ids, pairs["id"]).all():
        return None, f"{path.name} holds other pairs than the predictions; run notebook 03 again for the texts"
    return pairs, ""
