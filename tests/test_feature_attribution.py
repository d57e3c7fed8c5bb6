"""Feature attribution: latents and error add up to the activation, and ablating the top latents does what they say."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from sae_files import random_sae
from short_windows import short_windows
from small import small_inputs, small_model
from torch import Tensor

from hooked_whisper import AnalysisError, HookedWhisper
from hooked_whisper.analysis.attribution import attribute
from hooked_whisper.analysis.contrast import Contrast, ModelInput
from hooked_whisper.analysis.feature_attribution import attribute_features
from hooked_whisper.analysis.metrics import LogitDifference
from hooked_whisper.analysis.nodes import Node
from hooked_whisper.speech import clips

HOOK = "encoder.hook_out"


def last(logits: Tensor) -> Tensor:
    return logits[:, -1, 3] - logits[:, -1, 7]


def contrast(model: HookedWhisper) -> Contrast:
    mel, tokens = small_inputs(model.cfg)
    far, _ = small_inputs(model.cfg, seed=2)
    mask = torch.ones_like(tokens, dtype=torch.bool)
    return Contrast(ModelInput(mel, tokens), ModelInput(torch.lerp(mel, far, 0.1), tokens), mask, (2, 2))


def test_latents_and_error_add_up_to_the_activation() -> None:
    model = small_model()
    pair = contrast(model)
    sae = random_sae("topk", HOOK)
    found = attribute_features(model, sae, pair, last)
    assert not model.acts_to_saes
    whole = attribute(model, pair, [Node(HOOK, span=(at, at + 1)) for at in range(10)], last)
    assert torch.allclose((found.by_position + found.error).double(), whole.scores.T)
    assert torch.allclose(found.by_latent.sum(1), found.by_position.sum(1))
    assert ((found.error_share > 0) & (found.error_share < 1)).all()
    assert len(found.top()) == 10
    latent, at, score = found.top(1, clip=1)[0]
    assert score == float(found.scores.to_dense()[1, at, latent])
    assert abs(score) == float(found.scores.to_dense()[1].abs().max())
    nodes = [Node(f"{HOOK}.hook_sae_acts_post", unit=latent, span=(at, at + 1))]
    with model.saes(sae, use_error_term=True):
        assert float(attribute(model, pair, nodes, last).scores[0, 1]) == pytest.approx(score)


def test_what_it_cannot_attribute_is_refused() -> None:
    model = small_model()
    pair = contrast(model)
    into = {"hook_name_out": "encoder.blocks.0.hook_mlp_out"}
    transcoder = random_sae("transcoder", "encoder.blocks.0.ln2.hook_normalized", about=into)
    with pytest.raises(AnalysisError, match="A transcoder has no error term"):
        attribute_features(model, transcoder, pair, last)
    with pytest.raises(AnalysisError, match="codes each head on its own"):
        attribute_features(model, random_sae("topk", "encoder.blocks.0.attn.hook_z", 8, 16), pair, last)
    found = attribute_features(model, random_sae("topk", HOOK), pair, last)
    with pytest.raises(AnalysisError, match="There is no clip 5: there are 2"):
        found.top(1, clip=5)
    with pytest.raises(AnalysisError, match="n=0: expected a whole number"):
        found.top(0)


@pytest.mark.slow
def test_ablating_the_top_latents_of_real_speech(whisper_base: HookedWhisper) -> None:
    """The shipped SAE: taking the latents away that speak for "Weasels" lowers it more than as many others do."""
    from hooked_whisper.saes import load_sae

    model = short_windows(whisper_base, 3)
    tokenizer: Any = model.tokenizer
    waveform = clips("en", "tt-weasels")[0].load()
    pair = Contrast.of(model, clean=waveform, corrupted=torch.zeros_like(waveform), text="", language="en")
    word, rival = tokenizer.to_tokens(" We")[0], tokenizer.to_tokens(" The")[0]
    metric = LogitDifference((word,), (rival,), -1)
    sae = load_sae("whisper-base/encoder.hook_out")
    found = attribute_features(model, sae, pair, metric, direction="noise")
    scores = found.by_latent[0]
    order = scores.argsort()  # most negative: taking them away lowers the metric most

    def without(latents: Tensor) -> float:
        def ablate(acts: Tensor, hook: Any) -> Tensor:
            acts[..., latents] = 0
            return acts

        hooks = [(f"{HOOK}.hook_sae_acts_post", ablate)]
        with torch.no_grad(), model.saes(sae, use_error_term=True), model.hooks(fwd_hooks=hooks):
            return float(metric(pair.clean.logits(model))[0]) - float(found.base[0])

    active = (scores != 0).nonzero()[:, 0]
    others = active[torch.randperm(len(active), generator=torch.Generator().manual_seed(0))[:10]]
    assert without(order[:10]) < -0.5
    assert without(order[:10]) < without(others) - 0.3
    # Of those that speak against it the gradient is less sure: all that is asked is that they are not for it as much.
    assert without(order.flip(0)[:10]) > without(order[:10]) + 0.3
