"""Every hook point, one by one: looking at it changes nothing, editing it does what plain torch says, and so on.

`tests/reference.py` is the plain torch. Points that options switch on are tested with all options on; all others
both ways, because the options change how attention is computed around them.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from reference import ALL_OPTIONS, Reference
from small import small_config, small_inputs, small_model
from torch import Tensor

from hooked_whisper import HookedWhisper, StackConfig

TIGHT = 1e-9  # of float64 activations of about unit size
ENCODER = StackConfig(n_layers=2, n_heads=2, d_model=16, d_mlp=24, n_ctx=9)
DECODER = StackConfig(n_layers=2, n_heads=4, d_model=16, d_mlp=20, n_ctx=12)
CFG = small_config(ENCODER, DECODER)
BATCH, N_POS = 2, 4
OPTIONS = {"off": (), "on": ALL_OPTIONS}
EXPLICIT = ("hook_attn_scores", "hook_pattern")  # hooking these takes the place of fused attention

Edit = Callable[[Tensor], Tensor]


@cache
def model_with(options: str, dtype: torch.dtype) -> HookedWhisper:
    model = small_model(CFG, dtype=dtype)
    for option in OPTIONS[options]:
        getattr(model, f"set_{option}")(True)
    return model


def exact(options: str) -> HookedWhisper:
    """The float64 model with these options, without hooks and gradients."""
    model = model_with(options, torch.float64)
    assert model.list_hooks() == {}, "an earlier test, or the model, left hooks behind"
    model.zero_grad(set_to_none=True)
    return model


# One layer of each stack stands for the others where points are tested one by one; of the layer before it, the point
# that shares memory with this one's input. Tests of all points at once take all layers.
def _stands_for_others(name: str, options: str) -> bool:
    last = ".blocks.1." in name or name.endswith("blocks.0.hook_resid_post")
    return last or (options == "off" and ".blocks." not in name)


CASES = [
    pytest.param(options, name, id=f"{options}-{name}")
    for options in OPTIONS
    for name in exact(options).hook_names()
    if _stands_for_others(name, options)
]
each_point = pytest.mark.parametrize(("options", "name"), CASES)


def reference(options: str, edits: dict[str, Edit] | None = None, *, grad: bool = False) -> tuple[Reference, Tensor]:
    model = exact(options)
    state = {key: value if grad else value.detach() for key, value in model.state_dict(keep_vars=True).items()}
    slow = Reference(state, CFG, edits, OPTIONS[options])
    mel, tokens = small_inputs(CFG, BATCH, N_POS)
    return slow, slow(mel.requires_grad_(grad), tokens)


@cache
def plain(options: str, dtype: torch.dtype) -> Tensor:
    with torch.no_grad():
        return model_with(options, dtype)(*small_inputs(CFG, BATCH, N_POS, dtype=dtype))


def noise(name: str) -> Edit:
    """Scales and shifts by random amounts; what is masked (-inf) stays masked."""

    def edit(x: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
        scale, shift = torch.rand((2, *x.shape), generator=generator, dtype=torch.float64).to(x.dtype)
        return x * (0.8 + 0.4 * scale) + 0.2 * shift

    return edit


def zero(_: str) -> Edit:
    return torch.zeros_like


def returned(edit: Edit) -> Callable[..., Any]:
    return lambda x, hook: edit(x)


def in_place(edit: Edit) -> Callable[..., Any]:
    def hook_function(x: Tensor, hook: Any) -> None:
        x.copy_(edit(x.clone()))

    return hook_function


def look(x: Tensor, hook: Any) -> None:
    assert x.numel() > 0


# The table


def names_of_a_layer(stack: str, options: str) -> dict[str, tuple[Any, ...]]:
    """Name within the block -> shape, written out from the design's table."""
    sizes, n = (ENCODER, ENCODER.n_ctx) if stack == "encoder" else (DECODER, N_POS)
    d, heads, d_head, d_mlp = sizes.d_model, sizes.n_heads, sizes.d_head, sizes.d_mlp
    on = options == "on"
    stream, by_head, normed = (BATCH, n, d), (BATCH, n, heads, d), (BATCH, n, heads, d) if on else (BATCH, n, d)

    def attention(name: str, n_keys: int) -> dict[str, tuple[int, ...]]:
        shapes = {
            f"{name}.hook_q": (BATCH, n, heads, d_head),
            f"{name}.hook_k": (BATCH, n_keys, heads, d_head),
            f"{name}.hook_v": (BATCH, n_keys, heads, d_head),
            f"{name}.hook_attn_scores": (BATCH, heads, n, n_keys),
            f"{name}.hook_pattern": (BATCH, heads, n, n_keys),
            f"{name}.hook_z": (BATCH, n, heads, d_head),
        }
        return shapes | ({f"{name}.hook_result": by_head} if on else {})

    shapes: dict[str, tuple[Any, ...]] = {
        "hook_resid_pre": stream,
        "ln1.hook_scale": (*normed[:-1], 1),
        "ln1.hook_normalized": normed,
        "hook_attn_out": stream,
        "hook_resid_mid": stream,
        "mlp.hook_pre": (BATCH, n, d_mlp),
        "mlp.hook_post": (BATCH, n, d_mlp),
        "hook_mlp_out": stream,
        "hook_resid_post": stream,
        **attention("attn", n),
    }
    if on:
        shapes |= {f"hook_{what}": by_head for what in ("attn_in", "q_input", "k_input", "v_input")}
        shapes["hook_mlp_in"] = stream
    mlp_norm = "ln2"
    if stack == "decoder":
        mlp_norm = "ln3"
        shapes |= {
            "ln2.hook_scale": (*normed[:-1], 1),
            "ln2.hook_normalized": normed,
            "hook_cross_attn_out": stream,
            "hook_resid_mid_cross": stream,
            **attention("cross_attn", ENCODER.n_ctx),
        }
        if on:
            frames = (BATCH, ENCODER.n_ctx, heads, d)
            shapes |= {"hook_cross_attn_in": by_head, "hook_cross_q_input": by_head}
            shapes |= {"hook_cross_k_input": frames, "hook_cross_v_input": frames}
    return shapes | {f"{mlp_norm}.hook_scale": (BATCH, n, 1), f"{mlp_norm}.hook_normalized": stream}


def table(options: str) -> dict[str, tuple[Any, ...]]:
    d, frames = CFG.d_model, CFG.n_frames
    shapes: dict[str, tuple[Any, ...]] = {
        "hook_mel": (BATCH, CFG.n_mels, 2 * frames),
        "encoder.hook_conv1": (BATCH, 2 * frames, d),
        "encoder.hook_conv2": (BATCH, frames, d),
        "encoder.hook_pos_embed": (frames, d),
        "encoder.ln_post.hook_scale": (BATCH, frames, 1),
        "encoder.ln_post.hook_normalized": (BATCH, frames, d),
        "encoder.hook_out": (BATCH, frames, d),
        "decoder.hook_embed": (BATCH, N_POS, d),
        "decoder.hook_pos_embed": (BATCH, N_POS, d),
        "decoder.ln_final.hook_scale": (BATCH, N_POS, 1),
        "decoder.ln_final.hook_normalized": (BATCH, N_POS, d),
        "hook_logits": (BATCH, N_POS, CFG.d_vocab),
    }
    for stack in ("encoder", "decoder"):
        for layer in range(CFG.stack(stack).n_layers):
            for name, shape in names_of_a_layer(stack, options).items():
                shapes[f"{stack}.blocks.{layer}.{name}"] = shape
    return shapes


@pytest.mark.parametrize("options", OPTIONS)
def test_names_and_shapes_are_those_of_the_table(options: str) -> None:
    model, shapes = exact(options), {}
    kept, hooks, _ = model.get_caching_hooks(model.hook_names())
    with torch.no_grad():
        model.run_with_hooks(*small_inputs(CFG, BATCH, N_POS), fwd_hooks=hooks)
    shapes = {name: tuple(x.shape) for name, x in kept.items()}
    assert shapes == table(options)
    assert set(model.hook_dict) == set(table("on"))


@pytest.mark.parametrize("options", OPTIONS)
def test_every_activation_is_the_references(options: str) -> None:
    model = exact(options)
    kept, hooks, _ = model.get_caching_hooks(model.hook_names())
    with torch.no_grad():
        logits = model.run_with_hooks(*small_inputs(CFG, BATCH, N_POS), fwd_hooks=hooks)
    slow, expected = reference(options)
    torch.testing.assert_close(logits, expected, rtol=0, atol=TIGHT)
    assert set(kept) == set(slow.seen)
    for name, x in kept.items():
        assert torch.allclose(x, slow.seen[name][-1], rtol=0, atol=TIGHT), name


# Each point


@each_point
def test_looking_changes_nothing(options: str, name: str) -> None:
    model = model_with(options, torch.float32)
    inputs = small_inputs(CFG, BATCH, N_POS, dtype=torch.float32)
    undisturbed = plain(options, torch.float32)
    for grad in (False, True):
        with torch.set_grad_enabled(grad):
            logits = model.run_with_hooks(*inputs, fwd_hooks=[(name, look)])
        if name.endswith(EXPLICIT):
            torch.testing.assert_close(logits.detach(), undisturbed, rtol=0, atol=1e-5)
        else:
            assert torch.equal(logits, undisturbed)


@pytest.mark.parametrize("kind", [zero, noise])
@each_point
def test_an_edit_does_what_plain_torch_says(options: str, name: str, kind: Callable[[str], Edit]) -> None:
    model, edit = exact(options), kind(name)
    _, expected = reference(options, {name: edit})
    mel, tokens = small_inputs(CFG, BATCH, N_POS)
    for hook in (returned(edit), in_place(edit)):
        with torch.no_grad():
            logits = model.run_with_hooks(mel, tokens, fwd_hooks=[(name, hook)])
        # A scale of zero divides by zero, and plain torch says so too.
        torch.testing.assert_close(logits, expected, rtol=0, atol=TIGHT, equal_nan=True)
        assert not torch.allclose(logits, plain(options, torch.float64), rtol=0, atol=1e-5)
    assert torch.equal(mel, small_inputs(CFG, BATCH, N_POS)[0]), "the hook's edit reached the caller's spectrogram"
    with torch.no_grad():
        assert torch.equal(model(mel, tokens), plain(options, torch.float64)), "the hook's edit reached the weights"


@each_point
def test_edits_in_place_let_gradients_through(options: str, name: str) -> None:
    """Some values are kept by torch for the backward pass; hooks must be handed copies of these."""
    model, edit = exact(options), noise(name)
    slow, expected = reference(options, {name: edit}, grad=True)
    mel, tokens = small_inputs(CFG, BATCH, N_POS)
    target = torch.randn(expected.shape, dtype=expected.dtype)
    (expected * target).sum().backward()
    weights = dict(model.named_parameters())
    by_hand = {key: value.grad for key, value in weights.items()}
    model.zero_grad(set_to_none=True)

    with model.hooks(fwd_hooks=[(name, in_place(edit))]):
        (model(mel, tokens) * target).sum().backward()
    for key, value in weights.items():
        if by_hand[key] is None:
            assert value.grad is None, key
        else:
            torch.testing.assert_close(
                value.grad, by_hand[key], rtol=1e-9, atol=TIGHT, msg=lambda m, k=key: f"{k}: {m}"
            )
    assert slow.seen[name]


@each_point
def test_the_gradient_reaches_it(options: str, name: str) -> None:
    check_gradient(options, name, frozen=False)


SOME = ("hook_mel", "encoder.hook_pos_embed", "encoder.blocks.0.attn.hook_q", "encoder.blocks.1.ln1.hook_scale")
SOME += ("decoder.hook_pos_embed", "decoder.blocks.0.cross_attn.hook_pattern", "decoder.blocks.1.hook_resid_mid")


@pytest.mark.parametrize("name", SOME)
def test_the_gradient_reaches_it_in_a_frozen_model(name: str) -> None:
    check_gradient("off", name, frozen=True)


def check_gradient(options: str, name: str, *, frozen: bool) -> None:
    """The gradient that a hook on `name` is handed is autograd's own, finite and not zero."""
    slow, expected = reference(options, grad=True)
    target = torch.randn(expected.shape, dtype=expected.dtype)
    (expected * target).sum().backward()
    got: list[Tensor] = []

    def keep(grad: Tensor, hook: Any) -> None:
        got.append(grad.clone())

    model = exact(options).requires_grad_(not frozen)
    with model.hooks(bwd_hooks=[(name, keep)]):
        (model(*small_inputs(CFG, BATCH, N_POS)) * target).sum().backward()
    model.requires_grad_(True)
    gradient = torch.stack(got).sum(0)
    assert gradient.isfinite().all()
    assert gradient.abs().max() > 1e-6
    torch.testing.assert_close(gradient, slow.gradient(name), rtol=1e-9, atol=TIGHT)


@each_point
def test_stop_at_computes_nothing_after_it(options: str, name: str) -> None:
    model = exact(options)
    fired: list[str] = []

    def count(x: Tensor, hook: Any) -> None:
        fired.append(hook.name)

    with torch.no_grad(), model.hooks(fwd_hooks=[(each, count) for each in model.hook_names()]):
        model(*small_inputs(CFG, BATCH, N_POS))
        everything = list(fired)
        fired.clear()
        value = model.run_with_hooks(*small_inputs(CFG, BATCH, N_POS), stop_at=name)
    assert fired == everything[: everything.index(name) + 1]
    slow, _ = reference(options)
    torch.testing.assert_close(value, slow.seen[name][0], rtol=0, atol=TIGHT)
    # An edit at the point is in what comes back.
    with torch.no_grad():
        zeros = model.run_with_hooks(
            *small_inputs(CFG, BATCH, N_POS), fwd_hooks=[(name, returned(torch.zeros_like))], stop_at=name
        )
    assert zeros.shape == value.shape
    assert not zeros.any()


@each_point
def test_a_cache_beside_an_edit_in_place_holds_every_activation(options: str, name: str) -> None:
    """Neighbouring points share memory: what was cached before the edit must not change under it."""
    model, edit = exact(options), noise(name)
    slow, expected = reference(options, {name: edit})
    with torch.no_grad():
        logits, cache = model.run_with_cache(
            *small_inputs(CFG, BATCH, N_POS), names_filter=model.hook_names(), fwd_hooks=[(name, in_place(edit))]
        )
    torch.testing.assert_close(logits, expected, rtol=0, atol=TIGHT)
    for each in model.hook_names():
        torch.testing.assert_close(
            cache[each], slow.seen[each][-1], rtol=0, atol=TIGHT, msg=lambda m, n=each: f"{n}: {m}"
        )


# All points at once


@pytest.mark.parametrize("options", OPTIONS)
def test_looking_at_all_of_them_leaves_the_weights_gradients_alone(options: str) -> None:
    model = exact(options)
    inputs = small_inputs(CFG, BATCH, N_POS)
    gradients = []
    for names in ([], model.hook_names()):
        with model.hooks(fwd_hooks=[(name, look) for name in names]):
            logits = model(*inputs)
        logits.square().sum().backward()
        gradients.append({key: value.grad.clone() for key, value in model.named_parameters() if value.grad is not None})
        model.zero_grad(set_to_none=True)
    assert gradients[0].keys() == gradients[1].keys() == dict(model.named_parameters()).keys()
    for key, value in gradients[0].items():
        torch.testing.assert_close(gradients[1][key], value, rtol=1e-8, atol=TIGHT)


@pytest.mark.parametrize(
    "edited", [None, "encoder.blocks.1.hook_resid_pre", "decoder.blocks.0.cross_attn.hook_pattern"]
)
@pytest.mark.parametrize("options", OPTIONS)
def test_incl_bwd_keeps_the_gradient_of_every_activation(options: str, edited: str | None) -> None:
    model = exact(options)
    mel, tokens = small_inputs(CFG, BATCH, N_POS)
    edits: dict[str, Edit] = {} if edited is None else {edited: noise(edited)}
    slow, logits = reference(options, edits, grad=True)
    # Without a tokenizer the first token is the prompt, and token 0 ends the text.
    following = torch.cat([tokens[:, 1:], torch.zeros_like(tokens[:, :1])], dim=1)
    F.cross_entropy(logits.float().transpose(1, 2), following).backward()
    hooks = [(name, in_place(edit)) for name, edit in edits.items()]
    _, cache = model.run_with_cache(
        mel, tokens, return_type="loss", incl_bwd=True, names_filter=model.hook_names(), fwd_hooks=hooks
    )
    for name in model.hook_names():
        # Norms of inputs by head run for q, k and v in turn; as in TransformerLens the cache keeps one of the three.
        expected = [x.grad for x in slow.seen[name] if x.grad is not None]
        assert len(expected) == (3 if options == "on" and ".ln1." in name else 1)
        assert any(torch.allclose(cache[f"{name}_grad"], each, rtol=1e-5, atol=1e-8) for each in expected), name
