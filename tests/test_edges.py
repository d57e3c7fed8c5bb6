"""Edges: every one has a name, none goes backwards, and what is no edge is refused."""

from __future__ import annotations

import contextlib

import pytest
from sae_files import random_sae
from small import small_model

from hooked_whisper import AnalysisError
from hooked_whisper.analysis.edges import (
    Edge,
    check_edges,
    component,
    edges,
    parse_parts,
    readers,
    split_inputs,
    writers,
)
from hooked_whisper.analysis.nodes import Node

EMBED = Node("decoder.blocks.0.hook_resid_pre")
MLP = Node("encoder.blocks.1.hook_mlp_out")


def test_every_edge_goes_forward_and_has_a_name_of_its_own() -> None:
    model = small_model()
    found = edges(model)
    # By hand: encoder of 2 layers and 2 heads, decoder of 3 layers and 4 heads; writers before each kind of reader.
    encoder = sum(3 * 2 * (1 + 3 * layer) + (1 + 3 * layer + 2) for layer in range(2))
    decoder = sum(3 * 4 * n + 4 * (n + 4) + (n + 8) for n in (1 + 9 * layer for layer in range(3)))
    across = 3 * 2 * 4 * len([node for node in writers(model) if node.stack == "encoder"])
    assert len(found) == encoder + decoder + across + (1 + 9 * 3)
    assert len({str(edge) for edge in found}) == len(found)
    assert parse_parts([str(edge) for edge in found]) == tuple(found)
    order = list(model.hook_dict)
    assert all(order.index(edge.writer.hook) < order.index(edge.reader.hook) for edge in found)
    assert {edge.writer.stack for edge in found if edge.across} == {"encoder"}
    assert all(edge.writer.stack == edge.reader.stack for edge in found if not edge.across)
    assert check_edges(model, found) == found
    assert str(Edge(MLP, Node("decoder.blocks.2.hook_cross_v_input", 3))) == (
        "encoder.1.mlp_out -> decoder.2.cross_v_input.3"
    )
    assert repr(Edge(MLP, MLP)) == "Edge(encoder.1.mlp_out -> encoder.1.mlp_out)"
    assert Edge(MLP, readers(model)[-1]).kind == ("encoder.blocks.*.hook_mlp_out -> decoder.blocks.*.hook_resid_post")


def test_some_writers_and_readers() -> None:
    model = small_model()
    reader = Node("decoder.blocks.1.hook_cross_k_input", 2, span=(0, 4))
    source = Node("encoder.blocks.1.attn.hook_z", 1, span=(2, 3))
    assert edges(model, writers=[source, EMBED], readers=[reader]) == [Edge(source, reader)]
    assert parse_parts([str(Edge(source, reader))]) == (Edge(source, reader),)
    into = edges(model, readers=[Node("encoder.blocks.1.hook_mlp_in")])
    assert [str(edge.writer) for edge in into] == [
        "encoder.0.resid_pre", "encoder.0.self.head.0", "encoder.0.self.head.1", "encoder.0.mlp_out",
        "encoder.1.self.head.0", "encoder.1.self.head.1",
    ]  # fmt: skip
    assert component(reader) == Node("decoder.blocks.1.cross_attn.hook_z", 2)
    assert component(Node("encoder.blocks.0.hook_v_input", 1)) == Node("encoder.blocks.0.attn.hook_z", 1)
    assert component(into[0].reader) == MLP
    assert component(readers(model)[-1]) == Node("hook_logits")


def test_inputs_are_split_for_a_while() -> None:
    model = small_model()
    model.set_use_hook_mlp_in(True)
    inside = []
    with contextlib.suppress(ZeroDivisionError), split_inputs(model):
        inside.append(model.cfg.use_split_qkv_input)
        raise ZeroDivisionError
    assert inside == [True]
    assert not model.cfg.use_split_qkv_input
    assert model.cfg.use_hook_mlp_in


def test_what_is_no_edge_is_refused() -> None:
    model = small_model()
    good = Edge(EMBED, Node("decoder.blocks.0.hook_mlp_in"))
    for call, message in (
        (lambda: check_edges(model, []), "No edges were given"),
        (lambda: check_edges(model, [good, good]), "is given twice"),
        (
            lambda: check_edges(model, [Edge(MLP, good.reader)]),
            "There is no edge encoder.1.mlp_out -> decoder.0.mlp_in",
        ),
        (lambda: check_edges(model, [Edge(MLP, Node("encoder.blocks.1.hook_mlp_in"))]), "the writer must come before"),
        (lambda: check_edges(model, [Edge(Node("hook_mel"), good.reader)]), "mel writes no vector of its own"),
        (
            lambda: check_edges(model, [Edge(EMBED, Node("decoder.blocks.0.attn.hook_q", 1))]),
            "does not read a residual",
        ),
        (lambda: edges(model, writers=[Node("decoder.blocks.9.hook_mlp_out")]), "writes no vector of its own"),
        (lambda: edges(model, readers=[EMBED]), "does not read a residual stream by itself"),
        (lambda: Edge.parse("decoder.1.mlp_out"), "is no edge: expected such as"),
        (lambda: Edge.parse("a -> b -> c"), "is no edge: expected such as"),
        (lambda: Edge.parse("a -> b"), "'a' is no node: no Whisper has the hook 'hook_a'"),
        (lambda: parse_parts(["foo"]), "'foo' is no node"),
    ):
        with pytest.raises(AnalysisError, match=message):
            call()
    model.add_sae(random_sae(hook="encoder.blocks.1.hook_resid_pre"))
    with pytest.raises(AnalysisError, match="SAEs are attached at encoder.blocks.1.hook_resid_pre"):
        check_edges(model, [good])
