"""Activation patching: one run with one node's activation taken from another run, node by node.

    pair = Contrast.of(model, clean="ten.wav", corrupted="two.wav", text=" Press", language="en")
    metric = LogitDifference.of(model, " ten", " two")
    result = patch(model, pair, nodes(model, ["head", "mlp"]), metric)
    result.top(10), result.plot()

Every figure is exact: each node has a run of its own. What a node cannot change is not computed again: nodes of the
decoder use the encoder's output again, with cross-attention's keys and values, and nodes of a later layer the layers
before it.

Directions (Heimersheim and Nanda 2024, arXiv:2404.15255): "denoise" puts the clean activation into the corrupted run
and asks what suffices to bring the clean output back; "noise" puts the corrupted one into the clean run and asks what
is needed for it. The two differ where parts do one thing together (AND) or each alone (OR).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Literal

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from hooked_whisper.analysis.checks import CONTRAST, expect, expect_metric, largest
from hooked_whisper.analysis.contrast import Contrast
from hooked_whisper.analysis.edges import PartT, parse_parts
from hooked_whisper.analysis.metrics import Metric, check_metric
from hooked_whisper.analysis.nodes import Node, check_nodes
from hooked_whisper.analysis.partial_runs import (
    RecordedRun,
    Start,
    Values,
    check_replaceable,
    plan,
    run_chunk,
    start_of,
)
from hooked_whisper.analysis.result_files import figures, one_of, read_fields, written
from hooked_whisper.errors import AnalysisError, did_you_mean
from hooked_whisper.model import HookedWhisper

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DIRECTIONS = ("denoise", "noise")
if TYPE_CHECKING:
    Direction = Literal["denoise", "noise"]
    Shown = Literal["normalized", "change", "effects"]
else:
    Direction = Shown = str  # checked here, with a message that says more than a type checker's
BATCH_SIZE = 8  # rows; one of 30 s takes about 100 MB in whisper-base's encoder
_SAME = 1e-9  # of the larger metric: below this, a difference is rounding


@dataclass(frozen=True)
class PatchingResult(Generic[PartT]):
    """What each node, or edge, does to a metric when its activation comes from the other run.

    Attributes:
        nodes: in the order given.
        effects: the metric of the run in which this node alone is patched.
        clean, corrupted: the metric of the two runs as they are.
        direction: "denoise" (clean activations into the corrupted run) or "noise" (the other way).
    """

    nodes: tuple[PartT, ...]
    effects: Float[Tensor, "node batch"]
    clean: Float[Tensor, " batch"]
    corrupted: Float[Tensor, " batch"]
    direction: Direction

    @property
    def change(self) -> Float[Tensor, "node batch"]:
        """The patched metric less that of the run which was patched."""
        return self.effects - (self.corrupted if self.direction == "denoise" else self.clean)

    @cached_property
    def normalized(self) -> Float[Tensor, "node batch"]:
        """The change as a share of the difference between the two runs: 0 where patching does nothing, 1 where it
        brings the other run's metric with it.

        Denoising it is (patched - corrupted) / (clean - corrupted), noising (patched - clean) / (corrupted - clean).

        Raises:
            AnalysisError: clips whose metric is the same in both runs.
        """
        difference = self.clean - self.corrupted
        scale = torch.maximum(self.clean.abs(), self.corrupted.abs())
        same = (difference.abs() <= _SAME * scale).nonzero()[:, 0].tolist()
        if same:
            raise AnalysisError(
                f"The metric is the same in the clean and the corrupted run of clips {same} "
                f"({self.clean[same[0]]:.6g}), so effects are no share of a difference: choose a metric that tells the "
                "two apart, or read .effects and .change."
            )
        return self.change / (difference if self.direction == "denoise" else -difference)

    def top(self, n: int = 10) -> list[tuple[PartT, float]]:
        """The n nodes with the largest normalised effects of either sign, mean over clips, largest first.

        Raises:
            AnalysisError: n below 1; see `normalized`.
        """
        means = self.normalized.mean(1)
        return [(self.nodes[i], float(means[i])) for i in largest(means, n)]

    def plot(self, *, values: Shown = "normalized") -> Figure:
        """A heatmap for each kind of node: layers down, heads or windows to the right; mean over clips.

        Edges: a heatmap, writers down, readers to the right.

        Raises:
            MissingExtraError: matplotlib is not installed. AnalysisError: see `normalized`; an unknown kind of values.
        """
        from hooked_whisper.analysis.node_plots import plot_parts

        labels = {
            "normalized": f"normalised effect ({self.direction})",
            "change": "change of the metric",
            "effects": "metric of the patched run",
        }
        if values not in labels:
            raise AnalysisError(
                f"Unknown values {values!r}: expected {', '.join(labels)}.{did_you_mean(values, labels)}"
            )
        shown = {"normalized": lambda: self.normalized, "change": lambda: self.change, "effects": lambda: self.effects}
        return plot_parts(self.nodes, shown[values]().mean(1), labels[values])

    def to_json(self) -> str:
        """All of it as JSON; `from_json` reads it back, exactly."""
        return written(
            {
                "direction": self.direction,
                "nodes": [str(node) for node in self.nodes],
                "effects": self.effects.tolist(),
                "clean": self.clean.tolist(),
                "corrupted": self.corrupted.tolist(),
            }
        )

    @classmethod
    def from_json(cls, text: str) -> PatchingResult[Any]:
        """A result from what `to_json` wrote.

        Raises:
            AnalysisError: no JSON, or not of a result.
        """
        fields = ("direction", "nodes", "effects", "clean", "corrupted")
        data = read_fields(text, "patching result", "PatchingResult.to_json", fields)
        nodes, clean = parse_parts(data["nodes"]), figures(data, "clean", None)
        effects, corrupted = figures(data, "effects", len(nodes), len(clean)), figures(data, "corrupted", len(clean))
        return cls(nodes, effects, clean, corrupted, one_of(data, "direction", DIRECTIONS))  # type: ignore[arg-type]


@torch.no_grad()
def patch(
    model: HookedWhisper,
    contrast: Contrast,
    nodes: Sequence[Node],
    metric: Metric,
    *,
    direction: Direction = "denoise",
    batch_size: int = BATCH_SIZE,
    progress: bool | None = None,
    out: str | Path | None = None,
) -> PatchingResult[Node]:
    """The metric of a run in which one node's activation is the other run's, for each node and clip.

    Hooks and SAEs of the model are active in all runs. Features of an SAE are nodes, too:
    `Node("encoder.hook_out.hook_sae_acts_post", unit=7)`.

    Args:
        nodes: of any kind: heads, patterns, residual streams, neurons, features, whole or in part.
        metric: any function of logits; it needs no gradient.
        direction: "denoise": clean activations into the corrupted run; "noise": the other way.
        batch_size: rows (nodes times clips) of one pass at most.
        progress: show a bar; None shows it where stderr is a terminal.
        out: a file of JSON lines that grows as the sweep goes on. When it is there already, the sweep that wrote it is
            continued, and ends with the result that it would have had (to the bit, where `batch_size` is the same).

    Raises:
        AnalysisError: no nodes, a node twice or outside its activation; a node that is not one for each clip; a metric
            that is not one finite number for each clip; a file of another sweep.
        HookNameError: a hook that the model does not have.
    """
    chosen = _checked(model, contrast, nodes, direction)
    expect_metric(metric)
    starts = {start_of(model, node.hook) for node in chosen}
    clean, corrupted = (RecordedRun(model, side, starts) for side in (contrast.clean, contrast.corrupted))
    batch = len(contrast)
    ends = [check_metric(metric(run.logits), batch).double().cpu() for run in (clean, corrupted)]
    recipient, donor = (corrupted, clean) if direction == "denoise" else (clean, corrupted)
    log = None
    if out is not None:
        from hooked_whisper.analysis.sweep_log import SweepLog, sweep_fingerprint

        about = {
            "what": "patch",
            "fingerprint": sweep_fingerprint(model, contrast, chosen, metric, direction),
            "clean": ends[0].tolist(),
            "corrupted": ends[1].tolist(),
        }
        log = SweepLog(Path(out), about)
    found: dict[Node, list[float]] = {} if log is None else log.read(chosen)
    values = _DonorValues(donor)
    chunks = plan(model, chosen, batch, batch_size)
    with tqdm(total=len(chosen), initial=len(found), desc="patching", unit="node", disable=_hidden(progress)) as bar:
        for chunk in chunks:
            missing = [chosen[number] for number in chunk.numbers if chosen[number] not in found]
            if not missing:
                continue
            here = [chosen[number] for number in chunk.numbers]
            for number, logits in run_chunk(recipient, chunk, chosen, values.of(chunk.start, here), batch_size):
                effects = check_metric(metric(logits), batch).double().cpu().tolist()
                if chosen[number] in found:
                    continue
                found[chosen[number]] = effects
                if log is not None:
                    log.add(chosen[number], effects)
                bar.update()
    effects = torch.tensor([found[node] for node in chosen], dtype=torch.float64)
    return PatchingResult(tuple(chosen), effects, ends[0], ends[1], direction)


class _DonorValues:
    """A run's activations at nodes; those of one start are held at a time."""

    def __init__(self, donor: RecordedRun) -> None:
        self._donor = donor
        self._start: Start | None = None
        self._seen: dict[str, Tensor] = {}

    def of(self, start: Start, chosen: Sequence[Node]) -> Values:
        """The donor's activation of each node, [batch ...]."""
        if start != self._start:
            self._start, self._seen = start, {}
        missing = sorted({node.hook for node in chosen} - set(self._seen))
        if missing:
            self._seen |= self._donor.activations(start, missing)
        return {node: node.read(self._seen[node.hook]) for node in chosen}


def _checked(model: HookedWhisper, contrast: Contrast, nodes: Sequence[Node], direction: str) -> list[Node]:
    check_direction(direction)
    expect(contrast, Contrast, CONTRAST)
    chosen = check_nodes(model, nodes)
    check_replaceable(model, chosen)
    return chosen


def check_direction(direction: str) -> None:
    """Raises AnalysisError unless it is one of the two."""
    if direction not in DIRECTIONS:
        raise AnalysisError(f"Unknown direction {direction!r}: expected 'denoise' or 'noise'.")


def _hidden(progress: bool | None) -> bool | None:
    return None if progress is None else not progress


@dataclass(frozen=True)
class TranscriptPatching:
    """What the model writes when a node of the encoder comes from the other run.

    Attributes:
        nodes: in the order given.
        clean, corrupted: the greedy transcripts of the two runs as they are.
        patched: for each node, those of the patched run.
        word_errors: edits between the clean transcript and the patched one, after normalising both.
        corrupted_errors: the same for the corrupted transcript.
        words: of the clean transcript.
        direction: "denoise" or "noise".
    """

    nodes: tuple[Node, ...]
    clean: tuple[str, ...]
    corrupted: tuple[str, ...]
    patched: tuple[tuple[str, ...], ...]
    word_errors: Float[Tensor, "node batch"]
    corrupted_errors: Float[Tensor, " batch"]
    words: Float[Tensor, " batch"]
    direction: Direction

    @property
    def wer(self) -> Float[Tensor, " node"]:
        """Word error rate against the clean transcripts, over all clips together, as a fraction."""
        return self.word_errors.sum(1) / self.words.sum()

    @property
    def corrupted_wer(self) -> float:
        """Word error rate of the corrupted run's transcripts."""
        return float(self.corrupted_errors.sum() / self.words.sum())

    def plot(self) -> Figure:
        """A heatmap of word error rates for each kind of node.

        Raises:
            MissingExtraError: matplotlib is not installed.
        """
        from hooked_whisper.analysis.node_plots import plot_nodes

        return plot_nodes(self.nodes, self.wer, f"word error rate against the clean transcript ({self.direction})")


@torch.no_grad()
def patch_transcripts(
    model: HookedWhisper,
    contrast: Contrast,
    nodes: Sequence[Node],
    *,
    direction: Direction = "denoise",
    batch_size: int = BATCH_SIZE,
    progress: bool | None = None,
) -> TranscriptPatching:
    """The transcripts that follow when one node of the encoder is patched, and their word error rates.

    The decoder writes greedily, by itself, under the language and task of the contrast's prompt; the contrast's text
    is not read. A sweep costs a transcription for each node and clip.

    Raises:
        AnalysisError: as `patch`; nodes of the decoder, whose positions are tokens of a text that is not yet written;
            a clean transcript without words.
        GenerationError: a model that cannot generate. MissingExtraError: jiwer is not installed.
    """
    from hooked_whisper.saes.error_rates import count_errors, text_normalizer

    chosen = _checked(model, contrast, nodes, direction)
    starts = {node: start_of(model, node.hook) for node in chosen}
    late = next((node for node in chosen if starts[node].in_decoder), None)
    if late is not None:
        raise AnalysisError(
            f"{late} belongs to the decoder: while the model writes, its positions are tokens of its own text, which "
            "differs between the two runs, so there is nothing to put there. Patch it under a fixed text with patch()."
        )
    write = _Writer(model, contrast)
    clean, corrupted = (RecordedRun(model, side, set(starts.values())) for side in (contrast.clean, contrast.corrupted))
    recipient, donor = (corrupted, clean) if direction == "denoise" else (clean, corrupted)
    said, heard = write(clean.encoder_out), write(corrupted.encoder_out)
    normalizers = [text_normalizer(code, model.tokenizer) for code in write.codes]

    def errors(texts: Sequence[str]) -> list[float]:
        found = zip(said, texts, normalizers, strict=True)
        return [float(count_errors(reference, text, normalize).word_errors) for reference, text, normalize in found]

    words = torch.tensor(
        [float(len(normalize(text).split())) for text, normalize in zip(said, normalizers, strict=True)]
    )
    if not words.all():
        silent = (words == 0).nonzero()[:, 0].tolist()
        raise AnalysisError(f"The clean transcripts of clips {silent} have no words, so there is no error rate.")
    patched: dict[int, tuple[str, ...]] = {}
    values = _DonorValues(donor)
    with tqdm(total=len(chosen), desc="patching", unit="node", disable=_hidden(progress)) as bar:
        for chunk in plan(model, chosen, len(contrast), batch_size):
            here = values.of(chunk.start, [chosen[number] for number in chunk.numbers])
            for number, frames in run_chunk(recipient, chunk, chosen, here, batch_size, until="frames"):
                patched[number] = write(frames)
                bar.update()
    texts = tuple(patched[number] for number in range(len(chosen)))
    counted = torch.tensor([errors(row) for row in texts])
    return TranscriptPatching(tuple(chosen), said, heard, texts, counted, torch.tensor(errors(heard)), words, direction)


class _Writer:
    """From the encoder's output to greedy transcripts, under the prompts of a contrast's clean side."""

    def __init__(self, model: HookedWhisper, contrast: Contrast) -> None:
        self._model = model
        tokenizer = model._need_tokenizer()
        names = {token: code for code, token in tokenizer.languages.items()}
        lengths = contrast.prompt_lengths
        prompts = [row[:length] for row, length in zip(contrast.clean.tokens.tolist(), lengths, strict=True)]
        codes = [next((names[token] for token in prompt if token in names), None) for prompt in prompts]
        if tokenizer.is_multilingual and None in codes:
            raise AnalysisError(
                f"The prompt of clip {codes.index(None)} names no language: build the contrast with one."
            )
        tasks = {"translate" if tokenizer.translate in prompt else "transcribe" for prompt in prompts}
        timed = {tokenizer.no_timestamps not in prompt for prompt in prompts}
        if len(tasks) > 1 or len(timed) > 1:
            raise AnalysisError("The clips' prompts ask for different tasks: patch those of each task on their own.")
        self._task, self._timestamps = tasks.pop(), timed.pop()
        self.codes = codes

    def __call__(self, frames: Float[Tensor, "batch frame d_model"]) -> tuple[str, ...]:
        from hooked_whisper.generation import greedy_tokens

        languages = [code for code in self.codes if code is not None] if self._model.tokenizer.is_multilingual else None  # type: ignore[union-attr]
        with self._model._as_generation():
            rows = greedy_tokens(
                self._model.generation_adapter(),
                frames,
                languages=languages,
                task=self._task,
                timestamps=self._timestamps,
            )
        return tuple(str(self._model.to_string(row, skip_special_tokens=True)).strip() for row in rows)
