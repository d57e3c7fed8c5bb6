"""Which latents are active: the largest scores of each row, or of a whole batch, found exactly in one look.

Scores are an encoder's pre-activations, times the decoder's norms where an SAE is configured so.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.distributed as dist
from jaxtyping import Float, Int
from torch import Tensor

# Scores of so many bytes are looked at together: on a CPU what its last cache holds, on a GPU what keeps it busy.
CPU_CHUNK_BYTES = 32 * 1024 * 1024
GPU_CHUNK_BYTES = 1024 * 1024 * 1024
_GROUP_SIZES = (16, 8, 4, 2)


def chunk_rows(n_latents: int, dtype: torch.dtype, device: torch.device) -> int:
    """How many rows of scores to hold at a time."""
    budget = CPU_CHUNK_BYTES if device.type == "cpu" else GPU_CHUNK_BYTES
    return max(1, budget // (n_latents * dtype.itemsize))


def _group_size(n_latents: int, least_groups: int = 1) -> int:
    """Into groups of how many latents the scores of a row can be cut, 1 where they cannot."""
    return next((size for size in _GROUP_SIZES if n_latents % size == 0 and n_latents // size >= least_groups), 1)


def top_per_row(scores: Float[Tensor, "row latent"], k: int) -> tuple[Float[Tensor, "row k"], Int[Tensor, "row k"]]:
    """The `k` largest scores of each row and their latents, in no order.

    Exactly what `topk` gives, in two stages: the k largest lie in the k groups of latents whose largest member is
    largest, so only those are looked into.
    """
    size = _group_size(scores.shape[1], 2 * k)
    if size == 1:
        return scores.topk(k, dim=1, sorted=False)
    grouped = scores.view(scores.shape[0], size, -1)  # members of a group lie apart, so that the maximum is vectorised
    n_groups = grouped.shape[2]
    groups = grouped.amax(1).topk(k, dim=1, sorted=False).indices
    candidates = grouped.gather(2, groups[:, None].expand(-1, size, -1)).flatten(1)
    values, at = candidates.topk(k, dim=1, sorted=False)
    return values, at // k * n_groups + groups.gather(1, at % k)


class BatchSelection(NamedTuple):
    """Row, latent and score of each selected pair, in the order of the rows.

    `smallest` is the smallest score selected in any process, None where nothing was.
    """

    rows: Int[Tensor, " pair"]
    latents: Int[Tensor, " pair"]
    scores: Float[Tensor, " pair"]
    smallest: Tensor | None


class BatchSelector:
    """The `count` largest positive scores of a batch whose rows come in chunks; exact, and never holds the batch.

    Scores at or below `floor` are dropped as they come. The floor rises whenever more than `count` scores are known
    to lie above it, which loses nothing. One that was too high from the start shows as fewer than `count` scores found
    (`is_short`); then the batch has to be gone through again from a floor of 0.

    Args:
        count: how many to select; fewer are, where fewer are positive.
        floor: a guess below the smallest of them, such as a bit less than the last batch's; 0 is always right.
    """

    SLACK = 4  # times `count` that are held before the floor is raised

    def __init__(self, count: int, floor: float | Tensor = 0.0) -> None:
        self.count = count
        self.floor = floor
        self.guessed = bool(floor > 0)
        self.n_found = 0
        self._parts: list[tuple[Tensor, Tensor, Tensor]] = []

    def add(self, scores: Float[Tensor, "row latent"], first_row: int) -> None:
        """Looks at the scores of rows `first_row` and after."""
        size = _group_size(scores.shape[1])
        grouped = scores.view(scores.shape[0], size, -1)
        largest = grouped.amax(1)
        if not self.guessed and not self._parts and largest.numel() > self.count:
            # The `count` largest group maxima are `count` scores, so nothing below all of them can be selected.
            bound = largest.flatten().topk(self.count, sorted=False).values.min()
            self.floor = (bound * 0.99).clamp(min=0)  # a little lower, because scores at the floor are dropped
        rows, groups = (largest > self.floor).nonzero(as_tuple=True)
        members = grouped[rows, :, groups]
        pair, member = (members > self.floor).nonzero(as_tuple=True)
        latents = member * grouped.shape[2] + groups[pair]
        self._parts.append((rows[pair] + first_row, latents, members[pair, member]))
        self.n_found += latents.shape[0]
        if self.n_found > self.SLACK * self.count:
            self._prune()

    def _prune(self) -> None:
        rows, latents, scores = self._all()
        kept, at = scores.topk(self.count, sorted=False)
        at = at.sort().values  # rows stay in order
        self._parts = [(rows[at], latents[at], scores[at])]
        self.n_found = self.count
        self.floor = kept.min()

    def _all(self) -> tuple[Tensor, Tensor, Tensor]:
        rows, latents, scores = zip(*self._parts, strict=True)
        return torch.cat(rows), torch.cat(latents), torch.cat(scores)

    def is_short(self, group: dist.ProcessGroup | None = None) -> bool:
        """True where the floor given was too high to find `count` scores, in all processes of `group` together."""
        return self.guessed and self.n_found_in(group) < self.count

    def selected(self, group: dist.ProcessGroup | None = None) -> BatchSelection:
        """What is selected, its rows in order; with `group`, from the candidates of all its processes together.

        All processes must have begun with the same floor.
        """
        if group is None:
            if self.n_found > self.count:
                self._prune()
            rows, latents, scores = self._all()
            return BatchSelection(rows, latents, scores, scores.min() if len(scores) else None)
        return self._selected_across(group)

    def n_found_in(self, group: dist.ProcessGroup | None) -> int:
        """How many candidates all processes of `group` have found."""
        if group is None:
            return self.n_found
        total = self._all()[2].new_tensor(self.n_found, dtype=torch.long)
        dist.all_reduce(total, group=group)
        return int(total)

    def _selected_across(self, group: dist.ProcessGroup) -> BatchSelection:
        rows, latents, scores = self._all()
        lengths = [torch.zeros((), dtype=torch.long, device=scores.device) for _ in range(dist.get_world_size(group))]
        dist.all_gather(lengths, torch.tensor(len(scores), device=scores.device), group=group)
        longest = max(int(length) for length in lengths)
        padded = torch.full((longest,), -torch.inf, dtype=scores.dtype, device=scores.device)
        padded[: len(scores)] = scores
        parts = [torch.empty_like(padded) for _ in lengths]
        dist.all_gather(parts, padded, group=group)
        everyone = torch.cat(parts)
        count = min(self.count, sum(int(length) for length in lengths))
        if count == 0:
            return BatchSelection(rows, latents, scores, None)
        best, at = everyone.topk(count, sorted=False)
        mine = at[at // longest == dist.get_rank(group)] % longest
        mine = mine.sort().values
        return BatchSelection(rows[mine], latents[mine], scores[mine], best.min())
