"""Words with times from Whisper's own cross-attention, as labels."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hooked_whisper import HookedWhisper
from hooked_whisper.alignment import Word
from hooked_whisper.analysis import word_labels as word_label_module
from hooked_whisper.analysis.labels import Labels
from hooked_whisper.analysis.word_labels import said_in_order, word_labels
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


def test_a_word_ends_where_the_next_window_begins_another() -> None:
    words = [
        Word("dialed", 51.7, 52.3, [], []),
        Word(" if", 52.16, 52.64, [], []),
        Word("?", 52.6, 52.7, [], []),
        Word(" you", 52.5, 52.8, [], []),
    ]
    found = said_in_order(words, 52.7)
    assert [(one.value, one.start, one.end) for one in found] == [
        ("dialed", 51.7, 52.16), ("if", 52.16, 52.5), ("you", 52.5, 52.7),
    ]  # fmt: skip


@given(st.lists(st.tuples(st.floats(0, 40), st.floats(0, 3)), max_size=8))
def test_words_never_overlap(times: list[tuple[float, float]]) -> None:
    """Whatever times the model gives: labels of them can be made."""
    words = [Word(f" w{index}", start, start + seconds, [], []) for index, (start, seconds) in enumerate(times)]
    found = said_in_order(words, 35.0)
    Labels({"clip": {"word": found}}, {"clip": 35.0})
    assert all(one.start < one.end <= 35 for one in found)
    assert all(one.end <= after.start for one, after in itertools.pairwise(found))
    values = [int(one.value[1:]) for one in found]
    assert values == sorted(values)


def test_words_are_kept_as_they_come(
    shared_short_whisper_base: HookedWhisper, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, out = shared_short_whisper_base, tmp_path / "kept" / "words.jsonl"
    spoken = [clips(language, key="vm-sorry")[0] for language in ("en", "it", "fr")]
    three = Corpus.from_clips(spoken)
    heard = word_labels(model, three, batch_size=2, progress=False)
    timed = word_label_module._timed

    def breaks(model: HookedWhisper, group: list[Any], transcripts: str) -> list[list[Word]]:
        if len(group) == 1:
            raise KeyboardInterrupt
        return timed(model, group, transcripts)

    monkeypatch.setattr(word_label_module, "_timed", breaks)
    with pytest.raises(KeyboardInterrupt):
        word_labels(model, three, batch_size=2, out=out, progress=False)
    with out.open("a") as file:
        file.write('{"clip": "torn')
    asked: list[int] = []
    monkeypatch.setattr(
        word_label_module, "_timed", lambda model, group, how: asked.append(len(group)) or timed(model, group, how)
    )
    assert word_labels(model, three, batch_size=2, out=out, progress=False) == heard and asked == [1]
    assert word_labels(model, Corpus.from_clips(spoken[1:]), out=out, progress=False).clips == heard.clips[1:]
    assert asked == [1]
    other = [replace(three[0], language="it"), CorpusItem(three[1].id, three[1].load())]  # what is told of them changed
    word_labels(model, Corpus(other, name="other"), out=out, progress=False)
    assert asked == [1, 2]
    with pytest.raises(AnalysisError, match="its what is words of model, this one's words of corpus"):
        word_labels(model, three, transcripts="corpus", out=out)
    lines = out.read_text().splitlines()
    out.write_text("\n".join([*lines[:2], '{"clip": "a", "seconds": "x"}']) + "\n")
    with pytest.raises(
        AnalysisError, match=r"line 3 of .*words\.jsonl is damaged: delete it, and its clip is heard again"
    ):
        word_labels(model, three, out=out)
