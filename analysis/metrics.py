"""What a run is judged by: functions of the logits, with a gradient, that give each clip one number.

    metric = LogitDifference.of(model, " cat", " dog")       # at the last position
    metric = LogProbability(tokens, start=4)                 # of a transcript
    metric(model(audio, text))                               # [batch]

Any function `logits [batch pos vocab] -> [batch]` will do wherever a metric is taken.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hooked_whisper.errors import AnalysisError
from hooked_whisper.model import HookedWhisper


@runtime_checkable
class Metric(Protocol):
    """Logits to one number for each clip."""

    def __call__(self, logits: Float[Tensor, "batch pos vocab"], /) -> Float[Tensor, "batch"]: ...


def check_metric(values: object, batch: int, *, gradient: bool = False) -> Tensor:
    """The metric's values, if they are what a metric has to return.

    Raises:
        AnalysisError: not a tensor, not one number for each clip, not finite, or without the gradient that is needed.
    """
    if not isinstance(values, Tensor):
        raise AnalysisError(f"The metric returned {type(values).__name__}, expected a tensor [batch].")
    if values.shape != (batch,):
        raise AnalysisError(
            f"The metric returned shape {tuple(values.shape)}, expected ({batch},): one number for each clip."
        )
    if not torch.isfinite(values).all():
        raise AnalysisError(f"The metric is not finite: {values.tolist()}.")
    if gradient and not values.requires_grad:
        raise AnalysisError(
            "The metric has no gradient: it must be computed from the logits with torch operations that have one. "
            "Error rates and other counts have none; sweep them with exact patching instead."
        )
    return values


def token_ids(model: HookedWhisper, tokens: int | str | Sequence[int | str]) -> list[int]:
    """Vocabulary entries; a text must be one token.

    Raises:
        AnalysisError: a text of several tokens, or a number outside the vocabulary.
    """
    found = []
    for token in [tokens] if isinstance(tokens, (int, str)) else tokens:
        if isinstance(token, str):
            ids = model.to_tokens(token)
            if len(ids) != 1:
                raise AnalysisError(
                    f"{token!r} is {len(ids)} tokens, {model.to_str_tokens(token)}, expected one: give the first one's "
                    "text, with the space before it, or its number."
                )
            token = int(ids[0])  # type: ignore[arg-type]
        if not 0 <= token < model.cfg.d_vocab:
            raise AnalysisError(f"Token {token} is outside the vocabulary of {model.cfg.d_vocab}.")
        found.append(token)
    if not found:
        raise AnalysisError("No token was given.")
    return found


@dataclass(frozen=True)
class LogitDifference:
    """Mean logit of `answer` less that of `wrong`, at one position (default: the last).

    A difference of logits is one of log-probabilities, and blind to whatever raises both.
    """

    answer: tuple[int, ...]
    wrong: tuple[int, ...]
    pos: int = -1

    @classmethod
    def of(
        cls,
        model: HookedWhisper,
        answer: int | str | Sequence[int | str],
        wrong: int | str | Sequence[int | str],
        *,
        pos: int = -1,
    ) -> LogitDifference:
        """With tokens as text or numbers; several of a side are averaged."""
        return cls(tuple(token_ids(model, answer)), tuple(token_ids(model, wrong)), pos)

    def __call__(self, logits: Float[Tensor, "batch pos vocab"]) -> Float[Tensor, "batch"]:
        at = logits[:, self.pos].float()
        return at[:, list(self.answer)].mean(1) - at[:, list(self.wrong)].mean(1)


@dataclass(frozen=True)
class LogProbability:
    """Log-probability in nats of `tokens` from position `start` on, each given those before it.

    `tokens` are what the decoder was fed, prompt included, so `start` is usually the prompt's length. `mask` is False
    where a clip's tokens are padding.
    """

    tokens: Int[Tensor, "batch pos"]
    start: int
    mask: Bool[Tensor, "batch pos"] | None = None
    mean: bool = False

    def __call__(self, logits: Float[Tensor, "batch pos vocab"]) -> Float[Tensor, "batch"]:
        if not 0 < self.start < self.tokens.shape[1]:
            raise AnalysisError(
                f"start={self.start} leaves nothing to predict of {self.tokens.shape[1]} tokens: expected 1 to "
                f"{self.tokens.shape[1] - 1}."
            )
        logprobs = logits[:, self.start - 1 : self.tokens.shape[1] - 1].float().log_softmax(-1)
        targets = self.tokens[:, self.start :, None].expand(len(logits), -1, 1)
        found = logprobs.gather(-1, targets)[..., 0]
        mask = torch.ones_like(found) if self.mask is None else self.mask[:, self.start :].to(found)
        total = (found * mask).sum(1)
        return total / mask.sum(1).clamp(min=1) if self.mean else total


@dataclass(frozen=True)
class KLDivergence:
    """Kullback-Leibler divergence in nats of the run from `reference` logits, mean over positions from `start` on.

    At the reference itself value and gradient are 0: attribution towards it needs steps in between.
    """

    reference: Float[Tensor, "batch pos vocab"]
    start: int = 0
    mask: Bool[Tensor, "batch pos"] | None = None

    def __call__(self, logits: Float[Tensor, "batch pos vocab"]) -> Float[Tensor, "batch"]:
        wanted = self.reference[:, self.start :].float().log_softmax(-1)
        found = logits[:, self.start :].float().log_softmax(-1)
        divergence = (wanted.exp() * (wanted - found)).sum(-1)
        mask = torch.ones_like(divergence) if self.mask is None else self.mask[:, self.start :].to(divergence)
        return (divergence * mask).sum(1) / mask.sum(1).clamp(min=1)
