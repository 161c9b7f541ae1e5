"""Pairs and models of other forms: read rightly, or refused in one line before anything runs."""

import gzip
import json
import pickle
import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch
import transformers as hf
from conftest import small_params
from huggingface_hub import save_torch_state_dict
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_data import ALONE, checked, full, hh, load, params, row_of

from w2s import models, zoo
from w2s.params import ParameterError
from w2s.sources import hub
from w2s.sources.audit import FAULTS, DataError, fault_of, split_text
from w2s.study import Study, short_names
from w2s.world import SPLITS


def chat(*texts: str) -> list[dict]:
    return [{"role": ("user", "assistant")[k % 2], "content": text} for k, text in enumerate(texts)]


ASKED, PROMPT = "Where is it?", "\n\nHuman: Where is it?\n\nAssistant:"
HERE, THERE, IDS = chat("", "Here.")[1:], chat("", "There.")[1:], {"better_response_id": 0, "safer_response_id": 1}
ROWS = {
    "columns": {"prompt": ASKED, "chosen": "Here.", "rejected": " There."},
    "columns of the HH format": {"prompt": PROMPT, "chosen": "Here.", "rejected": " There."},
    "dialogues": hh(ASKED, "Here.", "There."),
    "dialogues beside their prompt": {"prompt": ASKED, **hh(ASKED, "Here.", "There.")},
    "messages": {"chosen": chat(ASKED, "Here."), "rejected": chat(ASKED, "There.")},
    "messages and a prompt": {"prompt": ASKED, "chosen": HERE, "rejected": THERE},
    "prompt of messages": {"prompt": chat(ASKED), "chosen": HERE, "rejected": THERE},
    "prompt twice": {"prompt": ASKED, "chosen": chat(ASKED, "Here."), "rejected": chat(ASKED, "There.")},
    "safer": {"prompt": ASKED, "response_0": "There.", "response_1": "Here.", **IDS},
    "safer, from CSV": {"prompt": ASKED, "response_0": "Here.", "response_1": "There.", "safer_response_id": "0"},
}


@pytest.mark.parametrize("form", ROWS)
def test_rows_of_all_forms_give_the_same_pair(form):
    line = json.dumps(ROWS[form]).encode()
    for row in (ROWS[form], line, b"\xef\xbb\xbf" + line):  # the mark with which some editors begin a file
        assert fault_of(row) == ((PROMPT, " Here.", " There.", PROMPT), "")


def test_turns_a_system_message_and_the_other_dimension():
    long = {"chosen": chat("a", "b", "c", "d"), "rejected": chat("a", "b", "c", "e")}
    long = {key: [{"role": "system", "content": "Be kind."}, *turns] for key, turns in long.items()}
    prompt = "\n\nHuman: Be kind.\n\na\n\nAssistant: b\n\nHuman: c\n\nAssistant:"
    assert fault_of(long) == ((prompt, " d", " e", prompt), "")
    assert split_text(f"{prompt} d") == (prompt, " d")
    assert fault_of({"prompt": "Go on", "chosen": "Go on, then.", "rejected": "Go on, no."})[1] == ""  # by chance
    assert fault_of(ROWS["safer"], helpful=True)[0][:3] == (PROMPT, " There.", " Here.")


CAI_ROW, NO_TEXT = {"init_prompt": "a", "init_response": "b"}, {"prompt": None, "chosen": "b", "rejected": "c"}
CAKE = "How do I bake a cake well?"
BAD = {
    "wrong_encoding": ["{'ä': 1}".encode("latin-1"), rb'{"chosen": "\ud800", "rejected": "x"}'],
    "malformed": [b'{"chosen": ', b'["a", "b"]', b"[" * 99999],
    "missing_keys": [
        {"chosen": "a"}, {"chosen": "none", "rejected": "none"}, CAI_ROW,
        {"prompt": "a", "response_0": "b", "response_1": "c", "better_response_id": 0}],
    "not_text": [{"prompt": "a", "chosen": "b", "rejected": 3}, NO_TEXT],
    "bad_messages": [
        {"chosen": chat("a"), "rejected": chat("a", "b")}, {"chosen": chat("a", "b"), "rejected": "text"},
        {"chosen": [{"role": "tool", "content": "a"}], "rejected": chat("a", "b")},
        {"chosen": [{"role": "user"}], "rejected": chat("a", "b")}],
    "prompt_mismatches": [hh("a", rejected_question="b")],
    "empty_prompts": [hh(" "), NO_TEXT | {"prompt": ""}],
    "empty_responses": [hh("a", chosen=" "), hh("a", rejected="")],
    "chat_markers": [hh("a", "<|im_start|>"), {"prompt": "<|im_start|>user a", "chosen": "b", "rejected": "c"}],
    "repeated_prompts": [{"prompt": CAKE, "chosen": f"{CAKE} So.", "rejected": f"{CAKE} No."}],
    "identical_responses": [hh("a", "same", "same ")],
}  # fmt: skip


@pytest.mark.parametrize(("fault", "bad"), [(fault, bad) for fault in FAULTS for bad in BAD[fault]])
def test_bad_pair_stops_with_its_place_or_is_dropped_and_counted(tmp_path, fault, bad):
    # The blank line is no row, and counts as a line all the same.
    full(tmp_path, gt=[hh("first"), b"", bad, *(hh(f"gt {i}") for i in range(4))])
    with pytest.raises(DataError) as error:
        load(params(tmp_path))
    message = str(error.value)
    assert message.startswith(f"gt.jsonl line 3: {FAULTS[fault]}") and "bad_pairs: drop" in message
    assert "\n" not in message
    row = row_of(checked(params(tmp_path, bad_pairs="drop", n_gt=5)), "gt")
    assert row[list(FAULTS)].to_dict() == {name: int(name == fault) for name in FAULTS} and row.rows_read == 6


# --- files


def write(folder, name, table):
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    if name.endswith(".parquet"):
        table.to_parquet(folder / name)
    elif name.lower().endswith(".csv"):
        table.to_csv(folder / name, index=False)
    else:
        table.to_json(folder / name, orient="records", lines=True)  # zipped where the name says so


def table(numbers):
    return pd.DataFrame([{"prompt": f"question {i}", "chosen": f"good {i}", "rejected": f"bad {i}"} for i in numbers])


def test_files_of_all_forms_give_the_same_pairs(tmp_path):
    first = load(params(full(tmp_path))).fingerprint
    for suffix in ("jsonl.gz", "parquet", "csv"):
        for split in SPLITS:
            write(tmp_path / suffix, f"{split}.{suffix}", pd.read_json(tmp_path / f"{split}.jsonl", lines=True))
        assert load(params(tmp_path / suffix)).fingerprint == first


NULL = pd.DataFrame([hh("first"), {"chosen": None, "rejected": "x"}]).to_parquet()
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n"
UNREADABLE = [
    ("gt.jsonl.gz", b"no gzip", "drop", ": cannot be read .*; replace the file$"),
    ("gt.jsonl.gz", gzip.compress(b"x" * 999, mtime=0)[:-12], "drop", ": cannot be read .*; replace the file$"),
    ("gt.parquet", b"no parquet", "drop", ": cannot be read .*; replace the file$"),
    ("gt.parquet", NULL, "error", " row 2: prompt, chosen and rejected must be text"),
    ("gt.jsonl", POINTER, "drop", ": a pointer of Git LFS, not the file; run git lfs pull in /"),
]


@pytest.mark.parametrize(("name", "content", "bad_pairs", "message"), UNREADABLE)
def test_an_unreadable_file_stops_and_parquet_names_the_row(tmp_path, name, content, bad_pairs, message):
    (full(tmp_path, gt=None) / name).write_bytes(content)
    with pytest.raises(DataError, match=f"^{name}{message}"):
        load(params(tmp_path, bad_pairs=bad_pairs))


SHARDS = [
    ("train-00000-of-00001.parquet", "test-00000-of-00002.parquet", "helpful.csv"),
    ("data/train-00000-of-00001.parquet", "data/test-00000-of-00001.parquet", "helpful-00000-of-00001.parquet"),
    ("Train.CSV", "test.csv", "helpful.csv"),
]


@pytest.mark.parametrize("names", SHARDS)
def test_shards_of_the_hub_and_csv_are_their_splits(tmp_path, names):
    parts = range(20), range(100, 104), range(200, 205)
    for name, numbers in zip(names, parts, strict=True):
        write(tmp_path, name, table(numbers))
    write(tmp_path, "helpful_old/train.csv", table(range(300, 305)))  # is of no split
    data = load(params(tmp_path, n_test=4, n_helpful=5))
    assert sorted(data.test["chosen"]) == [f" good {i}" for i in parts[1]]
    assert {int(text.split()[1]) for text in data.gt["chosen"]} < set(parts[0])
    assert {int(text.split()[1]) for text in data.helpful["chosen"]} == set(parts[2])


def test_a_source_of_both_dimensions(tmp_path):
    both = pd.DataFrame(
        [{"prompt": f"q {i}", "response_0": f"a {i}", "response_1": f"b {i}", **IDS} for i in range(40)]
    )
    write(tmp_path, "data/Alpaca-7B/train.jsonl", both[:30])
    write(tmp_path, "data/Alpaca-7B/test.jsonl", both[30:])
    for target, best in (("harmless", " b"), ("helpful", " a")):
        data = checked(params(tmp_path, target=target, n_gt=6))
        assert data.gt["chosen"].str.startswith(best).all() and data.helpful["rejected"].str.startswith(best).all()
        alone = checked(params(tmp_path, target=target, n_gt=6, **ALONE))
        assert alone.gt["chosen"].str.startswith(best).all() and row_of(alone, "helpful").rows_read == 0
    shutil.move(tmp_path / "data/Alpaca-7B/train.jsonl", tmp_path / "helpful.jsonl")
    (tmp_path / "data/Alpaca-7B/test.jsonl").unlink()
    assert load(params(tmp_path, target="helpful", **ALONE)).gt["chosen"].str.startswith(" a").all()
    with pytest.raises(DataError, match=r"no file for harmless \(n_helpful = 2; 0 goes without\)"):
        load(params(tmp_path, target="helpful"))


text = st.text(max_size=12) | st.sampled_from(["\n\nHuman: a\n\nAssistant: b", "\ud800", "<|im_end|>", "", " ", "\0"])
value = st.recursive(
    text | st.none() | st.integers() | st.floats(),
    lambda v: st.lists(v, max_size=2) | st.dictionaries(st.sampled_from(["role", "content", "x"]), v, max_size=2),
    max_leaves=6,
)
KEYS = ["prompt", "chosen", "rejected", "init_prompt", "response_0", "response_1", "safer_response_id", "x"]
line = st.dictionaries(st.sampled_from(KEYS), value, max_size=5)
line = line.map(lambda row: json.dumps(row).encode("utf-8", "surrogatepass")) | st.binary(max_size=30)
line |= st.sampled_from([b'{"chosen": "a", "chosen": "b"}', b"[" * 3000, b"NaN", b"1e999", b"\xef\xbb\xbf{}"])


@pytest.mark.parametrize("examples", [20, pytest.param(1000, marks=pytest.mark.slow)])
def test_every_row_of_any_file_is_accounted_for_or_the_file_is_refused_in_one_line(examples, tmp_path):
    good = table(range(40)).to_json(orient="records", lines=True).encode()
    for start, name in zip((100, 200, 300), ("w2s", "test", "helpful")):
        write(tmp_path, f"{name}.jsonl", table(range(start, start + 30)))

    @settings(
        max_examples=examples, suppress_health_check=list(HealthCheck), deadline=None, derandomize=True, database=None
    )
    @given(lines=st.lists(line, max_size=4), suffix=st.sampled_from([".jsonl", ".csv", ".parquet", ".jsonl.gz"]))
    def accounted(lines, suffix):
        for other in tmp_path.glob("gt.*"):
            other.unlink()
        (tmp_path / f"gt{suffix}").write_bytes(b"\n".join(([good] if suffix == ".jsonl" else []) + lines))
        for how in ("drop", "error"):
            try:
                assert row_of(checked(params(tmp_path, bad_pairs=how, n_gt=6)), "gt").kept == 6
            except (DataError, ParameterError) as error:
                assert "\n" not in str(error) and (how == "error" or suffix != ".jsonl")

    accounted()


# --- models
SMALL = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8, "vocab_size": 200}
VISION = {"text_config": SMALL | {"head_dim": 8, "num_key_value_heads": 1}, "vision_config": {"hidden_size": 8}}
REFUSED = [
    ("an encoder-decoder", hf.T5Config(d_model=8, num_layers=1, vocab_size=200)),
    ("an encoder-decoder", hf.BartConfig(d_model=8, vocab_size=200)),
    *(("an encoder, whose tokens", kind(**SMALL)) for kind in (hf.BertConfig, hf.RobertaConfig, hf.ElectraConfig)),
    *(("a part for images", config) for config in (hf.Gemma3Config(**VISION), hf.Mistral3Config())),
]


@pytest.mark.parametrize(("words", "config"), REFUSED)
def test_a_model_that_is_no_decoder_of_text_is_refused_before_anything_runs(words, config, tmp_path, tiny_models):
    config.save_pretrained(tmp_path / "model")
    zoo.build_tokenizer().save_pretrained(tmp_path / "model")
    with pytest.raises(ParameterError, match=rf"\A.*{words}.*{config.model_type}.*such as GPT-2.*\Z"):
        Study.open(small_params([tiny_models[0], str(tmp_path / "model"), tiny_models[2]], tmp_path))


def test_a_trained_head_is_said_to_be_left_out(tiny_models, tmp_path, capsys):
    config = hf.AutoConfig.from_pretrained(tiny_models[0], num_labels=1)
    hf.GPT2ForSequenceClassification(config).save_pretrained(tmp_path)
    zoo.build_tokenizer().save_pretrained(tmp_path)
    models.RewardModel.load(str(tmp_path))
    assert "its trained head (score.weight) is not used" in capsys.readouterr().out


def test_another_end_token_is_another_fingerprint(tiny_models, tmp_path):
    copy = shutil.copytree(tiny_models[0], tmp_path / "copy")
    assert models.fingerprint(str(copy)) == models.fingerprint(tiny_models[0])
    file = copy / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"eos_token": "."}))
    assert models.fingerprint.__wrapped__(str(copy)) != models.fingerprint(tiny_models[0])


def test_models_of_one_last_name_are_told_apart(tiny_models, tmp_path):
    apart = {"a/m": "a/m", "b/m": "b/m", "c/n": "n", "pocket-40a": "pocket-40a"}
    assert short_names(apart) == apart
    names = [str(tmp_path / name) for name in ("a/model", "b/model")]
    for name, source in zip(names, tiny_models[::2], strict=True):
        shutil.copytree(source, name)
    tags = pd.DataFrame(Study.open(small_params(names, tmp_path)).all_runs().values())
    assert set(tags["model"]) == {"a/model", "b/model"}


# --- folders of models
SHARD = b'{"metadata": {}, "weight_map": {"transformer.wte.weight": "pytorch_model-1-of-1.bin"}}'
AUTO_MAP = dict.fromkeys(("AutoConfig", "AutoModel", "AutoModelForCausalLM", "AutoTokenizer"), "code.C")
FOREIGN, CODE = {"model_type": "strange", "auto_map": AUTO_MAP}, b"open('executed', 'w')\nclass C: pass"


def files_of(folder: str | Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in Path(folder).iterdir() if path.is_file()}


def put(folder: Path, files: dict[str, bytes | None]) -> None:
    for name, content in files.items():
        if content is not None:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)


def changed(files: dict[str, bytes], **config) -> dict[str, bytes]:
    return files | {"config.json": json.dumps(json.loads(files["config.json"]) | config).encode()}


def as_pickle(folder: str, target: Path, **options) -> Path:
    """A copy of a model with its weights in pytorch_model.bin, or in shards of it, in the place of safetensors."""
    shutil.copytree(folder, target)
    (target / "model.safetensors").unlink()
    weights = hf.AutoModelForCausalLM.from_pretrained(folder).state_dict()
    save_torch_state_dict(weights, target, safe_serialization=False, **options)
    return target


def assert_same_weights(name: str, other: str) -> None:
    one, two = (models.load_language_model(model).state_dict() for model in (name, other))
    assert all(torch.equal(one[key], two[key]) for key in two)


def refused(act, *arguments) -> str:
    """The message, of one line, with which `act` refuses."""
    with pytest.raises(ParameterError) as caught:
        act(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


class Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_sharded_pickles_are_announced_and_safetensors_come_before_pickles(tiny_models, tmp_path, capsys):
    both = shutil.copytree(tiny_models[0], tmp_path / "both")
    torch.save({"x": Evil(tmp_path / "executed")}, both / "pytorch_model.bin")
    models.load_language_model(str(both))
    assert "pickle" not in capsys.readouterr().out and not (tmp_path / "executed").exists()

    folder = as_pickle(tiny_models[0], tmp_path / "pickle", max_shard_size=9999)
    assert (folder / "pytorch_model.bin.index.json").is_file() and not (folder / "pytorch_model.bin").is_file()
    models.load_language_model(str(folder))
    assert "read from pickle" in capsys.readouterr().out


@pytest.mark.parametrize("form", ["zip", "plain"])
def test_a_malicious_pickle_is_not_executed(tiny_models, tmp_path, form, monkeypatch):
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    evil = {"transformer.wte.weight": Evil(tmp_path / "executed")}
    folder = as_pickle(tiny_models[0], tmp_path / "pickle")
    torch.save(evil, folder / "pytorch_model.bin")
    if form == "plain":
        (folder / "pytorch_model.bin").write_bytes(pickle.dumps(evil, protocol=2))
    for use in (models.load_language_model, models.RewardModel.load):
        message = refused(use, str(folder))
        assert "pickle holds more than weights" in message and "w2s executes none" in message
        assert not (tmp_path / "executed").exists() and repr(str(folder)) in message
    pickle.loads(pickle.dumps(evil))
    assert (tmp_path / "executed").exists()  # the pickle does bite where it is executed


def test_the_code_that_a_local_folder_brings_is_not_executed(tiny_models, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    put(tmp_path / "foreign", changed(files_of(tiny_models[0]), **FOREIGN) | {"code.py": CODE})
    for use in (models.load_language_model, models.RewardModel.load, models.matching_tokenizer):
        assert "trust_remote_code" in refused(use, str(tmp_path / "foreign"))
    assert not (tmp_path / "executed").exists()


NOT_WHOLE = [
    ({"model.safetensors": b"x" * 99}, "a file of its weights is damaged"),
    ({"model.safetensors": None, "pytorch_model.bin": b""}, "a file of its weights is damaged"),
    ({"model.safetensors": None}, "it has no weights: neither model.safetensors nor pytorch_model.bin"),
    ({"model.safetensors": None, "pytorch_model.bin.index.json": SHARD}, "pytorch_model-1-of-1.bin"),
    ({"config.json": {"n_embd": 32}}, "its weights do not have the shapes that its config.json says"),
    ({"config.json": {"n_layer": 3}}, "its files lack weights"),
    ({"config.json": {"model_type": "strange"}}, "does not recognize this architecture"),
    ({"config.json": b"{"}, "not a valid JSON file; check the name"),
    ({"adapter_config.json": b"{"}, "its adapter_config.json names no base model"),
    ({"adapter_config.json": b"{}"}, "its adapter_config.json names no base model"),
    ({"adapter_config.json": b'{"base_model_name_or_path": null}'}, "its adapter_config.json names no base model"),
]


@pytest.mark.parametrize(("changes", "words"), NOT_WHOLE)
def test_a_local_folder_that_is_not_whole(tiny_models, tmp_path, changes, words):
    tiny, config = files_of(tiny_models[0]), changes.get("config.json")
    put(tmp_path, changed(tiny, **config) if isinstance(config, dict) else tiny | changes)
    message = refused(models.load_language_model, str(tmp_path))
    assert words in message and repr(str(tmp_path)) in message


def test_a_model_without_weights_or_with_pointers_to_them_is_refused_before_anything_is_trained(tiny_models, tmp_path):
    folder = shutil.copytree(tiny_models[0], tmp_path / "model")
    (folder / "model.safetensors").write_bytes(POINTER)
    pointer = "model.safetensors is a pointer of Git LFS; run git lfs pull in"
    assert pointer in refused(models.matching_tokenizer, str(folder))
    (folder / "model.safetensors").unlink()
    assert "has no weights: neither model.safetensors nor" in refused(models.matching_tokenizer, str(folder))


def test_tokenizer_and_model_that_do_not_belong_together(tiny_models):
    tokenizer, config = models.load_tokenizer(tiny_models[0]), models.load_config(tiny_models[0])
    hub.check_vocabulary("x", tokenizer, config)
    tokenizer.add_special_tokens({"pad_token": "<pad>"})
    hub.check_vocabulary("x", tokenizer, config)
    tokenizer.add_tokens(["zyxw"])
    sizes = f"{config.vocab_size + 2} tokens, its model only {config.vocab_size}; they do not"
    assert refused(hub.check_vocabulary, "x", tokenizer, config).startswith(f"tokenizer of 'x' has {sizes}")
