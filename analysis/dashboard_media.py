"""Sound and spectrograms of a dashboard, small: MP3 and a grey PNG for each half minute that is shown.

A clip longer than 30 s, what Whisper hears at once, is cut into excerpts of 30 s; only those that a feature needs are
made, once for all features.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING

import av
import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from hooked_whisper.audio import SAMPLE_RATE, SAMPLES_PER_FRAME, WINDOW_SECONDS
from hooked_whisper.errors import AudioError

if TYPE_CHECKING:
    from hooked_whisper.model import HookedWhisper

BIT_RATE = 32_000  # bits a second: a quarter of a megabyte a minute
_LEVELS = 16  # shades of grey; more would double the file and not be seen under the activation
_SHOWN_RANGE = 1.5  # of the 2 units that Whisper's log-mel spans (8 powers of ten): what is quieter stays white


@dataclass(frozen=True, order=True)
class Excerpt:
    """What one sound file holds: up to 30 s of a clip, from `number` times 30 s on.

    Attributes:
        clip: number of the clip among those of the codes.
    """

    clip: int
    number: int = 0

    @property
    def start(self) -> float:
        """Seconds of the clip at which it begins."""
        return float(self.number * WINDOW_SECONDS)

    @property
    def name(self) -> str:
        """The files' name, without ending: numbers alone, whatever the clip is called."""
        return f"{self.clip:05d}" + (f"-{self.number}" if self.number else "")

    def cut(self, waveform: Float[Tensor, "samples"]) -> Float[Tensor, "_"]:
        """Its part of the clip's waveform."""
        first = self.number * WINDOW_SECONDS * SAMPLE_RATE
        return waveform[first : first + WINDOW_SECONDS * SAMPLE_RATE]


def mp3(waveform: Float[Tensor, "samples"]) -> bytes:
    """Mono sound at 16 kHz as an MP3 file, which browsers play without delay: time 0 is the waveform's.

    Raises:
        AudioError: no samples.
    """
    if waveform.numel() == 0:
        raise AudioError("A clip without samples cannot be played: expected at least one.")
    samples = (waveform.detach().float().cpu().clamp(-1.0, 1.0) * 32767.0).round().to(torch.int16).numpy()
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp3") as file:
        stream = file.add_stream("mp3", rate=SAMPLE_RATE, layout="mono")
        stream.bit_rate = BIT_RATE
        frame = av.AudioFrame.from_ndarray(samples[None], format="s16", layout="mono")
        frame.sample_rate = SAMPLE_RATE
        for part in (frame, None):
            file.mux(stream.encode(part))
    return buffer.getvalue()


def spectrogram(model: HookedWhisper, waveform: Float[Tensor, "samples"]) -> UInt8[np.ndarray, "mel frame"]:
    """Whisper's log-mel spectrogram as grey values, a column for each frame of 20 ms, high pitch above; 0 is loud."""
    n_frames = -(-len(waveform) // SAMPLES_PER_FRAME)
    with torch.no_grad():
        mel = model.log_mel([waveform.to(model.device)], 2 * n_frames)[0].float().cpu()
    columns = mel.reshape(len(mel), n_frames, 2).mean(2)
    share = ((columns - columns.max()) / _SHOWN_RANGE + 1).clamp(0, 1)
    level = (share * (_LEVELS - 1)).round() * (255 // (_LEVELS - 1))
    return (255 - level).to(torch.uint8).flip(0).numpy()


def png(picture: UInt8[np.ndarray, "height width"]) -> bytes:
    """Grey values as a PNG file."""
    codec = av.CodecContext.create("png", "w")
    codec.height, codec.width = picture.shape  # type: ignore[attr-defined]
    codec.pix_fmt, codec.time_base = "gray", Fraction(1, 1)  # type: ignore[attr-defined]
    codec.options = {"pred": "none", "compression_level": "9"}
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="gray")
    return b"".join(bytes(packet) for part in (frame, None) for packet in codec.encode(part))  # type: ignore[attr-defined]
