"""Does a latent follow what words mean or do? Tests on types of words, not on frames or tokens.

    said = pool_spans(codes, clips, starts, ends)                # [token latent], the most of each latent in each span
    means = type_means(said, forms)                              # [type latent]
    found = type_tests(means, positive, stratum, latents)        # AUC within strata, p by permutation of types
    minimum_detectable(positive, stratum, tokens=8, m=200)       # how strong a latent would have been found

A claim about a morpheme, a category or a part of speech is one about words that nobody has tried yet, so the unit that
is permuted is the word type: tokens of one word, by several voices, are no independent witnesses. Types are compared
within strata (words with the same final sound, of the same language, of the same stem) by the rank sum; labels are
permuted within strata. What else differs between the words (loudness, duration, likeness of sound) can be given as
covariates, which are regressed out of the ranks: a permutation test of residuals, as in Kennedy 1995, "Randomization
tests in econometrics"; the AUC is then scaled to what is left of the label's effect beside them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float, Int

from hooked_whisper.analysis.codes import FeatureCodes, sparse
from hooked_whisper.analysis.feature_nulls import benjamini_hochberg
from hooked_whisper.errors import AnalysisError, did_you_mean

_SHARE_OF_WORDS = 4.0  # concentration of the beta distribution of a planted latent's rate over words: they vary widely


def pool_spans(
    codes: FeatureCodes,
    clips: Sequence[str],
    starts: Float[np.ndarray, " span"],
    ends: Float[np.ndarray, " span"],
    *,
    before: float = 0.0,
    after: float = 0.0,
) -> FeatureCodes:
    """The largest activation of each latent in each span: codes whose rows are the spans, in the order given.

    Args:
        clips, starts, ends: of each span: the clip's id and seconds. A frame belongs to the span that has its centre.
        before, after: seconds by which spans are widened.

    Raises:
        AnalysisError: lists of different lengths, an unknown clip, or a span without a frame.
    """
    if not len(clips) == len(starts) == len(ends) or not len(clips):
        raise AnalysisError(
            f"{len(clips)} clips, {len(starts)} starts, {len(ends)} ends: expected one of each for a span, and a span."
        )
    number = {name: index for index, name in enumerate(codes.clips)}
    if strange := [name for name in clips if name not in number]:
        raise AnalysisError(f"No clip is called {strange[0]!r} here.{did_you_mean(strange[0], codes.clips)}")
    if (np.diff(codes.clip) < 0).any():
        raise AnalysisError("The rows of a clip have to lie together, as encode_store gives them.")
    own = np.array([number[name] for name in clips], dtype=np.int64)
    times = (codes.frame + 0.5) / codes.frames_per_second
    # one axis for all clips: the clip's number, and the time within it
    far = float(max(times.max(), np.max(ends) + after)) + 1.0
    axis = codes.clip * far + times
    first = np.searchsorted(axis, own * far + np.maximum(np.asarray(starts) - before, 0.0))
    last = np.searchsorted(axis, own * far + np.asarray(ends) + after)
    if (last <= first).any():
        at = int(np.flatnonzero(last <= first)[0])
        raise AnalysisError(
            f"No frame of {clips[at]!r} has its centre in {starts[at]:g} to {ends[at]:g} s, span {at} of {len(clips)}."
        )
    lengths = last - first
    rows = np.repeat(first - np.concatenate([[0], np.cumsum(lengths)[:-1]]), lengths) + np.arange(lengths.sum())
    heard = codes.acts[rows]
    span = np.repeat(np.repeat(np.arange(len(own)), lengths), np.diff(heard.indptr))
    cell = span * codes.n_latents + heard.indices
    order = np.argsort(cell, kind="stable")
    there, begins = np.unique(cell[order], return_index=True)
    most = np.maximum.reduceat(heard.data[order], begins) if len(there) else heard.data
    acts = sparse.csr_array(
        (most, (there // codes.n_latents, there % codes.n_latents)), shape=(len(own), codes.n_latents)
    )
    kept, renumbered = np.unique(own, return_inverse=True)
    return replace(
        codes,
        acts=acts,
        clip=renumbered.astype(np.int32),
        frame=codes.frame[first],
        clips=tuple(codes.clips[index] for index in kept),
        columns={name: values[first] for name, values in codes.columns.items()},
    )


def type_means(said: FeatureCodes, of: Int[np.ndarray, " row"]) -> Float[np.ndarray, "type latent"]:
    """Mean activation of each latent over the tokens of each type, numbered from 0; tokens numbered -1 are left out."""
    rows = np.flatnonzero(of >= 0)
    n_types = int(of.max(initial=-1)) + 1
    counts = np.bincount(of[rows], minlength=n_types)
    if n_types == 0 or not counts.all():
        raise AnalysisError("There is a type without a token: number types from 0, without gaps.")
    member = sparse.csr_array((1 / counts[of[rows]], (of[rows], np.arange(len(rows)))), shape=(n_types, len(rows)))
    return (member @ said.acts[rows]).toarray().astype(np.float32)


@dataclass(frozen=True)
class TypeTests:
    """Latents tested on types.

    Attributes:
        latents: which.
        auc: probability that a type with the label is above one without it, of the same stratum; half of it for ties.
        p: one-sided, of permutations within strata.
        passes: discoveries by Benjamini and Hochberg's procedure over these latents.
        rate: share of false discoveries.
        n_positive, n_negative: types.
    """

    latents: Int[np.ndarray, " tested"]
    auc: Float[np.ndarray, " tested"]
    p: Float[np.ndarray, " tested"]
    passes: Bool[np.ndarray, " tested"]
    rate: float
    n_positive: int
    n_negative: int


def type_tests(
    scores: Float[np.ndarray, "type latent"],
    positive: Bool[np.ndarray, " label"],
    stratum: Int[np.ndarray, " stratum"],
    latents: Int[np.ndarray, " tested"] | None = None,
    *,
    covariates: Float[np.ndarray, "row covariate"] | None = None,
    n_permutations: int = 9999,
    rate: float = 0.05,
    seed: int = 0,
) -> TypeTests:
    """Tests latents on types, within strata.

    Args:
        scores: `type_means`, or any other.
        positive: types with the label.
        stratum: types are compared, and labels permuted, within each.
        latents: which; None takes all.
        covariates: of each type; what the ranks have of them linearly, within strata, is taken out.
        n_permutations: p is at least 1 / (n_permutations + 1).

    Raises:
        AnalysisError: arrays that do not fit, or no stratum with types of both kinds.
    """
    tested = np.arange(scores.shape[1]) if latents is None else np.asarray(latents)
    ranks, pairs = _ranks(scores[:, tested], positive, stratum)
    label = positive.astype(np.float64)
    auc = 0.5 + label @ ranks / pairs
    if covariates is not None:
        ranks, kept = _beside(ranks, label, stratum, covariates)
        auc = np.clip(0.5 + (auc - 0.5) * kept, 0.0, 1.0)
    found = label @ ranks
    draws = permuted(positive, stratum, n_permutations, seed)
    above = np.zeros(len(tested))
    for first in range(0, n_permutations, 500):
        above += (draws[first : first + 500].astype(np.float32) @ ranks.astype(np.float32) >= found - 1e-3).sum(0)
    p = (1 + above) / (1 + n_permutations)
    return TypeTests(tested, auc, p, benjamini_hochberg(p, rate), rate, int(positive.sum()), int((~positive).sum()))


def _ranks(scores: np.ndarray, positive: np.ndarray, stratum: np.ndarray) -> tuple[np.ndarray, float]:
    """Ranks within strata around their mean, and pairs of types: the sum over positives, by pairs, is AUC - 1/2."""
    n = len(scores)
    if len(positive) != n or len(stratum) != n:
        raise AnalysisError(
            f"{n} types, {len(positive)} labels, {len(stratum)} strata: expected one of each for a type."
        )
    pairs = 0.0
    for name in np.unique(stratum):
        here = positive[stratum == name]
        pairs += float(here.sum() * (~here).sum())
    if not pairs:
        raise AnalysisError("No stratum has types with the label and types without it: there is nothing to compare.")
    return _within(scores, stratum, ranked=True), pairs


def _within(values: np.ndarray, stratum: np.ndarray, *, ranked: bool) -> np.ndarray:
    """Values, or their ranks, around the mean of their stratum."""
    from scipy.stats import rankdata

    found = np.zeros(values.shape)
    for name in np.unique(stratum):
        here = stratum == name
        part = rankdata(values[here], axis=0) if ranked else values[here]
        found[here] = part - part.mean(0)
    return found


def _beside(
    ranks: np.ndarray, label: np.ndarray, stratum: np.ndarray, covariates: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Ranks with covariates taken out, and what a joint regression leaves of the effect of the label on them."""
    if len(covariates) != len(ranks):
        raise AnalysisError(f"{len(covariates)} rows of covariates for {len(ranks)} types: expected one for each.")
    # values, not ranks: in pairs a rank says no more than which is larger, which a frame may fix
    design = _within(covariates.astype(np.float64), stratum, ranked=False)
    design /= np.maximum(design.std(0), 1e-12)
    own = _within(label[:, None], stratum, ranked=False)
    left = ranks - design @ np.linalg.lstsq(design, ranks, rcond=None)[0]
    own_left = own - design @ np.linalg.lstsq(design, own, rcond=None)[0]
    before = own[:, 0] @ ranks / max(float(np.square(own).sum()), 1e-12)
    # the coefficient of the label beside the covariates (Frisch & Waugh 1933)
    after = own_left[:, 0] @ left / max(float(np.square(own_left).sum()), 1e-12)
    return left, np.where(np.abs(before) > 1e-12, after / np.where(np.abs(before) > 1e-12, before, 1.0), 0.0)


def permuted(
    positive: Bool[np.ndarray, " type"], stratum: Int[np.ndarray, " type"], n: int, seed: int = 0
) -> Bool[np.ndarray, "draw type"]:
    """Labels permuted within strata, n times."""
    generator = np.random.default_rng(seed)
    draws = np.zeros((n, len(positive)), dtype=bool)
    for name in np.unique(stratum):
        here = np.flatnonzero(stratum == name)
        draws[:, here] = generator.permuted(np.tile(positive[here], (n, 1)), axis=1)
    return draws


@dataclass(frozen=True)
class Detectable:
    """The weakest planted latent that the tests find in at least 80 % of trials.

    Attributes:
        hit, false_alarm: its mean rate of tokens on which it fires, with the label and without.
        auc: its mean AUC over types.
        f1: of its tokens.
        power: share of trials that found it; below 0.8 if not even the strongest was.
    """

    hit: float
    false_alarm: float
    auc: float
    f1: float
    power: float

    def __str__(self) -> str:
        sign = "" if self.power >= 0.8 else "not even "
        return (
            f"{sign}AUC {self.auc:.2f}, F1 {self.f1:.2f} (fires on {self.hit:.0%} and {self.false_alarm:.0%} of tokens)"
        )


def minimum_detectable(
    positive: Bool[np.ndarray, " type"],
    stratum: Int[np.ndarray, " type"],
    *,
    tokens: int,
    m: int,
    false_alarm: float = 0.05,
    train: tuple[Bool[np.ndarray, " choosing"], Int[np.ndarray, " choosing"], float] | None = None,
    rate: float = 0.05,
    n_trials: int = 200,
    n_permutations: int = 4999,
    seed: int = 0,
) -> Detectable:
    """Plants latents of growing strength among these types, and asks from where on the test would find them.

    A planted latent fires on `hit` of the tokens with the label and `false_alarm` of the others; words differ in their
    rate (beta distribution of concentration 4). It is found if it is chosen and its p is at most rate / m, the hardest
    case of the procedure over m tests.

    Args:
        tokens: of each type.
        m: tests among which it would stand.
        train: labels and strata of the types that choose, and the AUC that it needs there to be chosen.

    Raises:
        AnalysisError: as for `type_tests`.
    """
    generator = np.random.default_rng(seed)

    def plant(labels: np.ndarray, hit: float) -> tuple[np.ndarray, np.ndarray]:
        mean = np.where(labels, hit, false_alarm)[:, None]
        of_word = generator.beta(mean * _SHARE_OF_WORDS, (1 - mean) * _SHARE_OF_WORDS, (len(labels), n_trials))
        fires = generator.binomial(tokens, of_word)
        hits, every = fires[labels].sum(0), fires.sum(0)
        return fires / tokens, 2 * hits / np.maximum(every + labels.sum() * tokens, 1)

    found = Detectable(1.0, false_alarm, float("nan"), float("nan"), 0.0)
    for hit in (0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.98):
        scores, f1 = plant(positive, hit)
        tests = type_tests(scores, positive, stratum, n_permutations=n_permutations, rate=rate, seed=seed)
        good = tests.p <= max(rate / m, 1 / (1 + n_permutations))
        if train is not None:
            labels, strata, needed = train
            chosen, pairs = _ranks(plant(labels, hit)[0], labels, strata)
            good &= 0.5 + labels.astype(np.float64) @ chosen / pairs >= needed
        found = Detectable(hit, false_alarm, float(tests.auc.mean()), float(f1.mean()), float(good.mean()))
        if found.power >= 0.8:
            break
    return found
