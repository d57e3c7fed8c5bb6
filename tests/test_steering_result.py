"""Figures of a steering experiment, from outcomes made up so that each can be counted by hand."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from hooked_whisper.analysis.steering_controls import ACTIVATION, RANDOM, SAE_ONLY, STEERED, UNHOOKED, VECTOR
from hooked_whisper.analysis.steering_result import Outcome, SteeringResult
from hooked_whisper.errors import AnalysisError

LANGUAGE = {"a": "en", "b": "en", "c": None, "d": "it"}  # a clip without a language is taken for English
DELETED = {"a": 2, "b": 1, "c": 0, "d": 1}  # before: nothing can be swapped in c


def outcome(clip: str, condition: str, dose: float = 0.0, inserted: int = 0, deleted: int | None = None,
            off_target: str = "0123456789", heard: str = "en") -> Outcome:  # fmt: skip
    return Outcome(
        clip, LANGUAGE[clip], condition, dose, "text", off_target, inserted, DELETED[clip] if deleted is None else
        deleted, logp_inserted=-2.0 + inserted, logp_deleted=-1.0, n_positions=2, heard=heard, p_language=0.5,
    )  # fmt: skip


@pytest.fixture
def result() -> SteeringResult:
    """Two doses; at the second one the edit spoils a tenth of what is off the target in two clips of four."""
    made = [outcome(clip, condition) for clip in LANGUAGE for condition in (UNHOOKED, SAE_ONLY)]
    for dose in (1.0, 2.0):
        made += [
            outcome("a", STEERED, dose, 1, 1),
            outcome("b", STEERED, dose, 1, 1),  # one more, and none fewer: no success
            outcome("c", STEERED, dose, 3, 0),  # not eligible
            outcome("d", STEERED, dose, int(dose > 1), 0, heard="it"),
        ]
        for control in (f"{RANDOM}-0", f"{RANDOM}-1", VECTOR, ACTIVATION):
            made += [outcome(clip, control, dose) for clip in LANGUAGE]
    for at, one in enumerate(made):
        if one.condition == STEERED and one.dose == 2 and one.clip in "ad":
            made[at] = replace(one, off_target="01234567x9")
        if one.condition == f"{RANDOM}-1" and one.clip == "a":
            made[at] = replace(one, inserted=1, deleted=1)
    bases = dict.fromkeys({one.condition for one in made}, UNHOOKED)
    return SteeringResult({"edits": "made up"}, tuple(made), True, True, bases)


def test_a_dose_is_counted_by_hand(result: SteeringResult) -> None:
    low, high = result.curve(STEERED)
    assert result.doses == [1.0, 2.0] and result.languages == ["en", "it"]
    assert (low.n_clips, low.n_eligible, low.inserted, low.deleted) == (4, 3, 5.0, -2.0)
    assert low.success.value == pytest.approx(1 / 3) and high.success.value == pytest.approx(2 / 3)
    assert high.clean_success.value == 0.0  # both successes spoil a tenth of their clip
    assert low.off_target.value == 0.0 and high.off_target.value == pytest.approx(2 / 40)
    assert low.logp_inserted.value == pytest.approx(5 / 8)  # 5 nats over 4 clips of 2 positions
    assert low.language_changed.value == pytest.approx(1 / 4) and low.p_language.value == 0.0


def test_random_versions_are_taken_together(result: SteeringResult) -> None:
    both, second = result.effect(RANDOM, 1.0), result.effect(f"{RANDOM}-1", 1.0)
    assert both.n_clips == 4 and both.n_eligible == 3
    assert second.success.value == pytest.approx(1 / 3) and both.success.value == pytest.approx(1 / 6)
    assert both.inserted == 0.5


def test_clips_of_a_language(result: SteeringResult) -> None:
    english = result.effect(STEERED, 2.0, language="en")
    assert (english.n_clips, english.n_eligible) == (3, 2) and english.success.value == 0.5


def test_the_limit_chooses_the_dose(result: SteeringResult) -> None:
    """One point off the target leaves the first dose; ten leave both, and the second has more successes."""
    within, wide = result.at_limit(STEERED), result.at_limit(STEERED, max_cer_change=0.1)
    assert within is not None and within.dose == 1.0
    assert wide is not None and wide.dose == 2.0
    assert result.at_limit(STEERED, max_cer_change=-1.0) is None
    assert "| all (4) | 33.3 %" in result.to_markdown() and "no dose within it" in result.to_markdown(max_cer_change=-1)


def test_everything_is_in_the_json(result: SteeringResult) -> None:
    whole = json.loads(result.to_json())
    assert set(whole["effects"]) == {"all", "en", "it"} and len(whole["outcomes"]) == len(result.outcomes)


def test_no_such_version_and_no_controls(result: SteeringResult) -> None:
    with pytest.raises(AnalysisError, match=r"No clip was run as 'steered' at dose 5 in 'en'.*doses \[1.0, 2.0\]"):
        result.effect(STEERED, 5.0, language="en")
    without = tuple(one for one in result.outcomes if not one.condition.startswith(RANDOM))
    with pytest.raises(AnalysisError, match="random is missing"):
        SteeringResult({}, without, True, True, result.bases)


def test_the_plot_has_a_curve_for_each_version(result: SteeringResult) -> None:
    figure = result.plot()
    assert len(figure.axes) == 2 and len(figure.axes[0].get_lines()) == 5
