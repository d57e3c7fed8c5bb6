"""Synthetic voices: espeak-ng, Flite and Festival say sentences in many languages, the same at every run.

    manifest = synthesise(SENTENCES, VOICES, "synthetic")
    corpus = Corpus.from_manifest(manifest)

The engines are Debian's packages espeak-ng, flite, festival and festvox-*; they need not be installed: `engines=` names
a folder into which the packages were unpacked (`dpkg-deb -x`). espeak-ng's voices are formants by rule, many in number
and near to each other; those of Flite and Festival are cut or modelled from a person's recordings.
"""

from __future__ import annotations

import hashlib
import logging
import os
import random
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from tqdm import tqdm

from hooked_whisper.audio import SAMPLE_RATE, load_audio
from hooked_whisper.errors import AudioError, ConfigError, CorpusError
from hooked_whisper.saes.prompts import MANIFEST, check_files, write_manifest
from hooked_whisper.saes.voice_sources import HELD_OUT_LANGUAGES

logger = logging.getLogger(__name__)

Engine = Literal["espeak-ng", "flite", "festival"]

LICENCE = "spoken by free software (espeak-ng GPL-3+, Flite BSD-like, Festival X11-like; voices: Debian main)"
SECONDS_PER_PROGRAM = 300.0


@dataclass(frozen=True)
class Voice:
    """A synthetic voice.

    Attributes:
        engine: the program.
        name: what the program calls it: "de+f3", "slt", "kal_diphone".
        language: what it speaks, as Whisper calls it.
        pitch: of espeak-ng, 0 to 99.
        speed: of espeak-ng, words in a minute.
        encoding: in which Festival expects text for it.
        share: how many times more sentences than others it says.
    """

    engine: Engine
    name: str
    language: str
    pitch: int = 50
    speed: int = 175
    encoding: str = "utf-8"
    share: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.pitch <= 99 or not 80 <= self.speed <= 450:
            raise ConfigError(
                f"pitch {self.pitch}, speed {self.speed}: expected 0 to 99, and 80 to 450 words a minute."
            )

    @property
    def speaker(self) -> str:
        """What the manifest calls it."""
        settings = f", pitch {self.pitch}, speed {self.speed}" if self.engine == "espeak-ng" else ""
        return f"{self.engine} {self.name}{settings}"


# Festival and Flite: each voice is one person's.
RECORDED_VOICES = (
    *(Voice("flite", name, "en", share=5) for name in ("kal16", "awb", "rms", "slt")),
    Voice("festival", "kal_diphone", "en", share=5),
    Voice("festival", "ked_diphone", "en", share=5),
    Voice("festival", "cmu_us_slt_arctic_hts", "en", share=5),
    Voice("festival", "lp_diphone", "it", encoding="iso-8859-1", share=5),
    Voice("festival", "pc_diphone", "it", encoding="iso-8859-1", share=5),
    Voice("festival", "czech_dita", "cs", encoding="iso-8859-2"),
    Voice("festival", "czech_krb", "cs", encoding="iso-8859-2"),
    Voice("festival", "czech_machac", "cs", encoding="iso-8859-2"),
    Voice("festival", "czech_ph", "cs", encoding="iso-8859-2"),
    Voice("festival", "suo_fi_lj_diphone", "fi", encoding="iso-8859-1"),
    Voice("festival", "hy_fi_mv_diphone", "fi", encoding="iso-8859-1"),
    Voice("festival", "upc_ca_ona_hts", "ca", encoding="iso-8859-15"),
    Voice("festival", "msu_ru_nsh_clunits", "ru", share=5),
    Voice("festival", "hindi_NSK_diphone", "hi"),
    Voice("festival", "marathi_NSK_diphone", "mr"),
    Voice("festival", "telugu_NSK_diphone", "te"),
)
# Voices of languages that training hears, kept out of it all the same.
HELD_OUT_VOICES = frozenset({"flite awb", "festival czech_dita", "festival hy_fi_mv_diphone"})

_ESPEAK_LANGUAGES = {
    **{
        code: code
        for code in ("bg", "ca", "cs", "da", "de", "el", "es", "fi", "hi", "hr", "hu", "it", "mr", "nl", "pl")
    },
    **{code: code for code in ("pt", "ro", "ru", "sk", "sv", "te", "tr", "uk")},
    "en": "en-us",
    "fr": "fr-fr",
    "no": "nb",
}
_ESPEAK_VARIANTS = (
    *("m1", "m2", "m3", "m4", "m5", "m6", "m7", "m8", "f1", "f2", "f3", "f4", "f5"),
    *("klatt", "klatt2", "klatt3", "klatt4", "croak", "whisper"),
)


def espeak_voices(per_language: int = 4, *, seed: int = 0) -> tuple[Voice, ...]:
    """Voices of espeak-ng in 26 languages, each with a variant, a pitch and a speed of its own."""
    chance = random.Random(seed)
    voices = []
    for language, name in sorted(_ESPEAK_LANGUAGES.items()):
        for variant in chance.sample(_ESPEAK_VARIANTS, per_language):
            pitch, speed = chance.randrange(20, 81), chance.randrange(130, 211)
            voices.append(Voice("espeak-ng", f"{name}+{variant}", language, pitch, speed))
    return tuple(voices)


def synthesise(
    texts: Mapping[str, Sequence[str]],
    voices: Iterable[Voice],
    out: str | os.PathLike[str],
    *,
    sentences: int = 6,
    seed: int = 0,
    engines: str | os.PathLike[str] | None = None,
    progress: bool | None = None,
) -> Path:
    """Has each voice say some sentences of its language; returns the path of the manifest.

    The manifest has the columns of `fetch_voices`, with `kind` "synthetic" and `source` the engine. The same texts,
    voices and seed give the same files, with the same version of the engines. What an engine cannot say is left out
    and logged. A folder that is complete already is checked and left alone.

    Args:
        texts: sentences by language; `key` names a sentence by its place, so parallel lists give parallel keys.
        voices: who speaks.
        out: the folder; made if it is not there.
        sentences: how many each voice says; those with a `share` say more.
        seed: another seed chooses other sentences.
        engines: a folder with the unpacked packages; None: what is installed.
        progress: show a bar; None shows it where the error output is a terminal.

    Raises:
        ConfigError: a voice whose language has no text. CorpusError: an engine that is missing, or no sound at all.
    """
    folder = Path(out)
    manifest = folder / MANIFEST
    if manifest.is_file():
        check_files(manifest)
        return manifest
    voices = tuple(voices)
    if lacking := sorted({voice.language for voice in voices if not texts.get(voice.language)}):
        raise ConfigError(f"No text in {', '.join(lacking)}: expected sentences for the language of every voice.")
    root = None if engines is None else Path(engines).resolve()
    rows: list[dict[str, Any]] = []
    for voice in tqdm(voices, desc="synthesis", unit="voice", disable=None if progress is None else not progress):
        said = texts[voice.language]
        chance = random.Random(f"{seed}/{voice.speaker}")
        chosen = sorted(chance.sample(range(len(said)), min(sentences * voice.share, len(said))))
        target = folder / voice.engine / hashlib.sha256(voice.speaker.encode()).hexdigest()[:12]
        target.mkdir(parents=True, exist_ok=True)
        wanted = {target / f"{index:04d}.wav": said[index] for index in chosen}
        for path in wanted:  # of a run that was cut off
            path.unlink(missing_ok=True)
        speak(voice, wanted, engines=root)
        for index, (path, text) in zip(chosen, wanted.items(), strict=True):
            if row := _row(voice, path, text, f"{voice.language}/{index}", folder):
                rows.append(row)
    if not rows:
        raise CorpusError("The engines said nothing: expected at least one sentence that a voice can say.")
    write_manifest(rows, manifest)
    return manifest


def _row(voice: Voice, path: Path, text: str, key: str, folder: Path) -> dict[str, Any] | None:
    try:
        waveform = load_audio(path)
    except AudioError as error:
        logger.warning("%s said nothing of %r: %s", voice.speaker, text, error)
        return None
    if waveform.abs().amax() < 1e-3:
        logger.warning("%s was silent at %r", voice.speaker, text)
        path.unlink()
        return None
    unheard = (
        "language" if voice.language in HELD_OUT_LANGUAGES else "speaker" if voice.speaker in HELD_OUT_VOICES else None
    )
    return {
        "path": path.relative_to(folder).as_posix(),
        "key": f"synthetic/{key}",
        "language": voice.language,
        "speaker": voice.speaker,
        "text": text,
        "kind": "synthetic",
        "source": voice.engine,
        "licence": LICENCE,
        "split": "train" if unheard is None else "held-out",
        "unheard": unheard,
        "seconds": round(waveform.numel() / SAMPLE_RATE, 3),
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
    }


def speak(voice: Voice, wanted: Mapping[Path, str], *, engines: Path | None = None) -> None:
    """Writes a WAV file for each text; one that the engine cannot say may be missing or empty afterwards.

    Raises:
        CorpusError: the engine is missing, or fails as a whole.
    """
    if voice.engine == "festival":
        _festival(voice, wanted, engines)
        return
    for path, text in wanted.items():
        if voice.engine == "flite":
            _run(["flite", "-voice", voice.name, "-t", text, "-o", str(path)], engines)
        else:
            settings = ["-v", voice.name, "-p", str(voice.pitch), "-s", str(voice.speed)]
            _run(["espeak-ng", *settings, "-b", "1", "-w", str(path), "--stdin"], engines, text.encode())


def _festival(voice: Voice, wanted: Mapping[Path, str], engines: Path | None) -> None:
    # One start of the program for all sentences: it takes longer to start than to speak.
    lines = [f"(voice_{voice.name})".encode()]
    for path, text in wanted.items():
        spoken = text.replace("\\", " ").replace('"', " ").encode(voice.encoding, errors="replace")
        # A sentence that the voice cannot say must not end the others.
        command = b'(unwind-protect (utt.save.wave (utt.synth (eval (list \'Utterance \'Text "%s"))) "%s" \'riff) nil)'
        lines.append(command % (spoken, str(path.resolve()).encode()))
    with tempfile.NamedTemporaryFile(suffix=".scm") as script:
        script.write(b"\n".join(lines) + b"\n")
        script.flush()
        library = [] if engines is None else ["--datadir", str(engines / "usr/share/festival")]
        _run(["festival", *library, "-b", script.name], engines)


@lru_cache(maxsize=4)
def _environment(engines: Path) -> dict[str, str]:
    """Where unpacked programs find their libraries and data."""
    libraries = sorted({str(file.parent) for file in engines.rglob("*.so*")})
    found = {"LD_LIBRARY_PATH": ":".join(libraries)}
    data = next(engines.glob("usr/**/espeak-ng-data"), None)
    return found if data is None else {**found, "ESPEAK_DATA_PATH": str(data.parent)}


def _run(command: list[str], engines: Path | None, text: bytes | None = None) -> None:
    program = shutil.which(command[0], path=None if engines is None else str(engines / "usr/bin"))
    environment = {**os.environ, **({} if engines is None else _environment(engines))}
    if program is None:
        where = "on PATH" if engines is None else f"in {engines}"
        raise CorpusError(
            f"There is no {command[0]} {where}: install Debian's package {command[0]}, or unpack it with `dpkg-deb -x` "
            "and name that folder with engines=."
        )
    try:
        done = subprocess.run(
            [program, *command[1:]], input=text, capture_output=True, env=environment, timeout=SECONDS_PER_PROGRAM
        )
    except subprocess.TimeoutExpired as error:
        raise CorpusError(f"`{command[0]}` did not finish within {SECONDS_PER_PROGRAM:.0f} s.") from error
    if done.returncode != 0:
        said = done.stderr.decode(errors="replace").strip() or "no message"
        raise CorpusError(f"`{command[0]}` failed with code {done.returncode}: {said[-500:]}")
