"""Trains the SAE that comes with the package, from nothing but Debian's packages: some hours of two cores.

hooked-whisper prompts prompts
python -m hooked_whisper.saes.voices voices
python tools/train_shipped_sae.py prompts voices work
python tools/train_shipped_sae.py prompts voices work --finetune
python tools/ship_sae.py work/finetuned whisper-base/encoder.hook_out

It learns with 45 active latents first and goes on with 96, which keeps more of what the model goes by. An SAE that has
the first part behind it may be named with `--first`. The last part finetunes work/run, or the SAE that `--finetune`
names, on what the model predicts.

A tenth of the sentences of the prompts, with their translations, is left out, as `hooked-whisper evaluate --where
kind=speech --held-out 0.1 --by key` takes it; whole speakers and languages of the voices are left out by the manifest.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
from pathlib import Path
from typing import Any

import torch
from transformers.models.whisper.tokenization_whisper import LANGUAGES

from hooked_whisper import HookedWhisper
from hooked_whisper.saes import ActivationStore, Corpus, finetune_sae, harvest, load_sae, train_sae

HOOK = "encoder.hook_out"
SHIPPED = Path(__file__).resolve().parent.parent / "saes" / "shipped"
VOICES_PER_LANGUAGE = 40
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


def train(prompts: Path, voices: Path, work: Path, first: str | None = None) -> None:
    """Trains on all of it; `first`, an SAE with 45 active latents, spares the first part."""
    store = heard(prompts, voices, work)
    shared: dict[str, Any] = {
        "hook": HOOK, "architecture": "topk", "d_sae": 4096, "train_batch_size_samples": 2048, "lr": 6e-4,
        "normalize_activations": "expected_average_only_in", "dead_feature_window": 200, "held_out": 0.02,
        "evaluate_every": 400, "checkpoint_every": 400,
    }  # fmt: skip
    if first is None:
        train_sae(store, k=45, out=work / "first", total_training_samples=20_000_000, **shared)
        first = str(work / "first")
    train_sae(store, k=96, start=first, out=work / "run", total_training_samples=25_000_000, **shared)


def finetune(prompts: Path, voices: Path, work: Path, name: str) -> None:
    """Finetunes an SAE on clips that are heard alone: the prompts, and some of the voices in each language."""
    model = HookedWhisper.from_pretrained("openai/whisper-base")
    known, _ = Corpus.from_manifest(prompts / "manifest.jsonl").where(kind="speech").split(0.1, seed=0, by="key")
    others = Corpus.from_manifest(voices / "manifest.jsonl", on_error="skip").where(split="train")
    chosen = [(prompts, item) for item in known.where(seconds=_fits)]
    languages = LANGUAGES.keys()
    for language in sorted(set(map(str, others.values("language"))) & languages):
        own = [item for item in others.where(language=language) if _fits(float(item.columns["seconds"]))]
        chosen += [(voices, item) for item in random.Random(0).sample(own, min(VOICES_PER_LANGUAGE, len(own)))]
    manifest = work / "finetune.jsonl"
    work.mkdir(parents=True, exist_ok=True)
    rows = [
        {"path": str((folder / item.id).resolve()), "language": item.language, "speaker": item.speaker}
        for folder, item in chosen
    ]
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    sae = load_sae(name).to(dtype=torch.float32)
    report = finetune_sae(model, sae, Corpus.from_manifest(manifest, on_error="skip"), epochs=2, memory=12e9)
    print(report)
    out = work / "finetuned"
    sae.save_model(out)
    source = Path(name) if Path(name).is_dir() else SHIPPED / name
    for file in (source / "training.json", *source.glob("*.csv")):
        shutil.copy(file, out / file.name)
    steps = zip(report.kl, report.fvu, strict=True)
    lines = ["step,kl,fvu", *(f"{i},{kl:.6f},{fvu:.6f}" for i, (kl, fvu) in enumerate(steps, start=1))]
    (out / "finetuning.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _fits(seconds: float) -> bool:
    return SHORTEST <= seconds <= 30


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("prompts", "voices", "work"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--first", help="an SAE with 45 active latents, which spares the first part")
    parser.add_argument("--finetune", nargs="?", const="", help="the last part; of work/run, or of the SAE named")
    options = parser.parse_args()
    if options.finetune is None:
        train(options.prompts, options.voices, options.work, options.first)
    else:
        finetune(options.prompts, options.voices, options.work, options.finetune or str(options.work / "run"))


if __name__ == "__main__":
    main()
