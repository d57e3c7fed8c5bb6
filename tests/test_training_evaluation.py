"""Figures by hand counts, and thresholds that activate as many latents as they should."""

from __future__ import annotations

import pytest
import torch
from memory_source import toy_rows
from sae_files import random_sae, sae_lens

from hooked_whisper.errors import SaeError
from hooked_whisper.saes import training_evaluation
from hooked_whisper.saes.training_evaluation import measure, threshold_for


def test_figures_are_what_they_say(monkeypatch: pytest.MonkeyPatch) -> None:
    sae = random_sae("topk", d_in=16, d_sae=32)
    rows = toy_rows(100).double()
    acts, out = sae.encode(rows), sae(rows)
    expected = ((rows - out) ** 2).sum() / ((rows - rows.mean(0)) ** 2).sum()
    for most in (2**24, 32 * 7):  # at once, and in pieces of 7 rows
        monkeypatch.setattr(training_evaluation, "_MAX_ACTIVATIONS", most)
        found = measure(sae, rows)
        assert found.n_rows == 100
        assert found.fvu == pytest.approx(expected.item())
        assert found.l0 == pytest.approx((acts != 0).sum(1).double().mean().item())
        assert found.silent == pytest.approx(1 - (acts != 0).any(0).double().mean().item())


def test_rows_that_are_all_alike_have_no_fvu() -> None:
    found = measure(random_sae("topk", d_in=16, d_sae=32), torch.ones(5, 16).double())
    assert found.fvu != found.fvu


@pytest.mark.parametrize("rescale", [True, False])
@pytest.mark.parametrize("name", ["batchtopk", "sparse_batchtopk", "matryoshka_batchtopk"])
def test_the_threshold_activates_k_latents(name: str, rescale: bool, tmp_path_factory: pytest.TempPathFactory) -> None:
    import hooked_whisper.saes.sparse  # noqa: F401 (registers the sparse classes)

    cls, config = sae_lens.registry.get_sae_training_class(name)
    more = {"matryoshka_widths": [16, 64]} if "matryoshka" in name else {}
    sae = cls(config(d_in=16, d_sae=64, k=4.0, rescale_acts_by_decoder_norm=rescale, **more))
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    rows = toy_rows(1000)
    sae.topk_threshold.fill_(threshold_for(sae, rows, 4.0))
    folder = tmp_path_factory.mktemp("sae")
    sae.save_inference_model(folder)
    assert measure(sae_lens.SAE.load_from_disk(folder), rows).l0 == pytest.approx(4, abs=0.01)


def test_too_few_positive_latents() -> None:
    cls, config = sae_lens.registry.get_sae_training_class("batchtopk")
    sae = cls(config(d_in=16, d_sae=8, k=4.0))
    with torch.no_grad():
        sae.b_enc.fill_(-1e6)
    with pytest.raises(SaeError, match=r"Only 0.0 latents a row are positive, fewer than k=4"):
        threshold_for(sae, toy_rows(50), 4.0)
