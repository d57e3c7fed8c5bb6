"""Shorter windows share weights, hear short clips alike, and refuse what cannot be."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from small import ENCODER, small_config, small_model

from hooked_whisper import HookedWhisper
from hooked_whisper.errors import ConfigError
from hooked_whisper.speech import clips
from hooked_whisper.windows import with_window


def test_the_same_weights_and_the_same_words(whisper_base: HookedWhisper) -> None:
    shorter = with_window(whisper_base, 5)
    assert shorter.cfg.n_frames == 250 and whisper_base.cfg.n_frames == 1500
    names = [name for name, _ in shorter.named_parameters() if name != "encoder.W_pos"]
    assert all(shorter.get_parameter(n).data_ptr() == whisper_base.get_parameter(n).data_ptr() for n in names)
    assert shorter.decoder.unembed.weight is shorter.decoder.W_E
    clip = next(clip for clip in clips("en") if 2 < clip.seconds < 4)
    assert shorter.encode(clip.path).shape == (1, 250, 512)
    assert shorter.transcribe(clip.path).text == whisper_base.transcribe(clip.path).text
    assert shorter.source == whisper_base.source


@torch.no_grad()
def test_a_window_of_its_own_length_changes_nothing() -> None:
    cfg = small_config(encoder=replace(ENCODER, n_ctx=100))
    for process in (False, True):
        model = small_model(cfg)
        if process:
            model.process_weights_()
        mel = torch.randn(2, cfg.n_mels, cfg.n_mel_frames, dtype=torch.float64)
        tokens = torch.tensor([[1, 2, 3], [4, 5, 6]])
        same = with_window(model, 2)
        assert torch.equal(same.decode(tokens, same.encode_mel(mel)), model.decode(tokens, model.encode_mel(mel)))
        assert (same.decoder.unembed.weight is same.decoder.W_E) is not process
        half = with_window(model, 1)
        assert torch.equal(half.encoder.W_pos, model.encoder.W_pos[:50])


def test_windows_that_cannot_be(whisper_base: HookedWhisper) -> None:
    for seconds in (0, 31):
        with pytest.raises(ConfigError, match=f"A window of {seconds} s: expected 1 to 30"):
            with_window(whisper_base, seconds)
