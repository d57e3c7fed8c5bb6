"""Labels made from labels, by hand and by rule."""

from __future__ import annotations

from pathlib import Path

import pytest

from hooked_whisper.analysis.derived_labels import (
    articulatory_labels,
    boundary_labels,
    clip_labels,
    position_labels,
    speech_labels,
    table_labels,
    time_labels,
    utterance_labels,
)
from hooked_whisper.analysis.labels import Interval, Labels
from hooked_whisper.errors import AnalysisError
from hooked_whisper.saes import Corpus
from hooked_whisper.speech import clips

PHONES = (Interval(0.2, 0.3, "p"), Interval(0.3, 0.5, "aɪ"), Interval(0.5, 0.6, "n"), Interval(1.0, 1.2, "s"))
WORDS = (Interval(0.2, 0.6, "pine"), Interval(1.0, 1.2, "Is"))
LABELS = Labels({"c": {"phone": PHONES, "word": WORDS}, "d": {"word": ()}}, {"c": 1.5, "d": 0.4})


def spans(labels: Labels, tier: str, clip: str = "c") -> list[tuple[float, float, str]]:
    return [(round(one.start, 6), round(one.end, 6), one.value) for one in labels[clip][tier]]


def test_how_phones_are_made() -> None:
    made = articulatory_labels(LABELS)
    assert spans(made, "voicing") == [(0.2, 0.3, "voiceless"), (0.3, 0.6, "voiced"), (1.0, 1.2, "voiceless")]
    assert [value for *_, value in spans(made, "manner")] == ["plosive", "vowel", "nasal", "fricative"]
    # A diphthong is its sounds, one after the other.
    assert spans(made, "height") == [(0.3, 0.4, "open"), (0.4, 0.5, "near-close")]
    assert spans(made, "place") == [(0.2, 0.3, "bilabial"), (0.5, 0.6, "alveolar"), (1.0, 1.2, "alveolar")]
    assert "length" not in made.tier_names and "palatalisation" not in made.tier_names
    assert "d" not in made.tiers and made.durations == {"c": 1.5}
    strange = Labels({"c": {"phone": (Interval(0.0, 0.1, "AH0"), Interval(0.1, 0.2, "m"))}})
    with pytest.raises(AnalysisError, match="Tier 'phone' has phones that are no IPA: 'AH0'. Name them in IPA"):
        articulatory_labels(strange)
    assert spans(articulatory_labels(strange, unknown="skip"), "manner") == [(0.1, 0.2, "nasal")]
    with pytest.raises(AnalysisError, match="unknown='ignore': expected 'raise' or 'skip'"):
        articulatory_labels(LABELS, unknown="ignore")


def test_where_in_a_phone_a_word_an_utterance() -> None:
    thirds = spans(position_labels(LABELS, "word"), "word_position")
    assert [value for *_, value in thirds] == ["onset", "middle", "offset"] * 2
    assert thirds[0][0] == 0.2 and thirds[2][1] == 0.6 and thirds[0][1] == pytest.approx(0.2 + 0.4 / 3, abs=1e-5)
    assert spans(utterance_labels(LABELS, edge=0.15), "utterance_position") == [
        (0.2, 0.35, "start"), (0.35, 0.45, "middle"), (0.45, 0.6, "end"), (1.0, 1.1, "start"), (1.1, 1.2, "end"),
    ]  # fmt: skip
    one = utterance_labels(LABELS, edge=0.15, pause=0.5)
    assert [value for *_, value in spans(one, "utterance_position")] == ["start", "middle", "end"]
    assert spans(one, "utterance_position", "d") == []
    assert spans(boundary_labels(LABELS, "word", within=0.05), "word_boundary") == [
        (0.15, 0.25, "near"), (0.55, 0.65, "near"), (0.95, 1.05, "near"), (1.15, 1.25, "near"),
    ]  # fmt: skip
    # Boundaries nearer than twice `within` are one stretch, held to the clip.
    wide = boundary_labels(LABELS, "phone", within=0.4)
    assert spans(wide, "phone_boundary") == [(0.0, 1.5, "near")]


def test_silence_and_time() -> None:
    assert spans(speech_labels(LABELS), "speech") == [
        (0.0, 0.2, "silence"), (0.2, 0.6, "speech"), (0.6, 1.0, "silence"), (1.0, 1.2, "speech"), (1.2, 1.5, "silence"),
    ]  # fmt: skip
    assert spans(speech_labels(LABELS, pause=0.5), "speech")[1] == (0.2, 1.2, "speech")
    assert spans(speech_labels(LABELS, "word"), "speech", "d") == [(0.0, 0.4, "silence")]
    assert spans(time_labels(LABELS, step=1), "time") == [(0, 1, "00-01 s"), (1, 1.5, "01-02 s")]
    unknown = Labels({"c": {"phone": PHONES}})
    for call in (speech_labels, time_labels):
        with pytest.raises(AnalysisError, match="How long 'c' is is not known: labels.with_durations"):
            call(unknown)
    for call, name in (
        (lambda: time_labels(LABELS, step=0), "step"),
        (lambda: speech_labels(LABELS, pause=-1), "pause"),
    ):
        with pytest.raises(AnalysisError, match=f"{name}=-?[01]: expected a time above 0, in seconds"):
            call()
    with pytest.raises(AnalysisError, match="no tier 'tone'"):
        position_labels(LABELS, "tone")


def test_what_a_corpus_knows_of_a_clip() -> None:
    corpus = Corpus.from_clips([clips(language, key="vm-sorry")[0] for language in ("en", "it")])
    made = clip_labels(corpus, {"it/vm-sorry": 1.25}, ["language", "speaker"])
    assert made.tiers == {
        "it/vm-sorry": {"language": (Interval(0.0, 1.25, "it"),), "speaker": (Interval(0.0, 1.25, "Carlo Flora"),)}
    }
    with pytest.raises(AnalysisError, match="No clip of shipped speech has a duration: pair the labels"):
        clip_labels(corpus, {"vm-sorry": 1.0}, ["language"])


def test_what_a_table_says_of_words(tmp_path: Path) -> None:
    table = tmp_path / "tags.csv"
    table.write_text("word,language,pos,plural\nPine,en,noun,\nis,en,verb,no\nis,nl,other,\n", encoding="utf-8")
    made = table_labels(LABELS, table, language="en")
    assert spans(made, "pos") == [(0.2, 0.6, "noun"), (1.0, 1.2, "verb")] and spans(made, "plural") == [
        (1.0, 1.2, "no")
    ]
    assert made["d"] == {"pos": (), "plural": ()}
    assert table_labels(LABELS, {"IS": {"pos": "verb"}}).seconds("pos") == pytest.approx({"verb": 0.2})
    with pytest.raises(AnalysisError, match="tags.csv, line 4: 'is' has two rows. Choose a language="):
        table_labels(LABELS, table)
    with pytest.raises(AnalysisError, match="The table has none of the 2 words of tier 'word': are they spelt alike"):
        table_labels(LABELS, {"oak": {"pos": "noun"}})
    with pytest.raises(AnalysisError, match="No table at .*none.csv"):
        table_labels(LABELS, tmp_path / "none.csv")
    for content, message in {
        "lemma,pos\n": "has the columns lemma, pos: expected `word` and at least one more",
        "word,pos\nis\n": "line 2 has more or fewer cells than the header",
    }.items():
        table.write_text(content)
        with pytest.raises(AnalysisError, match=message):
            table_labels(LABELS, table)
    table.write_text("word,pos\nis,verb\n")
    with pytest.raises(AnalysisError, match="has no column `language`: leave language= out"):
        table_labels(LABELS, table, language="en")
