"""Edge attribution: how much of an effect goes from one part of the model straight to another.

    found = attribute_edges(model, contrast, metric)
    found.top(20)                                            # (writer, reader, score), largest first
    found[writer, reader]                                    # of two nodes: [batch]

A writer puts a vector into the residual stream (a head, an MLP, the embeddings), a reader takes the stream in (queries,
keys and values of a head, an MLP, the logits). With the residual stream a sum, the edge between them has the score

    score(writer, reader) = (what the writer writes in the other run - in the base run) . gradient at the reader's input

the first-order effect of patching the writer for that reader alone (EAP, Syed et al. 2023, arXiv:2310.10348; with the
gradient averaged over inputs, EAP-IG, Hanna et al. 2024, arXiv:2403.17806). The gradient is taken before the reader's
layer norm, whose derivative it includes. Keys and values of cross-attention read the encoder's writers through its
final norm, whose derivative at the same input stands between.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from hooked_whisper.analysis.attribution import Direction, sides
from hooked_whisper.analysis.contrast import Contrast, ModelInput
from hooked_whisper.analysis.gradient_passes import ChunkMetric, Path, frozen, wide
from hooked_whisper.analysis.metrics import Metric
from hooked_whisper.analysis.nodes import Node, nodes
from hooked_whisper.errors import AnalysisError
from hooked_whisper.model import HookedWhisper

_INPUTS = ("hook_q_input", "hook_k_input", "hook_v_input")
_CROSS_FRAMES = ("hook_cross_k_input", "hook_cross_v_input")


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

    def __getitem__(self, edge: tuple[Node, Node]) -> Float[Tensor, "batch"]:
        """The scores of one edge.

        Raises:
            AnalysisError: no such edge.
        """
        writer, reader = edge
        if writer in self.writers and reader in self.readers:
            found = self.scores[self.writers.index(writer), self.readers.index(reader)]
            if not found.isnan().any():
                return found
        raise AnalysisError(f"There is no edge from {writer} to {reader}.")

    def top(self, n: int) -> list[tuple[Node, Node, float]]:
        """The n edges with the largest effects of either sign, mean over the clips."""
        mean = self.scores.mean(2).nan_to_num(0.0).flatten()
        order = mean.abs().argsort(descending=True, stable=True)[:n].tolist()
        width = len(self.readers)
        return [(self.writers[at // width], self.readers[at % width], float(mean[at])) for at in order]


def attribute_edges(
    model: HookedWhisper, contrast: Contrast, metric: Metric, *, steps: int = 1, direction: Direction = "denoise"
) -> EdgeAttribution:
    """Scores of all edges of both stacks, and of those across, from `steps` backward passes for each clip.

    Args:
        steps: 1 takes the gradient at the base (EAP); more take its mean over inputs between the two (EAP-IG).

    Raises:
        AnalysisError: fewer than one step, a metric without a gradient.
    """
    if steps < 1:
        raise AnalysisError(f"steps={steps}: expected at least 1.")
    base, other = sides(contrast, direction)
    writers = nodes(model, ["embed", "head", "mlp"])
    readers = _readers(model)
    scores = torch.full((len(writers), len(readers), len(contrast)), torch.nan, dtype=torch.float64)
    alphas = [0.0] if steps == 1 else [(step + 0.5) / steps for step in range(steps)]
    row_of = {writer: row for row, writer in enumerate(writers)}
    column_of = {reader: column for column, reader in enumerate(readers)}
    order = {name: place for place, name in enumerate(model.hook_dict)}
    final = f"encoder.blocks.{model.cfg.encoder.n_layers - 1}.hook_resid_post"
    with frozen(model), _split_inputs(model):
        for number in range(len(contrast)):
            judge = ChunkMetric(metric, [number], len(contrast))
            start, end = (
                ModelInput(side.mel[number : number + 1], side.tokens[number : number + 1]) for side in (base, other)
            )
            path = Path.between(model, start, end, writers, judge)
            streams: list[Tensor] = []

            def keep(activation: Tensor, hook: Any, streams: list[Tensor] = streams) -> None:
                streams[:] = [activation.detach()]

            def score(
                hook: str, gradient: Tensor, path: Path = path, clip: int = number, kept: list[Tensor] = streams
            ) -> None:
                across = hook.endswith(_CROSS_FRAMES)
                by_head = gradient.unbind(2) if gradient.ndim == 4 else [gradient]
                for head, part in enumerate(by_head):
                    reader = Node(hook, head) if gradient.ndim == 4 else Node(hook)
                    if across:
                        part = _through_norm(model, kept[0], part)
                    for writer in writers:
                        if writer.stack != ("encoder" if across else reader.stack) or order[writer.hook] > order[hook]:
                            continue
                        cell = scores[row_of[writer], column_of[reader]]
                        cell[clip] = cell[clip].nan_to_num(0.0) + _edge(model, writer, path.deltas, part) / len(alphas)

            with model.hooks(fwd_hooks=[(final, keep)]):
                for alpha in alphas:
                    path.gradients_at(model, alpha, judge, list(dict.fromkeys(node.hook for node in readers)), score)
    return EdgeAttribution(writers, readers, scores)


def _edge(model: HookedWhisper, writer: Node, deltas: dict[str, Tensor], gradient: Tensor) -> float:
    delta = writer.read(deltas[writer.hook])
    if writer.head is not None:
        attention: Any = model.get_submodule(writer.hook.rpartition(".")[0])
        delta = delta @ attention.W_O[writer.head]
    return float((wide(delta) * wide(gradient)).sum())


def _through_norm(model: HookedWhisper, stream: Tensor, gradient: Tensor) -> Tensor:
    """A gradient at the encoder's output, taken back through its final norm."""
    x = stream.requires_grad_()
    with torch.enable_grad():
        norm = model.encoder.ln_post
        out = torch.nn.functional.layer_norm(x, norm.w.shape, norm.w, norm.b, norm.eps)
    return torch.autograd.grad(out, x, gradient)[0]


def _readers(model: HookedWhisper) -> list[Node]:
    found: list[Node] = []
    for stack in ("encoder", "decoder"):
        cfg = model.cfg.stack(stack)
        for layer in range(cfg.n_layers):
            leaves = [*_INPUTS, *(("hook_cross_q_input", *_CROSS_FRAMES) if stack == "decoder" else ())]
            block = f"{stack}.blocks.{layer}"
            found += [Node(f"{block}.{leaf}", head) for leaf in leaves for head in range(cfg.n_heads)]
            found.append(Node(f"{block}.hook_mlp_in"))
    found.append(Node(f"decoder.blocks.{model.cfg.decoder.n_layers - 1}.hook_resid_post"))
    return found


@contextmanager
def _split_inputs(model: HookedWhisper) -> Iterator[None]:
    """While it lasts, every reader has an input of its own."""
    before = (model.cfg.use_split_qkv_input, model.cfg.use_hook_mlp_in)
    model.set_use_split_qkv_input(True)
    model.set_use_hook_mlp_in(True)
    try:
        yield
    finally:
        model.set_use_split_qkv_input(before[0])
        model.set_use_hook_mlp_in(before[1])
