"""What is written can be read by whom the umask lets."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from small import small_config, small_inputs, small_model
from test_training import quick

from hooked_whisper.file_modes import as_new_file
from hooked_whisper.saes.store_files import clear_unfinished

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such modes")


@pytest.fixture(params=[0o022, 0o027])
def umask(request: Any) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_file_gets_the_mode_of_a_new_one(umask: int, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"x": torch.zeros(1)}, path)
    assert as_new_file(str(path)) == path
    assert mode(path) == 0o666 & ~umask and list(tmp_path.iterdir()) == [path]


def test_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        as_new_file(tmp_path / "nothing")
    assert not list(tmp_path.iterdir())


def test_what_a_kill_leaves_is_cleared_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x").touch()
    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", lambda *_, **__: None)  # it is killed before
        as_new_file(tmp_path / "x")
    assert len(list(tmp_path.iterdir())) == 2
    clear_unfinished(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_caches_and_saes_can_be_read(umask: int, tmp_path: Path) -> None:
    cfg = small_config()
    _, cache = small_model(cfg).run_with_cache(*small_inputs(cfg), names_filter="encoder.hook_out")
    cache.save(tmp_path / "cache.safetensors")
    quick(tmp_path / "run", total_training_samples=64)
    written = [path for path in tmp_path.rglob("*.safetensors") if "checkpoints" not in path.parts]
    assert len(written) == 2 and {mode(path) for path in written} == {0o666 & ~umask}
