"""What steering does to the codes of an SAE, or to an activation itself: one small description for each edit.

Edits of codes: `Add`, `Scale`, `Clamp`, `Zero`, `Swap`. Of the activation itself: `Ablate` (a latent's direction),
`AddVector`. Where an edit acts: `Span` (seconds), `ClipSpans` (seconds, clip by clip), `WhereActive` (where another
latent fires), or everywhere (None). hooked_whisper.analysis.steering runs them.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hooked_whisper.errors import AnalysisError
from hooked_whisper.saes.coding import SparseCoder

if TYPE_CHECKING:
    from hooked_whisper.analysis.activity import Activity

# A span may end this much after the clip does: labels round their times.
TOLERANCE = 0.05  # seconds
_SCALED = ("topk",)  # architectures that can count activations in units of the decoder row's norm


def unit_directions(sae: SparseCoder, latents: Sequence[int]) -> Float[Tensor, "latent d"]:
    """What one unit of activation of each latent adds to the activation of the hook, float32.

    The decoder row, or the row at unit length where the SAE counts activations so. An SAE that normalises its input
    adds it times what it took out of the row.
    """
    rows = sae.W_dec.detach()[list(latents)].float()
    scaled = sae.cfg.architecture() in _SCALED and sae.cfg.rescale_acts_by_decoder_norm
    return rows / rows.norm(dim=-1, keepdim=True) if scaled else rows


# Where


@dataclass(frozen=True)
class Positions:
    """The rows of an activation that are steered.

    Attributes:
        clip, position: which clip and frame (or token) each row is.
        lengths: positions of each clip that hold audio.
        rate: positions in a second; None in the decoder.
        codes: what the SAE makes of the rows, no edit made; None without an SAE.
    """

    clip: Int[Tensor, " row"]
    position: Int[Tensor, " row"]
    lengths: Int[Tensor, " clip"]
    rate: int | None
    codes: Float[Tensor, "row latent"] | None

    def everywhere(self) -> Bool[Tensor, " row"]:
        """All of them."""
        return torch.ones_like(self.clip, dtype=torch.bool)

    def within(self, spans: Sequence[tuple[float, float]], clip: int) -> Bool[Tensor, " row"]:
        """Rows of a clip whose middle lies in one of the spans.

        Raises:
            AnalysisError: a span that ends after the clip.
        """
        assert self.rate is not None
        here, seconds = torch.zeros_like(self.clip, dtype=torch.bool), int(self.lengths[clip]) / self.rate
        middle = (self.position + 0.5) / self.rate
        for start, end in spans:
            if end > seconds + TOLERANCE:
                raise AnalysisError(
                    f"The span {start:g} to {end:g} s ends after clip {clip}, which has {seconds:.2f} s of audio."
                )
            here |= (self.clip == clip) & (middle >= start) & (middle < end)
        return here


class Where(ABC):
    """A choice of positions."""

    @property
    def in_seconds(self) -> bool:
        """Whether it is about seconds of a clip."""
        return False

    @abstractmethod
    def mask(self, at: Positions) -> Bool[Tensor, " row"]:
        """Which rows are chosen."""

    def latents(self) -> tuple[int, ...]:
        """Latents that the choice depends on."""
        return ()


@dataclass(frozen=True)
class Span(Where):
    """Frames whose middle lies in [start, end) seconds, in every clip.

    Raises:
        AnalysisError: a span that is empty, negative or not finite, or shorter than a frame of 20 ms.
    """

    start: float
    end: float

    @property
    def in_seconds(self) -> bool:
        return True

    def __post_init__(self) -> None:
        _check_span(self.start, self.end)

    def mask(self, at: Positions) -> Bool[Tensor, " row"]:
        here = at.everywhere() & False
        for clip in range(len(at.lengths)):
            here |= at.within([(self.start, self.end)], clip)
        return here


@dataclass(frozen=True)
class ClipSpans(Where):
    """Frames whose middle lies in one of the spans of their clip: a tuple of (start, end) for each clip of the batch.

    Raises:
        AnalysisError: as `Span`; when it runs, a batch of another number of clips.
    """

    spans: tuple[tuple[tuple[float, float], ...], ...]

    @property
    def in_seconds(self) -> bool:
        return True

    def __post_init__(self) -> None:
        for of_clip in self.spans:
            for start, end in of_clip:
                _check_span(start, end)

    def mask(self, at: Positions) -> Bool[Tensor, " row"]:
        if len(self.spans) != len(at.lengths):
            raise AnalysisError(
                f"Spans of {len(self.spans)} clips were given, and the batch has {len(at.lengths)}: give one tuple of "
                "spans for each clip, and a batch_size that takes all clips at once."
            )
        here = at.everywhere() & False
        for clip, spans in enumerate(self.spans):
            here |= at.within(spans, clip)
        return here


@dataclass(frozen=True)
class WhereActive(Where):
    """Positions at which a latent's activation is above a threshold, before any edit."""

    latent: int
    above: float = 0.0

    def __post_init__(self) -> None:
        _check_latent("latent", self.latent)
        _check_finite("above", self.above)

    def mask(self, at: Positions) -> Bool[Tensor, " row"]:
        assert at.codes is not None
        return at.codes[:, self.latent] > self.above

    def latents(self) -> tuple[int, ...]:
        return (self.latent,)


@dataclass(frozen=True)
class Both(Where):
    """Positions that both choose."""

    first: Where
    second: Where

    @property
    def in_seconds(self) -> bool:
        return self.first.in_seconds or self.second.in_seconds

    def mask(self, at: Positions) -> Bool[Tensor, " row"]:
        return self.first.mask(at) & self.second.mask(at)

    def latents(self) -> tuple[int, ...]:
        return (*self.first.latents(), *self.second.latents())


# Edits


class Edit(ABC):
    """One change, at the positions that `where` chooses."""

    where: Where | None

    def own_latents(self) -> tuple[int, ...]:
        """Latents that it is about."""
        return ()

    def latents(self) -> tuple[int, ...]:
        """Latents that it is about or depends on."""
        return (*self.own_latents(), *(() if self.where is None else self.where.latents()))

    def hook(self) -> str | None:
        """The hook that it brings."""
        return None

    def known_magnitude(self, activity: Activity | None) -> float | None:
        """The typical magnitude that it needs; None if it needs none."""
        return None

    def check(self, d_sae: int | None, width: int, hook: str, *, has_time: bool) -> None:
        """Raises AnalysisError unless an SAE of so many latents, and a hook of this width, can be edited so."""
        for latent in self.latents():
            if d_sae is not None and latent >= d_sae:
                raise AnalysisError(f"{self}: there is no latent {latent}; the SAE has {d_sae}, counted from 0.")
        if self.where is not None and self.where.in_seconds and not has_time:
            raise AnalysisError(
                f"{self}: {hook} runs over tokens, not seconds: steer where a latent is active, or everywhere."
            )


class LatentEdit(Edit):
    """An edit of codes."""

    @abstractmethod
    def apply(
        self, codes: Float[Tensor, "row latent"], here: Bool[Tensor, " row"], magnitude: float | None
    ) -> Float[Tensor, "row latent"]:
        """The codes after it; those given are left alone."""


class DirectionEdit(Edit):
    """An edit of the activation itself."""

    @abstractmethod
    def push(self, x: Float[Tensor, "row d"], here: Bool[Tensor, " row"], sae: SparseCoder | None) -> Tensor:
        """What is added to the activation."""


@dataclass(frozen=True)
class Add(LatentEdit):
    """`alpha` times a latent's typical active magnitude is added to its activation, whether it fires or not.

    `magnitude` None takes it from the steering's `activity`.
    """

    latent: int
    alpha: float = 1.0
    magnitude: float | None = None
    where: Where | None = None

    def __post_init__(self) -> None:
        _check_latent("latent", self.latent)
        _check_finite("alpha", self.alpha)
        _check_magnitude(self.magnitude)

    def own_latents(self) -> tuple[int, ...]:
        return (self.latent,)

    def typical(self, activity: Activity | None) -> float:
        """The magnitude that is put on, its own or the activity's."""
        return _magnitude(self, self.latent, self.magnitude, activity)

    def known_magnitude(self, activity: Activity | None) -> float | None:
        return self.typical(activity)

    def apply(self, codes: Tensor, here: Tensor, magnitude: float | None) -> Tensor:
        assert magnitude is not None
        edited = codes.clone()
        edited[here, self.latent] += self.alpha * magnitude
        return edited


@dataclass(frozen=True)
class Scale(LatentEdit):
    """A latent's activation times `factor`: a silent one stays silent."""

    latent: int
    factor: float
    where: Where | None = None

    def __post_init__(self) -> None:
        _check_latent("latent", self.latent)
        _check_finite("factor", self.factor)

    def own_latents(self) -> tuple[int, ...]:
        return (self.latent,)

    def apply(self, codes: Tensor, here: Tensor, magnitude: float | None) -> Tensor:
        edited = codes.clone()
        edited[here, self.latent] *= self.factor
        return edited


@dataclass(frozen=True)
class Zero(Scale):
    """A latent's activation set to zero."""

    factor: float = field(default=0.0, init=False)


@dataclass(frozen=True)
class Clamp(LatentEdit):
    """A latent's activation kept between `low` and `high`, in units of activation; equal bounds pin it.

    A `low` above zero switches a silent latent on.
    """

    latent: int
    low: float | None = None
    high: float | None = None
    where: Where | None = None

    def __post_init__(self) -> None:
        _check_latent("latent", self.latent)
        bounds = [bound for bound in (self.low, self.high) if bound is not None]
        for bound in bounds:
            _check_finite("a bound", bound)
        if not bounds or (len(bounds) == 2 and bounds[0] > bounds[1]):
            raise AnalysisError(f"low={self.low}, high={self.high}: expected at least one of them, and low <= high.")

    def own_latents(self) -> tuple[int, ...]:
        return (self.latent,)

    def apply(self, codes: Tensor, here: Tensor, magnitude: float | None) -> Tensor:
        edited = codes.clone()
        edited[here, self.latent] = edited[here, self.latent].clamp(self.low, self.high)
        return edited


@dataclass(frozen=True)
class Swap(LatentEdit):
    """Wherever `source` fires its activation is taken off, and `target`'s typical magnitude is put on.

    At a strength of a, a times the activation is taken off and a times the magnitude put on. `magnitude` None takes the
    target's from the steering's `activity`.
    """

    source: int
    target: int
    magnitude: float | None = None
    where: Where | None = None

    def __post_init__(self) -> None:
        _check_latent("source", self.source)
        _check_latent("target", self.target)
        _check_magnitude(self.magnitude)
        if self.source == self.target:
            raise AnalysisError(f"Latent {self.source} cannot be swapped for itself.")

    def own_latents(self) -> tuple[int, ...]:
        return (self.source, self.target)

    def typical(self, activity: Activity | None) -> float:
        """The magnitude that is put on, its own or the activity's."""
        return _magnitude(self, self.target, self.magnitude, activity)

    def known_magnitude(self, activity: Activity | None) -> float | None:
        return self.typical(activity)

    def apply(self, codes: Tensor, here: Tensor, magnitude: float | None) -> Tensor:
        assert magnitude is not None
        edited = codes.clone()
        at = here & (codes[:, self.source] > 0)
        edited[at, self.source] = 0
        edited[at, self.target] += magnitude
        return edited


@dataclass(frozen=True)
class Ablate(DirectionEdit):
    """All that the activation has along a latent's decoder direction, but for what the decoder's bias has.

    More than `Zero`: it takes away what other latents, and what the SAE misses, put along that direction, too
    (directional ablation, Arditi et al. 2024, arXiv:2406.11717).
    """

    latent: int
    where: Where | None = None

    def __post_init__(self) -> None:
        _check_latent("latent", self.latent)

    def own_latents(self) -> tuple[int, ...]:
        return (self.latent,)

    def push(self, x: Tensor, here: Tensor, sae: SparseCoder | None) -> Tensor:
        assert sae is not None
        direction = unit_directions(sae, [self.latent])[0]
        direction = direction / direction.norm()
        bias: Tensor = sae.b_dec.detach()  # pyright: ignore[reportAttributeAccessIssue]
        along = (x.float() - bias.float()) @ direction
        return -(along * here)[:, None] * direction


@dataclass(frozen=True, eq=False)
class AddVector(DirectionEdit):
    """`alpha` times a vector [d] is added to the activation; needs no SAE.

    `name` is what reports call it, `at` the hook that it belongs to, where that is known.
    """

    vector: Float[Tensor, " d"]
    alpha: float = 1.0
    where: Where | None = None
    name: str = "vector"
    at: str | None = None

    def __post_init__(self) -> None:
        _check_finite("alpha", self.alpha)
        if not torch.isfinite(self.vector).all() or not bool(self.vector.any()):
            raise AnalysisError(f"The vector {self.name!r} holds NaN or infinity, or nothing but zeros.")

    def __str__(self) -> str:
        where = "" if self.where is None else f", where={self.where}"
        return f"AddVector({self.name}, norm={float(self.vector.norm()):.4g}, alpha={self.alpha:g}{where})"

    def hook(self) -> str | None:
        return self.at

    def check(self, d_sae: int | None, width: int, hook: str, *, has_time: bool) -> None:
        super().check(d_sae, width, hook, has_time=has_time)
        if self.vector.shape != (width,):
            raise AnalysisError(
                f"The vector {self.name!r} has {self.vector.numel()} entries, and {hook} holds rows of {width}."
            )
        if self.at not in (None, hook):
            raise AnalysisError(f"The vector {self.name!r} was measured at {self.at!r} and is to steer {hook!r}.")

    def push(self, x: Tensor, here: Tensor, sae: SparseCoder | None) -> Tensor:
        return here[:, None] * (self.alpha * self.vector.to(x.device, x.dtype))


def _magnitude(edit: Edit, latent: int, given: float | None, activity: Activity | None) -> float:
    if given is not None:
        return given
    if activity is None:
        raise AnalysisError(
            f"{edit}: no typical magnitude of latent {latent} is known: pass magnitude=, or the steering's activity=."
        )
    return activity.magnitude_of(latent)


def _check_latent(name: str, latent: object) -> None:
    if isinstance(latent, bool) or not isinstance(latent, int) or latent < 0:
        raise AnalysisError(f"{name} is the number of a latent, from 0, got {latent!r}.")


def _check_finite(name: str, value: float) -> None:
    if isinstance(value, bool) or not math.isfinite(value):
        raise AnalysisError(f"{name} must be a finite number, got {value!r}.")


def _check_magnitude(value: float | None) -> None:
    if value is not None and (isinstance(value, bool) or not math.isfinite(value) or value <= 0):
        raise AnalysisError(f"magnitude is what a latent typically has where it fires, above 0, got {value!r}.")


def _check_span(start: float, end: float) -> None:
    if not (math.isfinite(start) and math.isfinite(end)) or not 0 <= start < end:
        raise AnalysisError(f"The span {start:g} to {end:g} s is empty: expected 0 <= start < end, in seconds.")
    if end - start < 0.02:
        raise AnalysisError(f"The span {start:g} to {end:g} s is shorter than a frame of 0.02 s.")
