"""Directions of a language, a voice, a sound: the mean activation of some frames less that of others.

    vector = mean_difference(model, spanish, english, hook="encoder.hook_out", names=("es", "en"))
    with steer(model, Steering([vector.edit(alpha=2)])):
        ...

The rival of every SAE feature: if adding the difference of two means does as much, the SAE has not earned its keep.
What differs between the two sets besides what they are named after (the speaker, the loudness, the text) is in the
vector, too.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from hooked_whisper.analysis.edits import AddVector, Where, unit_directions
from hooked_whisper.axes import axes
from hooked_whisper.errors import AnalysisError
from hooked_whisper.mel import FRAMES_PER_SECOND
from hooked_whisper.saes.coding import SparseCoder, code

if TYPE_CHECKING:
    from hooked_whisper.model import HookedWhisper
    from hooked_whisper.saes.store import ActivationStore

    Weighting = Literal["frame", "clip"]
else:
    Weighting = str  # checked here, with a message that says more than a type checker's

_BATCH = 4096


@dataclass(frozen=True, eq=False)
class SteeringVector:
    """A direction at a hook.

    Attributes:
        hook: whose activation it is of.
        vector: [d], mean over `n_towards` rows less mean over `n_away` rows, or that at another norm.
        names: what it points to, and what from.
        n_towards, n_away: rows (frames or tokens) of each mean.
    """

    hook: str
    vector: Float[Tensor, " d"]
    names: tuple[str, str]
    n_towards: int
    n_away: int

    @property
    def norm(self) -> float:
        """Its length."""
        return float(self.vector.norm())

    def at_norm(self, norm: float) -> SteeringVector:
        """The same direction at another length.

        Raises:
            AnalysisError: a length that is not above 0.
        """
        if not 0 < norm < float("inf"):
            raise AnalysisError(f"norm={norm}: expected a length above 0.")
        return replace(self, vector=self.vector * (norm / self.vector.norm()))

    def matched(self, sae: SparseCoder, latent: int, magnitude: float) -> SteeringVector:
        """At the length of what a latent adds at its typical magnitude: as strong a push, in another direction.

        Raises:
            AnalysisError: a latent that adds nothing.
        """
        return self.at_norm(magnitude * float(unit_directions(sae, [latent]).norm()))

    def edit(self, alpha: float = 1.0, where: Where | None = None) -> AddVector:
        """The edit that adds it."""
        return AddVector(self.vector, alpha, where, name=" - ".join(self.names), at=self.hook)

    def cosine(self, other: Float[Tensor, " d"]) -> float:
        """Cosine with another direction, such as a latent's."""
        return float(torch.cosine_similarity(self.vector.float(), other.float().to(self.vector.device), dim=0))


def difference(
    towards: Iterable[Float[Tensor, "_ d"]],
    away: Iterable[Float[Tensor, "_ d"]],
    *,
    hook: str,
    names: tuple[str, str] = ("towards", "away"),
    weighting: Weighting = "frame",
) -> SteeringVector:
    """From rows of `hook`, clip by clip.

    Args:
        weighting: "frame" counts each row once; "clip" each clip once, however long it is.

    Raises:
        AnalysisError: no rows on one side, or no difference.
    """
    if weighting not in ("frame", "clip"):
        raise AnalysisError(f"Unknown weighting {weighting!r}: expected 'frame' or 'clip'.")
    means = (_Mean(), _Mean())
    for mean, side in zip(means, (towards, away), strict=True):
        for rows in side:
            mean.add(rows, by_clip=weighting == "clip")
    return _between(hook, names, *means)


@dataclass
class _Mean:
    """A mean of rows that fills up."""

    total: Tensor | None = None
    weight: float = 0.0
    n_rows: int = 0

    def add(self, rows: Float[Tensor, "_ d"], *, by_clip: bool = False) -> None:
        if len(rows):
            one = rows.detach().double().cpu().sum(0) / (len(rows) if by_clip else 1)
            self.total = one if self.total is None else self.total + one
            self.weight += 1 if by_clip else len(rows)
            self.n_rows += len(rows)


def _between(hook: str, names: tuple[str, str], towards: _Mean, away: _Mean) -> SteeringVector:
    for name, side in zip(names, (towards, away), strict=True):
        if side.total is None:
            raise AnalysisError(f"The side {name!r} has no rows: pass clips, spans or latents that have some.")
    assert towards.total is not None and away.total is not None
    found = (towards.total / towards.weight - away.total / away.weight).float()
    if not bool(found.any()):
        raise AnalysisError(f"{names[0]!r} and {names[1]!r} have the same mean: there is no direction between them.")
    return SteeringVector(hook, found, names, towards.n_rows, away.n_rows)


def mean_difference(
    model: HookedWhisper,
    towards: Sequence[Float[Tensor, "_"]],
    away: Sequence[Float[Tensor, "_"]],
    *,
    hook: str = "encoder.hook_out",
    names: tuple[str, str] = ("towards", "away"),
    towards_spans: Sequence[Sequence[tuple[float, float]]] | None = None,
    away_spans: Sequence[Sequence[tuple[float, float]]] | None = None,
    weighting: Weighting = "frame",
) -> SteeringVector:
    """Between two sets of waveforms at 16 kHz, padding left out.

    Args:
        hook: of the encoder, [batch frame d]: language and voice are in all of a clip's frames.
        towards_spans, away_spans: for each clip of a side, the spans in seconds whose frames count; None takes all.

    Raises:
        AnalysisError: as `difference`; a hook of the decoder; spans of another number of clips, or past a clip's end.
    """
    model.resolve_names([hook])
    if axes(hook) != ("batch", "frame", "d_model"):
        raise AnalysisError(
            f"{hook!r} holds [{' '.join(axes(hook))}]: expected a hook of the encoder over frames, such as "
            "'encoder.hook_out'; for others gather the rows and call difference()."
        )
    sides = [_rows(model, hook, *side) for side in ((towards, towards_spans), (away, away_spans))]
    return difference(*sides, hook=hook, names=names, weighting=weighting)


@torch.no_grad()
def _rows(
    model: HookedWhisper,
    hook: str,
    clips: Sequence[Tensor],
    spans: Sequence[Sequence[tuple[float, float]]] | None,
) -> Iterator[Tensor]:
    if spans is not None and len(spans) != len(clips):
        raise AnalysisError(f"Spans of {len(spans)} clips were given for {len(clips)} clips.")
    for number, clip in enumerate(clips):
        _, cache = model.run_with_cache(clip, names_filter=hook)
        mask = cache.frame_mask
        assert mask is not None
        rows = cache[hook][0, mask[0]]
        yield rows if spans is None else rows[_in_spans(spans[number], len(rows), number).to(rows.device)]


def _in_spans(spans: Sequence[tuple[float, float]], n_frames: int, clip: int) -> Bool[Tensor, " frame"]:
    middle = (torch.arange(n_frames) + 0.5) / FRAMES_PER_SECOND
    chosen = torch.zeros(n_frames, dtype=torch.bool)
    for start, end in spans:
        if not 0 <= start < end <= (n_frames + 1) / FRAMES_PER_SECOND:
            raise AnalysisError(
                f"The span {start:g} to {end:g} s is not inside clip {clip}, which has {n_frames / 50:.2f} s of audio."
            )
        chosen |= (middle >= start) & (middle < end)
    return chosen


def language_vector(
    store: ActivationStore, towards: str, away: str, *, hook: str = "encoder.hook_out", weighting: Weighting = "frame"
) -> SteeringVector:
    """From a store's clips in one language to those in another; where each has one speaker, the voice is in it, too.

    Raises:
        AnalysisError: a language of which the store has no clips.
    """

    def rows(language: str) -> Iterator[Tensor]:
        table = store.clips
        columns = (table[name].to_pylist() for name in ("language", "first_row", "n_rows"))
        for code_of, first, count in zip(*columns, strict=True):
            if code_of == language:
                yield store.rows(hook, first, first + count)

    return difference(rows(towards), rows(away), hook=hook, names=(towards, away), weighting=weighting)


def activity_vector(
    store: ActivationStore, sae: SparseCoder, towards: int, away: int | None = None, *, hook: str, stride: int = 1
) -> SteeringVector:
    """From the rows where latent `away` fires (None: where `towards` does not) to those where latent `towards` fires.

    What an experimenter without labels has for a sound: the frames are the SAE's choice, the direction is not its own.

    Args:
        stride: read one of so many batches of rows.

    Raises:
        AnalysisError: a latent that never fires there.
    """
    means = (_Mean(), _Mean())
    for start in range(0, len(store), _BATCH * stride):
        rows = store.rows(hook, start, min(start + _BATCH, len(store)))
        for part, acts, _ in code(sae, rows):
            on = (acts[:, towards] > 0).to(rows.device)
            off = ~on if away is None else (acts[:, away] > 0).to(rows.device) & ~on
            for mean, mask in zip(means, (on, off), strict=True):
                mean.add(rows[part][mask])
    names = (f"latent {towards}", "elsewhere" if away is None else f"latent {away}")
    return _between(hook, names, *means)
