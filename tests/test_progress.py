"""Progress: a bar for a person, a line now and then for a log."""

import pytest

from w2s import files
from w2s.files import duration
from w2s.runs import progress
from w2s.runs.progress import Progress


@pytest.mark.parametrize(("live", "seconds_between"), [(False, 10.0), (False, 0.0), (True, 10.0)])
def test_a_log_gets_few_lines_and_the_last_and_a_person_a_bar(capsys, monkeypatch, live, seconds_between):
    monkeypatch.setattr(progress, "is_live", lambda: live)
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", seconds_between)
    with Progress(["a", "b"]) as shown:
        shown.update("a", 25, 50)
        assert shown.bar.disable != live and (not live or shown.bar.n == pytest.approx(25))
        shown.finish("a")
        shown.finish("b")
        assert not live or shown.bar.n == pytest.approx(100)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == (0 if live else 1 if seconds_between else 3)
    assert live or ("100%" in lines[-1] and "2/2 runs" in lines[-1])
    assert len(lines) < 3 or "25% 0/2 runs" in lines[0]


def test_w2s_run_marks_its_notebooks_as_headless(monkeypatch):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.setenv(files.HEADLESS, "1")
    assert not progress.is_live()


@pytest.mark.parametrize(("seconds", "words"), [(0.2, "1 s"), (61, "61 s"), (240, "4 min"), (7200, "2.0 h")])
def test_durations_as_a_person_says_them(seconds, words):
    assert duration(seconds) == words
