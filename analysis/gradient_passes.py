"""Forward and backward passes that score nodes by their gradients: the machinery under attribution.

Gradients are multiplied and summed up into scores as the backward pass brings them, so that none is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens.hook_points import HookPoint

from hooked_whisper.analysis.checks import expect_metric
from hooked_whisper.analysis.contrast import ModelInput
from hooked_whisper.analysis.metrics import Metric, check_metric
from hooked_whisper.analysis.nodes import Node, by_hook
from hooked_whisper.axes import axes
from hooked_whisper.errors import AnalysisError
from hooked_whisper.model import HookedWhisper

EMBED = "decoder.hook_embed"


@dataclass(frozen=True)
class ChunkMetric:
    """A metric of all clips, taken of a few of them: it is shown as many rows as it was made for."""

    metric: Metric
    rows: list[int]
    n_clips: int

    def __post_init__(self) -> None:
        expect_metric(self.metric)

    def __call__(self, logits: Float[Tensor, "chunk pos vocab"], *, gradient: bool = False) -> Float[Tensor, "chunk"]:
        """Values of the chunk's clips, from their logits."""
        if len(self.rows) < self.n_clips:
            place = torch.zeros(self.n_clips, dtype=torch.long)
            place[self.rows] = torch.arange(len(self.rows))
            logits = logits[place.to(logits.device)]
        values = check_metric(self.metric(logits), self.n_clips, gradient=gradient)
        return values[self.rows]


Scores = list[tuple[list[int], Float[Tensor, "chunk node"]]]  # places among all nodes, and the scores of these


@dataclass(frozen=True)
class Path:
    """The way from a base run to another, and scores of nodes from gradients on it.

    Attributes:
        base, other: inputs of the ends.
        nodes: all nodes.
        deltas: hook -> activation of the other run less that of the base run.
        embeds: token embeddings of base and other.
        frames: what the decoder reads of the base run's encoder.
        ends: the metric of base and other.
    """

    base: ModelInput
    other: ModelInput
    nodes: list[Node]
    deltas: dict[str, Tensor]
    embeds: tuple[Tensor, Tensor]
    frames: Tensor
    ends: tuple[Tensor, Tensor]

    @classmethod
    def between(
        cls, model: HookedWhisper, base: ModelInput, other: ModelInput, nodes: list[Node], metric: ChunkMetric
    ) -> Path:
        """Runs both ends once.

        Raises:
            AnalysisError: a hook without a batch axis, or a metric that is none.
        """
        deltas: dict[str, Tensor] = {}
        embeds: list[Tensor] = []

        def keep(activation: Tensor, hook: HookPoint) -> None:
            deltas[str(hook.name)] = activation.detach().clone()

        def subtract(activation: Tensor, hook: HookPoint) -> None:
            deltas[str(hook.name)].sub_(activation.detach())

        def embed(activation: Tensor, hook: HookPoint) -> None:
            embeds.append(activation.detach().clone())

        hooks = list(by_hook(nodes))
        for hook in hooks:
            if axes(hook)[0] != "batch":
                raise AnalysisError(f"{hook} holds [{' '.join(axes(hook))}], the same for all clips: it has no scores.")
        ends, frames = [], []
        for side, look in ((other, keep), (base, subtract)):
            with torch.no_grad(), model.hooks(fwd_hooks=[(EMBED, embed), *((hook, look) for hook in hooks)]):
                frames.append(model.encode_mel(side.mel))
                ends.append(metric(model.decode(side.tokens, frames[-1])))
        return cls(base, other, nodes, deltas, (embeds[1], embeds[0]), frames[1], (ends[1], ends[0]))

    def at_input(self, model: HookedWhisper, alpha: float, metric: ChunkMetric) -> Scores:
        """Scores of all nodes from the gradient at one input between base (0) and other (1)."""
        found: Scores = []

        def score(hook: str, gradient: Tensor) -> None:
            sums = NodeSums(hook, list(enumerate(self.nodes)))
            found.append((sums.places, sums(wide(self.deltas[hook]) * wide(gradient))))

        mel = torch.lerp(self.base.mel, self.other.mel, alpha)
        embed = torch.lerp(*self.embeds, alpha) if alpha else None
        self._backward(model, metric, list(self.deltas), score, mel=mel, embed=embed)
        return found

    def products(self, model: HookedWhisper, metric: ChunkMetric) -> dict[str, Tensor]:
        """Delta times the gradient at the base, entry by entry, for each hook."""
        found: dict[str, Tensor] = {}

        def multiply(hook: str, gradient: Tensor) -> None:
            found[hook] = wide(self.deltas[hook]) * wide(gradient)

        self._backward(model, metric, list(self.deltas), multiply, mel=self.base.mel)
        return found

    def gradients_at(
        self,
        model: HookedWhisper,
        alpha: float,
        metric: ChunkMetric,
        hooks: Sequence[str],
        see: Callable[[str, Tensor], None],
    ) -> None:
        """Shows `see(hook, gradient)` the gradients at one input between base (0) and other (1), as they come."""
        mel = torch.lerp(self.base.mel, self.other.mel, alpha)
        self._backward(model, metric, hooks, see, mel=mel, embed=torch.lerp(*self.embeds, alpha) if alpha else None)

    def moved(self, model: HookedWhisper, group: list[int], metric: ChunkMetric) -> Scores:
        """Scores of some nodes from their gradients in the base run, with each of them half-way to the other's."""
        placed = [(place, self.nodes[place]) for place in group]
        hooks = list(by_hook(node for _, node in placed))
        half = {hook: torch.zeros_like(self.deltas[hook]) for hook in hooks}
        for _, node in placed:
            node.write(half[node.hook], node.read(self.deltas[node.hook]) / 2)
        found: Scores = []

        def score(hook: str, gradient: Tensor) -> None:
            sums = NodeSums(hook, placed)
            found.append((sums.places, sums(wide(self.deltas[hook]) * wide(gradient))))

        mel = None if all(in_decoder(node) for _, node in placed) else self.base.mel
        self._backward(model, metric, hooks, score, mel=mel, half=half)
        return found

    def _backward(
        self,
        model: HookedWhisper,
        metric: ChunkMetric,
        hooks: Sequence[str],
        see: Callable[[str, Tensor], None],
        *,
        mel: Tensor | None,
        embed: Tensor | None = None,
        half: dict[str, Tensor] | None = None,
    ) -> None:
        """One forward and one backward pass; `see(hook, gradient)` as the gradients come."""
        leaves: list[Tensor] = []

        def start(_activation: Tensor, hook: HookPoint) -> Tensor:
            assert embed is not None
            return embed

        def listen(activation: Tensor, hook: HookPoint) -> Tensor:
            name = str(hook.name)
            seen = activation if half is None else activation + half[name]
            if not seen.requires_grad:  # the first on its way, or one that nothing before it reaches, as an SAE's error
                seen = seen.detach().requires_grad_()
                leaves.append(seen)
            seen.register_hook(lambda gradient: see(name, gradient))
            return seen

        listening: list[tuple[str, Any]] = [(hook, listen) for hook in hooks]
        if embed is not None:
            listening.insert(0, (EMBED, start))
        with torch.enable_grad(), model.hooks(fwd_hooks=[*listening, *pass_by_errors(model, leaves)]):
            frames = self.frames if mel is None else model.encode_mel(mel)
            value = metric(model.decode(self.base.tokens, frames), gradient=True).sum()
            torch.autograd.grad(value, leaves, allow_unused=True)


def in_decoder(node: Node) -> bool:
    """Whether the encoder does not depend on the node."""
    return node.hook.startswith("decoder.") or node.hook == "hook_logits"


def wide(x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """At least float32, so that products of small numbers don't vanish."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


@contextmanager
def frozen(model: HookedWhisper) -> Iterator[None]:
    """While it lasts, no weight of the model or of its SAEs asks for a gradient, so torch keeps nothing for one."""
    weights = [*model.parameters(), *(weight for sae in model.acts_to_saes.values() for weight in sae.parameters())]
    asking = [weight for weight in weights if weight.requires_grad]
    for weight in asking:
        weight.requires_grad_(False)
    try:
        yield
    finally:
        for weight in asking:
            weight.requires_grad_(True)


def pass_by_errors(model: HookedWhisper, leaves: list[Tensor]) -> list[tuple[str, Any]]:
    """Hooks that let gradients by SAEs that are attached with their error terms.

    With its error term an SAE changes nothing, so its derivative is the identity: what it gives back and the error,
    taken anew, add up to what it read. The gradient through its encoder is cut, and one around it put in its place.
    Where it is cut, the backward pass has another end, which comes into `leaves`.
    """
    found: list[tuple[str, Any]] = []
    for place in model.acts_to_saes:
        error, source = f"{place}.hook_sae_error", f"{place}.hook_sae_input"
        if error not in model.hook_names(error):
            continue  # no error term; or a transcoder, which gives back something else than what it read
        around: list[Tensor] = []

        def cut(activation: Tensor, hook: HookPoint, around: list[Tensor] = around) -> Tensor:
            around[:] = [activation]
            leaves.append(activation.detach().requires_grad_())
            return leaves[-1]

        def rejoin(activation: Tensor, hook: HookPoint, around: list[Tensor] = around) -> Tensor:
            source = around.pop()
            return activation + (source - source.detach()).reshape(activation.shape).to(activation.dtype)

        found += [(source, cut), (error, rejoin)]
    return found


class NodeSums:
    """Sums the activation of one hook up into its nodes, many nodes at the cost of a few.

    Attributes:
        places: which of all nodes these are, in the order of the sums.
    """

    def __init__(self, hook: str, placed: Sequence[tuple[int, Node]]) -> None:
        self.hook = hook
        self._groups: dict[tuple[bool, bool, bool], list[tuple[int, Node]]] = {}
        for place, node in placed:
            if node.hook == hook:
                kind = (node.head is not None, node.unit is not None, node.span is not None)
                self._groups.setdefault(kind, []).append((place, node))
        self.places = [place for group in self._groups.values() for place, _ in group]

    def __call__(self, product: Float[Tensor, "batch ..."]) -> Float[Tensor, "batch node"]:
        """Sums over each node's place, [batch node]."""
        parts = [self._of_kind(*kind, [node for _, node in group], product) for kind, group in self._groups.items()]
        return torch.cat(parts, dim=1)

    def _of_kind(
        self, by_head: bool, by_unit: bool, by_span: bool, group: list[Node], product: Tensor
    ) -> Float[Tensor, "batch node"]:
        names = list(axes(self.hook, product.ndim))
        position = group[0].position_axis
        for node in group:
            node.read(product)  # says what is not there
        kept = {"batch"} | ({"head"} if by_head else set()) | ({names[-1]} if by_unit else set())
        kept |= {position} if by_span else set()
        gone = [axis for axis, name in enumerate(names) if name not in kept]
        summed = product.sum(gone) if gone else product
        left = [name for name in names if name in kept]
        at: list[Any] = [slice(None)]
        spans: list[tuple[int, int]] = []
        if by_span:
            spans = list(dict.fromkeys(node.span for node in group if node.span is not None))
            inside = torch.zeros(len(spans), summed.shape[left.index(position)]).to(summed)
            for row, span in enumerate(spans):
                inside[row, slice(*span)] = 1
            summed = torch.tensordot(summed, inside.T, dims=([left.index(position)], [0]))  # type: ignore[arg-type]
            left = [name for name in left if name != position]
        if by_head:
            at.append([node.head for node in group])
        if by_unit:
            at.append([node.unit for node in group])
        if by_span:
            row_of = {span: row for row, span in enumerate(spans)}
            at.append([row_of[node.span] for node in group if node.span is not None])
        if len(at) == 1:
            return summed[:, None].expand(-1, len(group))
        return summed[tuple(at)]
