"""From text to decoder input: prompts, padding, languages, loss, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from hooked_whisper import AudioError, HookedWhisper, LanguageError, TextError
from hooked_whisper.inputs import DecoderInput, _rows, check_task, language_codes, split_text, text_loss, with_prompts

CPU = torch.device("cpu")


def test_rows_are_padded_on_the_right_and_know_their_prompt(whisper_base: HookedWhisper) -> None:
    tokenizer = whisper_base.tokenizer
    assert tokenizer is not None
    prompts = [tokenizer.prompt("en"), tokenizer.prompt("fr")]
    fed = with_prompts([[11, 12, 13], [21]], prompts, tokenizer, 448, CPU)
    assert fed.tokens.tolist() == [[*prompts[0], 11, 12, 13], [*prompts[1], 21, tokenizer.eot, tokenizer.eot]]
    assert fed.token_mask.tolist() == [[True] * 7, [True] * 5 + [False] * 2]
    assert fed.prompt_lengths == [4, 4]


def test_tokens_with_a_prompt_of_their_own_are_taken_whole(whisper_base: HookedWhisper) -> None:
    tokenizer = whisper_base.tokenizer
    assert tokenizer is not None
    whole = [*tokenizer.prompt("it", "translate"), 5, 6]
    after = [tokenizer.sot_prev, 9, 9, *tokenizer.prompt("it")]
    fed = with_prompts([whole, after], [tokenizer.prompt("en")] * 2, tokenizer, 448, CPU)
    assert fed.tokens[0, : len(whole)].tolist() == whole
    assert fed.tokens[1].tolist() == after
    assert fed.prompt_lengths == [4, len(after)]


def test_split_text_takes_strings_tokens_and_one_for_all(whisper_base: HookedWhisper) -> None:
    tokenizer = whisper_base.tokenizer
    hello = tokenizer.to_tokens("hello")
    for given_as in ("hello", ["hello"], hello, [hello], torch.tensor(hello), torch.tensor([hello])):
        assert split_text(given_as, 1, tokenizer, 51865) == [hello]
    assert split_text("hello", 3, tokenizer, 51865) == [hello] * 3
    for nothing in ("", [], torch.tensor([], dtype=torch.long), torch.zeros(1, 0, dtype=torch.long)):
        assert split_text(nothing, 1, tokenizer, 51865) == [[]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (["a", "b"], "2 texts were given for 3 clips"),
        (torch.tensor([0.5]), "whole numbers"),
        (torch.zeros(1, 1, 1, dtype=torch.long), "whole numbers of shape"),
        ([51865], "Token 51865 is outside the vocabulary: expected 0 to 51864"),
        ([-1], "Token -1 is outside"),
    ],
)
def test_text_that_does_not_fit(whisper_base: HookedWhisper, text: object, message: str) -> None:
    with pytest.raises(TextError, match=message):
        split_text(text, 3, whisper_base.tokenizer, 51865)  # type: ignore[arg-type]


def test_text_of_another_kind() -> None:
    with pytest.raises(TextError, match="string, tokens, or a list of either, got float"):
        _rows(3.5, None)
    for rows, wrong in (([[1], None, [2]], "None"), ([1, "a"], "1"), ([[["a"]]], r"\[\['a'\]\]"), ([0.5, 1.0], "0.5")):
        with pytest.raises(TextError, match=f"tokens as whole numbers, or a list .*; got {wrong} among them"):
            _rows(rows, None)
    assert _rows(list(np.array([5, 6])), None) == [[5, 6]]


def test_over_the_context(whisper_base: HookedWhisper) -> None:
    with pytest.raises(TextError, match=r"449 tokens \(prompt included\) do not fit the decoder's context of 448"):
        with_prompts([[1] * 445], [whisper_base.tokenizer.prompt("en")], whisper_base.tokenizer, 448, CPU)


def test_without_a_tokenizer() -> None:
    with pytest.raises(TextError, match="needs a tokenizer"):
        split_text("hello", 1, None, 10)
    with pytest.raises(TextError, match="Nothing to feed"):
        with_prompts([[]], [[]], None, 10, CPU)
    with pytest.raises(LanguageError, match="needs a tokenizer"):
        language_codes("en", 1, None)
    assert language_codes(None, 2, None) == [None, None]


def test_languages_and_tasks(whisper_base: HookedWhisper) -> None:
    tokenizer = whisper_base.tokenizer
    assert language_codes("French", 2, tokenizer) == ["fr", "fr"]
    assert language_codes(["en", None], 2, tokenizer) == ["en", None]
    with pytest.raises(LanguageError, match="2 languages were given for 3 clips"):
        language_codes(["en", "fr"], 3, tokenizer)
    with pytest.raises(LanguageError, match="klingon"):
        language_codes("klingon", 1, tokenizer)
    with pytest.raises(LanguageError, match="Unknown task 'summarise': expected one of 'transcribe', 'translate'"):
        check_task("summarise")


@given(st.integers(1, 3), st.data())
def test_loss_is_the_mean_over_text_and_end_tokens(batch: int, data: st.DataObject) -> None:
    """Against a loop that says which token follows which."""
    eot, n_vocab = 7, 9
    prompts = [data.draw(st.integers(1, 3)) for _ in range(batch)]
    texts = [data.draw(st.lists(st.integers(0, 6), max_size=4)) for _ in range(batch)]
    rows = [[8] * n + text for n, text in zip(prompts, texts, strict=True)]
    longest = max(map(len, rows))
    tokens = torch.tensor([row + [eot] * (longest - len(row)) for row in rows])
    mask = torch.tensor([[i < len(row) for i in range(longest)] for row in rows])
    logits = torch.randn(batch, longest, n_vocab)
    fed = DecoderInput(tokens, mask, prompts)
    wanted = []
    for b, (n, text) in enumerate(zip(prompts, texts, strict=True)):
        for i, token in enumerate([*text, eot]):
            wanted.append(F.cross_entropy(logits[b, n - 1 + i], torch.tensor(token)))
    torch.testing.assert_close(text_loss(logits, fed, eot), torch.stack(wanted).mean())
    each = text_loss(logits, fed, eot, per_token=True)
    assert int((each != 0).sum()) == len(wanted)
    torch.testing.assert_close(each.sum(), torch.stack(wanted).sum())


@pytest.mark.parametrize(
    ("mel", "message"),
    [
        (torch.zeros(1, 80, 0), r"shape \(1, 80, 0\): expected .* at least one clip and one frame"),
        (torch.zeros(0, 80, 300), "at least one clip"),
        (torch.zeros(1, 80, 300, dtype=torch.complex64), "torch.complex64 .*: expected dense floats"),
        (torch.zeros(1, 80, 300, dtype=torch.long), "expected dense floats"),
        (torch.zeros(1, 80, 300).to_sparse(), "expected dense floats"),
        (torch.zeros(1, 80, 300, device="meta"), "on meta.*: expected dense floats"),
        (torch.full((1, 80, 300), torch.nan), "holds NaN or infinity"),
    ],
)
def test_a_spectrogram_that_no_model_can_read(whisper_base: HookedWhisper, mel: torch.Tensor, message: str) -> None:
    with pytest.raises(AudioError, match=message):
        whisper_base.encode(mel)
