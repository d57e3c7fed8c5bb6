"""Small stores of known rows, made without a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from hooked_whisper.saes import ActivationStore
from hooked_whisper.saes.store_files import DTYPES, StoreSettings
from hooked_whisper.saes.store_writer import ClipRows, StoreWriter

HOOK, OTHER = "encoder.hook_out", "encoder.blocks.0.hook_resid_post"
SETTINGS = StoreSettings(
    model="small",
    weights="0" * 64,
    hooks={OTHER: 2, HOOK: 3},
    dtype="float32",
    position="frame",
    rate=50.0,
    corpus={"name": "made up", "fingerprint": "f" * 64, "licences": ["CC0"]},
    columns={"key": "string", "n": "int64"},
    options={"packing": "none"},
)
LANGUAGES = ("en", "fr", None)


def clip(index: int, n_rows: int) -> ClipRows:
    """Clip number `index`: three languages in turn, two keys in turn."""
    return ClipRows(
        clip=f"clip-{index}",
        n_rows=n_rows,
        text=f"text {index}",
        language=LANGUAGES[index % 3],
        speaker="someone",
        columns={"key": "ab"[index % 2], "n": index},
    )


def values(first: int, count: int, width: int, dtype: str = "float32") -> Tensor:
    """Rows that tell their number: row r is r, -r, r, ... (exact in every dtype while r is small)."""
    signs = torch.tensor([1.0, -1.0]).repeat(width)[:width]
    return (torch.arange(first, first + count, dtype=torch.float32)[:, None] * signs).to(DTYPES[dtype])


def make_store(folder: Path, shards: Sequence[Sequence[int]], settings: StoreSettings = SETTINGS) -> ActivationStore:
    """A store whose shards hold clips of these numbers of rows."""
    writer = StoreWriter(folder, settings)
    write_shards(writer, shards, range(len(shards)))
    writer.finish(len(shards))
    return ActivationStore.open(folder)


def write_shards(writer: StoreWriter, shards: Sequence[Sequence[int]], which: Sequence[int]) -> None:
    """Some of the shards of such a store."""
    writer.folder.mkdir(parents=True, exist_ok=True)
    settings = writer.settings
    for index in which:
        before = [count for shard in shards[:index] for count in shard]
        clips = [clip(len(before) + at, count) for at, count in enumerate(shards[index])]
        first, count = sum(before), sum(shards[index])
        rows = {hook: values(first, count, width, settings.dtype) for hook, width in settings.hooks.items()}
        frame = np.concatenate([np.zeros(0, np.int32), *(np.arange(c.n_rows, dtype=np.int32) for c in clips)])
        per_row = {"frame": frame, "time": (frame / 50).astype(np.float32)}
        writer.write_shard(index, rows, per_row, clips, n_windows=len(clips))


def with_dtype(dtype: str) -> StoreSettings:
    """The settings of a store of another precision."""
    return replace(SETTINGS, dtype=dtype)
