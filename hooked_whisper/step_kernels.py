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

# Below 2 rows BLAS takes its matrix-vector path, above 16 its blocked product pays; between, MKL repacks
# the whole matrix for a few rows, and oneDNN's kernel is the better one.
_FEW_ROWS = range(2, 17)
_HAS_ONEDNN = torch.backends.mkldnn.is_available()


def linear_few_rows(
    x: Float[Tensor, "*rows d_in"], weight: Float[Tensor, "d_out d_in"], bias: Float[Tensor, " d_out"] | None
) -> Float[Tensor, "*rows d_out"]:
    """`F.linear` for a wide matrix and few rows: the unembedding of one step of a batch or of beams."""
    n_rows = x.numel() // x.shape[-1]
    if (
        n_rows in _FEW_ROWS
        and x.device.type == "cpu"
        and x.dtype == torch.float32
        and not torch.is_grad_enabled()
        and _HAS_ONEDNN
        and not torch.compiler.is_compiling()
    ):
        rows = torch.ops.mkldnn._linear_pointwise(x.reshape(n_rows, -1), weight, bias, "none", [], "")
        return rows.view(*x.shape[:-1], -1)
    return F.linear(x, weight, bias)


def takes_step(q: Float[Tensor, "batch head pos d_head"]) -> bool:
    """Whether `attend_step` serves these queries better than the fused kernel: one position, on a CPU."""
    return q.shape[2] == 1 and q.device.type == "cpu" and not torch.is_grad_enabled()


def attend_step(
    q: Float[Tensor, "batch head 1 d_head"],
    k: Float[Tensor, "batch head key d_head"],
    v: Float[Tensor, "batch head key d_head"],
) -> Float[Tensor, "batch head 1 d_head"]:
    """Attention of one query over all keys; quickest when `k` is stored with keys innermost."""
    scores = torch.matmul(q * q.shape[-1] ** -0.5, k.transpose(2, 3))
    return torch.matmul(scores.softmax(dim=-1), v)
