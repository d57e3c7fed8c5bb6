"""Shapes that contradict each other, devices and dtypes that are not there."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from hooked_whisper import HookedWhisper
from hooked_whisper.config import HookedWhisperConfig, StackConfig, resolve_device, resolve_dtype
from hooked_whisper.errors import ConfigError


def stack(**changes: Any) -> StackConfig:
    return StackConfig(**{"n_layers": 2, "n_heads": 4, "d_model": 32, "d_mlp": 64, "n_ctx": 20, **changes})


def test_sizes_follow_from_the_stacks() -> None:
    cfg = HookedWhisperConfig(stack(), stack(n_layers=1, n_heads=2, n_ctx=9), n_mels=80, d_vocab=50)
    assert (cfg.d_model, cfg.n_frames, cfg.n_mel_frames, cfg.n_ctx) == (32, 20, 40, 9)
    assert (cfg.encoder.d_head, cfg.decoder.d_head) == (8, 16)
    assert cfg.stack("decoder") is cfg.decoder
    copy = cfg.with_options(use_attn_in=True)
    assert copy.use_attn_in and not cfg.use_attn_in


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_layers": 0}, "n_layers must be a positive whole number, got 0"),
        ({"d_mlp": -3}, "d_mlp must be a positive whole number, got -3"),
        ({"n_heads": 5}, "d_model=32 cannot be split over n_heads=5: choose a number of heads that divides it"),
    ],
)
def test_a_stack_that_cannot_be(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        stack(**changes)


def test_stacks_of_unequal_width_and_empty_sizes() -> None:
    with pytest.raises(ConfigError, match="one width, got d_model=32 and 64: cross-attention reads one from the other"):
        HookedWhisperConfig(stack(), stack(d_model=64), n_mels=80, d_vocab=50)
    with pytest.raises(ConfigError, match="n_mels must be positive, got 0"):
        HookedWhisperConfig(stack(), stack(), n_mels=0, d_vocab=50)


def test_devices() -> None:
    assert resolve_device("cpu") == torch.device("cpu")
    assert resolve_device(torch.device("cpu")) == torch.device("cpu")
    best = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    assert resolve_device(None).type == best
    with pytest.raises(ConfigError, match="Unknown device 'gpu': expected 'cpu', 'cuda', 'cuda:1' or 'mps'"):
        resolve_device("gpu")
    for kind in ("meta", "xpu"):
        with pytest.raises(ConfigError, match=f"'{kind}' is of a kind unknown here: expected 'cpu', 'cuda' or 'mps'"):
            resolve_device(kind)


@pytest.mark.skipif(torch.cuda.is_available(), reason="the machine has the device")
def test_a_device_that_is_not_there() -> None:
    with pytest.raises(ConfigError, match="'cuda' is not available on this machine .* or use 'cpu'"):
        HookedWhisper.from_pretrained("openai/whisper-base", device="cuda")


def test_a_gpu_beyond_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert resolve_device("cuda:1").index == 1
    with pytest.raises(ConfigError, match="'cuda:2' does not exist: this machine has 2 CUDA devices"):
        resolve_device("cuda:2")


@pytest.mark.parametrize("given", ["float16", "torch.float16", torch.float16])
def test_dtypes(given: Any) -> None:
    assert resolve_dtype(given) is torch.float16
    assert resolve_dtype(None) is torch.float32


@pytest.mark.parametrize("given", ["half", "int8", torch.int64])
def test_a_dtype_that_the_model_does_not_run_in(given: Any) -> None:
    with pytest.raises(ConfigError, match="Unknown dtype .*: expected one of float32, float16, bfloat16, float64"):
        HookedWhisper.from_pretrained("openai/whisper-base", dtype=given)
