"""What a training run writes, so that a kill at any moment leaves it whole.

    runs/base-out/
      sae/             the SAE for use: cfg.json and sae_weights.safetensors, as SAELens reads them
      training.json    settings, where the rows came from, versions, figures
      log.csv          one line for each time that something was logged
      checkpoints/     step-00001000/ and the like: all that going on takes

A file or folder is written under another name, flushed, and renamed. What is torn has another name and is removed.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from hooked_whisper.errors import SaeError
from hooked_whisper.file_modes import as_new_file

SAE, RECORD, LOG, CHECKPOINTS = "sae", "training.json", "log.csv", "checkpoints"
STATE = "state.json"
_PARTIAL = ".partial"
_OLD = ".old"
_STEP = "step-{:08d}"


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Writes a JSON file so that a reader sees either the old or the new one."""
    partial = path.with_name(path.name + _PARTIAL)
    with open(partial, "w", encoding="utf-8") as file:
        json.dump(value, file, indent=2, ensure_ascii=False)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object.

    Raises:
        SaeError: it is damaged.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise SaeError(f"{path} cannot be read ({error}): remove the run's folder, or train into another.") from error
    if not isinstance(found, dict):
        raise SaeError(f"{path} holds no JSON object: remove the run's folder, or train into another.")
    return found


def write_folder(path: Path, fill: Callable[[Path], None]) -> None:
    """Has `fill` write a folder and puts it in `path`'s place once all of it is on the disk."""
    partial, old = path.with_name(path.name + _PARTIAL), path.with_name(path.name + _OLD)
    for left in (partial, old):
        shutil.rmtree(left, ignore_errors=True)
    partial.mkdir(parents=True)
    fill(partial)
    for file in partial.rglob("*"):
        if file.is_file():
            as_new_file(file)
            with open(file, "rb+") as opened:
                os.fsync(opened.fileno())
    if path.exists():  # a folder that is not empty cannot be replaced in one move
        os.replace(path, old)
    os.replace(partial, path)
    shutil.rmtree(old, ignore_errors=True)


class RunFolder:
    """The folder of one SAE's run."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def sae(self) -> Path:
        return self.path / SAE

    @property
    def log(self) -> Path:
        return self.path / LOG

    def record(self) -> dict[str, Any] | None:
        """What training.json says; None where there is none."""
        path = self.path / RECORD
        return read_json(path) if path.exists() else None

    def write_record(self, record: Mapping[str, Any]) -> None:
        """Writes training.json."""
        write_json(self.path / RECORD, record)

    def check(self, record: Mapping[str, Any], *, resume: bool) -> bool:
        """True where the run of `record`'s settings and source is finished in this folder; writes nothing.

        Raises:
            SaeError: the folder holds something else, or, if `resume`, a run with other settings.
        """
        if self.path.exists() and not self.path.is_dir():
            raise SaeError(f"out={str(self.path)!r} is a file: name a folder.")
        there = self.record()
        if there is None and self.path.exists() and any(self.path.iterdir()):
            raise SaeError(f"out={str(self.path)!r} holds files that are no training run: name a new or empty folder.")
        if there is None or not resume:
            return False
        apart = differences(there, record)
        if apart:
            raise SaeError(
                f"out={str(self.path)!r} holds a run with other settings ({'; '.join(apart)}): train into another "
                "folder, or start anew in this one with resume=False, which removes what it holds."
            )
        return self.is_finished()

    def prepare(self, record: Mapping[str, Any], *, resume: bool) -> None:
        """Makes the folder, after `check`, ready for the run: a new one, or one that goes on."""
        if not resume:
            self._clear()
        self.path.mkdir(parents=True, exist_ok=True)
        for left in (*self.path.glob(f"*/*{_PARTIAL}"), *self.path.glob(f"*{_PARTIAL}")):  # of a kill
            shutil.rmtree(left) if left.is_dir() else left.unlink()
        if not (self.path / RECORD).exists():
            self.write_record({**record, "status": "training"})

    def is_finished(self) -> bool:
        """Whether the run has come to its end."""
        record = self.record()
        return record is not None and record.get("status") == "finished" and self.sae.is_dir()

    def _clear(self) -> None:
        for name in (SAE, CHECKPOINTS):
            shutil.rmtree(self.path / name, ignore_errors=True)
        for name in (LOG, RECORD):
            (self.path / name).unlink(missing_ok=True)

    # Checkpoints

    def checkpoint(self, step: int) -> Path:
        """Where the checkpoint after `step` steps is."""
        return self.path / CHECKPOINTS / _STEP.format(step)

    def checkpoint_steps(self) -> list[int]:
        """After how many steps there is a checkpoint, in order."""
        folder = self.path / CHECKPOINTS
        names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
        return [int(name.removeprefix("step-")) for name in names if name.removeprefix("step-").isdecimal()]

    def save_checkpoint(self, step: int, fill: Callable[[Path], None], *, keep: int) -> None:
        """Writes one, and removes all but the last `keep`."""
        write_folder(self.checkpoint(step), fill)
        for old in self.checkpoint_steps()[:-keep]:
            shutil.rmtree(self.checkpoint(old), ignore_errors=True)

    def drop_checkpoints_after(self, step: int) -> None:
        """Removes those of further steps, which would not belong to what comes now."""
        for later in self.checkpoint_steps():
            if later > step:
                shutil.rmtree(self.checkpoint(later), ignore_errors=True)


def differences(there: Mapping[str, Any], record: Mapping[str, Any]) -> list[str]:
    """In what a run on disk is not the one that is asked for, one clause each."""
    # Through JSON, so that tuples and lists, which it does not tell apart, are equal.
    wanted = json.loads(json.dumps({name: record[name] for name in ("settings", "run", "source")}))
    mine, theirs = _flat(wanted), _flat({name: there.get(name) for name in wanted})
    names = dict.fromkeys([*theirs, *mine])
    apart = [name for name in names if theirs.get(name) != mine.get(name)]
    # A stream learns its number of rows on the way.
    apart = [n for n in apart if not (n == "source.n_rows" and None in (theirs.get(n), mine.get(n)))]
    return [f"{name}: {theirs.get(name)!r}, now {mine.get(name)!r}" for name in apart]


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {prefix: value}
    found: dict[str, Any] = {}
    for name, inner in value.items():
        found |= _flat(inner, f"{prefix}.{name}" if prefix else name)
    return found
