"""What cannot train is refused before anything is written, with what was given, expected, and to be done."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from memory_source import MemorySource, PlainSource, toy_rows, toy_source

from hooked_whisper.errors import MissingExtraError, SaeError
from hooked_whisper.saes import saelens, train_sae, train_saes, training_checks
from hooked_whisper.saes.training_settings import (
    RunSettings,
    SaeSettings,
    decay_steps,
    k_at,
    matryoshka_widths,
    warm_up_steps,
)

GOOD: dict[str, Any] = {
    "hook": "hook", "d_sae": 32, "k": 4, "total_training_samples": 640, "train_batch_size_samples": 64,
    "log": "nothing", "device": "cpu",
}  # fmt: skip


def refused(out: Path, message: str, source: Any = None, **options: Any) -> None:
    """The run is refused with that message, and nothing is written."""
    with pytest.raises(SaeError, match=message):
        train_sae(toy_source() if source is None else source, out=out, **{**GOOD, **options})
    assert not out.exists()


BAD: list[tuple[str, dict[str, Any]]] = [
    ("no activations of 'hok': it has hook. Did you mean 'hook'", {"hook": "hok"}),
    ("Unknown architecture 'topkk': this SAELens trains abstopk, .*Did you mean 'topk'", {"architecture": "topkk"}),
    ("d_sae must be a number, at least 1, got 0", {"d_sae": 0}),
    ("'topk' needs k, the number of active latents: such as k=32", {"k": None}),
    ("k=40 of d_sae=32 latents cannot be active: expected 1 to 32", {"k": 40}),
    ("k=0 of d_sae=32", {"k": 0}),
    ("'topk' has k whole latents in every row, got k=2.5", {"k": 2.5}),
    ("k=4 was given, but 'standard' has no k: its sparsity follows .*l1_coefficient", {"architecture": "standard"}),
    ("Unknown dtype 'float8'", {"dtype": "float8"}),
    ("lr must be a positive number, got 0.0", {"lr": 0.0}),
    ("lr_end must lie between 0 and lr=0.0003, got 1.0; None is lr / 10", {"lr_end": 1.0}),
    ("adam_beta2 must be at least 0 and less than 1, got 1.0", {"adam_beta2": 1.0}),
    ("lr_warm_up_steps=5 and lr_decay_steps=5 leave nothing of 10", {"lr_warm_up_steps": 5, "lr_decay_steps": 5}),
    ("lr_warm_up_steps must be a number, at least 0, got -1", {"lr_warm_up_steps": -1}),
    ("lr_end=0 has nothing left", {"lr_end": 0.0, "lr_scheduler_name": "cosineannealing"}),
    ("dead_feature_window must be a number, at least 1, got 0", {"dead_feature_window": 0}),
    ("n_restart_cycles must be", {"n_restart_cycles": 0}),
    ("total_training_samples=63 is less than one batch of 64 rows", {"total_training_samples": 63}),
    ("train_batch_size_samples must be a number, at least 1, got 0", {"train_batch_size_samples": 0}),
    ("has 3600 rows to train on, less than one batch of 3700", {"train_batch_size_samples": 3700,
                                                                 "total_training_samples": 7400}),
    ("keep_checkpoints must be a number, at least 2, got 1", {"keep_checkpoints": 1}),
    ("checkpoint_every must be a number, at least 0, got -1", {"checkpoint_every": -1}),
    ("Unknown device 'gpu'", {"device": "gpu"}),
    ("held_out=2.0 is no part of the data", {"held_out": 2.0}),
    ("'topk' has no option 'l1_coefficient': it has .*aux_loss_coefficient", {"l1_coefficient": 1.0}),
    ("has no option 'matryoshka_widths'", {"architecture": "batchtopk", "matryoshka_widths": [32]}),
    (r"matryoshka_widths must rise and end with d_sae=32, got \[8, 16\]", {"architecture": "matryoshka_batchtopk",
                                                                        "matryoshka_widths": [8, 16]}),
    ("'rows' is for what gives back the rows it reads: a transcoder starts at random", {
        "architecture": "batchtopk_transcoder", "hook_out": "hook", "latents_init_method": "rows"}),
    ("'rows' and start='there' both say where latents start", {"latents_init_method": "rows", "start": "there"}),
    ("'rows' does not go with normalize_activations='layer_norm'", {
        "architecture": "standard", "k": None, "latents_init_method": "rows", "normalize_activations": "layer_norm"}),
    ("k_start=3 must be more than k and at most d_sae=32, and k=4", {"k_start": 3}),
    ("k_start=33 must be more than k and at most d_sae=32, and k=4", {"k_start": 33}),
    ("k_start=8 must be more than k .*, and there is no k", {"architecture": "standard", "k": None, "k_start": 8}),
    ("k_anneal_steps=3 was given without k_start", {"k_anneal_steps": 3}),
    ("k_anneal_steps must be a number, at least 1, got 0", {"k_start": 8, "k_anneal_steps": 0}),
    (r"k_anneal_steps=100 leaves none of \d+ steps for k=4", {"k_start": 8, "k_anneal_steps": 100}),
    ("'layer_norm' does not go with 'topk'", {"normalize_activations": "layer_norm"}),
    ("SAELens refuses these settings of 'jumprelu': .*target_l0 must be set", {
        "architecture": "jumprelu", "k": None, "jumprelu_sparsity_loss_mode": "quadratic"}),
]  # fmt: skip


@pytest.mark.parametrize(("message", "options"), BAD, ids=[message[:40] for message, _ in BAD])
def test_bad_settings_are_refused(message: str, options: dict[str, Any], tmp_path: Path) -> None:
    refused(tmp_path / "run", message, **options)


@pytest.mark.parametrize(
    "name", ["lr_scheduler_name", "normalize_activations", "b_dec_init_method", "latents_init_method"]
)
def test_names_from_a_file_are_checked(name: str) -> None:
    """Types forbid these in code; what a YAML file says is not typed."""
    settings = SaeSettings(**{"hook": "hook", "d_sae": 32, "k": 4, name: "mena"})
    run = RunSettings(total_training_samples=640, train_batch_size_samples=64)
    with pytest.raises(SaeError, match=f"Unknown {name} 'mena': expected one of"):
        training_checks.check([settings], run, toy_source())


def test_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SaeError, match="device='cuda:1' was asked for, but this machine has cpu"):
        training_checks.check_device("cuda:1", False)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    with pytest.raises(SaeError, match="autocast=True takes products in bfloat16, which this processor has no"):
        training_checks.check_device("cpu", True)
    training_checks.check_device("cpu", False)


def test_a_batch_is_shared_equally() -> None:
    run = RunSettings(total_training_samples=640, train_batch_size_samples=64)
    with pytest.raises(SaeError, match="64 rows cannot be shared equally by 3 processes"):
        training_checks.check([SaeSettings(hook="hook", d_sae=32, k=4)], run, toy_source(), 3)


def test_sources(tmp_path: Path) -> None:
    out = tmp_path / "run"
    refused(out, "a PlainSource cannot be split: pass held_out= a source", source=PlainSource(toy_source()))
    other = MemorySource({"hook": toy_rows()}, model_name="another")
    refused(out, "held-out rows are of 'another', those to train on of 'small'", held_out=other)
    refused(out, "Held-out rows of 'hook' are 8 wide, those to train on 16", held_out=toy_source(hook=8))
    refused(out, "held-out source has no activations of 'hook': it has else", held_out=toy_source(**{"else": 16}))


def test_several(tmp_path: Path) -> None:
    options = {name: GOOD[name] for name in ("total_training_samples", "train_batch_size_samples", "log")}
    one = SaeSettings(hook="hook", d_sae=32, k=4)
    with pytest.raises(SaeError, match="Two SAEs are called 'hook-topk-k4-32-seed0'"):
        train_saes(toy_source(), [one, one], out=tmp_path, **options)
    with pytest.raises(SaeError, match="No SAE to train"):
        train_saes(toy_source(), [], out=tmp_path, **options)


def test_defaults_that_depend_on_others() -> None:
    settings = SaeSettings(hook="hook", d_sae=64, k=4)
    assert (warm_up_steps(settings, 1000), decay_steps(settings, 1000)) == (50, 200)
    assert warm_up_steps(settings, 10**6) == 1000
    assert {k_at(settings, step, 100) for step in (0, 99)} == {4}
    annealed = SaeSettings(hook="hook", d_sae=64, k=4, k_start=24)
    assert [k_at(annealed, step, 100) for step in (0, 1, 5, 9, 10, 99)] == [24, 22, 14, 6, 4, 4]
    by_batch = SaeSettings(hook="hook", d_sae=64, k=2, k_start=3, k_anneal_steps=4, architecture="batchtopk")
    assert [k_at(by_batch, step, 100) for step in range(6)] == [3, 2.75, 2.5, 2.25, 2, 2]
    assert k_at(SaeSettings(hook="hook", d_sae=64, architecture="standard"), 0, 100) is None
    assert matryoshka_widths(settings) == [4, 16, 64]
    assert matryoshka_widths(SaeSettings(hook="hook", d_sae=8)) == [1, 2, 8]
    assert settings.training_architecture == "sparse_topk"
    assert SaeSettings(hook="hook", d_sae=64, architecture="jumprelu").training_architecture == "jumprelu"


def test_without_saelens(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "sae_lens", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'hooked-whisper\[train\]'"):
        saelens.import_saelens()
