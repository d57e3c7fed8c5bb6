"""Attribution: what patching each node would do, for all nodes at once, from gradients.

    pair = Contrast.of(model, clean="english.wav", corrupted="french.wav", text=[model.tokenizer.sot])
    found = attribute(model, pair, nodes(model, ["head", "mlp"]), metric, method="integrated")
    found.scores                                             # [node batch], in the metric's unit
    found.top(10)                                            # nodes with the largest effects

Patching puts a node's activation in the other run into the base run. To first order that changes the metric by

    score(node) = (activation in the other run - activation in the base run) . gradient of the metric at the node

so one forward and one backward pass serve all nodes ("patching"). "integrated" follows the gradient on the way from one
activation to the other, where the metric bends. It goes two ways. `along="inputs"` moves the input, and with it
everything at once, as EAP-IG does. `along="nodes"` moves the nodes themselves, a few in each pass, while the rest of
the model stays where the patched run has it. Half of one spectrogram and half of another is no speech, and what the
model makes of it says little of either: the second follows exact patching far better.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from hooked_whisper.analysis.checks import CONTRAST, check_whole, expect, largest
from hooked_whisper.analysis.contrast import Contrast, ModelInput
from hooked_whisper.analysis.gradient_passes import ChunkMetric, Path, frozen, in_decoder
from hooked_whisper.analysis.metrics import Metric
from hooked_whisper.analysis.nodes import Node, check_nodes
from hooked_whisper.errors import AnalysisError
from hooked_whisper.model import HookedWhisper

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    Direction = Literal["denoise", "noise"]
    AttributionMethod = Literal["patching", "integrated"]
    Along = Literal["nodes", "inputs"]
else:
    Direction = AttributionMethod = Along = str  # checked here, with messages that say more than a type checker's


@dataclass(frozen=True)
class Attribution:
    """What patching each node is estimated to do to the metric.

    Attributes:
        nodes: the nodes, in the order of `scores`.
        scores: [node batch]: metric of the patched run less that of the base run, estimated; same sign and unit as
            exact patching's.
        base: [batch], the metric of the run that would be patched.
        other: [batch], the metric of the run that the activations would come from.
        direction: "denoise": the corrupted run would be patched with clean activations; "noise": the other way.
        method, steps: how the gradient was taken, and at how many inputs.
    """

    nodes: list[Node]
    scores: Float[Tensor, "node batch"]
    base: Float[Tensor, "batch"]
    other: Float[Tensor, "batch"]
    direction: Direction
    method: AttributionMethod
    steps: int

    def __getitem__(self, node: Node) -> Float[Tensor, "batch"]:
        """The scores of one node.

        Raises:
            AnalysisError: it was not among the nodes.
        """
        if node not in self.nodes:
            raise AnalysisError(f"{node} was not among the {len(self.nodes)} nodes.")
        return self.scores[self.nodes.index(node)]

    @property
    def mean(self) -> Float[Tensor, "node"]:
        """Scores, mean over the clips."""
        return self.scores.mean(1)

    def top(self, n: int = 10) -> list[tuple[Node, float]]:
        """The n nodes with the largest effects of either sign, mean over the clips, largest first.

        Raises:
            AnalysisError: n below 1.
        """
        mean = self.mean
        return [(self.nodes[place], float(mean[place])) for place in largest(mean, n)]

    def plot(self) -> Figure:
        """Scores as a picture, mean over the clips: heads by layer, or nodes by span."""
        from hooked_whisper.analysis.node_plots import plot_nodes

        return plot_nodes(self.nodes, self.mean, "estimated change of the metric")


def attribute(
    model: HookedWhisper,
    contrast: Contrast,
    nodes: Sequence[Node],
    metric: Metric,
    *,
    steps: int | None = None,
    method: AttributionMethod = "patching",
    along: Along = "nodes",
    direction: Direction = "denoise",
    batch_size: int = 1,
    progress: bool | None = None,
) -> Attribution:
    """Estimates the effect of patching each node, for all nodes at once.

    Costs one forward pass of each side and, whatever the number of nodes, for each step one forward and backward pass
    of the model (`along="nodes"`: and one of the decoder alone, if there are nodes in both stacks). Memory holds the
    nodes' activations once and what torch keeps for one backward pass; gradients are summed up as they come.

    Args:
        nodes: of any kind that has a gradient: heads, queries, keys, values, MLPs, neurons, residuals, patterns,
            latents and errors of attached SAEs (`{hook}.hook_sae_acts_post`, `.hook_sae_error`), whole or in spans.
        metric: logits to one number for each clip, each clip's from its own logits alone.
        steps: 1 for "patching", where the gradient is that of the base run. `along="nodes"`: into how many passes the
            nodes are dealt out (32); each is moved half-way in one of them (the midpoint rule), along with
            1 / steps of the others, which disturb it the less the more steps there are. `along="inputs"`: at how many
            inputs between the two the gradient is taken (10).
        method: "patching" (Nanda 2023, https://www.neelnanda.io/mechanistic-interpretability/attribution-patching;
            Syed et al. 2023, arXiv:2310.10348) or "integrated".
        along: what "integrated" moves: the nodes, or the spectrogram and the token embeddings (EAP-IG, Hanna et al.
            2024, arXiv:2403.17806).
        direction: "denoise" estimates what clean activations restore in the corrupted run, "noise" what corrupted ones
            break in the clean run.
        batch_size: clips that are run together.
        progress: whether to show a bar; None shows it on a terminal.

    An SAE attached with its error term is passed by in full: nodes before it get the gradient that the model without it
    would give them, as in exact patching, where the error is computed anew.

    Raises:
        AnalysisError: nodes that are not there or carry no batch, a metric without a gradient or not finite, steps that
            do not go with the method, scores that are not finite.
    """
    chosen = check_nodes(model, nodes)
    n_steps = _checked_steps(method, along, steps)
    base, other = sides(contrast, direction)
    check_whole("batch_size", batch_size)
    n_clips = len(contrast)
    scores, before, after = (
        torch.zeros(size, dtype=torch.float64) for size in ((len(chosen), n_clips), (n_clips,), (n_clips,))
    )
    deals = deal(chosen, n_steps) if method == "integrated" and along == "nodes" else []
    chunks = [list(range(at, min(at + batch_size, n_clips))) for at in range(0, n_clips, batch_size)]
    bar = tqdm(
        total=len(chunks) * (2 + (len(deals) or n_steps)), desc="attribution", unit="pass", disable=_off(progress)
    )
    with bar, frozen(model):
        for rows in chunks:
            judge = ChunkMetric(metric, rows, n_clips)
            start, end = (ModelInput(side.mel[rows], side.tokens[rows]) for side in (base, other))
            path = Path.between(model, start, end, chosen, judge)
            before[rows], after[rows] = (end.double().cpu() for end in path.ends)
            bar.update(2)
            if deals:
                passes = (path.moved(model, group, judge) for group in deals)
            elif method == "patching":
                passes = (path.at_input(model, 0.0, judge) for _ in range(1))
            else:
                passes = (path.at_input(model, (i + 0.5) / n_steps, judge) for i in range(n_steps))
            weight = 1.0 if deals else 1 / n_steps
            for found in passes:
                for places, values in found:
                    scores[torch.tensor(places)[:, None], torch.tensor(rows)] += weight * values.T.double().cpu()
                bar.update()
    if not torch.isfinite(scores).all():
        broken = chosen[int((~torch.isfinite(scores)).any(1).nonzero()[0])]
        raise AnalysisError(
            f"The score of {broken} is not finite: an activation or a gradient overflows. Run the model in float32."
        )
    return Attribution(chosen, scores, before, after, direction, method, n_steps)


def sides(contrast: Contrast, direction: Direction) -> tuple[ModelInput, ModelInput]:
    """The base run's input, and that of the run that activations come from.

    Raises:
        AnalysisError: no contrast, or another direction.
    """
    expect(contrast, Contrast, CONTRAST)
    if direction not in ("denoise", "noise"):
        raise AnalysisError(f"Unknown direction {direction!r}: expected 'denoise' or 'noise'.")
    if direction == "denoise":
        return contrast.corrupted, contrast.clean
    return contrast.clean, contrast.corrupted


def _checked_steps(method: str, along: str, steps: int | None) -> int:
    if method not in ("patching", "integrated"):
        raise AnalysisError(f"Unknown method {method!r}: expected 'patching' or 'integrated'.")
    if along not in ("nodes", "inputs"):
        raise AnalysisError(f"Unknown along={along!r}: expected 'nodes' or 'inputs'.")
    if method == "patching" and along == "inputs":
        raise AnalysisError(
            "along='inputs' does not go with method='patching', which takes the gradient at the base alone: pass "
            "method='integrated'."
        )
    default = 1 if method == "patching" else (32 if along == "nodes" else 10)
    n_steps = default if steps is None else check_whole("steps", steps, None)
    if n_steps < 1 or (method == "patching" and n_steps != 1):
        raise AnalysisError(
            f"steps={n_steps} does not go with method={method!r}: 'patching' takes the gradient at the base alone, "
            "'integrated' needs one step or more."
        )
    return n_steps


def _off(progress: bool | None) -> bool | None:
    return None if progress is None else not progress  # None: tqdm shows it on a terminal alone


def deal(nodes: Sequence[Node], steps: int) -> list[list[int]]:
    """Nodes dealt out into groups, those of the encoder into as many as `steps`, and those of the decoder likewise.

    Nodes that disturb each other most, those of one kind in the same span, come into different groups as far as there
    are groups; the rest is chance, the same at every call.
    """
    generator = torch.Generator().manual_seed(0)
    groups: list[list[int]] = []
    for late in (False, True):
        places = [place for place, node in enumerate(nodes) if in_decoder(node) is late]
        shuffled = [places[i] for i in torch.randperm(len(places), generator=generator).tolist()]
        shuffled.sort(key=lambda place: (nodes[place].span or (0, 0), nodes[place].hook.rpartition(".")[2]))
        groups += [shuffled[first::steps] for first in range(min(steps, len(shuffled)))]
    return groups
