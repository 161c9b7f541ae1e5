"""A study's notebooks executed headlessly: which ones, with which parameters, and what stands already."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import logging
import os
import platform
import re
import sys
import time
import traceback
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir
from typing import Any

from w2s.files import ANSWERS, HEADLESS, digest, duration, sweep, write_json, write_table
from w2s.params import HOME, PACKAGE, ParameterError, StudyParams, differences

NOTEBOOKS = HOME / "notebooks"
TRAINING = ("01", "02", "03")  # the notebooks that a study of shipped predictions goes without
LIBRARIES = ("matplotlib", "numpy", "pandas", "peft", "scipy", "seaborn", "torch", "transformers")
RECORD = ".executed.json"
# What notebooks print of their training, by the first words of a line.
OF_TRAINING = re.compile(
    r"\s*\d+% \d|\d+ runs? to train|  \S+: [\d,]+ parameters|FAILED|waiting for "
    r"|.*(runs are in the cache|trained again|is damaged)"
)
QUIET = ["--IPKernelApp.log_level=CRITICAL"]  # no notice about loopback TCP, or sockets that close at the end


def plan(given: dict[str, Any]) -> list[Path]:
    """The notebooks that a study with the given parameters is made of, in their order; a ParameterError if none."""
    wanted = [f"{number:02}_*" for number in range(1, 6)] + [f"*_{name}" for name in given.get("extensions", [])]
    paths = sorted(path for pattern in wanted for path in NOTEBOOKS.glob(f"{pattern}.ipynb"))
    if not paths:
        raise ParameterError(f"{NOTEBOOKS}: no notebooks there; run w2s from a checkout of the kit")
    return [path for path in paths if path.stem[:2] not in TRAINING or not given.get("frozen")]


def execute(params: StudyParams, again: bool = False) -> int:
    """Execute a study's notebooks whose results do not stand (`again`: all), then write report.html; 1: one failed."""
    from w2s.runs import store
    from w2s.study import Study

    # Opening the study here finds a missing model or file before any notebook runs.
    study = Study.open(params)
    with store.locked(study.folder, "another w2s run writes this study"):
        return _execute_all(study, again)


def _execute_all(study, again: bool) -> int:
    from w2s.report import claims, html, sentences, style
    from w2s.runs import cluster, store

    params, given, specs = study.params, study.params.given, list(study.all_runs())
    started = time.monotonic()
    sweep(study.folder)
    store.store_data(study.root, study.data)
    if params.frozen:  # which leaves out the notebooks that write these
        predictions = cluster.results(study, study.direct_runs())
        write_table(study.folder / "tables" / "predictions.parquet", predictions)
        answers = study.known_answers()
        answers = cluster.results(study, answers) if answers else predictions.head(0)
        write_table(study.folder / "tables" / "known_answers.parquet", answers)
        style.save_table(study.data.audit, study.folder, "01_audit")
    else:
        cluster.adopt(study, specs)
        again = bool(cluster.announce(specs, study.root, params.workers, params.scheduler)) or again
    record = Executed(study.folder, [spec.name for spec in specs], given)
    if changes := record.changes():
        print(f"{study.folder} was made with {changes}: its notebooks, tables and figures are replaced, its runs stay "
              "in the cache; --set study=NAME keeps both", flush=True)  # fmt: skip
    for path in plan(given):
        key = record.key(path, given)
        stands = not again and record.holds(path.name, key)
        note = ": as before, nothing it depends on has changed" if stands else ""
        print(f"{duration(time.monotonic() - started):>6}  {path.name}{note}", flush=True)
        if not stands:
            before = record.written()
            if not _execute(path, study.folder / path.name, given):
                return 1
            record.add(path.name, key, before)
    record.drop({path.name for path in plan(given)})
    missing = {spec.name: store.state(spec, study.root) for spec in specs if not params.frozen}
    missing = {name: state for name, state in missing.items() if state != "done"}
    report = html.write_report(params, record.files(), missing)
    for row in claims.claim_table(study.folder).to_dict("records"):
        print(sentences.words("claim_in_the_log", row, name=sentences.words(f"claim_name_{row['claim']}")))
    print(f"{duration(time.monotonic() - started):>6}  done: {report}")
    return 0


def log_error(where: Path) -> Path:
    """Append the traceback of the present exception to error.log in a folder, and return that file.

    Where the folder cannot be written, as on a full disk, it lies in the folder for temporary files.
    """
    text = f"{time.strftime('%Y-%m-%d %H:%M:%S')}\n{traceback.format_exc()}\n"
    with suppress(OSError):
        where.mkdir(parents=True, exist_ok=True)
        return _append(where / "error.log", text)
    return _append(Path(gettempdir()) / "w2s_error.log", text)


def _append(path: Path, text: str) -> Path:
    with open(path, "a", encoding="utf-8") as file:
        file.write(text)
    return path


def _execute(source: Path, copy: Path, parameters: dict[str, Any]) -> bool:
    """Execute a notebook into a copy; where it fails, say where and return False."""
    import papermill

    logging.getLogger("papermill").setLevel(logging.ERROR)  # each notebook takes every parameter, declared or not
    copy.parent.mkdir(parents=True, exist_ok=True)
    paths = [str(path).replace("{", "{{").replace("}", "}}") for path in (source, copy)]  # no templates
    streams = {"progress_bar": False, "stdout_file": _Progress(), "stderr_file": sys.stderr, "extra_arguments": QUIET}
    try:
        with own_kernel() as kernel:
            papermill.execute_notebook(*paths, parameters, kernel_name=kernel, cwd=str(source.parent), **streams)
    except papermill.PapermillExecutionError as error:
        cause = " ".join(error.evalue.split())
        print(f"w2s: {source.name}, cell {error.cell_index}: {error.ename}: {cause}", file=sys.stderr)
        print(f"w2s: see {copy}; finished runs are kept", file=sys.stderr)
        return False
    except Exception as error:  # of the kernel or what speaks to it, such as DeadKernelError
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):  # the command line has the remedy
            raise
        cause = f"{type(error).__name__}: {' '.join(str(error).split())}"
        print(f"w2s: {source.name}: {cause}{' (out of memory?)' if 'Dead' in cause else ''}; finished runs are kept; "
              f"see {log_error(copy.parent)}", file=sys.stderr)  # fmt: skip
        return False
    return True


class _Progress(io.TextIOBase):
    """Takes what notebooks print and passes on what concerns training; the rest stands in the executed copies."""

    def write(self, text: str) -> int:
        for line in text.splitlines():
            if OF_TRAINING.match(line):
                print(line, flush=True)
        return len(text)


@contextmanager
def own_kernel() -> Iterator[str]:
    """The name of a kernel of this very interpreter, whichever ones a user has installed."""
    from ipykernel.kernelspec import write_kernel_spec

    before = os.environ.get("JUPYTER_PATH")
    with TemporaryDirectory() as folder:
        write_kernel_spec(Path(folder) / "kernels" / "w2s-own", overrides={"env": {HEADLESS: str(PACKAGE)}})
        os.environ["JUPYTER_PATH"] = os.pathsep.join(filter(None, (folder, before)))
        try:
            yield "w2s-own"
        finally:
            os.environ.pop("JUPYTER_PATH")
            os.environ |= {"JUPYTER_PATH": before} if before else {}


class Executed:
    """The record of a study's executed notebooks, kept in its folder.

    A notebook's key is a hash of its source, its parameters, the kit's code, the versions of what computes, the
    names of the study's runs and the keys of the notebooks before it. It is kept where the key is the recorded
    one and every file that it wrote (and itself) is there with the bytes that were recorded.
    """

    def __init__(self, folder: Path, depends_on: Iterable[str], given: Mapping[str, Any] | None = None):
        self.folder, self.file, self.given = folder, folder / RECORD, dict(given or {})
        try:
            self.record = json.loads(self.file.read_text(encoding="utf-8")) if self.file.exists() else {}
            self.record = {name: {"files": {**of["files"]}, **of} for name, of in self.record.items()}
        except (ValueError, TypeError, KeyError, AttributeError):
            print(f"{self.file} is damaged: the notebooks are executed again", flush=True)
            self.record = {}
        versions = [platform.python_version(), *(f"{library} {version(library)}" for library in LIBRARIES)]
        self.last = _digest(*versions, _code(), *sorted(depends_on))

    def key(self, notebook: Path, parameters: Mapping[str, Any]) -> str:
        """The notebook's key; ask in the order in which notebooks are executed."""
        given = json.dumps(parameters, sort_keys=True)
        self.last = _digest(self.last, notebook.name, digest(notebook), given)
        return self.last

    def holds(self, name: str, key: str) -> bool:
        """Whether an executed notebook and all its files stand as they were written for this key."""
        entry = self.record.get(name, {"key": None})
        files = [(self.folder / file, content) for file, content in entry.get("files", {}).items()]
        return entry["key"] == key and all(path.is_file() and digest(path) == content for path, content in files)

    def written(self) -> dict[str, int]:
        """When each file of the study's folder was last written (ns), to be compared by `add`.

        Without the answers to exercises, which every notebook adds to.
        """
        leave_out = (self.file, self.folder / ANSWERS)
        paths = [path for path in self.folder.rglob("*") if path.is_file() and path not in leave_out]
        return {path.relative_to(self.folder).as_posix(): path.stat().st_mtime_ns for path in paths}

    def add(self, name: str, key: str, before: Mapping[str, int]) -> None:
        """Record an execution and the files that it wrote since `before`."""
        changed = [file for file, when in self.written().items() if before.get(file) != when]
        earlier = self.record.pop(name, {"files": {}})["files"]
        files = {file: digest(self.folder / file) for file in sorted(changed)}
        self.record[name] = {"key": key, "files": files, "given": self.given}
        self._remove(earlier)

    def drop(self, keep: set[str]) -> None:
        """Forget the notebooks that are not among `keep`, and remove what they wrote."""
        for name in self.record.keys() - keep:
            self._remove(self.record.pop(name)["files"])

    def _remove(self, files: Iterable[str]) -> None:
        for file in set(files) - self.files():
            (self.folder / file).unlink(missing_ok=True)
        write_json(self.file, self.record)

    def files(self) -> set[str]:
        """Every file that a recorded notebook wrote, relative to the study's folder."""
        return {file for entry in self.record.values() for file in entry["files"]}

    def changes(self) -> str:
        """The parameters that differ from those of what stands in the folder, with their old and new values."""
        given = (entry["given"] for entry in self.record.values() if "given" in entry)
        return differences(given, self.given, leave_out=("study", "output_dir", "read_from"))  # the folder is the same


def _code() -> str:
    """A hash of the package's modules, templates, texts and shipped predictions."""
    paths = sorted(path for kind in ("*.py", "*.html", "*.yaml", "frozen/*") for path in PACKAGE.rglob(kind))
    return _digest(*(f"{path.relative_to(PACKAGE).as_posix()} {digest(path)}" for path in paths))


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()
