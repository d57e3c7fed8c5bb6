"""Windows, batches and blocks, from lengths alone."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from hooked_whisper.audio import SAMPLES_PER_FRAME
from hooked_whisper.saes.harvest_plan import (
    MAX_BLOCK_SECONDS,
    Piece,
    Window,
    cost,
    cut,
    into_batches,
    into_blocks,
    into_windows,
    shared_out,
)

FRAMES = 100  # of a window
lengths = st.lists(st.integers(0, 3 * FRAMES * SAMPLES_PER_FRAME), max_size=30)


@given(lengths=lengths)
def test_pieces_cover_clips(lengths: list[int]) -> None:
    pieces = cut(lengths, FRAMES)
    covered = [0] * len(lengths)
    for piece in pieces:
        assert piece.start == covered[piece.clip]
        assert 0 < piece.n_frames <= FRAMES
        covered[piece.clip] += piece.n_samples
    assert covered == lengths
    assert all(piece.start % SAMPLES_PER_FRAME == 0 for piece in pieces)


@given(lengths=lengths)
def test_packing_loses_nothing_and_nothing_overlaps(lengths: list[int]) -> None:
    pieces = cut(lengths, FRAMES)
    windows = into_windows(pieces, FRAMES, "windows")
    packed = [piece for window in windows for piece in window.pieces]
    assert sorted((p.clip, p.start, p.n_samples) for p in packed) == [(p.clip, p.start, p.n_samples) for p in pieces]
    for window in windows:
        at = 0
        for piece in window.pieces:
            assert piece.place == at
            at += piece.n_frames
        assert window.n_frames == at <= FRAMES
    # First fit: no two windows would fit into one.
    sizes = sorted(window.n_frames for window in windows)
    assert len(sizes) < 2 or sizes[0] + sizes[1] > FRAMES


def test_a_window_for_each_piece() -> None:
    pieces = cut([FRAMES * SAMPLES_PER_FRAME + 1, 5], FRAMES)
    assert into_windows(pieces, FRAMES, "none") == [Window([piece]) for piece in pieces]
    assert [(p.clip, p.start, p.n_frames) for p in pieces] == [(0, 0, 100), (0, 32_000, 1), (1, 0, 1)]


def test_batches_of_full_windows_are_consecutive() -> None:
    windows = [Window([Piece(i, 0, 1)]) for i in range(5)]
    assert into_batches(windows, FRAMES, 2, "full") == [
        (FRAMES, windows[:2]),
        (FRAMES, windows[2:4]),
        (FRAMES, windows[4:]),
    ]


def test_windows_of_one_true_length_go_together() -> None:
    windows = [Window([Piece(i, 0, n * SAMPLES_PER_FRAME)]) for i, n in enumerate((1, 60, 25, 26, 99))]
    found = into_batches(windows, 90, 2, "true_length")
    assert [(frames, [w.pieces[0].clip for w in batch]) for frames, batch in found] == [
        (25, [0, 2]),
        (50, [3]),
        (75, [1]),
        (90, [4]),
    ]


@given(seconds=st.lists(st.floats(0, 5000), min_size=1, max_size=50), shard_rows=st.integers(1, 50_000))
def test_blocks_are_consecutive_and_small(seconds: list[float], shard_rows: int) -> None:
    rows = [50 * length for length in seconds]
    blocks = into_blocks(seconds, rows, shard_rows)
    assert [first for first, _ in blocks] == [0, *(stop for _, stop in blocks[:-1])]
    assert blocks[-1][1] == len(seconds)
    for first, stop in blocks:
        assert stop > first
        if stop - first > 1:
            assert sum(rows[first:stop]) <= shard_rows
            assert sum(seconds[first:stop]) <= MAX_BLOCK_SECONDS


def test_cost_is_what_the_encoder_is_given() -> None:
    """1,500 frames a window: one for each clip, as many as packing takes, or the clips' own lengths."""
    seconds = [10.0, 25.0, 4.2, 61.0]
    assert cost(seconds, 1500, "none", "full") == 6 * 1500  # 61 s are three pieces
    assert cost(seconds, 1500, "windows", "full") == 4 * 1500  # 10 and 4.2 and 1 s together
    assert cost(seconds, 1500, "none", "true_length") == 500 + 1250 + 225 + 1500 + 1500 + 50


@given(costs=st.lists(st.integers(1, 100), max_size=60), n=st.integers(1, 5))
def test_every_block_has_one_process_and_none_has_much_more(costs: list[int], n: int) -> None:
    shares = shared_out(costs, n)
    assert sorted(block for own in shares for block in own) == list(range(len(costs)))
    assert all(own == sorted(own) for own in shares)
    loads = [sum(costs[block] for block in own) for own in shares]
    assert max(loads) - min(loads) <= max(costs, default=0)
