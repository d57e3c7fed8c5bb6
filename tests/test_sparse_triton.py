"""The Triton kernels against torch's, on a GPU, or in Triton's interpreter where there is none."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from hooked_whisper.saes.sparse_kernels import has_triton

# In a process of its own: the interpreter is chosen before triton is imported, and the tests' import hook, which
# wraps every function, is no friend of a compiler that reads their source.
SCRIPT = """
import torch
from hooked_whisper.saes.sparse_kernels import Codes, TorchKernels
from hooked_whisper.saes.sparse_triton import TritonKernels

device = DEVICE
generator = torch.Generator().manual_seed(0)
for dtype, close in ((torch.float32, 1e-4), (torch.bfloat16, 5e-2)):
    for width, n_latents, n_rows in ((16, 40, 12), (24, 50, 9), (1280, 64, 20)):
        counts = torch.randint(0, 9, (n_rows,), generator=generator)
        counts[0] = 0
        offsets = torch.nn.functional.pad(counts.cumsum(0), (1, 0))
        latents = torch.randint(0, n_latents, (int(offsets[-1]),), generator=generator)
        latents[::2] = 3  # one that is active nearly everywhere
        codes = Codes(latents.to(device), offsets.to(device), n_latents)
        values, weight, rows = (
            torch.randn(*shape, generator=generator).to(device, dtype)
            for shape in ((len(latents),), (n_latents, width), (n_rows, width))
        )
        for name, arguments in (
            ("weighted_rows", (values, weight)), ("row_dots", (rows, weight)), ("transposed_sums", (values, rows)),
        ):
            expected = getattr(TorchKernels(), name)(*(a.float() for a in arguments), codes)
            found = getattr(TritonKernels(), name)(*arguments, codes)
            assert found.dtype == dtype
            torch.testing.assert_close(found.float(), expected, atol=close * expected.abs().max().item(), rtol=close)
    none = Codes(torch.empty(0, dtype=torch.long, device=device), torch.zeros(4, dtype=torch.long, device=device), 8)
    rows = torch.ones(3, 16, device=device, dtype=dtype)
    assert not TritonKernels().transposed_sums(rows.new_empty(0), rows, none).any()
print("agree")
"""


def run(device: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT.replace("DEVICE", repr(device))],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.skipif(not has_triton(), reason="triton is not installed: it comes with torch's CUDA builds")
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_kernels_agree_on_a_gpu() -> None:
    assert "agree" in run("cuda")


@pytest.mark.skipif(not has_triton(), reason="triton is not installed: it comes with torch's CUDA builds")
def test_kernels_agree_in_the_interpreter() -> None:
    assert "agree" in run("cpu", TRITON_INTERPRET="1")
