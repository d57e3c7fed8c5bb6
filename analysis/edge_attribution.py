"""Edge attribution: how much of an effect goes from one part of the model straight to another.

    found = attribute_edges(model, contrast, metric)
    found.top(20)                                            # (writer, reader, score), largest first
    found[writer, reader]                                    # of two nodes: [batch]

Edges are those of `hooked_whisper.analysis.edges`. With the residual stream a sum, an edge has the score

    score(writer, reader) = (what the writer writes in the other run - in the base run) . gradient at the reader's input

the first-order effect of patching the writer for that reader alone (EAP, Syed et al. 2023, arXiv:2310.10348; with the
gradient averaged over inputs, EAP-IG, Hanna et al. 2024, arXiv:2403.17806). The gradient is taken before the reader's
layer norm, whose derivative it includes. Keys and values of cross-attention read the encoder's writers through its
final norm, whose derivative at the same input stands between.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from hooked_whisper.analysis.attribution import Direction, sides
from hooked_whisper.analysis.checks import check_whole, largest
from hooked_whisper.analysis.contrast import Contrast, ModelInput
from hooked_whisper.analysis.edge_runs import encoder_stream
from hooked_whisper.analysis.edges import CROSS_FRAMES, Edge, check_edges, joined, readers, split_inputs, writers
from hooked_whisper.analysis.gradient_passes import ChunkMetric, Path, frozen, wide
from hooked_whisper.analysis.metrics import Metric
from hooked_whisper.analysis.nodes import Node
from hooked_whisper.components import see
from hooked_whisper.errors import AnalysisError
from hooked_whisper.model import HookedWhisper


@dataclass(frozen=True)
class EdgeAttribution:
    """Scores of the edges between writers and readers.

    Attributes:
        writers: what writes: heads (before their output matrix), MLPs, and the streams that the first layers read.
        readers: what reads: inputs of queries, keys, values (by head) and MLPs, and the decoder's last stream.
        scores: [writer reader batch], estimated change of the metric when the writer is patched for that reader alone;
            NaN where there is no edge.
    """

    writers: list[Node]
    readers: list[Node]
    scores: Float[Tensor, "writer reader batch"]

    def __getitem__(self, edge: Edge | tuple[Node, Node]) -> Float[Tensor, "batch"]:
        """The scores of one edge.

        Raises:
            AnalysisError: no such edge.
        """
        writer, reader = (edge.writer, edge.reader) if isinstance(edge, Edge) else edge
        if writer in self.writers and reader in self.readers:
            found = self.scores[self.writers.index(writer), self.readers.index(reader)]
            if not found.isnan().any():
                return found
        raise AnalysisError(f"There is no edge from {writer} to {reader}.")

    def of(self, edges: Sequence[Edge]) -> Float[Tensor, "edge batch"]:
        """The scores of some edges, as `Circuit.top` takes them (mean over clips first).

        Raises:
            AnalysisError: one that is not there.
        """
        row_of = {writer: row for row, writer in enumerate(self.writers)}
        column_of = {reader: column for column, reader in enumerate(self.readers)}
        unknown = next((edge for edge in edges if edge.writer not in row_of or edge.reader not in column_of), None)
        if unknown is None:
            rows, columns = [row_of[edge.writer] for edge in edges], [column_of[edge.reader] for edge in edges]
            found = self.scores[rows, columns]
            missing = found.isnan().any(1).nonzero()[:, 0].tolist()
            if not missing:
                return found
            unknown = edges[missing[0]]
        raise AnalysisError(f"There is no edge {unknown} here; edges with spans have no scores.")

    def top(self, n: int = 10) -> list[tuple[Node, Node, float]]:
        """The n edges with the largest effects of either sign, mean over the clips, largest first; all if n is more.

        Raises:
            AnalysisError: n below 1.
        """
        mean = self.scores.mean(2)
        rows, columns = (~mean.isnan()).nonzero(as_tuple=True)  # where there are edges
        values = mean[rows, columns]
        return [
            (self.writers[int(rows[at])], self.readers[int(columns[at])], float(values[at]))
            for at in largest(values, n)
        ]


def attribute_edges(
    model: HookedWhisper, contrast: Contrast, metric: Metric, *, steps: int = 1, direction: Direction = "denoise"
) -> EdgeAttribution:
    """Scores of all edges of both stacks, and of those across, from `steps` backward passes for each clip.

    Args:
        steps: 1 takes the gradient at the base (EAP); more take its mean over inputs between the two (EAP-IG).

    Raises:
        AnalysisError: fewer than one step, a metric without a gradient.
    """
    check_whole("steps", steps)
    base, other = sides(contrast, direction)
    sources, ends = writers(model), readers(model)
    check_edges(model, [Edge(sources[0], ends[0])])
    scores = torch.full((len(sources), len(ends), len(contrast)), torch.nan, dtype=torch.float64)
    alphas = [0.0] if steps == 1 else [(step + 0.5) / steps for step in range(steps)]
    rows_of, columns_of = _places(sources), _places(ends)
    order = {name: place for place, name in enumerate(model.hook_dict)}
    for source, rows in rows_of.items():
        for end, columns in columns_of.items():
            if joined(order, source, end):
                scores[rows, columns] = 0.0
    with frozen(model), split_inputs(model):
        for number in range(len(contrast)):
            judge = ChunkMetric(metric, [number], len(contrast))
            start, end = (
                ModelInput(side.mel[number : number + 1], side.tokens[number : number + 1]) for side in (base, other)
            )
            path = Path.between(model, start, end, sources, judge)
            streams: list[Tensor] = []

            def keep(activation: Tensor, hook: Any, streams: list[Tensor] = streams) -> None:
                streams[:] = [activation.detach()]

            def score(
                hook: str, gradient: Tensor, path: Path = path, clip: int = number, kept: list[Tensor] = streams
            ) -> None:
                by_head = gradient[0].transpose(0, 1) if gradient.ndim == 4 else gradient
                if hook.endswith(CROSS_FRAMES):
                    by_head = torch.cat([_through_norm(model, kept[0], part[None]) for part in by_head])
                for source, rows in rows_of.items():
                    if joined(order, source, hook):
                        delta = _projected(model, source, path.deltas[source])
                        found = torch.einsum("wpm,rpm->wr", wide(delta), wide(by_head)).double().cpu()
                        scores[rows, columns_of[hook], clip] += found / len(alphas)

            with model.hooks(fwd_hooks=[(encoder_stream(model), keep)]):
                for alpha in alphas:
                    path.gradients_at(model, alpha, judge, list(columns_of), score)
    return EdgeAttribution(sources, ends, scores)


def _places(chosen: Sequence[Node]) -> dict[str, slice]:
    """Where the nodes of each hook stand: one after the other, by head."""
    return {
        hook: slice(min(places), max(places) + 1)
        for hook in dict.fromkeys(node.hook for node in chosen)
        for places in [[place for place, node in enumerate(chosen) if node.hook == hook]]
    }


def _projected(model: HookedWhisper, hook: str, delta: Tensor) -> Float[Tensor, "writer position d_model"]:
    """What a hook's writers write into the stream, of one clip."""
    if not hook.endswith("hook_z"):
        return delta
    attention: Any = model.get_submodule(hook.rpartition(".")[0])
    return torch.einsum("phd,hdm->hpm", delta[0], attention.W_O)


def _through_norm(model: HookedWhisper, stream: Tensor, gradient: Tensor) -> Tensor:
    """A gradient at the encoder's output, taken back through its final norm."""
    x = stream.requires_grad_()
    with torch.enable_grad():
        out = see(model.encoder.hook_out, model.encoder.ln_post(x))
    return torch.autograd.grad(out, x, gradient)[0]
