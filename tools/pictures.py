"""Draws the pictures of README and docs into docs/images: python tools/pictures.py [FOLDER]."""

from __future__ import annotations

import sys
from pathlib import Path

from hooked_whisper import HookedWhisper
from hooked_whisper.analysis.plots import (
    figure_bytes,
    plot_cross_attention,
    plot_cross_attention_heads,
    plot_residual_norms,
)
from hooked_whisper.speech import clips

FOLDER = Path(__file__).resolve().parent.parent / "docs" / "images"
PICTURES = {
    "cross_attention.png": plot_cross_attention,
    "cross_attention_heads.png": plot_cross_attention_heads,
    "residual_norms.png": plot_residual_norms,
}


def draw(model: HookedWhisper, folder: Path) -> list[Path]:
    """Draws every picture of one English sentence; returns their paths."""
    clip = clips("en", "vm-nobodyavail")[0]
    _, cache = model.run_with_cache(clip.path, language="en")
    folder.mkdir(parents=True, exist_ok=True)
    made = []
    for name, plot in PICTURES.items():
        made.append(folder / name)
        made[-1].write_bytes(figure_bytes(plot(model, cache), "png", dpi=130))
    return made


if __name__ == "__main__":
    for path in draw(HookedWhisper.from_pretrained("openai/whisper-base"), Path(*sys.argv[1:2] or [FOLDER])):
        print(path)
