"""Ablation: what is put in is zero, the mean of real positions or another clip's activation."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from small import small_config, small_inputs, small_model
from torch import Tensor

from hooked_whisper import AnalysisError, HookedWhisper
from hooked_whisper.analysis.ablation import AblationResult, NodeStatistics, ablate, ablated, node_statistics
from hooked_whisper.analysis.contrast import ModelInput
from hooked_whisper.analysis.edge_patching import ablated_edges
from hooked_whisper.analysis.edges import Edge
from hooked_whisper.analysis.nodes import Node, nodes

HEAD = Node("encoder.blocks.1.attn.hook_z", head=1)
CROSS_KEY = Node("decoder.blocks.1.cross_attn.hook_k", head=2)
NODES = [
    Node("hook_mel"),
    HEAD,
    Node(HEAD.hook, head=0, span=(2, 5)),
    Node("encoder.blocks.0.mlp.hook_post", unit=5),
    Node("encoder.blocks.1.hook_mlp_out", span=(1, 4)),
    Node("decoder.blocks.0.hook_mlp_out"),
    CROSS_KEY,
    Node("decoder.blocks.2.attn.hook_z", head=3, span=(3, 5)),
    Node("decoder.blocks.2.hook_resid_post"),
]


def metric(logits: Tensor) -> Tensor:
    return logits[:, -1, 3] - logits[:, -1, 4]


def an_input(batch: int = 2, seed: int = 1, *, frames: list[int] | None = None) -> ModelInput:
    mel, tokens = small_inputs(small_config(), batch, seed=seed)
    if frames is None:
        return ModelInput(mel, tokens)
    mask = torch.arange(10) < torch.tensor(frames)[:, None]
    return ModelInput(mel, tokens, mask, torch.arange(5) < torch.tensor([5, 3])[:, None])


def activation_of(model: HookedWhisper, inputs: ModelInput, hook: str) -> Tensor:
    with torch.no_grad():
        return model.run_with_cache(inputs.mel, inputs.tokens, names_filter=hook)[1][hook]


@torch.no_grad()
def with_value(model: HookedWhisper, inputs: ModelInput, node: Node, value: Any) -> Tensor:
    """The metric when the node's own indices hold a value."""

    def put(activation: Tensor, hook: Any) -> Tensor:
        changed = activation.clone()
        changed[node.index(activation.ndim)] = value
        return changed

    return metric(model.run_with_hooks(inputs.mel, inputs.tokens, fwd_hooks=[(node.hook, put)]))


def test_zero_is_zero() -> None:
    model, inputs = small_model(), an_input()
    result = ablate(model, inputs, NODES, metric, batch_size=5)
    with torch.no_grad():
        assert torch.allclose(result.whole, metric(inputs.logits(model)), atol=1e-10)
    for i, node in enumerate(NODES):
        assert torch.allclose(result.effects[i], with_value(model, inputs, node, 0.0), atol=1e-10), str(node)
    assert (result.change.abs().amax(1) > 1e-6).all()
    assert result.top(1)[0][1] == pytest.approx(max(result.change.mean(1).tolist(), key=abs))


def test_means_are_of_real_positions_over_all_clips() -> None:
    model = small_model()
    corpus = [an_input(seed=3, frames=[10, 4]), an_input(seed=4, frames=[7, 1])]
    statistics = node_statistics(model, corpus, NODES)
    z = [activation_of(model, inputs, HEAD.hook) for inputs in corpus]
    by_hand = torch.cat([z[0][0], z[0][1, :4], z[1][0, :7], z[1][1, :1]])[:, 1].mean(0)
    assert torch.allclose(statistics.mean(HEAD), by_hand[None, None], atol=1e-12)
    assert statistics.n_positions[HEAD.hook] == statistics.n_positions[CROSS_KEY.hook] == 22
    keys = [activation_of(model, inputs, CROSS_KEY.hook) for inputs in corpus]
    by_hand = torch.cat([keys[0][0], keys[0][1, :4], keys[1][0, :7], keys[1][1, :1]])[:, 2].mean(0)
    assert torch.allclose(statistics.mean(CROSS_KEY), by_hand[None, None], atol=1e-12)
    resid = [activation_of(model, inputs, NODES[-1].hook) for inputs in corpus]
    by_hand = torch.cat([part for r in resid for part in (r[0], r[1, :3])]).mean(0)  # tokens 5 and 3
    assert torch.allclose(statistics.mean(NODES[-1]), by_hand[None, None], atol=1e-12)
    mel = torch.cat([corpus[0].mel[0].T, corpus[0].mel[1].T[:8], corpus[1].mel[0].T[:14], corpus[1].mel[1].T[:2]])
    assert torch.allclose(statistics.mean(NODES[0]), mel.mean(0)[None, :, None], atol=1e-12)
    unmasked = node_statistics(model, [ModelInput(one.mel, one.tokens) for one in corpus], [HEAD])
    assert unmasked.n_positions[HEAD.hook] == 40


def test_mean_ablation_puts_the_mean_everywhere() -> None:
    model, inputs = small_model(), an_input()
    statistics = node_statistics(model, [an_input(seed=3, frames=[10, 4])], NODES)
    result = ablate(model, inputs, NODES, metric, by="mean", statistics=statistics, batch_size=3)
    for i, node in enumerate(NODES):
        value = node.part.read(statistics.means[node.hook])
        assert torch.allclose(result.effects[i], with_value(model, inputs, node, value), atol=1e-10), str(node)


def test_resampling_draws_whole_clips_of_the_bank() -> None:
    model, inputs = small_model(), an_input()
    corpus = [an_input(seed=3, frames=[10, 4]), an_input(seed=4, frames=[7, 6])]
    statistics = node_statistics(model, corpus, NODES, bank=3)
    assert [len(rows) for rows in statistics.bank[HEAD.hook]] == [10, 4, 7]
    drawn = statistics.sample(HEAD, 40, 10)
    assert drawn.shape == (40, 10, 8)
    again = {}
    for i, length in enumerate((10, 4, 7)):
        repeated = statistics.bank[HEAD.hook][i][torch.arange(10) % length][:, 1]
        again[i] = sum(torch.equal(row, repeated) for row in drawn)
    assert sum(again.values()) == 40
    assert min(again.values()) > 3
    assert torch.equal(drawn, statistics.sample(HEAD, 40, 10))
    assert not torch.equal(drawn, statistics.sample(HEAD, 40, 10, seed=1))
    result = ablate(model, inputs, NODES, metric, by="resample", statistics=statistics, seed=5, batch_size=3)
    sizes = {"hook_mel": 20, "decoder": 5, "encoder": 10}
    for i, node in enumerate(NODES):
        length = 10 if node == CROSS_KEY else sizes[node.hook.partition(".")[0]]
        value = statistics.sample(node, 2, length, seed=5)
        assert torch.allclose(result.effects[i], with_value(model, inputs, node, value), atol=1e-10), str(node)


@pytest.mark.parametrize("by", ["zero", "mean", "resample"])
def test_within_a_block_all_nodes_are_ablated_at_once(by: str) -> None:
    model, inputs = small_model(), an_input()
    statistics = node_statistics(model, [an_input(seed=3)], NODES, bank=2)
    for node in NODES:
        with ablated(model, [node], by=by, statistics=statistics), torch.no_grad():
            alone = metric(inputs.logits(model))
        swept = ablate(model, inputs, [node], metric, by=by, statistics=statistics).effects[0]
        assert torch.allclose(alone, swept, atol=1e-10), str(node)
    heads = nodes(model, "head", stacks=["encoder"], layers=[0])
    with ablated(model, heads), torch.no_grad():
        seen = activation_of(model, inputs, heads[0].hook)
        whole = activation_of(model, inputs, "encoder.blocks.0.hook_attn_out")
    assert not seen.any()
    assert torch.allclose(whole, model.encoder.blocks[0].attn.b_O.expand_as(whole))
    assert not model.list_hooks("*", dir="fwd")


def test_ablated_works_while_the_model_writes(whisper_base: HookedWhisper) -> None:
    from short_windows import short_windows

    from hooked_whisper.speech import clips

    model = short_windows(whisper_base, 3)
    clip = clips("en")[0].load()[:48_000]
    plain = model.transcribe(clip, language="en").tokens
    with ablated(model, [Node("encoder.hook_out")]):
        silent = model.transcribe(clip, language="en", max_new_tokens=8).tokens
    assert silent != plain[: len(silent)]
    assert model.transcribe(clip, language="en").tokens == plain


def test_spans_of_tokens_are_refused_while_the_model_writes(shared_whisper_base: HookedWhisper) -> None:
    """They would be other tokens at every step."""
    from short_windows import tiny_whisper

    model, sound = tiny_whisper(shared_whisper_base), torch.zeros(16_000)
    tokens = Node("decoder.blocks.1.hook_cross_attn_out", span=(0, 1))
    frames = Node("decoder.blocks.1.cross_attn.hook_k", head=1, span=(0, 9))
    edge = Edge(Node("decoder.blocks.0.hook_mlp_out", span=(0, 1)), Node("decoder.blocks.1.hook_mlp_in"))
    with ablated(model, [frames]):
        model.transcribe(sound, language="en")
    for context in (ablated(model, [tokens]), ablated_edges(model, [edge])):
        with context:
            model(sound, " one two", language="en")
            for write in (model.transcribe, model.generate):
                with pytest.raises(AnalysisError, match=r"\[0:1\] has a span of tokens: while the model writes"):
                    write(sound, language="en")
    model.transcribe(sound, language="en")


def test_results_are_kept_and_drawn() -> None:
    model, inputs = small_model(), an_input()
    result = ablate(model, inputs, nodes(model), metric)
    again = AblationResult.from_json(result.to_json())
    assert (again.nodes, again.by) == (result.nodes, "zero")
    assert torch.equal(again.change, result.change)
    assert len([ax for ax in result.plot().axes if ax.get_title(loc="left")]) == 5
    with pytest.raises(AnalysisError, match="n=-1: expected a whole number"):
        result.top(-1)
    for text, message in (
        ("{", "the text is no JSON"),
        ("[]", "expected what AblationResult.to_json writes"),
        (result.to_json().replace('"zero"', '"noise"'), "'by' is 'noise': expected zero, mean, resample"),
        (result.to_json().replace('"format": 1', '"format": 2'), "No ablation result of format 1"),
    ):
        with pytest.raises(AnalysisError, match=message):
            AblationResult.from_json(text)


def test_what_cannot_be_ablated_is_refused() -> None:
    model, inputs = small_model(), an_input()
    pattern = Node("encoder.blocks.0.attn.hook_pattern", head=0)
    some = node_statistics(model, [inputs], [HEAD])
    other = Node("decoder.blocks.0.hook_mlp_out")
    nothing = NodeStatistics({}, {})
    for call, message in (
        (
            lambda: ablate(model, inputs, [HEAD], metric, by="noise"),
            "Unknown ablation 'noise': expected zero, mean",
        ),
        (lambda: ablate(model, inputs, [HEAD], metric, by="mean"), "by='mean' needs statistics="),
        (lambda: ablate(model, inputs, [], metric), "No nodes were given"),
        (
            lambda: ablate(model, inputs, [other], metric, by="mean", statistics=some),
            "hold nothing of decoder",
        ),
        (
            lambda: ablate(model, inputs, [HEAD], metric, by="resample", statistics=some),
            r"no activations of encoder.blocks.1.attn.hook_z to resample from: node_statistics\(..., bank=n\)",
        ),
        (lambda: ablate(model, inputs, [pattern], metric, by="mean", statistics=nothing), "hold nothing of"),
        (lambda: node_statistics(model, [inputs], [pattern]), "own keys, which have no mean over inputs: ablate"),
        (lambda: node_statistics(model, [], [HEAD]), "No inputs were given"),
        (lambda: node_statistics(model, [inputs], [HEAD], bank=3), "bank=3: the corpus has 2 clips"),
        (lambda: node_statistics(model, [inputs], [Node("encoder.hook_pos_embed")]), "is the same for every clip"),
    ):
        with pytest.raises(AnalysisError, match=message):
            call()
    with pytest.raises(AnalysisError, match="by='resample' needs statistics="), ablated(model, [HEAD], by="resample"):
        pass
