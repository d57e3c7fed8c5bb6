"""`load_checkpoint`: every way in leads to the same weights, and every wrong way says what is wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_files import (
    IN_SHARDS,
    assert_same_model,
    change_json,
    ctranslate2_variables,
    hub_cache,
    model_bin,
    openai_content,
    random_whisper,
    write_bin,
    write_ctranslate2,
)
from transformers import (
    WhisperForConditionalGeneration,
)

from hooked_whisper.checkpoints import load_checkpoint, to_transformers
from hooked_whisper.errors import CheckpointError


@pytest.fixture
def model() -> WhisperForConditionalGeneration:
    return random_whisper()


@pytest.fixture
def folder(model: WhisperForConditionalGeneration, tmp_path: Path) -> Path:
    model.save_pretrained(tmp_path / "mine")
    return tmp_path / "mine"


@pytest.mark.parametrize("way", ["safetensors", "shards", "bin", "bin shards", "openai", "ctranslate2", "live"])
def test_each_format_gives_the_same_model(way: str, tmp_path: Path) -> None:
    model = random_whisper(encoder_ffn=32, decoder_ffn=32, decoder_layers=3, n_mels=128)
    path = tmp_path / "my-whisper"
    source: Path | WhisperForConditionalGeneration = path
    if way == "safetensors":
        model.save_pretrained(path, max_shard_size="1GB")
    elif way == "shards":
        model.save_pretrained(path, max_shard_size=IN_SHARDS)
        assert len(list(path.glob("*.safetensors"))) > 2
    elif way.startswith("bin"):
        write_bin(model, path, sharded=way == "bin shards")
    elif way == "openai":
        source = tmp_path / "my-whisper.pt"
        torch.save(openai_content(model), source)
    elif way == "ctranslate2":
        write_ctranslate2(model, path)
    else:
        source = model
    checkpoint = load_checkpoint(source)
    assert_same_model(checkpoint, model)
    assert checkpoint.config.model_name == ("whisper" if way == "live" else "my-whisper")
    expected = {"live": "live WhisperForConditionalGeneration", "openai": "OpenAI checkpoint"}.get(way, str(path))
    assert expected in checkpoint.source
    # A string is as good as a path.
    if isinstance(source, Path):
        assert_same_model(load_checkpoint(str(source)), model)


def test_the_copy_is_a_copy(model: WhisperForConditionalGeneration) -> None:
    checkpoint = load_checkpoint(model)
    before = {name: tensor.clone() for name, tensor in checkpoint.state_dict.items()}
    exported = to_transformers(checkpoint)
    with torch.no_grad():
        for parameter in (*model.parameters(), *exported.parameters()):
            parameter.zero_()
    checkpoint.generation_config.max_length = 7
    assert all(torch.equal(checkpoint.state_dict[name], tensor) for name, tensor in before.items())
    assert model.generation_config.max_length != 7
    assert exported.generation_config.max_length != 7


def test_tensors_outlive_the_file(folder: Path, model: WhisperForConditionalGeneration) -> None:
    checkpoint = load_checkpoint(folder)
    (folder / "model.safetensors").write_bytes(b"")
    assert_same_model(checkpoint, model)


def test_a_transformers_folder_with_a_ctranslate2_file_is_transformers(
    folder: Path, model: WhisperForConditionalGeneration
) -> None:
    (folder / "model.bin").write_bytes(model_bin(ctranslate2_variables(random_whisper())))
    assert_same_model(load_checkpoint(folder), model)


def test_alignment_heads_the_decoder_lacks_are_left_out_with_a_warning(folder: Path) -> None:
    change_json(folder / "generation_config.json", alignment_heads=[[0, 3], [7, 1], [0, 4]])
    with pytest.warns(
        UserWarning, match=r"alignment heads \[\(0, 4\), \(7, 1\)\]; its decoder has 1 layers of 4 heads"
    ):
        checkpoint = load_checkpoint(folder)
    assert checkpoint.config.alignment_heads == [(0, 3)]
    assert checkpoint.generation_config.alignment_heads == [[0, 3]]  # type: ignore[attr-defined]


@pytest.mark.parametrize("heads", [[3], [[0, 1, 2]], "all", [[0, -1]], [[0, "1"]], 7])
def test_alignment_heads_that_are_no_pairs_are_refused(tmp_path: Path, heads: Any) -> None:
    write_ctranslate2(random_whisper(), tmp_path / "ct2", alignment_heads=heads)
    with pytest.raises(CheckpointError, match="alignment_heads must be pairs of a layer and a head"):
        load_checkpoint(tmp_path / "ct2")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("whisper-bas", "no checkpoint 'whisper-bas'.* Did you mean 'whisper-base'"),
        ("largev3", "no checkpoint 'largev3'.* Did you mean .*'large-v3'"),
        ("gpt2-of-speech-and-more", r"expected an existing path, a hub id such as 'openai/whisper-base', or a short"),
        ("./nowhere", r"no checkpoint '\./nowhere': expected an existing path"),
        ("some/where/else", "no checkpoint 'some/where/else': expected an existing path"),
        ("models/tiny.pt", "no checkpoint 'models/tiny.pt': expected an existing path"),
        ("open ai/whisper", "neither an existing path nor the id of a hub repository"),
    ],
)
def test_unknown_names(name: str, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(name)


def test_a_revision_of_whisper_base_is_the_hubs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    model = random_whisper()
    hub_cache(tmp_path, "openai/whisper-base", model.save_pretrained)
    for options in ({"revision": "main"}, {"bundled": False}):
        checkpoint = load_checkpoint("base", **options)  # type: ignore[arg-type]
        assert_same_model(checkpoint, model)
        assert checkpoint.source.startswith("openai/whisper-base ")
        assert "from the hub's cache" in checkpoint.source


def test_a_path_comes_before_a_name(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in transformers; `source` says which it was."""
    monkeypatch.chdir(folder.parent)
    folder.rename(folder.parent / "base")
    assert "transformers checkpoint base" in load_checkpoint("base").source


def test_options_that_have_no_meaning(folder: Path, model: WhisperForConditionalGeneration) -> None:
    for source in (folder, model):
        with pytest.raises(CheckpointError, match="The option revision has no meaning for"):
            load_checkpoint(source, revision="main")
        with pytest.raises(CheckpointError, match="The option bundled=True has no meaning for"):
            load_checkpoint(source, bundled=True)


def test_folders_that_hold_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"is no checkpoint: expected transformers' config\.json .*found nothing"):
        load_checkpoint(tmp_path)
    (tmp_path / "large-v2.pt").touch()
    with pytest.raises(CheckpointError, match=r"To load OpenAI's format, give the file .*large-v2\.pt"):
        load_checkpoint(tmp_path)
    (tmp_path / "config.json").write_text("[1]")
    with pytest.raises(CheckpointError, match="holds a list, expected a JSON object"):
        load_checkpoint(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": ')
    with pytest.raises(CheckpointError, match="is not JSON"):
        load_checkpoint(tmp_path)
    (tmp_path / "config.json").write_text("[" * 200_000)
    with pytest.raises(CheckpointError, match="is not JSON"):
        load_checkpoint(tmp_path)


def test_one_file_of_a_folder(folder: Path) -> None:
    with pytest.raises(CheckpointError, match=r"is one file of a checkpoint: give its folder, .*mine"):
        load_checkpoint(folder / "model.safetensors")


def test_a_name_that_no_file_system_holds() -> None:
    with pytest.raises(CheckpointError, match="'a{60}…' can be neither a path nor a name on the hub: .*too long"):
        load_checkpoint("a" * 5000)
