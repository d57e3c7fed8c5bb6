from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from small import small_config, small_inputs, small_model
from torch import Tensor

from hooked_whisper import CacheError, ConfigError, HookedWhisper, StackConfig, WhisperCache
from hooked_whisper.cache_io import _KEY as KEY
from hooked_whisper.speech import clips


def run(model: HookedWhisper, batch: int = 2, **options: Any) -> WhisperCache:
    mel, tokens = small_inputs(model.cfg, batch)
    with torch.no_grad():
        return model.run_with_cache(mel, tokens, **options)[1]


def same(a: WhisperCache, b: WhisperCache, *more: str) -> None:
    assert list(a) == list(b)
    for name in (*a, *more):
        assert a[name].dtype == b[name].dtype
        # What is derived is computed anew, from memory that may lie otherwise: equal up to rounding.
        bound = 1e-12 if a.is_derived(name) else 0
        torch.testing.assert_close(a[name], b[name], rtol=bound, atol=bound, equal_nan=True)


@pytest.fixture
def model() -> HookedWhisper:
    return small_model()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run.safetensors"


# --- there and back -------------------------------------------------------------------------------------------------


PATTERNS = ("encoder.blocks.1.attn.hook_pattern", "decoder.blocks.2.cross_attn.hook_attn_scores")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_a_cache_comes_back_as_it_was(model: HookedWhisper, path: Path, dtype: torch.dtype) -> None:
    cache = run(model).to(dtype)
    assert cache.save(path) == path
    for given_model in (model, None):
        back = WhisperCache.load(path, given_model)
        same(cache, back, *PATTERNS)
        assert repr(back).startswith(repr(cache)[:60])
        assert back.nbytes == cache.nbytes
        assert back["decoder.blocks.0.hook_resid_post"] is back["decoder.blocks.1.hook_resid_pre"]
        assert back.cfg == cache.cfg
        assert back.derivable() == [n for n in cache.derivable() if given_model or not n.endswith("hook_result")]
        torch.testing.assert_close(back.tokens, cache.tokens)
        torch.testing.assert_close(back.token_mask, cache.token_mask)
        torch.testing.assert_close(back.frame_mask, cache.frame_mask)
        assert back.prompt_lengths == cache.prompt_lengths
        torch.testing.assert_close(back.decoder.decompose_resid(), cache.decoder.decompose_resid(), rtol=0, atol=0)
    assert path.stat().st_size < cache.nbytes + 40_000
    assert sorted(entry.name for entry in path.parent.iterdir()) == [path.name]


def test_what_a_file_holds_is_safetensors(model: HookedWhisper, path: Path) -> None:
    cache = run(model)
    cache.save(path)
    stored = load_file(path)
    torch.testing.assert_close(stored["activation/encoder.hook_conv1"], cache["encoder.hook_conv1"])
    assert "activation/encoder.hook_out" not in stored  # it is the very memory of ln_post.hook_normalized
    with safe_open(path, "pt") as file:
        about = json.loads(file.metadata()[KEY])
    assert about["same_as"]["activation/encoder.hook_out"] == "activation/encoder.ln_post.hook_normalized"
    assert about["config"]["d_vocab"] == 31


@settings(deadline=None, max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), remove=st.booleans())
def test_any_part_of_a_cache_comes_back(tmp_path: Path, data: st.DataObject, remove: bool) -> None:
    model = small_model()
    cache = run(model, 1 if remove else 3, remove_batch_dim=remove)
    names = data.draw(st.lists(st.sampled_from(list(cache)), min_size=1, max_size=12, unique=True))
    cache = run(model, 1 if remove else 3, remove_batch_dim=remove, names_filter=names)
    if data.draw(st.booleans()):
        cache = cache.seconds(0.04, 0.12)
    if not remove and data.draw(st.booleans()):
        cache = cache.apply_slice_to_batch_dim(data.draw(st.sampled_from([0, [2, 1], (0, 2)])))
    cache.save(tmp_path / "part.safetensors")
    back = WhisperCache.load(tmp_path / "part.safetensors", model)
    same(cache, back, *cache.derivable())
    assert (back.has_batch_dim, back.is_cut, back.n_clips) == (cache.has_batch_dim, cache.is_cut, cache.n_clips)
    torch.testing.assert_close(back.frame_mask, cache.frame_mask)


def test_patterns_of_a_cut_cache_still_know_the_whole_window(model: HookedWhisper, path: Path) -> None:
    cache = run(model).seconds(0.04, 0.1)
    cache.save(path)
    back = WhisperCache.load(path)
    same(cache, back, *PATTERNS)
    same(cache.seconds(0.06, 0.1), back.seconds(0.06, 0.1), *PATTERNS)


def test_gradients_and_hooked_points_come_back(model: HookedWhisper, path: Path) -> None:
    mel, tokens = small_inputs(model.cfg)
    name = "encoder.blocks.0.attn"
    _, cache = model.run_with_cache(
        mel,
        tokens,
        names_filter=[f"{name}.hook_q", f"{name}.hook_k"],
        incl_bwd=True,
        return_type="loss",
        fwd_hooks=[(f"{name}.hook_pattern", lambda x, hook: x)],
    )
    cache.save(path)
    back = WhisperCache.load(path)
    same(cache, back)
    assert f"{name}.hook_q_grad" in back
    with pytest.raises(CacheError, match="had a hook of its own"):
        back[f"{name}.hook_pattern"]


def test_texts_and_words_come_back(whisper_base: HookedWhisper, path: Path) -> None:
    with torch.no_grad():
        _, cache = whisper_base.run_with_cache(
            [clips("ru")[1].load(), clips("en")[1].load()],
            language=["ru", "en"],
            names_filter=["decoder.*.cross_attn.hook_q", "decoder.*.cross_attn.hook_k"],
        )
    cache.save(str(path))
    back = WhisperCache.load(str(path), whisper_base)
    assert (back.texts, back.languages) == (cache.texts, ["ru", "en"])
    assert back.words(1) == cache.words(1)
    assert back.str_tokens(0) == cache.str_tokens(0)
    alone = WhisperCache.load(path)
    assert alone.texts == cache.texts
    with pytest.raises(CacheError, match="needs the model's tokenizer: set cache.model, or load the cache with model="):
        alone.str_tokens()
    with pytest.raises(CacheError, match="need the model's tokenizer"):
        alone.words()
    alone.model = whisper_base
    assert alone.words(1) == cache.words(1)


def test_saving_again_replaces_the_file(model: HookedWhisper, path: Path) -> None:
    run(model).save(path)
    small = run(model, names_filter="hook_mel")
    small.save(path)
    assert list(WhisperCache.load(path)) == ["hook_mel"]


# --- what cannot be written -----------------------------------------------------------------------------------------


def test_places_that_cannot_be_written(model: HookedWhisper, tmp_path: Path) -> None:
    cache = run(model, names_filter="hook_mel")
    with pytest.raises(CacheError, match=r"there is no folder .*nowhere'. Create it first"):
        cache.save(tmp_path / "nowhere" / "run.safetensors")
    with pytest.raises(CacheError, match="it is a folder; give the name of a file in it"):
        cache.save(tmp_path)
    long = tmp_path / ("x" * 300)
    with pytest.raises(CacheError, match="Cannot save to"):
        cache.save(long)
    assert list(tmp_path.iterdir()) == []


# --- what cannot be read --------------------------------------------------------------------------------------------


def test_files_that_are_no_caches(model: HookedWhisper, path: Path, tmp_path: Path) -> None:
    with pytest.raises(CacheError, match=r"There is no cache at .*run.safetensors': expected a file that cache.save"):
        WhisperCache.load(path)
    with pytest.raises(CacheError, match="There is no cache at"):
        WhisperCache.load(tmp_path)
    for content in (b"", b"RIFF....WAVE", b"\x80\x04\x95 a pickle", b"\xff" * 64):
        path.write_bytes(content)
        with pytest.raises(CacheError, match="is no whole safetensors file .* cut off, damaged, or is of another kind"):
            WhisperCache.load(path)
    save_file({"x": torch.zeros(2)}, path)
    with pytest.raises(CacheError, match="is a safetensors file, but not a cache"):
        WhisperCache.load(path)
    save_file({"x": torch.zeros(2)}, path, {KEY: "{"})
    with pytest.raises(CacheError, match="is a damaged cache: its description is no JSON"):
        WhisperCache.load(path)
    for about in ('{"format": 99}', "[]", "7", "{}"):
        save_file({"x": torch.zeros(2)}, path, {KEY: about})
        with pytest.raises(CacheError, match="is a cache of format .*reads format 1: update it"):
            WhisperCache.load(path)


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(keep=st.floats(0, 0.999), flips=st.lists(st.tuples(st.floats(0, 1), st.integers(1, 255)), max_size=3))
def test_damaged_files_raise_or_load_but_never_crash(
    tmp_path: Path, keep: float, flips: list[tuple[float, int]]
) -> None:
    path = tmp_path / "run.safetensors"
    run(small_model(), names_filter=["*.hook_q", "hook_mel"]).save(path)
    content = bytearray(path.read_bytes())
    if not flips:
        content = content[: int(keep * len(content))]
    header = 8 + int.from_bytes(content[:8], "little") if len(content) > 8 else len(content)
    for where, flip in flips:
        content[int(where * (min(header, len(content)) - 1))] ^= flip
    path.write_bytes(bytes(content))
    try:
        back = WhisperCache.load(path)
    except CacheError as error:
        assert "run.safetensors" in str(error)
        return
    assert flips  # a file cut short never loads
    assert all(isinstance(value, Tensor) for value in back.values())


def change(path: Path, **fields: Any) -> None:
    """Rewrites the description of a saved cache."""
    with safe_open(path, "pt") as file:
        about = json.loads(file.metadata()[KEY])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    about.update(fields)
    save_file(tensors, path, {KEY: json.dumps(about)})


@pytest.mark.parametrize(
    "fields",
    [
        {"order": ["activation/nothing"]},
        {"order": None},
        {"order": [["activation/hook_mel"]]},
        {"same_as": {"activation/hook_mel": "activation/nothing"}},
        {"same_as": []},
        {"config": {}},
        {"config": {"n_mels": 6}},
        {"run": None},
        {"run": {"surprise": 1, "hooked": []}},
        {"first_frame": "later"},
    ],
)
def test_descriptions_that_do_not_fit(model: HookedWhisper, path: Path, fields: dict[str, Any]) -> None:
    run(model, names_filter="hook_mel").save(path)
    change(path, **fields)
    with pytest.raises(CacheError, match=r"is a damaged cache: its description does not fit its contents"):
        WhisperCache.load(path)


def test_masks_of_the_wrong_kind(model: HookedWhisper, path: Path) -> None:
    run(model).save(path)
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    tensors = load_file(path) | {"run/tokens": torch.zeros(2, 5)}
    save_file(tensors, path, metadata)
    with pytest.raises(
        CacheError, match=r"damaged cache.*tokens is torch.float32 of shape \(2, 5\), expected torch.int64"
    ):
        WhisperCache.load(path)


def test_the_wrong_model(path: Path) -> None:
    run(small_model()).save(path)
    other = small_model(small_config(encoder=StackConfig(1, 2, 16, 24, 10)))
    with pytest.raises(
        CacheError, match=r"activations of small, which the model given \(small\) cannot have made: encoder"
    ):
        WhisperCache.load(path, other)
    other = small_model()
    other.process_weights_()
    with pytest.raises(CacheError, match=r"processing was frozenset\(\), and is frozenset"):
        WhisperCache.load(path, other)
    with pytest.raises(ConfigError, match="Unknown device 'nowhere'"):
        WhisperCache.load(path, device="nowhere")
