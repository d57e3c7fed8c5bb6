"""Labels as a table with a row for each frame: what a feature's activations are compared with.

    table = frame_labels(labels, codes.clip, codes.frame, codes.clips)
    table.names[:3]                                        # ("phone=a", "phone=b", "phone=d")
    table.matrix[:, table.index("phone=p")]                # the frames of /p/

A frame of 20 ms has the label of the interval that contains its middle, (frame + 0.5) / 50 s, or another moment of it:
`centre`. What Whisper's encoder hears in a frame is centred on the frame's start: frame n of its spectrogram is centred
on n / 100 s, and its strided convolution takes 2 n for frame n. `centre=0` looks up labels there. Where a clip lacks a
tier, its frames say nothing of that kind: `known` tells these from frames in a gap, which have no label but could have.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Integer

from hooked_whisper.analysis.labels import Labels
from hooked_whisper.errors import AnalysisError, MissingExtraError, did_you_mean


@dataclass(frozen=True)
class FrameLabels:
    """A sparse table of labels.

    Attributes:
        matrix: [row, label] of truth values, `scipy.sparse.csr_array`.
        names: of the labels, "kind=value": "phone=p", "word=two", "language=es".
        kinds: what stands before "=", for each label.
        known: [row, kind] of truth values, sparse too, in the order of `kind_names`: whether the row's clip is labelled
            for that kind at all. None if all is.
    """

    matrix: Any
    names: tuple[str, ...]
    kinds: tuple[str, ...]
    known: Any = None

    def __post_init__(self) -> None:
        if self.matrix.shape[1] != len(self.names) or len(self.names) != len(self.kinds):
            raise AnalysisError(
                f"A table of {self.matrix.shape[1]} columns has {len(self.names)} names and {len(self.kinds)} kinds: "
                "expected one of each for a column."
            )
        if len(set(self.names)) < len(self.names):
            twice = next(name for name in self.names if self.names.count(name) > 1)
            raise AnalysisError(f"Two labels are called {twice!r}.")
        if self.known is not None and self.known.shape != (self.matrix.shape[0], len(self.kind_names)):
            raise AnalysisError(
                f"known is {self.known.shape}, expected ({self.matrix.shape[0]}, {len(self.kind_names)})."
            )

    @property
    def kind_names(self) -> tuple[str, ...]:
        """The kinds, each once, in the order of the columns of `known`."""
        return tuple(dict.fromkeys(self.kinds))

    @property
    def counts(self) -> np.ndarray:
        """[label]: how many rows have it."""
        return np.bincount(self.matrix.indices, minlength=len(self.names))

    def __len__(self) -> int:
        """Rows."""
        return int(self.matrix.shape[0])

    def index(self, name: str) -> int:
        """The column of a label.

        Raises:
            AnalysisError: no such label.
        """
        if name not in self.names:
            raise AnalysisError(f"There is no label {name!r}." + did_you_mean(name, self.names))
        return self.names.index(name)

    def column(self, name: str) -> Bool[np.ndarray, " row"]:
        """Which rows have a label.

        Raises:
            AnalysisError: no such label.
        """
        return self.matrix[:, [self.index(name)]].toarray()[:, 0].astype(bool)

    def known_rows(self, kind: str) -> Bool[np.ndarray, " row"]:
        """Which rows are labelled for a kind.

        Raises:
            AnalysisError: no such kind.
        """
        if kind not in self.kind_names:
            raise AnalysisError(f"There is no kind {kind!r}: there are {', '.join(self.kind_names)}.")
        if self.known is None:
            return np.ones(len(self), dtype=bool)
        return self.known[:, [self.kind_names.index(kind)]].toarray()[:, 0].astype(bool)

    def select(
        self, *, kinds: Collection[str] | None = None, min_rows: int = 1, rows: Bool[np.ndarray, " row"] | None = None
    ) -> FrameLabels:
        """The labels of these kinds that at least `min_rows` rows have, of all rows or of some.

        Raises:
            AnalysisError: a kind that is not there, or no label left.
        """
        for kind in kinds or ():
            self.known_rows(kind)
        matrix, known = self.matrix, self.known
        if rows is not None:
            matrix, known = matrix[rows], None if known is None else known[rows]
        counts = np.bincount(matrix.indices, minlength=len(self.names))
        kept = [i for i, kind in enumerate(self.kinds) if (kinds is None or kind in kinds) and counts[i] >= min_rows]
        if not kept:
            raise AnalysisError(f"No label has {min_rows} rows: the largest has {counts.max(initial=0)}.")
        left = tuple(self.kinds[i] for i in kept)
        if known is not None:
            known = known[:, [self.kind_names.index(kind) for kind in dict.fromkeys(left)]]
        return FrameLabels(matrix[:, kept], tuple(self.names[i] for i in kept), left, known)

    def join(self, *others: FrameLabels) -> FrameLabels:
        """The labels of several tables of the same rows, side by side.

        Raises:
            AnalysisError: tables of different lengths, or with a kind in common.
        """
        sparse = _import_sparse()
        tables = (self, *others)
        for one in others:
            if len(one) != len(self):
                raise AnalysisError(f"Tables of {len(self)} and {len(one)} rows: expected the same rows.")
        every = [kind for one in tables for kind in one.kind_names]
        if len(set(every)) < len(every):
            raise AnalysisError(f"Two tables have the kind {next(k for k in every if every.count(k) > 1)!r}.")
        known = None
        if any(one.known is not None for one in tables):
            known = sparse.csr_array(sparse.hstack([_known(one) for one in tables]))
        return FrameLabels(
            sparse.csr_array(sparse.hstack([one.matrix for one in tables])),
            tuple(name for one in tables for name in one.names),
            tuple(kind for one in tables for kind in one.kinds),
            known,
        )


def frame_labels(
    labels: Labels,
    clip: Integer[np.ndarray, " row"],
    frame: Integer[np.ndarray, "_"],
    clips: Sequence[str],
    *,
    tiers: Collection[str] | None = None,
    frames_per_second: float = 50.0,
    centre: float = 0.5,
) -> FrameLabels:
    """A table of labels whose rows are frames: those of a `FeatureCodes`, in its order.

    Args:
        labels: of the clips; clips without labels give rows of which nothing is known.
        clip: of each row, as an index into `clips`.
        frame: of each row, counted from its clip's start.
        clips: ids of the clips, as the labels call them (`labels.for_clips(clips)` pairs them).
        tiers: which become labels; None takes all.
        frames_per_second: of the frames; Whisper's encoder has 50.
        centre: the moment of a frame whose label it has, in frames from its start.

    Raises:
        AnalysisError: rows that name no clip, negative frames, a centre that is not finite, labels of none of the
            clips, tiers that are not there.
        MissingExtraError: scipy is not installed.
    """
    sparse = _import_sparse()
    clip, frame = np.asarray(clip), np.asarray(frame)
    if clip.shape != frame.shape or clip.ndim != 1:
        raise AnalysisError(f"clip is {clip.shape} and frame {frame.shape}: expected one of each for a row.")
    if len(clip) and not 0 <= clip.min() <= clip.max() < len(clips):
        raise AnalysisError(f"Rows are of clips {clip.min()} to {clip.max()}, and there are {len(clips)}.")
    if len(frame) and frame.min() < 0:
        raise AnalysisError(f"Frame {frame.min()}: frames count from 0 at their clip's start.")
    if not frames_per_second > 0:
        raise AnalysisError(f"frames_per_second={frames_per_second}: expected a rate above 0.")
    if not np.isfinite(centre):
        raise AnalysisError(f"centre={centre}: expected frames from a frame's start, such as 0 or 0.5.")
    if not any(one in labels.tiers for one in clips):
        raise AnalysisError(
            f"The labels are of none of the {len(clips)} clips: they name {next(iter(labels.tiers), None)!r}, clips "
            f"are {next(iter(clips), None)!r}. Pair them with labels.for_clips(clips)."
        )
    wanted = labels.tier_names if tiers is None else tuple(dict.fromkeys(tiers))
    values = {tier: sorted(labels.seconds(tier)) for tier in wanted}
    names = [(tier, value) for tier in wanted for value in values[tier]]
    column = {name: index for index, name in enumerate(names)}
    shown = [tier for tier in wanted if values[tier]]

    order = np.argsort(clip, kind="stable")
    starts = np.searchsorted(clip[order], np.arange(len(clips) + 1))
    hit_rows: list[np.ndarray] = []
    hit_columns: list[np.ndarray] = []
    known = np.zeros((len(clip), len(shown)), dtype=bool)
    for index, name in enumerate(clips):
        rows = order[starts[index] : starts[index + 1]]
        own = labels.tiers.get(name)
        if own is None or not len(rows):
            continue
        centres = (frame[rows] + centre) / frames_per_second
        for place, tier in enumerate(shown):
            if tier not in own:
                continue
            known[rows, place] = True
            intervals = own[tier]
            if not intervals:
                continue
            at = np.searchsorted([one.start for one in intervals], centres, side="right") - 1
            inside = (at >= 0) & (centres < np.array([one.end for one in intervals])[at])
            columns = np.array([column[tier, one.value] for one in intervals])
            hit_rows.append(rows[inside])
            hit_columns.append(columns[at[inside]])
    return _table(sparse, (len(clip), names), hit_rows, hit_columns, known)


def column_labels(columns: Mapping[str, Any], *, numbers: int = 0) -> FrameLabels:
    """A table of what is known of each row as a whole: language, speaker, key.

    Args:
        columns: kind -> a value for each row; None (or NaN) where it is not known.
        numbers: into how many equal parts a column of fractions is cut; 0 takes each value for a label.

    Raises:
        AnalysisError: columns of different lengths, or none.
    """
    sparse = _import_sparse()
    arrays = {kind: np.asarray(values, dtype=object) for kind, values in columns.items()}
    lengths = {len(values) for values in arrays.values()}
    if len(lengths) != 1:
        raise AnalysisError(f"Columns of {sorted(lengths)} rows: expected one length, that of the table.")
    names: list[tuple[str, str]] = []
    hit_rows: list[np.ndarray] = []
    hit_columns: list[np.ndarray] = []
    known = np.zeros((lengths.pop(), len(arrays)), dtype=bool)
    for place, (kind, values) in enumerate(arrays.items()):
        known[:, place] = [value is not None and value == value for value in values]
        rows = np.flatnonzero(known[:, place])
        there = values[rows]
        if numbers and all(isinstance(value, float | np.floating) for value in there):
            cuts = np.quantile(there.astype(float), np.linspace(0, 1, numbers + 1)[1:-1])
            there = np.array([f"q{part + 1}" for part in np.searchsorted(cuts, there.astype(float), side="right")])
        found, codes = np.unique(np.array([str(value) for value in there]), return_inverse=True)
        hit_rows.append(rows)
        hit_columns.append(codes + len(names))
        names += [(kind, str(value)) for value in found]
    if not names:
        raise AnalysisError(f"Nothing is known of any row: the columns {', '.join(arrays)} are empty.")
    kept = [place for place, kind in enumerate(arrays) if known[:, place].any()]
    return _table(sparse, (len(known), names), hit_rows, hit_columns, known[:, kept])


def _table(
    sparse: Any,
    shape: tuple[int, list[tuple[str, str]]],
    hit_rows: list[np.ndarray],
    hit_columns: list[np.ndarray],
    known: np.ndarray,
) -> FrameLabels:
    n_rows, names = shape
    rows = np.concatenate([*hit_rows, np.zeros(0, int)])
    columns = np.concatenate([*hit_columns, np.zeros(0, int)])
    matrix = sparse.csr_array((np.ones(len(rows), dtype=bool), (rows, columns)), shape=(n_rows, len(names)))
    matrix.sort_indices()
    return FrameLabels(
        matrix,
        tuple(f"{kind}={value}" for kind, value in names),
        tuple(kind for kind, _ in names),
        None if known.all() else sparse.csr_array(known),
    )


def _known(table: FrameLabels) -> Any:
    sparse = _import_sparse()
    if table.known is not None:
        return table.known
    return sparse.csr_array(np.ones((len(table), len(table.kind_names)), dtype=bool))


def _import_sparse() -> Any:
    try:
        import scipy.sparse
    except ImportError as error:
        raise MissingExtraError(
            "Tables of labels need scipy, which cannot be imported: pip install 'hooked-whisper[analysis]'."
        ) from error
    return scipy.sparse
