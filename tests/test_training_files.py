"""A run's folder: whole after any kill, and never another's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hooked_whisper.errors import SaeError
from hooked_whisper.saes.training_files import RunFolder, differences, read_json, write_folder, write_json

RECORD: dict[str, Any] = {"settings": {"k": 4, "options": {}}, "run": {"seed": 0}, "source": {"n_rows": 5}}


def test_json_is_whole_or_not_there(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert read_json(path) == {"a": 1}
    path.write_text("{")
    with pytest.raises(SaeError, match=r"a\.json cannot be read .* remove the run's folder"):
        read_json(path)
    path.write_text("[1]")
    with pytest.raises(SaeError, match="holds no JSON object"):
        read_json(path)


def test_a_folder_is_replaced_as_a_whole(tmp_path: Path) -> None:
    target = tmp_path / "sae"
    write_folder(target, lambda path: (path / "one").write_text("1") and None)

    def fails(path: Path) -> None:
        (path / "half").write_text("2")
        raise RuntimeError

    with pytest.raises(RuntimeError):
        write_folder(target, fails)
    assert [path.name for path in target.iterdir()] == ["one"]
    write_folder(target, lambda path: (path / "two").write_text("2") and None)
    assert [path.name for path in target.iterdir()] == ["two"]
    assert [path.name for path in tmp_path.iterdir()] == ["sae"]


def test_only_ones_own_folder_is_taken(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    assert not folder.check(RECORD, resume=True) and not folder.path.exists()
    folder.prepare(RECORD, resume=True)
    assert not folder.check(RECORD, resume=True)  # once more: it goes on
    other = {**RECORD, "settings": {"k": 5, "options": {}}}
    with pytest.raises(SaeError, match=r"other settings \(settings.k: 4, now 5\): train into another folder"):
        folder.check(other, resume=True)
    (folder.checkpoint(3)).mkdir(parents=True)
    assert not folder.check(other, resume=False)
    folder.prepare(other, resume=False)
    assert folder.checkpoint_steps() == [] and folder.record() == {**other, "status": "training"}
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.txt").write_text("keep")
    with pytest.raises(SaeError, match="holds files that are no training run"):
        RunFolder(tmp_path / "notes").check(RECORD, resume=False)
    with pytest.raises(SaeError, match=r"mine.txt' is a file: name a folder"):
        RunFolder(tmp_path / "notes" / "mine.txt").check(RECORD, resume=True)


def test_what_a_kill_leaves_is_removed(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.prepare(RECORD, resume=True)
    for left in ("checkpoints/step-00000005.partial", "sae.partial"):
        (tmp_path / left).mkdir(parents=True)
        (tmp_path / left / "half").write_text("")
    (tmp_path / "log.csv.partial").write_text("")
    folder.prepare(RECORD, resume=True)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["checkpoints", "training.json"]


def test_checkpoints_are_kept_and_dropped(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    for step in (5, 10, 15):
        folder.save_checkpoint(step, lambda path: (path / "x").write_text("") and None, keep=2)
    assert folder.checkpoint_steps() == [10, 15]
    folder.drop_checkpoints_after(10)
    assert folder.checkpoint_steps() == [10]


def test_a_stream_may_learn_its_length() -> None:
    there = json.loads(json.dumps(RECORD))
    assert differences(there, RECORD) == []
    assert differences(there, {**RECORD, "source": {"n_rows": None}}) == []
    assert differences(there, {**RECORD, "source": {"n_rows": 6}}) == ["source.n_rows: 5, now 6"]
