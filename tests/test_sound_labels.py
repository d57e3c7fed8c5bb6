"""Loudness and pitch of frames: of tones whose loudness and pitch are known, and of speech."""

from __future__ import annotations

import numpy as np
import pytest

from hooked_whisper.analysis.sound_labels import frame_loudness, frame_pitch, sound_labels
from hooked_whisper.errors import AnalysisError
from hooked_whisper.saes import Corpus
from hooked_whisper.saes.corpus_item import CorpusItem
from hooked_whisper.speech import clips


def voice(pitch: float, seconds: float = 0.4, amplitude: float = 0.2) -> np.ndarray:
    """Ten harmonics, the fundamental not the strongest, as in a vowel."""
    time = np.arange(round(seconds * 16_000)) / 16_000
    waves = [np.sin(2 * np.pi * pitch * n * time + n) * (1.0 if n in (3, 4) else 0.4) for n in range(1, 11)]
    return (amplitude * np.sum(waves, axis=0) / 3).astype(np.float32)


def test_loudness_of_a_tone() -> None:
    tone = np.sin(2 * np.pi * 400 * np.arange(3200) / 16_000).astype(np.float32)
    assert frame_loudness(tone) == pytest.approx([-3.01] * 10, abs=0.01)
    assert frame_loudness(tone[:3100] * 0.1)[:-1] == pytest.approx([-23.01] * 9, abs=0.01)
    assert len(frame_loudness(tone[:3100])) == 10 and frame_loudness(np.zeros(320, np.float32)) == [-100]


@pytest.mark.parametrize("pitch", [85, 120, 180, 240, 330, 440])
def test_pitch_of_a_voice(pitch: int) -> None:
    found = frame_pitch(voice(pitch))[2:-3]
    assert np.abs(found / pitch - 1).max() < 0.03


def test_noise_and_silence_have_no_pitch() -> None:
    noise = np.random.default_rng(0).normal(0, 0.1, 16_000).astype(np.float32)
    assert np.isnan(frame_pitch(noise)).mean() > 0.9
    assert np.isnan(frame_pitch(np.zeros(3200, np.float32))).all()
    # Hum far below the loudest frame is no voice.
    both = np.concatenate([voice(150), voice(150, amplitude=0.0005)])
    assert np.isfinite(frame_pitch(both)[:17]).all() and np.isnan(frame_pitch(both)[24:]).all()


def test_quantiles_over_a_corpus() -> None:
    sounds = {"low": voice(100, amplitude=0.1), "middle": voice(200, amplitude=0.2), "high": voice(400, amplitude=0.4)}
    items = [CorpusItem(name, {"array": sound, "sampling_rate": 16_000}) for name, sound in sounds.items()]
    labels = sound_labels(Corpus(items, name="tones"), loudness_parts=3, progress=False)
    for name, part in (("low", "q1"), ("middle", "q2"), ("high", "q3")):
        assert labels.at(name, "pitch", 0.2) == labels.at(name, "loudness", 0.2) == part
        assert sum(one.seconds for one in labels[name]["pitch"]) == pytest.approx(0.4)
    assert labels.durations == pytest.approx({"low": 0.4, "middle": 0.4, "high": 0.4})
    with pytest.raises(AnalysisError, match="1 and 3 parts: expected at least 2 of each"):
        sound_labels(Corpus(items), loudness_parts=1)


def test_pitch_of_real_speech() -> None:
    corpus = Corpus.from_clips([clips(language, key="vm-sorry")[0] for language in ("en", "it")])
    for item in corpus:
        pitch = frame_pitch(item.load().numpy())
        assert 0.2 < np.isfinite(pitch).mean() < 0.95 and 80 < np.nanmedian(pitch) < 300
    labels = sound_labels(corpus, progress=False)
    assert set(labels.seconds("loudness")) == {"q1", "q2", "q3", "q4", "q5"}
    assert set(labels.seconds("pitch")) == {"unvoiced", "q1", "q2", "q3"}
