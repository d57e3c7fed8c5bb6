"""Several SAEs as one: codes side by side, the mean of the reconstructions."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from sae_files import random_sae

from hooked_whisper import HookedWhisper
from hooked_whisper.errors import SaeError
from hooked_whisper.saes import ensemble_saes, load_sae
from hooked_whisper.saes.coding import find_site
from hooked_whisper.saes.saelens import import_saelens

KINDS = ("standard", "standard, b_dec not taken off", "jumprelu")
ABOUT = {"model_name": "openai/whisper-base", "frame_rate": 50.0, "position": "frame"}


def test_the_mean_of_reconstructions_and_all_latents() -> None:
    parts = [random_sae(kind, d_sae=16 + 8 * at, seed=at, about=ABOUT) for at, kind in enumerate(KINDS)]
    made = ensemble_saes(parts)
    rows = torch.randn(50, 16, dtype=torch.float64)
    codes = made.encode(rows)
    assert made.cfg.architecture() == "jumprelu" and codes.shape == (50, 16 + 24 + 32)
    torch.testing.assert_close(codes, torch.cat([part.encode(rows) for part in parts], 1))
    assert 0 < (codes > 0).double().mean() < 1
    mean = torch.stack([part.decode(part.encode(rows)) for part in parts]).mean(0)
    torch.testing.assert_close(made.decode(codes), mean)
    assert made.cfg.metadata.ensemble == [16, 24, 32] and made.cfg.metadata.hook_name == "encoder.hook_out"


def test_its_error_is_at_most_the_mean_of_its_parts() -> None:
    parts = [random_sae("jumprelu", seed=at) for at in range(3)]
    rows = torch.randn(200, 16, dtype=torch.float64)
    errors = [float((sae(rows) - rows).pow(2).mean().detach()) for sae in (*parts, ensemble_saes(parts))]
    assert errors[-1] <= sum(errors[:-1]) / 3  # the square of a mean is at most the mean of the squares


def test_it_is_saved_loaded_and_attached(tmp_path: Path, whisper_base: HookedWhisper) -> None:
    parts = [random_sae("jumprelu", d_in=512, d_sae=64, dtype="float32", seed=at, about=ABOUT) for at in range(2)]
    made = ensemble_saes(parts)
    made.save_model(tmp_path)
    rows = torch.randn(9, 512)
    plain = import_saelens().SAE.load_from_disk(str(tmp_path))
    for loaded in (load_sae(tmp_path), plain):
        torch.testing.assert_close(loaded.encode(rows), made.encode(rows))
        torch.testing.assert_close(loaded.decode(loaded.encode(rows)), made.decode(made.encode(rows)))
    assert find_site(whisper_base, made).read == "encoder.hook_out"


def test_what_does_not_fit_together_is_refused() -> None:
    one = random_sae("jumprelu", about=ABOUT)
    for others, message in (
        ([], "An ensemble of 1 SAEs: expected two or more"),
        ([random_sae("topk")], "SAE 1 is 'topk', whose latents do not fire by themselves"),
        ([random_sae("jumprelu", d_in=8)], "SAE 1 has the width 8 and SAE 0 16"),
        ([random_sae("jumprelu", hook="encoder.blocks.0.hook_resid_post", about=ABOUT)], "SAE 1 has the hook"),
        ([random_sae("jumprelu", about={"model_name": "other"})], "SAE 1 has the model 'other'"),
        ([random_sae("standard, layer_norm", about=ABOUT)], "normalize_activations='layer_norm'"),
    ):
        with pytest.raises(SaeError, match=message):
            ensemble_saes([one, *others])
