"""Sounds start where the clip starts, spectrograms have a column a frame, and long clips come in half minutes."""

from __future__ import annotations

import io

import av
import numpy as np
import pytest
import torch
from small import small_model

from hooked_whisper import AudioError, load_audio
from hooked_whisper.analysis.dashboard_media import Excerpt, mp3, png, spectrogram
from hooked_whisper.speech import clips


def test_mp3_is_the_clip_in_its_place() -> None:
    waveform = clips("it", "vm-sorry")[0].load()
    data = mp3(waveform)
    assert len(data) < len(waveform) / 16_000 * 5_000  # 5 kB a second
    again = load_audio(data)
    assert len(again) == len(waveform)
    lag = int(np.correlate(again.numpy(), waveform.numpy(), "full").argmax()) - (len(waveform) - 1)
    assert lag == 0
    assert float((again - waveform).square().mean() / waveform.square().mean()) < 0.05
    with pytest.raises(AudioError, match="without samples"):
        mp3(torch.zeros(0))


def test_spectrogram_has_a_column_a_frame_with_high_pitch_above() -> None:
    seconds = torch.arange(16_000) / 16_000
    low = 0.5 * torch.sin(2 * torch.pi * 200 * seconds)
    picture = spectrogram(small_model(), torch.cat([torch.zeros(16_000), low]))
    assert picture.shape == (6, 100)
    assert (picture[:, :45] == 255).all()  # silence is white
    assert picture[-1, 60:90].max() < 60  # the low tone is dark at the bottom
    assert picture[0, 60:90].min() > 200
    assert len(set(picture.ravel().tolist())) <= 16


def test_png_holds_the_picture() -> None:
    picture = np.arange(60, dtype=np.uint8).reshape(6, 10) * 4
    data = png(picture)
    assert data.startswith(b"\x89PNG")
    with av.open(io.BytesIO(data)) as file:
        (frame,) = file.decode(video=0)
    assert (frame.to_ndarray(format="gray") == picture).all()


def test_long_clips_come_in_half_minutes() -> None:
    waveform = torch.arange(70 * 16_000, dtype=torch.float32)
    assert [len(Excerpt(4, n).cut(waveform)) / 16_000 for n in range(3)] == [30, 30, 10]
    assert Excerpt(4, 2).start == 60 and int(Excerpt(4, 2).cut(waveform)[0]) == 60 * 16_000
    assert (Excerpt(4).name, Excerpt(4, 2).name) == ("00004", "00004-2")
