"""The table of labels by frame, against the plainest way to make it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hooked_whisper.analysis.frame_labels import FrameLabels, column_labels, frame_labels
from hooked_whisper.analysis.labels import Interval, Labels
from hooked_whisper.errors import AnalysisError

LABELS = Labels(
    {
        "a": {"phone": (Interval(0.0, 0.05, "p"), Interval(0.05, 0.1, "a")), "word": (Interval(0.03, 0.1, "pa"),)},
        "b": {"phone": (Interval(0.03, 0.05, "a"),)},
    }
)
CLIP, FRAME = np.array([0, 0, 1, 0, 0, 2, 1]), np.array([0, 1, 1, 2, 9, 0, 2])


def test_a_frame_has_the_label_at_its_centre() -> None:
    table = frame_labels(LABELS, CLIP, FRAME, ["a", "b", "c"])
    assert table.names == ("phone=a", "phone=p", "word=pa") and table.kinds == ("phone", "phone", "word")
    # Centres: 0.01, 0.03 and 0.05 s of a; an interval holds its start and not its end.
    assert table.column("phone=p").tolist() == [True, True, False, False, False, False, False]
    assert table.column("phone=a").tolist() == [False, False, True, True, False, False, False]
    assert table.column("word=pa").tolist() == [False, True, False, True, False, False, False]
    # b has no words, c has no labels at all, and frame 9 of a lies in a gap of which all is known.
    assert table.known_rows("phone").tolist() == [True, True, True, True, True, False, True]
    assert table.known_rows("word").tolist() == [True, True, False, True, True, False, False]
    assert table.counts.tolist() == [2, 2, 2] and len(table) == 7
    # At 0, 0.02 and 0.04 s of a, where the encoder's frames are centred, all is p still; b's frame 2, at 0.04 s, is a.
    early = frame_labels(LABELS, CLIP, FRAME, ["a", "b", "c"], centre=0.0)
    assert early.column("phone=p").tolist() == [True, True, False, True, False, False, False]
    assert early.column("phone=a").tolist() == [False, False, False, False, False, False, True]
    slow = frame_labels(LABELS, CLIP, FRAME, ["a", "b", "c"], frames_per_second=10)
    assert slow.column("phone=a").tolist() == [True] + [False] * 6


def naive(labels: Labels, clip: np.ndarray, frame: np.ndarray, clips: list[str], rate: float) -> dict[str, list[bool]]:
    """Every row against every interval."""
    found: dict[str, list[bool]] = {f"{tier}={value}": [] for _, tier, _, _, value in labels.rows()}
    for index, number in zip(clip, frame, strict=True):
        centre = (number + 0.5) / rate
        tiers = labels.tiers.get(clips[index], {})
        for name, column in found.items():
            tier, _, value = name.partition("=")
            column.append(any(i.start <= centre < i.end and i.value == value for i in tiers.get(tier, ())))
    return found


@st.composite
def some_tiers(draw: st.DrawFn) -> dict[str, dict[str, list[tuple[float, float, str]]]]:
    tiers: dict[str, dict[str, list[tuple[float, float, str]]]] = {}
    for clip in draw(st.lists(st.sampled_from("abcd"), min_size=1, max_size=4, unique=True)):
        tiers[clip] = {}
        for tier in draw(st.lists(st.sampled_from(["t", "u"]), max_size=2, unique=True)):
            times = sorted(draw(st.lists(st.integers(0, 40), max_size=12, unique=True)))
            pairs = zip(times[::2], times[1::2], strict=False)
            # On a grid of 10 ms, so that starts and ends fall on the centres of frames, too.
            tiers[clip][tier] = [(s / 100, e / 100, draw(st.sampled_from("xyz"))) for s, e in pairs]
    return tiers


ROWS = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 25)), max_size=60)


@settings(max_examples=80, deadline=None)
@given(some_tiers(), ROWS, st.sampled_from([50, 25]))
def test_the_same_as_a_naive_reference(drawn: dict[str, Any], rows: list[tuple[int, int]], rate: int) -> None:
    labels = Labels(
        {clip: {t: tuple(Interval(*one) for one in own) for t, own in tiers.items()} for clip, tiers in drawn.items()}
    )
    clips = ["d", "a", "e", "b", "c", "f"]
    clip, frame = (np.array([row[i] for row in rows], dtype=int) for i in (0, 1))
    table = frame_labels(labels, clip, frame, clips, frames_per_second=rate)
    expected = naive(labels, clip, frame, clips, rate)
    assert set(table.names) == set(expected)
    for name, column in expected.items():
        assert table.column(name).tolist() == column
    assert table.matrix.dtype == bool and table.matrix.data.all()
    for kind in table.kind_names:
        assert table.known_rows(kind).tolist() == [kind in labels.tiers.get(clips[i], {}) for i in clip]
        # One label of a kind at a time, and none where nothing is known.
        of_kind = table.matrix[:, [i for i, k in enumerate(table.kinds) if k == kind]].sum(1)
        assert (of_kind <= table.known_rows(kind)).all()


def test_columns_of_what_a_store_knows() -> None:
    table = column_labels({"language": ["es", "en", None, "es"], "key": [3, 3, 4, 4], "nothing": [None] * 4})
    assert table.names == ("language=en", "language=es", "key=3", "key=4") and table.kind_names == ("language", "key")
    assert table.column("language=es").tolist() == [True, False, False, True]
    assert table.known_rows("language").tolist() == [True, True, False, True]
    loud = column_labels({"loudness": np.array([0.1, 0.9, np.nan, 0.2, 0.8])}, numbers=2)
    assert loud.names == ("loudness=q1", "loudness=q2")
    assert loud.column("loudness=q1").tolist() == [True, False, False, True, False]
    with pytest.raises(AnalysisError, match=r"Columns of \[1, 2\] rows: expected one length"):
        column_labels({"a": [1], "b": [1, 2]})
    with pytest.raises(AnalysisError, match="Nothing is known of any row: the columns a are empty"):
        column_labels({"a": [None]})


def test_parts_and_joins() -> None:
    table = frame_labels(LABELS, CLIP, FRAME, ["a", "b", "c"])
    assert table.select(kinds=["word"]).names == ("word=pa",)
    part = table.select(rows=CLIP == 1)
    assert part.names == ("phone=a",) and len(part) == 2 and part.known_rows("phone").all()
    assert table.select(min_rows=2).names == table.names
    languages = column_labels({"language": ["en"] * 7})
    both = table.join(languages)
    assert both.names == (*table.names, "language=en") and both.known_rows("language").all()
    assert both.known_rows("word").tolist() == table.known_rows("word").tolist()
    assert languages.join(column_labels({"key": [1] * 7})).known is None
    for message, call in {
        "No label has 3 rows: the largest has 2": lambda: table.select(min_rows=3),
        "no kind 'tone': there are phone, word": lambda: table.select(kinds=["tone"]),
        "no label 'phone=b'. Did you mean": lambda: table.column("phone=b"),
        "Tables of 7 and 2 rows": lambda: table.join(part),
        "Two tables have the kind 'phone'": lambda: table.join(table),
    }.items():
        with pytest.raises(AnalysisError, match=message):
            call()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"clip": np.array([0, 5])}, "Rows are of clips 0 to 5, and there are 2"),
        ({"frame": np.array([0, -1])}, "Frame -1: frames count from 0"),
        ({"frame": np.array([0])}, r"clip is \(2,\) and frame \(1,\)"),
        ({"clips": ["a.wav", "b.wav"]}, "of none of the 2 clips: they name 'a', clips are 'a.wav'. Pair.*for_clips"),
        ({"frames_per_second": 0.0}, "frames_per_second=0.0: expected a rate above 0"),
        ({"centre": np.inf}, "centre=inf: expected frames from a frame.s start"),
        ({"tiers": ["tone"]}, "no tier 'tone'"),
    ],
)
def test_rows_that_cannot_be_labelled(change: dict[str, object], message: str) -> None:
    given = {"clip": np.array([0, 1]), "frame": np.array([0, 1]), "clips": ["a", "b"], **change}
    with pytest.raises(AnalysisError, match=message):
        frame_labels(LABELS, **given)


def test_tables_that_do_not_fit() -> None:
    table = frame_labels(LABELS, CLIP, FRAME, ["a", "b", "c"])
    with pytest.raises(AnalysisError, match="A table of 3 columns has 2 names and 2 kinds"):
        FrameLabels(table.matrix, table.names[:2], table.kinds[:2])
    with pytest.raises(AnalysisError, match="Two labels are called 'a=b'"):
        FrameLabels(table.matrix, ("a=b",) * 3, ("a",) * 3)
    with pytest.raises(AnalysisError, match=r"known is \(7, 2\), expected \(7, 1\)"):
        FrameLabels(table.matrix, ("a=b", "a=c", "a=d"), ("a",) * 3, table.known)
