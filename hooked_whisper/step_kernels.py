"""One decoding step on a CPU: the few products whose shapes torch's defaults handle badly.

A step has one query and a handful of rows. Its cost is reading memory once (weights, keys, values),
so the layouts and kernels here are chosen to read it in order. On other devices, at other shapes,
in other dtypes and under autograd, callers take torch's ordinary operations; the values are the
same up to rounding.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

# A product of a matrix and few rows is bound by reading the matrix. Measured on several threads: for one row, MKL's
# matrix-vector path reads with a single one (off Intel), and blocks of the matrix, as a batch, with all; up to some
# 32 rows its blocked product repacks the whole matrix, and oneDNN's kernel is the better one.
_FEW_ROWS = 32
_MOST_BLOCKS = 8
# Elements from which it pays: one row, few rows, and few rows on a single thread.
_ONE_ROW_FROM, _FEW_ROWS_FROM, _ONE_THREAD_FROM = 2**18, 2**19, 2**22
_HAS_ONEDNN = torch.backends.mkldnn.is_available()


def linear_few_rows(
    x: Float[Tensor, "*rows d_in"], weight: Float[Tensor, "d_out d_in"], bias: Float[Tensor, " d_out"] | None
) -> Float[Tensor, "*rows d_out"]:
    """`F.linear`, quicker where a large matrix meets few rows: one step of generation, of a batch or of beams."""
    if torch.compiler.is_compiling() or not _is_bound_by_reading(x, weight):
        return F.linear(x, weight, bias)
    size, several = weight.numel(), torch.get_num_threads() > 1
    blocks = _blocks(weight.shape[0]) if several and x.numel() == x.shape[-1] and weight.is_contiguous() else 1
    if blocks > 1:
        column = x.reshape(1, -1).t()  # these very strides: for others, torch takes a kernel of one thread
        out = torch.bmm(weight.view(blocks, -1, weight.shape[1]), column.expand(blocks, -1, -1))
        out = out.view(*x.shape[:-1], -1)
        return out if bias is None else out + bias
    if size >= (_FEW_ROWS_FROM if several else _ONE_THREAD_FROM) and _HAS_ONEDNN:
        rows = torch.ops.mkldnn._linear_pointwise(x.reshape(-1, x.shape[-1]), weight, bias, "none", [], "")
        return rows.view(*x.shape[:-1], -1)
    return F.linear(x, weight, bias)


def _blocks(d_out: int) -> int:
    """Into how many equal blocks of rows a matrix can be cut."""
    return next(n for n in range(_MOST_BLOCKS, 0, -1) if d_out % n == 0)


def _is_bound_by_reading(x: Tensor, weight: Tensor) -> bool:
    return (
        weight.numel() >= _ONE_ROW_FROM
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
