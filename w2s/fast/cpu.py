"""What makes a CPU fast: matrix products by oneDNN, and memory that is kept for the next tensor."""

from __future__ import annotations

import ctypes
import sys
import warnings
from functools import lru_cache

import torch
from torch import Tensor

_library = torch.library.Library("aten", "IMPL")  # what it registers holds as long as it is there
# Of glibc's malloc.h: M_TRIM_THRESHOLD (which Dask's workers have very low), M_MMAP_MAX, M_ARENA_MAX.
KEEP_MEMORY = {-1: 2**31 - 1, -4: 0, -8: 1}


@lru_cache
def prepare() -> None:
    """Set this process up, once; elsewhere than on a processor with AVX-512, and on Linux, what is there stays."""
    if torch.backends.cpu.get_cpu_capability() == "AVX512" and torch.backends.mkldnn.is_available():
        _multiply_by_onednn()
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    for option, value in KEEP_MEMORY.items() if hasattr(libc, "mallopt") else ():
        libc.mallopt(option, value)


def _multiply_by_onednn() -> None:
    """Its float32 kernels use the whole of AVX-512 on every processor; MKL's, which are PyTorch's own, on Intel's."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Warning only once for all operators")
        _library.impl("mm", mm, "CPU", allow_override=True)
        _library.impl("addmm", addmm, "CPU", allow_override=True)


def mm(a: Tensor, b: Tensor) -> Tensor:
    """a @ b for matrices."""
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
    return a.dtype == b.dtype == torch.float32 and a.shape[1] == b.shape[0] and min(*a.shape, *b.shape) > 0
