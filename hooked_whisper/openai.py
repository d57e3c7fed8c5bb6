"""Reads OpenAI's own checkpoints: a `.pt` with `dims` and `model_state_dict`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from hooked_whisper.config import HookedWhisperConfig, StackConfig
from hooked_whisper.conversion import RawCheckpoint, openai_to_transformers_names
from hooked_whisper.errors import CheckpointError, ConfigError
from hooked_whisper.special_tokens import generation_config
from hooked_whisper.torch_files import load_torch_file

DIMENSIONS = (
    "n_mels",
    "n_audio_ctx",
    "n_audio_state",
    "n_audio_head",
    "n_audio_layer",
    "n_vocab",
    "n_text_ctx",
    "n_text_state",
    "n_text_head",
    "n_text_layer",
)

# Cross-attention heads that follow the audio, "layer.head", as OpenAI publishes them (`_ALIGNMENT_HEADS` in
# openai/whisper's __init__.py), with the (layers, heads) of the decoder they belong to.
_ALIGNMENT_HEADS = {
    "tiny.en": (4, 6, "1.0 2.0 2.5 3.0 3.1 3.2 3.3 3.4"),
    "tiny": (4, 6, "2.2 3.0 3.2 3.3 3.4 3.5"),
    "base.en": (6, 8, "3.3 4.7 5.1 5.5 5.7"),
    "base": (6, 8, "3.1 4.2 4.3 4.7 5.1 5.2 5.4 5.6"),
    "small.en": (
        *(12, 12),
        "6.6 7.0 7.3 7.8 8.2 8.5 8.7 9.0 9.4 9.8 9.10 10.0 10.1 10.2 10.3 10.6 10.11 11.2 11.4",
    ),
    "small": (12, 12, "5.3 5.9 8.0 8.4 8.7 8.8 9.0 9.7 9.9 10.5"),
    "medium.en": (
        *(24, 16),
        "11.4 14.1 14.12 14.14 15.4 16.0 16.4 16.9 17.12 17.14 18.7 18.10 18.15 20.0 20.3 20.9 20.14 21.12",
    ),
    "medium": (24, 16, "13.15 15.4 15.15 16.1 20.0 23.4"),
    "large-v1": (32, 20, "9.19 11.2 11.4 11.17 22.7 22.11 22.17 23.2 23.15"),
    "large-v2": (
        *(32, 20),
        "10.12 13.17 16.11 16.12 16.13 17.15 17.16 18.4 18.11 18.19 19.11 21.2 21.3 22.3 22.9 22.12 23.5 23.7 23.13 "
        "25.5 26.1 26.12 27.15",
    ),
    "large-v3": (32, 20, "7.0 10.17 12.18 13.12 16.1 17.14 19.11 21.4 24.1 25.6"),
    "large-v3-turbo": (4, 20, "2.4 2.11 3.3 3.6 3.11 3.14"),
}


def published_alignment_heads(stem: str, decoder: StackConfig) -> list[tuple[int, int]]:
    """(layer, head) pairs that OpenAI publishes for one of its files.

    Args:
        stem: the file's name without `.pt`, such as "large-v2".
        decoder: must have that model's layers and heads.

    Returns:
        The pairs; empty for a file under another name or of another shape, such as a fine-tuned model: its heads
        are not known.
    """
    n_layers, n_heads, heads = _ALIGNMENT_HEADS.get(stem, (0, 0, ""))
    if (decoder.n_layers, decoder.n_heads) != (n_layers, n_heads):
        return []
    return [(int(layer), int(head)) for layer, head in (pair.split(".") for pair in heads.split())]


def read_openai(path: Path) -> RawCheckpoint:
    """A checkpoint of OpenAI's, loaded without unpickling code.

    Raises:
        CheckpointError: truncated, corrupt or hostile, or not OpenAI's format.
    """
    content = load_torch_file(path)
    if not isinstance(content, Mapping) or not {"dims", "model_state_dict"} <= content.keys():
        keys = f" with {sorted(map(str, content))[:5]}" if isinstance(content, Mapping) else ""
        raise CheckpointError(
            f"{path} is not one of OpenAI's checkpoints: expected a dict with 'dims' and 'model_state_dict', found a "
            f"{type(content).__name__}{keys}. To load a transformers checkpoint, give its folder."
        )
    state = content["model_state_dict"]
    if not isinstance(state, Mapping) or not all(
        isinstance(name, str) and isinstance(tensor, torch.Tensor) for name, tensor in state.items()
    ):
        raise CheckpointError(f"'model_state_dict' in {path} is not a dict of tensors.")
    config = _config(content["dims"], path)
    heads = published_alignment_heads(path.stem, config.decoder)
    return RawCheckpoint(
        config=config,
        state=dict(openai_to_transformers_names(state)),
        generation_config=generation_config(config.d_vocab, alignment_heads=heads, max_length=config.n_ctx),
        folder=None,
        source=f"OpenAI checkpoint {path}" + ("" if heads else " (alignment heads unknown)"),
    )


def _config(dims: Any, path: Path) -> HookedWhisperConfig:
    """Sizes from OpenAI's `dims`."""
    if not isinstance(dims, Mapping) or not all(
        isinstance(dims.get(name), int) and not isinstance(dims.get(name), bool) for name in DIMENSIONS
    ):
        raise CheckpointError(
            f"'dims' in {path} must hold the whole numbers {', '.join(DIMENSIONS)}; it is {dims!r:.300}."
        )
    stacks = {}
    try:
        for stack, theirs in (("encoder", "audio"), ("decoder", "text")):
            stacks[stack] = StackConfig(
                n_layers=dims[f"n_{theirs}_layer"],
                n_heads=dims[f"n_{theirs}_head"],
                d_model=dims[f"n_{theirs}_state"],
                d_mlp=4 * dims[f"n_{theirs}_state"],
                n_ctx=dims[f"n_{theirs}_ctx"],
            )
        return HookedWhisperConfig(**stacks, n_mels=dims["n_mels"], d_vocab=dims["n_vocab"], model_name=path.stem)
    except ConfigError as error:
        raise CheckpointError(f"'dims' in {path} contradict themselves: {error}") from error
