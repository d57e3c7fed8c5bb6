"""One decoding step on a CPU: the few products whose shapes torch's defaults handle badly.

A step has one query and a handful of rows. Its cost is reading memory once (weights, keys, values),
so the layouts and kernels here are chosen to read it in order. On other devices, at other shapes,
in other dtypes and under autograd, callers take torch's ordinary operations; the values are the
same up to rounding.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

# A product of a matrix and few rows is bound by reading the matrix. Measured on several threads: for a row, MKL's
# matrix-vector path reads with a single one (off Intel), and for a few its blocked product repacks the whole matrix.
# Blocks of the matrix, taken as a batch, are read by all threads and as they lie; from some rows on, oneDNN's kernel is
# the better one.
_ROWS_IN_BLOCKS, _FEW_ROWS = 8, 32
_BLOCK = 2**19  # elements: 2 MB, what a core's cache holds
_FEWEST_BLOCKS, _MOST_BLOCKS = 8, 256
# Elements of the matrix from which each way pays; the last is for a single thread.
_BLOCKS_FROM, _ONEDNN_FROM, _ONE_THREAD_FROM = 2**18, 2**19, 2**22
_HAS_ONEDNN = torch.backends.mkldnn.is_available()


def linear_few_rows(
    x: Float[Tensor, "*rows d_in"], weight: Float[Tensor, "d_out d_in"], bias: Float[Tensor, " d_out"] | None
) -> Float[Tensor, "*rows d_out"]:
    """`F.linear`, quicker where a large matrix meets few rows: one step of generation, of a batch or of beams."""
    if torch.compiler.is_compiling() or not _is_bound_by_reading(x, weight):
        return F.linear(x, weight, bias)
    d_out, d_in = weight.shape
    several = torch.get_num_threads() > 1
    rows = x.reshape(-1, d_in)
    if several and len(rows) <= _ROWS_IN_BLOCKS and weight.is_contiguous() and (blocks := n_blocks(d_out, d_in)) > 1:
        # `.t()` and no copy of it: for other strides torch takes a slower kernel.
        out = torch.bmm(weight.view(blocks, -1, d_in), rows.t().expand(blocks, -1, -1))
        out = out.permute(2, 0, 1).reshape(*x.shape[:-1], d_out)
        return out if bias is None else out + bias
    if _HAS_ONEDNN and weight.numel() >= (_ONEDNN_FROM if several else _ONE_THREAD_FROM):
        return torch.ops.mkldnn._linear_pointwise(rows, weight, bias, "none", [], "").view(*x.shape[:-1], d_out)
    return F.linear(x, weight, bias)


@lru_cache
def n_blocks(d_out: int, d_in: int) -> int:
    """Into how many equal blocks of rows to cut a matrix: the divisor of `d_out` that comes nearest to what fits."""
    fits = max(_FEWEST_BLOCKS, d_out * d_in / _BLOCK)
    divisors = [n for n in range(1, _MOST_BLOCKS + 1) if d_out % n == 0]
    return min(divisors, key=lambda n: abs(math.log(n / fits)))


def _is_bound_by_reading(x: Tensor, weight: Tensor) -> bool:
    return (
        weight.numel() >= _BLOCKS_FROM
        and x.device.type == "cpu"
        and 0 < x.numel() <= _FEW_ROWS * x.shape[-1]
        and x.dtype == weight.dtype == torch.float32
        and not torch.is_grad_enabled()
    )


def takes_step(q: Float[Tensor, "batch head pos d_head"]) -> bool:
    """Whether `attend_step` serves these queries better than the fused kernel: one position, on a CPU."""
    return q.shape[2] == 1 and q.device.type == "cpu" and not torch.is_grad_enabled()


def attend_step(
    q: Float[Tensor, "batch head 1 d_head"],
    k: Float[Tensor, "batch head key d_head"],
    v: Float[Tensor, "batch head key d_head"],
) -> Float[Tensor, "batch head 1 d_head"]:
    """Attention of one query over all keys; quickest when `k` and `v` are stored with keys innermost."""
    pattern = torch.matmul(q * q.shape[-1] ** -0.5, k.transpose(2, 3)).softmax(dim=-1)
    if v.stride(2) == 1:  # read in the order in which it lies
        return torch.matmul(v.transpose(2, 3), pattern.transpose(2, 3)).transpose(2, 3)
    return torch.matmul(pattern, v)
