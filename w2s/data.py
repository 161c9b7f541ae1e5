"""The pairs of a study, one table a split, and the pairs that a run trains on, with their labels.

The split `helpful` holds the pairs of the conflicting dimension; its name is that of the paper's
setting, and with `target: helpful` these pairs are harmless ones.
Nothing here depends on the seeds of a study: every repetition sees the same tables.
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from w2s.params import ParameterError, StudyParams, nearest
from w2s.sources.audit import DROPS, DataError, Origin
from w2s.sources.pairs import read, read_other
from w2s.world import SPLITS, World

__all__ = ["DataError", "StudyData", "audit_tokens", "load", "table_fingerprint", "training_pairs"]

SIDES = ("chosen", "rejected")
PAIR_COLUMNS = ["id", "prompt", *SIDES, "dimension"]


@dataclass(frozen=True, eq=False)
class StudyData:
    """The pair tables of a study, what the audit found, and where they come from."""

    gt: pd.DataFrame
    w2s: pd.DataFrame
    helpful: pd.DataFrame
    validation: pd.DataFrame
    test: pd.DataFrame
    audit: pd.DataFrame
    source: dict[str, Any]
    other: pd.DataFrame | None = None  # the pairs of `other_data`, which every run is scored on as well

    @cached_property
    def fingerprint(self) -> str:
        """sha256 over the ids and texts of all five tables; the same wherever the files lie."""
        parts = [table_fingerprint(getattr(self, split)) for split in SPLITS]
        return hashlib.sha256("".join(parts).encode()).hexdigest()

    @cached_property
    def other_fingerprint(self) -> str | None:
        """That of the pairs of `other_data`; None without them, so that runs have the names they had."""
        return None if self.other is None else table_fingerprint(self.other)


def table_fingerprint(table: pd.DataFrame) -> str:
    """sha256 over ids, texts and dimensions of a pair table, in the order of its rows."""
    return hashlib.sha256(json.dumps(table[PAIR_COLUMNS].to_numpy().tolist()).encode()).hexdigest()


def load(params: StudyParams) -> StudyData:
    """The tables that `params` asks for: the pocket world, HH or CAI, or a folder of pairs.

    HH and CAI come from the hub, or from `data_dir` (else the variable W2S_DATA_DIR) and then nothing is looked up
    online; their single-turn pairs are kept, as in the paper (Data). Your own folder keeps its longer dialogues.

    Raises:
        ParameterError: nothing readable at `data`, fewer pairs than an n_* asks for, or, with
            `offline`, a model or a dataset that has not been fetched.
        DataError: an unreadable file, a file missing, or a bad pair while bad_pairs is "error".
    """
    origins, tables, source = read(params) or _pocket(params)
    sizes = {split: len(tables[split]) for split in SPLITS}
    other = None
    if params.other_data == "helpful":
        other = World().pairs("test", params.n_test, params.conflicting)
        other["id"] = other["id"].str.replace("test", "other")
    elif params.other_data:
        other = read_other(params, set(pd.concat([tables[split].prompt for split in SPLITS])))
    return StudyData(**tables, audit=_audit(origins, tables), source=source | {"sizes": sizes}, other=other)


def _pocket(params: StudyParams) -> tuple[dict[str, Origin], dict[str, pd.DataFrame], dict[str, Any]]:
    world, origins, tables = World(), {}, {}
    for split in SPLITS:
        n = getattr(params, f"n_{split}")
        try:
            tables[split] = world.pairs(split, max(n, 1), params.target).head(n)
        except ValueError as error:
            raise ParameterError(f"n_{split} = {n}: {error}; lower n_{split}") from None
        origins[split] = Origin("pocket world", table_fingerprint(tables[split]), prompts=tables[split].prompt.tolist())
        origins[split].counts["rows_read"] = n
    source = {"data": "pocket", "read_from": "pocket world", "world": asdict(world), "target": params.target}
    return origins, tables, source


def _audit(origins: dict[str, Origin], tables: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """One row a split: what its source holds, what was dropped and why (the columns in DROPS), what is kept.

    duplicate_prompts: rows minus distinct prompts, over all rows whose prompt can be read. shared_<split>: distinct
    prompts of these rows that stand in both sources. carved: pairs taken over from (+) or given to (-) a split that
    is drawn from the same source, which is booked once, with gt where gt is among them. dropped_as_shared: pairs
    whose prompt stands in a split of higher priority. unused: usable pairs beyond the number asked for.
    Then kept = rows_read + carved - the sum of all columns in DROPS. Lengths are in characters.
    """
    distinct = {split: set(origins[split].prompts) for split in SPLITS}
    rows = []
    for split in SPLITS:
        origin, table = origins[split], tables[split]
        row = {"split": split, "source": origin.source, "rows_read": origin.counts["rows_read"]}
        row["duplicate_prompts"] = len(origin.prompts) - len(distinct[split])
        row |= {f"shared_{s}": len(distinct[split] & distinct[s]) if s != split else 0 for s in SPLITS}
        row |= {reason: origin.counts[reason] for reason in (*DROPS, "carved")}
        row |= {"kept": len(table), "duplicate_prompts_kept": len(table) - table.prompt.nunique()}
        row |= {f"mean_chars_{side}": table[side].str.len().mean() for side in SIDES}
        rows.append(row | {"sha256": origin.sha256})
    return pd.DataFrame(rows)


def audit_tokens(data: StudyData, tokenizer: Any, max_length: int) -> pd.DataFrame:
    """Lengths in tokens, one row a split.

    median_tokens, max_tokens: of prompt with response, both texts of each pair. truncated_share: share of pairs with
    a text over `max_length`, which loses its beginning. long_responses: pairs with a response that alone is over it.
    spelt_special: pairs that spell a special token of the tokenizer, such as <|endoftext|>, which is then read so.
    """
    rows = []
    for split in SPLITS:
        table = getattr(data, split)
        texts = np.stack([_lengths(tokenizer, table.prompt + table[side]) for side in SIDES])
        alone = np.stack([_lengths(tokenizer, table[side], special=False) for side in SIDES])
        row = {"split": split, "pairs": len(table), "median_tokens": pd.Series(texts.ravel()).median()}
        row["max_tokens"] = texts.max(initial=0)
        row["truncated_share"] = pd.Series((texts > max_length).any(axis=0)).mean()
        row["long_responses"] = (alone > max_length).any(axis=0).sum()
        whole = table.prompt + table.chosen + table.rejected
        row["spelt_special"] = sum(any(token in text for token in tokenizer.all_special_tokens) for text in whole)
        rows.append(row)
    return pd.DataFrame(rows)


def _lengths(tokenizer: Any, texts: pd.Series, special: bool = True) -> np.ndarray:
    if texts.empty:
        return np.zeros(0, dtype=int)
    # verbose=False: the warning about long texts is what this table reports.
    encoded = tokenizer(texts.tolist(), add_special_tokens=special, truncation=False, verbose=False)
    return np.array([len(ids) for ids in encoded["input_ids"]])


def training_pairs(
    data: StudyData,
    split: str,
    labels: pd.DataFrame | None = None,
    conflict: str = "none",
    kept: set[str] | None = None,
    n_helpful: int | None = None,
) -> pd.DataFrame:
    """The pairs that one run trains on: the columns of the split, and label and target.

    label: probability that `chosen` is preferred, 1.0 for gold; `labels` (id, weak_label) are joined by id, and may
    hold other ids besides. target (bool): True for the pairs of the target dimension. The implicit conflict adds all
    helpful pairs, or the first `n_helpful`, with gold labels; the explicit one is a term of the loss and adds none.
    `kept` are the ids that a filter leaves; helpful pairs are then cut to the same number. Not shuffled. Source: the
    paper, Reward modelling.

    Raises:
        ValueError: an unknown split or conflict, no helpful pairs, or labels that do not fit.
    """
    if split not in ("gt", "w2s", "validation"):
        raise ValueError(f"split {split!r}: choose one of gt, w2s, validation")
    if conflict not in ("none", "explicit", "implicit"):
        raise ValueError(f"conflict {conflict!r}: {nearest(conflict, ['none', 'explicit', 'implicit'])}")
    pairs = getattr(data, split)
    pairs = pairs.assign(label=1.0 if labels is None else _labels_for(pairs.id, labels, split), target=True)
    if kept is not None:
        pairs = pairs[pairs["id"].isin(kept)].reset_index(drop=True)
        if pairs.empty:
            raise ValueError(f"weak_filter: no pair of {split} is labelled with enough confidence; lower threshold")
    if conflict != "implicit":
        return pairs
    if data.helpful.empty:
        raise ValueError("conflict 'implicit': there are no helpful pairs; set n_helpful to 1 or more")
    helpful = data.helpful[:n_helpful] if kept is None else data.helpful[:n_helpful].head(len(pairs))
    return pd.concat([pairs, helpful.assign(label=1.0, target=False)], ignore_index=True)


def _labels_for(ids: pd.Series, labels: pd.DataFrame, split: str) -> np.ndarray:
    by_id = labels.set_index("id")["weak_label"]
    if by_id.index.has_duplicates:
        raise ValueError(f"labels: id {by_id.index[by_id.index.duplicated()][0]} occurs twice; keep one label a pair")
    values = ids.map(by_id)
    lacking = ids[values.isna()]
    if len(lacking):
        count = f"{len(lacking)} of {len(ids)} pairs of {split}"
        raise ValueError(f"labels: no weak_label for {count}, such as {lacking.iloc[0]}")
    if not values.between(0, 1).all():
        raise ValueError(f"labels: weak_label {values[~values.between(0, 1)].iloc[0]} is no probability (0 to 1)")
    return values.to_numpy(dtype=float)
