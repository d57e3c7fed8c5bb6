"""Edges: one part of the model as another one reads it, straight, with nothing in between.

    edges(model)                                             # all of them
    Edge(Node("encoder.blocks.0.hook_mlp_out"), Node("decoder.blocks.2.hook_cross_v_input", head=3))
    Edge.parse("decoder.1.cross.head.4 -> decoder.3.mlp_in") # as print(edge) writes it

A writer puts a vector into the residual stream: a head (before its output matrix), an MLP, the stream that a first
layer reads. A reader takes the stream in: queries, keys and values of a head, an MLP, and the decoder's last stream,
which the logits are made of. The stream is a sum, so a reader's input is the sum of what all writers before it wrote,
and an edge is one summand of one input. Keys and values of cross-attention read the encoder's writers, through its
final norm.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from hooked_whisper.analysis.checks import described, expect, expect_all
from hooked_whisper.analysis.nodes import NODES, Node, nodes
from hooked_whisper.errors import AnalysisError
from hooked_whisper.model import HookedWhisper

CROSS_FRAMES = ("hook_cross_k_input", "hook_cross_v_input")
_INPUTS = ("hook_q_input", "hook_k_input", "hook_v_input")
_ARROW = " -> "


EDGES = "edges, such as edges(model) or [Edge.parse('encoder.2.mlp_out -> decoder.0.cross_k_input.3')]"


@dataclass(frozen=True, order=True, repr=False)
class Edge:
    """What one reader takes in of one writer. Either may have a span: of positions written, of positions read."""

    writer: Node
    reader: Node

    def __post_init__(self) -> None:
        expect(self.writer, Node, "a node that writes")
        expect(self.reader, Node, "a node that reads")

    @property
    def kind(self) -> str:
        """The kinds of writer and reader, whatever the layers: what edges of one sort share."""
        return f"{self.writer.kind}{_ARROW}{self.reader.kind}"

    @property
    def across(self) -> bool:
        """Whether it goes from the encoder to keys or values of cross-attention."""
        return self.reader.hook.endswith(CROSS_FRAMES)

    def __str__(self) -> str:
        return f"{self.writer}{_ARROW}{self.reader}"

    def __repr__(self) -> str:
        return f"Edge({self})"

    @classmethod
    def parse(cls, text: str) -> Edge:
        """An edge from what `str` wrote.

        Raises:
            AnalysisError: not of that form, or a hook that no Whisper has.
        """
        expect(text, str, "an edge as text, such as 'encoder.2.mlp_out -> decoder.0.cross_k_input.3'")
        ends = text.split(_ARROW)
        if len(ends) != 2:
            raise AnalysisError(
                f"{text!r} is no edge: expected such as 'encoder.2.mlp_out -> decoder.0.cross_k_input.3'."
            )
        return cls(*map(Node.parse, ends))


# What experiments take one by one.
PartT = TypeVar("PartT", Node, Edge)


def parse_parts(texts: object) -> tuple[Any, ...]:
    """The nodes, or the edges, that `str` wrote, from a list of them in a file.

    Raises:
        AnalysisError: neither.
    """
    if not isinstance(texts, list | tuple) or not all(isinstance(text, str) for text in texts):
        raise AnalysisError(f"Expected names of nodes or edges, got {described(texts)}.")
    return tuple(Edge.parse(text) if _ARROW in text else Node.parse(text) for text in texts)


def writers(model: HookedWhisper) -> list[Node]:
    """What writes into the residual streams, in the model's order."""
    return nodes(model, ["embed", "head", "mlp"])


def readers(model: HookedWhisper) -> list[Node]:
    """What reads them: inputs of queries, keys and values by head, of MLPs, and the decoder's last stream."""
    found: list[Node] = []
    for stack in ("encoder", "decoder"):
        cfg = model.cfg.stack(stack)
        for layer in range(cfg.n_layers):
            leaves = [*_INPUTS, *(("hook_cross_q_input", *CROSS_FRAMES) if stack == "decoder" else ())]
            block = f"{stack}.blocks.{layer}"
            found += [Node(f"{block}.{leaf}", head) for leaf in leaves for head in range(cfg.n_heads)]
            found.append(Node(f"{block}.hook_mlp_in"))
    found.append(Node(f"decoder.blocks.{model.cfg.decoder.n_layers - 1}.hook_resid_post"))
    return found


def edges(
    model: HookedWhisper,
    *,
    writers: Sequence[Node] | None = None,
    readers: Sequence[Node] | None = None,
) -> list[Edge]:
    """All edges between some writers and some readers, reader by reader, in the order in which the model computes them.

    Args:
        writers: only from these; None takes all. They may have spans.
        readers: only to these; None takes all. They may have spans.

    Raises:
        AnalysisError: a node that does not write, or does not read.
    """
    order = _Order(model)
    sources = order.writers if writers is None else [order.writer(node) for node in expect_all(writers, Node, NODES)]
    ends = order.readers if readers is None else [order.reader(node) for node in expect_all(readers, Node, NODES)]
    return [Edge(writer, reader) for reader in ends for writer in sources if order.joins(writer, reader)]


def check_edges(model: HookedWhisper, chosen: Sequence[Edge]) -> list[Edge]:
    """The edges, if there are any, and the model has all of them.

    Raises:
        AnalysisError: none, one twice, or one that the model does not have; SAEs that are attached.
    """
    found: list[Edge] = expect_all(chosen, Edge, EDGES)
    if not found:
        raise AnalysisError("No edges were given.")
    if model.acts_to_saes:
        raise AnalysisError(
            f"SAEs are attached at {', '.join(model.acts_to_saes)}: what they write belongs to no head and no MLP, so "
            "inputs would not be the sum of their edges. Take them off with model.reset_saes()."
        )
    order = _Order(model)
    seen: set[Edge] = set()
    for edge in found:
        if not order.joins(order.writer(edge.writer), order.reader(edge.reader)):
            raise AnalysisError(
                f"There is no edge {edge}: the writer must come before the reader, in a stream that it reads."
            )
        if edge in seen:
            raise AnalysisError(f"{edge} is given twice.")
        seen.add(edge)
    return found


class _Order:
    """Who reads whom, in one model."""

    def __init__(self, model: HookedWhisper) -> None:
        self.writers, self.readers = writers(model), readers(model)
        self._writers, self._readers = set(self.writers), set(self.readers)
        self._place = {name: place for place, name in enumerate(model.hook_dict)}

    def writer(self, node: Node) -> Node:
        if node.part not in self._writers:
            raise AnalysisError(
                f"{node} writes no vector of its own into a residual stream: expected such as {self.writers[1]}, "
                f"{self.writers[-1]} or {self.writers[0]}."
            )
        return node

    def reader(self, node: Node) -> Node:
        if node.part not in self._readers:
            raise AnalysisError(
                f"{node} does not read a residual stream by itself: expected such as {self.readers[0]}, "
                f"{self.readers[-2]} or {self.readers[-1]}."
            )
        return node

    def joins(self, writer: Node, reader: Node) -> bool:
        return joined(self._place, writer.hook, reader.hook)


def joined(order: Mapping[str, int], writer: str, reader: str) -> bool:
    """Whether the reader at one hook takes in what is written at another; `order` is that of the model's hooks."""
    stack = "encoder" if reader.endswith(CROSS_FRAMES) else reader.partition(".")[0]
    return writer.startswith(f"{stack}.") and order[writer] <= order[reader]


def component(reader: Node) -> Node:
    """The head, MLP or logits that a reader is the input of."""
    block, _, leaf = reader.part.hook.rpartition(".")
    if leaf == "hook_mlp_in":
        return Node(f"{block}.hook_mlp_out")
    if leaf == "hook_resid_post":
        return Node("hook_logits")
    return replace(reader.part, hook=f"{block}.{'cross_attn' if '_cross_' in leaf else 'attn'}.hook_z")


@contextmanager
def split_inputs(model: HookedWhisper) -> Iterator[None]:
    """While it lasts, every reader has an input of its own."""
    before = (model.cfg.use_split_qkv_input, model.cfg.use_hook_mlp_in)
    model.set_use_split_qkv_input(True)
    model.set_use_hook_mlp_in(True)
    try:
        yield
    finally:
        model.set_use_split_qkv_input(before[0])
        model.set_use_hook_mlp_in(before[1])
