"""Words with their times, from the heads of Whisper's own cross-attention that follow the audio."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from tqdm import tqdm

from hooked_whisper.alignment import Word, align_words
from hooked_whisper.analysis.labels import Interval, Labels, plain_word
from hooked_whisper.audio import SAMPLE_RATE
from hooked_whisper.errors import AnalysisError
from hooked_whisper.model import HookedWhisper
from hooked_whisper.saes.corpus import Corpus

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
        progress: show a bar; None shows it where the error output is a terminal.

    Raises:
        AnalysisError: an unknown `transcripts`, or no clip with a text. ConfigError: no alignment heads.
    """
    if transcripts not in ("model", "corpus"):
        raise AnalysisError(f"transcripts={transcripts!r}: expected 'model' or 'corpus'.")
    items = [item for item in corpus if transcripts == "model" or (item.text or "").strip()]
    if not items:
        raise AnalysisError(f"{corpus.name} has no clip with a text: transcripts='model' needs none.")
    tiers: dict[str, dict[str, tuple[Interval, ...]]] = {}
    durations: dict[str, float] = {}
    bar = tqdm(range(0, len(items), batch_size), desc="words", disable=None if progress is None else not progress)
    for at in bar:
        group = [(item, corpus.load(item)) for item in items[at : at + batch_size]]
        loaded = [(item, audio) for item, audio in group if audio is not None]
        if not loaded:
            continue
        spoken = _timed(model, loaded, transcripts)
        for (item, audio), words in zip(loaded, spoken, strict=True):
            durations[item.id] = len(audio) / SAMPLE_RATE
            tiers[item.id] = {"word": said_in_order(words, durations[item.id])}
    return Labels(tiers, durations)


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
