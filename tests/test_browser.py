"""The browser of test pairs: outcomes by hand, every text escaped, nothing from the network, hidden texts hidden."""

import re

import numpy as np
import pandas as pd
import pytest
from test_pooled import runs_of, seeded
from test_report import Page

from w2s.report import browser
from w2s.runs import judges
from w2s.world import World

EVIL = "<script>alert(1)</script>"
SETTING = {"weak": "a", "strong": "b", "conflict": "explicit", "seed": 0}
RIGHTS = {"weak": [0.9, 0.6, 0.6, 0.9], "ceiling": [1, 1, 0, 0], "none": [1, 1, 0, 0], "explicit": [1, 0, 1, 0]}
IDS = [f"test-{i}" for i in range(4)]


@pytest.fixture
def table():
    return seeded([runs_of(RIGHTS), runs_of(RIGHTS | {"explicit": [0, 0, 0, 0]})])


@pytest.fixture
def pairs(table):
    ids = table["id"].unique()[::-1]  # another order than the predictions
    texts = {"prompt": f"\n\nHuman: {EVIL}\n\nAssistant:", "rejected": '" onmouseover="alert(1)'}
    return pd.DataFrame({"id": ids, **texts}).assign(chosen=[f"chosen of {i}" for i in ids])


def test_outcomes_and_areas_by_hand(table, pairs):
    rows = browser.rows(table, SETTING, pairs=pairs).set_index("id")
    assert rows.loc[IDS, "outcome"].tolist() == list(browser.OUTCOMES)
    assert rows.loc["test-1", ["area", "none", "student", "weak"]].tolist() == ["S-known/W-unknown", 0.9, 0.1, 0.6]
    assert rows.loc["test-2", "chosen"] == "chosen of test-2"
    other = browser.rows(table, SETTING | {"seed": 1})
    assert "prompt" not in other and other["outcome"].isin(["tax", "wrong both"]).all()
    with pytest.raises(ValueError, match="implicit.*0 students have this setting"):
        browser.rows(table, SETTING | {"conflict": "implicit"})
    # The reference of the tax may be the ceiling.
    table.loc[table["run"] == "none-0-0", "probability"] = [0.1, 0.1, 0.9, 0.9]
    by_ceiling = browser.rows(table, SETTING, reference="ceiling").set_index("id")["outcome"]
    assert by_ceiling[IDS].tolist() == list(browser.OUTCOMES)
    assert browser.rows(table, SETTING).set_index("id").loc["test-0", "outcome"] == "gained"


def test_the_first_pairs_of_each_cell():
    rows = browser.rows(runs_of({k: v * 5 for k, v in RIGHTS.items()}), SETTING)
    picked = browser.first(rows, 3)
    assert (picked.groupby(["area", "outcome"], observed=True).size() == 3).all() and len(picked) == 12
    assert browser.first(rows, None) is rows and len(rows) == 20
    first = picked[picked["outcome"] == "tax"]["id"].tolist()
    assert first == sorted(rows.loc[rows["outcome"] == "tax", "id"])[:3]


def test_every_text_is_escaped_nothing_comes_from_the_network_and_the_table_needs_no_javascript(table, pairs):
    text = browser.page(browser.rows(table, SETTING, pairs=pairs), EVIL, EVIL)
    page = Page(text)
    assert EVIL not in text and text.count("&lt;script&gt;alert(1)&lt;/script&gt;") == 4 + 2
    assert len(page.all("script")) == 1 and not any(name.startswith("on") for _, attrs in page.tags for name in attrs)
    assert not re.findall(r"https?:|src=|@import|url\(|fetch\(|XMLHttp", text)
    page = Page(re.sub(r"<script>.*?</script>", "", text, flags=re.DOTALL))  # it is complete without JavaScript
    header = ["pair", "area", "outcome", "P weak", "P ceiling", "P no conflict", "P conflict"]
    assert page.cells[:10] == [*header, "prompt", "chosen", "rejected"] and len(page.all("tr")) == 5
    at = page.cells.index("test-1")
    assert page.cells[at + 1 : at + 7] == ["S-known/W-unknown", "tax", "0.600", "0.900", "0.900", "0.100"]
    assert page.cells[at + 7].strip() == f"Human: {EVIL}"
    assert not {"input", "select", "button", "form"} & {tag for tag, _ in page.tags}  # the script makes them


def test_hidden_texts_do_not_stand_anywhere_on_the_page(table):
    text = browser.page(browser.rows(table, SETTING), "t", browser.HIDDEN)
    assert browser.HIDDEN in text and "chosen of" not in text and '<th scope="col">prompt' not in text
    assert len(Page(text).all("tr")) == 5


def test_texts_come_from_the_study_or_the_world_or_not_at_all(tmp_path, pairs):
    ids = World().pairs("test", 6)["id"]
    made, why = judges.pair_texts(tmp_path, "pocket", np.repeat(ids[::-1], 2), "harmless")
    assert why == "" and made["id"].tolist() == list(ids)
    nothing, why = judges.pair_texts(tmp_path, "hh", ids, "harmless")
    assert nothing is None and "run notebook 03" in why
    (tmp_path / "tables").mkdir()
    pairs.to_parquet(tmp_path / "tables" / "test_pairs.parquet")
    assert "other pairs" in judges.pair_texts(tmp_path, "pocket", ids, "harmless")[1]
    assert judges.pair_texts(tmp_path, "hh", pairs["id"], "harmless")[1] == ""
