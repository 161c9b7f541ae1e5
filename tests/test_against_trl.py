"""The same tiny models and pairs through TRL's own trainers: losses, margins and all gradients agree."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset, disable_progress_bars
from test_architectures import ARCHITECTURES, CPU, LENGTH, load, one_thread, spec_of, write_model  # noqa: F401
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification
from trl import DPOConfig, DPOTrainer, RewardConfig, RewardTrainer
from trl.experimental.cpo import CPOConfig, CPOTrainer

from w2s import models, train
from w2s.batches import PairTexts, encode
from w2s.predict import predict, predict_logps
from w2s.spec import RunSpec
from w2s.world import World

disable_progress_bars()
PAIRS = World().pairs("gt", 6).assign(label=1.0)
TEXTS = Dataset.from_pandas(PAIRS[["prompt", "chosen", "rejected"]])
QUIET = {
    "use_cpu": True, "bf16": False, "report_to": [], "disable_tqdm": True, "gradient_checkpointing": False,
    "per_device_train_batch_size": len(PAIRS), "per_device_eval_batch_size": len(PAIRS), "max_length": LENGTH,
}  # fmt: skip


@pytest.fixture(scope="module", params=["gpt2", "llama", "qwen2"])
def name(request, tmp_path_factory) -> str:
    """A model that saves float32, whose tokenizer ends no text by itself (TRL would end it twice)."""
    made = ARCHITECTURES[request.param]
    tokenizer = made.tokenizer(**{"add_eos_token": False} if request.param == "llama" else {})
    return write_model(tmp_path_factory.mktemp("trl") / request.param, made.config, tokenizer)


@pytest.fixture(scope="module")
def tokenizer(name):
    return models.load_tokenizer(name)


@pytest.fixture(scope="module")
def other(name):
    """The same model with every weight a little elsewhere: a policy that has left its reference."""
    torch.manual_seed(1)
    model = load("dpo", name)
    for parameter in model.parameters():
        parameter.data += 0.03 * torch.randn_like(parameter)
    return model.state_dict()


def policy(name: str, weights: dict, own: bool):
    """The kit's model, or one as TRL is given it."""
    model = load("dpo", name) if own else plain(AutoModelForCausalLM, name)
    model.load_state_dict(weights)
    return model


def plain(loader, name: str):
    """Without dropout: TRL turns off that of GPT-2, but not the attention_dropout of the others."""
    config = models.load_config(name)
    config.num_labels = 1
    return loader.from_pretrained(name, config=config, dtype=torch.float32)


def step(trainer, model) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss and gradients of the trainer's first batch, collated and computed by the trainer."""
    batch = next(iter(trainer.get_eval_dataloader(trainer.train_dataset)))
    loss = trainer.compute_loss(model.train(), batch)
    loss.backward()
    return loss.item(), {key: p.grad for key, p in model.named_parameters()}


def own_step(spec: RunSpec, model, tokenizer, reference=None) -> tuple[float, dict[str, torch.Tensor]]:
    """The same of the kit, in blocks of a few texts."""
    texts = train.training_texts(spec, PAIRS, tokenizer)
    if spec.method == "reward":
        objective = train.training_objective(spec, PAIRS, Path(), CPU)
    else:
        reference = np.zeros(len(PAIRS)) if reference is None else reference
        objective = train.preference_objective(spec, PAIRS, reference, CPU)
    total = 0.0
    for batch in texts.batches(np.arange(len(PAIRS)), 150):
        loss = objective(model.train(), batch).sum() / len(PAIRS)
        loss.backward()
        total += loss.item()
    return total, {key: p.grad for key, p in model.named_parameters()}


def assert_same_step(ours, theirs) -> None:
    assert ours[0] == pytest.approx(theirs[0], abs=1e-5)
    assert ours[1].keys() == theirs[1].keys()
    assert max(gradient.abs().max() for gradient in ours[1].values()) > 1e-3
    for key, gradient in theirs[1].items():
        torch.testing.assert_close(
            ours[1][key], gradient, atol=1e-5, rtol=1e-5, msg=lambda text, key=key: f"{key}: {text}"
        )


def test_dpo(name, other, tokenizer, tmp_path):
    """Loss, rewards and gradients; and TRL's tokens, with the end token, are the kit's."""
    theirs, own = policy(name, other, own=False), policy(name, other, own=True)
    args = DPOConfig(str(tmp_path), **QUIET, beta=0.1, loss_type="sigmoid")
    reference = plain(AutoModelForCausalLM, name)
    trainer = DPOTrainer(theirs, reference, args, train_dataset=TEXTS, processing_class=models.load_tokenizer(name))
    batch = next(iter(trainer.get_eval_dataloader(trainer.train_dataset)))
    ours = PairTexts(PAIRS, tokenizer, LENGTH, end=True).batch(np.arange(len(PAIRS)))
    assert torch.equal(batch["attention_mask"], ours.attention_mask)
    assert torch.equal(batch["completion_mask"], ours.response_mask)
    assert torch.equal(batch["input_ids"] * batch["attention_mask"], ours.input_ids)

    table, start = (predict_logps(m, PAIRS, tokenizer, LENGTH, 150) for m in (own, load("dpo", name)))
    held = start.chosen_logp - start.rejected_logp
    result = step(trainer, theirs)
    assert_same_step(own_step(spec_of("dpo", name), own, tokenizer, held.to_numpy()), result)
    logged = {key: values[0] for key, values in trainer._metrics["train"].items()}
    for side in ("chosen", "rejected"):
        assert table[f"{side}_logp"].mean() == pytest.approx(logged[f"logps/{side}"], abs=1e-4)
        rewards = 0.1 * (table[f"{side}_logp"] - start[f"{side}_logp"])
        assert rewards.mean() == pytest.approx(logged[f"rewards/{side}"], abs=1e-5)
    margin = table.chosen_logp - table.rejected_logp - held
    assert 0.1 * margin.mean() == pytest.approx(logged["rewards/margins"], abs=1e-5)
    assert (margin > 0).mean() == pytest.approx(logged["rewards/accuracies"])


@pytest.mark.parametrize(("beta", "gamma"), [(2.0, 1.0), (3.0, 0.6)])
def test_simpo(name, other, tokenizer, beta, gamma, tmp_path):
    """TRL's simpo_gamma is the paper's gamma too: it divides it by beta, and multiplies the whole by beta."""
    theirs, own = policy(name, other, own=False), policy(name, other, own=True)
    settings = {"loss_type": "simpo", "cpo_alpha": 0.0, "beta": beta, "simpo_gamma": gamma}
    padded = models.load_tokenizer(name)
    padded.pad_token = padded.pad_token or padded.eos_token
    if not padded("")["input_ids"]:
        padded.bos_token = None  # else TRL puts it in front where the tokenizer itself does not, as with GPT-2
    args = CPOConfig(str(tmp_path), **QUIET, **settings, remove_unused_columns=False)
    trainer = CPOTrainer(theirs, args, train_dataset=TEXTS, processing_class=padded)
    spec = replace(spec_of("simpo", name), beta=beta, gamma=gamma)
    assert_same_step(own_step(spec, own, tokenizer), step(trainer, theirs))


@pytest.fixture(scope="module")
def scorer(name, tokenizer):
    """A reward model of this kit, and TRL's kind of one with the same unit."""
    own = load("reward", name)
    theirs = plain(AutoModelForSequenceClassification, name)
    theirs.score.weight.data.copy_(own.unit.weight.data)
    theirs.config.pad_token_id = len(tokenizer)  # an id that no text has
    return own, theirs


def test_rewards(scorer, tokenizer):
    """One unpadded text at a time, and padded with a token that no text has."""
    own, theirs = scorer
    rows = [ids for side in ("chosen", "rejected") for ids in encode(tokenizer, PAIRS.prompt, PAIRS[side], LENGTH)[0]]
    with torch.no_grad():
        alone = torch.cat([theirs.eval()(torch.tensor([ids])).logits[:, 0] for ids in rows])
    margin = predict(own, PAIRS, tokenizer, LENGTH, 150).margin
    np.testing.assert_allclose(margin, (alone[: len(PAIRS)] - alone[len(PAIRS) :]).numpy(), atol=1e-5)
    assert margin.std() > 0.1
    batch = PairTexts(PAIRS, tokenizer, LENGTH).batch(np.arange(len(PAIRS)))
    ids = batch.input_ids.masked_fill(batch.attention_mask == 0, theirs.config.pad_token_id)
    with torch.no_grad():
        padded = theirs(ids, attention_mask=batch.attention_mask).logits[:, 0]
        torch.testing.assert_close(own.eval()(batch.input_ids, batch.attention_mask), padded, atol=1e-5, rtol=0)
    torch.testing.assert_close(padded, alone, atol=1e-5, rtol=0)


def test_reward_loss(scorer, name, tokenizer, tmp_path):
    """TRL pads with a token of its own here, as it does with any tokenizer that has a pad token."""
    own, theirs = scorer
    padded = models.load_tokenizer(name)
    padded.add_special_tokens({"pad_token": "<|pad|>"})
    assert padded.pad_token_id == theirs.config.pad_token_id
    sides = {f"{side}_ids": encode(tokenizer, PAIRS.prompt, PAIRS[side], LENGTH)[0] for side in ("chosen", "rejected")}
    args = RewardConfig(str(tmp_path), **QUIET)
    trainer = RewardTrainer(theirs, args, train_dataset=Dataset.from_dict(sides), processing_class=padded)
    loss, gradients = step(trainer, theirs)
    named = {key.removeprefix(f"{theirs.base_model_prefix}."): gradient for key, gradient in gradients.items()}
    named = {"unit.weight" if key == "score.weight" else f"body.{key}": gradient for key, gradient in named.items()}
    assert_same_step(own_step(spec_of("reward", name), own, tokenizer), (loss, named))
    margin = predict(own, PAIRS, tokenizer, LENGTH, 150).margin
    logged = {key: values[0] for key, values in trainer._metrics["train"].items()}
    assert margin.mean() == pytest.approx(logged["margin"], abs=1e-5)
    assert (margin > 0).mean() == pytest.approx(logged["accuracy"])
