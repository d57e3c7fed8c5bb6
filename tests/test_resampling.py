"""Resampling: what passes, what is cut off, how long it gets, and that gradients are its transpose."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hooked_whisper.resampling import resample

RATES = [8_000, 11_025, 22_050, 24_000, 32_000, 44_100, 48_000, 96_000, 16_001, 44_101]


def sine(hertz: float, rate: int, seconds: float = 1.0) -> Tensor:
    return torch.sin(2 * math.pi * hertz * torch.arange(int(seconds * rate), dtype=torch.float64) / rate)


@pytest.mark.parametrize("rate", RATES)
def test_what_speech_needs_passes_unchanged(rate: int) -> None:
    for hertz in (100, 1_000, min(7_000, 0.43 * rate)):
        out = resample(sine(hertz, rate), rate, 16_000)
        expected = sine(hertz, 16_000)
        inner = slice(1_000, -1_000)  # the ends fade, for beyond them is silence
        assert (out[inner] - expected[inner]).abs().max() < 1e-4


@pytest.mark.parametrize("rate", [44_100, 48_000, 96_000])
def test_what_16_khz_cannot_hold_is_cut_off(rate: int) -> None:
    for hertz in (8_200, 12_000, 20_000):
        assert resample(sine(hertz, rate), rate, 16_000)[1_000:-1_000].abs().max() < 1e-4


@pytest.mark.parametrize("rate", RATES)
def test_a_constant_stays_that_constant_in_every_phase(rate: int) -> None:
    out = resample(torch.full((rate,), 0.25), rate, 16_000)
    assert (out[1_000:-1_000] - 0.25).abs().max() < 1e-6


@settings(deadline=None, max_examples=60)
@given(rate=st.integers(1_000, 50_000), length=st.integers(1, 3_000))
def test_length_is_the_duration_rounded_up(rate: int, length: int) -> None:
    out = resample(torch.zeros(length), rate, 16_000)
    assert len(out) == math.ceil(length * 16_000 / rate)


@settings(deadline=None, max_examples=25)
@given(rate=st.sampled_from(RATES), length=st.integers(1, 2_000), seed=st.integers(0, 2**16))
def test_gradient_is_the_transpose(rate: int, length: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(length, generator=generator, dtype=torch.float64, requires_grad=True)
    v = torch.randn(length, generator=generator, dtype=torch.float64)
    y = resample(x, rate, 16_000)
    w = torch.randn(len(y), generator=generator, dtype=torch.float64)
    (gradient,) = torch.autograd.grad(y, x, w)
    # <A v, w> = <v, A^T w>, for resampling is linear
    assert torch.allclose(resample(v, rate, 16_000) @ w, v @ gradient, atol=1e-9)


def test_shifting_by_a_whole_period_shifts_the_result() -> None:
    """Catches a wrong phase at the seams between the blocks that are computed together."""
    x = torch.randn(44_100, dtype=torch.float64)
    shifted = torch.cat([torch.zeros(441 * 5, dtype=torch.float64), x])
    assert torch.allclose(resample(shifted, 44_100, 16_000)[160 * 5 :], resample(x, 44_100, 16_000), atol=1e-12)


def test_the_same_rate_is_the_same_tensor() -> None:
    x = torch.randn(10)
    assert resample(x, 16_000, 16_000) is x


def test_float64_stays_float64_and_a_default_device_does_not_matter() -> None:
    with torch.device("meta"):  # models are built under this
        out = resample(torch.ones(3_000, device="cpu", dtype=torch.float64), 12_345, 16_000)
    assert (out.dtype, out.device.type) == (torch.float64, "cpu")
    assert torch.isfinite(out).all()
