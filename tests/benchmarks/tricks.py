"""What makes the kit fast and can be taken away, and what was tried and is not in it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from transformers import AttentionInterface
from transformers.modeling_layers import GradientCheckpointingLayer

from w2s import batches, models
from w2s.batches import Layout
from w2s.fast import cpu
from w2s.fast import packed as packed_rows


def _attend_everywhere(module, query, key, value, row: Layout, **options):
    return packed_rows.attend(module, query, key, value, None, replace(row, ends=None), **options)


# What each does without: module, name, what stands there instead, before the model is loaded.
TRICKS = {
    "products by oneDNN": (cpu, "_able", lambda: False),
    "memory kept": (cpu, "KEEP_MEMORY", {}),
    "attention in groups of one length": (batches, "ALIKE", 0.0),
    "the last block at the wanted tokens": (packed_rows, "LastBlock", lambda block: None),
    "its attention at the ends of texts": (packed_rows, "_attend_at_ends", _attend_everywhere),
    "GELU in one kernel": (models, "GELU", {}),
}


def seen(row: Layout) -> Tensor:
    """Which token of a packed row sees which: (tokens, tokens), a tree with two branches for every pair."""
    text, position = row.source // row.place.shape[1], row.source % row.place.shape[1]
    token, before = (torch.arange(row.place.shape[1]) <= position[:, None]).nonzero(as_tuple=True)
    mask = torch.zeros(2 * [len(row.source)], dtype=torch.bool)
    mask[token, row.place[text[token], before]] = True
    return mask


def _over_the_row(masked: Callable[[Layout], object], attention: Callable) -> Callable[[nn.Module], None]:
    """Attention of the whole packed row to itself, `attention(query, key, value, mask)`; a mask for each row."""
    last: list = [None, None]

    def attend(module, query, key, value, mask, packed: Layout | None = None, **options):
        if last[0] is not packed:
            last[:] = packed, masked(packed)
        return attention(query, key, value, last[1]).transpose(1, 2), None

    return lambda model: AttentionInterface.register(packed_rows.NAME, attend)


def _block_mask(row: Layout):
    mask = seen(row)
    return create_block_mask(lambda b, h, q, k: mask[q, k], None, None, *mask.shape, device="cpu")


def _flex(model: nn.Module) -> None:
    compiled = torch.compile(flex_attention, dynamic=True)
    _over_the_row(_block_mask, lambda q, k, v, mask: compiled(q, k, v, block_mask=mask))(model)


def _compile_parts(model: nn.Module) -> None:
    """Norms and MLP of each block; attention, which takes texts apart by their lengths, stays as it is."""
    for block in (m for m in model.modules() if isinstance(m, GradientCheckpointingLayer)):
        for name, part in block.named_children():
            if "attn" not in name:
                part.forward = torch.compile(part.forward, dynamic=True)


def _compile_loss(model: nn.Module) -> None:
    models.next_token_loss = torch.compile(models.next_token_loss, dynamic=True)


def _round_rows(model: nn.Module, multiple: int = 64) -> None:
    """Packed rows with a multiple of 64 tokens, the last one repeated."""
    of = Layout.of

    def rounded(*args) -> Layout:
        row = of(*args)
        more = -len(row.source) % multiple
        source, back = (torch.cat([x, x[-1:].expand(more)]) for x in (row.source, row.back))
        return replace(row, source=source, back=back)

    Layout.of = rounded


def _more_logits(model: nn.Module) -> None:
    models.AT_ONCE["cpu"] *= 4


# What each does to a loaded model, or to the kit around it.
TRIED = {
    "one tree mask over the row": _over_the_row(
        seen, lambda q, k, v, mask: F.scaled_dot_product_attention(q, k, v, mask[None, None])
    ),
    "flex attention over the row": _flex,
    "torch.compile of norms and MLPs": _compile_parts,
    "torch.compile of the loss of a token": _compile_loss,
    "rows of a multiple of 64 tokens": _round_rows,
    "four times as many logits at once": _more_logits,
}


def without_use(method: str, task: str) -> set[str]:
    """Those TRIED that a case does not try: what has no gradient on a CPU, or needs what is not there."""
    lacking = {"flex attention over the row"} if task == "train" else set()
    if method == "reward":
        lacking |= {"torch.compile of the loss of a token", "four times as many logits at once"}
    if not shutil.which(os.environ.get("CXX", "g++")):  # which torch.compile calls
        lacking |= {name for name in TRIED if name.startswith(("torch.compile", "flex"))}
    return lacking
