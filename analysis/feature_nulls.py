"""Is a latent's match with a label more than chance, and more than loudness, speaker or position would give it?

    marginal = feature_tests(codes, labels, rows=~scores.train)
    marginal.passes                                      # [latent label], false discoveries at most `rate`
    within = strata(codes, labels, ["loudness", "speaker"])
    rival = feature_tests(codes, labels, rows=~scores.train, within=within)
    holds(marginal, rival)                               # what loudness and speaker do not explain

The statistic is the rank sum (AUC) of a latent's activations on rows with and without a label. Frames are not
independent: a phone lasts for several of them, and so does a latent's activity, so that the textbook variance is too
small. The null is therefore made from the labels as they are, moved in time: those of a clip go to another clip of
about the same length, and are shifted around in it ("both"; or "swap", or "shift" alone, which keeps what a clip as a
whole has of a label and asks for the alignment within it). What a label's rows have in common, its length and rate and
clustering, is kept; what it had to do with the sound is not.

Few permutations are enough, because they are pooled. Standard scores are divided by the spread that the permutations of
all labels of a kind give to each latent (which has its own duration), and then, for each label, compared with those
of all latents of about the same density under all permutations: 20 permutations of 4,096 latents are 20,000 draws for
each label and quarter of the latents. Beyond the hundred largest the tail is taken to be exponential (Knijnenburg et
al. 2009, "Fewer permutations, more accurate P-values", Bioinformatics 25, with shape 0), which overstates p for a
Gaussian tail, the more so the fewer draws there are.
Benjamini & Hochberg's procedure over all pairs holds the share of false discoveries at `rate`.

Rivals: with `within` ranks are taken within strata, so that only rows of the same stratum (the same loudness decile and
speaker, say) are compared, as in van Elteren's test (1960) with the weight of the number of pairs. A latent that
follows loudness has an AUC of 0.5 there whatever label goes along with loudness.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Float, Int
from tqdm import tqdm

from hooked_whisper.analysis.codes import CscArray, CsrArray, FeatureCodes, sparse
from hooked_whisper.analysis.frame_labels import FrameLabels
from hooked_whisper.analysis.score_kernels import as_ones, block_ranks, check_labels, latent_blocks, rank_test
from hooked_whisper.errors import AnalysisError, did_you_mean

if TYPE_CHECKING:
    from typing import Literal

    Moving = Literal["both", "swap", "shift"]
else:
    Moving = str  # checked here, with a message that says more than a type checker's

_ALIKE = 20  # clips among which labels are swapped: neighbours in the order of length
_DENSITIES = 4  # groups of latents with null distributions of their own
_TAIL = 100  # largest draws to which the tail is fitted
_LOW, _HIGH, _STEP = -8.0, 40.0, 0.02  # of the histogram of null scores


@dataclass(frozen=True)
class FeatureTests:
    """The test of every latent against every label.

    Attributes:
        auc: of the rows tested, within strata where there are some.
        z: standard score of the rank sum if rows were independent; too large, and only for comparison.
        p: one-sided, for more activity where the label is; NaN where latent or label are too rare to be tested.
        passes: where the discovery survives Benjamini and Hochberg's correction over all pairs tested.
        rate: the share of false discoveries that it holds.
        within: what is the same within a stratum; () for a test of all rows together.
        names, kinds: of the labels.
        how, n_permutations: of the null.
    """

    auc: Float[np.ndarray, "latent label"]
    z: Float[np.ndarray, "latent label"]
    p: Float[np.ndarray, "latent label"]
    passes: Bool[np.ndarray, "latent label"]
    rate: float
    within: tuple[str, ...]
    names: tuple[str, ...]
    kinds: tuple[str, ...]
    how: str
    n_permutations: int

    @property
    def n_tested(self) -> int:
        """Pairs tested."""
        return int(np.isfinite(self.p).sum())

    def __str__(self) -> str:
        given = f" within {' x '.join(self.within)}" if self.within else ""
        return f"{int(self.passes.sum())} of {self.n_tested} pairs{given} at a false discovery rate of {self.rate:g}"


@dataclass(frozen=True)
class Strata:
    """Groups of rows that are alike in something.

    Attributes:
        of: [row] number of the stratum; -1 where it is not known.
        names: what is the same within one.
    """

    of: Int[np.ndarray, " row"]
    names: tuple[str, ...]


def strata(
    codes: FeatureCodes,
    labels: FrameLabels,
    names: Sequence[str],
    *,
    bins: int = 10,
    **values: np.ndarray,
) -> Strata:
    """Rows that are the same in some kinds of label or columns of the codes; numbers are cut at their quantiles.

    Args:
        names: kinds of `labels` (rows with several labels of a kind count by the first), columns of `codes`, "clip", or
            names of `values`.
        bins: quantiles of a column of numbers.
        values: further numbers, one for each row, such as loudness=decibels; NaN where not known.

    Raises:
        AnalysisError: no names, a name that is not known, or values of other rows.
    """
    if not names:
        raise AnalysisError(
            "No names were given: expected kinds of labels or columns, such as ['loudness', 'speaker']."
        )
    parts = []
    for name in names:
        if name in values:
            parts.append(_quantiles(np.asarray(values[name], dtype=np.float64), bins, codes.n_rows, name))
        elif name in labels.kinds:
            parts.append(_first_label(labels, name))
        elif name == "clip" or name in codes.columns:
            column = codes.column(name)
            number = column.dtype != object and column.dtype != bool and len(np.unique(column)) > bins
            parts.append(
                _quantiles(column.astype(np.float64), bins, codes.n_rows, name) if number else codes.groups(name)[0]
            )
        else:
            known = (*labels.kind_names, *codes.columns, "clip", *values)
            raise AnalysisError(
                f"{name!r} is neither a kind of label nor a column: there are {', '.join(known)}."
                f"{did_you_mean(name, known)}"
            )
    joint = np.stack(parts)
    unknown = (joint < 0).any(0)
    _, of = np.unique(joint, axis=1, return_inverse=True)
    of = np.where(unknown, -1, of.reshape(-1))
    _, of[~unknown] = np.unique(of[~unknown], return_inverse=True)
    return Strata(of.astype(np.int64), tuple(names))


def _quantiles(values: np.ndarray, bins: int, n_rows: int, name: str) -> np.ndarray:
    if len(values) != n_rows:
        raise AnalysisError(f"{name!r} has {len(values)} values for {n_rows} rows: expected one for each.")
    known = np.isfinite(values)
    edges = np.unique(np.quantile(values[known], np.arange(1, bins) / bins)) if known.any() else np.zeros(0)
    return np.where(known, np.searchsorted(edges, np.nan_to_num(values), side="right"), -1)


def _first_label(labels: FrameLabels, kind: str) -> np.ndarray:
    """Of each row the number of its label of a kind; those without one are a stratum of their own, unknown ones -1."""
    columns = np.flatnonzero(np.array(labels.kinds) == kind)
    part = as_ones(labels.matrix)[:, columns].sorted_indices()
    found = np.full(part.shape[0], len(columns), dtype=np.int64)
    has = np.diff(part.indptr) > 0
    found[has] = part.indices[part.indptr[:-1][has]]
    return np.where(labels.known_rows(kind), found, -1)


def moved_rows(
    clip: Int[np.ndarray, " row"], generator: np.random.Generator, how: Moving = "both"
) -> Int[np.ndarray, " row"]:
    """For each row, the row whose labels it gets under the null; rows of a clip lie together.

    A clip's labels go to a clip of about the same length (among 20 neighbours in the order of length), around its end
    or cut at it where the lengths differ, and start at a random place.
    """
    if how not in ("both", "swap", "shift"):
        raise AnalysisError(f"Unknown way to move labels {how!r}: expected 'both', 'swap' or 'shift'.")
    starts = np.concatenate([[0], np.flatnonzero(clip[1:] != clip[:-1]) + 1])
    lengths = np.diff(np.append(starts, len(clip)))
    source = np.arange(len(starts))
    if how != "shift":
        # lengths that are equal come in random order, so that the bands are not always the same
        order = np.lexsort((generator.random(len(starts)), lengths))
        n_bands = max(1, round(len(order) / _ALIKE))
        for band in np.array_split(order, n_bands):
            source[band] = generator.permutation(band)
    shift = np.zeros(len(starts), dtype=np.int64)
    if how != "swap":
        shift = generator.integers(lengths[source])
    within = np.arange(len(clip)) - np.repeat(starts, lengths)
    return np.repeat(starts[source], lengths) + (within + np.repeat(shift, lengths)) % np.repeat(
        lengths[source], lengths
    )


def feature_tests(
    codes: FeatureCodes,
    labels: FrameLabels,
    *,
    rows: Bool[np.ndarray, " row"] | None = None,
    within: Strata | None = None,
    how: Moving = "both",
    n_permutations: int = 20,
    rate: float = 0.05,
    min_rows: int = 20,
    seed: int = 0,
    progress: bool | None = None,
) -> FeatureTests:
    """Tests every latent against every label, within strata or not; what it does is said at the top of this module.

    Args:
        rows: those to test on, such as the half that chose nothing; None takes all.
        within: strata within which rows are compared.
        how: how labels are moved: "both", "swap" or "shift".
        n_permutations: permutations; their draws are pooled over latents.
        rate: of false discoveries among all.
        min_rows: latents that are active on fewer rows and labels that fewer rows have are not tested.
        progress: whether to show a bar; None shows it where standard error is a terminal.

    Raises:
        AnalysisError: labels of other rows, an unknown `how`, or settings that cannot be.
    """
    check_labels(labels, codes.n_rows)
    if n_permutations < 2 or not 0 < rate < 1:
        raise AnalysisError(f"n_permutations={n_permutations}, rate={rate}: expected at least 2, and 0 < rate < 1.")
    inside = np.ones(codes.n_rows, dtype=bool) if rows is None else rows
    of = np.zeros(codes.n_rows, dtype=np.int64) if within is None else within.of
    matrix = as_ones(labels.matrix)
    shape = (codes.n_latents, matrix.shape[1])
    auc, z = (np.full(shape, empty, dtype=np.float32) for empty in (np.nan, np.nan))
    p = np.full(shape, np.nan)
    kinds = np.array(labels.kinds)
    bar = tqdm(labels.kind_names, desc="nulls", unit="kind", disable=None if progress is None else not progress)
    for number, kind in enumerate(bar):
        columns = np.flatnonzero(kinds == kind)
        kept = np.flatnonzero(inside & labels.known_rows(kind) & (of >= 0))
        if len(kept) < min_rows:
            continue
        generator = np.random.default_rng([seed, number])
        test = _KindTest.of(codes, matrix[:, columns], kept, of[kept], how, n_permutations, generator)
        auc[:, columns], z[:, columns], p[:, columns] = test.run(min_rows)
    passes = benjamini_hochberg(p, rate)
    names = () if within is None else within.names
    return FeatureTests(auc, z, p, passes, rate, names, tuple(labels.names), tuple(labels.kinds), how, n_permutations)


@dataclass(frozen=True)
class _KindTest:
    """The labels of one kind, on the rows on which it is known."""

    by_latent: CscArray
    stratum: np.ndarray
    sizes: np.ndarray
    labels: tuple[Any, ...]  # as they are, and moved: [row label] and [stratum label] each
    centred: bool

    @classmethod
    def of(
        cls,
        codes: FeatureCodes,
        matrix: CsrArray,
        kept: np.ndarray,
        stratum: np.ndarray,
        how: Moving,
        n_permutations: int,
        generator: np.random.Generator,
    ) -> _KindTest:
        names, stratum = np.unique(stratum, return_inverse=True)
        here = matrix[kept].astype(np.float64)
        clip = codes.clip[kept]
        inside = sparse.csr_array(
            (np.ones(len(kept)), stratum, np.arange(len(kept) + 1)), shape=(len(kept), len(names))
        )
        orders = [np.arange(len(kept)), *(moved_rows(clip, generator, how) for _ in range(n_permutations))]
        moved = [here[order] for order in orders]
        labels = tuple((part, (inside.T @ part).toarray()) for part in moved)
        sizes = np.bincount(stratum, minlength=len(names))
        return cls(codes.acts[kept].tocsc(), stratum, sizes, labels, how == "shift")

    def run(self, min_rows: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """AUC, standard score and p, each [latent label]."""
        n_latents, n_labels = self.by_latent.shape[1], self.labels[0][0].shape[1]
        active = np.diff(self.by_latent.indptr)
        tested = active >= min_rows
        density = np.zeros(n_latents, dtype=np.int64)
        if tested.any():
            edges = np.unique(np.quantile(active[tested], np.arange(1, _DENSITIES) / _DENSITIES))
            density = np.searchsorted(edges, active, side="right")
        n_bins = round((_HIGH - _LOW) / _STEP)
        counts = np.zeros((_DENSITIES * n_labels, n_bins), dtype=np.int64)
        auc, z = np.zeros((n_latents, n_labels)), np.zeros((n_latents, n_labels))
        scaled = np.zeros((n_latents, n_labels))
        for first, last in latent_blocks(self.by_latent, 16.0):
            ranks = block_ranks(self.by_latent, first, last, self.stratum, self.sizes)
            found = [rank_test(ranks, part, positives, self.sizes) for part, positives in self.labels]
            auc[first:last], z[first:last] = found[0]
            scaled[first:last], null = _studentised(found[0][1], np.stack([of[1] for of in found[1:]]), self.centred)
            null = null[:, tested[first:last]]
            cell = density[first:last][tested[first:last]][:, None] * n_labels + np.arange(n_labels)
            at = np.clip(((null - _LOW) / _STEP).astype(np.int64), 0, n_bins - 1)
            counts += np.bincount((cell * n_bins + at).ravel(), minlength=counts.size).reshape(counts.shape)
        p = np.full((n_latents, n_labels), np.nan)
        common = self.labels[0][1].sum(0) >= min_rows
        common &= self.sizes.sum() - self.labels[0][1].sum(0) >= min_rows
        for label in np.flatnonzero(common):
            for group in range(_DENSITIES):
                chosen = tested & (density == group)
                p[chosen, label] = _p_values(scaled[chosen, label], counts[group * n_labels + label])
        return auc, z, p


def _studentised(
    observed: np.ndarray, null: np.ndarray, centred: bool
) -> tuple[Float[np.ndarray, "latent label"], Float[np.ndarray, "permutation latent label"]]:
    """Scores over the spread of each latent under the null, each permutation's over that of the others.

    A spread that has few draws is drawn towards that of all latents.
    """
    n = len(null)
    if centred:
        total = null.sum(0)
        observed = observed - total / n
        null = null - (total - null) / (n - 1)
    squares = np.square(null).mean(2, keepdims=True)  # [permutation latent 1]
    overall = squares.mean()
    weight, prior = null.shape[2], 20.0
    whole = squares.sum(0)

    def spread(total: np.ndarray, draws: int) -> np.ndarray:
        mixed = (total * weight + prior * overall) / (draws * weight + prior)
        return np.sqrt(np.maximum(mixed, 1e-12))

    return observed / spread(whole, n), null / spread(whole - squares, n - 1)


def _p_values(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Share of the null at least as large; counts are of the null by bins, and the own bin counts whole."""
    total = counts.sum()
    if not total:
        return np.full(len(values), np.nan)
    above = np.cumsum(counts[::-1])[::-1]
    at = np.clip(((values - _LOW) / _STEP).astype(np.int64), 0, len(counts) - 1)
    p = (1 + above[at]) / (1 + total)
    n_tail = min(_TAIL, total // 4)
    if n_tail < 10:
        return p
    edge = int(np.flatnonzero(above >= n_tail)[-1])  # the bin from which on the tail is fitted
    start = _LOW + edge * _STEP
    middles = _LOW + (np.arange(edge, len(counts)) + 0.5) * _STEP
    excess = float((counts[edge:] * (middles - start)).sum() / above[edge])
    beyond = above[edge] / total * np.exp(-np.maximum(values - start, 0.0) / max(excess, _STEP))
    return np.where(above[at] < 10, np.maximum(beyond, 1e-300), p)


def benjamini_hochberg(p: Float[np.ndarray, "*pairs"], rate: float = 0.05) -> Bool[np.ndarray, "*pairs"]:
    """Which p-values are discoveries at a rate of false ones of at most `rate`; NaN was not tested, and is none.

    Benjamini & Hochberg 1995, "Controlling the false discovery rate". Holds for independent and for positively
    dependent tests.
    """
    tested = np.isfinite(p)
    values = np.sort(p[tested])
    below = values <= rate * np.arange(1, len(values) + 1) / max(len(values), 1)
    if not below.any():
        return np.zeros(p.shape, dtype=bool)
    cut = values[np.flatnonzero(below)[-1]]
    return tested & (np.nan_to_num(p, nan=2.0) <= cut)


def holds(marginal: FeatureTests, *rivals: FeatureTests, kept: float = 0.5) -> Bool[np.ndarray, "latent label"]:
    """Where a discovery is not what the rivals explain.

    It has to be one within the strata of each rival, too, and to keep at least the part `kept` of its AUC's distance
    from 0.5: a latent that follows loudness keeps nothing within a decile of loudness but what the decile is wide.

    Raises:
        AnalysisError: tests of other labels.
    """
    found = marginal.passes.copy()
    for rival in rivals:
        if rival.names != marginal.names or rival.auc.shape != marginal.auc.shape:
            raise AnalysisError("The rivals were tested on other latents or labels: test the same codes and labels.")
        found &= rival.passes & (rival.auc - 0.5 >= kept * (marginal.auc - 0.5))
    return found
