"""The three vocabularies, against the generation_config.json of OpenAI's hub repositories."""

from __future__ import annotations

from pathlib import Path

import torch
from checkpoint_files import (
    openai_content,
    random_whisper,
    write_ctranslate2,
)

from hooked_whisper.checkpoints import load_checkpoint


def test_english_only_settings(tmp_path: Path) -> None:
    """Against generation_config.json of openai/whisper-base.en on the hub."""
    torch.save(openai_content(random_whisper(d_vocab=51864, encoder_ffn=32, decoder_ffn=32)), tmp_path / "x.en.pt")
    checkpoint = load_checkpoint(tmp_path / "x.en.pt", local_files_only=True)
    settings = checkpoint.generation_config.to_dict()
    assert (settings["eos_token_id"], settings["decoder_start_token_id"]) == (50256, 50257)
    assert (settings["no_timestamps_token_id"], settings["prev_sot_token_id"]) == (50362, 50360)
    assert settings["begin_suppress_tokens"] == [220, 50256]
    assert settings["suppress_tokens"][-8:] == [47282, 49146, 50257, 50357, 50358, 50359, 50360, 50361]
    assert settings["is_multilingual"] is False
    assert not {"lang_to_id", "task_to_id", "task"} & settings.keys()
    assert checkpoint.tokenizer is None
    assert "no tokenizer: none is beside it, and openai/whisper-tiny.en is out of reach" in checkpoint.source


def test_large_v3_settings(tmp_path: Path) -> None:
    """Against generation_config.json of openai/whisper-large-v3 on the hub: one language more, all else shifted."""
    checkpoint = load_checkpoint(write_ctranslate2(random_whisper(d_vocab=51866), tmp_path / "v3"))
    settings = checkpoint.generation_config.to_dict()
    assert (settings["eos_token_id"], settings["decoder_start_token_id"]) == (50257, 50258)
    assert (settings["no_timestamps_token_id"], settings["prev_sot_token_id"]) == (50364, 50362)
    assert settings["task_to_id"] == {"transcribe": 50360, "translate": 50359}
    assert (len(settings["lang_to_id"]), settings["lang_to_id"]["<|yue|>"]) == (100, 50358)
    assert settings["suppress_tokens"][-7:] == [50254, 50258, 50359, 50360, 50361, 50362, 50363]
