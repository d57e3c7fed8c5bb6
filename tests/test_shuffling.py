"""The order of shuffled rows, and parts of a store as ranges."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from hooked_whisper.saes import shuffling
from hooked_whisper.saes.shuffling import BLOCK, CHUNK, Shuffle, Spans

shards = st.lists(st.integers(1, 700), min_size=1, max_size=40)


def of(ranges: list[tuple[int, int]]) -> Spans:
    return Spans(np.array([a for a, _ in ranges]), np.array([b for _, b in ranges]))


def members(spans: Spans) -> list[int]:
    return [row for first, last in spans.pairs() for row in range(first, last)]


@st.composite
def stores(draw: st.DrawFn) -> tuple[np.ndarray, Spans]:
    """Borders of shards, and some of the rows."""
    starts = np.cumsum([0, *draw(shards)])
    edges = sorted(draw(st.sets(st.integers(0, int(starts[-1])), min_size=2, max_size=12)))
    ranges = [pair for pair in zip(edges[::2], edges[1::2], strict=False) if draw(st.booleans())]
    return starts, of(ranges or [(edges[0], edges[1])])


def order(starts: np.ndarray, spans: Spans, seed: int, start: int = 0) -> list[int]:
    chunks = Shuffle(spans, starts, seed).chunks(start, repeat=False)
    return [int(starts[shard]) + row for shard, rows in chunks for row in rows.tolist()]


@settings(deadline=None, max_examples=60)
@given(store=stores(), seed=st.integers(0, 5), data=st.data())
def test_every_row_comes_once_and_any_place_can_be_gone_to(
    store: tuple[np.ndarray, Spans], seed: int, data: st.DataObject
) -> None:
    starts, spans = store
    whole = order(starts, spans, seed)
    assert sorted(whole) == members(spans)
    start = data.draw(st.integers(0, spans.n_rows - 1))
    assert order(starts, spans, seed, start) == whole[start:]


@settings(deadline=None, max_examples=60)
@given(store=stores())
def test_blocks_are_the_rows_within_shards(store: tuple[np.ndarray, Spans]) -> None:
    starts, spans = store
    firsts, lasts = spans.blocks(starts)
    assert members(Spans(firsts, lasts)) == members(spans)
    assert (lasts - firsts).max() <= BLOCK
    assert (np.searchsorted(starts, firsts, side="right") == np.searchsorted(starts, lasts - 1, side="right")).all()


@settings(deadline=None, max_examples=100)
@given(store=stores(), data=st.data())
def test_ranges_number_their_rows(store: tuple[np.ndarray, Spans], data: st.DataObject) -> None:
    starts, spans = store
    rows = members(spans)
    first = data.draw(st.integers(0, len(rows)))
    last = data.draw(st.integers(first, len(rows)))
    assert [row for a, b in spans.slice(first, last) for row in range(a, b)] == rows[first:last]
    every = np.arange(starts[-1])
    number, inside = spans.position_of(every)
    assert every[inside].tolist() == rows
    assert number[inside].tolist() == list(range(len(rows)))
    merged = spans.merged()
    assert members(merged) == rows
    assert (merged.starts[1:] > merged.stops[:-1]).all()


def test_a_part_of_a_part() -> None:
    spans = of([(10, 20), (30, 35)])
    chosen = spans.choose(np.array([2, 10]), np.array([5, 12]))
    assert list(chosen.pairs()) == [(12, 15), (30, 32)]
    assert list(Spans.join([chosen, spans.shifted(100)]).pairs()) == [(12, 15), (30, 32), (110, 120), (130, 135)]
    assert list(Spans.join([of([(0, 5)]), of([(5, 9)])]).pairs()) == [(0, 9)]


def test_passes_and_seeds_differ() -> None:
    starts = np.array([0, 500, 900])
    spans = Spans.whole(900)
    chunks = Shuffle(spans, starts, 0).chunks(0)
    passes: list[list[int]] = [[], []]
    for found in passes:
        while len(found) < 900:
            shard, rows = next(chunks)
            found += (starts[shard] + rows).tolist()
    assert sorted(passes[0]) == sorted(passes[1]) == list(range(900))
    assert passes[0] != passes[1]
    assert order(starts, spans, 1) != passes[0] == order(starts, spans, 0)


def test_rows_are_mixed_over_shards_and_blocks() -> None:
    """A batch of 4,096 rows comes from all shards and most blocks, not from a corner of the store."""
    starts = np.arange(0, 8 * 8192 + 1, 8192)
    batch = np.array(order(starts, Spans.whole(8 * 8192), 0)[:4096])
    of_shard = np.unique(batch // 8192, return_counts=True)[1]
    assert len(of_shard) == 8
    assert of_shard.min() >= 256
    blocks, counts = np.unique(batch // BLOCK, return_counts=True)
    assert len(blocks) > 200
    assert counts.max() <= 48
    steps = np.abs(np.diff(batch.reshape(-1, CHUNK), axis=1))
    assert np.median(steps) > BLOCK


def test_the_order_is_not_changed_by_accident(monkeypatch) -> None:
    """Runs that go on after an update of the library must find the rows where they were."""
    monkeypatch.setattr(shuffling, "BLOCK", 2)
    assert order(np.array([0, 4, 7]), Spans.whole(7), 0) == PINNED


PINNED = [5, 6, 4, 3, 1, 2, 0]
