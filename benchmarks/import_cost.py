"""What `import hooked_whisper` costs in CPU seconds, against importing what it stands on.

    python -m benchmarks.import_cost [repeats]

Each import runs in a process of its own, alternately, so that a busy machine slows both sides; the smallest of the
repeats counts. The bar for the ratio is 1.3.
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass

BASE = """
import torch
from transformers import WhisperForConditionalGeneration
from transformer_lens import ActivationCache, FactoredMatrix, HookedRootModule
"""
OURS = """
import hooked_whisper
hooked_whisper.HookedWhisper
"""
HELP = "import sys; sys.argv = ['hooked-whisper', '--help']; from hooked_whisper.cli import main; main()"


@dataclass(frozen=True)
class ImportCost:
    """CPU seconds (user and system) of each import, the smallest of all repeats."""

    ours: float
    base: float
    help: float

    @property
    def ratio(self) -> float:
        """`import hooked_whisper` over torch, transformers' Whisper and transformer-lens together."""
        return self.ours / self.base

    def __str__(self) -> str:
        return (
            f"import hooked_whisper, HookedWhisper  {self.ours:6.2f} s\n"
            f"torch + transformers + tlens          {self.base:6.2f} s\n"
            f"ratio                                 {self.ratio:6.2f} x (bar: 1.3)\n"
            f"hooked-whisper --help                 {self.help:6.2f} s (bar: 1.0)"
        )


def cpu_seconds(code: str) -> float:
    """CPU time of a new Python that runs `code`, start-up included."""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise RuntimeError(f"this code failed, see above:\n{code}")
    return usage.ru_utime + usage.ru_stime


def measure(repeats: int = 3) -> ImportCost:
    """Imports each side `repeats` times in turn, after one uncounted round that warms the disk."""
    runs = [tuple(cpu_seconds(code) for code in (OURS, BASE, HELP)) for _ in range(repeats + 1)][1:]
    ours, base, shown = (min(column) for column in zip(*runs, strict=True))
    return ImportCost(ours=ours, base=base, help=shown)


if __name__ == "__main__":
    print(measure(int(sys.argv[1]) if len(sys.argv) > 1 else 3))
