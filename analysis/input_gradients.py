"""Integrated gradients: what each bin of the spectrogram, or each sample of the sound, adds to a metric.

    found = integrated_gradients(model, "speech.wav", " Hello there", metric, language="en")
    found.attributions                                       # [batch mel mel_frame], in the metric's unit
    found.relative_delta                                     # how far from complete: below 0.01
    found.plot()

From a baseline x0 to the input x, along the straight line x0 + alpha (x - x0),

    attribution(i) = (x - x0)_i * integral over alpha of d metric / d x_i,        sum over i = metric(x) - metric(x0)

On the way from silence to speech the model changes its mind several times, so steps of one width miss the integral by
far. The second equation holds for each stretch of the line, too, and tells where: stretches that miss it by the most
are halved until all together miss it by less than the tolerance. `delta` is what the sum misses.
"""

from __future__ import annotations

import heapq
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from hooked_whisper.analysis.checks import check_clip, check_whole
from hooked_whisper.analysis.contrast import Contrast, ModelInput
from hooked_whisper.analysis.gradient_passes import ChunkMetric, frozen, wide
from hooked_whisper.analysis.metrics import Metric
from hooked_whisper.audio import AudioInput, load_batch
from hooked_whisper.errors import AnalysisError
from hooked_whisper.inputs import TextInput
from hooked_whisper.mel import FRAMES_PER_SECOND, HOP_LENGTH, SAMPLE_RATE, SAMPLES_PER_FRAME
from hooked_whisper.model import HookedWhisper

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    InputKind = Literal["mel", "waveform"]
else:
    InputKind = str  # checked here, with a message that says more than a type checker's
SILENCE = "silence"
# From silence a waveform's log-mel changes with the logarithm of alpha: steps are spaced so, over this many e-foldings
# (the spectrogram's floor lies a factor of a million below a loud sound's amplitude).
_LOG_RANGE = 14.0
_POINTS = 4  # Gauss-Legendre points of each stretch
_FIRST = 8  # stretches to begin with


@dataclass(frozen=True)
class InputGradients:
    """What each part of the input adds to the metric, against a baseline.

    Attributes:
        attributions: [batch mel mel_frame], or [batch samples] (0 past a clip's end), in the metric's unit.
        value, baseline_value: [batch], the metric at the input and at the baseline.
        wrt: "mel" or "waveform".
        steps: points of the integral, of the clip that took most.
        mel: [batch mel mel_frame], the input's spectrogram.
        seconds: length of each clip.
    """

    attributions: Float[Tensor, "batch ..."]
    value: Float[Tensor, "batch"]
    baseline_value: Float[Tensor, "batch"]
    wrt: InputKind
    steps: int
    mel: Float[Tensor, "batch mel mel_frame"]
    seconds: tuple[float, ...]

    @property
    def delta(self) -> Float[Tensor, "batch"]:
        """Sum of the attributions less the metric's change: 0 for an exact integral."""
        return self.attributions.flatten(1).sum(1) - (self.value - self.baseline_value)

    @property
    def relative_delta(self) -> Float[Tensor, "batch"]:
        """Size of `delta` as a share of the metric's change."""
        return self.delta.abs() / (self.value - self.baseline_value).abs()

    @property
    def by_frame(self) -> Float[Tensor, "batch frame"]:
        """Attributions summed over each 20 ms."""
        if self.wrt == "mel":
            return self.attributions.sum(1).unflatten(1, (-1, 2)).sum(2)
        rest = -self.attributions.shape[1] % SAMPLES_PER_FRAME
        return torch.nn.functional.pad(self.attributions, (0, rest)).unflatten(1, (-1, SAMPLES_PER_FRAME)).sum(2)

    def plot(self, *, clip: int = 0) -> Figure:
        """The spectrogram with the attributions over it (mel), or under it by frame (waveform): red adds, blue takes.

        Raises:
            AnalysisError: no such clip. MissingExtraError: matplotlib is not installed.
        """
        from hooked_whisper.analysis.plots import INK, MUTED, Figure

        seconds = self.seconds[check_clip(clip, len(self.seconds))]
        shown = self.mel[clip][:, : round(seconds * SAMPLE_RATE / HOP_LENGTH)].float().cpu()
        figure = Figure(figsize=(9.0, 4.4), layout="constrained", facecolor="white")
        top, bottom = figure.subplots(2, 1, sharex=True)
        extent = (0.0, seconds, 0.0, float(self.mel.shape[1]))
        top.imshow(shown.numpy(), aspect="auto", origin="lower", extent=extent, cmap="gray_r")
        if self.wrt == "mel":
            values = self.attributions[clip][:, : shown.shape[1]].float().cpu()
            limit = max(float(values.abs().quantile(0.999)), 1e-12)
            bottom.imshow(
                values.numpy(), aspect="auto", origin="lower", extent=extent, cmap="RdBu_r", vmin=-limit, vmax=limit
            )
            bottom.set_ylabel("mel bin", color=MUTED, fontsize=9)
        else:
            frames = self.by_frame[clip, : round(seconds * FRAMES_PER_SECOND)].float().cpu()
            at = (torch.arange(len(frames)) + 0.5) / FRAMES_PER_SECOND
            bottom.bar(
                at.tolist(), frames.tolist(), width=1 / FRAMES_PER_SECOND,
                color=["#b2182b" if value > 0 else "#2166ac" for value in frames.tolist()],
            )  # fmt: skip
            bottom.set_ylabel("per 20 ms", color=MUTED, fontsize=9)
        top.set_ylabel("mel bin", color=MUTED, fontsize=9)
        top.set_title(
            "spectrogram, and what adds to the metric (red) or takes from it", loc="left", fontsize=10, color=INK
        )
        bottom.set_xlabel("seconds", color=MUTED, fontsize=9)
        return figure


def integrated_gradients(
    model: HookedWhisper,
    audio: AudioInput,
    text: TextInput,
    metric: Metric,
    *,
    wrt: InputKind = "mel",
    baseline: AudioInput = SILENCE,
    tolerance: float = 0.01,
    max_steps: int = 1024,
    language: str | Sequence[str | None] | None = None,
    sampling_rate: int = SAMPLE_RATE,
    progress: bool | None = None,
) -> InputGradients:
    """Integrated gradients of a metric to the spectrogram or to the waveform (Sundararajan et al. 2017, 1703.01365).

    Costs a forward and backward pass for each step, some tens to hundreds for each clip, as the tolerance takes them.

    Args:
        text: what the decoder is fed, as `HookedWhisper.forward` takes it; not None.
        metric: logits to one number for each clip, each clip's from its own logits alone.
        wrt: what the attributions are of. To a waveform against silence most of the path lies where the sound is
            barely audible, so steps are spaced evenly in the logarithm of loudness.
        baseline: what the input is compared with: "silence", or audio, one for each clip.
        tolerance: how far the stretches of the line may be from complete, together, as a share of the metric's change.
        max_steps: where to stop even so, with a warning; `relative_delta` tells what was reached.
        progress: whether to show a bar; None shows it on a terminal.

    Raises:
        AnalysisError: no text, another `wrt`, a tolerance or max_steps that cannot be, another number of baselines
            than clips, a metric that is the same at the baseline, or has no gradient.
    """
    if wrt not in ("mel", "waveform"):
        raise AnalysisError(f"Unknown wrt={wrt!r}: expected 'mel' or 'waveform'.")
    if not 0 < tolerance < 1 or check_whole("max_steps", max_steps, None) < _FIRST * _POINTS:
        raise AnalysisError(
            f"tolerance={tolerance}, max_steps={max_steps}: expected a share between 0 and 1, and at least "
            f"{_FIRST * _POINTS} steps."
        )
    if text is None:
        raise AnalysisError(
            'No text: transcribe first and pass what the decoder is to be fed, or "" for the prompt alone.'
        )
    loaded = load_batch(audio, sampling_rate)
    silent = isinstance(baseline, str) and baseline == SILENCE
    others = [torch.zeros_like(clip) for clip in loaded] if silent else load_batch(baseline, sampling_rate)
    if len(others) != len(loaded):
        raise AnalysisError(f"{len(others)} baselines were given for {len(loaded)} clips: expected one for each.")
    pair = Contrast.of(model, clean=loaded, corrupted=others, text=text, language=language)
    found, values, steps = [], [], 0
    bar = tqdm(desc="integrated gradients", unit="step", disable=None if progress is None else not progress)
    with bar, frozen(model):
        for number in range(len(pair)):
            line = _line(model, wrt, pair, loaded, others, number, logarithmic=silent and wrt == "waveform")
            judge = ChunkMetric(metric, [number], len(pair))
            integral = _Integral(model, line, pair.clean.tokens[number : number + 1], judge)
            total, taken = integral.over_line(tolerance, max_steps, bar)
            found.append(total * (line.end - line.start).double())
            values.append(integral.ends)
            steps = max(steps, taken)
    attributions = torch.nn.utils.rnn.pad_sequence([part.movedim(-1, 0) for part in found], batch_first=True)
    value, baseline_value = torch.tensor(values, dtype=torch.float64).unbind(1)
    result = InputGradients(
        attributions.movedim(1, -1), value, baseline_value, wrt, steps, pair.clean.mel,
        tuple(len(clip) / SAMPLE_RATE for clip in loaded),
    )  # fmt: skip
    missing = float(result.relative_delta.max())
    if missing > tolerance:
        warnings.warn(
            f"Attributions miss {missing:.1%} of the metric's change, more than tolerance={tolerance:g}, after {steps} "
            f"steps: raise max_steps={max_steps}.",
            stacklevel=2,
        )
    return result


@dataclass(frozen=True)
class _Line:
    """The straight line from a baseline to an input, spectrograms or waveforms, measured by u from 0 to 1.

    alpha is u itself or, `logarithmic`, (exp(c u) - 1) / (exp(c) - 1).
    """

    start: Tensor
    end: Tensor
    wrt: str
    logarithmic: bool

    def alpha(self, u: float) -> float:
        return math.expm1(_LOG_RANGE * u) / math.expm1(_LOG_RANGE) if self.logarithmic else u

    def speed(self, u: float) -> float:
        """Derivative of alpha."""
        return _LOG_RANGE * math.exp(_LOG_RANGE * u) / math.expm1(_LOG_RANGE) if self.logarithmic else 1.0

    def points(self, at: Sequence[float]) -> Tensor:
        return torch.stack([torch.lerp(self.start, self.end, self.alpha(u)) for u in at])

    def mel(self, model: HookedWhisper, points: Tensor) -> Tensor:
        if self.wrt == "mel":
            return points.to(model.device, model.dtype)
        return model.log_mel(points.to(model.device), model.cfg.n_mel_frames).to(model.dtype)


class _Integral:
    """The gradient's integral over a line, stretch by stretch.

    Attributes:
        ends: the metric at the input and at the baseline.
    """

    def __init__(self, model: HookedWhisper, line: _Line, tokens: Tensor, metric: ChunkMetric) -> None:
        self.model, self.line, self.tokens, self.metric = model, line, tokens, metric
        self.ends = (self._value(1.0), self._value(0.0))

    def _run(self, points: Tensor, *, gradient: bool) -> Tensor:
        logits = ModelInput(self.line.mel(self.model, points), self.tokens.expand(len(points), -1)).logits(self.model)
        return torch.cat([self.metric(row[None], gradient=gradient) for row in logits])

    @torch.no_grad()
    def _value(self, u: float) -> float:
        return float(self._run(self.line.points([u]), gradient=False)[0])

    def _stretch(self, a: float, b: float) -> Tensor:
        """The integral from a to b."""
        x, w = np.polynomial.legendre.leggauss(_POINTS)
        at = [a + (b - a) * (float(place) + 1) / 2 for place in x]
        weights = [float(weight) / 2 * (b - a) * self.line.speed(u) for weight, u in zip(w, at, strict=True)]
        points = self.line.points(at).requires_grad_()
        with torch.enable_grad():
            values = self._run(points, gradient=True).sum()
        gradients = torch.autograd.grad(values, points)[0].double().cpu()
        return torch.tensordot(torch.tensor(weights, dtype=torch.float64), gradients, dims=1)

    def over_line(self, tolerance: float, max_steps: int, bar: tqdm) -> tuple[Tensor, int]:
        """The integral and the steps that it took."""
        change = abs(self.ends[0] - self.ends[1])
        if change == 0:
            raise AnalysisError(
                "The metric is the same at the input and at the baseline: there is nothing to attribute."
            )
        along = (self.line.end - self.line.start).double().cpu()
        total = torch.zeros_like(along)
        # Largest miss first: (-miss, a, b, metric at a, metric at b, integral).
        stretches: list[tuple[float, float, float, float, float, Tensor]] = []
        steps = 0

        def add(a: float, b: float, at_a: float, at_b: float) -> None:
            nonlocal steps
            part = self._stretch(a, b)
            total.add_(part)
            miss = abs(float((part * along).sum()) - (at_b - at_a))
            heapq.heappush(stretches, (-miss, a, b, at_a, at_b, part))
            steps += _POINTS
            bar.update(_POINTS)

        edges = [index / _FIRST for index in range(_FIRST + 1)]
        values = [self.ends[1], *(self._value(u) for u in edges[1:-1]), self.ends[0]]
        for index in range(_FIRST):
            add(*edges[index : index + 2], *values[index : index + 2])
        while -sum(stretch[0] for stretch in stretches) > tolerance * change and steps + 2 * _POINTS <= max_steps:
            _, a, b, at_a, at_b, part = heapq.heappop(stretches)
            total.sub_(part)
            middle = (a + b) / 2
            at_middle = self._value(middle)
            add(a, middle, at_a, at_middle)
            add(middle, b, at_middle, at_b)
        return total, steps


def _line(
    model: HookedWhisper,
    wrt: str,
    pair: Contrast,
    loaded: Sequence[Tensor],
    others: Sequence[Tensor],
    number: int,
    *,
    logarithmic: bool,
) -> _Line:
    if wrt == "mel":
        return _Line(wide(pair.corrupted.mel[number]).cpu(), wide(pair.clean.mel[number]).cpu(), wrt, logarithmic)
    length = max(len(loaded[number]), len(others[number]))
    start, end = (
        torch.nn.functional.pad(clip.cpu(), (0, length - len(clip))) for clip in (others[number], loaded[number])
    )
    return _Line(start, end, wrt, logarithmic)
