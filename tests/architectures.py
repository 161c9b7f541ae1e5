"""Tiny random models of every architecture that a study may name, and odd pairs of texts for them."""

import json
from functools import partial
from itertools import product as every_combination
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import transformers as hf
from tokenizers import Tokenizer, pre_tokenizers, trainers
from tokenizers.models import BPE

from w2s import models, train, zoo
from w2s.models import text_logps
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


def pieces(kind, first=(), last=(), state=None, **options) -> hf.PreTrainedTokenizerFast:
    """A tokenizer with the pocket one's words and merges (or `state`'s), and special ones in front or behind."""
    state = state or json.loads(zoo.build_tokenizer().backend_tokenizer.to_str())["model"]
    words = [*first, *(word for word in state["vocab"] if word != zoo.END), *last]
    merges = [tuple(pair) for pair in state["merges"]]
    return kind(vocab={word: i for i, word in enumerate(words)}, merges=merges, **options)


def llama_pieces(**options) -> hf.LlamaTokenizer:
    """As Llama and Mistral have it: <s> in front, no pad token, a mark before words, single bytes for the rest."""
    bpe = Tokenizer(BPE(unk_token="<unk>"))
    bpe.pre_tokenizer = pre_tokenizers.Metaspace()
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=320, special_tokens=special, show_progress=False)
    bpe.train_from_iterator(PAIRS["prompt"] + PAIRS["chosen"], trainer)
    return pieces(hf.LlamaTokenizer, state=json.loads(bpe.to_str())["model"], add_bos_token=True, **options)


# GPT-2 and Pythia: no pad token, no start token in front, and "!" has id 0. OPT: </s> is start and end token at once,
# in front of every text. Qwen: no start token at all, and an end token that is not the pad token.
gpt2_pieces = partial(pieces, hf.GPT2Tokenizer, last=[zoo.END])
BOTH_ENDS = dict.fromkeys(("bos_token", "eos_token", "unk_token"), "</s>") | {"pad_token": "<pad>"}
opt_pieces = partial(pieces, hf.GPT2Tokenizer, ["<s>", "<pad>", "</s>", "<unk>"], add_bos_token=True, **BOTH_ENDS)
NO_START = {"unk_token": None, "pad_token": zoo.END, "eos_token": "<|im_end|>"}
qwen_pieces = partial(pieces, hf.Qwen2Tokenizer, last=[zoo.END, "<|im_end|>"], **NO_START)

SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 128}
WIDE = {"initializer_range": 0.2}  # so that a random model prefers some texts clearly
ROTARY = SMALL | WIDE | {"intermediate_size": 32, "attention_dropout": 0.5}
GPT2 = partial(hf.GPT2Config, n_embd=16, n_layer=2, n_head=2, n_positions=128, **WIDE)
OPT = partial(hf.OPTConfig, **SMALL, ffn_dim=32, init_std=0.2, dropout=0.5, word_embed_proj_dim=16)
NARROW_OPT = partial(OPT, word_embed_proj_dim=8, do_layer_norm_before=False)  # a projection, and its norms afterwards
MISTRAL = partial(hf.MistralConfig, **ROTARY, num_key_value_heads=1, sliding_window=8)
LLAMA, NEOX = partial(hf.LlamaConfig, **ROTARY), partial(hf.GPTNeoXConfig, **ROTARY)
QWEN2 = partial(hf.Qwen2Config, **ROTARY, num_key_value_heads=1, tie_word_embeddings=True)
QWEN3 = partial(hf.Qwen3Config, **ROTARY, num_key_value_heads=2, head_dim=4, tie_word_embeddings=True)
HALF, BRAIN = torch.float16, torch.bfloat16
# A configuration still without vocabulary, a tokenizer, and the precision of the saved weights.
ARCHITECTURES = {
    "gpt2": (GPT2, gpt2_pieces, torch.float32),
    "opt-125m": (OPT, opt_pieces, HALF),
    "opt-350m": (NARROW_OPT, opt_pieces, HALF),
    "mistral": (MISTRAL, partial(llama_pieces, padding_side="right"), BRAIN),
    "llama": (LLAMA, partial(llama_pieces, add_eos_token=True), BRAIN),
    "gpt-neox": (NEOX, gpt2_pieces, HALF),
    "qwen2": (QWEN2, partial(qwen_pieces, padding_side="left"), BRAIN),
    "qwen3": (QWEN3, partial(qwen_pieces, add_eos_token=True), torch.float32),
}
STARTED = ("opt-125m", "opt-350m", "mistral", "llama")  # their tokenizers put the start token in front


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
    config, make, dtype = ARCHITECTURES[request.param]
    return write_model(tmp_path_factory.mktemp("architectures") / request.param, config, make(), dtype)


@pytest.fixture(scope="module")
def tokenizer(name):
    return models.load_tokenizer(name)


def product(methods: list[str]):
    """Architectures x methods x whole or adapters: half of them cover every two values, the others are slow."""
    every, cases = (enumerate(ARCHITECTURES), enumerate(methods), enumerate([("whole", None), ("lora", LORA)])), []
    for (i, name), (j, method), (k, (word, lora)) in every_combination(*every):
        marks = [pytest.mark.slow] if (i + j + k) % 2 else []
        cases.append(pytest.param(name, method, lora, id=f"{name}-{method}-{word}", marks=marks))
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
    reference = np.subtract(*scores("dpo", model, tokenizer).T) if spec.method == "dpo" else np.zeros(len(PAIRS))
    texts = train.training_texts(spec, PAIRS, tokenizer)
    return texts, train.training_objective(spec, PAIRS, CPU, reference=reference)


def scores(method: str, model, tokenizer, tokens: int = 10_000, dtype: torch.dtype = torch.float32) -> np.ndarray:
    """Margins (n,) of a reward model, log-probabilities (n, 2) of a language model."""
    if method == "reward":
        return predict(model, PAIRS, tokenizer, LENGTH, tokens, dtype).margin.to_numpy()
    return predict_logps(model, PAIRS, tokenizer, LENGTH, tokens, dtype)[["chosen_logp", "rejected_logp"]].to_numpy()


def values(method: str, model, batch) -> torch.Tensor:
    """Rewards or log-probabilities (rows,) of the texts of a batch."""
    own = method == "reward"
    return model(batch.input_ids, batch.attention_mask, batch.layout) if own else text_logps(model, batch)


def trained(model) -> dict[str, torch.nn.Parameter]:
    return {key: p for key, p in model.named_parameters() if p.requires_grad}
