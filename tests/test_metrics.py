"""Metrics: by hand, their gradients, and what is refused."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hooked_whisper import AnalysisError, HookedWhisper
from hooked_whisper.analysis.metrics import KLDivergence, LogitDifference, LogProbability, check_metric, token_ids


def logits(batch: int = 2, n_pos: int = 5, vocab: int = 11, seed: int = 0) -> torch.Tensor:
    return torch.randn(batch, n_pos, vocab, generator=torch.Generator().manual_seed(seed)).requires_grad_()


def test_logit_difference_by_hand() -> None:
    given_ = logits()
    found = LogitDifference((3, 4), (7,), pos=2)(given_)
    assert torch.allclose(found, (given_[:, 2, 3] + given_[:, 2, 4]) / 2 - given_[:, 2, 7])
    found.sum().backward()
    assert given_.grad is not None
    assert torch.equal(given_.grad[:, 2, 7], torch.tensor([-1.0, -1.0]))
    assert given_.grad.count_nonzero() == 6


@given(st.integers(1, 3), st.integers(2, 6), st.integers(0, 999))
@settings(max_examples=25, deadline=None)
def test_log_probability_is_minus_the_cross_entropy(batch: int, n_pos: int, seed: int) -> None:
    given_ = logits(batch, n_pos, seed=seed)
    tokens = torch.randint(0, 11, (batch, n_pos), generator=torch.Generator().manual_seed(seed))
    for start in range(1, n_pos):
        loss = torch.nn.functional.cross_entropy(
            given_[:, start - 1 : -1].transpose(1, 2), tokens[:, start:], reduction="none"
        )
        assert torch.allclose(LogProbability(tokens, start)(given_), -loss.sum(1), atol=1e-5)
        assert torch.allclose(LogProbability(tokens, start, mean=True)(given_), -loss.mean(1), atol=1e-5)


def test_log_probability_leaves_padding_out() -> None:
    given_ = logits()
    tokens = torch.zeros(2, 5, dtype=torch.long)
    mask = torch.tensor([[True] * 5, [True, True, True, False, False]])
    found = LogProbability(tokens, 2, mask)(given_)
    assert torch.allclose(found[1], given_[1, 1].log_softmax(-1)[0])


def test_kl_divergence() -> None:
    reference = logits(1, 1, 2).detach()
    p = reference[0, 0].softmax(-1)
    other = torch.zeros(1, 1, 2, requires_grad=True)
    by_hand = sum(float(q) * math.log(2 * float(q)) for q in p)
    assert KLDivergence(reference)(other).item() == pytest.approx(by_hand, abs=1e-6)
    assert KLDivergence(reference)(reference).item() == pytest.approx(0, abs=1e-6)
    first = logits()
    last_only = KLDivergence(first.detach(), start=4)(logits(seed=1))
    assert torch.allclose(last_only, KLDivergence(first[:, 4:].detach())(logits(seed=1)[:, 4:]))


def test_what_is_no_metric_is_refused() -> None:
    good = logits().sum((1, 2))
    assert check_metric(good, 2, gradient=True) is good
    for values, message in (
        (1.0, "returned float, expected a tensor"),
        (torch.zeros(3), r"shape \(3,\), expected \(2,\): one number for each clip"),
        (torch.tensor([0.0, math.nan]), "not finite"),
    ):
        with pytest.raises(AnalysisError, match=message):
            check_metric(values, 2)
    with pytest.raises(AnalysisError, match="no gradient: .* sweep them with exact patching"):
        check_metric(good.detach(), 2, gradient=True)
    with pytest.raises(AnalysisError, match="start=5 leaves nothing to predict of 5 tokens: expected 1 to 4"):
        LogProbability(torch.zeros(2, 5, dtype=torch.long), 5)(logits())


def test_tokens_by_text_or_number(whisper_base: HookedWhisper) -> None:
    the, stop, comma = (whisper_base.to_single_token(text) for text in (" the", ".", ","))
    assert token_ids(whisper_base, [" the", 5]) == [the, 5]
    assert LogitDifference.of(whisper_base, " the", 5, pos=1) == LogitDifference((the,), (5,), 1)
    # A text is the token itself: no space comes before it.
    assert LogitDifference.of(whisper_base, ".", ",") == LogitDifference((stop,), (comma,))
    assert (stop, comma) == (13, 11)
    assert token_ids(whisper_base, ["s", " s"]) == [whisper_base.to_single_token("s"), *whisper_base.to_tokens("s")]


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (" conference call", r"' conference call' is 2 tokens, .*, expected one: give the first one's text"),
        ("Nobody", "'Nobody' is no single token, and ' Nobody', with the space before it, is one"),
        ("", "'' is 0 tokens"),
        (51865, "outside the vocabulary of 51865"),
        (-1, "Token -1 is outside"),
        ([], "No token was given"),
    ],
)
def test_what_is_no_token_is_refused(whisper_base: HookedWhisper, tokens: Any, message: str) -> None:
    with pytest.raises(AnalysisError, match=message):
        token_ids(whisper_base, tokens)


WORDS = torch.zeros(2, 5, dtype=torch.long)
EMPTY = torch.tensor([[True] * 5, [True, True, False, False, False]])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: LogitDifference((1,), (2,), 5)(logits()), "There is no position 5: the run has 5, prompt included"),
        (lambda: LogitDifference((1,), (2,), -6)(logits()), "There is no position -6"),
        (lambda: LogitDifference((11,), (2,))(logits()), "Token 11 is outside the vocabulary of 11"),
        (lambda: LogitDifference((-1,), (2,)), "token=-1: expected a whole number of at least 0"),
        (lambda: LogitDifference((), (2,)), "Expected a tuple of token numbers, got a tuple of nothing"),
        (lambda: LogProbability(WORDS, 2)(logits(3)), "The metric's tokens are 2 x 5, the run has 3 clips"),
        (lambda: LogProbability(WORDS, 2)(logits(2, 4)), "the run has 2 clips of 4 positions"),
        (lambda: LogProbability(WORDS + 11, 2)(logits()), "Token 11 is outside the vocabulary"),
        (lambda: LogProbability(WORDS, 2, EMPTY, mean=True), r"The mask leaves nothing of clips \[1\] from position 2"),
        (lambda: KLDivergence(logits(), 99), "start=99: expected a whole number from 0 to 4"),
        (lambda: KLDivergence(logits(), 2, EMPTY), r"The mask leaves nothing of clips \[1\]"),
        (
            lambda: KLDivergence(logits(2, 4))(logits()),
            r"The reference logits are \(2, 4, 11\), the run's \(2, 5, 11\)",
        ),
    ],
)
def test_what_does_not_fit_the_run_is_refused(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(AnalysisError, match=message):
        call()
