"""Transcripts: error rate on real prompts, long audio, segments and words with times, batches, options."""

from __future__ import annotations

import json
from typing import Any

import jiwer
import pytest
import torch
from transformers import WhisperFeatureExtractor
from transformers.models.whisper.english_normalizer import EnglishTextNormalizer

from hooked_whisper import AudioError, ConfigError, HookedWhisper, LanguageError, Transcript
from hooked_whisper.checkpoints import load_checkpoint, to_transformers
from hooked_whisper.speech import clips

PAUSE = torch.zeros(12_000)  # 0.75 s between prompts


def joined(language: str, seconds: float) -> torch.Tensor:
    """Prompts one after another until they last `seconds`."""
    parts: list[torch.Tensor] = []
    while sum(len(part) for part in parts) < seconds * 16_000:
        for clip in clips(language=language):
            parts += [clip.load(), PAUSE]
    return torch.cat(parts)[: int(seconds * 16_000)]


@pytest.mark.slow
def test_english_prompts_read_as_transformers_reads_them(whisper_base: HookedWhisper) -> None:
    """`python -m benchmarks.word_errors` has the error rates, of these and of many more prompts."""
    chosen = clips(language="en")[:8]
    said = whisper_base.transcribe([clip.path for clip in chosen], language="en")
    assert isinstance(said, list)
    mel = whisper_base.to_mel([clip.path for clip in chosen])
    found = to_transformers(load_checkpoint("openai/whisper-base")).generate(mel, language="en", task="transcribe")
    assert whisper_base.tokenizer is not None
    theirs = whisper_base.tokenizer.hf.batch_decode(found, skip_special_tokens=True)
    assert [transcript.text for transcript in said] == [text.strip() for text in theirs]
    normal = EnglishTextNormalizer({})
    assert jiwer.wer([normal(clip.text) for clip in chosen], [normal(transcript.text) for transcript in said]) <= 0.1


@pytest.mark.slow
def test_three_windows_are_token_for_token_transformers_long_form(whisper_base: HookedWhisper) -> None:
    audio = joined("en", 65.0)  # benchmarks.parity takes 130 s
    ours = whisper_base.transcribe(audio, language="en")
    assert isinstance(ours, Transcript)
    features = WhisperFeatureExtractor()(
        audio.numpy(), sampling_rate=16_000, truncation=False, padding="longest", return_tensors="pt"
    )
    theirs = to_transformers(load_checkpoint("openai/whisper-base")).generate(
        features.input_features, language="en", task="transcribe", return_timestamps=True, return_segments=True
    )
    eot = whisper_base.tokenizer.eot
    expected = [token for token in theirs["sequences"][0].tolist() if token != eot]
    assert ours.tokens == expected
    assert ours.seconds == 65.0
    starts = [segment.start for segment in ours.segments]
    assert starts == sorted(starts) and len(starts) > 5
    assert ours.segments[-1].end <= 65.0


def test_words_have_times_inside_the_clip_and_in_order(whisper_base: HookedWhisper) -> None:
    audio = torch.cat([torch.zeros(32_000), clips(language="en", key=None)[1].load()])  # speech begins after 2 s
    said = whisper_base.transcribe(audio, language="en", word_timestamps=True)
    assert isinstance(said, Transcript) and said.words is not None
    assert "".join(word.text for word in said.words).strip() == said.text
    assert said.words[0].end > 1.8
    for before, after in zip(said.words, said.words[1:], strict=False):
        assert before.start <= before.end <= after.start + 1e-6
    assert said.words[-1].end <= said.seconds + 0.02
    json.dumps(said.to_dict())


def test_a_list_gives_a_list_and_detects_each_language(whisper_base: HookedWhisper) -> None:
    chosen = [clips(language=language)[5] for language in ("ru", "it", "en")]
    said = whisper_base.transcribe([clip.path for clip in chosen], batch_size=2)
    assert isinstance(said, list)
    assert [t.language for t in said] == ["ru", "it", "en"]
    alone = whisper_base.transcribe(chosen[1].path)
    assert isinstance(alone, Transcript) and alone.tokens == said[1].tokens
    assert [s.start for s in alone.segments] == [0.0] and alone.words is None
    marked = whisper_base.transcribe(chosen[1].path, timestamps=True)
    assert isinstance(marked, Transcript) and marked.tokens[0] == whisper_base.tokenizer.timestamp_begin


def test_hooks_reach_the_transcript(whisper_base: HookedWhisper) -> None:
    clip = clips(language="en")[3]
    plain = whisper_base.transcribe(clip.path, language="en")

    def silence(frames: Any, hook: Any) -> Any:
        return torch.zeros_like(frames)

    with whisper_base.hooks(fwd_hooks=[("encoder.hook_out", silence)]):
        edited = whisper_base.transcribe(clip.path, language="en", max_new_tokens=20)
    assert plain.text != edited.text


def test_what_is_refused(whisper_base: HookedWhisper) -> None:
    path = clips(language="en")[0].path
    with pytest.raises(LanguageError, match="elvish"):
        whisper_base.transcribe(path, language="elvish")
    with pytest.raises(LanguageError, match="Unknown task"):
        whisper_base.transcribe(path, task="sing")
    for options, message in (
        ({"batch_size": 0}, "batch_size must be a whole number of at least 1, got 0"),
        ({"num_beams": 0}, "num_beams must be a whole number of at least 1, got 0"),
        ({"max_new_tokens": -3}, "max_new_tokens must be a whole number of at least 1, got -3"),
        ({"temperature": []}, r"temperature is a number of at least 0, or a sequence of them, got \[\]"),
        ({"temperature": float("nan")}, "temperature is a number of at least 0, .* got nan"),
        ({"compression_ratio_threshold": float("inf")}, "compression_ratio_threshold must be a number, got inf"),
        ({"no_speech_threshold": 0.6}, "works only together with logprob_threshold: pass both"),
        ({"logprob_threshold": -1.0}, "pass temperature=FALLBACK_TEMPERATURES"),
        ({"prompt": "then <|endoftext|>"}, r"holds the special token <\|endoftext\|>: expected plain text"),
    ):
        with pytest.raises(ConfigError, match=message):
            whisper_base.transcribe(path, **options)
    with pytest.raises(AudioError, match="transcribe"):
        whisper_base(torch.zeros(31 * 16_000))  # forward says who takes longer audio
    with pytest.raises(TypeError, match="beam"):
        whisper_base.transcribe(path, beam=5)


def test_words_need_alignment_heads(whisper_base: HookedWhisper) -> None:
    bare = HookedWhisper(whisper_base.cfg.with_options(alignment_heads=[]), whisper_base.tokenizer)
    bare.load_state_dict(whisper_base.state_dict())
    bare.generation_config = whisper_base.generation_config
    with pytest.raises(ConfigError, match="names no alignment heads"):
        bare.transcribe(clips(language="en")[0].path, language="en", word_timestamps=True, max_new_tokens=2)
