"""The tuned lens: it learns what it should, on positions it has not seen, and survives its file."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from small import small_inputs, small_model

from hooked_whisper import AnalysisError, HookedWhisper
from hooked_whisper.analysis.lens import logit_lens
from hooked_whisper.analysis.tuned_lens import TunedLens, train_tuned_lens


def speech(model: HookedWhisper, seed: int, batch: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    return small_inputs(model.cfg, batch, 12, dtype=model.dtype, seed=seed)


def trained(model: HookedWhisper, **options: object) -> TunedLens:
    settings = {"steps": 120, "lr": 3e-2, "weight_decay": 0.0, "progress": False, **options}
    return train_tuned_lens(model, *speech(model, 1), **settings)


def test_training_brings_layers_nearer_to_the_last_one_on_unseen_positions() -> None:
    model = small_model(dtype=torch.float32)
    lens = trained(model)
    _, cache = model.run_with_cache(*speech(model, 2))
    plain, tuned = logit_lens(cache), logit_lens(cache, tuned=lens)
    before, after = plain.mean(plain.divergence)[:-1], tuned.mean(tuned.divergence)[:-1]
    assert (after < before).all()
    assert float(after.mean()) < 0.7 * float(before.mean())
    torch.testing.assert_close(tuned.logits[-1], plain.logits[-1])
    assert float(lens.losses[-20:].mean()) < float(lens.losses[:5].mean())


def test_first_loss_is_the_divergence_of_the_plain_lens() -> None:
    model = small_model(dtype=torch.float32)
    lens = trained(model, steps=1, batch_size=4000)
    _, cache = model.run_with_cache(*speech(model, 1))
    plain = logit_lens(cache)
    torch.testing.assert_close(lens.losses[0], plain.mean(plain.divergence)[:-1], rtol=0.05, atol=0)


def test_training_is_reproducible_and_leaves_the_model_alone() -> None:
    model = small_model(dtype=torch.float32)
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    first, again, other = trained(model, steps=5), trained(model, steps=5), trained(model, steps=5, seed=1)
    assert torch.equal(first.weight, again.weight)
    assert not torch.equal(first.weight, other.weight)
    assert all(torch.equal(weights[name], value) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_saving_and_loading(tmp_path: Path) -> None:
    model = small_model(dtype=torch.float32)
    lens = trained(model, steps=3)
    loaded = TunedLens.load(lens.save(tmp_path / "lens.safetensors"))
    assert loaded.model_name == "small"
    for name in ("weight", "bias", "losses"):
        assert torch.equal(getattr(loaded, name), getattr(lens, name))


def test_what_is_no_lens_is_refused(tmp_path: Path) -> None:
    model = small_model(dtype=torch.float32)
    with pytest.raises(AnalysisError, match="steps=0 and batch_size=64 must be at least 1"):
        train_tuned_lens(model, *speech(model, 1), steps=0)
    with pytest.raises(AnalysisError, match="diverged: lr=1e[+]30 is too large"):
        trained(model, steps=4, lr=1e30)
    with pytest.raises(AnalysisError, match="3 states were given, expected 4"):
        TunedLens.identity(model).logits(model, torch.zeros(3, 16))
    with pytest.raises(AnalysisError, match="cannot be read as a tuned lens"):
        TunedLens.load(tmp_path / "nothing.safetensors")
    save_file({"x": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(AnalysisError, match="is no tuned lens"):
        TunedLens.load(tmp_path / "other.safetensors")
