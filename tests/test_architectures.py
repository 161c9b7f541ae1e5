"""Every architecture that a study may name: scores, losses, training, saving, adapters."""

import json
from copy import deepcopy
from dataclasses import replace
from functools import partial
from pathlib import Path

import architectures as tiny
import numpy as np
import pytest
import torch
import transformers as hf
from architectures import EVERY, LENGTH, LORA, METHODS, PAIRS, PROMPT, load, objective_of, scores, spec_of, values
from safetensors.torch import load_file, save_file
from torch import nn
from transformers.pytorch_utils import Conv1D

from w2s import models
from w2s.batches import PairTexts, encode
from w2s.models import autocast, text_logps
from w2s.params import Lora, ParameterError
from w2s.predict import predict, predict_logps
from w2s.runs import execute
from w2s.train import Schedule, fit

pytestmark = pytest.mark.usefixtures("one_thread")
name, tokenizer, both = tiny.name, tiny.tokenizer, pytest.mark.parametrize("method", ["reward", "dpo"])
product = tiny.product(["reward", "dpo"])


def step(model, texts: PairTexts, objective, rate: float, tokens: int = 10_000, **options) -> None:
    fit(model, texts.steps(len(PAIRS), 1, tokens, seed=0), objective, Schedule(rate), 1, **options)


def to_train(model, lora: Lora | None) -> set[str]:
    return {key for key, _ in model.named_parameters() if lora is None or "lora_" in key or key == "unit.weight"}


def inner_layer(model) -> nn.Module:
    return next(m for key, m in model.named_modules() if ".1." in key and isinstance(m, nn.Linear | Conv1D))


def test_special_tokens_are_put_once_and_cuts_are_in_the_prompt(name, tokenizer):
    """The start token in front when the tokenizer has it so; the end token behind, once, when asked for."""
    plain, starts = encode(tokenizer, PAIRS.prompt, PAIRS.chosen, LENGTH)
    ended = encode(tokenizer, PAIRS.prompt, PAIRS.chosen, LENGTH, end=True)
    assert ended == ([[*ids, tokenizer.eos_token_id] for ids in plain], starts)
    assert encode(tokenizer, PAIRS.prompt, PAIRS.chosen + tokenizer.eos_token, LENGTH, end=True) == ended
    front = [tokenizer.bos_token_id] if Path(name).name in tiny.STARTED else []
    for ids, start, prompt, chosen in zip(plain, starts, PAIRS.prompt, PAIRS.chosen, strict=True):
        bare = tokenizer(prompt + chosen, add_special_tokens=False)["input_ids"]
        assert ids == [*front, *bare] and tokenizer.eos_token_id not in bare
        assert tokenizer.decode(ids[start:]).strip() == chosen.strip()
        assert tokenizer.decode(ids[len(front) : start]).strip() == prompt.strip()
    # Of too long a text start token and response stay, unless the response alone is too long.
    (full,), (start,) = encode(tokenizer, [PROMPT], [" no, no!"], LENGTH, end=True)
    response = full[start:]
    for length in range(len(response) + 1, len(full)):
        (ids,), (first,) = encode(tokenizer, [PROMPT], [" no, no!"], length, end=True)
        assert ids == [*front, *full[len(front) + len(full) - length :]] and ids[first:] == response
    for length in range(1, len(response) + 1):
        assert encode(tokenizer, [PROMPT], [" no, no!"], length, end=True) == ([response[-length:]], [0])


@both
@torch.no_grad()
def test_scores_do_not_depend_on_padding_or_company_nor_on_dropout(name, method, tokenizer):
    """Which is off while training too, though each checkpoint asks for some."""
    model = load(method, name)
    alone, few, all_at_once = (scores(method, model, tokenizer, tokens) for tokens in (1, 150, 100_000))
    assert alone.std() > 0.1
    np.testing.assert_allclose([few, all_at_once], [alone, alone], atol=2e-5)
    packed = PairTexts(PAIRS, tokenizer, LENGTH, end=True).batch(EVERY)
    batch = replace(packed, layout=None)
    other = replace(batch, input_ids=torch.where(batch.attention_mask.bool(), batch.input_ids, 7))
    assert not torch.equal(batch.input_ids, other.input_ids)
    torch.testing.assert_close(values(method, model, batch), values(method, model, other), atol=1e-5, rtol=0)
    config = json.loads((Path(name) / "config.json").read_text())
    assert max(config.get(key, 0.0) for key in ("attn_pdrop", "dropout", "attention_dropout")) > 0
    assert torch.equal(*(values(method, model.train(), packed) for _ in range(2)))


@torch.no_grad()
def test_log_probabilities_are_those_of_one_text_at_a_time(name, tokenizer):
    """Of its full logits without padding, shifted and summed anew in float64."""
    model = load("dpo", name)
    table = predict_logps(model, PAIRS, tokenizer, LENGTH, 10_000)
    means = text_logps(model, PairTexts(PAIRS, tokenizer, LENGTH, end=True).batch(EVERY), average=True).chunk(2)
    for side, mean in zip(("chosen", "rejected"), means, strict=True):
        rows, starts = encode(tokenizer, PAIRS.prompt, PAIRS[side], LENGTH, end=True)
        for i, (ids, start) in enumerate(zip(rows, starts, strict=True)):
            before = model(torch.tensor([ids])).logits[0].double().numpy()[start - 1 : -1]
            total = (before[np.arange(len(before)), ids[start:]] - np.log(np.exp(before).sum(1))).sum()
            assert table.loc[i, f"{side}_logp"] == pytest.approx(total, abs=1e-4)
            assert table.loc[i, f"{side}_tokens"] == len(ids) - start
            assert mean[i].item() == pytest.approx(total / (len(ids) - start), abs=1e-4)


@tiny.product(METHODS)
def test_one_step_lowers_the_loss(name, method, lora, tokenizer):
    """Every trained weight gets a finite gradient, and nothing else moves."""
    model, losses = load(method, name, lora), []
    texts, objective = objective_of(spec_of(method, name, lora), model, tokenizer)
    before, rate = deepcopy(dict(model.named_parameters())), 3e-3 if lora else 3e-4
    step(model, texts, objective, rate, tokens=150, report=lambda _, loss: losses.append(loss))
    assert set(tiny.trained(model)) == to_train(model, lora)
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in tiny.trained(model).values())
    for key, p in model.named_parameters():
        assert torch.equal(p, before[key]) == (p.grad is None or not p.grad.any()), key
    with torch.no_grad():
        assert objective(model, texts.batch(EVERY)).mean().item() < losses[0] - 1e-5


@product
def test_saved_and_reloaded_scores_are_the_same(name, method, lora, tokenizer, tmp_path):
    """After a step, and once more after another step from what was reloaded; adapters weigh little."""
    model = load(method, name, lora)
    texts, objective = objective_of(spec_of(method, name), model, tokenizer)
    for folder in (tmp_path / "first", tmp_path / "second"):
        step(model, texts, objective, 1e-2)
        before = scores(method, model, tokenizer)
        execute.Alone(spec_of(method, name), folder).save(model, tokenizer, folder)
        model = execute.load_model(spec_of(method, str(folder), lora), Path())
        np.testing.assert_allclose(scores(method, model, tokenizer), before, atol=1e-6)
        assert set(tiny.trained(model)) == to_train(model, lora)
        files = {file.name: file.stat().st_size for file in folder.iterdir()}
        assert not any(file.endswith((".bin", ".pt")) for file in files)
        assert ("adapter_model.safetensors" in files) == (lora is not None) == ("model.safetensors" not in files)
        weights = sum(size for file, size in files.items() if file.endswith(".safetensors"))
        assert lora is None or weights < 0.6 * (Path(name) / "model.safetensors").stat().st_size
    assert np.abs(before - scores(method, load(method, name), tokenizer)).max() > 1e-3


@product
def test_gradient_checkpointing_gives_the_same_gradients(name, method, lora, tokenizer):
    """And does what it is for: the layers run a second time instead of keeping what they computed."""
    gradients, calls = [], []
    texts, objective = objective_of(spec_of(method, name), load(method, name), tokenizer)
    for checkpointing in (False, True):
        spec, seen = spec_of(method, name, lora, gradient_checkpointing=checkpointing), []
        model = execute.load_model(spec, Path()).train()
        inner_layer(model).register_forward_hook(lambda *_, seen=seen: seen.append(1))
        objective(model, texts.batch(EVERY)).sum().backward()
        gradients.append({key: p.grad for key, p in tiny.trained(model).items()})
        calls.append(len(seen))
    assert calls == [1, 2] and sum(p.abs().sum() for p in gradients[0].values()) > 0
    torch.testing.assert_close(gradients[1], gradients[0], atol=1e-6, rtol=1e-5)


@product
def test_weights_are_float32_whatever_the_checkpoint_and_bfloat16_scores_are_close(name, method, lora, tokenizer):
    saved = load_file(Path(name) / "model.safetensors").values()
    assert {value.dtype for value in saved} == {tiny.ARCHITECTURES[Path(name).name][2]}
    whole, model = load(method, name), load(method, name, lora, torch.bfloat16)
    assert {p.dtype for p in whole.parameters()} == {torch.float32} and all(p.requires_grad for p in whole.parameters())
    assert {p.dtype for p in tiny.trained(model).values()} == {torch.float32}
    frozen = {p.dtype for p in model.parameters() if not p.requires_grad}
    assert frozen == ({torch.bfloat16} if lora else set())
    exact, rough = scores(method, whole, tokenizer), scores(method, model, tokenizer, dtype=torch.bfloat16)
    assert 0 < np.abs(rough - exact).max() < 0.2 * exact.std()


def test_the_reward_unit_computes_in_float32(name, tokenizer):
    model, batch, seen = load("reward", name), PairTexts(PAIRS, tokenizer, LENGTH).batch(EVERY), []
    for module in (inner_layer(model), model.unit):
        module.register_forward_hook(lambda _, inputs, output: seen.append((inputs[0].dtype, output.dtype)))
    with torch.no_grad(), autocast(tiny.CPU, torch.bfloat16):
        assert values("reward", model, replace(batch, layout=None)).dtype == torch.float32
    assert seen[0][1] == torch.bfloat16 and seen[1] == (torch.float32, torch.float32)


GEMMA = tiny.ROTARY | {"num_key_value_heads": 1, "head_dim": 8, "final_logit_softcapping": 30.0}
RANKS = {"q_lora_rank": 8, "kv_lora_rank": 8, "qk_nope_head_dim": 4, "qk_rope_head_dim": 4, "v_head_dim": 8}
CHANGED_LOGITS = {
    "soft-capped": partial(hf.Gemma2Config, **GEMMA),
    "capped far above": partial(hf.Gemma2Config, **GEMMA | {"initializer_range": 1e-3}),
    "scaled": partial(hf.CohereConfig, **tiny.ROTARY, logit_scale=0.0625),
    "divided": partial(hf.GraniteConfig, **tiny.ROTARY, logits_scaling=8.0),
    "scaled before": partial(hf.MiniCPM3Config, **tiny.ROTARY, num_key_value_heads=2, dim_model_base=8, **RANKS),
}


@pytest.mark.parametrize("config", CHANGED_LOGITS.values(), ids=CHANGED_LOGITS)
def test_logits_that_are_not_the_heads_output_are_refused(config, tmp_path):
    name = tiny.write_model(tmp_path / "model", config, tiny.gpt2_pieces())
    with pytest.raises(ParameterError, match="not its head's plain output; use it with method: reward") as caught:
        models.load_language_model(name)
    assert repr(name) in str(caught.value) and "\n" not in str(caught.value)
    assert np.isfinite(scores("reward", load("reward", name), models.load_tokenizer(name))).all()


@pytest.fixture
def plain(tmp_path) -> str:
    return tiny.write_model(tmp_path / "plain", tiny.LLAMA, tiny.llama_pieces())


def adapted(name: str, folder: Path, lora: Lora = LORA) -> str:
    """A folder of adapters that change what the model computes."""
    model = load("dpo", name, lora)
    for key, parameter in tiny.trained(model).items():
        if "lora_B" in key:
            nn.init.normal_(parameter.data, std=0.1)
    models.save(model, folder)
    return str(folder)


def test_adapters_with_dropout_are_trained_with_it_and_scored_without(plain, tmp_path):
    lora, tokenizer = Lora(rank=2, alpha=4, dropout=0.5), models.load_tokenizer(plain)
    model = load("dpo", adapted(plain, tmp_path / "adapters", lora), lora)
    batch = PairTexts(PAIRS, tokenizer, LENGTH, end=True).batch(EVERY)
    expected = text_logps(model, batch)
    model.train()
    assert not torch.allclose(text_logps(model, batch), text_logps(model, batch))
    summed = torch.tensor(scores("dpo", model, tokenizer).T.ravel())
    torch.testing.assert_close(summed, expected.detach(), atol=1e-5, rtol=torch.finfo(torch.float32).eps)  # last digit


@pytest.mark.parametrize("lora", [None, LORA], ids=["whole", "lora"])
@pytest.mark.parametrize("method", METHODS)
def test_a_bfloat16_step_lowers_the_loss(plain, method, lora):
    """Gradients and trained weights stay float32, and learning rates too small for bfloat16 move them."""
    model, tokenizer = load(method, plain, lora, torch.bfloat16), models.load_tokenizer(plain)
    texts, objective = objective_of(spec_of(method, plain, lora), model, tokenizer)
    before, whole, ours = deepcopy(dict(model.named_parameters())), texts.batch(EVERY), tiny.trained(model)
    step(model, texts, objective, 1e-6, dtype=torch.bfloat16)
    assert {p.grad.dtype for p in ours.values()} == {p.dtype for p in ours.values()} == {torch.float32}
    assert all(torch.isfinite(p.grad).all() for p in ours.values())
    moved = [(p - before[key])[p.grad.abs() > 1e-3] for key, p in ours.items()]
    assert sum(map(len, moved)) and all(0 < change.abs().max() < 2e-6 for change in moved if len(change))
    step(model, texts, objective, 3e-3, dtype=torch.bfloat16)
    with torch.no_grad():
        after = objective(model, whole).mean().item()
        model.load_state_dict(before, strict=False)
        assert after < objective(model, whole).mean().item() - 1e-4


@both
def test_adapters_stay_exact_over_a_bfloat16_base(plain, method, tmp_path):
    model, folder = load(method, plain, LORA, torch.bfloat16), tmp_path / "adapters"
    for parameter in tiny.trained(model).values():
        nn.init.normal_(parameter.data)
    execute.Alone(spec_of(method, plain), folder).save(model, models.load_tokenizer(plain), folder)
    again = execute.load_model(spec_of(method, str(folder), LORA, dtype="bfloat16"), Path())
    kept = dict(model.named_parameters())
    assert all(torch.equal(p, kept[key]) and p.dtype == kept[key].dtype for key, p in again.named_parameters())
    assert {p.dtype for p in again.parameters()} == {torch.float32, torch.bfloat16}


def test_adapters_of_a_language_model_serve_its_reward_model_and_back(plain, tmp_path):
    language = load("dpo", adapted(plain, tmp_path / "adapters"))
    reward = load("reward", str(tmp_path / "adapters"))
    reward.save(tmp_path / "reward")
    whole, body, again = (
        {key.removeprefix("model.").removeprefix("body."): p for key, p in tiny.trained(m).items() if "lora_" in key}
        for m in (language, reward, load("dpo", str(tmp_path / "reward")))
    )
    assert whole.keys() == body.keys() == again.keys() and whole
    assert all(torch.equal(p, body[key]) and torch.equal(p, again[key]) for key, p in whole.items())


def test_adapters_name_their_base_as_the_study_does(tmp_path):
    """Not by its path here: a revision would be lost, and the folder could not move to another machine."""
    first, again = Path(adapted("pocket-40a", tmp_path / "adapters")), tmp_path / "again"
    models.save(load("dpo", str(first)), again)
    for folder in (first, again):
        saved = json.loads((folder / "adapter_config.json").read_text())
        assert (saved["base_model_name_or_path"], saved["r"], saved["lora_alpha"]) == ("pocket-40a", 2, 4)


def test_a_fingerprint_of_adapters_covers_their_base_and_adapters_that_lack_some_are_named(plain, tmp_path):
    folder, weights = adapted(plain, tmp_path / "adapters"), Path(plain) / "model.safetensors"
    before = models.fingerprint(folder)
    models.fingerprint.cache_clear()
    assert models.fingerprint(folder) == before
    save_file({key: value + 1 for key, value in load_file(weights).items()}, weights, {"format": "pt"})
    models.fingerprint.cache_clear()
    assert models.fingerprint(folder) != before
    file = Path(folder) / "adapter_model.safetensors"
    weights = load_file(file)
    save_file({key: weights[key] for key in sorted(weights)[1:]}, file, {"format": "pt"})
    with pytest.raises(ParameterError, match="adapters': its files lack 1 of its adapters' weights; train it again"):
        load("dpo", folder)


def test_no_texts_are_no_scores_and_tokenizers_that_are_of_no_use(plain, tmp_path):
    tokenizer, none = models.load_tokenizer(plain), PAIRS.iloc[:0]
    assert len(predict(load("reward", plain), none, tokenizer, LENGTH, 1000)) == 0
    assert len(predict_logps(load("dpo", plain), none, tokenizer, LENGTH, 1000)) == 0
    tokenizer = models.load_tokenizer(tiny.write_model(tmp_path / "model", tiny.OPT, tiny.opt_pieces()))
    tokenizer.eos_token = None
    assert encode(tokenizer, [PROMPT], [" no"], LENGTH)[0]
    with pytest.raises(ParameterError, match="the tokenizer has no end token .* set one"):
        encode(tokenizer, [PROMPT], [" no"], LENGTH, end=True)
    for file in Path(plain).glob("*token*"):
        file.unlink()
    hf.ByT5Tokenizer().save_pretrained(plain)  # which gives no offsets
    with pytest.raises(ParameterError, match="has no fast tokenizer; choose one that has a tokenizer.json"):
        models.load_tokenizer(plain)
