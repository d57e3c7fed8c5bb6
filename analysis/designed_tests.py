"""Lexical, morphological, semantic and syntactic latents, by designed speech: chosen on one half, tested on the other.

    said = DesignedCodes.of(codes, spoken)                        # the most of each latent in each token
    found = morphological(said)                                   # a Finding for each contrast and candidate
    [one for one in judged(found) if one.holds]

For each contrast the training half (its voices, frames and words) names its best latents; the test half says what they
are worth. A finding holds if, on the test half,

1. it is a discovery against labels permuted among word types, at a false discovery rate of 5 % over its design,
2. it is one, too, with the words' loudness, duration and place in the clip (for translations also their likeness of
   sound to the words that chose; for nouns and verbs not the place, which the frames fix) taken out, and keeps half of
   its AUC's distance from 1/2,
3. it is above chance for every voice, and
4. its F1 over tokens, at the threshold of the training half, is at least 0.3 and above that of firing always; for a
   word also, its AUC against each of the neighbours alone is at least 0.75.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float

from hooked_whisper.analysis.codes import FeatureCodes
from hooked_whisper.analysis.designed_speech import DesignedCorpus, Token, lexical_sets
from hooked_whisper.analysis.feature_nulls import benjamini_hochberg
from hooked_whisper.analysis.feature_scores import score_features
from hooked_whisper.analysis.frame_labels import column_labels
from hooked_whisper.analysis.labels import Labels
from hooked_whisper.analysis.sound_labels import frame_loudness
from hooked_whisper.analysis.type_tests import pool_spans, type_means, type_tests
from hooked_whisper.errors import AnalysisError

MIN_F1, MIN_NEIGHBOUR_AUC, KEPT = 0.3, 0.75, 0.5
N_CANDIDATES = 20
AFTER = 0.04  # seconds: the encoder may know a word two frames after its end
ALIKE = 0.5  # of the longer word's sounds: words of two languages that share more are cognates


@dataclass(frozen=True)
class DesignedCodes:
    """Tokens with the most of each latent in them, and what else is known of them.

    Attributes:
        codes: [token latent].
        tokens: in the same order.
        phones: of each token.
        covariates: [token, (loudness of the loudest frame in dB, seconds, start in seconds)].
    """

    codes: FeatureCodes
    tokens: tuple[Token, ...]
    phones: tuple[tuple[str, ...], ...]
    covariates: Float[np.ndarray, "token 3"]

    @classmethod
    def of(cls, codes: FeatureCodes, spoken: DesignedCorpus) -> DesignedCodes:
        """Pools the codes of frames over the tokens of a designed corpus.

        Raises:
            AnalysisError: codes that lack some of its clips.
        """
        tokens = spoken.tokens()
        phones, covariates = _sounds(tokens, spoken)
        return cls(pool_tokens(codes, tokens), tuple(tokens), phones, covariates)

    def recoded(self, codes: FeatureCodes) -> DesignedCodes:
        """The same tokens, with the codes of another SAE or basis."""
        return replace(self, codes=pool_tokens(codes, self.tokens))

    def values(self, name: str) -> np.ndarray:
        """An attribute of each token's sentence."""
        return np.array([getattr(one.sentence, name) for one in self.tokens], dtype=object)

    @property
    def speakers(self) -> np.ndarray:
        """Who says each token."""
        return np.array([one.speaker for one in self.tokens], dtype=object)

    @property
    def train(self) -> Bool[np.ndarray, " token"]:
        """Which tokens choose."""
        return self.values("half") == "train"


def pool_tokens(codes: FeatureCodes, tokens: Sequence[Token]) -> FeatureCodes:
    """The most of each latent from a token's start to two frames after its end."""
    starts, ends = (np.array([getattr(one, name) for one in tokens]) for name in ("start", "end"))
    return pool_spans(codes, [one.clip for one in tokens], starts, ends, after=AFTER)


def _sounds(tokens: Sequence[Token], spoken: DesignedCorpus) -> tuple[tuple[tuple[str, ...], ...], np.ndarray]:
    labels: dict[str, Labels] = {"train": spoken.train.labels, "test": spoken.test.labels}
    loud = {
        item.id: frame_loudness(corpus.load(item).numpy())  # type: ignore[union-attr]
        for corpus in (spoken.train.corpus, spoken.test.corpus)
        for item in corpus
    }
    phones, covariates = [], []
    for one in tokens:
        own = labels[one.sentence.half][one.clip]["phone"]
        phones.append(tuple(p.value for p in own if one.start <= (p.start + p.end) / 2 < one.end))
        part = loud[one.clip][int(one.start * 50) : max(int(one.end * 50), int(one.start * 50) + 1)]
        covariates.append((float(part.max()), one.end - one.start, one.start))
    return tuple(phones), np.array(covariates)


@dataclass(frozen=True)
class Finding:
    """One latent in one contrast; all figures but `auc_train` are of the test half.

    Attributes:
        contrast: what was asked.
        auc_train: over the types that chose it.
        auc, p: over the types of the test half, within strata.
        auc_beside, p_beside: with covariates taken out.
        f1: of tokens, at the training half's threshold; `f1_always` is that of a latent that always fires.
        least_voice: the lowest AUC of a voice alone.
        least_neighbour: of a word, the lowest AUC against one neighbour; NaN otherwise.
        n_positive, n_negative: types.
        needed: the AUC on the training half that made a latent a candidate.
        holds: by the rules at the top of this module; `judged` sets it.
    """

    contrast: str
    latent: int
    auc_train: float
    auc: float
    p: float
    auc_beside: float
    p_beside: float
    f1: float
    f1_always: float
    least_voice: float
    least_neighbour: float
    n_positive: int
    n_negative: int
    needed: float
    holds: bool = False


def judged(findings: Sequence[Finding], *, rate: float = 0.05) -> list[Finding]:
    """Findings of one design, with `holds` decided; the best first."""
    found = benjamini_hochberg(np.array([one.p for one in findings]), rate)
    beside = benjamini_hochberg(np.array([one.p_beside for one in findings]), rate)
    made = [
        replace(
            one,
            holds=bool(first and second)
            and one.auc_beside - 0.5 >= KEPT * (one.auc - 0.5)
            and one.least_voice > 0.5
            and one.f1 >= max(MIN_F1, one.f1_always + 1e-9)
            and not one.least_neighbour < MIN_NEIGHBOUR_AUC,
        )
        for one, first, second in zip(findings, found, beside, strict=True)
    ]
    return sorted(made, key=lambda one: (not one.holds, -one.auc))


def contrast(
    said: DesignedCodes,
    name: str,
    train: Bool[np.ndarray, " token"],
    test: Bool[np.ndarray, " token"],
    positive: Bool[np.ndarray, " token"],
    form: np.ndarray,
    stratum: np.ndarray,
    *,
    extra: Float[np.ndarray, " token"] | None = None,
    placed: bool = True,
    neighbours: np.ndarray | None = None,
    by_f1: bool = False,
    n_candidates: int = N_CANDIDATES,
    n_permutations: int = 9999,
    seed: int = 0,
) -> list[Finding]:
    """Names the best latents on some tokens and tests them on others.

    Args:
        train, test: tokens that choose, and tokens that test.
        positive: tokens with the label.
        form, stratum: of each token the type, and what types are compared within.
        extra: a covariate beside loudness, duration and start.
        placed: whether the start is a covariate; not where the frames of the two sides fix it.
        neighbours: of each token the form whose AUC against the positives is wanted alone.
        by_f1: choose by F1 of tokens, where one positive type leaves many latents with an AUC of 1.

    Raises:
        AnalysisError: a half in which no stratum has types of both kinds.
    """
    rows = train | test
    some = said.codes.select(rows)
    labels = column_labels({"contrast": np.where(positive, "yes", "no").astype(object)[rows]})
    scores = score_features(some, labels, train=train[rows], progress=False)
    yes = scores.label("contrast=yes")
    scale = said.covariates if placed else said.covariates[:, :2]
    scale = scale if extra is None else np.column_stack([scale, extra])
    means, of_type = {}, {}
    for half, chosen in (("train", train), ("test", test)):
        number = _numbered(form, stratum, chosen)
        means[half] = type_means(said.codes, number)
        first = np.array([np.flatnonzero(number == index)[0] for index in range(number.max() + 1)])
        of_type[half] = (number, positive[first], _codes(stratum[first]))
    _, plus, strata = of_type["train"]
    every = type_tests(means["train"], plus, strata, n_permutations=1, seed=seed)
    order = np.nan_to_num(scores.f1_train[:, yes], nan=-1.0) if by_f1 else every.auc
    # of equals the one that is better by the other measure
    ranked = np.lexsort((-(every.auc if by_f1 else np.nan_to_num(scores.f1_train[:, yes])), -order))
    chosen = ranked[:n_candidates]
    number, plus, strata = of_type["test"]
    plain = type_tests(means["test"], plus, strata, chosen, n_permutations=n_permutations, seed=seed)
    counts = np.bincount(number[number >= 0])
    outside = np.column_stack(
        [np.bincount(number[number >= 0], column[number >= 0]) / counts for column in scale.T]
    )  # means over tokens
    beside = type_tests(
        means["test"], plus, strata, chosen, covariates=outside, n_permutations=n_permutations, seed=seed
    )
    voices = _by_voice(said, chosen, test, positive, form, stratum)
    alone = np.full(len(chosen), np.nan)
    if neighbours is not None:
        alone = _by_neighbour(said, chosen, test, positive, neighbours)
    share = positive[test].mean()
    return [
        Finding(
            name, int(latent), float(every.auc[latent]), float(plain.auc[at]), float(plain.p[at]),
            float(beside.auc[at]), float(beside.p[at]), float(np.nan_to_num(scores.f1[latent, yes])),
            float(2 * share / (1 + share)), float(voices[at]), float(alone[at]), plain.n_positive, plain.n_negative,
            float(every.auc[chosen].min()),
        )
        for at, latent in enumerate(chosen)
    ]  # fmt: skip


def _codes(values: np.ndarray) -> np.ndarray:
    return np.unique(values.astype(str), return_inverse=True)[1]


def _numbered(form: np.ndarray, stratum: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """Numbers of types, -1 for tokens outside."""
    number = np.full(len(form), -1, dtype=np.int64)
    number[chosen] = _codes(np.array([f"{a}\0{b}" for a, b in zip(form[chosen], stratum[chosen], strict=True)]))
    return number


def _auc(values: np.ndarray, positive: np.ndarray) -> np.ndarray:
    """[latent] over tokens [token latent]."""
    more, less = values[positive], values[~positive]
    wins = (more[:, None] > less[None]).mean((0, 1)) + 0.5 * (more[:, None] == less[None]).mean((0, 1))
    return np.asarray(wins)


def _by_voice(
    said: DesignedCodes,
    latents: np.ndarray,
    test: np.ndarray,
    positive: np.ndarray,
    form: np.ndarray,
    stratum: np.ndarray,
) -> np.ndarray:
    """The lowest AUC, within strata, of the test voices one by one."""
    least = np.ones(len(latents))
    speakers = said.speakers
    for speaker in np.unique(speakers[test]):
        own = test & (speakers == speaker)
        number = _numbered(form, stratum, own)
        first = np.array([np.flatnonzero(number == index)[0] for index in range(number.max() + 1)])
        means = type_means(said.codes, number)
        found = type_tests(means, positive[first], _codes(stratum[first]), latents, n_permutations=1)
        least = np.minimum(least, found.auc)
    return least


def _by_neighbour(
    said: DesignedCodes, latents: np.ndarray, test: np.ndarray, positive: np.ndarray, neighbours: np.ndarray
) -> np.ndarray:
    least = np.ones(len(latents))
    for name in np.unique(neighbours[test & ~positive]):
        rows = np.flatnonzero(test & (positive | (neighbours == name)))
        values = said.codes.acts[rows][:, latents].toarray()
        least = np.minimum(least, _auc(values, positive[rows]))
    return least


def lexical(said: DesignedCodes, kind: str, *, n_candidates: int = 5, seed: int = 0) -> list[Finding]:
    """Words, or pseudowords, against the neighbours of their set; F1 against all other words of the design.

    A type is what one voice says in one frame, and is compared with what that voice says in that frame.
    """
    own, train = said.values("design") == "lexical", said.train
    form = said.values("form")
    blocks = np.array([f"{one.speaker} {one.sentence.text.replace(one.sentence.form, '')}" for one in said.tokens])
    wide = score_features(
        said.codes.select(own), column_labels({"word": form[own]}), train=train[own], progress=False
    )  # against all others
    found = []
    for target, (of_kind, near) in lexical_sets().items():
        here = own & np.isin(form, [target, *near])
        if of_kind != kind or len(set(form[here])) < 1 + len(near):
            continue
        chosen = contrast(said, target, here & train, here & ~train, form == target, form, blocks, neighbours=form,
                          by_f1=True, n_candidates=n_candidates, seed=seed)  # fmt: skip
        at = wide.label(f"word={target}")
        share = (form == target)[own & ~train].mean()
        found += [
            replace(one, f1=float(np.nan_to_num(wide.f1[one.latent, at])), f1_always=float(2 * share / (1 + share)))
            for one in chosen
        ]
    return found


def morphological(said: DesignedCodes, *, n_candidates: int = N_CANDIDATES, seed: int = 0) -> list[Finding]:
    """Each morpheme against the same sounds within a stem, on words that chose nothing."""
    own = said.values("design") == "morphological"
    names = said.values("contrast")
    found = []
    for name in dict.fromkeys(names[own]):
        here = own & (names == name)
        found += contrast(
            said, str(name), here & said.train, here & ~said.train, said.values("label") == name, said.values("form"),
            said.values("stratum"), n_candidates=n_candidates, seed=seed,
        )  # fmt: skip
    return found


def syntactic(said: DesignedCodes, *, n_candidates: int = N_CANDIDATES, seed: int = 0) -> list[Finding]:
    """Nouns against the same words as verbs, and the other way round, on words that chose nothing."""
    own = said.values("design") == "syntactic"
    return [
        one
        for name in ("noun", "verb")
        for one in contrast(
            said, name, own & said.train, own & ~said.train, said.values("label") == name, said.values("form"),
            said.values("stratum"), placed=False, n_candidates=n_candidates, seed=seed,
        )
    ]  # fmt: skip


def semantic(
    said: DesignedCodes, source: str, level: str = "category", *, n_candidates: int = N_CANDIDATES, seed: int = 0
) -> list[Finding]:
    """Categories, or single concepts, chosen in one language and tested in the others.

    Words that share too many sounds with the word of the same concept in `source` are left out of the test, and the
    likeness to the words that chose is a covariate.

    Raises:
        AnalysisError: an unknown level, or a language without words.
    """
    if level not in ("category", "concept"):
        raise AnalysisError(f"Unknown level {level!r}: expected 'category' or 'concept'.")
    own = said.values("design") == "semantic"
    language, form, concept = (said.values(name) for name in ("language", "form", "concept"))
    group = said.values("label") if level == "category" else concept
    if source not in language[own]:
        raise AnalysisError(f"No words of {source!r}: there are {', '.join(sorted(set(language[own])))}.")
    sounds = {(str(language[at]), str(concept[at])): said.phones[at] for at in np.flatnonzero(own)}
    own_words = {name: phones for (of, name), phones in sounds.items() if of == source}
    cognate = {key: likeness(phones, own_words.get(key[1], ())) >= ALIKE for key, phones in sounds.items()}
    found = []
    train = own & said.train & (language == source)
    foreign = own & ~said.train & (language != source)
    foreign &= np.array([not cognate.get((str(a), str(b)), False) for a, b in zip(language, concept, strict=True)])
    for name in dict.fromkeys(group[own]):
        if name == "other":
            continue
        members = [phones for of, phones in own_words.items() if (of == name if level == "concept" else True)]
        if level == "category":
            members = [own_words[str(c)] for c in dict.fromkeys(concept[train & (group == name)])]
        near = {key: max((likeness(phones, one) for one in members), default=0.0) for key, phones in sounds.items()}
        extra = np.array([near.get((str(a), str(b)), 0.0) for a, b in zip(language, concept, strict=True)])
        positive = group == name
        if not (positive & train).any() or not (positive & foreign).any():
            continue
        test = foreign & np.isin(language, np.unique(language[foreign & positive]))
        found += contrast(
            said, f"{name} ({source})", train, test, positive, form, language, extra=extra,
            by_f1=level == "concept", n_candidates=n_candidates, seed=seed,
        )  # fmt: skip
    return found


def likeness(a: Sequence[str], b: Sequence[str]) -> float:
    """1 - edit distance / length of the longer: 1 for the same sounds, 0 for none in common."""
    before = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        now = [i]
        for j, y in enumerate(b, 1):
            now.append(min(before[j] + 1, now[-1] + 1, before[j - 1] + (x != y)))
        before = now
    return 1 - before[-1] / max(len(a), len(b), 1)
