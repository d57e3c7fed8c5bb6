"""Rows for training out of a source: a held-out part, batches of several hooks, and what weights start from."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from hooked_whisper.errors import SaeError
from hooked_whisper.saes.source import ActivationSource


@runtime_checkable
class SplitSource(Protocol):
    """A source that can be split so that nothing of one side is on the other, as `ActivationStore` can."""

    def split(
        self, held_out: float = 0.1, *, seed: int = 0, by: str = "clip"
    ) -> tuple[ActivationSource, ActivationSource]: ...


@runtime_checkable
class JointSource(Protocol):
    """A source that gives several hooks at once, as stores and streams can."""

    def joint_batches(
        self, hooks: Sequence[str], batch_size: int, *, seed: int = 0, start: int = 0, repeat: bool = True
    ) -> Iterator[dict[str, Float[Tensor, "batch _"]]]: ...


def split(
    source: ActivationSource, held_out: float | ActivationSource | None, *, by: str = "clip", seed: int = 0
) -> tuple[ActivationSource, ActivationSource | None]:
    """The source to train on, and the one to evaluate on, if any.

    Args:
        held_out: the part to hold out, between 0 and 1, of a source that can be split; or a source; or None.
        by: what stays together: "clip", or a column such as "key" or "speaker".

    Raises:
        SaeError: a part of a source that cannot be split, or a held-out source of another model or width.
    """
    if held_out is None:
        return source, None
    if isinstance(held_out, int | float):
        if not 0 < held_out < 1:
            raise SaeError(
                f"held_out={held_out!r} is no part of the data: expected a number between 0 and 1, a source, or None."
            )
        if not isinstance(source, SplitSource):
            raise SaeError(
                f"held_out={held_out} was given, but a {type(source).__name__} cannot be split: pass held_out= a "
                "source of other clips (such as a stream of the held-out side of corpus.split()), or held_out=None."
            )
        return source.split(held_out, by=by, seed=seed)
    if held_out.model_name != source.model_name:
        raise SaeError(
            f"The held-out rows are of {held_out.model_name!r}, those to train on of {source.model_name!r}: "
            "expected one model."
        )
    for hook in source.hooks:
        if hook in held_out.hooks and held_out.width(hook) != source.width(hook):
            raise SaeError(
                f"Held-out rows of {hook!r} are {held_out.width(hook)} wide, those to train on {source.width(hook)}."
            )
    return source, held_out


def joint_batches(
    source: ActivationSource, hooks: Sequence[str], batch_size: int, *, seed: int, start: int = 0, repeat: bool = True
) -> Iterator[dict[str, Float[Tensor, "batch _"]]]:
    """Batches of several hooks, row for row of the same frame, from row `start` of the order on.

    Raises:
        SaeError: rows that are not finite.
    """
    if isinstance(source, JointSource):
        batches = source.joint_batches(hooks, batch_size, seed=seed, start=start, repeat=repeat)
    else:
        each = [source.batches(hook, batch_size, seed=seed, start=start, repeat=repeat) for hook in hooks]
        batches = (dict(zip(hooks, rows, strict=True)) for rows in zip(*each, strict=True))
    at = start
    for batch in batches:
        for hook, rows in batch.items():
            _check_finite(rows, hook, at)
        at += len(batch[hooks[0]])
        yield batch


def _check_finite(rows: Tensor, hook: str, first: int) -> None:
    if torch.isfinite(rows).all():
        return
    bad = (~torch.isfinite(rows)).any(1).nonzero()[:, 0]
    raise SaeError(
        f"{len(bad)} rows of {hook!r} hold NaN or infinity, the first of them row {first + int(bad[0])} of the "
        "training order: check the model's dtype (float16 overflows) and harvest again."
    )


def first_rows(
    source: ActivationSource, hooks: Sequence[str], n_rows: int, *, batch_size: int, seed: int
) -> dict[str, Float[Tensor, "row _"]]:
    """The first `n_rows` of the shuffled order, or all there are, of each hook."""
    parts: dict[str, list[Tensor]] = {hook: [] for hook in hooks}
    have = 0
    for batch in joint_batches(source, hooks, min(batch_size, n_rows), seed=seed, repeat=False):
        for hook, rows in batch.items():
            parts[hook].append(rows[: n_rows - have])
        have += len(batch[hooks[0]])
        if have >= n_rows:
            break
    return {hook: torch.cat(rows) for hook, rows in parts.items()}


def norm_scale(rows: Float[Tensor, "row width"]) -> float:
    """The factor that makes the mean length of a row the square root of its width: "expected_average_only_in"."""
    mean = rows.norm(dim=-1).double().mean().item()
    if mean == 0:
        raise SaeError("All activations are 0: there is nothing to train on. Check the hook and the corpus.")
    return math.sqrt(rows.shape[1]) / mean


def geometric_median(
    rows: Float[Tensor, "row width"], *, iterations: int = 100, tolerance: float = 1e-6
) -> Float[Tensor, " width"]:
    """The point whose summed distance to the rows is smallest, by Weiszfeld's iteration; little moved by outliers."""
    rows = rows.double()
    point = rows.mean(0)
    for _ in range(iterations):
        weights = 1 / (rows - point).norm(dim=1).clamp(min=1e-12)
        new = weights @ rows / weights.sum()
        moved = (new - point).norm() / new.norm().clamp(min=1e-12)
        point = new
        if moved < tolerance:
            break
    return point.float()
