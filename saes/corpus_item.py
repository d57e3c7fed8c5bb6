"""One clip of a corpus, and how a row of a manifest or data set becomes one."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float
from torch import Tensor

from hooked_whisper.audio import SAMPLE_RATE, load_audio
from hooked_whisper.errors import AudioError, CorpusError, did_you_mean

Scalar = str | int | float | bool | None

FIELDS = ("id", "text", "language", "speaker", "offset", "duration")
# A segment may end this much after the file does: manifests round their times.
TOLERANCE = 0.05  # seconds


@runtime_checkable
class Fetchable(Protocol):
    """Audio that stays where it is until it is asked for."""

    def fetch(self) -> Any:
        """Whatever `load_audio` takes."""
        ...


@dataclass(frozen=True, eq=False)
class DatasetAudio:
    """The audio of one row of a map-style data set, read when it is needed."""

    dataset: Any
    index: int
    column: str

    def fetch(self) -> Any:
        return self.dataset[self.index][self.column]


@dataclass(frozen=True, eq=False)
class CorpusItem:
    """One clip of a corpus.

    Attributes:
        id: names the clip; no two of a corpus share one.
        audio: a path, or whatever else `load_audio` takes.
        text: what is said; None where nobody wrote it down.
        language: code or name; None where it is not known.
        speaker: who speaks; None where it is not known.
        columns: whatever else the manifest or data set says of it.
        offset, duration: the part of the audio that is meant, in seconds; a duration of None goes to its end.
    """

    id: str
    audio: Any
    text: str | None = None
    language: str | None = None
    speaker: str | None = None
    columns: Mapping[str, Scalar] = field(default_factory=dict)
    offset: float = 0.0
    duration: float | None = None

    def load(self) -> Float[Tensor, "samples"]:
        """The waveform: mono float32 at 16 kHz, of any length.

        Raises:
            CorpusError: audio that is missing, broken, empty, or shorter than the segment says.
        """
        try:
            audio = self.audio.fetch() if isinstance(self.audio, Fetchable) else self.audio
            whole = self.offset == 0 and self.duration is None
            waveform = load_audio(audio) if whole or not isinstance(audio, Path) else _load_once(*_identity(audio))
        except AudioError as error:
            raise CorpusError(f"Clip {self.id!r}: {error}") from error
        return waveform if whole else self._segment(waveform)

    def _segment(self, waveform: Tensor) -> Float[Tensor, "samples"]:
        length = waveform.shape[0] / SAMPLE_RATE
        end = length if self.duration is None else self.offset + self.duration
        if self.offset >= length or end > length + TOLERANCE:
            upto = "its end" if self.duration is None else f"{end:g} s"
            raise CorpusError(
                f"Clip {self.id!r}: the segment from {self.offset:g} s to {upto} is not in its audio, which is "
                f"{length:.2f} s long. Correct offset and duration in the manifest."
            )
        # A copy: the segment is kept, the long file that it is cut from is not.
        return waveform[round(self.offset * SAMPLE_RATE) : round(end * SAMPLE_RATE)].clone()

    def get(self, column: str) -> Scalar:
        """The value of a field or further column.

        Raises:
            CorpusError: a name that is neither.
        """
        if column in FIELDS:
            return getattr(self, column)
        if column in self.columns:
            return self.columns[column]
        known = [*FIELDS, *self.columns]
        raise CorpusError(
            f"Clip {self.id!r} has no column {column!r}: it has {', '.join(known)}.{did_you_mean(column, known)}"
        )


def _identity(path: Path) -> tuple[str, int, int]:
    """What tells whether a file that was read before is still the same."""
    try:
        found = path.stat()
    except OSError:
        return str(path), 0, 0  # reading it says what is wrong
    return str(path), found.st_mtime_ns, found.st_size


@lru_cache(maxsize=1)
def _load_once(path: str, _modified: int, _size: int) -> Float[Tensor, "samples"]:
    """A whole file; the last one is kept, because a manifest lists the segments of a file one after the other."""
    return load_audio(Path(path))


@dataclass(frozen=True)
class ColumnNames:
    """What a manifest or data set calls the columns that have a meaning here; None: the default, if it is there."""

    audio: str
    text: str | None = None
    language: str | None = None
    speaker: str | None = None
    id: str | None = None

    def check(self, known: Sequence[str], where: str) -> None:
        """Raises CorpusError unless every column that was asked for is among `known`."""
        for name in (self.audio, self.text, self.language, self.speaker, self.id):
            if name is not None and name not in known:
                raise CorpusError(
                    f"{where} has no column {name!r}: it has {', '.join(known) or 'none'}.{did_you_mean(name, known)}"
                )

    def item(self, row: Mapping[str, Any], *, where: str, audio: Any, default_id: str, segments: bool) -> CorpusItem:
        """The clip that a row describes.

        Args:
            row: values by column; what is not text, number or truth value is kept as JSON.
            where: what to call the row in messages, such as "x.jsonl, line 3".
            audio: its audio.
            default_id: its id where no column has one.
            segments: whether `offset` and `duration` are columns that cut the audio.

        Raises:
            CorpusError: an id that is empty, or an offset or duration that is no time.
        """
        meant = {field: getattr(self, field) or field for field in ("text", "language", "speaker", "id")}
        offset = duration = None
        if segments:
            offset, duration = (_seconds(row.get(name), name, where) for name in ("offset", "duration"))
        taken = {self.audio, *meant.values(), *(("offset", "duration") if segments else ())}
        name = row.get(meant["id"])
        if name is None and offset is not None:
            default_id = f"{default_id}#{offset:g}" + ("" if duration is None else f"-{offset + duration:g}")
        return CorpusItem(
            id=default_id if name is None else str(name),
            audio=audio,
            text=_text(row.get(meant["text"])),
            language=_text(row.get(meant["language"])),
            speaker=_text(row.get(meant["speaker"])),
            columns={key: scalar(value) for key, value in row.items() if key not in taken},
            offset=offset or 0.0,
            duration=duration,
        )


def _text(value: Any) -> str | None:
    return None if value is None else str(value)


def _seconds(value: Any, name: str, where: str) -> float | None:
    if value is None:
        return None
    try:
        seconds = float(value)
    except (TypeError, ValueError):
        seconds = math.nan
    if not math.isfinite(seconds) or seconds < 0 or (name == "duration" and seconds == 0):
        raise CorpusError(
            f"{where}: {name} is {value!r}, expected a time in seconds{', above 0' * (name != 'offset')}."
        )
    return seconds


def scalar(value: Any) -> Scalar:
    """A value as text, number or truth value; dates as ISO text, everything else as JSON."""
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, np.generic):
        return scalar(value.item())
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    return json.dumps(value, ensure_ascii=False, sort_keys=True, default=str)
