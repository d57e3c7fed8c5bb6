"""A store's files: written whole or not at all, checked when a store is opened."""

from __future__ import annotations

import errno
import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import save_file
from small_store import HOOK, SETTINGS, make_store, values, write_shards

from hooked_whisper.errors import StoreError
from hooked_whisper.saes import ActivationStore
from hooked_whisper.saes.store_files import StoreSettings, clear_unfinished, read_store, sha256, write_file, write_json
from hooked_whisper.saes.store_writer import StoreWriter

SHARDS = [[3, 2], [4]]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make_store(tmp_path / "acts", SHARDS)
    return tmp_path / "acts"


def test_settings_survive_json_and_say_what_differs() -> None:
    again = StoreSettings.from_json(json.loads(json.dumps(SETTINGS.__dict__)))
    assert again == SETTINGS
    assert again.id == SETTINGS.id
    other = replace(SETTINGS, weights="1" * 64, options={"packing": "windows", "new": 1})
    assert other.id != SETTINGS.id
    assert SETTINGS.differences(other) == [
        f"weights: '{'0' * 64}', now '{'1' * 64}'",
        "options.packing: 'none', now 'windows'",
        "options.new: None, now 1",
    ]
    assert SETTINGS.differences(again) == []


def test_a_complete_store_has_only_what_belongs_there(folder: Path) -> None:
    assert sorted(path.name for path in folder.iterdir()) == [
        "00000.parquet", "00000.safetensors", "00001.parquet", "00001.safetensors", "clips.parquet", "store.json",
    ]  # fmt: skip
    manifest = read_store(folder)
    assert (manifest.n_rows, manifest.n_clips, manifest.n_windows, len(manifest.shards)) == (9, 3, 3, 2)
    assert all(sha256(folder / name) == about["sha256"] for name, about in manifest.files.items())


def test_what_a_kill_leaves_goes_when_the_store_is_complete(tmp_path: Path) -> None:
    """Also the file that safetensors writes to before it renames it."""
    for name in ("00000.json", "00001.safetensors.77.partial", ".tmpT29be5", "plan.json", "00000.safetensors", ".keep"):
        (tmp_path / name).touch()
    clear_unfinished(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".keep", "00000.safetensors"]


def test_files_are_whole_or_not_there(tmp_path: Path) -> None:
    path = tmp_path / "file"

    def full(partial: Path) -> None:
        partial.write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def broken(partial: Path) -> None:
        partial.write_bytes(b"half")
        raise KeyboardInterrupt

    with pytest.raises(StoreError, match=r"file cannot be written \(No space left on device\). What was complete"):
        write_file(path, full)
    with pytest.raises(KeyboardInterrupt):
        write_file(path, broken)
    assert list(tmp_path.iterdir()) == []
    about = write_file(path, lambda partial: partial.write_bytes(b"abc") and None)
    assert about == {"bytes": 3, "sha256": sha256(path)}
    with pytest.raises(StoreError):
        write_file(path, full)
    assert path.read_bytes() == b"abc"


def test_a_disk_that_is_really_full(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    shards = [[3], [60_000]]
    writer = StoreWriter(tmp_path, SETTINGS)
    write_shards(writer, shards, [0])
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, hard))
    try:
        with pytest.raises(StoreError, match=r"00001.safetensors cannot be written \(.*\). What was complete before"):
            write_shards(writer, shards, [1])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["00000.json", "00000.parquet", "00000.safetensors"]
    write_shards(writer, shards, [1])
    writer.finish(2)
    assert ActivationStore.open(tmp_path).n_rows == 60_003


def test_no_store(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"No store of activations in .*: there is no store.json"):
        ActivationStore.open(tmp_path / "none")


def test_an_unfinished_store(folder: Path) -> None:
    (folder / "store.json").unlink()
    write_json(folder / "plan.json", {"blocks": [[0, 2], [2, 3], [3, 4]]})
    write_json(folder / "00000.json", {})
    with pytest.raises(StoreError, match=r"is not complete \(1 of 3 shards\): run the same harvest again to finish it"):
        ActivationStore.open(folder)


def change_manifest(folder: Path, **changes: object) -> None:
    path = folder / "store.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_damaged_manifests(folder: Path) -> None:
    whole = (folder / "store.json").read_text()
    change_manifest(folder, format=99)
    with pytest.raises(StoreError, match="has format 99, expected 1: update hooked-whisper"):
        ActivationStore.open(folder)
    (folder / "store.json").write_text("[]")
    with pytest.raises(StoreError, match="has format None, expected 1"):
        ActivationStore.open(folder)
    (folder / "store.json").write_text(whole)
    change_manifest(folder, settings={"model": "x"})
    with pytest.raises(StoreError, match="store.json is damaged"):
        ActivationStore.open(folder)
    (folder / "store.json").write_text(whole[:100])
    with pytest.raises(StoreError, match=r"store.json cannot be read \(.*\): it is damaged"):
        ActivationStore.open(folder)


def test_missing_and_cut_off_files(folder: Path) -> None:
    path = folder / "00001.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[:-8])
    with pytest.raises(StoreError, match=rf"00001.safetensors has {len(content) - 8} bytes, expected {len(content)}"):
        ActivationStore.open(folder)
    path.unlink()
    with pytest.raises(StoreError, match=r"00001.safetensors is missing: copy the whole store"):
        ActivationStore.open(folder)


def test_a_damaged_header(folder: Path) -> None:
    path = folder / "00000.safetensors"
    path.write_bytes(b"\xff" * 8 + path.read_bytes()[8:])
    with pytest.raises(StoreError, match=r"00000.safetensors is damaged \(.*\): copy it again"):
        ActivationStore.open(folder)


def test_shards_of_another_store(folder: Path, tmp_path: Path) -> None:
    make_store(tmp_path / "other", SHARDS, replace(SETTINGS, weights="1" * 64))
    (folder / "00000.safetensors").write_bytes((tmp_path / "other" / "00000.safetensors").read_bytes())
    with pytest.raises(StoreError, match=r"00000.safetensors belongs to another store \(another model, corpus or"):
        ActivationStore.open(folder)


def test_shards_in_each_others_place(tmp_path: Path) -> None:
    make_store(tmp_path, [[3], [3]])
    one, two = tmp_path / "00000.safetensors", tmp_path / "00001.safetensors"
    first, second = one.read_bytes(), two.read_bytes()
    assert len(first) == len(second)
    one.write_bytes(second)
    with pytest.raises(StoreError, match=r"00000.safetensors belongs to another store"):
        ActivationStore.open(tmp_path)


def test_a_shard_of_another_shape(folder: Path) -> None:
    path = folder / "00001.safetensors"
    metadata = {"hooked_whisper_store": json.dumps({"settings": SETTINGS.id, "shard": 1})}
    save_file({HOOK: values(0, 4, 3)}, path, metadata)
    found = json.loads((folder / "store.json").read_text())
    found["shards"][1]["files"]["00001.safetensors"]["bytes"] = path.stat().st_size
    change_manifest(folder, shards=found["shards"])
    with pytest.raises(StoreError, match=r"00001.safetensors is damaged: it holds {'encoder.hook_out': \(4, 3\)}"):
        ActivationStore.open(folder)
