"""The schema of a study: what it accepts, one clear line for what it does not; files of every kind, fuzzed."""

import ast
import math
import re
import shutil

import nbformat
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from w2s import params as schema
from w2s.app import cli
from w2s.lab import Lab
from w2s.params import HOME, PACKAGE, ParameterError, StudyParams, located
from w2s.spec import SPLITS
from w2s.study import SAME_NAME

SHIPPED = sorted((HOME / "params").glob("*.yaml"))
FIELDS = StudyParams.model_fields
LORA = {"rank": 4, "alpha": 8}
BAD = [
    ({"treshold": 0.8}, ["treshold", "0.8", "threshold"]),
    ({"threshold": 2}, ["threshold", "2", "less than 1"]),
    ({"threshold": "high"}, ["threshold", "high", "number"]),
    ({"learning_rate": "1e-6"}, ["learning_rate", "'1e-6'", "write a number such as 1.0e-6"]),
    ({"n_gt": "4"}, ["n_gt", "'4'", "integer"]),
    ({"n_gt": 4.5}, ["n_gt", "4.5", "integer"]),
    ({"epochs": True}, ["epochs", "True", "integer"]),
    ({"conflicts": ["none", "explict"]}, ["conflicts", "explict", "'explicit'"]),
    ({"conflicts": ["explicit"]}, ["conflicts", "none"]),
    ({"known_by": "golf"}, ["known_by", "golf", "'gold'"]),
    ({"weak_models": "gpt2"}, ["weak_models", "gpt2", "list"]),
    ({"seeds": [1, 1]}, ["seeds", "once"]),
    ({"device": "gpu"}, ["device", "gpu"]),
    ({"data_dir": "somewhere"}, ["data_dir", "pocket"]),
    ({"scheduler": "localhost"}, ["scheduler", "localhost"]),
    ({"method": "dpoo"}, ["method", "dpoo", "'dpo'"]),
    ({"beta": 0.1}, ["beta = 0.1", "method reward has no beta", "leave it out"]),
    ({"method": "dpo", "gamma": 1.0}, ["gamma = 1.0", "method dpo has no gamma", "leave it out"]),
    ({"method": "dpo", "beta": 0.0}, ["beta", "0.0", "greater than 0"]),
    ({"method": "simpo", "gamma": -1.0}, ["gamma", "-1.0", "greater than or equal to 0"]),
    ({"sft_epochs": 2}, ["sft_epochs = 2", "method reward has no sft_epochs"]),
    ({"confidence": "implicit_reward"}, ["confidence", "implicit_reward", "method reward", "paper or calibrated"]),
    ({"weak_filter": "gold"}, ["weak_filter", "'gold'", "choose one of", "gold_oracle"]),
    ({"lora": LORA | {"rank": 0}}, ["lora.rank", "0", "greater than or equal to 1"]),
    ({"lora": {"rank": 4}}, ["lora.alpha", "required"]),
    ({"lora": LORA | {"layers": 2}}, ["lora", "layers", "2"]),
    ({"lora": LORA | {"dropout": 1.0}}, ["lora.dropout", "1.0", "less than 1"]),
    ({"lora": LORA | {"rank": "0100"}}, ["lora.rank", "'0100'", "integer"]),
    ({"lora": LORA | {"alpha": "1_0"}}, ["lora.alpha", "'1_0'", "write a number"]),
    ({"lora": {"r": 8}}, ["lora", "unknown key 'r'", "did you mean 'rank'?"]),
    ({"lora": LORA | {"target_modules": "all-linear"}}, ["target_modules", "all-linear", "[a, b]"]),
    ({"seeds": [-1]}, ["seeds", "-1", "greater than or equal to 0"]),
    ({"seeds": [2**70]}, ["seeds", str(2**70), "less than 4294967296"]),
    ({"seeds": "[0, 1]"}, ["seeds", "[0, 1]", "papermill", "-y 'key: [a, b]'"]),
    ({"alpha": float("inf")}, ["alpha", "inf", "finite"]),
    ({"threshold": float("nan")}, ["threshold", "nan", "finite"]),
    ({"alpha": "1_0"}, ["alpha", "1_0", "write a number"]),
    ({"method": "simpo", "gamma": 1e300}, ["gamma", "1e+300", "less than or equal to 1000"]),
    *(({"study": name}, ["study", name, "take another"]) for name in ("runs", "Hub", "bench", "con", "NUL.txt")),
    *(({"study": name}, ["study", name]) for name in ("a.", "..", "a/b")),
    ({"bootstrap": 10**12}, ["bootstrap = 1000000000000", "n_test = 1280", f"{2**31 // 1280} fit into memory"]),
    ({"workers": 10**5}, ["workers", "100000", "1024"]),
    ({"output_dir": "a\0b"}, ["output_dir", "NUL"]),
    ({"data": "x" * 256}, ["data", "1 to 255 bytes"]),
    ({"weak_models": ["\ud800"]}, ["weak_models", "half a character"]),
    ({"frozen": True, "extensions": ["controls"]}, ["extensions = ['controls']", "do not ship", "leave them out"]),
]
YAML = {
    "n_gt: 5\nn_gt: 6": "'n_gt' stands there 2 times",
    "n_gt: 0100": "n_gt = '0100'",
    "n_gt: 1_000": "n_gt = '1_000'",
    "n_gt: 1:30": "n_gt = '1:30'",
    "offline: yes": "offline = 'yes'",
    "alpha: .inf": "alpha = '.inf'",
    "alpha: !!python/object/apply:os.getcwd []": "not readable as YAML",
    "lora: {rank: 1, rank: 2, alpha: 3}": "'rank' stands there 2 times",
    "[" * 5000: "not readable as YAML",
    "a: [&x [*x]]": "unknown parameter 'a'",
    "- a\n- b\n": "expected lines of the form key: value",
    "study: [unclosed\n": "not readable as YAML",
    "just text\n": "expected lines of the form key: value",
    None: "no such parameter file; the shipped ones are in params/",
}


@pytest.mark.parametrize(("given", "words"), [*BAD, *YAML.items()], ids=range(len(BAD) + len(YAML)))
def test_bad_values_and_files_name_key_value_and_remedy_in_one_line(given, words, tmp_path):
    file = tmp_path / "p.yaml"
    if isinstance(given, str):
        file.write_text(given)
    with pytest.raises(ParameterError) as caught:
        StudyParams.check(given) if isinstance(given, dict) else StudyParams.load(file)
    message, parts = str(caught.value), words if isinstance(given, dict) else [words, str(file)]
    assert "\n" not in message and all(part in message for part in parts), message


def test_files_and_paths(tmp_path, monkeypatch):
    """An exponent without dot is read as the number; overrides replace keys; relative paths start at the kit."""
    file = tmp_path / "p.yaml"
    file.write_text("learning_rate: 1e-6\nalpha: 0.25\n")
    assert isinstance(yaml.safe_load(file.read_text())["learning_rate"], str)  # what YAML makes of it
    assert (StudyParams.load(file).learning_rate, StudyParams.load(file).alpha) == (1e-6, 0.25)
    assert StudyParams.load(file, alpha=1.0).alpha == 1.0
    monkeypatch.chdir(tmp_path)
    assert located("outputs") == HOME / "outputs" and located(tmp_path) == tmp_path


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.name)
def test_every_shipped_file_is_valid_and_comments_every_key(path):
    StudyParams.load(path)
    lines = path.read_text().splitlines()
    keys = [i for i, line in enumerate(lines) if line and line[0].isalpha()]
    assert keys and [lines[i] for i in keys if not lines[i - 1].startswith("#")] == []
    assert path.stem != "pocket" or set(yaml.safe_load(path.read_text())) == set(FIELDS)


PAPER = [path for path in SHIPPED if path.name.startswith("paper_")]


@pytest.mark.parametrize("path", PAPER, ids=lambda p: p.name)
def test_paper_files_have_the_papers_recipe_and_say_what_they_are(path):
    """Numbers of arXiv 2406.11431: 4,000 pairs each, batch 32, context 512, alpha 0.5, T 0.75; the rest by method."""
    p, method = StudyParams.load(path), path.stem.split("_")[1]
    assert p.n_gt == p.n_w2s == p.n_helpful == p.n_test == 4000
    assert (p.batch_pairs, p.max_length, p.alpha, p.threshold) == (32, 512, 0.5, 0.75)
    assert (p.confidence, p.lora, p.tax_reference, p.study) == ("paper", None, "none", path.stem)
    if p.method == "reward":
        assert (p.learning_rate, p.epochs) == (1e-5, 1)
    else:
        assert (p.learning_rate, p.sft_learning_rate, p.sft_epochs) == (1e-6, None, 1)
        assert (p.beta, p.gamma, p.epochs) == ((0.1, None, 3) if p.method == "dpo" else (2.0, 1.0, 1))
    assert p.method == (method if method in ("reward", "dpo") else "reward" if "reward" in path.stem else "simpo")
    assert (p.weak_filter == "gold_oracle") == (method == "highconf")
    assert bool(p.intermediate_models) == (method == "bootstrap")
    head = " ".join(line.lstrip("# ") for line in path.read_text().split("\n\n")[0].splitlines())
    assert all(words in head for words in ("The paper's", "not measured", "Deviations:", "PFLOP"))
    assert f"--set data=hh --set study={path.stem}_hh" in head


def test_the_papers_experiments_are_all_there():
    grids = {f"{method}_{family}" for method in ("reward", "simpo", "dpo") for family in ("gpt2", "opt")}
    grids |= {"reward_mistral", "simpo_mistral", "highconf_reward_gpt2", "highconf_simpo_gpt2"}
    grids |= {"bootstrap_opt27", "bootstrap_opt67"}
    assert {path.stem for path in PAPER} == {f"paper_{grid}" for grid in grids}
    assert "pocket" in {path.stem for path in SHIPPED}


def test_every_parameter_is_read_outside_the_schema():
    """As params.KEY of a study's parameters, or by a list of names: accepted and ignored would be a defect."""
    sources = [path.read_text() for path in PACKAGE.rglob("*.py") if path.name != "params.py"]
    for path in (HOME / "notebooks").glob("*.ipynb"):
        sources += [cell.source for cell in nbformat.read(path, 4).cells if cell.cell_type == "code"]
    nodes = [node for source in sources for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Attribute)]
    params = re.compile(r"(.*\.)?(params|p)|studies\[-?\d\]\[0\]")
    read = {node.attr for node in nodes if isinstance(node.ctx, ast.Load) and params.fullmatch(ast.unparse(node.value))}
    assert sum('getattr(params, f"n_{split}")' in source for source in sources) >= 2
    assert FIELDS.keys() - read - {*SAME_NAME} - {f"n_{split}" for split in SPLITS} == set()


def test_a_name_that_papermill_puts_in_has_to_be_a_parameter():
    cell = {"n_test": 40, "n_tset": 50, "In": ["", "n_test = 40", "# Parameters\nn_tset = 50\n"]}
    with pytest.raises(ParameterError, match="unknown parameter 'n_tset' = 50; did you mean 'n_test'?"):
        StudyParams.from_cell(cell)
    assert StudyParams.from_cell(cell | {"In": ["n_tset = 50"]}).n_test == 40  # the user's own variable


def test_a_notebook_of_another_checkout_than_the_kernels_package_is_refused(tmp_path, monkeypatch):
    notebooks = tmp_path / "other" / "notebooks"
    notebooks.mkdir(parents=True)
    monkeypatch.chdir(notebooks)
    assert Lab.of({}).params == StudyParams()  # copied somewhere without a w2s/ beside it
    left_out = shutil.ignore_patterns("ladder", "frozen", "__pycache__")
    shutil.copytree(PACKAGE, tmp_path / "other" / "w2s", ignore=left_out)
    with pytest.raises(ParameterError) as caught:
        Lab.of({})
    message = str(caught.value)
    assert f"imports w2s from {PACKAGE}, the notebook lies in {tmp_path / 'other'}: run make lab in" in message
    assert "\n" not in message
    monkeypatch.setattr(schema, "HOME", notebooks)  # as where the package is installed by itself
    assert StudyParams.from_cell({"n_test": 40}).n_test == 40  # the same code
    (tmp_path / "other" / "w2s" / "lab.py").write_text("edited")
    with pytest.raises(ParameterError, match="this kernel imports w2s from"):
        StudyParams.from_cell({})
    monkeypatch.chdir(HOME / "notebooks")
    assert StudyParams.from_cell({}) == StudyParams()


ODD = ["0100", "1_000", "yes", "off", "1:30", "2026-01-01", ".inf", "-.inf", ".nan", "~", "0x1F", "1e3", "+5", "''"]
ODD += ["!!python/name:os.system", "&a [*a]", "{<<: {alpha: 1}}", "[1, [2, [3]]]", "none", "null", "True", "- x", "|"]
ODD += ["{rank: 0100, alpha: 8}", "{rank: 4, alpha: 1_0}"]
WORDS = ["none", "explicit", "dpo", "simpo", "pocket-40a", "cpu", "gold", "all-linear", "con", "a\0b"]
scalars = st.none() | st.booleans() | st.integers() | st.integers(0, 50) | st.floats() | st.text(max_size=20)
scalars |= st.sampled_from(WORDS)
values = st.recursive(scalars, lambda v: st.lists(v, max_size=3) | st.dictionaries(st.text(max_size=8), v, max_size=3))
keys = st.sampled_from(sorted(FIELDS)) | st.text(max_size=12)
lines = st.tuples(keys, st.sampled_from(ODD) | values.map(lambda v: yaml.safe_dump(v, default_flow_style=True).strip()))
contents = st.lists(lines, max_size=6).map(lambda ls: "\n".join(f"{k}: {v}" for k, v in ls).encode("utf-8", "replace"))
contents |= st.binary(max_size=60) | st.dictionaries(keys, values, max_size=4).map(lambda d: yaml.safe_dump(d).encode())


def used_or_refused(content: bytes, folder, capsys) -> None:
    """A file is used as it is meant, or refused in one line with status 2."""
    file = folder / "p.yaml"
    file.write_bytes(content)
    try:
        params = StudyParams.load(file)
    except ParameterError as error:
        assert "\n" not in str(error) and str(file) in str(error), content
        assert cli.main(["fetch", str(file)]) == 2, content
        assert capsys.readouterr().err.strip().count("\n") == 0
        return
    meant = yaml.load(content, yaml.BaseLoader) or {}  # every scalar as the text that it is
    used = params.model_dump(mode="json", exclude_unset=True)
    assert all(same_as_meant(value, meant[key]) for key, value in used.items()), content
    assert StudyParams.check(params.model_dump(exclude_unset=True)) == params


def same_as_meant(value, text) -> bool:
    if isinstance(value, list):
        return len(value) == len(text) and all(map(same_as_meant, value, text))
    if isinstance(value, dict):
        return all(same_as_meant(value[key], text[key]) for key in text)
    if isinstance(value, bool) or value is None:
        return text.lower() in {True: ["true"], False: ["false"], None: ["null", "~", ""]}[value]
    if isinstance(value, int | float):
        plain = not (isinstance(value, int) and re.match(r"[-+]?0.", text))
        return math.isfinite(value) and value == float(text) and "_" not in text and plain
    return value == text


@pytest.mark.parametrize("examples", [60, pytest.param(1500, marks=pytest.mark.slow)])
def test_parameter_files(examples, tmp_path, capsys):
    @settings(
        max_examples=examples, suppress_health_check=[*HealthCheck], deadline=None, derandomize=True, database=None
    )
    @given(content=contents)
    def check(content):
        used_or_refused(content, tmp_path, capsys)

    check()
