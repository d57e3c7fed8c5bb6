"""Forced alignment: the best path against all paths, made-up phones with known times, real speech."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_store import HOOK, SETTINGS, clip

from hooked_whisper import HookedWhisper
from hooked_whisper.analysis.espeak import Espeak
from hooked_whisper.analysis.forced_alignment import PhoneAligner, best_path, pronounce
from hooked_whisper.analysis.labels import Interval, Labels
from hooked_whisper.analysis.phone_speech import PhoneVoice, make_phone_corpus
from hooked_whisper.errors import AnalysisError
from hooked_whisper.saes import ActivationStore, harvest
from hooked_whisper.saes.store_files import StoreSettings
from hooked_whisper.saes.store_writer import StoreWriter

WIDTH = 6
MEANS = np.array([[0.0] * WIDTH, *(5.0 * np.eye(WIDTH))[:3]])  # of silence, a, b, c
NAMES = ("", "a", "b", "c")


def every_path(scores: np.ndarray, phones: list[int]) -> float:
    """The highest sum of all ways to say these phones, tried one by one."""
    best = -np.inf
    for path in itertools.product([-1, *range(len(phones))], repeat=len(scores)):
        said = [place for place, before in zip(path, (None, *path), strict=False) if place != -1 and place != before]
        merged = any(
            one != other and one != -1 and other != -1 and phones[one] == phones[other]
            for one, other in itertools.pairwise(path)
        )
        if said == list(range(len(phones))) and not merged:
            best = max(best, sum(scores[at, 0 if place == -1 else phones[place]] for at, place in enumerate(path)))
    return best


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 3), min_size=1, max_size=3), st.integers(3, 6), st.integers(0, 1000))
def test_no_path_is_better(phones: list[int], frames: int, seed: int) -> None:
    scores = np.random.default_rng(seed).normal(size=(frames, 4))
    best = every_path(scores, phones)
    if best == -np.inf:
        with pytest.raises(AnalysisError, match="do not fit"):
            best_path(scores, phones)
        return
    path = best_path(scores, phones)
    assert [place for place, _ in itertools.groupby(path) if place != -1] == list(range(len(phones)))
    own = sum(scores[at, 0 if place == -1 else phones[place]] for at, place in enumerate(path))
    assert own == pytest.approx(best)


def test_phones_that_do_not_fit_are_refused() -> None:
    for phones, frames in (([], 3), ([1, 2], 1), ([1, 1], 2)):
        with pytest.raises(AnalysisError, match="do not fit into"):
            best_path(np.zeros((frames, 3)), phones)


def made_up(
    folder: Path, sequences: list[list[int]], noise: float = 0.3, settings: StoreSettings = SETTINGS
) -> ActivationStore:
    """A store whose clips say these classes, frame by frame."""
    generator = np.random.default_rng(0)
    writer = StoreWriter(folder, replace(settings, hooks={HOOK: WIDTH}))
    folder.mkdir(parents=True)
    rows = [torch.tensor(MEANS[own] + noise * generator.normal(size=(len(own), WIDTH))).float() for own in sequences]
    frame = np.concatenate([np.arange(len(own), dtype=np.int32) for own in rows])
    clips = [clip(index, len(own)) for index, own in enumerate(rows)]
    per_row = {"frame": frame, "time": (frame / 50).astype(np.float32)}
    writer.write_shard(0, {HOOK: torch.cat(rows)}, per_row, clips, n_windows=len(clips))
    writer.finish(1)
    return ActivationStore.open(folder)


def times(sequence: list[int]) -> tuple[Interval, ...]:
    """Intervals of a sequence of classes, frames being centred on their start."""
    found, at = [], 0
    for phone, run in itertools.groupby(sequence):
        count = len(list(run))
        if phone:
            found.append(Interval(max(0, (at - 0.5) / 50), (at + count - 0.5) / 50, NAMES[phone]))
        at += count
    return tuple(found)


SAID = [[0, 0, 1, 1, 1, 2, 2, 0], [0, 3, 3, 1, 0, 0, 2, 2, 2, 0], [0, 2, 2, 0, 2, 3, 3, 3, 1, 0]]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ActivationStore:
    return made_up(tmp_path_factory.mktemp("made") / "store", SAID * 4)


@pytest.fixture(scope="module")
def aligner(store: ActivationStore) -> PhoneAligner:
    labels = Labels(
        {f"clip-{at}": {"phone": times(SAID[at % 3])} for at in range(9)}
    )  # of three clips nothing is known
    return PhoneAligner.learn(store, labels, HOOK, min_rows=5)


def test_known_times_are_found(store: ActivationStore, aligner: PhoneAligner) -> None:
    assert aligner.phones == ("a", "b", "c") and aligner.weight.shape == (WIDTH, 4)
    said = {"clip-9": [("ab", ("a", "b"))], "clip-10": [("ca", ("c", "a")), ("b", ("b",))], "clip-2": [("bb", "bbca")]}
    found = aligner.align(store, said)
    for name, sequence in (("clip-9", SAID[0]), ("clip-10", SAID[1]), ("clip-2", SAID[2])):
        got = found.labels[name]["phone"]
        assert [one.value for one in got] == [one.value for one in times(sequence)]
        for one, true in zip(got, times(sequence), strict=True):
            assert (one.start, one.end) == pytest.approx((true.start, true.end))
        assert found.confidence[name] > 0.95
    words = found.labels["clip-10"]["word"]
    assert [(one.value, round(one.start, 3), round(one.end, 3)) for one in words] == [
        ("ca", 0.01, 0.07),
        ("b", 0.11, 0.17),
    ]
    assert found.left_out["clip-0"] == "its pronunciation was not given" and len(found.left_out) == 9


def test_clips_that_do_not_fit_are_named(store: ActivationStore, aligner: PhoneAligner) -> None:
    said = {
        "clip-0": [("ab", ("a", "b"))],
        "clip-1": [("cab", ("b", "a", "c"))],  # in the wrong order
        "clip-2": [("x", ("x",))],
        "clip-3": [("long", ("a", "b") * 9)],
    }
    found = aligner.align(store, said)
    assert found.labels.clips == ("clip-0",)
    assert "below 0.5" in found.left_out["clip-1"] and found.confidence["clip-1"] < 0.5
    assert found.left_out["clip-2"] == "it has x, which the aligner has not learnt"
    assert found.left_out["clip-3"] == "18 phones do not fit into 8 frames"
    assert set(aligner.align(store, said, min_confidence=0).labels.clips) == {"clip-0", "clip-1"}


def test_a_phone_that_was_not_learnt_lies_between_its_neighbours(store: ActivationStore, aligner: PhoneAligner) -> None:
    said = {"clip-2": [("bx", ("b", "b", "x", "y"))]}  # c and a are called x and y
    with pytest.raises(AnalysisError, match="None of 12 clips could be aligned: 'clip-0', its pronunciation"):
        aligner.align(store, said)
    found = aligner.align(store, said, unlearnt="anywhere", min_confidence=0.1)
    first, second, x, y = found.labels["clip-2"]["phone"]
    assert (first.start, second.start, second.end) == pytest.approx((0.01, 0.07, 0.09))
    assert (x.value, y.value) == ("x", "y") and x.start >= second.end and y.end <= 0.2


def test_tokens_and_mel_frames_are_refused(tmp_path: Path, aligner: PhoneAligner) -> None:
    for position, rate, said in (
        ("token", None, "tokens, at no fixed rate"),
        ("mel_frame", 100.0, "mel_frames, 100.0"),
    ):
        other = made_up(tmp_path / position, SAID, settings=replace(SETTINGS, position=position, rate=rate))
        with pytest.raises(AnalysisError, match=f"has {said} a second: expected the encoder's frames, 50"):
            PhoneAligner.learn(other, Labels({}), HOOK)
        with pytest.raises(AnalysisError, match=said):
            aligner.align(other, {})


def test_bad_input(store: ActivationStore, aligner: PhoneAligner) -> None:
    with pytest.raises(AnalysisError, match=r"min_confidence=2: expected 0 to 1"):
        aligner.align(store, {}, min_confidence=2)
    with pytest.raises(AnalysisError, match="unlearnt='guess': expected"):
        aligner.align(store, {}, unlearnt="guess")  # pyright: ignore[reportArgumentType]
    with pytest.raises(AnalysisError, match="The store is of small, the aligner learnt from other"):
        replace(aligner, model="other").align(store, {})
    labels = Labels({name: {"phone": times(SAID[0][:5])} for name in ("clip-0", "clip-3")})
    two = store.where(clip=["clip-0", "clip-3"])
    with pytest.raises(AnalysisError, match="1 phones have 5 frames or more, and silence has 10"):
        PhoneAligner.learn(two, labels, HOOK, min_rows=5)


def test_a_voice_that_was_not_learnt_is_aligned(shared_short_whisper_base: HookedWhisper, tmp_path: Path) -> None:
    pytest.importorskip("espeakng_loader", reason="libespeak-ng is not installed")
    texts = {"en": ["Take two cats to the park.", "A dog barks at the black cat.", "Stop at the top of the tower."]}
    voices = [PhoneVoice(name) for name in ("m1", "m7", "f1", "f4")] + [PhoneVoice("m3", split="test")]
    made = make_phone_corpus(texts, tmp_path / "speech", voices=voices, progress=False)
    hook = "encoder.blocks.3.hook_resid_post"
    store = harvest(shared_short_whisper_base, made.corpus, hooks=[hook], out=tmp_path / "acts", progress=False)
    train, test = store.where(split="train"), store.where(split="test")
    aligner = PhoneAligner.learn(train, made.labels, hook, min_rows=4)
    with Espeak() as espeak:
        said = pronounce(espeak, {item.id: str(item.text) for item in made.corpus.where(split="test")}, "en-us")
        with pytest.raises(AnalysisError, match=r"Clip 'dots': espeak-ng says nothing of '\.\.\.'.*Leave the clip out"):
            pronounce(espeak, {"words": "hello", "dots": "..."}, "en-us")
    assert [word for word, _ in said["en/m3-50-175/0000"]] == ["take", "two", "cats", "to", "the", "park"]
    found = aligner.align(test, said)
    assert len(found.labels) == 3 and not found.left_out
    for name in found.labels.clips:
        got, exact = found.labels[name]["phone"], made.labels[name]["phone"]
        assert [one.value for one in got] == [one.value for one in exact]
        off = [abs(one.start - true.start) for one, true in zip(got, exact, strict=True)]
        assert np.median(off) <= 0.02 and max(off) < 0.15
