"""What runs in a contender's process: loading it, one repetition, the peak of its memory, a profile."""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path

import torch
from contenders import CONTENDERS, Case, Contender
from torch.profiler import ProfilerActivity, profile, record_function
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from w2s import batches

STATUS = Path("/proc/self/status")
ATTENTION = "aten::_scaled_dot_product_flash_attention_for_cpu"
# What is profiled, by what it does. The last product is oneDNN's, which w2s/fast/cpu.py puts in the place of the first
# two; "pass" is the whole of a pass but for what is inside it, which leaves the interpreter's own time.
PROFILED = {
    "products": {"aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "mkldnn::_linear_pointwise"},
    "attention": {ATTENTION, ATTENTION + "_backward"},
    "log_softmax": {"aten::_log_softmax", "aten::_log_softmax_backward_data"},
    "tokenizing": {"tokenizing"},
    "python": {"pass"},
}

# PyTorch knows how many operations its attention takes on a GPU; the CPU's is counted by the same rule.
COUNTED = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda *shapes, **_: sdpa_flop_count(*shapes[:3]),
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: lambda *shapes, **_: sdpa_backward_flop_count(
        *shapes[:4]
    ),
}
SQUARE = {"cpu": 1024, "cuda": 8192}  # rows of the matrices whose product is the most that a device can do

# By contender and case: itself, and the memory that its process starts at.
_loaded: dict[tuple[str, str], tuple[Contender, float]] = {}


def load(name: str, case: Case) -> None:
    """In a contender's process: load its model."""
    torch.set_num_threads(1)
    contender = CONTENDERS[name](case)
    _loaded[name, case.name] = contender, in_use(case.setting.device)


def measure(name: str, case_name: str, task: str) -> dict[str, float]:
    """In a contender's process: one repetition of "train" or "score".

    Returns seconds (of CPU time: those of a clock, as there is one thread, but for what others do on the machine; on
    a GPU those of a clock), the outcome (a loss, or a mean margin), and the peak of memory above the loaded model in
    MiB.
    """
    contender, start = _loaded[name, case_name]
    device = contender.case.setting.device
    with quiet():
        contender.reset()
        contender.prepare(task)
        forget_peak(device)
        began = clock(device)
        outcome = getattr(contender, task)()
        seconds = clock(device) - began
    return {"seconds": seconds, "outcome": outcome, "memory": (peak(device) - start) / 2**20}


def shares(name: str, case_name: str, task: str) -> dict[str, float]:
    """In a contender's process: the shares of a pass's CPU time that each of PROFILED takes; none of a GPU's."""
    contender, _ = _loaded[name, case_name]
    if contender.case.setting.device != "cpu":
        return {}
    for _ in range(2):  # the first with the profiler asks the system for memory, which the operators would be charged
        with quiet(), tokenizing_named():
            contender.reset()
            contender.prepare(task)
            with profile(activities=[ProfilerActivity.CPU]) as profiled, record_function("pass"):
                getattr(contender, task)()
    spent = {event.key: event.self_cpu_time_total for event in profiled.key_averages()}
    return {kind: sum(spent.get(key, 0) for key in keys) / sum(spent.values()) for kind, keys in PROFILED.items()}


def operations(name: str, case_name: str, task: str) -> dict[str, float]:
    """In a contender's process: how far a pass could be from what the device can do.

    flops: operations of the pass's matrix products and its attention, of which a causal one is counted whole.
    ceiling: operations a second of a product of two large square matrices in the case's dtype.
    """
    contender, _ = _loaded[name, case_name]
    with quiet(), FlopCounterMode(display=False, custom_mapping=COUNTED) as counted:
        contender.reset()
        contender.prepare(task)
        getattr(contender, task)()
    return {
        "flops": float(counted.get_total_flops()),
        "ceiling": ceiling(contender.case.setting.device, contender.case.dtype),
    }


def tensors(name: str, case_name: str, task: str) -> dict[str, float]:
    """In a contender's process: the most memory that a pass's tensors take at once, in MiB; a GPU's is its peak.

    What a process holds is more: memory that was freed stays with it, in pieces.
    """
    contender, _ = _loaded[name, case_name]
    if contender.case.setting.device != "cpu":
        return {}
    with quiet():
        contender.reset()
        contender.prepare(task)
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
            getattr(contender, task)()
    found = [event for event in profiled.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = accumulate(event.nbytes() for event in sorted(found, key=lambda event: event.start_ns()))
    return {"tensors": max(held) / 2**20}


@torch.no_grad()
def ceiling(device: str, dtype: torch.dtype, tries: int = 10) -> float:
    """Operations a second of the fastest of some products of random square matrices."""
    n = SQUARE[device]
    a, b = torch.randn(2, n, n, device=device).to(dtype)
    seconds = []
    for _ in range(tries):
        began = clock(device)
        a @ b
        seconds.append(clock(device) - began)
    return 2 * n**3 / min(seconds)


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


def device_name(device: str) -> str:
    """A GPU by its name."""
    return device if device == "cpu" else torch.cuda.get_device_name()


def clock(device: str) -> float:
    """Seconds of CPU time of this process; on a GPU of the clock, once it has done what it was given."""
    if device == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def in_use(device: str) -> float:
    """Bytes of memory that this process has resident; on a GPU, those of its tensors."""
    return _status("VmRSS") if device == "cpu" else torch.cuda.memory_allocated()


def peak(device: str) -> float:
    """The most since `forget_peak`."""
    return _status("VmHWM") if device == "cpu" else torch.cuda.max_memory_allocated()


def forget_peak(device: str) -> None:
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
    elif STATUS.is_file():
        STATUS.with_name("clear_refs").write_text("5")


def _status(key: str) -> float:
    """An entry of this process's status in bytes; nan on systems that have no /proc, where memory is not measured."""
    if not STATUS.is_file():
        return math.nan
    return 1024 * next(int(line.split()[1]) for line in STATUS.read_text().splitlines() if line.startswith(key + ":"))
