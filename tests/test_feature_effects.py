"""Effects on tokens are what zeroing the latent's contribution by hand does."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from sae_files import random_sae
from short_windows import exact_sae, tiny_whisper

from hooked_whisper import AnalysisError, HookedWhisper
from hooked_whisper.analysis.codes import FeatureCodes, sparse
from hooked_whisper.analysis.feature_effects import token_effects
from hooked_whisper.saes import Corpus
from hooked_whisper.saes.baselines import Basis
from hooked_whisper.saes.corpus_item import CorpusItem
from hooked_whisper.speech import clips

HOOK = "encoder.hook_out"


@pytest.fixture(scope="module")
def setup(shared_whisper_base: HookedWhisper) -> tuple[HookedWhisper, Any, Corpus, FeatureCodes]:
    """A random Whisper, an SAE, two seconds of speech of two clips, and the codes of these."""
    model = tiny_whisper(shared_whisper_base)
    sae = exact_sae(32, k=6)
    items = [CorpusItem(clip.key, clip.load()[: 2 * 16_000], language="en") for clip in clips("en")[:2]]
    rows, clip, frame = [], [], []
    for at, item in enumerate(items):
        with torch.no_grad():
            out = model.encode(item.audio)[0, : -(-len(item.audio) // 320)]
            rows.append(sae.encode(out))
        clip += [at] * len(out)
        frame += range(len(out))
    acts = sparse.csr_array(torch.cat(rows).numpy())
    codes = FeatureCodes(
        acts, np.array(clip, np.int32), np.array(frame, np.int32), tuple(i.id for i in items), {}, HOOK
    )
    return model, sae, Corpus(items), codes


def test_an_effect_is_that_of_the_latent_taken_away(setup: tuple[HookedWhisper, Any, Corpus, FeatureCodes]) -> None:
    model, sae, corpus, codes = setup
    density = np.diff(codes.by_latent.indptr)
    latent = int(np.flatnonzero((density > 2) & (density < 90))[0])
    found = token_effects(model, sae, corpus, codes, [latent], n_segments=2, progress=False)[latent]
    assert found
    for effect in found:
        item = next(item for item in corpus if item.id == effect.clip)
        with torch.no_grad():
            out = model.encode(item.audio)
            changed = out.clone()
            first, last = round(effect.start * 50), round(effect.end * 50)
            acts = codes.acts[codes.rows_of(effect.clip, effect.start, effect.end)][:, [latent]].toarray()
            changed[0, first:last] -= torch.from_numpy(acts) @ sae.W_dec[[latent]]
            transcript = model.transcribe(item.audio, language="en")
            tokens = model.tokenizer.prompt("en", "transcribe", False)
            text = [token for token in transcript.tokens if token < model.tokenizer.eot]
            fed = torch.tensor([[*tokens, *text]])
            before, after = (model.decode(fed, x)[0, len(tokens) - 1 :].log_softmax(-1) for x in (out, changed))
        written = torch.tensor([*text, model.tokenizer.eot])
        at = torch.arange(len(written))
        assert effect.total == pytest.approx(float((after - before)[at, written].sum()), abs=2e-4)
        change = (after.exp() - before.exp())[at, written]
        assert effect.after - effect.before == pytest.approx(float(change[change.abs().argmax()]), abs=1e-5)
        assert effect.control_latent != latent and effect.control is not None
        assert all(later > earlier for _, earlier, later in effect.instead)


def test_a_silent_latent_has_no_effect(setup: tuple[HookedWhisper, Any, Corpus, FeatureCodes]) -> None:
    model, sae, corpus, codes = setup
    kept = codes.acts.tolil()
    kept[:, 3] = 0
    silent = FeatureCodes(sparse.csr_array(kept.tocsr()), codes.clip, codes.frame, codes.clips, {}, HOOK)
    assert token_effects(model, sae, corpus, silent, [3], progress=False) == {3: []}


def test_what_cannot_be_measured_is_refused(setup: tuple[HookedWhisper, Any, Corpus, FeatureCodes]) -> None:
    model, sae, corpus, codes = setup
    with pytest.raises(AnalysisError, match="A basis has signed coefficients"):
        token_effects(model, Basis(torch.eye(32), torch.zeros(32), k=2, kind="pca"), corpus, codes, [0])
    decoder = random_sae("topk", "decoder.blocks.0.hook_resid_post", d_in=32, dtype="float32")
    with pytest.raises(AnalysisError, match="runs over tokens"):
        token_effects(model, decoder, corpus, codes, [0])
    with pytest.raises(AnalysisError, match="Latent 64 does not exist"):
        token_effects(model, sae, corpus, codes, [64])
    few = Corpus([corpus[0]], name="few")
    with pytest.raises(AnalysisError, match="few has no clip"):
        token_effects(model, sae, few, codes, np.flatnonzero(np.diff(codes.by_latent.indptr))[:9].tolist())
