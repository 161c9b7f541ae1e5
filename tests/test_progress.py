"""Progress: a bar for a person, a line now and then for a log."""

import pytest

from w2s import files
from w2s.files import Progress, duration


@pytest.mark.parametrize(("wait", "first"), [(10.0, "100% 2/2 runs"), (0.0, "2% 0/2 runs")])
def test_a_log_gets_a_line_when_time_has_passed_and_at_the_end(capsys, monkeypatch, wait, first):
    monkeypatch.setattr(files, "is_live", lambda: False)
    monkeypatch.setattr(files, "SECONDS_BETWEEN_LINES", wait)
    with Progress(["a", "b"]) as shown:
        for step in range(2, 51):
            shown.update("a", step, 50)
        shown.finish("a")
        shown.finish("b")
    lines = capsys.readouterr().out.splitlines()
    assert first in lines[0] and "100%" in lines[-1] and "2/2 runs" in lines[-1] and shown.bar is None
    assert len(lines) == (1 if wait else 51)


def test_a_person_gets_a_bar(capsys, monkeypatch):
    monkeypatch.setattr(files, "is_live", lambda: True)
    with Progress(["a", "b"]) as shown:
        shown.update("a", 25, 50)
        assert shown.bar.n == pytest.approx(25)
        shown.finish("a")
        shown.finish("b")
        assert shown.bar.n == pytest.approx(100)
    assert capsys.readouterr().out == ""


def test_w2s_run_marks_its_notebooks_as_headless(monkeypatch):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.setenv(files.HEADLESS, "1")
    assert not files.is_live()


@pytest.mark.parametrize(("seconds", "words"), [(0.2, "1 s"), (61, "61 s"), (240, "4 min"), (7200, "2.0 h")])
def test_durations_as_a_person_says_them(seconds, words):
    assert duration(seconds) == words
