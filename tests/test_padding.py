"""Where the encoder's window is padded: known for what `log_mel` made, whole or cut into windows; all audio else."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from hooked_whisper.components import ActivationPoint
from hooked_whisper.mel import LogMel, frame_mask
from hooked_whisper.padding import Padding

N_MELS, WINDOW = 8, 60  # mel frames


@pytest.fixture
def log_mel() -> LogMel:
    return LogMel(N_MELS)


@pytest.fixture
def parts(log_mel: LogMel) -> Iterator[tuple[LogMel, ActivationPoint, nn.Module, Padding]]:
    point, encoder = ActivationPoint(), nn.Identity()
    padding = Padding(log_mel, point, encoder)
    yield log_mel, point, encoder, padding
    padding.remove()


def noise(n_samples: int, seed: int = 0) -> Tensor:
    return torch.randn(n_samples, generator=torch.Generator().manual_seed(seed)) * 0.1


def test_of_whole_windows(parts: tuple[LogMel, ActivationPoint, nn.Module, Padding]) -> None:
    log_mel, _, encoder, padding = parts
    lengths = [321, 320, 9_600, 4_000]
    mel = log_mel([noise(n, i) for i, n in enumerate(lengths)], WINDOW)
    encoder(mel)
    assert padding.frame_mask is not None
    assert padding.frame_mask.sum(1).tolist() == [2, 1, 30, 13]
    encoder(mel[[3, 0]])  # some of the clips, in another order
    assert padding.frame_mask.sum(1).tolist() == [13, 2]
    encoder(mel.half().float())  # no longer what was made
    assert bool(padding.frame_mask.all())
    encoder(mel.half())  # but cast to the model's precision, it is
    assert padding.frame_mask.sum(1).tolist() == [2, 1, 30, 13]
    mel = log_mel(waveforms=[noise(1_000)], n_mel_frames=WINDOW)
    encoder(mel.requires_grad_())
    assert padding.frame_mask.sum(1).tolist() == [4]


def test_hooks_on_the_encoders_input_do_not_hide_it(
    parts: tuple[LogMel, ActivationPoint, nn.Module, Padding],
) -> None:
    log_mel, point, encoder, padding = parts
    mel = log_mel([noise(4_000)], WINDOW)
    encoder(point(mel) + 1)
    assert padding.frame_mask is not None
    assert padding.frame_mask.sum(1).tolist() == [13]
    encoder(mel + 1)  # without the point before it, another spectrogram
    assert bool(padding.frame_mask.all())
    encoder(torch.zeros(1, N_MELS + 1, WINDOW))
    assert bool(padding.frame_mask.all())


def test_nothing_is_watched_afterwards(parts: tuple[LogMel, ActivationPoint, nn.Module, Padding]) -> None:
    log_mel, point, encoder, padding = parts
    padding.remove()
    encoder(point(log_mel([noise(4_000)], WINDOW)))
    assert padding.frame_mask is None
    assert not any([log_mel._forward_hooks, point._forward_pre_hooks, encoder._forward_pre_hooks])


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.integers(200, 40_000), min_size=1, max_size=3),
    start=st.integers(0, 250),
    clip=st.integers(0, 2),
)
def test_of_windows_cut_out_of_long_clips(lengths: list[int], start: int, clip: int) -> None:
    """As long transcription cuts them: from some mel frame on, padded with zeros where the spectrogram ends."""
    log_mel, encoder = LogMel(N_MELS), nn.Identity()
    padding = Padding(log_mel, ActivationPoint(), encoder)
    n_mel_frames = -(-max(lengths) // 160)
    mel = log_mel([noise(n, i) for i, n in enumerate(lengths)], max(2, n_mel_frames))
    clip, start = clip % len(lengths), min(start, mel.shape[2] - 1)
    cut = mel[clip : clip + 1, :, start : start + WINDOW]
    encoder(nn.functional.pad(cut, (0, WINDOW - cut.shape[2])))
    left = lengths[clip] - 160 * start
    assert padding.frame_mask is not None
    if left > 400:  # else the window may be of silence alone, which could be any clip's end
        assert torch.equal(padding.frame_mask, frame_mask([left], WINDOW // 2))
