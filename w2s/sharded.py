"""One run over several devices: a process for each, all of them training one model that FSDP shards.

Processes and devices are accelerate's. The weights are sharded by PyTorch's `fully_shard` (FSDP2), which
accelerate calls too; called here because accelerate leaves it out on a CPU, wants the optimizer in advance,
and has one precision for the whole model, where the reward unit is to stay in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from torch import nn
from torch.distributed import all_reduce
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from transformers.modeling_layers import GradientCheckpointingLayer

from w2s.batches import Batch, PairTexts
from w2s.params import ParameterError
from w2s.ranks import launch
from w2s.runs import Alone, load_model, score, train_and_score
from w2s.runspec import RunSpec
from w2s.store import steps_logged

PATIENCE = timedelta(hours=2)  # for the slowest rank; a dead one is noticed at once
UNBOUNDED = 10**12  # tokens: one forward pass, whatever its size


def train(spec: RunSpec, root: Path, folder: Path, report: Callable[[int, int], None] | None) -> None:
    """Train and score a run on `spec.shards` devices; rank 0 writes what a single process would.

    Raises:
        ParameterError: fewer devices than shards.
        Exception: what the first rank to fail raised.
    """
    check_devices(spec)

    def watch() -> None:
        if report and any(steps := steps_logged(folder)):
            report(*steps)

    launch(partial(train_rank, spec, root, folder), spec.shards, spec.threads, watch)


def check_devices(spec: RunSpec) -> None:
    """Raises ParameterError where this machine has fewer devices than a run has shards."""
    if spec.shards > 1 and spec.device not in ("cpu", "cuda"):
        raise ParameterError(
            f"shards = {spec.shards}: not with device {spec.device}; set device to cuda, or shards to 1"
        )
    if spec.device == "cuda" and spec.shards > torch.cuda.device_count():
        raise ParameterError(
            f"shards = {spec.shards}: this machine has {torch.cuda.device_count()} CUDA devices; "
            "set shards to that or less"
        )


def train_rank(spec: RunSpec, root: Path, folder: Path) -> None:
    """What one rank does of a run."""
    state = PartialState(cpu=spec.device == "cpu", backend="gloo" if spec.device == "cpu" else "nccl", timeout=PATIENCE)
    train_and_score(Rank(spec, root, state), folder)
    state.wait_for_everyone()
    state.destroy_process_group()


class Sharded(nn.Module):
    """A model whose weights are spread over the ranks: what reads them runs inside this module's forward.

    A forward pass gathers them block by block, so that every rank must make the same number of passes.
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, compute: Callable):
        """`compute` of the model, which sees its weights whole."""
        return compute(self.model)


def shard(model: nn.Module, mesh, dtype: torch.dtype) -> Sharded:
    """Shard a model over `mesh`, each of its blocks apart; matrices of blocks are gathered in `dtype`, the rest as is.

    So norms, embeddings, residual stream, heads and the reward unit compute as in a single process with autocast.
    """
    cast = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
    for block in [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]:
        for norm in filter(_holds_vectors, block.modules()):
            fully_shard(norm, mesh=mesh, reshard_after_forward=False)
        fully_shard(block, mesh=mesh, mp_policy=cast)
    return fully_shard(Sharded(model), mesh=mesh)


def _holds_vectors(module: nn.Module) -> bool:
    own = list(module.parameters(recurse=False))
    return bool(own) and all(parameter.ndim == 1 for parameter in own)


class Rank(Alone):
    """One of several processes that train a run together, each on its share of every step's pairs."""

    def __init__(self, spec: RunSpec, root: Path, state: PartialState):
        super().__init__(spec, root)
        self.state, self.device, self.first = state, state.device, state.is_main_process
        self.rank, self.ranks = state.process_index, state.num_processes

    def load(self) -> Sharded:
        """The model, sharded; one rank after another, so that memory holds one whole copy at a time."""
        mesh = init_device_mesh(self.device.type, (self.ranks,))
        for turn in range(self.ranks):
            if turn == self.rank:
                model = shard(load_model(self.spec, self.root), mesh, getattr(torch, self.spec.dtype))
            self.state.wait_for_everyone()
        return model

    def steps(self, texts: PairTexts) -> Iterator[tuple[int, list[Batch]]]:
        """Each step's number of pairs, and this rank's blocks of them; as many blocks as any rank has.

        Where others have more, the rest are idle: one pair again, its row number counted from the end.
        """
        s = self.spec
        for n, blocks in texts.steps(s.batch_pairs, s.epochs, UNBOUNDED, s.seed):
            (index,) = (block.index for block in blocks)  # from the shortest pair to the longest
            shares = [list(texts.batches(self._share(index, r), s.tokens_per_batch)) for r in range(self.ranks)]
            idle = max(map(len, shares)) - len(shares[self.rank])
            yield n, shares[self.rank] + idle * [texts.batch(index[:1] - len(texts))]

    def _share(self, index: np.ndarray, rank: int) -> np.ndarray:
        return index[rank :: self.ranks]

    def objective(self, each: Callable) -> Callable:
        """The summed loss of a block: the value of all ranks', the gradient of this rank's; idle pairs left out.

        FSDP averages gradients over the ranks, so that each rank's counts `ranks` times.
        """

        def summed(model: Sharded, batch: Batch) -> torch.Tensor:
            counts = torch.as_tensor(batch.index >= 0, device=self.device)
            own = self.ranks * (model(lambda whole: each(whole, batch)) * counts).sum()
            every = own.detach() / self.ranks
            all_reduce(every)
            return own + (every - own.detach())

        return summed

    def score(self, model: Sharded, pairs: pd.DataFrame, tokenizer) -> pd.DataFrame:
        """The predictions table of one split, of which each rank computes its share; the same on all."""
        if pairs.empty:
            return super().score(model.model, pairs, tokenizer)
        texts, tables = PairTexts(pairs, tokenizer, self.spec.max_length), []
        one_pass = replace(self.spec, tokens_per_batch=UNBOUNDED)
        for block in texts.batches(np.arange(len(pairs)), 2 * self.ranks * self.spec.tokens_per_batch):
            share = self._share(block.index, self.rank)
            rows = pairs.iloc[share if len(share) else block.index[:1]]
            tables.append(model(partial(score, one_pass, pairs=rows, tokenizer=tokenizer, root=self.root)))
        table = pd.concat(gather_object(tables)).drop_duplicates("id")
        return table.set_index("id").loc[pairs["id"]].reset_index()

    def save(self, model: Sharded, tokenizer, folder: Path) -> None:
        """Gather the weights on rank 0, which writes them as a single process does."""
        weights = {}
        for name, weight in model.model.state_dict().items():
            weight = weight.full_tensor() if isinstance(weight, DTensor) else weight
            if self.first:
                weights[name] = weight.cpu()
        if self.first:
            whole = load_model(self.spec, self.root)
            whole.load_state_dict(weights)
            super().save(whole, tokenizer, folder)
