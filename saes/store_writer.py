"""Writes a store of activations shard by shard; see `hooked_whisper.saes.store_files` for what lies where."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from safetensors.torch import save_file
from torch import Tensor

from hooked_whisper.errors import StoreError
from hooked_whisper.saes.arrow import import_pyarrow
from hooked_whisper.saes.corpus_item import Scalar
from hooked_whisper.saes.store_files import (
    CLIPS,
    DTYPES,
    FORMAT,
    MANIFEST,
    METADATA,
    StoreSettings,
    clear_unfinished,
    read_json,
    write_file,
    write_json,
)


@dataclass(frozen=True)
class ClipRows:
    """One clip's part of a shard: what is known of it, and how many rows it has."""

    clip: str
    n_rows: int
    text: str | None = None
    language: str | None = None
    speaker: str | None = None
    columns: Mapping[str, Scalar] = field(default_factory=dict)


@dataclass(frozen=True)
class ShardNote:
    """What is kept of a complete shard: its files with size and SHA-256, its clips, and those that were left out."""

    index: int
    settings_id: str
    n_rows: int
    n_windows: int
    files: dict[str, dict[str, Any]]
    clips: list[dict[str, Any]]
    skipped: list[dict[str, str]]


class StoreWriter:
    """Writes the shards of one store, in any order and from several processes, and completes it.

    Raises:
        StoreError: activations that are not finite, or a file that cannot be written; what is complete stays.
    """

    def __init__(self, folder: Path, settings: StoreSettings) -> None:
        self.folder = folder
        self.settings = settings
        self._id = settings.id

    def note(self, index: int) -> ShardNote | None:
        """The note of a shard; None unless the shard is complete and its files are there."""
        path = self.folder / f"{index:05d}.json"
        if not path.is_file():
            return None
        note = ShardNote(**read_json(path))
        if note.settings_id != self._id:
            raise StoreError(f"{path} belongs to another harvest: harvest into an empty folder.")
        there = all(
            (self.folder / name).is_file() and (self.folder / name).stat().st_size == about["bytes"]
            for name, about in note.files.items()
        )
        return note if there else None

    def write_shard(
        self,
        index: int,
        rows: Mapping[str, Float[Tensor, "row width"]],
        per_row: Mapping[str, np.ndarray],
        clips: Sequence[ClipRows],
        *,
        n_windows: int = 0,
        skipped: Sequence[Mapping[str, str]] = (),
    ) -> None:
        """Writes one shard: activations, the table of its rows, and then its note.

        Args:
            index: which shard.
            rows: the activations of each hook, clip after clip.
            per_row: further columns of the table, such as `frame` and `time`.
            clips: the clips in order; their `n_rows` add up to the rows.
            n_windows: how many windows the model was given for it.
            skipped: clips that were left out, and why.
        """
        n_rows = sum(clip.n_rows for clip in clips)
        files: dict[str, dict[str, Any]] = {}
        if n_rows:
            tensors = {hook: rows[hook].contiguous() for hook in self.settings.hooks}
            self._check(tensors, n_rows)
            metadata = {METADATA: json.dumps({"format": FORMAT, "settings": self._id, "shard": index})}
            name = f"{index:05d}.safetensors"
            files[name] = write_file(self.folder / name, lambda path: save_file(tensors, path, metadata))
            table = self._table(per_row, clips)
            name = f"{index:05d}.parquet"
            files[name] = write_file(self.folder / name, lambda path: _write_parquet(table, path))
        known = [asdict(clip) | {"columns": dict(clip.columns)} for clip in clips]
        note = ShardNote(index, self._id, n_rows, n_windows, files, known, [dict(entry) for entry in skipped])
        write_json(self.folder / f"{index:05d}.json", asdict(note))

    def _check(self, tensors: Mapping[str, Tensor], n_rows: int) -> None:
        for hook, tensor in tensors.items():
            shape, dtype = (n_rows, self.settings.hooks[hook]), DTYPES[self.settings.dtype]
            if tuple(tensor.shape) != shape or tensor.dtype != dtype:
                raise StoreError(
                    f"{hook} has rows of shape {tuple(tensor.shape)} and {tensor.dtype}, expected {shape} and {dtype}."
                )
            check_finite(tensor, hook)

    def _table(self, per_row: Mapping[str, np.ndarray], clips: Sequence[ClipRows]) -> Any:
        pyarrow, _ = import_pyarrow()
        of_clip = pyarrow.array(np.repeat(np.arange(len(clips), dtype=np.int32), [clip.n_rows for clip in clips]))

        def spread(values: list[Scalar], kind: str) -> Any:
            column = _arrow_array(values, kind).take(of_clip)
            return column.dictionary_encode() if kind == "string" else column

        columns = {"clip": spread([clip.clip for clip in clips], "string")}
        columns |= {name: pyarrow.array(values) for name, values in per_row.items()}
        columns["language"] = spread([clip.language for clip in clips], "string")
        columns["speaker"] = spread([clip.speaker for clip in clips], "string")
        for name, kind in self.settings.columns.items():
            if name not in columns:
                columns[name] = spread([clip.columns.get(name) for clip in clips], kind)
        return pyarrow.table(columns)

    def finish(self, n_shards: int) -> None:
        """Writes the table of clips and the manifest, and clears away what was needed only until now.

        Raises:
            StoreError: a shard that is not complete, or no rows at all.
        """
        notes = [self.note(index) for index in range(n_shards)]
        complete = [note for note in notes if note is not None]
        if len(complete) != n_shards:
            raise StoreError(f"{self.folder} has {len(complete)} of {n_shards} shards: harvest on.")
        if not any(note.n_rows for note in complete):
            raise StoreError(f"Nothing was harvested into {self.folder}: all clips were left out. {_reasons(complete)}")
        clips = write_file(self.folder / CLIPS, lambda path: _write_parquet(self._clips_table(complete), path))
        manifest = {
            "format": FORMAT,
            "settings": asdict(self.settings),
            "n_rows": sum(note.n_rows for note in complete),
            "n_clips": sum(len(note.clips) for note in complete),
            "n_windows": sum(note.n_windows for note in complete),
            "shards": [
                {"index": note.index, "n_rows": note.n_rows, "files": note.files} for note in complete if note.n_rows
            ],
            "clips": clips,
            "skipped": [entry for note in complete for entry in note.skipped],
        }
        write_json(self.folder / MANIFEST, manifest)
        clear_unfinished(self.folder)

    def _clips_table(self, notes: Sequence[ShardNote]) -> Any:
        pyarrow, _ = import_pyarrow()
        rows = [(note.index, clip) for note in notes for clip in note.clips]
        counts = np.array([clip["n_rows"] for _, clip in rows], dtype=np.int64)
        string = pyarrow.string()
        columns = {
            "clip": pyarrow.array([clip["clip"] for _, clip in rows], string),
            "shard": pyarrow.array([index for index, _ in rows], pyarrow.int32()),
            "first_row": pyarrow.array(np.cumsum(counts) - counts),
            "n_rows": pyarrow.array(counts),
            **{
                name: pyarrow.array([clip[name] for _, clip in rows], string)
                for name in ("text", "language", "speaker")
            },
        }
        for name, kind in self.settings.columns.items():
            if name not in columns:
                columns[name] = _arrow_array([clip["columns"].get(name) for _, clip in rows], kind)
        return pyarrow.table(columns)


def check_finite(tensor: Float[Tensor, "row width"], hook: str) -> None:
    """Raises StoreError where a row holds NaN or infinity: training on such a store would be in vain."""
    finite = torch.isfinite(tensor).all(dim=1)
    if not bool(finite.all()):
        row = int((~finite).int().argmax())
        bad = "NaN" if bool(tensor[row].isnan().any()) else "infinity"
        hint = " float16 ends at 65504: store bfloat16 or float32." if tensor.dtype == torch.float16 else ""
        raise StoreError(
            f"{hook} has {int((~finite).sum())} rows that are not finite, the first ({bad}) at row {row} of this "
            f"shard, which is not stored.{hint}"
        )


def _reasons(notes: Sequence[ShardNote]) -> str:
    skipped = [entry for note in notes for entry in note.skipped]
    return f"The first: {skipped[0]['error']}" if skipped else ""


def _arrow_array(values: Sequence[Scalar], kind: str) -> Any:
    pyarrow, _ = import_pyarrow()
    types = {"string": pyarrow.string, "int64": pyarrow.int64, "double": pyarrow.float64, "bool": pyarrow.bool_}
    if kind == "string":
        values = [None if value is None else str(value) for value in values]
    return pyarrow.array(values, types[kind]())


def _write_parquet(table: Any, path: Path) -> None:
    _, parquet = import_pyarrow()
    parquet.write_table(table, path, compression="zstd")
