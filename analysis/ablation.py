"""Ablation: a node's activation replaced by what says nothing about the input.

    ablate(model, inputs, nodes(model), metric, by="mean", statistics=node_statistics(model, corpus, nodes(model)))
    with ablated(model, [Node.parse("decoder.3.cross.head.1")], by="zero"):
        model.transcribe("speech.wav")

Three ways: "zero" (often far from anything the model has seen, so that it breaks more than the node did), "mean" (of
the node's activation over other clips, which keeps what is the same for all), "resample" (the activation of another
clip, which stays on the model's own ground). Means and samples are taken over real positions: frames in which there is
audio, tokens that are not padding.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, Literal

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from hooked_whisper.analysis.checks import INPUT, check_whole, described, expect, expect_metric, largest
from hooked_whisper.analysis.contrast import ModelInput
from hooked_whisper.analysis.edges import PartT, parse_parts
from hooked_whisper.analysis.metrics import Metric, check_metric
from hooked_whisper.analysis.nodes import Node, by_hook, check_nodes
from hooked_whisper.analysis.partial_runs import RecordedRun, Values, check_replaceable, plan, run_chunk, start_of
from hooked_whisper.analysis.result_files import figures, one_of, read_fields, written
from hooked_whisper.axes import axes
from hooked_whisper.errors import AnalysisError
from hooked_whisper.model import HookedWhisper

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WAYS = ("zero", "mean", "resample")
if TYPE_CHECKING:
    By = Literal["zero", "mean", "resample"]
else:
    By = str  # checked here, with a message that says more than a type checker's
BATCH_SIZE = 8


@dataclass(frozen=True)
class NodeStatistics:
    """What nodes' hooks hold over a corpus, at real positions.

    Attributes:
        means: for each hook the mean over clips and positions, in the activation's own rank, those axes of length 1.
        n_positions: how many positions each mean is of.
        bank: for each hook the activations of some clips, each [position ...], to resample from.
    """

    means: dict[str, Float[Tensor, "..."]]
    n_positions: dict[str, int]
    bank: dict[str, list[Float[Tensor, "..."]]] = field(default_factory=dict)

    def mean(self, node: Node) -> Float[Tensor, "..."]:
        """The mean activation of a node, [1 1 ...]: the same for every clip and position.

        Raises:
            AnalysisError: a hook that was not among the nodes given.
        """
        if node.hook not in self.means:
            raise AnalysisError(f"The statistics hold nothing of {node.hook}: give its nodes to node_statistics().")
        return node.part.read(self.means[node.hook])

    def sample(self, node: Node, batch: int, n_positions: int, *, seed: int = 0) -> Float[Tensor, "..."]:
        """A node's activation in clips drawn from the bank, for each clip of a batch.

        A sample shorter than asked for is read from its beginning again. Each node has draws of its own.

        Raises:
            AnalysisError: no bank of this hook.
        """
        clips = self.bank.get(node.hook)
        if not clips:
            raise AnalysisError(
                f"The statistics hold no activations of {node.hook} to resample from: node_statistics(..., bank=n)."
            )
        # By the node's name, so that draws do not depend on which other nodes are ablated.
        generator = torch.Generator().manual_seed(seed + zlib.crc32(str(node.part).encode()))
        chosen = torch.randint(len(clips), (batch,), generator=generator).tolist()
        rows = [clips[i][torch.arange(n_positions, device=clips[i].device) % len(clips[i])] for i in chosen]
        return node.read(torch.stack(rows).movedim(1, _position(node.hook, rows[0].ndim + 1)))


@torch.no_grad()
def node_statistics(
    model: HookedWhisper,
    corpus: Sequence[ModelInput],
    nodes: Sequence[Node],
    *,
    bank: int = 0,
    progress: bool | None = None,
) -> NodeStatistics:
    """Mean activations of nodes over a corpus, and a bank of some clips' activations.

    Args:
        corpus: as `ModelInput.of` makes it; padding is left out where an input has masks (it has, made from audio).
        nodes: whose hooks to look at; spans, heads and units do not matter.
        bank: how many clips' activations to keep, the first ones.

    Raises:
        AnalysisError: no inputs; a node that is not one for each clip; scores and patterns, whose keys have no mean;
            fewer clips than the bank is to hold. HookNameError: an unknown hook.
    """
    chosen = check_nodes(model, nodes)
    check_replaceable(model, chosen)
    hooks = list(by_hook(chosen))
    if isinstance(corpus, ModelInput) or not all(isinstance(inputs, ModelInput) for inputs in corpus):
        raise AnalysisError(f"Expected a list of inputs, such as [ModelInput.of(model, ...)], got {described(corpus)}.")
    if not corpus:
        raise AnalysisError("No inputs were given to take means of.")
    n_clips = sum(map(len, corpus))
    if check_whole("bank", bank, None) < 0 or bank > n_clips:
        raise AnalysisError(f"bank={bank}: the corpus has {n_clips} clips.")
    for hook in hooks:
        _refuse_patterns(hook)
    totals: dict[str, Tensor] = {}
    counts = dict.fromkeys(hooks, 0)
    kept: dict[str, list[Tensor]] = {hook: [] for hook in hooks} if bank else {}
    for inputs in tqdm(corpus, desc="statistics", unit="input", disable=None if progress is None else not progress):
        seen, caching, _ = model.get_caching_hooks(hooks)
        with model.hooks(fwd_hooks=caching), model._guarded():
            inputs.logits(model)
        for hook in hooks:
            activation = seen.pop(hook)
            at = _position(hook, activation.ndim)
            by_position = activation.movedim(at, 1)
            for clip, real in zip(by_position, _real_positions(inputs, hook, by_position.shape[1]), strict=True):
                rows = clip[real]
                counts[hook] += len(rows)
                total = rows.sum(0, dtype=torch.float64)
                totals[hook] = total if hook not in totals else totals[hook] + total
                if bank and len(kept[hook]) < bank:
                    kept[hook].append(rows.clone())
    means = {}
    for hook, total in totals.items():
        mean = (total / counts[hook]).to(model.dtype)[None, None]
        means[hook] = mean.movedim(1, _position(hook, mean.ndim))
    return NodeStatistics(means, counts, kept)


@contextmanager
def ablated(
    model: HookedWhisper,
    nodes: Sequence[Node],
    *,
    by: By = "zero",
    statistics: NodeStatistics | None = None,
    seed: int = 0,
) -> Iterator[HookedWhisper]:
    """All of the nodes ablated for the length of a `with` block, in whatever the model is used for.

    While the model writes a text, the decoder sees one new position at a time, so nodes with a span of tokens are
    refused there.

    Raises:
        AnalysisError: no nodes, an unknown way, or statistics that lack what it needs; within the block, spans of
            tokens while the model writes a text.
    """
    chosen = check_ablation(model, nodes, by, statistics)

    def hook_for(here: Sequence[Node]) -> Callable[..., Tensor]:
        def replace(activation: Tensor, hook: Any) -> Tensor:
            edited = activation.clone()
            for node in here:
                node.write(edited, ablation_value(node, by, statistics, activation, seed))
            return edited

        return replace

    hooks = [(hook, hook_for(here)) for hook, here in by_hook(chosen).items()]
    with whole_texts(model, chosen), model.hooks(fwd_hooks=hooks):
        yield model


@contextmanager
def whole_texts(model: HookedWhisper, nodes: Sequence[Node]) -> Iterator[None]:
    """While it lasts, the decoder refuses to go on from tokens that it has read, where nodes have spans of tokens.

    Raises:
        AnalysisError: within the block; a span would count from the new tokens, and be another one at every step.
    """
    spanned = next((node for node in nodes if node.span is not None and node.position_axis == "pos"), None)
    if spanned is None:
        yield
        return

    def refuse(_decoder: torch.nn.Module, _inputs: Any, options: dict[str, Any]) -> None:
        past = options.get("past")
        if past is not None and past.get_seq_length():
            raise AnalysisError(
                f"{spanned} has a span of tokens: while the model writes, it sees one new token at each step, and not "
                "those. Leave the span out, or give the text."
            )

    handle = model.decoder.register_forward_pre_hook(refuse, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


@dataclass(frozen=True)
class AblationResult(Generic[PartT]):
    """What is left of a metric when each node, or edge, is ablated on its own.

    Attributes:
        nodes: in the order given.
        effects: the metric with this node alone ablated.
        whole: the metric of the whole model.
        by: "zero", "mean" or "resample".
    """

    nodes: tuple[PartT, ...]
    effects: Float[Tensor, "node batch"]
    whole: Float[Tensor, " batch"]
    by: By

    @property
    def change(self) -> Float[Tensor, "node batch"]:
        """The ablated metric less the whole model's: below 0 where the node helps."""
        return self.effects - self.whole

    def top(self, n: int = 10) -> list[tuple[PartT, float]]:
        """The n nodes whose ablation changes the metric most, either way, mean over clips, largest change first.

        Raises:
            AnalysisError: n below 1.
        """
        means = self.change.mean(1)
        return [(self.nodes[i], float(means[i])) for i in largest(means, n)]

    def plot(self) -> Figure:
        """A heatmap of changes for each kind of node, or of edge, mean over clips.

        Raises:
            MissingExtraError: matplotlib is not installed.
        """
        from hooked_whisper.analysis.node_plots import plot_parts

        return plot_parts(self.nodes, self.change.mean(1), f"change of the metric ({self.by} ablation)")

    def to_json(self) -> str:
        """All of it as JSON; `from_json` reads it back, exactly."""
        return written(
            {
                "by": self.by,
                "nodes": [str(node) for node in self.nodes],
                "effects": self.effects.tolist(),
                "whole": self.whole.tolist(),
            }
        )

    @classmethod
    def from_json(cls, text: str) -> AblationResult[Any]:
        """A result from what `to_json` wrote.

        Raises:
            AnalysisError: no JSON, or not of a result.
        """
        fields = ("by", "nodes", "effects", "whole")
        data = read_fields(text, "ablation result", "AblationResult.to_json", fields)
        nodes, whole = parse_parts(data["nodes"]), figures(data, "whole", None)
        return cls(nodes, figures(data, "effects", len(nodes), len(whole)), whole, one_of(data, "by", WAYS))  # type: ignore[arg-type]


@torch.no_grad()
def ablate(
    model: HookedWhisper,
    inputs: ModelInput,
    nodes: Sequence[Node],
    metric: Metric,
    *,
    by: By = "zero",
    statistics: NodeStatistics | None = None,
    seed: int = 0,
    batch_size: int = BATCH_SIZE,
    progress: bool | None = None,
) -> AblationResult[Node]:
    """The metric with each node ablated on its own.

    Args:
        by: "zero", "mean" or "resample"; the latter two need `statistics`.
        seed: of the draws of "resample".
        batch_size: rows (nodes times clips) of one pass at most.
        progress: show a bar; None shows it where stderr is a terminal.

    Raises:
        AnalysisError: as `ablated`; a metric that is not one finite number for each clip.
    """
    expect(inputs, ModelInput, INPUT)
    expect_metric(metric)
    chosen = check_ablation(model, nodes, by, statistics)
    recorded = RecordedRun(model, inputs, {start_of(model, node.hook) for node in chosen})
    batch = len(inputs)
    whole = check_metric(metric(recorded.logits), batch).double().cpu()
    found: dict[int, Tensor] = {}
    hidden = None if progress is None else not progress
    with tqdm(total=len(chosen), desc="ablating", unit="node", disable=hidden) as bar:
        for chunk in plan(model, chosen, batch, batch_size):
            values = ablation_values(inputs, [chosen[i] for i in chunk.numbers], by, statistics, seed)
            for number, logits in run_chunk(recorded, chunk, chosen, values, batch_size):
                found[number] = check_metric(metric(logits), batch).double().cpu()
                bar.update()
    effects = torch.stack([found[number] for number in range(len(chosen))])
    return AblationResult(tuple(chosen), effects, whole, by)


def ablation_values(
    inputs: ModelInput, nodes: Sequence[Node], by: By, statistics: NodeStatistics | None, seed: int = 0
) -> Values:
    """What to put into each node for a batch of inputs."""
    sizes: Mapping[str, int] = {
        "mel_frame": inputs.mel.shape[2], "frame": (inputs.mel.shape[2] + 1) // 2, "pos": inputs.tokens.shape[1]
    }  # fmt: skip
    lengths = {node.hook: sizes[node.position_axis.removeprefix("key_")] for node in nodes}
    return {node: _value(node, by, statistics, len(inputs), lengths[node.hook], seed) for node in nodes}


def ablation_value(
    node: Node, by: By, statistics: NodeStatistics | None, activation: Tensor, seed: int = 0
) -> Tensor | float:
    """What to put into a node in the place of this activation of its hook."""
    length = activation.shape[_position(node.hook, activation.ndim)]
    return _value(node, by, statistics, len(activation), length, seed)


def _value(
    node: Node, by: str, statistics: NodeStatistics | None, batch: int, n_positions: int, seed: int
) -> Tensor | float:
    if by == "zero":
        return 0.0
    assert statistics is not None
    return statistics.mean(node) if by == "mean" else statistics.sample(node, batch, n_positions, seed=seed)


def check_ablation(
    model: HookedWhisper, nodes: Sequence[Node], by: str, statistics: NodeStatistics | None
) -> list[Node]:
    """The nodes, if they can be ablated in this way.

    Raises:
        AnalysisError: see `ablated`.
    """
    if by not in WAYS:
        raise AnalysisError(f"Unknown ablation {by!r}: expected {', '.join(WAYS)}.")
    if by != "zero" and statistics is None:
        raise AnalysisError(f"by={by!r} needs statistics=: node_statistics(model, corpus, nodes) makes them.")
    chosen = check_nodes(model, nodes)
    check_replaceable(model, chosen)
    if by != "zero":
        assert statistics is not None
        for node in by_hook(chosen).values():
            _ = statistics.mean(node[0]) if by == "mean" else statistics.sample(node[0].part, 1, 1)
    return chosen


def _position(hook: str, ndim: int) -> int:
    """Which axis of a hook's activation counts positions."""
    return axes(hook, ndim).index(Node(hook).position_axis)


def _refuse_patterns(hook: str) -> None:
    if hook.endswith(("hook_attn_scores", "hook_pattern")):
        raise AnalysisError(
            f"{hook} has a row for each query over that input's own keys, which have no mean over inputs: ablate the "
            "head's output (hook_z), or patch the pattern from another run."
        )


def _real_positions(inputs: ModelInput, hook: str, n_positions: int) -> Tensor:
    """[batch position], True where there is audio or a token."""
    axis = Node(hook).position_axis.removeprefix("key_")
    mask = inputs.token_mask if axis == "pos" else inputs.frame_mask
    if mask is None:
        return torch.ones(len(inputs), n_positions, dtype=torch.bool, device=inputs.mel.device)
    if axis == "mel_frame":
        mask = mask.repeat_interleave(2, dim=1)
    return mask[:, :n_positions].to(inputs.mel.device)
