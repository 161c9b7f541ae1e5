"""Figures of the follow-up sections: labels, sizes, empty and missing values, the same bytes."""

import numpy as np
import pandas as pd
import pytest
from conftest import assert_same_picture, smallest, texts

from w2s.analysis import knowledge
from w2s.deception import AREAS
from w2s.report import plots_extensions

pytestmark = pytest.mark.usefixtures("close_figures")


def ranged(name, value):
    return {name: value, f"{name}_low": value - 0.1, f"{name}_high": value + 0.1}


@pytest.fixture
def known():
    cells = [{"by_confidence": a, "by_knowledge": b, "pairs": 10} for a in AREAS for b in knowledge.AREAS]
    rows = [
        {"conflict": c, "known_by": way, "pairs": 160} | ranged("lift", 1 + 0.1 * k)
        for c in ("explicit", "implicit")
        for k, way in enumerate(knowledge.WAYS)
    ]
    settings = pd.concat([pd.DataFrame(rows), pd.DataFrame(rows).assign(lift=np.nan)])  # a setting without a tax
    return pd.DataFrame(cells), pd.DataFrame(rows), settings


@pytest.fixture
def followed():
    rows = [{"conflict": c, "pairs": 160} for c in ("none", "explicit", "implicit")]
    for name in ("share", "correlation"):
        for model in ("student", "ceiling"):
            ends = {"": 0.2, "_low": 0.1, "_high": 0.3}
            rows = [row | {f"{name}_{model}{end}": value for end, value in ends.items()} for row in rows]
    table = pd.DataFrame(rows)
    return {"paper": (table, table), "calibrated": (table, table)}, (table, table)


def test_knowledge_shows_shares_that_add_up_and_each_way(known):
    left, right = plots_extensions.plot_knowledge(*known)
    shares = [float(t.get_text().rstrip("%")) for t in left.texts]
    assert len(shares) == 16 and sum(shares) == pytest.approx(100, abs=1)
    assert "n = 160" in texts(left) and "S-knows\nW-not" in texts(left)
    assert all(name in texts(right) for name in ("judged rightly", "explicit conflict", "implicit conflict", "lift"))
    assert min(smallest(left), smallest(right)) >= 9


def test_followups_have_one_picture_a_confidence_and_one_of_shared_errors(followed):
    axes = plots_extensions.plot_followups(*followed)
    assert [ax.get_title() for ax in axes] == [
        "confidence: paper", "confidence: calibrated", "errors shared with the teacher",
    ]  # fmt: skip
    assert [t.get_text() for t in axes[0].get_yticklabels()] == [
        "strong ceiling", "no conflict", "explicit conflict", "implicit conflict",
    ]  # fmt: skip
    assert not any(t.get_text() for t in axes[1].get_yticklabels())
    assert all("n = 160 pairs" in texts(ax) and smallest(ax) >= 9 for ax in axes)


def test_the_same_tables_give_the_same_bytes(known, followed, tmp_path):
    assert_same_picture(lambda: plots_extensions.plot_knowledge(*known), tmp_path, "known")
    assert_same_picture(lambda: plots_extensions.plot_followups(*followed), tmp_path, "followed")
