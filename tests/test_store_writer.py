"""Writing stores: in any order, the same bytes; nothing that is not finite."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
import torch
from small_store import HOOK, OTHER, SETTINGS, clip, make_store, values, with_dtype, write_shards

from hooked_whisper.errors import StoreError
from hooked_whisper.saes import ActivationStore
from hooked_whisper.saes.store_files import DTYPES
from hooked_whisper.saes.store_writer import StoreWriter, check_finite

SHARDS = [[3, 2], [4], [1, 1]]


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_order_of_writing_does_not_matter(tmp_path: Path) -> None:
    make_store(tmp_path / "one", SHARDS)
    for index in (2, 0, 1):  # each by a writer of its own
        write_shards(StoreWriter(tmp_path / "two", SETTINGS), SHARDS, [index])
    StoreWriter(tmp_path / "two", SETTINGS).finish(3)
    assert content(tmp_path / "one") == content(tmp_path / "two")


def test_a_shard_counts_once_its_note_is_there(tmp_path: Path) -> None:
    writer = StoreWriter(tmp_path, SETTINGS)
    write_shards(writer, SHARDS, [0, 1])
    note = writer.note(0)
    assert note is not None
    assert (note.n_rows, note.n_windows, sorted(note.files)) == (5, 2, ["00000.parquet", "00000.safetensors"])
    assert writer.note(2) is None
    (tmp_path / "00001.json").unlink()
    (tmp_path / "00000.parquet").unlink()
    assert (writer.note(0), writer.note(1)) == (None, None)
    with pytest.raises(StoreError, match="has 0 of 3 shards: harvest on"):
        writer.finish(3)


def test_a_note_of_another_harvest(tmp_path: Path) -> None:
    write_shards(StoreWriter(tmp_path, SETTINGS), SHARDS, [0])
    with pytest.raises(StoreError, match=r"00000.json belongs to another harvest: harvest into an empty folder"):
        StoreWriter(tmp_path, with_dtype("float16")).note(0)


@pytest.mark.parametrize(("bad", "word"), [(math.nan, "NaN"), (math.inf, "infinity"), (-math.inf, "infinity")])
@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_that_are_not_finite_are_refused(tmp_path: Path, dtype: str, bad: float, word: str) -> None:
    writer = StoreWriter(tmp_path, with_dtype(dtype))
    rows = {HOOK: values(0, 3, 3, dtype), OTHER: values(0, 3, 2, dtype)}
    rows[HOOK][1, 2] = bad
    with pytest.raises(StoreError, match=rf"{HOOK} has 1 rows that are not finite, the first \({word}\) at row 1"):
        writer.write_shard(0, rows, {"frame": np.arange(3)}, [clip(0, 3)])
    assert list(tmp_path.iterdir()) == []


def test_what_float16_cannot_hold_is_said() -> None:
    with pytest.raises(StoreError, match="float16 ends at 65504: store bfloat16 or float32"):
        check_finite(torch.tensor([[7e4]]).half(), HOOK)


def test_rows_that_do_not_fit(tmp_path: Path) -> None:
    writer = StoreWriter(tmp_path, SETTINGS)
    rows = {HOOK: values(0, 3, 3), OTHER: values(0, 3, 2)}
    with pytest.raises(StoreError, match=rf"{OTHER} has rows of shape \(3, 2\) .*, expected \(4, 2\) and"):
        writer.write_shard(0, rows, {"frame": np.arange(4)}, [clip(0, 4)])
    rows[OTHER] = rows[OTHER].half()
    with pytest.raises(StoreError, match=rf"{OTHER} has rows of shape \(3, 2\) and torch.float16, expected"):
        writer.write_shard(0, rows, {"frame": np.arange(3)}, [clip(0, 3)])


def test_a_shard_without_rows_has_no_files(tmp_path: Path) -> None:
    writer = StoreWriter(tmp_path, SETTINGS)
    writer.write_shard(0, {}, {}, [], skipped=[{"id": "x", "error": "Clip 'x': broken"}])
    assert [path.name for path in tmp_path.iterdir()] == ["00000.json"]
    with pytest.raises(StoreError, match="Nothing was harvested into .*: all clips were left out. The first: Clip 'x'"):
        writer.finish(1)
    write_shards(writer, [[], [2]], [1])
    writer.finish(2)
    store = ActivationStore.open(tmp_path)
    assert (store.n_rows, store.skipped) == (2, [{"id": "x", "error": "Clip 'x': broken"}])


def test_the_table_on_disk_stands_alone(tmp_path: Path) -> None:
    make_store(tmp_path, SHARDS)
    table = pyarrow.parquet.read_table(tmp_path / "00000.parquet")
    assert table.column_names == ["clip", "frame", "time", "language", "speaker", "key", "n"]
    assert table["n"].to_pylist() == [0, 0, 0, 1, 1]
    assert table["key"].to_pylist() == list("aaabb")


def test_columns_of_every_type(tmp_path: Path) -> None:
    kinds = {"s": "string", "i": "int64", "d": "double", "b": "bool"}
    settings = replace(SETTINGS, columns=kinds)
    writer = StoreWriter(tmp_path, settings)
    known = [{"s": "a", "i": 1, "d": 0.5, "b": True}, {"s": 3, "i": None, "d": None, "b": None}]
    clips = [replace(clip(at, 1), columns=columns) for at, columns in enumerate(known)]
    rows = {HOOK: values(0, 2, 3), OTHER: values(0, 2, 2)}
    writer.write_shard(0, rows, {"frame": np.arange(2)}, clips)
    writer.finish(1)
    expected = [{"s": "a", "i": 1, "d": 0.5, "b": True}, {"s": "3", "i": None, "d": None, "b": None}]
    store = ActivationStore.open(tmp_path)
    assert store.clips.select(list(kinds)).to_pylist() == expected
    assert store.frames.select(list(kinds)).to_pylist() == expected


def test_notes_are_plain_json(tmp_path: Path) -> None:
    write_shards(StoreWriter(tmp_path, SETTINGS), SHARDS, [0])
    note = json.loads((tmp_path / "00000.json").read_text())
    assert note["clips"][1]["columns"] == {"key": "b", "n": 1}
