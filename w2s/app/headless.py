"""A study's notebooks executed headlessly: which ones, with which parameters, and what stands already."""

from __future__ import annotations

import gc
import hashlib
import json
import logging
import os
import platform
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from importlib.metadata import version
from multiprocessing import active_children, get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

from w2s.files import HEADLESS, duration, write_atomic
from w2s.params import HOME, PACKAGE, ParameterError, StudyParams

if TYPE_CHECKING:
    from w2s.study import Study

NOTEBOOKS = HOME / "notebooks"
TRAINING = ("01", "02", "03")  # the notebooks that a study of shipped predictions goes without


@contextmanager
def quick_imports() -> Iterator[None]:
    """Import without looking for garbage, and without the grammar that jsonschema has for addresses, unused here.

    The first takes a quarter of the time of importing PyTorch and transformers, the second half of papermill's.
    An interruption is kept for the end, as one in the middle of these imports can be lost in them.
    """
    sys.modules.setdefault("rfc3987_syntax", None)
    kept: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: kept.append(number))
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        signal.signal(signal.SIGINT, before)
    if kept:
        raise KeyboardInterrupt


def plan(given: dict[str, Any]) -> list[Path]:
    """The notebooks that a study with the given parameters is made of, in their order.

    Raises:
        ParameterError: no notebooks.
    """
    wanted = [f"{number:02}_*" for number in range(1, 6)] + [f"*_{name}" for name in given.get("extensions", [])]
    paths = sorted(path for pattern in wanted for path in NOTEBOOKS.glob(f"{pattern}.ipynb"))
    if not paths:
        raise ParameterError(f"{NOTEBOOKS}: no notebooks there; run w2s from a checkout of the kit")
    return [path for path in paths if path.stem[:2] not in TRAINING or not given.get("frozen")]


@contextmanager
def forecast_beside(*of_runs: Any) -> Iterator[Callable[[], None]]:
    """Print the forecast of `fanout.announce` from a process of its own, which ends with it, or with the block.

    It tries each model, for seconds or more, and need not hold up a notebook that trains nothing. Yields a function
    that waits for it and raises what it raised.

    Raises:
        ParameterError: that process died.
    """
    others = set(active_children())
    pool = ProcessPoolExecutor(1, get_context("spawn"), signal.signal, (signal.SIGINT, signal.SIG_IGN))
    made = pool.submit(_announce, *of_runs)
    pool.shutdown(wait=False)  # nothing else is to be done

    def wait() -> None:
        try:
            made.result()
        except BrokenProcessPool:
            raise ParameterError("the process that tries the models died; is there memory enough?") from None

    try:
        yield wait
    finally:
        for process in set(active_children()) - others:
            if not made.done():
                process.terminate()
            process.join()


def _announce(*of_runs: Any) -> None:
    with quick_imports():
        from w2s.runs import cluster

    cluster.announce(*of_runs)


def execute(params: StudyParams, given: dict[str, Any], again: bool = False) -> int:
    """Execute every notebook of one study whose results do not stand already, then write report.html.

    Returns 0, or 1 when a notebook failed.
    """
    with quick_imports():
        from w2s.report.html import write_report
        from w2s.runs import cluster, store
        from w2s.study import Study

    # Opening the study here finds a missing model or file before any notebook runs.
    study = Study.open(params)
    store.store_data(study.root, study.data)
    wanted = list(study.all_runs())
    how = study.root, params.workers, params.scheduler
    todo = [] if params.frozen else cluster.checked(wanted, *how)
    started = time.monotonic()
    study.folder.mkdir(parents=True, exist_ok=True)
    names, notebooks = [spec.name for spec in wanted], plan(given)
    if todo:
        with forecast_beside(todo, len(wanted), *how) as wait:
            done = _execute(notebooks, given, study.folder, names, started, True, wait)
    else:
        if params.frozen:
            without_training(study)
        else:
            cluster.announce(todo, len(wanted), *how)
        done = _execute(notebooks, given, study.folder, names, started, again)
    if not done:
        return 1
    report = write_report(params)
    print(f"{duration(time.monotonic() - started):>6}  done: {report}")
    return 0


def _execute(
    notebooks: list[Path],
    parameters: dict[str, Any],
    folder: Path,
    names: list[str],
    started: float,
    again: bool,
    after_each: Callable[[], None] = lambda: None,
) -> bool:
    """Execute notebooks into a study's folder, with `again` also those that stand; False where one failed.

    Args:
        names: of the study's runs. started: when the study was (s, monotonic).
    """
    import papermill
    from papermill.exceptions import PapermillExecutionError

    from w2s.app.headless import Executed

    record = Executed(folder, names)
    os.environ[HEADLESS] = "1"
    logging.getLogger("papermill").setLevel(logging.ERROR)  # each notebook takes every parameter, declared or not
    for path in notebooks:
        key = record.key(path, parameters)
        print(f"{duration(time.monotonic() - started):>6}  {path.name}", end="", flush=True)
        if not again and record.holds(path.name, key):
            print(": as before, nothing it depends on has changed", flush=True)
            continue
        print(flush=True)
        before = record.written()
        try:
            papermill.execute_notebook(
                str(path),
                str(folder / path.name),
                parameters,
                kernel_name="python3",
                cwd=str(path.parent),
                progress_bar=False,
                stdout_file=sys.stdout,
                stderr_file=sys.stderr,
                extra_arguments=["--IPKernelApp.log_level=ERROR"],  # no notice about loopback TCP each time
            )
        except PapermillExecutionError as error:
            cause = " ".join(error.evalue.split())
            print(f"w2s: {path.name}, cell {error.cell_index}: {error.ename}: {cause}", file=sys.stderr)
            print(f"w2s: see {folder / path.name}; finished runs are kept", file=sys.stderr)
            return False
        record.add(path.name, key, before)
        after_each()
    return True


def without_training(study: Study) -> None:
    """Write what notebooks 01 and 03 would have written, of a study of shipped predictions."""
    from w2s import files
    from w2s.report import style
    from w2s.runs import cluster

    files.write_table(study.folder / "tables" / "predictions.parquet", cluster.results(study, study.direct_runs()))
    style.save_table(study.data.audit, study.folder, "01_audit")


LIBRARIES = ("matplotlib", "numpy", "pandas", "peft", "scipy", "seaborn", "torch", "transformers")


RECORD = ".executed.json"


class Executed:
    """The record of a study's executed notebooks, kept in its folder.

    A notebook's key is a hash of its source, its parameters, the kit's code, the versions of what computes, the
    names of the study's runs and the keys of the notebooks before it. It is kept where the key is the recorded
    one and every file that it wrote (and itself) is there with the bytes that were recorded.
    """

    def __init__(self, folder: Path, depends_on: Iterable[str]):
        self.folder = folder
        self.record = json.loads(self._file.read_text(encoding="utf-8")) if self._file.exists() else {}
        versions = [platform.python_version(), *(f"{library} {version(library)}" for library in LIBRARIES)]
        self.last = _digest(*versions, _code(), *sorted(depends_on))

    @property
    def _file(self) -> Path:
        return self.folder / RECORD

    def key(self, notebook: Path, parameters: Mapping[str, Any]) -> str:
        """The notebook's key; ask in the order in which notebooks are executed."""
        given = json.dumps(parameters, sort_keys=True)
        self.last = _digest(self.last, notebook.name, _content(notebook), given)
        return self.last

    def holds(self, name: str, key: str) -> bool:
        """Whether an executed notebook and all its files stand as they were written for this key."""
        entry = self.record.get(name, {})
        if entry.get("key") != key:
            return False
        there = {file: self.folder / file for file in entry["files"]}
        return all(path.is_file() and _content(path) == entry["files"][file] for file, path in there.items())

    def written(self) -> dict[str, int]:
        """When each file of the study's folder was last written (ns), to be compared by `add`."""
        paths = [path for path in self.folder.rglob("*") if path.is_file() and path != self._file]
        return {path.relative_to(self.folder).as_posix(): path.stat().st_mtime_ns for path in paths}

    def add(self, name: str, key: str, before: Mapping[str, int]) -> None:
        """Record an execution and the files that it wrote since `before`."""
        changed = [file for file, when in self.written().items() if before.get(file) != when]
        self.record[name] = {"key": key, "files": {file: _content(self.folder / file) for file in sorted(changed)}}
        text = json.dumps(self.record, indent=1) + "\n"
        write_atomic(self._file, lambda p: p.write_text(text, encoding="utf-8"))


def _code() -> str:
    """A hash of the package's modules and templates."""
    paths = sorted(path for kind in ("*.py", "*.html") for path in PACKAGE.rglob(kind))
    return _digest(*(f"{path.relative_to(PACKAGE).as_posix()} {_content(path)}" for path in paths))


def _content(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()
