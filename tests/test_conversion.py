"""Names and shapes of the weights: there, back, and what does not fit."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from checkpoint_files import (
    assert_same_model,
    random_whisper,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import (
    WhisperConfig,
    WhisperForAudioClassification,
    WhisperForConditionalGeneration,
    WhisperModel,
)

from hooked_whisper.checkpoints import load_checkpoint, to_transformers
from hooked_whisper.config import HookedWhisperConfig, StackConfig
from hooked_whisper.conversion import (
    config_from_transformers,
    convert_transformers_state_dict,
    to_transformers_state_dict,
)
from hooked_whisper.errors import CheckpointError


@pytest.fixture
def model() -> WhisperForConditionalGeneration:
    return random_whisper()


@settings(max_examples=15, deadline=None)
@given(
    heads=st.tuples(st.sampled_from([1, 2, 4]), st.sampled_from([1, 2, 4])),
    layers=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    ffn=st.tuples(st.integers(1, 20), st.integers(1, 20)),
    n_mels=st.sampled_from([80, 128]),
    tied=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
)
def test_there_and_back_changes_nothing(
    heads: tuple[int, int],
    layers: tuple[int, int],
    ffn: tuple[int, int],
    n_mels: int,
    tied: bool,
    dtype: torch.dtype,
) -> None:
    model = random_whisper(
        encoder_heads=heads[0],
        decoder_heads=heads[1],
        encoder_layers=layers[0],
        decoder_layers=layers[1],
        encoder_ffn=ffn[0],
        decoder_ffn=ffn[1],
        n_mels=n_mels,
        tied=tied,
        dtype=dtype,
    )
    checkpoint = load_checkpoint(model)
    assert {tensor.dtype for tensor in checkpoint.state_dict.values()} == {dtype}
    back = to_transformers_state_dict(checkpoint.state_dict, checkpoint.config)
    assert back.keys() == model.state_dict().keys()
    assert all(torch.equal(back[name], tensor) for name, tensor in model.state_dict().items())
    again = load_checkpoint(to_transformers(checkpoint, dtype=dtype))
    assert again.config == checkpoint.config
    assert all(torch.equal(again.state_dict[name], tensor) for name, tensor in checkpoint.state_dict.items())


def test_our_names_hold_the_right_parts(model: WhisperForConditionalGeneration) -> None:
    theirs, ours = model.state_dict(), load_checkpoint(model).state_dict
    attention = "model.decoder.layers.0.encoder_attn"
    q, k, v = ours["decoder.blocks.0.cross_attn.qkv.weight"].chunk(3)
    assert torch.equal(q, theirs[f"{attention}.q_proj.weight"])
    assert torch.equal(k, theirs[f"{attention}.k_proj.weight"])
    assert torch.equal(v, theirs[f"{attention}.v_proj.weight"])
    q_bias, k_bias, v_bias = ours["decoder.blocks.0.cross_attn.qkv.bias"].chunk(3)
    assert torch.equal(q_bias, theirs[f"{attention}.q_proj.bias"])
    assert not k_bias.any()
    assert torch.equal(v_bias, theirs[f"{attention}.v_proj.bias"])
    for name, theirs_name in {
        "encoder.W_pos": "model.encoder.embed_positions.weight",
        "encoder.ln_post.w": "model.encoder.layer_norm.weight",
        "encoder.blocks.1.ln1.b": "model.encoder.layers.1.self_attn_layer_norm.bias",
        "encoder.blocks.1.ln2.w": "model.encoder.layers.1.final_layer_norm.weight",
        "decoder.W_E": "model.decoder.embed_tokens.weight",
        "decoder.unembed.weight": "proj_out.weight",
        "decoder.ln_final.b": "model.decoder.layer_norm.bias",
        "decoder.blocks.0.ln1.w": "model.decoder.layers.0.self_attn_layer_norm.weight",
        "decoder.blocks.0.ln2.w": "model.decoder.layers.0.encoder_attn_layer_norm.weight",
        "decoder.blocks.0.ln3.w": "model.decoder.layers.0.final_layer_norm.weight",
        "decoder.blocks.0.attn.out.weight": "model.decoder.layers.0.self_attn.out_proj.weight",
        "decoder.blocks.0.mlp.fc_in.bias": "model.decoder.layers.0.fc1.bias",
        "decoder.blocks.0.mlp.fc_out.weight": "model.decoder.layers.0.fc2.weight",
    }.items():
        assert torch.equal(ours[name], theirs[theirs_name]), name
    assert ours["decoder.unembed.weight"] is ours["decoder.W_E"]


def test_a_model_without_its_head_is_whole(model: WhisperForConditionalGeneration, tmp_path: Path) -> None:
    """WhisperModel has neither the unembedding, which is tied, nor generation settings of its own."""
    bare = model.model
    assert isinstance(bare, WhisperModel)
    assert_same_model(load_checkpoint(bare), model)
    bare.save_pretrained(tmp_path / "bare")
    assert_same_model(load_checkpoint(tmp_path / "bare"), model)


def test_a_model_without_values_is_refused() -> None:
    """As under device_map with offloading."""
    with pytest.raises(CheckpointError, match=r"'encoder\.conv1\.weight' of 'whisper' is on the meta device"):
        load_checkpoint(random_whisper().to("meta"))  # type: ignore[arg-type]


def test_an_untied_unembedding_stays_apart() -> None:
    model = random_whisper(tied=False)
    checkpoint = load_checkpoint(model)
    assert not torch.equal(checkpoint.state_dict["decoder.unembed.weight"], checkpoint.state_dict["decoder.W_E"])
    assert_same_model(checkpoint, model)


def test_other_models_are_refused() -> None:
    config = random_whisper().config
    with pytest.raises(CheckpointError, match=r"lacks \d+ of \d+ tensors: decoder\.embed_tokens"):
        load_checkpoint(WhisperForAudioClassification(config))

    class MoonshineConfig(WhisperConfig):
        model_type = "moonshine"

    with pytest.raises(CheckpointError, match="is a model of type 'moonshine', expected 'whisper'"):
        config_from_transformers(MoonshineConfig(), "odd")


def sizes() -> HookedWhisperConfig:
    stack = StackConfig(n_layers=1, n_heads=2, d_model=8, d_mlp=12, n_ctx=6)
    return HookedWhisperConfig(encoder=stack, decoder=stack, n_mels=80, d_vocab=51)


def changed(state: Mapping[str, Tensor], name: str, tensor: Tensor) -> dict[str, Tensor]:
    return {**state, name: tensor}


def test_weights_that_transformers_cannot_hold_are_refused(model: WhisperForConditionalGeneration) -> None:
    checkpoint = load_checkpoint(model)
    state, config = checkpoint.state_dict, checkpoint.config
    key_bias = torch.ones_like(state["encoder.blocks.0.attn.qkv.bias"])
    with pytest.raises(CheckpointError, match=r"key part of encoder\.blocks\.0\.attn\.qkv\.bias is not zero"):
        to_transformers_state_dict(changed(state, "encoder.blocks.0.attn.qkv.bias", key_bias), config)
    with pytest.raises(CheckpointError, match=r"decoder\.unembed\.bias is not zero"):
        to_transformers_state_dict(changed(state, "decoder.unembed.bias", torch.ones(51)), config)


def test_conversion_names_what_is_wrong() -> None:
    with pytest.raises(CheckpointError, match="configured for 2 layers and holds 0 tensors"):
        convert_transformers_state_dict({}, sizes())
    odd = {f"odd.{i}": torch.ones(1) for i in range(9)}
    with pytest.raises(CheckpointError, match=r"lacks 50 of 50 tensors: .* and 45 more\. It is incomplete"):
        convert_transformers_state_dict(odd, sizes())
