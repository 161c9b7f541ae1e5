"""Texts without padding: the layout by hand; scores, log-probabilities and gradients are those of the plain form."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from test_architectures import (  # noqa: F401
    ARCHITECTURES,
    CPU,
    LENGTH,
    LORA,
    PAIRS,
    PROMPT,
    gpt2_pieces,
    load,
    name,
    objective_of,
    one_thread,
    scores,
    spec_of,
    write_model,
)
from transformers import BloomConfig
from transformers.modeling_layers import GradientCheckpointingLayer

from w2s import models
from w2s.batches import Layout, PairTexts
from w2s.fast import packed
from w2s.predict import pair_margins, text_logps

MORE = pd.DataFrame(
    [
        (PROMPT, " no", " no, no!"),  # one text begins with all of the other
        (PROMPT, " yes", " yes"),
        ("", " no, wait!", " yes"),
        ("may i? " * 60, " no!", " yes!"),  # cut to LENGTH, and far beyond any sliding window
    ],
    columns=["prompt", "chosen", "rejected"],
)
MIXED = pd.concat([PAIRS, MORE], ignore_index=True).assign(id=list("abcdefghij"), label=[1.0, 0.0] * 5)


@pytest.fixture
def tokenizer(name):  # noqa: F811
    return models.load_tokenizer(name)


def texts(tokenizer, end: bool) -> PairTexts:
    return PairTexts(MIXED, tokenizer, LENGTH, end)


def test_a_layout_by_hand():
    """Two pairs: 1 2 3 against 1 2 4 5, and 6 7 against 7; zeros are padding."""
    ids = torch.tensor([[1, 2, 3, 0], [6, 7, 0, 0], [1, 2, 4, 5], [7, 0, 0, 0]])
    made = Layout.of(ids, (ids > 0).long(), sides=2)
    assert ids.flatten()[made.source].tolist() == [1, 2, 3, 6, 7, 4, 5, 7]
    assert (made.source % 4).tolist() == [0, 1, 2, 0, 1, 2, 3, 0]
    assert made.place[0, :3].tolist() == [0, 1, 2] and made.place[2].tolist() == [0, 1, 5, 6]
    assert made.place[1, :2].tolist() == [3, 4] and made.place[3, 0] == 7
    assert made.groups == ((1, 4), (1, 3), (1, 2), (1, 1)) and made.order.tolist() == [2, 0, 1, 3]
    assert made.grouped.tolist() == [0, 1, 5, 6, 0, 1, 2, 3, 4, 7]
    assert made.grouped[made.back].tolist() == list(range(8)) and made.back[:2].tolist() in ([0, 1], [4, 5])


def test_equal_padding_is_shared_by_nobody():
    """The pad id also stands in texts; and of one text a pair nothing is shared."""
    ids = torch.tensor([[1, 0, 0], [1, 0, 2]])
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]])
    assert Layout.of(ids, mask, sides=2).source.tolist() == [0, 1, 5]
    assert Layout.of(ids, mask, sides=1).source.tolist() == [0, 1, 3, 4, 5]
    short = torch.tensor([[1, 0, 0], [1, 1, 1]])
    assert Layout.of(torch.tensor([[1, 0, 0], [1, 0, 0]]), short, sides=2).source.tolist() == [0, 4, 5]


def test_texts_of_about_one_length_share_a_group():
    """Lengths 10, 4, 9 and 8: the last two are at least 0.8 of the first, and are padded to it."""
    mask = (torch.arange(10) < torch.tensor([[10], [4], [9], [8]])).long()
    made = Layout.of(mask * torch.arange(1, 41).view(4, 10), mask, sides=1)
    assert made.groups == ((3, 10), (1, 4))
    starts = torch.tensor([0, 14, 23, 10])  # of the longest first, in the packed row
    assert made.grouped[[0, 10, 20, 30]].tolist() == starts.tolist()
    assert made.grouped[made.back].tolist() == list(range(31))


def test_every_architecture_of_the_tests_is_packed(name):  # noqa: F811
    for method in ("reward", "dpo"):
        model = load(method, name)
        assert (model.body if method == "reward" else model).config._attn_implementation == packed.NAME


@pytest.mark.parametrize("lora", [None, LORA], ids=["whole", "lora"])
@pytest.mark.parametrize("method", ["reward", "sft", "dpo", "simpo"])
def test_the_plain_form_one_pair_at_a_time(name, method, lora, tokenizer):  # noqa: F811
    """Losses, margins or log-probabilities, and all gradients, relative to the largest of each."""
    spec, model = spec_of(method, name, lora), load(method, name, lora)
    made, objective = objective_of(spec, model, tokenizer)
    value = pair_margins if method == "reward" else text_logps
    found = []
    for packing in (True, False):
        model.zero_grad()
        total, values = 0.0, []
        for index in [np.arange(len(PAIRS))] if packing else np.arange(len(PAIRS))[:, None]:
            batch = made.batch(index)
            batch = batch if packing else replace(batch, layout=None)
            loss = objective(model, batch).sum() / len(PAIRS)
            loss.backward()
            total += loss.item()
            values.append(value(model, batch).detach().reshape(-1, len(index)))
        found.append((total, torch.cat(values, 1), {k: p.grad for k, p in model.named_parameters() if p.requires_grad}))
    (loss, ours, gradients), (plain_loss, plain, expected) = found
    assert loss == pytest.approx(plain_loss, abs=1e-5)
    torch.testing.assert_close(ours, plain, atol=1e-5, rtol=1e-5)
    assert gradients.keys() == expected.keys() and max(g.abs().max() for g in expected.values()) > 1e-3
    for key, gradient in expected.items():
        torch.testing.assert_close(gradients[key], gradient, atol=1e-5, rtol=1e-5, msg=lambda m, key=key: f"{key}: {m}")


def test_the_last_attention_of_a_reward_is_that_of_the_ends(name, tokenizer, monkeypatch):  # noqa: F811
    """Of each group of texts once; not where two texts are the same, which have one end."""
    model, queries = load("reward", name), []
    attention = packed.sdpa_attention_forward

    def noted(module, query, *args, **options):
        queries.append((module.layer_idx, query.shape[2]))
        return attention(module, query, *args, **options)

    monkeypatch.setattr(packed, "sdpa_attention_forward", noted)
    for pairs, ends in ((PAIRS, True), (MIXED, False)):
        queries.clear()
        pair_margins(model, PairTexts(pairs, tokenizer, 48).batch(np.arange(len(pairs))))
        last = max(layer for layer, _ in queries)
        assert {length == 1 for layer, length in queries if layer == last} >= {ends}
        assert any(length > 1 for layer, length in queries if layer == 0)
        assert any(length > 1 for layer, length in queries if layer == last) != ends


@pytest.mark.parametrize("method", ["reward", "dpo"])
def test_odd_pairs_too(name, method, tokenizer):  # noqa: F811
    """A text that begins with all of the other, equal texts, no prompt, texts that are cut."""
    model, made = load(method, name).eval(), texts(tokenizer, end=method != "reward")
    value = pair_margins if method == "reward" else text_logps
    whole = made.batch(np.arange(len(MIXED)))
    assert len(whole.layout.source) < 0.9 * whole.attention_mask.sum()
    with torch.no_grad():
        ours = value(model, whole).reshape(-1, len(MIXED))
        alone = [replace(made.batch(np.array([i])), layout=None) for i in range(len(MIXED))]
        plain = torch.cat([value(model, batch).reshape(-1, 1) for batch in alone], 1)
        others = np.flatnonzero(MIXED["chosen"] != MIXED["rejected"])  # without equal texts, which go another way
        apart = value(model, made.batch(others)).reshape(-1, len(others))
    torch.testing.assert_close(ours, plain, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(apart, plain[:, others], atol=1e-5, rtol=1e-5)
    assert plain.std() > 0.1 and len(others) == len(MIXED) - 1


def test_no_padding_and_no_prompt_twice_in_the_linear_layers(name, tokenizer):  # noqa: F811
    """As many rows as the packed row has tokens: else nothing would be won."""
    model, seen = load("dpo", name), []
    batch = texts(tokenizer, end=True).batch(np.arange(len(MIXED)))
    norms = (m for key, m in model.named_modules() if "0." in key and "norm" in type(m).__name__.lower())
    norm = next(m for m in norms if len(m.weight) == 16)  # of whole states, not of a head's queries
    norm.register_forward_hook(lambda module, inputs, output: seen.append(output.shape[:-1].numel()))
    text_logps(model, batch)
    text_logps(model, replace(batch, layout=None))
    assert seen == [len(batch.layout.source), batch.input_ids.numel()]


def test_what_follows_the_last_attention_sees_the_wanted_tokens_alone(name, tokenizer):  # noqa: F811
    """One token a text for a reward; texts that end in the same token of the packed row ask for it once."""
    batch = texts(tokenizer, end=False).batch(np.arange(len(MIXED)))
    ends = batch.layout.place[torch.arange(2 * len(MIXED)), batch.attention_mask.sum(1) - 1]
    model, seen = load("reward", name), []
    last = [m for m in model.modules() if isinstance(m, GradientCheckpointingLayer)][-1]
    feeds = [m for key, m in last.named_modules() if key.rpartition(".")[2] in ("c_proj", "down_proj", "fc2")]
    feeds += [m for key, m in last.named_modules() if key == "mlp.dense_4h_to_h"]
    feeds[-1].register_forward_hook(lambda module, inputs, output: seen.append(output.shape[:-1].numel()))
    pair_margins(model, batch)
    for kept in (True, False):
        model.body.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
        model.train(kept)
        pair_margins(model, batch)
    assert seen == [len(ends.unique()), len(batch.layout.source), len(ends.unique())]  # see LastBlock of the second


def test_an_untested_architecture_is_computed_plainly_and_says_so_once(tmp_path, capsys):
    """Bloom's attention depends on distances (ALiBi), which a packed row does not tell."""

    def config(**given):
        return BloomConfig(hidden_size=16, n_layer=2, n_head=2, initializer_range=0.2, **given)

    packed._say_plain.cache_clear()
    folder = write_model(tmp_path / "bloom", config, gpt2_pieces())
    model, tokenizer = load("reward", folder), models.load_tokenizer(folder)
    load("dpo", folder)
    line = "models of type bloom are computed with padding: slower, the same results\n"
    assert capsys.readouterr().out.count(line) == 1
    alone, together = scores("reward", model, tokenizer, 1), scores("reward", model, tokenizer)
    np.testing.assert_allclose(alone, together, atol=2e-5)
    assert alone.std() > 0.1
