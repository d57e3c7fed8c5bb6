"""What an SAE in the place of an activation computes: against plain torch and SAELens; heads, precision, gradients."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from sae_files import SAE_VARIANTS, TRANSCODERS, VARIANTS, by_hand, random_sae, sae_lens
from small import small_inputs, small_model
from torch import Tensor

from hooked_whisper import HookedWhisper, SaeError
from hooked_whisper.spliced_sae import SAE_POINTS

OUT = "encoder.hook_out"
RESID = "decoder.blocks.1.hook_resid_post"
MLP_IN, MLP_OUT = "encoder.blocks.0.ln2.hook_normalized", "encoder.blocks.0.hook_mlp_out"
# What no formula of one line gives: the SAE's own forward is the reference.
BY_ITSELF = ("temporal", "matching_pursuit")


@pytest.fixture
def model() -> HookedWhisper:
    return small_model()


@pytest.fixture
def inputs(model: HookedWhisper) -> tuple[Tensor, Tensor]:
    return small_inputs(model.cfg)


def made(variant: str, reads: str = MLP_IN, writes: str = MLP_OUT, **settings: Any) -> Any:
    """An SAE at the hook that is written, or a transcoder between the two."""
    if variant in TRANSCODERS:
        return random_sae(variant, reads, about={"hook_name_out": writes}, **settings)
    return random_sae(variant, writes, **settings)


def reference(sae: Any, x: Tensor, change: Any = lambda acts: acts) -> Tensor:
    return sae(x) if sae.cfg.architecture() in BY_ITSELF else by_hand(sae, x, change)


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).detach().norm() / b.detach().norm())


# Sums


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_architecture_by_hand_and_with_its_error_term(
    model: HookedWhisper, inputs: tuple[Tensor, Tensor], variant: str
) -> None:
    sae, read = made(variant), {}
    source = MLP_IN if variant in TRANSCODERS else MLP_OUT

    def keep(x: Tensor, hook: Any) -> None:
        read[hook.name] = x

    def put(x: Tensor, hook: Any) -> Tensor:
        return reference(sae, read.get(MLP_IN, x))

    hooks = [(MLP_OUT, put)] if source == MLP_OUT else [(MLP_IN, keep), (MLP_OUT, put)]
    with torch.no_grad():
        plain = model(*inputs)
        expected = model.run_with_hooks(*inputs, fwd_hooks=hooks)
        assert relative(model.run_with_saes(*inputs, saes=sae), expected) < 1e-12
        assert relative(expected, plain) > 1e-2
        assert relative(model.run_with_saes(*inputs, saes=sae, use_error_term=True), plain) < 1e-12
        single = model.float()
        x = (inputs[0].float(), inputs[1])
        assert (
            relative(single.run_with_saes(*x, saes=sae.to(dtype=torch.float32), use_error_term=True), single(*x)) < 1e-5
        )


@pytest.mark.parametrize("variant", [name for name in VARIANTS if name not in BY_ITSELF])
@pytest.mark.parametrize("use_error_term", [False, True])
def test_edited_features_by_hand(
    model: HookedWhisper, inputs: tuple[Tensor, Tensor], variant: str, use_error_term: bool
) -> None:
    """With an error term, exactly what the edit changes in the reconstruction is added to the activation."""
    sae, read = made(variant), {}

    def change(acts: Tensor) -> Tensor:
        acts = acts.clone()
        acts[:, 3:, 5] = 2.5
        acts[..., 7] = 0
        return acts

    def put(x: Tensor, hook: Any) -> Tensor:
        source = read.get(MLP_IN, x)
        changed = by_hand(sae, source, change)
        return x + changed - by_hand(sae, source) if use_error_term else changed

    hooks = [(MLP_OUT, put)]
    if variant in TRANSCODERS:
        hooks.insert(0, (MLP_IN, lambda x, hook: read.update({hook.name: x})))
    expected = model.run_with_hooks(*inputs, fwd_hooks=hooks)
    model.add_sae(sae, use_error_term=use_error_term)
    for post in (lambda x, hook: change(x), lambda x, hook: x.copy_(change(x))):
        with torch.no_grad():
            found = model.run_with_hooks(*inputs, fwd_hooks=[(f"{MLP_OUT}.hook_sae_acts_post", post)])
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("leaf", ["hook_sae_input", "hook_sae_acts_pre", "hook_sae_recons"])
def test_edits_elsewhere_leave_the_error_alone(model: HookedWhisper, inputs: tuple[Tensor, Tensor], leaf: str) -> None:
    sae = random_sae(hook=OUT)
    shift = torch.linspace(-1, 1, 16, dtype=torch.float64)

    def put(x: Tensor, hook: Any) -> Tensor:
        pre = (x - sae.b_dec) @ sae.W_enc + sae.b_enc
        changed = {
            "hook_sae_input": by_hand(sae, x + shift),
            "hook_sae_acts_pre": torch.relu(2 * pre) @ sae.W_dec + sae.b_dec,
            "hook_sae_recons": by_hand(sae, x) + shift,
        }[leaf]
        return x - by_hand(sae, x) + changed

    expected = model.run_with_hooks(*inputs, fwd_hooks=[(OUT, put)])
    edit = (f"{OUT}.{leaf}", lambda x, hook: 2 * x if "pre" in leaf else x + shift)
    found = model.run_with_hooks_with_saes(*inputs, saes={OUT: sae}, fwd_hooks=[edit])
    assert relative(found, expected) > 1e-3  # without the error term
    with model.saes(sae, use_error_term=True):
        found = model.run_with_hooks(*inputs, fwd_hooks=[edit])
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


def test_a_transcoder_reads_what_flows_on(model: HookedWhisper, inputs: tuple[Tensor, Tensor]) -> None:
    """Whatever the order in which hooks and transcoder came, and although the norm's own reader sees the same."""
    sae = made("transcoder")
    read: list[Tensor] = []

    def double(x: Tensor, hook: Any) -> Tensor:
        return 2 * x

    model.add_sae(sae)
    model.add_hook(MLP_IN, double)
    model.add_hook(f"{MLP_OUT}.hook_sae_input", lambda x, hook: read.append(x))
    _, cache = model.run_with_cache(*inputs)
    assert torch.equal(read[0], cache[MLP_IN])
    assert torch.equal(cache[MLP_OUT], sae(cache[MLP_IN]))
    scale_seen = cache["encoder.blocks.0.mlp.hook_pre"]  # the MLP still runs, on the same input
    mlp: Any = model.encoder.blocks[0].mlp
    torch.testing.assert_close(scale_seen, cache[MLP_IN] @ mlp.W_in + mlp.b_in)


def test_a_transcoder_without_its_input_says_so(model: HookedWhisper, inputs: tuple[Tensor, Tensor]) -> None:
    model.add_sae(made("transcoder"))
    block = model.encoder.blocks[0]
    with pytest.raises(
        SaeError, match="has nothing to read for an activation of .*its input was not computed in this pass"
    ):
        block.hook_mlp_out(torch.zeros(1, 3, 16, dtype=torch.float64))
    block.ln2.hook_normalized(torch.zeros(1, 4, 16, dtype=torch.float64))
    with pytest.raises(SaeError, match=r"for an activation of \[1, 3, 16\]: its input holds \[1, 4, 16\]"):
        block.hook_mlp_out(torch.zeros(1, 3, 16, dtype=torch.float64))
    model.run_with_hooks(*inputs, stop_at=MLP_IN)
    torch.testing.assert_close(model(*inputs), model.run_with_hooks(*inputs))  # what was left over does no harm


# SAELens itself

D_MODEL = 16


@pytest.fixture(scope="module")
def text_model() -> Iterator[Any]:
    """SAELens's own model, on two layers of a random language model."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from transformer_lens import HookedTransformerConfig

        cfg = HookedTransformerConfig(
            n_layers=2, d_model=D_MODEL, n_ctx=10, d_head=8, n_heads=2, d_mlp=24, d_vocab=31, act_fn="gelu",
            seed=0, dtype=torch.float64, device="cpu",
        )  # fmt: skip
        model = sae_lens.HookedSAETransformer(cfg)
        yield model.to(torch.float64)


@pytest.mark.parametrize("variant", [name for name in SAE_VARIANTS if name not in BY_ITSELF])
@pytest.mark.parametrize("use_error_term", [False, True])
@pytest.mark.parametrize("edited", [False, True])
def test_same_names_and_values_as_in_saelens(
    model: HookedWhisper,
    inputs: tuple[Tensor, Tensor],
    text_model: Any,
    variant: str,
    use_error_term: bool,
    edited: bool,
) -> None:
    """The same SAE on the same activations, there and here."""
    theirs, ours = "blocks.0.hook_resid_post", "encoder.blocks.0.hook_resid_pre"
    tokens = torch.arange(20).reshape(2, 10) % 31

    def edit(x: Tensor, hook: Any) -> Tensor:
        return torch.cat([x[..., :3] + 1, 0 * x[..., 3:6], x[..., 6:]], -1)

    def run(root: Any, *args: Any, place: str, before: list[Any]) -> dict[str, Tensor]:
        sae = random_sae(variant, place)
        hooks = [*before, *([(f"{place}.hook_sae_acts_post", edit)] if edited else [])]
        with warnings.catch_warnings(), root.saes([sae], use_error_term=use_error_term), torch.no_grad():
            warnings.simplefilter("ignore")
            with root.hooks(fwd_hooks=hooks):
                _, cache = root.run_with_cache(*args)
        return {name.removeprefix(f"{place}."): value for name, value in cache.items() if "hook_sae" in name}

    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        _, plain = text_model.run_with_cache(tokens)
    same_activations = [
        ("encoder.hook_conv2", lambda x, hook: plain[theirs]),
        ("encoder.hook_pos_embed", lambda x, hook: torch.zeros_like(x)),
    ]
    expected = run(text_model, tokens, place=theirs, before=[])
    found = run(model, *inputs, place=ours, before=same_activations)
    assert set(found) == set(expected) == set(SAE_POINTS) - ({"hook_sae_error"} if not use_error_term else set())
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-10, atol=1e-10, msg=name)


def test_heads_side_by_side_as_in_saelens(model: HookedWhisper, inputs: tuple[Tensor, Tensor], text_model: Any) -> None:
    theirs, ours = "blocks.0.attn.hook_z", "decoder.blocks.1.attn.hook_z"
    _, z = model.run_with_cache(*inputs, names_filter=ours)
    for place, root, args in ((theirs, text_model, (torch.arange(10)[None],)), (ours, model, inputs)):
        sae = random_sae("topk", place, reshape_activations="hook_z")
        with warnings.catch_warnings(), root.saes([sae]), torch.no_grad():
            warnings.simplefilter("ignore")
            _, cache = root.run_with_cache(*args)
        shapes = {name.rpartition(".")[2]: value.shape[2:] for name, value in cache.items() if "hook_sae" in name}
        by_head = (2, 8) if root is text_model else (4, 4)
        wide = {"hook_sae_input": (16,), "hook_sae_recons": (16,), "hook_sae_output": by_head}
        assert shapes == {**wide, "hook_sae_acts_pre": (32,), "hook_sae_acts_post": (32,)}
    expected = by_hand(sae, z[ours].flatten(2)).unflatten(2, (4, 4))
    torch.testing.assert_close(cache[f"{ours}.hook_sae_output"], expected.detach())


# Heads


MODULES = ("encoder.blocks.1.attn", "decoder.blocks.1.attn", "decoder.blocks.2.cross_attn")


@pytest.mark.parametrize(
    ("variant", "module", "leaf"),
    [
        *(("topk", module, leaf) for module in MODULES for leaf in ("hook_z", "hook_k")),
        *(("jumprelu", "decoder.blocks.1.attn", leaf) for leaf in ("hook_q", "hook_v")),
        ("standard, layer_norm", "decoder.blocks.1.attn", "hook_z"),
    ],
)
def test_heads_side_by_side_apart_and_alone(
    model: HookedWhisper, inputs: tuple[Tensor, Tensor], variant: str, module: str, leaf: str
) -> None:
    hook = f"{module}.{leaf}"
    heads, d_head = (2, 8) if module.startswith("encoder") else (4, 4)
    joined, apart = random_sae(variant, hook), random_sae(variant, hook, d_head)
    alone = random_sae(variant, hook, d_head, about={"hook_head_index": 1})
    reshaped = random_sae(variant, hook, reshape_activations="hook_z") if leaf == "hook_z" else None

    def one(x: Tensor) -> Tensor:
        return torch.stack([by_hand(alone, x[..., i, :]) if i == 1 else x[..., i, :] for i in range(heads)], -2)

    expected = {
        joined: lambda x, hook: by_hand(joined, x.flatten(-2)).unflatten(-1, (heads, d_head)),
        apart: lambda x, hook: by_hand(apart, x),
        alone: lambda x, hook: one(x),
        reshaped: lambda x, hook: by_hand(reshaped, x.flatten(-2)).unflatten(-1, (heads, d_head)),
    }
    with torch.no_grad():
        plain = model(*inputs)
        for sae, put in expected.items():
            if sae is None:
                continue
            found, cache = model.run_with_cache_with_saes(*inputs, saes=sae)
            torch.testing.assert_close(found, model.run_with_hooks(*inputs, fwd_hooks=[(hook, put)]))
            torch.testing.assert_close(model.run_with_saes(*inputs, saes=sae, use_error_term=True), plain)
            names = {name: cache._axes(name, value) for name, value in cache.items() if "hook_sae" in name}
            assert all(len(found) == cache[name].ndim for name, found in names.items())
            assert names[f"{hook}.hook_sae_acts_post"][-1] == "feature"
            assert ("head" in names[f"{hook}.hook_sae_acts_post"]) == (sae is apart)
            assert ("head" in names[f"{hook}.hook_sae_output"]) == (sae is not alone)


def test_a_transcoder_between_heads_and_stream(model: HookedWhisper, inputs: tuple[Tensor, Tensor]) -> None:
    reads, writes = "decoder.blocks.1.cross_attn.hook_z", "decoder.blocks.1.hook_cross_attn_out"
    sae = made("skip_transcoder", reads, writes)
    z: list[Tensor] = []
    hooks = [(reads, lambda x, hook: z.append(x)), (writes, lambda x, hook: by_hand(sae, z[-1].flatten(2)))]
    with torch.no_grad():
        expected = model.run_with_hooks(*inputs, fwd_hooks=hooks)
        torch.testing.assert_close(model.run_with_saes(*inputs, saes=sae), expected)
        back = made("transcoder", "decoder.blocks.1.ln2.hook_normalized", reads)
        out = model.run_with_cache_with_saes(*inputs, saes=back)[1]
        source = out["decoder.blocks.1.ln2.hook_normalized"]
        torch.testing.assert_close(out[reads], by_hand(back, source).unflatten(-1, (4, 4)))


# Precision and place


@pytest.mark.parametrize("model_dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("sae_dtype", ["float32", "bfloat16", "float16"])
def test_model_and_sae_of_different_precision(model_dtype: torch.dtype, sae_dtype: str) -> None:
    model = small_model(dtype=model_dtype)
    mel, tokens = small_inputs(model.cfg, dtype=model_dtype)
    skip = random_sae("skip_transcoder", MLP_IN, dtype=sae_dtype, about={"hook_name_out": MLP_OUT})
    sae = random_sae(hook=RESID, dtype=sae_dtype)
    with torch.no_grad(), model.saes([sae, skip]):
        logits, cache = model.run_with_cache(mel, tokens)
    assert logits.dtype == cache[RESID].dtype == cache[f"{RESID}.hook_sae_output"].dtype == model_dtype
    assert cache[f"{RESID}.hook_sae_acts_post"].dtype == getattr(torch, sae_dtype)
    with torch.no_grad(), model.saes([sae, skip], use_error_term=True):
        tolerance = 2e-5 if model_dtype == torch.float32 else 4e-2
        assert relative(model(mel, tokens).double(), model.run_with_hooks(mel, tokens).double()) <= tolerance


def test_an_sae_somewhere_else(model: HookedWhisper, inputs: tuple[Tensor, Tensor]) -> None:
    sae = random_sae()
    model.add_sae(sae)
    sae.to("meta")
    with pytest.raises(
        SaeError, match=r"at 'encoder.hook_out' is on meta and the activation on cpu: move it with sae.to\('cpu'\)"
    ):
        model(*inputs)


def test_an_sae_goes_to_the_models_device() -> None:
    model = small_model().to("meta")
    sae = random_sae()
    model.add_sae(sae)
    assert sae.W_dec.device.type == sae.device.type == "meta"
    assert model.acts_to_saes[OUT] is sae


# Gradients


def test_gradients_reach_the_features(model: HookedWhisper, inputs: tuple[Tensor, Tensor]) -> None:
    """Against finite differences, with and without the error term, which carries none to what comes before."""
    sae = random_sae()
    seen: dict[str, Tensor] = {}
    for use_error_term in (False, True):
        with model.saes(sae, use_error_term=use_error_term):
            keep = [(f"{OUT}.hook_sae_acts_post", lambda x, hook: seen.update(acts=x))]
            loss = model.run_with_hooks(*inputs, fwd_hooks=keep)[..., 3].sum()
            (gradient,) = torch.autograd.grad(loss, seen["acts"])
            step = 1e-6 * torch.randn_like(gradient)
            with torch.no_grad(), model.hooks([(f"{OUT}.hook_sae_acts_post", lambda x, hook, step=step: x + step)]):
                after = model(*inputs)[..., 3].sum()
            torch.testing.assert_close(after - loss, (gradient * step).sum(), rtol=1e-4, atol=1e-12)


def test_gradients_are_cached_for_every_point(model: HookedWhisper, inputs: tuple[Tensor, Tensor]) -> None:
    """Of the error too, as error nodes of feature circuits need it; frozen weights or not."""
    model.add_sae(random_sae(hook=RESID), use_error_term=True)
    names = [f"{RESID}.{leaf}" for leaf in SAE_POINTS]
    found = []
    for frozen in (False, True):
        for module in (model, model.acts_to_saes[RESID]):
            module.requires_grad_(not frozen)
        _, cache = model.run_with_cache(*inputs, names_filter=names, return_type="loss", incl_bwd=True)
        assert {name for name in cache if name.endswith("_grad")} == {f"{name}_grad" for name in names}
        found.append(cache)
    for name in names:
        torch.testing.assert_close(found[0][f"{name}_grad"], found[1][f"{name}_grad"])
    cache, sae = found[0], model.acts_to_saes[RESID]
    flows = cache[f"{RESID}.hook_sae_output_grad"]
    assert torch.equal(cache[f"{RESID}.hook_sae_error_grad"], flows)
    assert torch.equal(cache[f"{RESID}.hook_sae_recons_grad"], flows)
    torch.testing.assert_close(cache[f"{RESID}.hook_sae_acts_post_grad"], flows @ sae.W_dec.T)


@pytest.mark.parametrize("variant", VARIANTS)
def test_edits_in_place_are_differentiable(model: HookedWhisper, inputs: tuple[Tensor, Tensor], variant: str) -> None:
    sae = made(variant)

    def fill(x: Tensor, hook: Any) -> None:
        x[..., :2] = 1.5

    def filled(x: Tensor, hook: Any) -> Tensor:
        return torch.cat([torch.full_like(x[..., :2], 1.5), x[..., 2:]], -1)

    model.add_sae(sae, use_error_term=True)
    for name in model.hook_names("*hook_sae_*"):
        gradients = []
        for edit in (fill, filled):
            model.zero_grad()
            model.run_with_hooks(*inputs, fwd_hooks=[(name, edit)], return_type="loss").backward()
            gradients.append(model.encoder.conv1.weight.grad.clone())
        torch.testing.assert_close(*gradients)


def test_weights_of_an_sae_take_gradients(model: HookedWhisper, inputs: tuple[Tensor, Tensor]) -> None:
    sae = random_sae("topk")
    model.run_with_saes(*inputs, saes=sae, return_type="loss").backward()
    assert all(bool(parameter.grad.abs().sum() > 0) for parameter in (sae.W_enc, sae.W_dec, sae.b_enc, sae.b_dec))
    assert not [name for name, _ in model.named_parameters() if "sae" in name]
    with model.saes(sae):
        assert list(model.state_dict()) == list(small_model().state_dict())
