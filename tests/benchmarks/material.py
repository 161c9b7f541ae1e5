"""What the benchmark works on: pairs, a tokenizer learned from them, and models with random weights."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers, trainers
from tokenizers.models import BPE
from transformers import AutoModelForCausalLM, GPT2Config, MistralConfig, PreTrainedConfig, PreTrainedTokenizerFast
from transformers.utils.logging import disable_progress_bar

from w2s import data
from w2s.batches import encode
from w2s.params import HOME, Lora, ParameterError, StudyParams

disable_progress_bar()
END, PAD, POSITIONS, VOCABULARY = "<|endoftext|>", "<|pad|>", 512, 8192
# Mean and spread of the logarithm of the number of words in HH-RLHF's single-turn harmless texts.
WORDS = {"prompt": (2.5, 0.5), "chosen": (2.8, 1.0), "rejected": (3.1, 1.0)}


@dataclass(frozen=True)
class Shape:
    """A model of the benchmark: layers, width, heads and rows of its embedding matrix.

    Of GPT-2's shape; of Mistral's where `mlp` is given, the width of its MLP, with a quarter as many key heads.
    `lora`: adapters are trained on weights of the case's dtype, not the whole model.
    """

    layers: int
    width: int
    heads: int
    vocabulary: int = VOCABULARY
    mlp: int | None = None
    lora: Lora | None = None

    @property
    def name(self) -> str:
        return f"{self.layers}x{self.width}"

    def config(self, tokenizer: PreTrainedTokenizerFast) -> PreTrainedConfig:
        """Its configuration, dropout off."""
        ends = {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
        if self.mlp:
            return MistralConfig(
                vocab_size=self.vocabulary, max_position_embeddings=POSITIONS, hidden_size=self.width,
                num_hidden_layers=self.layers, num_attention_heads=self.heads, num_key_value_heads=self.heads // 4,
                intermediate_size=self.mlp, sliding_window=None, **ends,
            )  # fmt: skip
        return GPT2Config(
            vocab_size=self.vocabulary, n_positions=POSITIONS, n_embd=self.width, n_layer=self.layers,
            n_head=self.heads, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, **ends,
        )  # fmt: skip


SHAPES = [Shape(4, 128, 4), Shape(6, 384, 6)]
LARGE = Shape(12, 768, 12, 50257)
BILLIONS = [Shape(48, 1600, 25, 50257), Shape(32, 4096, 32, 32000, mlp=14336, lora=Lora(rank=8, alpha=16))]
TINY = Shape(2, 16, 2, 1024)
TINY_BILLIONS = [Shape(2, 32, 2, 1024), Shape(2, 64, 4, 1024, mlp=128, lora=Lora(rank=2, alpha=4))]


def real_pairs() -> tuple[pd.DataFrame, pd.DataFrame] | None:
    """HH pairs to learn a tokenizer from and to measure on; None where W2S_DATA_DIR is not set."""
    if not os.environ.get("W2S_DATA_DIR"):
        return None
    tables = data.load(StudyParams.load(HOME / "params" / "hh_offline.yaml"))
    return tables.gt, tables.test


def generated_pairs(n: int, seed: int) -> pd.DataFrame:
    """Pairs of invented words, Zipf-distributed, with as many words as HH pairs have; log-normal, independent."""
    rng = np.random.default_rng([seed, n])
    letters = ["".join(pair) for pair in zip("bdfgklmnprstvz" * 5, "aeiou" * 14, strict=True)]
    words = ["".join(rng.choice(letters, size)) for size in rng.integers(1, 4, 20_000)]
    share = 1 / np.arange(1, len(words) + 1)

    def text(column: str) -> str:
        size = int(np.clip(rng.lognormal(*WORDS[column]), 2, 400))
        return " ".join(rng.choice(words, size, p=share / share.sum()))

    rows = [{column: text(column) for column in WORDS} for _ in range(n)]
    pairs = pd.DataFrame(rows).assign(id=[f"g{i}" for i in range(n)])
    return pairs.assign(
        prompt="\n\nHuman: " + pairs["prompt"] + "\n\nAssistant:", chosen=" " + pairs["chosen"],
        rejected=" " + pairs["rejected"],
    )  # fmt: skip


def learned_tokenizer(pairs: pd.DataFrame, size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE without start token, with `size` entries where the texts have as many."""
    bpe = Tokenizer(BPE())
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=[END, PAD], initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator(pd.concat([pairs["prompt"] + pairs[side] for side in ("chosen", "rejected")]), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token=END, pad_token=PAD)


def write_model(folder: Path, shape: Shape, tokenizer: PreTrainedTokenizerFast, device: str = "cpu") -> None:
    """A random model in Hugging Face format, made on `device`; in half precision where only adapters are trained."""
    torch.manual_seed(0)
    dtype = torch.bfloat16 if shape.lora else torch.float32
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(shape.config(tokenizer), dtype=dtype)
    model.save_pretrained(folder)
    del model
    torch.cuda.empty_cache()  # the contenders have processes of their own
    tokenizer.save_pretrained(folder)


def fitting(pairs: pd.DataFrame, tokenizer, context: int, n: int) -> pd.DataFrame:
    """The first n pairs that have two responses and fit in the context, so that no contender cuts a text.

    Raises:
        ParameterError: fewer than n do.
    """
    sides = [encode(tokenizer, pairs["prompt"], pairs[side], 10**6, end=True)[0] for side in ("chosen", "rejected")]
    fits = np.array([max(map(len, both)) <= context for both in zip(*sides, strict=True)])
    said = (pairs["chosen"].str.strip() != "") & (pairs["rejected"].str.strip() != "")
    found = pairs[fits & said].head(n)
    if len(found) < n:
        raise ParameterError(f"{len(found)} pairs fit in {context} tokens, {n} are needed; ask for fewer pairs")
    return found.reset_index(drop=True)
