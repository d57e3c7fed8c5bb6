"""Parts of the model that an experiment takes one by one: a head, an MLP, a neuron, a stretch of a residual stream.

    for node in nodes(model, ["head", "mlp"]): ...                       # every head of all three attentions, every MLP
    nodes(model, ["head"], spans={"frame": windows(0, 500, 50)})         # each head, second by second
    Node.parse("decoder.3.cross.head.1")                                 # as print(node) writes it

A node is a hook and a place in its activation: an entry of the head axis, an entry of the last axis (a neuron, a latent
of an SAE), a span of positions. `read` and `write` take it from and put it into an activation.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import combinations, pairwise
from typing import Any, Literal

import torch
from torch import Tensor

from hooked_whisper.analysis.checks import check_whole, expect, expect_all
from hooked_whisper.axes import axes
from hooked_whisper.config import HookedWhisperConfig, StackConfig
from hooked_whisper.errors import AnalysisError, did_you_mean
from hooked_whisper.mel import FRAMES_PER_SECOND
from hooked_whisper.model import HookedWhisper
from hooked_whisper.spliced_sae import SAE_PREFIX

Span = tuple[int, int]
PositionAxis = Literal["frame", "pos"]

# Name of a part -> the leaf of its hook, in a block or in an attention of it.
_IN_BLOCK = {
    "resid": "hook_resid_post",
    "resid_pre": "hook_resid_pre",
    "mlp": "hook_mlp_out",
    "neuron": "mlp.hook_post",
}
_OF_ATTENTION = {"head": "hook_z", "q": "hook_q", "k": "hook_k", "v": "hook_v"}
_OUT = {"attn": "hook_attn_out", "cross": "hook_cross_attn_out"}
PARTS = (*_OF_ATTENTION, "attn", "mlp", "neuron", "resid", "resid_pre", "embed")
_POSITIONS = ("frame", "pos", "key_frame", "key_pos")
_WRITTEN = re.compile(r"(?P<place>[^\[\]]+?)(?:\.(?P<head>\d+))?(?:\.u(?P<unit>\d+))?(?:\[(?P<a>\d+):(?P<b>\d+)\])?")


NODES = "nodes, such as nodes(model) or [Node.parse('decoder.3.cross.head.1')]"
_WRITTEN_AS = "expected such as 'decoder.3.cross.head.1' or 'encoder.2.mlp_out[50:100]'"


@cache
def _hook_kinds() -> frozenset[str]:
    """The hooks that a Whisper has, whatever the layer."""
    one = StackConfig(n_layers=1, n_heads=1, d_model=2, d_mlp=2, n_ctx=2)
    cfg = HookedWhisperConfig(encoder=one, decoder=one, n_mels=2, d_vocab=2, model_name="one layer")
    with torch.device("meta"):  # names need no weights
        return frozenset(map(_kind, HookedWhisper(cfg).hook_dict))


def _kind(hook: str) -> str:
    return re.sub(r"\.blocks\.\d+\.", ".blocks.*.", hook)


def _check_hook(hook: str, written: str) -> None:
    """Raises AnalysisError for a hook that no Whisper has: SAEs may be anywhere, so theirs are known by their place."""
    place = hook.partition(SAE_PREFIX)[0]
    if _kind(place) in _hook_kinds():
        return
    layer = re.search(r"\.(\d+)\.", place)
    known = [kind.replace("*", layer[1] if layer else "0") for kind in _hook_kinds()]
    near = did_you_mean(_short_name(place), sorted(map(_short_name, known)), n=1)
    raise AnalysisError(f"{written!r} is no node: no Whisper has the hook {place!r}; {_WRITTEN_AS}.{near}")


def _short_name(hook: str) -> str:
    if SAE_PREFIX in hook:
        return hook
    text = hook.replace("cross_attn.hook_z", "cross.head").replace("attn.hook_z", "self.head")
    return text.replace(".blocks.", ".").replace("hook_", "")


@dataclass(frozen=True, order=True, repr=False)
class Node:
    """A place in the activation of a hook.

    Attributes:
        hook: full name of the hook.
        head: which head; None takes all, or where there are none.
        unit: which entry of the last axis: a neuron, a latent; None takes all.
        span: positions [start, end) on the axis of frames or tokens; None takes all. The keys of a pattern are no span.
    """

    hook: str
    head: int | None = None
    unit: int | None = None
    span: Span | None = None

    def __post_init__(self) -> None:
        expect(self.hook, str, "the name of a hook, such as 'encoder.blocks.0.hook_mlp_out'")
        names = axes(self.hook)
        for what, number in (("head", self.head), ("unit", self.unit)):
            if number is not None:
                check_whole(f"{what} of {self.hook}", number, 0)
        if self.head is not None and "head" not in names:
            _check_hook(self.hook, self.hook)
            raise AnalysisError(f"{self.hook} has no heads; its axes are {' '.join(names)}.")
        if self.span is not None:
            object.__setattr__(self, "span", _checked_span(self.span, self.hook))

    @property
    def stack(self) -> str:
        """ "encoder", "decoder", or "" for what belongs to neither."""
        found = self.hook.partition(".")[0]
        return found if found in ("encoder", "decoder") else ""

    @property
    def layer(self) -> int | None:
        """The layer, or None outside the blocks."""
        found = re.match(r"(?:encoder|decoder)\.blocks\.(\d+)\.", self.hook)
        return None if found is None else int(found[1])

    @property
    def kind(self) -> str:
        """The hook whatever the layer, "decoder.blocks.*.cross_attn.hook_z": what nodes of one sort share."""
        return _kind(self.hook)

    @property
    def position_axis(self) -> str:
        """ "frame" or "pos" (or the like as keys): what a span counts."""
        return next(name for name in axes(self.hook) if name in _POSITIONS or name == "mel_frame")

    @property
    def part(self) -> Node:
        """The same without its span."""
        return replace(self, span=None)

    def index(self, ndim: int) -> tuple[int | slice, ...]:
        """What to index an activation with."""
        names = axes(self.hook, ndim)
        at: list[int | slice] = [slice(None)] * len(names)
        if self.span is not None:
            at[names.index(self.position_axis)] = slice(*self.span)
        if self.head is not None:
            at[names.index("head")] = self.head
        if self.unit is not None:
            at[-1] = self.unit
        return tuple(at)

    def read(self, activation: Tensor) -> Tensor:
        """The node's part of an activation, as a view."""
        self._check(activation)
        return activation[self.index(activation.ndim)]

    def write(self, activation: Tensor, value: Tensor | float) -> None:
        """Puts a value into the node's place, in the activation itself."""
        self._check(activation)
        activation[self.index(activation.ndim)] = value

    def _check(self, activation: Tensor) -> None:
        names = axes(self.hook, activation.ndim)
        limits = {"head": self.head, names[-1]: self.unit}
        if self.span is not None:
            limits[self.position_axis] = self.span[1] - 1
        for name, wanted in limits.items():
            if wanted is not None and wanted >= activation.shape[names.index(name)]:
                size = activation.shape[names.index(name)]
                raise AnalysisError(f"{self}: there is no {name} {wanted}; {self.hook} has {size}.")

    def __str__(self) -> str:
        text = _short_name(self.hook)
        text += "" if self.head is None else f".{self.head}"
        text += "" if self.unit is None else f".u{self.unit}"
        return text if self.span is None else f"{text}[{self.span[0]}:{self.span[1]}]"

    def __repr__(self) -> str:
        return f"Node({self})"

    @classmethod
    def parse(cls, text: str) -> Node:
        """A node from what `str` wrote.

        Raises:
            AnalysisError: not of that form, or a hook that no Whisper has.
        """
        expect(text, str, "a node as text, such as 'decoder.3.cross.head.1'")
        found = _WRITTEN.fullmatch(text)
        if found is None:
            raise AnalysisError(f"{text!r} is no node: {_WRITTEN_AS}.")
        hook = found["place"]
        if "hook_" not in hook:
            place = re.sub(r"^(encoder|decoder)\.(\d+)\.", r"\1.blocks.\2.", hook)
            place = place.replace("cross.head", "cross_attn.z").replace("self.head", "attn.z")
            stem, _, leaf = place.rpartition(".")
            hook = f"{stem}.hook_{leaf}" if stem else f"hook_{leaf}"
        _check_hook(hook, text)
        number = {name: None if found[name] is None else int(found[name]) for name in ("head", "unit", "a", "b")}
        span = None if number["a"] is None or number["b"] is None else (number["a"], number["b"])
        return cls(hook, number["head"], number["unit"], span)


def nodes(
    model: HookedWhisper,
    parts: str | Sequence[str] = ("head", "mlp"),
    *,
    stacks: Sequence[str] = ("encoder", "decoder"),
    layers: Iterable[int] | None = None,
    spans: Mapping[str, Sequence[Span]] | None = None,
) -> list[Node]:
    """All nodes of some kinds, in the order in which the model computes them.

    Args:
        parts: of "head" (what each head writes before its output matrix, of self- and cross-attention), "q", "k", "v"
            (of each head), "attn" (whole attention outputs), "mlp", "neuron", "resid" (after each layer), "resid_pre",
            "embed" (what the first layer reads).
        stacks: "encoder", "decoder" or both.
        layers: only these.
        spans: for the axes "frame" and "pos", the stretches to take one by one; an axis left out is taken whole.

    Raises:
        AnalysisError: an unknown part, stack or axis, or a layer that neither stack has.
    """
    wanted = [parts] if isinstance(parts, str) else list(parts)
    _check_names("part", wanted, PARTS)
    _check_names("stack", stacks, ("encoder", "decoder"))
    _check_names("axis", spans or {}, ("frame", "pos"))
    chosen = (
        None
        if layers is None
        else sorted(set(expect_all(layers, int, "numbers of layers for layers=, such as layers=[5]")))
    )
    depth = max(model.cfg.encoder.n_layers, model.cfg.decoder.n_layers)
    if chosen is not None and (not chosen or not 0 <= chosen[0] <= chosen[-1] < depth):
        raise AnalysisError(f"Layers {chosen} are not all among 0 to {depth - 1}.")
    found: list[Node] = []
    for stack in ("encoder", "decoder"):
        if stack not in stacks:
            continue
        cfg = model.cfg.encoder if stack == "encoder" else model.cfg.decoder
        if "embed" in wanted:
            found.append(Node(f"{stack}.blocks.0.hook_resid_pre"))
        for layer in range(cfg.n_layers):
            if chosen is None or layer in chosen:
                for part in wanted:
                    found += _of_block(f"{stack}.blocks.{layer}", part, cfg.n_heads, cfg.d_mlp)
    order = {name: place for place, name in enumerate(model.hook_dict)}
    found.sort(key=lambda node: order[node.hook])
    return [
        split for node in found for split in _split(node, (spans or {}).get(node.position_axis.removeprefix("key_")))
    ]


def windows(start: int, end: int, length: int) -> list[Span]:
    """Spans of `length` that cover [start, end); the last may be shorter.

    Raises:
        AnalysisError: nothing to cover, or a length below 1.
    """
    if length < 1 or not 0 <= start < end:
        raise AnalysisError(f"No windows of {length} from {start} to {end}: expected length >= 1 and 0 <= start < end.")
    return [(at, min(at + length, end)) for at in range(start, end, length)]


def seconds(start: float, end: float) -> Span:
    """The span of encoder frames that hears [start, end) seconds, at least one frame.

    Raises:
        AnalysisError: a beginning before 0, or an end before it.
    """
    if not 0 <= start <= end < float("inf"):
        raise AnalysisError(f"There are no frames from {start} to {end} s: expected 0 <= start <= end.")
    first = int(start * FRAMES_PER_SECOND)
    return (first, max(first + 1, round(end * FRAMES_PER_SECOND)))


def by_hook(chosen: Iterable[Node]) -> dict[str, list[Node]]:
    """Nodes gathered by hook, both in the order given."""
    found: dict[str, list[Node]] = {}
    for node in chosen:
        found.setdefault(node.hook, []).append(node)
    return found


def check_nodes(model: HookedWhisper, chosen: Sequence[Node]) -> list[Node]:
    """The nodes, if there are any and the model has the hooks and heads of all.

    Raises:
        AnalysisError: none, twice the same, a head that is not there, or what is no node. HookNameError: a hook that
            the model does not have.
    """
    found: list[Node] = expect_all(chosen, Node, NODES)
    if not found:
        raise AnalysisError("No nodes were given.")
    model.resolve_names(sorted({node.hook for node in found}))
    if len(set(found)) < len(found):
        twice = next(node for node in found if found.count(node) > 1)
        raise AnalysisError(f"{twice} is given twice.")
    for node in found:
        n_heads = 0 if node.head is None else model.cfg.stack(node.stack).n_heads  # type: ignore[arg-type]
        if node.head is not None and node.head >= n_heads:
            raise AnalysisError(f"{node}: there is no head {node.head}; {node.hook} has {n_heads}.")
    return found


def check_disjoint(chosen: Sequence[Node]) -> None:
    """Raises AnalysisError for two nodes that share a place in an activation, such as a head and all heads."""
    for here in by_hook(chosen).values():
        groups: dict[Any, list[Node]] = {}
        # Where all nodes name a head (or unit), or none does, only those of one head can meet: there may be thousands.
        alike = len({(node.head is None, node.unit is None) for node in here}) == 1
        for node in here:
            groups.setdefault((node.head, node.unit) if alike else None, []).append(node)
        for group in groups.values():
            group.sort(key=lambda node: (-1, -1) if node.span is None else node.span)
            for one, other in pairwise(group) if alike else combinations(group, 2):
                if _meet(one, other):
                    raise AnalysisError(f"{one} and {other} overlap: give each place of an activation once.")


def _meet(one: Node, other: Node) -> bool:
    """Whether two nodes of a hook share a place."""
    for a, b in ((one.head, other.head), (one.unit, other.unit)):
        if a is not None and b is not None and a != b:
            return False
    return one.span is None or other.span is None or max(one.span[0], other.span[0]) < min(one.span[1], other.span[1])


def _checked_span(span: object, hook: str) -> Span:
    two = isinstance(span, tuple | list) and len(span) == 2 and all(isinstance(at, int) for at in span)
    if not two:
        raise AnalysisError(
            f"Span {span!r} of {hook}: expected (start, end), two whole numbers; seconds(0.5, 1.0) gives frames."
        )
    start, end = span  # type: ignore[misc]
    if not 0 <= start < end:
        raise AnalysisError(f"Span {span} of {hook} is empty: expected start < end, both from 0.")
    return start, end


def _of_block(block: str, part: str, n_heads: int, d_mlp: int) -> list[Node]:
    attentions = ("attn", "cross_attn") if block.startswith("decoder") else ("attn",)
    if part in _OF_ATTENTION:
        hooks = [f"{block}.{attention}.{_OF_ATTENTION[part]}" for attention in attentions]
        return [Node(hook, head=head) for hook in hooks for head in range(n_heads)]
    if part == "attn":
        return [Node(f"{block}.{leaf}") for leaf in list(_OUT.values())[: len(attentions)]]
    if part == "embed":
        return []
    hook = f"{block}.{_IN_BLOCK[part]}"
    return [Node(hook, unit=unit) for unit in range(d_mlp)] if part == "neuron" else [Node(hook)]


def _split(node: Node, spans: Sequence[Span] | None) -> list[Node]:
    return [node] if spans is None else [replace(node, span=span) for span in spans]


def _check_names(what: str, given: Iterable[str], known: Sequence[str]) -> None:
    for name in given:
        if name not in known:
            raise AnalysisError(f"Unknown {what} {name!r}: expected {', '.join(known)}.{did_you_mean(name, known)}")
