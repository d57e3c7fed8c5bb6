"""Sums over nodes are those of their own places; gradients go by SAEs that have their error terms."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sae_files import random_sae
from small import small_inputs, small_model
from torch import Tensor

from hooked_whisper.analysis.attribution import attribute
from hooked_whisper.analysis.contrast import Contrast, ModelInput
from hooked_whisper.analysis.gradient_passes import ChunkMetric, NodeSums, frozen
from hooked_whisper.analysis.nodes import Node
from hooked_whisper.analysis.patching import patch

SHAPES = {
    "encoder.blocks.0.attn.hook_z": (2, 6, 3, 4),  # batch frame head d_head
    "decoder.blocks.0.cross_attn.hook_pattern": (2, 3, 5, 4),  # batch head pos key_frame
    "encoder.blocks.0.hook_mlp_out": (2, 6, 4),
    "decoder.blocks.0.mlp.hook_post": (2, 6, 4),
}
HOOK = "encoder.hook_out"


def last(logits: Tensor) -> Tensor:
    return logits[:, -1, 3] - logits[:, -1, 7]


@given(st.sampled_from(sorted(SHAPES)), st.data())
@settings(max_examples=60, deadline=None)
def test_sums_are_those_of_the_places(hook: str, data: st.DataObject) -> None:
    shape = SHAPES[hook]
    activation = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    heads = st.none() | st.integers(0, 2) if len(shape) == 4 else st.none()
    spans = st.none() | st.tuples(st.integers(0, 3), st.integers(4, 5))
    places = st.lists(st.tuples(heads, st.none() | st.integers(0, 3), spans), min_size=1, max_size=8, unique=True)
    chosen = [Node(hook, *place) for place in data.draw(places)]
    sums = NodeSums(hook, [*enumerate(chosen), (99, Node("hook_mel"))])
    assert sorted(sums.places) == list(range(len(chosen)))
    found = sums(activation)
    for row, number in enumerate(sums.places):
        by_hand = chosen[number].read(activation).flatten(1).sum(1)
        assert torch.allclose(found[:, row], by_hand)


def test_a_chunk_is_judged_as_in_its_batch() -> None:
    logits = torch.randn(4, 3, 9)
    weights = torch.tensor([1.0, 2.0, 3.0, 4.0])

    def metric(given_: Tensor) -> Tensor:
        return given_[:, 0, 0] * weights  # knows which clip is which

    assert torch.equal(ChunkMetric(metric, [1, 2], 4)(logits[1:3]), metric(logits)[1:3])
    assert torch.equal(ChunkMetric(metric, [0, 1, 2, 3], 4)(logits), metric(logits))


def test_weights_ask_for_gradients_again_whatever_happens() -> None:
    model = small_model()
    fixed = model.encoder.W_pos.requires_grad_(False)
    with frozen(model):
        assert not any(weight.requires_grad for weight in model.parameters())
    with pytest.raises(KeyboardInterrupt), frozen(model):
        raise KeyboardInterrupt
    assert [weight for weight in model.parameters() if not weight.requires_grad] == [fixed]


def test_saes_with_their_error_terms_are_passed_by() -> None:
    """What is before the SAE has the scores that it has without it; latents and error add up to the activation."""
    model = small_model()
    mel, tokens = small_inputs(model.cfg)
    far, _ = small_inputs(model.cfg, seed=2)
    mask = torch.ones_like(tokens, dtype=torch.bool)
    pair = Contrast(ModelInput(mel, tokens), ModelInput(torch.lerp(mel, far, 0.1), tokens), mask, (2, 2))
    upstream = [Node("encoder.blocks.0.hook_mlp_out", span=(2, 6)), Node("encoder.blocks.1.attn.hook_z", head=1)]
    without = attribute(model, pair, [*upstream, Node(HOOK)], last)
    sae = random_sae("topk", HOOK, 16, 32)
    inside = [Node(f"{HOOK}.hook_sae_recons"), Node(f"{HOOK}.hook_sae_error")]
    latents = [Node(f"{HOOK}.hook_sae_acts_post", unit=unit) for unit in range(32)]
    with model.saes(sae, use_error_term=True):
        found = attribute(model, pair, [*upstream, *inside, *latents], last)
        exact = patch(model, pair, latents, last)
    assert torch.allclose(found.scores[:2], without.scores[:2])
    assert torch.allclose(found.scores[2:4].sum(0), without.scores[2])
    assert torch.allclose(found.scores[4:].sum(0), found.scores[2])  # a decoder is linear
    assert torch.corrcoef(torch.stack([found.scores[4:].flatten(), exact.change.flatten()]))[0, 1] > 0.8
    with model.saes(sae, use_error_term=False):
        alone = attribute(model, pair, upstream, last)
    assert not torch.allclose(alone.scores, without.scores[:2])
