"""Words with their times, from the heads of Whisper's own cross-attention that follow the audio."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tqdm import tqdm

from hooked_whisper.alignment import Word, align_words
from hooked_whisper.analysis.labels import Interval, Labels, plain_word
from hooked_whisper.analysis.sweep_log import SweepLog
from hooked_whisper.audio import SAMPLE_RATE
from hooked_whisper.errors import AnalysisError
from hooked_whisper.model import HookedWhisper
from hooked_whisper.saes.corpus import Corpus
from hooked_whisper.saes.corpus_item import CorpusItem
from hooked_whisper.saes.fingerprints import weights_fingerprint

if TYPE_CHECKING:
    Transcripts = Literal["model", "corpus"]
else:
    Transcripts = str  # checked here, with a message that says more than a type checker's


def word_labels(
    model: HookedWhisper,
    corpus: Corpus,
    *,
    transcripts: Transcripts = "model",
    batch_size: int = 8,
    out: str | os.PathLike[str] | None = None,
    progress: bool | None = None,
) -> Labels:
    """A tier "word", with times from the cross-attention heads that follow the audio (`hooked_whisper.alignment`).

    Words are lower case, without punctuation. The method is Whisper's own word timing: good to about 0.1 s, and it can
    stretch a word over a pause.

    Args:
        model: with alignment heads.
        corpus: clips, of any length for the model's transcripts, of at most 30 s for the corpus's.
        transcripts: "model" times what the model itself hears; "corpus" feeds the decoder each clip's own text, which
            is forced alignment. Clips without text are left out then.
        batch_size: clips that are decoded together.
        out: a file that keeps the words of each clip as they come: a run that was broken off goes on from there, and
            another one, of more or fewer of the clips, does not listen to them again. Only clips that are files are
            kept.
        progress: show a bar; None shows it where the error output is a terminal.

    Raises:
        AnalysisError: an unknown `transcripts`, no clip with a text, or a file `out` of another model or of something
            else. ConfigError: no alignment heads.
    """
    if transcripts not in ("model", "corpus"):
        raise AnalysisError(f"transcripts={transcripts!r}: expected 'model' or 'corpus'.")
    items = [item for item in corpus if transcripts == "model" or (item.text or "").strip()]
    if not items:
        raise AnalysisError(f"{corpus.name} has no clip with a text: transcripts='model' needs none.")
    log = None if out is None else WordLog(Path(out), _about(model, transcripts))
    found = {} if log is None else log.read_words(items)
    todo = [item for item in items if item.id not in found]
    bar = tqdm(range(0, len(todo), batch_size), desc="words", disable=None if progress is None else not progress)
    for at in bar:
        group = [(item, corpus.load(item)) for item in todo[at : at + batch_size]]
        loaded = [(item, audio) for item, audio in group if audio is not None]
        if not loaded:
            continue
        for (item, audio), words in zip(loaded, _timed(model, loaded, transcripts), strict=True):
            seconds = len(audio) / SAMPLE_RATE
            found[item.id] = seconds, said_in_order(words, seconds)
            if log is not None:
                log.add_words(item, *found[item.id])
    there = {item.id: found[item.id] for item in items if item.id in found}
    return Labels(
        {name: {"word": words} for name, (_, words) in there.items()},
        {name: seconds for name, (seconds, _) in there.items()},
    )


def _about(model: HookedWhisper, transcripts: str) -> dict[str, str]:
    # What it hears depends on the SAEs that are attached, too.
    saes = [f"{hook} {weights_fingerprint(sae)}" for hook, sae in model.acts_to_saes.items()]
    return {"what": f"words of {transcripts}", "fingerprint": " ".join([weights_fingerprint(model), *saes])}


class WordLog(SweepLog):
    """The words of clips on disk, a line each; see `SweepLog`."""

    def read_words(self, items: Sequence[CorpusItem]) -> dict[str, tuple[float, tuple[Interval, ...]]]:
        """Seconds and words of those clips that it has, with the same file, language and text.

        Raises:
            AnalysisError: a line that nothing here has written.
        """
        wanted = {item.id: of for item in items if (of := _identity(item)) is not None}
        lines = self._path.read_text(encoding="utf-8").splitlines()
        rows = [self._words(line, number) for number, line in enumerate(lines[1:], start=2)]
        return {name: words for name, of, words in rows if name in wanted and wanted[name] == of}

    def _words(self, line: str, number: int) -> tuple[str, object, tuple[float, tuple[Interval, ...]]]:
        try:
            row = json.loads(line)
            words = tuple(Interval(float(start), float(end), str(value)) for start, end, value in row["words"])
            return str(row["clip"]), row["of"], (float(row["seconds"]), words)
        except (ValueError, KeyError, TypeError) as error:
            raise AnalysisError(
                f"line {number} of {self._path} is damaged: delete it, and its clip is heard again."
            ) from error

    def add_words(self, item: CorpusItem, seconds: float, words: Sequence[Interval]) -> None:
        """Writes the words of a clip, if it is a file: nothing else could be told from another of its name."""
        of = _identity(item)
        if of is None:
            return
        rows = [[one.start, one.end, one.value] for one in words]
        self._write({"clip": item.id, "of": of, "seconds": seconds, "words": rows})


def _identity(item: CorpusItem) -> list[Any] | None:
    """What a clip must still be if its words are to be believed; None where it is no file."""
    if not isinstance(item.audio, str | os.PathLike) or not Path(item.audio).is_file():
        return None
    size = Path(item.audio).stat().st_size
    return [str(item.audio), size, item.offset, item.duration, item.language, item.text]


def _timed(model: HookedWhisper, clips: list[tuple[Any, Any]], transcripts: str) -> list[list[Word]]:
    """Words of each clip, with times."""
    audio, languages = [audio for _, audio in clips], [item.language for item, _ in clips]
    if transcripts == "model":
        found = model.transcribe(audio, language=languages, word_timestamps=True, batch_size=len(audio))
        return [one.words or [] for one in (found if isinstance(found, list) else [found])]
    layers = sorted({layer for layer, _ in model.cfg.alignment_heads or ()})
    names = [f"decoder.blocks.{layer}.cross_attn.hook_pattern" for layer in layers]
    texts = [" " + item.text.strip() for item, _ in clips]
    _, cache = model.run_with_cache(audio, texts, language=languages, names_filter=[*names, "hook_logits"])
    return [align_words(model, cache, clip) for clip in range(len(clips))]


def said_in_order(words: Sequence[Word], seconds: float) -> tuple[Interval, ...]:
    """Words that have letters and last some time, in the order in which they are said.

    Ends are held to the clip's. Where a long clip goes on in its next window, and where times are rounded, a word can
    begin before the last one ends: then that one ends there.
    """
    found: list[Interval] = []
    for word in words:
        start, end, value = word.start, min(word.end, seconds), plain_word(word.text)
        if not value:
            continue
        if found and start < found[-1].end:
            before = found[-1]
            if start > before.start:
                found[-1] = Interval(before.start, start, before.value)
            else:
                start = before.end
        if end > start:
            found.append(Interval(start, end, value))
    return tuple(found)
