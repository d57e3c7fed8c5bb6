"""Where the clips of a corpus come from: a folder, a manifest, a data set. Audio is named here, not read."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol, cast, runtime_checkable

from hooked_whisper.errors import CorpusError
from hooked_whisper.saes.corpus_item import ColumnNames, CorpusItem, DatasetAudio
from hooked_whisper.saes.manifests import read_manifest

AUDIO_SUFFIXES = (
    *(".aac", ".ac3", ".aif", ".aiff", ".amr", ".au", ".caf", ".flac", ".g722", ".m4a", ".m4b", ".mka", ".mkv"),
    *(".mov", ".mp2", ".mp3", ".mp4", ".mpeg", ".mpg", ".oga", ".ogg", ".opus", ".wav", ".weba", ".webm", ".wma"),
)


def folder_items(folder: Path, language: str | None, speaker: str | None) -> list[CorpusItem]:
    """The audio files in a folder; see `Corpus.from_folder`."""
    if not folder.is_dir():
        raise CorpusError(f"No folder at {folder} (looked from {Path.cwd()}).")
    items = []
    for file in sorted(folder.rglob("*")):
        relative = file.relative_to(folder)
        hidden = any(part.startswith(".") for part in relative.parts)
        if hidden or file.suffix.lower() not in AUDIO_SUFFIXES or not file.is_file():
            continue
        beside = file.with_suffix(".txt")
        text = beside.read_text(encoding="utf-8").strip() if beside.is_file() else None
        items.append(CorpusItem(relative.as_posix(), file, text, language, speaker))
    if not items:
        raise CorpusError(f"{folder} holds no audio: expected files that end in {', '.join(AUDIO_SUFFIXES)}.")
    return items


def manifest_items(manifest: Path, names: ColumnNames) -> list[CorpusItem]:
    """The files that a table lists; see `Corpus.from_manifest`."""
    items: list[CorpusItem] = []
    for where, row in read_manifest(manifest):
        if not items:
            names.check(list(row), where)
        written = row.get(names.audio)
        if not isinstance(written, str) or not written:
            raise CorpusError(f"{where} has no path: expected text in column {names.audio!r}, got {written!r}.")
        file = manifest.parent / written
        if ".." in Path(written).parts and not file.is_file():
            raise CorpusError(f"{where}: {written!r} leaves the manifest's folder, and there is no file at {file}.")
        items.append(names.item(row, where=where, audio=file, default_id=written, segments=True))
    if not items:
        raise CorpusError(f"{manifest} is empty: expected one row for each clip.")
    return items


@runtime_checkable
class HubDataset(Protocol):
    """What a `datasets.Dataset` or `IterableDataset` can do that is used here."""

    features: Any

    def cast_column(self, column: str, feature: Any) -> Any: ...

    def remove_columns(self, column_names: Any) -> Any: ...


@runtime_checkable
class Decoding(Protocol):
    """The `datasets.Audio` feature: a dataclass that says whether items come decoded."""

    decode: bool


def dataset_items(
    dataset: Any, names: ColumnNames, name: str
) -> Iterable[CorpusItem] | Callable[[], Iterator[CorpusItem]]:
    """The rows of a data set, or a function that begins a pass over one that streams; see `Corpus.from_dataset`."""
    if isinstance(dataset, Mapping):
        raise CorpusError(f"This data set has the splits {', '.join(map(str, dataset))}: pass one of them.")
    if isinstance(dataset, Iterator):
        raise CorpusError(
            "An iterator can be read only once: pass the data set itself, a list, or an object whose `__iter__` "
            "begins anew."
        )
    if isinstance(dataset, HubDataset) and dataset.features is not None:
        names.check(list(dataset.features), name)
        dataset = _undecoded(dataset, names.audio)
    if isinstance(dataset, Sized):
        return _indexed(dataset, names, name)
    if not isinstance(dataset, Iterable):
        raise CorpusError(f"A {type(dataset).__name__} is no data set: expected one of `datasets`, or an iterable.")
    return lambda: _streamed(dataset, names, name)


def _undecoded(dataset: HubDataset, column: str) -> Any:
    """The data set with its audio as bytes or paths, which need no further package to be read."""
    feature = dataset.features[column]
    if not isinstance(feature, Decoding):
        return dataset
    return dataset.cast_column(column, replace(cast("Any", feature), decode=False))


def _indexed(dataset: Sized, names: ColumnNames, name: str) -> Iterator[CorpusItem]:
    """Items of a data set whose rows can be read by index; the audio stays where it is."""
    by_index = cast("Any", dataset)
    if not isinstance(dataset, HubDataset):
        for index in range(len(dataset)):
            yield _item(by_index[index], index, names, name)
        return
    others = [column for column in dataset.features if column != names.audio]
    rows = iter(dataset.remove_columns([names.audio])) if others else iter([{}] * len(by_index))
    for index, row in enumerate(rows):
        audio = DatasetAudio(dataset, index, names.audio)
        yield names.item(row, where=f"{name}[{index}]", audio=audio, default_id=f"{index:08d}", segments=False)


def _streamed(dataset: Iterable[Any], names: ColumnNames, name: str) -> Iterator[CorpusItem]:
    for index, row in enumerate(dataset):
        yield _item(row, index, names, name)


def _item(row: Any, index: int, names: ColumnNames, name: str) -> CorpusItem:
    where = f"{name}[{index}]"
    if not isinstance(row, Mapping):
        raise CorpusError(f"{where} is a {type(row).__name__}: expected a dictionary of columns.")
    names.check(list(row), where)
    return names.item(row, where=where, audio=row[names.audio], default_id=f"{index:08d}", segments=False)
