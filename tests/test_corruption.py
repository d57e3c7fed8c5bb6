"""Corruptions: exact ratios, spans of their own, lengths kept, inputs untouched."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hooked_whisper import AnalysisError
from hooked_whisper.analysis.corruption import another, noise, silence, splice, translation
from hooked_whisper.errors import LanguageError
from hooked_whisper.speech import clips


def sound(seconds: float = 1.0, seed: int = 0) -> torch.Tensor:
    return 0.1 * torch.randn(round(seconds * 16_000), generator=torch.Generator().manual_seed(seed))


def test_silence_of_a_span_and_of_all() -> None:
    clip = sound()
    before = clip.clone()
    part = silence(clip, (0.25, 0.5))
    assert not part[4000:8000].any()
    assert torch.equal(part[:4000], clip[:4000])
    assert torch.equal(part[8000:], clip[8000:])
    assert not silence(clip).any()
    assert torch.equal(clip, before)


@pytest.mark.parametrize("snr", [-10.0, 0.0, 17.5])
def test_noise_is_as_loud_as_asked_for(snr: float) -> None:
    clip = clips("en", "vm-sorry")[0].load()
    added = noise(clip, snr, span=(0.5, 1.5)) - clip
    here = slice(8_000, 24_000)
    ratio = 10 * torch.log10(clip[here].double().pow(2).mean() / added[here].double().pow(2).mean())
    assert float(ratio) == pytest.approx(snr, abs=1e-3)
    assert not added[:8_000].any()
    assert not added[24_000:].any()
    spectrum = torch.fft.rfft(added[here].double()).abs().pow(2)  # white: halves of the band are alike
    assert float(spectrum[:4000].mean() / spectrum[4000:].mean()) == pytest.approx(1, abs=0.1)


def test_noise_has_a_seed() -> None:
    clip = sound()
    assert torch.equal(noise(clip, 3.0, seed=1), noise(clip, 3.0, seed=1))
    assert not torch.equal(noise(clip, 3.0, seed=1), noise(clip, 3.0, seed=2))


def test_another_clip_is_made_as_long() -> None:
    short, long = sound(0.5), sound(0.8, seed=1)
    assert torch.equal(another(short, long), long[:8_000])
    padded = another(long, short)
    assert torch.equal(padded[:8_000], short)
    assert not padded[8_000:].any()
    assert len(padded) == len(long)


def test_splice_takes_one_stretch() -> None:
    clip, other = sound(), sound(2.0, seed=1)
    cut = splice(clip, other, (0.25, 0.5), other_start=1.0, fade=0)
    assert torch.equal(cut[4_000:8_000], other[16_000:20_000])
    assert torch.equal(cut[:4_000], clip[:4_000])
    assert torch.equal(cut[8_000:], clip[8_000:])
    faded = splice(clip, other, (0.25, 0.5), fade=0.01)
    assert torch.equal(faded[4_160:7_840], other[4_160:7_840])
    assert torch.equal(faded[:4_000], clip[:4_000])
    inside = faded[4_000:4_160]
    assert (torch.minimum(clip, other[:16_000])[4_000:4_160] - 1e-6 <= inside).all()
    assert (inside <= torch.maximum(clip, other[:16_000])[4_000:4_160] + 1e-6).all()
    ones, zeros = torch.ones(16_000), torch.zeros(16_000)
    steps = splice(zeros, ones, (0.25, 0.5), fade=0.01)
    assert torch.allclose(steps, splice(zeros.flip(0), ones, (0.5, 0.75), fade=0.01).flip(0))  # alike at both ends
    assert (steps[4_000:4_160].diff() > 0).all()


def test_the_same_sentence_in_another_language() -> None:
    english = clips("en", "vm-sorry")[0]
    french = translation(english, "fr")
    assert (french.language, french.key) == ("fr", "vm-sorry")
    assert translation(french, "en") == english
    with pytest.raises(LanguageError, match="No shipped speech in 'de'"):
        translation(english, "de")


def test_what_does_not_fit_is_refused() -> None:
    from dataclasses import replace

    clip = sound()
    for call, message in (
        (lambda: silence(clip, (0.5, 1.5)), "The span 0.5 to 1.5 s is not inside the clip of 1.000 s"),
        (lambda: silence(clip, (0.5, 0.5)), "The span 0.5 to 0.5 s is not inside"),
        (lambda: noise(clip, float("inf")), "snr=inf dB: expected a finite number"),
        (lambda: silence(clip, (float("nan"), 1)), r"Expected a span \(start, end\) in seconds, such as"),
        (lambda: noise(torch.zeros(10), 0.0), "The clip is silent there"),
        (
            lambda: splice(clip, sound(0.3), (0.2, 0.4)),
            "The other clip has 0.300 s, which do not hold 0.200 to 0.400 s",
        ),
        (lambda: splice(clip, clip, (0.2, 0.3), fade=0.06), "fade=0.06 s at both ends does not fit into 0.100 s"),
        (
            lambda: translation(replace(clips("en")[0], key="vm-sory"), "fr"),
            "No shipped sentence .* Did you mean 'vm-sorry'",
        ),
    ):
        with pytest.raises(AnalysisError, match=message):
            call()


def test_what_is_no_waveform_is_refused() -> None:
    from hooked_whisper.analysis.corruption import _check_waveform

    for given, message in (
        (np.zeros(3, np.float32), "got ndarray"),
        (torch.zeros(2, 3), r"got torch.float32 of shape \(2, 3\)"),
        (torch.zeros(3, dtype=torch.int16), r"got torch.int16 of shape \(3,\)"),
        (torch.zeros(0), r"of shape \(0,\)"),
        (torch.tensor([0.0, float("nan")]), "1 samples of the waveform are not finite"),
    ):
        with pytest.raises(AnalysisError, match=message):
            _check_waveform(given)
