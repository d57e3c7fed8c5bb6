"""Two SAEs that are the same up to order, sign of noise, or nothing at all, are recognised as such."""

from __future__ import annotations

import sys
from itertools import permutations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sae_files import random_sae, sae_lens
from short_windows import exact_sae

from hooked_whisper import MissingExtraError, SaeError
from hooked_whisper.saes import stability
from hooked_whisper.saes.stability import match_saes


def shuffled(sae: object, order: torch.Tensor) -> object:
    """The same SAE with its latents in another order: latent i of the new one is latent order[i] of the old."""
    other = exact_sae(sae.cfg.d_in, k=sae.cfg.k)
    with torch.no_grad():
        other.W_enc.copy_(sae.W_enc[:, order])
        other.W_dec.copy_(sae.W_dec[order])
        other.b_enc.copy_(sae.b_enc[order])
    return other


@settings(max_examples=15)
@given(st.permutations(range(16)))
def test_another_order_is_seen_through(order: list[int]) -> None:
    a = exact_sae(8, k=4)
    rows = torch.randn(60, 8)
    found = match_saes(a, shuffled(a, torch.tensor(order)), rows)
    back = torch.tensor(order).argsort()
    for matching in (found.nearest, found.one_to_one):
        assert matching.partner.tolist() == back.tolist()
        assert matching.cosine.tolist() == pytest.approx([1.0] * 16)
        assert matching is not None and matching.iou is not None
        assert matching.iou[found.alive].tolist() == pytest.approx([1.0] * int(found.alive.sum()))
    summary = found.summary()
    assert summary.found_again_nearest == summary.found_again_one_to_one == summary.mutually_nearest == 1
    assert summary.mean_best_iou == pytest.approx(1)


def test_unrelated_directions_are_not_found_again() -> None:
    a, b = random_sae("topk", d_in=64, seed=0), random_sae("topk", d_in=64, seed=1)
    summary = match_saes(a, b).summary()
    assert summary.found_again_nearest == summary.found_again_one_to_one == 0
    assert summary.mean_nearest_cosine < 0.5
    assert (summary.n_rows, summary.n_alive_a, summary.mean_best_iou, summary.fire_together) == (0, 32, None, None)


def test_one_to_one_gives_each_latent_away_once() -> None:
    a, b = exact_sae(4), exact_sae(4)
    with torch.no_grad():  # three copies of one direction in b, which a has once
        b.W_dec[1] = b.W_dec[2] = b.W_dec[0]
    found = match_saes(b, a)
    assert found.nearest.partner[:3].tolist() == [0, 0, 0]
    assert found.nearest.cosine[:3].tolist() == pytest.approx([1, 1, 1])
    assert sorted(found.one_to_one.partner.tolist()) == list(range(8))
    assert (found.one_to_one.cosine[:3] > 0.99).sum() == 1
    # Found again, two of them only because they share: that is what the two ways of matching tell apart.
    assert found.summary().found_again_nearest == 1
    assert found.summary().found_again_one_to_one == pytest.approx(6 / 8)
    assert found.summary().mutually_nearest == pytest.approx(6 / 8)


def test_the_assignment_beats_every_other_in_sum() -> None:
    a, b = random_sae("topk", d_sae=5, k=2), random_sae("topk", d_sae=5, k=2, seed=3)
    found = match_saes(a, b)
    directions = [torch.nn.functional.normalize(sae.W_dec.detach(), dim=-1) for sae in (a, b)]
    cosines = directions[0] @ directions[1].T
    best = max(float(cosines[range(5), list(order)].sum()) for order in permutations(range(5)))
    assert float(found.one_to_one.cosine.sum()) == pytest.approx(best, abs=1e-5)
    torch.testing.assert_close(found.nearest.cosine.double(), cosines.max(1).values, atol=1e-5, rtol=0)
    torch.testing.assert_close(found.nearest_back.cosine.double(), cosines.max(0).values, atol=1e-5, rtol=0)


def test_iou_is_counted_by_hand() -> None:
    a, b = exact_sae(2), exact_sae(2)
    with torch.no_grad():
        b.b_enc[0] = -1.5  # fires later than a's latent 0
    rows = torch.tensor([[1.0, 1.0], [2.0, 1.0], [3.0, 1.0], [-1.0, 1.0]])
    found = match_saes(a, b, rows)
    # a: latent 0 on rows 0-2, 1 always, 2 (negative part of dimension 0) on row 3; b: latent 0 on rows 1 and 2 alone.
    assert found.nearest.iou.tolist() == pytest.approx([2 / 3, 1, 1, 0])
    assert found.nearest_back.iou.tolist() == pytest.approx([2 / 3, 1, 1, 0])
    assert found.best_iou.tolist() == pytest.approx([3 / 4, 1, 1, 0])  # a's 0 overlaps more with b's 1
    assert found.alive.tolist() == found.alive_back.tolist() == [True, True, True, False]
    summary = found.summary()
    assert (summary.n_rows, summary.n_alive_a, summary.n_alive_b) == (4, 3, 3)
    assert summary.mean_one_to_one_iou == pytest.approx((2 / 3 + 2) / 3)
    assert summary.fire_together == 1
    assert summary.to_dict()["n_rows"] == 4


def test_parts_and_blocks_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = random_sae("topk", d_sae=40), random_sae("topk", d_sae=30, seed=2)
    rows = torch.randn(50, 16)
    whole = match_saes(a, b, rows)
    monkeypatch.setattr(stability, "_BLOCK", 7)
    parts = match_saes(a, b, iter(rows.split(13)))
    for name in ("nearest", "nearest_back", "one_to_one"):
        first, second = getattr(whole, name), getattr(parts, name)
        assert first.partner.tolist() == second.partner.tolist()
        torch.testing.assert_close(first.iou, second.iou)
    torch.testing.assert_close(whole.best_iou, parts.best_iou)
    assert whole.summary() == parts.summary()


def test_a_larger_dictionary_has_latents_over() -> None:
    found = match_saes(random_sae("topk", d_sae=40), random_sae("topk", d_sae=30, seed=2), torch.randn(50, 16))
    assert found.one_to_one is not None and found.one_to_one.iou is not None
    over = found.one_to_one.partner == -1
    assert int(over.sum()) == 10
    assert found.one_to_one.cosine[over].tolist() == found.one_to_one.iou[over].tolist() == [0.0] * 10


def test_the_assignment_can_be_left_out() -> None:
    found = match_saes(exact_sae(4), exact_sae(4), torch.randn(9, 4), one_to_one=False)
    assert found.one_to_one is None
    summary = found.summary()
    assert (summary.mean_one_to_one_cosine, summary.found_again_one_to_one, summary.mean_one_to_one_iou) == (None,) * 3
    assert summary.found_again_nearest == 1


def test_dead_latents_do_not_count() -> None:
    a, b = exact_sae(4, k=4), exact_sae(4, k=4)
    with torch.no_grad():  # latents that fire on positive rows agree; those that never do are turned away
        b.W_dec[4:] = torch.eye(4)
    found = match_saes(a, b, torch.rand(20, 4) + 0.1)
    assert found.alive.tolist() == [True] * 4 + [False] * 4
    assert found.summary().found_again_nearest == 1
    assert found.nearest.found() == 0.5


def test_what_cannot_be_matched_is_refused() -> None:
    with pytest.raises(SaeError, match="different widths cannot be matched: 4 to 4 and 5 to 5"):
        match_saes(exact_sae(4), exact_sae(5))
    live = sae_lens.BatchTopKTrainingSAE(sae_lens.BatchTopKTrainingSAEConfig(d_in=4, d_sae=8, k=2))
    with pytest.raises(SaeError, match="over the whole batch"):
        match_saes(exact_sae(4), live)
    with pytest.raises(SaeError, match="No rows to match by"):
        match_saes(exact_sae(4), exact_sae(4), [])


def test_without_scipy_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy.sparse", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'hooked-whisper\[analysis\]'"):
        match_saes(exact_sae(4), exact_sae(4))
