"""report.html: complete, self-contained, escaped, deterministic."""

import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from w2s.analysis import pooled, scoring
from w2s.params import StudyParams
from w2s.report import html, sentences, style

KNOWLEDGE = {"m-8": 0.4, "m-16": 0.6, "m-32": 0.9}
EVIL = "<script>alert(1)</script>"
VOID = {"meta", "img", "br", "link", "input", "hr"}


def predictions(knowledge=KNOWLEDGE, n=240):
    """Three models, every pair and conflict, one chain: a model is sure of the pairs below its knowledge."""
    rng = np.random.default_rng(0)
    depth = rng.uniform(0, 1, n)
    tables = []

    def add(role, model, teacher, via, conflict, margin):
        run = "-".join(filter(None, (role, via, teacher, model, conflict)))
        names = {
            "run": run,
            "role": role,
            "model": model,
            "teacher": teacher,
            "via": via,
            "conflict": conflict,
            "seed": 0,
        }
        p = 1 / (1 + np.exp(-margin))
        ids = [f"test-{i:05d}" for i in range(n)]
        tables.append(pd.DataFrame({"id": ids, "split": "test", "margin": margin, "probability": p, **names}))

    gold = {m: 4 * (depth < k) * (k > 0) + rng.normal(0, 0.5, n) for m, k in knowledge.items()}
    for model, margin in gold.items():
        add("gold", model, "", "", "none", margin)
    weak, middle, strong = knowledge
    settings = [("student", weak, middle, ""), ("student", weak, strong, ""), ("student", middle, strong, "")]
    for role, teacher, model, via in [*settings, ("bootstrapped", middle, strong, weak)]:
        for conflict, cost in (("none", 0.0), ("explicit", 2.0), ("implicit", 2.5)):
            hurt = cost * (np.abs(gold[teacher]) < 1.5) * rng.uniform(0, 1.5, n)
            add(role, model, teacher, via, conflict, 0.4 * gold[teacher] + 0.6 * gold[model] - hurt)
    return pd.concat(tables, ignore_index=True)


def write_study(folder, table, source="pocket world"):
    """The tables and figures that the notebooks would leave in a study's folder."""
    direct = table[table["role"] != "bootstrapped"]
    for number, rows in (("04", direct), ("05", table)):
        scores, accuracies = scoring.score_table(rows, bootstrap=100), scoring.accuracy_table(rows)
        through = scores if number == "04" else scores[scores["role"] == "bootstrapped"]
        found = sentences.findings(through, accuracies)
        style.save_table(scores, folder, f"{number}_scores")
        style.save_table(accuracies, folder, f"{number}_accuracy")
        style.save_table(pd.DataFrame({"sentence": found}), folder, f"{number}_findings")
    lengths = pd.DataFrame({"id": table["id"].unique(), "chosen": "short", "rejected": "longer"})
    lengths.loc[::4, "rejected"] = "not"
    style.save_table(scoring.shorter_table(table, lengths), folder, "05_shorter")
    counts = {"rows_read": [60, 40], "malformed": [0, 0], "mean_chars_chosen": [81.25, np.nan]}
    audit = pd.DataFrame({"split": ["gt", "test"], "source": [source, "b"], **counts, "sha256": ["ab" * 32, "cd" * 32]})
    style.save_table(audit, folder, "01_audit")
    for name, caption in (("04_score_by_gap", "Scores & gaps."), ("01_first", EVIL), ("05_silent", "")):
        fig, ax = plt.subplots(figsize=(3, 2))
        ax.plot([0, 1])
        style.save(ax, folder, name, caption=caption)
        plt.close(fig)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    root = tmp_path_factory.mktemp("outputs")
    write_study(root / "made-up", predictions(), EVIL)
    return root


@pytest.fixture
def params(written, tmp_path):
    """The made-up study in a folder of this test's own."""
    shutil.copytree(written / "made-up", tmp_path / "made-up")
    return StudyParams(study="made-up", output_dir=str(tmp_path))


class Page(HTMLParser):
    """Tags in order with their attributes; fails on a tag that is closed in the wrong place."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.cells = [], [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] in ("td", "th"):
            self.cells.append(data)

    def all(self, tag):
        return [attrs for name, attrs in self.tags if name == tag]


def page_of(params):
    return html.write_report(params).read_text(encoding="utf-8")


def test_the_page_lies_in_the_studys_folder_and_its_tags_are_balanced(params, tmp_path):
    path = html.write_report(params)
    page = Page(path.read_text(encoding="utf-8"))
    assert path == tmp_path / "made-up" / "report.html"
    assert path.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    assert len(page.all("h1")) == 1 and page.all("html") == [{"lang": "en"}]
    targets = {attrs["id"] for _, attrs in page.tags if "id" in attrs}
    assert {a["href"][1:] for a in page.all("a") if a["href"].startswith("#")} <= targets


def test_the_page_is_self_contained(params):
    text = page_of(params)
    page = Page(text)
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in page.tags}
    assert re.findall(r"https?://[^\s\"'<>]+", text) == ["https://arxiv.org/abs/2406.11431"]
    assert all(image["src"].startswith("data:image/png;base64,") for image in page.all("img"))
    assert not any(name.startswith("on") for _, attrs in page.tags for name in attrs)


def test_text_of_data_and_captions_is_escaped(params):
    text = page_of(params)
    assert EVIL not in text
    assert text.count("&lt;script&gt;alert(1)&lt;/script&gt;") >= 3  # audit, alt text, caption


def test_figures_stand_in_order_with_width_alt_and_caption(params):
    text = page_of(params)
    images = Page(text).all("img")
    assert [image["alt"] for image in images] == [EVIL, "Scores & gaps.", "05_silent"]
    assert re.findall(r'<figure id="(\w+)"', text) == ["01_first", "04_score_by_gap", "05_silent"]
    assert all(150 < int(image["width"]) < 320 for image in images)  # 3 inches of 96 CSS pixels
    assert "<strong>04_score_by_gap</strong>: Scores &amp; gaps.</figcaption>" in text


def test_scores_are_those_of_the_tables(params):
    scores = pd.read_parquet(params.root / "made-up" / "tables" / "05_scores.parquet")
    rows = html.scores_view(scores)
    assert len(rows) == 1 + len(scores) == 13
    position = scores.index[(scores["conflict"] == "explicit") & (scores["role"] == "bootstrapped")][0]
    row, line = scores.loc[position], rows[1 + position]
    assert f"{row.score:.2f} [{row.score_low:.2f}, {row.score_high:.2f}]" in line
    assert f"{row.tax} of 240" in line and f"{row.null:.2f}" in line
    named = dict(zip(rows[0], line, strict=True))
    assert named["Lift"] == f"{row.lift:.2f} [{row.lift_low:.2f}, {row.lift_high:.2f}]"
    assert named["p"] == ("< 0.001" if row.p < 0.001 else f"{row.p:.3f}")
    cells = Page(page_of(params)).cells
    assert all(cell in cells for line in rows for cell in line)


def test_a_setting_without_tax_says_so_and_no_cell_shows_nan(params):
    page = Page(page_of(params))
    assert page.cells.count("no tax") == 16  # four students without conflict: Score, difference, lift and p
    assert not any("nan" in cell for cell in page.cells)


def test_small_p_and_a_tax_without_an_even_one_are_said_in_words(params):
    scores = pd.read_parquet(params.root / "made-up" / "tables" / "05_scores.parquet")
    row = scores[scores["tax"] > 0].iloc[:3].assign(p=[0.0001, 0.5, 1.0])
    row.loc[row.index[1], ["null", "lift", "lift_low", "lift_high"]] = [0, np.nan, np.nan, np.nan]
    table = pd.DataFrame(html.scores_view(row)[1:], columns=html.scores_view(row)[0])
    assert table["p"].tolist() == ["< 0.001", "0.500", "1.000"] and table["Lift"][1] == "no even tax"


def test_the_findings_open_with_the_pooled_lift(params):
    """As notebook 04 makes them: what is pooled by conflict comes first."""
    folder = params.root / "made-up"
    table = predictions().query("role != 'bootstrapped'")
    scores, accuracies = scoring.score_table(table, bootstrap=100), scoring.accuracy_table(table)
    conflicts = pooled.pooled_table(pooled.count_students(table), ["conflict"], 100)
    found = sentences.findings(scores, accuracies, conflicts)
    style.save_table(pd.DataFrame({"sentence": found}), folder, "04_findings")
    row = conflicts.set_index("conflict").loc["explicit"]
    opening = re.findall(r"<li>([^<]+)</li>", page_of(params).split('<section id="findings">')[1])[0]
    assert opening.startswith(f"explicit conflict, all settings: lift {row.lift:.2f} [{row.lift_low:.2f}, ")


def test_accuracies_show_how_often_the_shorter_response_is_preferred(params):
    tables = params.root / "made-up" / "tables"
    shorter = pd.read_parquet(tables / "05_shorter.parquet").set_index("run")["shorter"]
    accuracies = pd.read_parquet(tables / "05_accuracy.parquet")
    header, *rows = html.accuracies_view(accuracies, shorter.rename("shorter").reset_index())
    assert [row[header.index("Prefers the shorter")] for row in rows] == [
        f"{shorter[r]:.2f}" for r in accuracies["run"]
    ]
    assert shorter.nunique() > 5
    assert "the truly preferred one is the shorter in 0.75 of them" in page_of(params).replace("\n", " ")


def test_the_header_says_how_the_runs_were_trained(params):
    assert header(params) == sentences.setup(params)
    changed = {
        "method": "dpo",
        "confidence": "calibrated",
        "lora": {"rank": 8, "alpha": 16.0},
        "weak_filter": "confidence",
    }
    shown = header(StudyParams.check({"study": "made-up", "output_dir": str(params.root), **changed}))
    assert "(DPO), beta 0.1" in shown["Method"] and "rank 8" in shown["Weights"]
    assert "only confident ones" in shown["Weak labels"] and "temperature" in shown["Probability"]


def header(params):
    """Terms and texts of the list in the page's header."""
    top = page_of(params).split("</header>")[0]
    terms = re.findall(r"<dt>(.*?)</dt><dd>(.*?)</dd>", top)
    return {term: text.replace("&#39;", "'") for term, text in terms}


def test_adapters_are_the_first_finding(params):
    for number in ("04", "05"):
        found = pd.read_parquet(params.root / "made-up" / "tables" / f"{number}_findings.parquet")
        lines = sentences.caveats(StudyParams.check({"lora": {"rank": 8, "alpha": 16.0}})) + list(found["sentence"])
        style.save_table(pd.DataFrame({"sentence": lines}), params.root / "made-up", f"{number}_findings")
    text = page_of(params)
    assert text.count("Trained by low-rank adapters (rank 8), not by full fine-tuning.") == 1
    assert re.findall(r"<li>([^<]+)</li>", text)[0].startswith("Trained by low-rank adapters")


def test_direct_and_bootstrapped_rows_appear_once(params):
    page = Page(page_of(params))
    assert page.cells.count("direct") == 9 and page.cells.count("m-8, then m-16") == 3


def test_findings_are_shown_once_with_summaries_before_settings(params):
    text = page_of(params)
    tables = [pd.read_parquet(params.root / "made-up" / "tables" / f"{n}_findings.parquet") for n in ("04", "05")]
    found = set(pd.concat(tables)["sentence"])
    listed = re.findall(r"<li>([^<]+)</li>", text)
    assert {line.replace("&gt;", ">") for line in listed} == found and len(listed) == len(found)
    assert text.index("explicit conflict: mean Deception Score") < text.index("explicit conflict, m-8 -&gt; m-16")


def test_a_ceiling_at_chance_is_warned_of_in_a_box(params, tmp_path):
    assert 'class="warning"' not in page_of(params)
    write_study(tmp_path / "chance", predictions({"m-8": 0.3, "m-16": 0.5, "m-32": 0.0}))
    text = page_of(StudyParams(study="chance", output_dir=str(tmp_path)))
    box = text[text.index('class="warning"') : text.index('id="findings"')]
    assert ">Warning</h2>" in box and "the strong ceiling m-32" in box and "cannot be told from chance" in box


def test_a_study_without_chains_has_a_report(params):
    folder = params.root / "made-up"
    for name in ("scores", "accuracy"):
        style.save_table(html.read_table(folder, f"04_{name}"), folder, f"05_{name}")
    style.save_table(pd.DataFrame({"sentence": ["Bootstrapping: no chain."]}), folder, "05_findings")
    page = Page(page_of(params))
    assert "direct" not in page.cells and "Through" not in page.cells


@pytest.mark.parametrize("name", html.TABLES)
def test_a_missing_table_is_named_with_its_notebook(params, name):
    (params.root / "made-up" / "tables" / f"{name}.parquet").unlink()
    with pytest.raises(
        ValueError, match=rf"{name}\.parquet: no such table; run notebook {name[:2]}_\w+ first"
    ) as error:
        html.write_report(params)
    assert "\n" not in str(error.value)
    assert not (params.root / "made-up" / "report.html").exists()


def test_every_setting_is_shown_with_its_meaning(params):
    cells = Page(page_of(params)).cells
    for key, field in StudyParams.model_fields.items():
        assert cells[cells.index(key) + 2].replace("\n", " ") == field.description
    assert cells[cells.index("study") + 1] == "made-up" and cells[cells.index("data_dir") + 1] == "null"
    assert "[none, explicit, implicit]" in cells


@pytest.mark.parametrize("changes", [{}, {"method": "simpo", "gamma": 0.5, "lora": {"rank": 8, "alpha": 16.0}}])
def test_the_parameter_file_on_the_page_gives_the_same_parameters(params, tmp_path, changes):
    params = StudyParams.check(params.model_dump(exclude_unset=True) | changes)
    text = page_of(params)
    lines = text[text.index("<summary>Parameter file</summary>") :].split("<pre>\n")[1].split("</pre>")[0]
    (tmp_path / "again.yaml").write_text(lines)
    assert StudyParams.load(tmp_path / "again.yaml") == params


def test_the_audit_leaves_out_what_is_zero_everywhere_and_cuts_hashes(params):
    rows = {row[0]: row[1:] for row in html.audit_view(html.read_table(params.root / "made-up", "01_audit"))}
    assert rows[""] == ["gt", "test"] and rows["rows read"] == ["60", "40"]
    assert "malformed" not in rows
    assert rows["sha256"] == ["abababababab", "cdcdcdcdcdcd"]


def test_the_same_inputs_give_the_same_bytes_and_no_temporary_file_stays(params):
    path = html.write_report(params)
    first = path.read_bytes()
    html.write_report(params)
    assert path.read_bytes() == first
    assert not [p for p in path.parent.rglob("*") if "tmp" in p.name]


def test_nothing_that_trains_is_imported():
    code = "import sys, w2s.report, w2s.checks, w2s.plots, w2s.plots_training; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
