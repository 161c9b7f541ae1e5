"""The progress of long work: a bar for a person, a line now and then for a log."""

from __future__ import annotations

import os
import sys
import time
from contextlib import AbstractContextManager

from tqdm.auto import tqdm

from w2s.files import HEADLESS, duration

SECONDS_BETWEEN_LINES = 10.0


def is_live() -> bool:
    """Somebody is watching: a terminal, or a notebook that is not executed by `w2s run`."""
    return HEADLESS not in os.environ and (sys.stdout.isatty() or "ipykernel" in sys.modules)


class Progress(AbstractContextManager):
    """Finished runs, and the steps of those under way."""

    def __init__(self, names: list[str]):
        self.share, self.done = dict.fromkeys(names, 0.0), 0
        self.started = self.last_line = time.monotonic()
        form = "{l_bar}{bar}| {elapsed}<{remaining} {postfix}"
        self.bar = tqdm(total=100, bar_format=form, disable=not is_live())

    def __exit__(self, *error) -> None:
        self.bar.close()

    def update(self, name: str, step: int, steps: int) -> None:
        if steps:  # else it has not begun
            self.share[name] = step / steps
            self._show(f"{name} step {step}/{steps}")

    def finish(self, name: str) -> None:
        self.share[name], self.done = 1.0, self.done + 1
        self._show(f"{name} done", force=self.done == len(self.share))

    def _show(self, what: str, force: bool = False) -> None:
        percent, runs = 100 * sum(self.share.values()) / len(self.share), f"{self.done}/{len(self.share)} runs"
        if not self.bar.disable:
            self.bar.update(percent - self.bar.n)
            self.bar.set_postfix_str(runs)
        elif force or time.monotonic() - self.last_line >= SECONDS_BETWEEN_LINES:
            self.last_line = time.monotonic()
            print(f"{percent:3.0f}% {runs}, {duration(self.last_line - self.started)}: {what}", flush=True)
