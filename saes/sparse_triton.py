"""The operations of `saes.sparse_kernels` as Triton kernels, for CUDA.

Each program walks over a short list of pairs and keeps its sum in registers; no gathered copy of the weights is ever
written. `transposed_sums` cuts the pairs, sorted by latent, into pieces of equal length, so that a latent which is
active everywhere is spread over many programs; where a latent's pairs cross a piece's border the parts meet by atomic
addition, whose order is not fixed: two runs on a GPU agree to rounding, not to the bit.
"""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import Tensor

from hooked_whisper.saes.sparse_kernels import Codes

# By name, because triton is nothing that this project can ask for: it comes with torch's CUDA builds.
triton: Any = importlib.import_module("triton")
tl: Any = importlib.import_module("triton.language")

MAX_COLUMNS = 1024  # of a row that one program holds in registers
PAIRS_PER_PROGRAM = 64


@triton.jit
def _weighted_rows(values, weight, latents, offsets, out, width, COLUMNS: tl.constexpr):  # type: ignore
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = columns < width
    total = tl.zeros((COLUMNS,), dtype=tl.float32)
    start = tl.load(offsets + row)
    end = tl.load(offsets + row + 1)
    for pair in range(start, end):
        latent = tl.load(latents + pair)
        value = tl.load(values + pair).to(tl.float32)
        total += value * tl.load(weight + latent * width + columns, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + row * width + columns, total.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _row_dots(dense, weight, latents, offsets, out, width, COLUMNS: tl.constexpr):  # type: ignore
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, COLUMNS)
    inside = columns < width
    left = tl.load(dense + row * width + columns, mask=inside, other=0.0).to(tl.float32)
    start = tl.load(offsets + row)
    end = tl.load(offsets + row + 1)
    for pair in range(start, end):
        latent = tl.load(latents + pair)
        right = tl.load(weight + latent * width + columns, mask=inside, other=0.0).to(tl.float32)
        tl.store(out + pair, tl.sum(left * right, axis=0).to(out.dtype.element_ty))


@triton.jit
def _transposed_sums(
    values, dense, rows, latents, out, n_pairs, width, PAIRS: tl.constexpr, COLUMNS: tl.constexpr  # type: ignore
):  # fmt: skip
    first = tl.program_id(0).to(tl.int64) * PAIRS
    last = tl.minimum(first + PAIRS, n_pairs)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = columns < width
    total = tl.zeros((COLUMNS,), dtype=tl.float32)
    current = tl.load(latents + first)
    for pair in range(first, last):
        latent = tl.load(latents + pair)
        if latent != current:
            tl.atomic_add(out + current * width + columns, total, mask=inside)
            total = tl.zeros((COLUMNS,), dtype=tl.float32)
            current = latent
        row = tl.load(rows + pair)
        value = tl.load(values + pair).to(tl.float32)
        total += value * tl.load(dense + row * width + columns, mask=inside, other=0.0).to(tl.float32)
    tl.atomic_add(out + current * width + columns, total, mask=inside)


class TritonKernels:
    """The operations on CUDA; sums are taken in float32 whatever the dtype."""

    def weighted_rows(self, values: Tensor, weight: Tensor, codes: Codes) -> Tensor:
        weight = weight.contiguous()
        width = weight.shape[1]
        out = torch.empty(codes.n_rows, width, dtype=weight.dtype, device=weight.device)
        columns = min(MAX_COLUMNS, triton.next_power_of_2(width))
        grid = (codes.n_rows, triton.cdiv(width, columns))
        _weighted_rows[grid](values, weight, codes.latents, codes.offsets, out, width, COLUMNS=columns)
        return out

    def row_dots(self, dense: Tensor, weight: Tensor, codes: Codes) -> Tensor:
        dense, weight = dense.contiguous(), weight.contiguous()
        width = weight.shape[1]
        out = torch.empty(codes.latents.shape[0], dtype=dense.dtype, device=dense.device)
        columns = triton.next_power_of_2(width)
        _row_dots[(codes.n_rows,)](dense, weight, codes.latents, codes.offsets, out, width, COLUMNS=columns)
        return out

    def transposed_sums(self, values: Tensor, dense: Tensor, codes: Codes) -> Tensor:
        dense = dense.contiguous()
        width, n_pairs = dense.shape[1], codes.latents.shape[0]
        out = torch.zeros(codes.n_latents, width, dtype=torch.float32, device=dense.device)
        if n_pairs:
            by_latent = codes.by_latent
            columns = min(MAX_COLUMNS, triton.next_power_of_2(width))
            grid = (triton.cdiv(n_pairs, PAIRS_PER_PROGRAM), triton.cdiv(width, columns))
            _transposed_sums[grid](
                values[by_latent.order], dense, by_latent.rows, by_latent.latents, out, n_pairs, width,
                PAIRS=PAIRS_PER_PROGRAM, COLUMNS=columns,
            )  # fmt: skip
        return out.to(dense.dtype)
