"""Which latents fire here: on a clip, a span of seconds, a word, and hardly anywhere else.

    search_span(codes, "en/two.g722", 0.1, 0.4)
    search_label(codes, labels, "word=two", within=strata(codes, labels, ["phone"]))

Latents are ranked by how well they tell the rows asked for from all others (AUC), not by how loud they are: one that is
strong everywhere is worth 0.5, one that is active all through the span and nowhere else 1. The same works for neurons
and principal components, whose codes `encode_store` gives, too.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool

from hooked_whisper.analysis.codes import FeatureCodes, sparse
from hooked_whisper.analysis.feature_nulls import Strata
from hooked_whisper.analysis.frame_labels import FrameLabels
from hooked_whisper.analysis.score_kernels import as_ones, block_ranks, check_labels, rank_test
from hooked_whisper.errors import AnalysisError, did_you_mean


@dataclass(frozen=True)
class Found:
    """A latent that fires here.

    Attributes:
        auc: probability that a row of those asked for is more active than another one.
        here, elsewhere: parts of the rows on which it is active, of those asked for and of the others.
        strength: its mean activation here, where it is active, over its mean elsewhere, where it is active; infinite
            for one that is active nowhere else.
    """

    latent: int
    auc: float
    here: float
    elsewhere: float
    strength: float

    def __str__(self) -> str:
        return (
            f"latent {self.latent}: AUC {self.auc:.3f}, active on {self.here:.0%} here, {self.elsewhere:.2%} elsewhere"
        )


def search_rows(
    codes: FeatureCodes,
    rows: Bool[np.ndarray, " row"],
    *,
    against: Bool[np.ndarray, " row"] | None = None,
    within: Strata | None = None,
    n: int = 10,
) -> list[Found]:
    """The latents that tell some rows from others best.

    Args:
        rows: those asked for.
        against: those to tell them from; None takes all others.
        within: strata within which rows are compared, such as the phone: what tells a word from the same sounds in
            other words.
        n: how many.

    Raises:
        AnalysisError: masks of other rows, no rows on one of the sides, or no stratum with rows of both.
    """
    others = ~rows if against is None else against & ~rows
    if len(rows) != codes.n_rows or len(others) != codes.n_rows:
        raise AnalysisError(
            f"Masks of {len(rows)} and {len(others)} rows, expected {codes.n_rows}, those of the codes."
        )
    of = np.zeros(codes.n_rows, dtype=np.int64) if within is None else within.of
    kept = np.flatnonzero((rows | others) & (of >= 0))
    here = rows[kept]
    names, stratum = np.unique(of[kept], return_inverse=True)
    sizes = np.bincount(stratum, minlength=len(names))
    positives = np.bincount(stratum[here], minlength=len(names))
    if not ((positives > 0) & (positives < sizes)).any():
        raise AnalysisError(
            f"{int(here.sum())} rows to find latents for, {int((~here).sum())} to tell them from: expected some of each"
            f"{'' if within is None else ' in one stratum'}."
        )
    some = codes.acts[kept]
    active = np.unique(some[here].indices)
    part = some.tocsc()[:, active]
    ranks = block_ranks(part, 0, len(active), stratum, sizes)
    wanted = sparse.csr_array(here[:, None].astype(np.float64))
    auc, _ = rank_test(ranks, wanted, positives[:, None], sizes)
    order = np.argsort(-auc[:, 0], kind="stable")[:n]
    found = []
    for index in order:
        inside = slice(part.indptr[index], part.indptr[index + 1])
        hit, values = here[part.indices[inside]], part.data[inside]
        outside = values[~hit].mean() if (~hit).any() else 0.0
        found.append(
            Found(
                latent=int(active[index]),
                auc=float(auc[index, 0]),
                here=float(hit.sum() / here.sum()),
                elsewhere=float((~hit).sum() / (~here).sum()),
                strength=float(values[hit].mean() / outside) if outside > 0 else float("inf"),
            )
        )
    return found


def search_span(
    codes: FeatureCodes, clip: str, start: float = 0.0, end: float | None = None, *, n: int = 10
) -> list[Found]:
    """The latents that fire on a clip, or on `start` to `end` seconds of it, and not in the rest of the corpus.

    Raises:
        AnalysisError: a clip that is not there, or a span without a frame.
    """
    rows = np.zeros(codes.n_rows, dtype=bool)
    rows[codes.rows_of(clip, start, end)] = True
    return search_rows(codes, rows, n=n)


def search_label(
    codes: FeatureCodes, labels: FrameLabels, label: str, *, within: Strata | None = None, n: int = 10
) -> list[Found]:
    """The latents that fire on a label ("word=two", "phone=p") and not on other rows on which its kind is known.

    Raises:
        AnalysisError: labels of other rows, an unknown label, or one that no row has.
    """
    check_labels(labels, codes.n_rows)
    if label not in labels.names:
        raise AnalysisError(f"There is no label {label!r} here.{did_you_mean(label, labels.names)}")
    at = labels.names.index(label)
    known = labels.known_rows(labels.kinds[at])
    rows = as_ones(labels.matrix)[:, [at]].toarray()[:, 0] & known
    return search_rows(codes, rows, against=known, within=within, n=n)


def active_at(codes: FeatureCodes, clip: str, time: float, n: int = 10) -> list[tuple[int, float]]:
    """The latents that are active on the frame at `time` seconds of a clip, strongest first: (latent, activation).

    Raises:
        AnalysisError: a clip that is not there, or a time without a frame.
    """
    half = 0.5 / codes.frames_per_second
    row = codes.rows_of(clip, time - half, time + half)[:1]
    acts = codes.acts[row]
    order = np.argsort(-acts.data, kind="stable")[:n]
    return [(int(acts.indices[index]), float(acts.data[index])) for index in order]
