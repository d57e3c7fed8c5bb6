"""Targets: units counted and taken out of real transcripts in several scripts, and the tokens that hold them."""

from __future__ import annotations

from typing import Any

import pytest

from hooked_whisper import AnalysisError, HookedWhisper
from hooked_whisper.analysis.steering_target import Target, character_errors


def test_letters(whisper_base: HookedWhisper) -> None:
    tokenizer: Any = whisper_base.tokenizer
    target = Target(inserted="ckq", deleted="p")
    text = "Please PICK a quick pin, l'équipe."
    assert target.count(text, [], "it", tokenizer) == (6, 4)  # c k q c k q; P P p p
    assert target.off_target(text, [], "it", tokenizer) == "lease i a ui in l éuie"
    kin, cain = (target.off_target(one, [], "it", tokenizer) for one in ("il kin", "il cain"))
    base = target.off_target("il pin", [], "it", tokenizer)
    assert (base, character_errors(base, kin), character_errors(base, cain)) == ("il in", (0, 5), (1, 5))
    assert Target(inserted="к", deleted="п").count("Пин-код, к", [], "ru", tokenizer) == (2, 1)


def test_words_and_tokens(whisper_base: HookedWhisper) -> None:
    tokenizer: Any = whisper_base.tokenizer
    words = Target(inserted=("two",), deleted=("ten",), unit="word")
    assert words.count("Press ten, then two. Two, often.", [], "es", tokenizer) == (2, 1)
    assert words.off_target("Press ten, then two.", [], "es", tokenizer) == "press then"
    ids = tokenizer.to_tokens("press two")
    tokens = Target(inserted=(ids[1],), unit="token")
    assert tokens.count("", [*ids, ids[1]], "en", tokenizer) == (2, 0)
    assert tokens.off_target("", ids, "en", tokenizer) == "press"


def test_vocabulary(whisper_base: HookedWhisper) -> None:
    tokenizer: Any = whisper_base.tokenizer
    inserted, deleted = Target(inserted="k", deleted="p").vocabulary(tokenizer, whisper_base.cfg.d_vocab)
    names = tokenizer.to_str_tokens(inserted.nonzero()[:, 0].tolist())
    assert len(names) > 1_000 and all("k" in name.lower() for name in names)
    assert inserted[tokenizer.to_tokens("keep")[0]] and deleted[tokenizer.to_tokens("keep")[0]]  # a token of both
    assert not inserted[tokenizer.to_tokens("pin")[0]] and not inserted[tokenizer.eot :].any()
    word, nothing = Target(inserted=("two",), unit="word").vocabulary(tokenizer, whisper_base.cfg.d_vocab)
    assert sorted(tokenizer.to_str_tokens(word.nonzero()[:, 0].tolist())) == [" Two", " two"] and not nothing.any()
    one, _ = Target(inserted=(7,), unit="token").vocabulary(tokenizer, whisper_base.cfg.d_vocab)
    assert one.nonzero()[:, 0].tolist() == [7]
    with pytest.raises(AnalysisError, match="Token 99999 is outside the vocabulary of 51865"):
        Target(inserted=(99_999,), unit="token").vocabulary(tokenizer, whisper_base.cfg.d_vocab)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"inserted": "kk", "unit": "phone"}, "Unknown unit 'phone'"),
        ({"inserted": ("ch",)}, "'ch' is no letter"),
        ({"inserted": "K"}, "'K' is no letter"),
        ({"inserted": "two", "unit": "word"}, "Words are given as a tuple"),
        ({"inserted": ("two of",), "unit": "word"}, "'two of' is no word"),
        ({"inserted": ("two",), "unit": "token"}, "'two' is no token"),
        ({}, "A target needs something"),
        ({"inserted": "kp", "deleted": "p"}, "'p' cannot be both inserted and deleted"),
    ],
)
def test_refusals(options: dict[str, Any], message: str) -> None:
    with pytest.raises(AnalysisError, match=message):
        Target(**options)


def test_errors_of_empty_texts() -> None:
    assert character_errors("", "abc") == (3, 0) and character_errors("abc", "") == (3, 3)
    assert Target(inserted="k", deleted="p").describe() == "letters inserted: k; deleted: p"
