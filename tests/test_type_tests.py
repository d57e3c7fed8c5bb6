"""Tests on word types: planted latents are found from the strength that is promised, confounds are not."""

from __future__ import annotations

import numpy as np
import pytest
from made_up_features import codes_of

from hooked_whisper.analysis.type_tests import minimum_detectable, permuted, pool_spans, type_means, type_tests
from hooked_whisper.errors import AnalysisError


def test_spans_hold_the_most_of_each_latent() -> None:
    generator = np.random.default_rng(0)
    dense = generator.random((120, 7)) * (generator.random((120, 7)) < 0.3)
    codes = codes_of(dense, 2, speaker=np.repeat(["a", "b"], 60).astype(object))
    said = pool_spans(
        codes, ["clip-1", "clip-0", "clip-1"], np.array([0.1, 0.0, 0.5]), np.array([0.3, 0.2, 0.6]), after=0.04
    )
    # frames whose centres, (frame + 0.5) / 50 s, lie inside
    expected = [dense[60 + 5 : 60 + 17].max(0), dense[0:12].max(0), dense[60 + 25 : 60 + 32].max(0)]
    np.testing.assert_allclose(said.acts.toarray(), expected, rtol=1e-6)
    assert said.column("clip").tolist() == ["clip-1", "clip-0", "clip-1"]
    assert said.column("speaker").tolist() == ["b", "a", "b"] and said.frame.tolist() == [5, 0, 25]
    means = type_means(said, np.array([1, -1, 0]))
    np.testing.assert_allclose(means, np.array(expected)[[2, 0]], rtol=1e-6)


def test_auc_is_that_of_pairs_within_strata() -> None:
    generator = np.random.default_rng(1)
    scores = generator.integers(0, 5, (30, 6)).astype(np.float32)
    positive, stratum = generator.random(30) < 0.4, generator.integers(0, 3, 30)
    found = type_tests(scores, positive, stratum, n_permutations=99)
    for latent in range(6):
        wins = [
            (scores[i, latent] > scores[j, latent]) + 0.5 * (scores[i, latent] == scores[j, latent])
            for i in np.flatnonzero(positive)
            for j in np.flatnonzero(~positive)
            if stratum[i] == stratum[j]
        ]
        assert found.auc[latent] == pytest.approx(np.mean(wins), abs=1e-6)
    assert found.n_positive == positive.sum() and found.n_negative == (~positive).sum()
    draws = permuted(positive, stratum, 50)
    for name in range(3):
        assert (draws[:, stratum == name].sum(1) == positive[stratum == name].sum()).all()


def test_planted_latents_are_found_and_nothing_else() -> None:
    generator = np.random.default_rng(2)
    positive, stratum = np.arange(60) % 2 == 0, np.arange(60) // 20
    noise = generator.gamma(1.0, 1.0, (60, 400)).astype(np.float32)
    # a level that belongs to the stratum says nothing of the label
    noise += 5 * stratum[:, None]
    assert type_tests(noise, positive, stratum).passes.sum() <= 2
    p = type_tests(noise, positive, stratum).p
    assert 0.02 < (p < 0.05).mean() < 0.09
    noise[:, :5] += 1.5 * positive[:, None]
    found = type_tests(noise, positive, stratum)
    assert found.passes[:5].all() and found.passes[5:].sum() <= 2


def test_covariates_take_out_what_they_explain() -> None:
    generator = np.random.default_rng(3)
    positive, stratum = np.arange(80) % 2 == 0, np.zeros(80, dtype=int)
    loudness = positive + generator.normal(0, 0.7, 80)
    follows_loudness = np.exp(loudness)[:, None] * generator.uniform(0.95, 1.05, (80, 4))
    follows_label = positive[:, None] + generator.normal(0, 0.4, (80, 4))
    scores = np.concatenate([follows_loudness, follows_label], 1).astype(np.float32)
    plain = type_tests(scores, positive, stratum)
    assert plain.passes.all()
    beside = type_tests(scores, positive, stratum, covariates=loudness[:, None])
    left = (beside.auc - 0.5) / (plain.auc - 0.5)
    assert (left[:4] < 0.2).all() and (left[4:] > 0.6).all() and beside.passes[4:].all()
    # what has nothing to do with them is as it was
    other = type_tests(scores, positive, stratum, covariates=generator.normal(0, 1, (80, 2)))
    np.testing.assert_allclose(other.auc, plain.auc, atol=0.05)


def test_power_is_what_it_says() -> None:
    positive, stratum = np.arange(60) % 2 == 0, np.arange(60) // 20
    few = minimum_detectable(positive[:20], stratum[:20], tokens=6, m=200, n_trials=60)
    many = minimum_detectable(positive, stratum, tokens=6, m=200, n_trials=60)
    assert many.power >= 0.8 and many.hit < few.hit and 0.6 < many.auc < few.auc
    assert f"AUC {many.auc:.2f}" in str(many)
    # four types of each kind cannot be told by permutation among 200 tests
    none = minimum_detectable(positive[:8], stratum[:8], tokens=6, m=200, n_trials=20)
    assert none.power < 0.8 and "not even" in str(none)
    # one that the training half would not choose is not found
    hard = minimum_detectable(positive, stratum, tokens=6, m=200, n_trials=20, train=(positive[:8], stratum[:8], 1.01))
    assert hard.power == 0


def test_bad_input() -> None:
    codes = codes_of(np.eye(20), 2)
    one = np.array([0.0])
    with pytest.raises(AnalysisError, match="No clip is called 'clip-9'"):
        pool_spans(codes, ["clip-9"], one, one + 0.1)
    with pytest.raises(AnalysisError, match="No frame of 'clip-0' has its centre in 5 to 6 s"):
        pool_spans(codes, ["clip-0"], one + 5, one + 6)
    with pytest.raises(AnalysisError, match="1 clips, 2 starts"):
        pool_spans(codes, ["clip-0"], np.zeros(2), np.ones(2))
    with pytest.raises(AnalysisError, match="type without a token"):
        type_means(codes, np.full(20, -1))
    with pytest.raises(AnalysisError, match="3 types, 2 labels"):
        type_tests(np.ones((3, 1)), np.array([True, False]), np.zeros(3, dtype=int))
    with pytest.raises(AnalysisError, match="No stratum has types with the label"):
        type_tests(np.ones((2, 1)), np.array([True, False]), np.array([0, 1]))
