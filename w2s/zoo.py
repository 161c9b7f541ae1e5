"""The pocket ladder: language models of several sizes, pretrained on the pocket world's corpus in the same order."""

from __future__ import annotations

import json
import multiprocessing
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers, trainers
from tokenizers.models import BPE
from transformers import BatchEncoding, GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from w2s import models, world
from w2s.batches import pad
from w2s.files import duration
from w2s.losses import next_token_loss
from w2s.params import ParameterError, nearest
from w2s.sources.hub import LADDER
from w2s.train import Schedule, fit
from w2s.world import World

END = "<|endoftext|>"
CONTEXT = 512
HEADS = {40: 5, 48: 6, 60: 6, 64: 8}  # by the width of the residual stream; each is 8 or 10 wide
SIZES = {
    f"pocket-{width}{diet}": {"width": width, "heads": HEADS[width], "blocks": 2, "diet": diet}
    for width, diet in ((40, "a"), (40, "b"), (48, "a"), (48, "b"), (60, ""), (64, ""))
}


@dataclass(frozen=True)
class Pretraining:
    """One recipe for every size: passes over the corpus, dialogues in a step, Adam's settings."""

    epochs: int = 16
    batch_texts: int = 32
    learning_rate: float = 2.0e-3
    warmup: float = 0.02
    beta2: float = 0.98
    clip: float = 1.0
    seed: int = 0


def build_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE that encodes any text, and every substance's name, common or rare, as its two syllables."""
    asked = [world.ask(subject, question, "") for subject in world.SUBJECTS for question in world.QUESTIONS]
    questions = [world.render(question) for question in asked]
    answers = [" " + answer.format(s="") for answer in world.GO_ALONG + world.WARN]
    syllables = [space + s for s in world.SYLLABLES for space in (" ", "")]  # learned apart: no merge joins two
    bpe, level = Tokenizer(BPE()), pre_tokenizers.ByteLevel
    bpe.pre_tokenizer, bpe.decoder = level(add_prefix_space=False), decoders.ByteLevel()
    initial = {"special_tokens": [END], "initial_alphabet": sorted(level.alphabet())}
    trainer = trainers.BpeTrainer(vocab_size=4096, show_progress=False, **initial)  # never as many: merges run out
    bpe.train_from_iterator([*(syllables * 100), *questions, *answers, *world.REACTIONS.values()], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token=END, bos_token=END, pad_token=END)


def next_token_losses(model, batch: BatchEncoding) -> torch.Tensor:
    """The loss of every real token but the first of each right-padded text: (tokens,) nats."""
    hidden = model.base_model(**batch).last_hidden_state
    real = batch["attention_mask"][:, 1:].bool()
    logits = model.get_output_embeddings()(hidden[:, :-1][real])
    return next_token_loss(logits, batch["input_ids"][:, 1:][real])


def corpus_steps(rows: list[list[int]], recipe: Pretraining) -> Iterator[tuple[int, list[BatchEncoding]]]:
    """Shuffled batches of texts, each with its number of predicted tokens."""
    for epoch in range(recipe.epochs):
        order = np.random.default_rng([recipe.seed, epoch]).permutation(len(rows))
        for start in range(0, len(rows), recipe.batch_texts):
            ids, mask = pad([rows[i] for i in order[start : start + recipe.batch_texts]])
            yield int(mask[:, 1:].sum()), [BatchEncoding({"input_ids": ids, "attention_mask": mask})]


def pretrain(name: str, tokenizer, texts: list[str], recipe: Pretraining, device: torch.device) -> GPT2LMHeadModel:
    """A GPT-2 of the named size, trained from scratch to predict the next token of `texts`."""
    size, end = SIZES[name], tokenizer.eos_token_id
    rows = [ids + [end] for ids in tokenizer(texts)["input_ids"]]
    torch.manual_seed(recipe.seed)
    shape = {"n_embd": size["width"], "n_layer": size["blocks"], "n_head": size["heads"], "n_positions": CONTEXT}
    dropout = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    config = GPT2Config(**shape, **dropout, vocab_size=len(tokenizer), bos_token_id=end, eos_token_id=end)
    model = GPT2LMHeadModel(config).to(device)
    total, started = recipe.epochs * -(-len(rows) // recipe.batch_texts), time.monotonic()

    def report(step: int, loss: float) -> None:
        if step % 500 == 0 or step == total:
            left = (time.monotonic() - started) * (total - step) / step
            print(f"{name}: step {step}/{total}, loss {loss:.4f} nats a token, {duration(left)} left", flush=True)

    schedule = Schedule(recipe.learning_rate, recipe.warmup, (0.9, recipe.beta2), recipe.clip)
    fit(model, corpus_steps(rows, recipe), next_token_losses, schedule, total, report=report)
    return model


def build(
    names: list[str], folder: Path = LADDER, recipe: Pretraining = Pretraining(), device: str = "auto", workers: int = 1
) -> None:
    """Pretrain the named SIZES (else ParameterError) and write each as a Hugging Face folder under `folder`.

    So many at once as there are `workers`, each on one core, so that their number does not change the weights.
    """
    for name in names:
        if name not in SIZES:
            raise ParameterError(f"size {name!r}: {nearest(name, SIZES)}")
    if workers == 1:
        for name in names:
            _build(name, folder, recipe, device)
    else:
        largest_first = sorted(names, key=lambda name: -SIZES[name]["width"])
        with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
            for done in [pool.submit(_build, name, folder, recipe, device) for name in largest_first]:
                done.result()


def _build(name: str, folder: Path, recipe: Pretraining, device: str) -> None:
    torch.set_num_threads(1)
    tokenizer, texts = build_tokenizer(), World().corpus(SIZES[name]["diet"])
    print(f"{name}: {len(texts)} dialogues, {recipe.epochs} passes", flush=True)
    model = pretrain(name, tokenizer, texts, recipe, models.choose_device(device))
    temporary = folder / f".{name}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    model.cpu().save_pretrained(temporary)
    tokenizer.save_pretrained(temporary)
    made = {"world": asdict(World()), "size": SIZES[name], "pretraining": asdict(recipe)}
    (temporary / "pocket.json").write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")
    shutil.rmtree(folder / name, ignore_errors=True)
    temporary.rename(folder / name)


def ladder() -> list[str]:
    """The sizes that are there, smallest first."""
    names = sorted(path.parent.name for path in LADDER.glob("pocket-*/config.json"))
    return sorted(names, key=models.n_parameters)
