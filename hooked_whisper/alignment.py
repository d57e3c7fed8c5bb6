"""When each word was said: cross-attention of the heads that follow the audio, aligned by dynamic time warping.

The method is Whisper's own word timing (openai/whisper, `timing.py`): patterns of a few heads found to move with the
audio are standardised over the tokens, smoothed, averaged and aligned. A token belongs to the position that predicts
it, the one before it: that is where the decoder listens for it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from hooked_whisper.audio import FRAMES_PER_SECOND
from hooked_whisper.errors import CacheError, ConfigError, TextError
from hooked_whisper.tokenizer import APPENDED_PUNCTUATION, PREPENDED_PUNCTUATION

if TYPE_CHECKING:
    from hooked_whisper.cache import WhisperCache
    from hooked_whisper.model import HookedWhisper

MEDIAN_WIDTH = 7  # frames
SENTENCE_ENDS = ".。!！?？"
# A word after a pause seems to begin where the one before it ended. As in Whisper's own timing it is held to twice
# the median word; medians over 0.7 s are taken for pauses, too.
_LONGEST_MEDIAN = 0.7  # seconds


@dataclass(frozen=True)
class Word:
    """A word and when it was said.

    `start` and `end` are seconds from the beginning of the window; `tokens` are ids, `positions` where they stand in
    `cache.tokens`; `probability` is the mean over the tokens, None where the cache has no logits.
    """

    text: str
    start: float
    end: float
    tokens: list[int]
    positions: list[int]
    probability: float | None = None


def token_times(
    patterns: Float[Tensor, "head row frame"], n_frames: int, *, median_width: int = MEDIAN_WIDTH
) -> Float[np.ndarray, "row 2"]:
    """Start and end in seconds of what each row of cross-attention listens to.

    Args:
        patterns: attention over frames of 20 ms of the heads that follow the audio; a row is a decoder position.
        n_frames: frames that hold audio; what comes after them is left out.
        median_width: of the filter over frames, odd.

    Returns:
        [row, (start, end)]: the rows part the time from 0 to the end of the audio among them.

    Raises:
        ConfigError: nothing to align, or an even width.
    """
    heads, rows, frames = patterns.shape
    if heads == 0 or rows == 0 or not 0 < n_frames <= frames:
        raise ConfigError(
            f"Nothing to align: patterns of {heads} heads, {rows} rows and {frames} frames, n_frames={n_frames}; "
            "expected at least one of each, and n_frames within the patterns."
        )
    if median_width < 1 or median_width % 2 == 0:
        raise ConfigError(f"median_width must be odd and positive, got {median_width}.")
    weights = patterns[..., :n_frames].detach().float().cpu()
    std, mean = torch.std_mean(weights, dim=-2, keepdim=True, unbiased=False)
    standard = torch.where(std > 0, (weights - mean) / std, 0.0)  # a single row has no spread
    matrix = median_filter(standard, median_width).mean(0)
    row_of, frame_of = warp(-matrix.double().numpy())
    first = np.flatnonzero(np.diff(row_of, prepend=-1))
    starts = frame_of[first] / FRAMES_PER_SECOND
    return np.stack([starts, np.append(starts[1:], n_frames / FRAMES_PER_SECOND)], axis=1)


def median_filter(x: Float[Tensor, "*place frame"], width: int) -> Float[Tensor, "*place frame"]:
    """Median over `width` frames around each, mirrored at the ends; input shorter than half the width is left alone."""
    half = width // 2
    if half == 0 or x.shape[-1] <= half:
        return x
    left = x[..., 1 : half + 1].flip(-1)
    right = x[..., -half - 1 : -1].flip(-1)
    return torch.cat([left, x, right], dim=-1).unfold(-1, width, 1).sort(-1).values[..., half]


def warp(cost: Float[np.ndarray, "row column"]) -> tuple[np.ndarray, np.ndarray]:
    """The cheapest monotonic path from one corner of `cost` to the other, as row and column indices.

    Computed along anti-diagonals. Sums are kept in float32 and ties go to the next column, as in Whisper's own, so
    that paths are the same.
    """
    n, m = cost.shape
    total = np.full((n + 1, m + 1), np.inf, dtype=np.float32)
    total[0, 0] = 0
    step = np.full((n + 1, m + 1), 2, dtype=np.int8)  # 0: from the corner, 1: from above, 2: from the left
    step[:, 0] = 1
    step[0, :] = 2
    for diagonal in range(2, n + m + 1):
        i = np.arange(max(1, diagonal - m), min(n, diagonal - 1) + 1)
        j = diagonal - i
        corner, above, left = total[i - 1, j - 1], total[i - 1, j], total[i, j - 1]
        from_corner = (corner < above) & (corner < left)
        from_above = (above < corner) & (above < left)
        best = np.where(from_corner, corner, np.where(from_above, above, left))
        total[i, j] = cost[i - 1, j - 1] + best.astype(np.float64)
        step[i, j] = np.where(from_corner, 0, np.where(from_above, 1, 2))
    rows, columns = [], []
    i, j = n, m
    while i > 0 or j > 0:
        rows.append(i - 1)
        columns.append(j - 1)
        taken = step[i, j]
        i, j = i - (taken != 2), j - (taken != 1)
    return np.array(rows[::-1]), np.array(columns[::-1])


def align_words(model: HookedWhisper, cache: WhisperCache, clip: int = 0) -> list[Word]:
    """The words of clip `clip` with their times, from the cross-attention in `cache`.

    Needs the patterns of `model.cfg.alignment_heads`, or their q and k, for all frames. The last word ends where the
    decoder turns to the end token.

    Raises:
        ConfigError: a checkpoint that publishes no alignment heads.
        CacheError: cross-attention that was not kept, or a cache that is cut in time.
        TextError: a model without a tokenizer.
    """
    heads = model.cfg.alignment_heads
    if not heads:
        raise ConfigError(
            f"{model.cfg.model_name} names no alignment heads, so words have no times: set "
            "model.cfg.alignment_heads to the (layer, head) pairs of cross-attention that follow the audio, or load a "
            "checkpoint whose generation configuration has them."
        )
    if model.tokenizer is None:
        raise TextError("Words need a tokenizer, and this model has none: pass tokenizer= when you load it.")
    if cache.is_cut:
        raise CacheError("Words are timed over the whole window: call this on the cache before seconds() or word().")
    tokens, special = cache.clip_tokens(clip), model.tokenizer.special_ids
    places = [p for p in range(cache.prompt_lengths[clip], len(tokens)) if tokens[p] not in special]
    n_frames = cache.n_frames(clip)
    if not places or n_frames == 0:
        return []
    queries = [place - 1 for place in places] + [places[-1]]  # each token's predictor, and the end token's
    times = token_times(_head_patterns(cache, heads, clip)[:, queries], n_frames)
    probabilities = _probabilities(cache, clip, tokens, places, model.tokenizer.eot)
    ids = [tokens[place] for place in places]
    words = []
    for text, indices in model.tokenizer.to_words(ids, cache.languages[clip]):
        spoken = _spoken(model.tokenizer.to_str_tokens([ids[i] for i in indices]))
        words.append(
            Word(
                text=text,
                start=round(float(times[indices[spoken[0]], 0]), 2),  # frames are 0.02 s
                end=round(float(times[indices[spoken[-1]], 1]), 2),
                tokens=[ids[i] for i in indices],
                positions=[places[i] for i in indices],
                probability=None if probabilities is None else float(probabilities[indices].mean()),
            )
        )
    return _shorten_after_pauses(words)


def _spoken(pieces: list[str]) -> list[int]:
    """Indices of the tokens that are said: all but punctuation, to which the pauses around a word are aligned."""
    marks = PREPENDED_PUNCTUATION.replace("'", "") + APPENDED_PUNCTUATION + " "  # "'" is said: l'eau, don't
    said = [i for i, piece in enumerate(pieces) if piece.strip(marks)]
    return said or list(range(len(pieces)))


def _shorten_after_pauses(words: list[Word]) -> list[Word]:
    """Words that begin a sentence, held to twice the median word: the pause before them is not theirs."""
    lengths = [word.end - word.start for word in words if word.end > word.start]
    if not lengths:
        return words
    longest = 2 * min(float(np.median(lengths)), _LONGEST_MEDIAN)
    begins = [True] + [word.text.strip()[-1:] in SENTENCE_ENDS for word in words[:-1]]
    return [
        replace(word, start=word.end - longest) if begin and word.end - word.start > longest else word
        for word, begin in zip(words, begins, strict=True)
    ]


def _head_patterns(cache: WhisperCache, heads: list[tuple[int, int]], clip: int) -> Float[Tensor, "head pos frame"]:
    patterns: dict[int, Any] = {}
    for layer in sorted({layer for layer, _ in heads}):
        pattern = cache[f"decoder.blocks.{layer}.cross_attn.hook_pattern"]
        patterns[layer] = pattern[clip] if cache.has_batch_dim else pattern
    return torch.stack([patterns[layer][head] for layer, head in heads])


def _probabilities(cache: WhisperCache, clip: int, tokens: list[int], places: list[int], eot: int) -> np.ndarray | None:
    """Of each token at `places`, among all text tokens."""
    if "hook_logits" not in cache:
        return None
    logits = cache["hook_logits"]
    logits = logits[clip] if cache.has_batch_dim else logits
    rows = logits[[place - 1 for place in places], :eot].float().softmax(-1)
    picked = rows[torch.arange(len(places)), torch.tensor([tokens[place] for place in places], device=rows.device)]
    return picked.cpu().numpy()
