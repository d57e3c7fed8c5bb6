"""Empty figures, and what is said where they cannot be had."""

from __future__ import annotations

import sys

import pytest

from hooked_whisper.analysis.figures import new_figure
from hooked_whisper.errors import MissingExtraError


def test_a_figure_of_its_own() -> None:
    figure = new_figure(3, 2)
    assert tuple(figure.get_size_inches()) == (3, 2)
    assert figure.axes == []
    assert new_figure(3, 2) is not figure


def test_without_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingExtraError, match=r"Pictures need matplotlib.*hooked-whisper\[analysis\]"):
        new_figure(3, 2)
