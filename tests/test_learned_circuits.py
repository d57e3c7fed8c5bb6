"""Learnt circuits: gates mix as they say, few of them do a task."""

from __future__ import annotations

import pytest
import torch
from small import small_config, small_inputs, small_model
from torch import Tensor

from hooked_whisper import AnalysisError, HookedWhisper
from hooked_whisper.analysis.circuits import Circuit, CircuitTask
from hooked_whisper.analysis.contrast import Contrast, ModelInput
from hooked_whisper.analysis.learned_circuits import Gated, learned_scores
from hooked_whisper.analysis.nodes import nodes


def metric(logits: Tensor) -> Tensor:
    return logits[:, -1, 3] - logits[:, -1, 4]


def contrast(clean: int, corrupted: int) -> Contrast:
    sides = [ModelInput(*small_inputs(small_config(), 3, seed=seed)) for seed in (clean, corrupted)]
    return Contrast(sides[0], sides[1], torch.ones(3, 5, dtype=torch.bool), (1, 1, 1))


@pytest.fixture(scope="module")
def task() -> CircuitTask:
    model = small_model()
    return CircuitTask(model, contrast(1, 2), nodes(model, ["head", "mlp"]), metric)


@torch.no_grad()
def test_open_and_shut_gates_are_a_circuit(task: CircuitTask) -> None:
    circuit = task.universe[::3]
    gates = torch.tensor([float(node in circuit) for node in task.universe], dtype=torch.float64)
    assert torch.allclose(metric(Gated(task).logits(gates)), task.metrics([circuit])[0], atol=1e-10)
    ones = torch.ones(len(gates), dtype=torch.float64)
    assert torch.allclose(metric(Gated(task).logits(ones)), task.whole, atol=1e-10)


@torch.no_grad()
def test_gates_of_neurons_spans_and_heads(task: CircuitTask) -> None:
    model = task.model
    universe = [
        *nodes(model, ["neuron"]),
        *nodes(model, ["head"], spans={"frame": [(0, 3), (3, 8)], "pos": [(1, 2)]}),
    ]
    finer = CircuitTask(model, contrast(1, 2), universe, metric)
    generator = torch.Generator().manual_seed(1)
    gates = (torch.rand(len(universe), generator=generator) < 0.4).double()
    kept = [node for node, gate in zip(universe, gates.tolist(), strict=True) if gate]
    assert torch.allclose(metric(Gated(finer).logits(gates)), finer.metrics([kept])[0], atol=1e-10)


@torch.no_grad()
def test_a_universe_of_decoder_nodes_runs_the_decoder_alone(task: CircuitTask) -> None:
    universe = nodes(task.model, ["head"], stacks=["decoder"])
    decoders = CircuitTask(task.model, contrast(1, 2), universe, metric)
    gates = torch.tensor([float(i % 2) for i in range(len(universe))], dtype=torch.float64)
    ran: list[object] = []
    handle = task.model.encoder.register_forward_hook(lambda *_: ran.append(1))
    logits = Gated(decoders).logits(gates)
    handle.remove()
    assert not ran
    assert torch.allclose(metric(logits), decoders.metrics([universe[1::2]])[0], atol=1e-10)


def test_gates_have_the_gradient_of_finite_differences(task: CircuitTask) -> None:
    generator = torch.Generator().manual_seed(0)
    gates = torch.rand(len(task.universe), generator=generator, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: task.lost(Gated(task).logits(x)), (gates,))


@torch.no_grad()
def silence_all_but(model: HookedWhisper, kept: set[str]) -> None:
    """Every other head and MLP writes nothing that depends on its input."""
    for stack in ("encoder", "decoder"):
        for i, block in enumerate(getattr(model, stack).blocks):
            if f"{stack}.{i}.mlp_out" not in kept:
                block.mlp.fc_out.weight.zero_()
            for name, kind in (("attn", "self"), ("cross_attn", "cross")):
                if hasattr(block, name):
                    heads = getattr(block, name).W_O  # [head d_head d_model], a view
                    for head in range(len(heads)):
                        if f"{stack}.{i}.{kind}.head.{head}" not in kept:
                            heads[head].zero_()


def test_the_gates_that_stay_open_are_those_of_the_parts_that_work() -> None:
    """In a model of which all but four parts are silent, the circuit of four is known."""
    model = small_model()
    working = {"encoder.0.self.head.1", "encoder.1.mlp_out", "decoder.0.cross.head.2", "decoder.1.mlp_out"}
    silence_all_but(model, working)
    task = CircuitTask(model, contrast(1, 2), nodes(model, ["head", "mlp"]), metric)
    asked = [weight.requires_grad for weight in model.parameters()]
    scores = learned_scores(task, len(working), steps=80, progress=False)
    assert [weight.requires_grad for weight in model.parameters()] == asked
    assert not any(point.live for point in model.hook_dict.values())
    learnt = Circuit.top(task.universe, scores, len(working))
    assert {str(node) for node in learnt.nodes} == working
    assert float((task.metrics([learnt.nodes])[0] - task.whole).abs().max()) < 1e-8


def test_tasks_take_turns(task: CircuitTask) -> None:
    order: list[int] = []

    def seen_by(number: int) -> CircuitTask:
        def counted(logits: Tensor) -> Tensor:
            if logits.requires_grad:
                order.append(number)
            return metric(logits)

        return CircuitTask(task.model, contrast(number, 2), task.universe, counted)

    learned_scores([seen_by(1), seen_by(3), seen_by(4)], 5, steps=9, progress=False)
    rounds = [tuple(order[at : at + 3]) for at in (0, 3, 6)]
    assert all(sorted(one) == [1, 3, 4] for one in rounds)
    assert len(set(rounds)) > 1, "each round has an order of its own"


def test_the_seed_fixes_it(task: CircuitTask) -> None:
    one, other = (learned_scores(task, 5, steps=5, seed=2, progress=False) for _ in range(2))
    assert torch.equal(one, other)
    assert not torch.equal(one, learned_scores(task, 5, steps=5, seed=3, progress=False))


def test_what_cannot_be(task: CircuitTask) -> None:
    with pytest.raises(AnalysisError, match="n=0: expected 1 to"):
        learned_scores(task, 0)
    with pytest.raises(AnalysisError, match=r"n=\d+: expected 1 to"):
        learned_scores(task, len(task.universe))
    with pytest.raises(AnalysisError, match="steps=0 and lr=0.1: expected at least one step"):
        learned_scores(task, 3, steps=0)
    with pytest.raises(AnalysisError, match="No task was given"):
        learned_scores([], 3)
    fewer = CircuitTask(task.model, contrast(1, 2), task.universe[:-1], metric)
    with pytest.raises(AnalysisError, match="differ in universe or model"):
        learned_scores([task, fewer], 3)
