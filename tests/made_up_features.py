"""Codes and labels made up for tests: known features, confounds, and nothing at all."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hooked_whisper.analysis.codes import FeatureCodes, sparse
from hooked_whisper.analysis.frame_labels import FrameLabels

FRAMES_A_CLIP = 60


def labels_of(columns: dict[str, np.ndarray], known: dict[str, np.ndarray] | None = None) -> FrameLabels:
    """From "kind=value" and the rows on which it holds; and the rows on which kinds are known."""
    kinds = tuple(name.partition("=")[0] for name in columns)
    matrix = sparse.csr_array(np.stack(list(columns.values()), 1).astype(bool))
    order = tuple(dict.fromkeys(kinds))
    masks = None
    if known is not None:
        everywhere = np.ones(matrix.shape[0], dtype=bool)
        masks = sparse.csr_array(np.stack([known.get(kind, everywhere) for kind in order], 1))
    return FrameLabels(matrix, tuple(columns), kinds, masks)


def one_label_a_row(kind: str, of: np.ndarray, values: Sequence[str] | None = None) -> dict[str, np.ndarray]:
    """Columns of a kind of which each row has one value; -1 is none."""
    names = [str(value) for value in range(of.max() + 1)] if values is None else values
    return {f"{kind}={name}": of == index for index, name in enumerate(names)}


def codes_of(dense: np.ndarray, n_clips: int, **columns: np.ndarray) -> FeatureCodes:
    """Codes of clips of equal length."""
    clip = np.arange(len(dense)) * n_clips // len(dense)
    frame = np.arange(len(dense)) - np.searchsorted(clip, clip)
    names = tuple(f"clip-{index}" for index in range(n_clips))
    return FeatureCodes(
        sparse.csr_array(dense.astype(np.float32)),
        clip.astype(np.int32),
        frame.astype(np.int32),
        names,
        columns,
        "made up",
    )


def segments(n_rows: int, n_values: int, length: int, generator: np.random.Generator) -> np.ndarray:
    """A value for each row that lasts for about `length` rows, as phones do."""
    change = generator.random(n_rows) < 1 / length
    number = np.cumsum(change)
    return generator.integers(n_values, size=number[-1] + 1)[number]


def follow(where: np.ndarray, generator: np.random.Generator, *, hit: float = 0.85, noise: float = 0.01) -> np.ndarray:
    """A latent that is mostly active where something is there, and rarely and weakly elsewhere."""
    active = np.where(where, generator.random(len(where)) < hit, generator.random(len(where)) < noise)
    return active * np.where(where, 1.0, 0.5) * generator.gamma(4.0, 0.25, len(where))
