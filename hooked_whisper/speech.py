"""The real speech that the repository ships: 20 sentences, each said in five languages.

    from hooked_whisper.speech import clips
    clip = clips("fr", key="vm-sorry")[0]
    logits = model(clip.load(), text=clip.text)

The clips are telephone prompts by professional speakers (tests/data/speech/ATTRIBUTION.md has names and licences). They
live in the repository, not in the installed package. One speaker says everything in one language, so here
language and voice cannot be told apart.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from jaxtyping import Float
from torch import Tensor

from hooked_whisper.audio import load_audio
from hooked_whisper.errors import AudioError, LanguageError, did_you_mean

_FOLDER = Path("tests", "data", "speech")


@dataclass(frozen=True)
class Clip:
    """One spoken sentence.

    `key` names the sentence and is shared by its translations; `text` is the publisher's transcript, whose spelling is
    not always clean and whose words are not always those said; `seconds` is the length.
    """

    path: Path
    language: str
    text: str
    key: str
    speaker: str
    seconds: float

    def load(self) -> Float[Tensor, "samples"]:
        """The waveform: mono float32 at 16 kHz."""
        return load_audio(self.path)


def speech_folder() -> Path:
    """The folder with the clips and their manifest, in the clone that this package runs from.

    Raises:
        AudioError: the package is installed outside a clone of the repository.
    """
    for parent in Path(__file__).resolve().parents:
        if (parent / _FOLDER / "manifest.jsonl").is_file():
            return parent / _FOLDER
    raise AudioError(
        f"No {_FOLDER.as_posix()}/manifest.jsonl in any folder above {Path(__file__).resolve().parent}: the speech "
        "comes with a clone of the repository, not with the installed package. Clone it and install with "
        "`pip install -e .`, or pass audio of your own."
    )


@lru_cache(maxsize=1)
def _all_clips() -> tuple[Clip, ...]:
    folder = speech_folder()
    rows = map(json.loads, (folder / "manifest.jsonl").read_text(encoding="utf-8").splitlines())
    return tuple(
        Clip(
            path=folder / row["path"],
            language=row["language"],
            text=row["text"],
            key=row["key"],
            speaker=row["speaker"],
            seconds=row["seconds"],
        )
        for row in rows
    )


def clips(language: str | None = None, key: str | None = None) -> list[Clip]:
    """The shipped clips in the manifest's order (by language, then key), all or those that match.

    Args:
        language: "en", "es", "fr", "it" or "ru".
        key: the name of a sentence, such as "vm-sorry"; its five translations share it.

    Raises:
        LanguageError: a language that is not shipped.
        AudioError: a key that is not shipped, or no clone of the repository around the package.
    """
    found = list(_all_clips())
    if language is not None:
        known = sorted({clip.language for clip in found})
        if language not in known:
            raise LanguageError(f"No shipped speech in {language!r}: expected one of {', '.join(known)}.")
        found = [clip for clip in found if clip.language == language]
    if key is not None:
        keys = dict.fromkeys(clip.key for clip in found)
        if key not in keys:
            near = did_you_mean(key, keys)
            raise AudioError(f"No shipped clip has the key {key!r}.{near} `clips()` lists all {len(keys)}.")
        found = [clip for clip in found if clip.key == key]
    return found
