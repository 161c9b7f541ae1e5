"""What a notebook works with: its parameters, the runs of its study, and a place for figures and tables."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd

from w2s.params import StudyParams
from w2s.report import sentences, style
from w2s.runs import cluster
from w2s.spec import RunSpec
from w2s.study import Study

WIDTH = 98  # of printed text, in characters


class Lab(Study):
    """A study at work: the plan of its runs, trained when they are asked for, and what is shown of them."""

    @classmethod
    def of(cls, cell: Mapping[str, Any]) -> Lab:
        """The study of a notebook's globals; says which parameters differ from the defaults, and loads nothing yet.

        Raises:
            ParameterError: a parameter that cannot be used.
        """
        lab = cls(StudyParams.from_cell(cell))
        say(lab.params.changed())
        return lab

    @classmethod
    def ready(cls, cell: Mapping[str, Any]) -> Lab:
        """As `of`, with pairs and models looked up, as `Study.open` does."""
        return cls.open(cls.of(cell).params)

    def train(self, specs: dict[RunSpec, dict]) -> pd.DataFrame:
        """Train the runs that are not in the cache; the predictions of all, with the columns that name them."""
        return cluster.results(self, specs)

    def show(
        self, axes, name: str, caption: str = "", table: pd.DataFrame | None = None, of_models: bool = True
    ) -> None:
        """Save a figure, its caption and the table that it shows; the notebook draws it below the cell.

        `of_models`: the caption says where low-rank adapters were trained.
        """
        style.save(axes, self.folder, name, table, caption + (sentences.mark(self.params.lora) if of_models else ""))

    def keep(self, table: pd.DataFrame, name: str) -> pd.DataFrame:
        """Save a table as tables/<name>.csv and .parquet, and return it."""
        style.save_table(table, self.folder, name)
        return table

    def conclude(self, lines: Iterable[str], name: str) -> None:
        """Save sentences as the table <name>, and print them as a list."""
        for sentence in self.keep(pd.DataFrame({"sentence": list(lines)}), name)["sentence"]:
            print(textwrap.fill(sentence, WIDTH, initial_indent="- ", subsequent_indent="  "))


def say(text: str) -> None:
    """Print a sentence on lines of at most WIDTH characters."""
    print(textwrap.fill(text, WIDTH, break_on_hyphens=False))
