"""The same tiny models and pairs through TRL's own trainers: losses, margins and all gradients agree."""

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
PAIRS, SIDES = World().pairs("gt", 16).assign(label=1.0), ("chosen", "rejected")
TEXTS, EVERY = Dataset.from_pandas(PAIRS[["prompt", *SIDES]]), np.arange(len(PAIRS))
QUIET = {"use_cpu": True, "bf16": False, "report_to": [], "disable_tqdm": True, "gradient_checkpointing": False}
QUIET |= dict.fromkeys(["per_device_train_batch_size", "per_device_eval_batch_size"], len(PAIRS))
QUIET |= {"max_length": LENGTH}


@pytest.fixture(scope="module", params=["gpt2", "llama", "qwen2"])
def name(request, tmp_path_factory) -> str:
    """A model that saves float32, whose tokenizer ends no text by itself (TRL would end it twice)."""
    config, make, _ = tiny.ARCHITECTURES[request.param]
    tokenizer = make(**{"add_eos_token": False} if request.param == "llama" else {})
    return tiny.write_model(tmp_path_factory.mktemp("trl") / request.param, config, tokenizer)


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


def gradients(model) -> dict[str, torch.Tensor]:
    return {key: p.grad for key, p in model.named_parameters()}


def step(trainer, model) -> float:
    """Loss of the trainer's first batch, collated and computed by the trainer; gradients are left in the model."""
    loss = trainer.compute_loss(model.train(), next(iter(trainer.get_eval_dataloader(trainer.train_dataset))))
    loss.backward()
    return loss.item()


def own_step(spec: RunSpec, model, tokenizer, reference) -> float:
    """The same of the kit, in blocks of a few texts."""
    objective, total = train.training_objective(spec, PAIRS, CPU, reference=reference), 0.0
    for batch in train.training_texts(spec, PAIRS, tokenizer).batches(EVERY, 150):
        loss = objective(model.train(), batch).sum() / len(PAIRS)
        loss.backward()
        total += loss.item()
    return total


def assert_same_step(own_loss: float, ours: dict, their_loss: float, theirs: dict) -> None:
    assert own_loss == pytest.approx(their_loss, abs=1e-5)
    assert max(gradient.abs().max() for gradient in ours.values()) > 1e-3
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


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
    loss = own_step(spec_of("dpo", name), own, tokenizer, held.to_numpy())
    assert_same_step(loss, gradients(own), step(trainer, theirs), gradients(theirs))
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
    loss = step(CPOTrainer(theirs, args, train_dataset=TEXTS, processing_class=padded), theirs)
    own_loss = own_step(replace(spec_of("simpo", name), beta=beta, gamma=gamma), own, tokenizer, np.zeros(len(PAIRS)))
    assert_same_step(own_loss, gradients(own), loss, gradients(theirs))


def test_rewards(name, tokenizer, tmp_path):
    """TRL's kind of reward model with the kit's unit: of unpadded texts, and padded with a token that no text has."""
    own, theirs = load("reward", name), plain(AutoModelForSequenceClassification, name)
    theirs.score.weight.data.copy_(own.unit.weight.data)
    padded = models.load_tokenizer(name)
    padded.add_special_tokens({"pad_token": "<|pad|>"})
    theirs.config.pad_token_id = padded.pad_token_id
    assert padded.pad_token_id == len(tokenizer)
    sides = {f"{side}_ids": encode(tokenizer, PAIRS.prompt, PAIRS[side], LENGTH)[0] for side in SIDES}
    batch, margin = PairTexts(PAIRS, tokenizer, LENGTH).batch(EVERY), predict(own, PAIRS, tokenizer, LENGTH, 150).margin
    ids = batch.input_ids.masked_fill(batch.attention_mask == 0, padded.pad_token_id)
    with torch.no_grad():
        alone = torch.cat([theirs.eval()(torch.tensor([row])).logits for rows in sides.values() for row in rows])[:, 0]
        together = theirs(ids, attention_mask=batch.attention_mask).logits[:, 0]
        for ours in (own(batch.input_ids, batch.attention_mask), alone):
            torch.testing.assert_close(ours, together, atol=1e-5, rtol=0)
    np.testing.assert_allclose(margin, (alone[: len(PAIRS)] - alone[len(PAIRS) :]).numpy(), atol=1e-5)
    assert margin.std() > 0.1

    args = RewardConfig(str(tmp_path), **QUIET)
    trainer = RewardTrainer(theirs, args, train_dataset=Dataset.from_dict(sides), processing_class=padded)
    loss = step(trainer, theirs)
    bare = {key.removeprefix(f"{theirs.base_model_prefix}."): gradient for key, gradient in gradients(theirs).items()}
    named = {"unit.weight" if key == "score.weight" else f"body.{key}": gradient for key, gradient in bare.items()}
    assert_same_step(own_step(spec_of("reward", name), own, tokenizer, None), gradients(own), loss, named)
    assert margin.mean() == pytest.approx(logged(trainer)["margin"], abs=1e-5)
    assert (margin > 0).mean() == pytest.approx(logged(trainer)["accuracy"])
