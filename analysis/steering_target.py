"""What a steering experiment wants to see in transcripts, and what of them must stay as it was.

    Target(inserted="ckq", deleted="p")                       # letters: /p/ is to become /k/
    Target(inserted=("two",), deleted=("ten",), unit="word")
    Target(inserted=tuple(ids), unit="token")

Texts are normalised as for error rates (small letters, no punctuation), then units are counted. **Off the target** is
what is left of a normalised text when all units of the target, inserted and deleted alike, are taken out of it; its
character error rate is jiwer's, with the transcript before steering as reference. So "pin" that becomes "kin" has no
error off the target (both are "in"), and "cain" has one, though its c is wanted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from jaxtyping import Bool
from torch import Tensor

from hooked_whisper.errors import AnalysisError
from hooked_whisper.saes.error_rates import Errors, count_errors, text_normalizer

if TYPE_CHECKING:
    from hooked_whisper.tokenizer import Tokenizer

    Unit = Literal["letter", "word", "token"]
else:
    Unit = str  # checked here, with a message that says more than a type checker's


@dataclass(frozen=True)
class Target:
    """Units that steering is to put in and to take out; one of the two may be empty.

    Attributes:
        inserted, deleted: single letters (a string of them will do), whole words as they are after normalising, or
            numbers of tokens.
        unit: which of these.

    Raises:
        AnalysisError: nothing at all, a unit that is not one, or one on both sides.
    """

    inserted: Sequence[str] | Sequence[int] | str = ()
    deleted: Sequence[str] | Sequence[int] | str = ()
    unit: Unit = "letter"

    def __post_init__(self) -> None:
        if self.unit not in ("letter", "word", "token"):
            raise AnalysisError(f"Unknown unit {self.unit!r}: expected 'letter', 'word' or 'token'.")
        if self.unit == "word" and (isinstance(self.inserted, str) or isinstance(self.deleted, str)):
            raise AnalysisError("Words are given as a tuple of them, such as inserted=('two',).")
        for side in (self.inserted, self.deleted):
            for one in side:
                if not self._is_unit(one):
                    raise AnalysisError(f"{one!r} is no {self.unit}: letters are single, words without space.")
        if not self.inserted and not self.deleted:
            raise AnalysisError("A target needs something that is to be inserted, or deleted.")
        both = [one for one in self.inserted if one in tuple(self.deleted)]
        if both:
            raise AnalysisError(f"{both[0]!r} cannot be both inserted and deleted.")

    def _is_unit(self, one: object) -> bool:
        if self.unit == "token":
            return isinstance(one, int) and not isinstance(one, bool) and one >= 0
        if not isinstance(one, str) or one != one.lower() or not one or " " in one:
            return False
        return self.unit == "word" or len(one) == 1

    def describe(self) -> str:
        """In one line."""
        inserted, deleted = (", ".join(map(str, side)) or "none" for side in (self.inserted, self.deleted))
        return f"{self.unit}s inserted: {inserted}; deleted: {deleted}"

    def count(self, text: str, tokens: Sequence[int], language: str | None, tokenizer: Tokenizer) -> tuple[int, int]:
        """How many units of either side a transcript holds: (inserted, deleted)."""
        units = self._units(text, tokens, language, tokenizer)
        inserted, deleted = set(self.inserted), set(self.deleted)
        return sum(one in inserted for one in units), sum(one in deleted for one in units)

    def _units(
        self, text: str, tokens: Sequence[int], language: str | None, tokenizer: Tokenizer
    ) -> list[str] | list[int]:
        if self.unit == "token":
            return list(tokens)
        normal = text_normalizer(language, tokenizer)(text)
        return list(normal) if self.unit == "letter" else normal.split()

    def off_target(self, text: str, tokens: Sequence[int], language: str | None, tokenizer: Tokenizer) -> str:
        """The normalised text without the target's units."""
        wanted = {*self.inserted, *self.deleted}
        if self.unit == "token":
            rest = [token for token in tokens if token not in wanted and token < tokenizer.eot]
            return " ".join(text_normalizer(language, tokenizer)(str(tokenizer.to_string(rest))).split())
        units = [one for one in self._units(text, tokens, language, tokenizer) if one not in wanted]
        return " ".join((" " if self.unit == "word" else "").join(map(str, units)).split())

    def vocabulary(self, tokenizer: Tokenizer, d_vocab: int) -> tuple[Bool[Tensor, " vocab"], Bool[Tensor, " vocab"]]:
        """Tokens that hold a unit of either side: (inserted, deleted).

        For letters, every text token with one of them in it; for words, the first token of each, with a space before
        it, in small letters and with a capital; a token with units of both sides is of both.

        Raises:
            AnalysisError: a token that is not there.
        """
        masks = [torch.zeros(d_vocab, dtype=torch.bool) for _ in range(2)]
        pieces = tokenizer.to_str_tokens(list(range(tokenizer.eot))) if self.unit == "letter" else []
        for mask, side in zip(masks, (self.inserted, self.deleted), strict=True):
            for one in side:
                if isinstance(one, int):
                    if one >= d_vocab:
                        raise AnalysisError(f"Token {one} is outside the vocabulary of {d_vocab}.")
                    mask[one] = True
                elif self.unit == "word":
                    for written in (one, one.capitalize()):
                        mask[tokenizer.to_tokens(written)[0]] = True
            if self.unit == "letter":
                letters = set(map(str, side))
                mask[[i for i, piece in enumerate(pieces) if letters & set(piece.lower())]] = True
        return masks[0], masks[1]


def character_errors(reference: str, hypothesis: str) -> tuple[int, int]:
    """Levenshtein distance in characters of two texts as they are, and the reference's length."""
    found: Errors = count_errors(reference, hypothesis, _as_it_is)
    return found.character_errors, found.characters


def _as_it_is(text: str) -> str:
    return text
