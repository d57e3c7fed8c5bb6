"""Log-mel against transformers' feature extractor, its gradient, dtypes and devices; masks and times of frames."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import WhisperFeatureExtractor

from hooked_whisper.errors import AudioError, ConfigError
from hooked_whisper.mel import LogMel, frame_mask, frame_to_seconds, seconds_to_frame
from hooked_whisper.speech import clips

TOLERANCE = 1e-5


def reference(waveforms: list[Tensor], n_mels: int) -> Tensor:
    extractor = WhisperFeatureExtractor(feature_size=n_mels)
    arrays = [waveform.numpy() for waveform in waveforms]
    return extractor(arrays, sampling_rate=16_000, return_tensors="pt").input_features


@pytest.fixture(scope="module")
def speech() -> list[Tensor]:
    """One sentence in five languages: clips of five lengths."""
    return [clip.load() for clip in clips(key="vm-whichbox")]


@pytest.mark.parametrize("n_mels", [80, 128])
def test_equals_the_feature_extractor_on_speech(speech: list[Tensor], n_mels: int) -> None:
    mel = LogMel(n_mels)(speech)
    assert mel.shape == (5, n_mels, 3_000)
    assert (mel - reference(speech, n_mels)).abs().max() < TOLERANCE


@pytest.mark.parametrize("n_mels", [80, 128])
@pytest.mark.parametrize(
    "waveform",
    [
        torch.zeros(16_000),
        torch.ones(1),
        torch.randn(480_000, generator=torch.Generator().manual_seed(1)) * 0.1,
        torch.sin(torch.arange(40_000) * 0.3),
        torch.randn(479_999, generator=torch.Generator().manual_seed(2)) * 1e-4,
    ],
    ids=["silence", "one-sample", "full-window", "tone", "quiet"],
)
def test_equals_the_feature_extractor_at_the_edges(waveform: Tensor, n_mels: int) -> None:
    assert (LogMel(n_mels)([waveform]) - reference([waveform], n_mels)).abs().max() < TOLERANCE


@settings(deadline=None, max_examples=15)
@given(
    lengths=st.lists(st.integers(1, 60_000), min_size=1, max_size=3),
    gain=st.floats(1e-6, 10),
    seed=st.integers(0, 2**16),
    n_mels=st.sampled_from([80, 128]),
)
def test_equals_the_feature_extractor_on_noise(lengths: list[int], gain: float, seed: int, n_mels: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    waveforms = [torch.randn(length, generator=generator) * gain for length in lengths]
    assert (LogMel(n_mels)(waveforms) - reference(waveforms, n_mels)).abs().max() < TOLERANCE


def test_batch_does_not_leak_between_clips(speech: list[Tensor]) -> None:
    """The floor is 80 dB below each clip's own loudest bin, so a loud neighbour must not raise it."""
    log_mel = LogMel(80)
    quiet = speech[0] * 1e-3
    together = log_mel([quiet, speech[1] * 10])
    assert torch.equal(together[0], log_mel([quiet])[0])


def test_a_batch_tensor_is_a_list_of_its_rows() -> None:
    x = torch.randn(3, 5_000)
    assert torch.equal(LogMel(80)(x), LogMel(80)(list(x)))


def test_shorter_windows() -> None:
    x = torch.randn(8_000) * 0.1
    short = LogMel(80)([x], n_mel_frames=100)
    assert short.shape == (1, 80, 100)
    # Up to the last 25 ms, where the window's edge reflects, it is the beginning of the full one.
    assert torch.allclose(short[..., :97], LogMel(80)([x])[..., :97], atol=TOLERANCE)
    full = LogMel(80)([x[:320]], n_mel_frames=2)
    assert full.shape == (1, 80, 2)


def test_gradient_matches_finite_differences() -> None:
    log_mel = LogMel(8)
    # 640 samples: 4 mel frames; loud enough that no bin lies on the floor, where the gradient jumps
    x = torch.randn(1, 640, dtype=torch.float64, generator=torch.Generator().manual_seed(3)).requires_grad_()
    assert torch.autograd.gradcheck(lambda w: log_mel(w, n_mel_frames=4), x, eps=1e-6, atol=1e-5)


def test_gradient_reaches_every_sample_of_speech_and_none_is_nan(speech: list[Tensor]) -> None:
    x = speech[0].clone().requires_grad_()
    LogMel(80)([x]).square().mean().backward()
    assert x.grad is not None
    assert torch.isfinite(x.grad).all()
    assert (x.grad != 0).float().mean() > 0.99


def test_gradient_of_silence_is_zero_not_nan() -> None:
    x = torch.zeros(3_200, requires_grad=True)
    LogMel(80)([x], n_mel_frames=20).sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad, torch.zeros_like(x))


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.log_mel = LogMel(80)
        self.linear = nn.Linear(2, 2)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_casting_the_model_around_it_changes_nothing(dtype: torch.dtype, speech: list[Tensor]) -> None:
    expected = LogMel(80)(speech[:1])
    model = Model().to(dtype)
    assert model.linear.weight.dtype == dtype
    assert {buffer.dtype for buffer in model.log_mel.buffers()} == {torch.float32}
    assert torch.equal(model.log_mel(speech[:1]), expected)
    assert torch.equal(model.half().float().log_mel(speech[:1]), expected)


def test_survives_the_meta_device_and_deepcopy(speech: list[Tensor]) -> None:
    expected = LogMel(80)(speech[:1])
    with torch.device("meta"):
        model = Model()
    model = model.to_empty(device="cpu")
    assert torch.equal(model.log_mel(speech[:1]), expected)
    assert torch.equal(copy.deepcopy(model).log_mel(speech[:1]), expected)
    assert Model().to("meta").log_mel.window.device.type == "meta"


def test_is_not_in_the_state_dict() -> None:
    assert set(Model().state_dict()) == {"linear.weight", "linear.bias"}


def test_autocast_does_not_touch_it(speech: list[Tensor]) -> None:
    expected = LogMel(80)(speech[:1])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(LogMel(80)(speech[:1]), expected)


def test_dtypes_of_the_waveform(speech: list[Tensor]) -> None:
    assert LogMel(80)([speech[0].half()]).dtype == torch.float32
    assert LogMel(80)([speech[0].double()]).dtype == torch.float64
    # What float32 itself costs in the quietest bins, eight powers of ten below the loudest.
    assert (LogMel(80)([speech[0].double()]) - LogMel(80)([speech[0]])).abs().max() < 1e-4


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA here")
def test_cuda_equals_cpu(speech: list[Tensor]) -> None:
    log_mel = LogMel(80).cuda().half()
    assert (log_mel(speech).cpu() - LogMel(80)(speech)).abs().max() < TOLERANCE


@pytest.mark.skipif(not torch.backends.mps.is_available(), reason="no MPS here")
def test_mps_equals_cpu(speech: list[Tensor]) -> None:
    assert (LogMel(80).to("mps")(speech).cpu() - LogMel(80)(speech)).abs().max() < TOLERANCE


def test_over_long_audio_says_what_can_take_it() -> None:
    with pytest.raises(AudioError, match=r"The audio is 30\.00 s long, but the window holds 30 s.*model\.transcribe"):
        LogMel(80)([torch.zeros(480_001)])
    with pytest.raises(AudioError, match=r"Clip 1 is 1\.00 s long, but the window holds 0\.5 s"):
        LogMel(80)([torch.zeros(10), torch.zeros(16_000)], n_mel_frames=50)


def test_bad_batches_and_sizes() -> None:
    with pytest.raises(AudioError, match="expected at least one clip"):
        LogMel(80)([])
    with pytest.raises(AudioError, match="Clip 1 has no samples"):
        LogMel(80)([torch.zeros(10), torch.zeros(0)])
    with pytest.raises(ConfigError, match="n_mel_frames must be at least 2, got 1"):
        LogMel(80)([torch.zeros(10)], n_mel_frames=1)
    with pytest.raises(ConfigError, match="n_mels must be positive, got 0"):
        LogMel(0)


def test_frame_mask_counts_frames_that_begin_within_the_audio() -> None:
    mask = frame_mask([1, 320, 321, 640, 480_000])
    assert mask.shape == (5, 1_500)
    assert mask.sum(1).tolist() == [1, 1, 2, 2, 1_500]
    assert mask[2].tolist() == [True, True] + [False] * 1_498
    assert frame_mask([640], n_frames=5).tolist() == [[True, True, False, False, False]]
    assert frame_mask([640], device="meta").device.type == "meta"


@given(frame=st.integers(0, 1_500_000))
def test_frames_and_seconds_are_inverse(frame: int) -> None:
    assert seconds_to_frame(frame_to_seconds(frame)) == frame


def test_times_within_a_frame_belong_to_it() -> None:
    assert [seconds_to_frame(t) for t in (0.0, 0.0199, 0.02, 0.58, 0.59, 29.99)] == [0, 0, 1, 29, 29, 1_499]
    assert frame_to_seconds(29) == 0.58


@pytest.mark.parametrize("seconds", [-0.1, float("nan"), float("inf")])
def test_times_that_cannot_be(seconds: float) -> None:
    with pytest.raises(AudioError, match="number of seconds from 0 on"):
        seconds_to_frame(seconds)


def test_filters_match_transformers_exactly() -> None:
    expected = WhisperFeatureExtractor(feature_size=128).mel_filters
    assert np.array_equal(LogMel(128).filters.numpy().T, expected.astype(np.float32))
