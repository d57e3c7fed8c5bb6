"""Perturbations, each measured by its definition."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from hooked_whisper import speech
from hooked_whisper.errors import ConfigError, CorpusError
from hooked_whisper.saes import Corpus
from hooked_whisper.saes.perturb import (
    Effects,
    Perturbation,
    change_speed,
    coloured_noise,
    cut_out,
    limit_band,
    mix,
    perturbed,
    reverberate,
)

RATE = 16_000


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def tone(hz: float, seconds: float = 1.0) -> Tensor:
    return torch.sin(2 * math.pi * hz * torch.arange(round(seconds * RATE), dtype=torch.float64) / RATE).float()


def db(power: Tensor) -> float:
    return 10 * math.log10(power.item())


def power_at(waveform: Tensor, low: float, high: float) -> Tensor:
    spectrum = torch.fft.rfft(waveform.double()).abs().square()
    frequencies = torch.fft.rfftfreq(waveform.shape[0], 1 / RATE)
    return spectrum[(frequencies >= low) & (frequencies < high)].sum()


@pytest.mark.parametrize("factor", [0.84, 1.0, 1.2])
def test_speed_changes_length_and_pitch_together(factor: float) -> None:
    changed = change_speed(tone(500), factor)
    assert changed.shape[0] == math.ceil(RATE / factor)
    spectrum = torch.fft.rfft(changed).abs()
    assert spectrum.argmax().item() * RATE / changed.shape[0] == pytest.approx(500 * factor, abs=1.5)


@given(snr=st.floats(-20, 40), level=st.floats(0.01, 10))
def test_mixing_gives_the_ratio_that_was_asked_for(snr: float, level: float) -> None:
    clip, other = tone(300, 0.1), level * coloured_noise(1_600, pink=False, generator=generator())
    added = mix(clip, other, snr) - clip
    assert db(clip.square().mean() / added.square().mean()) == pytest.approx(snr, abs=0.05)
    assert torch.cosine_similarity(added, other, dim=0) > 0.999


def test_silence_stays_silent() -> None:
    silence, noise = torch.zeros(100), torch.ones(100)
    assert torch.equal(mix(silence, noise, 10.0), silence)
    assert torch.equal(mix(noise, silence, 10.0), noise)


def test_colours_of_noise() -> None:
    white = coloured_noise(4 * RATE, pink=False, generator=generator())
    pink = coloured_noise(4 * RATE, pink=True, generator=generator())
    assert white.square().mean().item() == pytest.approx(1, abs=1e-4)
    assert pink.square().mean().item() == pytest.approx(1, abs=1e-4)
    # Equal power in every octave is pink; in every Hz, white.
    assert db(power_at(pink, 200, 400) / power_at(pink, 3_200, 6_400)) == pytest.approx(0, abs=1)
    assert db(power_at(white, 200, 400) / power_at(white, 3_200, 6_400)) == pytest.approx(-12, abs=1)
    again = coloured_noise(4 * RATE, pink=True, generator=generator())
    assert torch.equal(again, pink)


def test_an_echo_falls_by_60_db_in_its_time() -> None:
    click = torch.zeros(2 * RATE)
    click[0] = 1
    response = reverberate(click, 0.5, direct_db=6.0, generator=generator())
    assert response[0].item() == pytest.approx(1, abs=1e-5)
    tail = response[1:]
    assert db(tail.square().sum()) == pytest.approx(-6, abs=0.01)  # direct above all of the echo
    # The slope of the level, fitted over blocks of 20 ms of the first 0.4 s.
    levels = 10 * tail[: 20 * 320].reshape(20, 320).square().mean(1).log10()
    time = torch.arange(20) * 0.02
    centred = time - time.mean()
    slope = (levels * centred).sum() / centred.square().sum()
    assert slope.item() == pytest.approx(-60 / 0.5, rel=0.1)
    assert tail[round(0.5 * RATE) :].abs().max() < 1e-5


def test_an_echo_is_a_convolution() -> None:
    clip = torch.randn(3_000, generator=generator(1))
    click = torch.zeros(3_000)
    click[0] = 1
    response = reverberate(click, 0.1, direct_db=0.0, generator=generator(2))
    expected = torch.nn.functional.conv1d(
        torch.nn.functional.pad(clip, (2_999, 0))[None, None].double(), response.flip(0)[None, None].double()
    )[0, 0]
    got = reverberate(clip, 0.1, direct_db=0.0, generator=generator(2))
    assert torch.allclose(got.double(), expected, atol=1e-3)


def test_a_band() -> None:
    noise = coloured_noise(RATE, pink=False, generator=generator())
    limited = limit_band(noise, 300, 3_400)
    assert limited.shape == noise.shape
    assert db(power_at(limited, 300, 3_400) / power_at(noise, 300, 3_400)) == pytest.approx(0, abs=0.01)
    assert power_at(limited, 0, 265) < 1e-6 * power_at(noise, 0, 265)
    assert power_at(limited, 3_760, 8_000) < 1e-6 * power_at(noise, 3_760, 8_000)
    assert torch.allclose(limit_band(tone(1_000), 300, 3_400), tone(1_000), atol=1e-4)
    assert torch.allclose(limit_band(noise, None, None), noise, atol=1e-5)


def test_a_track_goes_on_at_its_start() -> None:
    track = torch.arange(10.0)
    assert cut_out(track, 5, 0.0).tolist() == [0, 1, 2, 3, 4]
    assert cut_out(track, 12, 8 / 9).tolist() == [8, 9, *range(10)]
    assert cut_out(track, 3, 1.0).tolist() == [9, 0, 1]


def test_gain_and_full_scale() -> None:
    quiet = 0.1 * tone(300)
    assert torch.allclose(Effects(gain_db=-20.0).apply(quiet), quiet / 10, atol=1e-7)
    loud = Effects(gain_db=40.0).apply(quiet)
    assert loud.abs().max().item() == pytest.approx(1)
    assert torch.equal(Effects().apply(quiet), quiet)


@pytest.fixture(scope="module")
def music() -> Path:
    return speech.clips("ru")[0].path


def test_what_a_clip_gets_depends_on_seed_and_id_alone(music: Path) -> None:
    perturbation = Perturbation(music=(music,))
    drawn = perturbation.draw("a/b.wav~0", 3)
    assert drawn == perturbation.draw("a/b.wav~0", 3)
    assert drawn != perturbation.draw("a/b.wav~1", 3)
    assert drawn != perturbation.draw("a/b.wav~0", 4)
    clip = tone(200, 0.5)
    assert torch.equal(drawn.apply(clip), drawn.apply(clip))
    # Taking one effect away leaves the others as they were.
    everything = replace(perturbation, chance=1.0)
    without = replace(everything, noise_db=None).draw("x", 0)
    assert without == replace(everything.draw("x", 0), noise_db=None, pink=None)


def test_effects_are_drawn_from_their_ranges(music: Path) -> None:
    perturbation = Perturbation(music=(music,))
    drawn = [perturbation.draw(str(number)) for number in range(150)]
    for name in ("speed", "reverberation", "noise_db", "music_db", "low_hz", "high_hz"):
        low, high = getattr(perturbation, name)
        values = [value for effects in drawn if (value := getattr(effects, name)) is not None]
        assert 0.25 * 150 < len(values) < 0.55 * 150, name  # chance 0.4
        assert low - 0.01 <= min(values) and max(values) <= high + 0.01, name
        assert min(values) < low + 0.1 * (high - low) and max(values) > high - 0.15 * (high - low), name
    assert all(effects.gain_db is not None for effects in drawn)
    assert {effects.direct_db is None for effects in drawn if effects.reverberation is None} == {True}
    assert len({effects.seed for effects in drawn}) == 150
    assert {effects.pink for effects in drawn} == {True, False, None}
    never = Perturbation(chance=0.0, gain_db=None)
    assert all(never.draw(str(n)) == Effects(seed=never.draw(str(n)).seed) for n in range(20))
    assert all(Perturbation(chance=1.0).draw(str(n)).music is None for n in range(20))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"speed": (0.3, 1.0)}, "expected factors from 0.5 to 2"),
        ({"noise_db": (20.0, 10.0)}, r"noise_db is \(20.0, 10.0\): expected a range, \(from, to\)"),
        ({"gain_db": (0.0, math.inf)}, "gain_db is .*expected a range"),
        ({"reverberation": (0.0, 1.0)}, "expected times up to 10 s"),
        ({"chance": 1.5}, "chance is 1.5: expected a number from 0 to 1"),
    ],
)
def test_impossible_settings(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Perturbation(**options)


def test_a_corpus_with_effects(music: Path) -> None:
    corpus = Corpus.from_clips(speech.clips("en")[:2])
    perturbation = Perturbation(music=(music,), chance=1.0)
    copies = perturbed(corpus, perturbation, copies=2, seed=5)
    assert [item.id for item in copies] == [f"{item.id}~{n}" for item in corpus for n in range(2)]
    for item, original in zip(copies, [item for item in corpus for _ in range(2)], strict=True):
        assert (item.text, item.language, item.speaker) == (original.text, original.language, original.speaker)
        assert item.columns["original"] == original.id
        effects = json.loads(str(item.columns["effects"]))
        waveform = item.load()
        assert waveform.shape[0] == pytest.approx(original.load().shape[0] / effects["speed"], abs=2)
        assert waveform.shape[0] / RATE == pytest.approx(float(item.columns["seconds"] or 0), abs=0.2)
        assert waveform.abs().max() <= 1 and waveform.isfinite().all()
        assert torch.equal(waveform, item.load())
        assert effects["music"] == music.name
    rest, held_out = copies.split(0.5, by="original")
    assert not set(rest.values("original")) & set(held_out.values("original"))
    assert copies.fingerprint() == perturbed(corpus, perturbation, copies=2, seed=5).fingerprint()
    assert copies.fingerprint() != perturbed(corpus, perturbation, copies=2, seed=6).fingerprint()
    one = perturbed(corpus, perturbation, keep=lambda item: item.id == corpus[1].id)
    assert [item.columns["original"] for item in one] == [corpus[1].id]


def test_a_segment_is_perturbed_alone(tmp_path: Path) -> None:
    clip = speech.clips("en")[0]
    (tmp_path / "m.jsonl").write_text(json.dumps({"path": str(clip.path), "offset": 0.5, "duration": 0.25}))
    corpus = Corpus.from_manifest(tmp_path / "m.jsonl")
    (item,) = perturbed(corpus, Perturbation(chance=0.0, gain_db=(-6.0, -6.0)))
    assert torch.allclose(item.load(), corpus[0].load() * 10 ** (-6 / 20), atol=1e-6)


def test_what_cannot_be_perturbed(tmp_path: Path) -> None:
    corpus = Corpus.from_clips(speech.clips("en")[:1])
    with pytest.raises(ConfigError, match="copies is 0: expected 1 or more"):
        perturbed(corpus, Perturbation(), copies=0)
    with pytest.raises(CorpusError, match="streams: expected a corpus whose clips are listed"):
        perturbed(Corpus(lambda: iter(corpus)), Perturbation())
    with pytest.raises(CorpusError, match=r"No music at .*nowhere.ogg"):
        perturbed(corpus, Perturbation(music=(tmp_path / "nowhere.ogg",)))
    with pytest.raises(CorpusError, match="perturbed is empty"):
        perturbed(corpus, Perturbation(), keep=lambda item: False)
