"""PyArrow, which an extra brings."""

from __future__ import annotations

from types import ModuleType

from hooked_whisper.errors import MissingExtraError


def import_pyarrow() -> tuple[ModuleType, ModuleType]:
    """`pyarrow` and `pyarrow.parquet`.

    Raises:
        MissingExtraError: they are not installed.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise MissingExtraError(
            "Stores of activations and Parquet files need pyarrow, which cannot be imported: "
            "pip install 'hooked-whisper[train]'."
        ) from error
    return pyarrow, pyarrow.parquet
