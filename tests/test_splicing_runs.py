"""Passes with SAEs in the model: caches, stopping, the `run_with_…`, generation, padding left alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from sae_files import mirror_sae, random_sae
from small import small_inputs, small_model
from torch import Tensor

from hooked_whisper import HookedWhisper, SaeError, WhisperCache
from hooked_whisper.audio import frame_mask
from hooked_whisper.speech import clips
from hooked_whisper.spliced_sae import SAE_POINTS

OUT = "encoder.hook_out"
RESID = "decoder.blocks.1.hook_resid_post"
MLP_IN, MLP_OUT = "encoder.blocks.0.ln2.hook_normalized", "encoder.blocks.0.hook_mlp_out"


@pytest.fixture
def model() -> HookedWhisper:
    return small_model()


@pytest.fixture
def inputs(model: HookedWhisper) -> tuple[Tensor, Tensor]:
    return small_inputs(model.cfg)


# Caches


def test_an_observed_pass_changes_nothing(model: HookedWhisper, inputs: tuple[Tensor, Tensor]) -> None:
    for sae in (
        random_sae(),
        random_sae("transcoder", MLP_IN, about={"hook_name_out": MLP_OUT}),
        random_sae("topk", "decoder.blocks.0.attn.hook_q"),
    ):
        model.add_sae(sae, use_error_term=True)
    unobserved = model(*inputs)
    for names in (None, "*hook_sae_*", model.hook_names("decoder.*acts_post")):
        logits, cache = model.run_with_cache(*inputs, names_filter=names)
        assert torch.equal(logits, unobserved)
        assert len(cache) >= 1


def test_the_cache_is_of_what_flowed_on(model: HookedWhisper, inputs: tuple[Tensor, Tensor]) -> None:
    """So everything that follows from it still does: patterns from q and k, head outputs from z, sums of the stream."""
    attn, mlp = "decoder.blocks.1.attn", "encoder.blocks.1.mlp"
    hooks = [
        f"{attn}.hook_q",
        f"{attn}.hook_k",
        f"{attn}.hook_z",
        f"{mlp}.hook_post",
        "encoder.blocks.1.hook_resid_post",
    ]
    widths = [16, 4, 16, 24, 16]
    for hook, width in zip(hooks, widths, strict=True):
        model.add_sae(random_sae(hook=hook, d_in=width))
    model.set_use_attn_result(True)
    _, asked = model.run_with_cache(*inputs, names_filter=model.hook_names())
    _, cache = model.run_with_cache(*inputs)
    scale = "encoder.ln_post.hook_scale"
    _, norm_in = model.run_with_cache(*inputs, names_filter="encoder.blocks.1.hook_resid_post")
    for name in (f"{attn}.hook_pattern", f"{attn}.hook_attn_scores", f"{attn}.hook_result"):
        torch.testing.assert_close(cache[name], asked[name])
    assert cache.is_derived(f"{attn}.hook_pattern")
    torch.testing.assert_close(norm_in[scale], asked[scale])
    assert not cache.is_derived(f"{mlp}.hook_post")  # what went into the GELU no longer tells it
    torch.testing.assert_close(cache[f"{mlp}.hook_post"], asked[f"{mlp}.hook_post.hook_sae_output"])
    with pytest.raises(KeyError, match="cannot be derived because it had a hook of its own"):
        model.run_with_cache(*inputs, names_filter=f"{mlp}.hook_pre")[1][f"{mlp}.hook_post"]
    block = "decoder.blocks.1"
    total = cache[f"{block}.hook_resid_pre"] + cache[f"{block}.hook_attn_out"]
    torch.testing.assert_close(cache[f"{block}.hook_resid_mid"], total)


def test_edits_in_place_reach_nothing_that_came_before(model: HookedWhisper, inputs: tuple[Tensor, Tensor]) -> None:
    def fill(x: Tensor, hook: Any) -> None:
        x[..., :3] = 7

    model.add_sae(random_sae(hook="encoder.blocks.1.hook_resid_pre"), use_error_term=True)
    place = "encoder.blocks.1.hook_resid_pre"
    clean = model.run_with_cache(*inputs)[1]
    for leaf in [*SAE_POINTS, None]:
        name = place if leaf is None else f"{place}.{leaf}"
        with torch.no_grad():
            logits, cache = model.run_with_cache(*inputs, fwd_hooks=[(name, fill)])
            copied = model.run_with_hooks(
                *inputs, fwd_hooks=[(name, lambda x, hook: (fill(y := x.clone(), hook), y)[1])]
            )
        assert torch.equal(logits, copied), name
        assert bool((cache[name][..., :3] == 7).all())
        names = list(clean)
        earlier = [other for other in names[: names.index(name)] if not other.endswith("hook_sae_error")]
        assert all(torch.equal(cache[other], clean[other]) for other in earlier), name
        assert (
            torch.equal(cache[f"{place}.hook_sae_error"], clean[f"{place}.hook_sae_error"]) or leaf == "hook_sae_error"
        )


def test_stopping_inside_an_sae(model: HookedWhisper, inputs: tuple[Tensor, Tensor]) -> None:
    for sae in (random_sae(), random_sae("skip_transcoder", MLP_IN, about={"hook_name_out": MLP_OUT})):
        model.add_sae(sae, use_error_term=True)
    _, cache = model.run_with_cache(*inputs)
    ran: list[str] = []
    model.add_hook("decoder.hook_embed", lambda x, hook: ran.append(hook.name))
    for name in (*model.hook_names("*hook_sae_*"), OUT):
        assert torch.equal(model.run_with_hooks(*inputs, stop_at=name), cache[name])
        output, partial = model.run_with_cache(*inputs, names_filter=name)
        assert output is None
        assert torch.equal(partial[name], cache[name])
    assert ran == []
    own = list(model.acts_to_saes.values())
    assert not any(point._forward_hooks for sae in own for point in sae.hook_dict.values())
    stopped, _ = model.run_with_cache(*inputs, stop_at=f"{OUT}.hook_sae_acts_post")
    assert stopped.shape == (2, 10, 32)


def test_caches_of_saes_are_sliced_saved_and_described(
    model: HookedWhisper, inputs: tuple[Tensor, Tensor], tmp_path: Path
) -> None:
    model.add_sae(random_sae(), use_error_term=True)
    model.add_sae(random_sae(hook="encoder.hook_pos_embed"))
    mel, tokens = inputs
    _, cache = model.run_with_cache(mel, tokens)
    acts = cache[f"{OUT}.hook_sae_acts_post"]
    assert torch.equal(cache.seconds(0.04, 0.1)[f"{OUT}.hook_sae_acts_post"], acts[:, 2:5])
    assert torch.equal(cache.encoder["hook_out.hook_sae_acts_post"], acts)
    _, single = model.run_with_cache(mel[:1], tokens[:1], remove_batch_dim=True)
    assert single[f"{OUT}.hook_sae_acts_post"].shape == (10, 32)
    assert single["encoder.hook_pos_embed.hook_sae_acts_post"].shape == (10, 32)  # it never had one
    assert single["encoder.hook_pos_embed"].shape == (10, 16)
    row = next(line for line in cache.summary().splitlines() if "hook_out.hook_sae_acts_post" in line)
    assert " ".join(row.split()).startswith(f"{OUT}.hook_sae_acts_post batch frame feature [2, 10, 32]")
    model.reset_saes()
    again = WhisperCache.load(cache.save(tmp_path / "cache.safetensors"), model)
    assert torch.equal(again[f"{OUT}.hook_sae_acts_post"], acts)
    with pytest.raises(KeyError, match="No activation is called .*Did you mean"):
        again[f"{OUT}.hook_sae_acts"]


def test_the_runs_with_saes(model: HookedWhisper, inputs: tuple[Tensor, Tensor]) -> None:
    saes = [random_sae(), random_sae(hook=RESID, seed=1)]
    with model.saes(saes, use_error_term=True):
        logits, cache = model.run_with_cache(*inputs)
    assert torch.equal(model.run_with_saes(*inputs, saes=saes, use_error_term=True), logits)
    output, again = model.run_with_cache_with_saes(*inputs, saes=saes, use_error_term=True, names_filter=list(cache))
    assert torch.equal(output, logits)
    assert all(torch.equal(again[name], cache[name]) for name in cache)
    hook = (f"{RESID}.hook_sae_error", lambda x, hook: 0 * x)
    no_error = model.run_with_hooks_with_saes(*inputs, saes=saes, use_error_term=True, fwd_hooks=[hook])
    expected = model.run_with_hooks(*inputs, fwd_hooks=[(RESID, lambda x, hook: saes[1](x))])
    torch.testing.assert_close(no_error, expected)
    assert model.run_with_saes(*inputs, saes=saes, return_type=None) is None
    assert model.acts_to_saes == {}
    model.run_with_saes(*inputs, saes=saes, reset_saes_end=False)
    assert list(model.acts_to_saes) == [OUT, RESID]


def test_an_saes_own_setting_of_the_error_term_counts(model: HookedWhisper, inputs: tuple[Tensor, Tensor]) -> None:
    sae = random_sae()
    with pytest.warns(DeprecationWarning, match="use_error_term"):
        sae.use_error_term = True
    plain = model(*inputs)
    torch.testing.assert_close(model.run_with_saes(*inputs, saes=sae), plain)
    assert not torch.allclose(model.run_with_saes(*inputs, saes=sae, use_error_term=False), plain)
    assert sae.use_error_term


# Generation

SPOKEN_HOOKS = {
    OUT: 512,
    "decoder.blocks.0.hook_resid_post": 512,
    "decoder.blocks.1.attn.hook_k": 64,
    "decoder.blocks.2.cross_attn.hook_z": 512,
}


def test_generation_is_the_pass_that_follows_it(whisper_base: HookedWhisper) -> None:
    """Under the key/value cache the SAEs see the positions one by one, and give what they give for all at once."""
    clip = clips("en", key="queue-youarenext")[0].load()
    saes = [mirror_sae(hook, width, noise=0.6 / width**0.5) for hook, width in SPOKEN_HOOKS.items()]
    steps: list[Tensor] = []
    watched = "decoder.blocks.0.hook_resid_post.hook_sae_acts_post"
    with torch.no_grad(), whisper_base.saes(saes):
        with whisper_base.hooks(fwd_hooks=[(watched, lambda x, hook: steps.append(x))]):
            said = whisper_base.transcribe(clip, language="en", max_new_tokens=8)
        assert steps[0].shape[1] > 1
        assert {step.shape[1] for step in steps[1:]} == {1}
        logits, cache = whisper_base.run_with_cache(clip, said.tokens, language="en", names_filter=[watched])
    plain = whisper_base.transcribe(clip, language="en", max_new_tokens=8)
    assert said.tokens != plain.tokens  # the noise is enough to be heard
    start = cache.prompt_lengths[0]
    predicted = logits[0, start - 1 : -1].argmax(-1)
    assert predicted.tolist()[1:] == said.tokens[1:]  # the first token has rules of its own
    told = torch.cat(steps, 1)[:, : cache[watched].shape[1]]
    torch.testing.assert_close(cache[watched][:, : told.shape[1]], told, rtol=1e-4, atol=1e-4)
    assert whisper_base.acts_to_saes == {}


def test_with_error_terms_a_transcript_is_what_it_was(whisper_base: HookedWhisper) -> None:
    clip = clips("en", key="queue-youarenext")[0].load()
    plain = whisper_base.transcribe(clip, language="en", num_beams=2, max_new_tokens=3)
    saes = [random_sae("topk", hook, width, 64, dtype="float32") for hook, width in SPOKEN_HOOKS.items()]
    with whisper_base.saes(saes, use_error_term=True):
        assert whisper_base.transcribe(clip, language="en", num_beams=2, max_new_tokens=3) == plain
        logits = whisper_base(clip, plain.text, language="en")
    expected = whisper_base(clip, plain.text, language="en")
    assert (logits - expected).norm() <= 1e-5 * expected.norm()


# Padding


@pytest.mark.parametrize("hook", ["encoder.hook_conv1", "encoder.blocks.0.attn.hook_z", OUT])
@pytest.mark.parametrize("use_error_term", [False, True])
def test_padding_passes_unchanged(hook: str, use_error_term: bool) -> None:
    model = small_model(dtype=torch.float32)
    spoken = [torch.randn(n) * 0.1 for n in (1_700, 900)]  # of a window of 3,200 samples
    tokens = small_inputs(model.cfg)[1]
    sae = random_sae("topk", hook, dtype="float32")
    edit = (f"{hook}.hook_sae_recons", lambda x, hook: x + 1)
    with torch.no_grad():
        _, plain = model.run_with_cache(spoken, tokens)
        with model.saes(sae, skip_padding=True, use_error_term=use_error_term):
            logits, cache = model.run_with_cache(spoken, tokens, fwd_hooks=[edit])
            assert torch.equal(model.run_with_hooks(spoken, tokens, fwd_hooks=[edit]), logits)
            halfway = [("hook_mel", lambda x, hook: x * 1.0)]
            assert torch.equal(model.run_with_hooks(spoken, tokens, fwd_hooks=[edit, *halfway]), logits)
        everywhere = model.run_with_saes(spoken, tokens, saes=sae, use_error_term=use_error_term)
        assert (
            torch.equal(model.run_with_saes(spoken, tokens, saes=sae, skip_padding=False), everywhere) or use_error_term
        )
    audio = cache.frame_mask if hook != "encoder.hook_conv1" else cache.frame_mask.repeat_interleave(2, 1)
    assert audio.sum(1).tolist() == ([6, 3] if hook != "encoder.hook_conv1" else [12, 6])
    assert torch.equal(cache[hook][~audio], plain[hook][~audio])
    if use_error_term:
        torch.testing.assert_close(cache[hook][audio], plain[hook][audio] + 1)
        assert not bool(cache[f"{hook}.hook_sae_error"][~audio].any())
    else:
        expected = sae(plain[hook].flatten(2)).unflatten(2, plain[hook].shape[2:]) + 1
        torch.testing.assert_close(cache[hook][audio], expected[audio])
    assert torch.equal(cache[f"{hook}.hook_sae_output"], cache[hook])


def test_padding_is_known_in_transcription_too(whisper_base: HookedWhisper) -> None:
    """Short clips in a batch, and windows of a long one: the last is cut off and padded by transformers."""
    spoken = [clip.load() for clip in clips("en")[:2]]
    seen: list[Tensor] = []
    sae = random_sae("topk", OUT, 512, 64, dtype="float32")
    with (
        whisper_base.saes(sae, skip_padding=True),
        whisper_base.hooks(fwd_hooks=[(f"{OUT}.hook_sae_input", lambda x, hook: seen.append(x)),
                              (OUT, lambda x, hook: seen.append(x))]),
    ):  # fmt: skip
        whisper_base.transcribe(spoken, language="en", max_new_tokens=2)
        unchanged = (seen[0] == seen[1]).all(-1)
        assert torch.equal(~unchanged, frame_mask([len(clip) for clip in spoken]))
        seen.clear()
        long = torch.cat([spoken[0].repeat(-(-480_000 // len(spoken[0])))[:480_000], spoken[1]])
        whisper_base.transcribe(long, language="en", max_new_tokens=8)
        unchanged = [(before == after).all(-1)[0] for before, after in zip(seen[::2], seen[1::2], strict=True)]
    assert len(unchanged) > 1
    assert not bool(unchanged[0].any())
    tail = unchanged[-1].nonzero().flatten()
    assert len(tail) > 0 and torch.equal(tail, torch.arange(int(tail[0]), 1500))


def test_where_padding_cannot_be_skipped(model: HookedWhisper, inputs: tuple[Tensor, Tensor]) -> None:
    for hook in (RESID, "decoder.blocks.0.cross_attn.hook_k", "encoder.hook_pos_embed"):
        with pytest.raises(SaeError, match="skip_padding is for hooks of the encoder that hold each clip's frames"):
            model.add_sae(random_sae(hook=hook), skip_padding=True)
    sae = random_sae()
    spliced = model.run_with_saes(*inputs, saes=sae)
    assert torch.equal(model.run_with_saes(*inputs, saes=sae, skip_padding=True), spliced)  # a spectrogram: all audio
