"""One run over several devices: a process for each, all of them training one model that FSDP shards.

Processes and devices are accelerate's. The weights are sharded by PyTorch's `fully_shard` (FSDP2), which
accelerate calls too; called here because accelerate leaves it out on a CPU, wants the optimizer in advance,
and has one precision for the whole model, where the reward unit is to stay in float32.
"""

from __future__ import annotations

import os
import pickle
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

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
from w2s.files import write_atomic
from w2s.params import ParameterError
from w2s.runs.execute import Alone, load_model, score, train_and_score
from w2s.runs.store import steps_logged
from w2s.spec import RunSpec

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


POLL_SECONDS = 0.1


def launch(job: Callable[[], None], ranks: int, threads: int = 1, watch: Callable[[], None] = lambda: None) -> None:
    """Call `job`, which must pickle, in `ranks` processes at once, and `watch` now and then in this one.

    Each finds its rank where torch.distributed looks for it, and ends with this process, however that ends.
    They are plain child processes: multiprocessing starts none from a worker of Dask.

    Raises:
        Exception: what the first rank to fail raised, with its traceback as a note.
        RuntimeError: a rank was ended from outside; with the end of its output.
    """
    with TemporaryDirectory() as name, ExitStack() as stack:
        folder, port = Path(name), _free_port()
        (folder / "job").write_bytes(pickle.dumps(job))
        processes = [stack.enter_context(_start(folder, rank, ranks, port, threads)) for rank in range(ranks)]
        stack.callback(lambda: [process.kill() for process in processes])  # also after Ctrl-C
        while any(process.poll() is None for process in processes):
            _raise_failure(processes, folder)
            watch()
            time.sleep(POLL_SECONDS)
        _raise_failure(processes, folder)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _start(folder: Path, rank: int, ranks: int, port: int, threads: int) -> subprocess.Popen:
    """The process of one rank; its standard input says when this process ends."""
    places = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks}
    settings = {**places, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": threads}
    with open(folder / f"{rank}.out", "w", encoding="utf-8") as output:
        return subprocess.Popen(
            [sys.executable, "-c", f"from w2s import ranks; ranks.main({str(folder)!r}, {rank})"],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=os.environ | {key: str(value) for key, value in settings.items()},
        )


def _raise_failure(processes: list[subprocess.Popen], folder: Path) -> None:
    """Raise what ended the first rank that failed, if one did."""
    failed = [rank for rank, process in enumerate(processes) if process.poll()]
    killed = [rank for rank in failed if not (folder / f"{rank}.error").exists()]
    if killed:  # of which the others can only have failed in turn
        code, words = processes[killed[0]].returncode, (folder / f"{killed[0]}.out").read_text(errors="replace")
        raise RuntimeError(
            f"rank {killed[0]} of {len(processes)} was ended from outside with exit code {code} (out of memory?); "
            f"its last words: {' '.join(words.split())[-300:] or 'none'}"
        )
    if failed:
        errors = [folder / f"{rank}.error" for rank in failed]
        raise pickle.loads(min(errors, key=lambda file: file.stat().st_mtime_ns).read_bytes())


def main(folder: str, rank: int) -> None:
    """What the process of a rank does: the job, and leave behind what it raises."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        pickle.loads((Path(folder) / "job").read_bytes())()
    except BaseException as error:
        content = _pickled(error)
        write_atomic(Path(folder) / f"{rank}.error", lambda path: path.write_bytes(content))
        os._exit(1)
    os._exit(0)  # the usual end can abort in the threads of a process group


def _end_with_parent() -> None:
    """Standard input closes when the parent ends, of whatever cause."""
    sys.stdin.buffer.read()
    os._exit(1)


def _pickled(error: BaseException) -> bytes:
    """An exception with its traceback as a note; a RuntimeError with its words where it does not pickle."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        error = RuntimeError(f"{type(error).__name__}: {error}").with_traceback(error.__traceback__)
    error.add_note("".join(traceback.format_exception(error)))
    return pickle.dumps(error)
