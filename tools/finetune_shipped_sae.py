"""Finetunes an SAE on what the model predicts, on some clips of what the shipped one was trained on: an hour of a core.

hooked-whisper prompts prompts
python -m hooked_whisper.saes.voices voices
python tools/finetune_shipped_sae.py whisper-base/encoder.hook_out prompts voices work
python tools/ship_sae.py work/sae whisper-base/encoder.hook_out

Stopped and called again, it goes on from work/checkpoint. The sentences that are held out of the training of
tools/train_shipped_sae.py are held out here, too, and so are the speakers and languages that the voices leave out.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

import torch
from transformers.models.whisper.tokenization_whisper import LANGUAGES

from hooked_whisper import HookedWhisper
from hooked_whisper.saes import Corpus, finetune_sae, load_sae


def clips(prompts: Path, voices: Path, of_each: int, of_voices: int) -> Corpus:
    """Prompts of each language, and voices in languages that Whisper knows, drawn at random."""
    draw = random.Random(0)
    known, _ = Corpus.from_manifest(prompts / "manifest.jsonl").where(kind="speech").split(0.1, seed=0, by="key")
    items = []
    for language in ("en", "es", "fr", "it", "ru"):
        own = list(known.where(language=language))
        draw.shuffle(own)
        items += own[:of_each]
    others = Corpus.from_manifest(voices / "manifest.jsonl", on_error="skip")
    shuffled = list(others.where(split="train", language=[*LANGUAGES]))
    draw.shuffle(shuffled)
    return Corpus([*items, *shuffled[:of_voices]], name="prompts and voices", on_error="skip")


def main() -> None:
    """Finetunes, and writes the SAE."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sae", help="a shipped SAE, a folder or a repository")
    parser.add_argument("prompts", type=Path, help="folder that `hooked-whisper prompts` made")
    parser.add_argument("voices", type=Path, help="folder that `python -m hooked_whisper.saes.voices` made")
    parser.add_argument("out", type=Path)
    parser.add_argument("--of-each", type=int, default=170, help="prompts of each language")
    parser.add_argument("--of-voices", type=int, default=250, help="clips of voices")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--lr", type=float, default=1e-4)
    options = parser.parse_args()
    sae = load_sae(options.sae).to(dtype=torch.float32)
    report = finetune_sae(
        HookedWhisper.from_pretrained("openai/whisper-base"),
        sae,
        clips(options.prompts, options.voices, options.of_each, options.of_voices),
        epochs=options.epochs,
        lr=options.lr,
        checkpoint=options.out / "checkpoint",
        progress=True,
    )
    sae.save_model(options.out / "sae")
    print(report)


if __name__ == "__main__":
    main()
