"""A corpus of synthetic speech whose phones and words have exact times: in any of espeak-ng's languages.

    texts = parallel_texts(prompts, ["en", "es", "it"], 40)          # or {"en": ["Two dogs.", ...], "es": [...]}
    made = make_phone_corpus(texts, "phones/")
    made.corpus.where(split="train"), made.labels["en/m1-50-175/vm-goodbye"]["phone"]

Every voice says every sentence in every language, so that neither the speaker nor the sentence goes with the language.
Voices are for training or for testing, never both. It is speech by rule: its phones are all alike, which makes them
easier than a person's, and what holds here has to be tried on real speech.
"""

from __future__ import annotations

import hashlib
import json
import os
import wave
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from jaxtyping import Int16
from tqdm import tqdm

from hooked_whisper.analysis.espeak import Espeak, Spoken
from hooked_whisper.analysis.label_files import read_labels, write_labels
from hooked_whisper.analysis.labels import Interval, Labels
from hooked_whisper.audio import SAMPLE_RATE, resample
from hooked_whisper.errors import AnalysisError
from hooked_whisper.saes.corpus import Corpus
from hooked_whisper.saes.prompts import MANIFEST, check_files, write_manifest

if TYPE_CHECKING:
    Split = Literal["train", "test"]
else:
    Split = str  # checked here, with a message that says more than a type checker's

LABELS, SETTINGS = "labels.json", "settings.json"
LICENCE = "spoken by espeak-ng (GPL-3+), whose output is free to use"
# Where espeak-ng calls a language otherwise than Whisper does.
ESPEAK_NAMES = {"en": "en-us", "no": "nb", "zh": "cmn", "jw": "jv", "tl": "fil"}


@dataclass(frozen=True)
class PhoneVoice:
    """A voice, which speaks all languages.

    Attributes:
        variant: of espeak-ng: "m1" to "m8", "f1" to "f5", "klatt", ...; it changes formants, pitch and breath.
        pitch: 0 to 99, beside what the variant brings.
        speed: words in a minute, 80 to 450.
        range: of the melody, 0 to 99.
        split: "train" or "test": on which side its clips are.
    """

    variant: str
    pitch: int = 50
    speed: int = 175
    range: int = 50
    split: Split = "train"

    def __post_init__(self) -> None:
        if self.split not in ("train", "test"):
            raise AnalysisError(f"Voice {self.variant!r} is for {self.split!r}: expected 'train' or 'test'.")

    @property
    def speaker(self) -> str:
        """What the manifest calls it."""
        return f"{self.variant}-{self.pitch}-{self.speed}"


# Women and men, slow and quick, on both sides.
PHONE_VOICES = (
    PhoneVoice("m1", 45, 160),
    PhoneVoice("m7", 55, 190),
    PhoneVoice("f1", 50, 150),
    PhoneVoice("f4", 60, 180),
    PhoneVoice("m3", 40, 170, split="test"),
    PhoneVoice("f2", 55, 165, split="test"),
)


@dataclass(frozen=True)
class PhoneCorpus:
    """A corpus on disk, with its labels.

    Attributes:
        folder: where it is: the manifest, labels.json, settings.json, and a folder of WAV files for each language.
    """

    folder: Path

    @property
    def manifest(self) -> Path:
        """The table of clips: id, path, text, language, speaker, key, split, and the voice's settings."""
        return self.folder / MANIFEST

    @property
    def corpus(self) -> Corpus:
        """The clips, to harvest from."""
        return Corpus.from_manifest(self.manifest)

    @property
    def labels(self) -> Labels:
        """Tiers "phone", "stress", "length", "closure" and "word" of each clip."""
        return read_labels(self.folder / LABELS, silences=())


def parallel_texts(
    corpus: Corpus, languages: Sequence[str], count: int | None = None, *, longest: int = 120
) -> dict[str, dict[str, str]]:
    """Texts of a corpus that has the same sentences in several languages: language -> key -> text.

    The keys are those that all languages have a text for; `count` of them are taken, evenly from all.

    Args:
        corpus: with columns `key` and `language`, and texts: the parallel prompts.
        languages: which.
        count: how many sentences; None takes all.
        longest: in letters, of the texts taken.

    Raises:
        AnalysisError: fewer than `count` keys that all languages share.
    """
    found: dict[str, dict[str, str]] = {language: {} for language in languages}
    for item in corpus:
        if item.language in found and item.text and len(item.text) <= longest and item.columns.get("key") is not None:
            found[item.language].setdefault(str(item.columns["key"]), item.text)
    shared = sorted(set.intersection(*(set(texts) for texts in found.values()))) if found else []
    wanted = len(shared) if count is None else count
    if not 0 < wanted <= len(shared):
        raise AnalysisError(
            f"{corpus.name} has {len(shared)} sentences of at most {longest} letters in all of {', '.join(languages)}: "
            f"expected {'one' if count is None else wanted} or more."
        )
    keys = [shared[at * len(shared) // wanted] for at in range(wanted)]
    return {language: {key: texts[key] for key in keys} for language, texts in found.items()}


def make_phone_corpus(
    texts: Mapping[str, Sequence[str] | Mapping[str, str]],
    out: str | os.PathLike[str],
    *,
    voices: Sequence[PhoneVoice] = PHONE_VOICES,
    espeak_names: Mapping[str, str] = ESPEAK_NAMES,
    padding: float = 0.1,
    progress: bool | None = None,
) -> PhoneCorpus:
    """Has every voice say every sentence; writes 16 kHz WAV files, a manifest and labels. The same at every run.

    A folder that was made from the same texts and voices is checked and left alone.

    Args:
        texts: sentences by language (Whisper's code): a list, whose places become keys, or key -> text. Parallel lists
            give parallel keys.
        out: the folder; made if it is not there.
        voices: who speaks; each has its split.
        espeak_names: what espeak-ng calls a language, where it differs: {"en": "en-gb"}.
        padding: seconds of silence before and after.
        progress: show a bar; None shows it where the error output is a terminal.

    Raises:
        AnalysisError: no texts or voices, two voices of one name, keys that cannot name a file, a language that
            espeak-ng lacks, or a folder that holds something else. MissingExtraError: no libespeak-ng.
    """
    keyed = {language: _keyed(language, own) for language, own in texts.items()}
    if not keyed or not voices:
        raise AnalysisError(f"{len(keyed)} languages and {len(voices)} voices: expected at least one of each.")
    names = [voice.speaker for voice in voices]
    if len(set(names)) < len(names):
        raise AnalysisError(
            f"Two voices are called {next(n for n in names if names.count(n) > 1)!r}: vary pitch or speed."
        )
    if not 0 <= padding <= 10:
        raise AnalysisError(f"padding={padding}: expected 0 to 10 seconds.")
    folder = Path(out)
    made = PhoneCorpus(folder)
    with Espeak() as espeak:
        settings = {
            "espeak-ng": espeak.version,
            "texts": keyed,
            "voices": [asdict(voice) for voice in voices],
            "names": {language: espeak_names.get(language, language) for language in keyed},
            "padding": padding,
        }
        if _is_made(made, settings):
            return made
        jobs = [(language, voice, key) for language in keyed for voice in voices for key in keyed[language]]
        rows: list[dict[str, Any]] = []
        tiers: dict[str, dict[str, tuple[Interval, ...]]] = {}
        for language, voice, key in tqdm(jobs, desc="speech", disable=None if progress is None else not progress):
            name = f"{settings['names'][language]}+{voice.variant}"
            text = keyed[language][key]
            spoken = espeak.say(text, name, speed=voice.speed, pitch=voice.pitch, range=voice.range)
            samples, clip = _at_16_khz(spoken, padding), f"{language}/{voice.speaker}/{key}"
            path = folder / f"{clip}.wav"
            _write_wav(samples, path)
            tiers[clip] = {tier: _shifted(own, padding) for tier, own in spoken.tiers.items()}
            rows.append(
                {
                    "id": clip,
                    "path": f"{clip}.wav",
                    "key": key,
                    "language": language,
                    "speaker": voice.speaker,
                    "text": text,
                    "split": voice.split,
                    "kind": "synthetic",
                    "voice": name,
                    "pitch": voice.pitch,
                    "speed": voice.speed,
                    "source": f"espeak-ng {espeak.version}",
                    "licence": LICENCE,
                    "seconds": len(samples) / SAMPLE_RATE,
                    "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
                }
            )
    write_labels(Labels(tiers, {row["id"]: row["seconds"] for row in rows}), folder / LABELS)
    (folder / SETTINGS).write_text(json.dumps(settings, ensure_ascii=False) + "\n", encoding="utf-8")
    write_manifest(rows, made.manifest)
    return made


def _keyed(language: str, texts: Sequence[str] | Mapping[str, str]) -> dict[str, str]:
    if isinstance(texts, str):
        raise AnalysisError(f"The texts of {language!r} are one text: expected a list, or key -> text.")
    keyed = dict(texts) if isinstance(texts, Mapping) else {f"{place:04d}": text for place, text in enumerate(texts)}
    if not keyed:
        raise AnalysisError(f"There is no text in {language!r}: expected at least one sentence.")
    for key in keyed:
        if not key or ".." in key or key.startswith("/") or any(letter in '\\:*?"<>|' for letter in key):
            raise AnalysisError(f"The key {key!r} cannot name a file: expected letters, digits, '-', '_' and '/'.")
    return keyed


def _is_made(made: PhoneCorpus, settings: dict[str, Any]) -> bool:
    if not made.manifest.is_file():
        return False
    written = made.folder / SETTINGS
    if not written.is_file() or json.loads(written.read_text(encoding="utf-8")) != settings:
        raise AnalysisError(
            f"{made.folder} holds a corpus of other texts, voices or another espeak-ng: choose another folder, or "
            "delete this one."
        )
    check_files(made.manifest)
    return True


def _at_16_khz(spoken: Spoken, padding: float) -> Int16[np.ndarray, " sample"]:
    # In double precision, whose rounding no sample shows: sums of floats depend on where memory lies.
    heard = torch.from_numpy(spoken.samples.astype(np.float64))
    sound = resample(heard, spoken.rate, SAMPLE_RATE).numpy().round().clip(-32_768, 32_767).astype(np.int16)
    return np.pad(sound, round(padding * SAMPLE_RATE))


def _write_wav(samples: Int16[np.ndarray, " sample"], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(SAMPLE_RATE)
        file.writeframes(samples.astype("<i2").tobytes())


def _shifted(intervals: Sequence[Interval], by: float) -> tuple[Interval, ...]:
    by = round(by * SAMPLE_RATE) / SAMPLE_RATE
    # To a tenth of a millisecond, which keeps the file small and moves no frame.
    edges = [(round(one.start + by, 4), round(one.end + by, 4), one.value) for one in intervals]
    return tuple(Interval(start, end, value) for start, end, value in edges if end > start)
