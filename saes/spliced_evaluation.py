"""What an SAE in its hook's place does to the model: next-token distributions, cross-entropy, transcripts.

The SAE's output replaces the activation, without error term, and so do two ablations that set the scale: zeros, and
the mean row. All of them touch the same positions: by default frames with audio alone, so that what the encoder keeps
in padding frames stays what it is for each of them. Language and task are the unhooked model's, for every version.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutput

from hooked_whisper.axes import axes
from hooked_whisper.inputs import DecoderInput, language_codes, text_loss, with_prompts
from hooked_whisper.mel import frame_mask
from hooked_whisper.saes.coding import Site
from hooked_whisper.saes.estimates import N_RESAMPLES, Estimate, bootstrap, divide, ratio

if TYPE_CHECKING:
    from hooked_whisper.hooks import HookFunction
    from hooked_whisper.model import HookedWhisper

# From one clip's rows at the hook that is read and at the one that is written, each [row *width], to what stands there.
Replacement = Callable[[Tensor, Tensor], Tensor]
ZERO, MEAN = "zero", "mean"
ENCODER_OUT = "encoder.hook_out"


def zero_ablation(_read: Tensor, written: Tensor) -> Tensor:
    """Zeros."""
    return torch.zeros_like(written)


def mean_ablation(mean: Float[Tensor, " d_out"]) -> Replacement:
    """The same mean row everywhere."""

    def replace(_read: Tensor, written: Tensor) -> Tensor:
        return mean.to(written.device, written.dtype).reshape(1, *written.shape[1:]).expand_as(written)

    return replace


@dataclass
class Batch:
    """Clips in one forward: what the unhooked model makes of them.

    Attributes:
        mel: [batch mel mel_frame], windows of 30 s.
        frame_mask: [batch frame], True where there is audio.
        encoder_out: [batch frame d_model], unhooked.
        languages: Whisper's code of each clip; None in an English-only checkpoint.
        kept: activations of the encoder's hooks that were asked for, by name, unhooked.
    """

    mel: Float[Tensor, "batch mel mel_frame"]
    frame_mask: Bool[Tensor, "batch frame"]
    encoder_out: Float[Tensor, "batch frame d_model"]
    languages: list[str | None]
    kept: dict[str, Tensor]

    def positions(self, hook: str, token_mask: Bool[Tensor, "batch pos"] | None) -> Bool[Tensor, "batch position"]:
        """Where `hook` has rows: frames with audio, or tokens that are no padding."""
        kind = axes(hook)[1]
        if kind == "pos":
            assert token_mask is not None
            return token_mask
        return self.frame_mask.repeat_interleave(2, dim=1) if kind == "mel_frame" else self.frame_mask


@torch.no_grad()
def listen(
    model: HookedWhisper, clips: Sequence[Float[Tensor, "_"]], languages: Sequence[str | None], site: Site | None = None
) -> Batch:
    """Encodes clips of at most 30 s, keeping what `site` reads in the encoder; languages that are None are detected.

    Raises:
        AudioError: a longer clip. LanguageError: a language that the model does not know.
    """
    waveforms = [clip.to(model.device) for clip in clips]
    mel = model.log_mel(waveforms, model.cfg.n_mel_frames).to(model.dtype)
    names = [] if site is None else [name for name in (site.read, site.write) if name.startswith("encoder.")]
    kept: dict[str, Tensor] = {}
    hooks: list[tuple[str, HookFunction]] = []
    if names:
        kept, hooks, _ = model.get_caching_hooks(names)
    with model.hooks(fwd_hooks=hooks), model._guarded():
        encoder_out = model.encode_mel(mel)
    codes = language_codes(list(languages), len(waveforms), model.tokenizer)
    return Batch(
        mel=mel,
        frame_mask=frame_mask([len(clip) for clip in waveforms], model.cfg.n_frames).to(model.device),
        encoder_out=encoder_out,
        languages=model._complete_languages(encoder_out, codes),
        kept=kept,
    )


def transcripts(
    model: HookedWhisper,
    encoder_out: Float[Tensor, "batch frame d_model"],
    languages: Sequence[str | None],
    limits: Sequence[int] | None = None,
) -> list[list[int]]:
    """Greedy tokens of each window, without prompt and end token, whatever hooks there are active.

    `limits` cuts each transcript after so many tokens; nothing is generated past the largest of them.
    """
    tokenizer = model._need_tokenizer()
    prompts = [tokenizer.prompt(code, "transcribe", False) for code in languages]
    options: dict[str, Any] = {}
    if tokenizer.is_multilingual:
        options |= {"language": list(languages), "task": "transcribe"}
    adapter = model.generation_adapter()
    if limits is not None:  # but never more than without them
        room = model.cfg.n_ctx - len(prompts[0])
        options["max_new_tokens"] = max(1, min(max(limits), room, adapter.generation_config.max_length or room))
    out = adapter.generate(
        encoder_outputs=BaseModelOutput(last_hidden_state=encoder_out),  # type: ignore[arg-type]
        return_timestamps=False,
        force_unique_generate_call=True,  # one window, one transcript: no seeking on after it
        num_beams=1,
        do_sample=False,
        **options,
    )
    rows = []
    for row, prompt in zip(out.tolist(), prompts, strict=True):
        text = row[len(prompt) :] if row[: len(prompt)] == prompt else row
        rows.append(text[: text.index(tokenizer.eot)] if tokenizer.eot in text else text)
    return rows if limits is None else [row[:limit] for row, limit in zip(rows, limits, strict=True)]


def teacher_forced(model: HookedWhisper, batch: Batch, texts: list[list[int]]) -> DecoderInput:
    """Prompts and texts as the decoder is fed them."""
    tokenizer = model._need_tokenizer()
    prompts = [tokenizer.prompt(code, "transcribe", False) for code in batch.languages]
    return with_prompts(texts, prompts, tokenizer, model.cfg.n_ctx, model.device)


@torch.no_grad()
def rows_at(model: HookedWhisper, site: Site, batch: Batch, fed: DecoderInput | None) -> list[tuple[Tensor, Tensor]]:
    """For each clip, the unhooked rows [row *width] at the hook that is read and at the one that is written.

    `fed` is what the decoder reads, for a site in the decoder.
    """
    kept = dict(batch.kept)
    if site.in_decoder:
        assert fed is not None
        names = [name for name in (site.read, site.write) if name not in kept]
        found, hooks, _ = model.get_caching_hooks(names)
        with model.hooks(fwd_hooks=hooks), model._guarded():
            model.decode(fed.tokens, batch.encoder_out)
        kept |= found
    token_mask = None if fed is None else fed.token_mask
    read, write = (batch.positions(name, token_mask) for name in (site.read, site.write))
    return [(kept[site.read][i, read[i]], kept[site.write][i, write[i]]) for i in range(len(batch.mel))]


@contextmanager
def replaced(
    model: HookedWhisper, site: Site, each: Sequence[Replacement], mask: Bool[Tensor, "batch position"] | None
) -> Iterator[None]:
    """While it lasts, each clip's replacement stands at the hook wherever `mask` is True, or everywhere."""
    seen: dict[str, Tensor] = {}

    def keep(activation: Tensor, hook: Any) -> None:
        seen[site.read] = activation

    def replace(activation: Tensor, hook: Any) -> Tensor:
        return replace_rows(each, seen.get(site.read, activation), activation, mask)

    hooks: list[tuple[str, HookFunction]] = [(site.write, replace)]
    if site.read != site.write:
        hooks.insert(0, (site.read, keep))
    with model.hooks(fwd_hooks=hooks):
        yield


def replace_rows(
    each: Sequence[Replacement], read: Tensor, written: Tensor, mask: Bool[Tensor, "batch position"] | None
) -> Tensor:
    """`written` with the rows of each clip replaced where `mask` is True (everywhere when None)."""
    out = written.clone()
    for i, replacement in enumerate(each):
        here = slice(None) if mask is None else mask[i]
        out[i, here] = replacement(read[i, here], written[i, here]).to(out.dtype)
    return out


@dataclass
class Spliced:
    """One way to splice, ready to run on one batch; `each` has a replacement for every clip."""

    model: HookedWhisper
    site: Site
    each: Sequence[Replacement]
    batch: Batch
    padding: bool  # whether padding frames are replaced, too

    def __post_init__(self) -> None:
        # The frames that cross-attention reads, once for all texts; an SAE in the decoder does not change them.
        self.encoder_out = self.batch.encoder_out
        if not self.site.in_decoder:
            mask = None if self.padding else self.batch.positions(self.site.write, None)
            if self.site.read == self.site.write == ENCODER_OUT:
                self.encoder_out = replace_rows(self.each, self.encoder_out, self.encoder_out, mask)
            else:
                with replaced(self.model, self.site, self.each, mask):
                    self.encoder_out = self.model.encode_mel(self.batch.mel)

    @contextmanager
    def _decoding(self, token_mask: Bool[Tensor, "batch pos"] | None) -> Iterator[None]:
        if not self.site.in_decoder:
            yield
            return
        over_tokens = axes(self.site.write)[1] == "pos"
        keep_all = token_mask is None if over_tokens else self.padding
        mask = None if keep_all else self.batch.positions(self.site.write, token_mask)
        with replaced(self.model, self.site, self.each, mask):
            yield

    def logits(self, fed: DecoderInput) -> Float[Tensor, "batch pos vocab"]:
        """Logits of the next token at every position."""
        with self._decoding(fed.token_mask):
            return self.model.decode(fed.tokens, self.encoder_out)

    def transcripts(self, limits: Sequence[int] | None = None) -> list[list[int]]:
        """Greedy tokens of each clip, at most as many as `limits` says."""
        with self._decoding(None):
            return transcripts(self.model, self.encoder_out, self.batch.languages, limits)


# Sums over the tokens of each clip


@dataclass(frozen=True)
class SplicedLoss:
    """What splicing does to predictions, over a group of clips, each clip's text and end token fed and predicted.

    Attributes:
        n_clips, n_tokens: how many clips and predicted tokens.
        ce_unhooked, ce_spliced, ce_zero, ce_mean: mean cross-entropy of a token, in nats.
        recovered_from_zero, recovered_from_mean: share of what the ablation costs that the SAE saves,
            (ablated - spliced) / (ablated - unhooked); not defined where the ablation costs nothing.
        kl: mean KL(unhooked || spliced) of the next-token distribution, in nats.
        agreement: share of tokens whose likeliest prediction stays the same.
    """

    n_clips: int
    n_tokens: int
    ce_unhooked: float
    ce_spliced: float
    ce_zero: float
    ce_mean: float
    recovered_from_zero: Estimate
    recovered_from_mean: Estimate
    kl: Estimate
    agreement: Estimate


@dataclass
class LossSums:
    """Fills up batch by batch, one row for each clip."""

    tokens: list[float] = field(default_factory=list)
    ce: dict[str, list[float]] = field(default_factory=dict)
    kl: dict[str, list[float]] = field(default_factory=dict)
    agreed: dict[str, list[float]] = field(default_factory=dict)
    clips: list[int] = field(default_factory=list)

    @torch.no_grad()
    def add(
        self,
        model: HookedWhisper,
        batch: Batch,
        fed: DecoderInput,
        ways: Mapping[str, Spliced],
        clips: Sequence[int],
        keep: Sequence[bool] | None = None,
    ) -> None:
        """One batch; `clips` numbers its clips in the corpus, and those whose `keep` is False are left out."""
        eot = model._need_tokenizer().eot
        plain = model.decode(fed.tokens, batch.encoder_out)
        at = predicted(fed)
        chosen = [i for i in range(len(clips)) if keep is None or keep[i]]
        self.clips += [clips[i] for i in chosen]
        self.tokens += at.sum(-1).double()[chosen].tolist()
        self._note(self.ce, "unhooked", _losses(plain, fed, eot), chosen)
        for name, spliced in ways.items():
            logits = spliced.logits(fed)
            self._note(self.ce, name, _losses(logits, fed, eot), chosen)
            compared = [_compare(plain[i, at[i]], logits[i, at[i]]) for i in range(len(clips))]
            divergence, agreed = torch.tensor(compared, dtype=torch.float64).unbind(-1)
            self._note(self.kl, name, divergence, chosen)
            self._note(self.agreed, name, agreed, chosen)

    @staticmethod
    def _note(where: dict[str, list[float]], name: str, values: Float[Tensor, " batch"], chosen: list[int]) -> None:
        where.setdefault(name, []).extend(values[chosen].tolist())

    def result(
        self, name: str, clips: Sequence[int] | None = None, *, n_resamples: int = N_RESAMPLES, seed: int = 0
    ) -> SplicedLoss | None:
        """Figures of the way called `name` over some clips of the corpus, all when None; None where none was read."""
        wanted = None if clips is None else set(clips)
        chosen = [i for i, clip in enumerate(self.clips) if wanted is None or clip in wanted]
        if not chosen:
            return None
        tokens = np.array(self.tokens)[chosen]
        plain, spliced, zero, mean = (np.array(self.ce[way])[chosen] for way in ("unhooked", name, ZERO, MEAN))

        def recovered(ablated: Float[np.ndarray, " clip"]) -> Estimate:
            def statistic(weights: Float[np.ndarray, "resample clip"]) -> Float[np.ndarray, " resample"]:
                return divide(weights @ (ablated - spliced), weights @ (ablated - plain))

            return bootstrap(statistic, len(chosen), n_resamples=n_resamples, seed=seed)

        def per_token(values: list[float]) -> Estimate:
            over = np.array(values)[chosen]
            return bootstrap(ratio(over, tokens), len(chosen), n_resamples=n_resamples, seed=seed)

        total = float(tokens.sum())
        return SplicedLoss(
            n_clips=len(chosen),
            n_tokens=round(total),
            ce_unhooked=float(plain.sum()) / total,
            ce_spliced=float(spliced.sum()) / total,
            ce_zero=float(zero.sum()) / total,
            ce_mean=float(mean.sum()) / total,
            recovered_from_zero=recovered(zero),
            recovered_from_mean=recovered(mean),
            kl=per_token(self.kl[name]),
            agreement=per_token(self.agreed[name]),
        )


def _compare(plain: Float[Tensor, "pos vocab"], spliced: Float[Tensor, "pos vocab"]) -> tuple[float, float]:
    """Sums over positions: KL(plain || spliced) in nats, and how often the likeliest token is the same."""
    log_p, log_q = plain.float().log_softmax(-1), spliced.float().log_softmax(-1)
    divergence = (log_p.exp() * (log_p - log_q)).sum(-1).clamp(min=0)  # below 0 by rounding alone
    return float(divergence.double().sum()), float((log_p.argmax(-1) == log_q.argmax(-1)).sum())


def predicted(fed: DecoderInput) -> Bool[Tensor, "batch pos"]:
    """Positions that predict a token of the text or the end token after it: from the prompt's last to the text's."""
    at = torch.arange(fed.tokens.shape[1], device=fed.tokens.device)
    starts = torch.tensor(fed.prompt_lengths, device=fed.tokens.device)[:, None] - 1
    return (at >= starts) & fed.token_mask


def _losses(logits: Float[Tensor, "batch pos vocab"], fed: DecoderInput, eot: int) -> Float[Tensor, " batch"]:
    return text_loss(logits, fed, eot, per_token=True).double().sum(-1)
