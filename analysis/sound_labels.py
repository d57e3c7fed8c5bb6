"""Labels that the sound itself gives: how loud a frame is, how high its voice.

    sound_labels(corpus)                              # tiers "loudness" (q1 to q5) and "pitch" (q1 to q3, unvoiced)

They are rivals more than findings: a feature that follows loudness or pitch is not phonetic.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float
from tqdm import tqdm

from hooked_whisper.analysis.labels import Interval, Labels, join
from hooked_whisper.audio import FRAMES_PER_SECOND, SAMPLE_RATE, SAMPLES_PER_FRAME
from hooked_whisper.errors import AnalysisError
from hooked_whisper.saes.corpus import Corpus

QUIETEST = -100.0  # dB below full scale
LOWEST, HIGHEST = 75.0, 500.0  # Hz
PITCH_WINDOW = 3 / LOWEST  # seconds: three periods of the lowest voice
FINER = 4  # lags to a sample
OCTAVE_COST = 0.05
VOICED = 0.5  # of the autocorrelation at no lag
AUDIBLE = 40.0  # dB below a clip's loudest frame, beneath which nothing is voiced


def frame_loudness(waveform: Float[np.ndarray, " sample"]) -> Float[np.ndarray, " frame"]:
    """Root mean square of each frame of 20 ms, in dB below full scale, at least -100.

    Args:
        waveform: at 16 kHz. A last frame that is not full counts.
    """
    frames = np.pad(waveform, (0, -len(waveform) % SAMPLES_PER_FRAME)).reshape(-1, SAMPLES_PER_FRAME)
    power = np.square(frames.astype(np.float64)).mean(1)
    return np.maximum(10 * np.log10(np.maximum(power, 1e-30)), QUIETEST)


def frame_pitch(waveform: Float[np.ndarray, " sample"]) -> Float[np.ndarray, " frame"]:
    """Fundamental frequency in Hz around the centre of each frame, between 75 and 500; NaN where nothing is voiced.

    The highest peak of the autocorrelation, divided by that of the window (Boersma 1993), 40 ms of sound at a time. It
    may be an octave off, and knows nothing of the frames before.
    """
    loud = frame_loudness(waveform)
    size = round(PITCH_WINDOW * SAMPLE_RATE)
    left = (size - SAMPLES_PER_FRAME) // 2
    padded = np.pad(waveform.astype(np.float64), (left, size + SAMPLES_PER_FRAME))
    places = np.arange(len(loud))[:, None] * SAMPLES_PER_FRAME + np.arange(size)
    window = np.hanning(size + 2)[1:-1]
    frames = padded[places]
    frames = (frames - frames.mean(1, keepdims=True)) * window
    own = _autocorrelation(window[None])[0]
    rate = FINER * SAMPLE_RATE
    lags = np.arange(int(rate / HIGHEST), int(rate / LOWEST) + 1)
    correlation = _autocorrelation(frames)
    energy = np.maximum(correlation[:, :1], 1e-20)
    strength = (correlation[:, lags] / energy) / (own[lags] / own[0])
    # Two periods fit as well as one: the shorter is meant.
    best = np.argmax(strength - OCTAVE_COST * np.log2(lags / lags[0]), axis=1)
    voiced = (strength[np.arange(len(best)), best] >= VOICED) & (loud > max(loud.max() - AUDIBLE, QUIETEST))
    return np.where(voiced, rate / lags[best], np.nan)


def _autocorrelation(frames: np.ndarray) -> np.ndarray:
    """At lags of a quarter of a sample, so that high voices have a peak between two samples, too."""
    length = 2 * frames.shape[1]
    power = np.square(np.abs(np.fft.rfft(frames, length)))
    return np.fft.irfft(power, FINER * length)[:, : FINER * frames.shape[1]]


def sound_labels(
    corpus: Corpus, *, loudness_parts: int = 5, pitch_parts: int = 3, progress: bool | None = None
) -> Labels:
    """Tiers "loudness" and "pitch": quantiles over all frames of the corpus, "q1" the quietest and lowest.

    Frames without a pitch are "unvoiced". What men and women say in one corpus parts pitch by speaker, too.

    Args:
        loudness_parts, pitch_parts: how many equal parts.
        progress: show a bar; None shows it where the error output is a terminal.

    Raises:
        AnalysisError: fewer than two parts, or no clip that can be read.
    """
    if min(loudness_parts, pitch_parts) < 2:
        raise AnalysisError(f"{loudness_parts} and {pitch_parts} parts: expected at least 2 of each.")
    loudness: dict[str, np.ndarray] = {}
    pitch: dict[str, np.ndarray] = {}
    durations: dict[str, float] = {}
    for item in tqdm(corpus, desc="sound", disable=None if progress is None else not progress):
        audio = corpus.load(item)
        if audio is not None:
            sound = audio.cpu().numpy()
            durations[item.id] = len(sound) / SAMPLE_RATE
            loudness[item.id], pitch[item.id] = frame_loudness(sound), frame_pitch(sound)
    if not durations:
        raise AnalysisError(f"{corpus.name} has no clip that can be read.")
    loud, high = _quantiles(loudness, loudness_parts), _quantiles(pitch, pitch_parts)
    return Labels(
        {
            clip: {
                "loudness": _runs(loud[clip], seconds),
                "pitch": _runs(["unvoiced" if value == "q0" else value for value in high[clip]], seconds),
            }
            for clip, seconds in durations.items()
        },
        durations,
    )


def _quantiles(values: Mapping[str, np.ndarray], parts: int) -> dict[str, list[str]]:
    """The part of each value among all that are numbers, from "q1"; "q0" for those that are not."""
    every = np.concatenate(list(values.values()))
    every = every[np.isfinite(every)]
    cuts = np.quantile(every, np.linspace(0, 1, parts + 1)[1:-1]) if len(every) else np.zeros(parts - 1)
    return {
        clip: [f"q{part}" for part in np.where(np.isfinite(own), np.searchsorted(cuts, own, side="right") + 1, 0)]
        for clip, own in values.items()
    }


def _runs(values: list[str], seconds: float) -> tuple[Interval, ...]:
    """Frames of one value in a row, as intervals."""
    frames = [
        Interval(index / FRAMES_PER_SECOND, min((index + 1) / FRAMES_PER_SECOND, seconds), value)
        for index, value in enumerate(values)
    ]
    return join([one for one in frames if one.end > one.start])
