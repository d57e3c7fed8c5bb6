"""The parallel prompts: fetched, checked, listed. apt-get and dpkg-deb are played by a stand-in."""

from __future__ import annotations

import gzip
import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch

from hooked_whisper.errors import CorpusError
from hooked_whisper.saes import Corpus, fetch_prompts, prompts
from hooked_whisper.speech import clips

TEXTS = {
    "en": "; a comment: no key\nvm-sorry: I'm  sorry\nbeep: [a beep]\nonly: Only here\n",
    "es": "vm-sorry: Lo siento\nbeep: [tono]\n",
    "fr": "vm-sorry: Désolé\n",  # its beep has no text
    "it": "vm-sorry: Mi dispiace\nno-text: \n",
    "ru": "vm-sorry: Извините\nsilence/1: (1 second of silence)\n",
}
FILES = {"en": ["vm-sorry", "beep", "only"], "es": ["vm-sorry", "beep"], "fr": ["vm-sorry", "beep"]}
FILES |= {"it": ["vm-sorry", "no-text"], "ru": ["vm-sorry", "silence/1"]}


def write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """What unpacking the packages gives, small."""
    root = tmp_path / "tree"
    sound = clips("it", key="vm-sorry")[0].path.read_bytes()[:8_000]  # a second
    for language, voice in prompts.VOICES.items():
        document = root / f"usr/share/doc/asterisk-core-sounds-{language}/core-sounds-{language}.txt.gz"
        write(document, gzip.compress(TEXTS[language].encode("utf-8-sig")))
        write(root / f"usr/share/doc/asterisk-core-sounds-{language}-g722/copyright", f"by {voice.speaker}".encode())
        for key in FILES[language]:
            write(prompts.sound_file(root, language, key), sound)
    write(prompts.sound_file(root, "ru", "is"), b"")
    write(root / "usr/share/asterisk/moh/a-song.g722", sound * 2)
    write(root / "usr/share/doc/asterisk-moh-opsound-g722/copyright", b"by a band")
    return root


@pytest.fixture
def commands(tree: Path, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Commands that were run, by a stand-in that knows packages of a version and content of its own."""
    seen: list[list[str]] = []

    def run(command: list[str], cwd: Path) -> None:
        seen.append(command[:2])
        if command[0] == "apt-get":
            for name in command[2:]:
                (cwd / f"{name}_1_all.deb").write_bytes(name.encode())
        else:
            shutil.copytree(tree, cwd, dirs_exist_ok=True)

    known = {f"{name}_1_all.deb": hashlib.sha256(name.encode()).hexdigest() for name in prompts.package_names()}
    monkeypatch.setattr(prompts, "SHA256", known)
    monkeypatch.setattr(prompts, "_run", run)
    return seen


def test_a_manifest_that_a_corpus_reads(commands: list[list[str]], tmp_path: Path) -> None:
    manifest = fetch_prompts(tmp_path / "out")
    assert commands == [["apt-get", "download"], *[["dpkg-deb", "-x"]] * 11]
    corpus = Corpus.from_manifest(manifest)
    found = {item.id: item for item in corpus}
    assert list(found) == [
        "en/beep.g722", "en/only.g722", "en/vm-sorry.g722", "es/beep.g722", "es/vm-sorry.g722", "fr/beep.g722",
        "fr/vm-sorry.g722", "it/no-text.g722", "it/vm-sorry.g722", "ru/silence/1.g722", "ru/vm-sorry.g722",
        "music/a-song.g722",
    ]  # fmt: skip
    sorry = found["en/vm-sorry.g722"]
    assert (sorry.text, sorry.language, sorry.speaker) == ("I'm sorry", "en", "Allison Smith")
    assert {"licence": "CC BY-SA 3.0", "parallel": True, "seconds": 1.0}.items() <= sorry.columns.items()
    assert {item.columns["kind"] for item in corpus.where(key="vm-sorry")} == {"speech"}
    sounds = [f"{language}/beep.g722" for language in ("en", "es", "fr")]
    assert [item.id for item in corpus.where(kind="sound")] == [*sounds, "ru/silence/1.g722"]
    assert all(item.text is None for item in corpus.where(kind=["sound", "music"]))
    assert (found["it/no-text.g722"].text, found["it/no-text.g722"].columns["kind"]) == (None, "speech")
    assert [item.id for item in corpus.where(parallel=True)] == [f"{x}/vm-sorry.g722" for x in prompts.VOICES]
    assert (found["music/a-song.g722"].language, found["music/a-song.g722"].columns["seconds"]) == (None, 2.0)
    assert len(sorry.load()) == 16_000
    assert (tmp_path / "out/licences/asterisk-core-sounds-it-g722.txt").read_text() == "by Carlo Flora"
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        *prompts.VOICES,
        "music",
        "licences",
        "manifest.jsonl",
    }


def test_a_complete_folder_is_checked_and_left_alone(commands: list[list[str]], tmp_path: Path) -> None:
    manifest = fetch_prompts(tmp_path)
    commands.clear()
    assert fetch_prompts(tmp_path) == manifest
    assert commands == []
    (tmp_path / "es/beep.g722").write_bytes(b"other")
    with pytest.raises(CorpusError, match=r"es/beep.g722 is not what it was when it was fetched: delete .*jsonl"):
        fetch_prompts(tmp_path)
    (tmp_path / "en/beep.g722").unlink()
    with pytest.raises(CorpusError, match=r"en/beep.g722 is missing: delete"):
        fetch_prompts(tmp_path)


def test_decoded_to_wav(commands: list[list[str]], tmp_path: Path) -> None:
    manifest = fetch_prompts(tmp_path / "wav", wav=True)
    rows = [json.loads(line) for line in manifest.read_text(encoding="utf-8").splitlines()]
    assert {Path(row["path"]).suffix for row in rows} == {".wav"}
    corpus = Corpus.from_manifest(manifest)
    original = Corpus.from_manifest(fetch_prompts(tmp_path / "g722"))
    for one, other in zip(corpus, original, strict=True):
        torch.testing.assert_close(one.load(), other.load(), atol=4e-5, rtol=0)


def test_packages_from_a_folder(commands: list[list[str]], tmp_path: Path) -> None:
    folder = tmp_path / "debs"
    folder.mkdir()
    for name in prompts.package_names():
        (folder / f"{name}_1_all.deb").write_bytes(name.encode())
    fetch_prompts(tmp_path / "out", packages=folder)
    assert ["apt-get", "download"] not in commands
    (folder / "asterisk-core-sounds-it_1_all.deb").unlink()
    with pytest.raises(CorpusError, match=r"one package asterisk-core-sounds-it_\*.deb in .*, found 0: download"):
        fetch_prompts(tmp_path / "other", packages=folder)


def test_only_known_packages_are_used(commands: list[list[str]], tmp_path: Path) -> None:
    folder = tmp_path / "debs"
    folder.mkdir()
    for name in prompts.package_names():
        (folder / f"{name}_1_all.deb").write_bytes(name.encode())
    damaged = folder / "asterisk-core-sounds-fr_1_all.deb"
    damaged.write_bytes(b"other")
    with pytest.raises(CorpusError, match=r"sounds-fr_1_all.deb has SHA-256 .*, expected .*: it is damaged"):
        fetch_prompts(tmp_path / "out", packages=folder)
    damaged.rename(folder / "asterisk-core-sounds-fr_2_all.deb")
    with pytest.raises(CorpusError, match=r"fr_2_all.deb is not a version .* expected .*-fr_1_all.deb"):
        fetch_prompts(tmp_path / "out", packages=folder)
    assert commands == []
    assert list((tmp_path / "out").iterdir()) == []


def test_commands_that_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CorpusError, match=r"`false 1` failed: .*Download the packages elsewhere and name their folder"):
        prompts._run(["false", "1"], tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(CorpusError, match="apt-get is not installed: the prompts come as Debian packages"):
        fetch_prompts(tmp_path / "out")


def test_known_packages_are_those_that_are_asked_for() -> None:
    assert {name.partition("_")[0] for name in prompts.SHA256} == set(prompts.package_names())
    assert all(len(checksum) == 64 for checksum in prompts.SHA256.values())
