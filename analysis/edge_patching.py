"""Exact patching and ablation of edges: a run in which one reader takes in something else of one writer.

    chosen = edges(model, readers=[Node("decoder.blocks.5.hook_mlp_in")])
    patch_edges(model, contrast, chosen, metric).top(10)
    ablate_edges(model, inputs, chosen, metric, by="mean", statistics=node_statistics(model, corpus, writers(model)))
    with ablated_edges(model, chosen[:3]):
        model.transcribe("speech.wav")

Patching an edge is path patching (Wang et al. 2023, arXiv:2211.00593; Goldowsky-Dill et al. 2023, arXiv:2304.05969)
along a path of one step: the reader's input in the patched run is what it was, and

    what the writer writes in the other run - what it writes in this one

Everything else that the writer feeds stays as it is. Where several edges are exchanged at once, "in this one" means in
the very run in which the others are exchanged, too. Exchange all edges of a reader, and its input is the other run's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from hooked_whisper.analysis.ablation import (
    AblationResult,
    By,
    NodeStatistics,
    ablation_value,
    check_ablation,
    whole_texts,
)
from hooked_whisper.analysis.ablation import ablation_values as values_of
from hooked_whisper.analysis.checks import CONTRAST, INPUT, expect, expect_metric
from hooked_whisper.analysis.contrast import Contrast, ModelInput
from hooked_whisper.analysis.edge_runs import EdgeRuns, Rewiring
from hooked_whisper.analysis.edges import Edge, check_edges, split_inputs
from hooked_whisper.analysis.metrics import Metric, check_metric
from hooked_whisper.analysis.nodes import Node
from hooked_whisper.analysis.partial_runs import Values, plan
from hooked_whisper.analysis.patching import BATCH_SIZE, Direction, PatchingResult, check_direction
from hooked_whisper.analysis.sweep_log import SweepLog, sweep_fingerprint
from hooked_whisper.model import HookedWhisper


@torch.no_grad()
def patch_edges(
    model: HookedWhisper,
    contrast: Contrast,
    edges: Sequence[Edge],
    metric: Metric,
    *,
    direction: Direction = "denoise",
    batch_size: int = BATCH_SIZE,
    progress: bool | None = None,
    out: str | Path | None = None,
) -> PatchingResult[Edge]:
    """The metric of a run in which one edge is the other run's, for each edge and clip; `patch` for edges.

    A run begins at the reader's layer. Activations of the writers of both runs are held in memory.

    Args:
        edges: as `hooked_whisper.analysis.edges.edges` lists them, or others with spans.
        metric: any function of logits; it needs no gradient.
        direction: "denoise": clean into the corrupted run; "noise": the other way.
        batch_size: rows (edges times clips) of one pass at most.
        progress: show a bar; None shows it where stderr is a terminal.
        out: a file of JSON lines, from which a sweep that was broken off is continued; see `patch`.

    Raises:
        AnalysisError: no edges, one twice, one that the model does not have; SAEs attached; a metric that is not one
            finite number for each clip; a file of another sweep.
    """
    check_direction(direction)
    expect(contrast, Contrast, CONTRAST)
    expect_metric(metric)
    chosen = check_edges(model, edges)
    clean, corrupted = (EdgeRuns(model, side, chosen) for side in (contrast.clean, contrast.corrupted))
    batch = len(contrast)
    ends = [check_metric(metric(side.recorded.logits), batch).double().cpu() for side in (clean, corrupted)]
    recipient, donor = (corrupted, clean) if direction == "denoise" else (clean, corrupted)
    log = None
    if out is not None:
        about = {
            "what": "patch_edges",
            "fingerprint": sweep_fingerprint(model, contrast, chosen, metric, direction),
            "clean": ends[0].tolist(),
            "corrupted": ends[1].tolist(),
        }
        log = SweepLog(Path(out), about)
    values = donor.written([edge.writer for edge in chosen])
    effects = _sweep(recipient, chosen, metric, values, batch_size, progress, "patching", log)
    return PatchingResult(tuple(chosen), effects, ends[0], ends[1], direction)


@torch.no_grad()
def ablate_edges(
    model: HookedWhisper,
    inputs: ModelInput,
    edges: Sequence[Edge],
    metric: Metric,
    *,
    by: By = "zero",
    statistics: NodeStatistics | None = None,
    seed: int = 0,
    batch_size: int = BATCH_SIZE,
    progress: bool | None = None,
) -> AblationResult[Edge]:
    """The metric with each edge ablated on its own: its reader takes in nothing, a mean, or another clip's activation.

    Args:
        by: "zero", "mean" or "resample"; the latter two need `statistics` of the edges' writers.
        seed: of the draws of "resample".
        batch_size, progress: see `patch_edges`.

    Raises:
        AnalysisError: see `patch_edges`; an unknown way, or statistics that lack what it needs.
    """
    expect(inputs, ModelInput, INPUT)
    expect_metric(metric)
    chosen = check_edges(model, edges)
    writers = _writers(chosen)
    check_ablation(model, writers, by, statistics)
    runs = EdgeRuns(model, inputs, chosen)
    whole = check_metric(metric(runs.recorded.logits), len(inputs)).double().cpu()
    values = values_of(inputs, writers, by, statistics, seed)
    return AblationResult(
        tuple(chosen), _sweep(runs, chosen, metric, values, batch_size, progress, "ablating", None), whole, by
    )


@contextmanager
def ablated_edges(
    model: HookedWhisper,
    edges: Sequence[Edge],
    *,
    by: By = "zero",
    statistics: NodeStatistics | None = None,
    seed: int = 0,
) -> Iterator[HookedWhisper]:
    """All of the edges ablated for the length of a `with` block, in whatever the model is used for.

    Edges from the encoder into cross-attention are ablated anew at every step, while the model writes a text.

    Raises:
        AnalysisError: see `ablate_edges`; within the block, spans of tokens while the model writes a text (see
            `ablated`).
    """
    chosen = check_edges(model, edges)
    check_ablation(model, _writers(chosen), by, statistics)

    def stand_in(writer: Node, activation: Tensor) -> Tensor | float:
        return ablation_value(writer, by, statistics, activation, seed)

    rewiring = Rewiring(model, chosen, torch.ones(1, len(chosen), device=model.device), stand_in)
    ends = [node for edge in chosen for node in (edge.writer, edge.reader)]
    with split_inputs(model), whole_texts(model, ends), model.hooks(fwd_hooks=rewiring.hooks):
        yield model


def _writers(chosen: Sequence[Edge]) -> list[Node]:
    return list(dict.fromkeys(edge.writer for edge in chosen))


def _sweep(
    runs: EdgeRuns,
    chosen: Sequence[Edge],
    metric: Metric,
    values: Values,
    batch_size: int,
    progress: bool | None,
    what: str,
    log: SweepLog | None,
) -> Tensor:
    """The metric with each edge exchanged on its own, [edge batch]."""
    batch = len(runs.recorded)
    found: dict[Edge, list[float]] = {} if log is None else log.read(chosen)
    hidden = None if progress is None else not progress
    with tqdm(total=len(chosen), initial=len(found), desc=what, unit="edge", disable=hidden) as bar:
        for chunk in plan(runs.model, [edge.reader for edge in chosen], batch, batch_size):
            here = [chosen[number] for number in chunk.numbers]
            if all(edge in found for edge in here):
                continue
            for edge, logits in zip(here, runs.logits([[edge] for edge in here], values, batch_size), strict=True):
                effects = check_metric(metric(logits), batch).double().cpu().tolist()
                if edge in found:
                    continue
                found[edge] = effects
                if log is not None:
                    log.add(edge, effects)
                bar.update()
    return torch.tensor([found[edge] for edge in chosen], dtype=torch.float64)
