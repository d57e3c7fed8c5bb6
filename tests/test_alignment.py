from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small import small_inputs, small_model
from transformers import WhisperForConditionalGeneration
from transformers.models.whisper.generation_whisper import _dynamic_time_warping, _median_filter

from hooked_whisper import CacheError, ConfigError, HookedWhisper, TextError
from hooked_whisper.alignment import SENTENCE_ENDS, align_words, median_filter, token_times, warp
from hooked_whisper.audio import SAMPLE_RATE
from hooked_whisper.checkpoints import load_checkpoint, to_transformers
from hooked_whisper.speech import clips

NEEDED = ["decoder.*.cross_attn.hook_q", "decoder.*.cross_attn.hook_k", "hook_logits"]


# --- the parts, against transformers --------------------------------------------------------------------------------


@settings(deadline=None, max_examples=60)
@given(n=st.integers(1, 12), m=st.integers(1, 30), seed=st.integers(0, 2**32 - 1), ties=st.booleans())
def test_the_path_is_that_of_transformers(n: int, m: int, seed: int, ties: bool) -> None:
    generator = np.random.default_rng(seed)
    cost = generator.integers(-2, 3, (n, m)).astype(float) if ties else generator.normal(size=(n, m))
    ours, theirs = warp(cost), _dynamic_time_warping(cost)
    np.testing.assert_array_equal(ours[0], theirs[0])
    np.testing.assert_array_equal(ours[1], theirs[1])


@settings(deadline=None, max_examples=40)
@given(n=st.integers(2, 7), m=st.integers(2, 7), seed=st.integers(0, 2**32 - 1))
def test_no_monotonic_path_is_cheaper(n: int, m: int, seed: int) -> None:
    cost = np.random.default_rng(seed).normal(size=(n, m)).astype(np.float32).astype(float)

    def cheapest(i: int, j: int) -> float:
        """By trying every path."""
        before = [cheapest(*at) for at in ((i - 1, j - 1), (i - 1, j), (i, j - 1)) if min(at) >= 0]
        return cost[i, j] + (min(before) if before else 0.0)

    rows, columns = warp(cost)
    assert (rows[0], columns[0], rows[-1], columns[-1]) == (0, 0, n - 1, m - 1)
    assert set(np.diff(rows)) | set(np.diff(columns)) <= {0, 1}
    assert (np.diff(rows) + np.diff(columns) >= 1).all()
    assert cost[rows, columns].sum() == pytest.approx(cheapest(n - 1, m - 1), abs=1e-4)


@settings(deadline=None, max_examples=40)
@given(width=st.sampled_from([1, 3, 7]), frames=st.integers(1, 20), seed=st.integers(0, 2**32 - 1))
def test_the_median_filter_is_that_of_transformers(width: int, frames: int, seed: int) -> None:
    x = torch.randn(2, 3, frames, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(median_filter(x, width), _median_filter(x, width), rtol=0, atol=0)


def test_times_part_the_audio_among_the_rows() -> None:
    # Two heads that look at frames 0-19, 20-24 and 25-49 one after the other, and at padding beyond.
    patterns = torch.full((2, 3, 60), 0.01)
    for row, (first, stop) in enumerate([(0, 20), (20, 25), (25, 50)]):
        patterns[:, row, first:stop] = 1.0
    times = token_times(patterns, n_frames=50)
    np.testing.assert_allclose(times, [[0.0, 0.4], [0.4, 0.5], [0.5, 1.0]])
    one = token_times(patterns[:, :1], n_frames=50)
    np.testing.assert_allclose(one, [[0.0, 1.0]])


def test_token_times_refuses_nothing() -> None:
    with pytest.raises(ConfigError, match=r"0 heads, 2 rows and 9 frames"):
        token_times(torch.zeros(0, 2, 9), 9)
    with pytest.raises(ConfigError, match="n_frames=10; expected at least one of each"):
        token_times(torch.zeros(1, 2, 9), 10)
    with pytest.raises(ConfigError, match="odd and positive, got 4"):
        token_times(torch.zeros(1, 2, 9), 9, median_width=4)


# --- real speech ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def reference() -> WhisperForConditionalGeneration:
    """transformers' own whisper-base; only its eager attention gives patterns."""
    return to_transformers(load_checkpoint("openai/whisper-base"), attn_implementation="eager")


@pytest.mark.slow
@pytest.mark.parametrize("language", ["en", "es", "fr", "it", "ru"])
def test_times_of_real_tokens_are_those_of_transformers(
    whisper_base: HookedWhisper, reference: WhisperForConditionalGeneration, language: str
) -> None:
    """transformers times a token by the position that reads it, so the rows here are those.

    `align_words` takes the position that predicts it, as OpenAI does.
    """
    audio = clips(language)[4].load()
    n_frames = len(audio) // 160 // 2
    mel_frames = torch.arange(3000)[None] < 2 * n_frames
    with torch.no_grad():
        out: Any = reference.generate(
            whisper_base.to_mel(audio),
            language=language,
            task="transcribe",
            return_token_timestamps=True,
            attention_mask=mel_frames.long(),
            force_unique_generate_call=True,
        )
        _, cache = whisper_base.run_with_cache(audio, out["sequences"][:1], names_filter=NEEDED)
    heads = whisper_base.cfg.alignment_heads
    patterns = torch.stack([cache[f"decoder.blocks.{i}.cross_attn.hook_pattern"][0, h] for i, h in heads])
    start = cache.prompt_lengths[0]
    times = token_times(patterns[:, start:], n_frames)
    assert len(times) > 8
    theirs = out["token_timestamps"][0, start:].numpy()
    np.testing.assert_allclose(times[:, 0], theirs, atol=0.0201)  # one frame, where two paths cost the same
    assert (np.abs(times[:, 0] - theirs) < 1e-4).mean() > 0.85


@pytest.fixture(scope="module")
def sentences() -> list[tuple[torch.Tensor, float, float]]:
    """English sentences, each with the times of its first and last sound."""
    found = []
    for clip in clips("en")[:5]:
        loud = (clip.load().abs() > 0.02).nonzero()
        found.append((clip.load(), loud[0].item() / SAMPLE_RATE, loud[-1].item() / SAMPLE_RATE))
    return found


def test_words_lie_where_they_are_said(
    whisper_base: HookedWhisper, sentences: list[tuple[torch.Tensor, float, float]]
) -> None:
    """Sentences with half a second of silence between them: each begins and ends where its clip does."""
    silence, at, spans = torch.zeros(SAMPLE_RATE // 2), 0.0, []
    for wave, first, last in sentences:
        spans.append((at + first, at + last))
        at += len(wave) / SAMPLE_RATE + 0.5
    audio = torch.cat([part for wave, _, _ in sentences for part in (wave, silence)])
    with torch.no_grad():
        _, cache = whisper_base.run_with_cache(audio, language="en", names_filter=NEEDED)
    words = align_words(whisper_base, cache)
    assert "".join(word.text for word in words).strip() == cache.text.strip()
    assert all(word.start <= word.end for word in words)
    assert all(before.end <= after.start for before, after in pairwise(words))
    assert all(0 < (word.probability or 0) <= 1 for word in words)
    tokens = cache.clip_tokens(0)
    assert all([tokens[p] for p in word.positions] == word.tokens for word in words)
    last = [i for i, word in enumerate(words) if word.text[-1] in SENTENCE_ENDS]
    starts = [words[i + 1].start for i in last[:-1]]
    ends = [words[i].end for i in last]
    assert len(ends) == len(spans)
    np.testing.assert_allclose(starts, [start for start, _ in spans[1:]], atol=0.25)
    np.testing.assert_allclose(ends, [end for _, end in spans], atol=0.4)


def test_a_batch_gives_each_clip_its_own_words(whisper_base: HookedWhisper) -> None:
    audio = [clip.load() for clip in (clips("en")[1], clips("fr")[1])]
    with torch.no_grad():
        _, cache = whisper_base.run_with_cache(audio, language=["en", "fr"], names_filter=NEEDED)
        _, alone = whisper_base.run_with_cache(audio[1], language="fr", names_filter=NEEDED, remove_batch_dim=True)
    assert align_words(whisper_base, cache, 0)[0].text == " The"
    both, one = align_words(whisper_base, cache, 1), align_words(whisper_base, alone)
    assert [(word.text, word.start, word.end) for word in both] == [(word.text, word.start, word.end) for word in one]


def test_timestamp_tokens_are_in_no_word(whisper_base: HookedWhisper) -> None:
    clip = clips("en")[1]
    with torch.no_grad():
        _, cache = whisper_base.run_with_cache(clip.load(), language="en", timestamps=True, names_filter=NEEDED)
    words = align_words(whisper_base, cache)
    assert "<|" in cache.text
    assert "".join(word.text for word in words) == " The leader has left the conference."


def test_without_alignment_heads_the_error_says_so(whisper_base: HookedWhisper) -> None:
    model = small_model()
    mel, tokens = small_inputs(model.cfg)
    _, cache = model.run_with_cache(mel, tokens)
    with pytest.raises(ConfigError, match=r"small names no alignment heads.*set model.cfg.alignment_heads"):
        align_words(model, cache)
    model.cfg.alignment_heads = [(0, 0)]
    with pytest.raises(TextError, match="this model has none"):
        align_words(model, cache)


def test_missing_cross_attention_is_named(whisper_base: HookedWhisper) -> None:
    with torch.no_grad():
        _, cache = whisper_base.run_with_cache(
            clips("en")[1].load(), "The leader", language="en", names_filter="hook_logits"
        )
    with pytest.raises(CacheError, match=r"decoder.blocks.3.cross_attn.hook_pattern.*names_filter"):
        align_words(whisper_base, cache)


def test_no_text_has_no_words(whisper_base: HookedWhisper) -> None:
    with torch.no_grad():
        _, cache = whisper_base.run_with_cache(clips("en")[1].load(), "", language="en", names_filter=NEEDED)
    assert align_words(whisper_base, cache) == []
