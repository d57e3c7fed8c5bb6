"""Which groups are held out."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from hooked_whisper.saes.splitting import held_out_groups

groups = st.lists(st.sampled_from("abcdefghij"), min_size=1, max_size=40)


@given(groups=groups, held_out=st.floats(0.01, 0.99), seed=st.integers(0, 99))
def test_neither_side_is_empty_and_order_does_not_matter(groups: list[str], held_out: float, seed: int) -> None:
    outside = held_out_groups(groups, held_out, seed)
    assert outside < set(groups)
    assert bool(outside) == (len(set(groups)) > 1)
    assert held_out_groups(sorted(groups), held_out, seed) == outside


@given(groups=groups, seed=st.integers(0, 99), small=st.floats(0.01, 0.5), more=st.floats(0.0, 0.49))
def test_holding_out_more_keeps_what_was_held_out(groups: list[str], seed: int, small: float, more: float) -> None:
    assert held_out_groups(groups, small, seed) <= held_out_groups(groups, small + more, seed)


def test_a_new_group_leaves_the_others_where_they_are() -> None:
    names = [f"speaker {i}" for i in range(100)]
    before = held_out_groups(names, 0.2, 0)
    after = held_out_groups([*names, "a new one"], 0.2, 0)
    assert len(before ^ after) <= 2
    assert len(before) == 20
