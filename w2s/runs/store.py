"""The cache of runs: pair tables by fingerprint, a folder for each run with its lock, what finished runs predict."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path

import pandas as pd
from filelock import FileLock, Timeout

from w2s.data import StudyData
from w2s.files import write_json, write_table
from w2s.spec import SPLITS, RunSpec


def locked(folder: Path):
    """Hold a run's lock in a `with`; two processes that want the same run wait for one another."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(f"{folder}.lock")
    try:
        return lock.acquire(timeout=0)
    except Timeout:
        print(f"waiting for {folder.name}: another process is training it", flush=True)
        return lock.acquire()


def store_data(root: Path, data: StudyData) -> None:
    """Write the pair tables where every worker finds them by fingerprint, and where they come from."""
    folder = root / "runs" / "data" / data.fingerprint[:16]
    for split in SPLITS:
        if not (folder / f"{split}.parquet").exists():
            write_table(folder / f"{split}.parquet", getattr(data, split))
    write_json(folder / "source.json", data.source)


@lru_cache(maxsize=32)
def pair_table(root: Path, fingerprint: str, split: str) -> pd.DataFrame:
    """A pair table that `store_data` wrote."""
    return pd.read_parquet(root / "runs" / "data" / fingerprint[:16] / f"{split}.parquet")


def split_table(spec: RunSpec, root: Path, split: str) -> pd.DataFrame:
    """The pair table of a split for one run: its helpful pairs may be those of a larger data set."""
    return pair_table(root, spec.helpful_from if split == "helpful" and spec.helpful_from else spec.data, split)


def is_done(spec: RunSpec, root: Path) -> bool:
    """Whether a run is in the cache, with its model where the spec asks for it."""
    folder = root / "runs" / spec.name
    return (folder / "DONE").exists() and (not spec.save_model or (folder / "model").is_dir())


def load_predictions(spec: RunSpec, root: Path) -> pd.DataFrame:
    """A finished run's predictions: id, split, margin, probability, correct."""
    return pd.read_parquet(root / "runs" / spec.name / "predictions.parquet")


def steps_logged(folder: Path) -> tuple[int, int]:
    """The last step in a run's log, and the number of its steps; zeros before the first."""
    log = folder / "log.jsonl"
    lines = log.read_text(encoding="utf-8").splitlines() if log.exists() else []
    last = json.loads(lines[-1]) if lines else {"step": 0, "steps": 0}
    return last["step"], last["steps"]
