"""Circuits: a few nodes, or edges, said to do a task, and how far that holds when all others are switched off.

    task = CircuitTask(model, contrast, nodes(model), metric)
    circuit = Circuit.top(task.universe, scores, 30)
    circuit.evaluate(task), circuit.compare_with_random(task, n=100)

    task = CircuitTask(model, contrast, edges(model), metric)
    circuit = Circuit.top(task.universe, attribute_edges(model, contrast, metric).of(task.universe).mean(1), 500)

With m the metric of the clean run in which everything outside a set of nodes is ablated (`circuit_tasks`), and sums
over clips:

    faithfulness(C) = (m(C) - m(nothing)) / (m(everything) - m(nothing))
    completeness(C) = 1 - faithfulness(everything but C)

Both are 1 for a perfect circuit (Wang et al. 2023, arXiv:2211.00593; Marks et al. 2024, arXiv:2403.19647, who write
completeness as the faithfulness of the complement). Faithfulness can leave 0 to 1: what was ablated may have worked
against the task. It belongs to the way of ablating and to the clips: find a circuit on some, evaluate it on others.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from hooked_whisper.analysis.checks import check_whole, expect, expect_all
from hooked_whisper.analysis.circuit_tasks import TASK, CircuitTask, check_one_sort
from hooked_whisper.analysis.edges import Edge, PartT, parse_parts
from hooked_whisper.analysis.nodes import NODES, Node
from hooked_whisper.analysis.result_files import load_text, read_fields, save_text, written
from hooked_whisper.errors import AnalysisError

if TYPE_CHECKING:
    from matplotlib.figure import Figure


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
        AnalysisError: a node outside the universe, one twice, nodes and edges together, or what is neither.
    """

    nodes: tuple[PartT, ...]
    universe: tuple[PartT, ...]

    def __post_init__(self) -> None:
        for name in ("nodes", "universe"):
            object.__setattr__(self, name, tuple(expect_all(getattr(self, name), (Node, Edge), NODES)))
        check_one_sort(self.universe)
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
        _check_size(n, len(universe))
        chosen = values.argsort(descending=True, stable=True)[:n].tolist()
        return cls(tuple(universe[i] for i in chosen), tuple(universe))

    @classmethod
    def threshold(cls, universe: Sequence[PartT], scores: Float[Tensor, " node"], at: float) -> Circuit[PartT]:
        """The nodes whose scores are at least `at`.

        Raises:
            AnalysisError: not one finite score for each node, or a threshold that is no number.
        """
        if math.isnan(at):
            raise AnalysisError("at=nan: expected a number, which scores can be compared with.")
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
            AnalysisError: not one finite score for each node of the task's universe, a width below 1, n that is not 0
                to their number, a faithfulness that is no number.
        """
        expect(task, CircuitTask, TASK)
        values = _checked_scores(task.universe, scores)
        if check_whole("width", width, None) < 1:
            raise AnalysisError(f"width={width}: expected at least 1 candidate at each step.")
        if math.isnan(faithfulness):
            raise AnalysisError("faithfulness=nan: expected a share to reach, such as 0.8.")
        if n is not None:
            _check_size(n, len(task.universe))
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
            AnalysisError: another universe than the task's, or a minimality below 0.
        """
        self._check(task)
        check_whole("minimality", int(minimality) if isinstance(minimality, bool) else minimality, 0)
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
        if check_whole("n", n, None) < 1:
            raise AnalysisError(f"n={n}: expected at least 1 random circuit.")
        drawn = random_circuits(self, n, seed=seed)
        own, *others = task.faithfulness(
            [self.nodes, *(circuit.nodes for circuit in drawn)], progress=progress
        ).tolist()
        return RandomComparison(own, torch.tensor(others, dtype=torch.float64))

    def _check(self, task: CircuitTask[PartT]) -> None:
        expect(task, CircuitTask, TASK)
        if set(task.universe) != set(self.universe):
            raise AnalysisError(
                f"The circuit is out of {len(self.universe)} nodes, the task is about {len(task.universe)}, and they "
                "are not the same: build the task with universe=circuit.universe."
            )

    # Keeping and looking

    def to_json(self) -> str:
        """Nodes and universe by name; `from_json` reads them back."""
        return written({"nodes": list(map(str, self.nodes)), "universe": list(map(str, self.universe))}, indent=1)

    @classmethod
    def from_json(cls, text: str) -> Circuit[Any]:
        """A circuit from what `to_json` wrote.

        Raises:
            AnalysisError: no JSON, or not of a circuit.
        """
        data = read_fields(text, "circuit", "Circuit.to_json", ("nodes", "universe"))
        return cls(parse_parts(data["nodes"]), parse_parts(data["universe"]))

    def save(self, path: str | Path) -> Path:
        """Writes `to_json` to a file, and makes its folder where it is missing.

        Raises:
            AnalysisError: it cannot be written.
        """
        return save_text(self.to_json(), path)

    @classmethod
    def load(cls, path: str | Path) -> Circuit[Any]:
        """Reads what `save` wrote.

        Raises:
            AnalysisError: it cannot be read; see `from_json`.
        """
        return cls.from_json(load_text(path))

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


def _check_size(n: int, n_nodes: int) -> None:
    if not 0 <= check_whole("n", n, None) <= n_nodes:
        raise AnalysisError(f"n={n}: expected 0 to {n_nodes}, the number of nodes.")


def _checked_scores(universe: Sequence[Node | Edge], scores: Tensor) -> Tensor:
    expect(scores, Tensor, "scores as a tensor, one for each node of the universe")
    if scores.shape != (len(universe),):
        raise AnalysisError(
            f"The scores have shape {tuple(scores.shape)}, expected ({len(universe)},): one for each node of the "
            "universe. Take the mean over clips first."
        )
    if not torch.isfinite(scores).all():
        raise AnalysisError(f"{int((~torch.isfinite(scores)).sum())} scores are not finite.")
    return scores.detach().cpu()
