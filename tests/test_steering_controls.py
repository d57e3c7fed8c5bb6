"""The controls of an edit: as many, as often, as hard, at the same places, and nothing of the target in them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from sae_files import random_sae
from small import small_model
from torch import Tensor

from hooked_whisper import AnalysisError
from hooked_whisper.analysis.activity import Activity
from hooked_whisper.analysis.edits import (
    Ablate,
    Add,
    AddVector,
    Both,
    Clamp,
    Edit,
    Scale,
    Span,
    Swap,
    WhereActive,
    Zero,
    unit_directions,
)
from hooked_whisper.analysis.steering import Steerer, Steering
from hooked_whisper.analysis.steering_controls import both, conditions, push_norm, random_edits
from hooked_whisper.analysis.steering_vectors import SteeringVector

HOOK = "encoder.hook_out"
SAE: Any = random_sae("topk", HOOK)
ACTIVITY = Activity(torch.linspace(0.05, 0.2, 32), torch.linspace(1, 3, 32), 1000)
VECTOR = SteeringVector(HOOK, torch.randn(16, generator=torch.Generator().manual_seed(3)), ("k", "p"), 10, 10)


def moved(edits: list[Edit], x: Tensor) -> Tensor:
    return Steerer(small_model(), Steering(edits, SAE, HOOK, activity=ACTIVITY))(x) - x


@pytest.mark.parametrize(
    "edit", [Add(3, -2.0), Swap(3, 9), Add(3, 1, magnitude=4.0), AddVector(torch.ones(16), at=HOOK)]
)
def test_a_push_has_the_length_it_is_said_to_have(edit: Edit) -> None:
    codes = torch.zeros(1, 32, dtype=torch.float64)
    codes[0, 3] = ACTIVITY.magnitude_of(3)
    if isinstance(edit, AddVector):
        length = float(edit.push(torch.zeros(1, 16), torch.tensor([True]), None).norm())
    else:
        here = torch.tensor([True])
        edited = edit.apply(codes, here, edit.known_magnitude(ACTIVITY))  # type: ignore[attr-defined]
        length = float((SAE.decode(edited) - SAE.decode(codes)).detach().norm())
    assert push_norm(SAE, edit, ACTIVITY) == pytest.approx(length, rel=1e-5)


def test_pushes_that_scale() -> None:
    whole = ACTIVITY.magnitude_of(4) * float(unit_directions(SAE, [4]).norm())
    assert [push_norm(SAE, edit, ACTIVITY) for edit in (Zero(4), Scale(4, 3), Ablate(4), Clamp(4, low=1))] == [
        pytest.approx(factor * whole) for factor in (1, 2, 1, 1)
    ]


def test_random_edits_push_as_hard_at_the_same_places() -> None:
    gate = WhereActive(5)
    edits: list[Edit] = [Add(3, 2.0, where=gate), Swap(7, 9), Zero(11), AddVector(2 * torch.ones(16), at=HOOK)]
    first, again, other = (random_edits(SAE, edits, ACTIVITY, seed=seed) for seed in (1, 1, 2))
    assert [str(edit) for edit in first] == [str(edit) for edit in again] != [str(edit) for edit in other]
    add, swap, zero, vector = first
    assert isinstance(add, Add) and isinstance(swap, Swap) and isinstance(zero, Zero) and isinstance(vector, AddVector)
    assert add.where == gate and add.alpha == 2 and swap.source == 7
    new = {add.latent, swap.target, zero.latent}
    assert len(new) == 3 and not new & {3, 5, 7, 9, 11}
    for one, its in ((add, edits[0]), (vector, edits[3])):
        assert push_norm(SAE, one, ACTIVITY) == pytest.approx(push_norm(SAE, its, ACTIVITY), rel=1e-5)
    assert swap.magnitude is not None
    lengths = unit_directions(SAE, [swap.target, 9]).norm(dim=-1)
    assert swap.magnitude * float(lengths[0]) == pytest.approx(ACTIVITY.magnitude_of(9) * float(lengths[1]), rel=1e-5)
    assert abs(vector.vector @ torch.ones(16)) < 0.99 * vector.vector.norm() * 4


@pytest.mark.parametrize("error_term", ["kept", "dropped"])
def test_every_version_is_there(error_term: Any) -> None:
    found = conditions(SAE, [Swap(3, 9)], activity=ACTIVITY, vector=VECTOR, error_term=error_term, n_random=2, seed=0)
    names = ["unhooked", "sae", "steered", "random-0", "random-1", "vector", "activation"]
    assert [one.name for one in found] == names
    by_name = {one.name: one for one in found}
    base = "unhooked" if error_term == "kept" else "sae"
    assert [one.base for one in found] == ["unhooked", "unhooked", base, base, base, base, "unhooked"]
    x = torch.randn(2, 10, 16, dtype=torch.float64)
    fires = SAE.encode(x)[..., 3] > 0
    assert 0 < int(fires.sum()) < 20
    model = small_model()

    def run(name: str, dose: float = 1.0) -> Tensor:
        how = by_name[name].steering(SAE, HOOK, ACTIVITY, dose)
        assert how is not None
        return Steerer(model, how)(x)

    assert by_name["unhooked"].steering(SAE, HOOK, ACTIVITY, 1.0) is None
    clean = x if error_term == "kept" else SAE.decode(SAE.encode(x))
    assert torch.allclose(run("sae", 0.0), SAE.decode(SAE.encode(x)))
    for name in ("steered", "random-0", "vector"):  # all of them at the same frames
        assert torch.equal((run(name) - clean).norm(dim=-1) > 1e-9, fires), name
    push = push_norm(SAE, Swap(3, 9), ACTIVITY)
    assert torch.allclose((run("vector", 2.0) - clean)[fires].norm(dim=-1), torch.tensor(2 * push).double(), rtol=1e-4)
    assert torch.allclose((run("activation") - x).norm(dim=-1), torch.tensor(push).double(), rtol=1e-4)  # everywhere
    assert float(torch.cosine_similarity((run("activation") - x)[0, 0], VECTOR.vector.double(), dim=0)) > 0.9999


def test_where_the_vector_goes() -> None:
    span, gate = Span(0, 1), WhereActive(5)

    def wheres(edit: Edit) -> list[Any]:
        found = conditions(SAE, [edit], activity=ACTIVITY, vector=VECTOR, error_term="kept", n_random=1, seed=0)
        return [one.edits[0].where for one in found if one.name in ("vector", "activation")]

    assert wheres(Add(3)) == [None, None] and wheres(Add(3, where=span)) == [span, span]
    assert wheres(Add(3, where=gate)) == [gate, None]
    assert wheres(Zero(3)) == [WhereActive(3), None]
    assert wheres(Zero(3, where=Both(span, gate))) == [Both(Both(span, gate), WhereActive(3)), span]
    assert both(None, None) is None and both(span, None) == both(None, span) == span


def test_refusals() -> None:
    with pytest.raises(AnalysisError, match="n_random=0: no result is made without random controls"):
        conditions(SAE, [Zero(1)], activity=ACTIVITY, vector=VECTOR, error_term="kept", n_random=0, seed=0)
    with pytest.raises(AnalysisError, match="No edits"):
        conditions(SAE, [], activity=ACTIVITY, vector=VECTOR, error_term="kept", n_random=1, seed=0)
    silent = Activity(torch.zeros(32), torch.full((32,), torch.nan), 50)
    with pytest.raises(AnalysisError, match="fired in none of 50 rows"):
        conditions(SAE, [Zero(1)], activity=silent, vector=VECTOR, error_term="kept", n_random=1, seed=0)
