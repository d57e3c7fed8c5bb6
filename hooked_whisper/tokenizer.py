"""Text to Whisper's tokens and back: languages, tasks, timestamps, words.

A thin layer over transformers' `WhisperTokenizer`. Every id is looked up by the token's name, because the numbers move:
English-only vocabularies are one shorter, large-v3 has one language more.
"""

from __future__ import annotations

import re
import string
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import torch
from transformers.models.whisper.tokenization_whisper import LANGUAGES, TO_LANGUAGE_CODE, WhisperTokenizer

from hooked_whisper.errors import CheckpointError, LanguageError, TextError, did_you_mean
from hooked_whisper.special_tokens import N_TIMESTAMPS
from hooked_whisper.vocabulary import (
    SECONDS_PER_TIMESTAMP,
    SPECIAL,
    byte_characters,
    complete,
    read_tiktoken,
    read_tokenizer_json,
    wrap,
)

TASKS = ("transcribe", "translate")

# Languages written without spaces between words: their words are single characters, as in Whisper's own word timing.
UNSPACED_LANGUAGES = frozenset({"zh", "ja", "th", "lo", "my", "yue"})

# Characters that Whisper begins a transcript with without a space (code points, both ends included). Measured on
# whisper-base: a space comes first with probability below 0.3 in zh, ja and th, above 0.8 in all others tried but
# Lao, where it depends on the audio.
_UNSPACED_SCRIPTS = (
    (0x0E00, 0x0E7F),  # Thai
    (0x3000, 0x30FF),  # CJK punctuation, Hiragana, Katakana
    (0x31F0, 0x31FF),  # Katakana extensions
    (0x3400, 0x4DBF),  # Han
    (0x4E00, 0x9FFF),
    (0xF900, 0xFAFF),
    (0xFF01, 0xFFEF),  # full-width forms
    (0x20000, 0x323AF),
)

# Punctuation that belongs to the word after it, and to the word before it (the lists of Whisper's
# word timing, as transformers has them).
PREPENDED_PUNCTUATION = "\"'“¡¿([{-"
APPENDED_PUNCTUATION = "\"'.。,，!！?？:：”)]}、"

_GPT2_WORDS = 50_256  # entries of the English-only (GPT-2) vocabulary before its first special token
_LANGUAGE = re.compile(r"<\|([a-z]{2,3})\|>")

# Run-time checking of tokens is ours, because its message says more than a type checker's.
if TYPE_CHECKING:
    Tokens = (
        int | np.integer | Sequence[int] | Sequence[Sequence[int]] | Sequence[torch.Tensor] | np.ndarray | torch.Tensor
    )
else:
    Tokens = Any


class Tokenizer:
    """Whisper's tokenizer.

    Args:
        hf: transformers' tokenizer. Where it lacks the timestamp tokens (some copies leave them out), a completed copy
            takes its place; the one given is never changed.
        is_multilingual: whether the checkpoint is; None reads it from the vocabulary (English-only checkpoints have
            GPT-2's, or no language tokens at all).

    Attributes:
        hf: transformers' `WhisperTokenizer`, with timestamps.
        is_multilingual: whether prompts carry a language and a task.
        languages: code -> token id in the order of the vocabulary; empty for an English-only checkpoint.
        sot, eot: ids of <|startoftranscript|> and <|endoftext|>.
        no_timestamps, timestamp_begin: ids of <|notimestamps|> and <|0.00|>.
        transcribe, translate, sot_prev, no_speech: ids, or None where the vocabulary lacks them.

    Raises:
        CheckpointError: a tokenizer that is not Whisper's.
    """

    def __init__(self, hf: WhisperTokenizer, *, is_multilingual: bool | None = None) -> None:
        vocabulary = hf.get_vocab()
        for name in ("<|startoftranscript|>", "<|endoftext|>", "<|notimestamps|>"):
            if name not in vocabulary:
                raise CheckpointError(
                    f"This tokenizer of {len(vocabulary)} tokens has no {name}, so it is not Whisper's: "
                    "pass the tokenizer that belongs to the checkpoint."
                )
        self.sot: int = vocabulary["<|startoftranscript|>"]
        self.eot: int = vocabulary["<|endoftext|>"]
        self.no_timestamps: int = vocabulary["<|notimestamps|>"]
        self.timestamp_begin: int = self.no_timestamps + 1
        self.transcribe: int | None = vocabulary.get("<|transcribe|>")
        self.translate: int | None = vocabulary.get("<|translate|>")
        self.sot_prev: int | None = vocabulary.get("<|startofprev|>")
        # Older vocabularies call it <|nocaptions|>.
        self.no_speech: int | None = vocabulary.get("<|nospeech|>", vocabulary.get("<|nocaptions|>"))

        spoken = {match[1]: index for name, index in vocabulary.items() if (match := _LANGUAGE.fullmatch(name))}
        # English-only vocabularies hold language tokens that were never trained.
        self.is_multilingual: bool = (
            bool(spoken) and self.eot != _GPT2_WORDS if is_multilingual is None else is_multilingual
        )
        self.languages: dict[str, int] = (
            dict(sorted(spoken.items(), key=lambda item: item[1])) if self.is_multilingual else {}
        )
        self.hf: WhisperTokenizer = complete(hf, vocabulary)

    def __repr__(self) -> str:
        kind = f"{len(self.languages)} languages" if self.is_multilingual else "English only"
        return f"Tokenizer({self.d_vocab} tokens, {kind})"

    # --- where tokenizers come from ---------------------------------------------------------------------------------

    @classmethod
    def from_file(cls, path: str | Path, *, is_multilingual: bool | None = None) -> Tokenizer:
        """The tokenizer in a `tokenizer.json`.

        Raises:
            CheckpointError: a file that is missing, unreadable, or not a Whisper tokenizer.
        """
        return cls(wrap(read_tokenizer_json(Path(path))), is_multilingual=is_multilingual)

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        *,
        revision: str | None = None,
        local_files_only: bool = False,
        is_multilingual: bool | None = None,
    ) -> Tokenizer:
        """The tokenizer of a hub repository or of a local transformers folder.

        Raises:
            CheckpointError: none there, no network, or not a Whisper tokenizer.
        """
        refusal = (
            f"No Whisper tokenizer could be loaded from {str(name)!r}: expected a hub id such as 'openai/whisper-base' "
            "or a folder with tokenizer.json."
        )
        file = Path(name) / "tokenizer.json"
        if file.is_file():
            read_tokenizer_json(file)  # transformers' errors about malformed files are of any kind and say little
        try:
            hf = WhisperTokenizer.from_pretrained(
                str(name), revision=revision or "main", local_files_only=local_files_only
            )
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{refusal} {error}") from error
        if "<|startoftranscript|>" not in hf.get_vocab():  # transformers makes an empty one where it finds no files
            raise CheckpointError(f"{refusal} What is there, if anything, is no vocabulary of Whisper's.")
        return cls(hf, is_multilingual=is_multilingual)

    @classmethod
    def from_tiktoken(cls, path: str | Path, *, n_languages: int = 99) -> Tokenizer:
        """The tokenizer in one of OpenAI's `.tiktoken` assets (`multilingual.tiktoken`, `gpt2.tiktoken`).

        Args:
            path: a file with a base64 token and its rank on each line.
            n_languages: how many language tokens the checkpoint has: 99, or 100 for large-v3 and turbo. Files for
                English-only checkpoints have 99 too.

        Raises:
            CheckpointError: a file that is missing or malformed, or a number of languages that Whisper never had.
        """
        if not 1 <= n_languages <= len(LANGUAGES):
            raise CheckpointError(f"n_languages={n_languages} cannot be: Whisper has 1 to {len(LANGUAGES)}.")
        return cls(wrap(read_tiktoken(Path(path), list(LANGUAGES)[:n_languages])))

    # --- languages and prompts --------------------------------------------------------------------------------------

    @property
    def d_vocab(self) -> int:
        """Number of tokens, timestamps included."""
        return len(self._bytes)

    def language_code(self, language: str) -> str:
        """The code of a language given as code ("en"), name ("English") or token ("<|en|>").

        Raises:
            LanguageError: a language that this checkpoint does not know, with the nearest that it does.
        """
        plain = language.strip().lower()
        match = _LANGUAGE.fullmatch(plain)
        code = TO_LANGUAGE_CODE.get(plain, match[1] if match else plain)
        known = self.languages or {"en": 0}
        if code in known:
            return code
        if not self.is_multilingual:
            raise LanguageError(f"This checkpoint is English-only, got language {language!r}: leave language out.")
        if code in LANGUAGES:
            raise LanguageError(
                f"Language {language!r} ({code}) is not among the {len(known)} that this checkpoint knows: "
                "large-v3 and turbo know the most (yue included)."
            )
        names = [*known, *(name for name, c in TO_LANGUAGE_CODE.items() if c in known)]
        raise LanguageError(
            f"Unknown language {language!r}: expected a code such as 'en' or a name such as 'english'."
            f"{did_you_mean(plain, names)} `tokenizer.languages` lists all {len(known)}."
        )

    def prompt(self, language: str | None = None, task: str = "transcribe", timestamps: bool = False) -> list[int]:
        """The tokens that the decoder is fed before any text.

        <|startoftranscript|>, for multilingual checkpoints then <|language|> and <|task|>, and at the end
        <|notimestamps|> unless `timestamps`.

        Raises:
            LanguageError: an unknown language or task; a multilingual checkpoint without a language (detecting one
                takes audio, so that is the model's part); translation by an English-only checkpoint.
        """
        if task not in TASKS:
            near = did_you_mean(task, TASKS)
            raise LanguageError(f"Unknown task {task!r}: expected 'transcribe' or 'translate'.{near}")
        tokens = [self.sot]
        if self.is_multilingual:
            if language is None:
                raise LanguageError(
                    "A multilingual prompt needs a language: pass one, such as 'en', or let the model detect it "
                    "with model.detect_language(audio)."
                )
            chosen = self.transcribe if task == "transcribe" else self.translate
            if chosen is None:
                raise LanguageError(f"This checkpoint's vocabulary has no token for the task {task!r}.")
            tokens += [self.languages[self.language_code(language)], chosen]
        else:
            if language is not None:
                self.language_code(language)
            if task != "transcribe":
                raise LanguageError(f"This checkpoint is English-only and cannot {task}: use task='transcribe'.")
        return tokens if timestamps else [*tokens, self.no_timestamps]

    def timestamp(self, seconds: float) -> int:
        """The token of a time within the window, such as <|1.04|>, rounded to 20 ms.

        Raises:
            TextError: a time outside 0 to 30 s.
        """
        step = round(seconds / SECONDS_PER_TIMESTAMP) if np.isfinite(seconds) else -1
        if not 0 <= step < N_TIMESTAMPS:
            raise TextError(f"No timestamp token for {seconds} s: they run from 0 to 30 s within each window.")
        return self.timestamp_begin + step

    # --- text to tokens and back ------------------------------------------------------------------------------------

    @overload
    def to_tokens(self, text: str, *, prefix_space: bool = True) -> list[int]: ...
    @overload
    def to_tokens(self, text: list[str], *, prefix_space: bool = True) -> list[list[int]]: ...
    def to_tokens(self, text: str | list[str], *, prefix_space: bool = True) -> list[int] | list[list[int]]:
        """The tokens of a text, without prompt and without end.

        Args:
            text: one text or a list. Special tokens in it ("<|en|>", "<|1.04|>") become their ids.
            prefix_space: put a space before the text, as Whisper begins its transcripts, so that "Hello." gives the
                tokens that the model would write. Not put before a space, a special token, or the scripts that
                Whisper begins without one (Chinese, Japanese, Thai). False takes the text as it is.

        Returns:
            A list of ids; for a list of texts, a list of these.

        Raises:
            TextError: text that is no valid Unicode.
        """
        if isinstance(text, str):
            return self._encode(text, prefix_space)
        return [self._encode(one, prefix_space) for one in text]

    @overload
    def to_string(self, tokens: int | Sequence[int], *, skip_special_tokens: bool = False) -> str: ...
    @overload
    def to_string(self, tokens: Sequence[Sequence[int]], *, skip_special_tokens: bool = False) -> list[str]: ...
    @overload
    def to_string(self, tokens: Tokens, *, skip_special_tokens: bool = False) -> str | list[str]: ...
    def to_string(self, tokens: Tokens, *, skip_special_tokens: bool = False) -> str | list[str]:
        """The text of tokens, as the model wrote it (with its first space).

        Args:
            tokens: one id, a list of ids, a 1-D array or tensor; or a batch (list of lists, 2-D array or tensor).
            skip_special_tokens: leave out prompt, end and timestamps, which otherwise show as "<|en|>", "<|1.04|>".

        Returns:
            A string; for a batch, a list of strings. Bytes that form no whole character show as "�".

        Raises:
            TextError: ids outside the vocabulary, or something that is not tokens.
        """
        if _is_batch(tokens):
            return [self._decode(self._ids(row), skip_special_tokens) for row in tokens]  # type: ignore[union-attr]
        return self._decode(self._ids(tokens), skip_special_tokens)

    def to_str_tokens(self, tokens: Tokens | str) -> list[str]:
        """One printable string for each token, spaces kept.

        Many tokens of other scripts are parts of a character; their bytes are shown as "\\xd0".

        Args:
            tokens: ids of one sequence, or a text, which is tokenised first.

        Raises:
            TextError: ids outside the vocabulary, or more than one sequence.
        """
        ids = self._encode(tokens, True) if isinstance(tokens, str) else self._ids(tokens)
        return [self._bytes[index].decode("utf-8", "backslashreplace") for index in ids]

    def to_words(
        self, tokens: Tokens, language: str | None = None, *, merge_punctuation: bool = True
    ) -> list[tuple[str, list[int]]]:
        """Groups tokens into words, as Whisper's word timing does.

        Words are parted by spaces; in languages without them (zh, ja, th, lo, my, yue) every character is a word.
        Punctuation joins the word that it belongs to unless `merge_punctuation` is False. Special tokens part words and
        are in none.

        Returns:
            Pairs of the word, as written (with its space), and the positions of its tokens in `tokens`.

        Raises:
            TextError: ids outside the vocabulary, or more than one sequence.
            LanguageError: an unknown language.
        """
        ids = self._ids(tokens)
        unspaced = language is not None and self.language_code(language) in UNSPACED_LANGUAGES
        words: list[tuple[str, list[int]]] = []
        broken = True  # whether a special token, or the start, came just before
        for text, positions in self._characters(ids):
            if positions and ids[positions[0]] in self.special_ids:
                broken = True
                continue
            starts = unspaced or broken or text.startswith(" ") or text.strip() in string.punctuation
            if starts or not words:
                words.append((text, positions))
            else:
                words[-1] = (words[-1][0] + text, words[-1][1] + positions)
            broken = False
        return _merge_punctuation(words) if merge_punctuation else words

    @cached_property
    def special_ids(self) -> frozenset[int]:
        """Ids of all tokens written <|...|>: prompt, languages, end, timestamps."""
        return frozenset(self._special.values())

    @cached_property
    def _special(self) -> dict[str, int]:
        return {name: index for name, index in self.hf.get_added_vocab().items() if SPECIAL.fullmatch(name)}

    @cached_property
    def _bytes(self) -> dict[int, bytes]:
        byte_of = {character: byte for byte, character in enumerate(byte_characters())}
        added = set(self.hf.get_added_vocab())
        return {
            index: piece.encode() if piece in added else bytes(byte_of[character] for character in piece)
            for piece, index in self.hf.get_vocab().items()
        }

    def _encode(self, text: str, prefix_space: bool) -> list[int]:
        if prefix_space and text and not (text[0].isspace() or _is_unspaced(text[0]) or self._starts_special(text)):
            text = " " + text
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise TextError(f"Text {text!r} is no valid Unicode ({error.reason}): decode it properly first.") from error
        # The backend itself: transformers' call sets padding on it at each use, which threads would share.
        return self.hf.backend_tokenizer.encode(text, add_special_tokens=False).ids

    def _starts_special(self, text: str) -> bool:
        match = SPECIAL.match(text)
        return match is not None and match[0] in self._special

    def _decode(self, ids: list[int], skip_special_tokens: bool) -> str:
        kept = [i for i in ids if i not in self.special_ids] if skip_special_tokens else ids
        return b"".join(self._bytes[i] for i in kept).decode("utf-8", "replace")

    def _ids(self, tokens: Tokens) -> list[int]:
        """Checked ids of one sequence."""
        if isinstance(tokens, torch.Tensor | np.ndarray):
            values: Any = tokens.tolist()
        else:
            values = tokens
        if isinstance(values, int | np.integer):
            values = [values]
        if isinstance(values, str) or not isinstance(values, Sequence):
            raise TextError(f"Expected token ids (integers, or an array of them), got {type(tokens).__name__}.")
        for value in values:
            if isinstance(value, bool) or not isinstance(value, int | np.integer | torch.Tensor):
                raise TextError(
                    f"Expected one sequence of integer token ids, got an element {value!r} of type "
                    f"{type(value).__name__}. For text, use to_tokens."
                )
        ids = [int(value) for value in values]
        for index in ids:
            if index not in self._bytes:
                raise TextError(f"Token {index} is outside the vocabulary: ids run from 0 to {self.d_vocab - 1}.")
        return ids

    def _characters(self, ids: list[int]) -> list[tuple[str, list[int]]]:
        """The shortest runs of tokens that decode to whole characters, with their positions."""
        runs: list[tuple[str, list[int]]] = []
        pending, positions = b"", []
        for position, index in enumerate(ids):
            if index in self.special_ids and positions:  # bytes that never became a character
                runs.append((pending.decode("utf-8", "replace"), positions))
                pending, positions = b"", []
            pending, positions = pending + self._bytes[index], [*positions, position]
            try:
                text = pending.decode("utf-8")
            except UnicodeDecodeError as error:
                if error.reason == "unexpected end of data":
                    continue
                text = pending.decode("utf-8", "replace")
            runs.append((text, positions))
            pending, positions = b"", []
        if positions:
            runs.append((pending.decode("utf-8", "replace"), positions))
        return runs


def _is_batch(tokens: Any) -> bool:
    if isinstance(tokens, torch.Tensor | np.ndarray):
        return tokens.ndim == 2
    if isinstance(tokens, str) or not isinstance(tokens, Sequence) or not tokens:
        return False
    first = tokens[0]
    return first.ndim == 1 if isinstance(first, torch.Tensor | np.ndarray) else isinstance(first, Sequence)


def _is_unspaced(character: str) -> bool:
    return any(first <= ord(character) <= last for first, last in _UNSPACED_SCRIPTS)


def _merge_punctuation(words: list[tuple[str, list[int]]]) -> list[tuple[str, list[int]]]:
    """Joins opening marks to the word after them and closing marks to the word before."""
    merged: list[tuple[str, list[int]]] = []
    for text, positions in reversed(words):  # from the end, so that a run of opening marks joins as a whole
        if merged and text.startswith(" ") and text.strip() in PREPENDED_PUNCTUATION:
            merged[-1] = (text + merged[-1][0], positions + merged[-1][1])
        else:
            merged.append((text, positions))
    result: list[tuple[str, list[int]]] = []
    for text, positions in reversed(merged):
        if result and not result[-1][0].endswith(" ") and text in APPENDED_PUNCTUATION:
            result[-1] = (result[-1][0] + text, result[-1][1] + positions)
        else:
            result.append((text, positions))
    return result
