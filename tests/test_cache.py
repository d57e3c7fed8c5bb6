from __future__ import annotations

import math
import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small import ENCODER, small_config, small_inputs, small_model
from torch import Tensor
from transformer_lens import ActivationCache

from hooked_whisper import CacheError, ConfigError, HookedWhisper, StackConfig, WhisperCache
from hooked_whisper.axes import axes
from hooked_whisper.derived import derive
from hooked_whisper.named_cache import as_index, compact, storage_bytes
from hooked_whisper.speech import clips

SCORES = ("hook_attn_scores", "hook_pattern")


def run(model: HookedWhisper, batch: int = 2, n_pos: int = 5, **options) -> WhisperCache:
    mel, tokens = small_inputs(model.cfg, batch, n_pos)
    with torch.no_grad():
        return model.run_with_cache(mel, tokens, **options)[1]


@pytest.fixture
def model() -> HookedWhisper:
    return small_model()


@pytest.fixture
def cache(model: HookedWhisper) -> WhisperCache:
    return run(model)


@pytest.fixture(scope="module")
def spoken(shared_whisper_base: HookedWhisper) -> WhisperCache:
    """Two real clips of unequal length, with their greedy transcripts."""
    audio = [clips("en", "vm-sorry")[0].load(), clips("fr")[1].load()]
    shared_whisper_base.reset_hooks(including_permanent=True)
    with torch.no_grad():
        return shared_whisper_base.run_with_cache(audio, language=["en", "fr"])[1]


# --- reading --------------------------------------------------------------------------------------------------------


def test_it_is_an_activation_cache_of_all_points(model: HookedWhisper, cache: WhisperCache) -> None:
    assert isinstance(cache, ActivationCache)
    assert isinstance(cache.encoder, ActivationCache)
    left_out = {name for name in model.hook_names() if name.endswith((*SCORES, "mlp.hook_post"))}
    assert set(cache.keys()) == set(model.hook_names()) - left_out
    assert left_out <= set(cache.derivable())
    for name in model.hook_names():
        assert cache[name].ndim == len(axes(name))
        assert cache.is_derived(name) == (name in left_out) == (name not in cache)
    assert len(cache) == len(list(cache)) == len(cache.items()) == len(cache.values())


@settings(deadline=None, max_examples=15)
@given(batch=st.integers(1, 3), n_pos=st.integers(1, 9), heads=st.sampled_from([1, 2, 4]), remove=st.booleans())
def test_derived_scores_and_patterns_are_the_computed_ones(batch: int, n_pos: int, heads: int, remove: bool) -> None:
    model = small_model(small_config(decoder=StackConfig(2, heads, 16, 20, 12)))
    batch = 1 if remove else batch
    computed = run(model, batch, n_pos, names_filter=["*.hook_attn_scores", "*.hook_pattern"], remove_batch_dim=remove)
    told = run(model, batch, n_pos, names_filter=["*.hook_q", "*.hook_k"], remove_batch_dim=remove)
    assert set(told.derivable()) == set(computed)
    for name, value in computed.items():
        torch.testing.assert_close(told[name], value, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_derived_patterns_in_other_precisions(dtype: torch.dtype) -> None:
    model = small_model(dtype=dtype)
    mel, tokens = small_inputs(model.cfg, dtype=dtype)
    with torch.no_grad():
        _, computed = model.run_with_cache(mel, tokens, names_filter="*.hook_pattern")
        _, told = model.run_with_cache(mel, tokens, names_filter=["*.hook_q", "*.hook_k"])
    for name, value in computed.items():
        assert told[name].dtype == dtype
        # From the second layer on q and k differ by the two kernels' rounding.
        torch.testing.assert_close(told[name].float(), value.float(), rtol=0, atol=30 * torch.finfo(dtype).eps)


def test_a_pattern_follows_from_stored_scores(model: HookedWhisper) -> None:
    told = run(model, names_filter="*.hook_attn_scores")
    computed = run(model, names_filter="*.hook_pattern")
    for name, value in computed.items():
        torch.testing.assert_close(told[name], value)


def test_neurons_and_scales_and_heads_are_derived(model: HookedWhisper) -> None:
    model.set_use_attn_result(True)
    computed = run(model, names_filter=["*.hook_result", "*.mlp.hook_post", "*.hook_scale"])
    told = run(model, names_filter=["*.hook_z", "*.mlp.hook_pre", "*.hook_resid_*"])
    for name, value in computed.items():
        assert name in told.derivable()
        assert told.is_derived(name)
        torch.testing.assert_close(told[name], value, rtol=0, atol=1e-12)


def test_inputs_by_head_have_scales_that_no_residual_tells(model: HookedWhisper) -> None:
    model.set_use_split_qkv_input(True)
    told = run(model, names_filter="*.hook_resid_*")
    assert told.is_derived("decoder.blocks.0.ln3.hook_scale")
    for name in ("encoder.blocks.0.ln1.hook_scale", "decoder.blocks.0.ln2.hook_scale"):
        with pytest.raises(CacheError, match="not in names_filter"):
            told[name]


def test_a_scale_is_that_of_an_edited_mlp_input(model: HookedWhisper) -> None:
    model.set_use_hook_mlp_in(True)
    name = "decoder.blocks.1.ln3.hook_scale"
    edits = [("decoder.blocks.1.hook_mlp_in", lambda x, hook: 3 * x)]
    computed = run(model, fwd_hooks=edits, names_filter=name)
    told = run(model, fwd_hooks=edits, names_filter=["*.hook_mlp_in", "*.hook_resid_mid_cross"])
    torch.testing.assert_close(told[name], computed[name])


# --- what hooks change cannot be derived ----------------------------------------------------------------------------


@pytest.mark.parametrize("attention", ["encoder.blocks.1.attn", "decoder.blocks.1.attn", "decoder.blocks.1.cross_attn"])
@pytest.mark.parametrize("leaf", SCORES)
def test_edited_attention_is_stored_not_derived(model: HookedWhisper, attention: str, leaf: str) -> None:
    seen: dict[str, Tensor] = {}

    def edit(x: Tensor, hook) -> Tensor:
        seen["edited"] = x.roll(1, dims=1) * 0.5
        return seen["edited"]

    full = run(model, fwd_hooks=[(f"{attention}.{leaf}", edit)])
    assert not full.is_derived(f"{attention}.hook_pattern")
    torch.testing.assert_close(full[f"{attention}.{leaf}"], seen["edited"], rtol=0, atol=0)
    if leaf == "hook_attn_scores":
        torch.testing.assert_close(full[f"{attention}.hook_pattern"], seen["edited"].softmax(-1))
    part = run(model, fwd_hooks=[(f"{attention}.{leaf}", edit)], names_filter=["*.hook_q", "*.hook_k"])
    with pytest.raises(CacheError, match=r"hook of its own in this run: add it to names_filter|names_filter"):
        part[f"{attention}.{leaf}"]
    with pytest.raises(CacheError):
        part[f"{attention}.hook_pattern"]
    assert part.is_derived("encoder.blocks.0.attn.hook_pattern")


def test_edited_neurons_are_stored_not_derived(model: HookedWhisper) -> None:
    name = "decoder.blocks.0.mlp.hook_post"
    edits = [(name, lambda x, hook: torch.zeros_like(x))]
    full = run(model, fwd_hooks=edits)
    assert not full.is_derived(name)
    assert not full[name].any()
    with pytest.raises(CacheError, match="had a hook of its own in this run: add it to names_filter"):
        run(model, fwd_hooks=edits, names_filter="*.hook_pre")[name]


def test_edited_queries_show_in_the_derived_pattern(model: HookedWhisper) -> None:
    name = "encoder.blocks.0.attn"
    edits = [(f"{name}.hook_q", lambda x, hook: x.roll(1, dims=1))]
    computed = run(model, fwd_hooks=edits, names_filter=f"{name}.hook_pattern")
    told = run(model, fwd_hooks=edits)
    assert told.is_derived(f"{name}.hook_pattern")
    torch.testing.assert_close(told[f"{name}.hook_pattern"], computed[f"{name}.hook_pattern"])


# --- what is missing ------------------------------------------------------------------------------------------------


def test_missing_names_say_why_and_what_to_do(model: HookedWhisper) -> None:
    cache = run(model, names_filter="encoder.blocks.0.*")
    with pytest.raises(CacheError, match=r"Did you mean 'encoder.blocks.0.hook_resid_pre'"):
        cache["encoder.blocks.0.hook_resid_pree"]
    with pytest.raises(CacheError, match=r"not in names_filter.*names_filter='decoder.blocks.0.hook_resid_pre'"):
        cache["decoder.blocks.0.hook_resid_pre"]
    with pytest.raises(CacheError, match=r"derived from encoder.blocks.1.attn.hook_q and encoder.blocks.1.attn.hook_k"):
        cache["encoder.blocks.1.attn.hook_pattern"]
    with pytest.raises(CacheError, match="only while its option of the model is on"):
        cache["encoder.blocks.1.attn.hook_result"]
    with pytest.raises(CacheError, match="No gradient of 'hook_mel' was kept: .* incl_bwd=True"):
        cache["hook_mel_grad"]
    with pytest.raises(CacheError, match=r"cache.encoder\[\('q', 0\)\] or cache.decoder"):
        cache["q", 0]
    with pytest.raises(CacheError, match="No activation is called 'hook_nothing'"):
        cache.is_derived("hook_nothing")
    with pytest.raises(KeyError):
        cache["hook_nothing"]


def test_gradients_are_kept_under_their_names(model: HookedWhisper) -> None:
    mel, tokens = small_inputs(model.cfg)
    _, cache = model.run_with_cache(
        mel, tokens, names_filter=["*.hook_resid_post", "*.hook_pattern"], incl_bwd=True, return_type="loss"
    )
    for name in ("encoder.blocks.0.hook_resid_post", "decoder.blocks.1.cross_attn.hook_pattern"):
        assert cache[f"{name}_grad"].shape == cache[name].shape
        assert cache[f"{name}_grad"].abs().sum() > 0
    assert cache.seconds(0, 0.1)["encoder.blocks.0.hook_resid_post_grad"].shape[1] == 5


def test_a_run_that_ends_in_the_encoder_has_no_tokens(model: HookedWhisper) -> None:
    cache = run(model, names_filter="encoder.*")
    assert cache.frame_mask.shape == (2, ENCODER.n_ctx)
    for what in ("tokens", "token_mask", "texts", "text", "prompt_lengths"):
        with pytest.raises(CacheError, match="ended before the decoder was fed"):
            getattr(cache, what)
    with pytest.raises(CacheError, match="tokens but no texts: its model has no tokenizer"):
        _ = run(model).text


def test_analyses_belong_to_a_stack(cache: WhisperCache) -> None:
    for name in ("accumulated_resid", "decompose_resid", "stack_head_results", "logit_attrs", "apply_ln_to_stack"):
        with pytest.raises(ConfigError, match=r"call this on cache.encoder or cache.decoder"):
            getattr(cache, name)()
    with pytest.raises(ConfigError, match="needs a model, or cfg="):
        WhisperCache({}, None, cache.run)


# --- what the run was about -----------------------------------------------------------------------------------------


def test_tokens_texts_and_masks_of_real_clips(whisper_base: HookedWhisper, spoken: WhisperCache) -> None:
    assert spoken.texts[0].strip() and "conférence" in spoken.texts[1]
    assert spoken.languages == ["en", "fr"]
    assert spoken.prompt_lengths == [4, 4]
    lengths = [len(spoken.clip_tokens(clip)) for clip in (0, 1)]
    assert spoken.token_mask.sum(-1).tolist() == lengths
    assert spoken.tokens.shape == (2, max(lengths))
    assert spoken.str_tokens(1)[:4] == ["<|startoftranscript|>", "<|fr|>", "<|transcribe|>", "<|notimestamps|>"]
    assert "".join(spoken.str_tokens(0)[4:]) == spoken.texts[0]
    seconds = [clips("en", "vm-sorry")[0].seconds, clips("fr")[1].seconds]
    assert [spoken.n_frames(clip) for clip in (0, 1)] == [math.ceil(s * 50) for s in seconds]
    assert spoken.frame_mask.sum(-1).tolist() == [spoken.n_frames(0), spoken.n_frames(-1)]
    with pytest.raises(CacheError, match="2 clips: cache.texts"):
        _ = spoken.text
    with pytest.raises(CacheError, match="no clip 2: this cache has 2"):
        spoken.str_tokens(2)
    one = spoken.apply_slice_to_batch_dim(1)
    assert one.text == spoken.texts[1]
    assert one.tokens.tolist() == spoken.tokens[1].tolist()


# --- slices in time -------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=25)
@given(data=st.data(), remove=st.booleans())
def test_seconds_cuts_every_frame_axis_and_nothing_else(data: st.DataObject, remove: bool) -> None:
    model = small_model()
    cache = run(model, batch=1 if remove else 2, remove_batch_dim=remove)
    first = data.draw(st.integers(0, ENCODER.n_ctx - 1))
    stop = data.draw(st.integers(first + 1, ENCODER.n_ctx))
    part = cache.seconds(first / 50, stop / 50)
    cuts = {"frame": slice(first, stop), "key_frame": slice(first, stop), "mel_frame": slice(2 * first, 2 * stop)}
    for name in model.hook_names():
        names = axes(name)[remove and axes(name)[0] == "batch" :]
        expected = cache[name][tuple(cuts.get(axis, slice(None)) for axis in names)]
        torch.testing.assert_close(part[name], expected, rtol=0, atol=1e-12)
        assert part.is_derived(name) == cache.is_derived(name)
    assert part.frame_mask.shape[-1] == stop - first
    assert part.nbytes == cache.nbytes
    middle = data.draw(st.integers(first, stop - 1))
    again = part.seconds(middle / 50, stop / 50)
    for name in ("encoder.blocks.1.attn.hook_pattern", "decoder.blocks.2.cross_attn.hook_pattern", "hook_mel"):
        torch.testing.assert_close(again[name], cache.seconds(middle / 50, stop / 50)[name], rtol=0, atol=1e-12)
    assert part.encoder["pattern", 0].shape == part["encoder.blocks.0.attn.hook_pattern"].shape


def test_a_cut_pattern_follows_from_uncut_stored_scores(model: HookedWhisper) -> None:
    cache = run(model, names_filter="*.hook_attn_scores")
    name = "encoder.blocks.0.attn.hook_pattern"
    torch.testing.assert_close(cache.seconds(0.04, 0.1)[name], cache[name][..., 2:5, 2:5], rtol=0, atol=0)


def test_spans_that_are_none(cache: WhisperCache) -> None:
    for start, end in ((0.1, 0.1), (0.2, 0.1), (float("nan"), 1.0), (0.0, float("inf"))):
        with pytest.raises(ConfigError, match=r"is no span: the end must come after the start; .* spans 0 to 0.2 s"):
            cache.seconds(start, end)
    for start, end in ((-0.1, 0.1), (0.0, 0.3), (0.2, 0.21)):
        with pytest.raises(ConfigError, match="outside the window"):
            cache.seconds(start, end)
    with pytest.raises(ConfigError, match=r"spans 0.04 to 0.1 s"):
        cache.seconds(0.04, 0.1).seconds(0, 0.06)
    # A span inside one frame is that frame.
    assert cache.seconds(0.045, 0.046)["encoder.hook_out"].shape[1] == 1


def test_a_word_is_the_frames_in_which_it_is_said(spoken: WhisperCache) -> None:
    words = spoken.words(clip=1)
    said = next(word for word in words if "conférence" in word.text)
    part = spoken.word("Conférence", clip=1)
    out = part["encoder.hook_out"]
    assert out.shape[:2] == (1, round((said.end - said.start) * 50))
    start = round(said.start * 50)
    torch.testing.assert_close(out[0], spoken["encoder.hook_out"][1, start : start + out.shape[1]], rtol=0, atol=0)
    assert part.is_cut
    assert part.texts == [spoken.texts[1]]
    with pytest.raises(CacheError, match=r"'konférence' is said nowhere in clip 1. Did you mean 'conférence'"):
        spoken.word("konférence", clip=1)
    with pytest.raises(CacheError, match=r"'conférence' is said 1 times, so there is no occurrence 1 in clip 1"):
        spoken.word("conférence", occurrence=1, clip=1)
    with pytest.raises(CacheError, match="before seconds"):
        part.words()


# --- slices of the batch --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "chosen", [0, -1, [1], [2, 0], slice(1, 3), (0, 2), np.array([1, 2]), torch.tensor([True, False, True])]
)
def test_the_batch_is_sliced_with_all_that_belongs_to_it(model: HookedWhisper, chosen) -> None:
    cache = run(model, batch=3)
    part = cache.apply_slice_to_batch_dim(chosen)
    index = slice(*chosen) if isinstance(chosen, tuple) else chosen
    for name in (*cache, "decoder.blocks.0.attn.hook_pattern"):
        expected = cache[name] if name == "encoder.hook_pos_embed" else cache[name][index]
        torch.testing.assert_close(part[name], expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(part.tokens, cache.tokens[index])
    torch.testing.assert_close(part.frame_mask, cache.frame_mask[index])
    assert part.has_batch_dim == (not isinstance(chosen, int))
    assert part.n_clips == len(np.atleast_1d(np.arange(3)[index]))
    assert isinstance(part, WhisperCache)
    assert part.encoder.has_batch_dim == part.has_batch_dim
    cut = cache.seconds(0.02, 0.06).apply_slice_to_batch_dim(chosen)
    name = "encoder.blocks.0.attn.hook_pattern"
    torch.testing.assert_close(cut[name], part[name][..., 1:3, 1:3], rtol=0, atol=1e-12)


def test_removing_the_batch_dimension(model: HookedWhisper) -> None:
    cache, removed = run(model, batch=1), run(model, batch=1, remove_batch_dim=True)
    same = run(model, batch=1).remove_batch_dim()
    assert same.keys() == removed.keys()
    for name in (*cache, "encoder.blocks.0.attn.hook_pattern"):
        torch.testing.assert_close(same[name], removed[name], rtol=0, atol=1e-12)
    assert removed.tokens.tolist() == cache.tokens[0].tolist()
    assert removed.frame_mask.ndim == 1
    with pytest.raises(ConfigError, match="has no batch dimension: it was removed"):
        same.remove_batch_dim()
    with pytest.raises(ConfigError, match="no batch dimension to slice"):
        same.apply_slice_to_batch_dim(0)
    with pytest.raises(ConfigError, match="needs one clip, this cache has 2"):
        run(model).remove_batch_dim()
    with pytest.raises(ConfigError, match="Clips 5 do not exist: this cache has 2"):
        run(model).apply_slice_to_batch_dim(5)
    with pytest.raises(ConfigError, match="'all' is no slice"):
        as_index("all")


# --- memory ---------------------------------------------------------------------------------------------------------


def test_what_activations_share_is_counted_once(model: HookedWhisper, cache: WhisperCache) -> None:
    assert cache["encoder.blocks.0.hook_resid_post"].data_ptr() == cache["encoder.blocks.1.hook_resid_pre"].data_ptr()
    apart = sum(value.numel() * value.element_size() for value in cache.values())
    streams = ("blocks.0.hook_resid_post", "blocks.1.hook_resid_post")
    twice = [*(cache.encoder[name] for name in streams[:1]), *(cache.decoder[name] for name in streams)]
    twice.append(cache["encoder.hook_out"])
    assert cache.nbytes == apart - sum(value.numel() * value.element_size() for value in twice)


def test_queries_alone_do_not_keep_keys_and_values_alive(model: HookedWhisper) -> None:
    cache = run(model, names_filter="*.hook_q")
    assert cache.nbytes == sum(value.numel() * value.element_size() for value in cache.values())
    full = run(model)
    for name, value in cache.items():
        torch.testing.assert_close(value, full[name], rtol=0, atol=0)
    x = torch.randn(4, 6)
    together = compact({"a": x[:, :2], "b": x[:, :2], "c": x})
    assert storage_bytes(together.values()) == x.numel() * 4
    alone = compact({"a": x[:, :2], "b": x[:, :2]})
    assert alone["a"] is alone["b"]
    assert storage_bytes(alone.values()) == 4 * 2 * 4


def test_half_precision_halves_and_keeps_what_is_shared(model: HookedWhisper) -> None:
    cache = run(small_model(dtype=torch.float64))
    before, names, out = cache.nbytes, list(cache), cache["encoder.hook_out"].clone()
    assert cache.to(torch.float32) is cache
    assert cache.nbytes == before // 2
    cache.half()
    assert cache.nbytes == before // 4
    assert list(cache) == names
    torch.testing.assert_close(cache["encoder.hook_out"].double(), out, rtol=1e-3, atol=1e-3)
    assert cache["decoder.blocks.0.attn.hook_pattern"].dtype == torch.float16
    assert cache.to("cpu").tokens.dtype == torch.int64
    part = run(model).seconds(0.02, 0.06).half()
    assert part["encoder.blocks.0.attn.hook_pattern"].dtype == torch.float16
    assert part.encoder.accumulated_resid().dtype == torch.float16


def test_half_precision_refuses_what_it_cannot_hold(model: HookedWhisper) -> None:
    cache = run(model, fwd_hooks=[("decoder.blocks.0.hook_resid_post", lambda x, hook: x * 1e7)])
    with pytest.raises(
        CacheError, match=r"'decoder.blocks.0.hook_resid_post' has values up to \d+, .* use torch.bfloat16"
    ):
        cache.half()
    assert cache["decoder.blocks.0.hook_resid_post"].dtype == torch.float64
    cache.to(dtype=torch.bfloat16)


@pytest.mark.slow
def test_a_full_cache_of_thirty_seconds_stays_within_400_mb(whisper_base: HookedWhisper) -> None:
    audio = torch.cat([clip.load() for clip in clips("en")])[: 30 * 16_000]
    assert len(audio) == 30 * 16_000
    with torch.no_grad():
        _, cache = whisper_base.run_with_cache(audio, language="en")
    assert len(cache.clip_tokens()) > 80
    assert cache.nbytes <= 400e6
    read = 0
    for name in whisper_base.hook_names("*.hook_pattern"):
        pattern = cache[name]
        torch.testing.assert_close(pattern.sum(-1), torch.ones(pattern.shape[:-1]), rtol=0, atol=1e-4)
        read += 1
    assert read == 18
    assert f"{cache.nbytes / 1e6:.1f} MB" in repr(cache)


# --- what it says about itself --------------------------------------------------------------------------------------


def test_repr_and_summary(model: HookedWhisper, cache: WhisperCache, spoken: WhisperCache) -> None:
    assert re.fullmatch(
        r"WhisperCache\(106 activations, 0.2 MB \(float64 on cpu\); 2 clips of 0.2, 0.2 s; derived when read: "
        r"8 hook_attn_scores, 8 hook_pattern, 8 hook_result, 5 hook_post\)",
        repr(cache),
    )
    one = spoken.apply_slice_to_batch_dim(0).seconds(0.5, 1.0)
    assert "no batch dimension" in repr(one)
    assert "cut to 0.5-1 s" in repr(one)
    lines = cache.summary().splitlines()
    row = next(line for line in lines if line.startswith("encoder.blocks.0-1.hook_resid_post"))
    assert " ".join(row.split()) == "encoder.blocks.0-1.hook_resid_post batch frame d_model [2, 10, 16] 0.01"
    assert any(line.startswith("encoder.hook_out") and line.endswith("shared") for line in lines)
    assert any(line.startswith("decoder.blocks.0-2.cross_attn.hook_pattern") and "derived" in line for line in lines)
    assert lines[-1] == "106 activations, 0.2 MB"
    assert sum(line.startswith("decoder.blocks.1.") for line in cache.summary(every_layer=True).splitlines()) > 20
    assert "blocks.0,2." in run(model, names_filter=["decoder.blocks.0.attn.*", "decoder.blocks.2.attn.*"]).summary()


def test_axes_of_sae_activations_and_inputs_by_head() -> None:
    assert axes("encoder.blocks.0.hook_resid_post.hook_sae_acts_post") == ("batch", "frame", "feature")
    assert axes("encoder.blocks.0.hook_resid_post.hook_sae_output", 3) == ("batch", "frame", "d_model")
    assert axes("decoder.blocks.0.attn.hook_z.hook_sae_acts_post", 3) == ("batch", "pos", "feature")
    assert axes("encoder.blocks.0.ln1.hook_normalized", 4) == ("batch", "frame", "head", "d_model")
    assert axes("decoder.blocks.0.hook_cross_k_input") == ("batch", "frame", "head", "d_model")
    assert axes("encoder.blocks.0.attn.hook_pattern_grad") == ("batch", "head", "frame", "key_frame")


def test_nothing_is_derived_from_nothing(model: HookedWhisper) -> None:
    assert derive("encoder.blocks.0.attn.hook_pattern", lambda name: None, model.cfg, model) is None
    assert derive("encoder.blocks.0.hook_resid_pre", lambda name: torch.zeros(1), model.cfg, model) is None
