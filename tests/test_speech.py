"""The shipped clips: complete, unchanged, attributed, audible."""

from __future__ import annotations

import gzip
import hashlib
import importlib.util
import json
import shutil
import sys
from pathlib import Path
from types import ModuleType

import pytest

from hooked_whisper import speech
from hooked_whisper.errors import AudioError, LanguageError
from hooked_whisper.speech import clips

LANGUAGES = ["en", "es", "fr", "it", "ru"]


def manifest() -> list[dict[str, object]]:
    text = (speech.speech_folder() / "manifest.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def test_twenty_sentences_in_each_of_five_languages() -> None:
    by_language = {language: [clip.key for clip in clips(language)] for language in LANGUAGES}
    assert len(clips()) == 100
    assert all(keys == by_language["en"] and len(set(keys)) == 20 for keys in by_language.values())


def test_files_are_those_of_the_manifest_and_no_others() -> None:
    folder = speech.speech_folder()
    for row in manifest():
        data = (folder / str(row["path"])).read_bytes()
        assert hashlib.sha256(data).hexdigest() == row["sha256"]
        assert row["seconds"] == len(data) / 8_000  # 64 kbit/s
    assert {path.relative_to(folder).as_posix() for path in folder.rglob("*.g722")} == {
        row["path"] for row in manifest()
    }
    assert sum(path.stat().st_size for path in folder.rglob("*")) < 4_000_000


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_clip_is_sound_of_the_length_it_says(language: str) -> None:
    for clip in clips(language):
        waveform = clip.load()
        assert len(waveform) == round(clip.seconds * 16_000)
        assert 1.5 < clip.seconds < 8
        assert 0.1 < waveform.abs().max() <= 1
        assert clip.text


def test_choosing() -> None:
    (clip,) = clips("fr", key="vm-sorry")
    assert (clip.language, clip.speaker, clip.text) == (
        "fr",
        "June Wallack",
        "Désolé, je n'ai pas bien compris votre réponse.",
    )
    assert [clip.language for clip in clips(key="followme/sorry")] == LANGUAGES


def test_what_is_not_shipped() -> None:
    with pytest.raises(LanguageError, match="No shipped speech in 'de': expected one of en, es, fr, it, ru"):
        clips("de")
    with pytest.raises(
        AudioError, match=r"No shipped clip has the key 'vm-sory'.*Did you mean 'vm-sorry' or .*lists all 20"
    ):
        clips(key="vm-sory")


def test_outside_a_clone_it_says_where_to_get_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(speech, "__file__", str(tmp_path / "site-packages" / "hooked_whisper" / "speech.py"))
    speech._all_clips.cache_clear()
    with pytest.raises(AudioError, match="comes with a clone of the repository"):
        clips()
    speech._all_clips.cache_clear()


def test_everybody_is_named_with_a_licence() -> None:
    text = (speech.speech_folder() / "ATTRIBUTION.md").read_text(encoding="utf-8")
    for name in (
        "Allison Smith",
        "June Wallack",
        "Carlo Flora",
        "Maxim Topal",
        "Digium",
        "Silvia Petrin",
        "Clod Patry",
    ):
        assert name in text
    assert {row["speaker"] for row in manifest()} == {"Allison Smith", "June Wallack", "Carlo Flora", "IvrvoiceRU"}
    assert text.count("creativecommons.org/licenses/by") == 2


@pytest.fixture
def make_speech(data: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_speech", data / "make_speech.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_script_makes_from_the_packages_what_is_committed(
    make_speech: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Packages with the committed clips in them, laid out as Debian's are."""
    for language in make_speech.VOICES:
        lines = ["; a comment: not a key", ""]
        for row in (row for row in manifest() if row["language"] == language):
            target = make_speech.sound_file(tmp_path, language, row["key"])
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(speech.speech_folder() / str(row["path"]), target)
            lines.append(f"{row['key']}:  {row['text']}  ")
        document = tmp_path / f"usr/share/doc/asterisk-core-sounds-{language}/core-sounds-{language}.txt.gz"
        document.parent.mkdir(parents=True)
        document.write_bytes(gzip.compress("\n".join(lines).encode("utf-8-sig")))
    monkeypatch.setattr(sys, "argv", ["make_speech.py", "--unpacked", str(tmp_path), "--check"])
    assert make_speech.main() == 0
    assert "101 files as committed, 0 not" in capsys.readouterr().out

    broken = tmp_path / "usr/share/asterisk/sounds/it_IT_m_Carlo/vm-sorry.g722"
    broken.write_bytes(b"other")
    assert make_speech.main() == 1
    assert "it/vm-sorry.g722" in capsys.readouterr().out
