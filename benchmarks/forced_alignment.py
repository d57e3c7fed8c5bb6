"""Times of phones in real speech beside those of PocketSphinx, an aligner that knows nothing of Whisper.

    python examples/paper/real_phones.py --work real --study layers --prompts prompts     # writes real/labels.json
    python -m benchmarks.forced_alignment real prompts/manifest.jsonl

Both are told the same phones, as espeak-ng says the text; PocketSphinx gets them under the names of its American
English models (each IPA symbol as the nearest of its 39). What is compared is when each phone is: how many frames of
10 ms have the same one, and how far apart the beginnings of phones are. PocketSphinx brings its models in its package.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import report
from hooked_whisper.analysis.espeak import Espeak
from hooked_whisper.analysis.forced_alignment import pronounce
from hooked_whisper.analysis.label_files import read_labels
from hooked_whisper.analysis.labels import Interval
from hooked_whisper.analysis.phone_speech import ESPEAK_NAMES
from hooked_whisper.saes import Corpus

# espeak-ng's American English, each phone with its name in CMU's dictionary.
_TABLE = """
i IY ɪ IH ᵻ IH ɛ EH æ AE ɑ AA ɔ AO ʊ UH u UW ʌ AH ə AH ɐ AH ɚ ER ɜ ER e EY o OW a AA
p P b B t T d D k K ɡ G m M n N ŋ NG f F v V θ TH ð DH s S z Z ʃ SH ʒ ZH h HH j Y w W l L ɹ R ɾ D ʔ T
aɪ AY eɪ EY oʊ OW aʊ AW ɔɪ OY tʃ CH dʒ JH
"""
_PAIRS = _TABLE.split()
NAMES: dict[str, str] = dict(zip(_PAIRS[::2], _PAIRS[1::2], strict=True))


def names(phone: str) -> list[str]:
    """A phone in PocketSphinx's names: one, or one for each symbol."""
    return [NAMES[phone]] if phone in NAMES else [NAMES[symbol] for symbol in phone if symbol != "\u0329"]


def by_pocketsphinx(samples: np.ndarray, words: Sequence[tuple[str, Sequence[str]]]) -> list[Interval] | None:
    """Phones with their times, or None where it finds no path."""
    from pocketsphinx import Decoder  # pyright: ignore[reportMissingImports]

    decoder: Any = Decoder(lm=None, dict=None, loglevel="FATAL", samprate=16000)
    for index, (_, phones) in enumerate(words):
        decoder.add_word(f"w{index}", " ".join(name for phone in phones for name in names(phone)), True)
    decoder.set_align_text(" ".join(f"w{index}" for index in range(len(words))))
    try:
        _listen(decoder, samples)
        decoder.set_alignment()  # of the phones within the words just found
        _listen(decoder, samples)
    except RuntimeError:  # no path through the clip
        return None
    found: list[Interval] = []
    for word in decoder.get_alignment():
        if not word.name.startswith("w"):
            continue
        parts = list(word)
        at = 0
        for phone in words[int(word.name[1:].partition("(")[0])][1]:
            own = parts[at : at + len(names(phone))]
            at += len(own)
            found.append(Interval(own[0].start / 100, (own[-1].start + own[-1].duration) / 100, phone))
    return found if len(found) == sum(len(phones) for _, phones in words) else None


def _listen(decoder: Any, samples: np.ndarray) -> None:
    decoder.start_utt()
    decoder.process_raw(samples.tobytes(), full_utt=True)
    decoder.end_utt()


def on_frames(intervals: Sequence[Interval], seconds: float) -> np.ndarray:
    """The place of the phone that is said in each 10 ms; -1 is silence."""
    at = (np.arange(int(seconds * 100)) + 0.5) / 100
    place = np.searchsorted([one.start for one in intervals], at, side="right") - 1
    inside = (place >= 0) & (at < np.array([one.end for one in intervals])[np.maximum(place, 0)])
    return np.where(inside, place, -1)


def main() -> None:
    parser = report.parser(__doc__)
    parser.add_argument("work", type=Path, help="folder of examples/paper/real_phones.py")
    parser.add_argument("manifest", type=Path, help="of the prompts")
    options: argparse.Namespace = parser.parse_args()
    found = read_labels(options.work / "labels.json", silences=())
    corpus = Corpus.from_manifest(options.manifest).where(language="en")
    corpus = corpus.where(id=[item.id for item in corpus if item.id in found.tiers])
    with Espeak() as espeak:
        said = pronounce(espeak, {item.id: str(item.text) for item in corpus}, ESPEAK_NAMES["en"])
    same = spoken = 0
    off: list[float] = []
    refused = 0
    for item in corpus:
        audio = corpus.load(item)
        ours = found[item.id]["phone"]
        samples = (np.asarray(audio).clip(-1, 1) * 32_767).astype(np.int16)
        theirs = by_pocketsphinx(samples, said[item.id])
        if theirs is None:
            refused += 1
            continue
        seconds = min(ours[-1].end, len(samples) / 16_000)
        one, other = on_frames(ours, seconds), on_frames(theirs, seconds)
        either = (one >= 0) | (other >= 0)
        same, spoken = same + int((one == other)[either].sum()), spoken + int(either.sum())
        off += [mine.start - yours.start for mine, yours in zip(ours, theirs, strict=True)]
    ms = 1000 * np.array(off)
    lines = [
        "| clips | refused by PocketSphinx | phones | frames with the same phone | median distance of beginnings | "
        "within 20 ms | within 50 ms | ours later, median |",
        "|---" * 8 + "|",
        f"| {len(corpus)} | {refused} | {len(ms)} | {same / spoken:.3f} | {np.median(abs(ms)):.0f} ms | "
        f"{(abs(ms) <= 20).mean():.2f} | {(abs(ms) <= 50).mean():.2f} | {np.median(ms):.0f} ms |",
    ]
    report.publish("\n".join([report.head("pocketsphinx"), *lines, ""]), options.out)


if __name__ == "__main__":
    main()
