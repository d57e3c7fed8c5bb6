"""A steering experiment's outcomes on disk as they come, so that one that was broken off goes on where it was.

A file of JSON lines: the first says which experiment, each other one holds an outcome. Its manners are a sweep's.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, fields

from hooked_whisper.analysis.steering_result import Outcome
from hooked_whisper.analysis.sweep_log import SweepLog
from hooked_whisper.errors import AnalysisError

_FIELDS = {field.name for field in fields(Outcome)}


class OutcomeLog(SweepLog):
    """The file of one experiment; see `SweepLog`."""

    def read_outcomes(self) -> dict[tuple[str, float, str], Outcome]:
        """What is done already, by version, dose and clip.

        Raises:
            AnalysisError: a line that no experiment has written.
        """
        lines = self._path.read_text(encoding="utf-8").splitlines()
        outcomes = [self._outcome(line, number) for number, line in enumerate(lines[1:], start=2)]
        return {(outcome.condition, outcome.dose, outcome.clip): outcome for outcome in outcomes}

    def _outcome(self, line: str, number: int) -> Outcome:
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise AnalysisError(f"line {number} of {self._path} is damaged: delete it, and it is run again.") from error
        if not isinstance(row, dict) or set(row) != _FIELDS:
            raise AnalysisError(f"line {number} of {self._path} is damaged: delete it, and it is run again.")
        return Outcome(**row)

    def add_outcomes(self, outcomes: Sequence[Outcome]) -> None:
        """Writes outcomes."""
        for outcome in outcomes:
            self._write(asdict(outcome))
