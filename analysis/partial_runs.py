"""Runs taken up in the middle: what an edited activation cannot change is computed once and used again.

A run of given inputs is recorded at the places where edits begin: the residual stream before a layer, the encoder's
output, cross-attention's keys and values of the frames. Many edited variants of it then go on from there in one batch,
each variant of a clip in a row of its own. Hooks and SAEs of the model stay active; a hook that tells rows of the batch
apart will take variants for clips.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hooked_whisper.analysis.checks import check_whole
from hooked_whisper.analysis.contrast import ModelInput
from hooked_whisper.analysis.nodes import Node, by_hook
from hooked_whisper.axes import axes
from hooked_whisper.components import see
from hooked_whisper.errors import AnalysisError
from hooked_whisper.hooks import StopForward
from hooked_whisper.kv_cache import KeyValueCache
from hooked_whisper.model import HookedWhisper
from hooked_whisper.spliced_sae import SAE_PREFIX
from hooked_whisper.stacks import _HALF_LIMIT
from hooked_whisper.step_kernels import linear_few_rows

INPUT = -1  # a stack's own input, before its first layer
_AT_INPUT = (
    "hook_mel", "encoder.hook_conv1", "encoder.hook_conv2", "encoder.hook_pos_embed", "decoder.hook_embed",
    "decoder.hook_pos_embed",
)  # fmt: skip


@dataclass(frozen=True, order=True)
class Start:
    """Where a run is taken up.

    Attributes:
        in_decoder: whether the encoder's output stands as it was. First, so that starts sort in the model's order.
        layer: before this layer; the number of layers stands for the final norm, -1 for the stack's own input.
    """

    in_decoder: bool
    layer: int


def start_of(model: HookedWhisper, hook: str) -> Start:
    """The last place from which a run still computes the activation of a hook, and all that follows from it."""
    place = hook.partition(SAE_PREFIX)[0]
    node = Node(place)
    encoder = place == "hook_mel" or node.stack == "encoder"
    if place in _AT_INPUT:
        return Start(not encoder, INPUT)
    if node.layer is None:
        layer = (model.cfg.encoder if encoder else model.cfg.decoder).n_layers
    else:
        layer = node.layer
    # A transcoder must see what it reads in the very pass in which it writes.
    readers = [Node(reads) for reads in model.acts_to_saes if reads.startswith("encoder." if encoder else "decoder.")]
    return Start(not encoder, min([layer, *(reader.layer for reader in readers if reader.layer is not None)]))


def check_replaceable(model: HookedWhisper, chosen: Iterable[Node]) -> None:
    """Raises AnalysisError for nodes whose activation is not one for each clip, or not one for each pass."""
    by_head = model.cfg.use_attn_in or model.cfg.use_split_qkv_input
    for hook in by_hook(chosen):
        if axes(hook)[0] != "batch":
            raise AnalysisError(f"{hook} is the same for every clip and every input: there is nothing to exchange.")
        if by_head and ".ln1." in hook:
            raise AnalysisError(
                f"{hook} is computed several times in a pass while heads read inputs of their own: take q, k or v, or "
                "switch off use_attn_in and use_split_qkv_input."
            )


class _SharedFrames(KeyValueCache):
    """Cross-attention's keys and values of each clip's frames, projected once, for rows that repeat the clips."""

    def __init__(self, kept: Mapping[int, tuple[Tensor, Tensor]], rows: Int[Tensor, " row"]) -> None:
        super().__init__()
        self._kept, self._rows = kept, rows

    def frames(
        self, layer: int
    ) -> tuple[Float[Tensor, "batch frame head d_head"], Float[Tensor, "batch frame head d_head"]] | None:
        if layer not in self._kept:
            return super().frames(layer)
        k, v = self._kept[layer]
        if len(k) == 1:
            return k.expand(len(self._rows), -1, -1, -1), v.expand(len(self._rows), -1, -1, -1)
        return k[self._rows], v[self._rows]


class RecordedRun:
    """A whole run of some inputs, and what it takes to go on from the middle of it.

    Attributes:
        inputs: what it was given.
        logits: [batch pos vocab].
        encoder_out: [batch frame d_model].
    """

    @torch.no_grad()
    def __init__(self, model: HookedWhisper, inputs: ModelInput, starts: Iterable[Start]) -> None:
        self.model, self.inputs = model, inputs
        self._streams: dict[Start, Tensor] = {}
        wanted = [start for start in sorted(set(starts)) if start.layer != INPUT]
        handles = [self._module(start).register_forward_pre_hook(self._keeper(start)) for start in wanted]
        try:
            self.encoder_out = model.encode_mel(inputs.mel)
            past = KeyValueCache()
            self.logits = model.decode(inputs.tokens, self.encoder_out, past=past)
        finally:
            for handle in handles:
                handle.remove()
        # As projected, before any hook.
        frames = {layer: past.frames(layer) for layer in range(model.cfg.decoder.n_layers)}
        if model.cfg.use_split_qkv_input:  # heads that read inputs of their own keep nothing
            frames = {layer: self._project(layer) for layer in frames if not self._reads_anew(layer)}
        self._frames = {
            layer: (kept[0].contiguous(), kept[1].contiguous()) for layer, kept in frames.items() if kept is not None
        }

    def __len__(self) -> int:
        return len(self.inputs)

    def _project(self, layer: int) -> tuple[Tensor, Tensor]:
        attention: Any = self.model.decoder.blocks[layer].cross_attn
        k, v = (attention._heads(attention._project(self.encoder_out, which)) for which in "kv")
        return k, v

    def _reads_anew(self, layer: int) -> bool:
        """Whether somebody listens to what heads of cross-attention read of the frames, and may change it."""
        block: Any = self.model.decoder.blocks[layer]
        split = self.model.cfg.use_split_qkv_input
        return split and bool(block.hook_cross_k_input.live or block.hook_cross_v_input.live)

    def _module(self, start: Start) -> torch.nn.Module:
        stack, norm = (
            (self.model.decoder, self.model.decoder.ln_final)
            if start.in_decoder
            else (self.model.encoder, self.model.encoder.ln_post)
        )
        return norm if start.layer == len(stack.blocks) else stack.blocks[start.layer]

    def _keeper(self, start: Start) -> Callable[[torch.nn.Module, tuple[Any, ...]], None]:
        def keep(_module: torch.nn.Module, inputs: tuple[Any, ...]) -> None:
            self._streams[start] = inputs[0].clone()  # hooks may edit the memory in place

        return keep

    @torch.no_grad()
    def frames_from(self, start: Start, rows: Int[Tensor, " row"]) -> Float[Tensor, "row frame d_model"]:
        """The encoder's output, computed anew from `start` for these clips; a clip may stand in several rows."""
        if start.in_decoder:
            return self.encoder_out[rows]
        if start.layer == INPUT:
            return self.model.encode_mel(self.inputs.mel[rows])
        encoder = self.model.encoder
        resid = self._streams[start][rows]
        for layer in range(start.layer, len(encoder.blocks)):
            resid = encoder.blocks[layer](resid, layer=layer)
            if resid.dtype == torch.float16:
                resid = resid.clamp(-_HALF_LIMIT, _HALF_LIMIT)
        return see(encoder.hook_out, encoder.ln_post(resid))

    @torch.no_grad()
    def logits_from(self, start: Start, rows: Int[Tensor, " row"]) -> Float[Tensor, "row pos vocab"]:
        """The logits, computed anew from `start`."""
        tokens = self.inputs.tokens[rows]
        if not start.in_decoder:
            return self.model.decode(tokens, self.frames_from(start, rows))
        past = _SharedFrames(self._frames, rows)
        frames = self.encoder_out[rows] if len(self) > 1 else self.encoder_out.expand(len(rows), -1, -1)
        if start.layer == INPUT:
            return self.model.decode(tokens, frames, past=past)
        decoder = self.model.decoder
        resid = self._streams[start][rows]
        for layer in range(start.layer, len(decoder.blocks)):
            kept = layer in self._frames and not self._reads_anew(layer)
            resid = decoder.blocks[layer](resid, None if kept else frames, past=past, layer=layer)
        logits = linear_few_rows(decoder.ln_final(resid), decoder.unembed.weight, decoder.unembed.bias)
        return see(self.model.hook_logits, logits)

    def activations(self, start: Start, hooks: Sequence[str]) -> dict[str, Tensor]:
        """What these hooks saw, from a run that is taken up at `start` and ends when all of them have fired."""
        kept: dict[str, Tensor] = {}

        def keep(activation: Tensor, hook: Any) -> None:
            kept[str(hook.name)] = activation.clone()
            if len(kept) == len(hooks):
                raise StopForward(activation)

        rows = torch.arange(len(self), device=self.encoder_out.device)
        with self.model.hooks(fwd_hooks=[(hook, keep) for hook in hooks]), contextlib.suppress(StopForward):
            self.logits_from(start, rows)
        return kept


# What to put into nodes: for each, a number, or a tensor [batch ...] (or [1 ...], for all clips) of its own shape.
Values = Mapping[Node, "Tensor | float"]
Until = Literal["logits", "frames"]


@dataclass(frozen=True)
class Chunk:
    """Nodes that are run together: for each its number among all, and the place from which they run."""

    start: Start
    numbers: tuple[int, ...]


def plan(model: HookedWhisper, chosen: Sequence[Node], batch: int, batch_size: int) -> list[Chunk]:
    """Which nodes run together, at most `batch_size` rows (clips times nodes) at once where that is possible.

    The plan depends on its arguments alone, so that a sweep which is continued computes what it would have computed.
    """
    check_whole("batch_size", batch_size)
    groups: dict[Start, list[int]] = {}
    for number, node in enumerate(chosen):
        groups.setdefault(start_of(model, node.hook), []).append(number)
    size = max(1, batch_size // batch)
    return [
        Chunk(start, tuple(numbers[at : at + size]))
        for start, numbers in sorted(groups.items())
        for at in range(0, len(numbers), size)
    ]


def run_chunk(
    recorded: RecordedRun,
    chunk: Chunk,
    chosen: Sequence[Node],
    values: Values,
    batch_size: int,
    *,
    until: Until = "logits",
) -> Iterator[tuple[int, Tensor]]:
    """For each node of a chunk its number and the output [batch ...] of the run in which it alone is replaced."""
    sets = [[chosen[number]] for number in chunk.numbers]
    return zip(chunk.numbers, run_sets(recorded, chunk.start, sets, values, batch_size, until=until), strict=True)


def run_sets(
    recorded: RecordedRun,
    start: Start,
    sets: Sequence[Sequence[Node]],
    values: Values,
    batch_size: int,
    *,
    until: Until = "logits",
) -> list[Tensor]:
    """For each set of nodes the output [batch ...] of the run in which all of them are replaced.

    Args:
        start: at or before the start of every node.
        batch_size: rows (sets times clips) of one pass at most.
    """
    batch = len(recorded)
    rows = [(number, clip) for number in range(len(sets)) for clip in range(batch)]
    run = recorded.logits_from if until == "logits" else recorded.frames_from
    outputs = []
    for at in range(0, len(rows), batch_size):
        some = rows[at : at + batch_size]
        clips = torch.tensor([clip for _, clip in some], device=recorded.encoder_out.device)
        with recorded.model.hooks(fwd_hooks=_hooks([(sets[number], clip) for number, clip in some], values)):
            outputs.append(run(start, clips))
    return list(torch.cat(outputs).split(batch))


def _hooks(rows: Sequence[tuple[Sequence[Node], int]], values: Values) -> list[tuple[str, Callable[..., Tensor]]]:
    """Hooks that put into each row of a batch the values of its nodes for its clip."""
    placed: dict[str, list[tuple[int, Node, int]]] = {}
    for row, (chosen, clip) in enumerate(rows):
        for node in chosen:
            placed.setdefault(node.hook, []).append((row, node, clip))

    def hook_for(here: list[tuple[int, Node, int]]) -> Callable[..., Tensor]:
        def replace(activation: Tensor, hook: Any) -> Tensor:
            edited = activation.clone()
            for row, node, clip in here:
                value = values[node]
                if isinstance(value, Tensor):
                    value = value if len(value) == 1 else value[clip : clip + 1]
                node.write(edited[row : row + 1], value)
            return edited

        return replace

    return [(name, hook_for(here)) for name, here in placed.items()]
