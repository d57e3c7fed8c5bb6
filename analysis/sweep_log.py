"""A sweep's figures on disk as they come, so that one that was broken off goes on where it was.

A file of JSON lines: the first says what is swept, each other one holds a node and its figures.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from hooked_whisper.analysis.contrast import Contrast, ModelInput
from hooked_whisper.analysis.edges import Edge, PartT
from hooked_whisper.analysis.nodes import Node
from hooked_whisper.errors import AnalysisError
from hooked_whisper.model import HookedWhisper
from hooked_whisper.saes.fingerprints import weights_fingerprint

FORMAT = 1
_TOLERANCE = 1e-3  # of a figure: what another machine's rounding may make of it


def sweep_fingerprint(
    model: HookedWhisper,
    inputs: Contrast | ModelInput,
    nodes: Sequence[Node] | Sequence[Edge],
    metric: object,
    *about: str,
) -> str:
    """SHA-256 of a sweep: weights of the model and of attached SAEs, inputs, nodes, metric, and whatever else.

    A metric that is a dataclass is known by its fields, any other by its name.
    """
    digest = hashlib.sha256()
    digest.update(weights_fingerprint(model).encode())
    for hook, sae in model.acts_to_saes.items():
        digest.update(f"{hook} {weights_fingerprint(sae)}".encode())
    sides = (inputs.clean, inputs.corrupted) if isinstance(inputs, Contrast) else (inputs,)
    for side in sides:
        _update(digest, side.mel)
        _update(digest, side.tokens)
    digest.update("\n".join(map(str, nodes)).encode())
    _update(digest, metric)
    digest.update(" ".join(about).encode())
    return digest.hexdigest()


def _update(digest: Any, value: object) -> None:
    if isinstance(value, Tensor):
        digest.update(f"{tuple(value.shape)} {value.dtype}".encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        digest.update(type(value).__qualname__.encode())
        for field in dataclasses.fields(value):
            digest.update(field.name.encode())
            _update(digest, getattr(value, field.name))
    elif callable(value):
        name = getattr(value, "__qualname__", type(value).__qualname__)
        digest.update(f"{getattr(value, '__module__', '')}.{name}".encode())
    else:
        digest.update(repr(value).encode())


class SweepLog:
    """The file of one sweep.

    Args:
        path: of the file, made where it is missing, its folder too.
        about: what is swept: "what" and "fingerprint", texts that must be the same when the sweep goes on, and figures
            that must come out the same up to rounding.

    Raises:
        AnalysisError: the file is of another sweep, or of none, or cannot be written.
    """

    def __init__(self, path: Path, about: Mapping[str, Any]) -> None:
        self._path = path
        try:
            if path.exists() and path.stat().st_size:
                self._drop_torn_line()
                self._check({"format": FORMAT, **about})
            else:
                path.parent.mkdir(parents=True, exist_ok=True)
                self._write({"format": FORMAT, **about})
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it holds no text"
            raise AnalysisError(f"{path} cannot hold a sweep ({reason}): choose another file for out=.") from error

    def read(self, nodes: Sequence[PartT]) -> dict[PartT, list[float]]:
        """The figures of nodes, or edges, that are done already.

        Raises:
            AnalysisError: a line that no sweep has written.
        """
        by_name = {str(node): node for node in nodes}
        lines = self._path.read_text(encoding="utf-8").splitlines()
        rows = [self._row(line, number) for number, line in enumerate(lines[1:], start=2)]
        return {by_name[name]: figures for name, figures in rows}

    def _row(self, line: str, number: int) -> tuple[str, list[float]]:
        try:
            row = json.loads(line)
            return str(row["node"]), [float(figure) for figure in row["effects"]]
        except (ValueError, KeyError, TypeError) as error:
            raise AnalysisError(
                f"line {number} of {self._path} is damaged: delete it, and its node is run again."
            ) from error

    def add(self, node: Node | Edge, figures: Sequence[float]) -> None:
        """Writes a node's figures."""
        self._write({"node": str(node), "effects": list(figures)})

    def _write(self, row: Mapping[str, Any]) -> None:
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def _drop_torn_line(self) -> None:
        data = self._path.read_bytes()
        if not data.endswith(b"\n"):  # killed while it wrote
            with self._path.open("r+b") as file:
                file.truncate(data.rfind(b"\n") + 1)

    def _check(self, about: Mapping[str, Any]) -> None:
        with self._path.open(encoding="utf-8") as file:
            first = file.readline()
        if not first:  # the first line itself was torn
            self._write(about)
            return
        try:
            known = json.loads(first)
        except json.JSONDecodeError as error:
            raise AnalysisError(f"{self._path} holds no sweep ({error}): choose another file for out=.") from error
        if not isinstance(known, dict) or set(known) != set(about):
            raise AnalysisError(f"{self._path} holds no sweep of this kind: choose another file for out=.")
        for key, value in about.items():
            if not _same(known[key], value):
                raise AnalysisError(
                    f"{self._path} is of another sweep: its {key} is {_short(known[key])}, this one's "
                    f"{_short(value)}. Model, SAEs, inputs, nodes, metric and options must be those it was begun with: "
                    "choose another file for out=, or delete it."
                )


def _same(known: object, value: object) -> bool:
    if isinstance(known, list) and isinstance(value, list):
        return len(known) == len(value) and all(map(_same, known, value))
    if isinstance(known, float) and isinstance(value, float):
        return abs(known - value) <= _TOLERANCE * max(1.0, abs(known))
    return known == value


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:12]}..."
