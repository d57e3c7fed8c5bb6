"""The answers of `hooked-whisper features`, on made-up codes whose answers are known."""

from __future__ import annotations

import math

import numpy as np
import pytest
from made_up_features import codes_of, labels_of

from hooked_whisper import AnalysisError, ConfigError
from hooked_whisper.analysis.codes import FeatureCodes
from hooked_whisper.analysis.feature_rows import of_all, of_clip, of_labels, of_latents, of_search
from hooked_whisper.analysis.labels import Labels

N = 240  # rows of four clips
TIMES = np.arange(N) % 60


@pytest.fixture
def codes() -> FeatureCodes:
    """Latent 0 marks frames 10 to 19 of each clip, 1 is on everywhere, 2 is silent, 3 marks the last clip."""
    dense = np.zeros((N, 4))
    dense[(TIMES >= 10) & (TIMES < 20), 0] = 2.0
    dense[:, 1] = 5.0
    dense[180:, 3] = 1.0
    language = np.array(["en"] * 120 + ["it"] * 120, dtype=object)
    return codes_of(dense, 4, language=language)


def test_a_span_is_found_by_what_sets_it_apart(codes: FeatureCodes) -> None:
    first = of_search(codes, "clip-1", (0.2, 0.4), None, None, 3)[0]
    assert (first["latent"], first["here"], first["clip"]) == (0, 1.0, "clip-1")
    assert first["elsewhere"] == pytest.approx(30 / 230) and 0.2 < first["peak at"] < 0.4
    whole = of_search(codes, "clip-3", None, None, None, 3)
    assert (whole[0]["latent"], whole[0]["auc"], math.isinf(whole[0]["strength"])) == (3, 1.0, True)


def test_a_label_is_found(codes: FeatureCodes) -> None:
    table = labels_of({"word=a": (TIMES >= 10) & (TIMES < 20), "word=b": TIMES > 30})
    found = of_search(codes, None, None, "word=a", table, 4)
    assert (found[0]["latent"], found[0]["auc"]) == (0, 1.0)


def test_what_a_clip_holds(codes: FeatureCodes) -> None:
    rows = of_clip(codes.where(clip="clip-3"))
    assert [row["latent"] for row in rows] == [1, 3, 0]
    assert (rows[2]["share"], rows[2]["start"], rows[2]["end"]) == (pytest.approx(1 / 6), 0.2, 0.4)


def test_all_latents_the_busiest_first(codes: FeatureCodes) -> None:
    rows = of_all(codes)
    assert [row["latent"] for row in rows] == [1, 3, 0, 2]
    assert (rows[1]["in en"], rows[1]["in it"], rows[1]["top clip"]) == ("0.00%", "50.00%", "clip-3")
    assert (rows[3]["clips"], rows[3]["top clip"]) == (0, None)
    assert [row["latent"] for row in of_all(codes, [2, 0])] == [2, 0]


def test_top_segments_with_what_is_said(codes: FeatureCodes) -> None:
    labels = Labels.from_rows([("clip-0", "word", 0.1, 0.5, "hello")])
    rows = of_latents(codes, [0], labels, 4)
    assert {row["clip"]: row.get("word") for row in rows} == {
        "clip-0": "hello", "clip-1": None, "clip-2": None, "clip-3": None,
    }  # fmt: skip
    with pytest.raises(AnalysisError, match="Latent 2 fires on none of 240 frames of 4 clips"):
        of_latents(codes, [2], None, 4)


def test_sound_needs_clips(codes: FeatureCodes, tmp_path) -> None:
    with pytest.raises(ConfigError, match="--wav cuts sound out of the clips"):
        of_latents(codes, [0], None, 4, tmp_path)


def test_best_latent_of_each_label(codes: FeatureCodes) -> None:
    table = labels_of({"word=a": (TIMES >= 10) & (TIMES < 20), "word=b": TIMES == 59})
    rows = of_labels(codes, table, "clip", 5, 0)
    assert [(row["label"], row["latent"], row["F1"]) for row in rows] == [("word=a", 0, 1.0)]
    with pytest.raises(AnalysisError, match="No label has 100 rows"):
        of_labels(codes, table, "clip", 100, 0)
    one_side = labels_of({"word=a": (np.arange(N) < 60) & (TIMES > 20)})
    with pytest.raises(AnalysisError, match="No label is in both halves of the clips"):
        of_labels(codes, one_side, "clip", 5, 0)
