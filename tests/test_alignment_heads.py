"""Heads that follow the audio: the score on made-up patterns, on the real model, and what interventions say."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hooked_whisper import AnalysisError, HookedWhisper, MissingExtraError
from hooked_whisper.analysis.alignment_heads import (
    AlignmentScores,
    Reading,
    alignment_scores,
    read_tokens,
    score_alignment_heads,
    view_heads,
    without_heads,
)
from hooked_whisper.speech import clips

N, FRAMES, WIDTH = 6, 60, 10
SPANS = tuple((start, start + WIDTH) for start in range(0, FRAMES, WIDTH))
KEY = "vm-nonumber"  # not used to develop the score


def diagonal(shift: int = 0) -> torch.Tensor:
    """A pattern that looks at the stretch in which each token is read, or at that of a later one."""
    pattern = torch.zeros(N, FRAMES)
    for token in range(N):
        place = (token + shift) % N
        pattern[token, place * WIDTH : (place + 1) * WIDTH] = 1 / WIDTH
    return pattern


def made_up() -> Reading:
    """Token i is read in stretch i; heads: follows, looks at one place, looks everywhere, is a token late."""
    fixed = torch.zeros(N, FRAMES)
    fixed[:, 20:30] = 0.1
    heads = torch.stack([diagonal(), fixed, torch.full((N, FRAMES), 1 / FRAMES), diagonal(-1)])
    return Reading(3 * torch.eye(N), SPANS, heads[None], tuple("abcdef"))


@pytest.fixture(scope="module")
def readings(shared_whisper_base: HookedWhisper) -> list[Reading]:
    """A sentence that was not used to develop the score, in three languages."""
    languages = ("en", "fr", "ru")
    paths = [clips(language, KEY)[0].path for language in languages]
    return read_tokens(shared_whisper_base, paths, language=languages, progress=False)


@pytest.fixture
def reading(readings: list[Reading]) -> Reading:
    """The English one."""
    return readings[0]


def test_score_by_hand() -> None:
    follows, fixed, everywhere, late = made_up().scores()[0].tolist()
    assert follows == pytest.approx(1, abs=1e-6)
    assert fixed == pytest.approx(0, abs=1e-6)  # the same frames for every token tell nothing
    assert everywhere == pytest.approx(0, abs=1e-6)
    assert late == pytest.approx(-1 / (N - 1), abs=1e-6)  # as monotonic as the first


@given(st.integers(2, 7), st.integers(2, 7), st.integers(0, 999), st.floats(0.1, 50))
@settings(max_examples=25, deadline=None)
def test_score_is_a_correlation(n_tokens: int, n_windows: int, seed: int, factor: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    effects = torch.rand(n_tokens, n_windows, generator=generator) + 0.01
    patterns = torch.rand(2, 3, n_tokens, 4 * n_windows, generator=generator).softmax(-1)
    spans = [(4 * i, 4 * i + 4) for i in range(n_windows)]
    found = alignment_scores(patterns, effects, spans)
    assert float(found.abs().max()) <= 1 + 1e-5
    # A head that sees less of the audio, or tokens that all lose more, say the same.
    torch.testing.assert_close(alignment_scores(patterns * 0.3, effects * factor, spans), found, atol=1e-4, rtol=0)
    # Heads are scored one by one.
    torch.testing.assert_close(alignment_scores(patterns.flip(1), effects, spans), found.flip(1))


def test_times_and_errors_by_hand() -> None:
    found = made_up()
    assert found.times.tolist() == pytest.approx([0.1 + 0.2 * i for i in range(N)])
    assert found.weights.tolist() == [3.0] * N
    assert found.timing_error([(0, 0)]) < 0.03
    assert found.timing_error([(0, 3)]) > 0.1
    unsure = Reading(0.1 * torch.eye(N), SPANS, found.patterns, found.labels)
    assert unsure.timing_error([(0, 0)]) != unsure.timing_error([(0, 0)])  # NaN


def test_published_heads_are_found_in_clips_that_were_not_used_to_find_the_score(
    shared_whisper_base: HookedWhisper, readings: list[Reading]
) -> None:
    scores = AlignmentScores(torch.stack([reading.scores() for reading in readings]))
    published = shared_whisper_base.cfg.alignment_heads
    assert len(scores.found(published, 10)) >= 7
    assert scores.ranking()[0] in published
    # Heads 2.2 and 3.0 move through the audio as steadily, but a token late: they do not time the token to come.
    assert not {(2, 2), (3, 0)} & set(scores.ranking()[:10])


def test_hiding_is_an_intervention_on_the_run(shared_whisper_base: HookedWhisper, reading: Reading) -> None:
    """One stretch, hidden by hand with hooks of the ordinary forward, costs what the reading says."""
    path = clips("en", KEY)[0].path
    token, window = divmod(int(reading.effects.argmax()), reading.effects.shape[1])
    start, end = reading.spans[window]

    def hide(scores: torch.Tensor, hook: Any) -> torch.Tensor:
        scores = scores.clone()
        scores[..., start:end] = -torch.inf
        return scores

    ids = shared_whisper_base.to_tokens("".join(reading.labels))
    prompt = shared_whisper_base.tokenizer.prompt("en", "transcribe", False)
    fed = torch.tensor([[*prompt, *ids]])
    row = len(prompt) + token - 1
    with torch.no_grad():
        heard = shared_whisper_base.encode(path)
        clean = shared_whisper_base.decode(fed, heard)
        with shared_whisper_base.hooks(fwd_hooks=[("decoder.blocks.*.cross_attn.hook_attn_scores", hide)]):
            hidden = shared_whisper_base.decode(fed, heard)
    lost = (clean - 0).log_softmax(-1)[0, row, fed[0, row + 1]] - hidden.log_softmax(-1)[0, row, fed[0, row + 1]]
    assert float(lost) == pytest.approx(float(reading.effects[token, window]), abs=1e-3)
    assert float(lost) > 1


def test_the_heads_found_time_words_and_the_others_do_not(shared_whisper_base: HookedWhisper, reading: Reading) -> None:
    ranking = AlignmentScores(reading.scores()[None]).ranking()
    assert reading.timing_error(ranking[:8]) < 0.1
    assert reading.timing_error(ranking[8:]) > reading.timing_error(ranking[:8])


def test_tokens_are_read_through_the_heads_found(shared_whisper_base: HookedWhisper, readings: list[Reading]) -> None:
    """Hiding from 8 heads of 48 costs most of what hiding from all costs; from 8 others of the same layers, little."""
    ranking = AlignmentScores(torch.stack([reading.scores() for reading in readings])).ranking()
    reading = readings[0]
    late = [head for head in ranking[8:] if head[0] >= 3][-8:]
    path, text = clips("en", KEY)[0].path, "".join(reading.labels)
    top, other = (
        read_tokens(shared_whisper_base, path, text, language="en", heads=heads, step=10, progress=False)[0]
        for heads in (ranking[:8], late)
    )
    assert float(top.weights.mean()) > 3 * float(other.weights.mean())


def test_knocking_heads_out_zeroes_their_patterns_alone(shared_whisper_base: HookedWhisper) -> None:
    mel = torch.zeros(1, 80, 200)
    names = ["decoder.blocks.*.cross_attn.hook_z"]
    tokens = torch.tensor([[50258, 50259, 50359, 50363]])
    with torch.no_grad():
        _, cache = shared_whisper_base.run_with_cache(
            mel, tokens, names_filter=names, fwd_hooks=without_heads([(1, 2), (1, 3), (4, 0)])
        )
    silent = {
        (layer, head)
        for layer in range(6)
        for head in range(8)
        if not bool(cache[f"decoder.blocks.{layer}.cross_attn.hook_z"][:, :, head].any())
    }
    assert silent == {(1, 2), (1, 3), (4, 0)}
    with pytest.raises(AnalysisError, match=r"There is no cross-attention head .* head 0 to 7"):
        shared_whisper_base.run_with_hooks(mel, tokens, fwd_hooks=without_heads([(5, 99)]))


def test_ranking_and_pictures() -> None:
    scores = AlignmentScores(torch.tensor([[[0.1, 0.9], [0.5, -1.0]], [[0.3, 0.7], [0.6, -1.0]]]))
    assert scores.ranking() == [(0, 1), (1, 0), (0, 0), (1, 1)]
    assert scores.found([(1, 1), (1, 0)], 2) == [(1, 0)]
    axes = scores.plot(marked=[(0, 1)]).axes[0]
    assert axes.images[0].get_array().tolist() == scores.scores.tolist()
    assert [patch.get_xy() for patch in axes.patches] == [(0.5, -0.5)]
    axes = made_up().plot().axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == list("abcdef")
    assert axes.images[0].get_array().argmax(-1).tolist() == list(range(N))
    view = str(view_heads(made_up(), [(0, 0), (0, 3)]))
    assert "0.3" in view and '"a", "b"' in view


def test_what_cannot_be_scored_is_refused(shared_whisper_base: HookedWhisper, monkeypatch: pytest.MonkeyPatch) -> None:
    found = made_up()
    with pytest.raises(AnalysisError, match="1 tokens and 6 stretches show no movement"):
        alignment_scores(found.patterns[:, :, :1], found.effects[:1], SPANS)
    with pytest.raises(AnalysisError, match="No token loses anything"):
        alignment_scores(found.patterns, -found.effects, SPANS)
    with pytest.raises(AnalysisError, match=r"no cross-attention head \(1, 0\): expected layer 0 to 0 and head 0 to 3"):
        found.head_times([(1, 0)])
    with pytest.raises(AnalysisError, match="No heads were given"):
        view_heads(found, [])
    with pytest.raises(AnalysisError, match="width=0 and step=5 must be at least 1"):
        score_alignment_heads(shared_whisper_base, torch.zeros(16_000), "a", language="en", width=0)
    with pytest.raises(AnalysisError, match="Clip 0 has 0 tokens of text and 50 frames"):
        score_alignment_heads(shared_whisper_base, torch.zeros(16_000), "", language="en", progress=False)
    monkeypatch.setitem(sys.modules, "circuitsvis.tokens", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'hooked-whisper\[analysis\]'"):
        view_heads(found, [(0, 0)])
    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingExtraError, match="Pictures need matplotlib"):
        found.plot()
