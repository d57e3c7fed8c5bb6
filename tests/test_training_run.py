"""One SAE in training: what it is built from, kills at random moments, damaged checkpoints, losses gone wrong."""

from __future__ import annotations

import random
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from forked import finish, kill_after, needs_fork, start
from memory_source import MemorySource, toy_rows, toy_source
from safetensors.torch import load_file

from hooked_whisper.errors import SaeError
from hooked_whisper.saes import train_sae
from hooked_whisper.saes.training_run import build_sae
from hooked_whisper.saes.training_settings import SaeSettings

METADATA = {"model_name": "small", "hook_name": "hook"}


def test_what_is_built() -> None:
    sae = build_sae(SaeSettings(hook="hook", d_sae=64, k=4.0), [16], METADATA)
    assert (sae.cfg.d_in, sae.cfg.k, type(sae).__name__) == (16, 4, "SparseTopKTrainingSAE")
    dense = build_sae(
        SaeSettings(hook="hook", d_sae=64, k=4, sparse=False, options={"aux_loss_coefficient": 0.5}), [16], {}
    )
    assert (dense.cfg.aux_loss_coefficient, type(dense).__name__) == (0.5, "TopKTrainingSAE")
    assert torch.equal(dense.W_dec, sae.W_dec)  # the same seed
    other = build_sae(SaeSettings(hook="hook", d_sae=64, k=4, seed=1), [16], {})
    assert not torch.equal(other.W_dec, sae.W_dec)
    nested = build_sae(SaeSettings(hook="hook", d_sae=64, k=4, architecture="matryoshka_batchtopk"), [16], {})
    assert nested.cfg.matryoshka_widths == [4, 16, 64]
    before = torch.random.get_rng_state()
    build_sae(SaeSettings(hook="hook", d_sae=64, k=4), [16], {})
    assert torch.equal(torch.random.get_rng_state(), before)  # the caller's generator is left alone


def run(out: Path, **options: Any) -> Any:
    chosen: dict[str, Any] = {
        "hook": "hook", "d_sae": 64, "k": 4, "lr": 3e-3, "total_training_samples": 64 * 60, "held_out": None,
        "train_batch_size_samples": 64, "checkpoint_every": 10, "log_every": 10, "log": "nothing", **options,
    }  # fmt: skip
    return train_sae(toy_source(), out=out, **chosen)


@needs_fork
@pytest.mark.parametrize("architecture", ["topk", "batchtopk"])
def test_killed_at_random_moments(architecture: str, tmp_path: Path) -> None:
    """SIGKILL, wherever it hits: the run goes on and ends as if nothing had happened. Twenty times in benchmarks/."""
    options = {"architecture": architecture, "dead_feature_window": 10}
    began = time.perf_counter()
    assert finish(start(lambda: run(tmp_path / "whole", **options))) == 0
    seconds = time.perf_counter() - began
    whole = load_file(tmp_path / "whole" / "sae" / "sae_weights.safetensors")
    moments = random.Random(0)
    for index in range(3):
        out = tmp_path / f"killed-{index}"
        kill_after(moments.random() * seconds, lambda out=out: run(out, **options))
        assert finish(start(lambda out=out: run(out, **options))) == 0
        again = load_file(out / "sae" / "sae_weights.safetensors")
        for name, value in whole.items():
            torch.testing.assert_close(again[name], value, rtol=1e-5, atol=1e-6)


class Stop(Exception):
    """Ends a run after its first checkpoints."""


def unfinished(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that stopped at its end, with checkpoints of the steps 50 and 60."""
    with monkeypatch.context() as patch:
        patch.setattr("hooked_whisper.saes.training_run.TrainingRun.finish", _stop)
        with pytest.raises(Stop):
            run(out)


def _stop(*_: Any) -> None:
    raise Stop


@pytest.mark.parametrize(
    "name", ["sae_weights.safetensors", "trainer_state.pt", "state.json", "activation_scaler.json"]
)
def test_a_damaged_checkpoint_says_so(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unfinished(tmp_path, monkeypatch)
    path = tmp_path / "checkpoints" / "step-00000060" / name
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(SaeError, match="damaged .* remove it to go on from the one before"):
        run(tmp_path)
    shutil.rmtree(path.parent)
    assert run(tmp_path).cfg.k == 4  # from step 50


def test_nothing_in_a_checkpoint_can_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unfinished(tmp_path, monkeypatch)

    class Hostile:
        def __reduce__(self) -> tuple[Any, tuple[str]]:
            return print, ("it ran",)

    torch.save({"optimizer": Hostile()}, tmp_path / "checkpoints" / "step-00000060" / "trainer_state.pt")
    with pytest.raises(SaeError, match="damaged"):
        run(tmp_path)


def test_a_loss_that_is_no_number(tmp_path: Path) -> None:
    source = MemorySource({"hook": toy_rows() * 1e30})
    with pytest.raises(SaeError, match=r"The loss of run is (nan|inf) after 10 steps: lower lr, or raise"):
        train_sae(
            source, hook="hook", d_sae=64, k=4, out=tmp_path / "run", total_training_samples=64 * 20, log_every=10,
            train_batch_size_samples=64, held_out=None, log="nothing",
        )  # fmt: skip
