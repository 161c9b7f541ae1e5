"""The notebooks for students, without solutions; and what the checks have said of their answers."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import nbformat
import pandas as pd

from w2s.app import headless
from w2s.course.answers import MIME, Answer, exercises, last, read
from w2s.files import ANSWERS, write_atomic
from w2s.params import ParameterError, StudyParams

FOLDED = re.compile(r"<details>\s*<summary>Solution.*?</details>\s*", re.DOTALL)


def hand_out(to: Path, force: bool = False, given: Mapping[str, Any] | None = None) -> list[Path]:
    """Write the notebooks without outputs, cells tagged `solution` and folded solutions; nothing else is changed.

    given: parameters that every notebook's parameters cell is to have, such as a class's `read_from`.

    Raises:
        ParameterError: no notebooks; a file, the kit's own notebooks, or (without `force`) other files are in `to`.
    """
    from nbconvert.preprocessors import ClearOutputPreprocessor, TagRemovePreprocessor

    if to.exists() and not to.is_dir():
        raise ParameterError(f"--to {to}: a file is there; name a folder")
    if to.resolve() == headless.NOTEBOOKS.resolve():
        raise ParameterError(f"--to {to}: there lie the notebooks with their solutions; name another folder")
    if to.exists() and any(to.iterdir()) and not force:
        raise ParameterError(f"--to {to}: not empty; name another folder, or write over its notebooks with --force")
    headless.plan({})  # raises where the kit's notebooks are not
    params = StudyParams.check(given or {}, "--set")
    notebooks = {}
    for path in sorted(headless.NOTEBOOKS.glob("*.ipynb")):
        notebook = nbformat.read(path, 4)
        for step in (TagRemovePreprocessor(remove_cell_tags={"solution"}), ClearOutputPreprocessor()):
            notebook, _ = step.preprocess(notebook, {})
        for cell in notebook.cells:
            if cell.cell_type == "markdown":
                cell.source = FOLDED.sub("", cell.source)
            elif "parameters" in cell.metadata.get("tags", ()):
                cell.source = _with(cell.source, params)
            if "<summary>Solution" in cell.source:
                raise ParameterError(f"{path.name}, cell {cell.id}: its folded solution does not end; add </details>")
        notebook.cells = [cell for cell in notebook.cells if cell.source.strip() or cell.cell_type == "code"]
        notebooks[to / path.name] = notebook
    for path, notebook in notebooks.items():  # when none has a fault
        write_atomic(path, lambda p, notebook=notebook: nbformat.write(notebook, p))
    return list(notebooks)


def _with(source: str, params: StudyParams) -> str:
    """A parameters cell with the given values, in place of those that it names or below them."""
    lines = [line for line in source.splitlines() if line.partition(":")[0] not in params.given]
    meanings = {key: StudyParams.model_fields[key].description for key in params.given}
    return "\n".join([*lines, *(f"{key} = {params.given[key]!r}  # {meaning}" for key, meaning in meanings.items())])


def grade(folder: Path, rerun_in: Path | None = None, timeout: float = 1800) -> pd.DataFrame:
    """One row for each sub-folder, notebook or answers file of a folder: student, each exercise, right, problem.

    An exercise is 1 (right), 0 (not yet) or empty (not answered); where several files of a student have it, the best
    counts. With `rerun_in`, a folder for their studies, the notebooks are executed (`timeout`: seconds for a cell), and
    what the checks say then counts, nothing that was handed in.

    Raises:
        ParameterError: `folder` is none, is one student's, or holds nothing of a student.
    """
    if not folder.is_dir():
        raise ParameterError(f"{folder}: no folder there; name the one that holds what students handed in")
    if (folder / ANSWERS).exists():
        raise ParameterError(f"{folder}: holds {ANSWERS} itself, as a student's folder does; name the one above")
    students: dict[str, list[Path]] = {}
    for path in sorted(folder.iterdir()):
        if not path.name.startswith(".") and (path.is_dir() or path.suffix in (".ipynb", ".json")):
            students.setdefault(path.name if path.is_dir() else path.stem, []).extend(_handed_in(path))
    if not students:
        raise ParameterError(f"{folder}: no sub-folder, notebook or {ANSWERS} of a student; name another")
    return pd.DataFrame([{"student": name, **_row(paths, rerun_in, timeout)} for name, paths in students.items()])


def _handed_in(path: Path) -> list[Path]:
    """The answers and notebooks of a student's folder, leaving out links and what is hidden; or the one file."""
    found = sorted([*path.rglob("*.ipynb"), *path.rglob(ANSWERS)]) if path.is_dir() else [path]
    parts = {file: file.relative_to(path.parent).parts for file in found}
    return [file for file in found if not file.is_symlink() and not any(part[0] == "." for part in parts[file])]


def _row(paths: list[Path], rerun_in: Path | None, timeout: float) -> dict[str, object]:
    marks: dict[str, int | None] = dict.fromkeys(exercises())
    wanted = [path for path in paths if rerun_in is None or path.suffix == ".ipynb"]
    problems = [] if wanted else ["no notebook to execute" if rerun_in else f"no {ANSWERS} and no notebook"]
    for path in wanted:
        faults, answers = [], []
        try:
            if path.suffix == ".ipynb":
                notebook = nbformat.read(path, 4)
                if rerun_in:
                    print(f"executing {path}", file=sys.stderr, flush=True)
                    faults += _execute(notebook, path.parent, rerun_in, timeout)
                answers = last(_records(notebook)).values()
            else:
                answers = read(path)
            faults += [] if answers or faults else ["no check has been run"]
        except Exception as error:  # whatever was handed in: the other students' rows go on
            faults.append(f"{type(error).__name__}: {error}")
        problems += [f"in {path.name}: {' '.join(fault.split())[:200]}" for fault in faults]
        for answer in answers:
            if answer.right is not None:
                marks[answer.exercise] = max(marks[answer.exercise] or 0, int(answer.right))
    return marks | {"right": sum(mark or 0 for mark in marks.values()), "problem": "; ".join(problems)}


def _records(notebook) -> list[Answer]:
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    return [Answer.of(output.data[MIME]) for output in outputs if MIME in output.get("data", {})]


def _execute(notebook, folder: Path, output_dir: Path, timeout: float) -> Iterator[str]:
    """Execute every cell in place, in a fresh kernel; what failed: the kernel, the first of the cells."""
    from nbclient import NotebookClient

    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    for cell in code:  # those that are not executed, by a tag or after a dead kernel, count for nothing
        cell.outputs = []
    tags = [" ".join(cell.metadata.get("tags", ())) for cell in notebook.cells]
    after = max((place for place, words in enumerate(tags) if "parameters" in words), default=-1) + 1
    notebook.cells.insert(after, nbformat.v4.new_code_cell(f"output_dir = {str(output_dir.absolute())!r}"))
    try:
        with headless.own_kernel() as kernel:
            how = {"kernel_name": kernel, "timeout": timeout, "extra_arguments": headless.QUIET}
            NotebookClient(notebook, allow_errors=True, resources={"metadata": {"path": str(folder)}}, **how).execute()
    except Exception as error:  # out of time or memory
        yield f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
    failed = [output for cell in code for output in cell.outputs if output.output_type == "error"]
    yield from (f"a cell fails with {error.ename}: {error.evalue}" for error in failed[:1])
