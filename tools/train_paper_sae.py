"""Trains the paper's SAE, 16,000 latents with 45 active, on whisper-base and speech from Debian: an hour of a core.

hooked-whisper prompts prompts
python -m hooked_whisper.saes.voices voices
python tools/train_paper_sae.py prompts voices work
hooked-whisper evaluate work/paper --corpus prompts/manifest.jsonl --where kind=speech --held-out 0.1 --by key \
  --no-transcribe

Trained on what the shipped SAEs are (tools/train_shipped_sae.py; `work` may be the same), with the same clips held out.
examples/paper/full_size.yaml is the same at full size. Stopped and called again, it goes on.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from train_shipped_sae import HOOK, heard

from hooked_whisper.saes import train_sae


def main() -> None:
    """Trains, into work/paper."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("prompts", "voices", "work"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--rows", type=int, default=10_000_000, help="to train on; those that there are, over again")
    options = parser.parse_args()
    train_sae(
        heard(options.prompts, options.voices, options.work), hook=HOOK, architecture="topk", d_sae=16_000, k=45,
        k_start=128, latents_init_method="rows", out=options.work / "paper", total_training_samples=options.rows,
        train_batch_size_samples=2048, lr=6e-4, normalize_activations="expected_average_only_in",
        dead_feature_window=200, held_out=0.02, evaluate_every=400, checkpoint_every=400,
    )  # fmt: skip


if __name__ == "__main__":
    main()
