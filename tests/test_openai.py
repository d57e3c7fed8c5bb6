"""OpenAI's `.pt`: the same weights under other names."""

from __future__ import annotations

import io
from collections import OrderedDict
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_files import (
    openai_content,
    random_whisper,
    saved,
    weights,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hooked_whisper.checkpoints import load_checkpoint
from hooked_whisper.config import StackConfig
from hooked_whisper.conversion import (
    convert_transformers_state_dict,
)
from hooked_whisper.errors import CheckpointError
from hooked_whisper.openai import published_alignment_heads, read_openai


@pytest.fixture(scope="module")
def content() -> bytes:
    """A whole small `.pt`."""
    torch.manual_seed(2)
    buffer = io.BytesIO()
    torch.save(openai_content(random_whisper()), buffer)
    return buffer.getvalue()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_gives_the_weights_back(tmp_path: Path, dtype: torch.dtype) -> None:
    # OpenAI's MLPs are four times as wide as the model.
    model = random_whisper(encoder_ffn=32, decoder_ffn=32, n_mels=128, decoder_layers=3, dtype=dtype)
    raw = read_openai(saved(openai_content(model), tmp_path / "model.pt"))
    expected = weights(model)
    assert raw.state.keys() == expected.keys()
    assert all(torch.equal(raw.state[name], expected[name]) for name in expected)
    assert (raw.config.encoder.n_layers, raw.config.decoder.n_layers, raw.config.n_mels) == (2, 3, 128)
    assert (raw.config.encoder.n_heads, raw.config.decoder.n_heads, raw.config.n_frames, raw.config.n_ctx) == (
        2,
        4,
        6,
        10,
    )
    converted = convert_transformers_state_dict(raw.state, raw.config)
    assert converted["encoder.blocks.0.mlp.fc_in.weight"].dtype == dtype


def test_parameters_and_ordered_dicts_are_tensors_too(tmp_path: Path) -> None:
    content = openai_content(random_whisper(encoder_ffn=32, decoder_ffn=32))
    parameters = {name: torch.nn.Parameter(tensor) for name, tensor in content["model_state_dict"].items()}
    content["model_state_dict"] = OrderedDict(parameters)
    raw = read_openai(saved(content, tmp_path / "model.pt"))
    assert "encoder.layers.1.self_attn.q_proj.bias" in raw.state


HEADS = {
    # Counts and first and last pairs as in the generation_config.json of OpenAI's hub repositories.
    "tiny": (4, 6, 6, (2, 2), (3, 5)),
    "tiny.en": (4, 6, 8, (1, 0), (3, 4)),
    "base": (6, 8, 8, (3, 1), (5, 6)),
    "base.en": (6, 8, 5, (3, 3), (5, 7)),
    "small": (12, 12, 10, (5, 3), (10, 5)),
    "small.en": (12, 12, 19, (6, 6), (11, 4)),
    "medium": (24, 16, 6, (13, 15), (23, 4)),
    "medium.en": (24, 16, 18, (11, 4), (21, 12)),
    "large-v1": (32, 20, 9, (9, 19), (23, 15)),
    "large-v2": (32, 20, 23, (10, 12), (27, 15)),
    "large-v3": (32, 20, 10, (7, 0), (25, 6)),
    "large-v3-turbo": (4, 20, 6, (2, 4), (3, 14)),
}


@pytest.mark.parametrize("name", HEADS)
def test_published_alignment_heads(name: str) -> None:
    n_layers, n_heads, count, first, last = HEADS[name]
    decoder = StackConfig(n_layers=n_layers, n_heads=n_heads, d_model=64 * n_heads, d_mlp=8, n_ctx=448)
    heads = published_alignment_heads(name, decoder)
    assert (len(heads), heads[0], heads[-1]) == (count, first, last)
    assert heads == sorted(set(heads))
    assert all(layer < n_layers and head < n_heads for layer, head in heads)
    assert published_alignment_heads(f"{name}-finetuned", decoder) == []
    one_more = StackConfig(n_layers=n_layers + 1, n_heads=n_heads, d_model=64 * n_heads, d_mlp=8, n_ctx=448)
    assert published_alignment_heads(name, one_more) == []


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_truncation_at_any_byte_is_refused(tmp_path: Path, content: bytes, data: st.DataObject) -> None:
    path = tmp_path / "model.pt"
    path.write_bytes(content[: data.draw(st.integers(0, len(content) - 1))])
    with pytest.raises(CheckpointError, match="truncated or corrupt"):
        read_openai(path)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_changed_bytes_load_or_are_refused(tmp_path: Path, content: bytes, data: st.DataObject) -> None:
    mutable = bytearray(content)
    start = content.index(b"data.pkl")
    ends = [(0, start), (start, start + 9000), (len(content) - 6000, len(content) - 1)]
    for _ in range(data.draw(st.integers(1, 3))):
        low, high = data.draw(st.sampled_from(ends))
        mutable[data.draw(st.integers(low, high))] = data.draw(st.integers(0, 255))
    path = tmp_path / "model.pt"
    path.write_bytes(bytes(mutable))
    with suppress(CheckpointError):  # any other error fails
        raw = read_openai(path)
        convert_transformers_state_dict(raw.state, raw.config)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "found a list"),
        ({"state_dict": {}}, r"found a dict with \['state_dict'\]"),
        ({"dims": {}, "model_state_dict": [1]}, "'model_state_dict' in .* is not a dict of tensors"),
        ({"dims": {}, "model_state_dict": {"a": 3}}, "'model_state_dict' in .* is not a dict of tensors"),
        ({"dims": {"n_mels": 80}, "model_state_dict": {}}, "must hold the whole numbers n_mels, n_audio_ctx"),
        ({"dims": [1], "model_state_dict": {}}, "must hold the whole numbers"),
    ],
)
def test_other_content_is_refused(tmp_path: Path, content: Any, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        read_openai(saved(content, tmp_path / "model.pt"))


@pytest.mark.parametrize(
    ("dims", "message"),
    [
        ({"n_text_state": 16}, "must have one width, got d_model=8 and 16"),
        ({"n_audio_head": 3}, "cannot be split over n_heads=3"),
        ({"n_audio_layer": 0}, "n_layers must be a positive whole number"),
        ({"n_audio_layer": 10**12}, "configured for 1000000000001 layers and holds"),
        ({"n_audio_layer": 3}, r"lacks 15 of \d+ tensors: encoder.layers.2.self_attn.q_proj.weight"),
        ({"n_text_layer": 1, "n_audio_layer": 1}, "15 tensors that Whisper does not have: encoder.layers.1."),
        ({"n_vocab": 52}, r"'decoder.embed_tokens.weight' .* has shape \(51, 8\), expected \(52, 8\)"),
        ({"n_mels": 81}, r"'encoder.conv1.weight' .* has shape \(8, 80, 3\), expected \(8, 81, 3\)"),
        ({"n_audio_ctx": -1}, "n_ctx must be a positive whole number, got -1"),
        ({"n_vocab": 1.5}, "must hold the whole numbers"),
        ({"n_vocab": True}, "must hold the whole numbers"),
    ],
)
def test_dims_that_do_not_fit_are_refused(tmp_path: Path, dims: dict[str, Any], message: str) -> None:
    content = openai_content(random_whisper(encoder_ffn=32, decoder_ffn=32))
    content["dims"].update(dims)
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(saved(content, tmp_path / "model.pt"))


def test_integer_weights_are_refused(tmp_path: Path) -> None:
    content = openai_content(random_whisper(encoder_ffn=32, decoder_ffn=32))
    content["model_state_dict"]["decoder.ln.bias"] = torch.ones(8, dtype=torch.int64)
    with pytest.raises(CheckpointError, match=r"'decoder.layer_norm.bias' .* has dtype torch.int64"):
        load_checkpoint(saved(content, tmp_path / "model.pt"))


def test_the_source_says_what_was_read(tmp_path: Path) -> None:
    content = openai_content(random_whisper(encoder_ffn=32, decoder_ffn=32))
    checkpoint = load_checkpoint(saved(content, tmp_path / "mine.pt"))
    assert checkpoint.source.startswith(f"OpenAI checkpoint {tmp_path / 'mine.pt'} (alignment heads unknown)")
    assert checkpoint.config.model_name == "mine"
    assert checkpoint.config.alignment_heads == []
    # Its vocabulary of 51 is none of Whisper's.
    assert checkpoint.tokenizer is None
    assert "no tokenizer: its vocabulary of 51 is none of Whisper's" in checkpoint.source
