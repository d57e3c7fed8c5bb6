"""transformers checkpoints: folders, the hub and its cache, generation settings."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_files import (
    change_json,
    random_whisper,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    GenerationConfig,
)

from hooked_whisper.checkpoints import load_checkpoint
from hooked_whisper.errors import CheckpointError
from hooked_whisper.special_tokens import generation_settings


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A whole transformers checkpoint."""
    random_whisper().save_pretrained(tmp_path / "mine")
    return tmp_path / "mine"


def test_safetensors_are_preferred(folder: Path) -> None:
    torch.save({}, folder / "pytorch_model.bin")
    checkpoint = load_checkpoint(folder)
    assert "model.safetensors" in checkpoint.source


def test_a_folders_own_settings_win(folder: Path) -> None:
    change_json(folder / "generation_config.json", suppress_tokens=[1, 2], max_length=9, num_beams=3)
    settings = load_checkpoint(folder).generation_config
    assert (settings.suppress_tokens, settings.max_length, settings.num_beams) == ([1, 2], 9, 3)


def test_missing_settings_are_the_vocabularys(tmp_path: Path) -> None:
    model = random_whisper(d_vocab=51865)
    model.generation_config = GenerationConfig(eos_token_id=50257, suppress_tokens=[5])
    expected = generation_settings(51865)
    for source in (model, tmp_path / "mine"):
        model.save_pretrained(tmp_path / "mine")
        settings = load_checkpoint(source).generation_config
        for name in ("lang_to_id", "task_to_id", "no_timestamps_token_id", "prev_sot_token_id", "is_multilingual"):
            assert getattr(settings, name) == expected[name]
        assert settings.suppress_tokens == [5]
    (tmp_path / "mine" / "generation_config.json").unlink()
    assert load_checkpoint(tmp_path / "mine").generation_config.suppress_tokens == expected["suppress_tokens"]


@pytest.mark.parametrize(
    ("forced", "task", "kept"),
    [
        ([[1, None], [2, 50359]], "transcribe", None),
        ([[1, 50259], [2, 50359]], None, [[1, 50259], [2, 50359]]),
        (None, "transcribe", None),
    ],
)
def test_deprecated_forced_tokens_become_the_task(forced: Any, task: str | None, kept: Any) -> None:
    model = random_whisper(d_vocab=51865)
    model.generation_config.forced_decoder_ids = forced  # type: ignore[attr-defined]
    settings = load_checkpoint(model).generation_config
    assert getattr(settings, "task", None) == task
    assert getattr(settings, "forced_decoder_ids", None) == kept


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", r"generation_config\.json holds a list"),
        ("{", r"generation_config\.json is not JSON"),
        ('{"max_length": "long"}', "'max_length' in .* must be a whole number, got 'long'"),
        ('{"pad_token_id": -1}', "'pad_token_id' in .* must be a whole number, got -1"),
        ('{"eos_token_id": [1, "a"]}', "'eos_token_id' in .* must be a token or a list of them"),
        ('{"suppress_tokens": 7}', "'suppress_tokens' in .* must be a list of tokens, got 7"),
        ('{"lang_to_id": {"<|en|>": null}}', "'lang_to_id' in .* must be a table of tokens"),
        ('{"is_multilingual": "yes"}', "'is_multilingual' in .* must be true or false"),
        ('{"cache_implementation": "on paper"}', r"generation_config\.json is not valid"),
    ],
)
def test_generation_settings_that_are_broken(folder: Path, content: str, message: str) -> None:
    (folder / "generation_config.json").write_text(content)
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(folder)


def test_a_file_of_the_wrong_size(folder: Path) -> None:
    with (folder / "config.json").open("r+b") as file:
        file.truncate(2**40)  # a hole: it takes no disk
    with pytest.raises(CheckpointError, match=r"config\.json has 1,099,511,627,776 bytes, expected at most"):
        load_checkpoint(folder)


def test_missing_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"holds no weights: expected one of model\.safetensors, .* found config"):
        load_checkpoint(folder)
    (folder / "adapter_config.json").touch()
    with pytest.raises(CheckpointError, match="It holds an adapter: merge it"):
        load_checkpoint(folder)


@pytest.mark.parametrize(
    ("weight_map", "message"),
    [
        (None, "has no 'weight_map'"),
        ({}, "has no 'weight_map'"),
        ({"a": "../../etc/passwd"}, "names the file '../../etc/passwd', expected a plain file name"),
        ({"a": "/etc/passwd"}, "expected a plain file name"),
        ({"a": "..\\x.safetensors"}, "expected a plain file name"),
        ({"a": 3}, "names the file 3, expected a plain"),
        ({"a": "none.safetensors"}, "names the file 'none.safetensors', which is not there"),
    ],
)
def test_an_index_that_leads_astray(folder: Path, weight_map: Any, message: str) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"activation_function": "relu"}, "uses the activation 'relu', expected 'gelu'"),
        ({"scale_embedding": True}, "sets scale_embedding=True, expected False"),
        ({"model_type": "wav2vec2"}, "describes a model of type 'wav2vec2', expected 'whisper'"),
        ({"d_model": 16}, r"has shape \(8, 80, 3\), expected \(16, 80, 3\)"),
        ({"decoder_layers": 2}, r"lacks 24 of \d+ tensors: decoder.layers.1.self_attn.q_proj.weight.* and 19 more"),
        ({"encoder_layers": 1}, r"holds 15 tensors that Whisper does not have: encoder.layers.1."),
        ({"encoder_layers": 10**9}, "configured for 1000000001 layers and holds"),
        ({"encoder_layers": -1}, "n_layers must be a positive whole number, got -1"),
        ({"encoder_attention_heads": 3}, "cannot be split over n_heads=3"),
        ({"d_model": "wide"}, "is not a valid Whisper configuration"),
        ({"vocab_size": 10**12}, r"has shape \(51, 8\), expected \(1000000000000, 8\)"),
    ],
)
def test_configurations_that_do_not_fit(folder: Path, change: dict[str, Any], message: str) -> None:
    change_json(folder / "config.json", **change)
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(folder)


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_safetensors_cut_or_changed_load_or_are_refused(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.getbasetemp() / "fuzzed"
    if not folder.exists():
        random_whisper().save_pretrained(folder)
        (folder / "model.safetensors").rename(folder / "whole")
    content = bytearray((folder / "whole").read_bytes())
    header = int.from_bytes(content[:8], "little")
    cut = data.draw(st.none() | st.integers(0, len(content) - 1))
    for _ in range(data.draw(st.integers(0 if cut is not None else 1, 3))):
        content[data.draw(st.integers(0, header + 8))] = data.draw(st.integers(0, 255))
    (folder / "model.safetensors").write_bytes(content[:cut])
    with pytest.raises(CheckpointError) if cut is not None else suppress(CheckpointError):  # any other error fails
        load_checkpoint(folder)
