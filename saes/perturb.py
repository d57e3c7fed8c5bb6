"""Clips as another voice, another room or a telephone would have them: more variety from the same recordings.

    music = tuple(sorted(Path("prompts/music").glob("*.g722")))
    louder = perturbed(corpus, Perturbation(music=music), copies=2, seed=0)     # a Corpus: harvest or stream it

Each effect is on or off by chance, with a strength from its range. What a clip gets depends on the seed and on its id
alone, and is written in its columns. Clips are perturbed when they are read; nothing is stored.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from hooked_whisper.audio import SAMPLE_RATE, load_audio, resample
from hooked_whisper.errors import ConfigError, CorpusError
from hooked_whisper.saes.corpus import Corpus
from hooked_whisper.saes.corpus_item import CorpusItem

Range = tuple[float, float]

# Speeds are rounded to this, so that resampling needs no long filters.
_SPEED_STEP = 0.02
# An edge of the band falls from 1 to 0 over this part of its frequency.
_EDGE = 0.1


@dataclass(frozen=True)
class Perturbation:
    """Which effects there are, and how strong they may be; None leaves an effect out.

    Attributes:
        speed: factor of speed and pitch together, as when a tape runs faster.
        reverberation: seconds in which the echo falls by 60 dB.
        direct_db: level of the direct sound above all of the echo.
        noise_db: signal-to-noise ratio of white or pink noise.
        music_db: signal-to-noise ratio of music.
        music: files with music; without any there is none.
        low_hz: lowest frequency that is left.
        high_hz: highest frequency that is left.
        gain_db: change of level; a clip that would be louder than full scale is made less loud.
        chance: of each effect, but gain, which is always drawn.
    """

    speed: Range | None = (0.84, 1.2)
    reverberation: Range | None = (0.15, 0.7)
    direct_db: Range = (0.0, 12.0)
    noise_db: Range | None = (10.0, 35.0)
    music_db: Range | None = (8.0, 25.0)
    music: tuple[Path, ...] = ()
    low_hz: Range | None = (80.0, 350.0)
    high_hz: Range | None = (2_800.0, 7_000.0)
    gain_db: Range | None = (-15.0, 6.0)
    chance: float = 0.4

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if name in ("music", "chance") or value is None:
                continue
            if len(value) != 2 or not all(map(math.isfinite, value)) or value[0] > value[1]:
                raise ConfigError(f"{name} is {value!r}: expected a range, (from, to).")
        if not 0 <= self.chance <= 1:
            raise ConfigError(f"chance is {self.chance!r}: expected a number from 0 to 1.")
        if self.speed is not None and not 0.5 <= self.speed[0] <= self.speed[1] <= 2:
            raise ConfigError(f"speed is {self.speed!r}: expected factors from 0.5 to 2.")
        if self.reverberation is not None and not 0 < self.reverberation[0] <= self.reverberation[1] <= 10:
            raise ConfigError(f"reverberation is {self.reverberation!r}: expected times up to 10 s.")

    def draw(self, clip_id: str, seed: int = 0) -> Effects:
        """What a clip gets: the same for the same id, seed and settings."""
        chance = random.Random(f"{seed}/{clip_id}")

        def on(value: Range | None, digits: int = 2, *, always: bool = False) -> float | None:
            # Drawn in any case: whether one effect is there does not change the others.
            happens, at = chance.random() < self.chance or always, chance.random()
            if value is None or not happens:
                return None
            return round(value[0] + at * (value[1] - value[0]), digits)

        speed = on(self.speed, 4)
        if speed is not None:
            speed = round(max(1, round(speed / _SPEED_STEP)) * _SPEED_STEP, 2)
        reverberation, direct = on(self.reverberation, 3), on(self.direct_db, always=True)
        noise, pink = on(self.noise_db), chance.random() < 0.5
        music, at = on(self.music_db if self.music else None), chance.random()
        track = chance.choice(self.music) if self.music else None
        return Effects(
            speed=speed,
            reverberation=reverberation,
            direct_db=None if reverberation is None else direct,
            noise_db=noise,
            pink=None if noise is None else pink,
            music_db=music,
            music=None if music is None or track is None else str(track),
            music_at=None if music is None else round(at, 6),
            low_hz=on(self.low_hz, 0),
            high_hz=on(self.high_hz, 0),
            gain_db=on(self.gain_db, always=True),
            seed=chance.getrandbits(32),
        )


@dataclass(frozen=True)
class Effects:
    """What one clip gets; see `Perturbation`. None: not this."""

    speed: float | None = None
    reverberation: float | None = None
    direct_db: float | None = None
    noise_db: float | None = None
    pink: bool | None = None
    music_db: float | None = None
    music: str | None = None
    music_at: float | None = None
    low_hz: float | None = None
    high_hz: float | None = None
    gain_db: float | None = None
    seed: int = 0

    def apply(self, waveform: Float[Tensor, "samples"]) -> Float[Tensor, "changed"]:
        """The waveform with all effects, in the order of a room: voice, echo, other sounds, telephone, level."""
        chance = torch.Generator().manual_seed(self.seed)
        if self.speed is not None:
            waveform = change_speed(waveform, self.speed)
        if self.reverberation is not None:
            waveform = reverberate(waveform, self.reverberation, direct_db=self.direct_db or 0.0, generator=chance)
        if self.noise_db is not None:
            noise = coloured_noise(waveform.shape[0], pink=bool(self.pink), generator=chance)
            waveform = mix(waveform, noise, self.noise_db)
        if self.music_db is not None and self.music is not None:
            waveform = mix(
                waveform, cut_out(_track(self.music), waveform.shape[0], self.music_at or 0.0), self.music_db
            )
        if self.low_hz is not None or self.high_hz is not None:
            waveform = limit_band(waveform, self.low_hz, self.high_hz)
        if self.gain_db is not None:
            waveform = waveform * 10 ** (self.gain_db / 20)
        return waveform / waveform.abs().amax().clamp(min=1.0)


def change_speed(waveform: Float[Tensor, "samples"], factor: float) -> Float[Tensor, "changed"]:
    """Speed and pitch times `factor`: the length is divided by it."""
    return resample(waveform, round(SAMPLE_RATE * factor), SAMPLE_RATE)


def coloured_noise(length: int, *, pink: bool, generator: torch.Generator) -> Float[Tensor, "samples"]:
    """Noise with a mean square of 1: white, or pink (power falls with frequency)."""
    noise = torch.randn(length, generator=generator)
    if pink and length > 1:
        spectrum = torch.fft.rfft(noise)
        rank = torch.arange(spectrum.shape[0], dtype=torch.float32)
        noise = torch.fft.irfft(spectrum * torch.where(rank > 0, rank.clamp(min=1).rsqrt(), 0.0), n=length)
    return noise / noise.square().mean().sqrt().clamp(min=1e-12)


def mix(waveform: Float[Tensor, "samples"], other: Float[Tensor, "samples"], snr_db: float) -> Float[Tensor, "samples"]:
    """Adds `other` so that the waveform's power is `snr_db` above it, over the whole clip. Silence stays as it is."""
    power, others = waveform.square().mean(), other.square().mean()
    if power == 0 or others == 0:
        return waveform
    return waveform + other * (power / others / 10 ** (snr_db / 10)).sqrt()


def reverberate(
    waveform: Float[Tensor, "samples"], seconds: float, *, direct_db: float, generator: torch.Generator
) -> Float[Tensor, "samples"]:
    """Adds the echo of a room: noise that falls by 60 dB in `seconds` (Polack's model), cut at the clip's end.

    Args:
        waveform: the clip.
        seconds: reverberation time.
        direct_db: level of the direct sound above all of the echo.
        generator: of the noise.
    """
    times = torch.arange(1, max(2, round(seconds * SAMPLE_RATE))) / SAMPLE_RATE
    tail = torch.randn(times.shape[0], generator=generator) * 10 ** (-3 * times / seconds)
    tail = tail / tail.square().sum().sqrt() * 10 ** (-direct_db / 20)
    response = torch.cat([torch.ones(1), tail])
    length = waveform.shape[0]
    n = 2 ** math.ceil(math.log2(length + response.shape[0]))
    return torch.fft.irfft(torch.fft.rfft(waveform, n=n) * torch.fft.rfft(response, n=n), n=n)[:length]


def limit_band(
    waveform: Float[Tensor, "samples"], low_hz: float | None, high_hz: float | None
) -> Float[Tensor, "samples"]:
    """Takes away what lies below `low_hz` or above `high_hz`; each edge is 10 % of its frequency wide, outwards."""
    length = waveform.shape[0]
    frequencies = torch.fft.rfftfreq(length, 1 / SAMPLE_RATE)
    kept = torch.ones_like(frequencies)
    if low_hz is not None:
        kept = kept * ((frequencies - low_hz * (1 - _EDGE)) / (low_hz * _EDGE)).clamp(0, 1)
    if high_hz is not None:
        kept = kept * ((high_hz * (1 + _EDGE) - frequencies) / (high_hz * _EDGE)).clamp(0, 1)
    return torch.fft.irfft(torch.fft.rfft(waveform) * (0.5 - 0.5 * torch.cos(math.pi * kept)), n=length)


def cut_out(track: Float[Tensor, "all"], length: int, at: float) -> Float[Tensor, "samples"]:
    """`length` samples of a track, beginning at the part `at` (0 to 1) of it, going on at its start after its end."""
    start = round(at * (track.shape[0] - 1))
    repeats = math.ceil((start + length) / track.shape[0])
    return track.repeat(repeats)[start : start + length]


@lru_cache(maxsize=16)
def _track(path: str) -> Float[Tensor, "samples"]:
    return load_audio(Path(path))


@dataclass(frozen=True, eq=False)
class PerturbedAudio:
    """A clip's audio with effects, made when it is asked for."""

    item: CorpusItem
    effects: Effects

    def fetch(self) -> dict[str, Any]:
        return {"array": self.effects.apply(self.item.load()), "sampling_rate": SAMPLE_RATE}


def perturbed(
    corpus: Corpus,
    perturbation: Perturbation,
    *,
    copies: int = 1,
    seed: int = 0,
    keep: Callable[[CorpusItem], bool] | None = None,
) -> Corpus:
    """The clips of a corpus with effects, `copies` of each, every copy with effects of its own.

    A copy's id is the clip's with `~` and a number; the column `effects` says what was done (JSON), `original` is the
    clip's id, so that `split(by="original")` keeps copies together. A column `seconds` follows the speed. A changed
    voice is no other speaker: `speaker` stays.

    Args:
        corpus: not one that streams.
        perturbation: which effects.
        copies: of each clip; the clips themselves are not among them.
        seed: another seed gives other effects.
        keep: which clips; None: all.

    Raises:
        ConfigError: copies below 1. CorpusError: a corpus that streams, music that cannot be read, or no clip.
    """
    if copies < 1:
        raise ConfigError(f"copies is {copies}: expected 1 or more.")
    if corpus.streams:
        raise CorpusError(f"{corpus.name} streams: expected a corpus whose clips are listed.")
    if missing := [str(file) for file in perturbation.music if not file.is_file()]:
        raise CorpusError(f"No music at {', '.join(missing)}.")
    items = [
        _copy(item, perturbation.draw(f"{item.id}~{number}", seed), number)
        for item in corpus
        if keep is None or keep(item)
        for number in range(copies)
    ]
    return Corpus(items, name=f"{corpus.name}, perturbed", on_error=corpus.on_error)


def _copy(item: CorpusItem, effects: Effects, number: int) -> CorpusItem:
    columns = dict(item.columns)
    seconds = columns.get("seconds")
    if effects.speed is not None and isinstance(seconds, int | float):
        columns["seconds"] = seconds / effects.speed
    said = {name: value for name, value in asdict(effects).items() if value is not None and name != "music"}
    if effects.music is not None:
        said["music"] = Path(effects.music).name  # where it lies does not matter
    return replace(
        item,
        id=f"{item.id}~{number}",
        audio=PerturbedAudio(item, effects),
        columns={**columns, "original": item.id, "effects": json.dumps(said, sort_keys=True)},
        offset=0.0,
        duration=None,
    )
