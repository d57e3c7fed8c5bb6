"""Exact patching of edges: equal to hands that add the difference, attribution equal to it where all is linear."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from small import small_config, small_inputs, small_model
from test_attribution import METRIC, contrast, linearise
from torch import Tensor

from hooked_whisper import AnalysisError, HookedWhisper
from hooked_whisper.analysis.ablation import AblationResult, node_statistics
from hooked_whisper.analysis.contrast import Contrast, ModelInput
from hooked_whisper.analysis.edge_attribution import attribute_edges
from hooked_whisper.analysis.edge_patching import ablate_edges, ablated_edges, patch_edges
from hooked_whisper.analysis.edges import Edge, edges, split_inputs, writers
from hooked_whisper.analysis.nodes import Node
from hooked_whisper.analysis.patching import PatchingResult

MLP = Node("encoder.blocks.0.hook_mlp_out")
HEAD = Node("decoder.blocks.0.cross_attn.hook_z", 1)
FINAL = "encoder.blocks.1.hook_resid_post"
SOME = [
    Edge(MLP, Node("encoder.blocks.1.hook_v_input", 1)),
    Edge(MLP, Node("encoder.blocks.1.hook_mlp_in")),
    Edge(MLP, Node("decoder.blocks.1.hook_cross_v_input", 2)),
    Edge(MLP, Node("decoder.blocks.2.hook_cross_k_input", 0)),
    Edge(HEAD, Node("decoder.blocks.2.hook_q_input", 3)),
    Edge(HEAD, Node("decoder.blocks.0.hook_mlp_in")),
    Edge(HEAD, Node("decoder.blocks.2.hook_resid_post")),
]


def by_hand(model: HookedWhisper, base: ModelInput, edge: Edge, wanted: dict[str, Tensor]) -> Tensor:
    """The metric of a whole run, `wanted` standing in for the edge's writer where its reader reads."""
    kept: dict[str, Tensor] = {}

    def keep(activation: Tensor, hook: Any) -> None:
        kept[hook.name] = activation.clone()

    with torch.no_grad(), split_inputs(model):
        with model.hooks(fwd_hooks=[(name, keep) for name in (MLP.hook, HEAD.hook, FINAL)]):
            base.logits(model)
        moved = wanted[edge.writer.hook] - kept[edge.writer.hook]
        if edge.writer.head is not None:
            moved = moved[:, :, edge.writer.head] @ model.decoder.blocks[0].cross_attn.W_O[edge.writer.head]
        if edge.across:
            moved = model.encoder.ln_post(kept[FINAL] + moved) - model.encoder.ln_post(kept[FINAL])

        def add(activation: Tensor, hook: Any) -> Tensor:
            if edge.reader.head is None:
                return activation + moved
            activation[:, :, edge.reader.head] += moved
            return activation

        with model.hooks(fwd_hooks=[(edge.reader.hook, add)]):
            return METRIC(base.logits(model))


def written(model: HookedWhisper, inputs: ModelInput) -> dict[str, Tensor]:
    _, cache = model.run_with_cache(inputs.mel, inputs.tokens, names_filter=[MLP.hook, HEAD.hook])
    return {name: cache[name] for name in (MLP.hook, HEAD.hook)}


@pytest.mark.parametrize("direction", ["denoise", "noise"])
def test_equals_hands_that_add_the_difference(direction: Any) -> None:
    model = small_model()
    pair = contrast(model, batch=2)
    found = patch_edges(model, pair, SOME, METRIC, direction=direction, batch_size=3)
    base, other = (pair.corrupted, pair.clean) if direction == "denoise" else (pair.clean, pair.corrupted)
    wanted = written(model, other)
    for edge, effect in zip(found.nodes, found.effects, strict=True):
        assert torch.allclose(effect, by_hand(model, base, edge, wanted), atol=1e-9), str(edge)
    assert (found.change.abs() > 1e-4).all()
    with torch.no_grad(), split_inputs(model):
        assert torch.allclose(found.clean, METRIC(pair.clean.logits(model)), atol=1e-9)
        assert torch.allclose(found.corrupted, METRIC(pair.corrupted.logits(model)), atol=1e-9)
    assert PatchingResult.from_json(found.to_json()).nodes == tuple(SOME)
    assert found.plot(values="change").axes


def test_attribution_equals_patching_where_the_model_is_linear() -> None:
    model = small_model()
    linearise(model)
    pair = contrast(model, batch=1)
    chosen = edges(model)
    exact = patch_edges(model, pair, chosen, METRIC, batch_size=64).change
    assert (exact.abs() > 1e-3).float().mean() > 0.3  # patterns are fixed: those of queries and keys are 0
    for steps in (1, 2):
        found = attribute_edges(model, pair, METRIC, steps=steps).of(chosen)
        assert torch.allclose(found, exact, atol=1e-5, rtol=0)


@pytest.mark.parametrize("by", ["zero", "mean", "resample"])
def test_ablation_puts_in_what_it_says(by: Any) -> None:
    model, inputs = small_model(), ModelInput(*small_inputs(small_config(), 1, seed=1))
    corpus = ModelInput(*small_inputs(small_config(), 1, seed=7))
    statistics = node_statistics(model, [corpus], writers(model), bank=1, progress=False)
    own = written(model, corpus)  # a bank of one clip: every draw is that clip
    wanted = {
        name: {"zero": torch.zeros_like(kept), "mean": kept.mean(1, keepdim=True), "resample": kept}[by]
        for name, kept in own.items()
    }
    found = ablate_edges(model, inputs, SOME, METRIC, by=by, statistics=statistics)
    for edge, effect in zip(SOME, found.effects, strict=True):
        assert torch.allclose(effect, by_hand(model, inputs, edge, wanted), atol=1e-9), str(edge)
        with ablated_edges(model, [edge], by=by, statistics=statistics), torch.no_grad():
            assert torch.allclose(METRIC(inputs.logits(model)), effect, atol=1e-9)
    assert not model.cfg.use_split_qkv_input
    assert not any(point.live for point in model.hook_dict.values())
    assert AblationResult.from_json(found.to_json()).nodes == tuple(SOME)


def test_a_sweep_goes_on(tmp_path: Path) -> None:
    model = small_model()
    pair = contrast(model, batch=2)
    file = tmp_path / "sweep" / "edges.jsonl"
    whole = patch_edges(model, pair, SOME, METRIC, out=file)
    lines = file.read_text().splitlines()
    assert len(lines) == 1 + len(SOME)
    file.write_text("\n".join(lines[:4]) + '\n{"torn')
    again = patch_edges(model, pair, SOME, METRIC, out=file)
    assert torch.equal(again.effects, whole.effects)
    with pytest.raises(AnalysisError, match="is of another sweep"):
        patch_edges(model, pair, SOME[1:], METRIC, out=file)


def test_what_is_refused() -> None:
    model = small_model()
    pair = contrast(model, batch=1)
    for call, message in (
        (lambda: patch_edges(model, pair, [], METRIC), "No edges were given"),
        (lambda: patch_edges(model, pair, SOME, METRIC, direction="up"), "Unknown direction 'up'"),
        (lambda: patch_edges(model, pair, SOME, lambda logits: logits[:, 0]), "one number for each clip"),
        (lambda: ablate_edges(model, pair.clean, SOME, METRIC, by="mean"), "by='mean' needs statistics="),
        (lambda: ablate_edges(model, pair.clean, SOME, METRIC, by="noise"), "Unknown ablation 'noise'"),
        (
            lambda: patch_edges(model, pair, [Edge(HEAD, SOME[0].reader)], METRIC),
            "There is no edge decoder.0.cross.head",
        ),
    ):
        with pytest.raises(AnalysisError, match=message):
            call()


def test_contrasts_of_other_lengths_are_none() -> None:
    """Positions of the two runs must be the same, as for nodes: spans out of them are refused."""
    model = small_model()
    pair: Contrast = contrast(model, batch=1)
    late = Edge(HEAD, Node("decoder.blocks.2.hook_mlp_in", span=(4, 9)))
    early = Edge(Node(HEAD.hook, 1, span=(4, 9)), Node("decoder.blocks.2.hook_mlp_in"))
    with pytest.raises(AnalysisError, match="there is no pos 8"):
        patch_edges(model, pair, [early], METRIC)
    with pytest.raises(AnalysisError, match="there is no pos 8"):
        patch_edges(model, pair, [late], METRIC)
