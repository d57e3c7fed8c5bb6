"""Pictures of a report show its figures, and leave out what was not measured."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from matplotlib.figure import Figure
from reports import group, report

from hooked_whisper import MissingExtraError
from hooked_whisper.saes.evaluation_plots import figure_bytes


def titles(figure: Figure) -> list[str]:
    return [ax.get_title() for ax in figure.axes]


def points(figure: Figure, axes: int, label: str) -> list[float]:
    """Heights of the points of one series."""
    handles, labels = figure.axes[axes].get_legend_handles_labels()
    series = handles[labels.index(label)]
    return np.asarray(series.lines[0].get_ydata()).tolist()


def test_panels_follow_what_was_measured() -> None:
    assert titles(report().plot()) == [
        "160 of 16,000 never fire", "fraction of variance unexplained", "cross-entropy recovered", "word error rate, %",
    ]  # fmt: skip
    bare = report(overall=group(on_transcript=None, transcripts=None))
    assert titles(bare.plot()) == ["160 of 16,000 never fire", "fraction of variance unexplained"]


def test_points_are_the_figures_by_language() -> None:
    figure = report().plot()
    assert [label.get_text() for label in figure.axes[1].get_xticklabels()] == ["all", "en", "it"]
    assert points(figure, 1, "over rows") == pytest.approx([0.08, 0.08, 0.09])
    assert points(figure, 1, "within clips") == pytest.approx([0.10, 0.10, 0.11])
    assert points(figure, 2, "from zeros") == pytest.approx([0.995] * 3)
    assert points(figure, 2, "from the mean") == pytest.approx([0.993] * 3)
    assert points(figure, 3, "spliced against unhooked") == pytest.approx([0.2] * 3)


def test_a_language_without_figure_is_left_out() -> None:
    whole = report(languages={"en": group(on_transcript=None), "it": group()})
    figure = whole.plot()
    assert [label.get_text() for label in figure.axes[2].get_xticklabels()] == ["all", "it"]
    assert len(points(figure, 2, "from zeros")) == 2


def test_densities_are_drawn_on_a_logarithmic_axis() -> None:
    ax = report().plot().axes[0]
    assert ax.get_xscale() == "log"
    (steps,) = ax.patches
    assert steps.get_data().values.tolist() == [1000, 9000, 5000, 840]  # type: ignore[attr-defined]
    assert ax.get_xlim() == (1e-4, 1)


def test_files_are_the_same_every_time() -> None:
    first, second = (figure_bytes(report().plot(), dpi=40) for _ in range(2))
    assert first.startswith(b"\x89PNG\r\n")
    assert first == second


def test_without_matplotlib_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'hooked-whisper\[analysis\]'"):
        report().plot()
