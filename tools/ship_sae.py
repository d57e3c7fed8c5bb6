"""Puts a trained SAE among those that come with the package, in half precision.

python tools/ship_sae.py RUN whisper-base/encoder.hook_out

It is then evaluated as a user would have it: hooked-whisper evaluate saes/shipped/whisper-base/encoder.hook_out ...
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import torch

from hooked_whisper.saes import load_sae

SHIPPED = Path(__file__).resolve().parent.parent / "saes" / "shipped"


def ship(run: Path, name: str, shipped: Path = SHIPPED) -> Path:
    """Writes the SAE of a run as float16 into `shipped/name`, with the run's settings and figures beside it."""
    folder = shipped / name
    readme = (folder / "README.md").read_text(encoding="utf-8") if (folder / "README.md").is_file() else None
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    if readme is not None:  # written by hand: its figures are to be brought up to date
        (folder / "README.md").write_text(readme, encoding="utf-8")
    sae = load_sae(run)
    largest = max(weight.abs().max().item() for weight in sae.state_dict().values())
    if largest > torch.finfo(torch.float16).max:
        raise ValueError(f"a weight of {largest:.0f} is too large for float16")
    sae.to(dtype=torch.float16)
    sae.save_model(folder)
    shutil.copy(run / "training.json", folder / "training.json")
    shutil.copy(run / "log.csv", folder / "log.csv")
    return folder


if __name__ == "__main__":
    print(ship(Path(sys.argv[1]), sys.argv[2]))
