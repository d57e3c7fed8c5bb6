"""What a finetuning writes on its way, so that one that was stopped goes on where it was."""

from __future__ import annotations

import hashlib
import os
import pickle
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hooked_whisper.errors import SaeError
from hooked_whisper.file_modes import as_new_file

_DAMAGED = (OSError, EOFError, KeyError, RuntimeError, TypeError, ValueError, pickle.UnpicklingError)


def names_digest(names: Iterable[str]) -> str:
    """One short name for many, in their order."""
    digest = hashlib.sha256()
    for name in names:
        digest.update(name.encode() + b"\0")
    return digest.hexdigest()[:16]


@dataclass(frozen=True)
class FinetuningCheckpoint:
    """A file with the weights, the optimizer's state and the course so far, and the settings that it belongs to.

    Attributes:
        path: of the file.
        settings: all that decides the result, as plain values; another run's checkpoint has others.
    """

    path: Path
    settings: Mapping[str, str | int | float]

    def check(self) -> None:
        """Raises SaeError where no file can be written: before the first step, not after the fiftieth."""
        if self.path.is_dir():
            raise SaeError(f"checkpoint={str(self.path)!r} is a folder: name a file.")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise SaeError(f"checkpoint={str(self.path)!r} cannot be written: {error}.") from error

    def save(self, n_batches: int, sae: Any, optimizer: torch.optim.Optimizer, course: Mapping[str, Any]) -> None:
        """Writes it, whole or not at all.

        Args:
            n_batches: gone through so far.
            course: what the report holds, plain values and lists of them.
        """
        state = {
            "settings": dict(self.settings),
            "n_batches": n_batches,
            "sae": dict(sae.named_parameters()),
            "optimizer": optimizer.state_dict(),
            "course": dict(course),
        }
        partial = self.path.with_name(f"{self.path.name}.partial")
        with open(partial, "wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(as_new_file(partial), self.path)

    @torch.no_grad()
    def load(self, sae: Any, optimizer: torch.optim.Optimizer) -> tuple[int, dict[str, Any]] | None:
        """Sets SAE and optimizer to where they were; gives back batches gone through and the course, or None.

        Raises:
            SaeError: the file is damaged, or of a run with other settings.
        """
        if not self.path.exists():
            return None
        try:
            state = torch.load(self.path, map_location="cpu", weights_only=True)
            there, n_batches = dict(state["settings"]), int(state["n_batches"])
            weights, course, moments = state["sae"], dict(state["course"]), state["optimizer"]
        except _DAMAGED as error:
            reason = str(error).partition("\n")[0]
            raise SaeError(f"The checkpoint {self.path} is damaged ({reason}): remove it to start anew.") from error
        apart = [
            f"{name}: {there.get(name)!r}, now {self.settings.get(name)!r}"
            for name in dict.fromkeys([*there, *self.settings])
            if there.get(name) != self.settings.get(name)
        ]
        if apart:
            raise SaeError(
                f"The checkpoint {self.path} is of another finetuning ({'; '.join(apart)}): name another file, or "
                "remove it to start anew."
            )
        try:
            for name, weight in sae.named_parameters():
                weight.copy_(weights[name])
            optimizer.load_state_dict(moments)
        except _DAMAGED as error:
            raise SaeError(f"The checkpoint {self.path} is damaged ({error!r}): remove it to start anew.") from error
        return n_batches, course
