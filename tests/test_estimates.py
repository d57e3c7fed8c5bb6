"""Intervals cover what they should, and pooled rates are sums over sums."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hooked_whisper.saes.estimates import Estimate, bootstrap, divide, ratio

counts = st.lists(st.tuples(st.integers(0, 20), st.integers(1, 30)), min_size=1, max_size=12)


def arrays(pairs: list[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
    over, under = np.array(pairs, dtype=np.float64).T
    return over, under


@given(counts)
def test_a_rate_is_pooled_over_clips(pairs: list[tuple[int, int]]) -> None:
    over, under = arrays(pairs)
    found = bootstrap(ratio(over, under), len(pairs), n_resamples=50)
    assert found.value == pytest.approx(over.sum() / under.sum())


@given(counts)
def test_an_interval_lies_between_the_most_extreme_clips(pairs: list[tuple[int, int]]) -> None:
    over, under = arrays(pairs)
    found = bootstrap(ratio(over, under), len(pairs), n_resamples=50)
    if len(pairs) == 1:
        assert (found.low, found.high) == (None, None)
        return
    assert found.low is not None and found.high is not None
    slack = 1e-9
    assert (over / under).min() - slack <= found.low <= found.high <= (over / under).max() + slack


def test_intervals_cover_the_truth_as_often_as_they_say() -> None:
    generator = np.random.default_rng(1)
    hits = 0
    for trial in range(200):
        under = generator.integers(5, 15, size=60).astype(float)
        over = generator.binomial(under.astype(int), 0.3).astype(float)
        found = bootstrap(ratio(over, under), 60, n_resamples=400, seed=trial)
        assert found.low is not None and found.high is not None
        hits += found.low <= 0.3 <= found.high
    assert 0.90 <= hits / 200 <= 0.99


def test_clips_that_are_all_alike_leave_no_doubt() -> None:
    found = bootstrap(ratio(np.full(9, 2.0), np.full(9, 8.0)), 9)
    assert (found.value, found.low, found.high) == pytest.approx((0.25, 0.25, 0.25))


def test_the_seed_fixes_the_interval() -> None:
    over, under = np.arange(10.0), np.arange(10.0) + 3
    first, again, other = (bootstrap(ratio(over, under), 10, seed=seed) for seed in (3, 3, 4))
    assert first == again
    assert first != other


def test_many_clips_are_resampled_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    from hooked_whisper.saes import estimates

    over, under = np.arange(50.0), np.arange(50.0) + 3
    whole = bootstrap(ratio(over, under), 50, n_resamples=64)
    monkeypatch.setattr(estimates, "_PAIRS", 50 * 10)
    assert bootstrap(ratio(over, under), 50, n_resamples=64) == whole


@pytest.mark.parametrize("n_clips", [0, 3])
def test_what_is_not_defined_has_no_value(n_clips: int) -> None:
    nothing = np.zeros(n_clips)
    assert bootstrap(ratio(nothing, nothing), n_clips) == Estimate(None, None, None)


def test_without_resamples_there_is_no_interval() -> None:
    assert bootstrap(ratio(np.ones(3), np.ones(3)), 3, n_resamples=0) == Estimate(1.0)


def test_divide_gives_nan_below_zero_and_at_zero() -> None:
    found = divide(np.array([1.0, 1.0, 1.0]), np.array([2.0, 0.0, -1.0]))
    assert found[0] == 0.5
    assert np.isnan(found[1:]).all()


def test_estimates_read_well_and_change_units() -> None:
    assert str(Estimate(None)) == "n/a"
    assert str(Estimate(0.25)) == "0.25"
    assert str(Estimate(0.25, 0.2, 0.3)) == "0.25 [0.2, 0.3]"
    assert Estimate(0.25, 0.2, None).scaled(100) == Estimate(25.0, 20.0, None)


def test_per_cent() -> None:
    assert Estimate(0.1234, 0.1, 0.25).percent() == "12.3 % [10.0, 25.0]"
    assert Estimate(0.5).percent() == "50.0 %"
    assert Estimate(None).percent() == "n/a"
