"""Puts a trained SAE among those that come with the package, in half precision.

python tools/ship_sae.py RUN whisper-base/encoder.hook_out

Latents get the numbers of those that they are most like in the SAE that stood there before, one to one by decoder
cosine, so that what is written about a latent stays true of the one that has its number, where there is one.

It is then evaluated as a user would have it: hooked-whisper evaluate saes/shipped/whisper-base/encoder.hook_out ...
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import torch

from hooked_whisper.file_modes import as_new_file
from hooked_whisper.saes import load_sae
from hooked_whisper.saes.stability import match_saes

SHIPPED = Path(__file__).resolve().parent.parent / "saes" / "shipped"


def ship(run: Path, name: str, shipped: Path = SHIPPED) -> Path:
    """Writes the SAE of a run as float16 into `shipped/name`, with the run's settings and figures beside it.

    An SAE that was finetuned has no run of its own: the settings and figures that stood there stay.
    """
    folder = shipped / name
    sae = load_sae(run)
    if (folder / "cfg.json").is_file():
        print(f"{renumber(sae, load_sae(folder)):.1%} of the latents keep their number (cosine of at least 0.7)")
    beside = [path for pattern in ("training.json", "*.csv") for path in run.glob(pattern)]
    stays = ["README.md"] if beside else ["README.md", "training.json", "*.csv"]  # the first is written by hand
    kept = {path.name: path.read_bytes() for pattern in stays for path in folder.glob(pattern)}
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    for file, content in kept.items():
        (folder / file).write_bytes(content)
    largest = max(weight.abs().max().item() for weight in sae.state_dict().values())
    if largest > torch.finfo(torch.float16).max:
        raise ValueError(f"a weight of {largest:.0f} is too large for float16")
    sae.to(dtype=torch.float16)
    sae.save_model(folder)
    for written in folder.glob("*.safetensors"):
        as_new_file(written)
    for path in beside:
        shutil.copy(path, folder / path.name)
    return folder


@torch.no_grad()
def renumber(sae: Any, before: Any) -> float:
    """Puts the latents of `sae` in the order of those of `before`; returns the share that is found again."""
    matching = match_saes(before.to(dtype=torch.float32), sae.to(dtype=torch.float32)).one_to_one
    assert matching is not None
    order = matching.partner
    if len(order) != len(sae.W_dec) or (order < 0).any():
        raise ValueError(f"the SAE of before has {len(order):,} latents, this one {len(sae.W_dec):,}")
    for name, weight in sae.named_parameters():
        if name != "b_dec":  # all else has an axis of latents: the first of W_dec, the last of the others
            weight.copy_(weight[order] if name == "W_dec" else weight[..., order])
    return matching.found()


if __name__ == "__main__":
    print(ship(Path(sys.argv[1]), sys.argv[2]))
