"""A cache in one safetensors file: activations, and as JSON what they belong to.

Tensors that were the very same memory (the residual stream after one layer and before the next) are written once and
are one memory again when read. A file is data and nothing else: reading it runs no code, whoever wrote it.
"""

from __future__ import annotations

import json
import os
import uuid
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

import hooked_whisper
from hooked_whisper.config import HookedWhisperConfig, StackConfig, resolve_device
from hooked_whisper.errors import CacheError
from hooked_whisper.file_modes import as_new_file
from hooked_whisper.named_cache import same_memory
from hooked_whisper.run import Run

if TYPE_CHECKING:
    from hooked_whisper.cache import WhisperCache
    from hooked_whisper.model import HookedWhisper

FORMAT = 1  # raised when a file can no longer be read by older versions
_KEY = "hooked_whisper_cache"
_STORED, _WHOLE, _RUN = "activation/", "uncut/", "run/"
_RUN_TENSORS = ("frame_mask", "tokens", "token_mask")


def save_cache(cache: WhisperCache, path: Path) -> Path:
    """Writes `cache` to `path`, whole or not at all; see `WhisperCache.save`."""
    named = {_STORED + name: value for name, value in cache.cache_dict.items()}
    named |= {_WHOLE + name: value for name, value in cache._whole.items()}
    tensors: dict[str, Tensor] = {}
    same_as: dict[str, str] = {}
    first: dict[tuple[Any, ...], str] = {}
    for name, value in named.items():
        original = first.setdefault(same_memory(value), name)
        if original == name:
            tensors[name] = value.detach().contiguous()
        else:
            same_as[name] = original
    for name in _RUN_TENSORS:
        value = getattr(cache.run, name)
        if value is not None:
            tensors[_RUN + name] = value.contiguous()
    run = cache.run
    about = {
        "format": FORMAT,
        "hooked_whisper": hooked_whisper.__version__,
        "torch": torch.__version__,
        "config": asdict(cache.cfg) | {"processing": sorted(cache.cfg.processing)},
        "source": cache.model.source if cache.model is not None else None,
        "has_batch_dim": cache.has_batch_dim,
        "first_frame": cache._first_frame,
        "is_cut": cache._is_cut,
        "order": list(named),
        "same_as": same_as,
        "run": {
            "n_samples": run.n_samples,
            "prompt_lengths": run.prompt_lengths,
            "languages": run.languages,
            "texts": run.texts,
            "hooked": sorted(run.hooked),
        },
    }
    # Two names may be overlapping views of one memory (after seconds()); safetensors takes only separate ones.
    _write(_apart(tensors), {_KEY: json.dumps(about)}, path)
    return path


def _apart(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors, copied where they share memory with one before them or are a part of a larger memory."""
    taken: set[int] = set()
    apart = {}
    for name, value in tensors.items():
        memory = value.untyped_storage()
        alone = memory.data_ptr() not in taken and memory.nbytes() == value.numel() * value.element_size()
        taken.add(memory.data_ptr())
        apart[name] = value if alone else value.clone()
    return apart


def _write(tensors: dict[str, Tensor], metadata: dict[str, str], path: Path) -> None:
    """To a file beside `path` first, which then takes its name."""
    if not os.path.isdir(path.parent):
        raise CacheError(f"Cannot save to {str(path)!r}: there is no folder {str(path.parent)!r}. Create it first.")
    if os.path.isdir(path):
        raise CacheError(f"Cannot save to {str(path)!r}: it is a folder; give the name of a file in it.")
    beside = path.parent / f".cache-{uuid.uuid4().hex}"
    try:
        save_file(tensors, beside, metadata)
        os.replace(as_new_file(beside), path)
    except (OSError, SafetensorError) as error:
        raise CacheError(f"Cannot save to {str(path)!r}: {error}.") from error
    finally:
        beside.unlink(missing_ok=True)


def load_cache(path: Path, model: HookedWhisper | None, *, device: str | torch.device) -> WhisperCache:
    """Reads a file that `save_cache` wrote; see `WhisperCache.load`."""
    from hooked_whisper.cache import WhisperCache

    target = resolve_device(device)
    if not os.path.isfile(path):
        raise CacheError(f"There is no cache at {str(path)!r}: expected a file that cache.save(path) wrote.")
    try:
        with safe_open(path, framework="pt", device=str(target)) as file:
            about = _about((file.metadata() or {}).get(_KEY), path)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no dict)
    except (OSError, SafetensorError) as error:
        raise CacheError(
            f"{str(path)!r} is no whole safetensors file ({error}): it was cut off, damaged, or is of another kind. "
            "Save the cache again."
        ) from error
    try:
        cfg = _config(about["config"])
        run = _run(about["run"], tensors)
        same_as: dict[str, str] = about["same_as"]
        values = {name: tensors[same_as.get(name, name)] for name in about["order"]}
        cache = WhisperCache(
            {name.removeprefix(_STORED): value for name, value in values.items() if name.startswith(_STORED)},
            model,
            run,
            has_batch_dim=bool(about["has_batch_dim"]),
            cfg=cfg,
        )
        cache._whole = {name.removeprefix(_WHOLE): value for name, value in values.items() if name.startswith(_WHOLE)}
        cache._first_frame, cache._is_cut = int(about["first_frame"]), bool(about["is_cut"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CacheError(
            f"{str(path)!r} is a damaged cache: its description does not fit its contents ({error!r}). Save it again."
        ) from error
    if model is not None:
        _check_model(cfg, model.cfg, path)
    return cache


def _about(text: str | None, path: Path) -> dict[str, Any]:
    if text is None:
        raise CacheError(
            f"{str(path)!r} is a safetensors file, but not a cache: expected one that cache.save(path) wrote."
        )
    try:
        about = json.loads(text)
    except ValueError as error:
        raise CacheError(f"{str(path)!r} is a damaged cache: its description is no JSON ({error}).") from error
    version = about.get("format") if isinstance(about, dict) else None
    if version != FORMAT:
        raise CacheError(
            f"{str(path)!r} is a cache of format {version!r}, and this version of hooked-whisper reads format "
            f"{FORMAT}: update it, or save the cache again."
        )
    return about


def _config(fields: dict[str, Any]) -> HookedWhisperConfig:
    heads = [(int(layer), int(head)) for layer, head in fields["alignment_heads"]]
    stacks = {name: StackConfig(**fields[name]) for name in ("encoder", "decoder")}
    processing = frozenset(fields["processing"])
    return HookedWhisperConfig(**{**fields, **stacks, "alignment_heads": heads, "processing": processing})


def _run(fields: dict[str, Any], tensors: dict[str, Tensor]) -> Run:
    found = {name: tensors.get(_RUN + name) for name in _RUN_TENSORS}
    for name, value in found.items():
        expected = torch.int64 if name == "tokens" else torch.bool
        if value is not None and (value.dtype != expected or value.ndim != 2):
            raise ValueError(f"{name} is {value.dtype} of shape {tuple(value.shape)}, expected {expected} of two axes")
    return Run(**{**fields, **found, "hooked": frozenset(fields["hooked"])})


def _check_model(cfg: HookedWhisperConfig, other: HookedWhisperConfig, path: Path) -> None:
    for name in ("encoder", "decoder", "n_mels", "d_vocab", "processing"):
        theirs, ours = getattr(cfg, name), getattr(other, name)
        if theirs != ours:
            raise CacheError(
                f"{str(path)!r} holds activations of {cfg.model_name}, which the model given ({other.model_name}) "
                f"cannot have made: {name} was {theirs}, and is {ours}. Load it with its own model, or without one."
            )
