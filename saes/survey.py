"""One pass over a corpus's audio before any work: how long each clip is, and a checksum of it all."""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import av
import numpy as np
from av.error import FFmpegError
from torch import Tensor

from hooked_whisper.audio import SAMPLE_RATE
from hooked_whisper.errors import CorpusError
from hooked_whisper.saes.corpus_item import CorpusItem, Fetchable, Scalar

if TYPE_CHECKING:
    from hooked_whisper.saes.corpus import Corpus

_BLOCK = 1 << 20  # bytes


@dataclass(frozen=True)
class Survey:
    """What a pass over all audio found.

    Attributes:
        ids: of the clips, in order.
        seconds: how long each clip is by its file's header; 0 where it cannot be read. Good for planning, not exact.
        fingerprint: SHA-256 of the clips, what is known of them, and their audio.
        metadata: the same without the audio.
        columns: further columns of the clips, and what fits all values of each: "bool", "int64", "double", "string".
    """

    ids: tuple[str, ...]
    seconds: tuple[float, ...]
    fingerprint: str
    metadata: str
    columns: dict[str, str]


def survey(corpus: Corpus) -> Survey:
    """Goes through all audio of `corpus`, several files at a time.

    Raises:
        CorpusError: a clip that cannot be read, unless the corpus skips such clips; a corpus without clips.
    """
    everything, metadata = hashlib.sha256(), hashlib.sha256()
    ids, seconds = [], []
    kinds: dict[str, set[str]] = {}
    for item, digest, length in _looked_at(corpus):
        if isinstance(length, CorpusError):
            corpus.skip(item, length)
            length = 0.0
        line = _metadata(item)
        metadata.update(line)
        everything.update(line)
        everything.update(digest.encode())
        for name, value in item.columns.items():
            kinds.setdefault(name, set()).update(_kind(value))
        ids.append(item.id)
        seconds.append(length)
    if not ids:
        raise CorpusError(f"{corpus.name} is empty: expected at least one clip.")
    columns = {name: _common(found) for name, found in kinds.items()}
    return Survey(tuple(ids), tuple(seconds), everything.hexdigest(), metadata.hexdigest(), columns)


def _kind(value: Scalar) -> list[str]:
    if value is None:
        return []
    if isinstance(value, bool):
        return ["bool"]
    if isinstance(value, int):
        return ["int64"] if -(2**63) <= value < 2**63 else ["string"]
    return ["double"] if isinstance(value, float) else ["string"]


def _common(kinds: set[str]) -> str:
    """A type that holds values of all these types."""
    if len(kinds) == 1:
        return next(iter(kinds))
    return "double" if kinds == {"int64", "double"} else "string"


def metadata_fingerprint(items: Iterable[CorpusItem]) -> str:
    """SHA-256 of what is known of clips, without their audio."""
    digest = hashlib.sha256()
    for item in items:
        digest.update(_metadata(item))
    return digest.hexdigest()


def _metadata(item: CorpusItem) -> bytes:
    known = [item.id, item.text, item.language, item.speaker, item.offset, item.duration, dict(item.columns)]
    return json.dumps(known, ensure_ascii=False, sort_keys=True).encode() + b"\n"


def _looked_at(corpus: Corpus) -> Iterator[tuple[CorpusItem, str, float | CorpusError]]:
    if corpus.streams:  # each clip is in memory already, and only the stream itself knows how to hurry
        for item in corpus:
            yield item, *_look_at(item)
        return
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for item, found in zip(corpus, pool.map(_look_at, corpus), strict=True):
            yield item, *found


def _look_at(item: CorpusItem) -> tuple[str, float | CorpusError]:
    """Checksum of a clip's audio, and its length in seconds or why it cannot be read."""
    try:
        audio = item.audio.fetch() if isinstance(item.audio, Fetchable) else item.audio
        digest, length = _checksum(audio), _length(audio)
        if length is None:  # the header does not say: decoding does, or says what is wrong
            length = item.load().shape[0] / SAMPLE_RATE
        elif item.duration is not None or item.offset:
            length = length - item.offset if item.duration is None else item.duration
        return digest, max(length, 0.0)
    except CorpusError as error:
        return "unreadable", error


def _checksum(audio: Any) -> str:
    if isinstance(audio, str | os.PathLike):
        digest = hashlib.sha256()
        try:
            with Path(audio).open("rb") as file:
                while block := file.read(_BLOCK):
                    digest.update(block)
        except (OSError, ValueError):
            return "unreadable"  # loading it says why
        return digest.hexdigest()
    if isinstance(audio, bytes | bytearray):
        return hashlib.sha256(audio).hexdigest()
    if isinstance(audio, Mapping):
        for name in ("bytes", "array", "path"):
            if audio.get(name) is not None:
                array = np.asarray(audio[name]) if name == "array" else audio[name]
                return f"{_checksum(array)}/{audio.get('sampling_rate')}"
        return "unreadable"
    if isinstance(audio, Tensor):
        audio = audio.detach().cpu().numpy()
    if isinstance(audio, np.ndarray):
        return hashlib.sha256(
            f"{audio.dtype}{audio.shape}".encode() + np.ascontiguousarray(audio).tobytes()
        ).hexdigest()
    # A decoder: what comes out of it is all there is to check.
    return _checksum(CorpusItem("", audio).load())


def _length(audio: Any) -> float | None:
    """Seconds by the header; None where there is none, or where it does not say."""
    if isinstance(audio, Mapping):
        if audio.get("array") is not None and isinstance(audio.get("sampling_rate"), int | float):
            return np.asarray(audio["array"]).shape[-1] / audio["sampling_rate"]
        audio = audio.get("bytes") or audio.get("path")
    if isinstance(audio, str | os.PathLike):
        source: Any = f"file:{os.fspath(audio)}"  # or FFmpeg takes a name with a colon for a protocol
    elif isinstance(audio, bytes | bytearray):
        source = io.BytesIO(audio)
    else:
        return None
    try:
        with av.open(source, metadata_errors="replace") as container:
            return None if container.duration is None else container.duration / av.time_base
    except (FFmpegError, OSError, ValueError):
        return None
