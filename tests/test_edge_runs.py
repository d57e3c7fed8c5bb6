"""Runs with edges exchanged: a whole input, a whole output, and all at once end where they must."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from small import small_config, small_inputs, small_model
from torch import Tensor

from hooked_whisper import HookedWhisper
from hooked_whisper.analysis.contrast import Contrast, ModelInput
from hooked_whisper.analysis.edge_runs import EdgeRuns, Rewiring
from hooked_whisper.analysis.edges import Edge, edges, readers, split_inputs, writers
from hooked_whisper.analysis.nodes import Node
from hooked_whisper.analysis.patching import patch
from hooked_whisper.kv_cache import KeyValueCache


def a_contrast(batch: int = 2) -> Contrast:
    sides = [ModelInput(*small_inputs(small_config(), batch, seed=seed)) for seed in (1, 2)]
    return Contrast(sides[0], sides[1], torch.ones(batch, 5, dtype=torch.bool), (1,) * batch)


def everything(logits: Tensor) -> Tensor:
    """One number that any change of the logits changes."""
    weights = torch.linspace(-1, 2, logits[0].numel(), dtype=logits.dtype).reshape(logits[0].shape)
    return (logits * weights).sum((1, 2))


def exchanged(model: HookedWhisper, pair: Contrast, sets: list[list[Edge]]) -> Tensor:
    """The metric of the clean run with each set of edges taken from the corrupted one, [set batch]."""
    together = list(dict.fromkeys(edge for some in sets for edge in some))
    runs, others = (EdgeRuns(model, side, together) for side in (pair.clean, pair.corrupted))
    logits = runs.logits(sets, others.written([edge.writer for edge in together]), batch_size=3)
    return torch.stack([everything(one) for one in logits])


def test_all_edges_into_a_reader_are_its_input() -> None:
    model, pair = small_model(), a_contrast()
    ends = readers(model)[::3] + readers(model)[-2:]
    found = exchanged(model, pair, [edges(model, readers=[end]) for end in ends])
    with split_inputs(model):
        # The whole input at once; the last reader is the stream itself, whose other hooks are the same place.
        wanted = patch(model, pair, ends, everything, direction="noise").effects
    assert torch.allclose(found, wanted, atol=1e-9)


def test_all_edges_out_of_a_writer_are_its_output() -> None:
    model, pair = small_model(), a_contrast()
    sources = writers(model)
    found = exchanged(model, pair, [edges(model, writers=[source]) for source in sources])
    assert torch.allclose(found, patch(model, pair, sources, everything, direction="noise").effects, atol=1e-9)


def test_all_edges_are_the_other_run_and_none_is_this_one() -> None:
    model, pair = small_model(), a_contrast()
    whole, other = exchanged(model, pair, [[], edges(model)])
    assert torch.allclose(whole, everything(pair.clean.logits(model)), atol=1e-9)
    assert torch.allclose(other, everything(pair.corrupted.logits(model)), atol=1e-9)


def test_a_set_does_not_depend_on_the_sets_beside_it() -> None:
    model, pair = small_model(), a_contrast(3)
    every = edges(model)
    sets = [every[::7], every[3::50], [every[-1]], every[100:200]]
    together = exchanged(model, pair, sets)
    for number, some in enumerate(sets):
        assert torch.allclose(exchanged(model, pair, [some])[0], together[number], atol=1e-9)
    alone = exchanged(model, pair.select([1]), sets)
    assert torch.allclose(alone[:, 0], together[:, 1], atol=1e-9)


def test_spans_of_what_is_written_and_read() -> None:
    model, pair = small_model(), a_contrast()
    for source, end in (
        (Node("encoder.blocks.0.hook_mlp_out"), Node("decoder.blocks.1.hook_cross_v_input", 2)),
        (Node("decoder.blocks.0.attn.hook_z", 1), Node("decoder.blocks.1.hook_mlp_in")),
    ):
        halves = [(0, 2), (2, 10 if source.stack == "encoder" else 5)]
        written = [Edge(Node(source.hook, source.head, span=span), end) for span in halves]
        read = [Edge(source, Node(end.hook, end.head, span=span)) for span in halves]
        # Nothing moves along positions on the way, so a span written is a span read, and two halves are the whole.
        found = exchanged(model, pair, [written[:1], read[:1], written, read, [Edge(source, end)]])
        assert torch.allclose(found[0], found[1], atol=1e-9)
        assert torch.allclose(found[2], found[4], atol=1e-9)
        assert torch.allclose(found[3], found[4], atol=1e-9)
        assert not torch.allclose(found[0], found[4], atol=1e-3)


@pytest.mark.parametrize("beams", [1, 2])
def test_steps_of_generation_see_the_same(beams: int) -> None:
    model, pair = small_model(), a_contrast()
    chosen = edges(model)[::5]
    mel, tokens = pair.clean.mel, pair.clean.tokens

    def nothing(writer: Node, activation: Tensor) -> float:
        return 0.0

    rewiring = Rewiring(model, chosen, torch.ones(1, len(chosen), dtype=torch.float64), nothing)
    with torch.no_grad(), split_inputs(model), model.hooks(fwd_hooks=rewiring.hooks):
        whole = model.decode(tokens, model.encode_mel(mel)).repeat_interleave(beams, dim=0)
        frames = model.encode_mel(mel).repeat_interleave(beams, dim=0)
        past, steps = KeyValueCache(), []
        for at in range(tokens.shape[1]):
            step = tokens[:, at : at + 1].repeat_interleave(beams, dim=0)
            steps.append(model.decode(step, frames, past=past))
    assert torch.allclose(torch.cat(steps, dim=1), whole, atol=1e-9)
    with torch.no_grad():
        assert not torch.allclose(model.decode(tokens, model.encode_mel(mel)), whole[::beams], atol=1e-2)


def test_hooks_on_the_way_are_obeyed() -> None:
    """Hooks on the final norm, the encoder's output and on inputs by head act in exchanged runs as in whole ones."""
    model, pair = small_model(), a_contrast()

    def double(activation: Tensor, hook: Any) -> Tensor:
        return activation * 1.5

    for name in ("encoder.hook_out", "encoder.ln_post.hook_scale", "decoder.blocks.1.ln1.hook_normalized"):
        model.add_hook(name, double)
    whole, other = exchanged(model, pair, [[], edges(model)])
    with split_inputs(model):
        assert torch.allclose(whole, everything(pair.clean.logits(model)), atol=1e-9)
        assert torch.allclose(other, everything(pair.corrupted.logits(model)), atol=1e-9)
