"""SAEs in a model: names, coming and going, hooks beside them. `test_spliced_sae.py` has the sums."""

from __future__ import annotations

import copy
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sae_files import metadata, random_sae, sae_lens
from small import small_inputs, small_model
from torch import Tensor

from hooked_whisper import ConfigError, HookedWhisper, HookNameError, SaeError

OUT = "encoder.hook_out"
RESID = "decoder.blocks.1.hook_resid_post"
MLP_IN, MLP_OUT = "encoder.blocks.0.ln2.hook_normalized", "encoder.blocks.0.hook_mlp_out"
LEAVES = [f"hook_sae_{name}" for name in ("input", "acts_pre", "acts_post", "recons", "error", "output")]


@pytest.fixture
def model() -> HookedWhisper:
    return small_model()


@pytest.fixture
def inputs(model: HookedWhisper) -> tuple[Tensor, Tensor]:
    return small_inputs(model.cfg)


def transcoder(reads: str = MLP_IN, writes: str = MLP_OUT, **settings: Any) -> Any:
    return random_sae("transcoder", reads, about={"hook_name_out": writes}, **settings)


def state(model: HookedWhisper) -> tuple[Any, ...]:
    """Everything about hooks that attaching could leave changed."""
    return (
        list(model.hook_dict.items()),
        list(model.mod_dict),
        {name: (len(p._forward_hooks), len(p._forward_pre_hooks)) for name, p in model.hook_dict.items()},
        [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in (model.log_mel, model.encoder)],
        model.context_level,
    )


# Names


def test_the_names_of_an_sae_come_and_go_with_it(model: HookedWhisper) -> None:
    before, names = state(model), model.hook_names()
    model.add_sae(random_sae(hook=OUT), use_error_term=True)
    inside = [f"{OUT}.{leaf}" for leaf in LEAVES]
    assert model.hook_names("*hook_sae_*") == inside
    assert model.hook_names() == [*names[: names.index(OUT)], *inside, *names[names.index(OUT) :]]
    assert model.resolve_names(f"{OUT}.hook_sae_acts_post") == [f"{OUT}.hook_sae_acts_post"]
    assert model.resolve_names("*acts_post") == [f"{OUT}.hook_sae_acts_post"]
    assert [model.hook_dict[name].name for name in inside] == inside
    assert list(model.acts_to_saes) == [OUT]
    model.reset_saes()
    assert state(model) == before
    assert model.acts_to_saes == {}


def test_names_are_listed_in_the_order_in_which_they_fire(model: HookedWhisper, inputs: tuple[Tensor, Tensor]) -> None:
    for sae in (random_sae(hook=OUT), transcoder(), random_sae(hook="decoder.blocks.0.attn.hook_z")):
        model.add_sae(sae, use_error_term=True)
    fired: list[str] = []
    # Cross-attention projects its keys before its queries; the list has them the other way round.
    names = [
        name
        for name in model.hook_names()
        if not name.endswith(("cross_attn.hook_q", "cross_attn.hook_k", "cross_attn.hook_v"))
    ]
    model.run_with_hooks(*inputs, fwd_hooks=[(name, lambda x, hook: fired.append(hook.name)) for name in names])
    assert fired == names


def test_the_error_is_there_only_with_an_error_term(model: HookedWhisper, inputs: tuple[Tensor, Tensor]) -> None:
    model.add_sae(random_sae(hook=OUT))
    assert model.hook_names("*hook_sae_*") == [f"{OUT}.{leaf}" for leaf in LEAVES if leaf != "hook_sae_error"]
    with pytest.raises(
        ConfigError, match=r"hook_sae_error' is not computed without an error term: .*use_error_term=True"
    ):
        model.run_with_cache(*inputs, names_filter=f"{OUT}.hook_sae_error")
    model.reset_saes()
    model.add_sae(random_sae("matching_pursuit", OUT))
    with pytest.raises(ConfigError, match="not computed by a matching_pursuit SAE: its encoder has no such values"):
        model.add_hook(f"{OUT}.hook_sae_acts_pre", lambda x, hook: None)
    model.reset_saes()
    model.set_use_hook_mlp_in(True)
    model.add_sae(random_sae(hook="encoder.blocks.0.hook_mlp_in"))
    model.set_use_hook_mlp_in(False)
    with pytest.raises(ConfigError, match="while use_hook_mlp_in is off"):
        model.resolve_names("encoder.blocks.0.hook_mlp_in.hook_sae_input")


def test_sae_names_where_there_is_no_sae(model: HookedWhisper) -> None:
    with pytest.raises(
        HookNameError, match=r"matches no hook point: no SAE writes 'encoder.hook_out'. No SAE is attached"
    ):
        model.resolve_names(f"{OUT}.hook_sae_acts_post")
    model.add_sae(transcoder())
    with pytest.raises(HookNameError, match=rf"no SAE writes '{MLP_IN}'. Attached are SAEs at '{MLP_IN}'"):
        model.resolve_names(f"{MLP_IN}.hook_sae_acts_post")
    with pytest.raises(HookNameError, match=r"Did you mean '.*hook_mlp_out.hook_sae_acts_post'"):
        model.resolve_names(f"{MLP_OUT}.hook_sae_acts_pots")


# What cannot be attached


HEADS = "decoder.blocks.0.attn.hook_z"
# What is attached, and how it is refused.
REFUSED: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "no SAE": (
        lambda: torch.nn.Linear(2, 2),
        SaeError,
        "Expected an SAE or transcoder of SAELens, got Linear: load one",
    ),
    "unknown hook": (
        lambda: random_sae(hook="encoder.hook_ot"),
        HookNameError,
        "matches no hook point. Did you mean .*'encoder.hook_out'",
    ),
    "no hook": (lambda: random_sae(hook=None), SaeError, "metadata name no hook .*say where it goes with hook="),
    "many hooks": (lambda: random_sae(hook="encoder.*.hook_resid_post"), SaeError, "by its whole name; got 'encoder.*"),
    "hook that is off": (
        lambda: random_sae(hook="decoder.blocks.0.hook_mlp_in"),
        ConfigError,
        "while use_hook_mlp_in is off: call model.set",
    ),
    "width": (
        lambda: random_sae(d_in=12),
        SaeError,
        "d_in=12, and 'encoder.hook_out' of small needs 16. Was it trained",
    ),
    "width of the MLP": (lambda: random_sae(hook="encoder.blocks.0.mlp.hook_post"), SaeError, "d_in=16, .* needs 24"),
    "width of heads": (
        lambda: random_sae(hook=HEADS, d_in=8),
        SaeError,
        "d_in=8, .* needs 4 for each head on its own, or 16 for all of them side by side",
    ),
    "pattern": (
        lambda: random_sae(hook="encoder.blocks.0.attn.hook_pattern"),
        SaeError,
        r"\[batch head frame key_frame\], and an SAE",
    ),
    "scale": (lambda: random_sae(hook="encoder.ln_post.hook_scale"), SaeError, r"\[batch frame 1\], and an SAE reads"),
    "spectrogram": (
        lambda: random_sae(hook="hook_mel"),
        SaeError,
        r"\[batch mel mel_frame\], and an SAE reads features",
    ),
    "head where there are none": (
        lambda: random_sae(about={"hook_head_index": 1}),
        SaeError,
        "metadata names head 1, and 'encoder.hook_out' has no heads",
    ),
    "head that is not there": (
        lambda: random_sae(hook="encoder.blocks.0.attn.hook_z", d_in=8, about={"hook_head_index": 2}),
        SaeError,
        "metadata names head 2, and .* has heads 0 to 1",
    ),
    "heads to lay side by side": (
        lambda: random_sae(hook=HEADS, d_in=4, reshape_activations="hook_z"),
        SaeError,
        "lays heads side by side .* with d_in=4 there are none to lay so",
    ),
    "transcoder backwards": (
        lambda: transcoder(MLP_OUT, MLP_IN),
        SaeError,
        "cannot read .*hook_mlp_out' and write .*, which the model computes first",
    ),
    "transcoder from frames to tokens": (
        lambda: transcoder(OUT, RESID),
        SaeError,
        r"different positions: \[batch frame d_model\] and \[batch pos d_model\]",
    ),
    "transcoder's output": (
        lambda: transcoder(d_out=12),
        SaeError,
        "d_out=12, and .*0.hook_mlp_out' of small needs 16",
    ),
    "looks back": (
        lambda: random_sae("temporal", RESID),
        SaeError,
        "looks back over positions, .* goes to hooks of the encoder only",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_refused(model: HookedWhisper, case: str) -> None:
    make, error, message = REFUSED[case]
    before, sae = state(model), make()
    with pytest.raises(error, match=message):
        model.add_sae(sae)
    assert state(model) == before
    with pytest.raises(error, match=message), model.saes([random_sae(hook="hook_logits", d_in=31), sae]):
        pytest.fail("nothing is run with an SAE that does not fit")
    assert state(model) == before


@pytest.mark.parametrize("architecture", list(sae_lens.registry.SAE_TRAINING_CLASS_REGISTRY))
def test_training_saes_are_refused_and_told_how_to_convert(
    model: HookedWhisper, inputs: tuple[Tensor, Tensor], architecture: str, tmp_path: Path
) -> None:
    cls, config = sae_lens.registry.get_sae_training_class(architecture)
    more = {"matryoshka_batchtopk": {"matryoshka_widths": [8, 32]}, "matching_pursuit": {"decoder_init_norm": 1.0}}
    k = {"k": 4} if "topk" in architecture else {}
    own = more.get(architecture.removeprefix("sparse_"), {})
    sae = cls(config(d_in=16, d_sae=32, metadata=metadata(OUT), **k, **own))
    with pytest.raises(
        SaeError, match=r"is in training.*save_inference_model\(folder\), .*SAE.load_from_disk\(folder\)"
    ):
        model.add_sae(sae)
    sae.save_inference_model(tmp_path)  # as the message says
    kept = sae_lens.SAE.load_from_disk(tmp_path)
    with torch.no_grad():
        expected = model.run_with_hooks(*inputs, fwd_hooks=[(OUT, lambda x, hook: kept(x.float()).double())])
        assert torch.equal(model.run_with_saes(*inputs, saes=kept), expected)


def test_an_sae_whose_weights_were_cast_behind_its_back(model: HookedWhisper) -> None:
    sae = random_sae()
    torch.nn.Module.to(sae, torch.float32)
    with pytest.raises(
        SaeError, match=r"says that it is torch.float64 and its weights are torch.float32: cast it with"
    ):
        model.add_sae(sae)


def test_a_hook_takes_one_sae(model: HookedWhisper) -> None:
    model.add_sae(sae := random_sae())
    before = state(model)
    with pytest.raises(
        SaeError, match=r"'encoder.hook_out' has an SAE already, and takes one only: .*reset_saes\('encoder"
    ):
        model.add_sae(random_sae(seed=1))
    with pytest.raises(SaeError, match="has an SAE already"), model.saes(random_sae(seed=1)):
        pytest.fail("entered")
    with pytest.raises(SaeError, match="This SAE is attached at 'encoder.hook_out' already.*attach a copy"):
        model.add_sae(sae, hook=RESID)
    assert state(model) == before
    model.add_sae(transcoder())
    with pytest.raises(SaeError, match="hook_mlp_out' has an SAE already"):
        model.add_sae(random_sae(hook=MLP_OUT))
    with pytest.raises(SaeError, match="hook_normalized' has an SAE already"):
        model.add_sae(random_sae(hook=MLP_IN))
    with pytest.raises(SaeError, match="given by its whole name; got 'encoder.hook_out.hook_sae_acts_post'"):
        model.add_sae(random_sae(d_in=32), hook=f"{OUT}.hook_sae_acts_post")


def test_of_another_model(model: HookedWhisper, caplog: pytest.LogCaptureFixture) -> None:
    model.cfg.model_name = "openai/whisper-base"
    with caplog.at_level(logging.WARNING):
        model.run_with_saes(*small_inputs(model.cfg), saes=random_sae(about={"model_name": "base"}))
        assert caplog.text == ""
        model.run_with_saes(*small_inputs(model.cfg), saes=random_sae(about={"model_name": "openai/whisper-base.en"}))
    assert "trained on openai/whisper-base.en, and this model is openai/whisper-base: its features" in caplog.text


# Coming and going


def test_hooks_given_by_hand(model: HookedWhisper, inputs: tuple[Tensor, Tensor]) -> None:
    sae = random_sae(hook=OUT)
    there = model.run_with_hooks(*inputs, fwd_hooks=[(RESID, lambda x, hook: sae(x))])
    with model.saes({RESID: sae}):
        assert list(model.acts_to_saes) == [RESID]
        assert torch.equal(model(*inputs), there)
    model.add_sae(sae, hook=RESID)
    assert torch.equal(model(*inputs), there)
    model.reset_saes()
    with pytest.raises(SaeError, match="A transcoder .* that is given its hook= needs its hook_out=, too"):
        model.add_sae(transcoder(), hook="encoder.blocks.1.ln2.hook_normalized")
    model.add_sae(transcoder(), hook="encoder.blocks.1.ln2.hook_normalized", hook_out="encoder.blocks.1.hook_mlp_out")
    assert model.hook_names("*acts_post") == ["encoder.blocks.1.hook_mlp_out.hook_sae_acts_post"]


def test_some_are_taken_off(model: HookedWhisper) -> None:
    for hook in (OUT, RESID):
        model.add_sae(random_sae(hook=hook))
    model.add_sae(transcoder(), is_permanent=True)
    model.reset_saes(RESID)
    assert list(model.acts_to_saes) == [OUT, MLP_IN]
    with pytest.raises(
        SaeError, match="No SAE reads 'encoder.hook_ot'. Did you mean 'encoder.hook_out'.*Attached are SAEs at"
    ):
        model.reset_saes([MLP_IN, "encoder.hook_ot"])
    assert list(model.acts_to_saes) == [OUT, MLP_IN]
    model.reset_saes()
    assert list(model.acts_to_saes) == [MLP_IN]
    model.reset_saes(including_permanent=True)
    assert model.acts_to_saes == {}
    with pytest.raises(SaeError, match="No SAE reads 'encoder.hook_out'. No SAE is attached"):
        model.reset_saes(OUT)


def test_contexts_nest_and_an_exception_leaves_nothing_behind(
    model: HookedWhisper, inputs: tuple[Tensor, Tensor]
) -> None:
    plain, before = model(*inputs), state(model)
    model.add_sae(outer := random_sae(hook=OUT))
    kept, with_outer = state(model), model(*inputs)
    with model.saes([random_sae(hook=RESID), transcoder()]):
        with model.saes(random_sae(hook="decoder.hook_embed")) as same:
            assert same is model
            assert list(model.acts_to_saes) == [OUT, RESID, MLP_IN, "decoder.hook_embed"]
            model.reset_saes(RESID)  # who takes one off inside finds it gone, and no more
        assert list(model.acts_to_saes) == [OUT, MLP_IN]
    model.add_hook(f"{OUT}.hook_sae_acts_post", lambda x, hook: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        model.run_with_saes(*inputs, saes=[random_sae(hook=RESID), transcoder()])
    assert model.acts_to_saes == {OUT: outer}
    model.reset_hooks()
    assert state(model) == kept
    assert torch.equal(model(*inputs), with_outer)
    with model.saes(random_sae(hook=RESID), reset_saes_end=False):
        pass
    assert list(model.acts_to_saes) == [OUT, RESID]
    model.reset_saes()
    assert state(model) == before
    assert torch.equal(model(*inputs), plain)


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_whatever_comes_and_goes_the_model_is_as_before(data: st.DataObject) -> None:
    model = small_model()
    inputs = small_inputs(model.cfg)
    plain, before = model(*inputs), state(model)
    features = [
        name for name in model.hook_names() if name.rpartition(".")[2] in ("hook_resid_post", "hook_mlp_out", "hook_z")
    ]
    for _ in range(data.draw(st.integers(1, 6))):
        attached = list(model.acts_to_saes)
        if attached and data.draw(st.booleans()):
            model.reset_saes(data.draw(st.sampled_from(attached)))
            continue
        hook = data.draw(st.sampled_from([name for name in features if name not in attached]))
        model.add_sae(random_sae(hook=hook), use_error_term=data.draw(st.booleans()))
        if data.draw(st.booleans()):
            model.run_with_cache(*inputs)
        else:
            model.add_hook(f"{hook}.hook_sae_acts_post", lambda x, hook: x * 2)
    model.reset_saes()
    assert state(model) == before
    assert torch.equal(model(*inputs), plain)


def test_a_copy_of_the_model_has_its_own(model: HookedWhisper, inputs: tuple[Tensor, Tensor]) -> None:
    plain = model(*inputs)
    model.add_sae(random_sae())
    spliced, copied = model(*inputs), copy.deepcopy(model)
    model.reset_saes()
    assert torch.equal(copied(*inputs), spliced)
    copied.reset_saes()
    assert torch.equal(copied(*inputs), plain)


def test_without_sae_lens_nothing_is_an_sae(model: HookedWhisper, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "sae_lens")
    with pytest.raises(SaeError, match="Expected an SAE or transcoder of SAELens, got StandardSAE"):
        model.add_sae(random_sae())


# Hooks beside an SAE


@pytest.mark.parametrize("prepend", [False, True])
@pytest.mark.parametrize("when", ["before", "after"])
def test_hooks_on_the_hook_itself_see_and_edit_what_flows_on(
    model: HookedWhisper, inputs: tuple[Tensor, Tensor], when: str, prepend: bool
) -> None:
    sae, seen = random_sae(), []

    def double(x: Tensor, hook: Any) -> Tensor:
        seen.append(x)
        return 2 * x

    expected = model.run_with_hooks(*inputs, fwd_hooks=[(OUT, lambda x, hook: 2 * sae(x))])
    _, plain = model.run_with_cache(*inputs, names_filter=OUT)
    if when == "before":
        model.add_hook(OUT, double, prepend=prepend)
    model.add_sae(sae)
    if when == "after":
        model.add_hook(OUT, double, prepend=prepend)
    logits, cache = model.run_with_cache(*inputs)
    assert torch.equal(logits, expected)
    assert torch.equal(seen[0], sae(plain[OUT]))
    assert torch.equal(cache[OUT], 2 * seen[0])
    assert torch.equal(cache[f"{OUT}.hook_sae_output"], seen[0])
    assert torch.equal(cache[f"{OUT}.hook_sae_input"], plain[OUT])
    model.reset_saes()
    assert torch.equal(model(*inputs), model.run_with_hooks(*inputs))
    assert len(seen) == 3  # the user's hook has stayed


def test_permanent_hooks_survive_a_reset(model: HookedWhisper, inputs: tuple[Tensor, Tensor]) -> None:
    calls: list[str] = []

    def note(x: Tensor, hook: Any) -> None:
        calls.append(hook.name)

    for name in (OUT, MLP_IN, MLP_OUT):
        model.add_perma_hook(name, note)
        model.add_hook(name, note)
    model.add_sae(random_sae())
    model.add_sae(transcoder())
    model(*inputs)
    assert sorted(calls) == sorted(2 * [OUT, MLP_IN, MLP_OUT])
    model.reset_saes()
    calls.clear()
    model(*inputs)
    assert sorted(calls) == sorted(2 * [OUT, MLP_IN, MLP_OUT])
    model.add_sae(random_sae())
    model.reset_hooks(including_permanent=True)  # takes hooks, not SAEs
    calls.clear()
    assert torch.equal(model(*inputs), model.run_with_saes(*inputs, saes=[]))
    assert calls == []
    assert not torch.equal(model(*inputs), small_model()(*inputs))


def test_hooks_on_an_sae_stay_with_it_and_hooks_on_its_points_go(
    model: HookedWhisper, inputs: tuple[Tensor, Tensor]
) -> None:
    sae, calls = random_sae(), []
    own = {name: point.name for name, point in sae.hook_dict.items()}
    sae.add_hook("hook_sae_acts_post", lambda x, hook: calls.append(hook.name))
    model.add_sae(sae)
    model.add_hook(f"{OUT}.hook_sae_acts_post", lambda x, hook: calls.append(hook.name))
    model(*inputs)
    assert calls == ["hook_sae_acts_post", f"{OUT}.hook_sae_acts_post"]
    assert {name: point.name for name, point in sae.hook_dict.items()} == own
    calls.clear()
    sae(torch.zeros(1, 16, dtype=torch.float64))  # by itself, it does not reach into the model
    assert calls == ["hook_sae_acts_post"]
    model.reset_saes()
    model.add_sae(sae)
    calls.clear()
    model(*inputs)
    assert calls == ["hook_sae_acts_post"]


def test_context_hooks_on_sae_points(model: HookedWhisper, inputs: tuple[Tensor, Tensor]) -> None:
    model.add_sae(random_sae())
    with_sae = model(*inputs)
    zero = [(f"{OUT}.hook_sae_acts_post", lambda x, hook: torch.zeros_like(x))]
    with model.hooks(fwd_hooks=zero):
        edited = model(*inputs)
    assert not torch.equal(edited, with_sae)
    assert torch.equal(model(*inputs), with_sae)
    model.reset_saes()
    assert torch.equal(model.run_with_hooks_with_saes(*inputs, saes=random_sae(), fwd_hooks=zero), edited)
    with model.hooks(fwd_hooks=[(OUT, lambda x, hook: x)]):
        model.add_sae(random_sae())  # inside the block of a hook on the very place
        assert torch.equal(model(*inputs), with_sae)
    assert torch.equal(model(*inputs), with_sae)
