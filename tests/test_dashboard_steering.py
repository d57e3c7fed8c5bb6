"""Steering results are read from memory and from what they wrote, and refused where there is nothing to compare."""

from __future__ import annotations

from pathlib import Path

import pytest

from hooked_whisper import AnalysisError
from hooked_whisper.analysis.dashboard_steering import SteeredText, SteeringView
from hooked_whisper.analysis.steering_controls import CONTROLS, RANDOM, SAE_ONLY, STEERED, UNHOOKED
from hooked_whisper.analysis.steering_result import Outcome, SteeringResult


def result() -> SteeringResult:
    def outcome(clip: str, condition: str, dose: float) -> Outcome:
        text = f"{clip} {condition} {dose:g}"
        return Outcome(clip, None, condition, dose, text, text, 0, 0, 0.0, 0.0, 1, None, None)

    outcomes = []
    for clip in ("a", "b"):
        for name in (STEERED, *CONTROLS):
            doses = (0.0,) if name in (UNHOOKED, SAE_ONLY) else (0.5, 2.0)
            outcomes += [outcome(clip, f"{name}-0" if name == RANDOM else name, dose) for dose in doses]
    bases = {one.condition: UNHOOKED for one in outcomes}
    return SteeringResult({"edits": "Zero(7)", "n": 2}, tuple(outcomes), True, True, bases, ["a note"])


def test_a_result_and_its_file_say_the_same(tmp_path: Path) -> None:
    made = SteeringView.of(result())
    (tmp_path / "steer.json").write_text(result().to_json(), encoding="utf-8")
    assert SteeringView.read(tmp_path / "steer.json") == made
    assert made.about == (("edits", "Zero(7)"), ("n", "2")) and made.notes == ("a note",)
    assert made.doses == [0.5, 2.0]
    assert made.conditions == ["steered", "random-0", "vector", "activation"]
    assert made.clips == [("a", ""), ("b", "")]
    assert made.text("b", "random-0", 2.0) == "b random-0 2"
    assert made.text("b", "unhooked", 0.0) == "b unhooked 0"
    assert made.text("b", "steered", 7.0) is None


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"about": {}, "notes": [], "outcomes": [{"clip": 1}]}'])
def test_other_files_are_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(AnalysisError, match=r"x\.json holds no steering result .*SteeringResult.to_json"):
        SteeringView.read(tmp_path / "x.json")
    with pytest.raises(AnalysisError, match="holds no steering result"):
        SteeringView.read(tmp_path / "missing.json")


def test_texts_need_their_base() -> None:
    steered = SteeredText("a", "en", STEERED, 1.0, "x")
    for texts in ([], [steered], [SteeredText("b", "en", UNHOOKED, 0.0, "x"), steered]):
        with pytest.raises(AnalysisError, match="the unhooked one of each clip"):
            SteeringView((), (), texts)
