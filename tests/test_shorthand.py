"""TransformerLens's short names mean here what they mean there, in both stacks."""

from __future__ import annotations

import pytest
from small import small_model
from transformer_lens.utilities.components_utils import get_act_name

from hooked_whisper.shorthand import hook_name

# TransformerLens's own function is the reference for all that a language model has.
SAME = [
    ("q", 2, None), ("k", 0, None), ("v", 1, "attn"), ("z", 2, None), ("attn", 2, None), ("pattern", 0, None),
    ("attn_scores", 1, None), ("result", 0, None), ("resid_pre", 2, None), ("resid_mid", 2, None),
    ("resid_post", 0, None), ("attn_out", 1, None), ("mlp_out", 1, None), ("pre", 2, None), ("post", 2, None),
    ("mlp_pre", 2, None), ("scale", 4, "ln1"), ("normalized", 0, "ln2"), ("pos_embed", None, None),
    ("embed", None, None), ("q_input", 1, None), ("attn_in", 1, None), ("mlp_in", 1, None), ("k6", None, None),
    ("scale4ln1", None, None), ("pre5", None, None), ("blocks.0.hook_resid_pre", None, None),
]  # fmt: skip


@pytest.mark.parametrize("short", SAME)
def test_as_in_transformerlens(short: tuple[str, int | None, str | None]) -> None:
    assert hook_name(*short, final_norm="ln_final") == get_act_name(*short)


@pytest.mark.parametrize(
    ("short", "full"),
    [
        (("q", 1, "cross"), "blocks.1.cross_attn.hook_q"),
        (("pattern", 0, "cross_attn"), "blocks.0.cross_attn.hook_pattern"),
        (("attn", 0, "c"), "blocks.0.cross_attn.hook_pattern"),
        (("resid_mid_cross", 1), "blocks.1.hook_resid_mid_cross"),
        (("cross_attn_out", 1), "blocks.1.hook_cross_attn_out"),
        (("scale",), "ln_final.hook_scale"),
        (("normalized", 1, "ln3"), "blocks.1.ln3.hook_normalized"),
    ],
)
def test_what_only_a_decoder_has(short: tuple[str, ...], full: str) -> None:
    assert hook_name(*short, final_norm="ln_final") == full
    assert f"decoder.{full}" in small_model().hook_dict


def test_names_that_end_in_a_digit_of_their_own() -> None:
    assert hook_name("conv1", final_norm="ln_post") == "hook_conv1"
    assert hook_name("out", final_norm="ln_post") == "hook_out"
