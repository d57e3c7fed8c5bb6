"""The hook table says of every hook what the model does."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformer_lens.hook_points import HookPoint

from hooked_whisper import HookedWhisper, HookedWhisperConfig, StackConfig
from hooked_whisper.axes import axes
from hooked_whisper.hook_table import HookRow, format_hook_table, hook_table

# Every size differs, so that no axis can pass for another.
SIZES = {
    "batch": 2,
    "mel": 5,
    "mel_frame": 18,
    "frame": 9,
    "key_frame": 9,
    "pos": 3,
    "key_pos": 3,
    "d_model": 24,
    "head": 4,
    "d_head": 6,
    "vocab": 51,
    "1": 1,
}
D_MLP = {"encoder": 30, "decoder": 36}


@pytest.fixture(scope="module")
def model() -> HookedWhisper:
    torch.manual_seed(0)
    encoder = StackConfig(n_layers=1, n_heads=4, d_model=24, d_mlp=D_MLP["encoder"], n_ctx=9)
    decoder = StackConfig(n_layers=2, n_heads=4, d_model=24, d_mlp=D_MLP["decoder"], n_ctx=7)
    built = HookedWhisper(HookedWhisperConfig(encoder, decoder, n_mels=5, d_vocab=51))
    built.set_use_attn_result(True)
    built.set_use_split_qkv_input(True)
    built.set_use_attn_in(True)
    built.set_use_hook_mlp_in(True)
    return built


def shapes(model: HookedWhisper) -> dict[str, tuple[int, ...]]:
    """Shape of every activation in a pass over 9 frames and 3 tokens."""
    seen: dict[str, tuple[int, ...]] = {}

    def look(activation: Tensor, hook: HookPoint) -> None:
        seen[str(hook.name)] = tuple(activation.shape)

    with model.hooks(fwd_hooks=[(name, look) for name in model.hook_dict]):
        model.decode(torch.tensor([[1, 2, 3], [4, 5, 6]]), model.encode_mel(torch.randn(2, 5, 18)))
    return seen


def test_axes_are_those_of_the_activations(model: HookedWhisper) -> None:
    seen = shapes(model)
    assert set(seen) == set(model.hook_dict)
    wrong = {}
    for name, shape in seen.items():
        sizes = {**SIZES, "d_mlp": D_MLP.get(name.partition(".")[0], 0)}
        if shape != tuple(sizes[axis] for axis in axes(name, len(shape))):
            wrong[name] = (shape, axes(name, len(shape)))
    assert not wrong


def test_every_hook_is_in_one_row(model: HookedWhisper) -> None:
    rows = hook_table(model)
    names = [row.name.replace("{i}", str(i)) for row in rows for i in row.layers or [0]]
    assert sorted(names) == sorted(model.hook_dict)


def test_optional_hooks_say_what_switches_them_on(model: HookedWhisper) -> None:
    options = {row.name: row.option for row in hook_table(model)}
    assert options["encoder.blocks.{i}.attn.hook_result"] == "use_attn_result"
    assert options["decoder.blocks.{i}.hook_cross_k_input"] == "use_split_qkv_input"
    assert options["decoder.blocks.{i}.hook_mlp_in"] == "use_hook_mlp_in"
    assert options["encoder.blocks.{i}.attn.hook_q"] is None
    assert all(hasattr(model, f"set_{option}") for option in options.values() if option)


def test_text_has_one_aligned_line_for_each_row(model: HookedWhisper) -> None:
    rows = hook_table(model, ["hook_mel", "encoder.blocks.0.attn.hook_q", "decoder.blocks.0.hook_mlp_in"])
    assert format_hook_table(rows).splitlines() == [
        "hook_mel                      batch mel mel_frame",
        "encoder.blocks.0.attn.hook_q  batch frame head d_head",
        "decoder.blocks.0.hook_mlp_in  batch pos d_model        use_hook_mlp_in",
    ]
    assert format_hook_table([]) == ""


@pytest.mark.parametrize(
    ("layers", "shown"),
    [((), "hook_"), ((3,), "hook_3"), ((0, 1), "hook_0,1"), ((0, 1, 2), "hook_0-2"), ((0, 2, 4), "hook_0,2,4")],
)
def test_layers_are_shown_as_they_are(layers: tuple[int, ...], shown: str) -> None:
    assert HookRow("hook_{i}", layers, "batch", None).short_name == shown
