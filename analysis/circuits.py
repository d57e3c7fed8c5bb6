"""Circuits: a few nodes, or edges, said to do a task, and how far that holds when all others are switched off.

    task = CircuitTask(model, contrast, nodes(model), metric)
    circuit = Circuit.top(task.universe, scores, 30)
    circuit.evaluate(task), circuit.compare_with_random(task, n=100)

    task = CircuitTask(model, contrast, edges(model), metric)
    circuit = Circuit.top(task.universe, attribute_edges(model, contrast, metric).of(task.universe).mean(1), 500)

With m the metric of the clean run in which everything outside a set of nodes is ablated, and sums over clips:

    faithfulness(C) = (m(C) - m(nothing)) / (m(everything) - m(nothing))
    completeness(C) = 1 - faithfulness(everything but C)

Both are 1 for a perfect circuit (Wang et al. 2023, arXiv:2211.00593; Marks et al. 2024, arXiv:2403.19647, who write
completeness as the faithfulness of the complement). Faithfulness can leave 0 to 1: what was ablated may have worked
against the task. It belongs to the way of ablating and to the clips: find a circuit on some, evaluate it on others.

A node outside is replaced wherever it is read. An edge outside is replaced for its reader alone, which takes in what
stands in for the writer, and not what the writer writes in the run of the circuit.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Literal

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from hooked_whisper.analysis.ablation import NodeStatistics, ablation_values, check_ablation
from hooked_whisper.analysis.contrast import Contrast, ModelInput
from hooked_whisper.analysis.edge_runs import EdgeRuns
from hooked_whisper.analysis.edges import Edge, PartT, check_edges, parse_parts
from hooked_whisper.analysis.metrics import Metric, check_metric
from hooked_whisper.analysis.nodes import Node, check_nodes
from hooked_whisper.analysis.partial_runs import RecordedRun, Start, Values, check_replaceable, run_sets, start_of
from hooked_whisper.errors import AnalysisError
from hooked_whisper.model import HookedWhisper

if TYPE_CHECKING:
    from matplotlib.figure import Figure

OUTSIDE = ("corrupted", "mean", "resample", "zero")
if TYPE_CHECKING:
    Outside = Literal["corrupted", "mean", "resample", "zero"]
else:
    Outside = str  # checked here, with a message that says more than a type checker's
FORMAT = 1
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
        AnalysisError: no nodes, a node twice, nodes and edges together, an unknown way, or a metric that ablating the
            whole universe leaves as it is.
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
        edges = [part for part in universe if isinstance(part, Edge)]
        if edges and len(edges) < len(universe):
            raise AnalysisError(
                f"{len(edges)} of {len(universe)} parts of the universe are edges: take edges or nodes."
            )
        runs: Any = _EdgeCircuits if edges else _NodeCircuits
        self._runs = runs(model, contrast, universe, by, statistics, seed)
        self.universe: tuple[PartT, ...] = tuple(universe)
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
        """The metric with everything outside each circuit ablated."""
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


@dataclass(frozen=True)
class Faithfulness(Generic[PartT]):
    """How well a circuit stands for the model; all figures over the clips of the task together.

    Attributes:
        n_nodes: in the circuit, of `n_universe`.
        faithfulness: 1 where the circuit alone does what the whole model does.
        completeness: 1 where nothing of it is left without the circuit.
        by_clip: the metric of the circuit for each clip.
        minimality: for each node of the circuit that was dropped on its own, how much faithfulness went with it; a
            node whose share is near 0 (or below) is not needed, or another one does its work.
    """

    n_nodes: int
    n_universe: int
    faithfulness: float
    completeness: float
    by_clip: Float[Tensor, " batch"]
    minimality: dict[PartT, float]


@dataclass(frozen=True)
class RandomComparison:
    """A circuit beside random ones of the same size and the same kinds of nodes.

    Attributes:
        faithfulness: of the circuit.
        random: of each random circuit.
    """

    faithfulness: float
    random: Float[Tensor, " circuit"]

    @property
    def p_value(self) -> float:
        """The chance that a random circuit does as well: (1 + those that do) / (1 + all)."""
        return (1 + int((self.random >= self.faithfulness).sum())) / (1 + len(self.random))

    @property
    def beats_all(self) -> bool:
        """Whether none of the random circuits does as well."""
        return bool((self.random < self.faithfulness).all())


@dataclass(frozen=True)
class Circuit(Generic[PartT]):
    """Nodes kept, out of a universe of nodes, or edges out of edges; both in the universe's order.

    Raises:
        AnalysisError: a node outside the universe, or one twice.
    """

    nodes: tuple[PartT, ...]
    universe: tuple[PartT, ...]

    def __post_init__(self) -> None:
        order = {node: i for i, node in enumerate(self.universe)}
        if len(order) < len(self.universe):
            raise AnalysisError("The universe names a node twice.")
        unknown = next((node for node in self.nodes if node not in order), None)
        if unknown is not None:
            raise AnalysisError(f"{unknown} is not in the circuit's universe of {len(order)} nodes.")
        if len(set(self.nodes)) < len(self.nodes):
            raise AnalysisError("The circuit names a node twice.")
        object.__setattr__(self, "nodes", tuple(sorted(self.nodes, key=order.__getitem__)))

    # Building

    @classmethod
    def top(cls, universe: Sequence[PartT], scores: Float[Tensor, " node"], n: int) -> Circuit[PartT]:
        """The n nodes with the largest scores; take the absolute value first where sign does not matter.

        Raises:
            AnalysisError: not one finite score for each node, or n that is not 0 to their number.
        """
        values = _checked_scores(universe, scores)
        if not 0 <= n <= len(universe):
            raise AnalysisError(f"n={n}: expected 0 to {len(universe)}, the number of nodes.")
        chosen = values.argsort(descending=True, stable=True)[:n].tolist()
        return cls(tuple(universe[i] for i in chosen), tuple(universe))

    @classmethod
    def threshold(cls, universe: Sequence[PartT], scores: Float[Tensor, " node"], at: float) -> Circuit[PartT]:
        """The nodes whose scores are at least `at`.

        Raises:
            AnalysisError: not one finite score for each node.
        """
        chosen = (_checked_scores(universe, scores) >= at).nonzero()[:, 0].tolist()
        return cls(tuple(universe[i] for i in chosen), tuple(universe))

    @classmethod
    def greedy(
        cls,
        task: CircuitTask[PartT],
        scores: Float[Tensor, " node"],
        *,
        faithfulness: float = 0.8,
        n: int | None = None,
        width: int = 8,
        progress: bool | None = None,
    ) -> Circuit[PartT]:
        """Nodes added one by one, each time that of the next `width` by score with which faithfulness is largest.

        A step costs `width` runs. It ends when `faithfulness` is reached, or with n nodes, or with all.

        Raises:
            AnalysisError: not one finite score for each node of the task's universe, a width below 1.
        """
        values = _checked_scores(task.universe, scores)
        if width < 1:
            raise AnalysisError(f"width={width}: expected at least 1 candidate at each step.")
        left = [task.universe[i] for i in values.argsort(descending=True, stable=True).tolist()]
        kept: list[PartT] = []
        reached = 0.0
        limit = len(left) if n is None else n
        with tqdm(total=limit, desc="greedy", unit="node", disable=None if progress is None else not progress) as bar:
            while left and len(kept) < limit and reached < faithfulness:
                found = task.faithfulness([[*kept, node] for node in left[:width]])
                best = int(found.argmax())
                kept.append(left.pop(best))
                reached = float(found[best])
                bar.update()
        return cls(tuple(kept), task.universe)

    @property
    def complement(self) -> Circuit[PartT]:
        """All other nodes of the universe."""
        kept = set(self.nodes)
        return Circuit(tuple(node for node in self.universe if node not in kept), self.universe)

    # Measuring

    def evaluate(
        self, task: CircuitTask[PartT], *, minimality: bool | int = False, seed: int = 0, progress: bool | None = None
    ) -> Faithfulness[PartT]:
        """Faithfulness and completeness, and what each node adds.

        Args:
            minimality: drop each node on its own (a run for each), or only so many of them, drawn at random.
            seed: of that draw.

        Raises:
            AnalysisError: another universe than the task's.
        """
        self._check(task)
        if minimality is True:
            dropped = list(self.nodes)
        else:
            dropped = random.Random(seed).sample(self.nodes, min(int(minimality), len(self.nodes)))
        without = [[node for node in self.nodes if node != gone] for gone in dropped]
        metrics = task.metrics([self.nodes, self.complement.nodes, *without], progress=progress)
        own, others, *rest = task.share(metrics).tolist()
        return Faithfulness(
            n_nodes=len(self.nodes),
            n_universe=len(self.universe),
            faithfulness=own,
            completeness=1 - others,
            by_clip=metrics[0],
            minimality={node: own - left for node, left in zip(dropped, rest, strict=True)},
        )

    def compare_with_random(
        self, task: CircuitTask[PartT], n: int = 100, *, seed: int = 0, progress: bool | None = None
    ) -> RandomComparison:
        """Faithfulness beside that of n random circuits with as many nodes of each kind (hook, whatever the layer).

        Raises:
            AnalysisError: another universe than the task's, or n below 1.
        """
        self._check(task)
        if n < 1:
            raise AnalysisError(f"n={n}: expected at least 1 random circuit.")
        drawn = random_circuits(self, n, seed=seed)
        own, *others = task.faithfulness(
            [self.nodes, *(circuit.nodes for circuit in drawn)], progress=progress
        ).tolist()
        return RandomComparison(own, torch.tensor(others, dtype=torch.float64))

    def _check(self, task: CircuitTask[PartT]) -> None:
        if set(task.universe) != set(self.universe):
            raise AnalysisError(
                f"The circuit is out of {len(self.universe)} nodes, the task is about {len(task.universe)}, and they "
                "are not the same: build the task with universe=circuit.universe."
            )

    # Keeping and looking

    def to_json(self) -> str:
        """Nodes and universe by name; `from_json` reads them back."""
        names = {"nodes": list(map(str, self.nodes)), "universe": list(map(str, self.universe))}
        return json.dumps({"format": FORMAT, **names}, indent=1)

    @classmethod
    def from_json(cls, text: str) -> Circuit[Any]:
        """A circuit from what `to_json` wrote.

        Raises:
            AnalysisError: no JSON, or not of a circuit.
        """
        try:
            data = json.loads(text)
        except json.JSONDecodeError as error:
            raise AnalysisError(f"No circuit: the text is no JSON ({error}).") from error
        if not isinstance(data, dict) or set(data) != {"format", "nodes", "universe"} or data["format"] != FORMAT:
            raise AnalysisError(f"No circuit of format {FORMAT}: expected what Circuit.to_json writes.")
        nodes, universe = (parse_parts(data[key]) for key in ("nodes", "universe"))
        return cls(nodes, universe)

    def save(self, path: str | Path) -> Path:
        """Writes `to_json` to a file."""
        Path(path).write_text(self.to_json() + "\n", encoding="utf-8")
        return Path(path)

    @classmethod
    def load(cls, path: str | Path) -> Circuit[Any]:
        """Reads what `save` wrote.

        Raises:
            AnalysisError: see `from_json`.
        """
        return cls.from_json(Path(path).read_text(encoding="utf-8"))

    def draw(self, *, labels: bool = True) -> Figure:
        """A graph, a column for each layer: kept nodes along the residual streams, or kept edges as lines between them.

        Raises:
            MissingExtraError: matplotlib is not installed.
        """
        edges = [part for part in self.nodes if isinstance(part, Edge)]
        if edges or any(isinstance(part, Edge) for part in self.universe):
            from hooked_whisper.analysis.edge_plot import draw_edge_circuit

            return draw_edge_circuit(edges, [part for part in self.universe if isinstance(part, Edge)], labels=labels)
        from hooked_whisper.analysis.circuit_plot import draw_circuit

        kept, universe = ([part for part in parts if isinstance(part, Node)] for parts in (self.nodes, self.universe))
        return draw_circuit(kept, universe, labels=labels)


def random_circuits(like: Circuit[PartT], n: int, *, seed: int = 0) -> list[Circuit[PartT]]:
    """Circuits of nodes drawn at random, each with as many of every kind as the one given."""
    source = random.Random(seed)
    kinds: dict[str, list[PartT]] = {}
    for node in like.universe:
        kinds.setdefault(node.kind, []).append(node)
    counts = {kind: sum(node.kind == kind for node in like.nodes) for kind in kinds}
    return [
        Circuit(
            tuple(node for kind, pool in kinds.items() for node in source.sample(pool, counts[kind])), like.universe
        )
        for _ in range(n)
    ]


def _checked_scores(universe: Sequence[Node | Edge], scores: Tensor) -> Tensor:
    if scores.shape != (len(universe),):
        raise AnalysisError(
            f"The scores have shape {tuple(scores.shape)}, expected ({len(universe)},): one for each node of the "
            "universe. Take the mean over clips first."
        )
    if not torch.isfinite(scores).all():
        raise AnalysisError(f"{int((~torch.isfinite(scores)).sum())} scores are not finite.")
    return scores.detach().cpu()
