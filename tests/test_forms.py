"""Pairs and models of other forms: read rightly, or refused in one line before anything runs."""

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch
import transformers as hf
from conftest import small_params
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from w2s import models, world, zoo
from w2s.data import audit_tokens, load
from w2s.params import ParameterError, StudyParams, short_names
from w2s.sources.audit import FAULTS, DataError, fault_of, read_file
from w2s.study import Study

SIZES = {"n_gt": 6, "n_w2s": 6, "n_helpful": 4, "n_validation": 2, "n_test": 4}


def chat(*texts: str) -> list[dict]:
    return [{"role": ("user", "assistant")[k % 2], "content": text} for k, text in enumerate(texts)]


HH = "\n\nHuman: Where is it?\n\nAssistant:"
SYSTEM = [{"role": "system", "content": "Be kind."}]
HERE, THERE, ASKED = chat("", "Here.")[1:], chat("", "There.")[1:], "Where is it?"
ROWS = {
    "messages": {"chosen": chat(ASKED, "Here."), "rejected": chat(ASKED, "There.")},
    "with a prompt": {"prompt": ASKED, "chosen": HERE, "rejected": THERE},
    "prompt of messages": {"prompt": chat(ASKED), "chosen": HERE, "rejected": THERE},
    "prompt twice": {"prompt": ASKED, "chosen": chat(ASKED, "Here."), "rejected": chat(ASKED, "There.")},
    "safer": {"prompt": ASKED, "response_0": "There.", "response_1": "Here."},
}
ROWS["safer"] |= {"better_response_id": 0, "safer_response_id": 1}


@pytest.mark.parametrize("form", ROWS)
def test_a_row_of_another_form_is_the_pair_that_it_means(form):
    assert fault_of(ROWS[form]) == ((HH, " Here.", " There.", HH), "")
    assert fault_of(json.dumps(ROWS[form]).encode())[1] == ""


def test_turns_a_system_message_and_the_other_dimension():
    long = {"chosen": SYSTEM + chat("a", "b", "c", "d"), "rejected": SYSTEM + chat("a", "b", "c", "e")}
    prompt = "\n\nHuman: Be kind.\n\na\n\nAssistant: b\n\nHuman: c\n\nAssistant:"
    assert fault_of(long) == ((prompt, " d", " e", prompt), "")
    assert fault_of(ROWS["safer"], helpful=True)[0][:3] == (HH, " There.", " Here.")


CAKE = "How do I bake a cake well?"
BAD = {
    "bad_messages": [
        {"chosen": chat("a"), "rejected": chat("a", "b")},
        {"chosen": chat("a", "b"), "rejected": "text"},
        {"chosen": [{"role": "tool", "content": "a"}], "rejected": chat("a", "b")},
        {"chosen": [{"role": "user"}], "rejected": chat("a", "b")},
    ],
    "chat_markers": [{"prompt": "<|im_start|>user a", "chosen": "b", "rejected": "c"}],
    "repeated_prompts": [{"prompt": CAKE, "chosen": f"{CAKE} So.", "rejected": f"{CAKE} No."}],
    "missing_keys": [{"prompt": "a", "response_0": "b", "response_1": "c", "better_response_id": 0}],
}  # fmt: skip


@pytest.mark.parametrize(("fault", "row"), [(fault, row) for fault, rows in BAD.items() for row in rows])
def test_a_row_that_cannot_be_meant_is_a_fault_of_the_audit(fault, row):
    assert fault_of(row)[1] == fault and fault in FAULTS


def write(folder, name, rows):
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    if name.endswith(".csv"):
        pd.DataFrame(rows).to_csv(folder / name, index=False)
    elif name.endswith(".parquet"):
        pd.DataFrame(rows).to_parquet(folder / name)
    else:
        (folder / name).write_text("\n".join(map(json.dumps, rows)))


def rows(n, start=0):
    return [{"prompt": f"question {i}", "chosen": f"good {i}", "rejected": f"bad {i}"} for i in range(start, start + n)]


@pytest.mark.parametrize(
    "names",
    [
        ("train-00000-of-00001.parquet", "test-00000-of-00002.parquet", "helpful.csv"),
        ("data/train-00000-of-00001.parquet", "data/test-00000-of-00001.parquet", "helpful-00000-of-00001.parquet"),
        ("train.csv", "test.csv", "helpful.csv"),
    ],
)
def test_shards_of_the_hub_and_csv_are_their_splits(tmp_path, names):
    for name, (n, start) in zip(names, ((20, 0), (4, 100), (5, 200)), strict=True):
        write(tmp_path, name, rows(n, start))
    data = load(StudyParams.check({"data": str(tmp_path), **SIZES}))
    assert sorted(data.test["chosen"]) == [f" good {i}" for i in range(100, 104)]
    assert {int(text.split()[1]) for text in data.gt["chosen"]} < set(range(20))
    assert {int(text.split()[1]) for text in data.helpful["chosen"]} < set(range(200, 205))


def test_a_source_of_both_dimensions(tmp_path):
    ids = {"better_response_id": 0, "safer_response_id": 1}
    both = [{"prompt": f"q {i}", "response_0": f"a {i}", "response_1": f"b {i}"} | ids for i in range(40)]
    write(tmp_path, "data/Alpaca-7B/train.jsonl", both[:30])
    write(tmp_path, "data/Alpaca-7B/test.jsonl", both[30:])
    for target, best in (("harmless", "b"), ("helpful", "a")):
        data = load(StudyParams.check({"data": str(tmp_path), "target": target, **SIZES}))
        assert (
            data.gt["chosen"].str.startswith(f" {best}").all()
            and not data.helpful["chosen"].str.startswith(f" {best}").any()
        )
        assert not set(data.helpful["prompt"]) & set(data.gt["prompt"])


def test_a_model_without_weights_or_with_pointers_to_them_is_refused_before_anything_is_trained(tiny_models, tmp_path):
    shutil.copytree(tiny_models[0], tmp_path / "model")
    weights = tmp_path / "model" / "model.safetensors"
    weights.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n")
    with pytest.raises(ParameterError, match=r"model.safetensors is a pointer of Git LFS; run git lfs pull in"):
        models.matching_tokenizer(str(tmp_path / "model"))
    weights.unlink()
    with pytest.raises(ParameterError, match="has no weights: neither model.safetensors nor pytorch_model.bin"):
        models.matching_tokenizer(str(tmp_path / "model"))


def test_a_pointer_of_git_lfs_says_how_to_get_the_file(tmp_path):
    (tmp_path / "gt.jsonl").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n")
    with pytest.raises(DataError, match="gt.jsonl: a pointer of Git LFS, not the file; run git lfs pull"):
        read_file(tmp_path, "gt.jsonl")


def test_what_emptied_a_table_is_said(tmp_path):
    for name in ("gt", "w2s", "test", "helpful"):
        write(tmp_path, f"{name}.jsonl", [{"chosen": chat("a"), "rejected": chat("a")}] * 30)
    params = StudyParams.check({"data": str(tmp_path), "bad_pairs": "drop", **SIZES})
    with pytest.raises(ParameterError, match="30 rows were dropped: messages must have role and content") as caught:
        load(params)
    assert "lower n_" not in str(caught.value)


# --- models
TINY = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8, "vocab_size": 200}
VISION = {"text_config": TINY | {"head_dim": 8, "num_key_value_heads": 1}, "vision_config": {"hidden_size": 8}}
REFUSED = {
    "an encoder-decoder": [
        hf.T5Config(d_model=8, num_layers=1, vocab_size=200),
        hf.BartConfig(d_model=8, vocab_size=200),
    ],
    "an encoder, whose tokens see later ones": [
        hf.BertConfig(**TINY),
        hf.RobertaConfig(**TINY),
        hf.ElectraConfig(**TINY),
    ],
    "a part for images": [hf.Gemma3Config(**VISION), hf.Mistral3Config()],
}


@pytest.mark.parametrize(("words", "config"), [(w, c) for w, configs in REFUSED.items() for c in configs])
def test_a_model_that_is_no_decoder_of_text_is_refused_before_anything_runs(words, config, tmp_path, tiny_models):
    config.save_pretrained(tmp_path / "model")
    zoo.build_tokenizer().save_pretrained(tmp_path / "model")
    params = small_params([tiny_models[0], str(tmp_path / "model"), tiny_models[2]], tmp_path)
    with pytest.raises(ParameterError, match=words) as caught:
        Study.open(params)
    assert (
        "\n" not in str(caught.value)
        and config.model_type in str(caught.value)
        and "such as GPT-2" in str(caught.value)
    )


@pytest.mark.parametrize("kind", [hf.GPT2Config, hf.OPTConfig, hf.LlamaConfig, hf.GPTNeoXConfig, hf.Qwen2Config])
def test_a_decoder_of_text_is_accepted_and_sees_no_later_token(kind, tmp_path):
    config = kind(
        **TINY | {"max_position_embeddings": 32, "num_key_value_heads": 1, "ffn_dim": 8, "word_embed_proj_dim": 8}
    )
    hf.AutoModel.from_config(config).save_pretrained(tmp_path)
    zoo.build_tokenizer().save_pretrained(tmp_path)
    body = models.RewardModel.load(str(tmp_path)).body
    with torch.no_grad():
        one, two = (body(input_ids=torch.tensor([[5, 6, last]])).last_hidden_state for last in (7, 8))
    assert torch.equal(one[:, :2], two[:, :2]) and not torch.equal(one[:, 2], two[:, 2])


def test_a_trained_head_is_said_to_be_left_out(tiny_models, tmp_path, capsys):
    config = hf.AutoConfig.from_pretrained(tiny_models[0], num_labels=1)
    hf.GPT2ForSequenceClassification(config).save_pretrained(tmp_path)
    zoo.build_tokenizer().save_pretrained(tmp_path)
    models.RewardModel.load(str(tmp_path))
    assert "its trained head (score.weight) is not used" in capsys.readouterr().out


def test_another_end_token_is_another_fingerprint(tiny_models, tmp_path):
    import shutil

    shutil.copytree(tiny_models[0], tmp_path / "copy")
    file = tmp_path / "copy" / "tokenizer_config.json"
    before = models.fingerprint(str(tmp_path / "copy"))
    assert before == models.fingerprint(tiny_models[0])
    file.write_text(json.dumps(json.loads(file.read_text()) | {"eos_token": "."}))
    assert models.fingerprint.__wrapped__(str(tmp_path / "copy")) != before


def test_models_of_one_last_name_are_told_apart(tiny_models, tmp_path):
    import shutil

    assert short_names(["a/m", "b/m", "c/n", "pocket-27"]) == {
        "a/m": "a/m",
        "b/m": "b/m",
        "c/n": "n",
        "pocket-27": "pocket-27",
    }
    for name, source in (("a/model", tiny_models[0]), ("b/model", tiny_models[2])):
        shutil.copytree(source, tmp_path / name)
    params = small_params([str(tmp_path / "a/model"), str(tmp_path / "b/model")], tmp_path)
    tags = pd.DataFrame(Study.open(params).all_runs().values())
    assert set(tags["model"]) == {"a/model", "b/model"}


def test_a_special_token_spelt_in_a_text_is_counted(tiny_models):
    tokenizer = models.load_tokenizer(tiny_models[0])
    pairs = world.World().pairs("gt", 4)
    odd = pairs.assign(chosen=pairs["chosen"] + f" {tokenizer.eos_token} more")
    data = load(StudyParams.check(SIZES))
    object.__setattr__(data, "gt", odd)
    counts = audit_tokens(data, tokenizer, 64).set_index("split")["spelt_special"]
    assert counts["gt"] == 4 and counts["w2s"] == 0


# --- foreign code
def test_pickles_and_remote_code_are_not_executed(tiny_models, tmp_path):
    import pickle
    import shutil

    class Payload:
        def __reduce__(self):
            return Path.touch, (tmp_path / "executed",)

    for name in ("pickle", "remote"):
        shutil.copytree(tiny_models[0], tmp_path / name)
    (tmp_path / "pickle" / "model.safetensors").unlink()
    (tmp_path / "pickle" / "pytorch_model.bin").write_bytes(pickle.dumps(Payload()))
    config = json.loads((tmp_path / "remote" / "config.json").read_text())
    config |= {
        "model_type": "mine",
        "auto_map": dict.fromkeys(("AutoConfig", "AutoModel", "AutoTokenizer"), "mine.Config"),
    }
    (tmp_path / "remote" / "config.json").write_text(json.dumps(config))
    (tmp_path / "remote" / "mine.py").write_text(f"open({str(tmp_path / 'executed')!r}, 'w')\nclass Config: pass")
    for name in ("pickle", "remote"):
        for use in (models.RewardModel.load, models.matching_tokenizer):
            if (name, use) != ("pickle", models.matching_tokenizer):
                with pytest.raises(ParameterError, match="pickle|trust_remote_code|model"):
                    use(str(tmp_path / name))
    assert not (tmp_path / "executed").exists()


# --- files of every kind
text = st.text(max_size=12) | st.sampled_from(["\n\nHuman: a\n\nAssistant: b", "\ud800", "<|im_end|>", "", " ", "\0"])
value = st.recursive(
    text | st.none() | st.integers() | st.floats(),
    lambda v: st.lists(v, max_size=2) | st.dictionaries(st.sampled_from(["role", "content", "x"]), v, max_size=2),
    max_leaves=6,
)
key = st.sampled_from(
    ["prompt", "chosen", "rejected", "init_prompt", "response_0", "response_1", "safer_response_id", "x"]
)
line = st.dictionaries(key, value, max_size=5).map(lambda d: json.dumps(d).encode("utf-8", "surrogatepass"))
line |= st.binary(max_size=30) | st.sampled_from(
    [b'{"chosen": "a", "chosen": "b"}', b"[" * 3000, b"NaN", b"1e999", b"\xef\xbb\xbf{}"]
)
FEW = {"suppress_health_check": list(HealthCheck), "deadline": None, "derandomize": True, "database": None}


def accounted(lines: list[bytes], suffix: str, folder: Path) -> None:
    good = [json.dumps(row).encode() for row in rows(40)]
    for name in ("gt", "w2s", "test", "helpful"):
        write(folder, f"{name}.jsonl", rows(30, {"gt": 0, "w2s": 100, "test": 200, "helpful": 300}[name]))
    (folder / "gt.jsonl").unlink()
    for other in folder.glob("gt.*"):
        other.unlink()
    (folder / f"gt{suffix}").write_bytes(b"\n".join(good + lines) if suffix == ".jsonl" else b"\n".join(lines))
    values = {"data": str(folder), **SIZES}
    for how in ("drop", "error"):
        try:
            data = load(StudyParams.check(values | {"bad_pairs": how}))
        except (DataError, ParameterError) as error:
            assert "\n" not in str(error) and (how == "error" or suffix != ".jsonl"), lines
            continue
        row = data.audit.set_index("split").loc["gt"]
        dropped = sum(row[name] for name in (*FAULTS, "multi_turn", "identical_pairs", "dropped_as_shared", "unused"))
        assert row["rows_read"] + row["carved"] - dropped == row["kept"] == SIZES["n_gt"], lines


@settings(max_examples=40, **FEW)
@given(lines=st.lists(line, max_size=4), suffix=st.sampled_from([".jsonl", ".csv", ".parquet", ".jsonl.gz"]))
def test_data_files(lines, suffix, tmp_path_factory):
    accounted(lines, suffix, tmp_path_factory.getbasetemp())


@pytest.mark.slow
@settings(max_examples=1000, **FEW)
@given(lines=st.lists(line, max_size=4), suffix=st.sampled_from([".jsonl", ".csv", ".parquet", ".jsonl.gz"]))
def test_many_data_files(lines, suffix, tmp_path_factory):
    accounted(lines, suffix, tmp_path_factory.getbasetemp())
