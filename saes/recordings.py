"""Recorded speech as it lies in packages: one sound of it, and the containers of three adventure games.

The games' speech is plain PCM or MP3 inside one large file; what is cut out is that very data, with a WAV header in
front of what has none. Nothing is decoded.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from hooked_whisper.errors import CorpusError

GAME_RATE = 11_025  # Hz: 8-bit mono, in all three games
MP3_BYTES_PER_SECOND = 2_000  # 16 kbit/s

# Beneath a Steel Sky: `sky.dnr` lists the files in `sky.dsk`.
_SKY_ENTRY = 8
_SKY_HEADER = 22
_SKY_BLOCK = 16
_SKY_SPEECH = range(50_000, 59_000)  # numbers of spoken lines; what follows is music and effects
# Flight of the Amazon Queen: a table at the start of `queen.1c`.
_QUEEN_MAGIC, _QUEEN_TABLE = b"QTBL", 15
_QUEEN_ENTRY = struct.Struct(">12sBII")  # name, bundle, offset, size


@dataclass(frozen=True)
class Recording:
    """One sound of a package.

    Attributes:
        key: names it within its source.
        language, speaker, text: what is known of it.
        file: the file that holds it.
        suffix: what its own file is to be called.
        offset, size: the part of `file` that it is; size None: all of it.
        header: bytes to put in front.
        seconds: its length, where the format tells without decoding.
    """

    key: str
    language: str
    speaker: str
    text: str | None
    file: Path
    suffix: str
    offset: int = 0
    size: int | None = None
    header: bytes = b""
    seconds: float | None = None

    def content(self) -> bytes:
        """What goes into its own file."""
        with self.file.open("rb") as file:
            file.seek(self.offset)
            body = file.read() if self.size is None else file.read(self.size)
        if self.size is not None and len(body) != self.size:
            raise CorpusError(
                f"{self.file} ends within the recording {self.key!r}: it is damaged. Fetch the package again."
            )
        return self.header + body


def wav_header(size: int, *, rate: int = GAME_RATE) -> bytes:
    """The 44 bytes that make `size` bytes of unsigned 8-bit mono PCM a WAV file."""
    form = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, rate, rate, 1, 8)
    return struct.pack("<4sI4s", b"RIFF", 36 + size, b"WAVE") + form + struct.pack("<4sI", b"data", size)


def pcm(
    key: str, *, language: str, speaker: str, file: Path, offset: int = 0, size: int, text: str | None = None
) -> Recording:
    """8-bit PCM inside a file, as a recording that becomes a WAV file."""
    return Recording(
        key, language, speaker, text, file, ".wav", offset, size, wav_header(size), seconds=size / GAME_RATE
    )


def steel_sky(folder: Path, *, speaker: str) -> Iterator[Recording]:
    """The spoken lines of Beneath a Steel Sky (CD version); who says one is not recorded in the index.

    Raises:
        CorpusError: an index that is no such index.
    """
    index, disk = folder / "sky.dnr", folder / "sky.dsk"
    table = index.read_bytes()
    count = int.from_bytes(table[:4], "little")
    if len(table) != 4 + count * _SKY_ENTRY:
        raise CorpusError(f"{index} is no index of Beneath a Steel Sky: its length does not fit its {count} entries.")
    for start in range(4, len(table), _SKY_ENTRY):
        number, where, flags = (
            int.from_bytes(table[start + low : start + high], "little") for low, high in ((0, 2), (2, 5), (5, 8))
        )
        # The offset's topmost bit says that the rest counts blocks, not bytes.
        offset = (where & 0x7FFFFF) * _SKY_BLOCK if where >> 23 else where
        size = (flags & 0x3FFFFF) - _SKY_HEADER
        if number in _SKY_SPEECH and size > 0:
            yield pcm(str(number), language="en", speaker=speaker, file=disk, offset=offset + _SKY_HEADER, size=size)


def amazon_queen(file: Path) -> Iterator[Recording]:
    """The spoken lines of Flight of the Amazon Queen (MP3), but those of cut scenes, where the name tells no speaker.

    `JOE*` and `*J<n>` are the hero's; of `*P<n>` the first two digits name the dialogue, and so the partner in it.

    Raises:
        CorpusError: a file that is none of the game's, or one whose sound is not MP3.
    """
    with file.open("rb") as opened:
        head = opened.read(_QUEEN_TABLE)
        if head[:4] != _QUEEN_MAGIC or head[12] != 1:
            raise CorpusError(f"{file} is not Flight of the Amazon Queen with its speech as MP3.")
        table = opened.read(int.from_bytes(head[13:15], "big") * _QUEEN_ENTRY.size)
    for raw, _bundle, offset, size in _QUEEN_ENTRY.iter_unpack(table):
        stem, _, suffix = raw.partition(b"\0")[0].decode("ascii").partition(".")
        if suffix != "SB" or not size:
            continue
        if stem.startswith("JOE") or (stem[:2].isdigit() and stem[-2] == "J"):
            speaker = "Amazon Queen, Joe"
        elif stem[:2].isdigit() and stem[-2] == "P":
            speaker = f"Amazon Queen, dialogue {stem[:2]}"
        else:
            continue
        seconds = size / MP3_BYTES_PER_SECOND
        yield Recording(stem, "en", speaker, None, file, ".mp3", offset, size, seconds=seconds)


# Beginnings of the file names in Drascula, each of a character; plain numbers are the hero's.
_DRASCULA = ("BJ", "VB", "B", "D", "E", "F", "I", "L", "P", "S", "T")


def drascula(folder: Path, *, language: str) -> Iterator[Recording]:
    """The spoken lines of one language of Drascula: a file each, raw PCM."""
    for file in sorted(folder.glob("*.ALS")):
        role = next((name for name in _DRASCULA if file.stem.startswith(name)), None)
        speaker = f"Drascula {language}, {'hero' if role is None else f'role {role}'}"
        yield pcm(file.stem, language=language, speaker=speaker, file=file, size=file.stat().st_size)
