"""report.html: complete, self-contained, escaped, deterministic."""

import itertools
import re
import shutil
import subprocess
import sys
from functools import partial
from html.parser import HTMLParser

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from w2s.analysis import pooled, scoring
from w2s.analysis.remedies import WEIGHTS
from w2s.params import StudyParams
from w2s.report import html, sentences, style
from w2s.report import sentences_extensions as extensions

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
        names = {"run": run, "role": role, "model": model, "teacher": teacher, "via": via, "conflict": conflict}
        chances = {"id": [f"test-{i:05d}" for i in range(n)], "probability": 1 / (1 + np.exp(-margin))}
        tables.append(pd.DataFrame({**chances, "split": "test", "seed": 0, **names}))

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


def save_findings(lines, folder, number):
    style.save_table(pd.DataFrame({"sentence": lines}), folder, f"{number}_findings")


def write_study(folder, table, source="pocket world"):
    """The tables and figures that the notebooks would leave in a study's folder."""
    direct = table[table["role"] != "bootstrapped"]
    for number, rows in (("04", direct), ("05", table)):
        scores, accuracies = scoring.score_table(rows, bootstrap=100), scoring.accuracy_table(rows)
        through = scores if number == "04" else scores[scores["role"] == "bootstrapped"]
        style.save_table(scores, folder, f"{number}_scores")
        style.save_table(accuracies, folder, f"{number}_accuracy")
        save_findings(sentences.findings(through, accuracies), folder, number)
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


def saved(params, name):
    return html.read_table(params.root / "made-up", name)


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


def test_the_page_is_well_formed_self_contained_escaped_and_the_same_again(params, tmp_path):
    path = html.write_report(params)
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    assert path == tmp_path / "made-up" / "report.html" and text.startswith("<!DOCTYPE html>")
    assert len(page.all("h1")) == 1 and page.all("html") == [{"lang": "en"}]
    targets = {attrs["id"] for _, attrs in page.tags if "id" in attrs}
    assert {a["href"][1:] for a in page.all("a") if a["href"].startswith("#")} <= targets
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in page.tags}
    assert re.findall(r"https?://[^\s\"'<>]+", text) == ["https://arxiv.org/abs/2406.11431"]
    assert all(image["src"].startswith("data:image/png;base64,") for image in page.all("img"))
    assert not any(name.startswith("on") for _, attrs in page.tags for name in attrs)
    assert EVIL not in text
    assert text.count("&lt;script&gt;alert(1)&lt;/script&gt;") >= 3  # audit, alt text, caption
    first = path.read_bytes()
    html.write_report(params)
    assert path.read_bytes() == first
    assert not [p for p in path.parent.rglob("*") if "tmp" in p.name]


def test_figures_stand_in_order_with_width_alt_and_caption(params):
    text = page_of(params)
    images = Page(text).all("img")
    assert [image["alt"] for image in images] == [EVIL, "Scores & gaps.", "05_silent"]
    assert re.findall(r'<figure id="(\w+)"', text) == ["01_first", "04_score_by_gap", "05_silent"]
    assert all(150 < int(image["width"]) < 320 for image in images)  # 3 inches of 96 CSS pixels
    assert "<strong>04_score_by_gap</strong>: Scores &amp; gaps.</figcaption>" in text


def test_scores_are_those_of_the_tables_and_a_setting_without_tax_says_so(params):
    scores = saved(params, "05_scores")
    header, *rows = html.scores_view(scores)
    assert len(rows) == len(scores) == 12
    position = scores.index[(scores["conflict"] == "explicit") & (scores["role"] == "bootstrapped")][0]
    row, shown = scores.loc[position], dict(zip(header, rows[position], strict=True))
    for column, name in {"Deception Score": "score", "Lift": "lift"}.items():
        assert shown[column] == f"{row[name]:.2f} [{row[f'{name}_low']:.2f}, {row[f'{name}_high']:.2f}]"
    assert shown["Tax pairs"] == f"{row.tax} of 240" and shown["Even tax"] == f"{row.null:.2f}"
    assert shown["p"] == ("< 0.001" if row.p < 0.001 else f"{row.p:.3f}")
    cells = Page(page_of(params)).cells
    assert all(cell in cells for line in [header, *rows] for cell in line)
    assert cells.count("direct") == 9 and cells.count("m-8, then m-16") == 3  # 04 and 05 together, each row once
    assert cells.count("no tax") == 16  # four students without conflict: Score, difference, lift and p
    assert not any("nan" in cell for cell in cells)


def test_small_p_and_a_tax_without_an_even_one_are_said_in_words(params):
    scores = saved(params, "05_scores")
    row = scores[scores["tax"] > 0].iloc[:3].assign(p=[0.0001, 0.5, 1.0])
    row.loc[row.index[1], ["null", "lift", "lift_low", "lift_high"]] = [0, np.nan, np.nan, np.nan]
    row.loc[row.index[2], ["score_low", "score_high"]] = np.nan
    table = pd.DataFrame(html.scores_view(row)[1:], columns=html.scores_view(row)[0])
    assert table["p"].tolist() == ["< 0.001", "0.500", "1.000"] and table["Lift"][1] == "no even tax"
    assert table["Deception Score"][2].endswith("[no interval]")


def test_the_findings_open_with_the_pooled_lift(params):
    """As notebook 04 makes them: what is pooled by conflict comes first."""
    table = predictions().query("role != 'bootstrapped'")
    scores, accuracies = scoring.score_table(table, bootstrap=100), scoring.accuracy_table(table)
    conflicts = pooled.pooled_table(pooled.count_students(table), ["conflict"], 100)
    save_findings(sentences.findings(scores, accuracies, conflicts), params.root / "made-up", "04")
    row = conflicts.set_index("conflict").loc["explicit"]
    opening = re.findall(r"<li>([^<]+)</li>", page_of(params).split('<section id="findings">')[1])[0]
    assert opening.startswith(f"explicit conflict, all settings: lift {row.lift:.2f} [{row.lift_low:.2f}, ")


def test_accuracies_show_how_often_the_shorter_response_is_preferred(params):
    shorter = saved(params, "05_shorter")
    shares, accuracies = shorter.set_index("run")["shorter"], saved(params, "05_accuracy")
    header, *rows = html.accuracies_view(accuracies, shorter)
    at = header.index("Prefers the shorter")
    assert [row[at] for row in rows] == [f"{shares[run]:.2f}" for run in accuracies["run"]]
    assert shares.nunique() > 5
    assert "the truly preferred one is the shorter in 0.75 of them" in page_of(params).replace("\n", " ")


def test_the_header_says_how_the_runs_were_trained(params):
    assert header(params) == sentences.setup(params)
    changed = {"method": "dpo", "confidence": "calibrated", "lora": {"rank": 8, "alpha": 16.0}}
    changed |= {"study": "made-up", "output_dir": str(params.root), "weak_filter": "confidence"}
    shown = header(StudyParams.check(changed))
    assert "(DPO), beta 0.1" in shown["Method"] and "rank 8" in shown["Weights"]
    assert "only confident ones" in shown["Weak labels"] and "temperature" in shown["Probability"]


def header(params):
    """Terms and texts of the list in the page's header."""
    terms = re.findall(r"<dt>(.*?)</dt><dd>(.*?)</dd>", page_of(params).split("</header>")[0])
    return {term: text.replace("&#39;", "'") for term, text in terms}


def test_adapters_are_the_first_finding(params):
    caveats = sentences.caveats(StudyParams.check({"lora": {"rank": 8, "alpha": 16.0}}))
    for number in ("04", "05"):
        lines = caveats + list(saved(params, f"{number}_findings")["sentence"])
        save_findings(lines, params.root / "made-up", number)
    text = page_of(params)
    assert text.count("Trained by low-rank adapters (rank 8), not by full fine-tuning.") == 1
    assert re.findall(r"<li>([^<]+)</li>", text)[0].startswith("Trained by low-rank adapters")


def test_findings_are_shown_once_with_summaries_before_settings(params):
    text = page_of(params)
    expected = set(pd.concat([saved(params, f"{n}_findings") for n in ("04", "05")])["sentence"])
    listed = re.findall(r"<li>([^<]+)</li>", text)
    assert {line.replace("&gt;", ">") for line in listed} == expected and len(listed) == len(expected)
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
        style.save_table(saved(params, f"04_{name}"), folder, f"05_{name}")
    save_findings(["Bootstrapping: no chain."], folder, "05")
    page = Page(page_of(params))
    assert "direct" not in page.cells and "Through" not in page.cells


@pytest.mark.parametrize("name", [*html.TABLES, "06_findings"])
def test_a_missing_table_is_named_with_its_notebook(params, name):
    params = params.model_copy(update={"extensions": ["controls"]})
    save_findings(["Controls."], params.root / "made-up", "06")
    (params.root / "made-up" / "tables" / f"{name}.parquet").unlink()
    message = rf"{name}\.parquet: no such table; run notebook {name[:2]}_\w+ first"
    with pytest.raises(ValueError, match=message) as error:
        html.write_report(params)
    assert "\n" not in str(error.value)
    assert not (params.root / "made-up" / "report.html").exists()


@pytest.mark.parametrize("changes", [{}, {"method": "simpo", "gamma": 0.5, "lora": {"rank": 8, "alpha": 16.0}}])
def test_every_setting_is_shown_with_its_meaning_and_the_parameter_file_gives_them_again(params, tmp_path, changes):
    params = StudyParams.check(params.model_dump(exclude_unset=True) | changes)
    text = page_of(params)
    cells = Page(text).cells
    for key, field in StudyParams.model_fields.items():
        assert cells[cells.index(key) + 2].replace("\n", " ") == field.description
    assert cells[cells.index("study") + 1] == "made-up" and cells[cells.index("data_dir") + 1] == "null"
    assert "[none, explicit, implicit]" in cells
    lines = text[text.index("<summary>Parameter file</summary>") :].split("<pre>\n")[1].split("</pre>")[0]
    (tmp_path / "again.yaml").write_text(lines)
    assert StudyParams.load(tmp_path / "again.yaml") == params


def test_the_audit_leaves_out_what_is_zero_everywhere_and_cuts_hashes(params):
    rows = {row[0]: row[1:] for row in html.audit_view(saved(params, "01_audit"))}
    assert rows[""] == ["gt", "test"] and rows["rows read"] == ["60", "40"]
    assert "malformed" not in rows
    assert rows["sha256"] == ["abababababab", "cdcdcdcdcdcd"]


def test_nothing_that_trains_is_imported():
    modules = "html, browser, style, plots, plots_training, plots_extensions, sentences, sentences_extensions"
    code = f"import sys; from w2s.report import {modules}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


CENTRES = dict.fromkeys(["score_minus_null", "estimate", "lost", "share_student_minus_share_none", "slope"], 0)
CENTRES |= {"correlation_student_minus_correlation_ceiling": 0, "correlation_student": 0, "correlation_ceiling": 0}
CENTRES |= dict.fromkeys(["auc", "accuracy", "student_accuracy", "tax_share", "score", "pgr"], 0.5) | {"lift": 1}
CENTRES |= dict.fromkeys([f"share_{model}" for model in ("student", "none", "ceiling")], 0.5)


def random_rows(rng, **columns):
    """A row of each combination of values, with all that any sentence reads of a table, at random."""
    table = pd.DataFrame(itertools.product(["none", "explicit", "implicit"], *columns.values()))
    table.columns, n = ["conflict", *columns], len(table)
    for name, centre in CENTRES.items():
        numbers = np.sort(rng.uniform(centre - 0.4, centre + 0.4, (3, n)), axis=0)
        table[[f"{name}_low", name, f"{name}_high"]] = numbers.T * (rng.random() > 0.1)
    for name in ("lift", "score_minus_null", "pgr"):
        table.loc[rng.random(n) < 0.1, [name, f"{name}_low"]] = np.nan
    for name in ("reference_accuracy", "weak_accuracy", "ceiling_accuracy", "gap", "null", "holm", "confident_share"):
        table[name] = rng.choice([0.005, 0.5, 0.9], n, p=[0.2, 0.2, 0.6])
    table["tax"], table["pairs"], table["seeds"] = rng.choice([0, 9, 50], n), 100, rng.choice([1, 3])
    names = {"target": "helpful", "conflicting": "harmless", "runs": 4, "chains": 2, "points": 5, "role": "student"}
    return table.assign(low=table["estimate_low"], high=table["estimate_high"], smallest=0, largest=1, **names)


def say_all(rng):
    """Every function that makes sentences, of random tables."""
    draw, pair = partial(random_rows, rng), "a -> b"
    teams = [("a", "b"), ("a", "c"), ("a", "d"), ("b", "c"), ("b", "d")][: rng.choice([2, 5])]
    scores = draw(team=teams, seed=range(rng.integers(1, 3))).assign(via="")
    scores[["weak", "strong"]] = scores["team"].to_list()
    scores["teacher"], order = scores["weak"], rng.choice(["score", "null"])
    scores["score_minus_null"], scores["gap"] = scores["score"] - 0.5, scores[order] * rng.choice([-1, 0, 1])
    gold = draw(model=["b", "c", "d"], seed=range(2)).query("conflict == 'none'").assign(role="gold")
    gold["low"] = rng.choice([0.4, 0.6], len(gold), p=[0.1, 0.9])
    slopes = draw(measure=["score", "score_minus_null"]).drop(columns=["score"])
    slopes[["low", "slope", "high"]] = slopes[["slope_low", "slope", "slope_high"]]
    settings = scores.query("seed == 0")
    sentences.findings(scores, gold, draw(), slopes, settings if rng.random() < 0.5 else None)
    sentences.bootstrapping(draw(difference=["score", "score_minus_null", "tax_share", "student_accuracy"]))
    extensions.by_knowledge(draw(known_by=["knowledge", "sure_knowledge", "confidence"]).assign(tax=50))
    extensions.blind_spots(draw(), 0.75, "paper")
    extensions.shared_errors(draw())
    extensions.variance(draw(predictor=["variance, conflict"]))
    controls = draw(labels=["weak", "gold"], seed=range(2))
    extensions.control_warnings(gold, "b", controls)
    extensions.label_lines(controls, draw(less=extensions.WEAK_LESS), pair)
    extensions.no_conflict_line(controls.iloc[0], pair)
    extensions.strength_lines(draw(measure=["alpha"], labels=["weak", "gold"]), pair)
    extensions.swapped_lines(draw(), pair)
    extensions.coverage(range(rng.integers(1, 3)))
    remedies = draw(remedy=["x", WEIGHTS, "z"]).assign(uses_gold=rng.random() < 0.5)
    compared = draw(remedy=["x", WEIGHTS, "z"], measure=["accuracy", "tax_share", "score_minus_null"])
    compared["low"] = compared["low"].where(rng.random(len(compared)) > 0.1)
    extensions.remedy_warnings(remedies)
    extensions.remedy_findings(compared, remedies)
    extensions.against_control(compared)


def test_every_text_of_the_file_is_said(monkeypatch):
    said, texts = set(), sentences.texts()

    class Recorded(dict):
        def __getitem__(self, key):
            said.add(key)
            return super().__getitem__(key)

    monkeypatch.setattr(sentences, "texts", lambda: Recorded(texts))
    adapted = {"lora": {"rank": 8, "alpha": 16.0}, "target": "helpful"}
    for method, kept in (("reward", "none"), ("dpo", "confidence"), ("simpo", "gold_oracle")):
        for confidence in sentences.CONFIDENCES if method != "reward" else ("paper", "calibrated"):
            changes = {"method": method, "confidence": confidence, "weak_filter": kept}
            params = StudyParams.check(changes | (adapted if confidence != "paper" else {}))
            assert len(sentences.setup(params)) == 5
            sentences.caveats(params), sentences.mark(params.lora)
    for seed in range(40):
        say_all(np.random.default_rng(seed))
    assert set(texts) - said == set()
