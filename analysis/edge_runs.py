"""Runs in which readers take in something else of some writers than what these write: the machinery under edges.

Every reader has an input of its own (TransformerLens's optional inputs), to which a run adds

    sum over its edges of weight * (what stands in for the writer - what the writer writes in this very run)

so weight 1 exchanges the edge, 0 leaves it. Keys and values of cross-attention read the encoder's last stream, with the
sum added, through its final norm.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hooked_whisper.analysis.contrast import ModelInput
from hooked_whisper.analysis.edges import CROSS_FRAMES, Edge, split_inputs
from hooked_whisper.analysis.nodes import Node, Span
from hooked_whisper.analysis.partial_runs import RecordedRun, Values, start_of
from hooked_whisper.components import see
from hooked_whisper.hooks import HookFunction
from hooked_whisper.model import HookedWhisper

# What stands in for a writer, given the activation of its hook: broadcasts to the writer's place in it.
Replacement = Callable[[Node, Tensor], "Tensor | float"]
_Source = tuple[str, "Span | None"]  # a hook of writers, and the span written


def encoder_stream(model: HookedWhisper) -> str:
    """The hook on the encoder's last stream, before its final norm."""
    return f"encoder.blocks.{model.cfg.encoder.n_layers - 1}.hook_resid_post"


class Rewiring:
    """Hooks that exchange edges, in each row of a batch as its weights say.

    Args:
        edges: all that are exchanged in any row.
        weights: [row edge]: 1 exchanges an edge, 0 leaves it; one row serves a batch of any size. May have a gradient.
        replacement: what stands in for a writer.
        known: activations of writers' hooks and of `encoder_stream` that were computed before the run begins, for its
            rows; the others are taken from the run.
    """

    def __init__(
        self,
        model: HookedWhisper,
        edges: Sequence[Edge],
        weights: Float[Tensor, "row edge"],
        replacement: Replacement,
        known: Callable[[str], Tensor] | None = None,
    ) -> None:
        self._model, self._replacement, self._known = model, replacement, known
        none = weights.new_zeros(len(weights), 1)
        self._weights = torch.cat([weights, none], dim=1)  # the last is for where there is no edge
        self._writers: dict[_Source, list[Node]] = {}
        fed: dict[str, dict[Span | None, dict[_Source, list[int]]]] = {}
        for number, edge in enumerate(edges):
            source = (edge.writer.hook, edge.writer.span)
            of_source = self._writers.setdefault(source, [])
            if edge.writer not in of_source:
                of_source.append(edge.writer)
            of_hook = fed.setdefault(edge.reader.hook, {})
            of_hook.setdefault(edge.reader.span, {}).setdefault(source, []).append(number)
        self._fed = {
            hook: {
                span: {source: self._layout(edges, numbers, len(edges)) for source, numbers in sources.items()}
                for span, sources in of_hook.items()
            }
            for hook, of_hook in fed.items()
        }
        self._seen: dict[str, Tensor] = {}
        self._moved: dict[_Source, Tensor] = {}

    def _layout(self, edges: Sequence[Edge], numbers: Sequence[int], missing: int) -> Int[Tensor, "writer reader"]:
        """For each head that writes and each that reads the number of their edge."""
        first = edges[numbers[0]]
        n_writers, n_readers = (
            1 if node.head is None else self._model.cfg.stack(node.stack).n_heads  # type: ignore[arg-type]
            for node in (first.writer, first.reader)
        )
        which = torch.full((n_writers, n_readers), missing)
        for number in numbers:
            which[edges[number].writer.head or 0, edges[number].reader.head or 0] = number
        return which.to(self._weights.device)

    @property
    def hooks(self) -> list[tuple[str, HookFunction]]:
        """For `model.hooks`, of a model with split inputs; one run at a time."""
        final = encoder_stream(self._model)
        sources = list(dict.fromkeys(hook for hook, _ in self._writers))
        across = [hook for hook in self._fed if hook.endswith(CROSS_FRAMES)]
        watched = [*sources, *([final] if across and final not in sources else [])]
        readers = [(hook, self._reroute_across if hook in across else self._reroute) for hook in self._fed]
        return [*((hook, self._keep) for hook in watched), *readers]

    def _keep(self, activation: Tensor, hook: Any) -> None:
        name = str(hook.name)
        self._seen[name] = activation
        for source in [source for source in self._moved if source[0] == name]:
            del self._moved[source]

    def _current(self, hook: str) -> Tensor:
        if hook not in self._seen:
            assert self._known is not None, hook
            self._seen[hook] = self._known(hook)
        return self._seen[hook]

    def _move(self, source: _Source) -> Float[Tensor, "row writer position d_model"]:
        """What each writer of a hook would add to the stream if it wrote what stands in for it."""
        if source not in self._moved:
            hook, _ = source
            current = self._current(hook)
            wanted = current.clone()
            for writer in self._writers[source]:
                writer.write(wanted, self._replacement(writer, current))
            moved = wanted - current
            if self._writers[source][0].head is None:
                moved = moved.unsqueeze(1)
            else:
                attention: Any = self._model.get_submodule(hook.rpartition(".")[0])
                moved = torch.einsum("rpwd,wdm->rwpm", moved, attention.W_O)
            self._moved[source] = moved
        return self._moved[source]

    def _added(self, layouts: Mapping[_Source, Tensor], n_rows: int) -> Float[Tensor, "row reader position d_model"]:
        """The sum over edges, for each head that reads."""
        total: Tensor | None = None
        for source, which in layouts.items():
            moved = self._move(source)
            part = torch.einsum("rwh,rwpm->rhpm", self._weights[:, which].expand(n_rows, -1, -1).to(moved), moved)
            total = part if total is None else total + part
        assert total is not None
        return total

    def _reroute(self, activation: Tensor, hook: Any) -> Tensor:
        edited = activation.clone()
        for span, layouts in self._fed[str(hook.name)].items():
            added = self._added(layouts, len(activation))
            added = added.transpose(1, 2) if activation.ndim == 4 else added[:, 0]
            place = Node(str(hook.name), span=span)
            place.write(edited, place.read(edited) + place.read(added))
        return edited

    def _reroute_across(self, activation: Tensor, hook: Any) -> Tensor:
        encoder, edited = self._model.encoder, activation.clone()
        stream = self._current(encoder_stream(self._model))
        beams = len(activation) // len(stream)  # in a search each clip stands in several rows
        for span, layouts in self._fed[str(hook.name)].items():
            at = Node(str(hook.name), span=span).index(4)[1]
            Node(str(hook.name), span=span).read(edited)  # says what is not there
            added = self._added(layouts, len(stream))
            weights = torch.cat([self._weights[:, which] for which in layouts.values()], dim=1)
            touched = (weights.detach() != 0).any(1).expand(len(stream), -1)
            for head in touched.any(0).nonzero()[:, 0].tolist():
                rows = touched[:, head].nonzero()[:, 0]
                # By head, so that hooks on the norm and on the encoder's output see what they always see.
                read = see(encoder.hook_out, encoder.ln_post(stream[rows] + added[rows, head]))
                places = (rows[:, None] * beams + torch.arange(beams, device=rows.device)).flatten()
                edited[places, at, head] = read.repeat_interleave(beams, dim=0)[:, at]
        return edited


class EdgeRuns:
    """A run of some inputs, and others that exchange edges and go on from its middle.

    Attributes:
        recorded: the run as it is.
    """

    def __init__(self, model: HookedWhisper, inputs: ModelInput, edges: Sequence[Edge]) -> None:
        self.model = model
        self._starts = {hook: start_of(model, hook) for hook in {edge.reader.hook for edge in edges}}
        hooks = {edge.writer.hook for edge in edges} | {encoder_stream(model)}
        seen, caching, _ = model.get_caching_hooks(sorted(hooks))
        with split_inputs(model), model.hooks(fwd_hooks=caching), model._guarded():
            self.recorded = RecordedRun(model, inputs, set(self._starts.values()))
        self._seen: dict[str, Tensor] = dict(seen)

    def written(self, chosen: Sequence[Node]) -> Values:
        """What these writers wrote in the run, [batch ...] each."""
        return {writer: writer.read(self._seen[writer.hook]) for writer in dict.fromkeys(chosen)}

    @torch.no_grad()
    def logits(
        self, sets: Sequence[Sequence[Edge]], values: Values, batch_size: int
    ) -> list[Float[Tensor, "batch pos vocab"]]:
        """For each set of edges the logits of the run in which all of them are exchanged.

        Args:
            values: what stands in for each writer, [batch ...], [1 ...] or a number.
            batch_size: rows (sets times clips) of one pass at most.
        """
        together = list(dict.fromkeys(edge for some in sets for edge in some))
        batch = len(self.recorded)
        if not together:
            return [self.recorded.logits] * len(sets)
        place = {edge: number for number, edge in enumerate(together)}
        start = min(self._starts[edge.reader.hook] for edge in together)
        device, dtype = self.recorded.encoder_out.device, self.recorded.encoder_out.dtype
        weights = torch.zeros(len(sets), len(together), dtype=dtype)
        for number, some in enumerate(sets):
            weights[number, [place[edge] for edge in some]] = 1
        weights = weights.to(device)
        numbers = torch.arange(len(sets) * batch, device=device)
        outputs = []
        with split_inputs(self.model):
            for rows in numbers.split(batch_size):
                clips = rows % batch

                def stand_in(writer: Node, _activation: Tensor, clips: Tensor = clips) -> Tensor | float:
                    value = values[writer]
                    return value[clips] if isinstance(value, Tensor) and len(value) > 1 else value

                def known(hook: str, clips: Tensor = clips) -> Tensor:
                    return self._seen[hook][clips]

                rewiring = Rewiring(self.model, together, weights[rows // batch], stand_in, known)
                with self.model.hooks(fwd_hooks=rewiring.hooks):
                    outputs.append(self.recorded.logits_from(start, clips))
        return list(torch.cat(outputs).split(batch))
