"""Checkpoints of finetuning: whole or not at all, and only for the run that wrote them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from hooked_whisper.errors import SaeError
from hooked_whisper.saes.finetuning_files import FinetuningCheckpoint, names_digest

SETTINGS = {"lr": 0.1, "clips": "abc"}


def trained(steps: int) -> tuple[nn.Linear, torch.optim.Adam]:
    torch.manual_seed(0)
    layer = nn.Linear(3, 2)
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        layer(torch.ones(3)).pow(2).sum().backward()
        optimizer.step()
    return layer, optimizer


def test_weights_and_moments_come_back(tmp_path: Path) -> None:
    file = FinetuningCheckpoint(tmp_path / "deep" / "checkpoint", SETTINGS)
    file.check()
    layer, optimizer = trained(3)
    assert file.load(layer, optimizer) is None
    file.save(3, layer, optimizer, {"kl": [0.5, 0.25], "n_clips": 4})
    other, its_own = trained(0)
    assert file.load(other, its_own) == (3, {"kl": [0.5, 0.25], "n_clips": 4})
    assert torch.equal(other.weight, layer.weight)
    for one, its in ((layer, optimizer), (other, its_own)):  # the next step shows that the moments are the same, too
        its.zero_grad()
        one(torch.ones(3)).pow(2).sum().backward()
        its.step()
    assert torch.equal(other.weight, layer.weight)
    assert [path.name for path in file.path.parent.iterdir()] == ["checkpoint"]


def test_what_is_damaged_or_another_s_is_told(tmp_path: Path) -> None:
    file = FinetuningCheckpoint(tmp_path / "checkpoint", SETTINGS)
    layer, optimizer = trained(1)
    file.save(1, layer, optimizer, {})
    with pytest.raises(SaeError, match=r"another finetuning \(lr: 0.1, now 0.2\): name another file, or remove it"):
        FinetuningCheckpoint(file.path, SETTINGS | {"lr": 0.2}).load(layer, optimizer)
    whole = file.path.read_bytes()
    for damaged in (b"", whole[: len(whole) // 2], b"no checkpoint at all"):
        file.path.write_bytes(damaged)
        with pytest.raises(SaeError, match=r"is damaged \(.*\): remove it to start anew"):
            file.load(layer, optimizer)
    file.save(1, layer, optimizer, {})
    with pytest.raises(SaeError, match="is damaged"):
        file.load(nn.Linear(4, 2), optimizer)
    with pytest.raises(SaeError, match="is a folder: name a file"):
        FinetuningCheckpoint(tmp_path, SETTINGS).check()
    with pytest.raises(SaeError, match="cannot be written"):
        FinetuningCheckpoint(file.path / "below" / "checkpoint", SETTINGS).check()


class Evil:
    def __reduce__(self) -> Any:
        return Path.touch, (Path("evil"),)


def test_a_strangers_file_runs_no_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"settings": Evil()}, tmp_path / "checkpoint")
    with pytest.raises(SaeError, match="is damaged"):
        FinetuningCheckpoint(tmp_path / "checkpoint", SETTINGS).load(*trained(0))
    assert not (tmp_path / "evil").exists()


def test_a_digest_minds_order_and_borders() -> None:
    assert names_digest(["a", "b"]) == names_digest(iter(["a", "b"]))
    assert len({names_digest(names) for names in (["a", "b"], ["b", "a"], ["ab"], ["a", "b", ""])}) == 4
