"""What importing brings along. How long it takes is measured by benchmarks/import_cost.py, side by side."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

HEAVY = ["sae_lens", "circuitsvis", "matplotlib", "sklearn", "plotly", "jiwer", "praatio", "nnsight", "torchaudio"]
LOADED = "import json, sys; print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"


def loaded_after(code: str, cwd: Path) -> set[str]:
    """Top-level modules that a new Python holds after running `code`."""
    done = subprocess.run([sys.executable, "-c", f"{code}\n{LOADED}"], cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_model_brings_nothing_heavy_that_it_does_not_need(tmp_path: Path) -> None:
    loaded = loaded_after("import hooked_whisper\nhooked_whisper.HookedWhisper", tmp_path)
    assert {"torch", "transformers", "transformer_lens"} <= loaded
    assert not loaded.intersection(HEAVY)


def test_package_alone_is_free(tmp_path: Path) -> None:
    assert not loaded_after("import hooked_whisper, hooked_whisper.errors", tmp_path).intersection(
        ["torch", "transformers", "transformer_lens", "numpy", *HEAVY]
    )


def test_help_takes_no_torch_and_under_a_second(tmp_path: Path) -> None:
    code = "from hooked_whisper.cli import app\napp(['--help'], standalone_mode=False)"
    before = os.times()
    loaded = loaded_after(code, tmp_path)
    after = os.times()
    assert "typer" in loaded
    assert not loaded.intersection(["torch", "transformers", "numpy", *HEAVY])
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    assert cpu < 1.0
