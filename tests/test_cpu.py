"""Products by oneDNN are PyTorch's own to rounding, in every form; memory stays with the process."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from w2s.fast import cpu

ONEDNN = torch.backends.cpu.get_cpu_capability() == "AVX512" and torch.backends.mkldnn.is_available()
close = torch.testing.assert_close


@pytest.fixture(autouse=True)
def by_onednn():
    with cpu.products():
        yield


def matrices(dtype=torch.float32, shapes=((7, 5), (5, 9), (9,))) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [(3 * torch.randn(shape, generator=generator)).to(dtype) for shape in shapes]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.int64])
def test_every_type_of_number(dtype):
    a, b, c = matrices(dtype)
    exact = a.double() @ b.double()
    near = {"atol": 0.1, "rtol": 0.01} if dtype == torch.bfloat16 else {"atol": 1e-5, "rtol": 1e-6}
    assert (a @ b).dtype == dtype
    close((a @ b).double(), exact, **near)
    close(torch.addmm(c, a, b).double(), exact + c.double(), **near)


@pytest.mark.parametrize("turned", [(False, False), (True, False), (False, True), (True, True)])
@pytest.mark.parametrize("rows", [3, 64])
def test_turned_and_cut_matrices_and_their_gradients(turned, rows):
    """Also the first matrix that is the larger one and not contiguous, which is multiplied the other way round."""
    shapes, results = [(5, rows) if turned[0] else (rows, 5), (9, 5) if turned[1] else (5, 9), (9,)], []
    for dtype in (torch.float32, torch.float64):
        given = [matrix.requires_grad_() for matrix in matrices(dtype, shapes)]
        a, b = (matrix.t() if turn else matrix for matrix, turn in zip(given, turned))
        out = torch.cat([torch.addmm(given[2], a, b), a[::2] @ b])
        out.square().sum().backward()
        results.append([out.double(), *(matrix.grad.double() for matrix in given)])
    close(*results, atol=1e-3, rtol=1e-5)


def test_other_forms_and_errors_are_those_of_pytorch():
    a, b, c = matrices()
    exact = a.double() @ b.double()
    close(torch.addmm(c, a, b, beta=0.5, alpha=2).double(), 2 * exact + 0.5 * c.double(), atol=1e-4, rtol=1e-6)
    close(torch.addmm(a @ b, a, b).double(), 2 * exact, atol=1e-5, rtol=1e-6)
    assert (torch.ones(0, 5) @ b).shape == (0, 9) and (torch.ones(3, 0) @ torch.ones(0, 2)).eq(0).all()
    for second, message in ((a, "shapes cannot be multiplied"), (b.double(), "same dtype")):
        with pytest.raises(RuntimeError, match=message):
            torch.mm(a, second)


def calls() -> int:
    """How often a product and its gradients go through oneDNN."""
    a, b, c = (m.requires_grad_() for m in matrices())
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        torch.addmm(c, a, b).sum().backward()
    return {event.key: event.count for event in profiled.key_averages()}.get("mkldnn::_linear_pointwise", 0)


@pytest.mark.skipif(not ONEDNN, reason="products stay PyTorch's own here")
def test_forward_and_backward_go_through_onednn_inside_the_outermost_block():
    with cpu.products():
        assert calls() == 3
    assert calls() == 3


def printed_by(code: str) -> int:
    """What a process of its own prints."""
    how = {"capture_output": True, "text": True, "cwd": Path(__file__).parent}
    done = subprocess.run([sys.executable, "-c", "import torch; from w2s.fast import cpu\n" + code], **how)
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


def test_nothing_stays_behind_in_the_process():
    code = "try:\n    with cpu.products(): raise KeyError\nexcept KeyError: print(calls())\n"
    assert printed_by("from test_cpu import calls\n" + code) == 0


KEEPS = """
resident = lambda: int(next(l for l in open("/proc/self/status") if l.startswith("VmRSS")).split()[1])
before = resident()
for _ in range(2):
    held = torch.ones(64 * 2**20 // 4)
    del held
print((resident() - before) // 2**10)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator is set up, on Linux")
def test_a_freed_tensor_leaves_its_memory_to_the_next():
    """64 MiB, in MiB that stay; without it they go back to the system with every tensor."""
    assert printed_by("cpu.keep_memory()" + KEEPS) >= 60 and printed_by(KEEPS) <= 10
