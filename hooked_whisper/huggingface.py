"""Reads transformers checkpoints: a folder, or a live model."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel, WhisperConfig

from hooked_whisper.conversion import RawCheckpoint, config_from_transformers
from hooked_whisper.errors import CheckpointError
from hooked_whisper.special_tokens import LAYOUTS, generation_config, generation_settings, put
from hooked_whisper.torch_files import load_torch_file

SAFETENSORS, TORCH = "model.safetensors", "pytorch_model.bin"
# In the order in which they are taken.
WEIGHTS = (SAFETENSORS, f"{SAFETENSORS}.index.json", TORCH, f"{TORCH}.index.json")

# A configuration takes kilobytes, a vocabulary or an index of shards a few megabytes.
MAX_JSON_BYTES = 32 * 2**20

# Settings that generation cannot do without; where a checkpoint lacks them, its vocabulary gives them.
_TOKENS = ("bos_token_id", "pad_token_id", "decoder_start_token_id", "no_timestamps_token_id", "prev_sot_token_id")
_STRUCTURAL = (
    *_TOKENS,
    *("eos_token_id", "is_multilingual", "lang_to_id", "task_to_id", "max_initial_timestamp_index"),
)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object in a file.

    Raises:
        CheckpointError: missing, unreadable, or not an object.
    """
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise CheckpointError(f"{path} has {path.stat().st_size:,} bytes, expected at most {MAX_JSON_BYTES:,}.")
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"Cannot read {path}: {error.strerror}.") from error
    except CheckpointError:
        raise
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not JSON: {error}.") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, expected a JSON object.")
    return content


def read_folder(folder: Path, name: str) -> RawCheckpoint:
    """A transformers checkpoint in a folder.

    Raises:
        CheckpointError: files missing or corrupt, or a model that is not Whisper.
    """
    from huggingface_hub.errors import StrictDataclassError

    described = read_json(folder / "config.json")
    if described.get("model_type") != "whisper":
        raise CheckpointError(
            f"{folder / 'config.json'} describes a model of type {described.get('model_type')!r}, expected 'whisper'."
        )
    try:
        # transformers makes a name for each label of a classifier, as many as the file says; a Whisper has none.
        labels = ("num_labels", "id2label", "label2id")
        config = WhisperConfig.from_dict({name: value for name, value in described.items() if name not in labels})
    except (StrictDataclassError, TypeError, ValueError, AttributeError, KeyError) as error:
        raise CheckpointError(f"{folder / 'config.json'} is not a valid Whisper configuration: {error}") from error
    state, file = _read_weights(folder)
    return RawCheckpoint(
        config=config_from_transformers(config, name),
        state=state,
        generation_config=_read_generation_config(folder, config),
        folder=folder,
        source=f"transformers checkpoint {folder / file}",
    )


def shard_names(index: Path) -> list[str]:
    """File names in an index of shards."""
    placed = read_json(index).get("weight_map")
    if not isinstance(placed, dict) or not placed:
        raise CheckpointError(f"{index} has no 'weight_map', which says what tensor is in which file.")
    names = set(placed.values())
    for name in names:
        # Only files beside the index: a path that leads elsewhere is an attack.
        if not isinstance(name, str) or Path(name).name != name or "\\" in name:
            raise CheckpointError(f"{index} names the file {name!r}, expected a plain file name.")
    return sorted(names)


def _read_weights(folder: Path) -> tuple[dict[str, Tensor], str]:
    """All tensors of the first format there is, and the file that names it."""
    present = [name for name in WEIGHTS if (folder / name).is_file()]
    if not present:
        found = sorted(path.name for path in folder.iterdir())
        hint = " It holds an adapter: merge it into its model first." if "adapter_config.json" in found else ""
        raise CheckpointError(
            f"{folder} holds no weights: expected one of {', '.join(WEIGHTS)}; "
            f"found {', '.join(found[:8]) or 'nothing'}.{hint}"
        )
    first = present[0]
    files = shard_names(folder / first) if first.endswith(".index.json") else [first]
    state: dict[str, Tensor] = {}
    for name in files:
        if not (folder / name).is_file():
            raise CheckpointError(f"{folder / first} names the file {name!r}, which is not there: download it again.")
        state.update(_read_safetensors(folder / name) if name.endswith(".safetensors") else _read_bin(folder / name))
    return state, first


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"{path} is truncated or corrupt: {error}. Download it again.") from error


def _read_bin(path: Path) -> dict[str, Tensor]:
    content = load_torch_file(path)
    if not isinstance(content, Mapping) or not all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in content.items()
    ):
        raise CheckpointError(f"{path} does not hold a dict of tensors, as transformers writes it.")
    return dict(content)


def _read_generation_config(folder: Path, config: WhisperConfig) -> GenerationConfig:
    """generation_config.json, or, where there is none, what config.json and the vocabulary say."""
    if not (folder / "generation_config.json").is_file():
        return generation_config(
            config.vocab_size,
            max_length=config.max_target_positions,
            suppress_tokens=config.suppress_tokens,
            decoder_start_token_id=config.decoder_start_token_id if config.vocab_size not in LAYOUTS else None,
        )
    stored = read_json(folder / "generation_config.json")
    _check_settings(stored, folder / "generation_config.json")
    stored.pop("_from_model_config", None)  # with it, transformers leaves out what is Whisper's own
    try:
        settings = GenerationConfig.from_dict(stored)
    except (TypeError, ValueError, AttributeError, KeyError) as error:
        raise CheckpointError(f"{folder / 'generation_config.json'} is not valid: {error}") from error
    return completed(settings, config)


def _check_settings(stored: dict[str, Any], path: Path) -> None:
    """The fields that name tokens must do so: transformers would find out in the middle of a transcript."""

    def is_count(value: Any) -> bool:
        return isinstance(value, int) and not isinstance(value, bool) and value >= 0

    def is_list(value: Any) -> bool:
        return isinstance(value, list) and all(map(is_count, value))

    def is_table(value: Any) -> bool:
        return isinstance(value, dict) and all(map(is_count, value.values()))

    checks = {
        **dict.fromkeys((*_TOKENS, "max_length", "max_initial_timestamp_index"), (is_count, "a whole number")),
        **dict.fromkeys(
            ("eos_token_id",), (lambda value: is_count(value) or is_list(value), "a token or a list of them")
        ),
        **dict.fromkeys(("suppress_tokens", "begin_suppress_tokens"), (is_list, "a list of tokens")),
        **dict.fromkeys(("lang_to_id", "task_to_id"), (is_table, "a table of tokens")),
        "is_multilingual": (lambda value: isinstance(value, bool), "true or false"),
    }
    for name, (check, expected) in checks.items():
        if stored.get(name) is not None and not check(stored[name]):
            raise CheckpointError(f"{name!r} in {path} must be {expected}, got {stored[name]!r:.100}.")


def completed(settings: GenerationConfig, config: WhisperConfig) -> GenerationConfig:
    """The same settings, with what the vocabulary says in the place of what is missing.

    `forced_decoder_ids`, deprecated, becomes `task="transcribe"` where it says no more than that.
    """
    put(settings, _from_model_config=False)
    defaults = generation_settings(config.vocab_size)
    for name in _STRUCTURAL:
        if getattr(settings, name, None) is None and name in defaults:
            put(settings, **{name: defaults[name]})
    if getattr(settings, "alignment_heads", None) is None:
        put(settings, alignment_heads=[])
    if settings.max_length is None:
        settings.max_length = config.max_target_positions
    layout = LAYOUTS.get(config.vocab_size)
    if layout is not None:
        transcribing = ([[1, None], [2, layout.transcribe]], [[1, layout.no_timestamps]])
        forced = getattr(settings, "forced_decoder_ids", None)
        if forced is None or [list(pair) for pair in forced] in transcribing:
            put(settings, forced_decoder_ids=None)
            if layout.is_multilingual and getattr(settings, "task", None) is None:
                put(settings, task="transcribe")
    return settings


def read_model(model: PreTrainedModel) -> RawCheckpoint:
    """A live transformers Whisper (`WhisperForConditionalGeneration` or `WhisperModel`); its weights are copied.

    Raises:
        CheckpointError: another architecture, or a model whose weights are not all there (adapters, quantised).
    """
    config = model.config
    name = getattr(model, "name_or_path", "") or "whisper"
    settings = getattr(model, "generation_config", None)
    return RawCheckpoint(
        config=config_from_transformers(config, name),  # type: ignore[arg-type]
        state=dict(model.state_dict()),
        generation_config=(
            completed(copy.deepcopy(settings), config)  # type: ignore[arg-type]
            if settings is not None
            else generation_config(config.vocab_size, max_length=config.max_target_positions)
        ),
        folder=Path(name) if Path(name).is_dir() else None,
        source=f"live {type(model).__name__} {name!r}",
    )
