"""Sounds without speech: as loud and as long as they say, and music fetched once, checked, with its licence."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch

from hooked_whisper import AnalysisError
from hooked_whisper.analysis.non_speech import fetch_music, music_windows, noises, silences
from hooked_whisper.errors import CorpusError
from hooked_whisper.saes import prompts
from hooked_whisper.speech import clips


def test_silence_and_noise() -> None:
    quiet = silences((2.0, 0.5))
    assert [len(one.samples) for one in quiet] == [32_000, 8_000] and not quiet[0].samples.any()
    loud = noises((-20, -60), n_each=2, seconds=0.5)
    assert [one.kind for one in loud] == ["noise -20 dB"] * 2 + ["noise -60 dB"] * 2
    for one, level in zip(loud, (-20, -20, -60, -60), strict=True):
        assert 10 * float(one.samples.pow(2).mean().log10()) == pytest.approx(level, abs=1e-3)
    assert torch.equal(noises((-20,), n_each=1)[0].samples, noises((-20,), n_each=1)[0].samples)
    assert not torch.equal(loud[0].samples, loud[1].samples)
    assert len({one.id for one in [*quiet, *loud]}) == 6


def test_windows_of_music_are_spread_over_a_piece() -> None:
    clip = clips("en")[0]
    found = music_windows([clip.path], n_each=3, seconds=1.0)
    whole = clip.load()
    assert [one.kind for one in found] == ["music"] * 3 and all(len(one.samples) == 16_000 for one in found)
    assert torch.equal(found[0].samples, whole[:16_000]) and torch.equal(found[2].samples, whole[-16_000:])
    with pytest.raises(AnalysisError, match=r"shorter than a window of 30 s"):
        music_windows([clip.path], seconds=30)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: silences((0.0,)), "A window of 0.0 s: expected more than 0 and at most 30 s"),
        (lambda: noises(seconds=31), "A window of 31 s"),
        (lambda: noises((3,)), "A level of 3 dB: expected at most 0"),
        (lambda: noises((float("nan"),)), "A level of nan dB"),
    ],
)
def test_refusals(make: Any, message: str) -> None:
    with pytest.raises(AnalysisError, match=message):
        make()


def test_music_is_fetched_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name, deb = f"{prompts.MUSIC}_1_all.deb", tmp_path / "packages"
    deb.mkdir()
    (deb / name).write_bytes(b"a package")
    calls: list[str] = []

    def unpack(command: list[str], cwd: Path) -> None:
        calls.append(command[0])
        for path, data in (
            ("usr/share/asterisk/moh/b.g722", b"22"),
            (f"usr/share/doc/{prompts.MUSIC}/copyright", b"c"),
        ):
            (cwd / path).parent.mkdir(parents=True, exist_ok=True)
            (cwd / path).write_bytes(data)

    monkeypatch.setattr(prompts, "_run", unpack)
    with pytest.raises(CorpusError, match="not a version whose checksum is known"):
        fetch_music(tmp_path / "music", packages=deb)
    monkeypatch.setitem(prompts.SHA256, name, hashlib.sha256(b"a package").hexdigest())
    found = fetch_music(tmp_path / "music", packages=deb)
    assert [path.name for path in found] == ["b.g722"] and found[0].read_bytes() == b"22"
    assert (tmp_path / "music" / "copyright.txt").read_bytes() == b"c"
    assert fetch_music(tmp_path / "music") == found and calls == ["dpkg-deb"]
