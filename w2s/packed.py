"""Texts without padding: one packed row, in which the prompt that both texts of a pair share is computed once.

Everything in a model but attention works on single tokens, and sees the packed row. Attention alone takes it
apart into texts again, by transformers' AttentionInterface, so that none is masked and none sees another.
"""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from w2s.batches import Layout

NAME = "w2s_packed"
# Those whose attention depends on nothing but causality and a sliding window, and that tests hold to the plain form.
TESTED = ("gpt2", "gpt_neox", "llama", "mistral", "opt", "qwen2", "qwen3")


def enable(model: nn.Module) -> None:
    """Let a model take packed rows; one of an untested architecture goes on with padded texts, and says so once."""
    if model.config.model_type in TESTED:
        model.set_attn_implementation(NAME)
    else:
        _say_plain(model.config.model_type)


@lru_cache
def _say_plain(kind: str) -> None:
    print(f"models of type {kind} are computed with padding: slower, the same results", flush=True)


def last_states(body: nn.Module, ids: Tensor, mask: Tensor, layout: Layout | None, text: Tensor, at: Tensor) -> Tensor:
    """The last hidden states (k, width) of a body at k tokens.

    Args:
        ids, mask: (rows, length) right-padded texts.
        layout: of these texts; None computes them with their padding.
        text, at: (k,) row and position of each token.
    """
    if layout is None or body.config._attn_implementation != NAME:
        return body(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state[text, at]
    row, positions = ids.flatten()[layout.source], layout.source % ids.shape[1]
    # Models hand on a mask of four dimensions as it is, and make none over the whole row, which this one stops.
    unused = mask[None, None]
    out = body(input_ids=row[None], position_ids=positions[None], attention_mask=unused, use_cache=False, packed=layout)
    return out.last_hidden_state[0].index_select(0, layout.place[text, at])


def attend(module, query, key, value, attention_mask, packed: Layout | None = None, **options):
    """Causal attention of each text of a packed row to itself; of texts that are not packed, transformers' own.

    query, key, value: (1, heads, tokens, width). Returns (1, tokens, heads, width).
    """
    if packed is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    texts = [_texts(states, packed.place) for states in (query, key, value)]
    window, mask = options.get("sliding_window"), None
    if window and window < packed.place.shape[1]:
        place = torch.arange(packed.place.shape[1], device=query.device)
        behind = place[:, None] - place
        mask = ((behind >= 0) & (behind < window))[None, None]
    mixed, weights = sdpa_attention_forward(module, *texts, mask, **options)
    return mixed.flatten(0, 1).index_select(0, packed.source)[None], weights


def _texts(states: Tensor, place: Tensor) -> Tensor:
    """States (1, heads, tokens, width) of a packed row as those of its texts: (rows, heads, length, width)."""
    heads, width = states.shape[1], states.shape[3]
    table = states.transpose(1, 2).reshape(-1, heads * width)
    return F.embedding(place, table).unflatten(2, (heads, width)).transpose(1, 2)


AttentionInterface.register(NAME, attend)
AttentionMaskInterface.register(NAME, sdpa_mask)  # of texts that are not packed
