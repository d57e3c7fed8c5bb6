"""Speech inside game files: what is cut out is what was put in."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
import torch

from hooked_whisper.audio import load_audio
from hooked_whisper.errors import CorpusError
from hooked_whisper.saes.recordings import (
    GAME_RATE,
    MP3_BYTES_PER_SECOND,
    Recording,
    amazon_queen,
    drascula,
    pcm,
    steel_sky,
    wav_header,
)


def tone(seconds: float, hz: float = 440.0) -> bytes:
    """Unsigned 8-bit PCM."""
    time = torch.arange(round(seconds * GAME_RATE)) / GAME_RATE
    return bytes((128 + 100 * torch.sin(2 * torch.pi * hz * time)).round().to(torch.uint8).tolist())


def test_a_header_makes_pcm_a_wav_file(tmp_path: Path) -> None:
    file = tmp_path / "all"
    file.write_bytes(b"before" + tone(0.5) + b"after")
    recording = pcm("a", language="en", speaker="x", file=file, offset=6, size=len(tone(0.5)))
    content = recording.content()
    assert content == wav_header(len(tone(0.5))) + tone(0.5)
    waveform = load_audio(content)
    assert recording.seconds == pytest.approx(0.5, abs=1e-4)
    assert waveform.numel() == pytest.approx(8_000, abs=16)
    spectrum = torch.fft.rfft(waveform).abs()
    assert spectrum.argmax().item() * 16_000 / waveform.numel() == pytest.approx(440, abs=3)
    assert waveform.abs().max().item() == pytest.approx(100 / 128, abs=0.05)


def test_a_file_that_ends_too_early(tmp_path: Path) -> None:
    (tmp_path / "all").write_bytes(b"12345")
    recording = Recording("line", "en", "x", None, tmp_path / "all", ".mp3", 2, 4)
    with pytest.raises(CorpusError, match=r"all ends within the recording 'line': it is damaged"):
        recording.content()
    whole = Recording("line", "en", "x", None, tmp_path / "all", ".mp3")
    assert whole.content() == b"12345"


def sky_files(folder: Path) -> dict[int, bytes]:
    """A small Beneath a Steel Sky: its lines by number, one of them on a block boundary far away."""
    lines = {50_001: tone(0.1), 53_417: tone(0.2, 300), 60_110: tone(0.1)}
    entries, disk = b"", b""
    for number, body in lines.items():
        far = number == 53_417
        disk += b"\0" * (-len(disk) % 16)
        where = (len(disk) // 16) | 0x800000 if far else len(disk)
        size = len(body) + 22
        entries += struct.pack("<H", number) + where.to_bytes(3, "little") + (size | 1 << 22).to_bytes(3, "little")
        disk += bytes(22) + body
    entries += struct.pack("<H", 50_002) + bytes(3) + (22).to_bytes(3, "little")  # a line without sound
    (folder / "sky.dnr").write_bytes((len(lines) + 1).to_bytes(4, "little") + entries)
    (folder / "sky.dsk").write_bytes(disk)
    return lines


def test_steel_sky(tmp_path: Path) -> None:
    lines = sky_files(tmp_path)
    found = {recording.key: recording for recording in steel_sky(tmp_path, speaker="cast")}
    assert list(found) == ["50001", "53417"]  # 60110 is a picture, and 50002 is empty
    for key, recording in found.items():
        assert recording.content()[44:] == lines[int(key)]
        assert (recording.language, recording.speaker, recording.suffix) == ("en", "cast", ".wav")
    (tmp_path / "sky.dnr").write_bytes((9).to_bytes(4, "little"))
    with pytest.raises(CorpusError, match="no index of Beneath a Steel Sky: its length does not fit its 9 entries"):
        list(steel_sky(tmp_path, speaker="cast"))


def queen_file(file: Path, bodies: dict[str, bytes], *, compression: int = 1) -> None:
    start = 15 + 21 * len(bodies)
    table, data = b"", b""
    for name, body in bodies.items():
        table += struct.pack(">12sBII", name.encode(), 1, start + len(data), len(body))
        data += body
    head = b"QTBLCEM10\0\0\0"[:12] + bytes([compression]) + struct.pack(">H", len(bodies))
    file.write_bytes(head + table + data)


def test_amazon_queen(tmp_path: Path) -> None:
    file = tmp_path / "queen.1c"
    names = ["JOE00351.SB", "020006J1.SB", "020006P2.SB", "C101C032.SB", "INTRO.CUT", "110001P1.SB", "290009P1.SB"]
    bodies = {name: bytes([index]) * 2_000 for index, name in enumerate(names)} | {"290009P1.SB": b""}
    queen_file(file, bodies)
    found = {recording.key: recording for recording in amazon_queen(file)}
    assert {key: recording.speaker for key, recording in found.items()} == {
        "JOE00351": "Amazon Queen, Joe",
        "020006J1": "Amazon Queen, Joe",
        "020006P2": "Amazon Queen, dialogue 02",
        "110001P1": "Amazon Queen, dialogue 11",
    }
    assert all(recording.content() == bodies[f"{key}.SB"] for key, recording in found.items())
    assert found["JOE00351"].seconds == 2_000 / MP3_BYTES_PER_SECOND == 1.0
    for compression in (0, 2):
        queen_file(file, bodies, compression=compression)
        with pytest.raises(CorpusError, match="is not Flight of the Amazon Queen with its speech as MP3"):
            list(amazon_queen(file))


def test_drascula(tmp_path: Path) -> None:
    for name in ("1", "12", "B3", "BJ4", "VB10", "I2"):
        (tmp_path / f"{name}.ALS").write_bytes(tone(0.1))
    (tmp_path / "1.ALG").write_bytes(b"a picture")
    found = {recording.key: recording.speaker for recording in drascula(tmp_path, language="es")}
    assert found == {
        "1": "Drascula es, hero",
        "12": "Drascula es, hero",
        "B3": "Drascula es, role B",
        "BJ4": "Drascula es, role BJ",
        "VB10": "Drascula es, role VB",
        "I2": "Drascula es, role I",
    }
