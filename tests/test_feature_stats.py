"""Statistics and top segments: what can be counted by hand."""

from __future__ import annotations

import numpy as np
import pytest
from made_up_features import codes_of

from hooked_whisper import AnalysisError
from hooked_whisper.analysis.feature_stats import feature_statistics, top_frames, top_segments

# Four clips of 10 frames: two English, one French, one without a language.
LANGUAGE = np.repeat(np.array(["en", "en", "fr", None], dtype=object), 10)


def codes() -> object:
    dense = np.zeros((40, 3))
    dense[2:5, 0] = [1.0, 3.0, 2.0]  # clip 0, frames 2 to 4
    dense[8:12, 0] = 1.5  # the end of clip 0 and the start of clip 1: two segments
    dense[[20, 22], 0] = [5.0, 4.0]  # clip 2, with a gap of one frame
    dense[::2, 1] = 1.0  # everywhere
    return codes_of(dense, 4, language=LANGUAGE)


def test_statistics_by_hand() -> None:
    found = feature_statistics(codes(), by=["language"])
    assert found.density == pytest.approx([9 / 40, 0.5, 0])
    assert found.mean == pytest.approx([(6 + 4 * 1.5 + 9) / 9, 1, 0])
    assert found.maximum.tolist() == [5, 1, 0]
    assert found.n_clips.tolist() == [3, 4, 0] and found.n_silent == 1
    assert found.duration == pytest.approx([9 / 5 / 50, 1 / 50, 0])
    of_language = found.by["language"]
    assert of_language.names == ("en", "fr")
    assert of_language.density == pytest.approx(np.array([[7 / 20, 2 / 10], [0.5, 0.5], [0, 0]]))
    share = np.array([0.35, 0.2]) / 0.55
    assert of_language.entropy[0] == pytest.approx(-(share * np.log2(share)).sum())
    assert of_language.entropy[1] == pytest.approx(1.0) and np.isnan(of_language.entropy[2])


def test_top_frames() -> None:
    found = top_frames(codes(), 0, 3)
    assert [(frame.clip, frame.activation) for frame in found] == [("clip-2", 5.0), ("clip-2", 4.0), ("clip-0", 3.0)]
    assert found[0].time == pytest.approx(0.01) and found[2].time == pytest.approx(0.07)
    assert top_frames(codes(), 2) == []


def test_top_segments() -> None:
    found = top_segments(codes(), 0, context=0.04)
    assert [segment.clip for segment in found] == ["clip-2", "clip-0", "clip-1"]  # one of each clip
    first, second = found[:2]
    assert (first.start, first.end) == (0.0, pytest.approx(0.06))  # the gap is bridged
    assert first.peak == 5.0 and first.peak_time == pytest.approx(0.01) and first.mean == pytest.approx(3.0)
    assert first.context == (0.0, pytest.approx(0.10))
    assert (second.start, second.end, second.peak) == (pytest.approx(0.04), pytest.approx(0.10), 3.0)
    assert second.context == (pytest.approx(0.0), pytest.approx(0.14))
    every = top_segments(codes(), 0, bridge=0, one_per_clip=False)
    assert [segment.peak for segment in every] == [5.0, 4.0, 3.0, 1.5, 1.5]
    spans = {(segment.clip, round(segment.start, 2), round(segment.end, 2)) for segment in every}
    assert spans == {
        ("clip-2", 0.0, 0.02),
        ("clip-2", 0.04, 0.06),
        ("clip-0", 0.04, 0.1),
        ("clip-0", 0.16, 0.2),
        ("clip-1", 0.0, 0.04),
    }
    assert len(top_segments(codes(), 0, 2)) == 2 and top_segments(codes(), 2) == []


def test_what_cannot_be_is_refused() -> None:
    for call, message in (
        (lambda: top_segments(codes(), 3), "Latent 3 does not exist: there are 3"),
        (lambda: top_segments(codes(), 0, 0), "n=0, bridge=1, context=0.5: expected at least 1, 0 and 0"),
        (lambda: feature_statistics(codes(), by=["speaker"]), "There is no column 'speaker': there are clip, language"),
    ):
        with pytest.raises(AnalysisError, match=message):
            call()
