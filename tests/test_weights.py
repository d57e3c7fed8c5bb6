"""Weights in TransformerLens's names and shapes: what they are, and that they are what the model computes with."""

from __future__ import annotations

from typing import cast

import pytest
import torch
from small import DECODER, ENCODER, small_inputs, small_model
from torch import Tensor
from transformer_lens import FactoredMatrix

from hooked_whisper import HookedWhisper, StackConfig
from hooked_whisper.components import Attention
from hooked_whisper.weights import AttentionWeights

KINDS = {"encoder": ENCODER, "decoder": DECODER, "decoder.cross": DECODER}
each_kind = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture
def model() -> HookedWhisper:
    return small_model()


def stacked(model: HookedWhisper, kind: str) -> AttentionWeights:
    return {"encoder": model.encoder, "decoder": model.decoder, "decoder.cross": model.decoder.cross}[kind]


def point(kind: str, layer: int, leaf: str) -> str:
    stack = kind.partition(".")[0]
    return f"{stack}.blocks.{layer}.{'cross_attn' if kind == 'decoder.cross' else 'attn'}.{leaf}"


def activations(model: HookedWhisper) -> dict[str, Tensor]:
    kept, hooks, _ = model.get_caching_hooks(model.hook_names())
    with torch.no_grad():
        model.run_with_hooks(*small_inputs(model.cfg), fwd_hooks=hooks)
    return kept


def attention_shapes(stack: StackConfig) -> dict[str, tuple[int, ...]]:
    layers, heads, d, d_head = stack.n_layers, stack.n_heads, stack.d_model, stack.d_head
    reading, bias = (layers, heads, d, d_head), (layers, heads, d_head)
    return {
        "W_Q": reading,
        "W_K": reading,
        "W_V": reading,
        "W_O": (layers, heads, d_head, d),
        "b_Q": bias,
        "b_K": bias,
        "b_V": bias,
        "b_O": (layers, d),
    }


@each_kind
def test_shapes_are_transformerlens(model: HookedWhisper, kind: str) -> None:
    stack = KINDS[kind]
    for name, shape in attention_shapes(stack).items():
        assert tuple(getattr(stacked(model, kind), name).shape) == shape, name
    if kind != "decoder.cross":
        mlp = {"W_in": (stack.d_model, stack.d_mlp), "W_out": (stack.d_mlp, stack.d_model)}
        for name, shape in (mlp | {"b_in": (stack.d_mlp,), "b_out": (stack.d_model,)}).items():
            assert tuple(getattr(stacked(model, kind), name).shape) == (stack.n_layers, *shape), name


@each_kind
@torch.no_grad()
def test_the_stacked_weights_compute_the_activations(model: HookedWhisper, kind: str) -> None:
    seen, weights, stack = activations(model), stacked(model, kind), kind.partition(".")[0]
    for layer in range(KINDS[kind].n_layers):
        block = f"{stack}.blocks.{layer}"
        x = seen[f"{block}.ln{2 if kind == 'decoder.cross' else 1}.hook_normalized"]
        source = seen["encoder.hook_out"] if kind == "decoder.cross" else x
        for leaf, at, weight, bias in (
            ("hook_q", x, weights.W_Q, weights.b_Q),
            ("hook_k", source, weights.W_K, weights.b_K),
            ("hook_v", source, weights.W_V, weights.b_V),
        ):
            expected = torch.einsum("bpm,hmd->bphd", at, weight[layer]) + bias[layer]
            torch.testing.assert_close(seen[point(kind, layer, leaf)], expected, rtol=0, atol=1e-10)
        out = torch.einsum("bphd,hdm->bpm", seen[point(kind, layer, "hook_z")], weights.W_O[layer]) + weights.b_O[layer]
        name = "hook_cross_attn_out" if kind == "decoder.cross" else "hook_attn_out"
        torch.testing.assert_close(seen[f"{block}.{name}"], out, rtol=0, atol=1e-10)


@pytest.mark.parametrize("stack", ["encoder", "decoder"])
@torch.no_grad()
def test_the_stacked_mlps_compute_the_activations(model: HookedWhisper, stack: str) -> None:
    seen, weights = activations(model), model.encoder if stack == "encoder" else model.decoder
    for layer in range(model.cfg.stack(stack).n_layers):
        block = f"{stack}.blocks.{layer}"
        normed = seen[f"{block}.ln{3 if stack == 'decoder' else 2}.hook_normalized"]
        pre = normed @ weights.W_in[layer] + weights.b_in[layer]
        torch.testing.assert_close(seen[f"{block}.mlp.hook_pre"], pre, rtol=0, atol=1e-10)
        out = seen[f"{block}.mlp.hook_post"] @ weights.W_out[layer] + weights.b_out[layer]
        torch.testing.assert_close(seen[f"{block}.hook_mlp_out"], out, rtol=0, atol=1e-10)


@each_kind
@torch.no_grad()
def test_qk_gives_the_scores_and_ov_what_a_head_writes(model: HookedWhisper, kind: str) -> None:
    for block in [*model.encoder.blocks, *model.decoder.blocks]:
        for attn in (module for module in block.children() if isinstance(module, Attention)):
            attn.qkv.bias.zero_()
    model.set_use_attn_result(True)
    seen, weights, layer = activations(model), stacked(model, kind), 1
    QK, OV = weights.QK, weights.OV
    assert isinstance(QK, FactoredMatrix)
    assert isinstance(OV, FactoredMatrix)
    d, n_heads, d_head = model.cfg.d_model, KINDS[kind].n_heads, KINDS[kind].d_head
    assert tuple(QK.shape) == tuple(OV.shape) == (KINDS[kind].n_layers, n_heads, d, d)
    assert QK.mdim == OV.mdim == d_head
    qk, ov = cast(Tensor, QK.AB)[layer], cast(Tensor, OV.AB)[layer]
    block = f"{kind.partition('.')[0]}.blocks.{layer}"
    x = seen[f"{block}.ln{2 if kind == 'decoder.cross' else 1}.hook_normalized"]
    source = seen["encoder.hook_out"] if kind == "decoder.cross" else x
    scores = torch.einsum("bqm,hmn,bkn->bhqk", x, qk, source) / d_head**0.5
    found = seen[point(kind, layer, "hook_attn_scores")]
    reached = found.isfinite()  # the rest is masked
    torch.testing.assert_close(found[reached], scores[reached], rtol=0, atol=1e-10)
    written = torch.einsum("bhqk,bkm,hmn->bqhn", seen[point(kind, layer, "hook_pattern")], source, ov)
    torch.testing.assert_close(seen[point(kind, layer, "hook_result")], written, rtol=0, atol=1e-10)


@each_kind
def test_stacked_weights_are_copies_that_gradients_pass(model: HookedWhisper, kind: str) -> None:
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for name in attention_shapes(KINDS[kind]):
        with torch.no_grad():
            getattr(stacked(model, kind), name).zero_()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    stacked(model, kind).W_K[1, 0].sum().backward()
    attn = model.mod_dict[point(kind, 1, "hook_q").removesuffix(".hook_q")]
    gradient = attn.qkv.weight.grad  # type: ignore[union-attr]
    d, d_head = model.cfg.d_model, KINDS[kind].d_head
    assert isinstance(gradient, Tensor)
    assert (gradient[d : d + d_head] == 1).all()
    assert gradient.count_nonzero() == d * d_head


@torch.no_grad()
def test_embeddings_and_unembedding_are_views(model: HookedWhisper) -> None:
    assert model.W_E is model.decoder.W_E
    assert model.W_pos is model.decoder.W_pos
    assert tuple(model.encoder.W_pos.shape) == (ENCODER.n_ctx, ENCODER.d_model)
    assert tuple(model.W_U.shape) == (model.cfg.d_model, model.cfg.d_vocab)
    model.W_U[3, 7] = 42.0
    assert model.W_E[7, 3] == 42.0  # tied
    assert torch.equal(model.b_U, torch.zeros(model.cfg.d_vocab, dtype=model.dtype))
    seen = activations(model)
    logits = seen["decoder.ln_final.hook_normalized"] @ model.W_U + model.b_U
    torch.testing.assert_close(seen["hook_logits"], logits, rtol=0, atol=1e-10)


@torch.no_grad()
def test_the_unembedding_bias_is_a_view_once_there_is_one(model: HookedWhisper) -> None:
    model.process_weights_()
    model.b_U[5] += 1.0
    assert model.b_U is model.decoder.unembed.bias
    seen = activations(model)
    logits = seen["decoder.ln_final.hook_normalized"] @ model.W_U + model.b_U
    torch.testing.assert_close(seen["hook_logits"], logits, rtol=0, atol=1e-10)


def test_cross_attention_is_the_decoders_alone(model: HookedWhisper) -> None:
    assert repr(model.decoder.cross) == "CrossAttentionWeights(n_layers=3)"
    assert not hasattr(model.encoder, "cross")
    assert not torch.equal(model.decoder.cross.W_Q, model.decoder.W_Q)


def test_whisper_bases_weights(whisper_base: HookedWhisper) -> None:
    for weights in (whisper_base.encoder, whisper_base.decoder, whisper_base.decoder.cross):
        assert tuple(weights.W_Q.shape) == (6, 8, 512, 64)
        assert tuple(weights.OV.shape) == (6, 8, 512, 512)
        assert not weights.b_K.any()  # OpenAI trained the keys without a bias
        assert weights.b_V.any()
    assert tuple(whisper_base.encoder.W_in.shape) == (6, 512, 2048)
    assert tuple(whisper_base.W_E.shape) == (51865, 512)
    assert tuple(whisper_base.W_pos.shape) == (448, 512)
    assert tuple(whisper_base.encoder.W_pos.shape) == (1500, 512)
