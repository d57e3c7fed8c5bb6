"""The report of an evaluation: figures by language and speaker, gates, JSON and Markdown."""

from __future__ import annotations

import json
import types
import typing
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hooked_whisper.errors import SaeError
from hooked_whisper.saes.error_rates import ErrorRates, TranscriptChange
from hooked_whisper.saes.estimates import Estimate
from hooked_whisper.saes.reconstruction import DensityHistogram, Firing, Reconstruction
from hooked_whisper.saes.spliced_evaluation import SplicedLoss

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMAT = 1


@dataclass(frozen=True)
class Bounds:
    """What an SAE has to reach before any of its features is interpreted; the defaults are the project's protocol.

    Attributes:
        fvu: at most, over all rows.
        dead: share of latents that fire on no row, below.
        l0_tolerance: largest relative distance of the mean L0 from the one configured.
        recovered: share of cross-entropy recovered, at least, for each language.
        wer_points: largest change of the word error rate, in points (0.3 is 0.3 %), for each language.
    """

    fvu: float = 0.10
    dead: float = 0.05
    l0_tolerance: float = 0.05
    recovered: float = 0.99
    wer_points: float = 0.3


@dataclass(frozen=True)
class Gate:
    """One figure against its bound.

    Attributes:
        name: what is measured.
        language: of which language; None for all together.
        figure: with its interval.
        bound: what it is held against.
        passes: whether the figure keeps to its bound; None where it was not measured.
        certain: whether its whole interval lies on the same side; None where there is no interval.
    """

    name: str
    language: str | None
    figure: Estimate
    bound: str
    passes: bool | None
    certain: bool | None


@dataclass(frozen=True)
class Group:
    """Everything about one group of clips; None where nothing was spliced, or no clip has a reference text.

    Attributes:
        reconstruction, firing: what the rows become.
        on_transcript: predictions of the unhooked model's own greedy transcript.
        on_reference: predictions of the reference text.
        transcripts: error rates of what the model writes.
    """

    reconstruction: Reconstruction
    firing: Firing
    on_transcript: SplicedLoss | None = None
    on_reference: SplicedLoss | None = None
    transcripts: ErrorRates | None = None


@dataclass(frozen=True)
class BaselineReport:
    """A basis nobody learned, keeping `k` coefficients a row; over all clips."""

    k: int
    reconstruction: Reconstruction
    on_transcript: SplicedLoss | None = None


@dataclass(frozen=True)
class SaeReport:
    """What an SAE gives back, and what it does to the model it is spliced into.

    Attributes:
        model, hook, hook_out: what it belongs to; `hook_out` differs for transcoders.
        architecture, d_in, d_sae, configured_l0: what it is; `configured_l0` None where its settings name none.
        overall: over all clips.
        languages: by language, as the corpus names them.
        speakers: reconstruction by speaker, where the corpus names them.
        densities: how often latents fire.
        baselines: by name.
        changes: the clips whose transcripts changed most.
        corpus: what it was measured on.
        settings: how it was measured.
        notes: what a reader of the figures must know.
    """

    model: str
    hook: str
    hook_out: str
    architecture: str
    d_in: int
    d_sae: int
    configured_l0: float | None
    overall: Group
    languages: dict[str, Group]
    speakers: dict[str, Reconstruction]
    densities: DensityHistogram
    baselines: dict[str, BaselineReport]
    changes: list[TranscriptChange]
    corpus: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def gates(self, bounds: Bounds | None = None) -> list[Gate]:
        """Which of the protocol's gates it passes, overall and for each language; see `Bounds`.

        Cross-entropy recovered is held against both ablations. The change of the word error rate is taken twice: from
        the reference text, paired with the unhooked model, and, stricter, as the error rate of the spliced transcript
        with the unhooked model's as reference, which needs no reference text.
        """
        limits = bounds or Bounds()
        whole = self.overall
        dead = Estimate(whole.firing.silent)
        found = [
            _at_most("FVU", None, whole.reconstruction.fvu, limits.fvu),
            _at_most("dead latents", None, dead, limits.dead, strict=True),
            self._l0_gate(limits),
        ]
        for language, group in self.languages.items():
            loss, rates = group.on_transcript, group.transcripts
            none = Estimate(None)
            found += [
                _at_least(
                    "cross-entropy recovered, from zero", language, loss.recovered_from_zero if loss else none,
                    limits.recovered,
                ),
                _at_least(
                    "cross-entropy recovered, from mean", language, loss.recovered_from_mean if loss else none,
                    limits.recovered,
                ),
                _at_most(
                    "WER change, points", language, _points(rates.wer_change) if rates else none, limits.wer_points,
                    either_side=True,
                ),
                _at_most(
                    "WER to the unhooked transcript, points", language,
                    _points(rates.wer_to_unhooked) if rates else none, limits.wer_points,
                ),
            ]  # fmt: skip
        return found

    def _l0_gate(self, limits: Bounds) -> Gate:
        figure = self.overall.reconstruction.l0
        if self.configured_l0 is None:
            return Gate("L0", None, figure, "none configured", None, None)
        low = self.configured_l0 * (1 - limits.l0_tolerance)
        high = self.configured_l0 * (1 + limits.l0_tolerance)
        return _between("L0", None, figure, low, high, f"{self.configured_l0:g} ± {100 * limits.l0_tolerance:g} %")

    def plot(self) -> Figure:
        """Firing densities, reconstruction, predictions and transcripts as one picture.

        Raises:
            MissingExtraError: matplotlib is not installed.
        """
        from hooked_whisper.saes.evaluation_plots import plot_report

        return plot_report(self)

    def to_markdown(self) -> str:
        """The report as a page of tables."""
        from hooked_whisper.saes.report_page import report_page

        return report_page(self)

    def to_json(self) -> str:
        """The report as JSON; `from_json` reads it back."""
        return json.dumps({"format": FORMAT, **asdict(self)}, ensure_ascii=False, indent=1, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> SaeReport:
        """A report from what `to_json` wrote.

        Raises:
            SaeError: no JSON, or not of a report.
        """
        try:
            data = json.loads(text)
        except json.JSONDecodeError as error:
            raise SaeError(f"No evaluation report: the text is no JSON ({error}).") from error
        if not isinstance(data, dict) or data.pop("format", None) != FORMAT:
            raise SaeError(
                f"No evaluation report of format {FORMAT}: expected what SaeReport.to_json writes. Evaluate again."
            )
        try:
            return _build(cls, data)
        except TypeError as error:
            raise SaeError(f"An evaluation report that lacks or garbles a field: {error}. Evaluate again.") from error

    def save(self, folder: str | Path) -> list[Path]:
        """Writes evaluation.json, evaluation.md and evaluation.png into a folder, made where it is missing.

        Raises:
            MissingExtraError: matplotlib is not installed.
        """
        from hooked_whisper.saes.evaluation_plots import figure_bytes

        target = Path(folder)
        target.mkdir(parents=True, exist_ok=True)
        contents = {
            "evaluation.json": self.to_json().encode(),
            "evaluation.md": self.to_markdown().encode(),
            "evaluation.png": figure_bytes(self.plot()),
        }
        for name, content in contents.items():
            (target / name).write_bytes(content)
        return [target / name for name in contents]


def _points(rate: Estimate) -> Estimate:
    return rate.scaled(100)


def _at_most(
    name: str, language: str | None, figure: Estimate, bound: float, *, strict: bool = False, either_side: bool = False
) -> Gate:
    if either_side:
        return _between(name, language, figure, -bound, bound, f"within ± {bound:g}")
    sign = "<" if strict else "≤"
    if figure.value is None:
        return Gate(name, language, figure, f"{sign} {bound:g}", None, None)
    passes = figure.value < bound if strict else figure.value <= bound
    certain = None
    if figure.low is not None and figure.high is not None:
        certain = figure.high <= bound if passes else figure.low > bound
    return Gate(name, language, figure, f"{sign} {bound:g}", passes, certain)


def _at_least(name: str, language: str | None, figure: Estimate, bound: float) -> Gate:
    if figure.value is None:
        return Gate(name, language, figure, f"≥ {bound:g}", None, None)
    passes, certain = figure.value >= bound, None
    if figure.low is not None and figure.high is not None:
        certain = figure.low >= bound if passes else figure.high < bound
    return Gate(name, language, figure, f"≥ {bound:g}", passes, certain)


def _between(name: str, language: str | None, figure: Estimate, low: float, high: float, bound: str) -> Gate:
    if figure.value is None:
        return Gate(name, language, figure, bound, None, None)
    passes, certain = low <= figure.value <= high, None
    if figure.low is not None and figure.high is not None:
        inside, outside = low <= figure.low and figure.high <= high, figure.high < low or figure.low > high
        certain = inside if passes else outside
    return Gate(name, language, figure, bound, passes, certain)


def _build(kind: Any, data: Any) -> Any:
    """A value of the annotated type `kind` from plain JSON."""
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        if data is None:
            return None
        return _build(next(one for one in inner if one is not type(None)), data)
    if origin is dict:
        if not isinstance(data, dict):
            raise TypeError(f"{data!r} where a dict was expected")
        return {key: _build(inner[1], value) for key, value in data.items()}
    if origin is list:
        if not isinstance(data, list):
            raise TypeError(f"{data!r} where a list was expected")
        return [_build(inner[0], value) for value in data]
    if is_dataclass(kind):
        if not isinstance(data, dict):
            raise TypeError(f"{data!r} where {kind.__name__} was expected")  # type: ignore[union-attr]
        hints = typing.get_type_hints(kind)
        unknown = set(data) - {part.name for part in fields(kind)}
        if unknown:
            raise TypeError(f"unknown field {sorted(unknown)[0]!r} of {kind.__name__}")  # type: ignore[union-attr]
        return kind(**{name: _build(hints[name], value) for name, value in data.items()})  # type: ignore[operator]
    if kind is float and isinstance(data, int) and not isinstance(data, bool):
        return float(data)
    if kind is not Any and not isinstance(data, kind):
        raise TypeError(f"{data!r} where {kind.__name__} was expected")
    return data
