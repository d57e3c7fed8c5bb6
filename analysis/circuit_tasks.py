"""What circuits are measured by: the metric of the clean run with everything outside a circuit ablated.

    task = CircuitTask(model, contrast, nodes(model), metric)
    task.faithfulness([circuit.nodes])

A node outside is replaced wherever it is read. An edge outside is replaced for its reader alone, which takes in what
stands in for the writer, and not what the writer writes in the run of the circuit.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Generic, Literal

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from hooked_whisper.analysis.ablation import NodeStatistics, ablation_values, check_ablation
from hooked_whisper.analysis.checks import CONTRAST, check_whole, expect, expect_all, expect_metric
from hooked_whisper.analysis.contrast import Contrast, ModelInput
from hooked_whisper.analysis.edge_runs import EdgeRuns
from hooked_whisper.analysis.edges import Edge, PartT, check_edges
from hooked_whisper.analysis.metrics import Metric, check_metric
from hooked_whisper.analysis.nodes import NODES, Node, check_disjoint, check_nodes
from hooked_whisper.analysis.partial_runs import RecordedRun, Start, Values, check_replaceable, run_sets, start_of
from hooked_whisper.errors import AnalysisError
from hooked_whisper.model import HookedWhisper

OUTSIDE = ("corrupted", "mean", "resample", "zero")
if TYPE_CHECKING:
    Outside = Literal["corrupted", "mean", "resample", "zero"]
else:
    Outside = str  # checked here, with a message that says more than a type checker's
TASK = "a task, such as CircuitTask(model, contrast, universe, metric)"
CIRCUITS = "circuits, each a list of nodes, such as [circuit.nodes]"
_SAME = 1e-9


class CircuitTask(Generic[PartT]):
    """What circuits are measured by: a model, clips, a metric, and what stands in for the nodes left out.

    Args:
        contrast: circuits run on its clean side.
        universe: all nodes, or all edges, that a circuit may hold; whatever is not among them stays as it is.
        metric: of the logits.
        by: what is put into nodes outside, or what readers of edges outside take in: the activation in the "corrupted"
            run, the "mean", a "resample" of another clip, or "zero".
        statistics: for "mean" and "resample"; see `node_statistics`; of edges, those of their writers.
        seed: of the draws of "resample".
        batch_size: rows (circuits times clips) of one pass at most.

    Attributes:
        whole: the metric of the model as it is, [batch].
        empty: the metric with every node of the universe ablated, [batch].

    Raises:
        AnalysisError: no nodes, a node twice, nodes that overlap, nodes and edges together, an unknown way, or a metric
            that ablating the whole universe leaves as it is.
    """

    @torch.no_grad()
    def __init__(
        self,
        model: HookedWhisper,
        contrast: Contrast,
        universe: Sequence[PartT],
        metric: Metric,
        *,
        by: Outside = "corrupted",
        statistics: NodeStatistics | None = None,
        seed: int = 0,
        batch_size: int = 8,
    ) -> None:
        if by not in OUTSIDE:
            raise AnalysisError(f"Unknown ablation {by!r}: expected {', '.join(OUTSIDE)}.")
        if by in ("mean", "resample") and statistics is None:
            raise AnalysisError(f"by={by!r} needs statistics=: node_statistics(model, corpus, nodes) makes them.")
        self.model, self.metric, self.batch_size = model, metric, batch_size
        expect(contrast, Contrast, CONTRAST)
        expect_metric(metric)
        check_whole("batch_size", batch_size)
        self.universe: tuple[PartT, ...] = tuple(expect_all(universe, (Node, Edge), NODES))
        check_one_sort(self.universe)
        runs: Any = _EdgeCircuits if any(isinstance(part, Edge) for part in self.universe) else _NodeCircuits
        self._runs = runs(model, contrast, self.universe, by, statistics, seed)
        self._clean: RecordedRun = self._runs.clean
        self.whole = check_metric(metric(self._clean.logits), len(contrast)).double().cpu()
        self.empty = self.metrics([()])[0]
        difference, scale = float((self.whole - self.empty).sum()), float(self.whole.abs().sum())
        if abs(difference) <= _SAME * scale:
            raise AnalysisError(
                f"Ablating the whole universe of {len(self.universe)} nodes leaves the metric as it is "
                f"({float(self.whole.mean()):.6g}): choose nodes or a metric for which it matters."
            )

    @torch.no_grad()
    def metrics(
        self, circuits: Sequence[Sequence[PartT]], *, progress: bool | None = False
    ) -> Float[Tensor, "circuit batch"]:
        """The metric with everything outside each circuit ablated.

        Raises:
            AnalysisError: what is no list of circuits, each a list of nodes.
        """
        for circuit in expect_all(circuits, Sequence, CIRCUITS):
            expect_all(circuit, (Node, Edge), CIRCUITS)
        found = []
        size = max(1, self.batch_size // len(self._clean))
        hidden = None if progress is None else not progress
        with tqdm(total=len(circuits), desc="circuits", unit="circuit", disable=hidden) as bar:
            for at in range(0, len(circuits), size):
                kept = [set(circuit) for circuit in circuits[at : at + size]]
                outside = [[node for node in self.universe if node not in circuit] for circuit in kept]
                outputs = self._runs.logits(outside, self.batch_size)
                found += [check_metric(self.metric(logits), len(self._clean)).double().cpu() for logits in outputs]
                bar.update(len(kept))
        return torch.stack(found)

    def faithfulness(
        self, circuits: Sequence[Sequence[PartT]], *, progress: bool | None = False
    ) -> Float[Tensor, " circuit"]:
        """Of each circuit, over all clips together: 0 as good as nothing, 1 as good as the whole model."""
        return self.share(self.metrics(circuits, progress=progress))

    @property
    def clean(self) -> ModelInput:
        """What circuits run on."""
        return self._clean.inputs

    @property
    def encoder_out(self) -> Float[Tensor, "batch frame d_model"]:
        """What the encoder makes of it, as it is."""
        return self._clean.encoder_out

    def ablated(self, node: Node) -> Tensor | float:
        """What stands in a node outside a circuit, or in for an edge's writer; broadcasts to its activation."""
        return self._runs.values[node]

    def lost(self, logits: Float[Tensor, "batch pos vocab"]) -> Float[Tensor, " batch"]:
        """With a gradient: for each clip, the share of the metric that is lost, 0 for the whole model, 1 for nothing.

        Clips for which ablating the whole universe changes little count little: each is measured against the mean.

        Raises:
            AnalysisError: a metric without a gradient.
        """
        found = check_metric(self.metric(logits), len(self.whole), gradient=True)
        scale = (self.whole - self.empty).mean()
        return (self.whole.to(found) - found) / scale.to(found)

    def share(self, metrics: Float[Tensor, "circuit batch"]) -> Float[Tensor, " circuit"]:
        """Metrics as shares of the way from the empty circuit to the whole model."""
        return (metrics - self.empty).sum(1) / (self.whole - self.empty).sum()


class _NodeCircuits:
    """Runs of the clean side with sets of nodes ablated."""

    def __init__(
        self,
        model: HookedWhisper,
        contrast: Contrast,
        universe: Sequence[Node],
        by: Outside,
        statistics: NodeStatistics | None,
        seed: int,
    ) -> None:
        check_replaceable(model, check_nodes(model, universe))
        check_disjoint(universe)
        self._starts = {node: start_of(model, node.hook) for node in universe}
        starts = set(self._starts.values())
        self.clean = RecordedRun(model, contrast.clean, starts)
        if by == "corrupted":
            self.values = _activations(RecordedRun(model, contrast.corrupted, starts), self._starts)
        else:
            self.values = ablation_values(contrast.clean, universe, by, statistics, seed)

    def logits(self, outside: Sequence[Sequence[Node]], batch_size: int) -> list[Tensor]:
        starts = [self._starts[node] for nodes in outside for node in nodes]
        if not starts:
            return [self.clean.logits] * len(outside)
        return run_sets(self.clean, min(starts), outside, self.values, batch_size)


class _EdgeCircuits:
    """Runs of the clean side with sets of edges exchanged."""

    def __init__(
        self,
        model: HookedWhisper,
        contrast: Contrast,
        universe: Sequence[Edge],
        by: Outside,
        statistics: NodeStatistics | None,
        seed: int,
    ) -> None:
        chosen = check_edges(model, universe)
        writers = list(dict.fromkeys(edge.writer for edge in chosen))
        self._runs = EdgeRuns(model, contrast.clean, chosen)
        self.clean = self._runs.recorded
        if by == "corrupted":
            self.values = EdgeRuns(model, contrast.corrupted, chosen).written(writers)
        else:
            check_ablation(model, writers, by, statistics)
            self.values = ablation_values(contrast.clean, writers, by, statistics, seed)

    def logits(self, outside: Sequence[Sequence[Edge]], batch_size: int) -> list[Tensor]:
        return self._runs.logits(outside, self.values, batch_size)


def _activations(run: RecordedRun, starts: dict[Node, Start]) -> Values:
    """Activations of nodes in a run, each copied out of its hook's."""
    groups: dict[Start, list[Node]] = {}
    for node, start in starts.items():
        groups.setdefault(start, []).append(node)
    found: dict[Node, Tensor | float] = {}
    for start, nodes in groups.items():
        seen = run.activations(start, sorted({node.hook for node in nodes}))
        found |= {node: node.read(seen[node.hook]) for node in nodes}
    return found


def check_one_sort(parts: Sequence[Node | Edge]) -> None:
    """Raises AnalysisError for nodes and edges together."""
    n_edges = sum(isinstance(part, Edge) for part in parts)
    if 0 < n_edges < len(parts):
        raise AnalysisError(f"{n_edges} of {len(parts)} parts of the universe are edges: take edges or nodes.")
