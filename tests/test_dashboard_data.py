"""What a page shows of a latent is what the codes, labels and scores say."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from made_up_features import labels_of
from small_dashboard import BAD, DENSE, FRAMES, IDS, SILENT, WORDS, make_parts, word_at

from hooked_whisper import AnalysisError
from hooked_whisper.analysis.codes import FeatureCodes
from hooked_whisper.analysis.dashboard_data import FeatureSource
from hooked_whisper.analysis.feature_classes import classify, gather_evidence
from hooked_whisper.analysis.labels import Labels
from hooked_whisper.saes import Corpus


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return make_parts(tmp_path_factory.mktemp("sounds"))


def source(parts: dict[str, Any], **changes: Any) -> FeatureSource:
    given = {name: parts[name] for name in ("sae", "codes", "corpus", "labels", "scores", "effects")}
    return FeatureSource(**{**given, **changes})


def test_segments_are_of_different_clips_strongest_first(parts: dict[str, Any]) -> None:
    view = source(parts).view(WORDS)
    assert [hit.segment.clip for hit in view.hits] == list(reversed(IDS))
    for hit in view.hits:
        at = IDS.index(hit.segment.clip)
        first, last = word_at(at)
        assert (hit.segment.start, hit.segment.end) == (first / 50, last / 50)
        assert len(hit.acts) == FRAMES
        assert np.flatnonzero(hit.acts).tolist() == list(range(first, last))
        assert hit.said == {"word": BAD if at == 4 else "word"}
        assert hit.item.id == hit.segment.clip
    assert view.peaks == {"word": [("word", 4), (BAD, 1)]}
    assert (view.n_active, view.n_rows, view.n_clips, view.n_clips_all) == (35, 200, 5, 5)
    assert view.density == 35 / 200
    assert view.counts.sum() == 35 and view.edges[-1] == view.maximum == 5
    assert view.mean == pytest.approx(3)
    assert view.groups["language"][0][0] in ("it", "en", "ru")


def test_it_is_named_after_what_it_selects(parts: dict[str, Any]) -> None:
    found = source(parts)
    named = found.view(WORDS)
    assert named.label == f"word={BAD}" and named.f1 == pytest.approx(1)
    assert named.matches[0].label == f"word={BAD}"
    dense = found.view(DENSE)  # always on: it fits the frequent label, and selects nothing
    assert dense.matches[0].f1 > 0.8 and dense.label == ""
    silent = found.view(SILENT)
    assert (silent.label, silent.f1, silent.hits, silent.n_active) == ("", None, [], 0)
    assert silent.effects == [] and found.view(DENSE).effects is None
    assert source(parts, scores=None, labels=None, effects=None).view(WORDS).label == ""


def test_the_class_names_it_and_says_why(parts: dict[str, Any]) -> None:
    codes = parts["codes"]
    said = np.zeros(codes.n_rows, dtype=bool)
    said[codes.latent(WORDS)[0]] = True
    evidence = gather_evidence(codes, labels_of({"word=two": said}), rivals=[], by="clip", progress=False)
    classes = classify(evidence, needs={"lexical": []}, n_resamples=20)
    view = source(parts, scores=None, classes=classes).view(WORDS)
    assert view.of_class == classes.of[WORDS] and view.why == classes.why(WORDS)
    assert view.matches[0].label == "word=two"


def test_neighbours_are_the_nearest_directions(parts: dict[str, Any]) -> None:
    rows = parts["sae"].W_dec.detach().float()
    unit = rows / rows.norm(dim=1, keepdim=True)
    cosines = unit[WORDS] @ unit.T
    cosines[WORDS] = -2
    found = source(parts).view(WORDS).neighbours
    assert [one.latent for one in found] == cosines.topk(5).indices.tolist()
    assert torch.allclose(torch.tensor([one.cosine for one in found]), cosines.topk(5).values)


def test_a_long_clip_is_shown_around_its_peak(parts: dict[str, Any]) -> None:
    old = parts["codes"]
    frames = np.arange(old.n_rows, dtype=np.int32) + 1400  # one clip, from 28 s to 32 s
    long = FeatureCodes(old.acts, np.zeros(old.n_rows, np.int32), frames, (IDS[1],), {}, old.hook)
    labels = Labels.from_rows([(IDS[1], "word", 27.0, 29.0, "early"), (IDS[1], "word", 31.0, 32.0, "late")])
    view = source(parts, codes=long, labels=labels, scores=None).view(WORDS)
    (hit,) = view.hits
    assert (hit.excerpt.number, hit.excerpt.start) == (1, 30.0)
    assert len(hit.acts) == 100  # to the last frame at 32 s
    assert hit.acts[hit.acts > 0].max() == 5
    assert [one.value for one in hit.tiers["word"]] == ["late"]


def test_labels_and_tiers_find_their_clips(parts: dict[str, Any]) -> None:
    own = parts["labels"]
    assert source(parts, labels=own.rename_tiers({"word": "tier"})).tiers == ("tier",)
    more = own.merge(Labels.from_rows([("another clip", "phone", 0.0, 0.1, "p")]))
    assert source(parts, labels=more).tiers == ("word", "phone")
    assert source(parts, labels=more, tiers=["phone"]).view(WORDS).peaks == {}
    with pytest.raises(AnalysisError, match="fits none of 5 clips"):
        source(parts, labels=Labels.from_rows([("elsewhere", "word", 0.0, 0.1, "p")]))


def test_parts_of_another_sae_are_refused(parts: dict[str, Any]) -> None:
    few = parts["codes"].select(np.arange(200) < 80)
    other = FeatureCodes(few.acts[:, :9], few.clip, few.frame, few.clips, {}, few.hook)
    with pytest.raises(AnalysisError, match="The codes are of 9 latents, and the SAE has 32"):
        source(parts, codes=other)
    sae = type("Sae", (), {"cfg": type("Cfg", (), {"d_sae": 9}), "W_dec": torch.zeros(9, 2)})()
    with pytest.raises(AnalysisError, match="The scores are of 32 latents, and the SAE has 9"):
        source(parts, codes=other, sae=sae)
    with pytest.raises(AnalysisError, match="effects names latent -1"):
        source(parts, effects={-1: []})
    with pytest.raises(AnalysisError, match="lacks 1, such as"):
        source(parts, corpus=Corpus(list(parts["corpus"])[1:]))
