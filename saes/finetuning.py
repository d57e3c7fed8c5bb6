"""A short last training of an SAE on what it does to the model, after it has learnt to reconstruct.

Reconstruction counts every direction of an activation alike; the model does not. A few steps on the divergence between
the predictions of the plain model and of the model with the SAE in its hook's place close much of that gap.

Source: Karvonen 2025, "Revisiting End-To-End Sparse Autoencoder Training: A Short Finetune Is All You Need",
arXiv:2503.17272; Braun et al. 2024, "Identifying Functionally Important Features with End-to-End Sparse Dictionary
Learning", arXiv:2405.12241.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from hooked_whisper.errors import ConfigError, CorpusError, SaeError
from hooked_whisper.mel import HOP_LENGTH
from hooked_whisper.saes.coding import Site, SparseCoder, find_site
from hooked_whisper.saes.denormals import flushed_denormals
from hooked_whisper.saes.finetuning_files import FinetuningCheckpoint, names_digest
from hooked_whisper.saes.fingerprints import weights_fingerprint
from hooked_whisper.saes.spliced_evaluation import (
    ENCODER_OUT,
    Batch,
    Replacement,
    Spliced,
    listen,
    predicted,
    rows_at,
    teacher_forced,
    transcripts,
)

if TYPE_CHECKING:
    from hooked_whisper.model import HookedWhisper
    from hooked_whisper.saes.corpus import Corpus
    from hooked_whisper.saes.corpus_item import CorpusItem

_SMALLEST_VARIANCE = 1e-12


@dataclass
class Finetuning:
    """How it went, one entry for each step.

    Attributes:
        kl: mean KL(plain || spliced) of the next token, in nats.
        fvu: fraction of the variance of the step's rows that the SAE leaves unexplained.
        n_clips: clips that were heard, counted once for each time.
    """

    kl: list[float] = field(default_factory=list)
    fvu: list[float] = field(default_factory=list)
    n_clips: int = 0

    def __str__(self) -> str:
        if not self.kl:
            return "no step"
        tenth = max(1, len(self.kl) // 10)
        first, last = (fmean(self.kl[part]) for part in (slice(tenth), slice(-tenth, None)))
        before, after = (fmean(self.fvu[part]) for part in (slice(tenth), slice(-tenth, None)))
        return (
            f"{len(self.kl)} steps over {self.n_clips} clips; first to last tenth: "
            f"KL {first:.4f} -> {last:.4f} nats, FVU {before:.4f} -> {after:.4f}"
        )


def finetune_sae(
    model: HookedWhisper,
    sae: SparseCoder,
    corpus: Corpus,
    *,
    hook: str | None = None,
    epochs: int = 1,
    batch_size: int = 4,
    lr: float = 5e-5,
    fidelity: float = 1.0,
    seed: int = 0,
    memory: float = 4e9,
    checkpoint: str | os.PathLike[str] | None = None,
    checkpoint_every: int = 50,
    progress: bool | None = None,
) -> Finetuning:
    """Trains an SAE in place on KL(plain || spliced) + `fidelity` * FVU, over the model's own transcripts.

    Each clip is heard as the model hears it, alone in its window of 30 s; the SAE, without error term, replaces rows
    with audio (or tokens of the text), as in `evaluate_sae`. Clips longer than a window are left out. The learning rate
    falls in a line to nothing. The model's weights stay as they are.

    Args:
        sae: an SAE or transcoder of SAELens in the format for use, in float32, on the model's device.
        corpus: what to train on; keep the clips that it will be evaluated on out of it.
        hook: where the SAE belongs; None takes what its metadata says.
        fidelity: weight of the reconstruction; at 0 nothing keeps the SAE's output like the activation.
        seed: of the order of the clips.
        memory: bytes that may hold what the model heard and wrote, so that later epochs need not run it again: in
            whisper-base 4 MB for each clip at encoder.hook_out, 7 at another hook of its width in the encoder. Clips
            beyond are heard anew in every epoch. It changes nothing else.
        checkpoint: a file to write weights and state to every `checkpoint_every` batches and at the end. Where it is
            there already, of the same model, SAE, clips and settings, finetuning goes on from it: give the SAE as it
            was before, and its result is that of a run which was never stopped.
        progress: show a progress bar; None shows it where the output is a terminal.

    Raises:
        SaeError: an SAE that does not fit the model, one in half precision, or one with nothing to train; a checkpoint
            that is damaged, or of another finetuning.
        CorpusError: no clip of at most one window. LanguageError: a clip's language is none of the model's.
        ConfigError: settings out of range, or a loss that is not finite.
    """
    _check(sae, epochs, batch_size, lr, fidelity, checkpoint_every)
    site = find_site(model, sae, hook)
    weights = [weight for weight in sae.parameters() if weight.is_floating_point()]  # type: ignore[attr-defined]
    if not weights:
        raise SaeError(f"{type(sae).__name__} has no weights to train.")
    items = list(corpus)
    if model.tokenizer is not None:
        for code in {item.language for item in items if item.language}:  # before the first step, not in the middle
            model.tokenizer.language_code(code)
    saved = None
    if checkpoint is not None:
        settings = {
            "model": weights_fingerprint(model), "sae": weights_fingerprint(sae),  # type: ignore[arg-type]
            "hook": f"{site.read} -> {site.write}", "clips": names_digest(item.id for item in items),
            "n_clips": len(items), "epochs": epochs, "batch_size": batch_size, "lr": lr, "fidelity": fidelity,
            "seed": seed,
        }  # fmt: skip
        saved = FinetuningCheckpoint(Path(checkpoint), settings)
        saved.check()
    order = np.random.default_rng(seed)
    report = Finetuning()
    memo = _Memory(model, corpus, site, memory if epochs > 1 else 0)
    optimizer = torch.optim.Adam(weights, lr=lr)
    n_steps = epochs * -(-len(items) // batch_size)
    n_done = 0
    if saved is not None and (found := saved.load(sae, optimizer)) is not None:
        n_done, course = found
        report = Finetuning(**course)
    hidden = None if progress is None else not progress
    with (
        _training(model, weights),
        flushed_denormals(),
        tqdm(desc="finetune", unit="clip", total=epochs * len(items), disable=hidden) as bar,
    ):
        parts = (part for _ in range(epochs) for part in _batches(items, batch_size, order))
        for number, part in enumerate(parts, 1):
            bar.update(len(part))
            if number <= n_done:
                continue
            if clips := memo.of(part):
                for group in optimizer.param_groups:
                    group["lr"] = lr * (1 - len(report.kl) / n_steps)
                optimizer.zero_grad(set_to_none=True)
                kl, fvu = _losses(model, sae, site, clips)
                loss = kl + fidelity * fvu
                if not bool(torch.isfinite(loss)):
                    raise ConfigError(
                        f"After {len(report.kl)} steps the loss is {loss.item()}: lower the learning rate of {lr:g}."
                    )
                loss.backward()
                optimizer.step()
                report.kl.append(float(kl.detach()))
                report.fvu.append(float(fvu.detach()))
                report.n_clips += len(clips)
                bar.set_postfix(kl=f"{report.kl[-1]:.4f}", fvu=f"{report.fvu[-1]:.4f}", refresh=False)
            if saved is not None and number % checkpoint_every == 0:
                saved.save(number, sae, optimizer, asdict(report))
    if not report.kl:
        raise CorpusError(f"None of the {len(items)} clips of {corpus.name} could be used: they must fit one window.")
    if saved is not None and n_steps > n_done:
        saved.save(n_steps, sae, optimizer, asdict(report))
    sae.cfg.metadata.finetuned = {
        "loss": f"KL(plain || spliced) + {fidelity:g} * FVU",
        "clips": report.n_clips,
        "steps": len(report.kl),
        "lr": lr,
        "seed": seed,
    }
    return report


def _check(sae: SparseCoder, epochs: int, batch_size: int, lr: float, fidelity: float, checkpoint_every: int) -> None:
    if epochs < 1 or batch_size < 1:
        raise ConfigError(f"epochs={epochs} and batch_size={batch_size}: expected at least 1 of each.")
    if checkpoint_every < 1:
        raise ConfigError(f"checkpoint_every={checkpoint_every}: expected at least 1 batch.")
    if not lr > 0 or not fidelity >= 0:
        raise ConfigError(f"lr={lr} and fidelity={fidelity}: expected a rate above 0 and a weight of at least 0.")
    if sae.W_dec.dtype in (torch.float16, torch.bfloat16):
        raise SaeError(
            f"The SAE is in {str(sae.W_dec.dtype).removeprefix('torch.')}, too coarse for small steps: call "
            "sae.to(dtype=torch.float32) first."
        )


def _batches(items: Sequence[CorpusItem], batch_size: int, order: np.random.Generator) -> Iterator[list[CorpusItem]]:
    shuffled = [items[i] for i in order.permutation(len(items))]
    for at in range(0, len(shuffled), batch_size):
        yield shuffled[at : at + batch_size]


@contextmanager
def _training(model: HookedWhisper, weights: Sequence[Tensor]) -> Iterator[None]:
    """While it lasts, gradients go to the SAE's weights and to none of the model's."""
    wanted = {weight: weight.requires_grad for weight in [*model.parameters(), *weights]}
    for weight in wanted:
        weight.requires_grad_(False)
    for weight in weights:
        weight.requires_grad_(True)
    try:
        yield
    finally:
        for weight, before in wanted.items():
            weight.grad = None
            weight.requires_grad_(before)


@dataclass
class _Heard:
    """One clip as the unhooked model hears it: a batch of one, and the tokens it writes."""

    batch: Batch
    text: list[int]

    @property
    def n_bytes(self) -> int:
        held = {id(one): one for one in (self.batch.mel, self.batch.encoder_out, *self.batch.kept.values())}
        return sum(one.nbytes for one in held.values())


class _Memory:
    """Hears clips, and remembers as many as fit into so many bytes."""

    def __init__(self, model: HookedWhisper, corpus: Corpus, site: Site, room: float) -> None:
        self.model, self.corpus, self.site, self.room = model, corpus, site, room
        self.heard: dict[str, _Heard | None] = {}

    def of(self, items: Sequence[CorpusItem]) -> list[_Heard]:
        """What is heard in clips of at most one window, the others left out."""
        new = self._hear([item for item in items if item.id not in self.heard])
        found = [self.heard[item.id] if item.id in self.heard else new[item.id] for item in items]
        for key, heard in new.items():
            size = 0 if heard is None else heard.n_bytes
            if size <= self.room:
                self.room -= size
                self.heard[key] = heard
        return [heard for heard in found if heard is not None]

    def _hear(self, items: Sequence[CorpusItem]) -> dict[str, _Heard | None]:
        out: dict[str, _Heard | None] = dict.fromkeys(item.id for item in items)
        waveforms: dict[str, Tensor] = {}
        languages: list[str | None] = []
        for item in items:
            waveform = self.corpus.load(item)
            if waveform is not None and len(waveform) <= self.model.cfg.n_mel_frames * HOP_LENGTH:
                waveforms[item.id] = waveform
                languages.append(item.language)
        if not waveforms:
            return out
        batch = listen(self.model, list(waveforms.values()), languages, self.site)
        with torch.no_grad():
            texts = transcripts(self.model, batch.encoder_out, batch.languages)
        for i, (key, text) in enumerate(zip(waveforms, texts, strict=True)):
            here = slice(i, i + 1)
            own = batch.encoder_out[here].clone()
            kept = {name: own if name == ENCODER_OUT else value[here].clone() for name, value in batch.kept.items()}
            one = Batch(batch.mel[here].clone(), batch.frame_mask[here], own, batch.languages[here], kept)
            out[key] = _Heard(one, text)
        return out


def _together(heard: Sequence[_Heard]) -> tuple[Batch, list[list[int]]]:
    """Clips that were heard alone, or in other company, as one batch."""
    batches = [one.batch for one in heard]
    return Batch(
        mel=torch.cat([one.mel for one in batches]),
        frame_mask=torch.cat([one.frame_mask for one in batches]),
        encoder_out=torch.cat([one.encoder_out for one in batches]),
        languages=[code for one in batches for code in one.languages],
        kept={name: torch.cat([one.kept[name] for one in batches]) for name in batches[0].kept},
    ), [one.text for one in heard]


def _losses(
    model: HookedWhisper, sae: SparseCoder, site: Site, clips: Sequence[_Heard]
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """KL in nats a token, and FVU, of one batch."""
    batch, texts = _together(clips)
    with torch.no_grad():
        fed = teacher_forced(model, batch, texts)
        plain = model.decode(fed.tokens, batch.encoder_out)
        wanted = torch.cat([written.flatten(1) for _, written in rows_at(model, site, batch, fed)]).float()
    made: list[Tensor] = []

    def replace(read: Tensor, written: Tensor) -> Tensor:
        out = _coded(sae, read)
        made.append(out)
        return out.reshape(written.shape)

    each: list[Replacement] = [replace] * len(clips)
    logits = Spliced(model, site, each, batch, False).logits(fed)
    at = predicted(fed)
    log_p, log_q = plain[at].float().log_softmax(-1), logits[at].float().log_softmax(-1)
    kl = torch.nn.functional.kl_div(log_q, log_p, log_target=True, reduction="sum") / len(log_p)
    error = (torch.cat(made).float() - wanted).pow(2).sum()
    variance = (wanted - wanted.mean(0)).pow(2).sum().clamp(min=_SMALLEST_VARIANCE)
    return kl, error / variance


def _coded(sae: Any, rows: Float[Tensor, "row *width"]) -> Float[Tensor, "row d_out"]:
    """The SAE's output with its gradients."""
    wanted = rows if sae.cfg.reshape_activations == "hook_z" else rows.flatten(1)
    return sae(wanted[None].to(sae.W_dec.dtype))[0].flatten(1)
