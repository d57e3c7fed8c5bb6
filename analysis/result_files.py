"""Results as JSON and in files: read back with what is wrong with them named."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hooked_whisper.errors import AnalysisError

FORMAT = 1


def written(fields: dict[str, Any], *, indent: int | None = None) -> str:
    """Fields of a result as JSON, with their format."""
    return json.dumps({"format": FORMAT, **fields}, indent=indent)


def read_fields(text: str, what: str, writer: str, fields: Collection[str]) -> dict[str, Any]:
    """The fields of a result, from its JSON.

    Args:
        what: the kind of result, "circuit".
        writer: what writes it, "Circuit.to_json".
        fields: that there must be, and no others.

    Raises:
        AnalysisError: no JSON, or not of such a result.
    """
    try:
        data = json.loads(text)
    except (json.JSONDecodeError, TypeError) as error:
        raise AnalysisError(f"No {what}: the text is no JSON ({error}).") from error
    if not isinstance(data, dict) or set(data) != {"format", *fields} or data["format"] != FORMAT:
        raise AnalysisError(f"No {what} of format {FORMAT}: expected what {writer} writes.")
    return data


def figures(data: dict[str, Any], name: str, *shape: int | None) -> Tensor:
    """A field of numbers, in float64; None in `shape` allows any length.

    Raises:
        AnalysisError: other than numbers of that shape.
    """
    try:
        found = torch.tensor(data[name], dtype=torch.float64)
    except (TypeError, ValueError) as error:
        raise AnalysisError(f"{name!r} holds no table of numbers ({error}).") from error
    if found.ndim != len(shape) or any(n not in (None, size) for n, size in zip(shape, found.shape, strict=True)):
        wanted = " x ".join("any" if n is None else str(n) for n in shape)
        raise AnalysisError(f"{name!r} has shape {tuple(found.shape)}, expected {wanted}: one for each node and clip.")
    return found


def one_of(data: dict[str, Any], name: str, known: Sequence[str]) -> str:
    """A field that is one of some words.

    Raises:
        AnalysisError: it is none of them.
    """
    if data[name] not in known:
        raise AnalysisError(f"{name!r} is {data[name]!r}: expected {', '.join(known)}.")
    return data[name]


def save_text(text: str, path: str | Path) -> Path:
    """Writes a file, and makes its folder where it is missing.

    Raises:
        AnalysisError: it cannot be written.
    """
    target = Path(path)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise AnalysisError(f"{target} cannot be written ({error.strerror}): choose another path.") from error
    return target


def load_text(path: str | Path) -> str:
    """Reads a file of text.

    Raises:
        AnalysisError: it cannot be read, or is no text.
    """
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise AnalysisError(f"{path} cannot be read ({error.strerror}): expected a file that save() wrote.") from error
    except UnicodeDecodeError as error:
        raise AnalysisError(f"{path} is no text: expected a file that save() wrote.") from error
