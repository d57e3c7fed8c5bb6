"""Activations under their names: memory that is shared is kept and counted once, cuts take the right axis."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hooked_whisper.named_cache import as_index, compact, same_memory, storage_bytes


def test_memory_that_is_shared_counts_once() -> None:
    whole = torch.zeros(10, 4)
    assert storage_bytes([whole, whole[2:5], whole.T]) == 160
    assert storage_bytes([whole, whole.clone()]) == 320
    assert storage_bytes([]) == 0


def test_the_same_view_is_the_same_memory() -> None:
    whole = torch.zeros(10, 4)
    assert same_memory(whole[:3]) == same_memory(whole[:3])
    assert same_memory(whole[:3]) != same_memory(whole[1:4])
    assert same_memory(whole) != same_memory(whole.T)


@given(st.lists(st.integers(0, 9), min_size=1, max_size=4))
@settings(max_examples=25, deadline=None)
def test_compacting_changes_no_value_and_frees_what_nobody_names(starts: list[int]) -> None:
    whole = torch.randn(1000, 4)
    views = {str(i): whole[start : start + 1] for i, start in enumerate(starts)}
    found = compact(dict(views))
    assert list(found) == list(views)
    for name, value in found.items():
        assert torch.equal(value, views[name])
    assert storage_bytes(found.values()) <= 10 * 16


@pytest.mark.parametrize("given_", [0, [0, 2], slice(0, 2), torch.tensor([1])])
def test_batches_are_indexed_as_tensors_are(given_: object) -> None:
    value = torch.arange(6).reshape(3, 2)
    assert torch.equal(value[as_index(given_)], value[given_])  # type: ignore[index]
