"""FVU, L0, cosine and firing against definitions written out, and exact or constant SAEs with known answers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sae_files import random_sae
from short_windows import constant_sae, exact_sae

from hooked_whisper import SaeError
from hooked_whisper.saes.coding import reconstruct
from hooked_whisper.saes.reconstruction import DENSITY_EDGES, ReconstructionSums


def clips(*sizes: int, d: int = 16, seed: int = 0) -> list[torch.Tensor]:
    """Rows of several clips, each about a mean of its own."""
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(n, d, generator=generator, dtype=torch.float64)
        + 3 * torch.randn(d, generator=generator, dtype=torch.float64)
        for n in sizes
    ]


def filled(sae: object, rows: list[torch.Tensor], groups: list[str] | None = None) -> ReconstructionSums:
    sums = ReconstructionSums(sae.cfg.d_sae)
    for part, group in zip(rows, groups or [""] * len(rows), strict=True):
        sums.add(sae, part, group=group)
    return sums


def unexplained(rows: torch.Tensor, out: torch.Tensor) -> float:
    return float((rows - out).square().sum() / (rows - rows.mean(0)).square().sum())


def test_an_exact_sae_explains_everything() -> None:
    found = filled(exact_sae(16), clips(9, 4, 7)).reconstruction()
    assert (found.n_clips, found.n_rows) == (3, 20)
    for figure, wanted in ((found.fvu, 0), (found.fvu_within_clips, 0), (found.cosine, 1), (found.norm_ratio, 1)):
        assert figure.value == pytest.approx(wanted, abs=1e-6)
    assert found.explained_variance == pytest.approx(1)
    assert found.l0.value == 16


def test_the_mean_row_explains_nothing() -> None:
    rows = clips(9, 4, 7)
    found = filled(constant_sae(torch.cat(rows).mean(0)), rows).reconstruction()
    assert found.fvu.value == pytest.approx(1)
    assert found.fvu_within_clips.value is not None and found.fvu_within_clips.value > 3  # means lie far apart
    assert found.l0.value == 0


def test_a_clips_own_mean_explains_nothing_within_it() -> None:
    first, second = clips(9, 4)
    sums = ReconstructionSums(32)
    for rows in (first, second):
        sums.add(constant_sae(rows.mean(0)), rows)
    found = sums.reconstruction()
    assert found.fvu_within_clips.value == pytest.approx(1)
    assert found.fvu.value is not None and found.fvu.value < 0.5


def test_figures_are_those_of_their_definitions() -> None:
    sae, parts = random_sae("topk"), clips(9, 4, 7)
    rows, out = torch.cat(parts), torch.cat([reconstruct(sae, part) for part in parts])
    found = filled(sae, parts).reconstruction()
    assert found.fvu.value == pytest.approx(unexplained(rows, out))
    within = sum((part - part.mean(0)).square().sum() for part in parts)
    assert found.fvu_within_clips.value == pytest.approx(float((rows - out).square().sum() / within))
    assert found.cosine.value == pytest.approx(torch.cosine_similarity(rows, out).mean().item())
    assert found.norm_ratio.value == pytest.approx((out.norm(dim=-1) / rows.norm(dim=-1)).mean().item())
    assert found.l0.value == pytest.approx((sae.encode(rows) != 0).sum(-1).double().mean().item())


def test_a_group_has_its_own_mean() -> None:
    sae, parts = random_sae("topk"), clips(9, 4, 7)
    sums = filled(sae, parts)
    chosen = torch.cat([parts[0], parts[2]])
    found = sums.reconstruction([0, 2])
    assert (found.n_clips, found.n_rows) == (2, 16)
    assert found.fvu.value == pytest.approx(unexplained(chosen, reconstruct(sae, chosen)))
    assert sums.reconstruction([1]).fvu.low is None  # one clip leaves nothing to resample


@settings(max_examples=20)
@given(st.lists(st.integers(1, 6), min_size=1, max_size=5), st.integers(0, 100))
def test_how_rows_are_cut_into_clips_does_not_matter_over_rows(sizes: list[int], seed: int) -> None:
    sae = random_sae("topk")
    whole = clips(sum(sizes) + 2, seed=seed)
    cut = list(whole[0].split([*sizes, 2]))
    first, second = filled(sae, whole).reconstruction(n_resamples=0), filled(sae, cut).reconstruction(n_resamples=0)
    for name in ("fvu", "cosine", "norm_ratio", "l0"):
        assert getattr(first, name).value == pytest.approx(getattr(second, name).value)
    # Within clips there is less variance to explain than about one mean.
    assert (second.fvu_within_clips.value or 0) >= (second.fvu.value or 0) * (1 - 1e-9)


def test_the_interval_resamples_whole_clips() -> None:
    sae, parts = random_sae("topk"), clips(9, 4, 7)
    found = filled(sae, parts).reconstruction(n_resamples=500).fvu
    # All resamples of three clips, one by one.
    every = []
    for picks in np.ndindex(3, 3, 3):
        rows = torch.cat([parts[i] for i in picks])
        every.append(unexplained(rows, reconstruct(sae, rows)))
    every = np.repeat(every, 100)  # so that quantiles fall on values, not between them
    assert found.low == pytest.approx(np.quantile(every, 0.025))
    assert found.high == pytest.approx(np.quantile(every, 0.975))


def test_firing_is_counted_by_group() -> None:
    rows = torch.zeros(12, 3)
    rows[:2, 0] = 1.0  # latent 0 on 2 of 12, all in the first clip
    rows[:, 1] = 1.0  # latent 1 always
    rows[11, 2] = -1.0  # latent 5 (negative part of dimension 2) once, in the second clip
    sums = filled(exact_sae(3), [rows[:6], rows[6:]], ["it", "en"])
    assert sums.counts().tolist() == [2, 12, 0, 0, 0, 1]
    assert sums.counts("it").tolist() == [2, 6, 0, 0, 0, 0]
    whole, italian, english = sums.firing(), sums.firing("it"), sums.firing("en")
    assert (whole.n_rows, whole.n_latents, whole.n_silent, whole.n_dense) == (12, 6, 3, 2)
    assert whole.silent == 0.5
    assert (italian.n_rows, italian.n_silent, italian.n_dense) == (6, 4, 2)
    assert (english.n_rows, english.n_silent, english.n_dense) == (6, 4, 2)


def test_densities_fall_into_their_bins() -> None:
    rows = torch.zeros(1000, 3)
    rows[:, 0] = 1.0
    rows[:2, 1] = 1.0  # 2 in 1000
    found = filled(exact_sae(3), [rows]).histogram()
    assert found.never == 4
    assert sum(found.counts) == 2
    assert found.counts[-1] == 1  # what always fires belongs to the last bin
    where = found.counts.index(1)
    assert found.edges[where] <= 0.002 < found.edges[where + 1]
    assert found.edges == list(DENSITY_EDGES)


def test_a_transcoder_is_held_against_its_target() -> None:
    sae = random_sae("transcoder", "encoder.blocks.0.ln2.hook_normalized", d_out=5)
    read, target = torch.randn(30, 16, dtype=torch.float64), torch.randn(30, 5, dtype=torch.float64)
    sums = ReconstructionSums(32)
    sums.add(sae, read, target)
    assert sums.reconstruction().fvu.value == pytest.approx(unexplained(target, sae(read).detach()))


def test_heads_are_rows_of_their_own_shape() -> None:
    sae = exact_sae(16, k=4, hook="encoder.blocks.0.attn.hook_z", reshape_activations="hook_z")
    rows = torch.randn(10, 2, 8)
    sums = ReconstructionSums(32)
    sums.add(sae, rows)
    flat = filled(exact_sae(16, k=4), [rows.flatten(1)])
    assert sums.reconstruction() == flat.reconstruction()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_activations_that_are_not_finite_are_refused(value: float) -> None:
    rows = torch.randn(4, 16)
    rows[2, 3] = value
    sums = filled(exact_sae(16), [torch.randn(4, 16)])
    with pytest.raises(SaeError, match="Clip 1 gives activations or reconstructions that are NaN or infinite"):
        sums.add(exact_sae(16), rows)


def test_a_clip_without_rows_is_refused() -> None:
    with pytest.raises(SaeError, match="Clip 0 has no rows: it holds no audio"):
        filled(exact_sae(16), [torch.zeros(0, 16)])
