"""The largest scores of rows and of batches, against `topk` on the whole."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hooked_whisper.saes.selection import CPU_CHUNK_BYTES, BatchSelector, chunk_rows, top_per_row


def scores_of(n_rows: int, n_latents: int, seed: int, step: float = 0.0) -> Tensor:
    """Random scores; with `step`, rounded to its multiples, so that many are equal."""
    scores = torch.randn(n_rows, n_latents, generator=torch.Generator().manual_seed(seed))
    return (scores / step).round() * step if step else scores


@settings(deadline=None)
@given(st.integers(1, 5), st.sampled_from([7, 32, 48, 256, 1000]), st.integers(1, 7), st.integers(0, 99), st.booleans())
def test_top_of_a_row_is_topk(n_rows: int, n_latents: int, k: int, seed: int, ties: bool) -> None:
    scores = scores_of(n_rows, n_latents, seed, 0.5 if ties else 0.0)
    values, latents = top_per_row(scores, k)
    torch.testing.assert_close(values.sort(1, descending=True).values, scores.topk(k, 1).values, rtol=0, atol=0)
    assert torch.equal(scores.gather(1, latents), values)
    assert all(len(set(row)) == k for row in latents.tolist())


def select(scores: Tensor, count: int, pieces: list[int], floor: float) -> tuple[BatchSelector, Tensor]:
    """Selects from `scores` in pieces; what was selected, as a dense matrix."""
    selector = BatchSelector(count, floor)
    first = 0
    for size in pieces:
        selector.add(scores[first : first + size], first)
        first += size
    chosen = selector.selected()
    assert torch.equal(chosen.rows, chosen.rows.sort().values)
    dense = torch.zeros_like(scores)
    dense[chosen.rows, chosen.latents] = chosen.scores
    return selector, dense


def whole(scores: Tensor, count: int) -> Tensor:
    """The same by `topk` over the flat batch, as SAELens does it."""
    flat = scores.relu().flatten()
    best = flat.topk(min(count, len(flat)))
    return torch.zeros_like(flat).scatter(0, best.indices, best.values).reshape(scores.shape)


@settings(deadline=None)
@given(st.data(), st.sampled_from([5, 16, 64]), st.integers(0, 99))
def test_top_of_a_batch_is_topk(data: st.DataObject, n_latents: int, seed: int) -> None:
    pieces = data.draw(st.lists(st.integers(1, 9), min_size=1, max_size=5))
    scores = scores_of(sum(pieces), n_latents, seed) + data.draw(st.sampled_from([-3.0, -1.0, 0.0, 2.0]))
    count = data.draw(st.integers(1, scores.numel()))
    floor = data.draw(st.sampled_from([0.0, 0.1, 1.0, 9.0]))
    expected = whole(scores, count)
    selector, found = select(scores, count, pieces, floor)
    if not selector.is_short():
        assert torch.equal(found, expected)
        return
    assert floor > 0 and (scores > floor).sum() < count
    _, again = select(scores, count, pieces, 0.0)
    assert torch.equal(again, expected)


def test_equal_scores_are_counted_out() -> None:
    scores = torch.ones(6, 16)
    for floor in (0.0, 0.5):
        _, found = select(scores, 20, [2, 2, 2], floor)
        assert found.sum() == 20


def test_a_row_may_take_all() -> None:
    """No cap on the latents of one row: the case for which a list of candidates by row would need a way out."""
    scores = scores_of(8, 64, 0) * 0.1
    scores[3] = torch.linspace(1, 2, 64)
    _, found = select(scores, 64, [4, 4], 0.0)
    assert torch.equal(found[3], scores[3]) and found.sum() == scores[3].sum()


def test_the_floor_rises_and_little_is_held() -> None:
    selector = BatchSelector(10)
    for first in range(0, 1000, 10):
        selector.add(scores_of(10, 64, first), first)
        assert selector.n_found <= 10 * selector.SLACK + 640
    assert selector.floor > 3 and not selector.is_short()
    chosen = selector.selected()
    assert len(chosen.scores) == 10 and chosen.smallest == chosen.scores.min()


def test_nothing_positive() -> None:
    selector, found = select(-torch.ones(3, 8), 5, [3], 0.0)
    assert not selector.is_short() and not found.any() and selector.selected().smallest is None
    assert select(-torch.ones(3, 8), 5, [3], 1.0)[0].is_short()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_pieces_fit_the_budget(dtype: torch.dtype) -> None:
    rows = chunk_rows(16_384, dtype, torch.device("cpu"))
    assert rows * 16_384 * dtype.itemsize == CPU_CHUNK_BYTES
    assert chunk_rows(10**9, dtype, torch.device("cpu")) == 1
    assert chunk_rows(16_384, dtype, torch.device("cuda")) > rows
