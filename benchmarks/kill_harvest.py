"""Kills a harvest with SIGKILL at random moments, goes on, and compares every byte with an undisturbed one.

    python -m benchmarks.kill_harvest [--kills 20] [--seed 0] [--model openai/whisper-base]

Also shares a harvest between two processes, one of which is killed on the way. Without --model, a small random Whisper
on noise is harvested, which takes seconds; with it, the shipped speech. Needs `fork` (Linux, macOS).
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import sys
import tempfile
import time
import wave
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from benchmarks import report
from hooked_whisper import HookedWhisper, HookedWhisperConfig, StackConfig
from hooked_whisper.saes import Corpus, harvest

HOOKS = ["encoder.blocks.0.hook_resid_post", "encoder.hook_out"]
N_CLIPS = 150


@dataclass(frozen=True)
class Case:
    """What is harvested, and with which options."""

    model: HookedWhisper
    corpus: Callable[[], Corpus]
    shard_rows: int
    batch_size: int

    def run(self, out: Path) -> None:
        """Harvests into `out`, or goes on there."""
        harvest(
            self.model,
            self.corpus(),
            hooks=HOOKS,
            out=out,
            packing="windows",
            batch_size=self.batch_size,
            shard_rows=self.shard_rows,
            progress=False,
        )


def random_case(folder: Path) -> Case:
    """A small Whisper with random weights, windows of 0.4 s, and clips of noise."""
    rng = np.random.default_rng(0)
    for index in range(N_CLIPS):
        with wave.open(str(folder / f"{index:03d}.wav"), "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(16_000)
            noise = rng.standard_normal(rng.integers(500, 20_000)) * 3_000
            file.writeframes(noise.clip(-32_768, 32_767).astype(np.int16).tobytes())
    torch.manual_seed(0)
    stack = StackConfig(n_layers=2, n_heads=2, d_model=64, d_mlp=128, n_ctx=20)
    model = HookedWhisper(HookedWhisperConfig(stack, stack, n_mels=80, d_vocab=20, model_name="random")).eval()
    return Case(model, lambda: Corpus.from_folder(folder), shard_rows=300, batch_size=8)


def real_case(name: str) -> Case:
    """A real checkpoint and the shipped speech."""
    return Case(HookedWhisper.from_pretrained(name), Corpus.from_clips, shard_rows=3_000, batch_size=4)


def start(call: Callable[[], None], **environment: str) -> int:
    """Runs `call` in a process of its own; returns its number."""
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.environ.update(environment)
            call()
            code = 0
        finally:
            os._exit(code)
    return pid


def finish(pid: int) -> int:
    """Waits for a process; returns its exit status, negative if it was killed."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def same(one: Path, other: Path) -> bool:
    """Whether two folders hold the same files, byte for byte."""
    names = sorted(path.name for path in one.iterdir())
    if names != sorted(path.name for path in other.iterdir()):
        return False
    return all((one / name).read_bytes() == (other / name).read_bytes() for name in names)


def kill_at(call: Callable[[], None], moment: float) -> bool:
    """Kills a process that runs `call` after `moment` seconds; True if it was still at work."""
    pid = start(call)
    time.sleep(moment)
    os.kill(pid, signal.SIGKILL)
    return finish(pid) == -signal.SIGKILL


def killed_runs(case: Case, folder: Path, whole: Path, seconds: float, moments: Sequence[float]) -> list[str]:
    """For each moment (as a part of an undisturbed run's time): what was there when it was killed, and the outcome."""
    found = []
    for index, moment in enumerate(moments):
        out = folder / f"killed-{index}"
        while not kill_at(lambda out=out: case.run(out), moment * seconds):
            shutil.rmtree(out)  # the machine was quicker this time: once more, earlier
            moment *= 0.7
        names = [path.name for path in out.iterdir()] if out.is_dir() else []
        notes = sum(1 for name in names if name[:5].isdigit() and name.endswith(".json"))
        partial = sum(1 for name in names if name.endswith(".partial"))
        status = finish(start(lambda out=out: case.run(out)))
        outcome = "same bytes" if status == 0 and same(whole, out) else "DIFFERENT"
        state = f"{notes} shards complete, {partial} files half written"
        found.append(f"killed at {moment:4.0%}: {state}; then {outcome}")
        shutil.rmtree(out)
    return found


def two_processes(case: Case, out: Path, kill_after: float | None) -> None:
    """Harvests with two processes; the second is killed after a while and started again."""
    team = [{"RANK": str(rank), "WORLD_SIZE": "2"} for rank in range(2)]
    pids = [start(lambda: case.run(out), **environment) for environment in team]
    if kill_after is not None:
        time.sleep(kill_after)
        os.kill(pids[1], signal.SIGKILL)
        finish(pids[1])
        pids[1] = start(lambda: case.run(out), **team[1])
    statuses = [finish(pid) for pid in pids]
    if statuses != [0, 0]:
        raise RuntimeError(f"the two processes ended with {statuses}")


def main() -> int:
    parser = report.parser(__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--model", help="a checkpoint; a small random one if left out")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (folder / "corpus").mkdir()
        case = real_case(options.model) if options.model else random_case(folder / "corpus")
        began = time.perf_counter()
        if finish(start(lambda: case.run(folder / "whole"))) != 0:
            return 1
        seconds = time.perf_counter() - began
        rng = random.Random(options.seed)
        moments = [rng.random() for _ in range(options.kills)]
        lines = killed_runs(case, folder, folder / "whole", seconds, moments)
        for name, kill_after in (("two processes", None), ("two processes, one killed", seconds / 3)):
            two_processes(case, folder / name, kill_after)
            lines.append(f"{name}: {'same bytes' if same(folder / 'whole', folder / name) else 'DIFFERENT'}")
    wrong = sum("DIFFERENT" in line for line in lines)
    said = f"{len(lines) - wrong} of {len(lines)} runs gave the bytes of the undisturbed one."
    report.publish(
        "\n".join([report.head("torch", notes="1 thread"), said, "", *(f"- {line}" for line in lines)]), options.out
    )
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
