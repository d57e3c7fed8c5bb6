"""In which order the rows of a store are read when they are shuffled, and which rows a part of a store has."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

BLOCK = 128  # rows that lie together on disk: 2.6 s of frames
BLOCKS_AT_A_TIME = 256  # mixed with each other: 32,768 rows
SHARDS_AT_A_TIME = 16
CHUNK = 256  # rows that come out of one shard before another has its turn


@dataclass(frozen=True, eq=False)
class Spans:
    """Rows of a store, as ranges [start, stop) in increasing order; rows of the part are numbered through them."""

    starts: np.ndarray
    stops: np.ndarray

    @classmethod
    def whole(cls, n_rows: int) -> Spans:
        """All rows."""
        return cls(np.array([0], dtype=np.int64), np.array([n_rows], dtype=np.int64))

    @classmethod
    def join(cls, parts: Sequence[Spans]) -> Spans:
        """The rows of one part after those of the other."""
        return cls(np.concatenate([p.starts for p in parts]), np.concatenate([p.stops for p in parts])).merged()

    @property
    def ends(self) -> np.ndarray:
        """How many rows of the part lie in each range and those before it."""
        return np.cumsum(self.stops - self.starts)

    @property
    def n_rows(self) -> int:
        """Rows of the part."""
        return int((self.stops - self.starts).sum())

    def pairs(self) -> Iterator[tuple[int, int]]:
        """The ranges."""
        return zip(self.starts.tolist(), self.stops.tolist(), strict=True)

    def shifted(self, offset: int) -> Spans:
        """The same ranges, `offset` rows further on."""
        return Spans(self.starts + offset, self.stops + offset)

    def merged(self) -> Spans:
        """The same rows in as few ranges as they allow."""
        new = np.concatenate([[True], self.starts[1:] != self.stops[:-1]])
        last = np.concatenate([new[1:], [True]])
        return Spans(self.starts[new], self.stops[last])

    def slice(self, start: int, stop: int) -> list[tuple[int, int]]:
        """The ranges that hold rows `start` to `stop` of the part."""
        ends = self.ends
        found = []
        index = int(np.searchsorted(ends, start, side="right"))
        while start < stop:
            offset = int(ends[index]) - int(self.stops[index] - self.starts[index])
            upto = min(stop, int(ends[index]))
            first = int(self.starts[index]) + start - offset
            found.append((first, first + upto - start))
            start, index = upto, index + 1
        return found

    def position_of(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """For rows of the store: their numbers in the part, and whether they are in it at all."""
        index = np.searchsorted(self.starts, rows, side="right") - 1
        at = np.maximum(index, 0)
        inside = (index >= 0) & (rows < self.stops[at])
        before = self.ends - (self.stops - self.starts)
        return before[at] + rows - self.starts[at], inside

    def choose(self, firsts: np.ndarray, lasts: np.ndarray) -> Spans:
        """A part of the part: ranges [first, last) of its own numbers, none of them across a gap."""
        before = self.ends - (self.stops - self.starts)
        index = np.searchsorted(before, firsts, side="right") - 1
        offset = self.starts[index] - before[index]
        return Spans(firsts + offset, lasts + offset).merged()

    def blocks(self, shard_starts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The rows cut into blocks of at most BLOCK rows, none of them across the border of a shard."""
        edges = shard_starts[1:-1]
        cuts = [self.starts, edges[self.position_of(edges)[1]]]
        starts = np.unique(np.concatenate(cuts))
        owner = np.searchsorted(self.starts, starts, side="right") - 1
        stops = np.minimum(np.append(starts[1:], self.stops[-1]), self.stops[owner])
        counts = -(-(stops - starts) // BLOCK)
        first = np.repeat(starts, counts)
        within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        first = first + within * BLOCK
        return first, np.minimum(first + BLOCK, np.repeat(stops, counts))


class Shuffle:
    """The order of shuffled rows, pass after pass, fixed by a seed.

    Rows that are used together should come from many places, and yet be read quickly. So: shards are taken in random
    order, 16 at a time; the blocks of 128 consecutive rows in these in random order, 256 at a time (32,768 rows); of
    these, the rows of each shard in random order, 256 at a time, the shards taking turns so that each is spread evenly.
    Every row comes once a pass, and each pass has another order. A batch of 4,096 rows holds about 16 of every block
    that is being mixed, from all shards that are. To go on at some row, nothing before it is read.

    Args:
        spans: the rows.
        shard_starts: the first row of each shard, and the end of the last.
        seed: fixes the order.
    """

    def __init__(self, spans: Spans, shard_starts: np.ndarray, seed: int) -> None:
        self.n_rows = spans.n_rows
        self.seed = seed
        self._shard_starts = shard_starts
        self._starts, self._stops = spans.blocks(shard_starts)
        self._shard = np.searchsorted(shard_starts, self._starts, side="right") - 1

    def _random(self, *key: int) -> np.random.Generator:
        return np.random.default_rng(np.random.SeedSequence([self.seed % 2**32, *key]))

    def chunks(self, start: int = 0, *, repeat: bool = True) -> Iterator[tuple[int, np.ndarray]]:
        """Shards, and rows of each counted from its beginning, from place `start` of the order on."""
        epoch, skip = divmod(start, self.n_rows)
        while True:
            yield from self._epoch(epoch, skip)
            if not repeat:
                return
            epoch, skip = epoch + 1, 0

    def _epoch(self, epoch: int, skip: int) -> Iterator[tuple[int, np.ndarray]]:
        for index, blocks in enumerate(self._mixes(epoch)):
            size = int((self._stops[blocks] - self._starts[blocks]).sum())
            if skip >= size:
                skip -= size
                continue
            for shard, rows in self._mix(blocks, self._random(epoch, 1, index)):
                if skip >= len(rows):
                    skip -= len(rows)
                    continue
                yield shard, rows[skip:]
                skip = 0

    def _mixes(self, epoch: int) -> Iterator[np.ndarray]:
        """The blocks of one pass, in lots that are mixed together."""
        random = self._random(epoch, 0)
        shards = random.permutation(np.unique(self._shard))
        place = np.empty(len(self._shard_starts), dtype=np.int64)
        place[shards] = np.arange(len(shards)) // SHARDS_AT_A_TIME
        # Blocks in random order, sorted by the turn of their shard: a stable sort keeps them random within a turn.
        order = random.permutation(len(self._starts))
        turn = place[self._shard[order]]
        order = order[np.argsort(turn, kind="stable")]
        edges = np.flatnonzero(np.diff(np.sort(turn))) + 1
        for group in np.split(order, edges):
            for first in range(0, len(group), BLOCKS_AT_A_TIME):
                yield group[first : first + BLOCKS_AT_A_TIME]

    def _mix(self, blocks: np.ndarray, random: np.random.Generator) -> list[tuple[int, np.ndarray]]:
        blocks = blocks[np.argsort(self._shard[blocks], kind="stable")]
        shards, firsts = np.unique(self._shard[blocks], return_index=True)
        starts = self._starts[blocks] - self._shard_starts[self._shard[blocks]]
        sizes = self._stops[blocks] - self._starts[blocks]
        ends = np.cumsum(sizes)
        rows = np.arange(ends[-1]) + np.repeat(starts - (ends - sizes), sizes)
        chunks: list[tuple[int, np.ndarray]] = []
        turns = []
        for shard, own in zip(shards.tolist(), np.split(rows, (ends - sizes)[firsts[1:]]), strict=True):
            random.shuffle(own)
            new = [(shard, own[at : at + CHUNK]) for at in range(0, len(own), CHUNK)]
            turns.append((np.arange(len(new)) + random.random(len(new))) / len(new))
            chunks += new
        return [chunks[index] for index in np.argsort(np.concatenate(turns)).tolist()]
