"""Whisper's parts one by one, each against what torch, or a sum written out, says."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from small import DECODER, ENCODER, randomise, small_config, small_inputs, small_model
from torch import Tensor

from hooked_whisper import HookedWhisper
from hooked_whisper.components import MLP, ActivationPoint, Attention, LayerNorm, causal_mask, see, see_kept

KINDS = {
    "encoder": "encoder.blocks.1.attn",
    "decoder": "decoder.blocks.1.attn",
    "cross": "decoder.blocks.1.cross_attn",
}


@pytest.fixture
def model() -> HookedWhisper:
    return small_model()


def attention_of(model: HookedWhisper, kind: str) -> Attention:
    return model.mod_dict[KINDS[kind]]  # type: ignore[return-value]


# Points


def test_a_point_that_nothing_listens_to_is_not_called() -> None:
    point, x = ActivationPoint(), torch.zeros(2)
    assert not point.live
    point.forward = lambda x: pytest.fail("called")  # type: ignore[method-assign,assignment]
    assert see(point, x) is x
    assert see_kept(point, x.requires_grad_()) is x


@pytest.mark.parametrize("direction", ["fwd", "bwd"])
def test_a_point_is_live_while_a_hook_sits_on_it(direction: Any) -> None:
    point = ActivationPoint()
    point.add_hook(lambda tensor, hook: None, dir=direction)
    assert point.live
    point.remove_hooks("both")
    assert not point.live


def test_a_guarded_point_hands_out_a_copy() -> None:
    point, x = ActivationPoint(), torch.zeros(2)
    point.add_hook(lambda tensor, hook: tensor.add_(1))
    point.guard = True
    assert torch.equal(see(point, x), torch.ones(2))
    assert torch.equal(x, torch.zeros(2))
    point.guard = False
    assert see(point, x) is x
    assert torch.equal(x, torch.ones(2))


# Layer norm


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_layer_norm_is_torchs_and_shows_its_scale(dtype: torch.dtype) -> None:
    norm = LayerNorm(8, 1e-5).to(dtype)
    randomise(dict(norm.named_parameters()))
    x = (5 * torch.randn(3, 4, 8) + 2).to(dtype)
    expected = F.layer_norm(x, (8,), norm.w, norm.b, 1e-5)
    assert torch.equal(norm(x), expected)
    seen: dict[str, Tensor] = {}
    norm.hook_scale.add_hook(lambda tensor, hook: seen.update(scale=tensor))
    norm.hook_normalized.add_hook(lambda tensor, hook: seen.update(normalized=tensor))
    assert torch.equal(norm(x), expected)
    assert torch.equal(seen["normalized"], expected)
    wide = x.double()
    scale = (wide.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
    torch.testing.assert_close(seen["scale"].double(), scale, rtol=1e-5, atol=0)
    rebuilt = (wide - wide.mean(-1, keepdim=True)) / seen["scale"] * norm.w + norm.b
    torch.testing.assert_close(rebuilt, expected.double(), rtol=0.02 if dtype.itemsize == 2 else 1e-5, atol=0.02)


def test_a_frozen_scale_makes_layer_norm_linear() -> None:
    norm = LayerNorm(8, 1e-5).double()
    norm.hook_scale.add_hook(lambda tensor, hook: torch.full_like(tensor, 2.0))
    x, y = torch.randn(2, 3, 8, dtype=torch.float64)
    torch.testing.assert_close(norm(x + y), norm(x) + norm(y), rtol=0, atol=1e-12)
    torch.testing.assert_close(norm(x), (x - x.mean(-1, keepdim=True)) / 2, rtol=0, atol=1e-12)


def test_gradients_pass_an_observed_scale_as_they_pass_torchs_norm() -> None:
    norm = LayerNorm(8, 1e-5).double()
    randomise(dict(norm.named_parameters()))
    target = torch.randn(3, 8, dtype=torch.float64)
    gradients = []
    for observe in (False, True):
        x = torch.linspace(-1, 2, 24, dtype=torch.float64).reshape(3, 8).square().requires_grad_()
        norm.zero_grad()
        if observe:
            norm.hook_scale.add_hook(lambda tensor, hook: None)
        (norm(x) * target).sum().backward()
        gradients.append([each.grad.clone() for each in (x, norm.w, norm.b) if each.grad is not None])
    for observed, plain in zip(*gradients, strict=True):
        torch.testing.assert_close(observed, plain, rtol=0, atol=1e-10)


# Attention


def hand_attention(
    q: Tensor, k: Tensor, v: Tensor, *, causal: bool, score: Tensor | None = None, weight: Tensor | None = None
) -> Tensor:
    """z [batch query head d_head], number by number; `score` [query key] is added, `weight` [query key] multiplies."""
    batch, n_query, n_head, d_head = q.shape
    z = torch.zeros_like(q)
    for b in range(batch):
        for h in range(n_head):
            for i in range(n_query):
                n_key = i + 1 if causal else k.shape[1]
                scores = [float(q[b, i, h] @ k[b, j, h]) / math.sqrt(d_head) for j in range(n_key)]
                if score is not None:
                    scores = [s + float(score[i, j]) for j, s in enumerate(scores)]
                exps = [math.exp(s) for s in scores]
                for j in range(n_key):
                    pattern = exps[j] / sum(exps) * (1.0 if weight is None else float(weight[i, j]))
                    z[b, i, h] += pattern * v[b, j, h]
    return z


@pytest.mark.parametrize("edited", ["nothing", "hook_attn_scores", "hook_pattern"])
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_scores_and_patterns_are_edited_as_by_hand(model: HookedWhisper, kind: str, edited: str) -> None:
    name = KINDS[kind]
    n_query, n_key = (10 if kind == "encoder" else 5), (5 if kind == "decoder" else 10)
    change = torch.rand(n_query, n_key, dtype=torch.float64) * 2
    kept, hooks, _ = model.get_caching_hooks([f"{name}.hook_{which}" for which in "qkvz"])
    if edited == "hook_attn_scores":
        hooks.append((f"{name}.{edited}", lambda x, hook: x + change))
    if edited == "hook_pattern":
        hooks.append((f"{name}.{edited}", lambda x, hook: x * change))
    model.run_with_hooks(*small_inputs(model.cfg), fwd_hooks=hooks)
    by_hand = hand_attention(
        *(kept[f"{name}.hook_{which}"] for which in "qkv"),
        causal=kind == "decoder",
        score=change if edited == "hook_attn_scores" else None,
        weight=change if edited == "hook_pattern" else None,
    )
    torch.testing.assert_close(kept[f"{name}.hook_z"], by_hand, rtol=0, atol=1e-10)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_patterns_are_probabilities_and_causal_where_they_must_be(model: HookedWhisper, kind: str) -> None:
    kept, hooks, _ = model.get_caching_hooks([f"{KINDS[kind]}.hook_pattern", f"{KINDS[kind]}.hook_attn_scores"])
    model.run_with_hooks(*small_inputs(model.cfg), fwd_hooks=hooks)
    pattern, scores = kept[f"{KINDS[kind]}.hook_pattern"], kept[f"{KINDS[kind]}.hook_attn_scores"]
    torch.testing.assert_close(pattern.sum(-1), torch.ones_like(pattern[..., 0]))
    torch.testing.assert_close(scores.softmax(-1), pattern)
    later = torch.ones(pattern.shape[-2:], dtype=torch.bool).triu(1)
    if kind == "decoder":
        assert not pattern[..., later].any()
        assert (scores[..., later] == -torch.inf).all()
    else:
        assert (pattern > 0).all()
        assert scores.isfinite().all()


@pytest.fixture
def fused(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """(queries, keys) of every call of torch's fused attention."""
    calls: list[tuple[int, int]] = []
    original = F.scaled_dot_product_attention

    def counted(q: Tensor, k: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        calls.append((q.shape[2], k.shape[2]))
        return original(q, k, *args, **kwargs)

    monkeypatch.setattr(F, "scaled_dot_product_attention", counted)
    return calls


@pytest.mark.parametrize("leaf", ["hook_attn_scores", "hook_pattern"])
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_fused_attention_is_left_in_the_hooked_layer_alone(
    model: HookedWhisper, fused: list[tuple[int, int]], kind: str, leaf: str
) -> None:
    everywhere = [(10, 10)] * 2 + [(5, 5), (5, 10)] * 3
    others = [name for name in model.hook_names() if not name.endswith(("hook_attn_scores", "hook_pattern"))]
    for hooked in ([], others):
        model.run_with_hooks(*small_inputs(model.cfg), fwd_hooks=[(name, lambda x, hook: None) for name in hooked])
        assert fused == everywhere
        fused.clear()
    model.run_with_hooks(*small_inputs(model.cfg), fwd_hooks=[(f"{KINDS[kind]}.{leaf}", lambda x, hook: None)])
    left = {"encoder": (10, 10), "decoder": (5, 5), "cross": (5, 10)}[kind]
    everywhere.remove(left)
    assert sorted(fused) == sorted(everywhere)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_results_of_the_heads_add_up(model: HookedWhisper, kind: str) -> None:
    attn, name = attention_of(model, kind), KINDS[kind]
    out = {"encoder": "hook_attn_out", "decoder": "hook_attn_out", "cross": "hook_cross_attn_out"}[kind]
    out = f"{name.rpartition('.')[0]}.{out}"
    plain = model(*small_inputs(model.cfg))
    model.set_use_attn_result(True)
    kept, hooks, _ = model.get_caching_hooks([f"{name}.hook_result", f"{name}.hook_z", out])
    logits = model.run_with_hooks(*small_inputs(model.cfg), fwd_hooks=hooks)
    torch.testing.assert_close(logits, plain, rtol=0, atol=1e-10)
    result, z = kept[f"{name}.hook_result"], kept[f"{name}.hook_z"]
    torch.testing.assert_close(result.sum(2) + attn.b_O, kept[out], rtol=0, atol=1e-10)
    for head in range(attn.n_heads):
        torch.testing.assert_close(result[:, :, head], z[:, :, head] @ attn.W_O[head], rtol=0, atol=1e-10)


# Options


@pytest.mark.parametrize("option", ["use_attn_result", "use_split_qkv_input", "use_attn_in", "use_hook_mlp_in"])
@torch.no_grad()
def test_an_option_leaves_the_logits_alone(option: str) -> None:
    model = small_model(dtype=torch.float32)
    inputs = small_inputs(model.cfg, dtype=torch.float32)
    plain = model(*inputs)
    n_hooks = len(model.hook_names())
    getattr(model, f"set_{option}")(True)
    assert len(model.hook_names()) > n_hooks
    torch.testing.assert_close(model(*inputs), plain, rtol=0, atol=1e-5)
    getattr(model, f"set_{option}")(False)
    assert len(model.hook_names()) == n_hooks
    assert torch.equal(model(*inputs), plain)


def test_two_models_of_one_configuration_have_options_of_their_own() -> None:
    cfg = small_config()
    one, other = HookedWhisper(cfg), HookedWhisper(cfg)
    one.set_use_attn_in(True)
    assert one.cfg.use_attn_in
    assert not other.cfg.use_attn_in
    assert not cfg.use_attn_in


@pytest.mark.parametrize("which", ["q", "k", "v"])
@torch.no_grad()
def test_editing_one_heads_input_changes_that_head_alone(model: HookedWhisper, which: str) -> None:
    model.set_use_split_qkv_input(True)
    block, head = "decoder.blocks.0", 2

    def zero_head(x: Tensor, hook: Any) -> None:
        x[:, :, head] = 0

    names = [f"{block}.attn.hook_{each}" for each in "qkv"]
    caches = []
    for edits in ([], [(f"{block}.hook_{which}_input", zero_head)]):
        kept, hooks, _ = model.get_caching_hooks(names)
        model.run_with_hooks(*small_inputs(model.cfg), fwd_hooks=[*edits, *hooks])
        caches.append(kept)
    others = [h for h in range(DECODER.n_heads) if h != head]
    for name in names:
        before, after = caches[0][name], caches[1][name]
        assert torch.equal(before[:, :, others], after[:, :, others])
        assert torch.equal(before[:, :, head], after[:, :, head]) == (name[-1] != which)


# Weights of a layer


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_projections_are_those_of_the_weights_in_transformerlens_shapes(model: HookedWhisper, kind: str) -> None:
    attn, name = attention_of(model, kind), KINDS[kind]
    block = name.rpartition(".")[0]
    norm, keys_from = f"{block}.ln{2 if kind == 'cross' else 1}.hook_normalized", None
    if kind == "cross":
        keys_from = "encoder.hook_out"
    kept, hooks, _ = model.get_caching_hooks([norm, "encoder.hook_out", *(f"{name}.hook_{w}" for w in "qkv")])
    model.run_with_hooks(*small_inputs(model.cfg), fwd_hooks=hooks)
    for which, weight, bias in (("q", attn.W_Q, attn.b_Q), ("k", attn.W_K, attn.b_K), ("v", attn.W_V, attn.b_V)):
        x = kept[keys_from if keys_from and which != "q" else norm]
        expected = torch.einsum("bpm,hmd->bphd", x, weight) + bias
        torch.testing.assert_close(kept[f"{name}.hook_{which}"], expected, rtol=0, atol=1e-10)
    torch.testing.assert_close(attn.QK.AB, attn.W_Q @ attn.W_K.transpose(1, 2))
    torch.testing.assert_close(attn.OV.AB, attn.W_V @ attn.W_O)


@pytest.mark.parametrize("name", ["W_Q", "W_K", "W_V", "W_O", "b_Q", "b_K", "b_V", "b_O"])
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_writing_into_a_layers_weights_writes_into_the_model(model: HookedWhisper, kind: str, name: str) -> None:
    attn = attention_of(model, kind)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    view = getattr(attn, name)
    view[0] += 1.0
    changed = [key for key, value in model.state_dict().items() if not torch.equal(value, before[key])]
    where = {"W_O": "out.weight", "b_O": "out.bias"}.get(name, "qkv.weight" if name[0] == "W" else "qkv.bias")
    assert changed == [f"{KINDS[kind]}.{where}"]
    difference = model.state_dict()[changed[0]] - before[changed[0]]
    assert int(difference.count_nonzero()) == view[0].numel()


@torch.no_grad()
def test_an_mlps_weights_are_views() -> None:
    mlp = MLP(ENCODER).double()
    x = torch.randn(2, 3, ENCODER.d_model, dtype=torch.float64)
    mlp.W_in[0] += 1
    mlp.W_out[1] += 1
    mlp.b_in[2] += 1
    mlp.b_out[3] += 1
    expected = F.gelu(x @ mlp.W_in + mlp.b_in) @ mlp.W_out + mlp.b_out
    torch.testing.assert_close(mlp(x), expected, rtol=0, atol=1e-10)
    assert mlp.W_in.data_ptr() == mlp.fc_in.weight.data_ptr()
    assert mlp.W_out.data_ptr() == mlp.fc_out.weight.data_ptr()


def test_the_causal_mask_lets_the_last_query_see_all_keys() -> None:
    mask = causal_mask(2, 4, torch.device("cpu"))
    assert mask.tolist() == [[True, True, True, False], [True, True, True, True]]
    assert causal_mask(3, 3, torch.device("cpu")).tolist() == torch.ones(3, 3).tril().bool().tolist()
