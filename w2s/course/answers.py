"""What a check says of an answer: shown below its cell, kept in the open study's folder, counted by `w2s grade`."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from functools import cache, wraps
from pathlib import Path
from typing import Any

import yaml
from IPython.core.interactiveshell import InteractiveShell
from IPython.display import display

from w2s import files
from w2s.files import ANSWERS, write_json

MIME = "application/vnd.w2s.answer+json"  # of a record among the outputs of a notebook


@cache
def exercises() -> dict[str, dict]:
    """The words of each exercise by its name, in the order of the notebooks."""
    return yaml.safe_load((Path(__file__).parent / "exercises.yaml").read_text(encoding="utf-8"))


@dataclass(frozen=True)
class Answer:
    """The record of an answer: the exercise's name, whether it is right (None: not answered yet), the check's line."""

    exercise: str
    right: bool | None
    message: str

    @classmethod
    def of(cls, record: Any) -> Answer:
        """An answer from a record of it; ValueError for anything else, such as an exercise that is not there."""
        fields = isinstance(record, dict) and record.keys() == cls.__annotations__.keys()
        if not fields or record["exercise"] not in [*exercises()] or not isinstance(record["right"], bool | None):
            raise ValueError(f"{str(record)[:90]!r} is no record of an exercise of this kit; run its check again")
        return cls(**record)

    def _ipython_display_(self) -> None:
        """Nothing, where a check's call ends a cell: it has shown its line already."""

    def show(self) -> None:
        """Print the line; in a notebook, the cell's output carries the record as well."""
        if InteractiveShell.initialized():
            display({"text/plain": self.message, MIME: asdict(self)}, raw=True)
        else:
            print(self.message)


def last(answers: Iterable[Answer]) -> dict[str, Answer]:
    """The last answer to each exercise by its name; a stub that is run again takes none away."""
    stubs_first = sorted(answers, key=lambda answer: answer.right is not None)
    return {answer.exercise: answer for answer in stubs_first}


def read(file: Path) -> list[Answer]:
    """The answers of an answers.json; ValueError or OSError for one that cannot be read."""
    records = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(records, dict):
        raise ValueError("no records by exercise; run the checks again")
    return [Answer.of(record) for record in records.values()]


def keep(answer: Answer, folder: Path) -> None:
    """Add an answer to those of a study's folder; raises as `read` does, and then leaves the file as it is."""
    file = folder / ANSWERS
    answers = last([*(read(file) if file.exists() else []), answer])
    write_json(file, {name: asdict(one) for name, one in answers.items()})


def kept(check: Callable[..., Answer]) -> Callable[..., Answer]:
    """The check, which shows its answer, keeps it where a study is open, returns it, and never stops a notebook."""

    @wraps(check)
    def said(answer, *given, **more) -> Answer:
        try:
            result = check(answer, *given, **more)
        except Exception as error:  # whatever a student's code raises: the notebook goes on
            what = "your function raises" if callable(answer) else f"with this answer, {type(answer).__name__}, comes"
            line = f"not yet: {what} {type(error).__name__}: {' '.join(str(error).split())[:200]}"
            result = Answer(check.__name__.removeprefix("check_"), False, line)
        result.show()
        folder = files.open_study
        try:
            if folder is not None:
                keep(result, folder)
        except (OSError, ValueError) as error:
            why = " ".join(str(error).split())
            print(f"not kept in {folder / ANSWERS}: {why}; move that file away, then check again")
        return result

    return said
