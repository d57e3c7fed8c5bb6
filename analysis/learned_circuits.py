"""Circuits learnt as masks: a gate on every node, trained so that few open gates do what the whole model does.

    scores = learned_scores(task, n=40)
    circuit = Circuit.top(task.universe, scores, 40)

Attribution scores each node in a model that is otherwise whole. In a circuit most other nodes are ablated, and what
works alone is not what works best in a whole. Here each node's activation is mixed with its ablated value by a gate,

    z = clamp(1.2 sigmoid((log u - log(1 - u) + a) / (2/3)) - 0.1, 0, 1),      u uniform in (0, 1),

and a is trained on how far the metric is from the whole model's (a circuit that does more of the task than the model
is no better than one that does less, and masks learn to exaggerate), while a Lagrangian holds the expected number of
open gates at n, which falls from all of them to what was asked for. The scores are the gates' log-odds a.

Source: hard concrete gates, Louizos et al. 2018 (arXiv:1712.01312); subnetwork probing, Cao et al. 2021
(arXiv:2104.03514); edge pruning with a Lagrangian, Bhaskar et al. 2024 (arXiv:2406.16778).

A mask is fitted to the clips of its task more closely than a ranking by attribution is: measure the circuit on others.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from hooked_whisper.analysis.checks import check_whole, expect_all
from hooked_whisper.analysis.circuit_tasks import TASK, CircuitTask
from hooked_whisper.analysis.edges import Edge
from hooked_whisper.analysis.nodes import by_hook
from hooked_whisper.errors import AnalysisError

if TYPE_CHECKING:
    from hooked_whisper.hooks import HookFunction

TEMPERATURE = 2 / 3
LOW, HIGH = -0.1, 1.1  # what gates are stretched to before they are clamped
# A gate is open with the probability sigmoid(a - SHIFT).
SHIFT = TEMPERATURE * math.log(-LOW / HIGH)
_START = 2.0  # log-odds at first: open, and soft enough to be closed


def learned_scores(
    task: CircuitTask | Sequence[CircuitTask],
    n: int,
    *,
    steps: int = 200,
    lr: float = 0.1,
    seed: int = 0,
    progress: bool | None = None,
) -> Float[Tensor, " node"]:
    """Log-odds of each node's gate, in the order of the task's universe; a step is one forward and backward pass.

    Args:
        task: the model, its clips, what is put into closed nodes, and the metric. A step runs all clips in one batch.
            Several tasks with one universe, each with some of the clips, take turns: a step then runs one of them, and
            a mask has more clips to hold for.
        n: gates that may be open at the end.
        lr: of Adam, on the log-odds.
        seed: of the gates' noise, and of the order of tasks.

    Raises:
        AnalysisError: no task, tasks of different universes or models, settings out of range, or a metric without a
            gradient.
    """
    tasks = [task] if isinstance(task, CircuitTask) else expect_all(task, CircuitTask, TASK)
    task = _check_alike(tasks)
    n_nodes = len(task.universe)
    if not 1 <= check_whole("n", n, None) < n_nodes:
        raise AnalysisError(f"n={n}: expected 1 to {n_nodes - 1}, fewer than the {n_nodes} nodes of the universe.")
    if check_whole("steps", steps, None) < 1 or not lr > 0:
        raise AnalysisError(f"steps={steps} and lr={lr}: expected at least one step, and a rate above 0.")
    device = task.model.device
    generator = torch.Generator().manual_seed(seed)
    log_odds = torch.full((n_nodes,), _START, requires_grad=True)
    prices = torch.zeros(2, requires_grad=True)  # of gates too many, linear and squared
    down = torch.optim.Adam([log_odds], lr=lr)
    up = torch.optim.Adam([prices], lr=lr, maximize=True)
    wanted = [weight.requires_grad for weight in task.model.parameters()]
    gated = [Gated(one) for one in tasks]
    turns: list[int] = []
    bar = tqdm(range(steps), desc="gates", unit="step", disable=None if progress is None else not progress)
    try:
        task.model.requires_grad_(False)
        with torch.enable_grad():
            for step in bar:
                if not turns:
                    turns = torch.randperm(len(tasks), generator=generator).tolist()
                now = turns.pop()
                lost = tasks[now].lost(gated[now].logits(_draw(log_odds, generator).to(device)))
                # The number that is wanted falls over the first half.
                target = n_nodes + (n - n_nodes) * min(1.0, 2 * (step + 1) / steps)
                over = (torch.sigmoid(log_odds - SHIFT).sum() - target) / n_nodes
                loss = lost.abs().mean() + prices[0] * over + prices[1] * over**2
                for optimizer in (down, up):
                    optimizer.zero_grad(set_to_none=True)
                loss.backward()
                for optimizer in (down, up):
                    optimizer.step()
                open_now = int((log_odds.detach() > SHIFT).sum())
                bar.set_postfix(lost=f"{float(lost.detach().mean()):.2f}", open=open_now, refresh=False)
    finally:
        for weight, before in zip(task.model.parameters(), wanted, strict=True):
            weight.requires_grad_(before)
    return log_odds.detach()


def _check_alike(tasks: Sequence[CircuitTask]) -> CircuitTask:
    if not tasks:
        raise AnalysisError("No task was given: expected at least one.")
    first = tasks[0]
    if any(isinstance(part, Edge) for part in first.universe):
        raise AnalysisError("Gates are learnt on nodes: rank edges by attribute_edges(...).of(universe) instead.")
    for task in tasks[1:]:
        if task.universe != first.universe or task.model is not first.model:
            raise AnalysisError("The tasks differ in universe or model: build all of them with the same ones.")
    return first


def _draw(log_odds: Float[Tensor, " node"], generator: torch.Generator) -> Float[Tensor, " node"]:
    u = torch.rand(len(log_odds), generator=generator).clamp(1e-6, 1 - 1e-6)
    soft = torch.sigmoid((u.logit() + log_odds) / TEMPERATURE)
    return (soft * (HIGH - LOW) + LOW).clamp(0, 1)


class Gated:
    """Runs of a task's clean side with every node a mixture: its gate times its own activation, the rest ablated."""

    def __init__(self, task: CircuitTask) -> None:
        self.task = task
        self._place = {node: i for i, node in enumerate(task.universe)}
        self._groups = by_hook(task.universe)
        self._in_encoder = any(node.stack == "encoder" or node.hook == "hook_mel" for node in task.universe)
        self._laid_out: dict[str, tuple[Tensor, Tensor]] = {}

    def logits(self, gates: Float[Tensor, " node"]) -> Float[Tensor, "batch pos vocab"]:
        """With a gradient to the gates."""
        task = self.task
        with_open = torch.cat([gates, gates.new_ones(1)])  # the last, always open, is for what belongs to no node

        def mix(activation: Tensor, hook: Any) -> Tensor:
            which, ablated = self._layout(str(hook.name), activation)
            return torch.lerp(ablated, activation, with_open[which].to(activation))

        hooks: list[tuple[str, HookFunction]] = [(hook, mix) for hook in self._groups]
        with task.model.hooks(fwd_hooks=hooks):
            frames = task.model.encode_mel(task.clean.mel) if self._in_encoder else task.encoder_out
            return task.model.decode(task.clean.tokens, frames)

    @torch.no_grad()
    def _layout(self, hook: str, activation: Tensor) -> tuple[Tensor, Tensor]:
        """For each place of an activation the number of its gate, and what stands there ablated; both broadcast."""
        if hook not in self._laid_out:
            ablated = torch.zeros_like(activation)
            nodes = self._groups[hook]
            # The axes along which nodes lie; the others have one gate for all.
            sizes = [1] * activation.ndim
            for node in nodes:
                for axis, at in enumerate(node.index(activation.ndim)):
                    if at != slice(None):
                        sizes[axis] = activation.shape[axis]
            which = torch.full(sizes, len(self._place), device=activation.device)
            for node in nodes:
                node.write(ablated, self.task.ablated(node))
                which[node.index(which.ndim)] = self._place[node]
            self._laid_out[hook] = which, ablated
        return self._laid_out[hook]
