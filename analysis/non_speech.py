"""Sounds in which nobody speaks: silence, noise, music. Whatever Whisper writes of them is made up.

sounds = [*silences(), *noises(), *music_windows(fetch_music("music"))]
"""

from __future__ import annotations

import math
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from hooked_whisper.audio import SAMPLE_RATE, load_audio
from hooked_whisper.errors import AnalysisError
from hooked_whisper.saes.prompts import MUSIC, unpack

SECONDS = 10.0  # of a window
LEVELS = (-60.0, -40.0, -20.0)  # dB of full scale (root mean square of 1)


@dataclass(frozen=True, eq=False)
class Sound:
    """One window without speech: mono at 16 kHz, at most 30 s. `kind` groups it in reports."""

    id: str
    kind: str
    samples: Float[Tensor, " samples"]


def silences(lengths: Sequence[float] = (2.0, 5.0, 10.0, 30.0)) -> list[Sound]:
    """Digital silence of these lengths in seconds.

    Raises:
        AnalysisError: a length that is not above 0, or over 30 s.
    """
    for seconds in lengths:
        _check_length(seconds)
    return [Sound(f"silence/{s:g}s", "silence", torch.zeros(round(s * SAMPLE_RATE))) for s in lengths]


def noises(
    levels: Sequence[float] = LEVELS, *, n_each: int = 8, seconds: float = SECONDS, seed: int = 0
) -> list[Sound]:
    """White Gaussian noise at levels in dB of full scale.

    Raises:
        AnalysisError: a level above full scale, or a length that is not above 0, or over 30 s.
    """
    _check_length(seconds)
    generator = torch.Generator().manual_seed(seed)
    found = []
    for level in levels:
        if not level <= 0:
            raise AnalysisError(f"A level of {level} dB: expected at most 0, which is full scale.")
        for number in range(n_each):
            white = torch.randn(round(seconds * SAMPLE_RATE), generator=generator)
            samples = white / white.pow(2).mean().sqrt() * 10 ** (level / 20)
            found.append(Sound(f"noise{level:g}dB/{number}", f"noise {level:g} dB", samples))
    return found


def music_windows(paths: Sequence[str | Path], *, n_each: int = 8, seconds: float = SECONDS) -> list[Sound]:
    """Windows of pieces of music without singing, spread evenly over each.

    Raises:
        AudioError: a file that cannot be read. AnalysisError: a piece shorter than a window.
    """
    _check_length(seconds)
    length, found = round(seconds * SAMPLE_RATE), []
    for path in paths:
        whole = load_audio(Path(path))
        if len(whole) < length:
            raise AnalysisError(f"{path} has {len(whole) / SAMPLE_RATE:.1f} s: shorter than a window of {seconds:g} s.")
        starts = torch.linspace(0, len(whole) - length, n_each).long().tolist()
        stem = Path(path).stem
        found += [
            Sound(f"music/{stem}/{at / SAMPLE_RATE:.0f}s", "music", whole[at : at + length].clone()) for at in starts
        ]
    return found


def made_sounds(n_each: int = 8, seconds: float = SECONDS, seed: int = 0) -> list[Sound]:
    """Hum, ticks and chords that are struck again and again, so many of each, no two alike.

    Raises:
        AnalysisError: a length that is not above 0, or over 30 s.
    """
    _check_length(seconds)
    source = torch.Generator().manual_seed(seed)
    time = torch.arange(round(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    found = []
    for number in range(n_each):
        a, b, c, d = torch.rand(4, generator=source).tolist()
        hum = sum(torch.sin(2 * math.pi * (45 + 20 * a) * k * time) / k for k in (1, 2, 3, 5))
        ticks = ((time * (1 + 3 * b)) % 1 < 0.004).float() * torch.randn(len(time), generator=source)
        chord = sum(torch.sin(2 * math.pi * 220 * 2 ** (c + step / 12) * time) for step in (0, 4, 7))
        chord = chord * (1 - (time * (0.5 + 2 * d)) % 1)  # struck again and again
        for kind, samples in (("hum", hum), ("ticks", ticks), ("chords", chord)):
            assert isinstance(samples, Tensor)
            found.append(Sound(f"{kind}/{number}", kind, 0.1 * samples / samples.abs().max()))
    return found


def fetch_music(out: str | Path, *, packages: str | Path | None = None) -> list[Path]:
    """Fetches five pieces of instrumental music (Debian's asterisk-moh-opsound-g722, CC BY-SA 3.0) into a folder.

    The package is checked by SHA-256 and its copyright file kept beside the music. Pieces that are there already are
    left alone.

    Args:
        packages: a folder with the `.deb`; None runs `apt-get download`, which installs nothing.

    Raises:
        CorpusError: apt-get or dpkg-deb fails or is missing, or the package is not the one whose checksum is known.
    """
    folder = Path(out)
    there = sorted(folder.glob("*.g722"))
    if there:
        return there
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        unpacked = Path(temporary)
        unpack(unpacked, [MUSIC], packages=None if packages is None else Path(packages))
        licence = unpacked / "usr/share/doc" / MUSIC / "copyright"
        shutil.copyfile(licence, folder / "copyright.txt")
        for source in sorted((unpacked / "usr/share/asterisk/moh").rglob("*.g722")):
            shutil.copyfile(source, folder / source.name)
    return sorted(folder.glob("*.g722"))


def _check_length(seconds: float) -> None:
    if not 0 < seconds <= 30:
        raise AnalysisError(f"A window of {seconds} s: expected more than 0 and at most 30 s.")
