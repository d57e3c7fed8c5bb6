"""Attention rollout: how much of each input reaches each position, if attention alone decides.

    rolled = attention_rollout(cache, "encoder")         # what of the audio is in each frame of the encoder's output
    rolled = attention_rollout(cache, "decoder")         # what of the audio, and of the text, is behind each token

Each layer mixes positions by its mean pattern over heads and keeps `residual` of what was there; the mixtures of all
layers are multiplied (Abnar & Zuidema 2020, "Quantifying Attention Flow in Transformers"). Rows sum to 1. It knows
nothing of values and MLPs, so it says where information can come from, not what it does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from hooked_whisper.analysis.checks import CACHE, check_clip, expect
from hooked_whisper.analysis.figures import new_figure
from hooked_whisper.audio import FRAMES_PER_SECOND
from hooked_whisper.cache import WhisperCache
from hooked_whisper.errors import AnalysisError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FUSIONS = ("mean", "max", "min")
if TYPE_CHECKING:
    Stack = Literal["encoder", "decoder"]
    Fusion = Literal["mean", "max", "min"]
else:
    Stack = Fusion = str  # checked here, with a message that says more than a type checker's


@dataclass(frozen=True)
class Rollout:
    """How much of each input is behind each position of one clip.

    Attributes:
        frames: shares of the encoder's frames (of its input, or of its output: see `attention_rollout`).
        tokens: shares of the decoder's input tokens; None for the encoder.
        n_frames: frames that hold audio; those after them are padding.
        labels: the tokens of the rows, for the decoder.
    """

    frames: Float[Tensor, "query frame"]
    tokens: Float[Tensor, "query query"] | None
    n_frames: int
    labels: tuple[str, ...] = ()

    @property
    def in_padding(self) -> Float[Tensor, " query"]:
        """What of each row falls on frames without audio."""
        return self.frames[:, self.n_frames :].sum(1)

    def plot(self) -> Figure:
        """The frames that hold audio to the right, positions down.

        Raises:
            MissingExtraError: matplotlib is not installed.
        """
        rows = self.frames if self.labels else self.frames[: self.n_frames]
        seconds = self.n_frames / FRAMES_PER_SECOND
        figure = new_figure(8.0, 1.0 + 0.24 * len(self.labels) if self.labels else 6.0)
        ax = figure.add_subplot()
        bottom = len(rows) - 0.5 if self.labels else seconds
        shown = rows[:, : self.n_frames].cpu().numpy()
        image = ax.imshow(shown, aspect="auto", extent=(0.0, seconds, bottom, -0.5 if self.labels else 0.0))
        if self.labels:
            ax.set_yticks(range(len(self.labels)), [label.strip() or "␣" for label in self.labels])
        ax.set_ylabel("fed token" if self.labels else "seconds, after the encoder")
        ax.set_xlabel("seconds of audio")
        figure.colorbar(image, ax=ax, label="share")
        return figure


@torch.no_grad()
def attention_rollout(
    cache: WhisperCache,
    stack: Stack,
    *,
    clip: int = 0,
    residual: float = 0.5,
    fusion: Fusion = "mean",
    to_input: bool = True,
) -> Rollout:
    """Rollout of one clip over all layers of a stack.

    In the decoder each layer's self-attention mixes tokens, and its cross-attention then brings in frames:
    1 - `residual` of each row comes from them. With `to_input` those are traced through the encoder, too.

    Costs a matrix product of frames x frames for each layer of the encoder, and its patterns (72 MB a layer for
    whisper-base), which are read one layer at a time.

    Args:
        cache: of a run whose patterns (or q and k) of the stack were kept; for the decoder's `to_input`, of both.
        residual: share that passes by each attention, from 0 up to, but not including, 1.
        fusion: how heads are put together: "mean", or "max" or "min" over heads, scaled back to sum to 1.
        to_input: for the decoder: shares of the frames that enter the encoder's layers, not of its output.

    Raises:
        AnalysisError: an unknown stack or fusion, a residual out of range, a clip that is not there, a cache cut in
            time. CacheError: patterns that were not kept.
    """
    expect(cache, WhisperCache, CACHE)
    if stack not in ("encoder", "decoder"):
        raise AnalysisError(f"Unknown stack {stack!r}: expected 'encoder' or 'decoder'.")
    if fusion not in FUSIONS:
        raise AnalysisError(f"Unknown fusion {fusion!r}: expected {', '.join(FUSIONS)}.")
    if not 0 <= residual < 1:
        raise AnalysisError(f"residual={residual} is no share that leaves room for attention: expected 0 to below 1.")
    check_clip(clip, cache.n_clips)
    if cache.is_cut:
        raise AnalysisError("Rollout is over the whole window: call this on the cache before seconds() or word().")
    mixing = _Mixing(cache, clip, residual, fusion)
    if stack == "encoder":
        return Rollout(mixing.encoder(), None, cache.n_frames(clip))
    tokens, frames = mixing.decoder(len(cache.clip_tokens(clip)))
    frames = frames @ mixing.encoder() if to_input else frames
    labels = cache.str_tokens(clip) if cache.model is not None and cache.model.tokenizer is not None else None
    named = tuple(labels if labels is not None else map(str, cache.clip_tokens(clip)))
    return Rollout(frames, tokens, cache.n_frames(clip), named)


@dataclass(frozen=True)
class _Mixing:
    """One clip's attention as mixtures of positions."""

    cache: WhisperCache
    clip: int
    residual: float
    fusion: str

    def pattern(self, attention: str, rows: int | None = None) -> Float[Tensor, "query key"]:
        """An attention's pattern over all heads together."""
        pattern = self.cache[f"{attention}.hook_pattern"]
        pattern = (pattern[self.clip] if self.cache.has_batch_dim else pattern)[:, :rows].float()
        if self.fusion == "mean":
            return pattern.mean(0)
        fused = pattern.amax(0) if self.fusion == "max" else pattern.amin(0)
        total = fused.sum(-1, keepdim=True)
        return torch.where(total > 0, fused / total, pattern.mean(0))  # heads that share no key have no common pattern

    def encoder(self) -> Float[Tensor, "frame frame"]:
        """Shares of the frames that enter the first layer."""
        rolled: Tensor | None = None
        for layer in range(self.cache.cfg.encoder.n_layers):
            pattern = self.pattern(f"encoder.blocks.{layer}.attn")
            if rolled is None:
                rolled = torch.eye(len(pattern), device=pattern.device)
            rolled = self.residual * rolled + (1 - self.residual) * pattern @ rolled
        assert rolled is not None
        return rolled

    def decoder(self, n_tokens: int) -> tuple[Float[Tensor, "pos pos"], Float[Tensor, "pos frame"]]:
        """Shares of the tokens that enter the first layer, and of the encoder's output."""
        keep, take = self.residual, 1 - self.residual
        tokens: Tensor | None = None
        frames: Tensor | None = None
        for layer in range(self.cache.cfg.decoder.n_layers):
            mix = self.pattern(f"decoder.blocks.{layer}.attn", n_tokens)[:, :n_tokens]
            heard = self.pattern(f"decoder.blocks.{layer}.cross_attn", n_tokens)
            if tokens is None or frames is None:
                tokens, frames = torch.eye(n_tokens, device=mix.device), torch.zeros_like(heard)
            tokens = keep * (keep * tokens + take * mix @ tokens)
            frames = keep * (keep * frames + take * mix @ frames) + take * heard
        assert tokens is not None and frames is not None
        return tokens, frames
