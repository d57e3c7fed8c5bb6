"""Circuits: figures equal hand runs, all and nothing score 1 and 0, and the parts that do a task are found."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from small import small_config, small_inputs, small_model
from torch import Tensor

from hooked_whisper import AnalysisError, HookedWhisper
from hooked_whisper.analysis.ablation import node_statistics
from hooked_whisper.analysis.circuits import Circuit, CircuitTask, RandomComparison, random_circuits
from hooked_whisper.analysis.contrast import Contrast, ModelInput
from hooked_whisper.analysis.edge_attribution import attribute_edges
from hooked_whisper.analysis.edge_patching import patch_edges
from hooked_whisper.analysis.edges import edges
from hooked_whisper.analysis.learned_circuits import learned_scores
from hooked_whisper.analysis.nodes import Node, by_hook, nodes
from hooked_whisper.analysis.patching import patch


def metric(logits: Tensor) -> Tensor:
    return logits[:, -1, 3] - logits[:, -1, 4]


def a_contrast(batch: int = 2) -> Contrast:
    sides = [ModelInput(*small_inputs(small_config(), batch, seed=seed)) for seed in (1, 2)]
    return Contrast(sides[0], sides[1], torch.ones(batch, 5, dtype=torch.bool), (1,) * batch)


@torch.no_grad()
def by_hand(model: HookedWhisper, pair: Contrast, outside: list[Node]) -> Tensor:
    """The metric of the whole clean run with nodes outside a circuit held at the corrupted run's activations."""
    groups = by_hook(outside)
    _, cache = model.run_with_cache(pair.corrupted.mel, pair.corrupted.tokens, names_filter=list(groups))

    def put(activation: Tensor, hook: Any) -> Tensor:
        changed = activation.clone()
        for node in groups[hook.name]:
            changed[node.index(4 if node.head is not None else 3)] = cache[hook.name][
                node.index(4 if node.head is not None else 3)
            ]
        return changed

    return metric(model.run_with_hooks(pair.clean.mel, pair.clean.tokens, fwd_hooks=[(hook, put) for hook in groups]))


def test_everything_outside_is_ablated_and_nothing_else() -> None:
    model, pair = small_model(), a_contrast()
    universe = nodes(model, ["head", "mlp"])
    task = CircuitTask(model, pair, universe, metric, batch_size=5)
    circuits = [universe[::2], universe[1::3], universe[-2:], universe[:4]]
    found = task.metrics(circuits)
    for circuit, values in zip(circuits, found, strict=True):
        outside = [node for node in universe if node not in circuit]
        assert torch.allclose(values, by_hand(model, pair, outside), atol=1e-10)
    with torch.no_grad():
        assert torch.allclose(task.whole, metric(pair.clean.logits(model)), atol=1e-10)
    assert torch.allclose(task.empty, by_hand(model, pair, universe), atol=1e-10)
    ends = task.faithfulness([universe, []])
    assert ends.tolist() == pytest.approx([1, 0], abs=1e-9)


def test_figures_are_what_they_say() -> None:
    model, pair = small_model(), a_contrast()
    universe = nodes(model, ["head", "mlp"], stacks=["decoder"])
    task = CircuitTask(model, pair, universe, metric)
    circuit = Circuit(tuple(universe[3:9]), tuple(universe))
    found = circuit.evaluate(task, minimality=True)
    whole, empty = task.whole.sum(), task.empty.sum()

    def share(kept: tuple[Node, ...]) -> float:
        outside = [node for node in universe if node not in kept]
        return float((by_hand(model, pair, outside).sum() - empty) / (whole - empty))

    assert (found.n_nodes, found.n_universe) == (6, len(universe))
    assert found.faithfulness == pytest.approx(share(circuit.nodes), abs=1e-9)
    assert found.completeness == pytest.approx(1 - share(circuit.complement.nodes), abs=1e-9)
    assert set(found.minimality) == set(circuit.nodes)
    for node, lost in found.minimality.items():
        rest = tuple(other for other in circuit.nodes if other != node)
        assert lost == pytest.approx(share(circuit.nodes) - share(rest), abs=1e-9)
    assert torch.allclose(found.by_clip, task.metrics([circuit.nodes])[0])
    assert len(circuit.evaluate(task, minimality=2).minimality) == 2
    assert not circuit.evaluate(task).minimality


def test_leaving_one_node_out_is_patching_it() -> None:
    model, pair = small_model(), a_contrast()
    universe = nodes(model, ["head", "mlp"])
    task = CircuitTask(model, pair, universe, metric)
    noised = patch(model, pair, universe, metric, direction="noise")
    left_out = task.metrics([[node for node in universe if node != gone] for gone in universe])
    assert torch.allclose(left_out, noised.effects, atol=1e-10)


@pytest.mark.parametrize("by", ["zero", "mean", "resample"])
def test_other_ways_of_ablating(by: str) -> None:
    model, pair = small_model(), a_contrast()
    universe = nodes(model, ["head", "mlp"], stacks=["encoder"])
    statistics = node_statistics(model, [ModelInput(*small_inputs(small_config(), seed=7))], universe, bank=2)
    task = CircuitTask(model, pair, universe, metric, by=by, statistics=statistics)
    from hooked_whisper.analysis.ablation import ablated

    with ablated(model, universe, by=by, statistics=statistics), torch.no_grad():
        assert torch.allclose(task.empty, metric(pair.clean.logits(model)), atol=1e-10)
    assert task.faithfulness([universe])[0] == pytest.approx(1)


def one_reader() -> tuple[HookedWhisper, Node]:
    """A model in which one head of cross-attention alone lets the sound through to the output."""
    model, reader = small_model(), Node("decoder.blocks.1.cross_attn.hook_z", head=2)
    with torch.no_grad():
        for layer, block in enumerate(model.decoder.blocks):
            kept = block.cross_attn.W_O[reader.head].clone()
            block.cross_attn.out.weight.zero_()
            if layer == reader.layer:
                block.cross_attn.W_O[reader.head] = kept
    return model, reader


def test_the_part_that_does_the_task_is_found() -> None:
    model, reader = one_reader()
    pair = a_contrast(3)
    pair = Contrast(pair.clean, ModelInput(pair.corrupted.mel, pair.clean.tokens), pair.token_mask, (1, 1, 1))
    universe = [node for node in nodes(model, ["head"], stacks=["decoder"]) if "cross" in node.hook]
    task = CircuitTask(model, pair, universe, metric)
    scores = patch(model, pair, universe, metric, direction="noise").normalized.abs().mean(1)
    circuit = Circuit.top(universe, scores, 1)
    assert circuit.nodes == (reader,)
    found = circuit.evaluate(task)
    assert found.faithfulness == pytest.approx(1, abs=1e-9)
    assert found.completeness == pytest.approx(1, abs=1e-9)
    assert Circuit.threshold(universe, scores, 0.5).nodes == (reader,)
    greedy = Circuit.greedy(task, torch.zeros(len(universe)), faithfulness=0.99, width=len(universe))
    assert greedy.nodes == (reader,)
    others = circuit.compare_with_random(task, n=20)
    drawn = random_circuits(circuit, 20)
    hits = [other.nodes == (reader,) for other in drawn]
    assert 0 < sum(hits) < 20
    assert others.random.tolist() == pytest.approx([float(hit) for hit in hits], abs=1e-9)


def test_greedy_stops_where_it_is_told() -> None:
    model, pair = small_model(), a_contrast()
    universe = nodes(model, ["head", "mlp"], stacks=["decoder"])
    task = CircuitTask(model, pair, universe, metric)
    scores = torch.arange(len(universe)).flip(0).double()
    assert len(Circuit.greedy(task, scores, faithfulness=9e9, n=3).nodes) == 3
    assert Circuit.greedy(task, scores, faithfulness=9e9, n=2, width=1).nodes == tuple(universe[:2])  # by score alone
    best = Circuit.greedy(task, scores, faithfulness=9e9, n=1, width=4).nodes
    assert best == (universe[int(task.faithfulness([[node] for node in universe[:4]]).argmax())],)
    assert not Circuit.greedy(task, scores, faithfulness=-9e9).nodes


def test_random_circuits_have_the_same_kinds() -> None:
    model = small_model()
    universe = nodes(model, ["head", "mlp"])
    circuit = Circuit(tuple(universe[::4]), tuple(universe))
    drawn = random_circuits(circuit, 30, seed=1)
    assert drawn == random_circuits(circuit, 30, seed=1)
    assert drawn != random_circuits(circuit, 30, seed=2)
    assert len({other.nodes for other in drawn}) > 20
    for other in drawn:
        assert sorted(node.kind for node in other.nodes) == sorted(node.kind for node in circuit.nodes)
    assert {node for other in drawn for node in other.nodes} == {
        node for node in universe if node.kind in {kept.kind for kept in circuit.nodes}
    }


def test_chance_counts_the_circuit_itself() -> None:
    comparison = RandomComparison(0.8, torch.tensor([0.1, 0.8, 0.9, 0.2]))
    assert comparison.p_value == 3 / 5
    assert not comparison.beats_all
    assert RandomComparison(0.8, torch.tensor([0.1])).beats_all


def test_circuits_are_kept_and_drawn(tmp_path: Path) -> None:
    model = small_model()
    universe = [Node("hook_mel"), *nodes(model, ["head", "mlp"]), Node("encoder.hook_out"), Node("hook_logits")]
    circuit = Circuit.top(universe, torch.arange(len(universe)).float(), 7)
    assert len(circuit.nodes) == 7
    assert Circuit.load(circuit.save(tmp_path / "circuit.json")) == circuit
    assert circuit.complement.complement == circuit
    (ax,) = circuit.draw().axes
    written = {text.get_text() for text in ax.texts}
    assert {"logits", "2.mlp_out"} & written or "mlp_out" in written
    assert "7 of" in ax.get_title(loc="left")
    assert len(circuit.draw(labels=False).axes[0].texts) == len(ax.texts) - 7
    assert Circuit((), (Node("hook_mel"),)).draw().axes
    assert Circuit.load(circuit.save(tmp_path / "new" / "folder" / "circuit.json")) == circuit


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "the text is no JSON"),
        ("{}", "expected what Circuit.to_json writes"),
        ('{"format": 1, "nodes": [1], "universe": []}', "Expected names of nodes or edges, got a list of int: \\[1\\]"),
        ('{"format": 1, "nodes": [], "universe": null}', "Expected names of nodes or edges, got None"),
        ('{"format": 1, "nodes": [], "universe": ["foo"]}', "'foo' is no node"),
        (
            '{"format": 1, "nodes": [], "universe": ["mel", "encoder.0.mlp_out -> encoder.1.mlp_in"]}',
            "1 of 2 parts of the universe are edges",
        ),
    ],
)
def test_what_is_no_circuit_is_not_read(text: str, message: str) -> None:
    with pytest.raises(AnalysisError, match=message):
        Circuit.from_json(text)


def test_files_that_cannot_be_read_or_written(tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    for path, message in (
        (tmp_path / "none", "cannot be read"),
        (tmp_path, "cannot be read"),
        (tmp_path / "binary", "no text"),
    ):
        with pytest.raises(AnalysisError, match=f"{message}.*expected a file that save"):
            Circuit.load(path)
    for path in (tmp_path, tmp_path / "binary" / "circuit.json"):
        with pytest.raises(AnalysisError, match=r"cannot be written \(.*\): choose another path"):
            Circuit((), (Node("hook_mel"),)).save(path)


def test_what_is_no_circuit_is_refused() -> None:
    model, pair = small_model(), a_contrast()
    universe = nodes(model, "mlp")
    other = Node("hook_mel")
    task = CircuitTask(model, pair, universe, metric)
    late = [Node("decoder.blocks.2.mlp.hook_post", unit=0)]
    circuit, whole = Circuit((), tuple(universe[1:])), Circuit(tuple(universe), tuple(universe))
    head = Node("decoder.blocks.0.attn.hook_z")
    an_edge = edges(model)[0]
    for call, message in (
        (lambda: Circuit((other,), tuple(universe)), "mel is not in the circuit's universe of 5 nodes"),
        (lambda: Circuit((universe[0],) * 2, tuple(universe)), "The circuit names a node twice"),
        (lambda: Circuit((), (other, other)), "The universe names a node twice"),
        (lambda: Circuit.top(universe, torch.zeros(2), 1), r"The scores have shape \(2,\), expected \(5,\)"),
        (lambda: Circuit.top(universe, torch.full((5,), torch.nan), 1), "5 scores are not finite"),
        (lambda: Circuit.top(universe, torch.zeros(5), 6), "n=6: expected 0 to 5"),
        (lambda: Circuit.top(universe, torch.zeros(5), -1), "n=-1: expected 0 to 5"),
        (lambda: Circuit.threshold(universe, torch.zeros(5), float("nan")), "at=nan: expected a number"),
        (lambda: Circuit.greedy(task, torch.zeros(5), width=0), "width=0: expected at least 1 candidate"),
        (lambda: Circuit.greedy(task, torch.zeros(5), n=-1), "n=-1: expected 0 to 5"),
        (lambda: Circuit.greedy(task, torch.zeros(5), faithfulness=float("nan")), "faithfulness=nan: expected a share"),
        (lambda: whole.evaluate(task, minimality=-1), "minimality=-1: expected a whole number of at least 0"),
        (lambda: Circuit((), (other, an_edge)), "1 of 2 parts of the universe are edges"),
        (
            lambda: CircuitTask(model, pair, [Node(head.hook, 1), head], metric),
            "decoder.0.self.head.1 and decoder.0.self.head overlap",
        ),
        (lambda: circuit.evaluate(task), "The circuit is out of 4 nodes, the task is about 5"),
        (lambda: Circuit((), tuple(universe)).compare_with_random(task, n=0), "n=0: expected at least 1"),
        (
            lambda: CircuitTask(model, pair, universe, metric, by="noise"),
            "Unknown ablation 'noise': expected corr",
        ),
        (lambda: CircuitTask(model, pair, universe, metric, by="mean"), "by='mean' needs statistics="),
        (
            lambda: CircuitTask(model, pair, late, lambda logits: logits[:, 0, 0] * 0 + 1),
            "Ablating the whole universe of 1 nodes leaves the metric as it is",
        ),
    ):
        with pytest.raises(AnalysisError, match=message):
            call()


def test_circuits_of_edges(tmp_path: Path) -> None:
    model, pair = small_model(), a_contrast()
    universe = edges(model)
    task = CircuitTask(model, pair, universe, metric, batch_size=6)
    with torch.no_grad():
        assert torch.allclose(task.whole, metric(pair.clean.logits(model)), atol=1e-9)
        assert torch.allclose(task.empty, metric(pair.corrupted.logits(model)), atol=1e-9)
    one = universe[77]
    noised = patch_edges(model, pair, [one], metric, direction="noise").effects[0]
    assert torch.allclose(task.metrics([[edge for edge in universe if edge != one]])[0], noised, atol=1e-9)
    scores = attribute_edges(model, pair, metric).of(universe).mean(1)
    circuit = Circuit.top(universe, scores, 60)
    found = circuit.evaluate(task, minimality=2)
    assert (found.n_nodes, found.n_universe, len(found.minimality)) == (60, len(universe), 2)
    assert found.completeness == pytest.approx(1 - float(task.faithfulness([circuit.complement.nodes])[0]), abs=1e-9)
    drawn = random_circuits(circuit, 2)
    assert [sorted(e.kind for e in other.nodes) for other in drawn] == [sorted(e.kind for e in circuit.nodes)] * 2
    assert len(circuit.compare_with_random(task, n=2).random) == 2
    assert Circuit.load(circuit.save(tmp_path / "edges.json")) == circuit
    assert Circuit.greedy(task, scores, faithfulness=9e9, n=2, width=1).nodes == Circuit.top(universe, scores, 2).nodes
    with pytest.raises(AnalysisError, match="Gates are learnt on nodes"):
        learned_scores(task, 3, progress=False)
    with pytest.raises(AnalysisError, match="1 of 2 parts of the universe are edges"):
        CircuitTask(model, pair, [one, Node("encoder.blocks.0.hook_mlp_out")], metric)


@pytest.mark.parametrize("by", ["zero", "mean", "resample"])
def test_edges_outside_are_ablated_in_other_ways(by: str) -> None:
    """All edges out of a writer together are the writer, whatever stands in for it."""
    model, pair = small_model(), a_contrast()
    sources = [Node("encoder.blocks.1.hook_mlp_out"), Node("decoder.blocks.0.attn.hook_z", 2)]
    statistics = node_statistics(model, [ModelInput(*small_inputs(small_config(), seed=7))], sources, bank=2)
    options: dict[str, Any] = {"by": by, "statistics": statistics}
    of_edges = CircuitTask(model, pair, edges(model, writers=sources), metric, **options)
    assert torch.allclose(of_edges.empty, CircuitTask(model, pair, sources, metric, **options).empty, atol=1e-9)
