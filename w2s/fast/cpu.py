"""What makes a CPU fast: matrix products by oneDNN while w2s computes, and memory kept for the next tensor."""

from __future__ import annotations

import ctypes
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

# Of glibc's malloc.h: M_TRIM_THRESHOLD (which Dask's workers have very low), M_MMAP_MAX, M_ARENA_MAX.
KEEP_MEMORY = {-1: 2**31 - 1, -4: 0, -8: 1}
_inside = False  # a block of `products`


@contextmanager
def products() -> Iterator[None]:
    """Multiply float32 matrices by oneDNN inside the block, on a processor with AVX-512; PyTorch's own afterwards.

    oneDNN's kernels use the whole of AVX-512 on every processor; MKL's, which are PyTorch's own, on Intel's alone.
    """
    global _inside
    if _inside or not _able():
        yield
        return
    library, _inside = torch.library.Library("aten", "IMPL"), True
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Warning only once for all operators")
            library.impl("mm", mm, "CPU", allow_override=True)
            library.impl("addmm", addmm, "CPU", allow_override=True)
        yield
    finally:
        library._destroy()
        _inside = False


def _able() -> bool:
    return torch.backends.cpu.get_cpu_capability() == "AVX512" and torch.backends.mkldnn.is_available()


def keep_memory() -> None:
    """Let this process keep what it frees for its next tensors (glibc); for processes that do nothing but train."""
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    for option, value in KEEP_MEMORY.items() if hasattr(libc, "mallopt") else ():
        libc.mallopt(option, value)


def mm(a: Tensor, b: Tensor) -> Tensor:
    if _is_ours(a, b):
        if a.numel() > b.numel() and not a.is_contiguous():  # its first matrix is copied then: let it be the smaller
            return torch.ops.mkldnn._linear_pointwise(b.t(), a, None, "none", [], "").t().contiguous()
        return torch.ops.mkldnn._linear_pointwise(a, b.t(), None, "none", [], "")
    return torch.mm(a, b, out=a.new_empty(a.shape[0], b.shape[1]))  # this form is PyTorch's own still


def addmm(bias: Tensor, a: Tensor, b: Tensor, *, beta=1, alpha=1) -> Tensor:
    """beta * bias + alpha * (a @ b)."""
    if _is_ours(a, b) and bias.shape == b.shape[1:] and beta == alpha == 1:
        return torch.ops.mkldnn._linear_pointwise(a, b.t(), bias, "none", [], "")
    return torch.addmm(bias, a, b, beta=beta, alpha=alpha, out=a.new_empty(a.shape[0], b.shape[1]))


def _is_ours(a: Tensor, b: Tensor) -> bool:
    plain = all(m.ndim == 2 and m.dtype == torch.float32 and m.numel() for m in (a, b))
    return plain and a.shape[1] == b.shape[0]
