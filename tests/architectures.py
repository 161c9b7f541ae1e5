"""Tiny random models of every architecture that a study may name, and odd pairs of texts for them."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import pytest
import torch
import transformers as hf
from tokenizers import Tokenizer, pre_tokenizers, trainers
from tokenizers.models import BPE

from w2s import models, train, zoo
from w2s.params import Lora
from w2s.predict import predict, predict_logps
from w2s.spec import RunSpec
from w2s.world import World

CPU, LORA, LENGTH = torch.device("cpu"), Lora(rank=2, alpha=4), 96
METHODS = ["reward", "sft", "dpo", "simpo"]
PROMPT = "\n\nHuman: may i drink it?\n\nAssistant:"
ODD = [
    ("\n\nHuman: hi!\n\nAssistant: hello!\n\nHuman: may i!\n\nAssistant:", " no!", " yes, do!!"),
    (PROMPT, "no", " drink it, drink it, drink all of it and then drink it again!"),
    (PROMPT, " wait, né €! stop", "!"),
]
PAIRS = World().pairs("gt", 3)[["prompt", "chosen", "rejected"]]
PAIRS = pd.concat([PAIRS, pd.DataFrame(ODD, columns=PAIRS.columns)], ignore_index=True)
PAIRS = PAIRS.assign(id=list("abcdef"), label=[1.0, 0.0, 1.0, 0.0, 1.0, 1.0])
EVERY = np.arange(len(PAIRS))


def word_pieces(special: list[str], last: tuple[str, ...] = ()) -> dict:
    """The pocket tokenizer's vocabulary and merges, with other special tokens: first, or last of all."""
    state = json.loads(zoo.build_tokenizer().backend_tokenizer.to_str())["model"]
    words = [*special, *(word for word in state["vocab"] if word != zoo.END), *last]
    return {"vocab": {word: i for i, word in enumerate(words)}, "merges": [tuple(pair) for pair in state["merges"]]}


def gpt2_pieces() -> hf.GPT2Tokenizer:
    """As GPT-2 and Pythia have it: no pad token, no start token in front, and "!" has id 0."""
    return hf.GPT2Tokenizer(**word_pieces([], (zoo.END,)))


def opt_pieces() -> hf.GPT2Tokenizer:
    """As OPT has it: </s> is start and end token at once, and stands in front of every text."""
    special = {"bos_token": "</s>", "eos_token": "</s>", "unk_token": "</s>", "pad_token": "<pad>"}
    return hf.GPT2Tokenizer(**word_pieces(["<s>", "<pad>", "</s>", "<unk>"]), **special, add_bos_token=True)


def qwen_pieces(**options) -> hf.Qwen2Tokenizer:
    """As Qwen has it: no start token at all, and an end token that is not the pad token."""
    words = word_pieces([], (zoo.END, "<|im_end|>"))
    return hf.Qwen2Tokenizer(**words, unk_token=None, pad_token=zoo.END, eos_token="<|im_end|>", **options)


def llama_pieces(**options) -> hf.LlamaTokenizer:
    """As Llama and Mistral have it: <s> in front, no pad token, a mark before words, single bytes for the rest."""
    bpe = Tokenizer(BPE(unk_token="<unk>"))
    bpe.pre_tokenizer = pre_tokenizers.Metaspace()
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=320, special_tokens=special, show_progress=False)
    bpe.train_from_iterator(PAIRS["prompt"] + PAIRS["chosen"], trainer)
    state = json.loads(bpe.to_str())["model"]
    merges = [tuple(pair) for pair in state["merges"]]
    return hf.LlamaTokenizer(vocab=state["vocab"], merges=merges, add_bos_token=True, **options)


class Architecture(NamedTuple):
    """A configuration still without vocabulary, a tokenizer, and the precision of the saved weights."""

    config: partial[hf.PreTrainedConfig]
    tokenizer: partial[hf.PreTrainedTokenizerFast]
    dtype: torch.dtype = torch.float32
    start: bool = False  # the tokenizer puts its start token in front


SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 128}
WIDE = {"initializer_range": 0.2}  # so that a random model prefers some texts clearly
ROTARY = SMALL | WIDE | {"intermediate_size": 32, "attention_dropout": 0.5}
GPT2 = partial(hf.GPT2Config, n_embd=16, n_layer=2, n_head=2, n_positions=128, **WIDE)
OPT = partial(hf.OPTConfig, **SMALL, ffn_dim=32, init_std=0.2, dropout=0.5)
NARROW_OPT = partial(OPT, word_embed_proj_dim=8, do_layer_norm_before=False)  # a projection, and its norms afterwards
MISTRAL = partial(hf.MistralConfig, **ROTARY, num_key_value_heads=1, sliding_window=8)
LLAMA, NEOX = partial(hf.LlamaConfig, **ROTARY), partial(hf.GPTNeoXConfig, **ROTARY)
QWEN2 = partial(hf.Qwen2Config, **ROTARY, num_key_value_heads=1, tie_word_embeddings=True)
QWEN3 = partial(hf.Qwen3Config, **ROTARY, num_key_value_heads=2, head_dim=4, tie_word_embeddings=True)
HALF, BRAIN = torch.float16, torch.bfloat16
ARCHITECTURES = {
    "gpt2": Architecture(GPT2, partial(gpt2_pieces)),
    "opt-125m": Architecture(partial(OPT, word_embed_proj_dim=16), partial(opt_pieces), HALF, start=True),
    "opt-350m": Architecture(NARROW_OPT, partial(opt_pieces), HALF, start=True),
    "mistral": Architecture(MISTRAL, partial(llama_pieces, padding_side="right"), BRAIN, start=True),
    "llama": Architecture(LLAMA, partial(llama_pieces, add_eos_token=True), BRAIN, start=True),
    "gpt-neox": Architecture(NEOX, partial(gpt2_pieces), HALF),
    "qwen2": Architecture(QWEN2, partial(qwen_pieces, padding_side="left"), BRAIN),
    "qwen3": Architecture(QWEN3, partial(qwen_pieces, add_eos_token=True)),
}


def write_model(folder: Path, config: partial, tokenizer, dtype: torch.dtype = torch.float32) -> str:
    """A random model in Hugging Face format, with a few embeddings to spare as real ones have them."""
    torch.manual_seed(0)
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    model = hf.AutoModelForCausalLM.from_config(config(vocab_size=len(tokenizer) + 3, **ids))
    model.to(dtype).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module", params=ARCHITECTURES)
def name(request, tmp_path_factory) -> str:
    made, folder = ARCHITECTURES[request.param], tmp_path_factory.mktemp("architectures") / request.param
    return write_model(folder, made.config, made.tokenizer(), made.dtype)


@pytest.fixture(scope="module")
def tokenizer(name):
    return models.load_tokenizer(name)


def product(methods: list[str]):
    """Architectures x methods x whole or adapters: half of them cover every two values, the others are slow."""
    cases = []
    for i, architecture in enumerate(ARCHITECTURES):
        for j, method in enumerate(methods):
            for k, (word, lora) in enumerate([("whole", None), ("lora", LORA)]):
                marks = [pytest.mark.slow] if (i + j + k) % 2 else []
                case = f"{architecture}-{method}-{word}"
                cases.append(pytest.param(architecture, method, lora, id=case, marks=marks))
    return pytest.mark.parametrize(("name", "method", "lora"), cases, indirect=["name"])


def load(method: str, name: str, lora: Lora | None = None, dtype: torch.dtype = torch.float32):
    """A model as a run loads it; the reward unit ten times as large, so that differences would show."""
    if method != "reward":
        return models.load_language_model(name, lora, seed=0, dtype=dtype)
    model = models.RewardModel.load(name, 0, lora, dtype)
    model.unit.weight.data.mul_(10)
    return model


def spec_of(method: str, name: str, lora: Lora | None = None, **changes) -> RunSpec:
    changes |= {"dpo": {"beta": 0.1}, "simpo": {"beta": 2.0, "gamma": 1.0}}.get(method, {})
    how = {"method": method, "lora": lora, "max_length": LENGTH, "batch_pairs": len(PAIRS)}
    return RunSpec(name, "", "", "gt", 0, **how | changes)


def objective_of(spec: RunSpec, model, tokenizer):
    """The run's texts and its objective; the model as it is now is DPO's reference."""
    reference = np.zeros(len(PAIRS))
    if spec.method == "dpo":
        reference = np.subtract(*scores("dpo", model, tokenizer).T)
    objective = train.training_objective(spec, PAIRS, CPU, reference=reference)
    return train.training_texts(spec, PAIRS, tokenizer), objective


def scores(method: str, model, tokenizer, tokens: int = 10_000, dtype: torch.dtype = torch.float32) -> np.ndarray:
    """Margins (n,) of a reward model, log-probabilities (n, 2) of a language model."""
    if method == "reward":
        return predict(model, PAIRS, tokenizer, LENGTH, tokens, dtype).margin.to_numpy()
    return predict_logps(model, PAIRS, tokenizer, LENGTH, tokens, dtype)[["chosen_logp", "rejected_logp"]].to_numpy()


def trained(model) -> dict[str, torch.nn.Parameter]:
    return {key: p for key, p in model.named_parameters() if p.requires_grad}
