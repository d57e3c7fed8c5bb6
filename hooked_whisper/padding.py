"""Which frames of the window that the encoder is given hold audio, found out from outside of the passes.

`log_mel` is told how long each clip is, the encoder is not: it gets a whole spectrogram, or, in long transcription, a
window cut out of it. So the spectrogram made last is remembered, and a window is recognised in it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from hooked_whisper.mel import HOP_LENGTH, SAMPLES_PER_FRAME, frame_mask


class Padding:
    """Watches a model's spectrograms and its encoder's input.

    Attributes:
        frame_mask: of the window that the encoder was given last, [batch frame], True where there is audio. All True
            for a spectrogram that `log_mel` did not just make: nothing tells then where it is padded.
    """

    def __init__(self, log_mel: nn.Module, hook_mel: nn.Module, encoder: nn.Module) -> None:
        self.frame_mask: Bool[Tensor, "batch frame"] | None = None
        self._made: Float[Tensor, "clip mel mel_frame"] | None = None
        self._n_samples: list[int] = []
        self._is_found = False
        self._handles: list[RemovableHandle] = [
            log_mel.register_forward_hook(self._remember, with_kwargs=True),
            # Where hooks sit on the encoder's input, they may edit it beyond recognition: it is looked at before them.
            hook_mel.register_forward_pre_hook(self._before_hooks),
            encoder.register_forward_pre_hook(self._before_encoder),
        ]

    def remove(self) -> None:
        """Stops watching."""
        for handle in self._handles:
            handle.remove()
        self._handles, self._made, self.frame_mask = [], None, None

    def _remember(self, _module: nn.Module, inputs: tuple[Any, ...], named: Mapping[str, Any], mel: Tensor) -> None:
        self._made = mel.detach()
        self._n_samples = [len(clip) for clip in (inputs[0] if inputs else named["waveforms"])]

    def _before_hooks(self, _point: nn.Module, inputs: tuple[Tensor]) -> None:
        self.frame_mask, self._is_found = self.find(inputs[0]), True

    def _before_encoder(self, _module: nn.Module, inputs: tuple[Tensor]) -> None:
        if not self._is_found:
            self.frame_mask = self.find(inputs[0])
        self._is_found = False

    def find(self, mel: Float[Tensor, "batch mel mel_frame"]) -> Bool[Tensor, "batch frame"]:
        """The frames of each window that hold audio."""
        n_frames = -(-mel.shape[2] // 2)
        made = None if self._made is None else self._made.to(mel.device, mel.dtype)
        if made is not None and made.shape == mel.shape and torch.equal(made, mel.detach()):
            return frame_mask(self._n_samples, n_frames, mel.device)
        rows = [None if made is None else self._samples_in(window, made) for window in mel.detach()]
        whole = n_frames * SAMPLES_PER_FRAME
        return frame_mask([whole if row is None else row for row in rows], n_frames, mel.device)

    def _samples_in(
        self, window: Float[Tensor, "mel mel_frame"], made: Float[Tensor, "clip mel_made frame_made"]
    ) -> int | None:
        """Samples of audio in a window; None if it was not cut out of the spectrogram."""
        n_window, n_made = window.shape[1], made.shape[2]
        if window.shape[0] != made.shape[1]:
            return None
        for clip, start in (made == window[None, :, :1]).all(1).nonzero().tolist():
            n_shared = min(n_window, n_made - start)
            same = torch.equal(made[clip, :, start : start + n_shared], window[:, :n_shared])
            if same and not bool(window[:, n_shared:].any()):
                return max(0, self._n_samples[clip] - start * HOP_LENGTH)
        return None
