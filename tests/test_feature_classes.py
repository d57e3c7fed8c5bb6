"""Classes: each known latent goes where it belongs, and what a confound explains goes nowhere."""

from __future__ import annotations

import numpy as np
import pytest
from made_up_features import codes_of, follow, labels_of, one_label_a_row, segments

from hooked_whisper import AnalysisError
from hooked_whisper.analysis.feature_classes import Evidence, classify, gather_evidence

N_CLIPS, FRAMES = 60, 60
N_ROWS = N_CLIPS * FRAMES
N_PHONES, N_WORDS, N_SPEAKERS = 6, 5, 4


@pytest.fixture(scope="module")
def evidence() -> Evidence:
    """Latents in order: phones, words, starts of words, speakers, loudness (which vowels share), noise, none."""
    generator = np.random.default_rng(0)
    word = segments(N_ROWS, N_WORDS, 12, generator)
    start = np.concatenate([[True], word[1:] != word[:-1]])
    start |= np.roll(start, 1)
    phone = segments(N_ROWS, N_PHONES, 4, generator)
    # each word has a phone that it is fond of
    phone = np.where(generator.random(N_ROWS) < 0.3, word, phone)
    speaker = np.repeat(np.arange(N_CLIPS) % N_SPEAKERS, FRAMES)
    decibels = generator.normal(size=N_ROWS) + 2.0 * (phone < 2)
    loudness = np.searchsorted(np.quantile(decibels, np.arange(1, 10) / 10), decibels)
    latents = [follow(phone == value, generator, hit=0.7) for value in range(N_PHONES)]
    latents += [follow(word == value, generator, hit=0.6) for value in range(N_WORDS)]
    latents += [follow(start, generator, hit=0.7) for _ in range(2)]
    latents += [follow(speaker == value, generator, hit=0.6) for value in range(N_SPEAKERS)]
    latents += [follow(loudness >= 8, generator, hit=0.8) for _ in range(3)]
    latents += [follow(np.zeros(N_ROWS, dtype=bool), generator, noise=0.05) for _ in range(20)]
    codes = codes_of(np.stack([*latents, np.zeros(N_ROWS)], 1), N_CLIPS)
    columns = (
        one_label_a_row("phone", phone)
        | one_label_a_row("word", word)
        | {"word_position=onset": start, "word_position=inside": ~start}
        | one_label_a_row("speaker", speaker)
        | one_label_a_row("loudness", loudness)
        | {"loudness=loud": loudness >= 8}
    )
    labels = labels_of(columns)
    return gather_evidence(codes, labels, progress=False)


def test_latents_go_where_they_belong(evidence: Evidence) -> None:
    found = classify(evidence)
    wanted = (
        ["phonetic"] * N_PHONES + ["lexical"] * N_WORDS + ["positional"] * 2
        + ["non-linguistic"] * (N_SPEAKERS + 3) + ["unexplained"] * 20 + ["silent"]
    )  # fmt: skip
    assert list(found.of) == wanted
    names = [evidence.scores.names[at] for at in found.label[: N_PHONES + N_WORDS]]
    assert names == [f"phone={index}" for index in range(N_PHONES)] + [f"word={index}" for index in range(N_WORDS)]
    assert (found.label[-21:] == -1).all() and np.isnan(found.worth[-21:]).all()
    assert sorted(found.latents("lexical")) == list(range(N_PHONES, N_PHONES + N_WORDS))
    assert (np.diff(found.worth[found.latents("phonetic")]) <= 0).all()


def test_counts_have_intervals(evidence: Evidence) -> None:
    found = classify(evidence)
    phonetic = found.counts["phonetic"]
    assert phonetic.n.value == N_PHONES == len(phonetic.latents)
    assert phonetic.n.low is not None and phonetic.n.high is not None
    assert phonetic.n.low <= N_PHONES <= phonetic.n.high
    # with the bar where the weakest of them is, it falls below it in about half of the resamples
    weakest = float(found.worth[phonetic.latents].min())
    at_the_bar = classify(evidence, min_f1=weakest - 1e-6).counts["phonetic"].n
    assert at_the_bar.value == N_PHONES and at_the_bar.low is not None and at_the_bar.low < N_PHONES
    assert list(found.counts) == ["phonetic", "lexical", "positional", "non-linguistic"]
    # with the bar a little above it, the latent does not count, but may in a resample
    above = classify(evidence, min_f1=weakest + 1e-3).counts["phonetic"].n
    assert above.value == N_PHONES - 1 and above.high == N_PHONES


def test_the_summary_says_what_was_found(evidence: Evidence) -> None:
    found = classify(evidence)
    text = found.to_markdown(n_examples=1)
    assert "| phonetic | 6 | " in text and "| unexplained | 20 |" in text and "| silent | 1 |" in text
    assert "within loudness x speaker at a false discovery rate of 0.05" in text
    why = found.why(0)
    assert why.startswith("latent 0: phonetic, phone=0, F1 0.") and "within phone" in why
    assert found.why(len(found.of) - 1) == f"latent {len(found.of) - 1}: silent"


def test_without_rivals_more_passes(evidence: Evidence) -> None:
    """Vowels are loud: a latent of loudness is good enough for them until loudness is held the same."""
    loose = classify(evidence, needs={"phonetic": [], "lexical": [], "positional": []}, min_f1=0.2)
    strict = classify(evidence, min_f1=0.2)
    assert loose.of[:N_PHONES] == strict.of[:N_PHONES]
    assert not set(strict.latents("phonetic")) - set(range(N_PHONES))
    only_phones = classify(
        evidence, classes=dict.fromkeys(("speaker", "loudness", "word", "word_position"), "other"), min_f1=0.2
    )
    assert only_phones.counts["other"].n.value == N_WORDS + 2 + N_SPEAKERS + 3


def test_what_cannot_be_decided_is_refused(evidence: Evidence) -> None:
    alone = Evidence(evidence.codes, evidence.labels, evidence.scores, evidence.marginal, ())
    for call, message in (
        (lambda: classify(alone), "A phonetic latent has to hold within strata of loudness, speaker, not tested"),
        (lambda: classify(evidence).latents("phonic"), "Unknown class 'phonic': expected one of phonetic"),
        (
            lambda: gather_evidence(evidence.codes, evidence.labels, rivals=[("loudnes",)]),
            "'loudnes' is neither a kind of label nor a column",
        ),
    ):
        with pytest.raises(AnalysisError, match=message):
            call()
    strange = labels_of({"colour=red": np.arange(N_ROWS) % 2 == 0})
    with pytest.raises(AnalysisError, match="No class is known for labels of the kinds colour"):
        classify(gather_evidence(evidence.codes, strange, rivals=[], n_permutations=2, progress=False))
