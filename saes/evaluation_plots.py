"""Pictures of an evaluation report."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

from hooked_whisper.errors import MissingExtraError
from hooked_whisper.saes.estimates import Estimate

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from hooked_whisper.saes.report import SaeReport

INK, MUTED, RULE = "#1c2230", "#5b6475", "#d6dae3"
BLUE, ORANGE, GREEN = "#0b6e99", "#c2410c", "#6d8b1f"


def plot_report(report: SaeReport) -> Figure:
    """How often latents fire, FVU, cross-entropy recovered and word error rates, each by language.

    Panels of what was not measured are left out. Whiskers are 95 % intervals over resampled clips; dashed lines are the
    protocol's bounds.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    figure_class = _figure_class()
    panels: list[Any] = [_draw_densities, _draw_fvu]
    if report.overall.on_transcript is not None:
        panels.append(_draw_recovered)
    if report.overall.transcripts is not None:
        panels.append(_draw_errors)
    figure = figure_class(figsize=(4.2 * len(panels), 3.4), layout="constrained", facecolor="white")
    for ax, draw in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        draw(ax, report)
        ax.tick_params(colors=INK, labelsize=9, length=3, width=0.8)
        for spine in ax.spines.values():
            spine.set_color(RULE)
    figure.suptitle(f"{report.model}, {report.hook}: {report.architecture}, {report.d_sae:,} latents", color=INK)
    return figure


def figure_bytes(figure: Figure, *, dpi: int = 150) -> bytes:
    """A picture as the bytes of a PNG, the same every time."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, metadata={"Software": None})
    return buffer.getvalue()


def _figure_class() -> type[Figure]:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError(
            "Pictures need matplotlib, which cannot be imported: pip install 'hooked-whisper[analysis]'."
        ) from error
    return Figure


def _draw_densities(ax: Axes, report: SaeReport) -> None:
    bins = report.densities
    ax.stairs(bins.counts, bins.edges, fill=True, color=BLUE)
    ax.set_xscale("log")
    # Nothing can fire on less than one row.
    ax.set_xlim(max(bins.edges[0], 0.5 / report.overall.firing.n_rows), 1)
    ax.set_xlabel("share of rows on which a latent fires", color=MUTED, fontsize=9)
    ax.set_ylabel("latents", color=MUTED, fontsize=9)
    ax.set_title(f"{bins.never:,} of {report.d_sae:,} never fire", color=INK, fontsize=10)


def _draw_fvu(ax: Axes, report: SaeReport) -> None:
    groups = {"all": report.overall, **report.languages}
    _draw_estimates(ax, list(groups), [group.reconstruction.fvu for group in groups.values()], BLUE, "over rows", -0.1)
    within = [group.reconstruction.fvu_within_clips for group in groups.values()]
    _draw_estimates(ax, list(groups), within, ORANGE, "within clips", 0.1)
    _bound(ax, 0.10)
    ax.set_ylim(bottom=0)
    ax.set_title("fraction of variance unexplained", color=INK, fontsize=10)
    _legend(ax)


def _draw_recovered(ax: Axes, report: SaeReport) -> None:
    losses = {
        name: group.on_transcript
        for name, group in {"all": report.overall, **report.languages}.items()
        if group.on_transcript is not None
    }
    zero, mean = ([getattr(loss, f"recovered_from_{way}") for loss in losses.values()] for way in ("zero", "mean"))
    _draw_estimates(ax, list(losses), zero, BLUE, "from zeros", -0.1)
    _draw_estimates(ax, list(losses), mean, ORANGE, "from the mean", 0.1)
    _bound(ax, 0.99)
    ax.set_title("cross-entropy recovered", color=INK, fontsize=10)
    _legend(ax)


def _draw_errors(ax: Axes, report: SaeReport) -> None:
    rates = {
        name: group.transcripts
        for name, group in {"all": report.overall, **report.languages}.items()
        if group.transcripts is not None
    }
    names = list(rates)
    _draw_estimates(ax, names, [r.wer_unhooked.scaled(100) for r in rates.values()], GREEN, "unhooked", -0.2)
    _draw_estimates(ax, names, [r.wer_spliced.scaled(100) for r in rates.values()], BLUE, "spliced", 0.0)
    to_unhooked = [r.wer_to_unhooked.scaled(100) for r in rates.values()]
    _draw_estimates(ax, names, to_unhooked, ORANGE, "spliced against unhooked", 0.2)
    ax.set_ylim(bottom=0)
    ax.set_title("word error rate, %", color=INK, fontsize=10)
    _legend(ax)


def _draw_estimates(
    ax: Axes, names: list[str], figures: list[Estimate], colour: str, label: str, offset: float
) -> None:
    """Points with whiskers, one for each name; those without a value are left out."""
    places, values, below, above = [], [], [], []
    for place, figure in enumerate(figures):
        if figure.value is not None:
            places.append(place + offset)
            values.append(figure.value)
            below.append(figure.value - figure.low if figure.low is not None else 0.0)
            above.append(figure.high - figure.value if figure.high is not None else 0.0)
    # An interval of percentiles need not hold the figure itself.
    whiskers = [[max(0.0, size) for size in sizes] for sizes in (below, above)]
    ax.errorbar(places, values, yerr=whiskers, fmt="o", markersize=4, color=colour, label=label, linewidth=1.2)
    ax.set_xticks(range(len(names)), names)


def _legend(ax: Axes) -> None:
    """Below the axes, where no point can be."""
    ax.legend(fontsize=8, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.1), ncol=3, columnspacing=1.0)


def _bound(ax: Axes, value: float) -> None:
    ax.axhline(value, color=MUTED, linewidth=0.8, linestyle="--")
