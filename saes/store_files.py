"""What a store of activations is on disk, and how its files are written so that a kill at any moment loses nothing.

    acts/
      store.json             what the activations are of, every file with its size and SHA-256; written last
      clips.parquet          one row for each clip
      00000.safetensors      activations, one tensor [row, width] for each hook
      00000.parquet          the same rows: clip, frame, time, language, speaker, ...
      ...
      plan.json, 00000.json  while it is being written: the plan, and one note for each shard that is complete

Every file is written under another name, flushed to the disk and then renamed. A shard counts once its note is there.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open

from hooked_whisper.errors import StoreError
from hooked_whisper.file_modes import as_new_file

FORMAT = 1  # raised when a store can no longer be read by older versions
MANIFEST, PLAN, CLIPS = "store.json", "plan.json", "clips.parquet"
METADATA = "hooked_whisper_store"  # one key alone: safetensors writes several in no fixed order
PARTIAL = ".partial"

Position = Literal["frame", "mel_frame", "token"]

DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}


@dataclass(frozen=True)
class StoreSettings:
    """What decides the bytes of a store.

    Attributes:
        model: name of the model.
        weights: SHA-256 of its weights.
        hooks: width of a row, for each hook.
        dtype: of the activations.
        position: what a row is: an encoder frame, a frame of the spectrogram, or a decoder token.
        rate: rows a second of audio; None for tokens.
        corpus: name, fingerprint and the like.
        columns: further columns of the clips, and the type of each: "string", "int64", "double" or "bool".
        options: how the activations were made.
    """

    model: str
    weights: str
    hooks: dict[str, int]
    dtype: str
    position: Position
    rate: float | None
    corpus: dict[str, Any] = field(default_factory=dict)
    columns: dict[str, str] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def id(self) -> str:
        """SHA-256 of all of it: files of different ids do not belong together."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> StoreSettings:
        return cls(**found)

    def differences(self, other: StoreSettings) -> list[str]:
        """What `other` has otherwise, one clause each."""
        mine, theirs = _flat(asdict(self)), _flat(asdict(other))
        names = dict.fromkeys([*mine, *theirs])
        return [f"{n}: {mine.get(n)!r}, now {theirs.get(n)!r}" for n in names if mine.get(n) != theirs.get(n)]


def _flat(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in nested.items():
        inner = isinstance(value, Mapping) and bool(value)
        found |= _flat(value, f"{prefix}{name}.") if inner else {prefix + name: value}
    return found


# Files


def write_file(path: Path, write: Callable[[Path], None]) -> dict[str, Any]:
    """Lets `write` make a file, whole or not at all, and returns its size and SHA-256.

    Raises:
        StoreError: it cannot be written, as on a full disk; the partial file is removed.
    """
    partial = path.with_name(f"{path.name}.{os.getpid()}{PARTIAL}")
    try:
        write(partial)
        as_new_file(partial)
        about = {"bytes": partial.stat().st_size, "sha256": sha256(partial, flush=True)}
        partial.replace(path)
        _flush_folder(path.parent)
    except (OSError, SafetensorError) as error:
        partial.unlink(missing_ok=True)
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise StoreError(
            f"{path} cannot be written ({reason}). What was complete before stays: make room, or whatever else it "
            "takes, and harvest into the same folder again to go on."
        ) from error
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    return about


def write_json(path: Path, value: Any) -> None:
    """Writes JSON, whole or not at all."""
    text = json.dumps(value, ensure_ascii=False, indent=1)
    write_file(path, lambda partial: _write_text(partial, text))


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise StoreError(f"{path} cannot be read ({error}): it is damaged. Harvest into an empty folder.") from error


def sha256(path: Path, *, flush: bool = False) -> str:
    """Checksum of a file; with `flush`, after its content is on the disk."""
    digest = hashlib.sha256()
    with path.open("rb+" if flush else "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
        if flush:
            os.fsync(file.fileno())
    return digest.hexdigest()


def _flush_folder(folder: Path) -> None:
    """Makes a rename survive a loss of power, where the system lets folders be opened."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def clear_unfinished(folder: Path) -> None:
    """Removes plan, notes and partial files of a store that is complete."""
    notes = [path for path in folder.glob("*.json") if path.stem.isdigit()]
    # safetensors writes under a name of its own first, which a kill leaves behind
    for path in [*notes, *folder.glob(f"*{PARTIAL}"), *folder.glob(".tmp??????"), folder / PLAN]:
        path.unlink(missing_ok=True)


# Reading


@dataclass(frozen=True)
class Shard:
    """One shard of a store that is complete."""

    activations: Path
    table: Path
    n_rows: int


@dataclass(frozen=True)
class StoreManifest:
    """A store's `store.json`, checked against the files."""

    folder: Path
    settings: StoreSettings
    n_rows: int
    n_clips: int
    n_windows: int
    shards: tuple[Shard, ...]
    files: dict[str, dict[str, Any]]
    skipped: list[dict[str, str]]


def read_store(folder: Path) -> StoreManifest:
    """Reads and checks a store's manifest, and that every file is there with the size and header it must have.

    Raises:
        StoreError: no store, one that is not complete, or a file that is missing, cut off or of another store.
    """
    path = folder / MANIFEST
    if not path.is_file():
        if (folder / PLAN).is_file():
            done = sum(1 for note in folder.glob("*.json") if note.stem.isdigit())
            total = len(read_json(folder / PLAN)["blocks"])
            raise StoreError(
                f"The store in {folder} is not complete ({done} of {total} shards): run the same harvest again to "
                "finish it."
            )
        raise StoreError(f"No store of activations in {folder}: there is no {MANIFEST} (looked from {Path.cwd()}).")
    found = read_json(path)
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        said = found.get("format") if isinstance(found, dict) else None
        raise StoreError(f"{path} has format {said!r}, expected {FORMAT}: update hooked-whisper, or harvest again.")
    try:
        settings = StoreSettings.from_json(found["settings"])
        shards = tuple(_shard(folder, entry) for entry in found["shards"])
        files = {CLIPS: found["clips"]} | {n: f for entry in found["shards"] for n, f in entry["files"].items()}
        manifest = StoreManifest(
            folder, settings, found["n_rows"], found["n_clips"], found["n_windows"], shards, files, found["skipped"]
        )
    except (KeyError, TypeError) as error:
        raise StoreError(f"{path} is damaged: {error!r} is missing or of the wrong kind. Harvest again.") from error
    for name, about in files.items():
        _check_size(folder / name, about["bytes"])
    for index, shard in zip((entry["index"] for entry in found["shards"]), shards, strict=True):
        _check_header(shard, index, settings)
    return manifest


def _shard(folder: Path, entry: Mapping[str, Any]) -> Shard:
    stem = f"{entry['index']:05d}"
    return Shard(folder / f"{stem}.safetensors", folder / f"{stem}.parquet", entry["n_rows"])


def _check_size(path: Path, size: int) -> None:
    if not path.is_file():
        raise StoreError(f"{path} is missing: copy the whole store, or harvest again.")
    if path.stat().st_size != size:
        raise StoreError(f"{path} has {path.stat().st_size} bytes, expected {size}: it is damaged. Harvest again.")


def _check_header(shard: Shard, index: int, settings: StoreSettings) -> None:
    """That a shard says it is this one, of this store."""
    path = shard.activations
    try:
        with safe_open(path, "pt") as file:
            about = json.loads((file.metadata() or {}).get(METADATA, "{}"))
            shapes = {hook: tuple(file.get_slice(hook).get_shape()) for hook in file.keys()}  # noqa: SIM118
    except (SafetensorError, ValueError) as error:
        raise StoreError(f"{path} is damaged ({error}): copy it again, or harvest again.") from error
    if about.get("settings") != settings.id or about.get("shard") != index:
        raise StoreError(
            f"{path} belongs to another store (another model, corpus or setting): a store's files stay together."
        )
    expected = {hook: (shard.n_rows, width) for hook, width in settings.hooks.items()}
    if shapes != expected:
        raise StoreError(f"{path} is damaged: it holds {shapes}, expected {expected}.")
