"""Error rates against counts made by hand, Whisper's normalising, and languages without spaces."""

from __future__ import annotations

import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hooked_whisper import HookedWhisper, MissingExtraError
from hooked_whisper.saes.error_rates import Errors, TranscriptErrors, count_errors, text_normalizer

words = st.lists(st.sampled_from(["uno", "due", "tre", "quattro"]), max_size=6).map(" ".join)


def test_edits_are_counted_in_words_and_characters() -> None:
    basic = text_normalizer("it")
    assert count_errors("la mia casa", "la tua casa grande", basic) == Errors(2, 3, 9, 11)
    assert count_errors("la mia casa", "la casa", basic) == Errors(1, 3, 4, 11)
    assert count_errors("", "due parole", basic) == Errors(2, 0, 10, 0)
    assert count_errors("", "", basic) == Errors(0, 0, 0, 0)


def test_case_punctuation_and_english_forms_do_not_count() -> None:
    assert count_errors("It's Mr. Smith, isn't it?", "it is mister smith is not it", text_normalizer("en")) == Errors(
        0, 7, 0, 28
    )
    assert count_errors("Désolé, à demain!", "désolé à demain", text_normalizer("fr")).word_errors == 0
    assert count_errors("désolé", "desole", text_normalizer("fr")).word_errors == 1  # accents are spelling


def test_spellings_need_the_checkpoints_list(whisper_base: HookedWhisper, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = whisper_base.tokenizer
    assert tokenizer is not None
    monkeypatch.setattr(tokenizer.hf, "english_spelling_normalizer", None)
    assert count_errors("the colour", "the color", text_normalizer("en", tokenizer)).word_errors == 1
    monkeypatch.setattr(tokenizer.hf, "english_spelling_normalizer", {"colour": "color"})
    assert count_errors("the colour", "the color", text_normalizer("en", tokenizer)).word_errors == 0
    assert count_errors("the colour", "the color", text_normalizer(None, tokenizer)).word_errors == 0


def test_without_spaces_each_character_is_a_word() -> None:
    assert count_errors("東京都です", "東京とです", text_normalizer("ja")) == Errors(1, 5, 1, 5)


@given(words, words)
def test_errors_are_a_distance(a: str, b: str) -> None:
    basic = text_normalizer("it")
    there, back = count_errors(a, b, basic), count_errors(b, a, basic)
    assert (there.word_errors == 0) == (a == b)
    assert (there.word_errors, there.character_errors) == (back.word_errors, back.character_errors)
    assert there.words == len(a.split())


def filled() -> TranscriptErrors:
    """Three clips: one unchanged, one made worse, one without reference text."""
    found = TranscriptErrors()
    found.add("buon giorno a tutti", "Buon giorno a tutti.", "buon giorno a tutti", clip="a", language="it")
    found.add("come va oggi", "come vai oggi amico", "come va", clip="b", language="it")
    found.add("see you", "see you", None, clip="c", language="en")
    return found


def test_rates_are_pooled_and_paired() -> None:
    rates = filled().result()
    assert (rates.n_clips, rates.n_changed, rates.n_words) == (3, 1, 9)
    assert (rates.n_reference_clips, rates.n_reference_words) == (2, 6)
    assert rates.wer_to_unhooked.value == pytest.approx(2 / 9)
    assert rates.wer_unhooked.value == pytest.approx(1 / 6)  # "oggi"
    assert rates.wer_spliced.value == pytest.approx(3 / 6)
    assert rates.wer_change.value == pytest.approx(2 / 6)
    assert rates.cer_unhooked.value == pytest.approx(5 / 26)  # " oggi" of 19 + 7 characters
    assert rates.cer_change.value == pytest.approx(7 / 26)  # "i" and " amico"


def test_some_clips_alone_and_clips_without_reference() -> None:
    found = filled()
    assert found.result([1]).wer_to_unhooked.value == pytest.approx(2 / 3)
    alone = found.result([2])
    assert alone.wer_to_unhooked.value == 0
    assert (alone.n_reference_clips, alone.n_reference_words, alone.wer_change.value) == (0, 0, None)


def test_worst_clips_come_first_and_unchanged_ones_never() -> None:
    found = filled()
    found.add("uno due tre", "", "uno due tre", clip="d", language="it")
    assert [change.clip for change in found.worst(5)] == ["d", "b"]
    assert [change.clip for change in found.worst(1)] == ["d"]
    assert found.worst(1)[0].word_errors == 3


def test_without_jiwer_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jiwer", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'hooked-whisper\[analysis\]'"):
        count_errors("a", "b", text_normalizer("it"))
