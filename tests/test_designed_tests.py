"""Latents planted in designed speech are found with their class; those of a sound, a voice or nothing are not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from made_up_features import codes_of

from hooked_whisper.analysis.codes import FeatureCodes, sparse
from hooked_whisper.analysis.designed_speech import (
    DESIGNED_VOICES,
    Token,
    designed_sentences,
    make_designed_corpus,
)
from hooked_whisper.analysis.designed_tests import (
    AFTER,
    DesignedCodes,
    judged,
    lexical,
    likeness,
    morphological,
    semantic,
    syntactic,
)
from hooked_whisper.errors import AnalysisError

VOICES = {"train": ("m1-45-160",), "test": ("m3-40-170", "f2-55-165", "m2-50-175")}
N_NOISE = 40


Planted = dict[str, Callable[[Token], bool]]
PLANTED: Planted = {
    "plural": lambda one: one.sentence.label == "plural -s",
    "noun": lambda one: one.sentence.label == "noun",
    "number": lambda one: one.sentence.label == "number",
    "cat": lambda one: one.sentence.form == "cat",
    # rivals: a sound that words with and without the morpheme have; a voice; a first letter
    "ks": lambda one: one.sentence.stratum == "ks",
    "voice": lambda one: one.speaker == "m3-40-170",
    "c": lambda one: one.sentence.target.startswith("c"),
}


@pytest.fixture(scope="module")
def said() -> DesignedCodes:
    """Tokens of every design, without the sound: latents that follow something, and noise."""
    generator = np.random.default_rng(0)
    sentences = [
        *designed_sentences(["lexical"], every=8),
        *(one for one in designed_sentences(["morphological"]) if one.contrast == "plural -s"),
        *designed_sentences(["syntactic"]),
        *(one for one in designed_sentences(["semantic"], every=3) if one.language in ("en", "es", "ru")),
    ]
    tokens = tuple(Token(one, f"{one.key}/{v}", 0.3, 0.6, v) for one in sentences for v in VOICES[one.half])
    dense = generator.gamma(2.0, 1.0, (len(tokens), len(PLANTED) + N_NOISE))
    dense *= generator.random(dense.shape) < 0.1
    for latent, follows in enumerate(PLANTED.values()):
        hit = np.array([follows(one) for one in tokens]) & (generator.random(len(tokens)) < 0.95)
        dense[hit, latent] += 4.0 + generator.random(int(hit.sum()))
    return DesignedCodes(
        codes_of(dense, len(tokens)),
        tokens,
        tuple(tuple(one.sentence.target) for one in tokens),
        generator.normal(0, 1, (len(tokens), 3)),
    )


def test_tokens_of_spoken_sentences(tmp_path: Path) -> None:
    pytest.importorskip("espeakng_loader", reason="libespeak-ng is not installed")
    voices = [next(voice for voice in DESIGNED_VOICES if voice.split == half) for half in ("train", "test")]
    sentences = designed_sentences(["syntactic"], every=8)
    spoken = make_designed_corpus(sentences, tmp_path, voices=voices, progress=False)
    durations = {**spoken.train.labels.durations, **spoken.test.labels.durations}
    frames = [int(seconds * 50) for seconds in durations.values()]
    clip, frame = np.repeat(np.arange(len(frames)), frames), np.concatenate([np.arange(n) for n in frames])
    # a latent that says when it is, another that is never active
    acts = sparse.csr_array(np.stack([frame + 1.0, np.zeros(len(frame))], 1).astype(np.float32))
    codes = FeatureCodes(acts, clip.astype(np.int32), frame.astype(np.int32), tuple(durations))
    said = DesignedCodes.of(codes, spoken)
    for row, one in enumerate(said.tokens):
        # the last frame whose centre lies before the token's end and two frames more
        assert abs(float(said.codes.acts[row, 0]) - 50 * (one.end + AFTER)) <= 1.5
        assert said.phones[row] and said.covariates[row, 1] == pytest.approx(one.end - one.start)
        assert -40 < said.covariates[row, 0] < 0
    assert said.train.sum() == sum(one.half == "train" for one in sentences)
    assert said.recoded(codes).codes.acts.shape == said.codes.acts.shape


def holding(findings: list) -> set[tuple[str, int]]:
    return {(one.contrast, one.latent) for one in judged(findings) if one.holds}


def test_words(said: DesignedCodes) -> None:
    assert holding(lexical(said, "word")) == {("cat", list(PLANTED).index("cat"))}
    assert holding(lexical(said, "pseudoword")) == set()
    best = judged(lexical(said, "word"))[0]
    assert best.auc > 0.9 and best.least_neighbour > 0.85 and best.f1 > 0.7


def test_morphemes_and_parts_of_speech(said: DesignedCodes) -> None:
    assert holding(morphological(said)) == {("plural -s", list(PLANTED).index("plural"))}
    assert holding(syntactic(said)) == {("noun", list(PLANTED).index("noun"))}


def test_meanings_in_languages_that_chose_nothing(said: DesignedCodes) -> None:
    for source in ("en", "ru"):
        findings = judged(semantic(said, source))
        assert {(one.contrast, one.latent) for one in findings if one.holds} == {
            (f"number ({source})", list(PLANTED).index("number"))
        }
    with pytest.raises(AnalysisError, match="No words of 'de'"):
        semantic(said, "de")
    with pytest.raises(AnalysisError, match="Unknown level"):
        semantic(said, "en", "meaning")


def test_cognates_are_alike() -> None:
    assert likeness("kat", "kat") == 1 and likeness("", "kat") == 0 and likeness("tres", "tre") == 0.75
