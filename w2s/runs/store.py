"""The cache of runs: pair tables by fingerprint, a folder for each run with its lock, what finished runs predict.

A finished run's DONE holds the `code` that computed it and the sha256 of its `files`. A run is trained in <name>.part,
which takes the place of its folder at the end; <name>.failed says why one could not be trained.
"""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from functools import cache, lru_cache
from pathlib import Path

import pandas as pd
from filelock import FileLock, Timeout

from w2s.data import StudyData
from w2s.files import digest, fsync, write_json, write_table
from w2s.params import ParameterError
from w2s.runs import code
from w2s.spec import SPLITS, RunSpec


def folder_of(spec: RunSpec, root: Path) -> Path:
    return root / "runs" / spec.name


def beside(folder: Path, kind: str) -> Path:
    """What lies beside a run's folder: its "part" in training, its "failed" record, its "lock"."""
    return folder.with_name(f"{folder.name}.{kind}")


def locked(folder: Path, busy: str = "another process is training it", wait: bool = True):
    """Hold the lock of a run, or of a study, in a `with`; two processes that want the same wait for one another.

    Raises filelock.Timeout where another one holds it and `wait` is False.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(beside(folder, "lock"), mode=0o666)  # for every user of a shared folder
    try:
        return lock.acquire(timeout=0)
    except Timeout:
        if not wait:
            raise
        print(f"waiting for {folder.name}: {busy}", flush=True)
        return lock.acquire()


def store_data(root: Path, data: StudyData) -> None:
    """Write the pair tables where every worker finds them by fingerprint, unless they stand there whole."""
    folder = root / "runs" / "data" / data.fingerprint[:16]
    recorded = read_json(folder / "source.json").get("tables", {})
    tables = {f"{split}.parquet": getattr(data, split) for split in SPLITS}
    for name, table in tables.items():
        path = folder / name
        if not path.exists() or digest(path) != recorded.get(name):
            if path.exists() and name in recorded:
                print(f"{path} is damaged: it is written anew", flush=True)
            write_table(path, table)
    written = {name: digest(folder / name) for name in tables}
    if written != recorded:
        write_json(folder / "source.json", data.source | {"tables": written})
    if data.other is not None:
        path = root / "runs" / "data" / data.other_fingerprint[:16] / "other.parquet"
        if not path.exists():
            write_table(path, data.other)


@lru_cache(maxsize=32)
def pair_table(root: Path, fingerprint: str, split: str) -> pd.DataFrame:
    return _table(root / "runs" / "data" / fingerprint[:16] / f"{split}.parquet")


def split_table(spec: RunSpec, root: Path, split: str) -> pd.DataFrame:
    """The pair table of a split for one run: its helpful pairs may be those of a larger data set."""
    if split == "other":
        return pair_table(root, spec.other, split)
    return pair_table(root, spec.helpful_from if split == "helpful" and spec.helpful_from else spec.data, split)


def finish(folder: Path) -> None:
    """Mark a run's part as finished, and put it in the place of what stands in its folder, if anything."""
    part = beside(folder, "part")
    paths = sorted(path for path in part.rglob("*") if path.is_file() and path.name != "DONE")
    for path in paths:
        path.chmod(0o644)  # safetensors are written for their owner alone, and a class shares a cache
        fsync(path)
    files = {path.relative_to(part).as_posix(): digest(path) for path in paths}
    _put(folder, {"code": code.IMPORTED, "files": files})


def _put(folder: Path, record: dict) -> None:
    write_json(beside(folder, "part") / "DONE", record)
    recover(folder)
    beside(folder, "failed").unlink(missing_ok=True)


def recover(folder: Path) -> None:
    """Put a finished part in the place of its folder; clear away one that a killed process has left unfinished."""
    part = beside(folder, "part")
    if (part / "DONE").exists():
        shutil.rmtree(folder, ignore_errors=True)  # a kill here is of no harm: the part is whole
        os.replace(part, folder)
    shutil.rmtree(part, ignore_errors=True)


def adopt(specs: Iterable[RunSpec], root: Path, source: Path) -> int:
    """Copy the runs that another cache, which is only read, has finished, or else those that they need; how many."""
    copied = 0
    for spec in specs:
        if is_done(spec, root):
            continue
        if not is_done(spec, source):
            copied += adopt(spec.before, root, source)
            continue
        folder, theirs = folder_of(spec, root), folder_of(spec, source)
        with locked(folder):
            recover(folder)
            record = read_json(theirs / "DONE")  # its hashes, so that half a copy is no finished run
            names = [name for name in record["files"] if spec.save_model or not name.startswith("model/")]
            for name in names:
                path = beside(folder, "part") / name
                path.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(theirs / name, path)
            _put(folder, record | {"files": {name: record["files"][name] for name in names}})
        copied += 1
    return copied


def why_not_done(spec: RunSpec, root: Path) -> str | None:
    """None for a finished run; else why it is not: "" where it was never trained, or a few words."""
    folder = folder_of(spec, root)
    if not (folder / "DONE").exists():
        return ""
    record = read_json(folder / "DONE")
    if not record:
        damaged = (folder / "DONE").stat().st_size
        return f"{folder / 'DONE'} is damaged" if damaged else "made by code that left no record"
    if names := code.changed(record["code"]):
        return f"{', '.join(names)} {'has' if len(names) == 1 else 'have'} changed since"
    whole = {name: sha for name, sha in record["files"].items() if not name.startswith("model/")}
    for name, sha in whole.items():
        path = folder / name
        if not path.exists() or _digest_of(path, path.stat().st_mtime_ns, path.stat().st_size) != sha:
            return f"{path} is {'damaged' if path.exists() else 'gone'}"
    lost = [name for name in record["files"] if not (folder / name).exists()]
    if lost or (spec.save_model and len(whole) == len(record["files"])):
        return f"{folder / lost[0]} is gone" if lost else "its model was not kept"
    return None


@cache
def _digest_of(path: Path, written: int, size: int) -> str:
    return digest(path)


def is_done(spec: RunSpec, root: Path) -> bool:
    """Whether a run is in the cache, whole, computed by today's code, with its model where the spec asks for it."""
    return why_not_done(spec, root) is None


def why_again(specs: list[RunSpec], root: Path) -> list[str]:
    """One line for each reason why runs that were once trained are trained again."""
    reasons = Counter(filter(None, (why_not_done(spec, root) for spec in specs)))
    return [f"{why}: {n} run{'s are' if n > 1 else ' is'} trained again" for why, n in reasons.items()]


def state(spec: RunSpec, root: Path) -> str:
    """A run's state for `w2s status`: done, running, failed with its cause, or to do with the reason why again."""
    folder, why = folder_of(spec, root), why_not_done(spec, root)
    if why is None:
        return "done"
    if beside(folder, "part").exists() and _is_held(beside(folder, "lock")):
        return "running"
    failed = read_json(beside(folder, "failed"))
    return f"failed: {failed['why']}" if failed else "to do" + (f" again: {why}" if why else "")


def _is_held(lock: Path) -> bool:
    """Whether a process holds a lock; of another user's, which cannot be asked, it is supposed."""
    if not os.access(lock, os.W_OK):
        return lock.exists()
    try:
        with FileLock(lock, mode=0o666).acquire(timeout=0):
            return False
    except Timeout:
        return True


def load_predictions(spec: RunSpec, root: Path) -> pd.DataFrame:
    """A finished run's predictions: id, split, margin, probability, correct."""
    return _table(folder_of(spec, root) / "predictions.parquet")


def check_model(spec: RunSpec, root: Path) -> Path:
    """The folder of a finished run's model; ParameterError where one of its files is not as it was written."""
    folder = folder_of(spec, root)
    for name, sha in read_json(folder / "DONE").get("files", {}).items():
        if name.startswith("model/") and digest(folder / name) != sha:
            raise ParameterError(f"{folder / name}: damaged; delete {folder}, and the run is trained again")
    return folder / "model"


def steps_logged(spec: RunSpec, root: Path) -> tuple[int, int]:
    """The last step in the log of a run in training, and the number of its steps; zeros before the first."""
    last = [{"step": 0, "steps": 0}, *log_lines(beside(folder_of(spec, root), "part"))][-1]
    return last["step"], last["steps"]


def log_lines(folder: Path) -> list[dict]:
    """The lines of a run's log: step, steps, loss, seconds; [] where there is none, without a half-written last."""
    lines = []
    with suppress(FileNotFoundError, ValueError):
        for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines():
            lines.append(json.loads(line))
    return lines


def _table(path: Path) -> pd.DataFrame:
    try:
        return pd.read_parquet(path)
    except (OSError, ValueError) as error:  # pyarrow's errors are among them
        what = " ".join(str(error).split())[:100]
        raise ParameterError(f"{path}: cannot be read ({what}); start again, or delete {path.parent}") from None


def read_json(path: Path) -> dict:
    """A record, {} where there is none or it cannot be read: what it stands for is then made anew."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
