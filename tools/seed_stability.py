"""How much of what one SAE found another finds that differs in its seed alone: half an hour of a core.

hooked-whisper prompts prompts
python -m hooked_whisper.saes.voices voices
python tools/seed_stability.py prompts voices work benchmarks/results/seed_stability.md

Trained on what the shipped SAEs are (`work` may be that of tools/train_shipped_sae.py), compared on prompts that none
of them heard. A seed decides where weights start; rows come in the same order for all.
"""

from __future__ import annotations

import argparse
import copy
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from train_shipped_sae import HOOK, heard

from hooked_whisper import HookedWhisper, __version__
from hooked_whisper.saes import ActivationStore, Corpus, evaluate_sae, harvest, train_saes
from hooked_whisper.saes.estimates import Estimate
from hooked_whisper.saes.stability import SaeMatch, match_saes
from hooked_whisper.saes.training import SaeSettings

FIGURES = {
    "found again: nearest, cosine of at least 0.7": "found_again_nearest",
    "found again one to one": "found_again_one_to_one",
    "mutually nearest": "mutually_nearest",
    "mean cosine with the nearest": "mean_nearest_cosine",
    "fire together: IoU of at least 0.5 with some latent": "fire_together",
    "mean IoU with the one that fires most alike": "mean_best_iou",
}


def unheard_rows(model: HookedWhisper, prompts: Path, work: Path) -> ActivationStore:
    """Activations of the prompts that are held out, each clip alone in its window."""
    held_out = Corpus.from_manifest(prompts / "manifest.jsonl").where(kind="speech").split(0.1, seed=0, by="key")[1]
    return harvest(model, held_out, hooks=HOOK, out=work / "held_out", packing="none", batch_size=4)


@torch.no_grad()
def moved(sae: Any) -> Any:
    """A copy with the coordinates of the decoder's directions in another order."""
    other = copy.deepcopy(sae)
    order = torch.randperm(sae.W_dec.shape[1], generator=torch.Generator().manual_seed(0))
    other.W_dec.copy_(sae.W_dec[:, order])
    return other


def compared(saes: dict[str, Any], rows: torch.Tensor) -> tuple[dict[str, SaeMatch], SaeMatch]:
    """Every two of the SAEs, and the first two once more with the second's directions moved."""
    pairs = {f"{a} and {b}": match_saes(saes[a], saes[b], rows) for a, b in combinations(saes, 2)}
    first, second, *_ = saes.values()
    return pairs, match_saes(first, moved(second))


def report(command: str, fvu: dict[str, Estimate], pairs: dict[str, SaeMatch], chance: SaeMatch) -> str:
    """The table."""
    summaries = [match.summary().to_dict() for match in pairs.values()]
    alive = ", ".join(f"{one['n_alive_a']:,}" for one in summaries)
    lines = [
        "# Seeds", "",
        f"Written by `{command}`: hooked-whisper {__version__}, torch {torch.__version__}. Compared on "
        f"{summaries[0]['n_rows']:,} frames of prompts that none of them heard; over the latents that fire on them "
        f"({alive} of the first of each pair). FVU on these frames: "
        f"{', '.join(f'{value.value:.3f} ({name})' for name, value in fvu.items())}.", "",
        f"| | {' | '.join(pairs)} | by chance |", "|---" * (2 + len(pairs)) + "|",
    ]  # fmt: skip
    by_chance = chance.summary().to_dict()
    for title, name in FIGURES.items():
        direction_only = "IoU" not in title
        cells = [f"{one[name]:.3f}" for one in summaries]
        lines.append(f"| {title} | {' | '.join(cells)} | {f'{by_chance[name]:.3f}' if direction_only else ''} |")
    return "\n".join(
        [
            *lines,
            "",
            "By chance: the directions of the second with their coordinates in another order, over all latents.",
        ]
    )


def main() -> None:
    """Trains what is not there yet, compares, and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("prompts", "voices", "work", "out"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--latents", type=int, default=4096)
    parser.add_argument("--k", type=int, default=45)
    parser.add_argument("--rows", type=int, default=5_000_000, help="to train on; those that there are, over again")
    options = parser.parse_args()
    if options.seeds < 2:
        parser.error(f"--seeds {options.seeds}: expected at least two, to compare")
    store = heard(options.prompts, options.voices, options.work)
    settings = [
        SaeSettings(
            hook=HOOK, architecture="topk", d_sae=options.latents, k=options.k, lr=6e-4, seed=seed, name=f"seed {seed}",
            normalize_activations="expected_average_only_in", dead_feature_window=200,
        )
        for seed in range(options.seeds)
    ]  # fmt: skip
    saes = train_saes(
        store, settings, out=options.work / "seeds", total_training_samples=options.rows,
        train_batch_size_samples=2048, held_out=0.02, evaluate_every=0, checkpoint_every=400, log="nothing",
    )  # fmt: skip
    model = HookedWhisper.from_pretrained("openai/whisper-base")
    unheard = unheard_rows(model, options.prompts, options.work)
    fvu = {
        name: evaluate_sae(model, sae, unheard, splice=False).overall.reconstruction.fvu for name, sae in saes.items()
    }
    flags = "".join(
        f" --{name} {getattr(options, name)}"
        for name in ("seeds", "latents", "k", "rows")
        if getattr(options, name) != parser.get_default(name)
    )
    command = f"python tools/seed_stability.py prompts voices work OUT{flags}"
    text = report(command, fvu, *compared(saes, unheard.rows(HOOK).float()))
    options.out.write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
