"""Words with times from Whisper's own cross-attention, as labels."""

from __future__ import annotations

import pytest

from hooked_whisper import HookedWhisper
from hooked_whisper.analysis.word_labels import word_labels
from hooked_whisper.errors import AnalysisError
from hooked_whisper.saes import Corpus
from hooked_whisper.saes.corpus_item import CorpusItem
from hooked_whisper.speech import clips


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    return Corpus.from_clips([clips(language, key="vm-sorry")[0] for language in ("en", "it")])


def test_the_model_and_the_corpus_agree_on_when_words_are_said(whisper_base: HookedWhisper, corpus: Corpus) -> None:
    heard = word_labels(whisper_base, corpus, progress=False)
    given = word_labels(whisper_base, corpus, transcripts="corpus", progress=False)
    assert heard.clips == given.clips == tuple(item.id for item in corpus)
    for item in corpus:
        assert heard.durations[item.id] == pytest.approx(len(item.load()) / 16_000)
        words = {one.value: one for one in heard[item.id]["word"]}
        assert len(words) >= 4 and all(value == value.casefold().strip(" .,") for value in words)
        shared = [one for one in given[item.id]["word"] if one.value in words]
        assert len(shared) >= 3
        assert all(abs(one.start - words[one.value].start) < 0.25 for one in shared)


def test_what_cannot_be_timed(whisper_base: HookedWhisper, corpus: Corpus) -> None:
    with pytest.raises(AnalysisError, match="transcripts='both': expected 'model' or 'corpus'"):
        word_labels(whisper_base, corpus, transcripts="both")
    mute = Corpus([CorpusItem("a", corpus[0].audio)], name="mute")
    with pytest.raises(AnalysisError, match="mute has no clip with a text: transcripts='model' needs none"):
        word_labels(whisper_base, mute, transcripts="corpus")
