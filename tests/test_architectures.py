"""Every architecture that a study may name, tiny and random: scores, losses, training, saving, adapters."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, pre_tokenizers, trainers
from tokenizers.models import BPE
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    ByT5Tokenizer,
    CohereConfig,
    Gemma2Config,
    GPT2Config,
    GPT2Tokenizer,
    GPTNeoXConfig,
    GraniteConfig,
    LlamaConfig,
    LlamaTokenizer,
    MiniCPM3Config,
    MistralConfig,
    OPTConfig,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2Tokenizer,
    Qwen3Config,
)
from transformers.pytorch_utils import Conv1D

from w2s import models, train, zoo
from w2s.batches import PairTexts, encode
from w2s.losses import response_logps
from w2s.models import autocast
from w2s.params import Lora, ParameterError
from w2s.predict import predict, predict_logps, text_logps
from w2s.runs import execute
from w2s.spec import RunSpec
from w2s.train import Schedule, fit
from w2s.world import World

CPU, LORA, LENGTH = torch.device("cpu"), Lora(rank=2, alpha=4), 96
METHODS = ["reward", "sft", "dpo", "simpo"]
PROMPT = "\n\nHuman: may i drink it?\n\nAssistant:"
ODD = [
    ("\n\nHuman: hi!\n\nAssistant: hello!\n\nHuman: may i!\n\nAssistant:", " no!", " yes, do!!"),
    (PROMPT, "no", " drink it, drink it, drink all of it and then drink it again!"),
    (PROMPT, " wait, né €! stop", "!"),
]
PAIRS = pd.concat(
    [
        World().pairs("gt", 3)[["prompt", "chosen", "rejected"]],
        pd.DataFrame(ODD, columns=["prompt", "chosen", "rejected"]),
    ],
    ignore_index=True,
).assign(id=list("abcdef"), label=[1.0, 0.0, 1.0, 0.0, 1.0, 1.0])


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def word_pieces(special: dict[str, int], last: tuple[str, ...] = ()) -> dict:
    """The pocket tokenizer's vocabulary and merges, with other special tokens: first, or last of all."""
    state = json.loads(zoo.build_tokenizer().backend_tokenizer.to_str())["model"]
    words = [*special, *(word for word in state["vocab"] if word != zoo.END), *last]
    return {"vocab": {word: i for i, word in enumerate(words)}, "merges": [tuple(pair) for pair in state["merges"]]}


def sentence_pieces() -> dict:
    """Pieces with a mark in front of words, and single bytes for the rest, as Llama and Mistral have them."""
    bpe = Tokenizer(BPE(unk_token="<unk>"))
    bpe.pre_tokenizer = pre_tokenizers.Metaspace()
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=320, special_tokens=special, show_progress=False)
    bpe.train_from_iterator(PAIRS["prompt"] + PAIRS["chosen"], trainer)
    state = json.loads(bpe.to_str())["model"]
    return {"vocab": state["vocab"], "merges": [tuple(pair) for pair in state["merges"]]}


@dataclass(frozen=True)
class Architecture:
    """A configuration still without vocabulary, a tokenizer, and the precision of the saved weights.

    start: the tokenizer puts its start token in front.
    """

    config: partial[PreTrainedConfig]
    tokenizer: partial[PreTrainedTokenizerFast]
    dtype: torch.dtype
    start: bool = False


def gpt2_pieces(**options) -> GPT2Tokenizer:
    """As GPT-2 and Pythia have it: no pad token, no start token in front, and "!" has id 0."""
    return GPT2Tokenizer(**word_pieces({}, (zoo.END,)), **options)


def opt_pieces() -> GPT2Tokenizer:
    """As OPT has it: </s> is start and end token at once, and stands in front of every text."""
    special = {"bos_token": "</s>", "eos_token": "</s>", "unk_token": "</s>", "pad_token": "<pad>"}
    return GPT2Tokenizer(**word_pieces(["<s>", "<pad>", "</s>", "<unk>"]), **special, add_bos_token=True)


def qwen_pieces(**options) -> Qwen2Tokenizer:
    """As Qwen has it: no start token at all, and an end token that is not the pad token."""
    words = word_pieces([], (zoo.END, "<|im_end|>"))
    return Qwen2Tokenizer(**words, unk_token=None, pad_token=zoo.END, eos_token="<|im_end|>", **options)


def llama_pieces(**options) -> LlamaTokenizer:
    """As Llama and Mistral have it: <s> in front, no pad token."""
    return LlamaTokenizer(**sentence_pieces(), add_bos_token=True, **options)


SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 128}
WIDE = {"initializer_range": 0.2}  # so that a random model prefers some texts clearly
OPT = partial(OPTConfig, **SMALL, ffn_dim=32, init_std=0.2, dropout=0.5)
ROTARY = SMALL | WIDE | {"intermediate_size": 32, "attention_dropout": 0.5}
ARCHITECTURES = {
    "gpt2": Architecture(
        partial(GPT2Config, n_embd=16, n_layer=2, n_head=2, n_positions=128, **WIDE),
        partial(gpt2_pieces),
        torch.float32,
    ),
    "opt-125m": Architecture(partial(OPT, word_embed_proj_dim=16), partial(opt_pieces), torch.float16, start=True),
    "opt-350m": Architecture(
        partial(OPT, word_embed_proj_dim=8, do_layer_norm_before=False), partial(opt_pieces), torch.float16, start=True
    ),
    "mistral": Architecture(
        partial(MistralConfig, **ROTARY, num_key_value_heads=1, sliding_window=8),
        partial(llama_pieces, padding_side="right"),
        torch.bfloat16,
        start=True,
    ),
    "llama": Architecture(
        partial(LlamaConfig, **ROTARY), partial(llama_pieces, add_eos_token=True), torch.bfloat16, start=True
    ),
    "gpt-neox": Architecture(partial(GPTNeoXConfig, **ROTARY), partial(gpt2_pieces), torch.float16),
    "qwen2": Architecture(
        partial(Qwen2Config, **ROTARY, num_key_value_heads=1, tie_word_embeddings=True),
        partial(qwen_pieces, padding_side="left"),
        torch.bfloat16,
    ),
    "qwen3": Architecture(
        partial(Qwen3Config, **ROTARY, num_key_value_heads=2, head_dim=4, tie_word_embeddings=True),
        partial(qwen_pieces, add_eos_token=True),
        torch.float32,
    ),
}


def write_model(folder: Path, config: partial, tokenizer, dtype: torch.dtype = torch.float32) -> str:
    """A random model in Hugging Face format, with a few embeddings to spare as real ones have them."""
    torch.manual_seed(0)
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    model = AutoModelForCausalLM.from_config(config(vocab_size=len(tokenizer) + 3, **ids))
    model.to(dtype).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module", params=ARCHITECTURES)
def name(request, tmp_path_factory) -> str:
    made = ARCHITECTURES[request.param]
    folder = tmp_path_factory.mktemp("architectures") / request.param
    return write_model(folder, made.config, made.tokenizer(), made.dtype)


@pytest.fixture(scope="module")
def architecture(name) -> Architecture:
    return ARCHITECTURES[Path(name).name]


@pytest.fixture(scope="module")
def tokenizer(name):
    return models.load_tokenizer(name)


@pytest.fixture(scope="module")
def reward(name) -> models.RewardModel:
    return load("reward", name)


@pytest.fixture(scope="module")
def language(name):
    return load("dpo", name)


def load(method: str, name: str, lora: Lora | None = None, dtype: torch.dtype = torch.float32):
    """A model as a run loads it; the reward unit ten times as large, so that differences would show."""
    if method != "reward":
        return models.load_language_model(name, lora, seed=0, dtype=dtype)
    model = models.RewardModel.load(name, 0, lora, dtype)
    model.unit.weight.data.mul_(10)
    return model


def spec_of(method: str, name: str, lora: Lora | None = None) -> RunSpec:
    settings = {"dpo": {"beta": 0.1}, "simpo": {"beta": 2.0, "gamma": 1.0}}.get(method, {})
    return RunSpec(
        name, "", "", "gt", 0, method=method, lora=lora, max_length=LENGTH, batch_pairs=len(PAIRS), **settings
    )


def objective_of(spec: RunSpec, model, tokenizer):
    """The run's texts and its objective; the model as it is now is DPO's reference."""
    if spec.method == "dpo":
        table = predict_logps(model, PAIRS, tokenizer, LENGTH, 10_000)
        objective = train.preference_objective(spec, PAIRS, table.chosen_logp - table.rejected_logp, CPU)
    else:
        objective = train.training_objective(spec, PAIRS, Path(), CPU)
    return train.training_texts(spec, PAIRS, tokenizer), objective


def scores(method: str, model, tokenizer, tokens: int = 10_000, dtype: torch.dtype = torch.float32) -> np.ndarray:
    """Margins (n,) of a reward model, log-probabilities (n, 2) of a language model."""
    if method == "reward":
        return predict(model, PAIRS, tokenizer, LENGTH, tokens, dtype).margin.to_numpy()
    return predict_logps(model, PAIRS, tokenizer, LENGTH, tokens, dtype)[["chosen_logp", "rejected_logp"]].to_numpy()


def copied(model) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in model.named_parameters()}


def is_adapter(key: str) -> bool:
    return "lora_" in key or key == "unit.weight"


def test_the_checkpoints_are_what_they_are_said_to_be(name, architecture):
    config, weights = models.load_config(name), load_file(Path(name) / "model.safetensors")
    assert {value.dtype for value in weights.values()} == {architecture.dtype}
    tied = not any("lm_head" in key or "embed_out" in key for key in weights)
    assert tied == (Path(name).name in ("gpt2", "opt-125m", "opt-350m", "qwen2", "qwen3"))
    if Path(name).name == "opt-350m":
        assert config.word_embed_proj_dim != config.hidden_size and not config.do_layer_norm_before
    if Path(name).name == "mistral":
        assert config.num_key_value_heads < config.num_attention_heads and config.sliding_window < 20


@pytest.mark.parametrize("method", ["reward", "dpo"])
def test_dropout_is_off_while_training(request, name, method, tokenizer):
    """Though each checkpoint asks for some."""
    config = json.loads((Path(name) / "config.json").read_text())
    assert max(config.get(key, 0.0) for key in ("attn_pdrop", "dropout", "attention_dropout")) > 0
    model = request.getfixturevalue("reward" if method == "reward" else "language").train()
    batch = PairTexts(PAIRS, tokenizer, LENGTH, end=True).batch(np.arange(len(PAIRS)))
    score = text_logps if method == "dpo" else lambda model, batch: model(batch.input_ids, batch.attention_mask)
    assert torch.equal(score(model, batch), score(model, batch))


@pytest.mark.parametrize("method", ["reward", "dpo"])
def test_weights_are_float32_whatever_the_checkpoint(name, method, architecture):
    whole = load(method, name)
    assert {p.dtype for p in whole.parameters()} == {torch.float32} and all(p.requires_grad for p in whole.parameters())
    adapted = load(method, name, LORA, torch.bfloat16)
    assert {p.dtype for p in adapted.parameters() if p.requires_grad} == {torch.float32}
    assert {p.dtype for p in adapted.parameters() if not p.requires_grad} == {torch.bfloat16}


def test_special_tokens_are_put_once(name, tokenizer, architecture):
    """The start token in front when the tokenizer has it so; the end token behind, once, when asked for."""
    plain, starts = encode(tokenizer, PAIRS.prompt, PAIRS.chosen, LENGTH)
    ended, same = encode(tokenizer, PAIRS.prompt, PAIRS.chosen, LENGTH, end=True)
    assert same == starts and ended == [[*ids, tokenizer.eos_token_id] for ids in plain]
    front = [tokenizer.bos_token_id] if architecture.start else []
    for ids, start, prompt, chosen in zip(plain, starts, PAIRS.prompt, PAIRS.chosen, strict=True):
        bare = tokenizer(prompt + chosen, add_special_tokens=False)["input_ids"]
        assert ids == [*front, *bare] and tokenizer.eos_token_id not in bare
        assert tokenizer.decode(ids[start:]).strip() == chosen.strip()
        assert tokenizer.decode(ids[len(front) : start]).strip() == prompt.strip()


def test_an_end_token_in_the_text_is_not_doubled(tokenizer):
    text = " no" + tokenizer.eos_token
    assert encode(tokenizer, [PROMPT], [text], LENGTH, end=True) == encode(
        tokenizer, [PROMPT], [" no"], LENGTH, end=True
    )


def test_too_long_a_text_loses_the_beginning_of_its_prompt(tokenizer, architecture):
    """The start token stays, and the response, unless that alone is too long."""
    (full,), (start,) = encode(tokenizer, [PROMPT], [" no, no!"], LENGTH, end=True)
    front, response = full[: int(architecture.start)], full[start:]
    for length in range(len(response) + 1, len(full)):
        (ids,), (first,) = encode(tokenizer, [PROMPT], [" no, no!"], length, end=True)
        assert ids == [*front, *full[len(front) + len(full) - length :]] and ids[first:] == response
    for length in range(1, len(response) + 1):
        assert encode(tokenizer, [PROMPT], [" no, no!"], length, end=True) == ([response[-length:]], [0])


@pytest.mark.parametrize("method", ["reward", "dpo"])
def test_scores_do_not_depend_on_padding_or_company(request, method, tokenizer):
    model = request.getfixturevalue("reward" if method == "reward" else "language")
    alone, few, all_at_once = (scores(method, model, tokenizer, tokens) for tokens in (1, 150, 100_000))
    assert alone.std() > 0.1
    np.testing.assert_allclose(few, alone, atol=2e-5)
    np.testing.assert_allclose(all_at_once, alone, atol=2e-5)


@pytest.mark.parametrize("method", ["reward", "dpo"])
def test_what_stands_in_the_padding_does_not_matter(request, method, tokenizer):
    model = request.getfixturevalue("reward" if method == "reward" else "language").eval()
    batch = PairTexts(PAIRS, tokenizer, LENGTH, end=True).batch(np.arange(len(PAIRS)))
    other = replace(batch, input_ids=torch.where(batch.attention_mask.bool(), batch.input_ids, 7))
    assert not torch.equal(batch.input_ids, other.input_ids)
    score = text_logps if method == "dpo" else lambda model, batch: model(batch.input_ids, batch.attention_mask)
    with torch.no_grad():
        torch.testing.assert_close(score(model, batch), score(model, other), atol=1e-5, rtol=0)


def one_by_one(model, tokenizer, average: bool) -> np.ndarray:
    """Each response's log-probability from the full logits of its text alone, without padding: (n, 2)."""
    rows = []
    for side in ("chosen", "rejected"):
        for ids, start in zip(*encode(tokenizer, PAIRS.prompt, PAIRS[side], LENGTH, end=True), strict=True):
            row = torch.tensor([ids])
            response = (torch.arange(len(ids)) >= start).long()[None]
            with torch.no_grad():
                rows.append(response_logps(model.eval()(row).logits, row, response, average).item())
    return np.array(rows).reshape(2, -1).T


def test_log_probabilities_are_those_of_one_text_at_a_time(language, tokenizer):
    table = predict_logps(language, PAIRS, tokenizer, LENGTH, 10_000)
    summed, tokens = (table[[f"chosen_{x}", f"rejected_{x}"]].to_numpy() for x in ("logp", "tokens"))
    np.testing.assert_allclose(summed, one_by_one(language, tokenizer, average=False), atol=1e-4)
    np.testing.assert_allclose(summed / tokens, one_by_one(language, tokenizer, average=True), atol=1e-4)
    batch = PairTexts(PAIRS, tokenizer, LENGTH, end=True).batch(np.arange(len(PAIRS)))
    with torch.no_grad():
        mean = text_logps(language.eval(), batch, average=True).numpy().reshape(2, -1).T
    np.testing.assert_allclose(mean, summed / tokens, atol=1e-5)


def test_log_probabilities_by_an_explicit_loop(language, tokenizer):
    """Tokenized, shifted and summed anew, in float64, for the first pair."""
    pair, table = PAIRS.iloc[0], predict_logps(language, PAIRS, tokenizer, LENGTH, 10_000)
    prompt = tokenizer(pair.prompt)["input_ids"]
    prompt = prompt[:-1] if len(prompt) > 1 and prompt[-1] == tokenizer.eos_token_id else prompt
    for side in ("chosen", "rejected"):
        ids = tokenizer(pair.prompt + pair[side])["input_ids"]
        ids = ids if ids[-1] == tokenizer.eos_token_id else [*ids, tokenizer.eos_token_id]
        assert ids[: len(prompt)] == prompt
        with torch.no_grad():
            logits = language.eval()(torch.tensor([ids])).logits[0].double().numpy()
        total = 0.0
        for position in range(len(prompt), len(ids)):
            before = logits[position - 1]
            total += before[ids[position]] - np.log(np.exp(before).sum())
        assert table.loc[0, f"{side}_logp"] == pytest.approx(total, abs=1e-4)
        assert table.loc[0, f"{side}_tokens"] == len(ids) - len(prompt)


@pytest.mark.parametrize("lora", [None, LORA], ids=["whole", "lora"])
@pytest.mark.parametrize("method", METHODS)
def test_one_step_lowers_the_loss(name, method, lora, tokenizer):
    """Every trained weight gets a finite gradient, and nothing else moves."""
    model, spec = load(method, name, lora), spec_of(method, name, lora)
    texts, objective = objective_of(spec, model, tokenizer)
    before, losses, whole = copied(model), [], texts.batch(np.arange(len(PAIRS)))
    schedule = Schedule(3e-3 if lora else 3e-4)
    fit(
        model,
        texts.steps(len(PAIRS), 1, 150, seed=0),
        objective,
        schedule,
        1,
        report=lambda _, loss: losses.append(loss),
    )
    trained = {key: p for key, p in model.named_parameters() if p.requires_grad}
    assert set(trained) == {key for key in before if lora is None or is_adapter(key)}
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in trained.values())
    for key, p in model.named_parameters():
        assert torch.equal(p, before[key]) == (p.grad is None or not p.grad.any()), key
    with torch.no_grad():
        assert objective(model, whole).mean().item() < losses[0] - 1e-5


@pytest.mark.parametrize("lora", [None, LORA], ids=["whole", "lora"])
@pytest.mark.parametrize("method", ["reward", "dpo"])
def test_saved_and_reloaded_scores_are_the_same(name, method, lora, tokenizer, tmp_path):
    """After a step, and once more after another step from what was reloaded; adapters weigh little."""
    model = load(method, name, lora)
    texts, objective = objective_of(spec_of(method, name), model, tokenizer)
    for round_ in range(2):
        fit(model, texts.steps(len(PAIRS), 1, 10_000, seed=0), objective, Schedule(1e-2), 1)
        folder, before = tmp_path / str(round_), scores(method, model, tokenizer)
        model.save(folder) if method == "reward" else models.save(model, folder)
        model = execute.load_model(spec_of(method, str(folder), lora), Path())
        np.testing.assert_allclose(scores(method, model, tokenizer), before, atol=1e-6)
        assert {key for key, p in model.named_parameters() if p.requires_grad} == {
            key for key, _ in model.named_parameters() if lora is None or is_adapter(key)
        }
        files = {file.name: file.stat().st_size for file in folder.iterdir()}
        weights = sum(size for file, size in files.items() if file.endswith(".safetensors"))
        assert not any(file.endswith((".bin", ".pt")) for file in files)
        assert ("adapter_model.safetensors" in files) == (lora is not None) == ("model.safetensors" not in files)
        if lora:
            assert weights < 0.6 * (Path(name) / "model.safetensors").stat().st_size
    assert np.abs(before - scores(method, load(method, name), tokenizer)).max() > 1e-3


@pytest.mark.parametrize("lora", [None, LORA], ids=["whole", "lora"])
def test_a_run_goes_on_from_its_warm_start(name, lora, tokenizer, tmp_path):
    start = spec_of("sft", name, lora)
    model = execute.load_model(start, tmp_path)
    texts, objective = objective_of(start, model, tokenizer)
    fit(model, texts.steps(len(PAIRS), 1, 10_000, seed=0), objective, Schedule(1e-2), 1)
    models.save(model, tmp_path / "runs" / start.name / "model")
    spec = replace(spec_of("dpo", name, lora), start=start)
    policy = execute.load_model(spec, tmp_path)
    np.testing.assert_allclose(scores("dpo", policy, tokenizer), scores("dpo", model, tokenizer), atol=1e-6)
    texts, objective = objective_of(spec, model, tokenizer)
    batch = texts.batch(np.arange(len(PAIRS)))
    assert objective(policy, batch).detach().numpy() == pytest.approx(np.log(2), abs=1e-5)
    before = copied(policy)
    fit(policy, texts.steps(len(PAIRS), 1, 10_000, seed=0), objective, Schedule(1e-3), 1)
    moved = {key for key, p in policy.named_parameters() if not torch.equal(p, before[key])}
    assert moved == {key for key in before if lora is None or is_adapter(key)}
    with torch.no_grad():
        assert objective(policy, batch).mean() < np.log(2) - 1e-5


@pytest.mark.parametrize("lora", [None, LORA], ids=["whole", "lora"])
@pytest.mark.parametrize("method", ["reward", "dpo"])
def test_gradient_checkpointing_gives_the_same_gradients(name, method, lora, tokenizer):
    """And does what it is for: the layers run a second time instead of keeping what they computed."""
    gradients, calls = [], []
    texts, objective = objective_of(spec_of(method, name), load(method, name), tokenizer)
    for checkpointing in (False, True):
        model = execute.load_model(
            replace(spec_of(method, name, lora), gradient_checkpointing=checkpointing), Path()
        ).train()
        inner = next(m for key, m in model.named_modules() if ".1." in key and isinstance(m, nn.Linear | Conv1D))
        seen = []
        inner.register_forward_hook(lambda *_, seen=seen: seen.append(1))
        objective(model, texts.batch(np.arange(len(PAIRS)))).sum().backward()
        gradients.append({key: p.grad for key, p in model.named_parameters() if p.requires_grad})
        calls.append(len(seen))
    assert calls == [1, 2]
    assert sum(p.abs().sum() for p in gradients[0].values()) > 0
    for key, p in gradients[0].items():
        torch.testing.assert_close(gradients[1][key], p, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("lora", [None, LORA], ids=["whole", "lora"])
@pytest.mark.parametrize("method", ["reward", "dpo"])
def test_bfloat16_scores_are_close(name, method, lora, tokenizer):
    model, exact = load(method, name, lora, torch.bfloat16), scores(method, load(method, name), tokenizer)
    rough = scores(method, model, tokenizer, dtype=torch.bfloat16)
    assert 0 < np.abs(rough - exact).max() < 0.2 * exact.std()


def test_the_reward_unit_computes_in_float32(reward, tokenizer):
    batch, seen = PairTexts(PAIRS, tokenizer, LENGTH).batch(np.arange(len(PAIRS))), []
    inner = next(m for key, m in reward.body.named_modules() if "1." in key and isinstance(m, nn.Linear | Conv1D))
    hooks = [
        m.register_forward_hook(lambda _, i, out: seen.append((i[0].dtype, out.dtype))) for m in (inner, reward.unit)
    ]
    with torch.no_grad(), autocast(CPU, torch.bfloat16):
        rewards = reward.eval()(batch.input_ids, batch.attention_mask)
    for hook in hooks:
        hook.remove()
    assert seen[0][1] == torch.bfloat16 and seen[1] == (torch.float32, torch.float32)
    assert rewards.dtype == torch.float32


@pytest.mark.parametrize(
    "config",
    [
        partial(Gemma2Config, **ROTARY, num_key_value_heads=1, head_dim=8, final_logit_softcapping=30.0),
        partial(CohereConfig, **ROTARY, logit_scale=0.0625),
        partial(GraniteConfig, **ROTARY, logits_scaling=8.0),
        partial(
            MiniCPM3Config, **ROTARY, num_key_value_heads=2, dim_model_base=8, q_lora_rank=8, kv_lora_rank=8,
            qk_nope_head_dim=4, qk_rope_head_dim=4, v_head_dim=8,
        ),
    ],
    ids=["soft-capped", "scaled", "divided", "scaled-before-the-head"],
)  # fmt: skip
def test_logits_that_are_not_the_heads_output_are_refused(config, tmp_path):
    name = write_model(tmp_path / "model", config, gpt2_pieces())
    with pytest.raises(
        ParameterError, match="logits are not its head's plain output; use it with method: reward"
    ) as caught:
        models.load_language_model(name)
    assert repr(name) in str(caught.value) and "\n" not in str(caught.value)
    assert np.isfinite(scores("reward", load("reward", name), models.load_tokenizer(name))).all()


def test_a_cap_far_above_small_logits_is_seen(tmp_path):
    small = ROTARY | {"initializer_range": 1e-3}
    config = partial(Gemma2Config, **small, num_key_value_heads=1, head_dim=8, final_logit_softcapping=30.0)
    with pytest.raises(ParameterError, match="logits are not its head's plain output"):
        models.load_language_model(write_model(tmp_path / "model", config, gpt2_pieces()))


@pytest.fixture
def plain(tmp_path) -> str:
    return write_model(tmp_path / "plain", ARCHITECTURES["llama"].config, llama_pieces())


def adapted(name: str, folder: Path, lora: Lora = LORA) -> str:
    """A folder of adapters that change what the model computes."""
    model = load("dpo", name, lora)
    for key, parameter in model.named_parameters():
        if "lora_B" in key:
            nn.init.normal_(parameter.data, std=0.1)
    models.save(model, folder)
    return str(folder)


def test_adapters_with_dropout_are_trained_with_it_and_scored_without(plain, tmp_path):
    lora, tokenizer = Lora(rank=2, alpha=4, dropout=0.5), models.load_tokenizer(plain)
    model = load("dpo", adapted(plain, tmp_path / "adapters", lora), lora)
    batch = PairTexts(PAIRS, tokenizer, LENGTH, end=True).batch(np.arange(len(PAIRS)))
    expected = text_logps(model, batch)
    model.train()
    assert not torch.allclose(text_logps(model, batch), text_logps(model, batch))
    summed = torch.tensor(scores("dpo", model, tokenizer).T.ravel())
    torch.testing.assert_close(summed, expected.detach(), atol=1e-5, rtol=0)


@pytest.mark.parametrize("lora", [None, LORA], ids=["whole", "lora"])
@pytest.mark.parametrize("method", METHODS)
def test_a_bfloat16_step_lowers_the_loss(plain, method, lora):
    """Gradients and trained weights stay float32, and learning rates too small for bfloat16 move them."""
    model, tokenizer = load(method, plain, lora, torch.bfloat16), models.load_tokenizer(plain)
    texts, objective = objective_of(spec_of(method, plain, lora), model, tokenizer)
    before, whole = copied(model), texts.batch(np.arange(len(PAIRS)))
    fit(model, texts.steps(len(PAIRS), 1, 10_000, seed=0), objective, Schedule(1e-6), 1, torch.bfloat16)
    trained = {key: p for key, p in model.named_parameters() if p.requires_grad}
    assert {p.grad.dtype for p in trained.values()} == {p.dtype for p in trained.values()} == {torch.float32}
    assert all(torch.isfinite(p.grad).all() for p in trained.values())
    moved = [(p - before[key])[p.grad.abs() > 1e-3] for key, p in trained.items()]
    assert sum(map(len, moved)) and all(0 < change.abs().max() < 2e-6 for change in moved if len(change))
    fit(model, texts.steps(len(PAIRS), 1, 10_000, seed=0), objective, Schedule(3e-3), 1, torch.bfloat16)
    with torch.no_grad():
        after = objective(model, whole).mean().item()
        model.load_state_dict(before, strict=False)
        assert after < objective(model, whole).mean().item() - 1e-4


@pytest.mark.parametrize("method", ["reward", "dpo"])
def test_adapters_stay_exact_over_a_bfloat16_base(plain, method, tmp_path):
    model = load(method, plain, LORA, torch.bfloat16)
    for key, parameter in model.named_parameters():
        if is_adapter(key):
            nn.init.normal_(parameter.data)
    model.save(tmp_path / "adapters") if method == "reward" else models.save(model, tmp_path / "adapters")
    again = execute.load_model(replace(spec_of(method, str(tmp_path / "adapters"), LORA), dtype="bfloat16"), Path())
    kept = dict(model.named_parameters())
    assert all(torch.equal(p, kept[key]) and p.dtype == kept[key].dtype for key, p in again.named_parameters())
    assert {p.dtype for p in again.parameters()} == {torch.float32, torch.bfloat16}


def test_adapters_of_a_language_model_serve_its_reward_model_and_back(plain, tmp_path):
    language = load("dpo", adapted(plain, tmp_path / "adapters"))
    reward = load("reward", str(tmp_path / "adapters"))
    reward.save(tmp_path / "reward")
    back = load("dpo", str(tmp_path / "reward"))
    whole, body, again = (
        {key.removeprefix("model.").removeprefix("body."): p for key, p in m.named_parameters() if "lora_" in key}
        for m in (language, reward, back)
    )
    assert whole.keys() == body.keys() == again.keys() and whole
    assert all(torch.equal(p, body[key]) and torch.equal(p, again[key]) for key, p in whole.items())


def test_adapters_name_their_base_as_the_study_does(tmp_path):
    """Not by its path here: a revision would be lost, and the folder could not move to another machine."""
    adapted("pocket-27", tmp_path / "adapters")
    saved = json.loads((tmp_path / "adapters" / "adapter_config.json").read_text())
    assert (saved["base_model_name_or_path"], saved["r"], saved["lora_alpha"]) == ("pocket-27", 2, 4)
    again = load("dpo", str(tmp_path / "adapters"))
    models.save(again, tmp_path / "again")
    assert (
        json.loads((tmp_path / "again" / "adapter_config.json").read_text())["base_model_name_or_path"] == "pocket-27"
    )


def test_a_fingerprint_of_adapters_covers_their_base(plain, tmp_path):
    folder = adapted(plain, tmp_path / "adapters")
    before = models.fingerprint(folder)
    models.fingerprint.cache_clear()
    assert models.fingerprint(folder) == before
    weights = Path(plain) / "model.safetensors"
    changed = {key: value + 1 for key, value in load_file(weights).items()}
    save_file(changed, weights, {"format": "pt"})
    models.fingerprint.cache_clear()
    assert models.fingerprint(folder) != before


def test_adapters_that_are_not_whole(plain, tmp_path):
    file = Path(adapted(plain, tmp_path / "adapters")) / "adapter_model.safetensors"
    weights = load_file(file)
    save_file({key: weights[key] for key in sorted(weights)[1:]}, file, {"format": "pt"})
    with pytest.raises(ParameterError, match="adapters': its files lack 1 of its adapters' weights; train it again"):
        load("dpo", str(file.parent))


def test_a_tokenizer_without_end_token(tmp_path):
    tokenizer = models.load_tokenizer(write_model(tmp_path / "model", OPT, opt_pieces()))
    tokenizer.eos_token = None
    assert encode(tokenizer, [PROMPT], [" no"], LENGTH)[0]
    with pytest.raises(ParameterError, match="the tokenizer has no end token .* set one"):
        encode(tokenizer, [PROMPT], [" no"], LENGTH, end=True)


def test_a_tokenizer_that_gives_no_offsets(plain):
    for file in Path(plain).glob("*token*"):
        file.unlink()
    ByT5Tokenizer().save_pretrained(plain)
    with pytest.raises(ParameterError, match="has no fast tokenizer; choose one that has a tokenizer.json"):
        models.load_tokenizer(plain)


def test_no_texts_are_no_scores(plain):
    tokenizer, none = models.load_tokenizer(plain), PAIRS.iloc[:0]
    assert len(predict(load("reward", plain), none, tokenizer, LENGTH, 1000)) == 0
    assert len(predict_logps(load("dpo", plain), none, tokenizer, LENGTH, 1000)) == 0
