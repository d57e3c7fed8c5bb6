"""Rollout: by hand, its invariants, and what a broken path shows."""

from __future__ import annotations

import sys

import pytest
import torch
from small import small_inputs, small_model

from hooked_whisper import AnalysisError, HookedWhisper, MissingExtraError, WhisperCache
from hooked_whisper.analysis.rollout import attention_rollout
from hooked_whisper.speech import clips


def small_cache(**options: object) -> WhisperCache:
    model = small_model()
    return model.run_with_cache(*small_inputs(model.cfg), **options)[1]


def mixed(cache: WhisperCache, attention: str, residual: float = 0.5) -> torch.Tensor:
    pattern = cache[f"{attention}.hook_pattern"][1].mean(0).float()
    return residual * torch.eye(len(pattern)) + (1 - residual) * pattern


def test_encoder_is_the_product_of_its_layers() -> None:
    cache = small_cache()
    first, second = (mixed(cache, f"encoder.blocks.{layer}.attn", 0.3) for layer in (0, 1))
    found = attention_rollout(cache, "encoder", clip=1, residual=0.3)
    torch.testing.assert_close(found.frames, second @ first)
    assert found.tokens is None


def test_decoder_by_hand() -> None:
    cache = small_cache()
    # One matrix over tokens and frames together: each layer mixes tokens, then brings in frames.
    n_pos, n_frames = 5, 10
    rolled = torch.eye(n_pos + n_frames)
    for layer in range(3):
        own = torch.eye(n_pos + n_frames)
        own[:n_pos, :n_pos] = mixed(cache, f"decoder.blocks.{layer}.attn")
        cross = torch.eye(n_pos + n_frames)
        cross[:n_pos] *= 0.5
        cross[:n_pos, n_pos:] = 0.5 * cache[f"decoder.blocks.{layer}.cross_attn.hook_pattern"][1].mean(0).float()
        rolled = cross @ own @ rolled
    found = attention_rollout(cache, "decoder", clip=1, to_input=False)
    torch.testing.assert_close(found.tokens, rolled[:n_pos, :n_pos])
    torch.testing.assert_close(found.frames, rolled[:n_pos, n_pos:])
    through = attention_rollout(cache, "decoder", clip=1)
    torch.testing.assert_close(through.frames, found.frames @ attention_rollout(cache, "encoder", clip=1).frames)


@pytest.mark.parametrize("fusion", ["mean", "max", "min"])
@pytest.mark.parametrize("residual", [0.0, 0.5, 0.9])
def test_rows_are_shares_and_nothing_comes_from_the_future(fusion: str, residual: float) -> None:
    cache = small_cache()
    heard = attention_rollout(cache, "encoder", fusion=fusion, residual=residual)
    read = attention_rollout(cache, "decoder", fusion=fusion, residual=residual)
    torch.testing.assert_close(heard.frames.sum(1), torch.ones(10))
    torch.testing.assert_close(read.frames.sum(1) + read.tokens.sum(1), torch.ones(5))
    assert float(heard.frames.min()) >= 0 and float(read.tokens.min()) >= 0
    assert not read.tokens.triu(1).any()


def test_frames_that_no_head_looks_at_are_behind_nothing() -> None:
    """An intervention: with cross-attention and the encoder's attention kept to the first frames, so is the rollout."""

    def only_first(pattern: torch.Tensor, hook: object) -> torch.Tensor:
        pattern = pattern.clone()
        pattern[..., 3:] = 0
        return pattern / pattern.sum(-1, keepdim=True)

    hooks = [
        ("decoder.blocks.*.cross_attn.hook_pattern", only_first),
        ("encoder.blocks.*.attn.hook_pattern", only_first),
    ]
    cache = small_cache(fwd_hooks=hooks)
    found = attention_rollout(cache, "decoder")
    assert float(found.frames[:, :3].min()) > 0
    assert not found.frames[:, 3:].any()


def test_real_speech_is_read_where_it_is_said(shared_whisper_base: HookedWhisper) -> None:
    clip = clips("en", "vm-sorry")[0]
    names = ["decoder.blocks.*.cross_attn.hook_pattern", "decoder.blocks.*.attn.hook_pattern"]
    _, cache = shared_whisper_base.run_with_cache(clip.path, clip.text, language="en", names_filter=names)
    found = attention_rollout(cache, "decoder", to_input=False)
    assert found.labels[4].strip() == cache.str_tokens()[4].strip()
    torch.testing.assert_close(found.in_padding, found.frames[:, cache.n_frames() :].sum(1))
    axes = found.plot().axes[0]
    assert len(axes.get_yticklabels()) == len(found.labels)
    assert axes.images[0].get_array().shape == (len(found.labels), cache.n_frames())


def test_what_cannot_be_rolled_out_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    cache = small_cache()
    for options, message in (
        ({"stack": "cross"}, "Unknown stack 'cross': expected 'encoder' or 'decoder'"),
        ({"fusion": "sum"}, "Unknown fusion 'sum': expected mean, max, min"),
        ({"residual": 1.0}, "residual=1.0 is no share"),
        ({"clip": 2}, "There is no clip 2: there are 2"),
        ({"clip": -1}, "There is no clip -1: there are 2"),
    ):
        with pytest.raises(AnalysisError, match=message):
            attention_rollout(cache, **{"stack": "encoder", **options})
    with pytest.raises(AnalysisError, match="over the whole window"):
        attention_rollout(cache.seconds(0, 0.1), "encoder")
    rolled = attention_rollout(cache, "encoder")
    assert rolled.plot().axes[0].images[0].get_array().shape == (10, 10)
    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingExtraError, match=r"pip install 'hooked-whisper\[analysis\]'"):
        rolled.plot()
