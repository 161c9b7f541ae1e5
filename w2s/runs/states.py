"""What the lower blocks of a model make of texts, in files that all runs share: nothing is computed twice.

One folder under runs/states for a model, a number of its blocks, a device and a dtype; a text is found by its tokens.
"""

from __future__ import annotations

import shutil
import time
from contextlib import suppress
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path

import numpy as np
import torch
from filelock import Timeout
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from w2s.batches import PairTexts
from w2s.fast.lower import LowerBlocks
from w2s.files import duration, write_atomic
from w2s.models import autocast, fingerprint
from w2s.params import ParameterError
from w2s.runs import code, store
from w2s.spec import RunSpec

DEPENDS_ON = ("models.py", "batches.py", "fast/packed.py", "fast/lower.py", "fast/cpu.py")
EVERY = 60  # seconds: then what was computed is written, and a line says how far it is
KEY = 16  # bytes
PARTS = 8  # of a split's pairs; each is computed by one process


def folder_of(spec: RunSpec, n: int, root: Path) -> Path:
    """Where the states after the first `n` blocks stand; a model's slices share them."""
    whole = fingerprint(spec.model).partition("[:")[0].replace("/", "_")
    computed_by = blake2b("".join(code.IMPORTED[name] for name in DEPENDS_ON).encode(), digest_size=4).hexdigest()
    return root / "runs" / "states" / f"{whole}-{n}-{spec.device.partition(':')[0]}-{spec.dtype}-{computed_by}"


class States:
    """The states that a folder holds, and the computing of those that it lacks by a model's lower blocks."""

    def __init__(self, folder: Path, lower: LowerBlocks):
        self.folder, self.lower = folder, lower
        self.known: dict[bytes, tuple[Tensor, int, int]] = {}  # text -> where its states are: file, first row, end
        self.read: set[Path] = set()
        self.said = time.monotonic()

    def __call__(self, rows: list[list[int]]) -> list[Tensor]:
        """The states (tokens, width) of each text."""
        found = (self.known[_key(row)] for row in rows)
        return [states[first:end] for states, first, end in found]

    def need(self, texts: PairTexts, spec: RunSpec) -> None:
        """Have the states of all these texts, of which those that no file holds are computed and written now.

        In parts, so that another process that needs them too helps instead of waiting.
        """
        if not self._lacks(texts):
            return
        for old in self.folder.parent.glob(f"{self.folder.name.rpartition('-')[0]}-*"):
            if old.is_dir() and old != self.folder:
                print(f"{old}: computed by code that has changed since, removed", flush=True)
                shutil.rmtree(old, ignore_errors=True)
        wanted, started = len(self._lacks(texts)), time.monotonic()
        for wait in (False, True):  # first what no other process is at
            for part in range(PARTS):
                if self._lacks(texts, part):
                    with suppress(Timeout), store.locked(self.folder / f"part-{part}", "its states are computed", wait):
                        self._compute_part(texts, self._lacks(texts, part), spec, wanted, started)

    def _compute_part(self, texts: PairTexts, index: list[int], spec: RunSpec, wanted: int, started: float) -> None:
        """Compute and write the states of these pairs; says how far the `wanted` ones are."""
        done, held, written = 0, [], time.monotonic()
        for batch in texts.batches(np.array(index, dtype=int), 2 * spec.tokens_per_batch):
            batch = batch.to(self.lower.body.device)
            with autocast(batch.input_ids.device, getattr(torch, spec.dtype)):
                held += self._compute(batch)
            done += len(batch.index)
            late = time.monotonic() - max(written, self.said) > EVERY
            if late or done == len(index):
                self._write(held)
                held, written, left = [], time.monotonic(), len(self._lacks(texts))
                if late or not left:
                    self.said, seconds = written, (written - started) * left / (wanted - left)
                    below = f"what the first {self.lower.n} blocks of {Path(spec.model).name} make of texts"
                    togo = f", {duration(seconds)} left" * (left > 0)
                    print(f"{below}: {wanted - left} of {wanted} pairs{togo}", flush=True)

    def _lacks(self, texts: PairTexts, part: int | None = None) -> list[int]:
        """The row numbers of the pairs (of a part) with a text that no file holds, of equal ones the first."""
        self._read()
        lacking: dict[tuple, int] = {}
        for i in reversed(range(len(texts))):
            keys = tuple(_key(rows[i]) for rows, _ in texts.sides)
            if any(key not in self.known for key in keys):
                lacking[keys] = i
        return sorted(i for i in lacking.values() if part in (None, i % PARTS))

    def _compute(self, batch) -> list[tuple[bytes, Tensor]]:
        layout = batch.layout if self.lower.packs else None
        states = self.lower.run(batch.input_ids, batch.attention_mask, layout).float()
        states = (states if layout is None else states[0][layout.place]).cpu()
        lengths = batch.attention_mask.sum(1).tolist()
        rows = zip(batch.input_ids.tolist(), states, lengths, strict=True)
        return [(_key(ids[:n]), of_text[:n].clone()) for ids, of_text, n in rows]

    def _write(self, held: list[tuple[bytes, Tensor]]) -> None:
        keys = torch.frombuffer(bytearray(b"".join(key for key, _ in held)), dtype=torch.uint8).view(-1, KEY)
        tensors = {"keys": keys, "lengths": torch.tensor([len(states) for _, states in held])}
        tensors["states"] = torch.cat([states for _, states in held])
        name = blake2b(keys.numpy().tobytes(), digest_size=8).hexdigest()
        write_atomic(self.folder / f"{name}.safetensors", lambda path: save_file(tensors, path))

    def _read(self) -> None:
        """Take up the files that have come since."""
        for path in sorted(self.folder.glob("*.safetensors")):
            if path not in self.read:
                self.read.add(path)
                keys, ends, states = _file(path, path.stat().st_mtime_ns)
                for key, first, end in zip(keys, [0, *ends[:-1]], ends, strict=True):
                    self.known[key] = states, first, end


@lru_cache
def _file(path: Path, written: int) -> tuple[list[bytes], list[int], Tensor]:
    """The texts of a file, where the states of each end, and the states, which stay on the disk until they are used."""
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise ParameterError(f"{path}: cannot be read ({error}); delete it, and it is computed again") from None
    keys = [row.tobytes() for row in tensors["keys"].numpy()]
    return keys, tensors["lengths"].cumsum(0).tolist(), tensors["states"]


def _key(ids: list[int]) -> bytes:
    return blake2b(np.asarray(ids, dtype=np.int32).tobytes(), digest_size=KEY).digest()
