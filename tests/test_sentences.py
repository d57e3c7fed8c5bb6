"""The sentences that synthesisers say."""

from __future__ import annotations

from hooked_whisper.saes.sentences import SENTENCES
from hooked_whisper.tokenizer import LANGUAGES


def test_sentences_are_parallel_and_in_languages_that_whisper_knows() -> None:
    assert set(SENTENCES) <= set(LANGUAGES)
    assert len(SENTENCES) == 26
    assert {len(sentences) for sentences in SENTENCES.values()} == {6}
    every = [sentence for sentences in SENTENCES.values() for sentence in sentences]
    assert len(set(every)) == len(every)
    assert all(sentence == sentence.strip() and len(sentence) > 20 for sentence in every)
