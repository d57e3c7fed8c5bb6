"""The versions of a steering experiment: the edit itself, and beside it everything that it must be told apart from.

    unhooked     the model as it is
    sae          the SAE's reconstruction alone: what splicing does
    steered      the edit
    random-0..   the same edit with other latents, which fire as often and push as hard
    vector       a mean-difference vector instead of the latents, at the same places, as long as the typical push
    activation   that vector with no SAE anywhere: added to every frame (of the spans, where there are any)

A random version of `Swap` keeps the source and draws another target: it takes the source away just as well, and must
not put the target in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from hooked_whisper.analysis.activity import Activity
from hooked_whisper.analysis.edits import (
    Ablate,
    Add,
    AddVector,
    Both,
    Clamp,
    Edit,
    Scale,
    Swap,
    Where,
    WhereActive,
    unit_directions,
)
from hooked_whisper.analysis.steering import ErrorTerm, Steering
from hooked_whisper.analysis.steering_vectors import SteeringVector
from hooked_whisper.errors import AnalysisError
from hooked_whisper.saes.coding import SparseCoder

UNHOOKED, SAE_ONLY, STEERED, RANDOM, VECTOR, ACTIVATION = (
    "unhooked",
    "sae",
    "steered",
    "random",
    "vector",
    "activation",
)
CONTROLS = (UNHOOKED, SAE_ONLY, RANDOM, VECTOR, ACTIVATION)


@dataclass(frozen=True)
class Condition:
    """One version.

    Attributes:
        name: one of those above; the random ones are numbered.
        edits: what is done, at a strength of 1.
        uses_sae: whether the SAE is there.
        error_term: what becomes of what it misses.
        base: the condition without any edit that it is to be held against.
    """

    name: str
    edits: tuple[Edit, ...]
    uses_sae: bool
    error_term: ErrorTerm
    base: str

    @property
    def has_dose(self) -> bool:
        """Whether there is anything to dose."""
        return bool(self.edits)

    def steering(self, sae: SparseCoder, hook: str, activity: Activity, dose: float) -> Steering | None:
        """What is done at a dose; None for the unhooked model."""
        if self.name == UNHOOKED:
            return None
        return Steering(
            self.edits, sae if self.uses_sae else None, hook, self.error_term, dose if self.edits else 1.0, activity
        )


def conditions(
    sae: SparseCoder,
    edits: Sequence[Edit],
    *,
    activity: Activity,
    vector: SteeringVector,
    error_term: ErrorTerm,
    n_random: int,
    seed: int,
) -> list[Condition]:
    """All versions of an experiment, the bases first.

    Raises:
        AnalysisError: no edits, no random version, a latent that never fires.
    """
    if not edits:
        raise AnalysisError("No edits: what is to be steered?")
    if n_random < 1:
        raise AnalysisError(f"n_random={n_random}: no result is made without random controls; take 3 or more.")
    base = UNHOOKED if error_term == "kept" else SAE_ONLY
    dim = sae.W_dec.shape[1]
    found = [
        Condition(UNHOOKED, (), False, "kept", UNHOOKED),
        Condition(SAE_ONLY, (), True, "dropped", UNHOOKED),
        Condition(STEERED, tuple(edits), True, error_term, base),
    ]
    for number in range(n_random):
        drawn = random_edits(sae, edits, activity, seed=seed + number)
        found.append(Condition(f"{RANDOM}-{number}", drawn, True, error_term, base))
    placed = tuple(_as_vector(sae, edit, activity, vector, gated=True) for edit in edits)
    free = tuple(_as_vector(sae, edit, activity, vector, gated=False) for edit in edits)
    assert all(edit.vector.shape == (dim,) for edit in (*placed, *free))
    found.append(Condition(VECTOR, placed, True, error_term, base))
    found.append(Condition(ACTIVATION, free, False, "kept", UNHOOKED))
    return found


def push_norm(sae: SparseCoder, edit: Edit, activity: Activity) -> float:
    """Length of what an edit typically adds to the activation where it acts, at a strength of 1.

    For `Scale` and `Zero` at the latent's typical magnitude, for `Clamp` and `Ablate` that magnitude itself.
    """
    if isinstance(edit, AddVector):
        return abs(edit.alpha) * float(edit.vector.norm())
    if isinstance(edit, Swap):
        put, taken = edit.typical(activity), activity.magnitude_of(edit.source)
        directions = unit_directions(sae, [edit.target, edit.source])
        return float((put * directions[0] - taken * directions[1]).norm())
    latent = edit.own_latents()[0]
    length = float(unit_directions(sae, [latent]).norm())
    if isinstance(edit, Add):
        return abs(edit.alpha) * edit.typical(activity) * length
    share = abs(1 - edit.factor) if isinstance(edit, Scale) else 1.0
    return share * activity.magnitude_of(latent) * length


def random_edits(sae: SparseCoder, edits: Sequence[Edit], activity: Activity, *, seed: int) -> tuple[Edit, ...]:
    """The same edits of other latents, alike in density and in the length of their push; where they act stays.

    Raises:
        AnalysisError: a latent that never fires.
    """
    replaced = [_replaced(edit) for edit in edits]
    latents = sorted({latent for latent in replaced if latent is not None})
    spared = sorted({latent for edit in edits for latent in edit.latents()} - set(latents))
    stand_in = dict(zip(latents, activity.alike([*latents, *spared], seed=seed)[: len(latents)], strict=True))
    generator = torch.Generator().manual_seed(seed)
    found: list[Edit] = []
    for edit, latent in zip(edits, replaced, strict=True):
        if isinstance(edit, AddVector):
            other = torch.randn(edit.vector.shape, generator=generator).to(edit.vector)
            vector = other * (edit.vector.norm() / other.norm())
            found.append(replace(edit, vector=vector, name=f"random for {edit.name}"))
            continue
        assert latent is not None
        new = stand_in[latent]
        lengths = unit_directions(sae, [latent, new]).norm(dim=-1)
        if isinstance(edit, Add | Swap):
            magnitude = edit.typical(activity) * float(lengths[0] / lengths[1])
            named: dict[str, Any] = {"latent" if isinstance(edit, Add) else "target": new, "magnitude": magnitude}
            found.append(replace(edit, **named))
        else:
            assert isinstance(edit, Scale | Clamp | Ablate)
            found.append(replace(edit, latent=new))
    return tuple(found)


def _replaced(edit: Edit) -> int | None:
    """The latent that a random version replaces."""
    if isinstance(edit, Swap):
        return edit.target
    own = edit.own_latents()
    return own[0] if own else None


def _as_vector(sae: SparseCoder, edit: Edit, activity: Activity, vector: SteeringVector, *, gated: bool) -> AddVector:
    """The mean-difference vector in an edit's stead."""
    where = edit.where
    if gated:
        gate = None if isinstance(edit, Add | Clamp | AddVector) else WhereActive(edit.own_latents()[0])
        where = both(where, gate)
    else:
        where = _seconds_of(where)
    return vector.at_norm(push_norm(sae, edit, activity)).edit(1.0, where)


def both(first: Where | None, second: Where | None) -> Where | None:
    """Where both choose."""
    if first is None or second is None:
        return second if first is None else first
    return Both(first, second)


def _seconds_of(where: Where | None) -> Where | None:
    """What of a choice of places does without an SAE."""
    if isinstance(where, Both):
        return both(_seconds_of(where.first), _seconds_of(where.second))
    return where if where is not None and where.in_seconds else None
