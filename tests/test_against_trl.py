"""The same tiny models and pairs through TRL's own trainers: losses, margins and all gradients agree."""

from __future__ import annotations

from dataclasses import replace

import architectures as tiny
import numpy as np
import pytest
import torch
from architectures import CPU, LENGTH, load, spec_of
from datasets import Dataset, disable_progress_bars
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification
from trl import DPOConfig, DPOTrainer, RewardConfig, RewardTrainer
from trl.experimental.cpo import CPOConfig, CPOTrainer

from w2s import models, train
from w2s.batches import PairTexts, encode
from w2s.predict import predict, predict_logps
from w2s.spec import RunSpec
from w2s.world import World

disable_progress_bars()
pytestmark, tokenizer = pytest.mark.usefixtures("one_thread"), tiny.tokenizer
PAIRS, SIDES = World().pairs("gt", 6).assign(label=1.0), ("chosen", "rejected")
TEXTS, EVERY = Dataset.from_pandas(PAIRS[["prompt", *SIDES]]), np.arange(len(PAIRS))
QUIET = {"use_cpu": True, "bf16": False, "report_to": [], "disable_tqdm": True, "gradient_checkpointing": False}
QUIET |= dict.fromkeys(["per_device_train_batch_size", "per_device_eval_batch_size"], len(PAIRS))
QUIET |= {"max_length": LENGTH}


@pytest.fixture(scope="module", params=["gpt2", "llama", "qwen2"])
def name(request, tmp_path_factory) -> str:
    """A model that saves float32, whose tokenizer ends no text by itself (TRL would end it twice)."""
    made = tiny.ARCHITECTURES[request.param]
    tokenizer = made.tokenizer(**{"add_eos_token": False} if request.param == "llama" else {})
    return tiny.write_model(tmp_path_factory.mktemp("trl") / request.param, made.config, tokenizer)


def plain(loader, name: str):
    """Without dropout: TRL turns off that of GPT-2, but not the attention_dropout of the others."""
    config = models.load_config(name)
    config.num_labels = 1
    return loader.from_pretrained(name, config=config, dtype=torch.float32)


@pytest.fixture
def policies(name):
    """A policy that has left its reference, all weights a little elsewhere: the kit's, and as TRL is given it."""
    torch.manual_seed(1)
    own, theirs = load("dpo", name), plain(AutoModelForCausalLM, name)
    for parameter in own.parameters():
        parameter.data += 0.03 * torch.randn_like(parameter)
    theirs.load_state_dict(own.state_dict())
    return own, theirs


def step(trainer, model) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss and gradients of the trainer's first batch, collated and computed by the trainer."""
    batch = next(iter(trainer.get_eval_dataloader(trainer.train_dataset)))
    loss = trainer.compute_loss(model.train(), batch)
    loss.backward()
    return loss.item(), {key: p.grad for key, p in model.named_parameters()}


def own_step(spec: RunSpec, model, tokenizer, reference=None) -> tuple[float, dict[str, torch.Tensor]]:
    """The same of the kit, in blocks of a few texts."""
    texts, total = train.training_texts(spec, PAIRS, tokenizer), 0.0
    reference = np.zeros(len(PAIRS)) if reference is None else reference
    objective = train.training_objective(spec, PAIRS, CPU, reference=reference)
    for batch in texts.batches(EVERY, 150):
        loss = objective(model.train(), batch).sum() / len(PAIRS)
        loss.backward()
        total += loss.item()
    return total, {key: p.grad for key, p in model.named_parameters()}


def assert_same_step(ours, theirs) -> None:
    assert ours[0] == pytest.approx(theirs[0], abs=1e-5)
    assert ours[1].keys() == theirs[1].keys()
    assert max(gradient.abs().max() for gradient in ours[1].values()) > 1e-3
    for key, gradient in theirs[1].items():
        torch.testing.assert_close(ours[1][key], gradient, atol=1e-5, rtol=1e-5, msg=lambda m, key=key: f"{key}: {m}")


def logged(trainer) -> dict[str, float]:
    return {key: values[0] for key, values in trainer._metrics["train"].items()}


def test_dpo(name, policies, tokenizer, tmp_path):
    """Loss, rewards and gradients; and TRL's tokens, with the end token, are the kit's."""
    own, theirs = policies
    args = DPOConfig(str(tmp_path), **QUIET, beta=0.1, loss_type="sigmoid")
    reference = plain(AutoModelForCausalLM, name)
    trainer = DPOTrainer(theirs, reference, args, train_dataset=TEXTS, processing_class=models.load_tokenizer(name))
    batch = next(iter(trainer.get_eval_dataloader(trainer.train_dataset)))
    ours = PairTexts(PAIRS, tokenizer, LENGTH, end=True).batch(EVERY)
    assert torch.equal(batch["attention_mask"], ours.attention_mask)
    assert torch.equal(batch["completion_mask"], ours.response_mask)
    assert torch.equal(batch["input_ids"] * batch["attention_mask"], ours.input_ids)

    table, start = (predict_logps(m, PAIRS, tokenizer, LENGTH, 150) for m in (own, load("dpo", name)))
    held = start.chosen_logp - start.rejected_logp
    assert_same_step(own_step(spec_of("dpo", name), own, tokenizer, held.to_numpy()), step(trainer, theirs))
    log = logged(trainer)
    for side in SIDES:
        assert table[f"{side}_logp"].mean() == pytest.approx(log[f"logps/{side}"], abs=1e-4)
        rewards = 0.1 * (table[f"{side}_logp"] - start[f"{side}_logp"])
        assert rewards.mean() == pytest.approx(log[f"rewards/{side}"], abs=1e-5)
    margin = table.chosen_logp - table.rejected_logp - held
    assert 0.1 * margin.mean() == pytest.approx(log["rewards/margins"], abs=1e-5)
    assert (margin > 0).mean() == pytest.approx(log["rewards/accuracies"])


@pytest.mark.parametrize(("beta", "gamma"), [(2.0, 1.0), (3.0, 0.6)])
def test_simpo(name, policies, tokenizer, beta, gamma, tmp_path):
    """TRL's simpo_gamma is the paper's gamma too: it divides it by beta, and multiplies the whole by beta."""
    own, theirs = policies
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
    own, theirs = load("reward", name), plain(AutoModelForSequenceClassification, name)
    theirs.score.weight.data.copy_(own.unit.weight.data)
    theirs.config.pad_token_id = len(tokenizer)  # an id that no text has
    return own, theirs


def test_rewards(scorer, tokenizer):
    """One unpadded text at a time, and padded with a token that no text has."""
    own, theirs = scorer
    rows = [ids for side in SIDES for ids in encode(tokenizer, PAIRS.prompt, PAIRS[side], LENGTH)[0]]
    batch = PairTexts(PAIRS, tokenizer, LENGTH).batch(EVERY)
    ids = batch.input_ids.masked_fill(batch.attention_mask == 0, theirs.config.pad_token_id)
    margin = predict(own, PAIRS, tokenizer, LENGTH, 150).margin
    with torch.no_grad():
        alone = torch.cat([theirs.eval()(torch.tensor([row])).logits[:, 0] for row in rows])
        padded = theirs(ids, attention_mask=batch.attention_mask).logits[:, 0]
        torch.testing.assert_close(own(batch.input_ids, batch.attention_mask), padded, atol=1e-5, rtol=0)
    np.testing.assert_allclose(margin, (alone[: len(PAIRS)] - alone[len(PAIRS) :]).numpy(), atol=1e-5)
    assert margin.std() > 0.1
    torch.testing.assert_close(padded, alone, atol=1e-5, rtol=0)


def test_reward_loss(scorer, name, tokenizer, tmp_path):
    """TRL pads with a token of its own here, as it does with any tokenizer that has a pad token."""
    own, theirs = scorer
    padded = models.load_tokenizer(name)
    padded.add_special_tokens({"pad_token": "<|pad|>"})
    assert padded.pad_token_id == theirs.config.pad_token_id
    sides = {f"{side}_ids": encode(tokenizer, PAIRS.prompt, PAIRS[side], LENGTH)[0] for side in SIDES}
    args = RewardConfig(str(tmp_path), **QUIET)
    trainer = RewardTrainer(theirs, args, train_dataset=Dataset.from_dict(sides), processing_class=padded)
    loss, gradients = step(trainer, theirs)
    bare = {key.removeprefix(f"{theirs.base_model_prefix}."): gradient for key, gradient in gradients.items()}
    named = {"unit.weight" if key == "score.weight" else f"body.{key}": gradient for key, gradient in bare.items()}
    assert_same_step(own_step(spec_of("reward", name), own, tokenizer), (loss, named))
    margin, log = predict(own, PAIRS, tokenizer, LENGTH, 150).margin, logged(trainer)
    assert margin.mean() == pytest.approx(log["margin"], abs=1e-5)
    assert (margin > 0).mean() == pytest.approx(log["accuracy"])
