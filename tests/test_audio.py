"""Audio input of every kind: it gives the same sound, or an error that says what to do."""

from __future__ import annotations

import io
import math
import re
import struct
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import av
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from hooked_whisper.audio import MAX_RATE, MIN_RATE, load_audio, load_batch
from hooked_whisper.errors import AudioError, HookedWhisperError
from hooked_whisper.speech import clips

RATE = 44_100


def tone(hertz: float = 440, rate: int = RATE, seconds: float = 1.0) -> np.ndarray:
    """Half of full scale."""
    return (0.5 * np.sin(2 * np.pi * hertz * np.arange(int(rate * seconds)) / rate)).astype(np.float32)


def encode(channels: np.ndarray, container: str, codec: str, rate: int = RATE, video: bool = False) -> bytes:
    """A file's bytes; `channels` is [channels, samples]."""
    layout = {1: "mono", 2: "stereo", 6: "5.1"}[len(channels)]
    file = io.BytesIO()
    with av.open(file, "w", format=container) as output:
        pictures: Any = output.add_stream("mpeg4", rate=10) if video else None
        if video:
            pictures.width = pictures.height = 32
            pictures.pix_fmt = "yuv420p"
        sound: Any = output.add_stream(codec, rate=rate)
        sound.layout = layout
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(channels), format="fltp", layout=layout)
        frame.sample_rate = rate
        size = sound.codec_context.frame_size or None
        resampler = av.AudioResampler(sound.format, layout, rate, frame_size=size)
        for part in [*resampler.resample(frame), *resampler.resample(None), None]:
            output.mux(sound.encode(part))
        if video:
            for _ in range(10):
                output.mux(pictures.encode(av.VideoFrame(32, 32, "yuv420p")))
            output.mux(pictures.encode(None))
    return file.getvalue()


def wav(samples: np.ndarray, rate: int = RATE) -> bytes:
    return encode(np.atleast_2d(samples), "wav", "pcm_f32le", rate)


def assert_same_sound(waveform: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-3) -> None:
    """But for the ends, where resamplers differ."""
    assert abs(len(waveform) - len(expected)) <= 16
    inner = slice(400, min(len(waveform), len(expected)) - 400)
    assert (waveform[inner] - expected[inner]).abs().max() < tolerance


EXPECTED = torch.from_numpy(tone(rate=16_000))


# --- files --------------------------------------------------------------------------------------------------


def test_the_shipped_clips_open_by_path_string_and_bytes() -> None:
    clip = clips("en", key="vm-sorry")[0]
    waveform = load_audio(clip.path)
    assert waveform.dtype == torch.float32
    assert waveform.shape == (round(clip.seconds * 16_000),)
    assert torch.equal(load_audio(str(clip.path)), waveform)
    # Raw G.722 has no header: bytes alone do not tell what they are, an item with its path does.
    assert torch.equal(load_audio({"bytes": clip.path.read_bytes(), "path": "prompts/vm-sorry.G722"}), waveform)


@pytest.mark.parametrize(
    ("container", "codec", "rate", "tolerance"),
    [
        ("wav", "pcm_s16le", 44_100, 1e-3),
        ("wav", "pcm_f32le", 44_100, 1e-3),
        ("wav", "pcm_u8", 44_100, 2e-2),
        ("aiff", "pcm_s16be", 44_100, 1e-3),
        ("flac", "flac", 44_100, 1e-3),
        ("au", "pcm_mulaw", 44_100, 3e-2),
    ],
)
def test_lossless_formats_give_the_sound(container: str, codec: str, rate: int, tolerance: float) -> None:
    data = encode(tone(rate=rate)[None], container, codec, rate)
    assert_same_sound(load_audio(data), EXPECTED, tolerance)


@pytest.mark.parametrize(
    ("container", "codec", "rate"),
    [("mp3", "mp3", 44_100), ("ogg", "libopus", 48_000), ("adts", "aac", 44_100), ("webm", "libopus", 48_000)],
)
def test_lossy_formats_give_the_tone(container: str, codec: str, rate: int) -> None:
    waveform = load_audio(encode(tone(rate=rate, seconds=2)[None], container, codec, rate))
    assert abs(len(waveform) - 32_000) < 4_800
    spectrum = torch.fft.rfft(waveform[8_000:24_000]).abs()
    assert int(spectrum.argmax()) == 440


@pytest.mark.parametrize("container", ["mp4", "matroska", "mov"])
def test_video_containers_give_their_sound(container: str, tmp_path: Path) -> None:
    path = tmp_path / "film.bin"
    path.write_bytes(encode(tone()[None], container, "aac", video=True))
    with av.open(str(path)) as film:
        assert film.streams.video
    waveform = load_audio(path)
    assert int(torch.fft.rfft(waveform[:16_000]).abs().argmax()) == 440


def test_channels_are_averaged_in_files_as_in_arrays() -> None:
    left, right = tone(440), tone(1_000)
    expected = torch.from_numpy((tone(440, 16_000) + tone(1_000, 16_000)) / 2)
    assert_same_sound(load_audio(wav(np.stack([left, right]))), expected)
    assert_same_sound(load_audio(np.stack([left, right]), RATE), expected)
    six = np.stack([tone(440)] + 5 * [np.zeros(RATE, np.float32)])
    assert_same_sound(load_audio(encode(six, "wav", "pcm_f32le")), EXPECTED / 6)


def test_files_with_more_channels_than_ffmpeg_has_names_for() -> None:
    """More than eight once crashed the interpreter."""
    samples = np.random.default_rng(0).integers(-(2**15), 2**15, (1_000, 21), dtype=np.int16)
    parts = b"WAVEfmt " + struct.pack("<IHHIIHH", 16, 1, 21, 16_000, 672_000, 42, 16)
    parts += b"data" + struct.pack("<I", samples.nbytes) + samples.tobytes()
    waveform = load_audio(b"RIFF" + struct.pack("<I", len(parts)) + parts)
    assert np.allclose(waveform.numpy(), samples.mean(1) / 2**15, atol=1e-6)


def test_files_at_16_khz_are_not_touched() -> None:
    samples = np.random.default_rng(0).uniform(-1, 1, 5_001).astype(np.float32)
    assert torch.equal(load_audio(wav(samples, 16_000)), torch.from_numpy(samples))


def test_names_that_ffmpeg_would_take_for_protocols_or_patterns(tmp_path: Path) -> None:
    for name in ("a:b.wav", "%03d.wav", "pipe:0", "-i", "ü 音.wav"):
        (tmp_path / name).write_bytes(wav(tone()))
        assert_same_sound(load_audio(tmp_path / name), EXPECTED)


def test_a_stream_that_changes_its_rate_on_the_way() -> None:
    """Recordings of live streams do this."""
    first, second = (encode(tone(rate=rate)[None], "adts", "aac", rate) for rate in (44_100, 22_050))
    waveform = load_audio(first + second)
    assert abs(len(waveform) - 32_000) < 3_200
    for half in (waveform[2_000:14_000], waveform[18_000:30_000]):
        assert abs(float(torch.fft.rfft(half).abs().argmax()) * 16_000 / 12_000 - 440) < 2


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: p / "none.wav", r"No audio file at .*none\.wav \(looked from "),
        (lambda p: "https://example.com/a.wav", r"addresses are not opened, download it first"),
        (lambda p: p, r"is a folder: expected an audio or video file"),
        (lambda p: write(p / "empty.wav", b""), r"empty\.wav is empty"),
        (lambda p: write(p / "text.wav", b"I am no sound. " * 99), r"text\.wav cannot be decoded .*corrupt"),
        (lambda p: write(p / "header.wav", header_alone()), r"header\.wav has no samples"),
        (
            lambda p: write(p / "cut.flac", encode(tone()[None], "flac", "flac")[:9_000]),
            r"cut\.flac .*[0-9.]+ s came out",
        ),
        (lambda p: write(p / "slow.wav", wav(tone(), rate=10)), r"says that it has 10 samples a second: expected 1000"),
        (lambda p: write(p / "film.mp4", silent_film()), r"film\.mp4 has no audio stream \(it has video\)"),
        (lambda p: "a\0b.wav", r"cannot be read: embedded null byte|No audio file"),
    ],
)
def test_files_that_cannot_be_read(make: Callable[[Path], Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(AudioError, match=message):
        load_audio(make(tmp_path))


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def header_alone(extra: bytes = b"") -> bytes:
    """A WAV file of 16-bit samples at 16 kHz that holds none, with room for another chunk."""
    parts = b"WAVEfmt " + struct.pack("<IHHIIHH", 16, 1, 1, 16_000, 32_000, 2, 16) + extra + b"data" + bytes(4)
    return b"RIFF" + struct.pack("<I", len(parts)) + parts


def test_tags_in_old_encodings_are_no_reason_to_stop() -> None:
    title = "Désolé".encode("latin-1") + b"\0\0"
    tags = b"LIST" + struct.pack("<I", 12 + len(title)) + b"INFOINAM" + struct.pack("<I", len(title)) + title
    data = header_alone(tags)[:-4] + struct.pack("<I", 6) + np.array([1, 2, 3], "<i2").tobytes()
    assert load_audio(data).tolist() == [1 / 32_768, 2 / 32_768, 3 / 32_768]


def silent_film() -> bytes:
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as output:
        stream: Any = output.add_stream("mpeg4", rate=10)
        stream.width = stream.height = 32
        stream.pix_fmt = "yuv420p"
        output.mux(stream.encode(av.VideoFrame(32, 32, "yuv420p")))
        output.mux(stream.encode(None))
    return file.getvalue()


def test_a_file_without_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> Any:  # permissions do not bind root, under which some CI runs
        raise PermissionError(13, "Permission denied")

    path = write(tmp_path / "a.wav", wav(tone()))
    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(AudioError, match=r"a\.wav cannot be read: Permission denied"):
        load_audio(path)


@pytest.mark.parametrize(
    ("container", "codec"), [("wav", "pcm_s16le"), ("flac", "flac"), ("mp3", "mp3"), ("mp4", "aac")]
)
@settings(deadline=None, max_examples=40)
@given(data=st.data())
def test_damaged_files_give_sound_or_an_audio_error(container: str, codec: str, data: st.DataObject) -> None:
    whole = bytearray(encode(tone(seconds=0.3)[None], container, codec))
    for place in data.draw(st.lists(st.integers(0, len(whole) - 1), max_size=30)):
        whole[place] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(1, len(whole)))
    try:
        waveform = load_audio(bytes(whole[:cut]))
    except AudioError:
        return
    assert torch.isfinite(waveform).all()


# --- arrays and tensors -------------------------------------------------------------------------------------


def test_an_array_at_any_rate_is_the_file_at_that_rate() -> None:
    for rate in (8_000, 16_000, 22_050, 48_000):
        assert_same_sound(load_audio(tone(rate=rate), rate), load_audio(wav(tone(rate=rate), rate)))


@pytest.mark.parametrize(
    ("dtype", "scale", "silence"),
    [("int8", 128, 0), ("uint8", 128, 128), ("int16", 2**15, 0), (">i2", 2**15, 0), ("int32", 2**31, 0)],
)
def test_integers_are_scaled_to_one(dtype: str, scale: float, silence: int) -> None:
    samples = np.array([-0.5, 0, 0.25, -1])
    integers = (samples * scale + silence).astype(dtype)
    assert np.array_equal(load_audio(integers).numpy(), samples.astype(np.float32))


@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int16, torch.uint8]
)
def test_tensors_of_every_dtype(dtype: torch.dtype) -> None:
    waveform = load_audio(torch.zeros(3, 7).to(dtype))
    assert (waveform.dtype, waveform.shape) == (torch.float32, (7,))


def test_views_and_read_only_arrays() -> None:
    samples = tone()[::-2]
    samples.flags.writeable = False
    assert np.array_equal(load_audio(samples).numpy(), samples)


def test_arrays_are_copied_not_shared() -> None:
    samples = tone(rate=16_000)
    waveform = load_audio(samples)
    samples[:] = 7
    assert waveform.abs().max() <= 0.5


@pytest.mark.parametrize("rate", [16_000, 22_050])
def test_gradients_reach_a_tensor(rate: int) -> None:
    samples = torch.randn(2, 2_000, requires_grad=True)
    load_audio(samples, rate).sum().backward()
    assert samples.grad is not None
    assert torch.allclose(samples.grad[:, 500:1_500], torch.tensor(0.5 * 16_000 / rate), atol=1e-3)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA here")
def test_a_tensor_stays_on_its_device() -> None:
    samples = torch.randn(2, 44_100)
    waveform = load_audio(samples.cuda(), 44_100)
    assert waveform.device.type == "cuda"
    assert torch.allclose(waveform.cpu(), load_audio(samples, 44_100), atol=1e-5)


def test_silence_and_a_single_sample_are_valid() -> None:
    assert torch.equal(load_audio(np.zeros(100, np.float32)), torch.zeros(100))
    assert load_audio(np.array([0.5])).tolist() == [0.5]
    assert len(load_audio(np.array([0.5]), 44_100)) == 1


finite = st.floats(-1, 1, width=32)


@settings(deadline=None, max_examples=40)
@given(
    samples=st.one_of(
        hnp.arrays(np.float32, hnp.array_shapes(min_dims=1, max_dims=1, max_side=400), elements=finite),
        hnp.arrays(
            np.float64,
            st.tuples(st.integers(1, 8), st.integers(1, 200)),
            elements=st.floats(-1, 1, allow_subnormal=False),
        ),
        hnp.arrays(np.int16, st.tuples(st.integers(1, 8), st.integers(1, 200))),
        hnp.arrays(np.int32, st.integers(1, 400)),
        hnp.arrays(np.uint8, st.integers(1, 400)),
    ),
    rate=st.integers(MIN_RATE, 50_000),
)
def test_every_array_at_every_rate_becomes_one_channel_at_16_khz(samples: np.ndarray, rate: int) -> None:
    waveform = load_audio(samples, rate)
    assert waveform.shape == (math.ceil(samples.shape[-1] * 16_000 / rate),)
    assert waveform.dtype == torch.float32
    assert waveform.abs().max() <= 2  # the sinc rings over on clipped noise, but does not run away
    assert torch.equal(waveform, load_audio(torch.from_numpy(samples), rate))


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        (np.zeros(0), r"shape \(0,\) has no samples"),
        (np.zeros((2, 0)), r"shape \(2, 0\) has no samples"),
        (np.float32(1), r"Audio of type float32 cannot be read"),
        (np.zeros(()), r"shape \(\): expected \(samples,\) or \(channels, samples\)"),
        (np.zeros((2, 2, 9)), r"shape \(2, 2, 9\): expected .* For a batch, pass a list of 1-D clips"),
        (np.zeros((9, 16_000)), r"shape \(9, 16000\): expected .* with 1 to 8 channels\. For a batch, pass a list"),
        (np.zeros((16_000, 2)), r"It looks like \(samples, channels\): pass its transpose"),
        (np.zeros((0, 9)), r"shape \(0, 9\): expected \(channels, samples\)"),
        (np.array([0, np.nan, 0, np.nan]), r"2 samples that are NaN or infinite, the first at 1 \(0\.000 s\)"),
        (
            torch.tensor([0.0] * 8_000 + [math.inf]),
            r"1 samples that are NaN or infinite, the first at 8000 \(0\.500 s\)",
        ),
        (np.array([0.0, 12_000.0]), r"reaches 12000, where full scale is 1.*Divide by 32768"),
        (np.zeros(4, np.int64), r"dtype torch\.int64 have no full scale"),
        (torch.zeros(4, dtype=torch.bool), r"dtype torch\.bool have no full scale"),
        (np.zeros(4, np.complex64), r"dtype complex64 is no audio"),
        (np.array(["a", "b"]), r"dtype <U1 is no audio"),
        (np.array([None, 1]), r"dtype object is no audio"),
        (np.zeros(4, np.longdouble), r"dtype (float128|longdouble|float96) is no audio"),
    ],
)
def test_arrays_that_are_no_audio(samples: Any, message: str) -> None:
    with pytest.raises(AudioError, match=message):
        load_audio(samples)


@pytest.mark.parametrize("rate", [0, -16_000, 16, MIN_RATE - 1, MAX_RATE + 1, 10**12, 22_050.5, math.nan, math.inf])
def test_rates_that_cannot_be(rate: float) -> None:
    with pytest.raises(AudioError, match=rf"sampling_rate={re.escape(repr(rate))} cannot be: .* from 1000 to 384000"):
        load_audio(np.zeros(10), rate)


@pytest.mark.parametrize("rate", ["16k", None, True])
def test_rates_that_are_no_numbers(rate: Any) -> None:
    with pytest.raises(AudioError, match="sampling_rate must be a number of Hz, got"):
        load_audio({"array": np.zeros(10), "sampling_rate": rate})


def test_whole_rates_of_other_number_types() -> None:
    for rate in (44_100.0, np.int64(44_100), np.float32(44_100)):
        assert len(load_audio({"array": tone(), "sampling_rate": rate})) == 16_000


# --- datasets items -----------------------------------------------------------------------------------------


def test_items_of_datasets() -> None:
    from datasets import Audio, Dataset

    data = wav(tone())
    rows = Dataset.from_dict({"audio": [{"bytes": data, "path": "a.wav"}]}).cast_column("audio", Audio(decode=False))
    assert_same_sound(load_audio(rows[0]["audio"]), EXPECTED)


def test_items_as_dicts(tmp_path: Path) -> None:
    data = wav(tone())
    path = write(tmp_path / "a.wav", data)
    for item in (
        {"array": tone(), "sampling_rate": RATE, "path": "gone.wav"},
        {"array": tone().tolist(), "sampling_rate": RATE},
        {"bytes": data, "path": None},
        {"bytes": None, "path": str(path)},
    ):
        assert_same_sound(load_audio(item), EXPECTED)


def test_torchcodec_decoders() -> None:
    class Decoder:
        def get_all_samples(self) -> SimpleNamespace:
            return SimpleNamespace(data=torch.from_numpy(np.stack([tone(), tone()])), sample_rate=RATE)

    assert_same_sound(load_audio(Decoder()), EXPECTED)


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ({}, r"needs 'array' and 'sampling_rate', 'bytes', or 'path'; this one has \[\]"),
        ({"bytes": None, "path": None}, r"this one has \['bytes', 'path'\]"),
        ({"audio": {}, "text": "a"}, r"Pass its 'audio' entry"),
        ({"array": np.zeros(4)}, r"needs its 'sampling_rate' in Hz"),
        ({"bytes": b"", "path": "a.wav"}, r"a\.wav is empty"),
        ({"bytes": "text"}, "The 'bytes' of an audio item are a str: expected bytes"),
        ({"path": 5}, "The 'path' of an audio item is 5: expected a path"),
        ({"array": [[1.0], [1.0, 2.0]], "sampling_rate": 16_000}, "a list of other things than samples"),
        ({"array": torch.zeros(9).to_sparse(), "sampling_rate": 16_000}, "torch.sparse_coo .*: expected a dense one"),
    ],
)
def test_items_that_are_none(item: dict[str, Any], message: str) -> None:
    with pytest.raises(AudioError, match=message):
        load_audio(item)


# --- lists --------------------------------------------------------------------------------------------------


def test_a_batch_may_mix_kinds_and_lengths() -> None:
    batch = load_batch([wav(tone()), tone(rate=16_000), torch.zeros(5), {"array": tone(), "sampling_rate": RATE}])
    assert [len(clip) for clip in batch] == [16_000, 16_000, 5, 16_000]
    (single,) = load_batch(tone(), RATE)
    assert len(single) == 16_000


def test_lists_that_are_no_batch() -> None:
    with pytest.raises(AudioError, match="An empty list: expected at least one clip"):
        load_batch([])
    with pytest.raises(AudioError, match=r"Clip 1 of 2: Audio of shape \(0,\) has no samples"):
        load_batch([np.zeros(4), np.zeros(0)])
    with pytest.raises(AudioError, match=r"A list of numbers \(0\.5 at 0\).*np\.array"):
        load_batch(cast("Any", [0.5, 0.25]))
    with pytest.raises(AudioError, match=r"Clip 0 of 1: Expected one clip, got a list of 2"):
        load_batch(cast("Any", [[np.zeros(4), np.zeros(4)]]))


@pytest.mark.parametrize("thing", [None, 3, 0.5, object(), {1, 2}, len])
def test_things_that_are_no_audio(thing: Any) -> None:
    with pytest.raises(
        AudioError, match=rf"Audio of type {type(thing).__name__} cannot be read: expected a path, bytes"
    ):
        load_audio(thing)


def test_audio_errors_are_value_errors_of_ours() -> None:
    assert issubclass(AudioError, HookedWhisperError)
    assert issubclass(AudioError, ValueError)
