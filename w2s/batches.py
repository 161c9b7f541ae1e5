"""Tokenizing, and batches by token budget; for training and for scoring."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from operator import itemgetter

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from w2s.params import ParameterError

ALIKE = 0.8  # fewer, larger groups of texts cost more padding, smaller ones more calls


@dataclass(frozen=True)
class Layout:
    """Where the tokens of right-padded texts (rows, length) stand in one packed row (tokens,).

    No padding is in the packed row, and what both texts of a pair begin with is there once.
    Attention takes the texts in groups of about one length, as it costs the square of it.
    """

    place: Tensor  # (rows, length) in the packed row, of each token; any at the padding
    source: Tensor  # (tokens,) in the flattened texts, of each token of the packed row
    groups: tuple[tuple[int, int], ...]  # the number of texts and the length of each
    order: Tensor  # (rows,) of the texts in the groups, one group after the other
    grouped: Tensor  # place in the packed row of each token of the groups
    back: Tensor  # (tokens,) where in `grouped` each token of the packed row stands
    wanted: Tensor | None = None  # places in the packed row, sorted, whose last hidden states are asked for; None: all
    ends: Tensor | None = None  # (rows,) where these are one of each text, its position in it

    @classmethod
    def of(cls, ids: Tensor, mask: Tensor, sides: int) -> Layout:
        """The layout of texts and their mask, each (rows, length); the first texts of all pairs, then the second."""
        first = slice(0, len(ids) // sides)
        same = (ids == ids[first].repeat(sides, 1)) & (mask * mask[first].repeat(sides, 1)).bool()
        alone = same.cumprod(1) == 0
        alone[first] = True
        kept = alone & mask.bool()
        number = (kept.flatten().cumsum(0) - 1).view(kept.shape)
        place = torch.where(alone, number, number[first].repeat(sides, 1))
        groups, order, grouped, back, start = [], [], [], torch.empty_like(place), 0
        for rows, length in _alike(mask.sum(1)):
            groups.append((len(rows), length))
            order.append(rows)
            grouped.append(place[rows, :length].flatten())
            back[rows, :length] = start + torch.arange(len(rows) * length).view(-1, length)
            start += len(grouped[-1])
        source = kept.flatten().nonzero().squeeze(1)
        return cls(place, source, tuple(groups), torch.cat(order), torch.cat(grouped), back[kept])

    def to(self, device: torch.device) -> Layout:
        tensors = {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}
        return replace(self, **{name: value.to(device, non_blocking=True) for name, value in tensors.items()})


def _alike(lengths: Tensor) -> Iterator[tuple[Tensor, int]]:
    """Rows of texts and the length of the longest, longest first; none of them is shorter than ALIKE times that."""
    (lengths, rows), start = lengths.sort(descending=True, stable=True), 0
    while start < len(rows):
        end = int((lengths >= ALIKE * lengths[start]).sum())
        yield rows[start:end], int(lengths[start])
        start = end


@dataclass(frozen=True)
class Batch:
    """`n` pairs as one right-padded block: the n chosen texts, then the n rejected ones; n rows for SFT."""

    input_ids: Tensor  # (2n, length), as the two masks
    attention_mask: Tensor
    response_mask: Tensor  # 1 at the tokens of the response
    index: np.ndarray  # (n,) row numbers of the pairs
    layout: Layout | None = None  # by which the texts are computed without padding; None computes them with it

    def to(self, device: torch.device) -> Batch:
        moved = [t.to(device, non_blocking=True) for t in (self.input_ids, self.attention_mask, self.response_mask)]
        return Batch(*moved, self.index, self.layout and self.layout.to(device))


def encode(tokenizer, prompts, responses, max_length: int, end: bool = False) -> tuple[list[list[int]], list[int]]:
    """Token ids of each prompt + response, and the position of the response's first token.

    Both are encoded as one text, with the start token where the tokenizer puts one; a token that reaches over the
    boundary belongs to the response. `end` ends the text with the end token, once, so that it is learned and scored;
    otherwise it has none. A too long text loses the beginning of its prompt but for the start token, and of its
    response only what is too long alone. ParameterError: `end`, but the tokenizer has no end token.
    """
    first, last = tokenizer.bos_token_id, tokenizer.eos_token_id
    if end and last is None:
        raise ParameterError("the tokenizer has no end token (eos_token), which SFT, DPO and SimPO need; set one")
    texts = [p + r for p, r in zip(prompts, responses, strict=True)]
    if not texts:  # which a tokenizer refuses
        return [], []
    encoded = tokenizer(texts, return_attention_mask=False, return_offsets_mapping=True)
    rows, starts = [], []
    for ids, offsets, prompt in zip(encoded["input_ids"], encoded["offset_mapping"], prompts, strict=True):
        front = int(ids[:1] == [first] and offsets[0][1] == 0)  # a start token that is not in the text
        size = len(ids)
        while size > front and ids[size - 1] == last:
            size -= 1
        start, ids = bisect_right(offsets, len(prompt), hi=size, key=itemgetter(1)), ids[:size] + [last] * end
        excess = max(0, len(ids) - max_length)
        if front > max_length - (len(ids) - start):  # the response leaves no room for it
            front = 0
        rows.append(ids[:front] + ids[front + excess :])
        starts.append(max(0, start - excess))
    return rows, starts


def pad(rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Right-pad token ids to the longest: (ids, mask), each (n, length). Masked ids are 0."""
    lengths = torch.tensor([len(r) for r in rows])
    mask = torch.arange(int(lengths.max()))[None] < lengths[:, None]
    ids = torch.zeros(mask.shape, dtype=torch.long)
    ids[mask] = torch.tensor([t for r in rows for t in r])
    return ids, mask.long()


class PairTexts:
    """The encoded texts of the columns `sides` of a pair table, cut into batches; `end` as in `encode`."""

    def __init__(self, pairs: pd.DataFrame, tokenizer, max_length: int, end=False, sides=("chosen", "rejected")):
        prompts = pairs["prompt"].tolist()
        self.sides = [encode(tokenizer, prompts, pairs[side].tolist(), max_length, end) for side in sides]
        self.length = np.array([max(map(len, texts)) for texts in zip(*(rows for rows, _ in self.sides), strict=True)])

    def __len__(self) -> int:
        return len(self.length)

    def batch(self, index: np.ndarray) -> Batch:
        ids, mask = pad([rows[i] for rows, _ in self.sides for i in index])
        first = torch.tensor([starts[i] for _, starts in self.sides for i in index])
        response = mask * (torch.arange(mask.shape[1])[None] >= first[:, None])
        return Batch(ids, mask, response, index, Layout.of(ids, mask, len(self.sides)))

    def batches(self, index: np.ndarray, tokens: int) -> Iterator[Batch]:
        """The pairs `index`, sorted by length, in blocks of at most `tokens` padded tokens, or of one longer pair."""
        index, start = index[np.argsort(self.length[index], kind="stable")], 0
        for end in range(1, len(index) + 1):
            if end == len(index) or len(self.sides) * (end + 1 - start) * self.length[index[end]] > tokens:
                yield self.batch(index[start:end])
                start = end

    def steps(self, batch_pairs: int, epochs: int, tokens: int, seed: int) -> Iterator[tuple[int, Iterator[Batch]]]:
        """One item an optimizer step: its number of pairs, and its blocks; shuffled anew each epoch."""
        for epoch in range(epochs):
            order = np.random.default_rng([seed, epoch]).permutation(len(self))
            for start in range(0, len(self), batch_pairs):
                index = order[start : start + batch_pairs]
                yield len(index), self.batches(index, tokens)


def n_steps(n_pairs: int, batch_pairs: int, epochs: int) -> int:
    """Optimizer steps of a run."""
    return epochs * -(-n_pairs // batch_pairs)
