"""Word and character error rates, as published for Whisper: texts normalised, errors pooled over clips.

English goes through Whisper's English normaliser, every other language through its basic one; where words are written
without spaces between them, each character counts as a word (Radford et al. 2022, arXiv:2212.04356, appendix C).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float
from transformers.models.whisper.english_normalizer import BasicTextNormalizer, EnglishTextNormalizer

from hooked_whisper.errors import MissingExtraError
from hooked_whisper.saes.estimates import N_RESAMPLES, Estimate, bootstrap, ratio

if TYPE_CHECKING:
    from hooked_whisper.tokenizer import Tokenizer

UNSPACED = ("zh", "yue", "ja", "th", "lo", "my")


def text_normalizer(language: str | None, tokenizer: Tokenizer | None = None) -> Callable[[str], str]:
    """The normaliser of a language code; None stands for an English-only checkpoint.

    American and British spellings are brought together where the checkpoint came with Whisper's list of them
    (`normalizer.json`), which `tokenizer` then holds.
    """
    if language in ("en", None):
        spellings = tokenizer.hf.english_spelling_normalizer if tokenizer is not None else None
        return EnglishTextNormalizer(spellings or {})
    return BasicTextNormalizer(split_letters=language in UNSPACED)


@dataclass(frozen=True)
class Errors:
    """Edits that turn a reference into a hypothesis, and the reference's length, in words and in characters."""

    word_errors: int
    words: int
    character_errors: int
    characters: int


def count_errors(reference: str, hypothesis: str, normalize: Callable[[str], str]) -> Errors:
    """Levenshtein distances of two texts after normalising both.

    Raises:
        MissingExtraError: jiwer is not installed.
    """
    try:
        import jiwer
    except ImportError as error:
        raise MissingExtraError(
            "Error rates need jiwer, which cannot be imported: pip install 'hooked-whisper[analysis]'."
        ) from error
    said, heard = normalize(reference).strip(), normalize(hypothesis).strip()
    words = jiwer.process_words(said, heard)
    if isinstance(normalize, BasicTextNormalizer) and normalize.split_letters:
        said, heard = said.replace(" ", ""), heard.replace(" ", "")  # the spaces are the normaliser's
    characters = jiwer.process_characters(said, heard)
    return Errors(
        word_errors=words.substitutions + words.deletions + words.insertions,
        words=words.hits + words.substitutions + words.deletions,
        character_errors=characters.substitutions + characters.deletions + characters.insertions,
        characters=characters.hits + characters.substitutions + characters.deletions,
    )


@dataclass(frozen=True)
class ErrorRates:
    """What splicing changes in transcripts, over a group of clips; rates are fractions, 0.01 is 1 %.

    Attributes:
        n_clips: transcribed twice, once plainly and once with the SAE spliced in.
        n_changed: clips whose transcripts differ after normalising.
        n_words: of the unhooked model's transcripts.
        wer_to_unhooked, cer_to_unhooked: of the spliced model's transcripts, with the unhooked model's as reference.
        n_reference_clips, n_reference_words: clips that have a reference text, and its words.
        wer_unhooked, wer_spliced, cer_unhooked, cer_spliced: against the reference text.
        wer_change, cer_change: spliced less unhooked, clip by clip paired; in fractions of reference words or
            characters.
    """

    n_clips: int
    n_changed: int
    n_words: int
    wer_to_unhooked: Estimate
    cer_to_unhooked: Estimate
    n_reference_clips: int
    n_reference_words: int
    wer_unhooked: Estimate
    wer_spliced: Estimate
    wer_change: Estimate
    cer_unhooked: Estimate
    cer_spliced: Estimate
    cer_change: Estimate


@dataclass(frozen=True)
class TranscriptChange:
    """One clip as it was heard, plainly and with the SAE spliced in."""

    clip: str
    language: str
    reference: str | None
    unhooked: str
    spliced: str
    word_errors: int  # of the spliced transcript, with the unhooked one as reference


@dataclass
class TranscriptErrors:
    """Fills up clip by clip; every figure of `ErrorRates` is a function of these counts."""

    to_unhooked: list[Errors] = field(default_factory=list)
    unhooked: list[Errors | None] = field(default_factory=list)
    spliced: list[Errors | None] = field(default_factory=list)
    texts: list[TranscriptChange] = field(default_factory=list)

    def add(
        self, unhooked: str, spliced: str, reference: str | None, *, clip: str, language: str | None,
        tokenizer: Tokenizer | None = None,
    ) -> None:  # fmt: skip
        """One clip's transcripts; `language` is Whisper's code."""
        normalize = text_normalizer(language, tokenizer)
        errors = count_errors(unhooked, spliced, normalize)
        self.to_unhooked.append(errors)
        self.unhooked.append(None if reference is None else count_errors(reference, unhooked, normalize))
        self.spliced.append(None if reference is None else count_errors(reference, spliced, normalize))
        self.texts.append(TranscriptChange(clip, language or "en", reference, unhooked, spliced, errors.word_errors))

    def result(
        self, clips: Sequence[int] | None = None, *, n_resamples: int = N_RESAMPLES, seed: int = 0
    ) -> ErrorRates:
        """Figures over some clips, all when None."""
        chosen = list(range(len(self.texts))) if clips is None else list(clips)

        def pooled(over: Float[np.ndarray, " clip"], under: Float[np.ndarray, " clip"]) -> Estimate:
            return bootstrap(ratio(over, under), len(over), n_resamples=n_resamples, seed=seed)

        changes = [self.to_unhooked[i] for i in chosen]
        plain = [errors for i in chosen if (errors := self.unhooked[i]) is not None]
        hooked = [errors for i in chosen if (errors := self.spliced[i]) is not None]
        words, letters = _array(plain, "words"), _array(plain, "characters")
        before, after = _array(plain, "word_errors"), _array(hooked, "word_errors")
        before_letters, after_letters = _array(plain, "character_errors"), _array(hooked, "character_errors")
        return ErrorRates(
            n_clips=len(chosen),
            n_changed=sum(errors.character_errors > 0 for errors in changes),
            n_words=sum(errors.words for errors in changes),
            wer_to_unhooked=pooled(_array(changes, "word_errors"), _array(changes, "words")),
            cer_to_unhooked=pooled(_array(changes, "character_errors"), _array(changes, "characters")),
            n_reference_clips=len(plain),
            n_reference_words=int(words.sum()),
            wer_unhooked=pooled(before, words),
            wer_spliced=pooled(after, words),
            wer_change=pooled(after - before, words),
            cer_unhooked=pooled(before_letters, letters),
            cer_spliced=pooled(after_letters, letters),
            cer_change=pooled(after_letters - before_letters, letters),
        )

    def worst(self, n: int) -> list[TranscriptChange]:
        """The clips that splicing changes most, those with most wrong words first."""
        changed = [text for text, errors in zip(self.texts, self.to_unhooked, strict=True) if errors.character_errors]
        return sorted(changed, key=lambda text: -text.word_errors)[:n]


def _array(errors: list[Errors], name: str) -> Float[np.ndarray, " clip"]:
    return np.array([getattr(error, name) for error in errors], dtype=np.float64)
