"""Word error rate of whisper-base on English prompts, beside transformers', on sets that a rule picks.

    python -m benchmarks.word_errors --prompts prompts --out benchmarks/results/word_errors.md

`--prompts` is a folder for `fetch_prompts` (`hooked-whisper prompts`); without it, the shipped clips alone. References
are the publisher's, cleaned by Whisper's English normaliser and of the dots with which prompts trail off; where they
are not what is said ("press *" is spoken "press star"), the difference counts as errors.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from tqdm import tqdm

from benchmarks import report
from hooked_whisper import HookedWhisper
from hooked_whisper.checkpoints import load_checkpoint, to_transformers
from hooked_whisper.saes.prompts import fetch_prompts
from hooked_whisper.speech import clips

BATCH = 8


@dataclass(frozen=True)
class Prompt:
    """What was recorded, and what the publisher says was said."""

    path: Path
    text: str
    seconds: float
    parallel: bool


def english_prompts(folder: Path) -> list[Prompt]:
    """All English prompts with words, in the manifest's order."""
    manifest = fetch_prompts(folder)
    rows = [json.loads(line) for line in manifest.read_text(encoding="utf-8").splitlines()]
    return [
        Prompt(manifest.parent / row["path"], row["text"], row["seconds"], row["parallel"])
        for row in rows
        if row["language"] == "en" and row["kind"] == "speech" and row["text"] and row["seconds"] < 30
    ]


def sets(folder: Path | None) -> dict[str, list[Prompt]]:
    """Name of a set -> its prompts, of which each rule takes all that fit."""
    shipped = [Prompt(clip.path, clip.text, clip.seconds, True) for clip in clips("en")]
    found = {"the shipped clips": shipped}
    if folder is not None:
        prompts = english_prompts(folder)
        long = [prompt for prompt in prompts if prompt.parallel and prompt.seconds > 2]
        found["the first 40 of over 2 s that are in all five languages"] = long[:40]
        found["all of over 2 s that are in all five languages"] = long
        found["all of over 8 s"] = [prompt for prompt in prompts if prompt.seconds > 8]
    return found


def cleaner() -> Callable[[str], str]:
    """Text -> words alone, numbers and spelling made one."""
    from transformers.models.whisper.english_normalizer import EnglishTextNormalizer

    normal = EnglishTextNormalizer({})
    return lambda text: " ".join(re.sub(r"[^\w\s']", " ", normal(text)).split())


def rate(references: list[str], said: list[str]) -> float:
    """Word error rate in percent."""
    import jiwer

    clean = cleaner()
    pairs = [(clean(reference), clean(text)) for reference, text in zip(references, said, strict=True)]
    pairs = [pair for pair in pairs if pair[0]]
    return 100 * jiwer.wer([reference for reference, _ in pairs], [text for _, text in pairs])


def transcripts(model: HookedWhisper, reference: Any, paths: list[Path]) -> tuple[list[str], list[str]]:
    """Ours, and those of transformers' `generate`."""
    ours: list[str] = []
    theirs: list[str] = []
    for at in tqdm(range(0, len(paths), BATCH), desc="transcripts", leave=False):
        group = paths[at : at + BATCH]
        said = model.transcribe(list(group), language="en", batch_size=BATCH)
        assert isinstance(said, list)
        assert model.tokenizer is not None
        ours += [transcript.text for transcript in said]
        found: Tensor = reference.generate(model.to_mel(list(group)), language="en", task="transcribe")
        theirs += model.tokenizer.hf.batch_decode(found, skip_special_tokens=True)
    return ours, theirs


@torch.no_grad()
def rates(folder: Path | None) -> str:
    """The rates as Markdown."""
    checkpoint = load_checkpoint("openai/whisper-base")
    model, reference = HookedWhisper.from_checkpoint(checkpoint, device="cpu"), to_transformers(checkpoint)
    chosen = sets(folder)
    paths = list(dict.fromkeys(prompt.path for prompts in chosen.values() for prompt in prompts))
    ours, theirs = (dict(zip(paths, texts, strict=True)) for texts in transcripts(model, reference, paths))
    lines = ["| English prompts | number | WER, % | transformers' WER, % |", "|---|---|---|---|"]
    for name, prompts in chosen.items():
        texts = [prompt.text for prompt in prompts]
        rates = [rate(texts, [said[prompt.path] for prompt in prompts]) for said in (ours, theirs)]
        lines.append(f"| {name} | {len(prompts)} | {rates[0]:.2f} | {rates[1]:.2f} |")
    return "\n".join(lines)


def main() -> None:
    parser = report.parser(__doc__)
    parser.add_argument("--prompts", type=Path, default=None, help="folder of the five-language prompts, or a new one")
    arguments = parser.parse_args()
    transformers.logging.set_verbosity_error()
    text = rates(arguments.prompts)
    report.publish(f"{report.head('torch', 'transformers')}\n{text}", arguments.out)


if __name__ == "__main__":
    main()
