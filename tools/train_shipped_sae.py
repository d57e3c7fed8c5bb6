"""Trains the SAEs that come with the package, from nothing but Debian's packages: some hours of two cores.

hooked-whisper prompts prompts
python -m hooked_whisper.saes.voices voices
python tools/train_shipped_sae.py prompts voices work
python tools/ship_sae.py work/run whisper-base/encoder.hook_out

It learns with 45 active latents first and goes on with 96, which keeps more of what the model goes by. An SAE that has
the first part behind it may be named as a fourth argument. So may one be trained on with still more of them:

python tools/train_shipped_sae.py prompts voices work whisper-base/encoder.hook_out --k 256 \
  --rows 12000000 --run faithful

With `--share 0.7` errors count by how much the model's predictions depend on the direction that they lie in, which is
measured on every eighth of the prompts that it learns from.

A tenth of the sentences of the prompts, with their translations, is left out, as `hooked-whisper evaluate --where
kind=speech --held-out 0.1 --by key` takes it; whole speakers and languages of the voices are left out by the manifest.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from hooked_whisper import HookedWhisper
from hooked_whisper.saes import ActivationStore, Corpus, harvest, measure_sensitivity, train_sae

HOOK = "encoder.hook_out"
SHORTEST = 0.8  # seconds, of clips that are heard alone in their window: shorter ones are in packed windows only


def prompts_alone(prompts: Path) -> tuple[Corpus, set[str]]:
    """The prompts that are heard alone in their window, and the keys of those that are left out."""
    speech = Corpus.from_manifest(prompts / "manifest.jsonl").where(kind="speech")
    known, held_out = speech.split(0.1, seed=0, by="key")
    left_out = {str(item.columns["key"]) for item in held_out}
    return known.where(seconds=lambda seconds: SHORTEST <= seconds <= 30), left_out


def heard(prompts: Path, voices: Path, work: Path) -> ActivationStore:
    """Harvests what the SAE is trained on: prompts packed and alone, and voices packed."""
    model = HookedWhisper.from_pretrained("openai/whisper-base")
    alone, left_out = prompts_alone(prompts)
    others = Corpus.from_manifest(voices / "manifest.jsonl", on_error="skip").where(split="train")
    everything = Corpus.from_manifest(prompts / "manifest.jsonl")
    packed = harvest(model, everything, hooks=HOOK, out=work / "packed", packing="windows", batch_size=4)
    stores = [
        packed.where(key=lambda key: str(key) not in left_out),
        harvest(model, alone, hooks=HOOK, out=work / "alone", packing="none", batch_size=4),
        harvest(model, others, hooks=HOOK, out=work / "voices", packing="windows", batch_size=4),
    ]
    return ActivationStore.join(stores)


def sensitivity(prompts: Path, work: Path) -> Path:
    """What predictions depend on, over every eighth of the prompts; measured once."""
    path = work / "sensitivity.safetensors"
    if not path.exists():
        alone, _ = prompts_alone(prompts)
        part = alone.where(id=[item.id for item in alone][::8])
        model = HookedWhisper.from_pretrained("openai/whisper-base")
        measure_sensitivity(model, part, hook=HOOK).save(path)
    return path


def train(options: argparse.Namespace) -> None:
    """Trains on all of it, into `work/run`; `first`, an SAE with fewer active latents, spares the first part."""
    work, first = options.work, options.first
    store = heard(options.prompts, options.voices, work)
    shared: dict[str, Any] = {
        "hook": HOOK, "architecture": "topk", "d_sae": 4096, "train_batch_size_samples": 2048, "lr": 6e-4,
        "dead_feature_window": 200, "held_out": 0.02,
        "evaluate_every": 400, "checkpoint_every": 400,
    }  # fmt: skip
    scaled: dict[str, Any] = {"normalize_activations": "expected_average_only_in"}
    if first is None:
        train_sae(store, k=45, out=work / "first", total_training_samples=20_000_000, **shared, **scaled)
        first = str(work / "first")
    if options.share is not None:  # which has a scale of its own
        scaled = {"sensitivity": sensitivity(options.prompts, work), "sensitivity_share": options.share}
    train_sae(
        store, k=options.k, start=first, out=work / options.run, total_training_samples=options.rows, **shared, **scaled
    )


def main() -> None:
    """Trains with the options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("prompts", "voices", "work"):
        parser.add_argument(name, type=Path)
    parser.add_argument("first", nargs="?", help="an SAE to go on from: a shipped one, a folder or a run")
    parser.add_argument("--k", type=int, default=96, help="active latents at the end")
    parser.add_argument("--rows", type=int, default=25_000_000, help="to train on; those that there are, over again")
    parser.add_argument("--share", type=float, help="sensitivity_share: trains by what predictions depend on")
    parser.add_argument("--run", default="run", help="folder in work")
    train(parser.parse_args())


if __name__ == "__main__":
    main()
