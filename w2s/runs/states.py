"""What the lower blocks of a model make of texts, in files that all runs share: nothing is computed twice.

One folder under runs/states for a model, a number of its blocks, a device and a dtype; a text is found by its tokens.
"""

from __future__ import annotations

import shutil
import time
from contextlib import suppress
from functools import cache, partial
from hashlib import blake2b
from pathlib import Path

import numpy as np
import torch
from filelock import Timeout
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from w2s.batches import Batch, PairTexts
from w2s.fast.lower import LowerBlocks
from w2s.fast.packed import packs
from w2s.files import duration, write_atomic
from w2s.models import autocast, fingerprint
from w2s.params import ParameterError
from w2s.runs import code, store
from w2s.spec import RunSpec

DEPENDS_ON = ("models.py", "batches.py", "fast/packed.py", "fast/lower.py", "fast/cpu.py", "runs/states.py")
EVERY = 60  # seconds: then what was computed is written, and a line says how far it is
PARTS = 8  # of a split's pairs; each is computed by one process


def folder_of(spec: RunSpec, n: int, root: Path) -> Path:
    """Where the states after the first `n` blocks stand; a model's slices share them."""
    whole = fingerprint(spec.model).partition("[:")[0].replace("/", "_")
    computed_by = blake2b("".join(code.IMPORTED[name] for name in DEPENDS_ON).encode(), digest_size=4).hexdigest()
    return root / "runs" / "states" / f"{whole}-{n}-{spec.device.partition(':')[0]}-{spec.dtype}-{computed_by}"


class States:
    """The states (tokens, width) of each text that a folder holds; a model's lower blocks compute what it lacks."""

    def __init__(self, folder: Path, lower: LowerBlocks):
        self.folder, self.lower = folder, lower
        self.known: dict[str, Tensor] = {}
        self.said = time.monotonic()

    def __call__(self, rows: list[list[int]]) -> list[Tensor]:
        return [self.known[_key(row)] for row in rows]

    def need(self, texts: PairTexts, spec: RunSpec) -> None:
        """Have the states of all these texts, of which those that no file holds are computed and written now.

        In parts, so that another process that needs them too helps instead of waiting.
        """
        wanted, started = len(self._lacks(texts)), time.monotonic()
        if not wanted:
            return
        for old in self.folder.parent.glob(f"{self.folder.name.rpartition('-')[0]}-*"):
            if old.is_dir() and old != self.folder:
                print(f"{old}: computed by code that has changed since, removed", flush=True)
                shutil.rmtree(old, ignore_errors=True)
        for wait in (False, True):  # first what no other process is at
            for part in range(PARTS):
                if self._lacks(texts, part):
                    with suppress(Timeout), store.locked(self.folder / f"part-{part}", "its states are computed", wait):
                        self._compute_part(texts, self._lacks(texts, part), spec, wanted, started)

    def _compute_part(self, texts: PairTexts, index: list[int], spec: RunSpec, wanted: int, started: float) -> None:
        """Compute and write the states of these pairs; says how far the `wanted` ones are."""
        done, held, written = 0, {}, time.monotonic()
        for batch in texts.batches(np.array(index, dtype=int), 2 * spec.tokens_per_batch):
            held |= self._compute(batch.to(self.lower.body.device), getattr(torch, spec.dtype))
            done += len(batch.index)
            late = time.monotonic() - max(written, self.said) > EVERY
            if late or done == len(index):
                name = blake2b("".join(held).encode(), digest_size=8).hexdigest()
                write_atomic(self.folder / f"{name}.safetensors", partial(save_file, held))
                held, written, left = {}, time.monotonic(), len(self._lacks(texts))
                if late or not left:
                    self.said, seconds = written, (written - started) * left / (wanted - left)
                    below = f"what the first {self.lower.n} blocks of {Path(spec.model).name} make of texts"
                    togo = f", {duration(seconds)} left" * (left > 0)
                    print(f"{below}: {wanted - left} of {wanted} pairs{togo}", flush=True)

    def _lacks(self, texts: PairTexts, part: int | None = None) -> list[int]:
        """The row numbers of the pairs (of a part) with a text that no file holds, of equal ones the first."""
        for path in sorted(self.folder.glob("*.safetensors")):
            self.known |= _file(path, path.stat().st_mtime_ns)
        lacking: dict[tuple, int] = {}
        for i in reversed(range(len(texts))):
            keys = tuple(_key(rows[i]) for rows, _ in texts.sides)
            if any(key not in self.known for key in keys):
                lacking[keys] = i
        return sorted(i for i in lacking.values() if part in (None, i % PARTS))

    def _compute(self, batch: Batch, dtype: torch.dtype) -> dict[str, Tensor]:
        layout = batch.layout if packs(self.lower.body) else None
        with autocast(batch.input_ids.device, dtype):
            states = self.lower.run(batch.input_ids, batch.attention_mask, layout).float()
        states = (states if layout is None else states[0][layout.place]).cpu()
        lengths = batch.attention_mask.sum(1).tolist()
        rows = zip(batch.input_ids.tolist(), states, lengths, strict=True)
        return {_key(ids[:n]): of_text[:n].clone() for ids, of_text, n in rows}


@cache
def _file(path: Path, written: int) -> dict[str, Tensor]:
    """The states of a file by text, which stay on the disk until they are used."""
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise ParameterError(f"{path}: cannot be read ({error}); delete it, and it is computed again") from None


def _key(ids: list[int]) -> str:
    return blake2b(np.asarray(ids, dtype=np.int32).tobytes(), digest_size=16).hexdigest()
