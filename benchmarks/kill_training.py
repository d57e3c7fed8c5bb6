"""Kills a training run with SIGKILL at random moments, goes on, and compares the SAE with that of an undisturbed run.

    python -m benchmarks.kill_training [--kills 20] [--seed 0] [--architecture topk]

Trains on random rows, which takes seconds. Needs `fork` (Linux, macOS).
"""

from __future__ import annotations

import random
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from benchmarks import report
from benchmarks.kill_harvest import finish, kill_at, start
from hooked_whisper.saes import train_sae

WIDTH, N_ROWS, BATCH, STEPS = 32, 20_000, 128, 400


class RandomSource:
    """Sparse sums of random directions."""

    hooks = ("hook",)
    model_name = "random"
    n_rows = N_ROWS

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        active = torch.rand(N_ROWS, 80, generator=generator) < 0.05
        self._rows = active * torch.rand(N_ROWS, 80, generator=generator) @ torch.randn(80, WIDTH, generator=generator)

    def width(self, hook: str) -> int:
        return WIDTH

    def batches(
        self, hook: str, batch_size: int, *, seed: int = 0, start: int = 0, repeat: bool = True
    ) -> Iterator[Tensor]:
        at = start
        while repeat or at < N_ROWS:
            places = torch.arange(at, at + batch_size)
            order = torch.randperm(N_ROWS, generator=torch.Generator().manual_seed(seed + at // N_ROWS))
            yield self._rows[order[places % N_ROWS]]
            at += batch_size

    def describe(self) -> dict[str, Any]:
        return {"source": "random", "model": self.model_name}


def train(out: Path, architecture: str) -> None:
    """Trains into `out`, or goes on there."""
    train_sae(
        RandomSource(), hook="hook", d_sae=256, k=None if architecture == "jumprelu" else 6, architecture=architecture,
        out=out, total_training_samples=BATCH * STEPS, train_batch_size_samples=BATCH, lr=2e-3, held_out=None,
        dead_feature_window=20, checkpoint_every=25, log_every=10, log="nothing",
        normalize_activations="expected_average_only_in",
    )  # fmt: skip


def largest_difference(one: Path, other: Path) -> float:
    """Between the weights of two runs, relative to the largest weight of each tensor."""
    weights = [load_file(out / "sae" / "sae_weights.safetensors") for out in (one, other)]
    return max(
        float((weights[0][name] - weights[1][name]).abs().max() / weights[0][name].abs().max().clamp(min=1e-12))
        for name in weights[0]
    )


def killed_runs(
    folder: Path, whole: Path, seconds: float, moments: Sequence[float], architecture: str
) -> list[tuple[float, str]]:
    """For each moment (as a part of an undisturbed run's time): how far the resumed run's weights are off."""
    found = []
    for index, moment in enumerate(moments):
        out = folder / f"killed-{index}"
        while not kill_at(lambda out=out: train(out, architecture), moment * seconds):
            shutil.rmtree(out)  # the machine was quicker this time: once more, earlier
            moment *= 0.7
        steps = sorted(path.name for path in (out / "checkpoints").glob("step-*")) if out.is_dir() else []
        if finish(start(lambda out=out: train(out, architecture))) != 0:
            raise RuntimeError(f"the run killed at {moment:.0%} could not go on")
        off = largest_difference(whole, out)
        state = f"last there: {steps[-1] if steps else 'nothing'}"
        found.append((off, f"killed at {moment:4.0%}: {state}; then off by {off:.1e}"))
        print(found[-1][1], flush=True)
        shutil.rmtree(out)
    return found


def main() -> int:
    parser = report.parser(__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--architecture", default="topk")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        began = time.perf_counter()
        if finish(start(lambda: train(folder / "whole", options.architecture))) != 0:
            return 1
        seconds = time.perf_counter() - began
        rng = random.Random(options.seed)
        moments = [rng.random() for _ in range(options.kills)]
        found = killed_runs(folder, folder / "whole", seconds, moments, options.architecture)
    wrong = sum(difference > 1e-5 for difference, _ in found)
    said = f"{len(found) - wrong} of {len(found)} runs gave the weights of the undisturbed one to 1e-5."
    lines = [report.head("torch", "sae-lens", notes="1 thread"), said, "", *(f"- {line}" for _, line in found)]
    report.publish("\n".join(lines), options.out)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
