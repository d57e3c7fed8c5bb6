"""Lags: found where they are, of no use where there is none, and chosen without the half that is reported."""

from __future__ import annotations

import numpy as np
import pytest
from made_up_features import codes_of, follow, labels_of, segments

from hooked_whisper import AnalysisError
from hooked_whisper.analysis.feature_scores import phone_scores, score_features
from hooked_whisper.analysis.frame_labels import frame_labels
from hooked_whisper.analysis.labels import Interval, Labels
from hooked_whisper.analysis.lags import LAGS, labels_by_lag, lagged_scores

N_ROWS, N_CLIPS, NAMES = 2400, 20, "ptka"
AHEAD = {"p": 0, "t": 1, "k": -1, "a": 0}  # frames


def speech() -> tuple:
    """Phones with times, and a latent for each: one is a frame ahead of its phone, one a frame behind it."""
    generator = np.random.default_rng(0)
    phone = segments(N_ROWS, len(NAMES), 4, generator)
    latents = [np.roll(follow(phone == at, generator, hit=0.95), -AHEAD[name]) for at, name in enumerate(NAMES)]
    latents += [follow(np.zeros(N_ROWS, dtype=bool), generator, noise=0.1) for _ in range(4)]
    codes = codes_of(np.stack(latents, 1), N_CLIPS)
    tiers = {}
    for clip, name in enumerate(codes.clips):
        own = phone[codes.clip == clip]
        tiers[name] = {"phone": tuple(Interval(i / 50, (i + 1) / 50, NAMES[of]) for i, of in enumerate(own))}
    return codes, Labels(tiers)


def test_lags_are_found() -> None:
    codes, labels = speech()
    assert tuple(labels_by_lag(labels, codes.clip, codes.frame, codes.clips)) == LAGS
    tables = labels_by_lag(labels, codes.clip, codes.frame, codes.clips, lags=[-1, 0, 1])
    found = lagged_scores(codes, tables, "phone", progress=False)
    for at, name in enumerate(NAMES):
        one = found[f"phone={name}"]
        assert (one.match.latent, one.lag) == (at, AHEAD[name]) and one.match.f1 > 0.9
        assert one.unmoved is not None
        assert (one.match == one.unmoved) == (one.lag == 0) and (one.unmoved.f1 < 0.85) == (one.lag != 0)
    assert str(found["phone=t"]).endswith(" 1 frame ahead") and str(found["phone=k"]).endswith(" 1 frame behind")
    assert str(found["phone=p"]) == str(found["phone=p"].match)


def test_at_one_lag_it_is_what_phone_scores_says() -> None:
    codes, labels = speech()
    train = codes.halves(seed=3)
    table = frame_labels(labels, codes.clip, codes.frame, codes.clips, centre=1.0)
    tables = labels_by_lag(labels, codes.clip, codes.frame, codes.clips, lags=[0.5])
    assert (tables[0.5].matrix != table.matrix).nnz == 0
    found = lagged_scores(codes, tables, train=train, progress=False)
    expected = phone_scores(score_features(codes, table, train=train, progress=False)).strict
    assert [one.match for one in found.values()] == list(expected)
    assert all(one.unmoved is None and one.lag == 0.5 for one in found.values())


def test_the_half_that_is_reported_chooses_nothing() -> None:
    """Where a latent lags on one half and is punctual on the other, the training half's lag is taken."""
    codes, labels = speech()
    train = codes.halves()
    dense = codes.acts.toarray()
    punctual = np.roll(dense[:, 1], 1)
    dense[~train, 1] = punctual[~train]
    mixed = codes_of(dense, N_CLIPS)
    tables = labels_by_lag(labels, mixed.clip, mixed.frame, mixed.clips, lags=[1, 0])
    there = lagged_scores(mixed, tables, "phone", train=train, progress=False)["phone=t"]
    back = lagged_scores(mixed, tables, "phone", train=~train, progress=False)["phone=t"]
    assert there.lag == 1 and there.match.f1 < 0.85
    assert back.lag == 0 and back.match.f1 < 0.85


def test_labels_with_few_rows_are_left_out() -> None:
    codes, labels = speech()
    tables = labels_by_lag(labels, codes.clip, codes.frame, codes.clips, lags=[0.0])
    rare = np.zeros(N_ROWS, dtype=bool)
    rare[[0, N_ROWS - 1]] = True
    tables = {0.0: tables[0.0].join(labels_of({"rare=x": rare}))}
    assert {label.partition("=")[0] for label in lagged_scores(codes, tables, progress=False)} == {"phone"}


def test_what_cannot_be_scored_is_refused() -> None:
    codes, labels = speech()
    tables = labels_by_lag(labels, codes.clip, codes.frame, codes.clips, lags=[0.0])
    for call, message in (
        (lambda: labels_by_lag(labels, codes.clip, codes.frame, codes.clips, lags=[]), r"lags=\(\): expected frames"),
        (lambda: labels_by_lag(labels, codes.clip, codes.frame, codes.clips, lags=[1, 1]), "each once"),
        (lambda: labels_by_lag(labels, codes.clip, codes.frame, codes.clips, lags=[np.nan]), "lags=.*nan"),
        (lambda: lagged_scores(codes, {}), "No table of labels was given: make them with labels_by_lag"),
        (lambda: lagged_scores(codes, tables, "word", progress=False), "No labels of kind 'word': there are phone"),
        (lambda: lagged_scores(codes, tables, "phone", min_rows=10_000, progress=False), "No label of phone has 10000"),
        (lambda: lagged_scores(codes_of(np.ones((3, 2)), 1), tables, "phone", progress=False), "rows"),
    ):
        with pytest.raises(AnalysisError, match=message):
            call()
