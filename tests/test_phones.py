"""How phones are made, as the IPA's chart has it, and the names that espeak-ng gives them."""

from __future__ import annotations

import pytest

from hooked_whisper.analysis.phones import (
    HEIGHT_CLASSES,
    LETTERS,
    PLACE_CLASSES,
    articulations,
    classes,
    espeak_phone,
    plain_phone,
    unknown_phones,
)
from hooked_whisper.errors import AnalysisError

# What espeak-ng 1.52 says in these languages: the five languages of the prompts and German, some 2,800 sentences.
ESPEAK = {
    "en": "n t s ɹ k l ə d ˈɛ p m ð ɪ f z ɚ j ˈiː v b ˈɑː w ˈeɪ ᵻ ˈʌ ɐ uː ŋ æ ˈaɪ dʒ ˈoʊ ɾ ˈɔː θ ɡ h ʃ ˈɜː ˈaʊ ʊɹ əl "
    "ɔːɹ tʃ ɑːɹ ˈaɪə iə ˈɔɪ ɜː ˈɔ ˈɪɹ ʊ ɛɹ ʔ n̩ ˈaɪɚ ʒ",
    "es": "e n a s o t ɾ l k ð m p j β i θ ˈɛ u f d w x ɣ b r ʎ tʃ ɡ ŋ ʝ ˈeɪ ˈaɪ ɲ ˈaʊ ˈoɪ",
    "fr": "ʁ s ˈe t p l d a k i v y j u m n ɛ o ə- ˈɑ̃ ʒ z f ɔ̃ ə w a- ˈɔ b ɛ̃ œ ɡ œ̃ e- ø y- ʃ ɹ ɲ ˌɪ iː ŋ θ",
    "it": "e o t n a l r i p m k s d ˈɛ ɪ v ʊ ˈu tʃ ˈɔ j w dʒ f ts ss z ɡ b ɾ ʃ ʎ dz ɲ ŋ ˈiː ˈɒ d̪",
    "ru": 'ʌ i n v r t ɭ s ˈɑ p k ˈo tʲ ɪ ˈe y j d a mʲ ʃ u b f z tʃʲ sʲ ʒ dʲ ts ja ˈɛ ɡ ɕ x ju u" ə ˈɵ ʑ ɪ^ pʲ rʲ ɭʲ',
    "de": "n ə t ɾ m s d k b iː ɪ h ɡ z v ɜ ˈa l f ˈɑː ʃ ˈuː ʊ ɛ p ˈeː aɪ ˈɔø ts r x ˈaʊ ˈoː ˈøː ˌyː ç ˌœ j ŋ ˈɛː ʏ pf",
}


@pytest.mark.parametrize("language", ESPEAK)
def test_all_that_espeak_says_is_known(language: str) -> None:
    phones = [espeak_phone(name, language)[0] for name in ESPEAK[language].split()]
    assert unknown_phones(phones) == ()
    for phone in phones:
        for sound in articulations(phone):
            said = classes(sound)
            assert {"voicing", "manner"} < set(said)
            vowel = said["manner"] == "vowel"
            assert ("place" in said) != vowel and ({"height", "backness", "rounding"} <= set(said)) == vowel


@pytest.mark.parametrize(
    ("phone", "expected"),
    [
        ("p", "voiceless bilabial plosive"), ("ɡ", "voiced velar plosive"), ("g", "voiced velar plosive"),
        ("ŋ", "voiced velar nasal"), ("ʃ", "voiceless postalveolar fricative"), ("ð", "voiced dental fricative"),
        ("ʁ", "voiced uvular fricative"), ("ɹ", "voiced alveolar approximant"), ("ʎ", "voiced palatal lateral"),
        ("tʃ", "voiceless postalveolar affricate"), ("d͡ʒ", "voiced postalveolar affricate"),
        ("tɕ", "voiceless alveolo-palatal affricate"), ("pf", "voiceless labiodental affricate"),
        ("d̪", "voiced dental plosive"), ("ç", "voiceless palatal fricative"), ("r̥", "voiceless alveolar trill"),
        ("iː", "close front unrounded"), ("ˈuː", "close back rounded"), ("ø", "close-mid front rounded"),
        ("ɚ", "mid central unrounded"), ("ɑ̃", "open back unrounded"), ("ɨ", "close central unrounded"),
    ],
)  # fmt: skip
def test_the_chart(phone: str, expected: str) -> None:
    (sound,) = articulations(phone)
    made = (
        [sound.height, sound.backness, sound.rounding]
        if sound.manner == "vowel"
        else [sound.voicing, sound.place, sound.manner]
    )
    assert " ".join(map(str, made)) == expected


def test_sounds_that_follow_each_other() -> None:
    assert [sound.phone for sound in articulations("ˈaɪɚ")] == ["a", "ɪ", "ɚ"]
    assert [sound.manner for sound in articulations("ɔːɹ")] == ["vowel", "approximant"]
    assert [sound.manner for sound in articulations("ja")] == ["approximant", "vowel"]
    # A plosive before a fricative of another place or voicing is no affricate.
    assert [sound.phone for sound in articulations("ks")] == ["k", "s"]
    assert [sound.phone for sound in articulations("tz")] == ["t", "z"]
    (double,) = articulations("ss")
    assert double.phone == "s" and double.long


def test_marks() -> None:
    nasal, palatal, long = articulations("ɔ̃")[0], articulations("tʃʲ")[0], articulations("ɑː")[0]
    assert nasal.nasal and not articulations("ɔ")[0].nasal and articulations("m")[0].nasal
    assert palatal.palatalised and palatal.manner == "affricate" and palatal.phone == "tʃʲ"
    assert long.long and long.phone == "ɑ"
    assert classes(nasal)["nasality"] == "nasal" and classes(long)["length"] == "long"
    assert "length" not in classes(articulations("ɑ")[0])
    assert plain_phone("ˈɑː") == "ɑ" and plain_phone("t͡ʃ") == "tʃ"
    assert plain_phone("a\u0303") == plain_phone("\u00e3") == "\u00e3"  # composed


def test_groups_cover_the_chart() -> None:
    assert {sound.place for sound in LETTERS.values()} == {None, *PLACE_CLASSES}
    assert {sound.height for sound in LETTERS.values()} == {None, *HEIGHT_CLASSES}
    assert classes(articulations("w")[0])["place_class"] == "labial"
    assert classes(articulations("ɪ")[0])["height_class"] == "close"
    # No two symbols for one thing, but for those that differ in what is not told here: rhotic, velarised, lateral.
    told = [tuple(classes(sound).items()) for sound in LETTERS.values()]
    assert len(told) - len(set(told)) == 6


@pytest.mark.parametrize(
    ("name", "language", "expected"),
    [
        ("ˈiː", "en-us", ("i", "primary", True)),
        ("ˌœ", "de", ("œ", "secondary", False)),
        ("y", "ru", ("ɨ", None, False)),
        ("y", "fr", ("y", None, False)),
        ('ˈu"', "ru", ("ʉ", "primary", False)),
        ("ə-", "fr-be", ("ə", None, False)),
        ("ss", "it", ("s", None, True)),
        ("ɜ", "de", ("ɐ", None, False)),
        ("ˈɜː", "en", ("ɜ", "primary", True)),
    ],
)
def test_espeak_names(name: str, language: str, expected: tuple[str, str | None, bool]) -> None:
    assert espeak_phone(name, language) == expected


def test_what_is_no_phone() -> None:
    with pytest.raises(AnalysisError, match="phone 'sil3' has '3', which is unknown: expected IPA. unknown_phones"):
        articulations("sil3")
    with pytest.raises(AnalysisError, match="phone 'ʲ' has 'ʲ', which marks no sound"):
        articulations("ʲ")
    with pytest.raises(AnalysisError, match="'ˈ' is no phone"):
        articulations("ˈ")
    assert unknown_phones(["a", "5", "AH0", "5"]) == ("5", "AH0")
