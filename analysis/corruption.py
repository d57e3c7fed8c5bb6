"""Corrupted versions of a clip, as long as the clip itself: the other side of a contrast.

    pair = Contrast.of(model, clean=clip, corrupted=noise(clip, 0.0), text=text, language="en")

Every function takes and returns a waveform, mono float32 at 16 kHz, and leaves its input as it is. What a corruption
takes away is what patching finds: silence takes everything, noise what is masked, a splice one stretch, a translation
the language (and in the shipped clips the voice).
"""

from __future__ import annotations

import math
from numbers import Real
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from hooked_whisper.analysis.checks import check_whole, described, expect
from hooked_whisper.audio import SAMPLE_RATE
from hooked_whisper.errors import AnalysisError, did_you_mean
from hooked_whisper.speech import Clip, clips

Seconds = tuple[float, float]
FADE_SECONDS = 0.005  # over which a splice goes from one clip to the other, so that no click is heard


def silence(clip: Float[Tensor, " samples"], span: Seconds | None = None) -> Float[Tensor, " samples"]:
    """The clip with a span [start, end) in seconds set to zero; None silences all of it.

    Raises:
        AnalysisError: no waveform, or a span outside the clip.
    """
    _check_waveform(clip)
    start, end = (0, len(clip)) if span is None else _samples(span, len(clip))
    silenced = clip.clone()
    silenced[start:end] = 0
    return silenced


def noise(
    clip: Float[Tensor, " samples"], snr: float, *, seed: int = 0, span: Seconds | None = None
) -> Float[Tensor, " samples"]:
    """The clip with white Gaussian noise added at a signal-to-noise ratio in dB, exactly.

    Args:
        snr: 10 log10 of the power of the span over the power of the noise; 0 is as loud as the clip.
        seed: of the noise.
        span: [start, end) in seconds; None takes all of the clip.

    Raises:
        AnalysisError: no waveform, a span outside the clip or silent, a ratio that is not finite.
    """
    _check_waveform(clip)
    if not isinstance(snr, Real) or not math.isfinite(snr):
        raise AnalysisError(f"snr={snr!r} dB: expected a finite number; silence() takes the clip away altogether.")
    check_whole("seed", seed, None)
    start, end = (0, len(clip)) if span is None else _samples(span, len(clip))
    part = clip[start:end]
    power = part.double().pow(2).mean()
    if power == 0:
        raise AnalysisError("The clip is silent there, so no noise is so many dB below it: add noise of your own.")
    white = torch.randn(end - start, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(part.device)
    white *= (power / 10 ** (snr / 10) / white.pow(2).mean()).sqrt()
    noisy = clip.clone()
    noisy[start:end] = (part.double() + white).to(clip.dtype)
    return noisy


def another(clip: Float[Tensor, " samples"], other: Float[Tensor, " other_samples"]) -> Float[Tensor, " samples"]:
    """Another clip, cut or padded with silence to the length of this one.

    Raises:
        AnalysisError: no waveforms.
    """
    _check_waveform(clip)
    _check_waveform(other)
    fitted = torch.zeros_like(clip)
    fitted[: len(other)] = other[: len(clip)].to(clip)
    return fitted


def splice(
    clip: Float[Tensor, " samples"],
    other: Float[Tensor, " other_samples"],
    span: Seconds,
    *,
    other_start: float | None = None,
    fade: float = FADE_SECONDS,
) -> Float[Tensor, " samples"]:
    """The clip with a span [start, end) in seconds taken from another clip.

    Args:
        other_start: where the span begins in the other clip, in seconds; None takes the same time.
        fade: seconds at both ends of the span over which the two are mixed; 0 cuts.

    Raises:
        AnalysisError: no waveforms, a span outside either clip, a fade that does not fit into the span.
    """
    _check_waveform(clip)
    _check_waveform(other)
    start, end = _samples(span, len(clip))
    first = start if other_start is None else round(other_start * SAMPLE_RATE)
    length, ramp = end - start, round(fade * SAMPLE_RATE)
    if first < 0 or first + length > len(other):
        raise AnalysisError(
            f"The other clip has {len(other) / SAMPLE_RATE:.3f} s, which do not hold {first / SAMPLE_RATE:.3f} to "
            f"{(first + length) / SAMPLE_RATE:.3f} s: choose another other_start or a shorter span."
        )
    if fade < 0 or 2 * ramp > length:
        raise AnalysisError(f"fade={fade} s at both ends does not fit into {length / SAMPLE_RATE:.3f} s.")
    share = torch.ones(length, dtype=clip.dtype, device=clip.device)
    if ramp:
        rising = (torch.arange(ramp, dtype=clip.dtype, device=clip.device) + 0.5) / ramp
        share[:ramp], share[-ramp:] = rising, rising.flip(0)
    spliced = clip.clone()
    spliced[start:end] = share * other[first : first + length].to(clip) + (1 - share) * clip[start:end]
    return spliced


def translation(clip: Clip, language: str) -> Clip:
    """The same sentence in another language, among the shipped clips; `load()` gives its waveform.

    Each language has one speaker, so that the voice changes with it; so does the length: `another` evens it out.

    Raises:
        LanguageError: a language that is not shipped.
        AnalysisError: a clip that is not a shipped one.
    """
    expect(clip, Clip, "a shipped clip, such as clips('en', 'vm-sorry')[0]; its waveform does not tell what it is")
    found = {other.key: other for other in clips(language)}
    if clip.key not in found:
        near = did_you_mean(clip.key, found)
        raise AnalysisError(
            f"No shipped sentence has the key {clip.key!r}.{near} hooked_whisper.speech.clips() lists them."
        )
    return found[clip.key]


def _check_waveform(clip: Any) -> None:
    if not isinstance(clip, Tensor) or clip.ndim != 1 or not clip.is_floating_point() or not len(clip):
        found = f"{clip.dtype} of shape {tuple(clip.shape)}" if isinstance(clip, Tensor) else type(clip).__name__
        raise AnalysisError(
            f"Expected a waveform, one row of floats at 16 kHz, got {found}: hooked_whisper.audio.load_audio makes one "
            "of a file or an array."
        )
    if not torch.isfinite(clip).all():
        raise AnalysisError(f"{int((~torch.isfinite(clip)).sum())} samples of the waveform are not finite.")


def _samples(span: Seconds, n_samples: int) -> tuple[int, int]:
    pair = isinstance(span, tuple | list) and len(span) == 2 and all(isinstance(at, Real) for at in span)
    if not pair or not all(map(math.isfinite, span)):
        raise AnalysisError(f"Expected a span (start, end) in seconds, such as (0.5, 1.0), got {described(span)}.")
    start, end = (round(at * SAMPLE_RATE) for at in span)
    if not 0 <= start < end <= n_samples:
        raise AnalysisError(
            f"The span {span[0]} to {span[1]} s is not inside the clip of {n_samples / SAMPLE_RATE:.3f} s."
        )
    return start, end
