"""Transcoders: trained on pairs of rows, saved as SAELens's, attached in the model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from memory_source import MemorySource, toy_rows, toy_source
from sae_files import sae_lens

from hooked_whisper.errors import SaeError
from hooked_whisper.saes import train_sae
from hooked_whisper.saes.transcoders import TranscoderTraining, TranscoderTrainingConfig

QUICK: dict[str, Any] = {
    "hook": "in", "hook_out": "out", "architecture": "batchtopk_transcoder", "d_sae": 64, "k": 4.0, "lr": 3e-3,
    "total_training_samples": 64 * 60, "train_batch_size_samples": 64, "log": "nothing",
}  # fmt: skip


def pairs() -> MemorySource:
    """Rows, and what a small random network makes of them, narrower than they are."""
    rows = toy_rows(width=16)
    generator = torch.Generator().manual_seed(1)
    first, second = torch.randn(16, 30, generator=generator), torch.randn(30, 12, generator=generator)
    return MemorySource({"in": rows, "out": (rows @ first).relu() @ second / 10})


@pytest.mark.parametrize("skip", [False, True])
def test_a_transcoder_is_trained_and_saved_as_saelens_s(skip: bool, tmp_path: Path) -> None:
    source = pairs()
    trained = train_sae(source, out=tmp_path / "run", skip=skip, **QUICK)
    kind = sae_lens.JumpReLUSkipTranscoder if skip else sae_lens.JumpReLUTranscoder
    assert type(trained) is kind and trained.cfg.d_out == 12
    about = trained.cfg.metadata
    assert (about.hook_name, about.hook_name_out) == ("in", "out")
    figures = json.loads((tmp_path / "run" / "training.json").read_text())["figures"]["held_out"]
    held_out = source.split(0.1)[1].rows
    wanted = held_out["out"]
    fvu = (trained(held_out["in"]) - wanted).pow(2).sum() / (wanted - wanted.mean(0)).pow(2).sum()
    assert figures["fvu"] == pytest.approx(fvu.item(), rel=1e-4) and fvu < 0.7
    assert figures["l0"] == pytest.approx(4, rel=0.05)


def test_gradients_reach_all_that_there_is() -> None:
    sae = TranscoderTraining(TranscoderTrainingConfig(d_in=16, d_out=12, d_sae=32, k=4.0, skip=True))
    assert sae.W_enc.shape == (16, 32) and sae.W_dec.shape == (32, 12) and sae.b_dec.shape == (12,)
    torch.testing.assert_close(sae.W_dec.detach().norm(dim=1), torch.full((32,), 0.1))
    rows = torch.cat([torch.randn(64, 16), torch.randn(64, 12)], 1)
    dead = torch.arange(32) < 20
    step = sae_lens.saes.sae.TrainStepInput(rows, {}, dead, 0, False)
    output = sae.training_forward_pass(step)
    assert set(output.losses) == {"mse_loss", "auxiliary_reconstruction_loss"}
    assert torch.equal(output.sae_in, rows[:, 16:]) and output.sae_out.shape == (64, 12)
    output.loss.backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in sae.parameters())


def test_what_is_refused(tmp_path: Path) -> None:
    def refused(message: str, source: MemorySource, **options: Any) -> None:
        with pytest.raises(SaeError, match=message):
            train_sae(source, out=tmp_path / "run", **{**QUICK, **options})

    refused("reads one hook and writes another: name the second with hook_out=", pairs(), hook_out=None)
    refused("'out' was given, but 'topk' gives back what it reads", pairs(), architecture="topk", k=4)
    refused("has one scale, and a transcoder's", pairs(), normalize_activations="expected_average_only_in")
    refused("no activations of 'out'", toy_source(**{"in": 16}))
    train, other = pairs(), toy_source(**{"in": 16})
    refused("held-out source has no activations of 'out'", train, held_out=other)
