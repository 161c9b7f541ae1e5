"""One run over several devices: torchrun starts a process for each, and they train one model that FSDP shards."""

from __future__ import annotations

import json
import os
import pickle
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
import torch
from torch import distributed, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.elastic.multiprocessing.errors import record
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from transformers.modeling_layers import GradientCheckpointingLayer

from w2s.batches import Batch, PairTexts
from w2s.params import ParameterError
from w2s.runs import execute as alone
from w2s.runs.store import steps_logged
from w2s.spec import RunSpec

PATIENCE = timedelta(hours=2)  # for the slowest rank; a dead one is noticed at once
UNBOUNDED = 10**12  # tokens: one forward pass, whatever its size
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr=127.0.0.1")


def train(spec: RunSpec, root: Path, folder: Path, report: alone.Report) -> None:
    """Train and score a run on its devices; rank 0 writes what a single process would."""
    check_devices(spec)
    job = partial(train_rank, spec, root, folder)
    launch(job, spec.shards, spec.threads, watch=lambda: report(*steps_logged(spec, root)))


def execute(spec: RunSpec, root: Path, after=None, report: alone.Report = lambda step, steps: None) -> str:
    """`runs.execute.execute`, on as many devices as the run has shards."""
    return alone.execute(spec, root, after, report, train if spec.shards > 1 else None)


def check_devices(spec: RunSpec) -> None:
    """Raises ParameterError where this machine has fewer devices than a run has shards."""
    shards, n = spec.shards, torch.cuda.device_count()
    if shards > 1 and spec.device not in ("cpu", "cuda"):
        raise ParameterError(f"shards = {shards}: not with device {spec.device}; set device to cuda, or shards to 1")
    if shards > n and spec.device == "cuda":
        raise ParameterError(f"shards = {shards}: this machine has {n} CUDA devices; set shards to that or less")


def launch(job: Callable[[], None], ranks: int, threads: int = 1, watch: Callable[[], None] = lambda: None) -> None:
    """Call `job`, which must pickle, in `ranks` processes that end with this one; meanwhile `watch` in this one.

    Raises RuntimeError: what the first rank to fail raised, with its traceback as a note; or a rank was killed.
    """
    with TemporaryDirectory() as name:
        file, failure, output, logs = (Path(name) / part for part in ("job", "failure.json", "output", "logs"))
        file.write_bytes(pickle.dumps(job))
        where = [f"--nproc-per-node={ranks}", f"--log-dir={logs}", "--redirects=3", "-m", "w2s.runs.sharded", str(file)]
        settings = {"OMP_NUM_THREADS": str(threads), "TORCHELASTIC_ERROR_FILE": str(failure)}
        with open(output, "wb") as out:
            streams = {"stdin": subprocess.PIPE, "stdout": out, "stderr": subprocess.STDOUT}
            torchrun = subprocess.Popen([*TORCHRUN, *where], env=os.environ | settings, **streams)
            try:
                while torchrun.poll() is None:
                    watch()
                    time.sleep(0.1)
            finally:
                torchrun.stdin.close()  # which ends the ranks, and they torchrun
                torchrun.wait()
        if failure.exists():
            cause = json.loads(failure.read_text(encoding="utf-8"))["message"]
            error = RuntimeError(cause["message"])
            error.add_note(cause["extraInfo"]["py_callstack"])
            raise error
        if torchrun.returncode:
            ends = re.findall(r"rank +: (\d+).*?exitcode +: (-?\d+)", output.read_text(errors="replace"), re.DOTALL)
            rank, code = ends[-1] if ends else ("*", torchrun.returncode)  # the last that torchrun names is the first
            words = " ".join(log.read_text(errors="replace") for log in sorted(logs.glob(f"*/*/{rank}/*.log")))
            end = f"rank {rank} of {ranks} was ended from outside with exit code {code} (out of memory?)"
            raise RuntimeError(f"{end}; its last words: {' '.join(words.split())[-300:] or 'none'}")


@record
def main() -> None:
    """What torchrun starts on each rank: the job in the file that is named."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        pickle.loads(Path(sys.argv[1]).read_bytes())()
    except Exception:
        time.sleep(1)  # where this follows from the end of another rank, that is to be seen first
        raise
    os._exit(0)  # the usual end can abort in the threads of a process group


def _end_with_parent() -> None:
    os.read(0, 1)  # of a pipe from the process that called `launch`: it waits until that ends
    os._exit(1)


def train_rank(spec: RunSpec, root: Path, folder: Path) -> None:
    if spec.device == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    distributed.init_process_group("gloo" if spec.device == "cpu" else "nccl", timeout=PATIENCE)
    alone.train_and_score(Rank(spec, root), folder)
    distributed.barrier()
    distributed.destroy_process_group()


class Sharded(nn.Module):
    """A model with weights spread over the ranks; each forward pass, which all make, gathers them block by block."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, compute: Callable):
        return compute(self.model)


def shard(model: nn.Module, mesh, dtype: torch.dtype) -> Sharded:
    """Shard a model over `mesh` by blocks, whose matrices are gathered in `dtype`; the rest computes as under autocast.

    Not by accelerate, which shards on no CPU and has one precision for a whole model, the reward unit included.
    """
    cast = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
    for block in [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]:
        for module in block.modules():
            own = list(module.parameters(recurse=False))
            if own and all(parameter.ndim == 1 for parameter in own):  # a norm
                fully_shard(module, mesh=mesh, reshard_after_forward=False)
        fully_shard(block, mesh=mesh, mp_policy=cast)
    return fully_shard(Sharded(model), mesh=mesh)


class Rank(alone.Alone):
    """One of several processes that train a run together, each on its share of every step's pairs."""

    def __init__(self, spec: RunSpec, root: Path):
        super().__init__(spec, root)
        self.rank, self.ranks = distributed.get_rank(), distributed.get_world_size()
        self.first = self.rank == 0

    def load(self) -> Sharded:
        """The model, sharded; one rank after another, so that memory holds one whole copy at a time."""
        mesh = init_device_mesh(self.device.type, (self.ranks,))
        for turn in range(self.ranks):
            if turn == self.rank:
                model = shard(alone.load_model(self.spec, self.root), mesh, getattr(torch, self.spec.dtype))
            distributed.barrier()
        return model

    def steps(self, texts: PairTexts) -> Iterator[tuple[int, list[Batch]]]:
        """Each step's number of pairs, and this rank's blocks of them; as many blocks as any rank has.

        Where others have more, the rest are idle: one pair again, its row number counted from the end.
        """
        s = self.spec
        for n, blocks in texts.steps(s.batch_pairs, s.epochs, UNBOUNDED, s.seed):
            (index,) = (block.index for block in blocks)  # from the shortest pair to the longest
            shares = [list(texts.batches(index[r :: self.ranks], s.tokens_per_batch)) for r in range(self.ranks)]
            idle = max(map(len, shares)) - len(shares[self.rank])
            yield n, shares[self.rank] + idle * [texts.batch(index[:1] - len(texts))]

    def objective(self, each: Callable) -> Callable:
        """The summed loss of a block, without idle pairs: the value of all ranks', the gradient of this rank's."""

        def summed(model: Sharded, batch: Batch) -> torch.Tensor:
            counts = torch.as_tensor(batch.index >= 0, device=self.device)
            own = self.ranks * (model(lambda whole: each(whole, batch)) * counts).sum()  # FSDP averages gradients
            every = own.detach() / self.ranks
            distributed.all_reduce(every)
            return own + (every - own.detach())

        return summed

    def score(self, model: Sharded, pairs: pd.DataFrame, tokenizer) -> pd.DataFrame:
        """The predictions table of one split, of which each rank computes its share; the same on all."""
        if pairs.empty:
            return super().score(model.model, pairs, tokenizer)
        texts, tables, of_ranks = PairTexts(pairs, tokenizer, self.spec.max_length), [], [None] * self.ranks
        one_pass = replace(self.spec, tokens_per_batch=UNBOUNDED)
        for block in texts.batches(np.arange(len(pairs)), 2 * self.ranks * self.spec.tokens_per_batch):
            share = block.index[self.rank :: self.ranks]
            rows = pairs.iloc[share if len(share) else block.index[:1]]
            tables.append(model(partial(alone.score, one_pass, pairs=rows, tokenizer=tokenizer, root=self.root)))
        distributed.all_gather_object(of_ranks, pd.concat(tables))
        return pd.concat(of_ranks).drop_duplicates("id").set_index("id").loc[pairs["id"]].reset_index()

    def save(self, model: Sharded, tokenizer, folder: Path) -> None:
        """Gather the weights on rank 0, which writes them as a single process does."""
        weights = get_model_state_dict(model.model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
        if self.first:
            whole = alone.load_model(self.spec, self.root)
            whole.load_state_dict(weights)
            super().save(whole, tokenizer, folder)


if __name__ == "__main__":
    main()
