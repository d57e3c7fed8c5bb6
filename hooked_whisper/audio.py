"""Audio in, whatever it comes as: files, bytes, arrays, datasets items. Out: mono float32 at 16 kHz.

Files go through PyAV (FFmpeg), so every audio and video format works, and are resampled there. Arrays and tensors are
resampled in torch, on their device and differentiably.
"""

from __future__ import annotations

import io
import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast, runtime_checkable

import av
import numpy as np
import torch
from av.error import FFmpegError
from jaxtyping import Float
from torch import Tensor

from hooked_whisper.errors import AudioError
from hooked_whisper.mel import (
    FRAMES_PER_SECOND,
    HOP_LENGTH,
    N_FFT,
    N_SAMPLES,
    SAMPLE_RATE,
    SAMPLES_PER_FRAME,
    WINDOW_SECONDS,
    LogMel,
    frame_mask,
    frame_to_seconds,
    seconds_to_frame,
)
from hooked_whisper.resampling import resample

__all__ = [
    "FRAMES_PER_SECOND",
    "HOP_LENGTH",
    "N_FFT",
    "N_SAMPLES",
    "SAMPLES_PER_FRAME",
    "SAMPLE_RATE",
    "WINDOW_SECONDS",
    "AudioInput",
    "LogMel",
    "frame_mask",
    "frame_to_seconds",
    "load_audio",
    "load_batch",
    "resample",
    "seconds_to_frame",
]

MAX_CHANNELS = 8  # 7.1 surround
MIN_RATE, MAX_RATE = 1_000, 384_000  # Hz; outside of these it is a mistake, such as kHz for Hz
MAX_AMPLITUDE = 1_000.0  # full scale is 1; beyond this, integers were turned into floats and not divided

# Formats without a header: the extension is all that tells them.
_HEADERLESS = {".g722": "g722"}

# Full scale of integer samples, and what silence is.
_INTEGERS: dict[torch.dtype, tuple[float, float]] = {
    torch.int16: (2.0**15, 0.0),
    torch.int32: (2.0**31, 0.0),
    torch.int8: (2.0**7, 0.0),
    torch.uint8: (2.0**7, 128.0),
}


@runtime_checkable
class AudioDecoder(Protocol):
    """What `datasets` gives for an audio column: torchcodec's decoder."""

    def get_all_samples(self) -> Any: ...


# Run-time checking of inputs is ours, because its message says more than a type checker's.
if TYPE_CHECKING:
    OneClip = str | os.PathLike[str] | bytes | bytearray | np.ndarray | Tensor | Mapping[str, Any] | AudioDecoder
    AudioInput = OneClip | Sequence[OneClip]
else:
    OneClip = AudioInput = Any


def load_audio(audio: OneClip, sampling_rate: int | float = SAMPLE_RATE) -> Float[Tensor, "samples"]:
    """One clip as mono float32 at 16 kHz.

    Args:
        audio: a path; the bytes of a file; an array or tensor of samples, or of channels x samples (at most 8); a
            `datasets` audio item ({"array", "sampling_rate"}, {"bytes", "path"} or a torchcodec decoder).
        sampling_rate: of arrays and tensors, in Hz. Everything else knows its own.

    Several channels are averaged. Integer samples are scaled to [-1, 1]. A tensor stays on its device and keeps its
    gradient. Silence is valid, and so is a single sample: the model sees it padded.

    Raises:
        AudioError: a file that is missing, empty, corrupt or without sound; no samples; NaN or infinity; an impossible
            rate or shape; integers as floats; anything else that is none of the above.
    """
    if isinstance(audio, str | os.PathLike):
        return _load_file(Path(audio))
    if isinstance(audio, bytes | bytearray | memoryview):
        return _decode(io.BytesIO(audio), "", f"Audio of {len(audio)} bytes")
    if isinstance(audio, np.ndarray | Tensor):
        return _from_samples(audio, sampling_rate)
    if isinstance(audio, Mapping):
        return _from_mapping(audio)
    if isinstance(audio, AudioDecoder):
        samples = audio.get_all_samples()
        return _from_samples(samples.data, samples.sample_rate)
    if isinstance(audio, list | tuple):
        raise AudioError(
            f"Expected one clip, got a {type(audio).__name__} of {len(audio)}. A list stands for a batch of clips; "
            "samples in a list belong in np.array(samples)."
        )
    raise AudioError(
        f"Audio of type {type(audio).__name__} cannot be read: expected a path, bytes, a numpy array or tensor, "
        "a datasets audio item, or a list of these."
    )


def load_batch(audio: AudioInput, sampling_rate: int | float = SAMPLE_RATE) -> list[Float[Tensor, "_"]]:
    """Clips as mono float32 at 16 kHz; one clip becomes a list of one.

    Raises:
        AudioError: an empty list, or a clip that `load_audio` refuses; in a list, the message says which.
    """
    if not isinstance(audio, list | tuple):
        return [load_audio(cast("OneClip", audio), sampling_rate)]
    if not audio:
        raise AudioError("An empty list: expected at least one clip.")
    clips = []
    for index, clip in enumerate(audio):
        if isinstance(clip, int | float):
            raise AudioError(
                f"A list of numbers ({clip!r} at {index}): a list stands for a batch of clips. "
                "For the samples of one clip, pass np.array(samples)."
            )
        try:
            clips.append(load_audio(clip, sampling_rate))
        except AudioError as error:
            raise AudioError(f"Clip {index} of {len(audio)}: {error}") from error
    return clips


def _load_file(path: Path) -> Float[Tensor, "samples"]:
    try:
        if path.is_dir():
            raise AudioError(f"{path} is a folder: expected an audio or video file.")
        if not path.exists():
            remote = re.match(r"\w+:/", str(path)) is not None
            hint = "addresses are not opened, download it first" if remote else f"looked from {Path.cwd()}"
            raise AudioError(f"No audio file at {path} ({hint}).")
        # Opened here, not by FFmpeg, which takes a name with a colon for a protocol.
        with path.open("rb") as file:
            return _decode(file, path.suffix, str(path))
    except (OSError, ValueError) as error:
        if isinstance(error, AudioError):
            raise
        raise AudioError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}.") from error


def _from_mapping(audio: Mapping[str, Any]) -> Float[Tensor, "samples"]:
    if audio.get("array") is not None:
        if "sampling_rate" not in audio:
            raise AudioError("An audio item with 'array' needs its 'sampling_rate' in Hz; it has none.")
        array = audio["array"]
        if isinstance(array, list | tuple) and not all(isinstance(sample, int | float) for sample in array):
            raise AudioError("The 'array' of an audio item is a list of other things than samples: expected numbers.")
        samples = array if isinstance(array, np.ndarray | Tensor) else np.asarray(array)
        return _from_samples(samples, audio["sampling_rate"])
    path = audio.get("path")
    if path is not None and not isinstance(path, str | os.PathLike):
        raise AudioError(f"The 'path' of an audio item is {path!r}: expected a path.")
    if audio.get("bytes") is not None:
        if not isinstance(audio["bytes"], bytes | bytearray | memoryview):
            raise AudioError(f"The 'bytes' of an audio item are a {type(audio['bytes']).__name__}: expected bytes.")
        return _decode(io.BytesIO(audio["bytes"]), Path(path or "").suffix, str(path or "The audio item"))
    if path is not None:
        return _load_file(Path(path))
    inner = " Pass its 'audio' entry." if "audio" in audio else ""
    raise AudioError(
        f"An audio item needs 'array' and 'sampling_rate', 'bytes', or 'path'; this one has {sorted(audio)}.{inner}"
    )


def _decode(file: io.BufferedIOBase, suffix: str, what: str) -> Float[Tensor, "samples"]:
    """Decodes a whole file, averages its channels and resamples it."""
    if not file.read(1):
        raise AudioError(f"{what} is empty: expected an audio or video file.")
    file.seek(0)
    parts: list[np.ndarray] = []
    try:
        # Old tags are not always UTF-8; nothing here reads them.
        with av.open(file, format=_HEADERLESS.get(suffix.lower()), metadata_errors="replace") as container:
            stream = container.streams.best("audio")
            if stream is None or stream.codec_context is None:
                kinds = sorted({other.type for other in container.streams})
                if "audio" in kinds:
                    raise AudioError(
                        f"{what} has an audio stream of a codec that FFmpeg cannot decode: convert it to WAV."
                    )
                raise AudioError(
                    f"{what} has no audio stream (it has {', '.join(kinds) or 'none at all'}): expected sound."
                )
            resampler, setup = None, None
            for frame in container.decode(stream):
                found = (frame.format.name, frame.layout.name, frame.sample_rate)
                if resampler is None or found != setup:  # the first frame, or a stream that changes on the way
                    if not MIN_RATE <= frame.sample_rate <= MAX_RATE:
                        raise AudioError(
                            f"{what} says that it has {frame.sample_rate} samples a second: expected {MIN_RATE} to "
                            f"{MAX_RATE}. It is corrupt, or its header is wrong."
                        )
                    parts += _mono(resampler.resample(None)) if resampler else []
                    resampler, setup = av.AudioResampler("flt", frame.layout, SAMPLE_RATE), found
                frame.pts = None  # gaps in a file's clock are no reason to stop
                parts += _mono(resampler.resample(frame))
            parts += _mono(resampler.resample(None)) if resampler else []
    except FFmpegError as error:
        seconds = sum(map(len, parts)) / SAMPLE_RATE
        raise AudioError(
            f"{what} cannot be decoded ({error.strerror or error}; {seconds:.2f} s came out before that): it is "
            "corrupt, cut off, or of no format that FFmpeg knows. Play it to see, or convert it to WAV."
        ) from error
    waveform = np.concatenate(parts) if parts else np.zeros(0, np.float32)
    return _checked(torch.from_numpy(waveform), what)


def _mono(frames: Sequence[av.AudioFrame]) -> list[np.ndarray]:
    # Interleaved samples: PyAV reads past the end of planar frames of more than 8 channels.
    return [frame.to_ndarray().reshape(-1, frame.layout.nb_channels).mean(1, dtype=np.float32) for frame in frames]


def _from_samples(samples: Any, sampling_rate: Any) -> Float[Tensor, "samples"]:
    """An array or tensor, (samples,) or (channels, samples), of any numeric dtype, at any rate."""
    rate = _checked_rate(sampling_rate)
    if isinstance(samples, np.ndarray):
        samples = _to_tensor(samples)
    if samples.is_nested or samples.layout != torch.strided or samples.is_meta:
        raise AudioError(f"A {samples.layout} tensor on {samples.device} holds no samples: expected a dense one.")
    if samples.dtype in _INTEGERS:
        full_scale, silence = _INTEGERS[samples.dtype]
        samples = (samples.float() - silence) / full_scale
    elif not samples.dtype.is_floating_point:
        raise AudioError(
            f"Samples of dtype {samples.dtype} have no full scale to divide by: expected floats in [-1, 1], int16, "
            "int32, int8 or uint8. Cast to the type that the samples were recorded in."
        )
    shape = tuple(samples.shape)
    if samples.ndim not in (1, 2):
        raise AudioError(
            f"Audio of shape {shape}: expected (samples,) or (channels, samples). "
            "For a batch, pass a list of 1-D clips."
        )
    if samples.ndim == 2 and not 1 <= shape[0] <= MAX_CHANNELS:
        hint = " It looks like (samples, channels): pass its transpose." if 1 <= shape[1] <= MAX_CHANNELS else ""
        raise AudioError(
            f"Audio of shape {shape}: expected (channels, samples) with 1 to {MAX_CHANNELS} channels.{hint} "
            "For a batch, pass a list of 1-D clips."
        )
    samples = samples.to(torch.float32)
    if samples.ndim == 2:
        samples = samples.mean(0)
    what = f"Audio of shape {shape}"
    return resample(_checked(samples, what, rate), rate, SAMPLE_RATE)


def _to_tensor(samples: np.ndarray) -> Tensor:
    samples = samples.astype(samples.dtype.newbyteorder("="), copy=False)  # WAV readers may give big-endian
    if samples.dtype in (np.dtype(np.longdouble), np.dtype(object)) or samples.dtype.kind not in "fiu":
        raise AudioError(f"An array of dtype {samples.dtype} is no audio: expected floats in [-1, 1] or integers.")
    # torch takes neither negative strides nor read-only memory quietly.
    return torch.from_numpy(np.array(samples, order="C"))


def _checked_rate(rate: Any) -> int:
    if isinstance(rate, bool) or not isinstance(rate, int | float | np.number):
        raise AudioError(f"sampling_rate must be a number of Hz, got {rate!r}.")
    if not math.isfinite(rate) or not MIN_RATE <= rate <= MAX_RATE or rate != int(rate):
        raise AudioError(
            f"sampling_rate={rate!r} cannot be: expected a whole number of Hz from {MIN_RATE} to {MAX_RATE}, "
            "such as 16000."
        )
    return int(rate)


def _checked(waveform: Float[Tensor, "samples"], what: str, rate: int = SAMPLE_RATE) -> Float[Tensor, "samples"]:
    if waveform.numel() == 0:
        raise AudioError(f"{what} has no samples: expected at least one.")
    values = waveform.detach()
    finite = torch.isfinite(values)
    if not finite.all():
        first = int((~finite).int().argmax())
        raise AudioError(
            f"{what} holds {int((~finite).sum())} samples that are NaN or infinite, the first at {first} "
            f"({first / rate:.3f} s): expected finite numbers. Find where they come from, or cut them out."
        )
    peak = float(values.abs().max())
    if peak > MAX_AMPLITUDE:
        raise AudioError(
            f"{what} reaches {peak:.0f}, where full scale is 1: it looks like integer samples turned into floats. "
            "Divide by 32768 (16-bit), or pass the integers."
        )
    return waveform
