"""Reports survive JSON, and gates pass and fail where the protocol says."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from reports import estimate, group, loss, rates, reconstruction, report

from hooked_whisper import SaeError
from hooked_whisper.saes.estimates import Estimate
from hooked_whisper.saes.reconstruction import Firing
from hooked_whisper.saes.report import Bounds, Gate, SaeReport


def gate(found: list[Gate], name: str, language: str | None = None) -> Gate:
    (one,) = [gate for gate in found if gate.name == name and gate.language == language]
    return one


def test_json_gives_the_report_back() -> None:
    whole = report()
    assert SaeReport.from_json(whole.to_json()) == whole
    bare = report(
        configured_l0=None,
        languages={"en": group(on_transcript=None, transcripts=None)},
        speakers={},
        baselines={},
        changes=[],
    )
    assert SaeReport.from_json(bare.to_json()) == bare


numbers = st.one_of(st.none(), st.floats(-1e9, 1e9))


@given(numbers, numbers, numbers)
def test_json_keeps_every_digit(value: float | None, low: float | None, high: float | None) -> None:
    whole = report(overall=group(reconstruction=replace(reconstruction(), fvu=Estimate(value, low, high))))
    assert SaeReport.from_json(whole.to_json()) == whole


def test_json_is_plain_and_strict() -> None:
    data = json.loads(report().to_json())
    assert data["languages"]["it"]["reconstruction"]["fvu"] == {"value": 0.09, "low": 0.089, "high": 0.091}
    with pytest.raises(ValueError, match="Out of range float values"):
        report(configured_l0=float("nan")).to_json()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("not json", "the text is no JSON"),
        ("[]", "No evaluation report of format 1: expected what SaeReport.to_json writes"),
        ('{"format": 0}', "No evaluation report of format 1"),
        ('{"format": 1}', "lacks or garbles a field: .*missing"),
        ('{"format": 1, "speed": 3}', "unknown field 'speed' of SaeReport"),
    ],
)
def test_what_is_no_report_is_refused(text: str, message: str) -> None:
    with pytest.raises(SaeError, match=message):
        SaeReport.from_json(text)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("model", 5, "5 where str was expected"),
        ("d_sae", "many", "'many' where int was expected"),
        ("languages", [], "[] where a dict was expected"),
        ("notes", "none", "'none' where a list was expected"),
        ("overall", 3, "3 where Group was expected"),
        ("configured_l0", "45", "'45' where float was expected"),
    ],
)
def test_a_field_of_the_wrong_kind_is_refused(field: str, value: object, message: str) -> None:
    data = json.loads(report().to_json()) | {field: value}
    with pytest.raises(SaeError, match=re.escape(message)):
        SaeReport.from_json(json.dumps(data))


def test_a_good_sae_passes_every_gate() -> None:
    found = report().gates()
    assert [(one.passes, one.name) for one in found if one.passes is not True] == []
    assert [one.language for one in found] == [None] * 3 + ["en"] * 4 + ["it"] * 4


def test_each_gate_fails_alone() -> None:
    bad = {
        ("FVU", None): report(overall=group(reconstruction=reconstruction(0.11))),
        ("dead latents", None): report(overall=group(firing=Firing(10_000, 16_000, 800, 5))),
        ("L0", None): report(overall=group(reconstruction=reconstruction(l0=42.0))),
        ("cross-entropy recovered, from zero", "it"): report(
            languages={"en": group(), "it": group(on_transcript=replace(loss(), recovered_from_zero=estimate(0.98)))}
        ),
        ("cross-entropy recovered, from mean", "it"): report(
            languages={"en": group(), "it": group(on_transcript=replace(loss(), recovered_from_mean=estimate(0.98)))}
        ),
        ("WER change, points", "en"): report(languages={"en": group(transcripts=rates(0.0031))}),
        ("WER to the unhooked transcript, points", "en"): report(
            languages={"en": group(transcripts=rates(to_unhooked=0.0031))}
        ),
    }
    for (name, language), whole in bad.items():
        failed = [(one.name, one.language) for one in whole.gates() if one.passes is False]
        assert failed == [(name, language)]


def test_a_better_transcript_is_a_change_too() -> None:
    found = gate(report(languages={"en": group(transcripts=rates(-0.01))}).gates(), "WER change, points", "en")
    assert (found.passes, found.bound) == (False, "within ± 0.3")
    assert found.figure.value == pytest.approx(-1.0)


def test_what_was_not_measured_is_neither_passed_nor_failed() -> None:
    bare = report(
        configured_l0=None,
        languages={
            "en": group(on_transcript=None, transcripts=None),
            "it": group(transcripts=rates(references=0)),
        },
    )
    found = bare.gates()
    assert gate(found, "L0").passes is None
    assert gate(found, "L0").bound == "none configured"
    for name in ("cross-entropy recovered, from mean", "WER change, points", "WER to the unhooked transcript, points"):
        assert (gate(found, name, "en").passes, gate(found, name, "en").certain) == (None, None)
    assert gate(found, "WER change, points", "it").passes is None
    assert gate(found, "WER to the unhooked transcript, points", "it").passes is True


def test_an_interval_across_the_bound_is_not_certain() -> None:
    def fvu(value: float, spread: float | None) -> Gate:
        figure = Estimate(value) if spread is None else estimate(value, spread)
        return gate(report(overall=group(reconstruction=replace(reconstruction(), fvu=figure))).gates(), "FVU")

    assert (fvu(0.09, 0.005).passes, fvu(0.09, 0.005).certain) == (True, True)
    assert (fvu(0.09, 0.02).passes, fvu(0.09, 0.02).certain) == (True, False)
    assert (fvu(0.11, 0.02).passes, fvu(0.11, 0.02).certain) == (False, False)
    assert (fvu(0.2, 0.02).passes, fvu(0.2, 0.02).certain) == (False, True)
    assert (fvu(0.2, None).passes, fvu(0.2, None).certain) == (False, None)

    def change(value: float, spread: float) -> Gate:
        some = replace(rates(), wer_change=estimate(value, spread))
        return gate(report(languages={"en": group(transcripts=some)}).gates(), "WER change, points", "en")

    assert (change(0.001, 0.001).passes, change(0.001, 0.001).certain) == (True, True)
    assert (change(0.001, 0.005).passes, change(0.001, 0.005).certain) == (True, False)
    assert (change(-0.01, 0.005).passes, change(-0.01, 0.005).certain) == (False, True)

    def recovered(value: float, spread: float) -> Gate:
        some = replace(loss(), recovered_from_zero=estimate(value, spread))
        found = report(languages={"en": group(on_transcript=some)}).gates()
        return gate(found, "cross-entropy recovered, from zero", "en")

    assert (recovered(0.995, 0.001).passes, recovered(0.995, 0.001).certain) == (True, True)
    assert (recovered(0.98, 0.02).passes, recovered(0.98, 0.02).certain) == (False, False)
    assert (recovered(0.9, 0.02).passes, recovered(0.9, 0.02).certain) == (False, True)


def test_bounds_can_be_others() -> None:
    strict = Bounds(fvu=0.05, dead=0.01, l0_tolerance=0.0, recovered=0.999, wer_points=0.05)
    assert [one.name for one in report().gates(strict) if one.passes] == ["L0"]
    loose = Bounds(fvu=0.5, dead=0.9, l0_tolerance=0.5, recovered=0.5, wer_points=5)
    poor = report(overall=group(reconstruction=reconstruction(0.3, l0=30.0)))
    assert all(one.passes for one in poor.gates(loose))


def test_dead_latents_have_to_be_fewer_than_the_bound() -> None:
    at_bound = report(overall=group(firing=Firing(10_000, 16_000, 800, 5)))
    assert gate(at_bound.gates(), "dead latents").passes is False
    below = report(overall=group(firing=Firing(10_000, 16_000, 799, 5)))
    assert gate(below.gates(), "dead latents").passes is True


def test_a_folder_gets_all_three_files(tmp_path: Path) -> None:
    whole = report()
    written = whole.save(tmp_path / "run")
    assert [path.name for path in written] == ["evaluation.json", "evaluation.md", "evaluation.png"]
    assert SaeReport.from_json(written[0].read_text(encoding="utf-8")) == whole
    assert written[1].read_text(encoding="utf-8") == whole.to_markdown()
    assert written[2].read_bytes().startswith(b"\x89PNG\r\n")
