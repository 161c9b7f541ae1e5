"""Texts without padding: the layout by hand; scores, log-probabilities and gradients are those of the plain form."""

from dataclasses import replace
from functools import partial

import architectures as tiny
import numpy as np
import pandas as pd
import pytest
import torch
from architectures import EVERY, LENGTH, METHODS, PAIRS, PROMPT, load, objective_of, product, scores, spec_of
from transformers import BloomConfig
from transformers.modeling_layers import GradientCheckpointingLayer

from w2s import models
from w2s.batches import Layout, PairTexts
from w2s.fast import packed
from w2s.models import pair_margins, text_logps

# One text begins with all of the other, and goes on with "!", which has id 0 in GPT-2, as padding has; equal texts; no
# prompt; cut to LENGTH, and far beyond any sliding window.
MORE = [(PROMPT, " no", " no!"), (PROMPT, " yes", " yes"), ("", " no, wait!", " yes")]
MORE = pd.DataFrame([*MORE, ("may i? " * 60, " no!", " yes!")], columns=["prompt", "chosen", "rejected"])
MIXED = pd.concat([PAIRS, MORE], ignore_index=True).assign(id=list("abcdefghij"), label=[1.0, 0.0] * 5)
ALL = np.arange(len(MIXED))

pytestmark = pytest.mark.usefixtures("one_thread")
name, tokenizer, close = tiny.name, tiny.tokenizer, torch.testing.assert_close


def together(method: str, model, batches) -> torch.Tensor:
    """Rewards or log-probabilities (2, n) of the pairs of some batches; of one text a pair (1, n)."""
    return torch.cat([tiny.values(method, model, batch).reshape(-1, len(batch.index)) for batch in batches], 1)


def alone(texts: PairTexts):
    """Batches of one pair each, without layout."""
    return [replace(texts.batch(np.array([i])), layout=None) for i in range(len(texts))]


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
    # Lengths 10, 4, 9 and 8: the last two are at least 0.8 of the first, and are padded to it.
    mask = (torch.arange(10) < torch.tensor([[10], [4], [9], [8]])).long()
    made = Layout.of(mask * torch.arange(1, 41).view(4, 10), mask, sides=1)
    assert made.groups == ((3, 10), (1, 4)) and made.grouped[made.back].tolist() == list(range(31))
    assert made.grouped[[0, 10, 20, 30]].tolist() == [0, 14, 23, 10]  # starts, of the longest first, in the packed row


@product(METHODS)
def test_the_plain_form_one_pair_at_a_time(name, method, lora, tokenizer):
    """Losses, rewards or log-probabilities, and all gradients."""
    model, losses, results = load(method, name, lora), [], []
    texts, objective = objective_of(spec_of(method, name, lora), model, tokenizer)
    for batches in ([texts.batch(EVERY)], alone(texts)):
        model.zero_grad()
        loss = sum(objective(model, batch).sum() / len(PAIRS) for batch in batches)
        loss.backward()
        gradients = {key: p.grad for key, p in tiny.trained(model).items()}
        losses.append(loss.item())
        results.append([together(method, model, batches).detach(), gradients])
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    close(*results, atol=1e-5, rtol=1e-5)
    assert max(gradient.abs().max() for gradient in gradients.values()) > 1e-3


@torch.no_grad()
@pytest.mark.parametrize("method", ["reward", "dpo"])
def test_odd_pairs_too(name, method, tokenizer):
    model, texts = load(method, name), PairTexts(MIXED, tokenizer, LENGTH, end=method != "reward")
    others = np.flatnonzero(MIXED["chosen"] != MIXED["rejected"])  # without equal texts, which go another way
    assert len(texts.batch(ALL).layout.source) < 0.9 * texts.batch(ALL).attention_mask.sum()
    plain = together(method, model, alone(texts))
    for index in (ALL, others):
        close(together(method, model, [texts.batch(index)]), plain[:, index], atol=1e-5, rtol=1e-5)
    assert plain.std() > 0.1 and len(others) == len(MIXED) - 1


def test_the_last_attention_of_a_reward_is_that_of_the_ends(name, tokenizer, monkeypatch):
    """Not where two texts are the same, which have one end."""
    model, queries, attention = load("reward", name), {}, packed.sdpa_attention_forward

    def noted(module, query, *args, **options):
        queries.setdefault(module.layer_idx, set()).add(query.shape[2])
        return attention(module, query, *args, **options)

    monkeypatch.setattr(packed, "sdpa_attention_forward", noted)
    for pairs, ends in ((PAIRS, True), (MIXED, False)):
        queries.clear()
        pair_margins(model, PairTexts(pairs, tokenizer, 48).batch(np.arange(len(pairs))))
        assert max(queries[0]) > 1 and (queries[max(queries)] == {1}) == ends


def rows_seen(module) -> list[int]:
    """The number of rows of each output that the module will have."""
    seen = []
    module.register_forward_hook(lambda module, inputs, output: seen.append(output.shape[:-1].numel()))
    return seen


def test_linear_layers_see_no_padding_no_prompt_twice_and_the_last_ones_the_wanted_tokens_alone(name, tokenizer):
    """As many rows as the packed row has tokens; behind the last attention, for a reward, one a text and end."""
    model, batch = load("dpo", name), PairTexts(MIXED, tokenizer, LENGTH, end=True).batch(ALL)
    norms = (m for key, m in model.named_modules() if "0." in key and "norm" in type(m).__name__.lower())
    seen = rows_seen(next(m for m in norms if len(m.weight) == 16))  # of whole states, not of a head's queries
    for layout in (batch.layout, None):
        text_logps(model, replace(batch, layout=layout))
    assert seen == [len(batch.layout.source), batch.input_ids.numel()]
    model, batch = load("reward", name), PairTexts(MIXED, tokenizer, LENGTH).batch(ALL)
    ends = batch.layout.place[torch.arange(2 * len(MIXED)), batch.attention_mask.sum(1) - 1]
    last = [m for m in model.modules() if isinstance(m, GradientCheckpointingLayer)][-1]
    kinds = ("c_proj", "down_proj", "fc2", "dense_4h_to_h")
    seen = rows_seen([m for key, m in last.named_modules() if key.rpartition(".")[2] in kinds][-1])
    pair_margins(model, batch)
    model.body.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    for training in (True, False):
        pair_margins(model.train(training), batch)
    assert seen == [len(ends.unique()), len(batch.layout.source), len(ends.unique())]  # see LastBlock of the second


def test_an_untested_architecture_is_computed_plainly_and_says_so_once(tmp_path, capsys):
    """Bloom's attention depends on distances (ALiBi), which a packed row does not tell."""
    packed._say_plain.cache_clear()
    config = partial(BloomConfig, hidden_size=16, n_layer=2, n_head=2, initializer_range=0.2)
    folder = tiny.write_model(tmp_path / "bloom", config, tiny.gpt2_pieces())
    model, tokenizer = load("reward", folder), models.load_tokenizer(folder)
    load("dpo", folder)
    line = "models of type bloom are computed with padding: slower, the same results\n"
    assert capsys.readouterr().out.count(line) == 1
    one, all_at_once = scores("reward", model, tokenizer, 1), scores("reward", model, tokenizer)
    np.testing.assert_allclose(one, all_at_once, atol=2e-5)
    assert one.std() > 0.1
