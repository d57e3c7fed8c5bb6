"""How much a transcript changes when the encoder's output is off by as much as with an SAE, in directions at random.

hooked-whisper prompts prompts
python tools/noise_floor.py prompts benchmarks/results/noise_floor.md        # a quarter of an hour of a core

In every frame with audio the SAE's error is replaced by one of the same length, or of a part of it, whose direction is
drawn at random: what then changes is what the model's own unsureness does. On prompts that no shipped SAE has heard,
each alone in its window, as `hooked-whisper evaluate` takes them.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from transcript_changes import FIGURES, by_sae, changed_transcripts, language_table

from hooked_whisper import HookedWhisper, __version__
from hooked_whisper.saes import Corpus, load_sae
from hooked_whisper.saes.coding import SparseCoder, find_site, reconstruct
from hooked_whisper.saes.error_rates import TranscriptErrors
from hooked_whisper.saes.spliced_evaluation import Replacement

HOOK = "encoder.hook_out"
PARTS = (1.0, 0.5, 0.25)


def by_chance(sae: SparseCoder, part: float, generator: torch.Generator) -> Replacement:
    """The activation, off by `part` of the SAE's error in each frame, in a direction at random."""

    def replace(read: Tensor, written: Tensor) -> Tensor:
        length = (reconstruct(sae, read) - written).norm(dim=-1, keepdim=True)
        direction = torch.randn(written.shape, generator=generator)
        return written + part * length * direction / direction.norm(dim=-1, keepdim=True)

    return replace


def measured(
    model: HookedWhisper, sae: SparseCoder, corpus: Corpus, seeds: int
) -> tuple[dict[str, TranscriptErrors], list[str]]:
    """Transcripts of each version against the unhooked model's and the published text; languages of the clips."""
    ways = {"SAE": by_sae(sae)}
    for part in PARTS:
        for seed in range(seeds):
            ways[f"{part:g} of its length, seed {seed}"] = by_chance(sae, part, torch.Generator().manual_seed(seed))
    return changed_transcripts(model, find_site(model, sae, HOOK), ways, corpus)


def report(head: str, found: dict[str, TranscriptErrors], languages: Sequence[str]) -> str:
    """Two tables: words that differ, and the change of the word error rate."""
    lines = ["# How far transcripts move by themselves", "", head, ""]
    for figure, title in FIGURES.items():
        lines += [f"## {title}", "", *language_table("error", found, languages, figure), ""]
    return "\n".join(lines)


def main() -> None:
    """Measures, and writes the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("prompts", "out"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--sae", default="whisper-base/encoder.hook_out", help="a shipped SAE, a folder or a run")
    parser.add_argument("--seeds", type=int, default=2, help="directions at random, of each length")
    parser.add_argument("--clips", type=int, help="so many at most")
    options = parser.parse_args()
    model = HookedWhisper.from_pretrained("openai/whisper-base")
    sae = load_sae(options.sae).to(dtype=torch.float32)
    corpus = Corpus.from_manifest(options.prompts / "manifest.jsonl").where(kind="speech").split(0.1, by="key")[1]
    if options.clips is not None:
        corpus = corpus.where(id=[item.id for item in corpus][: options.clips])
    found, languages = measured(model, sae, corpus, options.seeds)
    flags = "".join(
        f" --{name} {getattr(options, name)}"
        for name in ("sae", "seeds", "clips")
        if getattr(options, name) != parser.get_default(name)
    )
    head = (
        f"Written by `python tools/noise_floor.py prompts OUT{flags}`: hooked-whisper {__version__}, torch "
        f"{torch.__version__}. {len(languages)} prompts that were held out. In each frame with audio the activation is "
        "replaced by the SAE's reconstruction, or moved by as much as that is off, or a part of it, in a direction at "
        "random. Brackets: 95 % intervals over resampled clips."
    )
    text = report(head, found, languages)
    options.out.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
