"""report.html: complete, self-contained, escaped, deterministic."""

import re
import shutil
from html.parser import HTMLParser
from inspect import getsource

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from w2s.analysis import followups, knowledge, pooled, scoring, yardsticks
from w2s.app import headless
from w2s.params import StudyParams
from w2s.report import claims, compare, html, sentences, sentences_extensions, style

KNOWLEDGE = {"m-8": 0.4, "m-16": 0.6, "m-32": 0.9}
EVIL = "<script>alert(1)</script>"
TWINS = {"claim": ["loss", "gap"], "conflict": "explicit", "seeds": 5, "estimate": [0.2, 0.01], "low": [0.1, -0.02]}
TWINS = pd.DataFrame(TWINS | {"high": [0.3, 0.04], "seen_from": 0.05})
VOID = {"meta", "img", "br", "link", "input", "hr", "wbr"}


def predictions(knowledge=KNOWLEDGE, n=240):
    """Three models, every pair and conflict, one chain: a model is sure of the pairs below its knowledge."""
    rng, tables = np.random.default_rng(0), []
    depth = rng.uniform(0, 1, n)

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
    counts, wide = pooled.count_students(table), {"bootstrap": 100}
    style.save_table(pooled.by_conflict(pooled.count_students(direct), **wide), folder, "04_conflicts")
    style.save_table(pooled.slope_table(pooled.count_students(direct), **wide), folder, "04_slopes")
    both = [part.where(part.settings["conflict"] == "explicit") for part in pooled.both_ways(counts)]
    overall = pooled.contrast(*both, **wide).assign(conflict="explicit")
    style.save_table(overall, folder, "05_bootstrapping")
    for name, rows in (("04_claims", TWINS), ("05_claims", TWINS[:0])):
        style.save_table(rows, folder, name)
    lengths = pd.DataFrame({"id": table["id"].unique(), "chosen": "short", "rejected": "longer"})
    lengths.loc[::4, "rejected"] = "not"
    style.save_table(scoring.shorter_table(table, lengths), folder, "05_shorter")
    counts = {"rows_read": [60, 40], "malformed": [0, 0], "mean_chars_chosen": [81.25, np.nan]}
    audit = pd.DataFrame({"split": ["gt", "test"], "source": [source, "b"], **counts, "sha256": ["ab" * 32, "cd" * 32]})
    style.save_table(audit, folder, "01_audit")
    fig, ax = plt.subplots(figsize=(3, 2))
    for name, caption in (("04_score_by_gap", "Scores & gaps."), ("01_first", EVIL), ("05_silent", "")):
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
        if tag in ("td", "th"):
            self.cells.append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if {"td", "th"} & {*self.open}:
            self.cells[-1] += data

    def all(self, tag):
        return [attrs for name, attrs in self.tags if name == tag]


def page_of(params):
    return html.write_report(params).read_text(encoding="utf-8")


def listed(text):
    return re.findall(r"<li>([^<]+)</li>", text)


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
    assert [image["alt"] for image in images] == ["Scores & gaps.", EVIL, "Scores & gaps.", "05_silent"]
    images = images[1:]  # the first is the page's main figure, as wide as the page
    assert re.findall(r'<figure id="(\w+)"', text) == ["01_first", "04_score_by_gap", "05_silent"]
    assert all(150 < int(image["width"]) < 320 for image in images)  # 3 inches of 96 CSS pixels
    assert "<strong>04_score_by_gap</strong>: Scores &amp; gaps.</figcaption>" in text


def test_the_page_opens_with_the_claims_their_verdicts_and_the_main_figure(params):
    table = claims.claim_table(params.root / "made-up").set_index(["conflict", "claim"])
    assert list(table.index) == [(c, claim) for c in ("explicit", "implicit") for claim in claims.CLAIMS]
    row = saved(params, "04_conflicts").set_index("conflict").loc["explicit"]
    loss = table.loc["explicit", "loss"]
    assert (loss["paper"], loss["twins"]) == ("supported", "supported")  # a Score above 0; [0.1, 0.3]
    assert loss["beyond_even"] == ("supported" if row.score_minus_even_low > 0 else "unclear")
    assert loss["sentence"].startswith(f"{row.score:.2f} [{row.score_low:.2f}, {row.score_high:.2f}] of the tax lies")
    assert table.loc["explicit", "gap"]["twins"] == "unclear"  # [-0.02, 0.04]
    assert set(table.loc["implicit", "bootstrapping"][["paper", "beyond_even", "twins"]]) == {"no statement"}
    for seeds, said in ((1, "seen once"), (5, "supported")):
        style.save_table(TWINS.assign(seeds=seeds), params.root / "made-up", "04_claims")
        assert claims.claim_table(params.root / "made-up").loc[0, "twins"] == said
    scores = saved(params, "04_scores")
    style.save_table(scores.assign(weak_accuracy=scores["ceiling_accuracy"]), params.root / "made-up", "04_scores")
    assert claims.claim_table(params.root / "made-up").loc[0, "paper"] == "no statement"  # the ceiling knows no more
    style.save_table(scores, params.root / "made-up", "04_scores")
    text = page_of(params)
    cells = Page(text).cells
    assert all(claim in cells for claim in ("By the paper's measure", "By twins", loss["sentence"]))
    assert text.index('class="main"') < text.index('id="claims"') < text.index('id="findings"')
    assert "One seed: the intervals cover the choice of test pairs alone" in text
    assert "One seed:" not in page_of(params.model_copy(update={"seeds": [0, 1]}))


def test_studies_side_by_side_as_a_page_and_a_csv(params, tmp_path):
    write_study(tmp_path / "again", predictions())
    folders = [tmp_path / "made-up", tmp_path / "again"]
    text = compare.write(folders, tmp_path / "compare").read_text(encoding="utf-8")
    table, page = pd.read_csv(tmp_path / "compare.csv"), Page(text)
    assert table["study"].tolist() == ["made-up"] * 2 + ["again"] * 2
    assert table["conflict"].tolist() == ["explicit", "implicit"] * 2
    of_claims = claims.claim_table(folders[0]).set_index(["conflict", "claim"])
    assert table["gap, by twins"].tolist() == ["unclear", "no statement"] * 2
    assert table["loss, by the Score"][0] == of_claims.loc[("explicit", "loss"), "paper"]
    score = saved(params, "04_conflicts").query("students == 'all settings'").set_index("conflict").loc["implicit"]
    assert f"{score.score:.2f} [{score.score_low:.2f}, {score.score_high:.2f}]" in page.cells
    assert not re.findall(r"https?://", text) and len(page.all("img")) == 1
    with pytest.raises(ValueError, match="no such table"):
        compare.write([tmp_path], tmp_path / "compare")


def test_one_pair_of_the_blind_area_is_shown_unless_texts_are_hidden(params):
    pair = {"prompt": "\n\nHuman: in the kitchen?\n\nAssistant:", "chosen": " no" + EVIL, "rejected": " yes"}
    chances = {"ceiling": 0.91, "weak": 0.62, "none": 0.8, "student": 0.3, "conflict": "implicit"}
    style.save_table(pd.DataFrame([pair | chances]), params.root / "made-up", "04_example")
    text = page_of(params)
    assert "in the kitchen?" in text and EVIL not in text and "the student under the implicit conflict 0.30" in text
    assert "in the kitchen?" not in page_of(params.model_copy(update={"show_text": False}))


def test_scores_are_those_of_the_tables_and_a_setting_without_tax_says_so(params):
    scores = saved(params, "05_scores")
    header, *rows = html.scores_view(scores)
    assert len(rows) == len(scores) == 12
    position = scores.index[(scores["conflict"] == "explicit") & (scores["role"] == "bootstrapped")][0]
    row, shown = scores.loc[position], dict(zip(header, rows[position], strict=True))
    for column, name in {"Deception Score": "score", "Lift": "lift"}.items():
        assert shown[column] == f"{row[name]:.2f} [{row[f'{name}_low']:.2f}, {row[f'{name}_high']:.2f}]"
    assert shown["Tax pairs"] == f"{row.tax} of 240" and shown["Even share"] == f"{row.even_share:.2f}"
    assert shown["p"] == ("< 0.001" if row.p < 0.001 else f"{row.p:.3f}")
    cells = Page(page_of(params)).cells
    assert all(cell in cells for line in [header, *rows] for cell in line)
    assert cells.count("direct") == 9 and cells.count("m-8, then m-16") == 3  # 04 and 05 together, each row once
    assert cells.count("no tax") == 16  # four students without conflict: Score, difference, lift and p
    assert not any("nan" in cell for cell in cells)


def test_small_p_and_a_tax_without_an_even_one_are_said_in_words(params):
    scores = saved(params, "05_scores")
    row = scores[scores["tax"] > 0].iloc[:3].assign(p=[0.0001, 0.5, 1.0])
    row.loc[row.index[1], ["even_share", "lift", "lift_low", "lift_high"]] = [0, np.nan, np.nan, np.nan]
    row.loc[row.index[2], ["score_low", "score_high"]] = np.nan
    table = pd.DataFrame(html.scores_view(row)[1:], columns=html.scores_view(row)[0])
    assert table["p"].tolist() == ["< 0.001", "0.500", "1.000"] and table["Lift"][1] == "no even tax"
    assert table["Deception Score"][2].endswith("(no interval)")


def test_accuracies_show_how_often_the_shorter_response_is_preferred(params):
    shorter = saved(params, "05_shorter")
    shares, accuracies = shorter.set_index("run")["shorter"], saved(params, "05_accuracy")
    header, *rows = html.accuracies_view(accuracies, shorter)
    at = header.index("Prefers the shorter")
    assert [row[at] for row in rows] == [f"{shares[run]:.2f}" for run in accuracies["run"]]
    assert shares.nunique() > 5
    assert "the truly preferred one is the shorter in 0.75 of them" in page_of(params).replace("\n", " ")


def test_findings_are_shown_once(params):
    text = page_of(params)
    expected = set(pd.concat([saved(params, f"{n}_findings") for n in ("04", "05")])["sentence"])
    assert sorted(line.replace("&gt;", ">") for line in listed(text)) == sorted(expected)


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
    terms = re.findall(r"<dt>(.*?)</dt><dd>(.*?)</dd>", text.split('<section id="settings"')[1])
    assert {term: words.replace("&#39;", "'") for term, words in terms} == sentences.setup(params)
    lines = text[text.index("<summary>Parameter file</summary>") :].split("<pre>\n")[1].split("</pre>")[0]
    (tmp_path / "again.yaml").write_text(lines)
    assert StudyParams.load(tmp_path / "again.yaml") == params


def test_the_audit_leaves_out_what_is_zero_everywhere_and_cuts_hashes(params):
    rows = {row[0]: row[1:] for row in html.audit_view(saved(params, "01_audit"))}
    assert rows[""] == ["gt", "test"] and rows["rows read"] == ["60", "40"]
    assert "malformed" not in rows
    assert rows["sha256"] == ["abababababab", "cdcdcdcdcdcd"]


def test_each_text_is_used_and_each_of_its_fields_is_a_name_of_the_rules():
    """A key stands in the rules: by itself, at the end of an f-string, or as a verdict of a text with an answer."""
    texts, code = sentences.texts(), "".join(map(getsource, (sentences, sentences_extensions, claims, html, headless)))
    names = "reward dpo simpo none confidence gold_oracle implicit_reward calibrated gold shuffled accuracy tax_share"
    names += " score score_minus_even better worse unclear silent remain pass fail loss gap bootstrapping"
    used = set(re.findall(r'"(\w+)"', code))
    used |= {start + name for start in re.findall(r'f"(\w+_)\{', code) for name in names.split()}
    judged = {key for key, text in texts.items() if "_answer}" in text} | set(re.findall(r'answer\("(\w+)"', code))
    verdicts = {f"{key}_{end}" for key in judged for end in ("above", "below", "neither")}
    assert verdicts <= set(texts) <= used | verdicts
    known = set(
        re.split(r"[^a-z]+", code + "".join(map(getsource, (followups, knowledge, pooled, scoring, yardsticks))))
    )
    fields = {part for text in texts.values() for name in re.findall(r"\{(\w+)", text) for part in name.split("_")}
    assert fields <= known
