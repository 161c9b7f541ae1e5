"""Texts without padding: one packed row, in which the prompt that both texts of a pair share is computed once.

Attention alone takes the row apart into texts again, by transformers' AttentionInterface; all else works on tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask
from transformers.modeling_layers import GradientCheckpointingLayer

from w2s.batches import Layout

NAME = "w2s_packed"
# Those whose attention depends on nothing but causality and a sliding window, and that tests hold to the plain form.
TESTED = ("gpt2", "gpt_neox", "llama", "mistral", "opt", "qwen2", "qwen3")


def enable(model: nn.Module) -> None:
    """Let a model take packed rows; one of an untested architecture goes on with padded texts, and says so once."""
    if model.config.model_type in TESTED:
        model.set_attn_implementation(NAME)
        LastBlock([m for m in model.modules() if isinstance(m, GradientCheckpointingLayer)][-1])
    else:
        _say_plain(model.config.model_type)


@lru_cache
def _say_plain(kind: str) -> None:
    print(f"models of type {kind} are computed with padding: slower, the same results", flush=True)


def last_states(body: nn.Module, ids: Tensor, mask: Tensor, layout: Layout | None, text: Tensor, at: Tensor) -> Tensor:
    """The last hidden states (k, width) of a body at k tokens, whose row and position are `text` and `at` (k,).

    ids and mask (rows, length) are right-padded texts; a layout of None computes them with their padding.
    """
    layout = layout if layout and packs(body) else None
    if lower := getattr(body, "lower", None):
        lower.give(ids, mask, layout)
    if layout is None:
        return run(body, ids, mask, None)[text, at]
    place = layout.place[text, at]
    wanted = place.unique()
    one_each = len(wanted) == len(ids) and torch.equal(text, torch.arange(len(ids), device=text.device))
    layout = replace(layout, wanted=wanted, ends=at if one_each else None)
    return run(body, ids, mask, layout)[0].index_select(0, place)


def packs(body: nn.Module) -> bool:
    """Whether a body takes packed rows."""
    return body.config._attn_implementation == NAME


def run(body: nn.Module, ids: Tensor, mask: Tensor, layout: Layout | None) -> Tensor:
    """The last hidden states of right-padded texts (rows, length, width), or of their packed row (1, tokens, width)."""
    if layout is None:
        return body(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
    where = {"input_ids": ids.flatten()[layout.source][None], "position_ids": (layout.source % ids.shape[1])[None]}
    # Models hand on a mask of four dimensions as it is, and make none over the whole row, which this one stops.
    return body(**where, attention_mask=mask[None, None], use_cache=False, packed=layout).last_hidden_state


def attend(module, query, key, value, attention_mask, packed: Layout | None = None, **options):
    """Causal attention of each text of a packed row to itself; of texts that are not packed, transformers' own.

    query, key, value: (1, heads, tokens, width). Returns (1, tokens, heads, width).
    """
    if packed is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    if packed.ends is not None and module.layer_idx == module.config.num_hidden_layers - 1:
        return _attend_at_ends(module, query, key, value, packed, **options)
    window, mixed = options.get("sliding_window"), []
    for texts in zip(*(_texts(states, packed) for states in (query, key, value)), strict=True):
        length, mask = texts[0].shape[2], None  # without a mask it is causal
        if window and window < length:
            behind = torch.arange(length, device=query.device)[:, None] - torch.arange(length, device=query.device)
            mask = ((behind >= 0) & (behind < window))[None, None]
        states, weights = sdpa_attention_forward(module, *texts, mask, **options)
        mixed.append(states.flatten(0, 1))
    return torch.cat(mixed).index_select(0, packed.back)[None], weights


def _attend_at_ends(module, query, key, value, packed: Layout, sliding_window: int | None = None, **options):
    """`attend` in the last block, where one token of each text is asked for: of other tokens the result is 0."""
    states = query[0].transpose(0, 1)  # (tokens, heads, width)
    place = packed.place.gather(1, packed.ends[:, None]).squeeze(1)[packed.order]
    sizes, mixed = [n for n, _ in packed.groups], []
    asked = states.index_select(0, place)[:, :, None].split(sizes)
    ends = packed.ends[packed.order][:, None].split(sizes)
    for one, end, keys, values in zip(asked, ends, _texts(key, packed), _texts(value, packed), strict=True):
        at = torch.arange(keys.shape[2], device=end.device)
        seen = (at <= end) & (at > end - (sliding_window or len(at)))
        out, weights = sdpa_attention_forward(module, one, keys, values, seen[:, None, None], **options)
        mixed.append(out.squeeze(1))
    return query.new_zeros(states.shape).index_copy(0, place, torch.cat(mixed))[None], weights


def _texts(states: Tensor, packed: Layout) -> Iterator[Tensor]:
    """States (1, heads, tokens, width) of a packed row as those of its texts: (texts, heads, length, width)."""
    table = states[0].transpose(0, 1)
    grouped = F.embedding(packed.grouped, table.flatten(1)).unflatten(1, table.shape[1:])
    for shape, part in zip(packed.groups, grouped.split([n * length for n, length in packed.groups]), strict=True):
        yield part.unflatten(0, shape).transpose(1, 2)


class LastBlock:
    """Computes what follows the attention of a model's last block at the wanted tokens alone; other states are 0.

    Its hooks narrow what goes into the block, but give the whole to its first part, the norm or attention itself.
    """

    def __init__(self, block: nn.Module):
        self.wanted = self.whole = None
        block.register_forward_pre_hook(self._enter, with_kwargs=True)
        for part in block.children():
            part.register_forward_pre_hook(self._first, with_kwargs=True)
            part.register_forward_hook(self._attended)
        block.register_forward_hook(self._leave)

    def _enter(self, block, args, options):
        packed, self.wanted, self.whole = options.get("packed"), None, None
        again = block.gradient_checkpointing and block.training  # it will be computed anew without its hooks
        if packed is not None and not again:
            self.wanted, self.whole, self.tokens = packed.wanted, args[0], args[0].shape[1]
            return (self.whole.index_select(1, self.wanted), *args[1:]), options

    def _first(self, part, args, options):
        if self.whole is not None:
            whole, self.whole = self.whole, None
            return ((whole, *args[1:]), options) if args else (args, options | {"hidden_states": whole})

    def _attended(self, part, args, output):
        if self.wanted is not None and isinstance(output, tuple):  # of its parts, attention alone gives one
            return (output[0].index_select(1, self.wanted), *output[1:])

    def _leave(self, block, args, output):
        if self.wanted is not None:
            return output.new_zeros(1, self.tokens, output.shape[2]).index_copy(1, self.wanted, output)


AttentionInterface.register(NAME, attend)
AttentionMaskInterface.register(NAME, sdpa_mask)  # of texts that are not packed
