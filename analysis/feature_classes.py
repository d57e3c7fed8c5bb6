"""What kind of thing each latent stands for, by rules that can fail: phonetic, lexical, semantic, positional, ...

    evidence = gather_evidence(codes, labels, by="clip", rivals=[("loudness", "speaker"), ("phone",)])
    classes = classify(evidence)
    classes.counts["phonetic"]                   # how many latents, with a 95 % interval over clips
    print(classes.to_markdown())

A latent belongs to a class if one of its pairs with a label of that class

1. is a discovery on the held-out half at the false discovery rate of the test (against labels moved in time),
2. is one within the strata of every rival that the class has, too, and keeps half of its AUC there, and
3. is worth something: held-out F1 of at least 0.3 at the threshold of the training half, or, for positional labels, at
   least 5 % of the label's entropy.

Of several labels that pass 1 and 2 the one with the best F1 on the training half is the latent's, so that nothing is
chosen where its worth is reported. The rivals are what would explain the pair otherwise:

| class | labels | must hold within strata of |
|---|---|---|
| phonetic | phone, voicing, place, manner, height, backness, ... | loudness, speaker |
| lexical | word | phone (the same sounds in other words), loudness, speaker |
| morphological | morpheme | phone, loudness, speaker |
| semantic | concept: one meaning in several languages | phone, loudness, speaker |
| syntactic | part of speech | phone, loudness, speaker |
| positional | position in phone, word, utterance or window | phone (whatever is said there), loudness, speaker |
| non-linguistic | loudness, pitch, speaker, speech or not, noise, music | nothing |
| language | language | nothing: one speaker a language is a confound that no stratum removes |
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from hooked_whisper.analysis.codes import FeatureCodes
from hooked_whisper.analysis.feature_nulls import FeatureTests, Moving, feature_tests, holds, strata
from hooked_whisper.analysis.feature_scores import FeatureScores, score_features
from hooked_whisper.analysis.frame_labels import FrameLabels
from hooked_whisper.analysis.score_kernels import as_ones, mutual_information
from hooked_whisper.errors import AnalysisError
from hooked_whisper.saes.estimates import Estimate, bootstrap

CLASSES = (
    "phonetic", "lexical", "morphological", "semantic", "syntactic", "positional", "non-linguistic", "language",
)  # fmt: skip
UNEXPLAINED, SILENT = "unexplained", "silent"

# The class of each kind of label; a kind that is not here is left out unless `classes` says where it belongs.
CLASS_OF_KIND: dict[str, str] = {
    **dict.fromkeys(
        ("phone", "phone_class", "voicing", "place", "manner", "height", "backness", "rounding", "vowel"), "phonetic"
    ),
    "word": "lexical",
    "morpheme": "morphological",
    **dict.fromkeys(("concept", "meaning"), "semantic"),
    "pos": "syntactic",
    **dict.fromkeys(
        ("position", "phone_position", "word_position", "utterance_position", "boundary", "window"), "positional"
    ),
    **dict.fromkeys(("loudness", "pitch", "speaker", "speech", "sound", "noise", "music", "silence"), "non-linguistic"),
    "language": "language",
}
_CONFOUNDS = ("loudness", "speaker")
# What a class must not be explained by.
RIVALS_OF_CLASS: dict[str, tuple[str, ...]] = {
    "phonetic": _CONFOUNDS,
    **dict.fromkeys(("lexical", "morphological", "semantic", "syntactic", "positional"), ("phone", *_CONFOUNDS)),
    "non-linguistic": (),
    "language": (),
}
MIN_F1, MIN_INFORMATION = 0.3, 0.05


@dataclass(frozen=True)
class Evidence:
    """All that classes are decided from.

    Attributes:
        codes, labels: what was scored.
        scores: every pair, chosen on one half and reported on the other.
        marginal: the test of every pair on the other half.
        rivals: the same within strata of what might explain it.
    """

    codes: FeatureCodes
    labels: FrameLabels
    scores: FeatureScores
    marginal: FeatureTests
    rivals: tuple[FeatureTests, ...]


def gather_evidence(
    codes: FeatureCodes,
    labels: FrameLabels,
    *,
    rivals: Sequence[Sequence[str]] = (("loudness", "speaker"), ("phone",)),
    by: str = "clip",
    train: Bool[np.ndarray, " row"] | None = None,
    how: Moving = "both",
    n_permutations: int = 20,
    rate: float = 0.05,
    bins: int = 10,
    seed: int = 0,
    progress: bool | None = None,
) -> Evidence:
    """Scores, tests and tests within strata of each set of rivals.

    Args:
        rivals: kinds of label or columns of the codes, those of a set crossed with each other.
        by, train, seed: the halves, as in `score_features`.
        how, n_permutations, rate: as in `feature_tests`.
        bins: quantiles of a rival that is a column of numbers.
        progress: whether to show bars; None shows them where standard error is a terminal.

    Raises:
        AnalysisError: what `score_features`, `strata` and `feature_tests` raise.
    """
    groups = [strata(codes, labels, names, bins=bins) for names in rivals]  # first: it may refuse a name
    scores = score_features(codes, labels, by=by, train=train, seed=seed, progress=progress)

    def test(within: int | None) -> FeatureTests:
        return feature_tests(
            codes, labels, rows=~scores.train, within=None if within is None else groups[within], how=how,
            n_permutations=n_permutations, rate=rate, seed=seed, progress=progress,
        )  # fmt: skip

    return Evidence(codes, labels, scores, test(None), tuple(test(index) for index in range(len(groups))))


@dataclass(frozen=True)
class ClassCount:
    """Latents of one class.

    Attributes:
        latents: which.
        n: how many, with a 95 % interval over resampled groups (clips or speakers) of the held-out half: what would be
            worth enough there, of all latents whose label is of this class and passes tests and rivals. Labels and
            tests are not done anew.
    """

    latents: Int[np.ndarray, " latent"]
    n: Estimate


@dataclass(frozen=True)
class FeatureClasses:
    """The class of each latent and what it rests on.

    Attributes:
        of: [latent] its class; "unexplained" where no pair passes, "silent" where it is never active.
        label: [latent] the column of the label that decides, -1 for none.
        worth: [latent] held-out F1 of that pair, or the part of the label's entropy for positional labels.
        counts: by class.
    """

    of: tuple[str, ...]
    label: Int[np.ndarray, " latent"]
    worth: Float[np.ndarray, " latent"]
    counts: dict[str, ClassCount]
    evidence: Evidence

    def latents(self, name: str) -> Int[np.ndarray, " found"]:
        """Latents of a class, the best first.

        Raises:
            AnalysisError: no such class.
        """
        if name not in (*CLASSES, *self.counts, UNEXPLAINED, SILENT):
            raise AnalysisError(
                f"Unknown class {name!r}: expected one of {', '.join((*CLASSES, UNEXPLAINED, SILENT))}."
            )
        found = np.flatnonzero(np.array(self.of) == name)
        return found[np.argsort(-np.nan_to_num(self.worth[found]), kind="stable")]

    def why(self, latent: int) -> str:
        """The evidence for one latent's class, in a line."""
        scores, at = self.evidence.scores, int(self.label[latent])
        if at < 0:
            return f"latent {latent}: {self.of[latent]}"
        tests = [self.evidence.marginal, *self.evidence.rivals]
        aucs = [
            f"{test.auc[latent, at]:.2f}" + (f" within {' x '.join(test.within)}" * bool(test.within)) for test in tests
        ]
        return (
            f"latent {latent}: {self.of[latent]}, {scores.names[at]}, F1 {scores.f1[latent, at]:.2f}, "
            f"p {self.evidence.marginal.p[latent, at]:.1g}, AUC {', '.join(aucs)}"
        )

    def to_markdown(self, n_examples: int = 3) -> str:
        """How many latents each class has, and the best of them."""
        scores, tests = self.evidence.scores, self.evidence.marginal
        lines = ["| class | latents | 95 % interval | best (label, latent, worth) |", "|---|---|---|---|"]
        for name, count in self.counts.items():
            best = [f"{scores.names[self.label[i]]} {i} {self.worth[i]:.2f}" for i in self.latents(name)[:n_examples]]
            low, high = count.n.low, count.n.high
            interval = "" if low is None or high is None else f"{low:.0f} to {high:.0f}"
            lines.append(f"| {name} | {len(count.latents)} | {interval} | {', '.join(best)} |")
        lines += [f"| {name} | {self.of.count(name)} | | |" for name in (UNEXPLAINED, SILENT)]
        rivals = "; ".join(str(test) for test in self.evidence.rivals)
        return "\n".join([*lines, "", f"Discoveries: {tests}{f'; {rivals}' if rivals else ''}."])


def classify(
    evidence: Evidence,
    *,
    classes: Mapping[str, str] | None = None,
    needs: Mapping[str, Sequence[str]] | None = None,
    min_f1: float = MIN_F1,
    min_information: float = MIN_INFORMATION,
    kept: float = 0.5,
    groups: str = "clip",
    n_resamples: int = 1000,
    seed: int = 0,
) -> FeatureClasses:
    """The class of each latent by the rules at the top of this module.

    Args:
        classes: the class of kinds of label, beside and over `CLASS_OF_KIND`.
        needs: rivals that a class has to hold against, over `RIVALS_OF_CLASS`; all tests that name one count.
        min_f1, min_information: what a pair has to be worth.
        kept: part of the AUC's distance from 0.5 that has to remain within strata.
        groups: what is resampled for the intervals: "clip", "speaker", "key".

    Raises:
        AnalysisError: a class whose rivals were not tested, or labels of kinds that no class has.
    """
    scores, marginal = evidence.scores, evidence.marginal
    class_of_kind = {**CLASS_OF_KIND, **(classes or {})}
    rivals_of_class = {**RIVALS_OF_CLASS, **(needs or {})}
    kinds = [kind for kind in dict.fromkeys(scores.kinds) if kind in class_of_kind]
    if not kinds:
        raise AnalysisError(
            f"No class is known for labels of the kinds {', '.join(dict.fromkeys(scores.kinds))}: pass classes=, such "
            "as classes={'phones': 'phonetic'}."
        )
    worth = np.full(scores.f1.shape, np.nan)
    passes = np.zeros(scores.f1.shape, dtype=bool)
    informative = np.zeros(len(scores.names), dtype=bool)
    for kind in kinds:
        name, columns = class_of_kind[kind], scores.of_kind(kind)
        # a label is not asked to hold within strata of itself
        asked = [rival for rival in rivals_of_class.get(name, ()) if rival != kind]
        tests = [test for test in evidence.rivals if set(test.within) & set(asked) and kind not in test.within]
        missing = set(asked) - {rival for test in tests for rival in test.within}
        if missing:
            raise AnalysisError(
                f"A {name} latent has to hold within strata of {', '.join(sorted(missing))}, not tested: name it in "
                f"rivals= of gather_evidence, or pass needs={{{name!r}: [...]}} to do without."
            )
        informative[columns] = name == "positional"
        good = holds(marginal, *tests, kept=kept)[:, columns]
        if name == "positional":
            rows = evidence.labels.known_rows(kind) & ~scores.train
            share = scores.n_test[columns] / max(int(rows.sum()), 1)
            worth[:, columns] = scores.information[:, columns] / np.maximum(_entropy(share), 1e-12)
        else:
            worth[:, columns] = scores.f1[:, columns]
        passes[:, columns] = good
    choice = np.where(passes, np.nan_to_num(scores.f1_train) + 1e-9, 0.0)
    chosen = np.where(passes.any(1), choice.argmax(1), -1)
    found = np.where(chosen >= 0, worth[np.arange(len(chosen)), chosen], np.nan)
    minimum = np.where(informative, min_information, min_f1)
    label = np.where(np.nan_to_num(found, nan=-1.0) >= minimum[chosen], chosen, -1)
    ever = np.diff(evidence.codes.by_latent.indptr) > 0
    of = [
        class_of_kind[scores.kinds[at]] if at >= 0 else UNEXPLAINED if active else SILENT
        for at, active in zip(label.tolist(), ever.tolist(), strict=True)
    ]
    found = np.where(label >= 0, found, np.nan)
    counts = {}
    present = {class_of_kind[kind] for kind in kinds}
    for name in [*[known for known in CLASSES if known in present], *sorted(present - set(CLASSES))]:
        candidates = np.flatnonzero([at >= 0 and class_of_kind[scores.kinds[at]] == name for at in chosen.tolist()])
        n = _count(evidence, candidates, chosen[candidates], minimum, informative, groups, n_resamples, seed)
        counts[name] = ClassCount(np.flatnonzero(np.array(of) == name), n)
    return FeatureClasses(tuple(of), label, found, counts, evidence)


def _entropy(share: np.ndarray) -> np.ndarray:
    inside = (share > 0) & (share < 1)
    safe = np.where(inside, share, 0.5)
    return np.where(inside, -safe * np.log2(safe) - (1 - safe) * np.log2(1 - safe), 0.0)


def _count(
    evidence: Evidence,
    latents: np.ndarray,
    label: np.ndarray,
    minimum: np.ndarray,
    informative: np.ndarray,
    groups: str,
    n_resamples: int,
    seed: int,
) -> Estimate:
    """How many of these latents are worth enough, and when groups of the held-out half are drawn again."""
    codes, scores = evidence.codes, evidence.scores
    test = ~scores.train
    of, _ = codes.groups(groups)
    names, of = np.unique(np.where(test, of, -2), return_inverse=True)
    first = int(names[0] == -2)  # the rows of the training half are not drawn
    n_groups = len(names) - first
    if not len(latents):
        return Estimate(0.0, 0.0, 0.0)
    matrix = as_ones(evidence.labels.matrix).tocsc()
    hits, fires, there, rows = (np.zeros((len(latents), n_groups)) for _ in range(4))
    known = {kind: evidence.labels.known_rows(kind) & test for kind in {scores.kinds[at] for at in label.tolist()}}

    def by_group(which: np.ndarray) -> np.ndarray:
        return np.bincount(of[which] - first, minlength=n_groups)

    n_known = {kind: by_group(np.flatnonzero(usable)) for kind, usable in known.items()}
    for index, (latent, at) in enumerate(zip(latents.tolist(), label.tolist(), strict=True)):
        usable = known[scores.kinds[at]]
        active, values = codes.latent(latent)
        cut = 0.0 if informative[at] else float(scores.threshold[latent, at])
        active = active[(values >= cut) & usable[active]]
        has = matrix.indices[matrix.indptr[at] : matrix.indptr[at + 1]]
        has = has[usable[has]]
        hits[index] = by_group(np.intersect1d(active, has, assume_unique=True))
        fires[index], there[index], rows[index] = by_group(active), by_group(has), n_known[scores.kinds[at]]
    needed, information = minimum[label], informative[label]

    def statistic(weights: Float[np.ndarray, "resample group"]) -> Float[np.ndarray, " resample"]:
        a, b, c, n = (weights @ counts.T for counts in (hits, fires, there, rows))
        f1 = 2 * a / np.maximum(b + c, 1)
        share = mutual_information(a, b, c, np.maximum(n, 1)) / np.maximum(_entropy(c / np.maximum(n, 1)), 1e-12)
        return (np.where(information, share, f1) >= needed).sum(1).astype(np.float64)

    return bootstrap(statistic, n_groups, n_resamples=n_resamples, seed=seed)
