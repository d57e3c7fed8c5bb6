"""Counts over (latent, label) pairs from sparse codes and sparse labels, without the matrix [row latent] or [row pair].

All scores of a pair follow from the entries at which both are active. A block of latents is sorted once: by latent,
strongest activation first. Its rows of the label matrix, turned by columns, then list for each (label, latent) the
entries in the order in which a falling threshold takes them in, so that a running count is the number of hits at every
threshold at once. Rows on which a latent is silent are one tie at zero, and never touched.

Ties are exact: a threshold takes in all of a tie or nothing of it, and ranks within a tie are their mean.

Cost: linear in the entries, active latents a row times labels a row times rows (400,000 x 45 x 10 = 180 million), but
for the sort within latents.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from hooked_whisper.analysis.codes import CscArray, CsrArray, sparse
from hooked_whisper.analysis.frame_labels import FrameLabels
from hooked_whisper.errors import AnalysisError

_HITS = 4_000_000  # entries of a block at which some label is there, about 0.5 GB of working memory


@dataclass(frozen=True)
class Entries:
    """Active (latent, row) pairs of a block of latents: by cell, then strongest first.

    Attributes:
        key: [entry] the cell in the upper half, the activation's bits turned over in the lower; equal within a tie.
        row, value: [entry].
        n_cells: latents of the block, times strata where ranks are taken within them: cell = latent * strata + stratum.
    """

    key: np.ndarray
    row: np.ndarray
    value: np.ndarray
    n_cells: int

    @classmethod
    def of(
        cls,
        by_latent: CscArray,
        first: int,
        last: int,
        stratum: Int[np.ndarray, " row"] | None = None,
        n_strata: int = 1,
    ) -> Entries:
        """Of the latents `first` to `last`; rows of stratum -1 are left out."""
        part = slice(by_latent.indptr[first], by_latent.indptr[last])
        row, value = by_latent.indices[part], by_latent.data[part].astype(np.float32)
        cell = np.repeat(np.arange(last - first), np.diff(by_latent.indptr[first : last + 1])).astype(np.uint64)
        if stratum is not None:
            of = stratum[row]
            inside = of >= 0
            row, value = row[inside], value[inside]
            cell = cell[inside] * np.uint64(n_strata) + of[inside].astype(np.uint64)
        # Positive floats are ordered as their bits are.
        key = (cell << np.uint64(32)) | (~value.view(np.uint32)).astype(np.uint64)
        order = np.argsort(key)
        return cls(key[order], row[order], value[order], (last - first) * n_strata)

    def keep(self, rows: Bool[np.ndarray, " row"]) -> Entries:
        """Those on some rows."""
        kept = rows[self.row]
        return Entries(self.key[kept], self.row[kept], self.value[kept], self.n_cells)

    @property
    def cell(self) -> np.ndarray:
        """[entry]"""
        return (self.key >> np.uint64(32)).astype(np.int64)

    def cell_starts(self) -> np.ndarray:
        """[cell + 1]: where each cell begins."""
        return np.searchsorted(self.key, np.arange(self.n_cells + 1, dtype=np.uint64) << np.uint64(32))

    def ties(self) -> tuple[np.ndarray, np.ndarray]:
        """[entry]: the first entry of each entry's tie, and the one after its last."""
        edges = np.concatenate([[0], np.flatnonzero(self.key[1:] != self.key[:-1]) + 1, [len(self.key)]])
        if not len(self.key):
            return edges[:0], edges[:0]
        sizes = np.diff(edges)
        return np.repeat(edges[:-1], sizes), np.repeat(edges[1:], sizes)


@dataclass(frozen=True)
class LabelGroup:
    """Labels that are known on the same rows.

    Attributes:
        columns: their numbers.
        matrix: [row label] of all rows, 1 where a label is there.
        known: [row] or None where all are known.
        n_train, n_test: known rows of each half.
        train, test: [label] how many of them have the label.
    """

    columns: np.ndarray
    matrix: CsrArray
    known: np.ndarray | None
    n_train: int
    n_test: int
    train: np.ndarray
    test: np.ndarray


def check_labels(labels: FrameLabels, n_rows: int) -> None:
    """Raises AnalysisError for labels of other rows, or none."""
    if len(labels) != n_rows:
        raise AnalysisError(
            f"The labels are of {len(labels)} rows and the codes have {n_rows}: label the rows of these codes "
            "(their clip, frame and clips)."
        )
    if not labels.names:
        raise AnalysisError("There are no labels.")


def as_ones(matrix: Any) -> CsrArray:
    """A sparse matrix as CSR with ones where it is not zero, each once."""
    found = sparse.csr_array(matrix).astype(bool)
    found.sum_duplicates()
    found.eliminate_zeros()
    return found


def label_groups(labels: FrameLabels, train: Bool[np.ndarray, " row"]) -> list[LabelGroup]:
    """The labels, those that are known on the same rows together."""
    matrix = as_ones(labels.matrix)
    by_mask: dict[bytes, tuple[np.ndarray | None, list[int]]] = {}
    kinds = np.array(labels.kinds)
    for kind in labels.kind_names:
        known = labels.known_rows(kind)
        mask = None if known.all() else known
        _, columns = by_mask.setdefault(b"" if mask is None else np.packbits(mask).tobytes(), (mask, []))
        columns += np.flatnonzero(kinds == kind).tolist()
    found = []
    for known, columns in by_mask.values():
        part = matrix if len(columns) == matrix.shape[1] else matrix[:, columns]
        inside = np.ones(len(train), dtype=bool) if known is None else known
        counts = [as_ones(part[inside & half]).sum(0, dtype=np.int64) for half in (train, ~train)]
        n_train, n_test = int((inside & train).sum()), int((inside & ~train).sum())
        found.append(LabelGroup(np.array(columns), part, known, n_train, n_test, *counts))
    return found


def latent_blocks(by_latent: CscArray, labels_a_row: float, hits: int = _HITS) -> Iterator[tuple[int, int]]:
    """Blocks of latents, first and last, with about as many hits each as fit into memory comfortably."""
    ends = np.cumsum(np.diff(by_latent.indptr)) * max(labels_a_row, 1.0)
    first, n_latents = 0, by_latent.shape[1]
    while first < n_latents:
        before = ends[first - 1] if first else 0.0
        last = max(first + 1, int(np.searchsorted(ends, before + hits, side="right")))
        yield first, min(last, n_latents)
        first = min(last, n_latents)


@dataclass(frozen=True)
class PairScores:
    """Scores of a block, each [latent label], float64; see `FeatureScores` for what they are."""

    f1: np.ndarray
    f1_train: np.ndarray
    threshold: np.ndarray
    precision: np.ndarray
    recall: np.ndarray
    auc: np.ndarray
    information: np.ndarray
    selectivity: np.ndarray


def score_pairs(entries: Entries, group: LabelGroup, train: Bool[np.ndarray, " row"]) -> PairScores:
    """Every latent of a block against every label of a group."""
    if group.known is not None:
        entries = entries.keep(group.known)
    shape = (entries.n_cells, len(group.columns))
    starts = entries.cell_starts()
    tie_first, tie_end = entries.ties()
    latent = entries.cell
    training = train[entries.row]
    through_train, through_test = _running(training), _running(~training)

    hits = group.matrix[entries.row].tocsc()  # by label, then as the entries are: by latent, strongest first
    at = hits.indices
    label = np.repeat(np.arange(shape[1]), np.diff(hits.indptr))
    pair = label * shape[0] + latent[at]
    first = np.flatnonzero(np.concatenate([[True], pair[1:] != pair[:-1]])) if len(pair) else np.zeros(0, np.int64)
    cells = np.unravel_index(pair[first], (shape[1], shape[0]))[::-1]
    sizes = np.diff(np.append(first, len(pair)))

    def dense(values: np.ndarray, empty: float = 0.0) -> np.ndarray:
        found = np.full(shape, empty)
        found[cells] = values
        return found

    def total(values: np.ndarray) -> np.ndarray:
        return np.add.reduceat(values, first) if len(first) else np.zeros(0)

    # The threshold: at every hit, how many of the training half it and all before it make, and what that is worth.
    of_training = training[at]
    running = np.cumsum(of_training)
    caught = running - np.repeat(running[first] - of_training[first], sizes)
    predicted = through_train[tie_end[at]] - through_train[starts[latent[at]]]
    f1 = 2 * caught / np.maximum(predicted + group.train[label], 1)
    best = np.maximum.reduceat(f1, first) if len(first) else np.zeros(0)
    reached = np.flatnonzero(f1 == np.repeat(best, sizes))
    chosen = at[reached[np.searchsorted(reached, first)]]
    fires = best > 0
    cut = np.where(fires, tie_end[chosen], starts[cells[0]])  # entries before it are above the threshold

    above = total(((at < np.repeat(cut, sizes)) & ~of_training).astype(np.int64))
    predicted_test = (through_test[cut] - through_test[starts[cells[0]]]).astype(np.float64)
    wanted = group.test.astype(np.float64)

    # The rank sum: how far each hit of the test half lies above the tie of the silent rows.
    n_active = through_test[starts[1:]] - through_test[starts[:-1]]
    before = through_test[tie_first] - through_test[starts[latent]]
    upto = through_test[tie_end] - through_test[starts[latent]]
    lift = (group.n_test + n_active[latent] - before - upto) / 2
    of_test = ~of_training
    lifted = dense(total(np.where(of_test, lift[at], 0.0)))
    silent = (group.n_test - n_active + 1) / 2
    rest = group.n_test - wanted
    with np.errstate(divide="ignore", invalid="ignore"):
        auc = (lifted + np.outer(silent, wanted) - wanted * (wanted + 1) / 2) / (wanted * rest)
        share = dense(above / np.maximum(predicted_test, 1)), dense(above) / wanted
    both = dense(total(of_test.astype(np.float64)))
    strength = total(np.where(of_test, entries.value[at].astype(np.float64), 0.0))
    whole = np.bincount(
        latent[~training], entries.value[~training].astype(np.float64), minlength=shape[0]
    )  # of each latent over the test half
    scored = (group.train > 0) & (group.test > 0)
    unscored = np.where(scored, 0.0, np.nan)
    return PairScores(
        f1=dense(2 * above) / np.maximum(dense(predicted_test) + wanted, 1) + unscored,
        f1_train=dense(best) + unscored,
        threshold=dense(np.where(fires, entries.value[chosen], np.nan), np.nan),
        precision=share[0] + unscored,
        recall=share[1] + unscored,
        auc=auc,
        information=mutual_information(both, n_active.astype(np.float64)[:, None], wanted, float(group.n_test)),
        selectivity=_selectivity(dense(strength), whole[:, None], wanted, rest),
    )


def _running(chosen: np.ndarray) -> np.ndarray:
    """[entry + 1]: how many of the entries before each are chosen."""
    return np.concatenate([[0], np.cumsum(chosen)])


def mutual_information(
    both: np.ndarray, active: np.ndarray, there: np.ndarray, n_rows: float | np.ndarray
) -> np.ndarray:
    """Bits that whether a latent is active tells about whether a label is there, from counts of rows.

    Shapes broadcast to that of `both`.
    """
    found = np.zeros(both.shape)
    for a, b, ab in (
        (active, there, both),
        (active, n_rows - there, active - both),
        (n_rows - active, there, there - both),
        (n_rows - active, n_rows - there, n_rows - active - there + both),
    ):
        with np.errstate(divide="ignore", invalid="ignore"):
            term = ab / n_rows * np.log2(ab * n_rows / (a * b))
        found += np.where(ab > 0, term, 0.0)
    return np.maximum(found, 0.0)


def _selectivity(inside: np.ndarray, whole: np.ndarray, wanted: np.ndarray, rest: np.ndarray) -> np.ndarray:
    """(mean where the label is there - mean elsewhere) / their sum; 0 for a latent that is silent."""
    with np.errstate(divide="ignore", invalid="ignore"):
        here, there = inside / wanted, np.maximum(whole - inside, 0.0) / rest
        found = (here - there) / (here + there)
    return np.where((whole == 0) & (wanted > 0) & (rest > 0), 0.0, found)


@dataclass(frozen=True)
class Ranks:
    """What the rank sums of a block of latents are made of; ranks are taken within strata.

    Attributes:
        lift: [latent row], how far a row on which the latent is active ranks above the silent ones of its stratum.
        silent: [latent stratum], rank of the silent rows.
        spread: [latent stratum], what the variance of a rank sum is, over positives times negatives.
    """

    lift: CsrArray
    silent: np.ndarray
    spread: np.ndarray


def block_ranks(
    by_latent: CscArray, first: int, last: int, stratum: Int[np.ndarray, " row"], sizes: np.ndarray
) -> Ranks:
    """Ranks of a block of latents; `sizes` are the rows of each stratum, rows of stratum -1 are left out."""
    n_strata = len(sizes)
    entries = Entries.of(by_latent, first, last, stratum, n_strata)
    starts, cell = entries.cell_starts(), entries.cell
    tie_first, tie_end = entries.ties()
    n_active = np.diff(starts)
    size = np.tile(sizes, last - first)
    lift = (size[cell] + n_active[cell] - (tie_first - starts[cell]) - (tie_end - starts[cell])) / 2
    indptr = starts[::n_strata] if n_strata > 1 else starts
    matrix = sparse.csr_array((lift, entries.row, indptr), shape=(last - first, by_latent.shape[0]))
    tied = (tie_end - tie_first).astype(np.float64)
    # each tie of t entries is seen t times
    ties = np.bincount(cell, np.square(tied) - 1, minlength=len(size))
    idle = (size - n_active).astype(np.float64)
    full = size.astype(np.float64)
    spread = (full**3 - full - ties - (idle**3 - idle)) / (12 * np.maximum(full * (full - 1), 1))
    shape = (last - first, n_strata)
    return Ranks(matrix, ((size - n_active + 1) / 2).reshape(shape), spread.reshape(shape))


def rank_test(
    ranks: Ranks, labels: CsrArray, positives: np.ndarray, sizes: np.ndarray
) -> tuple[Float[np.ndarray, "latent label"], Float[np.ndarray, "latent label"]]:
    """AUC within strata, and its standard score were the rows of a stratum independent.

    Args:
        labels: [row label] as numbers, rows outside all strata empty.
        positives: [stratum label] rows that have a label.

    Every pair of a row with the label and one without it, of the same stratum, counts the same. Where no stratum has
    both, the AUC is 0.5 and the score 0.
    """
    lifted = (ranks.lift @ labels).toarray()
    positives = positives.astype(np.float64)
    negatives = sizes[:, None] - positives
    pairs = (positives * negatives).sum(0)
    wins = lifted + ranks.silent @ positives - (positives * (positives + 1) / 2).sum(0)
    spread = np.sqrt(np.maximum(ranks.spread @ (positives * negatives), 0.0))
    defined = (pairs > 0) & (spread > 1e-9)
    auc = np.where(pairs > 0, wins / np.maximum(pairs, 1), 0.5)
    return auc, np.where(defined, (wins - pairs / 2) / np.where(defined, spread, 1.0), 0.0)
