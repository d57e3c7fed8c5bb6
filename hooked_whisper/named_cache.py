"""What every cache of this library can do: read by name, derive what was not stored, move, slice, describe itself."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor
from transformer_lens import ActivationCache

from hooked_whisper.audio import FRAMES_PER_SECOND
from hooked_whisper.axes import FRAME_AXES, axes
from hooked_whisper.cache_summary import one_line, table
from hooked_whisper.config import DTYPES, HookedWhisperConfig, resolve_device
from hooked_whisper.derived import derive, follows, sources
from hooked_whisper.errors import CacheError, ConfigError, did_you_mean
from hooked_whisper.run import Run

if TYPE_CHECKING:
    from typing_extensions import Self

    from hooked_whisper.model import HookedWhisper
else:
    Self = ActivationCache  # run-time checkers of types cannot tell a method's own class


@runtime_checkable
class SliceLike(Protocol):
    """TransformerLens's own `Slice`."""

    slice: Any


# As TransformerLens's: an index drops the axis; a (start, stop[, step]) tuple or slice, or a list of indices, keeps it.
SliceInput = int | slice | tuple[int | None, ...] | list[int] | np.ndarray | Tensor | SliceLike | None

# Memory of which less than this part is wanted is given back, at the price of a copy.
_WORTH_SHARING = 0.75


class NamedCache(ActivationCache):
    """Activations by hook name; the base of `WhisperCache` and of its two stacks.

    Reading also gives what is not stored but follows from what is (see `hooked_whisper.derived`): `is_derived(name)`
    tells which is which. `in`, `len`, `keys()`, `values()`, `items()` and iteration know stored activations only.
    """

    model: HookedWhisper | None  # type: ignore[assignment]
    _prefix = ""

    def __init__(
        self,
        cache_dict: dict[str, Tensor],
        model: HookedWhisper | None,
        run: Run,
        has_batch_dim: bool = True,
        *,
        cfg: HookedWhisperConfig | None = None,
    ) -> None:
        super().__init__(cache_dict, model, has_batch_dim)
        if cfg is None and model is None:
            raise ConfigError("A cache needs a model, or cfg= to know the shape of the one it came from.")
        self.cfg: HookedWhisperConfig = replace(model.cfg) if cfg is None else cfg  # type: ignore[union-attr]
        self.run = run
        # Of a cache sliced in time: uncut keys and scores, under their full names, so that patterns still sum to one
        # over the whole window; and where the slice begins.
        self._whole: dict[str, Tensor] = {}
        self._first_frame = 0
        self._is_cut = False

    # Reading

    def __getitem__(self, key: str | tuple[Any, ...]) -> Tensor:
        """The activation called `key`: stored, or derived from stored ones.

        Raises:
            CacheError: neither; says why, and which names are near.
        """
        name = self._name(key)
        if name in self.cache_dict:
            return self.cache_dict[name]
        value = self._derive(self._prefix + name)
        if value is None:
            raise self._missing(name)
        return value

    def is_derived(self, name: str | tuple[Any, ...]) -> bool:
        """True if reading `name` computes it from other activations, False if it is stored.

        Raises:
            CacheError: it is neither.
        """
        found = self._name(name)
        if found in self.cache_dict:
            return False
        if not self._is_derivable(self._prefix + found):
            raise self._missing(found)
        return True

    def derivable(self) -> list[str]:
        """Names that are not stored and can still be read, in the order of what they follow from."""
        found: dict[str, None] = {}
        for name in self.cache_dict:
            for candidate in follows(self._prefix + name):
                short = candidate.removeprefix(self._prefix)
                if short not in self.cache_dict and self._is_derivable(candidate):
                    found[short] = None
        return list(found)

    def _name(self, key: str | tuple[Any, ...]) -> str:
        if isinstance(key, str):
            return key
        raise CacheError(
            f"{key!r} does not say which stack: use cache.encoder[{key!r}] or cache.decoder[{key!r}], or a full name."
        )

    def _stored(self, full: str) -> Tensor | None:
        return self.cache_dict.get(full.removeprefix(self._prefix)) if full.startswith(self._prefix) else None

    def _known(self, full: str) -> Tensor | None:
        """A stored activation, uncut where that is kept, too."""
        return self._whole.get(full, self._stored(full))

    def _derive(self, full: str) -> Tensor | None:
        value = derive(full, self._known, self.cfg, self.model, self.run.hooked)
        if value is None or not self._whole:
            return value
        return self._cut_attention(full, value)

    def _cut_attention(self, full: str, value: Tensor) -> Tensor:
        """A score or pattern derived from uncut keys, brought to the slice."""
        if not full.endswith(("hook_attn_scores", "hook_pattern")):
            return value
        n_frames = self._window()
        names = axes(full)
        for dim in (-2, -1):
            if names[dim] in FRAME_AXES and value.shape[dim] > n_frames:
                value = value.narrow(dim, self._first_frame, n_frames)
        return value

    def _is_derivable(self, full: str) -> bool:
        if full in self.run.hooked:
            return False
        module, _, leaf = full.rpartition(".")
        for needed in sources(full, self.cfg):
            if leaf == "hook_pattern" and len(needed) == 2 and f"{module}.hook_attn_scores" in self.run.hooked:
                continue
            if leaf == "hook_result" and self.model is None:
                continue
            if all(self._known(name) is not None for name in needed):
                return True
        return False

    def _missing(self, name: str) -> CacheError:
        """Why `name` cannot be read, and what to do about it."""
        full = self._prefix + name
        plain = full.removesuffix("_grad")
        known = self.model.hook_dict if self.model is not None else {}
        if plain in known and plain != full:
            return CacheError(f"No gradient of {plain!r} was kept: cache it with incl_bwd=True.")
        if full in self.run.hooked and sources(full, self.cfg):
            return CacheError(
                f"{full!r} was not kept, and cannot be derived because it had a hook of its own in this run: "
                "add it to names_filter."
            )
        wanted = sources(full, self.cfg)
        hint = f" It could also be derived from {' and '.join(wanted[-1])}, which are not all here." if wanted else ""
        if full in known and self.model is not None:
            if not self.model._is_on(full):
                return CacheError(f"{full!r} is computed only while its option of the model is on, and was not.{hint}")
            return CacheError(
                f"{full!r} was not kept in this run: it was not in names_filter, or the run stopped before it.{hint} "
                f"Run again with names_filter={full!r}, or None for everything. Kept: {len(self)} activations, "
                "see cache.summary()."
            )
        near = did_you_mean(name, [*self.cache_dict, *self.derivable()])
        near = near or did_you_mean(name, (hook.removeprefix(self._prefix) for hook in known))
        return CacheError(
            f"No activation is called {name!r} here.{near}{hint} The cache keeps {len(self)}, see cache.summary()."
        )

    # What the run was about

    def _need(self, what: str) -> Any:
        value = getattr(self.run, what)
        if value is None:
            raise CacheError(
                f"This run has no {what}: it ended before the decoder was fed (only encoder hooks were asked for, or "
                "stop_at came first). Run again with a decoder hook in names_filter, or None for everything."
            )
        return value

    def _batched(self, value: Tensor) -> Tensor:
        return value if self.has_batch_dim else value[0]

    @property
    def tokens(self) -> Int[Tensor, "*batch pos"]:
        """What the decoder was fed, prompt included, [batch pos], padded on the right (see `token_mask`)."""
        return self._batched(self._need("tokens"))

    @property
    def token_mask(self) -> Bool[Tensor, "*batch pos"]:
        """[batch pos], False at the padding of shorter texts."""
        return self._batched(self._need("token_mask"))

    @property
    def frame_mask(self) -> Bool[Tensor, "*batch frame"]:
        """[batch frame], True where there is audio, False where the window is padded with silence."""
        if self.run.frame_mask is None:
            raise CacheError("This run has no frame_mask: it never reached the audio.")
        return self._batched(self.run.frame_mask)

    @property
    def n_clips(self) -> int:
        """Clips in the batch."""
        known = self.run.tokens if self.run.frame_mask is None else self.run.frame_mask
        return 1 if known is None else known.shape[0]

    def n_frames(self, clip: int = 0) -> int:
        """Encoder frames (20 ms) of clip `clip` that hold audio."""
        self._check_clip(clip)
        mask = self.run.frame_mask
        return 0 if mask is None else int(mask[clip].sum())

    def _check_clip(self, clip: int) -> None:
        if not -self.n_clips <= clip < self.n_clips:
            raise CacheError(f"There is no clip {clip}: this cache has {self.n_clips}, counted from 0.")

    def _window(self) -> int:
        """Frames of the window, padding included."""
        return self.cfg.n_frames if self.run.frame_mask is None else self.run.frame_mask.shape[-1]

    # Slicing

    def _like(self, cache_dict: dict[str, Tensor], **changes: Any) -> Self:
        """A cache of the same kind with other activations; `changes` are attributes."""
        new = copy.copy(self)
        new.cache_dict = cache_dict
        for name, value in changes.items():
            setattr(new, name, value)
        return new

    def seconds(self, start: float, end: float) -> Self:
        """The part of the audio from `start` to `end`: frame axes are cut, decoder positions stay.

        Cut are frames, mel frames, and the queries and keys of attention where these are frames; patterns keep the
        values they have over the whole window, so that their rows no longer sum to one. Nothing is copied. Times count
        from the beginning of the window, also in a cache that is cut already.

        Raises:
            ConfigError: an empty span, or one outside the window.
        """
        offset, window = self._first_frame, self._window()
        here = f"this cache spans {offset / FRAMES_PER_SECOND:g} to {(offset + window) / FRAMES_PER_SECOND:g} s"
        if not (math.isfinite(start) and math.isfinite(end)) or end <= start:
            raise ConfigError(f"seconds({start!r}, {end!r}) is no span: the end must come after the start; {here}.")
        # The tolerance keeps 0.06 s (frame 3) from becoming frame 2 by rounding.
        first = math.floor(start * FRAMES_PER_SECOND + 1e-6) - offset
        stop = math.ceil(end * FRAMES_PER_SECOND - 1e-6) - offset
        if first < 0 or first >= window or stop > window:
            raise ConfigError(f"seconds({start!r}, {end!r}) is outside the window: {here}.")
        return self._frames(first, stop - first)

    def _frames(self, first: int, count: int) -> Self:
        cut = {name: _cut(value, self._axes(name, value), first, count) for name, value in self.cache_dict.items()}
        whole = dict(self._whole)
        for name, value in self.cache_dict.items():
            full = self._prefix + name
            is_key = full.endswith(".hook_k") and cut[name] is not value
            if is_key or (full.endswith(".hook_attn_scores") and cut[name] is not value):
                whole.setdefault(full, value)
        mask = self.run.frame_mask
        run = replace(self.run, frame_mask=None if mask is None else mask[:, first : first + count])
        return self._like(cut, run=run, _whole=whole, _first_frame=self._first_frame + first, _is_cut=True)

    def _axes(self, name: str, value: Tensor) -> tuple[str, ...]:
        names = axes(self._prefix + name, value.ndim + (not self.has_batch_dim))
        return names if self.has_batch_dim or names[0] != "batch" else names[1:]

    def remove_batch_dim(self) -> Self:
        """Drops the batch dimension, in place; as in TransformerLens.

        Raises:
            ConfigError: more than one clip, or no batch dimension to drop.
        """
        if not self.has_batch_dim:
            raise ConfigError("This cache has no batch dimension: it was removed already.")
        if self.n_clips != 1:
            raise ConfigError(f"remove_batch_dim needs one clip, this cache has {self.n_clips}: slice the batch first.")
        self.cache_dict = {name: self._row(name, value, 0) for name, value in self.cache_dict.items()}
        self._whole = {name: value[0] for name, value in self._whole.items()}
        self.has_batch_dim = False
        return self

    def apply_slice_to_batch_dim(self, batch_slice: SliceInput) -> Self:
        """A cache of some of the clips; as in TransformerLens, and tokens, masks and texts are sliced, too.

        Args:
            batch_slice: an index (drops the batch dimension), a list of indices, a slice, or (start, stop[, step]).

        Raises:
            ConfigError: no batch dimension, or a clip that is not there.
        """
        chosen = as_index(batch_slice)
        if chosen is None:
            return self._like(dict(self.cache_dict))
        if not self.has_batch_dim:
            raise ConfigError("This cache has no batch dimension to slice: it was removed.")
        single = isinstance(chosen, int)
        try:
            rows = np.arange(self.n_clips)[chosen]
        except IndexError as error:
            raise ConfigError(f"Clips {batch_slice!r} do not exist: this cache has {self.n_clips}.") from error
        indices = [int(row) for row in np.atleast_1d(rows)]
        return self._like(
            {name: self._row(name, value, chosen) for name, value in self.cache_dict.items()},
            run=self.run.select(indices),
            has_batch_dim=not single,
            _whole={name: value[chosen] for name, value in self._whole.items()},
        )

    def _row(self, name: str, value: Tensor, chosen: Any) -> Tensor:
        return value[chosen] if axes(self._prefix + name, value.ndim)[0] == "batch" else value

    # Moving

    def to(self, device: str | torch.device | torch.dtype | None = None, *, dtype: torch.dtype | None = None) -> Self:
        """Moves every activation to a device or floating dtype, in place; returns the cache.

        Activations that share memory go on sharing it.

        Raises:
            CacheError: values that the dtype cannot hold (float16 ends at 65504). ConfigError: no such device or dtype.
        """
        if isinstance(device, torch.dtype):
            device, dtype = None, device
        if dtype is not None and dtype not in DTYPES.values():
            raise ConfigError(f"A cache cannot be held in {dtype}: expected one of {', '.join(DTYPES)}.")
        place = None if device is None else resolve_device(device)
        done: dict[tuple[Any, ...], Tensor] = {}

        def move(name: str, value: Tensor) -> Tensor:
            key = same_memory(value)
            if key not in done:
                moved = value.to(device=place, dtype=dtype if value.is_floating_point() else None)
                if moved.dtype != value.dtype and moved.isinf().sum() != value.isinf().sum():
                    largest = value[value.isfinite()].abs().max().item()
                    raise CacheError(
                        f"{name!r} has values up to {largest:.0f}, which {moved.dtype} cannot hold: use torch.bfloat16."
                    )
                done[key] = moved
            return done[key]

        stored = {name: move(name, value) for name, value in self.cache_dict.items()}
        self._whole = {name: move(name, value) for name, value in self._whole.items()}
        self.cache_dict = stored
        if place is not None:
            self.run = self.run.to(place)
        return self

    def half(self) -> Self:
        """The cache in float16, in place: half the memory."""
        return self.to(dtype=torch.float16)

    # Describing

    @property
    def nbytes(self) -> int:
        """Memory that the activations hold, in bytes; what several share is counted once."""
        return storage_bytes([*self.cache_dict.values(), *self._whole.values()])

    def __repr__(self) -> str:
        return one_line(self)

    def summary(self, *, every_layer: bool = False) -> str:
        """A table of what is stored, and of what is derived when read: names, axes, shapes and memory.

        Args:
            every_layer: a line for each layer, instead of one for all layers alike.
        """
        return table(self, every_layer=every_layer)


def _cut(value: Tensor, names: tuple[str, ...], first: int, count: int) -> Tensor:
    for dim, axis in enumerate(names):
        if axis in FRAME_AXES:
            step = 2 if axis == "mel_frame" else 1
            start = min(step * first, value.shape[dim])
            value = value.narrow(dim, start, min(step * count, value.shape[dim] - start))
    return value


def as_index(given: Any) -> Any:
    """What a slice in TransformerLens's manner means as an index of a tensor; None for everything.

    Raises:
        ConfigError: anything else.
    """
    if given is None or isinstance(given, (int, slice)):
        return given
    if isinstance(given, SliceLike):
        return as_index(given.slice)
    if isinstance(given, tuple):
        return slice(*given)
    if isinstance(given, (list, np.ndarray, Tensor)):
        picked = np.asarray(given.cpu() if isinstance(given, Tensor) else given).reshape(-1)
        return [int(i) for i in (np.flatnonzero(picked) if picked.dtype == bool else picked)]
    raise ConfigError(f"{given!r} is no slice: give an index, a list of indices, a slice, or (start, stop[, step]).")


def same_memory(value: Tensor) -> tuple[Any, ...]:
    """A key that two tensors share if they are the very same view of the same memory."""
    return (
        value.untyped_storage().data_ptr(), value.storage_offset(), tuple(value.shape), value.stride(), value.dtype
    )  # fmt: skip


def storage_bytes(values: Iterable[Tensor]) -> int:
    """Bytes of the memory behind `values`, each storage once."""
    storages = {value.untyped_storage().data_ptr(): value.untyped_storage().nbytes() for value in values}
    return sum(storages.values())


def compact(values: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same activations, those copied that would alone keep much larger memory alive.

    Queries, keys and values, for one, are slices of one tensor: who keeps queries only should not pay for all three.
    """
    views: dict[int, dict[tuple[Any, ...], Tensor]] = {}
    for value in values.values():
        views.setdefault(value.untyped_storage().data_ptr(), {})[same_memory(value)] = value
    copies: dict[tuple[Any, ...], Tensor] = {}
    for shared in views.values():
        used = sum(value.numel() * value.element_size() for value in shared.values())
        whole = next(iter(shared.values())).untyped_storage().nbytes()
        if used < _WORTH_SHARING * whole:
            copies |= {key: value.clone() for key, value in shared.items()}
    return {name: copies.get(same_memory(value), value) for name, value in values.items()}
