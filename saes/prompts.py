"""The five-language parallel prompts: two hours of real speech with transcripts, from Debian's Asterisk packages.

    manifest = fetch_prompts("prompts")                  # apt-get download, dpkg-deb -x, checked by SHA-256
    corpus = Corpus.from_manifest(manifest)

One professional speaker for each of English, Spanish, French, Italian and Russian (the first two are one person) says
the same sentences; `key` names the sentence and is shared by its translations. CC BY-SA 3.0 (Italian and Russian: CC BY
3.0); the packages' own copyright files are kept beside the sound. One speaker says everything in one language, so
whatever differs between languages may be the voice.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import logging
import os
import re
import shutil
import subprocess
import tempfile
import wave
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hooked_whisper.audio import SAMPLE_RATE, load_audio
from hooked_whisper.errors import CorpusError

logger = logging.getLogger(__name__)

MANIFEST = "manifest.jsonl"
BYTES_PER_SECOND = 8_000  # G.722 at 64 kbit/s
TRANSCRIPTS, SOUND = "asterisk-core-sounds-{language}", "asterisk-core-sounds-{language}-g722"
MUSIC = "asterisk-moh-opsound-g722"


@dataclass(frozen=True)
class Voice:
    """Who speaks one language, the folder of the packages that holds it, and its licence."""

    folder: str
    speaker: str
    licence: str


VOICES = {
    "en": Voice("en_US_f_Allison", "Allison Smith", "CC BY-SA 3.0"),
    "es": Voice("es_MX_f_Allison", "Allison Smith", "CC BY-SA 3.0"),
    "fr": Voice("fr_CA_f_June", "June Wallack", "CC BY-SA 3.0"),
    "it": Voice("it_IT_m_Carlo", "Carlo Flora", "CC BY 3.0"),
    "ru": Voice("ru_RU_f_IvrvoiceRU", "IvrvoiceRU", "CC BY 3.0"),
}
MUSIC_LICENCE = "CC BY-SA 3.0"

# What is known to be Debian's: file -> SHA-256. A new version is added here after someone has looked at it.
SHA256 = {
    "asterisk-core-sounds-en_1.6.1-1_all.deb": "973e797d28e37fa6ca3c0a9d6fa717e77cf1268ae916bf09fd3503113cdffa50",
    "asterisk-core-sounds-en-g722_1.6.1-1_all.deb": "38c5261820b406dcb0ecb37675720da2b0864850690690352ca52707eb623806",
    "asterisk-core-sounds-es_1.6.1-1_all.deb": "9afdab7f559f036649fb406e625899306ca1004df8ebe39c30bfbd5912d66f74",
    "asterisk-core-sounds-es-g722_1.6.1-1_all.deb": "e4e3b4281057d3b81b779298fd6be705f57411513955c518eed1bcaabbd615b8",
    "asterisk-core-sounds-fr_1.6.1-1_all.deb": "04c82c78c570c43a7136cbc5e2488d0c470b775468dff9fbce4a131b18cf1056",
    "asterisk-core-sounds-fr-g722_1.6.1-1_all.deb": "7add61d5e42279ecff1bbdf842a5a946ac3644fac9a0fe44384731aa7270c8e0",
    "asterisk-core-sounds-it_1.6.1-1_all.deb": "3884d9457e12f21caa018c18f0d587df5d53ebea14b673d8453a134c5941ab3b",
    "asterisk-core-sounds-it-g722_1.6.1-1_all.deb": "46b4cf7afc508a5fcfc051b7ea233251c0d195dd4ef83cc4b7facb4c6429b016",
    "asterisk-core-sounds-ru_1.6.1-1_all.deb": "28a61616bb0cd3345a7ea532dec4df9f071e5d0fa9f8c1a563ea9669002f39ab",
    "asterisk-core-sounds-ru-g722_1.6.1-1_all.deb": "673b4238a6b8269960f055d868c6a11083f7a0d00979167cb01554046b48ed9b",
    "asterisk-moh-opsound-g722_2.03-1.1_all.deb": "8d6b39d6f2e8feff54a042c4a25e1b72f3e2478d05ee372c92f77446fa0b1671",
}

# A transcript that describes a sound instead of saying words: "[ascending tones]", "(beep)".
_DESCRIPTION = re.compile(r"\s*(\[[^\]]*\]|\([^)]*\))\s*")


def package_names(languages: Iterable[str] = VOICES, *, music: bool = True) -> list[str]:
    """The Debian packages that hold the prompts of `languages`: transcripts, then sound, for each."""
    names = [part.format(language=language) for language in languages for part in (TRANSCRIPTS, SOUND)]
    return [*names, MUSIC] if music else names


def fetch_prompts(
    out: str | os.PathLike[str], *, packages: str | os.PathLike[str] | None = None, wav: bool = False
) -> Path:
    """Fetches the prompts with their transcripts and the music into a folder; returns the path of its manifest.

    The manifest (JSON lines) has a row for each file: `path` (relative to the manifest), `key`, `language`, `speaker`,
    `text` (None where the publisher has none), `kind` ("speech"; "sound" for tones, silence and screaming monkeys;
    "music"), `parallel` (True where the sentence is there with its text in all five languages), `licence`, `seconds`
    and `sha256`. The texts keep the publishers' spelling, which is not always clean. A folder that is complete already
    is checked and left alone.

    Args:
        out: the folder; made if it is not there.
        packages: a folder with the `.deb` files, for machines without apt; None runs `apt-get download`, which
            installs nothing and needs no rights.
        wav: also decode each file to 16-bit WAV at 16 kHz, which the manifest then names; otherwise the packages'
            own G.722 files are kept as they are, which everything here reads.

    Raises:
        CorpusError: apt-get or dpkg-deb fails or is missing, or a package is not one whose checksum is known.
    """
    folder = Path(out)
    manifest = folder / MANIFEST
    if manifest.is_file():
        check_files(manifest)
        return manifest
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        unpacked = Path(temporary)
        unpack(unpacked, package_names(), packages=None if packages is None else Path(packages))
        rows = [*_speech_rows(unpacked), *_music_rows(unpacked)]
        _mark_parallel(rows)
        written = [_write_file(row, folder, wav=wav) for row in rows]
        for copyright_file in sorted(unpacked.glob("usr/share/doc/*-g722/copyright")):
            target = folder / "licences" / f"{copyright_file.parent.name}.txt"
            target.parent.mkdir(exist_ok=True)
            shutil.copyfile(copyright_file, target)
    write_manifest(written, manifest)
    hours = sum(row["seconds"] for row in written) / 3600
    logger.info("%d files, %.2f hours, in %s", len(written), hours, folder)
    return manifest


def unpack(
    into: Path, names: Iterable[str], *, packages: Path | None = None, known: Mapping[str, str] | None = None
) -> None:
    """Downloads Debian packages into `into` (or takes them from `packages`), checks them and unpacks them there.

    Args:
        into: a folder that exists.
        names: the packages.
        packages: a folder with the `.deb` files; None runs `apt-get download`.
        known: the SHA-256 of each file that may be unpacked; None: those of the prompts.

    Raises:
        CorpusError: as `fetch_prompts`.
    """
    names = list(names)
    if packages is None:
        _run(["apt-get", "download", *names], into)
    debs = _find_packages(packages or into, names)
    for deb in debs:
        _check_package(deb, SHA256 if known is None else known)
    for deb in debs:
        _run(["dpkg-deb", "-x", str(deb.resolve()), "."], into)


def _run(command: list[str], cwd: Path) -> None:
    hint = "Download the packages elsewhere and name their folder with packages=."
    try:
        done = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    except FileNotFoundError as error:
        raise CorpusError(
            f"{command[0]} is not installed: the prompts come as Debian packages, which Debian and Ubuntu fetch and "
            f"unpack. {hint if command[0] == 'apt-get' else 'Install dpkg.'}"
        ) from error
    if done.returncode != 0:
        raise CorpusError(f"`{' '.join(command)}` failed: {done.stderr.strip() or done.stdout.strip()}. {hint}")


def _find_packages(folder: Path, names: list[str]) -> list[Path]:
    debs = []
    for name in names:
        found = sorted(folder.glob(f"{name}_*.deb"))
        if len(found) != 1:
            raise CorpusError(
                f"Expected one package {name}_*.deb in {folder}, found {len(found)}: download it with "
                f"`apt-get download {name}`."
            )
        debs += found
    return debs


def _check_package(deb: Path, checksums: Mapping[str, str]) -> None:
    known = checksums.get(deb.name)
    found = hashlib.sha256(deb.read_bytes()).hexdigest()
    if known is None:
        versions = [name for name in checksums if name.startswith(f"{deb.name.partition('_')[0]}_")]
        raise CorpusError(
            f"{deb.name} is not a version whose checksum is known here: expected {' or '.join(versions)}."
        )
    if found != known:
        raise CorpusError(
            f"{deb.name} has SHA-256 {found}, expected {known}: it is damaged, or not Debian's. Download it again."
        )


def transcripts(unpacked: Path, language: str) -> dict[str, str]:
    """The published text of every prompt, spaces made single, otherwise as it is (typing errors included)."""
    name = TRANSCRIPTS.format(language=language)
    path = unpacked / "usr/share/doc" / name / f"core-sounds-{language}.txt.gz"
    lines = gzip.decompress(path.read_bytes()).decode("utf-8-sig").splitlines()
    pairs = (line.split(":", 1) for line in lines if ":" in line and not line.startswith(";"))
    return {key.strip(): " ".join(text.split()) for key, text in pairs}


def sound_file(unpacked: Path, language: str, key: str) -> Path:
    """Where the unpacked packages have the sound of one prompt."""
    return unpacked / "usr/share/asterisk/sounds" / VOICES[language].folder / f"{key}.g722"


def _speech_rows(unpacked: Path) -> Iterator[dict[str, Any]]:
    texts_of = {language: transcripts(unpacked, language) for language in VOICES}
    described = {key for texts in texts_of.values() for key, text in texts.items() if _DESCRIPTION.fullmatch(text)}
    for language, voice in VOICES.items():
        texts = texts_of[language]
        root = sound_file(unpacked, language, "any").parent
        for source in sorted(root.rglob("*.g722")):
            if source.stat().st_size == 0:  # the Russian "is" has no sound, because Russian has no such word
                continue
            key = source.relative_to(root).with_suffix("").as_posix()
            text = texts.get(key) or None
            is_description = text is not None and _DESCRIPTION.fullmatch(text) is not None
            no_words = key.startswith("silence/") or is_description or (text is None and key in described)
            yield {
                "key": key,
                "language": language,
                "speaker": voice.speaker,
                "text": None if no_words else text,
                "kind": "sound" if no_words else "speech",
                "licence": voice.licence,
                "source": source,
                "path": f"{language}/{key}.g722",
            }


def _music_rows(unpacked: Path) -> Iterator[dict[str, Any]]:
    for source in sorted((unpacked / "usr/share/asterisk/moh").rglob("*.g722")):
        yield {
            "key": f"music/{source.stem}",
            "language": None,
            "speaker": None,
            "text": None,
            "kind": "music",
            "licence": MUSIC_LICENCE,
            "source": source,
            "path": f"music/{source.name}",
        }


def _mark_parallel(rows: list[dict[str, Any]]) -> None:
    languages = Counter(row["key"] for row in rows if row["kind"] == "speech" and row["text"])
    for row in rows:
        row["parallel"] = languages[row["key"]] == len(VOICES)


def _write_file(row: dict[str, Any], folder: Path, *, wav: bool) -> dict[str, Any]:
    """Copies or decodes one file; returns its row of the manifest."""
    row = dict(row)
    source = Path(row.pop("source"))
    if wav:
        row["path"] = str(Path(row["path"]).with_suffix(".wav").as_posix())
    target = folder / row["path"]
    target.parent.mkdir(parents=True, exist_ok=True)
    if wav:
        _decode(source, target)
    else:
        shutil.copyfile(source, target)
    row["seconds"] = source.stat().st_size / BYTES_PER_SECOND
    row["sha256"] = hashlib.sha256(target.read_bytes()).hexdigest()
    return row


def _decode(source: Path, target: Path) -> None:
    samples = (load_audio(source).clamp(-1, 1) * 32_767).round().short()
    with wave.open(str(target), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(SAMPLE_RATE)
        file.writeframes(samples.numpy().tobytes())


def write_manifest(rows: Iterable[Mapping[str, Any]], manifest: Path) -> None:
    """Writes a manifest, all of it or nothing; last, so that a folder with a manifest is a complete one."""
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    partial = manifest.with_suffix(".partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(manifest)


def check_files(manifest: Path) -> None:
    """Raises CorpusError unless every file that a manifest lists is there, with the checksum that it had."""
    for line in manifest.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        path = manifest.parent / row["path"]
        if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != row["sha256"]:
            raise CorpusError(
                f"{path} is {'not what it was when it was fetched' if path.is_file() else 'missing'}: delete "
                f"{manifest} and fetch it again."
            )
