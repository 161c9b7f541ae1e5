"""What a notebook works with: its parameters, the runs of its study, and a place for figures and tables."""

from __future__ import annotations

import json
import os
import textwrap
from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd

from w2s import files
from w2s.files import HEADLESS, write_json
from w2s.params import NO_RESULT, ParameterError, StudyParams, differences
from w2s.report import sentences, style
from w2s.runs import cluster
from w2s.study import Study

WIDTH = 98  # of printed text, in characters
RECORD = ".executed.json"  # in a study's folder, of `w2s run` as well: notebook -> parameters that it was executed with
# Parameters that make no other tables and figures, beside NO_RESULT.
HOW = ("study", "output_dir", "read_from", "also", "extensions", "offline", "scheduler", "workers", "save_models")


class Lab(Study):
    """A study at work: the plan of its runs, trained when they are asked for, and what is shown of them."""

    @classmethod
    def of(cls, cell: Mapping[str, Any]) -> Lab:
        """The study of a notebook's globals; says how it differs from the defaults and from results that are there.

        Raises a ParameterError for a parameter that cannot be used, or a notebook of another checkout than w2s.
        """
        lab = cls(StudyParams.from_cell(cell))
        files.open_study = lab.folder
        style.tidy_tables()
        say(lab.params.changed())
        differ = lab._differ(lab._record().values())
        if differ and HEADLESS not in os.environ:  # else `w2s run` has said it
            print(f"{lab.folder} holds results of {differ}: this notebook replaces its own; study = NAME keeps both")
        return lab

    @classmethod
    def ready(cls, cell: Mapping[str, Any]) -> Lab:
        """As `of`, with pairs and models looked up, as `Study.open` does."""
        return cls.open(cls.of(cell).params)

    def _record(self) -> dict[str, dict]:
        file = self.folder / RECORD
        try:
            record = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
            return {notebook: {**entry} for notebook, entry in record.items()}
        except (ValueError, TypeError, AttributeError):
            raise ParameterError(f"{file}: damaged; delete it, then w2s run executes the notebooks again") from None

    def _differ(self, entries: Iterable[Mapping]) -> str:
        given = [entry["given"] for entry in entries if "given" in entry]
        return differences(given, self.params.given, leave_out=(*HOW, *NO_RESULT))

    def _write_down(self, name: str) -> None:
        """Record with which parameters the notebook was executed that a figure's or table's name begins with."""
        record, number = self._record(), name[:2]
        notebook = next((entry for entry in record if entry[:2] == number), number)
        entry = record.get(notebook, {"files": {}, "given": {}})
        if HEADLESS not in os.environ and number.isdigit() and (notebook not in record or self._differ([entry])):
            entry |= {"key": None, "given": self.params.given}
            write_json(self.folder / RECORD, record | {notebook: entry})

    def train(self, specs: dict) -> pd.DataFrame:
        """Train the runs that are not in the cache; the predictions of all, with the columns that name them."""
        return cluster.results(self, specs)

    def predictions(self, name: str = "predictions") -> pd.DataFrame:
        """What notebook 03 wrote of every run and pair, with the probabilities that `confidence` makes of margins.

        `name`: its table; "known_answers" has the students whose answer is known. With `read_from` 03 need not have
        run: the runs are taken from there, and trained where they are not.
        Raises ValueError where it has not run, ParameterError where the models were trained by another method.
        """
        p = self.params
        if p.read_from and not (self.folder / "tables" / f"{name}.parquet").exists():
            specs = self.direct_runs() if name == "predictions" else self.known_answers()
            return self.train(specs) if specs else self.predictions().head(0)
        table = style.read_table(self.folder, name)
        trained = "dpo" if "reference_margin" in table else "simpo" if "chosen_logp" in table else "reward"
        if trained != p.method:
            raise ParameterError(f"method = {p.method!r}: the models of {self.folder} are {trained}; set it so")
        return cluster.judged(table, self)

    def show(self, axes, name: str, caption: str = "", table: pd.DataFrame | None = None, of_models=True) -> None:
        """Save a figure, its caption and the table that it shows; the notebook draws it below the cell.

        `of_models`: the caption says where low-rank adapters were trained.
        """
        style.save(axes, self.folder, name, table, caption + (sentences.mark(self.params.lora) if of_models else ""))
        self._write_down(name)

    def keep(self, table: pd.DataFrame, name: str) -> pd.DataFrame:
        """Save a table as tables/<name>.csv and .parquet, and return it."""
        style.save_table(table, self.folder, name)
        self._write_down(name)
        return table

    def conclude(self, lines: Iterable[str], name: str) -> None:
        """Save sentences as the table <name>, and print them as a list."""
        for sentence in self.keep(pd.DataFrame({"sentence": list(lines)}), name)["sentence"]:
            print(textwrap.fill(sentence, WIDTH, initial_indent="- ", subsequent_indent="  "))


def say(text: str) -> None:
    """Print a sentence on lines of at most WIDTH characters."""
    print(textwrap.fill(text, WIDTH, break_on_hyphens=False))
