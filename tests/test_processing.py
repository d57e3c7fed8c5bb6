"""Weight processing: the logits stay, and the weights become what was promised of them."""

from __future__ import annotations

from itertools import combinations, permutations
from pathlib import Path

import pytest
import torch
from reference import ALL_OPTIONS, Reference
from safetensors.torch import load_file, save_file
from small import small_config, small_inputs, small_model
from torch import Tensor
from transformers import GenerationConfig

from hooked_whisper import CheckpointError, HookedWhisper, StackConfig
from hooked_whisper.checkpoints import Checkpoint, to_transformers
from hooked_whisper.components import Attention, LayerNorm
from hooked_whisper.processing import STEPS
from hooked_whisper.speech import clips

CONFIGS = {
    "deep decoder": small_config(),
    "deep encoder": small_config(
        StackConfig(n_layers=3, n_heads=4, d_model=16, d_mlp=20, n_ctx=8),
        StackConfig(n_layers=1, n_heads=2, d_model=16, d_mlp=24, n_ctx=12),
    ),
}


def process(model: HookedWhisper, *steps: str) -> None:
    model.process_weights_(**{step: step in steps for step in STEPS})  # type: ignore[arg-type]


def attentions(model: HookedWhisper) -> list[Attention]:
    return [module for module in model.modules() if isinstance(module, Attention)]


def as_checkpoint(model: HookedWhisper) -> Checkpoint:
    return Checkpoint(model.cfg, model.state_dict(), None, GenerationConfig(), "a test")


SUBSETS = [combination for size in range(len(STEPS) + 1) for combination in combinations(STEPS, size)]


@pytest.mark.parametrize("steps", SUBSETS, ids=lambda steps: "-".join(steps) or "none")
@pytest.mark.parametrize("cfg", CONFIGS)
@torch.no_grad()
def test_logits_stay_the_same(cfg: str, steps: tuple[str, ...]) -> None:
    model = small_model(CONFIGS[cfg])
    inputs = small_inputs(model.cfg)
    before = model(*inputs)
    process(model, *steps)
    after = model(*inputs)
    assert model.processing == set(steps)
    if "center_unembed" in steps:
        assert not torch.allclose(after, before, atol=1e-3)  # by a constant for each position
        torch.testing.assert_close(after.mean(-1), torch.zeros_like(after[..., 0]), rtol=0, atol=1e-9)
        before, after = before.log_softmax(-1), after.log_softmax(-1)
    torch.testing.assert_close(after, before, rtol=0, atol=1e-9)


@torch.no_grad()
def test_plain_torch_computes_the_same_from_the_processed_weights() -> None:
    """Not only the fused paths of the model agree: so does the reference, and with every option on."""
    model = small_model()
    inputs = small_inputs(model.cfg)
    before = model(*inputs)
    model.process_weights_()
    for option in ALL_OPTIONS:
        getattr(model, f"set_{option}")(True)
    torch.testing.assert_close(model(*inputs), before, rtol=0, atol=1e-9)
    slow = Reference(model.state_dict(), model.cfg, options=ALL_OPTIONS)
    torch.testing.assert_close(slow(*inputs), before, rtol=0, atol=1e-9)


@torch.no_grad()
def test_the_order_of_the_steps_does_not_matter() -> None:
    at_once = small_model()
    process(at_once, *STEPS)
    for order in permutations(STEPS):
        model = small_model()
        for step in order:
            process(model, step)
        assert model.processing == set(STEPS)
        for name, value in at_once.state_dict().items():
            torch.testing.assert_close(model.state_dict()[name], value, rtol=0, atol=1e-9, msg=f"{name} after {order}")


@torch.no_grad()
def test_a_second_call_changes_nothing() -> None:
    model = small_model(dtype=torch.float32)
    model.process_weights_()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.process_weights_()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.processing == {"fold_ln", "center_writing_weights", "fold_value_biases"}


# What each step promises


@torch.no_grad()
def test_folded_norms_only_normalise() -> None:
    model, before = small_model(), small_model()
    process(model, "fold_ln")
    norms = [module for module in model.modules() if isinstance(module, LayerNorm)]
    assert len(norms) == 2 * 2 + 3 * 3 + 2
    for norm in norms:
        assert (norm.w == 1).all()
        assert not norm.b.any()
    assert all(attn.b_K.any() for attn in attentions(model))
    readers = [attn.qkv.weight for attn in attentions(model)]
    readers += [model.encoder.W_in.transpose(1, 2), model.decoder.W_in.transpose(1, 2), model.decoder.unembed.weight]
    for reader in readers:
        torch.testing.assert_close(reader.mean(-1), torch.zeros_like(reader[..., 0]), rtol=0, atol=1e-12)
    # The residual streams are untouched, and so is everything that attention computes.
    names = [name for name in model.hook_names() if not name.endswith(("hook_normalized", "encoder.hook_out"))]
    kept: dict[str, Tensor] = {}
    old: dict[str, Tensor] = {}
    for each, into in ((model, kept), (before, old)):
        each.run_with_hooks(*small_inputs(model.cfg), fwd_hooks=each.get_caching_hooks(names, cache=into)[1])
    for name in names:
        torch.testing.assert_close(kept[name], old[name], rtol=0, atol=1e-9, msg=name)
    frames = model.encode_mel(small_inputs(model.cfg)[0])
    torch.testing.assert_close(frames.mean(-1), torch.zeros_like(frames[..., 0]), rtol=0, atol=1e-9)
    torch.testing.assert_close(frames.square().mean(-1), torch.ones_like(frames[..., 0]), rtol=0, atol=1e-3)


@torch.no_grad()
def test_folding_unties_the_unembedding() -> None:
    model = small_model()
    embedding = model.W_E.clone()
    process(model, "fold_ln")
    assert model.decoder.unembed.weight is not model.decoder.W_E
    assert model.decoder.unembed.weight.data_ptr() != model.decoder.W_E.data_ptr()
    assert torch.equal(model.W_E, embedding)
    assert model.b_U.any()
    for steps in (["center_writing_weights"], ["center_unembed"]):
        model = small_model()
        process(model, *steps)
        assert model.decoder.unembed.weight is not model.decoder.W_E
        assert torch.equal(model.W_E, embedding) == (steps == ["center_unembed"])
        assert torch.equal(model.W_U.T, embedding) == (steps == ["center_writing_weights"])
        assert not model.b_U.any()
    model = small_model()
    process(model, "fold_value_biases")
    assert model.decoder.unembed.weight is model.decoder.W_E


@torch.no_grad()
def test_what_is_written_linearly_is_centred() -> None:
    model, before = small_model(), small_model()
    process(model, "center_writing_weights")
    writers = [model.encoder.W_pos, model.decoder.W_pos, model.W_E]
    for weights in (model.encoder, model.decoder, model.decoder.cross):
        writers += [weights.W_O, weights.b_O]
    for weights in (model.encoder, model.decoder):
        writers += [weights.W_out, weights.b_out]
    for writer in writers:
        torch.testing.assert_close(writer.mean(-1), torch.zeros_like(writer[..., 0]), rtol=0, atol=1e-12)
    # The decoder's stream has mean zero; the encoder's keeps the mean that the convolutions write.
    names = ["encoder.hook_conv2", "*.hook_resid_*"]
    kept, hooks, _ = model.get_caching_hooks(names)
    model.run_with_hooks(*small_inputs(model.cfg), fwd_hooks=hooks)
    old, hooks, _ = before.get_caching_hooks("encoder.hook_conv2")
    before.run_with_hooks(*small_inputs(model.cfg), fwd_hooks=hooks)
    assert torch.equal(kept["encoder.hook_conv2"], old["encoder.hook_conv2"])
    of_convolutions = kept.pop("encoder.hook_conv2").mean(-1)
    assert of_convolutions.abs().min() > 1e-3
    for name, x in kept.items():
        mean = of_convolutions if name.startswith("encoder") else torch.zeros_like(x[..., 0])
        torch.testing.assert_close(x.mean(-1), mean, rtol=0, atol=1e-9, msg=name)


@torch.no_grad()
def test_value_biases_move_into_the_output() -> None:
    model, before = small_model(), small_model()
    process(model, "fold_value_biases")
    assert len(attentions(model)) == 2 + 3 + 3
    for attn, old in zip(attentions(model), attentions(before), strict=True):
        assert not attn.b_V.any()
        assert old.b_V.any()
        torch.testing.assert_close(attn.b_O, old.b_O + torch.einsum("hd,hdm->m", old.b_V, old.W_O), rtol=0, atol=1e-12)
        for name in ("W_Q", "W_K", "W_V", "W_O", "b_Q", "b_K"):
            assert torch.equal(getattr(attn, name), getattr(old, name)), name


def test_frozen_weights_stay_frozen() -> None:
    model = small_model().requires_grad_(False)
    process(model, *STEPS)
    assert not any(parameter.requires_grad for parameter in model.parameters())
    trainable = small_model()
    process(trainable, *STEPS)
    assert all(parameter.requires_grad for parameter in trainable.parameters())


# Saving and loading


@torch.no_grad()
def test_a_processed_model_can_be_saved_and_loaded(tmp_path: Path) -> None:
    model = small_model()
    inputs = small_inputs(model.cfg)
    model.process_weights_()
    checkpoint = as_checkpoint(model)
    save_file(checkpoint.state_dict, tmp_path / "model.safetensors")
    checkpoint.state_dict = load_file(tmp_path / "model.safetensors")
    loaded = HookedWhisper.from_checkpoint(checkpoint, device="cpu", dtype="float64")
    assert torch.equal(loaded(*inputs), model(*inputs))
    assert loaded.processing == model.processing
    assert loaded.decoder.unembed.weight is not loaded.decoder.W_E
    before = {name: value.clone() for name, value in loaded.state_dict().items()}
    loaded.process_weights_()  # it knows that this has been done
    assert all(torch.equal(value, before[name]) for name, value in loaded.state_dict().items())


@torch.no_grad()
@pytest.mark.parametrize("step", ["fold_ln", "center_writing_weights", "center_unembed"])
def test_processed_weights_load_into_a_fresh_model(step: str) -> None:
    model = small_model()
    inputs = small_inputs(model.cfg)
    process(model, step)
    fresh = small_model(seed=1)
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(fresh(*inputs), model(*inputs))
    assert not torch.equal(fresh.W_E, fresh.decoder.unembed.weight)  # each has its own

    tied = small_model(seed=1)
    tied.load_state_dict(small_model().state_dict())
    assert tied.decoder.unembed.weight is tied.decoder.W_E


@torch.no_grad()
def test_processing_changes_neither_the_checkpoint_nor_another_model_made_of_it() -> None:
    source = small_model()
    inputs = small_inputs(source.cfg)
    checkpoint = as_checkpoint(source)
    before = {name: value.clone() for name, value in checkpoint.state_dict.items()}
    one, other = (HookedWhisper.from_checkpoint(checkpoint, device="cpu", dtype="float64") for _ in range(2))
    process(one, *STEPS)
    assert other.processing == checkpoint.config.processing == frozenset()
    assert torch.equal(other(*inputs), source(*inputs))
    assert all(torch.equal(value, before[name]) for name, value in checkpoint.state_dict.items())


@torch.no_grad()
def test_a_checkpoint_with_an_unembedding_of_its_own_keeps_it() -> None:
    model = small_model()
    checkpoint = as_checkpoint(model)
    own = torch.randn_like(model.W_E)
    checkpoint.state_dict["decoder.unembed.weight"] = own
    loaded = HookedWhisper.from_checkpoint(checkpoint, device="cpu", dtype="float64")
    assert torch.equal(loaded.W_U, own.T)
    assert torch.equal(loaded.W_E, model.W_E)


def test_processed_weights_cannot_go_back_to_transformers() -> None:
    model = small_model()
    process(model, "fold_ln")
    with pytest.raises(CheckpointError, match="before they were processed"):
        to_transformers(as_checkpoint(model))


def test_in_half_precision_weights_are_rounded_once() -> None:
    source = small_model(dtype=torch.float32)
    with torch.no_grad():
        for attn in attentions(source):
            attn.b_K.zero_()  # as in every Whisper that was released
    theirs = to_transformers(as_checkpoint(source))
    half, full = (
        HookedWhisper.from_pretrained(theirs, device="cpu", dtype=dtype, fold_ln=True, center_writing_weights=True)
        for dtype in ("float16", "float32")
    )
    assert half.dtype == torch.float16
    for name, value in full.state_dict().items():
        assert torch.equal(half.state_dict()[name], value.half()), name


# The real model


@torch.no_grad()
def test_whisper_base_computes_the_same_after_processing(whisper_base: HookedWhisper) -> None:
    processed = HookedWhisper.from_pretrained(
        "openai/whisper-base", device="cpu", fold_ln=True, center_writing_weights=True, fold_value_biases=True
    )
    assert processed.processing == {"fold_ln", "center_writing_weights", "fold_value_biases"}
    for clip in clips()[:2]:
        logits: dict[str, Tensor] = {}
        for name, model in (("plain", whisper_base), ("processed", processed)):
            logits[name] = model(clip.path, clip.text, language=clip.language)
        largest = logits["plain"].abs().max()
        torch.testing.assert_close(logits["processed"] / largest, logits["plain"] / largest, rtol=0, atol=1e-5)
