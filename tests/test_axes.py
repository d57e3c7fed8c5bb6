"""Axes told from a name are the axes that the activation has."""

from __future__ import annotations

import pytest
import torch
from small import small_inputs, small_model

from hooked_whisper.axes import axes

SWITCHES = ("use_attn_result", "use_split_qkv_input", "use_attn_in", "use_hook_mlp_in")


@pytest.mark.parametrize("on", [False, True])
def test_every_activation_has_its_axes_with_their_sizes(on: bool) -> None:
    model = small_model()
    for switch in SWITCHES:
        getattr(model, f"set_{switch}")(on)
    mel, tokens = small_inputs(model.cfg)
    with torch.no_grad():
        _, cache = model.run_with_cache(mel, tokens, names_filter=model.hook_names())
    cfg = model.cfg
    sizes = {
        "batch": len(mel), "mel": cfg.n_mels, "mel_frame": mel.shape[2], "frame": mel.shape[2] // 2,
        "key_frame": mel.shape[2] // 2, "pos": tokens.shape[1], "key_pos": tokens.shape[1], "d_model": cfg.d_model,
        "vocab": cfg.d_vocab, "1": 1,
    }  # fmt: skip
    for name, value in cache.items():
        stack = cfg.stack("encoder" if name.startswith("encoder") else "decoder")
        here = {**sizes, "head": stack.n_heads, "d_head": stack.d_head, "d_mlp": stack.d_mlp}
        expected = tuple(here[axis] for axis in axes(name, value.ndim))
        assert tuple(value.shape) == expected, name


def test_gradients_have_the_axes_of_their_activation() -> None:
    assert axes("encoder.blocks.0.attn.hook_q_grad") == axes("encoder.blocks.0.attn.hook_q")
