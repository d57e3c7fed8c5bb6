"""Change of sampling rate for tensors: a windowed sinc, on the tensor's own device, differentiable."""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

# Down to 16 kHz: flat to 7.3 kHz, 80 dB down from 8 kHz on.
_ZEROS = 64  # zero crossings of the sinc on each side
_CUTOFF = 0.96  # of the lower rate's Nyquist frequency
_KAISER_BETA = 8.6
# Outputs computed by one matrix product: more means fewer products, but more zeros in each matrix. Rates with a common
# divisor, all usual ones among them, have so few phases that one product does it.
_OUTPUTS, _FEW_PHASES = 256, 2048


def _reach(orig: int, new: int) -> int:
    """How many input samples the filter reaches to each side."""
    return math.ceil(_ZEROS / (min(1.0, new / orig) * _CUTOFF))


@lru_cache(maxsize=16)
def _kernel(orig: int, new: int, first: int, count: int) -> Float[Tensor, "count width"]:
    """The matrix that makes outputs `first` to `first + count` from the inputs around them.

    Its first column belongs to the input `reach` before the one at, or just before, output `first`.
    """
    scale = min(1.0, new / orig) * _CUTOFF  # cutoff in units of the input's Nyquist frequency
    half = _ZEROS / scale
    reach = _reach(orig, new)
    with torch.device("cpu"):  # whatever the default device is: float64 is not known to all
        outputs = torch.arange(first, first + count)
        start = first * orig // new
        width = (first + count - 1) * orig // new - start + 2 * reach + 1
        inputs = torch.arange(start - reach, start - reach + width, dtype=torch.float64)
        time = inputs - (outputs.double() * orig / new)[:, None]
        inside = (1 - (time / half).square()).clamp(min=0)
        window = torch.i0(_KAISER_BETA * inside.sqrt()) * (time.abs() <= half)
        kernel = torch.sinc(time * scale) * window
        # Each row sums to one, so that a constant stays one and no phase hums.
        return (kernel / kernel.sum(1, keepdim=True)).float()


def resample(waveform: Float[Tensor, "samples"], orig: int, new: int) -> Float[Tensor, "resampled"]:
    """The same sound at `new` instead of `orig` samples a second: ceil(samples * new / orig) of them.

    Linear in the waveform and differentiable; before its start and after its end the waveform counts as silent.

    Args:
        waveform: float32 or float64.
        orig, new: whole rates in Hz.
    """
    if orig == new:
        return waveform
    divisor = math.gcd(orig, new)
    orig, new = orig // divisor, new // divisor
    # The pattern of phases repeats every `new` outputs; short patterns are taken several times.
    repeats = -(-_OUTPUTS // new)
    at_once = _OUTPUTS if new < _FEW_PHASES else _OUTPUTS // 8
    block_in, block_out = orig * repeats, new * repeats
    length, reach = len(waveform), _reach(orig, new)
    n_out = -(-length * new // orig)
    blocks = -(-n_out // block_out)
    padded = F.pad(waveform, (reach, blocks * block_in + reach + 1 - length))
    parts = []
    for first in range(0, min(block_out, n_out), at_once):
        kernel = _kernel(orig, new, first, min(at_once, block_out - first)).to(waveform.dtype).to(waveform.device)
        start = first * orig // new
        around = padded[start : start + (blocks - 1) * block_in + kernel.shape[1]].unfold(0, kernel.shape[1], block_in)
        parts.append(around @ kernel.T)
    return torch.cat(parts, 1).flatten()[:n_out]
