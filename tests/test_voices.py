"""The corpus of many voices: fetched, chosen, divided, listed. apt-get and dpkg-deb are played by a stand-in."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from hooked_whisper.errors import CorpusError
from hooked_whisper.saes import Corpus, prompts, voices
from hooked_whisper.saes.recordings import GAME_RATE, Recording, wav_header
from hooked_whisper.saes.voice_sources import Source
from hooked_whisper.saes.voices import (
    fetch_voices,
    join_manifests,
    package_names,
    read_rows,
    split_of,
    texts_of,
)


def sound(seconds: float, value: int = 100) -> bytes:
    size = round(seconds * GAME_RATE)
    return wav_header(size) + bytes([value, 255 - value] * (size // 2 + 1))[:size]


def talk(language: str, speaker: str, lengths: dict[str, float], *, known: bool = True):
    """A source's `find`: clips of given lengths, each with content of its own."""

    def find(unpacked: Path) -> Iterator[Recording]:
        for number, (key, seconds) in enumerate(lengths.items()):
            file = unpacked / f"{language} {speaker} {key}.wav"
            file.write_bytes(b"??" + sound(seconds, 50 + number) + b"??")
            size = len(sound(seconds))
            yield Recording(
                key, language, speaker, key.upper(), file, ".wav", 2, size, seconds=seconds if known else None
            )

    return find


def same(unpacked: Path) -> Iterator[Recording]:
    """A recording that `first` has, too, and one of its own."""
    file = unpacked / "same.wav"
    file.write_bytes(sound(1.0, 50) + sound(1.0, 9))
    size = len(sound(1.0))
    yield Recording("copy", "es", "Ana", None, file, ".wav", 0, size)
    yield Recording("own", "es", "Ana", None, file, ".wav", size, size)


TRAIN = {"a": 1.0, "short": 0.4, "long": 26.0, "b": 2.0}
SOURCES = (
    Source("aside", ("p-aside",), "CC0", same, held_out=True),
    Source("first", ("p-one", "p-two"), "GPL-2", talk("es", "Bo", TRAIN)),
    Source("dutch", ("p-two",), "GPL-2", talk("nl", "Cor", {"x": 1.5, "short": 0.3}, known=False)),
    Source("many", ("p-one",), "GPL-2", talk("cs", "Dan", {str(n): 6.0 for n in range(30)}), minutes=0.5),
)


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    seen: list[str] = []

    def run(command: list[str], cwd: Path) -> None:
        seen.append(command[0])
        if command[0] == "apt-get":
            for name in command[2:]:
                (cwd / f"{name}_1_all.deb").write_bytes(name.encode())
        else:
            name = Path(command[2]).name.partition("_")[0]
            (cwd / "usr/share/doc" / name).mkdir(parents=True, exist_ok=True)
            (cwd / "usr/share/doc" / name / "copyright").write_text(f"licence of {name}")

    known = {f"{name}_1_all.deb": hashlib.sha256(name.encode()).hexdigest() for name in package_names(SOURCES)}
    monkeypatch.setattr(voices, "SHA256", known)
    monkeypatch.setattr(prompts, "_run", run)
    return seen


def test_a_manifest_that_a_corpus_reads(commands: list[str], tmp_path: Path) -> None:
    manifest = fetch_voices(tmp_path, sources=SOURCES)
    assert commands == ["apt-get", *["dpkg-deb"] * 3]
    corpus = Corpus.from_manifest(manifest)
    by_key = {item.columns["key"]: item for item in corpus}
    first = by_key["first/a"]
    assert (first.language, first.speaker, first.text) == ("es", "Bo", "A")
    assert (
        first.columns.items()
        >= {
            "kind": "real",
            "source": "first",
            "licence": "GPL-2",
            "split": "train",
            "unheard": None,
            "seconds": 1.0,
        }.items()
    )
    assert first.load().numel() == pytest.approx(16_000, abs=32)
    assert hashlib.sha256((tmp_path / first.id).read_bytes()).hexdigest() == first.columns["sha256"]
    # Too short or too long: left out, whether the length is known before or only after decoding.
    assert not by_key.keys() & {"first/short", "first/long", "dutch/short"}
    assert by_key["dutch/x"].columns["seconds"] == pytest.approx(1.5, abs=0.01)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "aside", "dutch", "first", "licences", "manifest.jsonl", "many",
    ]  # fmt: skip
    assert (tmp_path / "licences/p-two.txt").read_text() == "licence of p-two"


def test_whole_speakers_and_languages_are_held_out(commands: list[str], tmp_path: Path) -> None:
    corpus = Corpus.from_manifest(fetch_voices(tmp_path, sources=SOURCES))
    train, held_out = corpus.where(split="train"), corpus.where(split="held-out")
    assert len(train) + len(held_out) == len(corpus)
    assert {(item.speaker, item.columns["unheard"]) for item in held_out} == {("Ana", "speaker"), ("Cor", "language")}
    assert not set(train.values("speaker")) & set(held_out.values("speaker"))
    assert "nl" not in train.values("language")
    # What both have belongs to training, though the held-out source was named first.
    assert [item.columns["key"] for item in held_out.where(source="aside")] == ["aside/own"]
    assert "first/a" in train.values("key")
    assert split_of(SOURCES[0], "uk") == ("held-out", "language")


def test_no_speaker_has_more_than_its_minutes(commands: list[str], tmp_path: Path) -> None:
    rows = [row for row in read_rows(fetch_voices(tmp_path, sources=SOURCES)) if row["source"] == "many"]
    assert sum(row["seconds"] for row in rows) == 30  # of 180
    # Chosen by a hash, not the first ones; the same at every run.
    again = [row for row in read_rows(fetch_voices(tmp_path / "2", sources=SOURCES)) if row["source"] == "many"]
    assert again == rows
    assert [row["key"] for row in rows] == sorted(row["key"] for row in rows) != [f"many/{n}" for n in range(5)]


def test_a_complete_folder_is_checked_and_left_alone(commands: list[str], tmp_path: Path) -> None:
    manifest = fetch_voices(tmp_path, sources=SOURCES)
    commands.clear()
    assert fetch_voices(tmp_path, sources=SOURCES) == manifest
    assert commands == []
    victim = tmp_path / read_rows(manifest)[0]["path"]
    victim.write_bytes(b"other")
    with pytest.raises(CorpusError, match=r"is not what it was when it was fetched: delete .* and fetch it again"):
        fetch_voices(tmp_path, sources=SOURCES)


def test_what_is_not_right_is_said(commands: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    empty = Source("nothing", ("p-one",), "GPL-2", lambda unpacked: [])
    with pytest.raises(CorpusError, match="The packages p-one hold no recording of nothing"):
        fetch_voices(tmp_path, sources=[empty])
    assert not (tmp_path / "manifest.jsonl").exists()
    monkeypatch.setattr(voices, "SHA256", {"p-one_1_all.deb": "0" * 64})
    with pytest.raises(CorpusError, match=r"p-one_1_all.deb has SHA-256 .*, expected 000"):
        fetch_voices(tmp_path / "2", sources=[empty])


def test_what_cannot_be_decoded_is_left_out(
    commands: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def find(unpacked: Path) -> Iterator[Recording]:
        (unpacked / "bad.ogg").write_bytes(b"no sound")
        yield Recording("bad", "es", "Bo", None, unpacked / "bad.ogg", ".ogg")
        yield from talk("es", "Bo", {"good": 1.0}, known=False)(unpacked)

    rows = read_rows(fetch_voices(tmp_path, sources=[Source("mixed", ("p-one",), "GPL-2", find)]))
    assert [row["key"] for row in rows] == ["mixed/good"]
    assert "Left out bad of mixed" in caplog.text


def test_manifests_are_joined(commands: list[str], tmp_path: Path) -> None:
    one = fetch_voices(tmp_path / "real", sources=SOURCES[:2])
    shutil.copytree(tmp_path / "real", tmp_path / "more/deep")
    joined = join_manifests([one, tmp_path / "more/deep/manifest.jsonl"], tmp_path / "manifest.jsonl")
    corpus = Corpus.from_manifest(joined)
    assert len(corpus) == 2 * len(read_rows(one))
    assert {item.id.rpartition("/")[0] for item in corpus} >= {"real/first", "more/deep/first"}
    assert all(item.load().numel() for item in corpus)
    with pytest.raises(CorpusError, match="does not lie below"):
        join_manifests([one], tmp_path / "elsewhere/manifest.jsonl")


def test_texts_of_a_manifest(tmp_path: Path) -> None:
    good = "A sentence of a good length."
    rows = [
        {"language": "en", "text": good},
        {"language": "en", "text": good},
        {"language": "en", "text": "Too short."},
        {"language": "en", "text": "[a sound that is described, not said]"},
        {"language": None, "text": good},
        {"language": "fr", "text": None},
        {"language": "ru", "text": "Предложение подходящей длины."},
    ]
    prompts.write_manifest(rows, tmp_path / "m.jsonl")
    assert texts_of(tmp_path / "m.jsonl") == {"en": [good], "ru": ["Предложение подходящей длины."]}


def test_from_the_command_line(
    commands: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(voices, "fetch_voices", lambda out, packages: fetch_voices(out, sources=SOURCES))
    voices.main([str(tmp_path)])
    assert capsys.readouterr().out.strip() == str(tmp_path / "manifest.jsonl")
    assert len(Corpus.from_manifest(tmp_path / "manifest.jsonl")) == len(read_rows(tmp_path / "real/manifest.jsonl"))
