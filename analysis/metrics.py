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

from hooked_whisper.analysis.checks import check_whole, described, expect, expect_all
from hooked_whisper.errors import AnalysisError, TextError
from hooked_whisper.model import HookedWhisper

TOKENS = "tokens, as texts or numbers, such as ' yes' or [' yes', 50257]"


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
    """Vocabulary entries; a text must be one token, exactly as `model.to_single_token` takes it: no space is added.

    Raises:
        AnalysisError: a text that is no single token, or a number outside the vocabulary.
    """
    found = []
    for token in [tokens] if isinstance(tokens, (int, str)) else expect_all(tokens, (int, str), TOKENS):
        number = _single_token(model, token) if isinstance(token, str) else token
        if not 0 <= number < model.cfg.d_vocab:
            raise AnalysisError(f"Token {number} is outside the vocabulary of {model.cfg.d_vocab}.")
        found.append(number)
    if not found:
        raise AnalysisError("No token was given.")
    return found


def _single_token(model: HookedWhisper, text: str) -> int:
    try:
        return model.to_single_token(text)
    except TextError as error:
        to_tokens, spaced = model._need_tokenizer().to_tokens, f" {text}"
        if text and len(to_tokens(spaced, prefix_space=False)) == 1:
            raise AnalysisError(
                f"{text!r} is no single token, and {spaced!r}, with the space before it, is one: words within a text "
                "begin with their space."
            ) from error
        pieces = to_tokens(text, prefix_space=False)
        raise AnalysisError(
            f"{text!r} is {len(pieces)} tokens, {model.to_str_tokens(pieces)}, expected one: give the first one's "
            "text, or its number."
        ) from error


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
        """With tokens as numbers or exact texts (" cat" and "cat" are two); several of a side are averaged.

        Raises:
            AnalysisError: a text that is no single token, or a number outside the vocabulary.
        """
        return cls(tuple(token_ids(model, answer)), tuple(token_ids(model, wrong)), pos)

    def __post_init__(self) -> None:
        for side in (self.answer, self.wrong):
            if not isinstance(side, tuple) or not side:
                raise AnalysisError(
                    f"Expected a tuple of token numbers, got {described(side)}: LogitDifference((1,), (2,)), or "
                    "LogitDifference.of(model, ' yes', ' no')."
                )
            for token in side:
                check_whole("token", token, 0)
        check_whole("pos", self.pos, None)

    def __call__(self, logits: Float[Tensor, "batch pos vocab"]) -> Float[Tensor, "batch"]:
        if not -logits.shape[1] <= self.pos < logits.shape[1]:
            raise AnalysisError(f"There is no position {self.pos}: the run has {logits.shape[1]}, prompt included.")
        _check_vocabulary(max(*self.answer, *self.wrong), logits)
        at = logits[:, self.pos].float()
        return at[:, list(self.answer)].mean(1) - at[:, list(self.wrong)].mean(1)


@dataclass(frozen=True)
class LogProbability:
    """Log-probability in nats of `tokens` from position `start` on, each given those before it.

    `tokens` are what the decoder was fed, prompt included, so `start` is usually the prompt's length. `mask` is False
    where a clip's tokens are padding.

    Raises:
        AnalysisError: tokens or a mask of another shape than the run's, or nothing to predict.
    """

    tokens: Int[Tensor, "batch pos"]
    start: int
    mask: Bool[Tensor, "batch pos"] | None = None
    mean: bool = False

    def __post_init__(self) -> None:
        expect(self.tokens, Tensor, "tokens, a tensor of whole numbers [batch pos]")
        if self.tokens.ndim != 2 or self.tokens.is_floating_point():
            raise AnalysisError(f"Expected tokens as whole numbers [batch pos], got {described(self.tokens)}.")
        check_whole("start", self.start, None)
        if not 0 < self.start < self.tokens.shape[1]:
            raise AnalysisError(
                f"start={self.start} leaves nothing to predict of {self.tokens.shape[1]} tokens: expected 1 to "
                f"{self.tokens.shape[1] - 1}."
            )
        _check_mask(self.mask, self.tokens.shape, self.start)

    def __call__(self, logits: Float[Tensor, "batch pos vocab"]) -> Float[Tensor, "batch"]:
        batch, n_pos = self.tokens.shape
        if batch not in (1, len(logits)) or n_pos > logits.shape[1]:
            raise AnalysisError(
                f"The metric's tokens are {batch} x {n_pos}, the run has {len(logits)} clips of {logits.shape[1]} "
                "positions: give the tokens that the decoder is fed."
            )
        _check_vocabulary(int(self.tokens.max()), logits)
        logprobs = logits[:, self.start - 1 : n_pos - 1].float().log_softmax(-1)
        targets = self.tokens[:, self.start :, None].expand(len(logits), -1, 1)
        found = logprobs.gather(-1, targets)[..., 0]
        mask = torch.ones_like(found) if self.mask is None else self.mask[:, self.start :].to(found)
        total = (found * mask).sum(1)
        return total / mask.sum(1) if self.mean else total


@dataclass(frozen=True)
class KLDivergence:
    """Kullback-Leibler divergence in nats of the run from `reference` logits, mean over positions from `start` on.

    At the reference itself value and gradient are 0: attribution towards it needs steps in between.

    Raises:
        AnalysisError: a reference or a mask of another shape than the run's, or no positions to take the mean of.
    """

    reference: Float[Tensor, "batch pos vocab"]
    start: int = 0
    mask: Bool[Tensor, "batch pos"] | None = None

    def __post_init__(self) -> None:
        expect(self.reference, Tensor, "a reference, logits [batch pos vocab] such as pair.clean.logits(model)")
        if self.reference.ndim != 3:
            raise AnalysisError(f"Expected reference logits [batch pos vocab], got {described(self.reference)}.")
        check_whole("start", self.start, 0, self.reference.shape[1] - 1)
        _check_mask(self.mask, self.reference.shape[:2], self.start)

    def __call__(self, logits: Float[Tensor, "batch pos vocab"]) -> Float[Tensor, "batch"]:
        if self.reference.shape[1:] != logits.shape[1:] or len(self.reference) not in (1, len(logits)):
            raise AnalysisError(
                f"The reference logits are {tuple(self.reference.shape)}, the run's {tuple(logits.shape)}: expected "
                "the same clips, positions and vocabulary."
            )
        wanted = self.reference[:, self.start :].float().log_softmax(-1)
        found = logits[:, self.start :].float().log_softmax(-1)
        divergence = (wanted.exp() * (wanted - found)).sum(-1)
        mask = torch.ones_like(divergence) if self.mask is None else self.mask[:, self.start :].to(divergence)
        return (divergence * mask).sum(1) / mask.sum(1)


def _check_vocabulary(token: int, logits: Tensor) -> None:
    if token >= logits.shape[2]:
        raise AnalysisError(f"Token {token} is outside the vocabulary of {logits.shape[2]}.")


def _check_mask(mask: Tensor | None, shape: tuple[int, ...], start: int) -> None:
    """A mask must be there for every token, and leave something of every clip: a metric of nothing would read 0."""
    if mask is None:
        return
    expect(mask, Tensor, "a mask, a tensor of True and False [batch pos]")
    if mask.shape != tuple(shape) or mask.dtype != torch.bool:
        raise AnalysisError(f"Expected a mask of True and False, shape {tuple(shape)}, got {described(mask)}.")
    empty = (~mask[:, start:].any(1)).nonzero()[:, 0].tolist()
    if empty:
        raise AnalysisError(f"The mask leaves nothing of clips {empty} from position {start} on.")
