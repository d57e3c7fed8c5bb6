"""What a cache says about itself: one line, or a table of names, axes, shapes and memory."""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING

import torch

from hooked_whisper.audio import FRAMES_PER_SECOND
from hooked_whisper.axes import axes

if TYPE_CHECKING:
    from hooked_whisper.named_cache import NamedCache

_LAYER = re.compile(r"blocks\.(\d+)\.")
_MB = 1e6
_LONGEST_TEXT = 40  # characters


def one_line(cache: NamedCache) -> str:
    """Number, memory, kind and place of the activations, what they are of, and what is derived."""
    kinds = Counter((str(value.dtype).removeprefix("torch."), str(value.device)) for value in cache.values())
    where = ", ".join(dict.fromkeys(f"{dtype} on {device}" for (dtype, device), _ in kinds.most_common()))
    parts = [f"{len(cache)} activations, {cache.nbytes / _MB:.1f} MB" + (f" ({where})" if where else "")]
    if cache.run.frame_mask is not None:
        seconds = [cache.n_frames(i) / FRAMES_PER_SECOND for i in range(cache.n_clips)]
        first = cache._first_frame / FRAMES_PER_SECOND
        cut = f", cut to {first:g}-{first + cache._window() / FRAMES_PER_SECOND:g} s" if cache._is_cut else ""
        lengths = ", ".join(f"{length:g}" for length in seconds)
        parts.append(f"{cache.n_clips} clip{'s' * (cache.n_clips != 1)} of {lengths} s{cut}")
    if cache.run.texts is not None and len(cache.run.texts) == 1:
        text = cache.run.texts[0]
        parts.append(repr(text if len(text) <= _LONGEST_TEXT else f"{text[: _LONGEST_TEXT - 1]}…"))
    leaves = Counter(name.rpartition(".")[2] for name in cache.derivable())
    if leaves:
        parts.append(f"derived when read: {', '.join(f'{n} {leaf}' for leaf, n in leaves.items())}")
    batch = "" if cache.has_batch_dim else ", no batch dimension"
    return f"{type(cache).__name__}({'; '.join(parts)}{batch})"


def table(cache: NamedCache, *, every_layer: bool = False) -> str:
    """One line for each activation, or for each kind of activation over the layers; a total below."""
    seen: set[object] = set()
    rows: dict[tuple[str, torch.Size, torch.dtype], list[tuple[str, int]]] = {}
    for name, value in cache.items():
        memory = (value.untyped_storage().data_ptr(), value.storage_offset(), value.shape, value.stride())
        size = 0 if memory in seen else value.numel() * value.element_size()
        seen.add(memory)
        key = (name if every_layer else _LAYER.sub("blocks.*.", name), value.shape, value.dtype)
        rows.setdefault(key, []).append((name, size))
    lines = [("name", "axes", "shape", "MB")]
    for (_, shape, _), members in rows.items():
        name = members[0][0]
        names = cache._axes(name, cache.cache_dict[name])
        size = sum(size for _, size in members)
        amount = f"{size / _MB:.2f}" if size else "shared"
        lines.append((_over_layers(members), " ".join(names), str(list(shape)), amount))
    derived: dict[str, list[tuple[str, int]]] = {}
    for name in cache.derivable():
        derived.setdefault(name if every_layer else _LAYER.sub("blocks.*.", name), []).append((name, 0))
    for members in derived.values():
        names = axes(cache._prefix + members[0][0])
        lines.append((_over_layers(members), " ".join(names[not cache.has_batch_dim :]), "derived when read", ""))
    widths = [max(len(line[column]) for line in lines) for column in range(3)]
    text = []
    for *cells, amount in lines:
        row = [cell.ljust(width) for cell, width in zip(cells, widths, strict=True)]
        text.append("  ".join([*row, amount.rjust(8)]).rstrip())
    return "\n".join([*text, f"{len(cache)} activations, {cache.nbytes / _MB:.1f} MB"])


def _over_layers(members: list[tuple[str, int]]) -> str:
    """One name for the same activation of several layers: "encoder.blocks.0-5.hook_resid_post"."""
    name = members[0][0]
    layers = [int(found[1]) for member, _ in members if (found := _LAYER.search(member))]
    if len(layers) < 2:
        return name
    runs = "-".join(map(str, (layers[0], layers[-1])))
    whole = layers == list(range(layers[0], layers[-1] + 1))
    return _LAYER.sub(f"blocks.{runs if whole else ','.join(map(str, layers))}.", name, count=1)
