"""Runs the model on a block of clips and takes the rows of the hooks out of it: no padding, no prompt."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from hooked_whisper.audio import SAMPLES_PER_FRAME
from hooked_whisper.axes import FRAME_AXES, axes
from hooked_whisper.errors import ConfigError, CorpusError, LanguageError
from hooked_whisper.saes.corpus_item import CorpusItem
from hooked_whisper.saes.harvest_plan import (
    Packing,
    Piece,
    TextFrom,
    Window,
    WindowLength,
    cut,
    into_batches,
    into_windows,
)
from hooked_whisper.saes.store_files import Position

if TYPE_CHECKING:
    from hooked_whisper.model import HookedWhisper

RATES: dict[Position, float | None] = {"frame": 50.0, "mel_frame": 100.0, "token": None}  # rows a second


@dataclass(frozen=True)
class RunOptions:
    """How a harvest or stream runs the model; see `hooked_whisper.saes.harvest`."""

    batch_size: int = 16
    packing: Packing = "none"
    window: WindowLength = "full"
    text: TextFrom = "corpus"
    prompt: bool = False

    def check(self, position: Position) -> None:
        """Raises ConfigError for an option that is unknown, or of no use for rows of this kind."""
        for name, known in (
            ("packing", ("none", "windows")),
            ("window", ("full", "true_length")),
            ("text", ("corpus", "own")),
        ):
            if getattr(self, name) not in known:
                raise ConfigError(f"Unknown {name} {getattr(self, name)!r}: expected {' or '.join(map(repr, known))}.")
        if self.batch_size < 1:
            raise ConfigError(f"batch_size must be at least 1, got {self.batch_size}.")
        if position == "token" and self.packing != "none":
            raise ConfigError(
                "packing='windows' puts several clips into one window, and the decoder transcribes a window as a "
                "whole: harvest decoder hooks with packing='none'."
            )
        if position != "token" and (self.text != "corpus" or self.prompt):
            raise ConfigError("text= and prompt= are about decoder tokens, and these hooks have a row for each frame.")


def position_of(hooks: Sequence[str]) -> Position:
    """What a row of these hooks is.

    Raises:
        ConfigError: hooks without rows (patterns, positions), or of different kinds of rows.
    """
    kinds: dict[Position, str] = {}
    for hook in hooks:
        names = axes(hook)
        if names[0] != "batch" or len([axis for axis in names if axis in (*FRAME_AXES, "pos", "key_pos")]) != 1:
            raise ConfigError(
                f"{hook!r} has the axes {' '.join(names)}: expected one of frames or tokens, to make rows of. Patterns "
                "and scores are in the cache: model.run_with_cache."
            )
        kinds.setdefault("token" if "pos" in names else "mel_frame" if "mel_frame" in names else "frame", hook)
    if len(kinds) > 1:
        said = ", ".join(f"{hook!r} for each {kind.replace('_', ' ')}" for kind, hook in kinds.items())
        raise ConfigError(f"These hooks have different rows ({said}): harvest them into stores of their own.")
    return next(iter(kinds))


def row_width(model: HookedWhisper, hooks: Sequence[str]) -> dict[str, int]:
    """Width of a row of each hook, read off a run on 20 ms of nothing."""
    mel = torch.zeros(1, model.cfg.n_mels, 2, device=model.device, dtype=model.dtype)
    with torch.no_grad():
        kept = _run(model, mel, hooks, text=_start(model), language=None)
    return {hook: _rows(hook, value).shape[-1] for hook, value in kept.cache_dict.items()}


def _start(model: HookedWhisper) -> list[int]:
    return [0 if model.tokenizer is None else model.tokenizer.sot]


def _run(model: HookedWhisper, mel: Tensor, hooks: Sequence[str], text: Any, language: Any) -> Any:
    """A cache of the hooks; nothing after the deepest is computed."""
    names = model.resolve_names(list(hooks))
    encoder_only = all(name == "hook_mel" or name.startswith("encoder.") for name in names)
    by_head = model.cfg.use_split_qkv_input or model.cfg.use_attn_in  # norms then run once for each of q, k, v
    deepest = None if encoder_only or by_head else names[-1]
    return_type = "auto" if encoder_only else None
    _, cache = model.run_with_cache(
        mel, text, names_filter=names, stop_at=deepest, language=language, return_type=return_type
    )
    return cache


def _rows(hook: str, value: Tensor) -> Float[Tensor, "batch row width"]:
    """An activation with its rows in the second place and everything else in the last."""
    if axes(hook, value.ndim)[-1] in FRAME_AXES:  # the spectrogram
        value = value.transpose(1, 2)
    return value.reshape(*value.shape[:2], -1)


@dataclass
class Clock:
    """Seconds inside the model, and windows that it was given."""

    model_seconds: float = 0.0
    n_windows: int = 0


@dataclass
class BlockRows:
    """The rows of one block of clips, clip after clip.

    Attributes:
        rows: of each hook, [row width].
        per_row: further columns of the table of rows.
        n_rows: of each clip.
        n_windows: how many windows the model was given.
    """

    rows: dict[str, Tensor]
    per_row: dict[str, np.ndarray]
    n_rows: list[int]
    n_windows: int


@dataclass
class _PieceRows:
    rows: dict[str, Tensor] = field(default_factory=dict)
    per_row: dict[str, np.ndarray] = field(default_factory=dict)


class Runner:
    """Takes rows of activations out of a model.

    Args:
        model: where they come from.
        hooks: full names, in the model's order.
        options: how to run it.
        dtype: of the rows.
    """

    def __init__(
        self, model: HookedWhisper, hooks: Sequence[str], options: RunOptions, dtype: torch.dtype = torch.float32
    ) -> None:
        self.model = model
        self.hooks = tuple(hooks)
        self.position: Position = position_of(hooks)
        options.check(self.position)
        self.options = options
        self.dtype = dtype
        self.clock = Clock()
        if self.position == "token" and model.tokenizer is None:
            raise ConfigError("Rows of tokens need the model's tokenizer, and this model has none.")

    def check_clip(self, item: CorpusItem, n_samples: int) -> None:
        """Raises CorpusError where a clip cannot be harvested: without text, over 30 s or over the context."""
        tokenizer = self.model.tokenizer
        if self.position != "token" or tokenizer is None:
            return
        if item.language is not None and tokenizer.is_multilingual:
            try:
                tokenizer.language_code(item.language)
            except LanguageError as error:
                raise CorpusError(f"Clip {item.id!r}: {error}") from error
        if self.options.text == "own":
            return
        if item.text is None:
            raise CorpusError(f"Clip {item.id!r} has no text to feed the decoder: give it one, or use text='own'.")
        if n_samples > self.model.cfg.n_frames * SAMPLES_PER_FRAME:
            raise CorpusError(
                f"Clip {item.id!r} is longer than a window, so its text does not fit what the decoder hears: cut it "
                "(offset and duration in a manifest), or use text='own'."
            )
        n_tokens = len(tokenizer.to_tokens(item.text)) + len(self._prompt(item))
        if n_tokens > self.model.cfg.n_ctx:
            raise CorpusError(
                f"Clip {item.id!r} has a text of {n_tokens} tokens, prompt included: the decoder's context holds "
                f"{self.model.cfg.n_ctx}."
            )

    def _prompt(self, item: CorpusItem) -> list[int]:
        """A prompt of the length that the clip will have."""
        tokenizer = self.model.tokenizer
        assert tokenizer is not None
        return tokenizer.prompt((item.language or "en") if tokenizer.is_multilingual else None)

    def count_rows(self, item: CorpusItem, n_samples: int) -> int | None:
        """Rows that a clip will have, without running the model; None where only that can tell."""
        rate = RATES[self.position]
        if rate is not None:
            return sum(self._frame_range(piece)[1] for piece in cut([n_samples], self.model.cfg.n_frames))
        if self.options.text == "own" or item.text is None or self.model.tokenizer is None:
            return None
        return len(self.model.tokenizer.to_tokens(item.text)) + (len(self._prompt(item)) if self.options.prompt else 0)

    @torch.no_grad()
    def run(
        self,
        items: Sequence[CorpusItem],
        waveforms: Sequence[Float[Tensor, "_"]],
        *,
        on_rows: Callable[[int], object] | None = None,
    ) -> BlockRows:
        """Rows of all hooks for clips that belong together; `on_rows` is told how many there are after each batch."""
        frames = self.model.cfg.n_frames
        pieces = cut([len(waveform) for waveform in waveforms], frames)
        windows = into_windows(pieces, frames, self.options.packing)
        number = {id(window): index for index, window in enumerate(windows)}
        found: dict[tuple[int, int], _PieceRows] = {}
        for length, batch in into_batches(windows, frames, self.options.batch_size, self.options.window):
            mel, cache = self._forward(batch, length, items, waveforms)
            taken = self._frame_rows(batch, cache) if self.position != "token" else self._token_rows(batch, cache)
            for window, piece, rows in taken:
                rows.per_row["window"] = np.full(_length(rows), number[id(window)], dtype=np.int32)
                found[piece.clip, piece.start] = rows
            self.clock.n_windows += len(batch)
            if on_rows is not None:
                on_rows(sum(_length(rows) for _, _, rows in taken))
            del mel, cache
        return self._in_order(items, pieces, found, len(windows))

    def _forward(
        self, batch: Sequence[Window], length: int, items: Sequence[CorpusItem], waveforms: Sequence[Tensor]
    ) -> tuple[Tensor, Any]:
        model = self.model
        began = time.perf_counter()
        audio = [_sound(window, waveforms) for window in batch]
        mel = model.log_mel([clip.to(model.device) for clip in audio], 2 * length).to(model.dtype)
        text: Any = _start(model)
        language: Any = None
        if self.position == "token":
            of_window = [items[window.pieces[0].clip] for window in batch]
            text = [cast("str", item.text) for item in of_window] if self.options.text == "corpus" else None
            multilingual = model.tokenizer is not None and model.tokenizer.is_multilingual
            language = [item.language for item in of_window] if multilingual else None
        cache = _run(model, mel, self.hooks, text, language)
        if model.device.type == "cuda":
            torch.cuda.synchronize(model.device)
        self.clock.model_seconds += time.perf_counter() - began
        return mel, cache

    def _frame_range(self, piece: Piece) -> tuple[int, int]:
        """First row of a piece in its window, and how many it has."""
        if self.position == "frame":
            return piece.place, piece.n_frames
        return 2 * piece.place, -(-2 * piece.n_samples // SAMPLES_PER_FRAME)

    def _frame_rows(self, batch: Sequence[Window], cache: Any) -> list[tuple[Window, Piece, _PieceRows]]:
        rate = RATES[self.position]
        assert rate is not None
        found = [(window, piece, _PieceRows()) for window in batch for piece in window.pieces]
        spans = [(row, *self._frame_range(piece)) for row, window in enumerate(batch) for piece in window.pieces]
        for hook in self.hooks:
            value = _rows(hook, cache.cache_dict[hook])
            for (*_, rows), part in zip(found, _parts(value, spans, self.dtype), strict=True):
                rows.rows[hook] = part
        for (_, piece, rows), (_, first, count) in zip(found, spans, strict=True):
            frame = np.arange(count, dtype=np.int32) + round(piece.start * rate / 16_000)
            rows.per_row["frame"] = frame
            rows.per_row["time"] = (frame / rate).astype(np.float32)
            rows.per_row["position"] = np.arange(first, first + count, dtype=np.int32)
        return found

    def _token_rows(self, batch: Sequence[Window], cache: Any) -> list[tuple[Window, Piece, _PieceRows]]:
        run, tokenizer = cache.run, self.model.tokenizer
        assert tokenizer is not None
        stops = run.token_mask.sum(-1).tolist()
        starts = [0] * len(stops) if self.options.prompt else run.prompt_lengths
        spans = [(row, start, stop - start) for row, (start, stop) in enumerate(zip(starts, stops, strict=True))]
        found = [(window, window.pieces[0], _PieceRows()) for window in batch]
        for hook in self.hooks:
            value = _rows(hook, cache.cache_dict[hook])
            for (*_, rows), part in zip(found, _parts(value, spans, self.dtype), strict=True):
                rows.rows[hook] = part
        for (_, _, rows), (row, first, count) in zip(found, spans, strict=True):
            tokens = run.tokens[row, first : first + count].tolist()
            rows.per_row["position"] = np.arange(first, first + count, dtype=np.int32)
            rows.per_row["token"] = np.array(tokens, dtype=np.int32)
            rows.per_row["string"] = np.array([*tokenizer.to_str_tokens(tokens), None], dtype=object)[:-1]
        return found

    def _in_order(
        self,
        items: Sequence[CorpusItem],
        pieces: Sequence[Piece],
        found: Mapping[tuple[int, int], _PieceRows],
        n_windows: int,
    ) -> BlockRows:
        ordered = [found[piece.clip, piece.start] for piece in pieces]
        n_rows = [0] * len(items)
        for piece, rows in zip(pieces, ordered, strict=True):
            n_rows[piece.clip] += _length(rows)
        if not ordered:
            return BlockRows({}, {}, n_rows, 0)
        return BlockRows(
            {hook: torch.cat([rows.rows[hook] for rows in ordered]) for hook in self.hooks},
            {name: np.concatenate([rows.per_row[name] for rows in ordered]) for name in ordered[0].per_row},
            n_rows,
            n_windows,
        )


def _length(rows: _PieceRows) -> int:
    return len(next(iter(rows.rows.values())))


def _sound(window: Window, waveforms: Sequence[Tensor]) -> Float[Tensor, "samples"]:
    """The pieces of a window, each at its place, silence between them up to the next frame."""
    last = window.pieces[-1]
    sound = torch.zeros(last.place * SAMPLES_PER_FRAME + last.n_samples)
    for piece in window.pieces:
        first = piece.place * SAMPLES_PER_FRAME
        sound[first : first + piece.n_samples] = waveforms[piece.clip][piece.start : piece.start + piece.n_samples]
    return sound


def _parts(
    value: Float[Tensor, "batch row width"], spans: Iterable[tuple[int, int, int]], dtype: torch.dtype
) -> list[Tensor]:
    """The rows of each span (row of the batch, first, count), on the CPU; moved there together."""
    spans = list(spans)
    together = torch.cat([value[row, first : first + count] for row, first, count in spans]).to("cpu", dtype)
    return list(together.split([count for *_, count in spans]))
