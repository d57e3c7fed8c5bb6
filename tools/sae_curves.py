"""What an SAE at the encoder's output gains from more data, longer training, more latents, and more of them active.

hooked-whisper prompts prompts
python -m hooked_whisper.saes.voices voices
python tools/sae_curves.py prompts voices work benchmarks/results/sae_curves.md       # three hours of one core

One thing at a time is changed in a shorter training than the shipped SAE's. All SAEs are measured on the same clips,
alone in their window: prompts whose sentences were left out, and speakers and languages that none has heard.
Transcripts are made of all prompts that were left out. `work` may be that of tools/train_shipped_sae.py, whose
activations are then not harvested again.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm
from train_shipped_sae import HOOK, heard
from transcript_changes import FIGURES, by_sae, changed_transcripts, language_table

from hooked_whisper import HookedWhisper, __version__
from hooked_whisper.saes import ActivationStore, Corpus, load_sae, train_sae
from hooked_whisper.saes.coding import find_site
from hooked_whisper.saes.corpus_item import CorpusItem
from hooked_whisper.saes.error_rates import TranscriptErrors
from hooked_whisper.saes.spliced_evaluation import (
    MEAN,
    ZERO,
    LossSums,
    Spliced,
    listen,
    mean_ablation,
    teacher_forced,
    transcripts,
    zero_ablation,
)

BATCH = 2048  # rows of a step
LONGEST = 12  # seconds, of the clips that are looked at
SHIPPED = "whisper-base/encoder.hook_out"


@dataclass(frozen=True)
class Training:
    """One point of the curves.

    Attributes:
        share: of the clips that there are.
        rows: to train on; those that there are, over again.
    """

    share: float = 1.0
    rows: int = 1_500_000
    d_sae: int = 2048
    k: int = 45

    @property
    def name(self) -> str:
        return f"share{self.share:g}-rows{self.rows}-latents{self.d_sae}-k{self.k}"


MIDDLE = Training()
CURVES: dict[str, list[Training]] = {
    "k, active latents": [replace(MIDDLE, k=k) for k in (32, 45, 64, 96)],
    "share of the clips": [replace(MIDDLE, share=share) for share in (0.125, 0.25, 0.5, 1)],
    "latents": [replace(MIDDLE, d_sae=d_sae) for d_sae in (512, 1024, 2048, 4096, 8192)],
    "rows trained on": [replace(MIDDLE, rows=rows) for rows in (375_000, 750_000, 1_500_000, 3_000_000)],
}


def trained(training: Training, store: ActivationStore, work: Path) -> Any:
    """The SAE of one point; kept in `work`, and gone on with where it was interrupted."""
    if training.share < 1:
        store = store.split(1 - training.share, seed=1)[0]
    return train_sae(
        store, hook=HOOK, architecture="topk", k=training.k, d_sae=training.d_sae, out=work / training.name,
        total_training_samples=training.rows, train_batch_size_samples=BATCH, lr=6e-4,
        normalize_activations="expected_average_only_in", dead_feature_window=200, held_out=0.02, evaluate_every=0,
        evaluation_rows=8192, log="nothing",
    )  # fmt: skip


def looked_at(corpus: Corpus, n_clips: int, *, by_language: bool) -> list[CorpusItem]:
    """So many clips, of all languages together or of each."""
    items = [item for item in corpus if float(item.columns["seconds"] or 0) <= LONGEST]
    items = [items[i] for i in np.random.default_rng(0).permutation(len(items))]
    if not by_language:
        return items[:n_clips]
    languages = sorted({item.language or "" for item in items})
    return [item for code in languages for item in [one for one in items if one.language == code][:n_clips]]


@torch.no_grad()
def measured(
    model: HookedWhisper, saes: Mapping[str, Any], corpus: Corpus, items: Sequence[CorpusItem], mean: torch.Tensor
) -> dict[str, dict[str, float]]:
    """FVU, KL and share of the cross-entropy recovered of each SAE, on the model's own transcripts."""
    site = find_site(model, next(iter(saes.values())), HOOK)
    sums, errors, rows = LossSums(), dict.fromkeys(saes, 0.0), []
    for at in tqdm(range(0, len(items), 4), desc=corpus.name, unit="batch"):
        part = items[at : at + 4]
        sounds = [corpus.load(item) for item in part]
        known = [(sound, item.language) for sound, item in zip(sounds, part, strict=True) if sound is not None]
        batch = listen(model, [sound for sound, _ in known], [language for _, language in known], site)
        texts = transcripts(model, batch.encoder_out, batch.languages)
        own = batch.encoder_out[batch.frame_mask]
        rows.append(own.double())
        each = {name: by_sae(sae) for name, sae in saes.items()}
        for name, sae in saes.items():
            errors[name] += (sae(own[None])[0] - own).double().pow(2).sum().item()
        each |= {ZERO: zero_ablation, MEAN: mean_ablation(mean)}
        ways = {name: Spliced(model, site, [way] * len(known), batch, False) for name, way in each.items()}
        numbers = range(at, at + len(known))
        sums.add(model, batch, teacher_forced(model, batch, texts), ways, list(numbers))
    together = torch.cat(rows)
    variance = (together - together.mean(0)).pow(2).sum().item()
    found = {}
    for name in saes:
        loss = sums.result(name)
        assert loss is not None
        found[name] = {"fvu": errors[name] / variance, "kl": loss.kl.value, "recovered": loss.recovered_from_zero.value}
    return found


FIELDS = {"k, active latents": "k", "share of the clips": "share", "rows trained on": "rows", "latents": "d_sae"}


def report(
    found: Mapping[str, Mapping[str, Mapping[str, float]]],
    heard: tuple[Mapping[str, TranscriptErrors], Sequence[str]],
    head: str,
    as_shipped: str,
) -> str:
    """The tables; `heard` are the transcripts and their languages, `as_shipped` says what the shipped SAE is."""
    parts = list(found)
    shown = " | ".join(f"{what}, {part}" for part in parts for what in ("FVU", "KL", "recovered"))
    errors, languages = heard

    def cells(name: str) -> str:
        values = [found[part][name] for part in parts]
        return " | ".join(f"{one['fvu']:.3f} | {one['kl']:.4f} | {one['recovered']:.4f}" for one in values)

    def tables(title: str, rows: Mapping[str, str]) -> list[str]:
        lines = [f"| {title} | {shown} |", "|---" * (1 + 3 * len(parts)) + "|"]
        lines += [f"| {label} | {cells(name)} |" for name, label in rows.items()]
        for figure, what in FIGURES.items():
            part = {name: errors[name] for name in rows}
            lines += ["", f"{what}:", "", *language_table(title, part, languages, figure, rows.__getitem__)]
        return lines

    lines = ["# More data, steps, latents, active latents", "", head, ""]
    for title, points in CURVES.items():
        rows = {one.name: f"{getattr(one, FIELDS[title]):,}" for one in points if one.name in found[parts[0]]}
        if rows:
            lines += [f"## {title}", "", *tables(title, rows), ""]
    return "\n".join([*lines, "## As shipped", "", *tables("", {SHIPPED: as_shipped})])


def main() -> None:
    """Trains what is not there yet, measures, and writes the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("prompts", "voices", "work", "out"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--only", nargs="+", choices=list(CURVES), default=list(CURVES), help="these curves")
    parser.add_argument("--clips", type=int, default=150, help="prompts to look at, all languages together")
    parser.add_argument("--of-each", type=int, default=10, help="clips of each language that was not heard")
    options = parser.parse_args()
    store = heard(options.prompts, options.voices, options.work)
    points = {one.name: one for title in options.only for one in CURVES[title]}
    saes: dict[str, Any] = {SHIPPED: load_sae(SHIPPED).to(dtype=torch.float32)}
    for name, one in tqdm(points.items(), desc="training", unit="SAE"):
        saes[name] = trained(one, store, options.work / "curves").to(dtype=torch.float32)
    model = HookedWhisper.from_pretrained("openai/whisper-base")
    held_out = Corpus.from_manifest(options.prompts / "manifest.jsonl").where(kind="speech").split(0.1, by="key")[1]
    unheard = Corpus.from_manifest(options.voices / "manifest.jsonl", on_error="skip").where(split="held-out")
    mean = store.rows(HOOK, 0, 100_000).float().mean(0)
    parts = {
        "held out": (held_out, looked_at(held_out, options.clips, by_language=False)),
        "unheard": (unheard, looked_at(unheard, options.of_each, by_language=True)),
    }
    found = {name: measured(model, saes, corpus, items, mean) for name, (corpus, items) in parts.items()}
    options.out.with_suffix(".json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    site = find_site(model, saes[SHIPPED], HOOK)
    changes = changed_transcripts(model, site, {name: by_sae(sae) for name, sae in saes.items()}, held_out)
    shipped = saes[SHIPPED].cfg
    looked = ", ".join(f"{len(items) - len(corpus.skipped)} clips {name}" for name, (corpus, items) in parts.items())
    head = (
        f"Written by `python tools/sae_curves.py prompts voices work OUT --clips {options.clips} --of-each "
        f"{options.of_each}`: hooked-whisper {__version__}, torch {torch.__version__}, one run of each. "
        f"{store.n_rows:,} rows are there to train on; what is not said is all clips, {MIDDLE.rows:,} rows, "
        f"{MIDDLE.d_sae:,} latents, k {MIDDLE.k}. Looked at: {looked}, each alone in its window, with the unhooked "
        f"model's own transcript; for transcripts all {len(changes[1])} prompts that were held out (brackets: 95 % "
        "intervals over resampled clips)."
    )
    text = report(found, changes, head, f"{shipped.d_sae:,} latents, k {shipped.k}")
    options.out.write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
