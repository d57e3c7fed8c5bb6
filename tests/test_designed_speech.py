"""Designed sentences: what they hold fixed, and the speech that says them."""

from __future__ import annotations

from collections import Counter, defaultdict
from pathlib import Path

import pytest

from hooked_whisper.analysis.designed_speech import (
    DESIGNED_VOICES,
    designed_sentences,
    lexical_sets,
    make_designed_corpus,
)
from hooked_whisper.analysis.designed_words import CONCEPT_LANGUAGES, CONCEPTS, MORPHEMES, NOUN_VERBS
from hooked_whisper.analysis.labels import plain_word
from hooked_whisper.errors import AnalysisError


def test_each_sentence_says_its_word_once_and_is_named_once() -> None:
    sentences = designed_sentences()
    assert sentences == designed_sentences()
    assert len({one.key for one in sentences}) == len(sentences)
    for one in sentences:
        assert [plain_word(word) for word in one.text.split()].count(one.target) == 1
    # what is alike does not lie together
    following = sum(a.design == b.design for a, b in zip(sentences, sentences[1:], strict=False))
    assert following < 0.4 * len(sentences)


def test_a_part_has_the_sentences_of_the_whole() -> None:
    whole = {one.key: one for one in designed_sentences()}
    part = designed_sentences(["lexical", "semantic"], every={"lexical": 6, "semantic": 20})
    assert 0 < len(part) < len(whole) / 4 and all(whole[one.key] == one for one in part)
    assert {one.label for one in part if one.design == "lexical"} == {"word", "pseudoword", "neighbour"}


def test_halves_share_no_frame_and_no_word_where_words_are_the_claim() -> None:
    frames: dict[str, set[str]] = defaultdict(set)
    words: dict[tuple[str, str], set[str]] = defaultdict(set)
    for one in designed_sentences():
        # the word itself aside
        frames[one.half].add(f"{one.language} {one.text.casefold().replace(one.target, '_', 1)}")
        words[one.design, one.half].add(one.target)
    assert not frames["train"] & frames["test"]
    assert not words["morphological", "train"] & words["morphological", "test"]
    assert not words["syntactic", "train"] & words["syntactic", "test"]
    assert words["lexical", "train"] == words["lexical", "test"]


def test_function_and_its_absence_stand_in_the_same_frames() -> None:
    said: dict[tuple[str, str, str], Counter[str]] = defaultdict(Counter)
    for one in designed_sentences(["morphological"]):
        frame = one.text.casefold().replace(one.target, "_", 1)
        said[one.contrast, one.half, one.label][f"{one.stratum} {frame}"] += 1
    for name in MORPHEMES:
        for half in ("train", "test"):
            with_it, without = said[name, half, name], said[name, half, "stem"]
            assert with_it.keys() == without.keys()
            assert all(abs(with_it[frame] - without[frame]) <= 1 for frame in with_it)
    nouns = Counter(one.target for one in designed_sentences(["syntactic"]) if one.label == "noun")
    verbs = Counter(one.target for one in designed_sentences(["syntactic"]) if one.label == "verb")
    assert nouns == verbs and set(nouns) == set(NOUN_VERBS)


def test_lists_are_whole() -> None:
    assert all(len(words) == len(CONCEPT_LANGUAGES) for _, words in CONCEPTS)
    assert len({words[0] for _, words in CONCEPTS}) == len(CONCEPTS)
    forms = {one.form for one in designed_sentences(["lexical"])}
    for target, (_, near) in lexical_sets().items():
        assert len(near) == 4 and target not in near and {target, *near} <= forms
    for language, contrast in MORPHEMES.values():
        assert language in CONCEPT_LANGUAGES
        for having, lacking in contrast.values():
            assert not set(having) & set(lacking) and abs(len(having) - len(lacking)) <= 1


def test_speech_and_its_tokens(tmp_path: Path) -> None:
    pytest.importorskip("espeakng_loader", reason="libespeak-ng is not installed")
    sentences = designed_sentences(["syntactic"], every=4)
    voices = [next(voice for voice in DESIGNED_VOICES if voice.split == half) for half in ("train", "test")]
    spoken = make_designed_corpus(sentences, tmp_path, voices=voices, progress=False)
    tokens = spoken.tokens()
    assert len(tokens) == len(sentences) == len(spoken.train.corpus) + len(spoken.test.corpus)
    for one in tokens:
        assert 0.1 < one.end - one.start < 1 and one.speaker == voices[one.sentence.half == "test"].speaker
    # the same word, as noun and as verb, sounds alike in length at least
    length: dict[str, list[float]] = defaultdict(list)
    for one in tokens:
        length[one.sentence.label].append(one.end - one.start)
    assert sum(length["noun"]) == pytest.approx(sum(length["verb"]), rel=0.25)


def test_bad_input() -> None:
    with pytest.raises(AnalysisError, match="Unknown design 'lexicl'.*lexical"):
        designed_sentences(["lexicl"])
    with pytest.raises(AnalysisError, match="Unknown design 'lexicl'"):
        designed_sentences(every={"lexicl": 2})
    with pytest.raises(AnalysisError, match="every=0"):
        designed_sentences(every=0)
    with pytest.raises(AnalysisError, match="0 languages"):
        make_designed_corpus([], "nowhere")
