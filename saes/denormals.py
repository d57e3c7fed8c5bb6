"""Numbers too small for a processor's fast path, taken for 0 while an SAE trains.

What Adam remembers of a latent that has stopped firing shrinks with every step, and below 1e-38 an x86 processor takes
many times as long for each operation. Nothing that small can move a weight.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


def are_flushed() -> bool:
    """Whether results below 1e-38 come out as 0 in this thread."""
    return float(torch.full((1,), 1e-30) * torch.full((1,), 1e-10)) == 0.0


@contextmanager
def flushed_denormals() -> Iterator[None]:
    """While it lasts, float32 numbers below 1e-38 are 0; without effect on processors that cannot do it."""
    before = are_flushed()
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(before)
