"""The lower blocks of a model, where a run trains the last ones alone: what they make of a text never changes.

So it is computed once (`run`), and given to the body from then on (`give`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from w2s.batches import Layout
from w2s.fast import packed


class Skipped(nn.Module):
    """In the place of a lower block: hands on the states that it was given, else those that come in."""

    def __init__(self, in_tuple: bool):
        super().__init__()
        self.in_tuple, self.states = in_tuple, None

    def forward(self, hidden_states, *args, **options):
        states = hidden_states if self.states is None else self.states
        return (states, None) if self.in_tuple else states


def blocks_of(model: nn.Module) -> nn.ModuleList:
    """The blocks of a language model, or of its body."""
    lists = (m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m))
    return next(m for m in lists if isinstance(m[0], GradientCheckpointingLayer))


class LowerBlocks:
    """Takes all but the last `trained` blocks out of a body, which then needs their states for each text (`give`).

    `find` gives the stored states of texts, lists of token ids, each (tokens, width); None: they are computed anew.
    """

    def __init__(self, body: nn.Module, trained: int):
        self.body, self.blocks = body, blocks_of(body)
        self.every, self.n = list(self.blocks), len(self.blocks) - trained
        self.find: Callable[[list[list[int]]], list[Tensor]] | None = None
        first = self._output(0, torch.tensor([[0, 1]], device=body.device), None, None)
        self.skipped = [Skipped(isinstance(first, tuple)) for _ in self.every]
        self._keep(self.n, len(self.every))

    @torch.no_grad()
    def _output(self, block: int, ids: Tensor, mask: Tensor | None, layout: Layout | None):
        """What a block gives of texts: their states, or a tuple that begins with them."""
        outputs: list = []
        watch = self.every[block].register_forward_hook(lambda block, inputs, output: outputs.append(output))
        try:
            packed.run(self.body, ids, mask, layout)
        finally:
            watch.remove()
        return outputs[0]

    def _keep(self, first: int, end: int) -> None:
        for i, (block, skipped) in enumerate(zip(self.every, self.skipped, strict=True)):
            self.blocks[i] = block if first <= i < end else skipped

    @contextmanager
    def kept(self, first: int, end: int) -> Iterator[None]:
        """The body with the blocks from `first` up to `end` alone; with all, it can be written."""
        self._keep(first, end)
        try:
            yield
        finally:
            self._keep(self.n, len(self.every))

    def run(self, ids: Tensor, mask: Tensor, layout: Layout | None) -> Tensor:
        """The states of right-padded texts (rows, length, width), or of their packed row (1, tokens, width)."""
        if layout is not None:
            layout = replace(layout, wanted=torch.arange(len(layout.source), device=ids.device), ends=None)
        for skipped in self.skipped:
            skipped.states = None
        with self.kept(0, self.n):
            output = self._output(self.n - 1, ids, mask, layout)
        return output[0] if isinstance(output, tuple) else output

    def give(self, ids: Tensor, mask: Tensor, layout: Layout | None) -> None:
        """Hand the body the states of the texts that it is called with next."""
        if not self.n:  # every block is trained
            return
        if self.find is None:
            states = self.run(ids, mask, layout)
        else:
            rows = [row[:n] for row, n in zip(ids.tolist(), mask.sum(1).tolist(), strict=True)]
            states = nn.utils.rnn.pad_sequence(self.find(rows), batch_first=True).to(ids.device)
            states = states if layout is None else states.flatten(0, 1)[layout.source][None]
        self.skipped[self.n - 1].states = states
