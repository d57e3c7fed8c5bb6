"""The hook API: names, patterns, levels, permanent hooks, stop_at. `test_hook_points.py` tests the points."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from small import small_inputs, small_model
from torch import Tensor

from hooked_whisper import ConfigError, HookedWhisper, HookNameError

RESID = "encoder.blocks.0.hook_resid_post"


@pytest.fixture
def model() -> HookedWhisper:
    return small_model()


@pytest.fixture
def inputs(model: HookedWhisper) -> tuple[Tensor, Tensor]:
    return small_inputs(model.cfg)


def look(x: Tensor, hook: Any) -> None:
    pass


def double(x: Tensor, hook: Any) -> Tensor:
    return x * 2


def count_hooks(model: HookedWhisper) -> int:
    return sum(len(point.fwd_hooks) + len(point.bwd_hooks) for point in model.hook_dict.values())


# Names. Everything that takes the name of a hook checks it.

Call = Callable[[HookedWhisper, tuple[Tensor, Tensor], Any], Any]


def _enter(context: Any) -> None:
    with context:
        pass


APIS: dict[str, Call] = {
    "resolve_names": lambda m, x, name: m.resolve_names(name),
    "add_hook": lambda m, x, name: m.add_hook(name, look),
    "add_hook bwd": lambda m, x, name: m.add_hook(name, look, dir="bwd"),
    "add_perma_hook": lambda m, x, name: m.add_perma_hook(name, look),
    "hooks fwd": lambda m, x, name: _enter(m.hooks(fwd_hooks=[(RESID, look), (name, look)])),
    "hooks bwd": lambda m, x, name: _enter(m.hooks(bwd_hooks=[(RESID, look), (name, look)])),
    "run_with_hooks fwd": lambda m, x, name: m.run_with_hooks(*x, fwd_hooks=[(RESID, look), (name, look)]),
    "run_with_hooks bwd": lambda m, x, name: m.run_with_hooks(*x, bwd_hooks=[(name, look)], reset_hooks_end=False),
    "run_with_hooks stop_at": lambda m, x, name: m.run_with_hooks(*x, stop_at=name),
    "run_with_cache names_filter": lambda m, x, name: m.run_with_cache(*x, names_filter=name),
    "run_with_cache list": lambda m, x, name: m.run_with_cache(*x, names_filter=[RESID, name]),
    "run_with_cache stop_at": lambda m, x, name: m.run_with_cache(*x, stop_at=name),
    "run_with_cache fwd_hooks": lambda m, x, name: m.run_with_cache(*x, fwd_hooks=[(name, look)]),
    "run_with_cache bwd_hooks": lambda m, x, name: m.run_with_cache(*x, bwd_hooks=[(name, look)]),
    "get_caching_hooks": lambda m, x, name: m.get_caching_hooks(name),
    "add_caching_hooks": lambda m, x, name: m.add_caching_hooks(name),
    "list_hooks": lambda m, x, name: m.list_hooks(name),
}
each_api = pytest.mark.parametrize("api", APIS)
takes_functions = pytest.mark.parametrize(
    "api", [name for name in APIS if "list" not in name.split() and "stop_at" not in name]
)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("encoder.blocks.0.hook_resid_pots", "matches no hook point.*Did you mean.*'encoder.blocks.0.hook_resid_post'"),
        ("blocks.0.hook_resid_post", "matches no hook point.*Did you mean.*'encoder.blocks.0.hook_resid_post'"),
        (
            "encoder.blocks.2.hook_resid_post",
            "matches no hook point.*Did you mean.*'encoder.blocks.[01].hook_resid_post'",
        ),
        ("encoder.blocks.*.cross_attn.hook_q", "matches no hook point"),
        ("nothing like it at all", r"matches no hook point\. `model.hook_names\(\)` lists all 172"),
        ("encoder.blocks.0", "is a module, not a hook point.*Inside it: encoder.blocks.0.hook_resid_pre"),
        ("decoder.unembed", "is a module, not a hook point"),
    ],
)
@each_api
def test_an_unknown_name_raises_and_names_the_nearest(
    model: HookedWhisper, inputs: tuple[Tensor, Tensor], api: str, name: str, message: str
) -> None:
    with pytest.raises(HookNameError, match=message):
        APIS[api](model, inputs, name)
    assert count_hooks(model) == 0
    assert model.context_level == 0


@takes_functions
def test_a_function_that_matches_nothing_raises(model: HookedWhisper, inputs: tuple[Tensor, Tensor], api: str) -> None:
    with pytest.raises(HookNameError, match="matches none of the 172 hook points"):
        APIS[api](model, inputs, lambda name: "hook_resid_pots" in name)
    assert count_hooks(model) == 0


@pytest.mark.parametrize(
    ("name", "option"),
    [
        ("encoder.blocks.0.attn.hook_result", "use_attn_result"),
        ("decoder.blocks.1.hook_q_input", "use_split_qkv_input"),
        ("decoder.blocks.1.hook_cross_v_input", "use_split_qkv_input"),
        ("decoder.blocks.2.hook_cross_attn_in", "use_attn_in"),
        ("encoder.blocks.1.hook_attn_in", "use_attn_in"),
        ("decoder.blocks.0.hook_mlp_in", "use_hook_mlp_in"),
    ],
)
@each_api
def test_a_point_that_is_off_says_how_to_switch_it_on(
    model: HookedWhisper, inputs: tuple[Tensor, Tensor], api: str, name: str, option: str
) -> None:
    with pytest.raises(ConfigError, match=rf"not computed while {option} is off: call model.set_{option}\(True\)"):
        APIS[api](model, inputs, name)
    assert count_hooks(model) == 0
    getattr(model, f"set_{option}")(True)
    logging.disable(logging.WARNING)  # backward hooks of run_with_hooks: the next test's subject
    try:
        APIS[api](model, inputs, name)
    finally:
        logging.disable(logging.NOTSET)
        model.reset_hooks(including_permanent=True)


def test_an_empty_list_of_names_raises(model: HookedWhisper, inputs: tuple[Tensor, Tensor]) -> None:
    with pytest.raises(HookNameError, match="empty list of hook names.*None for all"):
        model.run_with_cache(*inputs, names_filter=[])


def test_the_error_is_a_key_error_that_reads_as_a_sentence(model: HookedWhisper) -> None:
    with pytest.raises(KeyError) as caught:
        model.add_hook("encoder.hook_ot", look)
    assert str(caught.value).startswith("'encoder.hook_ot' matches no hook point. Did you mean 'encoder.hook_out'")


def test_patterns_and_functions_reach_every_match(model: HookedWhisper) -> None:
    expected = [f"decoder.blocks.{i}.cross_attn.hook_pattern" for i in range(3)]
    assert model.hook_names("*.cross_attn.hook_pattern") == expected
    assert model.resolve_names("decoder.blocks.*.cross_attn.hook_pattern") == expected
    assert model.resolve_names(lambda name: name.endswith("cross_attn.hook_pattern")) == expected
    # A list keeps the model's order and counts each point once.
    assert model.resolve_names([expected[2], "*.cross_attn.hook_pattern", expected[0]]) == expected
    model.add_hook("*.cross_attn.hook_pattern", look)
    assert list(model.list_hooks()) == expected
    assert list(model.list_hooks(expected[1])) == [expected[1]]


def test_none_means_all_but_what_the_cache_derives(model: HookedWhisper) -> None:
    names = model.resolve_names(None)
    left_out = set(model.hook_names()) - set(names)
    derived = ("hook_attn_scores", "hook_pattern", "mlp.hook_post")
    assert left_out == {name for name in model.hook_names() if name.endswith(derived)}
    assert len(left_out) == 2 * (2 + 3 + 3) + 2 + 3


def test_names_are_listed_in_the_order_in_which_they_fire(model: HookedWhisper, inputs: tuple[Tensor, Tensor]) -> None:
    fired: list[str] = []

    def note(x: Tensor, hook: Any) -> None:
        fired.append(hook.name)

    for options in (False, True):
        model.set_use_attn_result(options)
        model.set_use_hook_mlp_in(options)
        fired.clear()
        with torch.no_grad():
            model.run_with_hooks(*inputs, fwd_hooks=[("*", note)])
        # q, k and v are projected at once and scores come before z: within an attention the order is free.
        assert sorted(fired) == sorted(model.hook_names())
        outside = [name for name in fired if "attn.hook_" not in name]
        assert outside == [name for name in model.hook_names() if "attn.hook_" not in name]


# Running with hooks


@torch.no_grad()
def test_hooks_run_in_the_order_added_each_on_what_the_last_left(
    model: HookedWhisper, inputs: tuple[Tensor, Tensor]
) -> None:
    add_one = lambda x, hook: x + 1  # noqa: E731
    seen: list[Tensor] = []
    keep = lambda x, hook: seen.append(x.clone())  # noqa: E731
    hooks = [(RESID, keep), (RESID, double), (RESID, add_one), (RESID, keep)]
    model.run_with_hooks(*inputs, fwd_hooks=hooks)
    torch.testing.assert_close(seen[1], seen[0] * 2 + 1, rtol=0, atol=0)
    seen.clear()
    for hook in (keep, double, add_one, keep):
        model.add_hook(RESID, hook, prepend=True)
    model(*inputs)
    torch.testing.assert_close(seen[1], (seen[0] + 1) * 2, rtol=0, atol=0)


@torch.no_grad()
def test_run_with_hooks_leaves_nothing_behind(model: HookedWhisper, inputs: tuple[Tensor, Tensor]) -> None:
    plain = model(*inputs)
    edited = model.run_with_hooks(*inputs, fwd_hooks=[(RESID, double)])
    assert not torch.equal(edited, plain)
    assert count_hooks(model) == 0
    assert torch.equal(model(*inputs), plain)
    kept = model.run_with_hooks(*inputs, fwd_hooks=[(RESID, double)], reset_hooks_end=False)
    assert torch.equal(kept, edited)
    assert torch.equal(model(*inputs), edited)
    model.reset_hooks()
    assert torch.equal(model(*inputs), plain)


@torch.no_grad()
def test_run_with_hooks_passes_on_forwards_options(model: HookedWhisper, inputs: tuple[Tensor, Tensor]) -> None:
    loss = model(*inputs, return_type="loss")
    edited = model.run_with_hooks(*inputs, return_type="loss", fwd_hooks=[(RESID, double)])
    assert loss.shape == edited.shape == ()
    assert loss != edited
    with pytest.raises(TypeError, match="return_typo"):
        model.run_with_hooks(*inputs, return_typo="loss")


@pytest.mark.parametrize("stop_at", [None, "encoder.hook_out"])
def test_an_error_in_a_hook_leaves_nothing_behind(
    model: HookedWhisper, inputs: tuple[Tensor, Tensor], stop_at: str | None
) -> None:
    def fail(x: Tensor, hook: Any) -> None:
        raise ZeroDivisionError(hook.name)

    with pytest.raises(ZeroDivisionError, match=RESID):
        model.run_with_hooks(*inputs, fwd_hooks=[("*", look), (RESID, fail)], stop_at=stop_at)
    with pytest.raises(ZeroDivisionError, match=RESID):
        model.run_with_cache(*inputs, fwd_hooks=[(RESID, fail)], stop_at=stop_at)
    assert count_hooks(model) == 0
    assert model.context_level == 0
    assert not any(point.live or point.guard for point in model.hook_dict.values())


@torch.no_grad()
def test_levels_of_contexts(model: HookedWhisper, inputs: tuple[Tensor, Tensor]) -> None:
    plain = model(*inputs)
    model.add_hook("decoder.hook_embed", double)
    outermost = model(*inputs)
    with model.hooks(fwd_hooks=[(RESID, double)]):
        outer = model(*inputs)
        with model.hooks(fwd_hooks=[("encoder.hook_out", double)]):
            inner = model(*inputs)
            model.reset_hooks(level=2)  # the inner context's hooks alone
            assert torch.equal(model(*inputs), outer)
        assert torch.equal(model(*inputs), outer)
    assert torch.equal(model(*inputs), outermost)
    model.reset_hooks()
    assert torch.equal(model(*inputs), plain)
    assert len({x.sum().item() for x in (plain, outermost, outer, inner)}) == 4


@torch.no_grad()
def test_permanent_hooks_outlive_resets_until_they_are_named(
    model: HookedWhisper, inputs: tuple[Tensor, Tensor]
) -> None:
    plain = model(*inputs)
    model.add_perma_hook(RESID, double)
    model.add_hook("encoder.hook_out", double)
    both = model(*inputs)
    model.reset_hooks()
    permanent = model(*inputs)
    assert not torch.equal(permanent, both)
    assert not torch.equal(permanent, plain)
    _, cache = model.run_with_cache(*inputs, names_filter=RESID)  # sees what the permanent hook leaves
    assert count_hooks(model) == 1
    model.reset_hooks(including_permanent=True)
    torch.testing.assert_close(cache[RESID], 2 * model.run_with_cache(*inputs, names_filter=RESID)[1][RESID])
    assert torch.equal(model(*inputs), plain)


def test_a_hooks_context_is_its_own_until_cleared(model: HookedWhisper, inputs: tuple[Tensor, Tensor]) -> None:
    def remember(x: Tensor, hook: Any) -> None:
        hook.ctx["mean"] = x.mean().item()

    with torch.no_grad():
        model.run_with_hooks(*inputs, fwd_hooks=[(RESID, remember)])
        assert "mean" in model.hook_dict[RESID].ctx
        assert "mean" not in model.hook_dict["encoder.hook_out"].ctx
        model.run_with_hooks(*inputs, clear_contexts=True)
    assert model.hook_dict[RESID].ctx == {}


# Backward


def test_a_backward_hook_edits_the_gradient(model: HookedWhisper, inputs: tuple[Tensor, Tensor]) -> None:
    with model.hooks(bwd_hooks=[("encoder.hook_out", lambda grad, hook: torch.zeros_like(grad))]):
        model(*inputs, return_type="loss").backward()
    encoder = [p.grad for p in model.encoder.parameters() if p.grad is not None]
    assert len(encoder) == len(list(model.encoder.parameters()))
    assert not any(grad.any() for grad in encoder)
    assert model.decoder.W_pos.grad is not None
    assert model.decoder.W_pos.grad.any()


def test_backward_hooks_of_run_with_hooks_warn_that_they_come_too_early(
    model: HookedWhisper, inputs: tuple[Tensor, Tensor], caplog: pytest.LogCaptureFixture
) -> None:
    model.run_with_hooks(*inputs, bwd_hooks=[(RESID, look)])
    assert "with model.hooks(bwd_hooks=...)" in caplog.text
    caplog.clear()
    fired: list[Tensor] = []
    loss = model.run_with_hooks(
        *inputs, return_type="loss", bwd_hooks=[(RESID, lambda g, hook: fired.append(g))], reset_hooks_end=False
    )
    loss.backward()
    assert len(fired) == 1
    assert not caplog.text


# stop_at


@torch.no_grad()
def test_stop_at_in_the_encoder_never_reaches_the_decoder(
    model: HookedWhisper, inputs: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model.decoder, "forward", lambda *a, **k: pytest.fail("the decoder ran"))
    value = model.run_with_hooks(*inputs, stop_at=RESID, fwd_hooks=[(RESID, double)])
    stopped, cache = model.run_with_cache(*inputs, stop_at=RESID, fwd_hooks=[(RESID, double)])
    assert torch.equal(value, stopped)
    assert torch.equal(value, cache[RESID])
    with pytest.raises(KeyError):
        cache["encoder.blocks.1.hook_resid_post"]


def test_stop_at_needs_one_point(model: HookedWhisper, inputs: tuple[Tensor, Tensor]) -> None:
    with pytest.raises(
        HookNameError, match="stop_at needs one hook point, 'encoder.blocks.\\*.hook_resid_post' matches 2"
    ):
        model.run_with_hooks(*inputs, stop_at="encoder.blocks.*.hook_resid_post")
    assert model.run_with_hooks(*inputs, stop_at="decoder.blocks.2.hook_resid_p*t").shape == (2, 5, 16)


# Caching hooks


@pytest.mark.parametrize("by_head", [False, True])
@torch.no_grad()
def test_a_filter_of_encoder_hooks_never_runs_the_decoder(
    model: HookedWhisper, inputs: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch, by_head: bool
) -> None:
    model.set_use_split_qkv_input(by_head)
    names = ["encoder.blocks.1.ln1.hook_normalized", "hook_mel", "encoder.blocks.1.attn.hook_k"]
    kept, hooks, _ = model.get_caching_hooks(names)
    model.run_with_hooks(*inputs, fwd_hooks=hooks)
    with monkeypatch.context() as patch:
        patch.setattr(model.decoder, "forward", lambda *a, **k: pytest.fail("the decoder ran"))
        output, cache = model.run_with_cache(inputs[0], names_filter=names)
    assert output is None
    for name in names:
        assert torch.equal(cache[name], kept[name])
    logits, _ = model.run_with_cache(*inputs, names_filter=names, return_type="logits")
    assert torch.equal(logits, model(*inputs))


@torch.no_grad()
def test_added_caching_hooks_stay_and_fill_their_dictionary(
    model: HookedWhisper, inputs: tuple[Tensor, Tensor]
) -> None:
    kept = model.add_caching_hooks(RESID)
    model(*inputs)
    first = kept[RESID]
    model(inputs[0] + 1, inputs[1])
    assert list(kept) == [RESID]
    assert not torch.equal(kept[RESID], first)
    model.reset_hooks()
    assert not model.hook_dict[RESID].live


def test_caching_hooks_drop_the_batch_and_keep_gradients(model: HookedWhisper, inputs: tuple[Tensor, Tensor]) -> None:
    names = [RESID, "encoder.hook_pos_embed"]
    kept, fwd, bwd = model.get_caching_hooks(names, incl_bwd=True, remove_batch_dim=True)
    with model.hooks(fwd, bwd):
        model(inputs[0][:1], inputs[1][:1], return_type="loss").backward()
    assert set(kept) == {name + end for name in names for end in ("", "_grad")}
    assert {tuple(x.shape) for x in kept.values()} == {(10, 16)}  # positions have no batch to drop
    assert not any(x.requires_grad for x in kept.values())


@torch.no_grad()
def test_an_edit_in_an_outer_context_does_not_reach_back_into_a_cache(
    model: HookedWhisper, inputs: tuple[Tensor, Tensor]
) -> None:
    def zero(x: Tensor, hook: Any) -> None:
        x.zero_()

    before, after = RESID, "encoder.blocks.1.hook_resid_pre"  # the same memory
    _, plain = model.run_with_cache(*inputs, names_filter=[before])
    with model.hooks(fwd_hooks=[(after, zero)]):
        _, cache = model.run_with_cache(*inputs, names_filter=[before, after])
    assert torch.equal(cache[before], plain[before])
    assert not cache[after].any()
    assert not any(point.guard for point in model.hook_dict.values())


def test_hooks_that_return_no_tensor(model: HookedWhisper, inputs: tuple[Tensor, Tensor]) -> None:
    with pytest.raises(ConfigError, match="A hook on 'encoder.hook_out' returned int: expected a tensor, or None"):
        model.run_with_hooks(*inputs, fwd_hooks=[("encoder.hook_out", lambda x, hook: 5)])
    assert model.list_hooks() == {}


def test_hooks_that_return_another_shape(model: HookedWhisper, inputs: tuple[Tensor, Tensor]) -> None:
    told = r"A hook on 'encoder.hook_out' returned a tensor of shape \[1, \d+, \d+\]: expected \[2, \d+, \d+\]"
    with pytest.raises(ConfigError, match=told):  # it would broadcast
        model.run_with_hooks(*inputs, fwd_hooks=[("encoder.hook_out", lambda x, hook: x[:1])])


def test_a_cache_on_a_device_that_is_not_there(model: HookedWhisper, inputs: tuple[Tensor, Tensor]) -> None:
    with pytest.raises(ConfigError, match="Unknown device 'gpu'"):
        model.run_with_cache(*inputs, device="gpu")
    _, cache = model.run_with_cache(*inputs, names_filter="hook_mel")
    with pytest.raises(ConfigError, match="Unknown device 'gpu'"):
        cache.to("gpu")
    with pytest.raises(ConfigError, match="A cache cannot be held in torch.int8: expected one of float32"):
        cache.to(torch.int8)
