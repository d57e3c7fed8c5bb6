"""Synthetic voices. The engines are played by scripts that write what they were told into a sound's length."""

from __future__ import annotations

import stat
import sys
from pathlib import Path
from typing import Any

import pytest

from hooked_whisper.errors import ConfigError, CorpusError
from hooked_whisper.saes import Corpus, synthesis
from hooked_whisper.saes.sentences import SENTENCES
from hooked_whisper.saes.synthesis import RECORDED_VOICES, Voice, espeak_voices, synthesise
from hooked_whisper.saes.voice_sources import HELD_OUT_LANGUAGES
from hooked_whisper.saes.voices import read_rows
from hooked_whisper.tokenizer import LANGUAGES

# Each says a text as one sample a letter times 100 (so that 10 letters are 1/16 s), quietly when it has a "q".
SPEAK = """#!{python}
import re, struct, sys
def say(text, path, rate=16000):
    if "unspeakable" in text:
        return
    size = 100 * len(text)
    body = bytes([128] * size) if "silent" in text else bytes([100, 156] * (size // 2))
    head = struct.pack("<4sI4s4sIHHIIHH4sI", b"RIFF", 36 + size, b"WAVE", b"fmt ", 16, 1, 1, rate, rate, 1, 8,
                       b"data", size)
    open(path, "wb").write(head + body)
    with open(sys.argv[0] + ".log", "a") as log:
        log.write(repr(sys.argv[1:]) + "\\n")
"""
ENGINES = {
    "espeak-ng": "say(sys.stdin.buffer.read().decode(), sys.argv[sys.argv.index('-w') + 1])",
    "flite": "say(sys.argv[sys.argv.index('-t') + 1], sys.argv[sys.argv.index('-o') + 1])",
    "festival": r"""
script = open(sys.argv[-1], "rb").read().decode("iso-8859-2")
assert script.startswith("(voice_")
for text, path in re.findall(r'"([^"]*)"\)\)\) "([^"]*)"', script):
    say(text, path)
""",
}


@pytest.fixture
def engines(tmp_path: Path) -> Path:
    folder = tmp_path / "engines"
    (folder / "usr/bin").mkdir(parents=True)
    (folder / "usr/lib/x/espeak-ng-data").mkdir(parents=True)
    (folder / "usr/lib/x/libflite.so.1").touch()
    for name, code in ENGINES.items():
        program = folder / "usr/bin" / name
        program.write_text(SPEAK.format(python=sys.executable) + code + "\n")
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
    return folder


TEXTS = {"cs": ["Dobrý den, příteli.", "Ano.", "Ne, děkuji."], "en": ["Hello there.", "Yes."], "nl": ["Goedendag."]}
VOICES = [
    Voice("espeak-ng", "nl+m1", "nl", pitch=30, speed=150),
    Voice("flite", "awb", "en"),
    Voice("flite", "slt", "en"),
    Voice("festival", "czech_ph", "cs", encoding="iso-8859-2"),
]


def test_a_manifest_that_a_corpus_reads(engines: Path, tmp_path: Path) -> None:
    manifest = synthesise(TEXTS, VOICES, tmp_path / "out", engines=engines)
    corpus = Corpus.from_manifest(manifest)
    assert len(corpus) == 1 + 2 + 2 + 3
    for item in corpus:
        assert item.text is not None and item.language is not None
        assert item.load().shape[0] == len(item.text) * 100
        index = int(str(item.columns["key"]).rpartition("/")[2])
        assert item.text == TEXTS[item.language][index]
        assert item.columns["kind"] == "synthetic"
    assert set(corpus.values("speaker")) == {
        "espeak-ng nl+m1, pitch 30, speed 150", "flite awb", "flite slt", "festival czech_ph",
    }  # fmt: skip
    unheard = {(item.speaker, item.columns["unheard"], item.columns["split"]) for item in corpus}
    assert unheard == {
        ("espeak-ng nl+m1, pitch 30, speed 150", "language", "held-out"),
        ("flite awb", "speaker", "held-out"),
        ("flite slt", None, "train"),
        ("festival czech_ph", None, "train"),
    }
    log = (engines / "usr/bin/espeak-ng.log").read_text()
    assert "'-v', 'nl+m1', '-p', '30', '-s', '150'" in log
    # Unpacked engines find their own data.
    assert "'--datadir'" in (engines / "usr/bin/festival.log").read_text()
    environment = synthesis._environment(engines)
    assert environment["LD_LIBRARY_PATH"] == str(engines / "usr/lib/x")
    assert environment["ESPEAK_DATA_PATH"] == str(engines / "usr/lib/x")


def test_the_same_at_every_run(engines: Path, tmp_path: Path) -> None:
    texts = {"en": [f"Sentence number {'one ' * n}" for n in range(1, 16)]}
    voices = [Voice("flite", "awb", "en"), Voice("flite", "slt", "en", share=3)]
    runs = [synthesise(texts, voices, tmp_path / name, sentences=2, seed=7, engines=engines) for name in ("a", "b")]
    rows = [read_rows(run) for run in runs]
    assert rows[0] == rows[1]
    by_voice = {voice.speaker: {row["key"] for row in rows[0] if row["speaker"] == voice.speaker} for voice in voices}
    assert [len(keys) for keys in by_voice.values()] == [2, 6]
    other = read_rows(synthesise(texts, voices, tmp_path / "c", sentences=2, seed=8, engines=engines))
    assert {row["key"] for row in other} != {row["key"] for row in rows[0]}
    assert synthesise(texts, voices, tmp_path / "a", engines=engines) == runs[0]  # complete: left alone
    (tmp_path / "a" / rows[0][0]["path"]).unlink()
    with pytest.raises(CorpusError, match="is missing: delete"):
        synthesise(texts, voices, tmp_path / "a", engines=engines)


def test_what_an_engine_cannot_say_is_left_out(engines: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    texts = {"en": ["Something unspeakable.", "Something silent.", "Something else."]}
    manifest = synthesise(texts, [VOICES[2]], tmp_path / "out", engines=engines)
    assert [row["text"] for row in read_rows(manifest)] == ["Something else."]
    assert "flite slt said nothing of 'Something unspeakable.'" in caplog.text
    assert "flite slt was silent at 'Something silent.'" in caplog.text
    with pytest.raises(CorpusError, match="The engines said nothing"):
        synthesise({"en": ["unspeakable"]}, [VOICES[2]], tmp_path / "none", engines=engines)


def test_festival_texts_cannot_leave_their_quotes(engines: Path, tmp_path: Path) -> None:
    texts = {"cs": ['a ") (system "x") \\ b', "☃ snow"]}
    manifest = synthesise(texts, [VOICES[3]], tmp_path / "out", engines=engines)
    assert [row["text"] for row in read_rows(manifest)] == texts["cs"]


@pytest.mark.parametrize(
    ("voice", "message"),
    [
        ({"pitch": 100}, "pitch 100, speed 175: expected 0 to 99, and 80 to 450 words a minute"),
        ({"speed": 20}, "pitch 50, speed 20: expected"),
    ],
)
def test_impossible_voices(voice: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Voice(**{"engine": "espeak-ng", "name": "en", "language": "en", **voice})


def test_engines_that_are_missing_or_fail(engines: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="No text in nl: expected sentences for the language of every voice"):
        synthesise({"en": ["Yes."], "nl": []}, VOICES[:2], tmp_path / "out")
    (engines / "usr/bin/flite").write_text("#!/bin/sh\necho no such voice >&2\nexit 3\n")
    with pytest.raises(CorpusError, match="`flite` failed with code 3: no such voice"):
        synthesise(TEXTS, VOICES[1:2], tmp_path / "out", engines=engines)
    (engines / "usr/bin/flite").write_text("#!/bin/sh\nexec sleep 10\n")
    monkeypatch.setattr(synthesis, "SECONDS_PER_PROGRAM", 0.2)
    with pytest.raises(CorpusError, match="`flite` did not finish within 0 s"):
        synthesise(TEXTS, VOICES[1:2], tmp_path / "out", engines=engines)
    (engines / "usr/bin/flite").unlink()
    with pytest.raises(CorpusError, match=r"There is no flite in .*engines: install Debian's package flite, or unpack"):
        synthesise(TEXTS, VOICES[1:2], tmp_path / "out", engines=engines)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(CorpusError, match="There is no flite on PATH"):
        synthesise(TEXTS, VOICES[1:2], tmp_path / "out")


def test_the_voices_that_come_along() -> None:
    every = [*RECORDED_VOICES, *espeak_voices()]
    assert len({voice.speaker for voice in every}) == len(every) > 100
    assert {voice.language for voice in every} == set(SENTENCES) <= set(LANGUAGES)
    assert espeak_voices() == espeak_voices() != espeak_voices(seed=1)
    held_out = {voice.speaker for voice in RECORDED_VOICES} & synthesis.HELD_OUT_VOICES
    assert held_out == synthesis.HELD_OUT_VOICES
    assert {voice.language for voice in espeak_voices()} >= HELD_OUT_LANGUAGES
