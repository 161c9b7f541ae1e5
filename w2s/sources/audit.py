"""Read the rows of a source of pairs, and judge each row: a bad pair counts under the first of FAULTS that applies."""

import gzip
import hashlib
import json
import zlib
from collections import Counter, namedtuple
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet

from w2s.sources import LFS, TABLES
from w2s.world import render

SUFFIXES = (".jsonl", ".jsonl.gz", ".parquet", ".csv")
CHAT = ("<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<start_of_turn>", "[INST]", "[/INST]")
RESPONSES = {"response_0", "response_1"}  # of PKU-SafeRLHF, with the ids of the better and of the safer one
HUMAN, ASSISTANT = "\n\nHuman:", "\n\nAssistant:"
FAULTS = TABLES["faults"]
SHORT = 20  # characters: a shorter prompt may well begin a response too
DROPS = (*FAULTS, "multi_turn", "identical_pairs", "dropped_as_shared", "unused")
CAI_COLUMNS = {"prompt": "init_prompt", "chosen": "revision_response", "rejected": "init_response"}

UNREADABLE = (OSError, EOFError, zlib.error, pa.ArrowException, UnicodeDecodeError)
UNREADABLE += (pd.errors.ParserError, pd.errors.EmptyDataError)
Pair = namedtuple("Pair", "prompt chosen rejected other_prompt")  # the prompt is that of chosen, the other of rejected
Source = namedtuple("Source", "name sha256 rows")  # rows: (place, JSON line or dict) of a file or a part of a dataset


class DataError(ValueError):
    """Pairs that cannot be used; its text is one line with the place and the remedy."""


@dataclass
class Origin:
    """Where the pairs of one split come from: counts by reason, and the prompts as they stand there."""

    source: str = ""
    sha256: str = ""
    dimension: str = ""
    counts: Counter = field(default_factory=Counter)
    prompts: list[str] = field(default_factory=list)


def read_file(folder: Path, name: str) -> Source:
    """The rows of a file with their line numbers (row numbers for Parquet and CSV), from 1."""
    unit, lower = "row", name.lower()
    try:
        content = (folder / name).read_bytes()
        if content.startswith(LFS):
            raise DataError(f"{name}: a pointer of Git LFS, not the file; run git lfs pull in {folder}")
        if lower.endswith(".csv"):
            rows = pd.read_csv(BytesIO(content), dtype=str, keep_default_na=False).to_dict("records")
        elif lower.endswith(".parquet"):
            rows = pa.parquet.read_table(pa.BufferReader(content)).to_pylist()
        else:
            unit, rows = "line", (gzip.decompress(content) if lower.endswith(".gz") else content).split(b"\n")
    except UNREADABLE as error:
        raise DataError(f"{name}: cannot be read ({brief(error)}); replace the file") from None
    places = [(f"{name} {unit} {i}", row) for i, row in enumerate(rows, 1) if unit == "row" or row.strip()]
    return Source(name, hashlib.sha256(content).hexdigest(), places)


def brief(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]


def fault_of(row: Any, single_turn: bool = False, helpful: bool = False) -> tuple[Pair | None, str]:
    """The pair in a row (None where it cannot be read) and its fault, "" for a usable pair.

    `helpful` says which dimension a row that has several is read for. With `single_turn`, a pair is "multi_turn" when
    both of its texts have several turns, or one has and the prompts agree. Where one text has a single turn and the
    prompts differ, that is a prompt mismatch.
    """
    try:
        pair = _read(json.loads(row.decode("utf-8-sig")) if isinstance(row, bytes) else row, helpful)
    except UnicodeError:
        return None, "wrong_encoding"
    except (ValueError, RecursionError):
        return None, "malformed"
    if isinstance(pair, str):
        return None, pair
    texts = (pair.prompt + pair.chosen, pair.other_prompt + pair.rejected)
    turns = [text.count(HUMAN) > 1 or text.count(ASSISTANT) > 1 for text in texts]
    same_prompt = pair.prompt == pair.other_prompt
    if single_turn and (all(turns) or (any(turns) and same_prompt)):
        return pair, "multi_turn"
    asked = pair.prompt.removesuffix(ASSISTANT).rpartition(HUMAN)[2].strip()
    repeats = len(asked) > SHORT and all(t.strip().startswith((asked, pair.prompt.strip())) for t in pair[1:3])
    faults = {
        "prompt_mismatches": not same_prompt,
        "empty_prompts": not pair.prompt.replace(HUMAN, "").replace(ASSISTANT, "").strip(),
        "empty_responses": not (pair.chosen.strip() and pair.rejected.strip()),
        "chat_markers": any(mark in text for mark in CHAT for text in pair[:3]),
        "repeated_prompts": repeats,
        "identical_responses": pair.chosen.strip() == pair.rejected.strip(),
    }
    return pair, next((fault for fault, holds in faults.items() if holds), "")


def _read(row: Any, helpful: bool) -> Pair | str:
    """The pair in a row, or the fault that hides it."""
    if not isinstance(row, dict):
        return "malformed"
    if "init_prompt" in row:
        # Some versions of CAI hold messages ({content, role}) where others hold the text alone.
        row = {key: row[column] for key, column in CAI_COLUMNS.items() if column in row}
        row = {key: value.get("content") if isinstance(value, dict) else value for key, value in row.items()}
    if row.keys() >= RESPONSES:
        best = row.get("better_response_id" if helpful else "safer_response_id")
        if best not in (0, 1, "0", "1"):
            return "missing_keys"
        chosen, rejected = (row[f"response_{which}"] for which in (int(best), 1 - int(best)))
        row = {"prompt": row.get("prompt"), "chosen": chosen, "rejected": rejected}
    texts = {key: row[key] for key in ("prompt", "chosen", "rejected") if key in row}
    if not {"chosen", "rejected"} <= texts.keys():
        return "missing_keys"
    if any(_is_messages(texts[key]) for key in ("chosen", "rejected")):
        texts = {key: _dialogue(texts[key], texts.get("prompt")) for key in ("chosen", "rejected")}
        if None in texts.values():
            return "bad_messages"
    if not all(isinstance(text, str) for text in texts.values()):
        return "not_text"
    # JSON can spell half of a surrogate pair, which no UTF-8 file (ours are Parquet) can hold: a UnicodeEncodeError.
    "".join(texts.values()).encode("utf-8")
    chosen, rejected = texts["chosen"], texts["rejected"]
    if "prompt" in texts and not chosen.startswith(HUMAN):
        prompt = texts["prompt"].rstrip()
        if not prompt.startswith(HUMAN):
            prompt = render(prompt.strip())
        other_prompt = prompt = prompt if prompt.endswith(ASSISTANT) else prompt + ASSISTANT
    elif ASSISTANT in chosen and ASSISTANT in rejected:
        (prompt, chosen), (other_prompt, rejected) = split_text(chosen), split_text(rejected)
    else:
        return "missing_keys"
    return Pair(prompt, *(text if text.startswith(" ") else f" {text}" for text in (chosen, rejected)), other_prompt)


def _is_messages(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(turn, dict) for turn in value)


def _dialogue(turns: Any, prompt: Any) -> str | None:
    """A list of messages in the HH format, after the prompt where it lacks it; None where roles do not alternate."""
    if not _is_messages(turns):
        return None
    if turns[0].get("role") == "assistant" and prompt:
        turns = [*(prompt if isinstance(prompt, list) else [{"role": "user", "content": prompt}]), *turns]
    if not _is_messages(turns) or not all(isinstance(turn.get("content"), str) for turn in turns):
        return None
    system = turns[0]["content"] + "\n\n" if turns[0].get("role") == "system" else ""
    turns = turns[1:] if system else turns
    if not turns or [turn.get("role") for turn in turns] != ["user", "assistant"] * (len(turns) // 2):
        return None
    texts = [turn["content"].strip() for turn in turns]
    texts[0] = system + texts[0]
    return "".join(f"{(HUMAN, ASSISTANT)[k % 2]} {text}" for k, text in enumerate(texts))


def split_text(text: str) -> tuple[str, str]:
    """Prompt and response of a dialogue in the HH format, parted after the last "\\n\\nAssistant:"."""
    prompt, marker, response = text.rpartition(ASSISTANT)
    return prompt + marker, response
