"""`generate`, `transcribe` and `detect_language` as methods of the model."""

from __future__ import annotations

import pytest
import torch
from small import small_model

from hooked_whisper import AudioError, GenerationError, HookedWhisper, TextError
from hooked_whisper.speech import clips


def test_generate_is_transformers_on_any_audio(whisper_base: HookedWhisper) -> None:
    clip = clips("fr", key="vm-sorry")[0]
    ours = whisper_base.generate(clip.path, language="fr", max_new_tokens=6)
    mel = whisper_base.to_mel(clip.load())
    assert torch.equal(ours, whisper_base.generation_adapter().generate(mel, language="fr", max_new_tokens=6))
    assert torch.equal(ours, whisper_base.generate(clip.load().numpy(), language="fr", max_new_tokens=6))
    more = whisper_base.generate(
        clip.path, language="fr", max_new_tokens=6, num_beams=2, return_dict_in_generate=True, output_scores=True
    )
    assert more.sequences.shape[0] == 1 and len(more.scores) >= 1


def test_generate_lets_hooks_edit_what_is_written(whisper_base: HookedWhisper) -> None:
    clip = clips("en", key="vm-sorry")[0]
    plain = whisper_base.generate(clip.path, language="en", max_new_tokens=5)

    call = whisper_base.tokenizer.to_tokens(" call")[0]

    def only_one_word(logits: torch.Tensor, hook: object) -> torch.Tensor:
        return torch.full_like(logits, -1e4).index_fill(-1, torch.tensor([call]), 0.0)

    with whisper_base.hooks(fwd_hooks=[("hook_logits", only_one_word)]):
        edited = whisper_base.generate(clip.path, language="en", max_new_tokens=5)
    assert edited.tolist() == [[call] * 5] != plain.tolist()


def test_what_generate_refuses(whisper_base: HookedWhisper) -> None:
    path = clips("en")[0].path
    with pytest.raises(GenerationError, match="refused these options.*beems"):
        whisper_base.generate(path, language="en", beems=5)
    with pytest.raises(AudioError, match="transcribe"):
        whisper_base.generate(torch.zeros(31 * 16_000))
    with pytest.raises(GenerationError, match="no generation configuration"):
        small_model().generation_adapter()
    with pytest.raises(TextError, match="no tokenizer"):
        small_model(dtype=torch.float32).detect_language(torch.zeros(1, 6, 20))


def test_languages_of_real_speech(whisper_base: HookedWhisper) -> None:
    chosen = [clips(language, key="vm-sorry")[0] for language in ("es", "it")]
    found = whisper_base.detect_language([clip.path for clip in chosen])
    assert [next(iter(row)) for row in found] == ["es", "it"]
    assert all(abs(sum(row.values()) - 1) < 1e-4 for row in found)
