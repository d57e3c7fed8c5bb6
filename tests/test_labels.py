"""Intervals with labels: what is refused, and what is made of them."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hooked_whisper.analysis.labels import Interval, Labels, join, plain_word
from hooked_whisper.errors import AnalysisError

HELLO = (Interval(0.1, 0.2, "h"), Interval(0.2, 0.3, "ə"), Interval(0.4, 0.5, "l"))
WORDS = (Interval(0.1, 0.5, "hello"),)
LABELS = Labels({"en/a": {"phone": HELLO, "word": WORDS}, "en/b": {"phone": ()}}, {"en/a": 0.6})


@pytest.mark.parametrize(
    ("intervals", "message"),
    [
        ([(0.2, 0.1, "a")], r"clip 'c', tier 't', interval \[0.2, 0.1\] 'a': ends before it begins"),
        ([(0.1, 0.1, "a")], "lasts no time"),
        ([(-0.1, 0.1, "a")], "begins before its clip: times count from the clip's start"),
        ([(math.nan, 0.1, "a")], "times must be finite numbers of seconds"),
        ([(0.0, math.inf, "a")], "times must be finite"),
        ([(0.0, 0.1, "")], "has no value: leave out what has no label"),
        ([(0.0, 0.3, "a"), (0.2, 0.4, "b")], r"\[0.2, 0.4\] 'b': overlaps \[0.0, 0.3\] 'a' by 0.1 s.*tolerance="),
        ([(0.2, 0.4, "b"), (0.0, 0.1, "a")], "overlaps"),  # out of order
        ([(0.0, 1.06, "a")], "ends after its clip, which lasts 1.000 s: are the labels those of another file"),
    ],
)
def test_intervals_that_cannot_be(intervals: list[tuple[float, float, str]], message: str) -> None:
    with pytest.raises(AnalysisError, match=message):
        Labels({"c": {"t": tuple(Interval(*one) for one in intervals)}}, {"c": 1.0})


def test_what_may_be() -> None:
    Labels({"c": {"t": (Interval(0, 0.5, "a"), Interval(0.5, 1.05, "b"))}}, {"c": 1.0})
    with pytest.raises(AnalysisError, match="Clip 'c' is said to last 0.0 s"):
        Labels({"c": {}}, {"c": 0.0})
    with pytest.raises(AnalysisError, match="ends after its clip"):
        LABELS.with_durations({"en/a": 0.3})


def test_rows_in_any_order_and_rounded_times() -> None:
    rows = [("c", "t", 0.21, 0.4, "b"), ("c", "t", 0.1, 0.22, "a"), ("d", "u", 0.0, 1.0, "x")]
    with pytest.raises(AnalysisError, match="overlaps"):
        Labels.from_rows(rows)
    labels = Labels.from_rows(rows, tolerance=0.02)
    assert labels["c"]["t"] == (Interval(0.1, 0.21, "a"), Interval(0.21, 0.4, "b"))
    assert list(labels.rows()) == [rows[1][:3] + (0.21, "a"), rows[0], rows[2]]
    # What sums of floats lose is mended at any tolerance.
    exact = Labels.from_rows([("c", "t", 0.1, 0.1 + 0.2, "a"), ("c", "t", 0.3, 0.4, "b")])
    assert exact["c"]["t"][0] == Interval(0.1, 0.3, "a")


def test_what_labels_hold() -> None:
    assert len(LABELS) == 2 and LABELS.clips == ("en/a", "en/b") and LABELS.tier_names == ("phone", "word")
    assert LABELS.at("en/a", "phone", 0.2) == "ə" and LABELS.at("en/a", "phone", 0.35) is None
    assert LABELS.seconds("phone") == pytest.approx({"h": 0.1, "l": 0.1, "ə": 0.1})
    assert HELLO[0].seconds == pytest.approx(0.1)
    with pytest.raises(AnalysisError, match="no labels for clip 'en/c'.*Did you mean 'en/b' or 'en/a'.*for_clips"):
        LABELS["en/c"]
    with pytest.raises(AnalysisError, match="no tier 'phones': the labels have 'phone', 'word'. Did you mean 'phone'"):
        LABELS.seconds("phones")


def test_merging() -> None:
    more = Labels({"en/a": {"tone": (Interval(0.0, 0.6, "high"),)}, "fr/a": {"word": ()}}, {"fr/a": 2.0})
    both = LABELS.merge(more)
    assert set(both["en/a"]) == {"phone", "word", "tone"} and both.clips == ("en/a", "en/b", "fr/a")
    assert both.durations == {"en/a": 0.6, "fr/a": 2.0}
    assert set(LABELS["en/a"]) == {"phone", "word"}  # the old ones are as they were
    with pytest.raises(AnalysisError, match="Clip 'en/a' has tier 'phone' twice: rename one with rename_tiers"):
        LABELS.merge(LABELS)
    with pytest.raises(AnalysisError, match="Clip 'en/a' lasts 0.6 s, or 0.7 s"):
        LABELS.merge(Labels({}, {"en/a": 0.7}))


def test_parts_and_names() -> None:
    part = LABELS.where(clips=["en/a"], tiers=["phone"], values=lambda value: value != "h")
    assert part.tiers == {"en/a": {"phone": HELLO[1:]}} and part.durations == {"en/a": 0.6}
    with pytest.raises(AnalysisError, match="no tier 'tone'"):
        LABELS.where(tiers=["tone"])
    with pytest.raises(AnalysisError, match="no labels for clip 'x'"):
        LABELS.where(clips=["x"])
    assert LABELS.rename_tiers({"word": "lexeme"}).tier_names == ("phone", "lexeme")
    with pytest.raises(AnalysisError, match="gives two one name"):
        LABELS.rename_tiers({"word": "phone"})


def test_deriving_joins_neighbours() -> None:
    voiced = LABELS.derive("phone", "voicing", lambda phone: None if phone == "h" else "voiced")
    assert voiced["en/a"]["voicing"] == (Interval(0.2, 0.3, "voiced"), Interval(0.4, 0.5, "voiced"))
    same = LABELS.derive("phone", "sound", lambda phone: "sound")
    assert same["en/a"]["sound"] == (Interval(0.1, 0.3, "sound"), Interval(0.4, 0.5, "sound"))
    assert same["en/b"]["sound"] == () and same.tier_names == ("sound",)
    assert LABELS.merge(voiced, same).tier_names == ("phone", "word", "voicing", "sound")


def test_pairing_with_a_corpus() -> None:
    ids = ["fr/b.wav", "en/a.g722", "en/b.g722"]
    assert LABELS.for_clips(ids).clips == ("en/a.g722", "en/b.g722")
    assert LABELS.for_clips(ids).durations == {"en/a.g722": 0.6}
    assert Labels({"a": {}}).for_clips(ids).clips == ("en/a.g722",)  # by the name of the file alone
    assert Labels({"en/a.g722": {}}).for_clips(ids).clips == ("en/a.g722",)
    with pytest.raises(AnalysisError, match=r"clip 'b' of the labels fits 'fr/b.wav', 'en/b.g722'\."):
        Labels({"b": {}}).for_clips(ids)
    with pytest.raises(AnalysisError, match="clip 'en/z' of the labels fits none of 3 clips"):
        Labels({"en/z": {}}).for_clips(ids)
    with pytest.raises(AnalysisError, match=r"Several clips of the labels fit 'en/a.g722'"):
        Labels({"en/a": {}, "a": {}}).for_clips(ids)


def test_as_plain_data() -> None:
    data = json.loads(json.dumps(LABELS.to_dict()))
    assert Labels.from_dict(data) == LABELS
    with pytest.raises(AnalysisError, match="These are no labels"):
        Labels.from_dict({"clips": {}})
    for bad in ([0.1, 0.2], [0.1, "0.2", "a"], [0.1, 0.2, 3], 5):
        data["clips"]["en/a"]["tiers"]["phone"] = [bad]
        with pytest.raises(AnalysisError, match="clip 'en/a', tier 'phone': expected .start, end, value."):
            Labels.from_dict(data)


TIMES = st.lists(st.integers(0, 400), min_size=2, max_size=20, unique=True).map(sorted)


@settings(max_examples=60, deadline=None)
@given(TIMES, st.data())
def test_joined_intervals_say_the_same(times: list[int], data: st.DataObject) -> None:
    values = data.draw(st.lists(st.sampled_from("ab"), min_size=len(times) - 1, max_size=len(times) - 1))
    held = data.draw(st.lists(st.booleans(), min_size=len(values), max_size=len(values)))
    parts = [Interval(s / 100, e / 100, v) for s, e, v in zip(times, times[1:], values, strict=False)]
    parts = [part for part, keep in zip(parts, held, strict=True) if keep]
    before, after = Labels({"c": {"t": tuple(parts)}}), Labels({"c": {"t": join(parts)}})
    for time in range(0, 400, 3):
        assert before.at("c", "t", time / 100 + 0.001) == after.at("c", "t", time / 100 + 0.001)
    assert sum(before.seconds("t").values()) == pytest.approx(sum(after.seconds("t").values()))
    assert all(a.value != b.value or a.end < b.start for a, b in zip(join(parts), join(parts)[1:], strict=False))


@pytest.mark.parametrize(
    ("text", "word"), [(" Goodbye.", "goodbye"), ("«l'été!»", "l'été"), ("pass-word,", "pass-word"), (" — ", "")]
)
def test_plain_words(text: str, word: str) -> None:
    assert plain_word(text) == word
