"""Small models with their weights in several states, and caches of their runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from small import small_inputs, small_model
from torch import Tensor

from hooked_whisper import HookedWhisper, WhisperCache


def processed() -> HookedWhisper:
    model = small_model()
    model.process_weights_()
    return model


def with_results() -> HookedWhisper:
    model = small_model()
    model.set_use_attn_result(True)
    return model


# Weights as they come, folded, and with every head's output computed by the model.
MODELS: dict[str, Callable[[], HookedWhisper]] = {"plain": small_model, "folded": processed, "results": with_results}


def run(model: HookedWhisper, batch: int = 2, n_pos: int = 5, **options: Any) -> WhisperCache:
    mel, tokens = small_inputs(model.cfg, batch, n_pos)
    with torch.no_grad():
        return model.run_with_cache(mel, tokens, **options)[1]


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=0, atol=1e-11)
