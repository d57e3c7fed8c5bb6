"""Steering results as a dashboard shows them: what each clip's transcript becomes at each dose, controls beside it.

view = SteeringView.of(result)                     # what `steering_experiment` returns
view = SteeringView.read("steer.json")             # what its `to_json` wrote, or `hooked-whisper steer --out`
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from hooked_whisper.analysis.steering_controls import SAE_ONLY, STEERED, UNHOOKED
from hooked_whisper.analysis.steering_result import SteeringResult
from hooked_whisper.errors import AnalysisError


@dataclass(frozen=True)
class SteeredText:
    """The transcript of a clip under one version at one dose; 0 is the dose of versions that have none."""

    clip: str
    language: str
    condition: str
    dose: float
    text: str


@dataclass(frozen=True)
class SteeringView:
    """All transcripts of an experiment.

    Attributes:
        about: model, edits, target and so on, in words.
        notes: what a reader must know.
        texts: one for each clip, version and dose.

    Raises:
        AnalysisError: no steered transcript, or a clip without its unhooked one.
    """

    about: tuple[tuple[str, str], ...]
    notes: tuple[str, ...]
    texts: Sequence[SteeredText]

    def __post_init__(self) -> None:
        plain = {one.clip for one in self.texts if one.condition == UNHOOKED}
        steered = [one for one in self.texts if one.condition == STEERED]
        if not steered or any(one.clip not in plain for one in steered):
            raise AnalysisError("A steering result needs steered transcripts, and the unhooked one of each clip.")

    @classmethod
    def of(cls, result: SteeringResult) -> SteeringView:
        """Of a result in memory."""
        return cls._made(result.about, result.notes, [vars(outcome) for outcome in result.outcomes])

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> SteeringView:
        """Of what `SteeringResult.to_json` or `hooked-whisper steer --out FILE.json` wrote.

        Raises:
            AnalysisError: no such file, or another kind of file.
        """
        try:
            whole: Any = json.loads(Path(path).read_text(encoding="utf-8"))
            if whole and isinstance(whole, list):
                return cls._of_rows(whole)
            return cls._made(whole["about"], whole["notes"], whole["outcomes"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise AnalysisError(
                f"{path} holds no steering result ({error!r}): expected what SteeringResult.to_json() or "
                "hooked-whisper steer --out FILE.json gives."
            ) from error

    @classmethod
    def _of_rows(cls, rows: Sequence[dict[str, Any]]) -> SteeringView:
        """Of the table of transcripts that the command writes."""
        steered = next((one for one in rows if one["version"] == STEERED), {"latents": ""})
        about = {
            "latents": " > ".join(steered["latents"].split()),
            "clips": len({one["clip"] for one in rows}),
        }
        notes = ["What a random latent does at the same dose is no finding about this one."]
        return cls._made(about, notes, [{**one, "condition": one["version"]} for one in rows])

    @classmethod
    def _made(cls, about: dict[str, Any], notes: Sequence[str], outcomes: Sequence[dict[str, Any]]) -> SteeringView:
        texts = [
            SteeredText(
                str(one["clip"]),
                str(one["language"] or ""),
                str(one["condition"]),
                float(one["dose"]),
                str(one["text"]),
            )
            for one in outcomes
        ]
        return cls(tuple((str(key), str(value)) for key, value in about.items()), tuple(map(str, notes)), texts)

    @property
    def doses(self) -> list[float]:
        """Doses of the edit, smallest first."""
        return sorted({one.dose for one in self.texts if one.condition == STEERED})

    @property
    def conditions(self) -> list[str]:
        """Versions with a dose, the edit first, then its controls."""
        return [name for name in dict.fromkeys(one.condition for one in self.texts) if name not in (UNHOOKED, SAE_ONLY)]

    @property
    def clips(self) -> list[tuple[str, str]]:
        """Clips with their languages."""
        return list(dict.fromkeys((one.clip, one.language) for one in self.texts))

    def text(self, clip: str, condition: str, dose: float) -> str | None:
        """A transcript; None where that was not run."""
        return self._by_place.get((clip, condition, dose))

    @cached_property
    def _by_place(self) -> dict[tuple[str, str, float], str]:
        return {(one.clip, one.condition, one.dose): one.text for one in self.texts}
