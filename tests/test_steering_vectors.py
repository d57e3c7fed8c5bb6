"""Mean-difference vectors: against means taken by hand, at the norm of a latent's push, and what they do to a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from sae_files import random_sae
from short_windows import exact_sae, short_windows
from small import small_model
from small_store import HOOK, make_store

from hooked_whisper import AnalysisError, HookedWhisper
from hooked_whisper.analysis.edits import Span, unit_directions
from hooked_whisper.analysis.steering import Steerer, Steering, steer
from hooked_whisper.analysis.steering_vectors import activity_vector, difference, language_vector, mean_difference
from hooked_whisper.saes.baselines import Basis
from hooked_whisper.speech import clips

A = [torch.tensor([[1.0, 0], [3, 0]]), torch.tensor([[8.0, 6]]), torch.empty(0, 2)]
B = [torch.tensor([[1.0, 1]])]


def test_difference_by_hand() -> None:
    by_frame = difference(A, B, hook=HOOK, names=("a", "b"))
    assert by_frame.vector.tolist() == [3, 1] and (by_frame.n_towards, by_frame.n_away) == (3, 1)
    assert difference(A, B, hook=HOOK, weighting="clip").vector.tolist() == [4, 2]
    assert by_frame.norm == pytest.approx(10**0.5) and by_frame.cosine(torch.tensor([-6.0, -2])) == pytest.approx(-1)
    assert by_frame.at_norm(5).norm == pytest.approx(5) and by_frame.at_norm(5).cosine(
        by_frame.vector
    ) == pytest.approx(1)
    edit = by_frame.edit(2, Span(0, 1))
    assert (edit.name, edit.alpha, edit.at, edit.where) == ("a - b", 2, HOOK, Span(0, 1))


def test_norm_is_matched_to_a_latents_push() -> None:
    model, sae = small_model(), random_sae("topk, by norm")
    vector = difference([torch.randn(3, 16)], [torch.randn(4, 16)], hook=HOOK)
    matched = vector.matched(sae, 7, 2.5)
    unit: Any = unit_directions(sae, [7])
    assert matched.norm == pytest.approx(2.5 * float(unit.norm()), rel=1e-5)
    x = torch.zeros(1, 10, 16, dtype=torch.float64)
    moved = Steerer(model, Steering([matched.edit(3)]))(x)
    assert moved.norm(dim=-1)[0].tolist() == pytest.approx([3 * matched.norm] * 10)


def test_of_real_clips(whisper_base: HookedWhisper) -> None:
    model = short_windows(whisper_base, 2)
    english, spanish = ([clip.load()[:16_000] for clip in clips(code)[:1]] for code in ("en", "es"))
    vector = mean_difference(model, spanish, english, names=("es", "en"))
    rows = [model.encode(side[0])[0, :50].detach() for side in (spanish, english)]
    assert torch.allclose(vector.vector, rows[0].mean(0) - rows[1].mean(0), atol=1e-5)
    assert (vector.hook, vector.names, vector.n_towards) == ("encoder.hook_out", ("es", "en"), 50)
    spans = mean_difference(
        model, spanish, english, towards_spans=[[(0.1, 0.2), (0.5, 0.52)]], away_spans=[[(0.0, 1.0)]]
    )
    assert spans.n_towards == 6 and torch.allclose(
        spans.vector, rows[0][[5, 6, 7, 8, 9, 25]].mean(0) - rows[1].mean(0), atol=1e-5
    )
    # Added to English it brings the mean to the Spanish one: the direction is what it says.
    with steer(model, Steering([vector.edit()])):
        moved = model.encode(english[0])[0, :50]
    assert torch.allclose(moved.mean(0), rows[0].mean(0), atol=1e-4)
    with pytest.raises(AnalysisError, match="Spans of 2 clips were given for 1 clips"):
        mean_difference(model, spanish, english, towards_spans=[[], []])
    with pytest.raises(AnalysisError, match=r"The span 0\.5 to 3 s is not inside clip 0, which has 1\.00 s"):
        mean_difference(model, spanish, english, away_spans=[[(0.5, 3.0)]])
    with pytest.raises(AnalysisError, match="The side 'away' has no rows"):
        mean_difference(model, spanish, english, away_spans=[[]])


def test_of_a_store(tmp_path: Path) -> None:
    store = make_store(tmp_path, [[3, 4], [5]])  # en, fr, no language; row r is r, -r, r
    vector = language_vector(store, "fr", "en", hook=HOOK)
    assert vector.vector.tolist() == [3.5, -3.5, 3.5] and (vector.n_towards, vector.n_away) == (4, 3)
    with pytest.raises(AnalysisError, match="The side 'ru' has no rows"):
        language_vector(store, "ru", "en", hook=HOOK)
    # A basis that codes by its largest coefficient; latent 0 fires at every row but the first, latent 1 never.
    basis = Basis(torch.tensor([[1.0, 0, 0], [0, 0, 0], [0, 0, 0]]), torch.zeros(3), k=1, kind="neurons")
    onset = activity_vector(store, basis, 0, hook=HOOK)
    assert onset.vector.tolist() == [6, -6, 6] and onset.names == ("latent 0", "elsewhere")
    assert (onset.n_towards, onset.n_away) == (11, 1)
    with pytest.raises(AnalysisError, match="The side 'latent 1' has no rows"):
        activity_vector(store, basis, 0, 1, hook=HOOK)


def test_two_latents_rows_are_told_apart(tmp_path: Path) -> None:
    store = make_store(tmp_path, [[3, 4], [5]])
    sae: Any = exact_sae(3, k=3)
    with torch.no_grad():
        sae.b_enc.copy_(torch.tensor([-4.5, 0, 0, 0, -2.5, 0]))  # latent 0 from row 5 on, latent 4 from row 3 on
    vector = activity_vector(store, sae, 0, 4, hook=HOOK)  # rows 5 to 11 less rows 3 and 4
    assert vector.vector.tolist() == [4.5, -4.5, 4.5] and (vector.n_towards, vector.n_away) == (7, 2)


def test_refusals() -> None:
    model, sound = small_model(), torch.zeros(3200)
    with pytest.raises(AnalysisError, match="Unknown weighting 'speaker'"):
        difference(A, B, hook=HOOK, weighting="speaker")
    with pytest.raises(AnalysisError, match="The side 'away' has no rows"):
        difference(A, [], hook=HOOK)
    with pytest.raises(AnalysisError, match="'a' and 'b' have the same mean"):
        difference(A, A, hook=HOOK, names=("a", "b"))
    with pytest.raises(AnalysisError, match="norm=0: expected a length above 0"):
        difference(A, B, hook=HOOK).at_norm(0)
    with pytest.raises(AnalysisError, match="expected a hook of the encoder over frames"):
        mean_difference(model, [sound], [sound], hook="decoder.hook_embed")
