"""Phones with times from espeak-ng, held against the sound itself."""

from __future__ import annotations

import ctypes.util
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hooked_whisper.analysis import espeak as espeak_module
from hooked_whisper.analysis.espeak import Espeak, Spoken, espeak_voices, find_espeak, timed_tiers
from hooked_whisper.analysis.labels import Interval
from hooked_whisper.analysis.phones import articulations
from hooked_whisper.errors import AnalysisError, MissingExtraError


@pytest.fixture(scope="module")
def espeak() -> Iterator[Espeak]:
    pytest.importorskip("espeakng_loader", reason="libespeak-ng is not installed")
    with Espeak() as started:
        yield started


def values(spoken: Spoken, tier: str) -> list[str]:
    return [one.value for one in spoken.tiers[tier]]


def part(spoken: Spoken, interval: Interval) -> np.ndarray:
    sound = spoken.samples.astype(float) / np.abs(spoken.samples.astype(float)).max()
    return sound[round(interval.start * spoken.rate) : round(interval.end * spoken.rate)]


def crossings(sound: np.ndarray) -> float:
    """How often the sound crosses zero, a sample: noise of an s does it often, voices seldom."""
    return float((np.diff(np.signbit(sound)) != 0).mean())


@pytest.mark.parametrize("voice", ["en-us+m1", "en-us+f2", "es+m3"])
def test_the_event_is_where_the_phone_starts(espeak: Espeak, voice: str) -> None:
    # After a pause the first phone begins where the sound does, be it a plosive, a vowel or a fricative.
    for text in ("Taco.", "Aqua.", "Sofa."):
        spoken = espeak.say(text, voice)
        loud = np.flatnonzero(np.abs(spoken.samples.astype(float)) > 0.01 * np.abs(spoken.samples.astype(float)).max())
        assert abs(spoken.tiers["phone"][0].start - loud[0] / spoken.rate) < 0.008
    # The noise of s lies within its interval, not in those beside it: an s said 20 ms off would fail.
    spoken = espeak.say("Sasa sasa, sasa sasa.", voice)
    rates = {phone: [] for phone in ("s", "vowel")}
    for one in spoken.tiers["phone"]:
        kind = "s" if one.value == "s" else "vowel"
        rates[kind].append(crossings(part(spoken, one)))
    assert len(rates["s"]) == 8 and min(rates["s"]) > 2 * max(rates["vowel"])


@pytest.mark.parametrize("voice", ["en-us+m1", "en-us+f4"])
def test_closures_are_silent_and_end_in_a_burst(espeak: Espeak, voice: str) -> None:
    spoken = espeak.say("Up to ten potato cakes to take, stop at the top.", voice)
    assert len(spoken.tiers["closure"]) >= 8
    for closure in spoken.tiers["closure"]:
        assert np.abs(part(spoken, closure)).max() <= 0.011
        burst = part(spoken, Interval(closure.end, closure.end + 0.006, "burst"))
        assert np.abs(burst).max() > 0.01
        phone = next(one for one in spoken.tiers["phone"] if one.start == closure.start)
        assert phone.value == closure.value and phone.end > closure.end
        assert articulations(phone.value)[0].manner in ("plosive", "affricate")


def test_phones_follow_each_other_and_words_hold_them(espeak: Espeak) -> None:
    spoken = espeak.say("Please enter 25 of a pass-word, then stop.", "en-us+f2")
    assert values(spoken, "word") == ["please", "enter", "25", "of a", "pass-word", "then", "stop"]
    assert "".join(values(spoken, "phone")[:4]) == "pliz"
    for one, after in zip(spoken.tiers["phone"], spoken.tiers["phone"][1:], strict=False):
        assert one.end <= after.start
    for word in spoken.tiers["word"]:
        inside = [one for one in spoken.tiers["phone"] if word.start <= one.start and one.end <= word.end]
        assert inside[0].start == word.start and inside[-1].end == word.end
    pause = spoken.tiers["word"][5].start - spoken.tiers["word"][4].end
    assert pause > 0.1
    assert len(spoken.tiers["stress"]) >= 7 and "long" in values(spoken, "length")


def test_one_alphabet_in_all_languages(espeak: Espeak) -> None:
    said = {
        "es": ("¿Dónde está el perro?", {"d", "o", "n", "t", "r", "p", "e", "a"}, ["dónde", "está", "el", "perro"]),
        "fr": ("Ça va, l'été ?", {"s", "a", "v", "l", "e", "t"}, ["ça", "va", "l'été"]),
        "it": ("Attenda la pizza rossa.", {"t", "ts", "s", "r"}, ["attenda", "la", "pizza", "rossa"]),
        "ru": ("Мы пять раз были.", {"ɨ", "pʲ", "tʲ", "r"}, ["мы", "пять", "раз", "были"]),
        "de": ("Besser, schöne Tür.", {"ɐ", "ʃ", "ø", "y"}, ["besser", "schöne", "tür"]),
    }
    for language, (text, phones, words) in said.items():
        spoken = espeak.say(text, language)
        assert phones <= set(values(spoken, "phone")) and values(spoken, "word") == words
    double = espeak.say("Attenda.", "it").tiers["closure"][0]
    assert double.value == "t" and double.seconds > 0.08  # a geminate


def test_the_same_whatever_was_said_before(espeak: Espeak) -> None:
    first = espeak.say("Two dogs and a cat.", "en-us+f3", speed=150, pitch=40)
    espeak.say("Something else, said at length and in between.", "ru+m2")
    again = espeak.say("Two dogs and a cat.", "en-us+f3", speed=150, pitch=40)
    assert np.array_equal(first.samples, again.samples) and first.tiers == again.tiers
    # Nor does it matter when the process began, whose clock would be the seed of the noise.
    time.sleep(1.1)
    with Espeak() as other:
        assert np.array_equal(other.say("Two dogs and a cat.", "en-us+f3", speed=150, pitch=40).samples, first.samples)
    quick = espeak.say("Two dogs and a cat.", "en-us+f3", speed=300, pitch=40)
    assert quick.seconds < 0.8 * first.seconds and values(quick, "word") == values(first, "word")
    # A text is no command.
    assert values(espeak.say("Two\x01450S dogs.", "en-us"), "word")[0] == "two"


def test_what_cannot_be_said(espeak: Espeak) -> None:
    for arguments, message in {
        ("Hi.", "xx+m1"): "cannot say 'Hi.' with 'xx.m1': no voice.*It knows 1[0-9][0-9] languages",
        ("Hi.", "en-uss"): "Did you mean 'en-us'",
        ("...", "en"): "says nothing of '...' with 'en': expected words in that language",
    }.items():
        with pytest.raises(AnalysisError, match=message):
            espeak.say(*arguments)
    for options, message in {"speed": 20, "pitch": 100, "range": -1}.items():
        with pytest.raises(AnalysisError, match=f"{options}={message}: expected"):
            espeak.say("Hi.", "en", **{options: message})
    assert {"en-us", "es", "ru"} <= set(espeak_voices())


def test_a_process_that_ends_is_said_and_replaced(espeak: Espeak) -> None:
    process = espeak._process
    assert process is not None
    process.kill()
    process.wait()
    with pytest.raises(AnalysisError, match=r"process of libespeak-ng .* ended, or was silent for 60 s"):
        espeak.say("Hi.", "en")
    assert values(espeak.say("Hi.", "en"), "word") == ["hi"]


def test_a_library_that_is_missing_or_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    broken = tmp_path / "libespeak-ng.so"
    broken.write_bytes(b"none")
    with pytest.raises(AnalysisError, match=r"libespeak-ng \(.*libespeak-ng.so\) cannot be used"):
        Espeak(str(broken))
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)
    monkeypatch.setattr(ctypes.util, "find_library", lambda name: None)
    with pytest.raises(MissingExtraError, match="needs libespeak-ng.*pip install .*espeakng-loader.*libespeak-ng1"):
        find_espeak()
    monkeypatch.setattr(ctypes.util, "find_library", lambda name: f"lib{name}.so.1")
    assert find_espeak() == ("libespeak-ng.so.1", None)


def made_up(*events: tuple[Any, ...], silent: tuple[tuple[int, int], ...] = (), size: int = 1000) -> Any:
    sound = np.full(size, 100, dtype=np.int16)
    for start, end in silent:
        sound[start:end] = 0
    return timed_tiers(list(events), sound, 1000, "on pa", "ru")


def test_events_without_names() -> None:
    tiers = made_up(
        (1, 0, 0, ""), (7, 0, 10, "ˈo"), (7, 0, 100, "n"), (7, 0, 200, ""), (7, 0, 250, "(en)"), (7, 0, 250, "ɹ"),
        (7, 0, 300, "(ru)"), (7, 0, 300, ""), (1, 3, 400, ""), (7, 3, 450, "p"), (7, 3, 500, "ʲ"), (7, 3, 600, "y"),
        (7, 3, 700, "t"), (7, 3, 800, ""),
        silent=((0, 10), (300, 450), (670, 700), (800, 1000)),
    )  # fmt: skip
    assert tiers["phone"] == (
        Interval(0.01, 0.1, "o"),
        Interval(0.1, 0.25, "n"),  # with the sound of no name after it
        Interval(0.25, 0.3, "ɹ"),
        Interval(0.45, 0.6, "pʲ"),  # after a pause: a closure cannot be told from the pause
        Interval(0.6, 0.67, "ɨ"),  # Russian again
        Interval(0.67, 0.8, "t"),  # from its closure on
    )
    assert tiers["closure"] == (Interval(0.67, 0.7, "t"),) and tiers["stress"] == (Interval(0.01, 0.1, "primary"),)
    assert tiers["word"] == (Interval(0.01, 0.3, "on"), Interval(0.45, 0.8, "pa"))


def test_names_that_are_no_ipa(espeak: Espeak, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(espeak_module, "espeak_phone", lambda name, language: (f"{name}#", None, False))
    with pytest.raises(AnalysisError, match="calls phones of 'en' 'h#', 'ˈaɪ#' in 'Hi.', which is no IPA"):
        espeak.say("Hi.", "en")
