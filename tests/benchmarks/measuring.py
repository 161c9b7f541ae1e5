"""What runs in a contender's process: loading it, one repetition, the peak of its memory, a profile."""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from contenders import CONTENDERS, Case, Contender
from torch.profiler import ProfilerActivity, profile, record_function

from w2s import batches

STATUS = Path("/proc/self/status")
ATTENTION = "aten::_scaled_dot_product_flash_attention_for_cpu"
# What is profiled, by what it does. The last product is oneDNN's, which w2s/cpu.py puts in the place of the first
# two; "pass" is the whole of a pass but for what is inside it, which leaves the interpreter's own time.
PROFILED = {
    "products": {"aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "mkldnn::_linear_pointwise"},
    "attention": {ATTENTION, ATTENTION + "_backward"},
    "log_softmax": {"aten::_log_softmax", "aten::_log_softmax_backward_data"},
    "tokenizing": {"tokenizing"},
    "python": {"pass"},
}

# By contender and case: itself, and the memory that its process starts at.
_loaded: dict[tuple[str, str], tuple[Contender, float]] = {}


def load(name: str, case: Case) -> None:
    """In a contender's process: load its model."""
    torch.set_num_threads(1)
    contender = CONTENDERS[name](case)
    _loaded[name, case.name] = contender, resident()


def measure(name: str, case_name: str, task: str) -> dict[str, float]:
    """In a contender's process: one repetition of "train" or "score".

    Returns seconds of CPU time (those of a clock, as there is one thread, but for what others do on the machine),
    the outcome (a loss, or a mean margin), and the peak of memory above the loaded model in MiB.
    """
    contender, start = _loaded[name, case_name]
    with quiet():
        contender.reset()
        contender.prepare(task)
        forget_peak()
        began = time.process_time()
        outcome = getattr(contender, task)()
        seconds = time.process_time() - began
    return {"seconds": seconds, "outcome": outcome, "memory": (peak() - start) / 2**20}


def shares(name: str, case_name: str, task: str) -> dict[str, float]:
    """In a contender's process: the shares of a pass's CPU time that each of PROFILED takes."""
    contender, _ = _loaded[name, case_name]
    for _ in range(2):  # the first with the profiler asks the system for memory, which the operators would be charged
        with quiet(), tokenizing_named():
            contender.reset()
            contender.prepare(task)
            with profile(activities=[ProfilerActivity.CPU]) as profiled, record_function("pass"):
                getattr(contender, task)()
    spent = {event.key: event.self_cpu_time_total for event in profiled.key_averages()}
    return {kind: sum(spent.get(key, 0) for key in keys) / sum(spent.values()) for kind, keys in PROFILED.items()}


@contextlib.contextmanager
def tokenizing_named() -> Iterator[None]:
    """Lets the profiler see the kit's tokenizing, which is no operator of PyTorch."""
    encode = batches.encode
    batches.encode = record_function("tokenizing")(encode)
    try:
        yield
    finally:
        batches.encode = encode


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """TRL prints its logs and progress, and transformers warns about TRL's use of it: none of it is the benchmark's."""
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        yield


def resident() -> float:
    """Bytes of memory in use by this process."""
    return _status("VmRSS")


def peak() -> float:
    """The most since `forget_peak`."""
    return _status("VmHWM")


def _status(key: str) -> float:
    """An entry of this process's status in bytes; nan on systems that have no /proc, where memory is not measured."""
    if not STATUS.is_file():
        return math.nan
    return 1024 * next(int(line.split()[1]) for line in STATUS.read_text().splitlines() if line.startswith(key + ":"))


def forget_peak() -> None:
    if STATUS.is_file():
        STATUS.with_name("clear_refs").write_text("5")
