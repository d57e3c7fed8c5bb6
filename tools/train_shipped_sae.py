"""Trains the SAEs that come with the package, from nothing but Debian's packages: some hours of two cores.

hooked-whisper prompts prompts
python -m hooked_whisper.saes.voices voices
python tools/train_shipped_sae.py prompts voices work
python tools/ship_sae.py work/run whisper-base/encoder.hook_out

It learns with 45 active latents first and goes on with 96, which keeps more of what the model goes by. An SAE that has
the first part behind it may be named as a fourth argument. So may one be trained on with still more of them:

python tools/train_shipped_sae.py prompts voices work whisper-base/encoder.hook_out --k 256 \
  --rows 12000000 --run faithful

A tenth of the sentences of the prompts, with their translations, is left out, as `hooked-whisper evaluate --where
kind=speech --held-out 0.1 --by key` takes it; whole speakers and languages of the voices are left out by the manifest.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from hooked_whisper import HookedWhisper
from hooked_whisper.saes import ActivationStore, Corpus, harvest, train_sae

HOOK = "encoder.hook_out"
SHORTEST = 0.8  # seconds, of clips that are heard alone in their window: shorter ones are in packed windows only


def heard(prompts: Path, voices: Path, work: Path) -> ActivationStore:
    """Harvests what the SAE is trained on: prompts packed and alone, and voices packed."""
    model = HookedWhisper.from_pretrained("openai/whisper-base")
    speech = Corpus.from_manifest(prompts / "manifest.jsonl").where(kind="speech")
    known, held_out = speech.split(0.1, seed=0, by="key")
    left_out = {str(item.columns["key"]) for item in held_out}
    alone = known.where(seconds=lambda seconds: SHORTEST <= seconds <= 30)
    others = Corpus.from_manifest(voices / "manifest.jsonl", on_error="skip").where(split="train")
    everything = Corpus.from_manifest(prompts / "manifest.jsonl")
    packed = harvest(model, everything, hooks=HOOK, out=work / "packed", packing="windows", batch_size=4)
    stores = [
        packed.where(key=lambda key: str(key) not in left_out),
        harvest(model, alone, hooks=HOOK, out=work / "alone", packing="none", batch_size=4),
        harvest(model, others, hooks=HOOK, out=work / "voices", packing="windows", batch_size=4),
    ]
    return ActivationStore.join(stores)


def train(prompts: Path, voices: Path, work: Path, first: str | None, k: int, rows: int, run: str) -> None:
    """Trains on all of it, into `work/run`; `first`, an SAE with fewer active latents, spares the first part."""
    store = heard(prompts, voices, work)
    shared: dict[str, Any] = {
        "hook": HOOK, "architecture": "topk", "d_sae": 4096, "train_batch_size_samples": 2048, "lr": 6e-4,
        "normalize_activations": "expected_average_only_in", "dead_feature_window": 200, "held_out": 0.02,
        "evaluate_every": 400, "checkpoint_every": 400,
    }  # fmt: skip
    if first is None:
        train_sae(store, k=45, out=work / "first", total_training_samples=20_000_000, **shared)
        first = str(work / "first")
    train_sae(store, k=k, start=first, out=work / run, total_training_samples=rows, **shared)


def main() -> None:
    """Trains with the options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("prompts", "voices", "work"):
        parser.add_argument(name, type=Path)
    parser.add_argument("first", nargs="?", help="an SAE to go on from: a shipped one, a folder or a run")
    parser.add_argument("--k", type=int, default=96, help="active latents at the end")
    parser.add_argument("--rows", type=int, default=25_000_000, help="to train on; those that there are, over again")
    parser.add_argument("--run", default="run", help="folder in work")
    options = parser.parse_args()
    train(options.prompts, options.voices, options.work, options.first, options.k, options.rows, options.run)


if __name__ == "__main__":
    main()
