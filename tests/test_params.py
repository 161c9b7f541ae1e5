"""The schema of a study: what it accepts, and one clear line for what it does not."""

from pathlib import Path

import pytest
import yaml

from w2s.params import HOME, ParameterError, StudyParams, located

SHIPPED = sorted((HOME / "params").glob("*.yaml"))


BAD = [
    ({"treshold": 0.8}, ["treshold", "0.8", "threshold"]),
    ({"threshold": 2}, ["threshold", "2", "less than 1"]),
    ({"threshold": "high"}, ["threshold", "high", "number"]),
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
    ({"lora": {"rank": 0, "alpha": 8}}, ["lora.rank", "0", "greater than or equal to 1"]),
    ({"lora": {"rank": 4}}, ["lora.alpha", "required"]),
    ({"lora": {"rank": 4, "alpha": 8, "layers": 2}}, ["lora", "layers", "2"]),
    ({"lora": {"rank": 4, "alpha": 8, "dropout": 1.0}}, ["lora.dropout", "1.0", "less than 1"]),
    ({"lora": {"r": 8}}, ["lora", "unknown key 'r'", "did you mean 'rank'?"]),
    ({"lora": {"rank": 4, "alpha": 8, "target_modules": "all-linear"}}, ["target_modules", "all-linear", "[a, b]"]),
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
]


@pytest.mark.parametrize(("values", "words"), BAD)
def test_bad_values_name_key_value_and_remedy_in_one_line(values, words):
    with pytest.raises(ParameterError) as caught:
        StudyParams.check(values)
    message = str(caught.value)
    assert "\n" not in message and all(word in message for word in words), message


@pytest.mark.parametrize("content", ["- a\n- b\n", "study: [unclosed\n", "just text\n"])
def test_a_file_that_is_no_mapping_or_not_there(content, tmp_path):
    file = tmp_path / "p.yaml"
    with pytest.raises(ParameterError, match="no such parameter file"):
        StudyParams.load(file)
    file.write_text(content)
    with pytest.raises(ParameterError, match=r"p\.yaml"):
        StudyParams.load(file)


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
def test_every_shipped_file_is_valid_and_comments_every_key(path: Path):
    StudyParams.load(path)
    lines = path.read_text().splitlines()
    keys = [i for i, line in enumerate(lines) if line and line[0].isalpha()]
    assert keys and [lines[i] for i in keys if not lines[i - 1].startswith("#")] == []
    assert path.stem != "pocket" or set(yaml.safe_load(path.read_text())) == set(StudyParams.model_fields)


PAPER = [path for path in SHIPPED if path.name.startswith("paper_")]


@pytest.mark.parametrize("path", PAPER, ids=lambda p: p.name)
def test_paper_files_have_the_papers_recipe_and_say_what_they_are(path: Path):
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
    grids = {(m, f) for m in ("reward", "simpo", "dpo") for f in ("gpt2", "opt")}
    grids |= {("reward", "mistral"), ("simpo", "mistral"), ("highconf_reward", "gpt2"), ("highconf_simpo", "gpt2")}
    grids |= {("bootstrap", "opt27"), ("bootstrap", "opt67")}
    assert {path.stem for path in PAPER} == {f"paper_{method}_{family}" for method, family in grids}
    assert "pocket" in {path.stem for path in SHIPPED}


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
}


@pytest.mark.parametrize("content", YAML, ids=range(len(YAML)))
def test_yaml_without_surprises(content, tmp_path):
    file = tmp_path / "p.yaml"
    file.write_text(content)
    with pytest.raises(ParameterError) as caught:
        StudyParams.load(file)
    assert YAML[content] in str(caught.value) and "\n" not in str(caught.value)


def test_a_name_that_papermill_puts_in_has_to_be_a_parameter():
    cell = {"n_test": 40, "n_tset": 50, "In": ["", "n_test = 40", "# Parameters\nn_tset = 50\n"]}
    with pytest.raises(ParameterError, match="unknown parameter 'n_tset' = 50; did you mean 'n_test'?"):
        StudyParams.from_cell(cell)
    assert StudyParams.from_cell(cell | {"In": ["n_tset = 50"]}).n_test == 40  # the user's own variable
