"""Scores over whole codes: known features are found on the half that chose nothing, and the figures add up."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from made_up_features import codes_of, follow, labels_of, one_label_a_row, segments

from hooked_whisper import AnalysisError
from hooked_whisper.analysis.feature_scores import frame_accuracy, phone_scores, score_features
from hooked_whisper.analysis.score_kernels import score_pairs

N_ROWS, N_CLIPS, N_PHONES = 1200, 20, 4


def speech(seed: int = 0) -> tuple:
    """Phones, one latent for each, ten that follow nothing, and one that is never active."""
    generator = np.random.default_rng(seed)
    phone = segments(N_ROWS, N_PHONES, 4, generator)
    latents = [follow(phone == index, generator) for index in range(N_PHONES)]
    latents += [follow(np.zeros(N_ROWS, dtype=bool), generator, noise=0.1) for _ in range(10)]
    codes = codes_of(np.stack([*latents, np.zeros(N_ROWS)], 1), N_CLIPS, speaker=np.arange(N_ROWS) % N_CLIPS // 5)
    return codes, labels_of(one_label_a_row("phone", phone, ["p", "t", "a", "_"])), phone


def test_known_features_are_the_best() -> None:
    codes, labels, phone = speech()
    scores = score_features(codes, labels, progress=False)
    best = scores.best("phone")
    assert [match.latent for match in best] == [0, 1, 2, 3]
    for index, match in enumerate(best):
        x = codes.acts.toarray()[~scores.train, index]
        fires, there = x >= match.threshold, phone[~scores.train] == index
        assert match.f1 == pytest.approx(2 * (fires & there).sum() / (fires.sum() + there.sum()), abs=1e-6)
        assert match.precision == pytest.approx((fires & there).sum() / fires.sum(), abs=1e-6)
        assert match.f1 > 0.8 and match.n == there.sum()
    assert scores.top("phone=t", 1)[0] == best[1] == scores.match(1, "phone=t")
    assert scores.of_latent(2, 1, by="auc")[0].label == "phone=a"
    assert (scores.f1[-1] == 0).all() and (scores.auc[-1] == 0.5).all()  # never active
    assert scores.n_active[0] == np.count_nonzero(codes.acts.toarray()[~scores.train, 0])
    assert "| phone=p | 0 | " in scores.to_markdown("phone")
    assert str(best[0]).startswith("phone=p: latent 0, F1 0.")


def test_blocks_make_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    codes, labels, _ = speech()
    whole = score_features(codes, labels, progress=False)
    calls = []

    def counted(*given: object) -> object:
        calls.append(given)
        return score_pairs(*given)

    monkeypatch.setattr("hooked_whisper.analysis.score_kernels._HITS", 500)
    monkeypatch.setattr("hooked_whisper.analysis.feature_scores.latent_blocks", lambda matrix, _: [(0, 3), (3, 15)])
    monkeypatch.setattr("hooked_whisper.analysis.feature_scores.score_pairs", counted)
    parts = score_features(codes, labels, progress=False)
    assert len(calls) == 2
    for name in ("f1", "threshold", "auc", "information", "selectivity"):
        np.testing.assert_array_equal(getattr(parts, name), getattr(whole, name))


def test_a_label_that_one_half_lacks_is_not_scored() -> None:
    codes, _, phone = speech()
    train = codes.halves()
    only_train = labels_of({"phone=p": phone == 0, "phone=x": (phone == 1) & train})
    scores = score_features(codes, only_train, train=train, progress=False)
    assert np.isnan(scores.f1[:, 1]).all() and np.isfinite(scores.f1[:, 0]).all()
    assert [match.label for match in scores.best("phone")] == ["phone=p"]


def test_lenient_scores_are_at_least_as_good() -> None:
    codes, labels, _ = speech()
    found = phone_scores(score_features(codes, labels, progress=False))
    assert all(b.f1 >= a.f1 for a, b in zip(found.strict, found.lenient, strict=True))
    assert found.n_at(0.8) == 4 and found.n_at(0.999) == 0 and found.n_at(0.8, lenient=True) == 4
    assert "| phone=p | 0 | 0." in found.to_markdown()
    # Of noise alone, the latent that is best on the test half is better there than the one that the other half chose.
    noise = replace(codes, acts=codes.acts[:, 4:])
    nothing = phone_scores(score_features(noise, labels, progress=False))
    assert sum(m.f1 for m in nothing.lenient) > sum(m.f1 for m in nothing.strict)


def test_frame_accuracy_by_hand() -> None:
    """Two phones on 12 frames of 4 clips; clips 0 and 1 train."""
    phone = np.array([0, 0, 1, 1, 1, 0, 0, 0, 1, 1, 0, 1])
    dense = np.zeros((12, 3))
    dense[[0, 1, 5, 6, 7, 8], 0] = 1.0  # named 0: right on 6 and 7, wrong on 8
    dense[[2, 3, 8, 9, 7], 1] = 4.0  # named 1: right on 8 and 9, wrong on 7
    dense[[0, 2, 10], 2] = 1.0  # half and half: no name
    codes = codes_of(dense, 4)
    train = np.arange(12) < 6
    labels = labels_of(one_label_a_row("phone", phone))
    found = frame_accuracy(codes, labels, train=train, min_active=1)
    assert found.names.tolist() == [0, 1, -1] and found.n_named == 2 and found.n_frames == 6
    assert found.lenient == pytest.approx(4 / 6)
    assert found.covered == pytest.approx(4 / 6)
    # On 7 and 8 both are active, each at its mean, and one of the two is right: strongest in units of its mean.
    assert found.strict in (pytest.approx(3 / 6), pytest.approx(4 / 6), pytest.approx(2 / 6))
    stronger = dense.copy()
    stronger[7, 0], stronger[8, 1] = 2.0, 9.0
    assert frame_accuracy(codes_of(stronger, 4), labels, train=train, min_active=1).strict == pytest.approx(4 / 6)
    assert found.majority == pytest.approx(0.5)
    assert frame_accuracy(codes, labels, train=train, min_active=3).n_named == 1
    assert frame_accuracy(codes, labels, train=train, min_active=1, exclude=["phone=0"]).n_frames == 3


def test_frame_accuracy_of_known_features() -> None:
    codes, labels, _ = speech()
    found = frame_accuracy(codes, labels, by="clip")
    assert found.lenient > 0.83 and 0.8 < found.strict <= found.lenient
    assert found.lenient_by_chance < 0.6 and found.names[:4].tolist() == [0, 1, 2, 3]
    assert str(found).startswith("phone frame accuracy: lenient 0.8")
    unknown = replace(labels, known=labels_of({"a=1": np.arange(N_ROWS) < 600}).matrix)
    assert frame_accuracy(codes, unknown, by="clip").n_frames < found.n_frames


def test_what_cannot_be_scored_is_refused() -> None:
    codes, labels, _ = speech()
    scores = score_features(codes, labels, progress=False)
    silent = replace(labels, matrix=labels.matrix * 0)
    for call, message in (
        (lambda: score_features(codes, labels, train=np.ones(N_ROWS, dtype=bool)), "train marks 1200 of 1200 rows"),
        (lambda: score_features(codes, labels, by="langauge"), "There is no column 'langauge'"),
        (lambda: scores.best("fone"), "No labels of kind 'fone': there are phone.*Did you mean"),
        (lambda: scores.top("phone=tt"), "There is no label 'phone=tt' here.*Did you mean"),
        (lambda: scores.top("phone=t", by="f2"), "Unknown measure 'f2'"),
        (lambda: scores.top("phone=t", -1), "n=-1: expected a whole number of at least 1"),
        (lambda: phone_scores(scores, min_rows=10_000), "No label of kind 'phone' has 10000 rows in each half"),
        (lambda: frame_accuracy(codes, labels, "word"), "No labels of kind 'word': there are phone"),
        (lambda: frame_accuracy(codes, silent), "One of the halves has no frame with a label of kind 'phone'"),
    ):
        with pytest.raises(AnalysisError, match=message):
            call()
