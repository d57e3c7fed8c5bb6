"""Sentences designed to tell a feature's meaning from its sound, and speech that says them.

    sentences = designed_sentences(["lexical", "syntactic"])
    spoken = make_designed_corpus(sentences, "designed/")        # spoken.train and spoken.test: corpora with labels
    tokens = spoken.tokens()                                     # where the word that matters is said: clip, start, end

Words stand in frames that are the same for those with a function and those without. What chooses a latent and what
tests it differ in voices and in frames, and, where the claim is of more than one word, in words:

| design | a type (`form`) | positive | beside | halves differ in |
|---|---|---|---|---|
| lexical | a word or pseudoword | itself | words that together have all of its sounds | voice, frame |
| morphological | a word | has the morpheme | words whose stem ends (or begins) alike | voice, frame, word |
| semantic | a word of one of five languages | its category | the other words of its language | voice, frame |
| syntactic | a word as noun or as verb | noun | the same word as verb, between the same sounds | voice, frame, word |

The words are in `designed_words`.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from hooked_whisper.analysis.designed_words import (
    CONCEPT_LANGUAGES,
    CONCEPTS,
    MORPHEMES,
    NOUN_VERBS,
    PSEUDOWORD_NEIGHBOURS,
    WORD_NEIGHBOURS,
)
from hooked_whisper.analysis.labels import plain_word
from hooked_whisper.analysis.phone_speech import PHONE_VOICES, PhoneCorpus, PhoneVoice, make_phone_corpus
from hooked_whisper.errors import AnalysisError, did_you_mean

if TYPE_CHECKING:
    from typing import Literal

    Half = Literal["train", "test"]
else:
    Half = str

DESIGNS = ("lexical", "morphological", "semantic", "syntactic")
_HALVES: tuple[Half, Half] = ("train", "test")

# Words in quotation: any word fits, and the frame says nothing of it.
_FRAMES: dict[str, dict[str, tuple[str, ...]]] = {
    "train": {
        "en": ("Say {} again.", "We keep {} here."),
        "es": ("Diga {} otra vez.", "Aquí dice {} claro."),
        "fr": ("Dites {} encore.", "On lit {} ici."),
        "it": ("Dica {} ancora.", "Qui leggo {} adesso."),
        "ru": ("Скажи {} ещё раз.", "Тут пишут {} опять."),
    },
    "test": {
        "en": ("He read {} twice.", "Put {} below."),
        "es": ("Ponga {} debajo.", "Ella leyó {} ayer."),
        "fr": ("Mettez {} dessous.", "Elle a lu {} hier."),
        "it": ("Metta {} sotto.", "Lei ha detto {} ieri."),
        "ru": ("Напиши {} внизу.", "Она читала {} вчера."),
    },
}
# Of the test, the sounds before and after are the same for both.
_NOUN_FRAMES = {"train": ("The {} was good.", "She has a {} now."), "test": ("In my {} here.", "Now my {} then.")}
_VERB_FRAMES = {"train": ("They {} all day.", "You can {} now."), "test": ("And I {} here.", "Now I {} then.")}

# A man and two women choose, two men and a woman test.
DESIGNED_VOICES = (
    *(voice for voice in PHONE_VOICES if voice.variant != "m7"),
    PhoneVoice("m2", 50, 175, split="test"),
)


@dataclass(frozen=True)
class DesignedSentence:
    """A sentence with a word that matters.

    Attributes:
        design: which test it is for.
        half: "train" (to choose latents) or "test".
        text, language: what is said.
        target: the word, as the tier "word" has it; it stands once in the text.
        form: the type that it is a token of, on whose level labels are permuted.
        stratum: types are compared within it: a set of neighbours, a final sound, a language, a word.
        label: what it is: a target or a neighbour, a morpheme or none, a category, "noun" or "verb".
        contrast: of several in a design: the target's name, the morpheme; "" if there is one.
        concept: of the semantic design, the English word.
        key: what the clip is called.
    """

    design: str
    half: Half
    text: str
    language: str
    target: str
    form: str
    stratum: str
    label: str
    contrast: str = ""
    concept: str = ""
    key: str = ""


@dataclass(frozen=True)
class Token:
    """A word that matters, said: of which sentence, in which clip and when, by whom."""

    sentence: DesignedSentence
    clip: str
    start: float
    end: float
    speaker: str


@dataclass(frozen=True)
class DesignedCorpus:
    """Two corpora, of other voices and other sentences; a latent is chosen on one and tested on the other."""

    train: PhoneCorpus
    test: PhoneCorpus
    sentences: tuple[DesignedSentence, ...]

    def tokens(self) -> list[Token]:
        """Every token of every sentence, those of `train` first.

        Raises:
            AnalysisError: a clip in which the word is not found once.
        """
        of = {(one.half, one.language, one.key): one for one in self.sentences}
        found = []
        for half, made in (("train", self.train), ("test", self.test)):
            labels = made.labels
            for item in made.corpus:
                sentence = of[half, str(item.language), str(item.columns["key"])]
                spans = [one for one in labels[item.id]["word"] if one.value == sentence.target]
                if len(spans) != 1:
                    raise AnalysisError(f"{item.id}: {sentence.target!r} is said {len(spans)} times: expected once.")
                found.append(Token(sentence, item.id, spans[0].start, spans[0].end, str(item.speaker)))
        return found


def designed_sentences(
    designs: Collection[str] = (), *, every: Mapping[str, int] | int = 1, seed: int = 0
) -> tuple[DesignedSentence, ...]:
    """The sentences of some designs, in random order, so that what is alike does not lie together in a window.

    A sentence has the same key, half and place in the order whatever else is taken.

    Args:
        designs: "lexical", "morphological", "semantic", "syntactic"; () takes all.
        every: takes each so-manieth set of words, pair of words, concept or word alone; of all, or by design.
        seed: of the order, and of the halves of words.

    Raises:
        AnalysisError: an unknown design, or `every` below 1.
    """
    steps = dict.fromkeys(DESIGNS, every) if isinstance(every, int) else {**dict.fromkeys(DESIGNS, 1), **every}
    for name in (*designs, *steps):
        if name not in DESIGNS:
            raise AnalysisError(f"Unknown design {name!r}: expected {', '.join(DESIGNS)}.{did_you_mean(name, DESIGNS)}")
    if min(steps.values()) < 1:
        raise AnalysisError(f"every={every}: expected 1 or more.")
    found: list[tuple[list[int], DesignedSentence]] = []
    for number, maker in enumerate((_lexical, _morphological, _semantic, _syntactic)):
        found += maker(np.random.default_rng([seed, number]))
    order = np.random.default_rng(seed).permutation(len(found)).tolist()
    kept = []
    for place, (ranks, one) in enumerate(found[at] for at in order):
        # a frame that has the word itself would say it twice
        once = [plain_word(word) for word in one.text.split()].count(one.target) == 1
        if once and one.design in (designs or DESIGNS) and any(rank % steps[one.design] == 0 for rank in ranks):
            kept.append(replace(one, key=f"{one.design}-{place:05d}"))
    return tuple(kept)


def make_designed_corpus(
    sentences: Sequence[DesignedSentence],
    out: str | os.PathLike[str],
    *,
    voices: Sequence[PhoneVoice] = DESIGNED_VOICES,
    progress: bool | None = None,
) -> DesignedCorpus:
    """Has the training voices say the training sentences and the test voices the others; a folder made so is reused.

    Raises:
        AnalysisError: no sentences or voices for one of the halves, or what `make_phone_corpus` raises.
    """
    made = []
    for half in ("train", "test"):
        texts: dict[str, dict[str, str]] = {}
        for one in sentences:
            if one.half == half:
                texts.setdefault(one.language, {})[one.key] = one.text
        saying = [voice for voice in voices if voice.split == half]
        made.append(make_phone_corpus(texts, Path(out) / half, voices=saying, progress=progress))
    return DesignedCorpus(made[0], made[1], tuple(sentences))


def _said(design: str, half: Half, language: str, word: str, form: str, stratum: str, label: str, *, contrast: str = "",
          concept: str = "", frames: Sequence[str] | None = None) -> list[DesignedSentence]:  # fmt: skip
    """A word in each of the frames of a half."""
    return [
        DesignedSentence(
            design, half, frame.format(word), language, plain_word(word), form, stratum, label, contrast, concept
        )
        for frame in (frames or _FRAMES[half][language])
    ]


def _lexical(generator: np.random.Generator) -> list[tuple[list[int], DesignedSentence]]:
    """Each form once, though several sets have it: the sets are put together in `lexical_sets`."""
    ranks: dict[str, list[int]] = {}
    labels: dict[str, str] = {}
    for label, sets in (("pseudoword", PSEUDOWORD_NEIGHBOURS), ("word", WORD_NEIGHBOURS)):
        for rank, (target, near) in enumerate(sets.items()):
            for form in (target, *near):
                ranks.setdefault(form, []).append(rank)
                labels.setdefault(form, "neighbour")
            labels[target] = label
    return [
        (ranks[form], one)
        for form, label in labels.items()
        for half in _HALVES
        for one in _said("lexical", half, "en", form, form, "en", label)
    ]


def _morphological(generator: np.random.Generator) -> list[tuple[list[int], DesignedSentence]]:
    found = []
    for name, (language, contrast) in MORPHEMES.items():
        for stratum, sides in contrast.items():
            for label, words in zip((name, "stem"), sides, strict=True):
                for place, at in enumerate(generator.permutation(len(words)).tolist()):
                    made = _said("morphological", _HALVES[place % 2], language, words[at], words[at], stratum, label,
                                 contrast=name)  # fmt: skip
                    found += [([place // 2], one) for one in made]
    return found


def _semantic(generator: np.random.Generator) -> list[tuple[list[int], DesignedSentence]]:
    found = []
    for rank, (category, words) in enumerate(CONCEPTS):
        for language, word in zip(CONCEPT_LANGUAGES, words, strict=True):
            for half in _HALVES:
                # one frame is enough: what is permuted are the words
                made = _said("semantic", half, language, word, word, language, category, concept=words[0],
                             frames=_FRAMES[half][language][:1])  # fmt: skip
                found += [([rank], one) for one in made]
    return found


def _syntactic(generator: np.random.Generator) -> list[tuple[list[int], DesignedSentence]]:
    found = []
    for place, at in enumerate(generator.permutation(len(NOUN_VERBS)).tolist()):
        word, half = NOUN_VERBS[at], _HALVES[place % 2]
        for label, frames in (("noun", _NOUN_FRAMES), ("verb", _VERB_FRAMES)):
            made = _said("syntactic", half, "en", word, f"{word} ({label})", word, label, frames=frames[half])
            found += [([place // 2], one) for one in made]
    return found


def lexical_sets() -> dict[str, tuple[str, tuple[str, ...]]]:
    """Of the lexical design: target -> ("word" or "pseudoword", its neighbours)."""
    return {
        target: (kind, near)
        for kind, sets in (("word", WORD_NEIGHBOURS), ("pseudoword", PSEUDOWORD_NEIGHBOURS))
        for target, near in sets.items()
    }
