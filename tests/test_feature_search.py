"""Search: latents that tell a place from the rest, not the loudest ones."""

from __future__ import annotations

import numpy as np
import pytest
from made_up_features import codes_of, follow, labels_of, one_label_a_row, segments

from hooked_whisper import AnalysisError
from hooked_whisper.analysis.feature_nulls import strata
from hooked_whisper.analysis.feature_search import active_at, search_label, search_rows, search_span

N_ROWS, N_CLIPS = 600, 10


def speech() -> tuple:
    """Latent 0 is loud everywhere, 1 is active in one span, 2 follows a phone and 3 a word."""
    generator = np.random.default_rng(0)
    phone, word = segments(N_ROWS, 3, 3, generator), segments(N_ROWS, 4, 12, generator)
    phone[word == 1] = np.where(generator.random((word == 1).sum()) < 0.8, 2, 0)  # the word is mostly of one phone
    span = np.zeros(N_ROWS)
    span[130:140] = 0.1
    latents = [np.full(N_ROWS, 9.0), span, follow(phone == 2, generator), follow(word == 1, generator, hit=0.6)]
    labels = labels_of(one_label_a_row("phone", phone) | one_label_a_row("word", word))
    return codes_of(np.stack(latents, 1), N_CLIPS), labels, phone, word


def test_a_span_is_known_by_what_is_active_there_alone() -> None:
    codes, _, _, _ = speech()
    found = search_span(codes, "clip-2", 0.2, 0.4)
    assert found[0].latent == 1 and found[0].auc == 1.0
    assert (found[0].here, found[0].elsewhere, found[0].strength) == (1.0, 0.0, float("inf"))
    loud = next(one for one in found if one.latent == 0)
    assert loud.auc == 0.5 and loud.strength == pytest.approx(1.0)
    assert str(found[0]) == "latent 1: AUC 1.000, active on 100% here, 0.00% elsewhere"
    there = active_at(codes, "clip-2", 0.21)
    assert there[0] == (0, 9.0) and (1, pytest.approx(0.1)) in there


def test_a_word_beyond_its_phones() -> None:
    codes, labels, phone, word = speech()
    alone = {one.latent: one.auc for one in search_label(codes, labels, "word=1")}
    beyond = search_label(codes, labels, "word=1", within=strata(codes, labels, ["phone"]))
    assert alone[2] > 0.6  # the phone tells the word,
    within = {one.latent: one.auc for one in beyond}
    assert beyond[0].latent == 3 and within[2] == pytest.approx(0.5, abs=0.06)  # but not among the same phones
    assert within[3] > 0.7
    x = codes.acts.toarray()[:, 3]
    difference = x[word == 1][:, None] - x[word != 1]
    assert alone[3] == pytest.approx(((difference > 0) + 0.5 * (difference == 0)).mean())
    against = search_rows(codes, word == 1, against=phone == 2)
    assert against[0].latent == 3


def test_what_cannot_be_found_is_refused() -> None:
    codes, labels, _, word = speech()
    nothing = np.zeros(N_ROWS, dtype=bool)
    for call, message in (
        (lambda: search_label(codes, labels, "word=9"), "There is no label 'word=9' here.*Did you mean"),
        (lambda: search_rows(codes, nothing), "0 rows to find latents for, 600 to tell them from"),
        (lambda: search_rows(codes, ~nothing), "600 rows to find latents for, 0 to tell them from"),
        (
            lambda: search_rows(codes, word == 1, within=strata(codes, labels, ["word"])),
            "expected some of each in one stratum",
        ),
        (lambda: search_rows(codes, np.ones(3, dtype=bool)), "Masks of 3 and 3 rows, expected 600"),
        (lambda: active_at(codes, "clip-2", 5.0), "No frame of 'clip-2' has its centre in 4.99 to 5.01 s"),
    ):
        with pytest.raises(AnalysisError, match=message):
            call()
