"""Rows of activations in memory as an `ActivationSource`, with clips, so that they can be split."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from hooked_whisper.saes.splitting import held_out_groups


@dataclass
class MemorySource:
    """Rows [n, width] of each hook, in clips of `clip_rows` rows one after the other."""

    rows: dict[str, Tensor]
    clip_rows: int = 50
    model_name: str = "small"
    described: dict[str, Any] = field(default_factory=dict)

    @property
    def hooks(self) -> tuple[str, ...]:
        return tuple(self.rows)

    @property
    def n_rows(self) -> int:
        return len(next(iter(self.rows.values())))

    def width(self, hook: str) -> int:
        return self.rows[hook].shape[1]

    def batches(
        self, hook: str, batch_size: int, *, seed: int = 0, start: int = 0, repeat: bool = True
    ) -> Iterator[Tensor]:
        for batch in self.joint_batches([hook], batch_size, seed=seed, start=start, repeat=repeat):
            yield batch[hook]

    def joint_batches(
        self, hooks: Sequence[str], batch_size: int, *, seed: int = 0, start: int = 0, repeat: bool = True
    ) -> Iterator[dict[str, Tensor]]:
        at, end = start, None if repeat else self.n_rows
        while end is None or at < end:
            size = batch_size if end is None else min(batch_size, end - at)
            chosen = []
            while size:
                epoch, place = divmod(at, self.n_rows)
                part = self._order(seed, epoch)[place : place + size]
                chosen.append(part)
                at, size = at + len(part), size - len(part)
            yield {hook: self.rows[hook][torch.cat(chosen)] for hook in hooks}

    def _order(self, seed: int, epoch: int) -> Tensor:
        cached = self.__dict__.setdefault("_orders", {})
        if (seed, epoch) not in cached:
            cached[seed, epoch] = torch.randperm(
                self.n_rows, generator=torch.Generator().manual_seed(seed * 1000 + epoch)
            )
        return cached[seed, epoch]

    def split(self, held_out: float = 0.1, *, seed: int = 0, by: str = "clip") -> tuple[MemorySource, MemorySource]:
        clips = [str(row // self.clip_rows) for row in range(self.n_rows)]
        outside = held_out_groups(clips, held_out, seed)
        is_out = torch.tensor([clip in outside for clip in clips])
        kept, out = (
            MemorySource({hook: rows[keep] for hook, rows in self.rows.items()}, self.clip_rows, self.model_name)
            for keep in (~is_out, is_out)
        )
        return kept, out

    def describe(self) -> dict[str, Any]:
        return {
            "source": "memory", "model": self.model_name, "n_rows": self.n_rows, "rate": 50.0, "position": "frame",
            "corpus": {"name": "toy", "licences": ["CC0"]}, "licences": ["CC0"], **self.described,
        }  # fmt: skip


class PlainSource:
    """The same rows without `split` and `joint_batches`: no more than the protocol asks for."""

    def __init__(self, inner: MemorySource) -> None:
        self.inner = inner
        self.hooks, self.model_name, self.n_rows = inner.hooks, inner.model_name, inner.n_rows
        self.width, self.describe, self.batches = inner.width, inner.describe, inner.batches


def toy_rows(n_rows: int = 4000, width: int = 16, n_features: int = 40, seed: int = 0) -> Tensor:
    """Sparse sums of fixed directions, off centre: what an SAE is good at."""
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(n_features, width, generator=generator)
    active = torch.rand(n_rows, n_features, generator=generator) < 0.08
    strengths = torch.rand(n_rows, n_features, generator=generator) + 0.5
    return (active * strengths) @ directions + torch.randn(width, generator=generator)


def toy_source(**hooks: int) -> MemorySource:
    """A source with a hook of each name and width; `hook` of 16 where none is named."""
    return MemorySource({name: toy_rows(width=width) for name, width in (hooks or {"hook": 16}).items()})
