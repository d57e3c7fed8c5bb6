"""The log of an experiment: what is written is read back, and damage is named by its line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hooked_whisper import AnalysisError
from hooked_whisper.analysis.steering_log import OutcomeLog
from hooked_whisper.analysis.steering_result import Outcome

OUTCOME = Outcome("en/a", "en", "steered", 2.0, "Kin.", "in", 1, 0, -1.5, -2.5, 3, "en", 0.9)
ABOUT = {"what": "steering", "fingerprint": "f"}


def test_outcomes_come_back(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    log = OutcomeLog(path, ABOUT)
    assert log.read_outcomes() == {}
    log.add_outcomes([OUTCOME])
    assert OutcomeLog(path, ABOUT).read_outcomes() == {("steered", 2.0, "en/a"): OUTCOME}
    with pytest.raises(AnalysisError, match="is of another sweep: its fingerprint is f, this one's g"):
        OutcomeLog(path, {**ABOUT, "fingerprint": "g"})


@pytest.mark.parametrize("line", ["{", "[]", json.dumps({"clip": "en/a"})])
def test_damage_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "log.jsonl"
    log = OutcomeLog(path, ABOUT)
    log.add_outcomes([OUTCOME])
    path.write_text(f"{path.read_text()}{line}\n")
    with pytest.raises(AnalysisError, match=r"line 3 of .*log\.jsonl is damaged: delete it, and it is run again"):
        log.read_outcomes()
