"""Opening a study: what is checked before anything is trained."""

import json
import shutil

import pytest
from conftest import small_params
from transformers import GPT2Config, GPT2LMHeadModel

from w2s.params import ParameterError
from w2s.study import Study

SIZES = {"n_gt": 2, "n_w2s": 2, "n_test": 2, "n_validation": 2, "n_helpful": 0, "conflicts": ["none", "explicit"]}


def study_of(models, folder, response: str, **changes) -> Study:
    """Of two pairs a split, of which the last one of w2s has the given chosen response."""
    for split in ("gt", "w2s", "validation", "test"):
        chosen = [" yes", response if split == "w2s" else " yes"]
        prompts = [f"\n\nHuman: {split} {i}?\n\nAssistant:" for i in range(2)]
        rows = [{"prompt": p, "chosen": c, "rejected": " no"} for p, c in zip(prompts, chosen, strict=True)]
        (folder / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return Study.open(small_params(models, folder, data=str(folder), **SIZES, **changes))


def test_a_response_longer_than_the_context_is_named(tiny_models, tmp_path):
    how = (tiny_models, tmp_path, " " + "9" * 40)
    with pytest.raises(ParameterError) as caught:
        study_of(*how, max_length=32)
    message = str(caught.value)
    parts = ("max_length = 32", "chosen response", "w2s-0000", "41 tokens", tiny_models[0], "bad_pairs: drop")
    assert "\n" not in message and all(words in message for words in parts)
    study_of(*how, max_length=41)
    study_of(*how, max_length=32, bad_pairs="drop")
    study_of(tiny_models, tmp_path, " yes, try" * 4, max_length=32)  # 36 bytes; each word is one token


def test_a_tokenizer_of_another_model_is_named(tiny_models, tmp_path):
    wrong = tmp_path / "wrong"
    shutil.copytree(tiny_models[1], wrong)
    GPT2LMHeadModel(GPT2Config(vocab_size=100, n_positions=128, n_embd=8, n_layer=1, n_head=1)).save_pretrained(wrong)
    with pytest.raises(ParameterError, match="tokenizer of .*wrong.* tokens, its model only 100"):
        Study.open(small_params([tiny_models[0], str(wrong)], tmp_path))


def test_offline_names_what_has_to_be_fetched(tiny_models, tmp_path):
    with pytest.raises(ParameterError, match="'some/model'.*not fetched.*w2s fetch"):
        Study.open(small_params([tiny_models[0], "some/model"], tmp_path, offline=True))
    Study.open(small_params(tiny_models, tmp_path, offline=True))
