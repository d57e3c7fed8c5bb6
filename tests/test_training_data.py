"""Batches for training, what weights start from, and activations that are no numbers."""

from __future__ import annotations

import math

import pytest
import torch
from memory_source import MemorySource, PlainSource, toy_rows, toy_source

from hooked_whisper.errors import SaeError
from hooked_whisper.saes.training_data import first_rows, geometric_median, joint_batches, norm_scale, split


def test_batches_of_several_hooks_are_of_the_same_rows() -> None:
    source = toy_source(a=16, b=24)
    for one in (source, PlainSource(source)):
        batches = joint_batches(one, ["a", "b"], 64, seed=3, start=128)
        batch = next(batches)
        expected = next(source.joint_batches(["a", "b"], 64, seed=3, start=128))
        assert all(torch.equal(batch[hook], expected[hook]) for hook in "ab")


def test_the_first_rows_are_those_that_training_begins_with() -> None:
    source = toy_source()
    rows = first_rows(source, ["hook"], 150, batch_size=64, seed=1)["hook"]
    batches = source.batches("hook", 64, seed=1)
    assert torch.equal(rows, torch.cat([next(batches) for _ in range(3)])[:150])
    assert len(first_rows(source, ["hook"], 10**6, batch_size=999, seed=1)["hook"]) == source.n_rows


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_rows_that_are_no_numbers(value: float) -> None:
    rows = toy_rows(500)
    rows[7, 3] = value
    with pytest.raises(SaeError, match="1 rows of 'hook' hold NaN or infinity, the first of them row .*float16"):
        list(joint_batches(MemorySource({"hook": rows}), ["hook"], 100, seed=0, repeat=False))


def test_split() -> None:
    source = toy_source()
    assert split(source, None) == (source, None)
    train, out = split(source, 0.2, seed=4)
    assert out is not None and out.n_rows is not None and train.n_rows == source.n_rows - out.n_rows
    other = toy_source()
    assert split(source, other) == (source, other)


def test_norm_scale() -> None:
    rows = toy_rows()
    assert (rows * norm_scale(rows)).norm(dim=1).mean().item() == pytest.approx(4)  # the root of 16
    with pytest.raises(SaeError, match="All activations are 0"):
        norm_scale(torch.zeros(5, 3))


def test_geometric_median() -> None:
    rows = torch.randn(500, 4)
    far = torch.cat([rows, torch.full((100, 4), 1e4)])
    assert geometric_median(far).norm() < 1 < far.mean(0).norm()
    line = torch.tensor([[0.0], [1.0], [10.0]])
    assert geometric_median(line).item() == pytest.approx(1, abs=1e-3)  # of numbers it is the median
    nudge = torch.randn(4) * 0.05
    best = geometric_median(rows)
    assert (rows - best).norm(dim=1).sum() <= (rows - best - nudge).norm(dim=1).sum()
