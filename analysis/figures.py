"""Empty matplotlib figures that no window shows and that nothing else holds on to."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hooked_whisper.errors import MissingExtraError

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def new_figure(width: float, height: float) -> Figure:
    """A white figure of this size in inches, laid out so that nothing is cut off.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError(
            "Pictures need matplotlib, which cannot be imported: pip install 'hooked-whisper[analysis]'."
        ) from error
    return Figure(figsize=(width, height), layout="constrained", facecolor="white")
