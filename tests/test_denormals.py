"""Denormal numbers are 0 while an SAE trains, and only then."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from memory_source import toy_source

from hooked_whisper.errors import SaeError
from hooked_whisper.saes import train_sae
from hooked_whisper.saes.denormals import are_flushed, flushed_denormals
from hooked_whisper.saes.training_run import TrainingRun

flushable = pytest.mark.skipif(not torch.set_flush_denormal(False), reason="this processor keeps denormals")


@flushable
@pytest.mark.parametrize("before", [False, True])
def test_flushed_inside_and_as_before_after(before: bool) -> None:
    torch.set_flush_denormal(before)
    try:
        with flushed_denormals():
            assert are_flushed()
        assert are_flushed() == before
        with pytest.raises(SaeError), flushed_denormals():
            raise SaeError("in the middle")
        assert are_flushed() == before
    finally:
        torch.set_flush_denormal(False)


@flushable
def test_training_flushes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bool] = []
    step = TrainingRun.step

    def watched(self: TrainingRun, batch: Any) -> None:
        seen.append(are_flushed())
        step(self, batch)

    monkeypatch.setattr(TrainingRun, "step", watched)
    train_sae(
        toy_source(), hook="hook", d_sae=32, k=2, out=tmp_path / "run", total_training_samples=64 * 3,
        train_batch_size_samples=64, log="nothing",
    )  # fmt: skip
    assert seen == [True] * 3 and not are_flushed()
