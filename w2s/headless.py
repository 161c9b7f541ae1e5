"""A study's notebooks executed headlessly: which ones, with which parameters, and what stands already."""

from __future__ import annotations

import gc
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import active_children, get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

from w2s.params import HOME, ParameterError, StudyParams, nearest
from w2s.progress import HEADLESS, duration

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


def declared(notebook: Path) -> list[str]:
    """The names that a notebook's parameters cell sets."""
    with quick_imports():
        from papermill import inspect_notebook

    return list(inspect_notebook(str(notebook)))


def plan(given: dict[str, Any]) -> list[tuple[Path, dict[str, Any]]]:
    """Each notebook that is to be executed, with the given parameters that it declares.

    Raises:
        ParameterError: no notebooks, or a parameter that none of them declares.
    """
    wanted = [f"{number:02}_*" for number in range(1, 6)] + [f"*_{name}" for name in given.get("extensions", [])]
    paths = sorted(path for pattern in wanted for path in NOTEBOOKS.glob(f"{pattern}.ipynb"))
    notebooks = {path: declared(path) for path in paths}
    if not notebooks:
        raise ParameterError(f"{NOTEBOOKS}: no notebooks there; run w2s from a checkout of the kit")
    known = {name for names in notebooks.values() for name in names} | {"extensions", "also"}
    for key, value in given.items():
        if key not in known:
            raise ParameterError(f"parameter {key!r} = {value!r} is known to no notebook; {nearest(key, known)}")
    chosen = {path: n for path, n in notebooks.items() if path.stem[:2] not in TRAINING or not given.get("frozen")}
    return [(path, {k: v for k, v in given.items() if k in names}) for path, names in chosen.items()]


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
        from w2s import fanout

    fanout.announce(*of_runs)


def execute(params: StudyParams, given: dict[str, Any], again: bool = False) -> int:
    """Execute every notebook of one study whose results do not stand already, then write report.html.

    Returns 0, or 1 when a notebook failed.
    """
    with quick_imports():
        from w2s import fanout
        from w2s.report import write_report
        from w2s.study import Study

    # Opening the study here finds a missing model or file before any notebook runs.
    study = Study.open(params)
    wanted = list(study.all_runs())
    how = study.root, params.workers, params.scheduler
    todo = [] if params.frozen else fanout.checked(wanted, *how)
    started = time.monotonic()
    study.folder.mkdir(parents=True, exist_ok=True)
    names, notebooks = [spec.name for spec in wanted], plan(given)
    if todo:
        with forecast_beside(todo, len(wanted), *how) as wait:
            done = _execute(notebooks, study.folder, names, started, True, wait)
    else:
        if params.frozen:
            without_training(study)
        else:
            fanout.announce(todo, len(wanted), *how)
        done = _execute(notebooks, study.folder, names, started, again)
    if not done:
        return 1
    report = write_report(params)
    print(f"{duration(time.monotonic() - started):>6}  done: {report}")
    return 0


def _execute(
    notebooks: list[tuple[Path, dict[str, Any]]],
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

    from w2s.executed import Executed

    record = Executed(folder, names)
    os.environ[HEADLESS] = "1"
    for path, parameters in notebooks:
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
    from w2s import figures, files

    files.write_table(study.folder / "tables" / "predictions.parquet", study.train(study.direct_runs()))
    figures.save_table(study.data.audit, study.folder, "01_audit")
