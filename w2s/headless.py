"""A study's notebooks executed headlessly: which ones, with which parameters, and what stands already."""

from __future__ import annotations

import gc
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.pool import ThreadPool
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
    """
    sys.modules.setdefault("rfc3987_syntax", None)
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


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


def execute(params: StudyParams, given: dict[str, Any], again: bool = False) -> int:
    """Execute every notebook of one study whose results do not stand already, then write report.html.

    Returns 0, or 1 when a notebook failed.
    """
    with quick_imports():
        import papermill
        from papermill.exceptions import PapermillExecutionError

        from w2s import fanout
        from w2s.executed import Executed
        from w2s.study import Study

        # Opening the study here finds a missing model or file before any notebook runs.
        study = Study.open(params)
        wanted = study.all_runs()
        how = study.root, params.workers, params.scheduler
        todo = [] if params.frozen else fanout.checked(list(wanted), *how)
    folder = params.root / params.study
    folder.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    if params.frozen:
        without_training(study)
    elif todo:  # each model is tried, which takes its time: beside notebook 01, which trains nothing
        forecast = ThreadPool(1).apply_async(fanout.announce, (todo, len(wanted), *how))
    else:
        fanout.announce(todo, len(wanted), *how)
    record = Executed(folder, [spec.name for spec in wanted])
    os.environ[HEADLESS] = "1"
    for path, parameters in plan(given):
        key = record.key(path, parameters)
        print(f"{duration(time.monotonic() - started):>6}  {path.name}", end="", flush=True)
        if not (todo or again) and record.holds(path.name, key):
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
            return 1
        record.add(path.name, key, before)
        if todo:
            forecast.get()  # before anything is trained; raises what it raised

    from w2s.report import write_report

    report = write_report(params)
    print(f"{duration(time.monotonic() - started):>6}  done: {report}")
    return 0


def without_training(study: Study) -> None:
    """Write what notebooks 01 and 03 would have written, of a study of shipped predictions."""
    from w2s import figures, files

    files.write_table(study.folder / "tables" / "predictions.parquet", study.train(study.direct_runs()))
    figures.save_table(study.data.audit, study.folder, "01_audit")
