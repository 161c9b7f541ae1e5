"""The pocket ladder: small language models pretrained on the pocket world's corpus.

All sizes read the same tokens in the same order; they differ in width and depth alone.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers, trainers
from tokenizers.models import BPE
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from w2s import models, world
from w2s.batches import encode, pad
from w2s.files import duration
from w2s.losses import next_token_loss
from w2s.params import PACKAGE, ParameterError, nearest
from w2s.predict import predictions
from w2s.sources.hub import LADDER
from w2s.train import Report, Schedule, fit
from w2s.world import OUCH, THANKS, World

END = "<|endoftext|>"
CONTEXT = 512


@dataclass(frozen=True)
class Size:
    """A rung of the ladder: width of the residual stream, attention heads (8 or 9 wide), blocks."""

    width: int
    heads: int
    blocks: int = 2


SIZES = {
    "pocket-27": Size(27, heads=3),
    "pocket-32": Size(32, heads=4),
    "pocket-40": Size(40, heads=5),
    "pocket-48": Size(48, heads=6),
    "pocket-64": Size(64, heads=8),
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
    """A byte-level BPE that encodes any text, and every substance's name as its two syllables.

    Syllables are learned one by one, so that no merge ever joins two of them: a common name
    then looks no different from a rare one.
    """
    words = [world.render(q.format(s="")) for q in world.QUESTIONS]
    words += [" " + a.format(s="") for a in world.GO_ALONG + world.WARN]
    words += list(world.REACTIONS.values())
    syllables = [space + s for s in world.SYLLABLES for space in (" ", "")]
    bpe = Tokenizer(BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=4096,  # never reached: the merges run out
        special_tokens=[END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    bpe.train_from_iterator(syllables * 100 + words, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token=END, bos_token=END, pad_token=END)


@dataclass(frozen=True)
class TextBatch:
    """Right-padded texts: input_ids and attention_mask, each (n, length)."""

    input_ids: torch.Tensor
    attention_mask: torch.Tensor

    def to(self, device: torch.device) -> TextBatch:
        return TextBatch(self.input_ids.to(device), self.attention_mask.to(device))


def next_token_losses(model, batch: TextBatch) -> torch.Tensor:
    """The loss of every real token but the first of each text: (tokens,) nats."""
    hidden = model.base_model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).last_hidden_state
    real = batch.attention_mask[:, 1:].bool()
    logits = model.get_output_embeddings()(hidden[:, :-1][real])
    return next_token_loss(logits, batch.input_ids[:, 1:][real])


def corpus_steps(rows: list[list[int]], recipe: Pretraining) -> Iterator[tuple[int, list[TextBatch]]]:
    """Shuffled batches of texts, each with its number of predicted tokens."""
    for epoch in range(recipe.epochs):
        order = np.random.default_rng([recipe.seed, epoch]).permutation(len(rows))
        for start in range(0, len(rows), recipe.batch_texts):
            batch = TextBatch(*pad([rows[i] for i in order[start : start + recipe.batch_texts]]))
            yield int(batch.attention_mask[:, 1:].sum()), [batch]


def pretrain(name: str, tokenizer, texts: list[str], recipe: Pretraining, device: torch.device) -> GPT2LMHeadModel:
    """A GPT-2 of the named size, trained from scratch to predict the next token of `texts`."""
    size, rows = SIZES[name], [ids + [tokenizer.eos_token_id] for ids in tokenizer(texts)["input_ids"]]
    torch.manual_seed(recipe.seed)
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=CONTEXT,
        n_embd=size.width,
        n_layer=size.blocks,
        n_head=size.heads,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    model = GPT2LMHeadModel(config).to(device)
    total = recipe.epochs * -(-len(rows) // recipe.batch_texts)
    schedule = Schedule(recipe.learning_rate, recipe.warmup, (0.9, recipe.beta2), recipe.clip)
    fit(model, corpus_steps(rows, recipe), next_token_losses, schedule, total, report=_print_steps(name, total))
    return model


def build(names: list[str], folder: Path = LADDER, recipe: Pretraining = Pretraining(), device: str = "auto") -> None:
    """Pretrain the named sizes and write each as a Hugging Face folder under `folder`.

    On a CPU with one thread, so that the number of cores does not change the weights.

    Raises:
        ParameterError: a size that is not in SIZES.
    """
    for name in names:
        if name not in SIZES:
            raise ParameterError(f"size {name!r}: {nearest(name, SIZES)}")
    torch.set_num_threads(1)
    tokenizer, texts = build_tokenizer(), World().corpus()
    for name in names:
        print(f"{name}: {len(texts)} dialogues, {recipe.epochs} passes", flush=True)
        model = pretrain(name, tokenizer, texts, recipe, models.choose_device(device))
        temporary = folder / f".{name}.tmp"
        shutil.rmtree(temporary, ignore_errors=True)
        model.cpu().save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        made = {"world": asdict(World()), "size": asdict(SIZES[name]), "pretraining": asdict(recipe)}
        (temporary / "pocket.json").write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")
        shutil.rmtree(folder / name, ignore_errors=True)
        temporary.rename(folder / name)


def _print_steps(name: str, total: int, every: int = 500) -> Report:
    started = time.monotonic()

    def report(step: int, loss: float) -> None:
        if step % every == 0 or step == total:
            left = (time.monotonic() - started) * (total - step) / step
            print(f"{name}: step {step}/{total}, loss {loss:.4f} nats a token, {duration(left)} left", flush=True)

    return report


def ladder() -> list[str]:
    """The sizes that are there, smallest first."""
    return sorted((p.parent.name for p in LADDER.glob("pocket-*/config.json")), key=models.n_parameters)


@torch.no_grad()
def judge(name: str, pairs: pd.DataFrame, max_length: int = CONTEXT) -> pd.DataFrame:
    """What the language model itself, before any fine-tuning, thinks of pocket pairs.

    The margin is the log-odds of "thanks" against "ouch" as the next word after `chosen`, less
    the same after `rejected`, in nats. Returns the predictions table.
    """
    tokenizer, model = models.load_tokenizer(name), models.load_language_model(name).eval()
    (thanks,), (ouch,) = tokenizer(world.THANKS)["input_ids"], tokenizer(world.OUCH)["input_ids"]
    odds = []
    for column in ("chosen", "rejected"):
        rows, _ = encode(tokenizer, pairs["prompt"].tolist(), pairs[column].tolist(), max_length)
        ids, mask = pad(rows)
        hidden = model.base_model(input_ids=ids, attention_mask=mask).last_hidden_state
        logits = model.get_output_embeddings()(hidden[torch.arange(len(ids)), mask.sum(1) - 1])
        odds.append(logits[:, thanks] - logits[:, ouch])
    return predictions(pairs["id"], (odds[0] - odds[1]).numpy())


def judge_all(names: Iterable[str], pairs: pd.DataFrame) -> pd.DataFrame:
    """`zoo.judge` of each model on pocket pairs: id, margin (nats), probability, correct, model (its short name).

    A model whose tokenizer has no single token for one of the two reactions is left out.
    """

    able = [m for m in names if all(len(models.load_tokenizer(m)(word)["input_ids"]) == 1 for word in (THANKS, OUCH))]
    tables = [judge(name, pairs).assign(model=Path(name).name) for name in able]
    columns = ["id", "margin", "probability", "correct", "model"]
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=columns)


def judged_of_study(folder: Path, data: str, test: pd.DataFrame) -> tuple[pd.DataFrame | None, str]:
    """The table of `judge_all` for the models of a study, or None and why there is none.

    It is read from the study's folder, where notebook 03 writes it, or made anew for shipped models. `test` are
    predictions (id, model) of the study's test split.
    """
    if data != "pocket":
        return None, f"data = {data!r}: what a model knows before fine-tuning is known in the pocket world alone"
    path = folder / "tables" / "knowledge.parquet"
    names, ids = test["model"].unique(), np.sort(test["id"].unique())
    if path.exists():
        table = pd.read_parquet(path)
    elif all((PACKAGE / "ladder" / name / "config.json").exists() for name in names):
        table = judge_all(names, World().pairs("test", len(ids)))
    else:
        return None, f"{path.name} is missing, and some of the models do not ship with the kit; run notebook 03 first"
    if table.empty:
        return None, "no model of the study has the pocket world's reactions as single tokens"
    if not np.array_equal(np.sort(table["id"].unique()), ids):
        return None, f"{path.name} holds other test pairs than the predictions; run notebook 03 again"
    return table, ""


def pair_texts(folder: Path, data: str, ids) -> tuple[pd.DataFrame | None, str]:
    """The test pairs with their texts, or None and why not; `ids` are those of the predictions.

    From tables/test_pairs.parquet of the study's folder, which notebook 03 writes; pocket pairs can be made anew.
    """
    path, ids = folder / "tables" / "test_pairs.parquet", np.sort(pd.unique(np.asarray(ids)))
    if path.exists():
        pairs = pd.read_parquet(path)
    elif data == "pocket":
        pairs = World().pairs("test", len(ids))
    else:
        return None, f"{path.name} is not in the study's folder; run notebook 03 for the texts"
    if not np.isin(ids, pairs["id"]).all():
        return None, f"{path.name} holds other pairs than the predictions; run notebook 03 again for the texts"
    return pairs, ""
