"""The audit of the pairs: read the rows, judge every one, show what was found as one table.

A bad pair has one of the faults in FAULTS and counts under the first that applies, in that order.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import zlib
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet

from w2s.world import SPLITS, render

HUMAN, ASSISTANT = "\n\nHuman:", "\n\nAssistant:"

FAULTS = {
    "wrong_encoding": "not UTF-8 text",
    "malformed": "not a JSON object",
    "missing_keys": "needs chosen and rejected, with a key prompt or with '\\n\\nAssistant:' in both texts",
    "not_text": "prompt, chosen and rejected must be text",
    "prompt_mismatches": "the prompts of chosen and rejected differ",
    "empty_prompts": "the prompt is empty",
    "empty_responses": "a response is empty",
    "identical_responses": "chosen and rejected are the same response",
}
DROPS = (*FAULTS, "multi_turn", "identical_pairs", "dropped_as_shared", "unused")


class DataError(ValueError):
    """Pairs that cannot be used; its text is one line with the place and the remedy."""


class Pair(NamedTuple):
    """One row as text: the prompt of chosen, both responses, and the prompt of rejected."""

    prompt: str
    chosen: str
    rejected: str
    other_prompt: str


@dataclass(frozen=True)
class Source:
    """A file, or a part of a hub dataset: its rows, each with the place where it stands."""

    name: str
    sha256: str
    rows: list[tuple[str, bytes | Mapping]]


@dataclass
class Found:
    """What was found in the rows behind one split: counts, and the prompts as they stand there."""

    source: str
    sha256: str
    counts: Counter = field(default_factory=Counter)
    prompts: list[str] = field(default_factory=list)


def read_file(folder: Path, name: str) -> Source:
    """The rows of a file with their line numbers (row numbers for Parquet), from 1."""
    try:
        content = (folder / name).read_bytes()
        if name.lower().endswith(".parquet"):
            table = pa.parquet.read_table(pa.BufferReader(content)).to_pylist()
            rows = [(f"{name} row {i}", row) for i, row in enumerate(table, 1)]
        else:
            text = gzip.decompress(content) if name.lower().endswith(".gz") else content
            rows = [(f"{name} line {i}", line) for i, line in enumerate(text.split(b"\n"), 1) if line.strip()]
    except (OSError, EOFError, zlib.error, pa.ArrowException, UnicodeDecodeError) as error:
        raise DataError(f"{name}: cannot be read ({brief(error)}); replace the file") from None
    return Source(name, hashlib.sha256(content).hexdigest(), rows)


def brief(error: Exception) -> str:
    """An error of a library on one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]


def examine(
    rows: Iterable[tuple[str, Any]], found: Found, bad_pairs: str = "error", single_turn: bool = False
) -> pd.DataFrame:
    """The usable pairs (prompt, chosen, rejected) of `rows`, each a place and a JSON line or mapping.

    Counts every row in `found`. With `single_turn`, dialogues of several turns are left out.

    Raises:
        DataError: a bad pair while `bad_pairs` is "error", with its place and its fault.
    """
    usable = []
    for place, row in rows:
        pair, fault = fault_of(row, single_turn)
        found.counts["rows_read"] += 1
        if pair:
            found.prompts.append(pair.prompt)
        if fault in FAULTS and bad_pairs == "error":
            raise DataError(f"{place}: {FAULTS[fault]}; correct it, or leave out such pairs with bad_pairs: drop")
        if fault:
            found.counts[fault] += 1
        else:
            usable.append(pair[:3])
    return pd.DataFrame(usable, columns=["prompt", "chosen", "rejected"], dtype="str")


def fault_of(row: bytes | Mapping, single_turn: bool = False) -> tuple[Pair | None, str]:
    """The pair in a row (None where it cannot be read) and its fault, "" for a usable pair.

    A pair is "multi_turn" when both of its texts have several turns, or one has and the prompts
    agree. Where one text has a single turn and the prompts differ, that is a prompt mismatch.
    """
    pair, fault = _read(row)
    if fault:
        return None, fault
    turns = [_several_turns(pair.prompt + pair.chosen), _several_turns(pair.other_prompt + pair.rejected)]
    same_prompt = pair.prompt == pair.other_prompt
    if single_turn and (all(turns) or (any(turns) and same_prompt)):
        return pair, "multi_turn"
    if not same_prompt:
        return pair, "prompt_mismatches"
    if not pair.prompt.replace(HUMAN, "").replace(ASSISTANT, "").strip():
        return pair, "empty_prompts"
    if not (pair.chosen.strip() and pair.rejected.strip()):
        return pair, "empty_responses"
    return pair, "identical_responses" if pair.chosen.strip() == pair.rejected.strip() else ""


def _read(row: bytes | Mapping) -> tuple[Pair | None, str]:
    try:
        row = json.loads(row.decode("utf-8-sig")) if isinstance(row, bytes) else row
    except UnicodeDecodeError:
        return None, "wrong_encoding"
    except (ValueError, RecursionError):
        return None, "malformed"
    if not isinstance(row, Mapping):
        return None, "malformed"
    row = _from_cai(row) if "init_prompt" in row else row
    if not {"chosen", "rejected"} <= row.keys():
        return None, "missing_keys"
    texts = {key: row[key] for key in ("prompt", "chosen", "rejected") if key in row}
    if not all(isinstance(text, str) for text in texts.values()):
        return None, "not_text"
    # JSON can spell half of a surrogate pair, which no UTF-8 file (ours are Parquet) can hold.
    if not all(_is_utf8(text) for text in texts.values()):
        return None, "wrong_encoding"
    if "prompt" in texts and not texts["chosen"].startswith(HUMAN):
        prompt = _as_prompt(texts["prompt"])
        return Pair(prompt, _as_response(texts["chosen"]), _as_response(texts["rejected"]), prompt), ""
    if not all(ASSISTANT in texts[key] for key in ("chosen", "rejected")):
        return None, "missing_keys"
    (prompt, chosen), (other, rejected) = (split_text(texts[key]) for key in ("chosen", "rejected"))
    return Pair(prompt, chosen, rejected, other), ""


def split_text(text: str) -> tuple[str, str]:
    """Prompt and response of a dialogue in the HH format, parted after the last "\\n\\nAssistant:"."""
    prompt, marker, response = text.rpartition(ASSISTANT)
    return prompt + marker, _as_response(response)


def _from_cai(row: Mapping) -> dict[str, Any]:
    """A row of the CAI data as prompt, chosen (the revision) and rejected (the first response)."""
    keys = {"prompt": "init_prompt", "chosen": "revision_response", "rejected": "init_response"}
    values = {key: row[column] for key, column in keys.items() if column in row}
    # Some versions of the data hold messages ({content, role}) where others hold the text alone.
    return {key: value.get("content") if isinstance(value, Mapping) else value for key, value in values.items()}


def _as_prompt(text: str) -> str:
    text = text.rstrip()
    if not text.startswith(HUMAN):
        return render(text.strip())
    return text if text.endswith(ASSISTANT) else text + ASSISTANT


def _as_response(text: str) -> str:
    return text if text.startswith(" ") else " " + text


def _several_turns(text: str) -> bool:
    return text.count(HUMAN) > 1 or text.count(ASSISTANT) > 1


def _is_utf8(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def audit_table(found: Mapping[str, Found], tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """One row a split: what its source holds, what was dropped and why, what is kept.

    duplicate_prompts: rows read minus distinct prompts, over all rows whose prompt can be read;
    the prompt is that of `chosen`, up to and with the last "\\n\\nAssistant:".
    shared_<split>: distinct prompts that stand in both sources, counted in the same rows.
    carved: pairs taken over from (+) or given to (-) another split that is drawn from the same
    source. The source is booked once, with gt where gt is among these splits; the figures of the
    source are 0 in the rows of the others.
    dropped_as_shared: pairs whose prompt stands in a split of higher priority.
    unused: usable pairs beyond the number asked for.
    Then kept = rows_read + carved - the sum of all columns in DROPS. Lengths are in characters.
    """
    distinct = {split: set(found[split].prompts) for split in SPLITS}
    rows = []
    for split in SPLITS:
        info, table = found[split], tables[split]
        row = {"split": split, "source": info.source, "rows_read": info.counts["rows_read"]}
        row["duplicate_prompts"] = len(info.prompts) - len(distinct[split])
        row |= {f"shared_{s}": len(distinct[split] & distinct[s]) if s != split else 0 for s in SPLITS}
        row |= {reason: info.counts[reason] for reason in (*DROPS, "carved")}
        row |= {"kept": len(table), "duplicate_prompts_kept": len(table) - table.prompt.nunique()}
        row |= {f"mean_chars_{side}": _mean(table[side].str.len()) for side in ("chosen", "rejected")}
        rows.append(row | {"sha256": info.sha256})
    return pd.DataFrame(rows)


def audit_tokens(data: Any, tokenizer: Any, max_length: int) -> pd.DataFrame:
    """Lengths in tokens, one row a split of `data` (a StudyData).

    median_tokens, max_tokens: of prompt with response, both texts of each pair.
    truncated_share: share of pairs with a text over `max_length`, which loses its beginning.
    long_responses: pairs with a response that is over `max_length` by itself.
    """
    rows = []
    for split in SPLITS:
        table = getattr(data, split)
        texts = np.stack([_lengths(tokenizer, table.prompt + table[side]) for side in ("chosen", "rejected")])
        alone = [_lengths(tokenizer, table[side], special=False) for side in ("chosen", "rejected")]
        row = {"split": split, "pairs": len(table), "median_tokens": _mean(texts, np.median)}
        row["max_tokens"] = int(texts.max(initial=0))
        row["truncated_share"] = _mean((texts > max_length).any(axis=0))
        row["long_responses"] = int((np.stack(alone) > max_length).any(axis=0).sum())
        rows.append(row)
    return pd.DataFrame(rows)


def _lengths(tokenizer: Any, texts: pd.Series, special: bool = True) -> np.ndarray:
    if texts.empty:
        return np.zeros(0, dtype=int)
    # verbose=False: the warning about long texts is what this table reports.
    encoded = tokenizer(texts.tolist(), add_special_tokens=special, truncation=False, verbose=False)
    return np.array([len(ids) for ids in encoded["input_ids"]])


def _mean(values: Any, mean: Any = np.mean) -> float:
    return float(mean(values)) if np.size(values) else float("nan")


SUFFIXES = (".jsonl", ".jsonl.gz", ".parquet")
