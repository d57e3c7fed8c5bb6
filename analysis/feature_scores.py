"""What a latent says: every latent of an SAE against every label, chosen on one half and reported on the other.

    labels = frame_labels(read_labels("corpus/"), codes.clip, codes.frame, codes.clips)
    scores = score_features(codes, labels, by="speaker")
    scores.best("phone")                      # for each phone the latent that the training half chose, and its F1
    phone_scores(scores).n_at(0.7)            # phones that have a single latent with a held-out F1 of at least 0.7
    frame_accuracy(codes, labels, train=scores.train)

Halves are made of clips, speakers or keys, never of frames, whose neighbours are nearly copies of them. On the training
half each pair of a latent and a label gets the threshold that is best for its F1; what is reported is F1 on the other
half at that threshold. AUC, mutual information and selectivity need no choice, and are those of the other half. Rows
on which a kind of label is not known count neither for nor against it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Float, Int
from tqdm import tqdm

from hooked_whisper.analysis.checks import check_whole
from hooked_whisper.analysis.codes import CsrArray, FeatureCodes
from hooked_whisper.analysis.frame_labels import FrameLabels
from hooked_whisper.analysis.score_kernels import (
    Entries,
    as_ones,
    check_labels,
    label_groups,
    latent_blocks,
    score_pairs,
)
from hooked_whisper.errors import AnalysisError, did_you_mean

if TYPE_CHECKING:
    from typing import Literal

    Measure = Literal["f1", "f1_train", "auc", "information", "selectivity"]
else:
    Measure = str  # checked here, with a message that says more than a type checker's

_MEASURES = ("f1", "f1_train", "precision", "recall", "auc", "information", "selectivity")
_SCORES = ("f1", "f1_train", "threshold", "precision", "recall", "auc", "information", "selectivity")


@dataclass(frozen=True)
class Match:
    """One latent against one label.

    Attributes:
        f1_train: F1 on the training half at the best threshold.
        f1, precision, recall: on the other half at that threshold.
        auc, information: on the other half.
        n: rows of the other half that have the label.
    """

    latent: int
    label: str
    f1: float
    f1_train: float
    precision: float
    recall: float
    auc: float
    information: float
    threshold: float
    n: int

    def __str__(self) -> str:
        return (
            f"{self.label}: latent {self.latent}, F1 {self.f1:.2f} (training {self.f1_train:.2f}), AUC {self.auc:.2f}"
        )


@dataclass(frozen=True)
class FeatureScores:
    """Every latent against every label.

    Attributes:
        f1_train: F1 on the training half at the threshold that is best there: 2 hits / (active + labelled).
        threshold: that threshold, an activation (at least this is active); NaN where latent and label never meet.
        f1, precision, recall: on the other half at this threshold; NaN for labels that one of the halves lacks.
        auc: probability that a row with the label is more active than one without it, half of it for ties, rows on
            which the latent is silent all being tied at zero; on the other half.
        information: bits that being active at all tells about the label; on the other half.
        selectivity: (mean activation at the label - elsewhere) / their sum, -1 to 1; on the other half.
        names, kinds: of the labels.
        n_train, n_test: rows that have each label.
        n_active: rows of the other half on which each latent is active.
        train: [row] which rows were the training half.
    """

    f1: Float[np.ndarray, "latent label"]
    f1_train: Float[np.ndarray, "latent label"]
    threshold: Float[np.ndarray, "latent label"]
    precision: Float[np.ndarray, "latent label"]
    recall: Float[np.ndarray, "latent label"]
    auc: Float[np.ndarray, "latent label"]
    information: Float[np.ndarray, "latent label"]
    selectivity: Float[np.ndarray, "latent label"]
    names: tuple[str, ...]
    kinds: tuple[str, ...]
    n_train: Int[np.ndarray, " label"]
    n_test: Int[np.ndarray, " label"]
    n_active: Int[np.ndarray, " latent"]
    train: Bool[np.ndarray, " row"]

    @property
    def n_latents(self) -> int:
        """Latents."""
        return self.f1.shape[0]

    def label(self, name: str) -> int:
        """The column of a label.

        Raises:
            AnalysisError: a label that is not there.
        """
        if name not in self.names:
            raise AnalysisError(f"There is no label {name!r} here.{did_you_mean(name, self.names)}")
        return self.names.index(name)

    def of_kind(self, kind: str) -> list[int]:
        """The columns of a kind.

        Raises:
            AnalysisError: a kind that is not there.
        """
        found = [index for index, of in enumerate(self.kinds) if of == kind]
        if not found:
            known = tuple(dict.fromkeys(self.kinds))
            raise AnalysisError(f"No labels of kind {kind!r}: there are {', '.join(known)}.{did_you_mean(kind, known)}")
        return found

    def match(self, latent: int, label: str | int) -> Match:
        """One pair."""
        at = label if isinstance(label, int) else self.label(label)
        values = {name: float(getattr(self, name)[latent, at]) for name in (*_MEASURES[:-1], "threshold")}
        return Match(latent=int(latent), label=self.names[at], n=int(self.n_test[at]), **values)

    def best(self, kind: str) -> list[Match]:
        """For each label of a kind that both halves have, the latent with the best F1 on the training half."""
        columns = [at for at in self.of_kind(kind) if self.n_train[at] and self.n_test[at]]
        return [self.match(int(np.nanargmax(self.f1_train[:, at])), at) for at in columns]

    def top(self, label: str, n: int = 10, *, by: Measure = "f1_train") -> list[Match]:
        """The latents that score best for a label."""
        at = self.label(label)
        values = np.nan_to_num(self._measure(by)[:, at], nan=-np.inf)
        return [self.match(int(latent), at) for latent in np.argsort(-values, kind="stable")[: check_whole("n", n)]]

    def of_latent(self, latent: int, n: int = 10, *, by: Measure = "f1_train") -> list[Match]:
        """The labels for which a latent scores best."""
        values = np.nan_to_num(self._measure(by)[latent], nan=-np.inf)
        return [self.match(latent, int(at)) for at in np.argsort(-values, kind="stable")[: check_whole("n", n)]]

    def _measure(self, by: str) -> np.ndarray:
        if by not in _MEASURES:
            raise AnalysisError(f"Unknown measure {by!r}: expected one of {', '.join(_MEASURES)}.")
        return getattr(self, by)

    def to_markdown(self, kind: str, n: int | None = None) -> str:
        """The best latent of each label of a kind, as a table."""
        lines = [
            "| label | latent | F1, held out | F1, training | AUC | bits | rows |",
            "|---|---|---|---|---|---|---|",
        ]
        found = sorted(self.best(kind), key=lambda match: -match.f1)[:n]
        lines += [
            f"| {m.label} | {m.latent} | {m.f1:.3f} | {m.f1_train:.3f} | {m.auc:.3f} | {m.information:.4f} | {m.n} |"
            for m in found
        ]
        return "\n".join(lines)


def score_features(
    codes: FeatureCodes,
    labels: FrameLabels,
    *,
    by: str = "clip",
    train: Bool[np.ndarray, " row"] | None = None,
    seed: int = 0,
    progress: bool | None = None,
) -> FeatureScores:
    """Every latent against every label: F1, AUC, mutual information and selectivity, held out.

    Args:
        labels: of the rows of `codes`: `frame_labels.FrameLabels`.
        by: what the halves are made of: "clip", "speaker", "key", "language".
        train: the training half itself, instead: rows of some language, say, to test on the others.
        seed: another seed halves otherwise.
        progress: whether to show a bar; None shows it where standard error is a terminal.

    Raises:
        AnalysisError: labels of other rows, halves that cannot be made, or an empty one.
    """
    check_labels(labels, codes.n_rows)
    train = check_train(codes, codes.halves(by, seed=seed) if train is None else train)
    groups = label_groups(labels, train)
    shape = (codes.n_latents, len(labels.names))
    found = {name: np.full(shape, np.nan, dtype=np.float32) for name in _SCORES}
    by_latent = codes.by_latent
    blocks = list(latent_blocks(by_latent, labels.matrix.nnz / max(codes.n_rows, 1)))
    for first, last in tqdm(blocks, desc="scores", unit="block", disable=None if progress is None else not progress):
        entries = Entries.of(by_latent, first, last)
        for group in groups:
            scores = score_pairs(entries, group, train)
            for name, values in found.items():
                values[first:last, group.columns] = getattr(scores, name)
    n_train, n_test = (np.zeros(shape[1], dtype=np.int64) for _ in range(2))
    for group in groups:
        n_train[group.columns], n_test[group.columns] = group.train, group.test
    active = np.bincount(codes.acts.indices[np.repeat(~train, np.diff(codes.acts.indptr))], minlength=shape[0])
    return FeatureScores(
        **found, names=tuple(labels.names), kinds=tuple(labels.kinds), n_train=n_train, n_test=n_test,
        n_active=active, train=train,
    )  # fmt: skip


def check_train(codes: FeatureCodes, train: Bool[np.ndarray, " half"]) -> Bool[np.ndarray, " half"]:
    """The mask of a training half, if it is one.

    Raises:
        AnalysisError: of another length, or all rows or none.
    """
    if len(train) != codes.n_rows or not train.any() or train.all():
        raise AnalysisError(
            f"train marks {int(train.sum())} of {len(train)} rows, and the codes have {codes.n_rows}: expected one "
            "value for each row, some True and some False."
        )
    return train


@dataclass(frozen=True)
class PhoneScores:
    """The best single latent of each phone, chosen honestly (strict) and not (lenient).

    Attributes:
        strict: the latent with the best F1 on the training half, at the threshold from there; F1 on the other half.
        lenient: any latent may match: the one with the best F1 on the test half itself, at its threshold from the
            training half. What it has over strict is luck and choice.
    """

    strict: tuple[Match, ...]
    lenient: tuple[Match, ...]

    def n_at(self, f1: float, *, lenient: bool = False) -> int:
        """Phones with a latent of at least this F1 on the test half."""
        return sum(match.f1 >= f1 for match in (self.lenient if lenient else self.strict))

    def to_markdown(self) -> str:
        """A table, best phones first."""
        lines = ["| phone | latent | F1, strict | latent | F1, lenient | rows |", "|---|---|---|---|---|---|"]
        pairs = sorted(zip(self.strict, self.lenient, strict=True), key=lambda pair: -pair[0].f1)
        lines += [f"| {a.label} | {a.latent} | {a.f1:.3f} | {b.latent} | {b.f1:.3f} | {a.n} |" for a, b in pairs]
        return "\n".join(lines)


def phone_scores(scores: FeatureScores, kind: str = "phone", *, min_rows: int = 20) -> PhoneScores:
    """Strict and lenient F1 of every phone (or other label of one kind) with at least `min_rows` rows in each half.

    Raises:
        AnalysisError: no label of that kind has as many.
    """
    columns = [at for at in scores.of_kind(kind) if min(scores.n_train[at], scores.n_test[at]) >= min_rows]
    if not columns:
        raise AnalysisError(f"No label of kind {kind!r} has {min_rows} rows in each half: lower min_rows.")
    strict = [scores.match(int(np.nanargmax(scores.f1_train[:, at])), at) for at in columns]
    lenient = [scores.match(int(np.nanargmax(scores.f1[:, at])), at) for at in columns]
    return PhoneScores(tuple(strict), tuple(lenient))


@dataclass(frozen=True)
class FrameAccuracy:
    """How many frames of the test half named latents get right.

    Attributes:
        lenient: share of frames on which some active latent has the frame's phone for its name (AudioSAE's score).
        strict: share of frames whose strongest named latent has it; a frame without a named latent is wrong.
        lenient_by_chance: the lenient score with the names dealt out to the named latents at random.
        majority: share of the commonest phone.
        covered: share of frames with a named latent that is active.
        names: [latent] the label's column, -1 for a latent without a name.
        n_frames: frames of the test half with a phone.
    """

    lenient: float
    strict: float
    lenient_by_chance: float
    majority: float
    covered: float
    names: Int[np.ndarray, " latent"]
    n_frames: int

    @property
    def n_named(self) -> int:
        """Latents with a name."""
        return int((self.names >= 0).sum())

    def __str__(self) -> str:
        return (
            f"phone frame accuracy: lenient {self.lenient:.3f} (names dealt at random {self.lenient_by_chance:.3f}), "
            f"strict {self.strict:.3f} (commonest phone {self.majority:.3f}); {self.n_named} latents named, "
            f"{self.n_frames} frames"
        )


def frame_accuracy(
    codes: FeatureCodes,
    labels: FrameLabels,
    kind: str = "phone",
    *,
    by: str = "clip",
    train: Bool[np.ndarray, " row"] | None = None,
    precision: float = 0.5,
    min_active: int = 10,
    exclude: Sequence[str] = (),
    seed: int = 0,
) -> FrameAccuracy:
    """Phone frame accuracy, lenient and strict.

    A latent is named after a phone if more than `precision` of the training half's frames on which it is active have
    that phone. A frame of the test half is right by the lenient score if any of its active latents has its phone for a
    name (Aparin et al. 2026, AudioSAE, arXiv 2602.05027: 0.92 on Whisper, 0.89 on HuBERT, with 50 active latents a
    frame and forced-aligned phones). That score has no cost for the names that do not match, and rises with the number
    of active latents: `lenient_by_chance` says how far. The strict score lets the strongest named latent speak alone,
    its activation counted in units of its mean where it is active on the training half.

    Args:
        kind: of the labels; a frame has at most one of them.
        by, train, seed: the halves, as in `score_features`.
        precision: part of a latent's frames that have to be of one phone.
        min_active: frames of the training half on which a latent has to be active for a name.
        exclude: labels that are no phones, silence above all, as full names ("phone=_").

    Raises:
        AnalysisError: labels of other rows, halves that cannot be made, no labels of the kind, or no frame with one.
    """
    check_labels(labels, codes.n_rows)
    train = check_train(codes, codes.halves(by, seed=seed) if train is None else train)
    columns = [at for at, of in enumerate(labels.kinds) if of == kind and labels.names[at] not in exclude]
    if not columns:
        raise AnalysisError(f"No labels of kind {kind!r}: there are {', '.join(dict.fromkeys(labels.kinds))}.")
    matrix = as_ones(labels.matrix)[:, columns]
    spoken = labels.known_rows(kind) & (np.diff(matrix.indptr) == 1)
    fit, test = np.flatnonzero(spoken & train), np.flatnonzero(spoken & ~train)
    if not len(fit) or not len(test):
        raise AnalysisError(f"One of the halves has no frame with a label of kind {kind!r}.")
    true = matrix[test].indices
    acts = codes.acts[fit]
    active = np.bincount(acts.indices, minlength=codes.n_latents)
    ones = as_ones(acts).astype(np.float32)
    together = (ones.T @ matrix[fit].astype(np.float32)).toarray()
    named = (together.max(1) > precision * active) & (active >= min_active)
    names = np.where(named, together.argmax(1), -1)
    means = np.bincount(acts.indices, acts.data, minlength=codes.n_latents) / np.maximum(active, 1)

    tested = codes.acts[test][:, np.flatnonzero(named)]
    of = names[named]
    generator = np.random.default_rng(seed)
    chance = np.mean([_any_right(tested, generator.permutation(of), true) for _ in range(20)])
    row = np.repeat(np.arange(len(test)), np.diff(tested.indptr))
    strength = tested.data / means[named][tested.indices]
    order = np.lexsort((strength, row))  # the last of each row is its strongest
    last = order[np.searchsorted(row[order], np.arange(len(test)), side="right") - 1] if len(order) else order
    covered = np.diff(tested.indptr) > 0
    right = np.zeros(len(test), dtype=bool)
    right[covered] = of[tested.indices[last[covered]]] == true[covered] if len(order) else False
    return FrameAccuracy(
        lenient=float(_any_right(tested, of, true)),
        strict=float(right.mean()),
        lenient_by_chance=float(chance),
        majority=float(np.bincount(true).max() / len(true)),
        covered=float(covered.mean()),
        names=np.where(named, np.array(columns)[names], -1),
        n_frames=len(test),
    )


def _any_right(tested: CsrArray, of: np.ndarray, true: np.ndarray) -> float:
    """Share of rows on which some active latent has the name of the row's label."""
    row = np.repeat(np.arange(len(true)), np.diff(tested.indptr))
    hit = of[tested.indices] == true[row]
    return len(np.unique(row[hit])) / len(true)
