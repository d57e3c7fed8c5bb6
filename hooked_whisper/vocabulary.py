"""Files that hold Whisper's vocabulary, `tokenizer.json` and OpenAI's `.tiktoken`, made into a tokenizer."""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers.models.whisper.tokenization_whisper import WhisperTokenizer

from hooked_whisper.errors import CheckpointError
from hooked_whisper.special_tokens import N_TIMESTAMPS

SECONDS_PER_TIMESTAMP = 0.02
SPECIAL = re.compile(r"<\|[^|]*\|>")
FIRST_MERGE = "Ġt"  # GPT-2's, and so Whisper's, most frequent pair: a space and a "t"


def timestamp_names() -> list[str]:
    """<|0.00|>, <|0.02|>, ... <|30.00|>."""
    return [f"<|{step * SECONDS_PER_TIMESTAMP:.2f}|>" for step in range(N_TIMESTAMPS)]


def wrap(backend: Tokenizer) -> WhisperTokenizer:
    """transformers' tokenizer around a backend, with timestamps where there are none and its specials registered."""
    added = dict(sorted(backend.get_added_tokens_decoder().items()))
    names = {token.content for token in added.values()}
    if "<|notimestamps|>" in names and "<|0.00|>" not in names:
        # Not special, as in the hub's own files: transformers shows timestamps where it hides special tokens.
        backend.add_tokens([AddedToken(name, normalized=False, special=False) for name in timestamp_names()])
    special = [token.content for token in added.values() if token.special and SPECIAL.fullmatch(token.content)]
    # transformers takes the last special token for <|notimestamps|> when it looks for timestamps.
    special.sort(key=lambda name: name == "<|notimestamps|>")
    return WhisperTokenizer(tokenizer_object=backend, extra_special_tokens=special)


def complete(hf: WhisperTokenizer, vocabulary: Mapping[str, int]) -> WhisperTokenizer:
    """`hf` itself where transformers can read timestamps with it and no merge is lost, otherwise a copy that is whole.

    Raises:
        CheckpointError: other tokens where the timestamps belong.
    """
    begin = vocabulary["<|notimestamps|>"] + 1
    # transformers takes the token after its last special one for <|0.00|>.
    timestamps = vocabulary.get("<|0.00|>") == begin == hf.all_special_ids[-1] + 1
    pieces = hf.backend_tokenizer.encode(" t", add_special_tokens=False).tokens
    if timestamps and (pieces == [FIRST_MERGE] or FIRST_MERGE not in vocabulary):
        return hf
    whole = wrap(Tokenizer.from_str(_with_first_merge(hf.backend_tokenizer.to_str())))
    whole.english_spelling_normalizer = hf.english_spelling_normalizer
    names = timestamp_names()
    if whole.convert_tokens_to_ids(names) != list(range(begin, begin + N_TIMESTAMPS)):
        raise CheckpointError(
            f"This tokenizer of {len(vocabulary)} tokens has <|notimestamps|> at {begin - 1}, and after it not the "
            f"{N_TIMESTAMPS} timestamps from {names[0]} to {names[-1]}, nor nothing. Pass the tokenizer that belongs "
            "to the checkpoint."
        )
    return whole


def byte_characters() -> list[str]:
    """The character by which byte-level BPE writes each byte: itself where printable, else one from U+0100 on."""
    printable = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    others = iter(range(256, 512))
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]


def read_tokenizer_json(path: Path) -> Tokenizer:
    """The tokenizer in a `tokenizer.json`, with its first merge where a converter has lost it.

    Raises:
        CheckpointError: a file that is missing or malformed.
    """
    if not path.is_file():
        raise CheckpointError(f"No tokenizer file at {path}: expected the checkpoint's tokenizer.json.")
    try:
        return Tokenizer.from_str(_with_first_merge(path.read_text(encoding="utf-8")))
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path} is no text file: expected the checkpoint's tokenizer.json.") from error
    except Exception as error:
        if type(error) is not Exception:  # tokenizers raises the bare class for a malformed file, and only for that
            raise
        raise CheckpointError(f"{path} is no tokenizer.json that the tokenizers library can read: {error}.") from error


def _with_first_merge(text: str) -> str:
    """A `tokenizer.json` whose merges begin with the one that makes "Ġt", if that token is known and nothing makes it.

    `merges.txt` begins with a comment; converters that skip the first line of a file without one lose this merge, and
    split every word that begins with "t" (faster-whisper's copies of some sizes are like that).
    """
    try:
        data = json.loads(text)
        merges = data["model"]["merges"]
        made = {merge.replace(" ", "") if isinstance(merge, str) else "".join(merge) for merge in merges}
        if FIRST_MERGE in made or FIRST_MERGE not in data["model"]["vocab"]:
            return text
    except (json.JSONDecodeError, KeyError, TypeError):
        return text  # the tokenizers library says what is wrong with it
    merges.insert(0, "Ġ t" if merges and isinstance(merges[0], str) else ["Ġ", "t"])
    return json.dumps(data, ensure_ascii=False)


def read_tiktoken(path: Path, languages: list[str]) -> Tokenizer:
    """The tokenizer in one of OpenAI's `.tiktoken` files, with the special tokens that openai/whisper puts after it.

    Raises:
        CheckpointError: a file that is missing or malformed.
    """
    characters = byte_characters()
    words = _ranked_words(path)
    spelled = ["".join(characters[byte] for byte in word) for word in words]
    merges = [
        ("".join(characters[b] for b in left), "".join(characters[b] for b in right)) for left, right in _merges(words)
    ]
    backend = Tokenizer(models.BPE(vocab={word: rank for rank, word in enumerate(spelled)}, merges=merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    names = ["endoftext", "startoftranscript", *languages, "translate", "transcribe", "startoflm", "startofprev"]
    names += ["nospeech", "notimestamps"]
    backend.add_special_tokens([AddedToken(f"<|{name}|>", normalized=False, special=True) for name in names])
    return backend


def _ranked_words(path: Path) -> list[bytes]:
    """The tokens of a `.tiktoken` file in the order of their ranks."""
    if not path.is_file():
        raise CheckpointError(f"No tokenizer file at {path}: expected OpenAI's multilingual.tiktoken or gpt2.tiktoken.")
    ranked: dict[int, bytes] = {}
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        if not line.strip():
            continue
        try:
            word, rank = line.split()
            # The multilingual file ends in an empty token, written "=".
            ranked[int(rank)] = b"" if word == b"=" else base64.b64decode(word, validate=True)
        except (ValueError, binascii.Error) as error:
            raise CheckpointError(
                f"{path}, line {number}: expected a base64 token and its rank, got {line[:40]!r}."
            ) from error
    words = [ranked[rank] for rank in sorted(ranked)]
    bytes_alone = {bytes([byte]) for byte in range(256)}
    if sorted(ranked) != list(range(len(words))) or len(set(words)) != len(words) or not bytes_alone <= set(words):
        raise CheckpointError(
            f"{path}: expected different tokens ranked 0, 1, 2, ..., all 256 single bytes among them; found "
            f"{len(words)} tokens that are not this. It may be cut off: fetch it again."
        )
    return words


def _merges(words: list[bytes]) -> Iterator[tuple[bytes, bytes]]:
    """The merges that a ranked vocabulary implies, in order.

    A token of rank r is made by one last merge from what the merges below r leave of it: two parts.
    """
    ranks = {word: rank for rank, word in enumerate(words)}
    for word in words:
        if len(word) < 2:
            continue
        parts = [bytes([byte]) for byte in word]
        while len(parts) > 2:
            rank, at = min(
                (ranks.get(left + right, len(words)), at) for at, (left, right) in enumerate(pairwise(parts))
            )
            if rank >= ranks[word]:
                raise CheckpointError(
                    f"Token {word!r} of rank {ranks[word]} cannot be built from tokens of lower rank."
                )
            parts[at : at + 2] = [parts[at] + parts[at + 1]]
        yield parts[0], parts[1]
