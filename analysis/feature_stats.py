"""What each latent does over a store: how often, how strongly, in which languages, and where most.

stats = feature_statistics(codes)
stats.density, stats.by["language"].entropy
for segment in top_segments(codes, 1234, n=10):
    print(segment.clip, segment.start, segment.end, segment.peak)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from hooked_whisper.analysis.codes import FeatureCodes, sparse
from hooked_whisper.errors import AnalysisError


@dataclass(frozen=True)
class GroupStatistics:
    """Activity by the value of a column, such as the language.

    Attributes:
        names: the values.
        density: part of the group's rows on which each latent is active.
        entropy: bits of the distribution over groups that densities make, so that large groups count no more: 0 for a
            latent of one group alone, log2 of their number for one that does not care; NaN for a silent latent.
    """

    names: tuple[str, ...]
    density: Float[np.ndarray, "latent group"]
    entropy: Float[np.ndarray, " latent"]


@dataclass(frozen=True)
class FeatureStatistics:
    """Statistics of every latent over all rows.

    Attributes:
        density: part of the rows on which it is active.
        mean, maximum: of its activation where it is active; 0 for a silent one.
        n_clips: clips in which it is active.
        duration: mean length in seconds of the runs of frames on which it stays active.
        by: activity by language, speaker, ...
    """

    density: Float[np.ndarray, " latent"]
    mean: Float[np.ndarray, " latent"]
    maximum: Float[np.ndarray, " latent"]
    n_clips: Int[np.ndarray, " latent"]
    duration: Float[np.ndarray, " latent"]
    by: dict[str, GroupStatistics]

    @property
    def n_silent(self) -> int:
        """Latents that are never active."""
        return int((self.density == 0).sum())


@dataclass(frozen=True)
class Segment:
    """A stretch of a clip on which a latent stays active.

    Attributes:
        start, end: seconds from the clip's start; the frames run from `start` to `end`.
        peak: largest activation, at `peak_time` (a frame's centre).
        mean: of the activations of all its frames.
        context: start and end of the segment with its surroundings.
    """

    clip: str
    start: float
    end: float
    peak: float
    peak_time: float
    mean: float
    context: tuple[float, float]


@dataclass(frozen=True)
class Frame:
    """A frame on which a latent is active, centred at `time` seconds of the clip."""

    clip: str
    time: float
    activation: float


def feature_statistics(codes: FeatureCodes, *, by: Sequence[str] = ("language", "speaker")) -> FeatureStatistics:
    """Statistics of every latent; cheap: a few passes over the active entries.

    Args:
        by: columns by whose values activity is counted.

    Raises:
        AnalysisError: a column that is not there.
    """
    matrix = codes.by_latent
    active = np.diff(matrix.indptr)
    latent = np.repeat(np.arange(codes.n_latents), active)
    total = np.bincount(latent, matrix.data.astype(np.float64), minlength=codes.n_latents)
    maximum = np.zeros(codes.n_latents, dtype=np.float64)
    alive = active > 0
    if alive.any():
        maximum[alive] = np.maximum.reduceat(matrix.data, matrix.indptr[:-1][alive])
    rows = matrix.indices
    begins = np.ones(len(rows), dtype=bool)
    begins[1:] = (latent[1:] != latent[:-1]) | ~_follows(codes, rows[:-1], rows[1:])
    clip_changes = np.ones(len(rows), dtype=bool)
    clip_changes[1:] = (latent[1:] != latent[:-1]) | (codes.clip[rows[1:]] != codes.clip[rows[:-1]])
    runs = np.bincount(latent[begins], minlength=codes.n_latents)
    return FeatureStatistics(
        density=active / max(codes.n_rows, 1),
        mean=total / np.maximum(active, 1),
        maximum=maximum,
        n_clips=np.bincount(latent[clip_changes], minlength=codes.n_latents),
        duration=active / np.maximum(runs, 1) / codes.frames_per_second,
        by={name: _by_group(codes, name) for name in by},
    )


def _follows(codes: FeatureCodes, before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Whether a row is the frame right after another of the same clip."""
    return (codes.clip[after] == codes.clip[before]) & (codes.frame[after] == codes.frame[before] + 1)


def _by_group(codes: FeatureCodes, column: str) -> GroupStatistics:
    of, names = codes.groups(column)
    known = np.flatnonzero(of >= 0)
    member = sparse.csr_array((np.ones(len(known)), (known, of[known])), shape=(codes.n_rows, len(names)))
    fired = codes.acts.astype(bool).astype(np.float64)
    density = (fired.T @ member).toarray() / np.maximum(np.bincount(of[known], minlength=len(names)), 1)
    total = density.sum(1, keepdims=True)
    share = density / np.where(total > 0, total, 1)
    bits = -(share * np.log2(np.where(share > 0, share, 1))).sum(1)
    return GroupStatistics(names, density, np.where(total[:, 0] > 0, bits, np.nan))


def top_frames(codes: FeatureCodes, latent: int, n: int = 10) -> list[Frame]:
    """The frames on which a latent is most active.

    Raises:
        AnalysisError: a latent that is not there.
    """
    rows, values = codes.latent(latent)
    chosen = np.argsort(-values, kind="stable")[:n]
    return [
        Frame(codes.clips[codes.clip[row]], (int(codes.frame[row]) + 0.5) / codes.frames_per_second, float(value))
        for row, value in zip(rows[chosen], values[chosen], strict=True)
    ]


def top_segments(
    codes: FeatureCodes, latent: int, n: int = 10, *, bridge: int = 1, context: float = 0.5, one_per_clip: bool = True
) -> list[Segment]:
    """The stretches on which a latent is most active, by their peak; they never overlap.

    Args:
        bridge: frames of silence within a segment at most.
        context: seconds to either side that the context holds, as far as the clip's frames go.
        one_per_clip: at most one segment of each clip, so that one recording does not fill the list.

    Raises:
        AnalysisError: a latent that is not there, or numbers that cannot be.
    """
    if n < 1 or bridge < 0 or context < 0:
        raise AnalysisError(f"n={n}, bridge={bridge}, context={context}: expected at least 1, 0 and 0.")
    rows, values = codes.latent(latent)
    if not len(rows):
        return []
    clip, frame = codes.clip[rows], codes.frame[rows].astype(np.int64)
    begins = np.flatnonzero(np.concatenate([[True], (clip[1:] != clip[:-1]) | (np.diff(frame) > bridge + 1)]))
    ends = np.append(begins[1:], len(rows))
    peaks = np.maximum.reduceat(values, begins)
    means = np.add.reduceat(values.astype(np.float64), begins) / (frame[ends - 1] - frame[begins] + 1)
    order = np.argsort(-peaks, kind="stable")
    if one_per_clip:
        _, first = np.unique(clip[begins[order]], return_index=True)
        order = order[np.sort(first)]
    rate = codes.frames_per_second
    found = []
    for index in order[:n]:
        part = slice(begins[index], ends[index])
        of_clip = codes.frame[codes.clip == clip[begins[index]]]
        start, end = frame[part][0] / rate, (frame[part][-1] + 1) / rate
        around = (max(start - context, of_clip.min() / rate), min(end + context, (of_clip.max() + 1) / rate))
        found.append(
            Segment(
                clip=codes.clips[clip[begins[index]]],
                start=float(start),
                end=float(end),
                peak=float(peaks[index]),
                peak_time=float((frame[part][values[part].argmax()] + 0.5) / rate),
                mean=float(means[index]),
                context=(float(around[0]), float(around[1])),
            )
        )
    return found
