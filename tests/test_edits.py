"""Edits of codes and activations: what each does to rows written out by hand, where it acts, and what is refused."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from sae_files import random_sae
from torch import Tensor

from hooked_whisper import AnalysisError
from hooked_whisper.analysis.edits import (
    Ablate,
    Add,
    AddVector,
    Clamp,
    ClipSpans,
    Edit,
    LatentEdit,
    Positions,
    Scale,
    Span,
    Swap,
    WhereActive,
    Zero,
    unit_directions,
)

# Latents 0 to 3 at four rows: latent 2 is silent everywhere.
CODES = torch.tensor([[1.0, 0, 0, 2], [0, 3, 0, 0], [4, 0, 0, 0], [0, 0, 0, 5]])
EVERYWHERE = torch.ones(4, dtype=torch.bool)


@pytest.mark.parametrize(
    ("edit", "magnitude", "expected"),
    [
        (Add(2, 1.5), 2.0, [[1, 0, 3, 2], [0, 3, 3, 0], [4, 0, 3, 0], [0, 0, 3, 5]]),  # a silent one is switched on
        (Add(0, -1), 2.0, [[-1, 0, 0, 2], [-2, 3, 0, 0], [2, 0, 0, 0], [-2, 0, 0, 5]]),
        (Scale(0, 3), None, [[3, 0, 0, 2], [0, 3, 0, 0], [12, 0, 0, 0], [0, 0, 0, 5]]),
        (Zero(3), None, [[1, 0, 0, 0], [0, 3, 0, 0], [4, 0, 0, 0], [0, 0, 0, 0]]),
        (Clamp(0, low=2, high=3), None, [[2, 0, 0, 2], [2, 3, 0, 0], [3, 0, 0, 0], [2, 0, 0, 5]]),
        (Clamp(3, high=3), None, [[1, 0, 0, 2], [0, 3, 0, 0], [4, 0, 0, 0], [0, 0, 0, 3]]),
        (Swap(3, 1), 7.0, [[1, 7, 0, 0], [0, 3, 0, 0], [4, 0, 0, 0], [0, 7, 0, 0]]),
    ],
)
def test_codes_by_hand(edit: LatentEdit, magnitude: float | None, expected: list[list[float]]) -> None:
    before = CODES.clone()
    assert edit.apply(CODES, EVERYWHERE, magnitude).tolist() == expected
    nowhere = edit.apply(CODES, ~EVERYWHERE, magnitude)
    assert torch.equal(nowhere, before) and torch.equal(CODES, before)  # the codes given are left alone
    first = torch.tensor([True, False, False, False])
    here = edit.apply(CODES, first, magnitude)
    assert here[0].tolist() == expected[0] and torch.equal(here[1:], before[1:])


def test_positions() -> None:
    # Two clips of 4 and 2 frames, a frame being 20 ms.
    clip, position = torch.tensor([0, 0, 0, 0, 1, 1]), torch.tensor([0, 1, 2, 3, 0, 1])
    codes = torch.arange(12.0).reshape(6, 2)
    at = Positions(clip, position, torch.tensor([4, 2]), 50, codes)
    assert Span(0.0, 0.04).mask(at).tolist() == [True, True, False, False, True, True]
    assert Span(0.005, 0.035).mask(at).tolist() == [
        True,
        True,
        False,
        False,
        True,
        True,
    ]  # by its middle
    assert Span(0.015, 0.04).mask(at).tolist() == [False, True, False, False, False, True]
    spans = ClipSpans((((0.02, 0.04), (0.06, 0.08)), ()))
    assert spans.mask(at).tolist() == [False, True, False, True, False, False]
    assert WhereActive(1, above=5).mask(at).tolist() == [False, False, False, True, True, True]
    with pytest.raises(AnalysisError, match=r"The span 0\.04 to 0\.2 s ends after clip 0, which has 0\.08 s of audio"):
        Span(0.04, 0.2).mask(at)
    with pytest.raises(AnalysisError, match="Spans of 1 clips were given, and the batch has 2"):
        ClipSpans((((0.0, 0.04),),)).mask(at)


def test_directions_are_what_a_unit_adds() -> None:
    for variant in ("standard", "topk", "topk, by norm"):
        sae: Any = random_sae(variant)
        unit = torch.zeros(2, 32, dtype=torch.float64)
        unit[0, 3] = unit[1, 9] = 1
        added = sae.decode(unit) - sae.decode(torch.zeros_like(unit))
        assert torch.allclose(unit_directions(sae, [3, 9]), added.float(), atol=1e-6), variant


def test_a_direction_is_ablated_to_the_bias() -> None:
    sae: Any = random_sae()
    x = torch.randn(4, 16, dtype=torch.float64)
    here = torch.tensor([True, True, True, False])
    after = x + Ablate(5).push(x, here, sae)
    direction = sae.W_dec[5] / sae.W_dec[5].norm()
    assert torch.allclose(after[:3] @ direction, (sae.b_dec @ direction).expand(3), atol=1e-5)
    assert torch.equal(after[3], x[3])
    rest = torch.eye(16, dtype=torch.float64) - direction[:, None] * direction  # nothing else has moved
    assert torch.allclose(after @ rest, x @ rest, atol=1e-5)


def nan() -> float:
    return math.nan


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Add(-1), "latent is the number of a latent, from 0, got -1"),
        (lambda: Add(True), "latent is the number of a latent, from 0, got True"),
        (lambda: Add(1, nan()), "alpha must be a finite number, got nan"),
        (lambda: Add(1, 1, magnitude=0.0), "magnitude is what a latent typically has where it fires, above 0, got 0.0"),
        (lambda: Scale(1, math.inf), "factor must be a finite number, got inf"),
        (lambda: Clamp(1), "expected at least one of them"),
        (lambda: Clamp(1, low=2, high=1), "low=2, high=1: expected at least one of them, and low <= high"),
        (lambda: Clamp(1, low=nan()), "a bound must be a finite number"),
        (lambda: Swap(4, 4), "Latent 4 cannot be swapped for itself"),
        (lambda: Span(2, 1), "The span 2 to 1 s is empty: expected 0 <= start < end"),
        (lambda: Span(1, 1.01), "shorter than a frame of 0.02 s"),
        (lambda: ClipSpans((((-1, 2),),)), "The span -1 to 2 s is empty"),
        (lambda: WhereActive(1, above=nan()), "above must be a finite number"),
        (lambda: AddVector(torch.tensor([1.0, nan()])), "'vector' holds NaN or infinity, or nothing but zeros"),
        (lambda: AddVector(torch.zeros(2), name="es - en"), "'es - en' holds NaN or infinity, or nothing but zeros"),
        (lambda: AddVector(torch.ones(2), alpha=nan()), "alpha must be a finite number"),
    ],
)
def test_edits_that_cannot_be(make: Any, message: str) -> None:
    with pytest.raises(AnalysisError, match=message):
        make()


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (Add(32), "there is no latent 32; the SAE has 32, counted from 0"),
        (Zero(1, where=WhereActive(40)), "there is no latent 40"),
        (Swap(1, 99), "there is no latent 99"),
        (Zero(1, where=Span(0, 1)), "runs over tokens, not seconds"),
        (AddVector(torch.ones(8)), "has 8 entries, and decoder.hook_embed holds rows of 16"),
        (AddVector(torch.ones(16), at="encoder.hook_out"), "was measured at 'encoder.hook_out' and is to steer"),
    ],
)
def test_edits_that_do_not_fit(edit: Edit, message: str) -> None:
    with pytest.raises(AnalysisError, match=message):
        edit.check(32, 16, "decoder.hook_embed", has_time=False)


def test_edits_that_fit_say_what_they_are() -> None:
    for edit in (Add(31), Zero(1, where=WhereActive(3)), AddVector(torch.ones(16), at="encoder.hook_out")):
        edit.check(32, 16, "encoder.hook_out", has_time=True)
    assert str(AddVector(torch.ones(4), 2, name="es - en")) == "AddVector(es - en, norm=2, alpha=2)"
    assert Zero(1, where=WhereActive(3)).latents() == (1, 3) and Zero(1).own_latents() == (1,)
    assert AddVector(torch.ones(4)).hook() is None


def test_magnitudes() -> None:
    from hooked_whisper.analysis.activity import Activity

    activity = Activity(torch.tensor([0.5, 0.0]), torch.tensor([3.0, nan()]), 100)
    assert Add(0).known_magnitude(activity) == 3 and Add(1, magnitude=2.0).known_magnitude(activity) == 2
    assert Swap(1, 0).known_magnitude(activity) == 3 and Zero(0).known_magnitude(None) is None
    with pytest.raises(AnalysisError, match="no typical magnitude of latent 0 is known: pass magnitude="):
        Add(0).known_magnitude(None)
    with pytest.raises(AnalysisError, match="Latent 1 fired in none of 100 rows"):
        Add(1).known_magnitude(activity)


def test_gradients_pass() -> None:
    codes: Tensor = CODES.clone().requires_grad_()
    Scale(3, 2).apply(codes, EVERYWHERE, None).sum().backward()
    assert codes.grad is not None and codes.grad[:, 3].tolist() == [2, 2, 2, 2]
