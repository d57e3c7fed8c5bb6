"""Log-mel spectrograms as Whisper was trained on, in torch, differentiable back to the waveform."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.audio_utils import mel_filter_bank

from hooked_whisper.errors import AudioError, ConfigError

SAMPLE_RATE = 16_000  # Hz
N_FFT = 400  # samples: 25 ms
HOP_LENGTH = 160  # samples: 10 ms, one mel frame
WINDOW_SECONDS = 30
N_SAMPLES = WINDOW_SECONDS * SAMPLE_RATE
SAMPLES_PER_FRAME = 2 * HOP_LENGTH  # 20 ms: one encoder frame is two mel frames
FRAMES_PER_SECOND = SAMPLE_RATE // SAMPLES_PER_FRAME
MIN_MEL_FRAMES = 2  # one encoder frame; the first window's reflected edge needs 200 samples

_DYNAMIC_RANGE = 8.0  # powers of ten below each clip's loudest bin; what is quieter is raised to that


class LogMel(nn.Module):
    """Waveforms to log-mel spectrograms, equal to `WhisperFeatureExtractor`'s within 1e-5.

    Computed in float32 whatever dtype the model around it is cast to, because half precision loses the quiet bins;
    in float64 for float64 waveforms. The result has that dtype too.

    Args:
        n_mels: mel bins: 80, or 128 for large-v3 and turbo.

    Source: Radford et al. 2022, arXiv:2212.04356, section 2.2; the mel scale is Slaney's.
    """

    window: Tensor
    filters: Tensor

    def __init__(self, n_mels: int = 80) -> None:
        super().__init__()
        if n_mels < 1:
            raise ConfigError(f"n_mels must be positive, got {n_mels}: Whisper has 80 or 128.")
        self.n_mels = n_mels
        window, filters = self._constants()
        # Not in the state dict: checkpoints do not hold them.
        self.register_buffer("window", window, persistent=False)
        self.register_buffer("filters", filters, persistent=False)

    def _constants(self) -> tuple[Float[Tensor, "n_fft"], Float[Tensor, "mel frequency"]]:
        filters = mel_filter_bank(
            num_frequency_bins=1 + N_FFT // 2,
            num_mel_filters=self.n_mels,
            min_frequency=0.0,
            max_frequency=SAMPLE_RATE / 2,
            sampling_rate=SAMPLE_RATE,
            norm="slaney",
            mel_scale="slaney",
        )
        with torch.device("cpu"):
            return (
                torch.hann_window(N_FFT, dtype=torch.float32),
                torch.from_numpy(np.ascontiguousarray(filters.T)).float(),
            )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> LogMel:
        # `.half()`, `.to(device)` and the like all come through here: follow the device, keep float32.
        for name, constant in zip(("window", "filters"), self._constants(), strict=True):
            self._buffers[name] = constant.to(fn(constant.clone()).device)
        return self

    def forward(
        self, waveforms: Sequence[Float[Tensor, "_"]] | Float[Tensor, "batch samples"], n_mel_frames: int = 3000
    ) -> Float[Tensor, "batch mel mel_frame"]:
        """Zero-padded to a window of `n_mel_frames` (10 ms each), then transformed.

        Args:
            waveforms: 1-D clips at 16 kHz of any lengths, or a batch of one length; on any device.
            n_mel_frames: length of the window: 3000 for Whisper's 30 s.

        Raises:
            AudioError: no clips, or a clip that is empty or longer than the window.
            ConfigError: a window of less than 2 mel frames.
        """
        if n_mel_frames < MIN_MEL_FRAMES:
            raise ConfigError(f"n_mel_frames must be at least {MIN_MEL_FRAMES}, got {n_mel_frames}.")
        if len(waveforms) == 0:
            raise AudioError("An empty batch: expected at least one clip.")
        n_samples = n_mel_frames * HOP_LENGTH
        padded = []
        for index, waveform in enumerate(waveforms):
            _check_length(len(waveform), n_samples, f"Clip {index}" if len(waveforms) > 1 else "The audio")
            waveform = waveform.to(self.window.device)
            if waveform.dtype != torch.float64:
                waveform = waveform.float()
            padded.append(F.pad(waveform, (0, n_samples - len(waveform))))
        return self._transform(torch.stack(padded))

    def _transform(self, x: Float[Tensor, "batch samples"]) -> Float[Tensor, "batch mel mel_frame"]:
        with torch.autocast(x.device.type, enabled=False):
            spectrum = torch.stft(x, N_FFT, HOP_LENGTH, window=self.window.to(x.dtype), return_complex=True)
            # The last frame is centred on the window's end; squares of the parts have a gradient at zero, abs has none.
            parts = torch.view_as_real(spectrum[..., :-1])
            power = parts.square().sum(-1).contiguous()
            mel = self.filters.to(x.dtype) @ power
            log = mel.clamp(min=1e-10).log10()
            floor = log.amax(dim=(1, 2), keepdim=True) - _DYNAMIC_RANGE
            return (torch.maximum(log, floor) + 4.0) / 4.0

    def extra_repr(self) -> str:
        return f"n_mels={self.n_mels}"


def _check_length(length: int, n_samples: int, what: str) -> None:
    if length == 0:
        raise AudioError(f"{what} has no samples: expected at least one.")
    if length > n_samples:
        raise AudioError(
            f"{what} is {length / SAMPLE_RATE:.2f} s long, but the window holds {n_samples / SAMPLE_RATE:g} s. "
            "`model.transcribe` takes audio of any length, window by window; for anything else pass a part of it, "
            f"such as audio[:{n_samples}] at 16 kHz."
        )


def frame_mask(
    n_samples: Sequence[int], n_frames: int = N_SAMPLES // SAMPLES_PER_FRAME, device: str | torch.device | None = None
) -> Bool[Tensor, "batch frame"]:
    """Which encoder frames hold audio: frame i does if it begins (at i * 20 ms) before the clip ends.

    Args:
        n_samples: length of each clip at 16 kHz.
        n_frames: encoder positions of the window.
        device: where the mask lies.
    """
    lengths = torch.as_tensor(list(n_samples), dtype=torch.long, device=device)
    starts = torch.arange(n_frames, device=device) * SAMPLES_PER_FRAME
    return starts < lengths[:, None]


def seconds_to_frame(seconds: float) -> int:
    """The encoder frame (20 ms) that holds this time; of a time on the border, the frame that begins there.

    Raises:
        AudioError: a negative or infinite time.
    """
    if not 0 <= seconds < float("inf"):
        raise AudioError(f"A time must be a number of seconds from 0 on, got {seconds}.")
    # 0.58 * 50 is 28.999999999999996: without the rounding, times that lie on a border would fall before it.
    return int(round(seconds * FRAMES_PER_SECOND, 6))


def frame_to_seconds(frame: int) -> float:
    """The time at which an encoder frame (20 ms) begins."""
    return frame / FRAMES_PER_SECOND
