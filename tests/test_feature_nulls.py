"""Ground truth: true pairs are found, nothing is found where nothing is, confounds do not pass for phones."""

from __future__ import annotations

import numpy as np
import pytest
from made_up_features import codes_of, follow, labels_of, one_label_a_row, segments
from scipy.stats import false_discovery_control

from hooked_whisper import AnalysisError
from hooked_whisper.analysis.codes import FeatureCodes
from hooked_whisper.analysis.feature_nulls import benjamini_hochberg, feature_tests, holds, moved_rows, strata
from hooked_whisper.analysis.frame_labels import FrameLabels

N_CLIPS, FRAMES = 60, 60
N_ROWS = N_CLIPS * FRAMES
N_PHONES, N_WORDS, N_SPEAKERS, N_NOISE = 12, 15, 4, 60


def dictionary(seed: int) -> tuple[FeatureCodes, FrameLabels, set[tuple[int, str]]]:
    """Latents that follow a phone, a word or a speaker, and some that follow nothing, for as long as phones do."""
    generator = np.random.default_rng(seed)
    phone, word = segments(N_ROWS, N_PHONES, 4, generator), segments(N_ROWS, N_WORDS, 12, generator)
    speaker = np.repeat(np.arange(N_CLIPS) % N_SPEAKERS, FRAMES)
    latents, truth = [], set()
    for kind, of, n in (("phone", phone, N_PHONES), ("word", word, N_WORDS), ("speaker", speaker, N_SPEAKERS)):
        for value in range(n):
            truth.add((len(latents), f"{kind}={value}"))
            latents.append(follow(of == value, generator, hit=0.6, noise=0.05))
    own = [segments(N_ROWS, 15, generator.integers(2, 15), generator) for _ in range(N_NOISE)]
    latents += [follow(of == 0, generator, hit=0.7, noise=0.02) for of in own]
    columns = one_label_a_row("phone", phone) | one_label_a_row("word", word) | one_label_a_row("speaker", speaker)
    return codes_of(np.stack(latents, 1), N_CLIPS), labels_of(columns), truth


def test_true_pairs_are_found_and_few_false_ones() -> None:
    found = false = true = 0
    for seed in range(3):
        codes, labels, truth = dictionary(seed)
        test = feature_tests(codes, labels, rows=~codes.halves(seed=seed), seed=seed, progress=False)
        pairs = {(int(latent), labels.names[at]) for latent, at in np.argwhere(test.passes)}
        found += len(pairs & truth)
        false += len(pairs - truth)
        true += len(truth)
    assert found >= 0.95 * true
    assert false <= 0.05 * (found + false)


@pytest.mark.parametrize("how", ["both", "shift"])
def test_moved_labels_give_no_more_than_the_rate(how: str) -> None:
    """Under the null a rate of 5 % means a false discovery in one run of twenty."""
    with_any, p = 0, []
    for seed in range(8):
        codes, labels, _ = dictionary(seed)
        order = moved_rows(codes.clip, np.random.default_rng(100 + seed))
        nothing = FrameLabels(labels.matrix[order], labels.names, labels.kinds)
        test = feature_tests(codes, nothing, how=how, seed=seed, progress=False)
        varies = [at for at, kind in enumerate(labels.kinds) if how == "both" or kind != "speaker"]
        with_any += bool(test.passes[:, varies].any())
        p.append(test.p[:, varies])
    assert with_any <= 2
    p = np.concatenate(p)
    for level in (0.5, 0.05):
        assert (p <= level).mean() == pytest.approx(level, rel=0.15)
    for level in (0.005, 0.0005):  # in the tail p may be too large, but not too small
        assert (p <= level).mean() <= 1.25 * level


def test_loudness_and_speaker_do_not_pass_for_phones() -> None:
    """Phones 0 to 3 are loud, and each speaker has a favourite phone; latents follow loudness or speaker alone."""
    generator = np.random.default_rng(0)
    speaker = np.repeat(np.arange(N_CLIPS) % N_SPEAKERS, FRAMES)
    phone = segments(N_ROWS, N_PHONES, 4, generator)
    favourite = segments(N_ROWS, 3, 4, generator) == 0
    phone = np.where(favourite, 4 + speaker, phone)
    decibels = generator.normal(size=N_ROWS) + 1.5 * (phone < 4)
    loud = decibels > np.quantile(decibels, 0.65)  # amid a decile, where they differ in loudness still
    latents = [follow(loud, generator, hit=0.8, noise=0.03) for _ in range(8)]
    latents += [follow(speaker == value, generator, hit=0.5, noise=0.03) for value in range(N_SPEAKERS)]
    confounded = len(latents)
    latents += [follow(phone == value, generator, hit=0.6, noise=0.03) for value in range(N_PHONES)]
    codes = codes_of(np.stack(latents, 1), N_CLIPS, speaker=speaker)
    labels = labels_of(one_label_a_row("phone", phone))
    marginal = feature_tests(codes, labels, progress=False)
    assert marginal.passes[:8, :4].all()  # loudness alone looks phonetic
    assert marginal.passes[[8, 9, 10, 11], [4, 5, 6, 7]].all()  # and so does the speaker
    within = strata(codes, labels, ["loudness", "speaker"], loudness=decibels, bins=10)
    rival = feature_tests(codes, labels, within=within, progress=False)
    kept = holds(marginal, rival)
    assert not kept[:confounded].any()
    assert kept[np.arange(confounded, len(latents)), np.arange(N_PHONES)].all()
    assert np.abs(rival.auc[:8, :4] - 0.5).max() < 0.4 * np.abs(marginal.auc[:8, :4] - 0.5).min()
    assert rival.within == ("loudness", "speaker") and "within loudness x speaker" in str(rival)


def test_moved_labels_keep_their_clips_and_runs() -> None:
    lengths = np.array([5, 5, 7, 7, 3])
    clip = np.repeat(np.arange(5), lengths)
    generator = np.random.default_rng(0)
    for _ in range(5):
        shifted = moved_rows(clip, generator, "shift")
        assert (clip[shifted] == clip).all() and len(set(shifted)) == len(clip)
        steps = np.diff(shifted)[np.diff(clip) == 0]
        assert ((steps == 1) | (steps < 0)).all()
        swapped = moved_rows(clip, generator, "swap")
        sources = [set(clip[swapped[clip == index]]) for index in range(5)]
        assert all(len(source) == 1 for source in sources) and len(set.union(*sources)) == 5
        starts = np.searchsorted(clip, np.arange(5))
        assert (swapped[starts] == starts[[source.pop() for source in sources]]).all()
    assert any((moved_rows(clip, generator) != np.arange(len(clip))).any() for _ in range(3))
    # Only clips of about the same length lend each other labels.
    many = np.repeat(np.arange(80), np.sort(np.random.default_rng(1).integers(5, 200, 80)))
    order = moved_rows(many, generator, "swap")
    ranks = many[order][np.searchsorted(many, np.arange(80))]
    assert np.abs(ranks - np.arange(80)).max() < 20


def test_false_discovery_control_is_scipys() -> None:
    p = np.random.default_rng(0).random((20, 30)) ** 3
    p[0, 0] = np.nan
    wanted = false_discovery_control(p[np.isfinite(p)]) <= 0.05
    found = benjamini_hochberg(p, 0.05)
    assert not found[0, 0] and (found[np.isfinite(p)] == wanted).all() and wanted.any() and not wanted.all()
    assert not benjamini_hochberg(np.ones(5)).any()


def test_strata_are_crossed_and_unknown_rows_left_out() -> None:
    speaker = np.array(["a", "a", "b", "b", None, "a"], dtype=object)
    codes = codes_of(np.ones((6, 1)), 2, speaker=speaker, position=np.arange(6))
    known = {"phone": np.array([True, True, True, True, True, False])}
    labels = labels_of({"phone=p": np.array([1, 0, 1, 0, 1, 1]), "phone=t": np.array([0, 0, 0, 1, 0, 0])}, known)
    found = strata(codes, labels, ["phone", "speaker"])
    assert found.of[4:].tolist() == [-1, -1]  # no speaker, phone not known
    assert len(set(found.of[:4])) == 4 and found.names == ("phone", "speaker")
    assert strata(codes, labels, ["position"], bins=2).of.tolist() == [0, 0, 0, 1, 1, 1]
    assert strata(codes, labels, ["clip"]).of.tolist() == [0, 0, 0, 1, 1, 1]
    assert strata(codes, labels, ["db"], bins=2, db=np.array([1, 2, np.nan, 3, 4, 5])).of.tolist() == [
        0,
        0,
        -1,
        1,
        1,
        1,
    ]


def test_what_cannot_be_tested_is_refused() -> None:
    codes = codes_of(np.ones((6, 1)), 2, speaker=np.arange(6))
    labels = labels_of({"phone=p": np.arange(6) < 3})
    for call, message in (
        (lambda: feature_tests(codes, labels, n_permutations=1), "n_permutations=1, rate=0.05: expected at least 2"),
        (lambda: feature_tests(codes, labels, how="mix", min_rows=1), "Unknown way to move labels 'mix'"),
        (lambda: strata(codes, labels, []), "No names were given"),
        (
            lambda: strata(codes, labels, ["fone"]),
            "'fone' is neither a kind of label nor a column: there are phone, sp",
        ),
        (lambda: strata(codes, labels, ["db"], db=np.ones(2)), "'db' has 2 values for 6 rows"),
    ):
        with pytest.raises(AnalysisError, match=message):
            call()
    one = feature_tests(codes, labels, progress=False)
    assert one.n_tested == 0 and not one.passes.any()  # too few rows to test anything
    other = feature_tests(codes, labels_of({"phone=t": np.arange(6) < 3}), progress=False)
    with pytest.raises(AnalysisError, match="The rivals were tested on other latents or labels"):
        holds(one, other)
