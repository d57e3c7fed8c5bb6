"""How often and how strongly latents fire: against rows counted by hand, and what controls are drawn from it."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from sae_files import random_sae
from short_windows import exact_sae, short_windows
from small_store import HOOK, make_store

from hooked_whisper import AnalysisError, HookedWhisper
from hooked_whisper.analysis.activity import Activity
from hooked_whisper.saes.baselines import Basis
from hooked_whisper.speech import clips

ROWS = torch.tensor([[1.0, 0, 0, 4], [3, 0, 0, 0], [0, 0, 2, 0], [0, 0, 4, 0]])


def check(activity: Activity) -> None:
    assert activity.density.tolist() == [0.5, 0, 0.5, 0.25] and activity.n_rows == len(activity) == 4
    assert activity.magnitude.tolist()[:1] + activity.magnitude.tolist()[2:] == [2, 3, 4]
    assert math.isnan(activity.magnitude[1]) and activity.magnitude_of(2) == 3


def test_by_hand() -> None:
    from scipy.sparse import csr_array

    check(Activity.of_batches([ROWS]))
    check(Activity.of_batches([ROWS[:1], ROWS[1:]]))
    check(Activity.of_codes(SimpleNamespace(acts=csr_array(ROWS.numpy()))))


def test_what_is_not_known() -> None:
    activity = Activity.of_batches([ROWS])
    with pytest.raises(AnalysisError, match="Latent 1 fired in none of 4 rows, so that its typical magnitude"):
        activity.magnitude_of(1)
    with pytest.raises(AnalysisError, match="There is no latent 4: there are 4"):
        activity.magnitude_of(4)
    with pytest.raises(AnalysisError, match="No rows"):
        Activity.of_batches([])
    with pytest.raises(AnalysisError, match="No rows"):
        Activity.of_codes(SimpleNamespace(acts=__import__("scipy.sparse").sparse.csr_array((0, 4))))


def test_of_a_store(tmp_path: Path) -> None:
    store = make_store(tmp_path, [[3, 4], [5]])
    basis = Basis(torch.eye(3), torch.zeros(3), k=3, kind="neurons")
    activity = Activity.of_store(basis, store, hook=HOOK)
    rows = store.rows(HOOK).float()
    assert activity.n_rows == 12 and torch.allclose(activity.density, (rows != 0).float().mean(0))
    assert activity.magnitude_of(1) == pytest.approx(float(rows[1:, 1].mean()))
    with pytest.raises(AnalysisError, match="does not say which hook it is of"):
        Activity.of_store(basis, store)


def test_of_clips(whisper_base: HookedWhisper) -> None:
    model = short_windows(whisper_base, 2)
    sounds = [clip.load()[:samples] for clip, samples in zip(clips("en")[:2], (16_000, 8_000), strict=True)]
    sae: Any = exact_sae(k=512)
    activity = Activity.of_clips(model, sae, sounds, batch_size=1)
    rows = torch.cat([model.encode(sound)[0, : len(sound) // 320] for sound in sounds]).detach()
    assert activity.n_rows == len(rows) == 75
    assert torch.allclose(activity.density[:512], (rows > 0).float().mean(0))
    assert activity.magnitude_of(0) == pytest.approx(float(rows[:, 0][rows[:, 0] > 0].mean()), rel=1e-4)
    decoder: Any = random_sae("topk", "decoder.blocks.0.hook_resid_post", 512, 32, dtype="float32")
    with pytest.raises(AnalysisError, match="depends on a text: measure its latents on a store"):
        Activity.of_clips(model, decoder, sounds)


def test_controls_fire_as_often() -> None:
    density = torch.logspace(-4, -1, 200)
    density[::10] = 0
    magnitude = torch.ones(200).where(density > 0, math.nan)
    activity = Activity(density, magnitude, 10_000)
    drawn = [activity.alike([55, 105], seed=seed) for seed in range(20)]
    assert drawn == [activity.alike([55, 105], seed=seed) for seed in range(20)]
    assert len({tuple(pair) for pair in drawn}) > 10  # seeds differ
    for first, second in drawn:
        assert len({first, second, 55, 105}) == 4 and density[first] > 0 and density[second] > 0
        for one, other in ((first, 55), (second, 105)):
            assert abs(math.log(float(density[one] / density[other]))) < 0.4
    with pytest.raises(AnalysisError, match="Latent 0 fired in none"):
        activity.alike([0], seed=0)
    lonely = Activity(torch.tensor([0.5, 0.0]), torch.tensor([1.0, math.nan]), 10)
    with pytest.raises(AnalysisError, match="No latent is left that fires and could stand for latent 0"):
        lonely.alike([0], seed=0)
