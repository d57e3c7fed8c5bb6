"""The tokenizer against transformers', on Whisper's own vocabulary and on English-only and large-v3 ones made of it."""

from __future__ import annotations

import base64
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.models.whisper.tokenization_whisper import (
    WhisperTokenizer,
    _combine_tokens_into_words,  # pyright: ignore[reportPrivateUsage]
)

from hooked_whisper.bundled import find_bundled
from hooked_whisper.errors import CheckpointError, LanguageError, TextError
from hooked_whisper.tokenizer import Tokenizer
from hooked_whisper.vocabulary import byte_characters

TEXTS = [
    " Hello, world!",
    "no space first",
    " Désolé, je n'ai pas bien compris votre réponse.",
    " Извините, Ваш выбор не понят системой.",
    "我不知道。",
    " 안녕하세요 세계",
    "  two  spaces\n\tand\u3000more ",
    " it's we'll I'm 'quoted' \"double\" (parens) [x] {y} -dash- 3.14 ¿Qué? ¡Sí!",
    "🎵 ♪ 👩‍👩‍👧",
    "",
]


@pytest.fixture(scope="module")
def vocabulary_file() -> Path:
    """whisper-base's tokenizer.json, one of those without timestamp tokens."""
    files = find_bundled()
    assert files is not None, "the tests need the extra `demo`"
    return files.folder / "tokenizer.json"


@pytest.fixture(scope="module")
def tokenizer(vocabulary_file: Path) -> Tokenizer:
    return Tokenizer.from_file(vocabulary_file)


@pytest.fixture(scope="module")
def reference(vocabulary_file: Path, tmp_path_factory: pytest.TempPathFactory) -> WhisperTokenizer:
    """transformers' own, from the same file with the merge that it has lost."""
    data = json.loads(vocabulary_file.read_text(encoding="utf-8"))
    data["model"]["merges"].insert(0, "Ġ t")
    path = tmp_path_factory.mktemp("reference") / "tokenizer.json"
    path.write_text(json.dumps(data), encoding="utf-8")
    return WhisperTokenizer(tokenizer_file=str(path))


@pytest.fixture(scope="module")
def ranks(vocabulary_file: Path) -> list[bytes]:
    """The text tokens as bytes, in order; the last is empty, as in OpenAI's file."""
    vocabulary = json.loads(vocabulary_file.read_text(encoding="utf-8"))["model"]["vocab"]
    byte_of = {character: byte for byte, character in enumerate(byte_characters())}
    ordered = sorted(vocabulary, key=vocabulary.__getitem__)[:50_257]
    return [bytes(byte_of[character] for character in word) for word in ordered]


def write_ranks(path: Path, words: list[bytes]) -> Path:
    lines = (f"{base64.b64encode(word).decode() or '='} {rank}\n" for rank, word in enumerate(words))
    path.write_text("".join(lines), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def english(ranks: list[bytes], tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """An English-only tokenizer: one text token less, as GPT-2's vocabulary has."""
    return Tokenizer.from_tiktoken(write_ranks(tmp_path_factory.mktemp("en") / "gpt2.tiktoken", ranks[:50_256]))


@pytest.fixture(scope="module")
def large(ranks: list[bytes], tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """large-v3's: one language more."""
    path = write_ranks(tmp_path_factory.mktemp("v3") / "multilingual.tiktoken", ranks)
    return Tokenizer.from_tiktoken(path, n_languages=100)


# --- ids ------------------------------------------------------------------------------------------------------


def test_ids_of_whisper_base(tokenizer: Tokenizer) -> None:
    assert tokenizer.is_multilingual
    assert tokenizer.d_vocab == 51_865
    assert (tokenizer.eot, tokenizer.sot) == (50_257, 50_258)
    assert (tokenizer.translate, tokenizer.transcribe, tokenizer.sot_prev) == (50_358, 50_359, 50_361)
    assert (tokenizer.no_speech, tokenizer.no_timestamps, tokenizer.timestamp_begin) == (50_362, 50_363, 50_364)
    assert len(tokenizer.languages) == 99
    assert list(tokenizer.languages)[:3] == ["en", "zh", "de"]
    assert list(tokenizer.languages.values()) == list(range(50_259, 50_358))
    assert repr(tokenizer) == "Tokenizer(51865 tokens, 99 languages)"


def test_ids_of_an_english_only_vocabulary(english: Tokenizer) -> None:
    assert not english.is_multilingual
    assert english.languages == {}
    assert english.d_vocab == 51_864
    assert (english.eot, english.sot, english.no_timestamps, english.timestamp_begin) == (
        50_256,
        50_257,
        50_362,
        50_363,
    )
    assert repr(english) == "Tokenizer(51864 tokens, English only)"


def test_ids_of_large_v3(large: Tokenizer) -> None:
    assert large.d_vocab == 51_866
    assert large.languages["yue"] == 50_358
    assert (large.translate, large.transcribe, large.no_timestamps) == (50_359, 50_360, 50_364)
    assert large.to_string(large.timestamp(30.0)) == "<|30.00|>"


def test_is_multilingual_can_be_told(vocabulary_file: Path) -> None:
    told = Tokenizer.from_file(vocabulary_file, is_multilingual=False)
    assert told.languages == {}
    assert told.prompt() == [told.sot, told.no_timestamps]


# --- languages and prompts ------------------------------------------------------------------------------------


@pytest.mark.parametrize("language", ["fr", "French", "FRENCH", " french ", "<|fr|>"])
def test_languages_by_code_name_and_token(tokenizer: Tokenizer, language: str) -> None:
    assert tokenizer.language_code(language) == "fr"


def test_other_names_of_languages(tokenizer: Tokenizer) -> None:
    assert [tokenizer.language_code(name) for name in ("castilian", "mandarin", "Burmese")] == ["es", "zh", "my"]


def test_every_language_has_a_code_a_name_and_a_token(tokenizer: Tokenizer) -> None:
    for code, index in tokenizer.languages.items():
        assert tokenizer.language_code(code) == code
        assert tokenizer.to_string(index) == f"<|{code}|>"
        assert tokenizer.prompt(code)[1] == index


def test_prompts(tokenizer: Tokenizer, english: Tokenizer) -> None:
    def written(prompt: list[int]) -> str:
        return tokenizer.to_string(prompt)

    assert written(tokenizer.prompt("Spanish")) == "<|startoftranscript|><|es|><|transcribe|><|notimestamps|>"
    assert written(tokenizer.prompt("es", "translate")) == "<|startoftranscript|><|es|><|translate|><|notimestamps|>"
    assert written(tokenizer.prompt("es", timestamps=True)) == "<|startoftranscript|><|es|><|transcribe|>"
    assert english.to_string(english.prompt()) == "<|startoftranscript|><|notimestamps|>"
    assert english.prompt("English", timestamps=True) == [english.sot]


def test_unknown_languages(tokenizer: Tokenizer, english: Tokenizer) -> None:
    with pytest.raises(LanguageError, match=r"Unknown language 'germann'.*Did you mean 'german'.*lists all 99"):
        tokenizer.language_code("germann")
    with pytest.raises(LanguageError, match=r"Unknown language 'klingon'"):
        tokenizer.prompt("klingon")
    with pytest.raises(LanguageError, match=r"'Cantonese' \(yue\) is not among the 99 that this checkpoint knows"):
        tokenizer.prompt("Cantonese")
    with pytest.raises(LanguageError, match=r"English-only, got language 'fr': leave language out"):
        english.prompt("fr")
    with pytest.raises(LanguageError, match=r"A multilingual prompt needs a language.*model\.detect_language"):
        tokenizer.prompt()


def test_unknown_tasks(tokenizer: Tokenizer, english: Tokenizer) -> None:
    with pytest.raises(LanguageError, match=r"Unknown task 'transcibe': expected .*Did you mean 'transcribe'"):
        tokenizer.prompt("en", "transcibe")
    with pytest.raises(LanguageError, match=r"English-only and cannot translate: use task='transcribe'"):
        english.prompt(task="translate")


def test_timestamps(tokenizer: Tokenizer) -> None:
    assert tokenizer.timestamp(0) == tokenizer.timestamp_begin
    for seconds in (0.0, 0.02, 0.58, 1.0, 29.98, 30.0):
        assert tokenizer.to_string(tokenizer.timestamp(seconds)) == f"<|{seconds:.2f}|>"
    for seconds in (-0.02, 30.02, float("nan"), float("inf")):
        with pytest.raises(TextError, match="they run from 0 to 30 s"):
            tokenizer.timestamp(seconds)


# --- text and tokens ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", TEXTS)
def test_tokens_are_those_of_transformers(tokenizer: Tokenizer, reference: WhisperTokenizer, text: str) -> None:
    tokens = tokenizer.to_tokens(text, prefix_space=False)
    assert tokens == reference(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.to_string(tokens) == text


@settings(deadline=None, max_examples=300)
@given(text=st.text())
def test_any_text_survives(tokenizer: Tokenizer, reference: WhisperTokenizer, text: str) -> None:
    tokens = tokenizer.to_tokens(text, prefix_space=False)
    assert tokens == reference(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.to_string(tokens) == text


@settings(deadline=None, max_examples=300)
@given(tokens=st.lists(st.integers(0, 51_864), max_size=12))
def test_any_tokens_decode(tokenizer: Tokenizer, tokens: list[int]) -> None:
    """Also runs of bytes that are no characters; the library that transformers uses is the reference."""
    backend = tokenizer.hf.backend_tokenizer
    assert tokenizer.to_string(tokens) == backend.decode(tokens, skip_special_tokens=False)
    assert len(tokenizer.to_str_tokens(tokens)) == len(tokens)
    text_only = [token for token in tokens if token < tokenizer.eot]
    assert tokenizer.to_string(tokens, skip_special_tokens=True) == tokenizer.to_string(text_only)
    assert sorted(i for _, positions in tokenizer.to_words(tokens) for i in positions) == [
        i for i, token in enumerate(tokens) if token < tokenizer.eot
    ]


@pytest.mark.parametrize(
    ("text", "begins_with"),
    [
        ("Hello.", " Hello"),
        (" Hello.", " Hello"),
        ("Привет", " П"),
        ("'tis", " '"),
        ("안녕", " 안"),
        ("我不知道", "我"),
        ("「はい」", "「"),
        ("สวัสดี", "ส"),
        ("\n", "\n"),
        ("<|1.04|>Hello", "<|1.04|>"),
        ("<|unheard of|>", " <"),
    ],
)
def test_a_space_goes_before_the_text_where_whisper_writes_one(
    tokenizer: Tokenizer, text: str, begins_with: str
) -> None:
    assert tokenizer.to_string(tokenizer.to_tokens(text)).startswith(begins_with)
    assert tokenizer.to_string(tokenizer.to_tokens(text, prefix_space=False)) == text


def test_special_tokens_in_text_become_ids(tokenizer: Tokenizer) -> None:
    tokens = tokenizer.to_tokens("<|startoftranscript|><|en|><|transcribe|><|0.00|> Hi<|2.36|><|endoftext|>")
    expected = [*tokenizer.prompt("en", timestamps=True), tokenizer.timestamp(0), 2421, tokenizer.timestamp(2.36)]
    assert tokens == [*expected, tokenizer.eot]
    assert tokenizer.to_string(tokens, skip_special_tokens=True) == " Hi"
    assert tokenizer.special_ids == set(range(tokenizer.eot, 51_865))


def test_lists_arrays_and_tensors(tokenizer: Tokenizer) -> None:
    batch = tokenizer.to_tokens(["Hello", "Bonjour à tous", ""])
    assert batch == [tokenizer.to_tokens("Hello"), tokenizer.to_tokens("Bonjour à tous"), []]
    assert tokenizer.to_string(batch) == [" Hello", " Bonjour à tous", ""]
    tokens = batch[1]
    for same in (torch.tensor(tokens), np.array(tokens), tuple(tokens), list(torch.tensor(tokens))):
        assert tokenizer.to_string(cast("Any", same)) == " Bonjour à tous"
        assert tokenizer.to_str_tokens(cast("Any", same)) == tokenizer.to_str_tokens("Bonjour à tous")
    assert tokenizer.to_string(torch.tensor([tokens, tokens])) == [" Bonjour à tous"] * 2
    assert tokenizer.to_string([torch.tensor(tokens)]) == [" Bonjour à tous"]
    assert tokenizer.to_string(np.int64(tokens[0])) == tokenizer.to_string(tokens[0]) == " Bonjour"
    assert tokenizer.to_string(torch.tensor(tokens[0])) == " Bonjour"


def test_str_tokens_show_parts_of_characters_as_bytes(tokenizer: Tokenizer) -> None:
    assert tokenizer.to_str_tokens("Hello, ᚠ!") == [" Hello", ",", " \\xe1", "\\x9a", "\\xa0", "!"]
    assert tokenizer.to_str_tokens([tokenizer.sot, tokenizer.eot]) == ["<|startoftranscript|>", "<|endoftext|>"]


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ([51_865], r"Token 51865 is outside the vocabulary: ids run from 0 to 51864"),
        ([-1], r"Token -1 is outside the vocabulary"),
        (torch.tensor([0.5]), r"expected one sequence of integer token ids, got an element 0\.5 of type float"),
        ([True], r"got an element True of type bool"),
        ([5, "Hello"], r"got an element 'Hello' of type str.*use to_tokens"),
        ("Hello", r"Expected token ids .*, got str"),
        (None, r"Expected token ids .*, got NoneType"),
        ([[1, [2]]], r"got an element \[2\] of type list"),
        (torch.zeros(1, 1, 1, dtype=torch.long), r"got an element \[\[0\]\] of type list"),
    ],
)
def test_what_is_no_tokens(tokenizer: Tokenizer, tokens: Any, message: str) -> None:
    with pytest.raises(TextError, match=f"(?i){message}"):
        tokenizer.to_string(tokens)


def test_one_sequence_where_one_is_needed(tokenizer: Tokenizer) -> None:
    for call in (tokenizer.to_str_tokens, tokenizer.to_words):
        with pytest.raises(TextError, match="one sequence of integer token ids"):
            call([[1], [2]])


def test_text_that_is_no_unicode(tokenizer: Tokenizer) -> None:
    with pytest.raises(TextError, match=r"is no valid Unicode \(surrogates not allowed\)"):
        tokenizer.to_tokens("a\ud800")


# --- words ----------------------------------------------------------------------------------------------------


def test_words_by_spaces_with_their_punctuation(tokenizer: Tokenizer) -> None:
    tokens = tokenizer.to_tokens("He said: \"Très bien! (x), don't.")
    words = tokenizer.to_words(tokens)
    assert [word for word, _ in words] == [" He", " said:", ' "Très', " bien!", " (x),", " don't."]
    assert [i for _, positions in words for i in positions] == list(range(len(tokens)))
    for word, positions in words:
        assert tokenizer.to_string([tokens[i] for i in positions]) == word


def test_words_without_merged_punctuation(tokenizer: Tokenizer) -> None:
    words = tokenizer.to_words(tokenizer.to_tokens("Hi, (you!"), merge_punctuation=False)
    assert [word for word, _ in words] == [" Hi", ",", " (you", "!"]


@pytest.mark.parametrize(
    ("language", "text"), [("zh", "鼹鼠吃了电话系统。"), ("Japanese", "元気ですか、はい"), ("th", "สวัสดีครับ")]
)
def test_words_of_unspaced_languages_are_whole_characters(tokenizer: Tokenizer, language: str, text: str) -> None:
    words = tokenizer.to_words(tokenizer.to_tokens(text), language)
    assert "".join(word for word, _ in words) == text
    assert len(words) > 2
    assert all("�" not in word for word, _ in words)


def test_special_tokens_part_words_and_are_in_none(tokenizer: Tokenizer) -> None:
    tokens = tokenizer.to_tokens("<|0.00|> one two<|1.00|>three<|endoftext|>")
    assert tokenizer.to_words(tokens) == [(" one", [1]), (" two", [2]), ("three", [4])]


@pytest.mark.parametrize("text", [text for text in TEXTS if text])
def test_words_are_those_of_transformers(tokenizer: Tokenizer, reference: WhisperTokenizer, text: str) -> None:
    tokens = tokenizer.to_tokens(text)
    for language in ("english", "chinese"):
        words, _, indices = _combine_tokens_into_words(reference, tokens, language)
        assert tokenizer.to_words(tokens, language) == list(zip(words, indices, strict=True))


def test_unknown_language_of_words(tokenizer: Tokenizer) -> None:
    with pytest.raises(LanguageError, match="Unknown language"):
        tokenizer.to_words([1], "klingon")


# --- threads --------------------------------------------------------------------------------------------------


def test_threads_do_not_disturb_each_other(vocabulary_file: Path) -> None:
    shared = Tokenizer.from_file(vocabulary_file)
    texts = [f"{text} {number}" for number in range(40) for text in TEXTS]
    with ThreadPoolExecutor(8) as pool:
        tokens = list(pool.map(shared.to_tokens, texts))
        strings = list(pool.map(shared.to_string, tokens))
    assert tokens == [shared.to_tokens(text) for text in texts]
    assert strings == [shared.to_string(one) for one in tokens]


# --- where tokenizers come from -------------------------------------------------------------------------------


def test_a_given_tokenizer_is_completed_in_a_copy(reference: WhisperTokenizer) -> None:
    before = len(reference)
    ours = Tokenizer(reference)
    assert len(reference) == before == 50_364  # untouched
    assert len(ours.hf) == ours.d_vocab == 51_865
    assert Tokenizer(ours.hf).hf is ours.hf


def test_a_given_tokenizer_gets_its_lost_merge_back(vocabulary_file: Path, tokenizer: Tokenizer) -> None:
    given = WhisperTokenizer(tokenizer_file=str(vocabulary_file))
    assert given.tokenize(" two") == ["Ġ", "two"]
    assert Tokenizer(given).to_str_tokens("two") == tokenizer.to_str_tokens("two") == [" two"]
    assert given.tokenize(" two") == ["Ġ", "two"]


def test_a_folder_without_a_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"No Whisper tokenizer could be loaded.*no vocabulary of Whisper's"):
        Tokenizer.from_pretrained(tmp_path)


def test_transformers_reads_timestamps_with_it(tokenizer: Tokenizer) -> None:
    """Its long-form transcription relies on the special tokens being registered up to <|notimestamps|>."""
    tokens = tokenizer.to_tokens("<|0.00|> Hi<|2.36|>")
    assert tokenizer.hf.decode(tokens, decode_with_timestamps=True) == "<|0.00|> Hi<|2.36|>"
    decoded = cast("Any", tokenizer.hf.decode(tokens, output_offsets=True))
    assert decoded["offsets"] == [{"text": " Hi", "timestamp": (0.0, 2.36)}]
    assert tokenizer.hf.decode([tokenizer.sot, 2421, tokenizer.eot], skip_special_tokens=True) == " Hi"


def test_from_pretrained_reads_what_transformers_saved(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.hf.save_pretrained(tmp_path)
    again = Tokenizer.from_pretrained(tmp_path, local_files_only=True)
    assert again.to_tokens(TEXTS) == tokenizer.to_tokens(TEXTS)
    assert (again.languages, again.d_vocab, again.no_speech) == (
        tokenizer.languages,
        tokenizer.d_vocab,
        tokenizer.no_speech,
    )


def test_from_pretrained_reads_a_folder_with_tokenizer_json_alone(vocabulary_file: Path, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes(vocabulary_file.read_bytes())
    tokenizer = Tokenizer.from_pretrained(tmp_path)
    assert tokenizer.hf.decode(tokenizer.to_tokens("<|0.00|> Hi<|2.36|>"), decode_with_timestamps=True) == (
        "<|0.00|> Hi<|2.36|>"
    )


def test_tiktoken_files_give_the_same_tokenizer(tokenizer: Tokenizer, ranks: list[bytes], tmp_path: Path) -> None:
    ours = Tokenizer.from_tiktoken(write_ranks(tmp_path / "multilingual.tiktoken", ranks))
    assert ours.to_tokens(TEXTS) == tokenizer.to_tokens(TEXTS)
    mine, theirs = (json.loads(one.hf.backend_tokenizer.to_str())["model"] for one in (ours, tokenizer))
    assert mine["merges"] == theirs["merges"]
    # The vocabulary file of old calls <|nospeech|> <|nocaptions|>; the ids are the same.
    assert {**ours.hf.get_vocab(), "<|nospeech|>": 0} == {
        **{name.replace("nocaptions", "nospeech"): index for name, index in tokenizer.hf.get_vocab().items()},
        "<|nospeech|>": 0,
    }
    assert ours.no_speech == tokenizer.no_speech


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"found 0 tokens that are not this"),
        (b"IQ== 0\nIg== 1\n", r"all 256 single bytes among them; found 2 tokens"),
        (b"IQ== 0\nI*== 1\n", r"line 2: expected a base64 token and its rank, got b'I\*== 1'"),
        (b"IQ== 0\nIg==\n", r"line 2: expected a base64 token and its rank"),
        (b"IQ== zero\n", r"line 1: expected a base64 token and its rank"),
        (b"\xff\xfe\x00" * 100, r"line 1: expected a base64 token"),
    ],
)
def test_malformed_tiktoken_files(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.tiktoken"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        Tokenizer.from_tiktoken(path)


def test_tiktoken_files_with_holes(ranks: list[bytes], tmp_path: Path) -> None:
    bytes_alone = sorted(ranks[:256])
    with pytest.raises(CheckpointError, match=r"b'abc' of rank 256 cannot be built from tokens of lower rank"):
        Tokenizer.from_tiktoken(write_ranks(tmp_path / "hole.tiktoken", [*bytes_alone, b"abc"]))
    with pytest.raises(CheckpointError, match="expected different tokens ranked"):
        Tokenizer.from_tiktoken(write_ranks(tmp_path / "twice.tiktoken", [*bytes_alone, b"a"]))
    with pytest.raises(CheckpointError, match=r"n_languages=101 cannot be: Whisper has 1 to 100"):
        Tokenizer.from_tiktoken(tmp_path / "hole.tiktoken", n_languages=101)


def test_small_vocabularies_work_too(tmp_path: Path) -> None:
    """256 single bytes and nothing learned: enough to tokenise anything."""
    path = write_ranks(tmp_path / "bytes.tiktoken", [bytes([byte]) for byte in range(256)])
    small = Tokenizer.from_tiktoken(path, n_languages=2)
    assert small.d_vocab == 256 + 8 + 2 + 1_501
    assert list(small.languages) == ["en", "zh"]
    assert small.to_string(small.to_tokens("Désolé")) == " Désolé"
    assert small.to_words(small.to_tokens("né à")) == [(" né", [0, 1, 2, 3]), (" à", [4, 5, 6])]


@pytest.mark.parametrize(
    "content", [b"", b"{}", b"[1, 2]", b'{"model": {"type": "BPE"}}', b"\xff\xfe", b'{"version": "1.0"']
)
def test_malformed_tokenizer_files(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"tokenizer\.json"):
        Tokenizer.from_file(path)
    with pytest.raises(CheckpointError, match=r"tokenizer\.json"):
        Tokenizer.from_pretrained(tmp_path)


def test_missing_files(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"No tokenizer file at .*none\.json"):
        Tokenizer.from_file(tmp_path / "none.json")
    with pytest.raises(CheckpointError, match=r"No tokenizer file at .*none\.tiktoken"):
        Tokenizer.from_tiktoken(tmp_path / "none.tiktoken")
    with pytest.raises(CheckpointError, match=r"No Whisper tokenizer could be loaded from 'nobody/nothing'"):
        Tokenizer.from_pretrained("nobody/nothing", local_files_only=True)


def test_tokenizers_of_other_models() -> None:
    other = WhisperTokenizer(vocab={"a": 0}, merges=[])
    with pytest.raises(CheckpointError, match=r"has no <\|startoftranscript\|>, so it is not Whisper's"):
        Tokenizer(other)


def test_other_tokens_where_timestamps_belong(vocabulary_file: Path) -> None:
    odd = WhisperTokenizer(tokenizer_file=str(vocabulary_file))
    odd.add_tokens(["<|something|>"])
    with pytest.raises(CheckpointError, match=r"after it not the 1501 timestamps from <\|0\.00\|> to <\|30\.00\|>"):
        Tokenizer(odd)
