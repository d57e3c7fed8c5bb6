"""Nodes: which there are, their names, and that reading and writing touch their own place alone."""

from __future__ import annotations

import pytest
import torch
from small import small_model

from hooked_whisper import AnalysisError, HookedWhisper, HookNameError
from hooked_whisper.analysis.nodes import (
    Node,
    _hook_kinds,
    by_hook,
    check_disjoint,
    check_nodes,
    nodes,
    seconds,
    windows,
)


def test_every_head_and_mlp_of_whisper_base(whisper_base: HookedWhisper) -> None:
    found = nodes(whisper_base)
    assert len(found) == 6 * 8 * 3 + 12
    assert found[0] == Node("encoder.blocks.0.attn.hook_z", head=0)
    assert [str(node) for node in (found[8], found[-1])] == ["encoder.0.mlp_out", "decoder.5.mlp_out"]
    spans = nodes(whisper_base, ["head", "mlp"], spans={"frame": windows(0, 500, 50)})
    assert len(spans) == 10 * 6 * 9 + 6 * 8 * 2 + 6
    everything = ["head", "q", "k", "v", "attn", "mlp", "neuron", "resid", "resid_pre", "embed"]
    for node in nodes(whisper_base, everything, layers=[0, 5]):
        assert node.hook in whisper_base.hook_dict
        assert Node.parse(str(node)) == node
        assert node.layer in (0, 5)
    assert {node.stack for node in nodes(whisper_base, "mlp", stacks=["decoder"])} == {"decoder"}


def test_keys_and_values_of_cross_attention_have_frames() -> None:
    model = small_model()
    found = nodes(model, ["k"], stacks=["decoder"], layers=[0], spans={"frame": [(0, 4)], "pos": [(0, 2)]})
    by_name = {str(node) for node in found}
    assert "decoder.0.attn.k.0[0:2]" in by_name
    assert "decoder.0.cross_attn.k.0[0:4]" in by_name


@pytest.mark.parametrize(
    "node",
    [
        Node("encoder.blocks.3.attn.hook_z", 2, None, (5, 9)),
        Node("decoder.blocks.11.cross_attn.hook_z", 1),
        Node("decoder.blocks.1.mlp.hook_post", None, 77, (1, 2)),
        Node("encoder.hook_out.hook_sae_acts_post", None, 4000),
        Node("hook_logits"),
        Node("decoder.blocks.0.hook_resid_pre"),
    ],
)
def test_a_node_is_what_it_is_written_as(node: Node) -> None:
    assert Node.parse(str(node)) == node


def test_nodes_of_a_kind_share_their_hook_whatever_the_layer() -> None:
    assert Node("decoder.blocks.11.cross_attn.hook_z", head=1).kind == "decoder.blocks.*.cross_attn.hook_z"
    assert Node("encoder.hook_out", span=(0, 2)).kind == "encoder.hook_out"


def test_reading_and_writing_touch_one_place() -> None:
    activation = torch.arange(2 * 6 * 3 * 4.0).reshape(2, 6, 3, 4)  # batch frame head d_head
    node = Node("encoder.blocks.0.attn.hook_z", head=1, span=(2, 4))
    assert torch.equal(node.read(activation), activation[:, 2:4, 1])
    written = activation.clone()
    node.write(written, 0.0)
    assert (written != activation).sum() == 2 * 2 * 4
    assert not node.read(written).any()
    neuron = Node("decoder.blocks.0.mlp.hook_post", unit=3)
    assert torch.equal(neuron.read(torch.eye(5)[None]), torch.eye(5)[None, :, 3])
    pattern = Node("decoder.blocks.0.cross_attn.hook_pattern", head=0, span=(1, 2))
    assert torch.equal(pattern.read(activation), activation[:, 0, 1:2])


def test_what_is_no_node_is_refused(whisper_base: HookedWhisper) -> None:
    z = torch.zeros(1, 6, 3, 4)
    for call, message in (
        (lambda: Node("encoder.blocks.0.hook_mlp_out", head=1), "has no heads; its axes are batch frame d_model"),
        (lambda: Node("encoder.blocks.0.attn.hook_z", span=(3, 3)), "is empty: expected start < end"),
        (lambda: Node("encoder.blocks.0.attn.hook_z", head=3).read(z), "there is no head 3; .* has 3"),
        (lambda: Node("encoder.blocks.0.attn.hook_z", span=(2, 9)).read(z), "there is no frame 8; .* has 6"),
        (lambda: Node.parse("what[ever"), "is no node: expected such as"),
        (lambda: nodes(whisper_base, "heads"), "Unknown part 'heads': .* Did you mean 'head'"),
        (lambda: nodes(whisper_base, stacks=["cross"]), "Unknown stack 'cross'"),
        (lambda: nodes(whisper_base, spans={"time": [(0, 1)]}), "Unknown axis 'time'"),
        (lambda: Node("encoder.blocks.0.attn.hook_z", head=-1), "head of .*=-1: expected a whole number of at least 0"),
        (lambda: Node("encoder.blocks.0.mlp.hook_post", unit=-1), "unit of .*=-1: expected a whole number of at least"),
        (
            lambda: Node("encoder.blocks.0.attn.hook_head", head=1),
            "no Whisper has the hook 'encoder.blocks.0.attn.hook_head'",
        ),
        (
            lambda: check_nodes(whisper_base, [Node("encoder.blocks.0.attn.hook_z", head=8)]),
            "there is no head 8; .* has 8",
        ),
        (lambda: nodes(whisper_base, layers=[6]), r"Layers \[6\] are not all among 0 to 5"),
        (lambda: windows(0, 10, 0), "No windows of 0 from 0 to 10"),
        (lambda: check_nodes(whisper_base, []), "No nodes were given"),
        (lambda: check_nodes(whisper_base, [Node("hook_mel")] * 2), "mel is given twice"),
    ):
        with pytest.raises(AnalysisError, match=message):
            call()
    with pytest.raises(HookNameError, match="hook_z"):
        check_nodes(whisper_base, [Node("encoder.blocks.9.attn.hook_z", head=0)])


def test_windows_seconds_and_groups() -> None:
    assert windows(0, 10, 4) == [(0, 4), (4, 8), (8, 10)]
    assert seconds(0.5, 1.0) == (25, 50)
    assert seconds(0.5, 0.5) == (25, 26)
    first, second, third = Node("hook_mel"), Node("hook_logits"), Node("hook_mel", span=(0, 2))
    assert by_hook([first, second, third]) == {"hook_mel": [first, third], "hook_logits": [second]}


def test_names_are_those_of_the_model(whisper_base: HookedWhisper) -> None:
    assert {Node(hook).kind for hook in whisper_base.hook_dict} == _hook_kinds()
    for hook in whisper_base.hook_dict:
        assert Node.parse(hook) == Node.parse(str(Node(hook))) == Node(hook)
    assert repr(Node.parse("decoder.5.cross.head.1[2:4]")) == "Node(decoder.5.cross.head.1[2:4])"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("decoder.5.crss.head.0", r"is no node: .*such as .* Did you mean 'decoder.5.cross.head'\?"),
        ("decoder.5.cross.head.x", "no Whisper has the hook"),
        ("encoder.0.mlp_outs", "Did you mean 'encoder.0.mlp_out'"),
        ("encoder.0.mlp_out.1", "has no heads; its axes are batch frame d_model"),
        ("encoder.hok_out.hook_sae_acts_post.u3", "no Whisper has the hook 'encoder.hok_out'"),
        ("foo", "no Whisper has the hook 'hook_foo'"),
        ("", "is no node"),
    ],
)
def test_what_names_no_hook_is_refused(text: str, message: str) -> None:
    with pytest.raises(AnalysisError, match=message):
        Node.parse(text)


@pytest.mark.parametrize(("start", "end"), [(2, 0.5), (-1, 0.5), (float("nan"), 1.0), (0, float("inf"))])
def test_seconds_that_are_none(start: float, end: float) -> None:
    with pytest.raises(AnalysisError, match="There are no frames from .*: expected 0 <= start <= end"):
        seconds(start, end)


Z, POST = "encoder.blocks.0.attn.hook_z", "encoder.blocks.0.mlp.hook_post"


@pytest.mark.parametrize(
    ("chosen", "overlap"),
    [
        ([Node(Z, 0), Node(Z)], True),
        ([Node(Z, 0), Node(Z, unit=3)], True),
        ([Node(Z, 0, span=(0, 5)), Node(Z, 1, span=(0, 5)), Node(Z, 0, span=(4, 6))], True),
        ([Node(Z, 0), Node(Z, 0, span=(7, 9))], True),
        ([Node(POST), *(Node(POST, unit=unit) for unit in range(20))], True),
        ([Node(Z, 0, span=(0, 5)), Node(Z, 0, span=(5, 6)), Node(Z, 1), Node(POST, span=(0, 5))], False),
        ([Node(Z, span=(0, 5)), Node(Z, 0, span=(5, 6))], False),
        ([Node(POST, unit=unit, span=span) for unit in range(20) for span in windows(0, 10, 3)], False),
    ],
)
def test_nodes_that_share_a_place(chosen: list[Node], overlap: bool) -> None:
    if not overlap:
        check_disjoint(chosen)
        return
    with pytest.raises(AnalysisError, match="overlap: give each place of an activation once"):
        check_disjoint(chosen)
