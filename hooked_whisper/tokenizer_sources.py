"""Finds the tokenizer that belongs to a checkpoint, wherever one is to be had."""

from __future__ import annotations

import importlib.util
import tempfile
from pathlib import Path

from transformers import WhisperTokenizer

from hooked_whisper import hub
from hooked_whisper.bundled import find_bundled
from hooked_whisper.conversion import RawCheckpoint
from hooked_whisper.errors import CheckpointError
from hooked_whisper.faster_whisper import VOCABULARIES, vocabulary_as_tiktoken
from hooked_whisper.special_tokens import LAYOUTS, VocabularyLayout
from hooked_whisper.tokenizer import Tokenizer

# A small hub repository that holds the tokenizer of each of Whisper's vocabularies.
_HUB_TOKENIZERS = {
    51864: "openai/whisper-tiny.en",
    51865: "openai/whisper-tiny",
    51866: "openai/whisper-large-v3",
}
BUNDLED_VOCABULARY = 51865


def find_tokenizer(
    raw: RawCheckpoint, given: Tokenizer | WhisperTokenizer | str | Path | None, *, local_files_only: bool
) -> tuple[Tokenizer | None, str]:
    """The tokenizer of a checkpoint, and where it is from.

    The one given; else what lies in the checkpoint's folder; else, for one of Whisper's three vocabularies, the
    asset of an installed openai-whisper, the bundled tokenizer, or the hub's, whichever is there first.

    Returns:
        The tokenizer, or None where none was found; a line for people that says which.

    Raises:
        CheckpointError: a tokenizer that cannot be read, or that belongs to another vocabulary.
    """
    tokenizer, origin = _given(given, local_files_only) if given is not None else _search(raw, local_files_only)
    layout = LAYOUTS.get(raw.config.d_vocab)
    if (
        tokenizer is not None
        and layout is not None
        and (tokenizer.eot, tokenizer.no_timestamps)
        != (
            layout.eot,
            layout.no_timestamps,
        )
    ):
        raise CheckpointError(
            f"The tokenizer ({origin}) has <|endoftext|> at {tokenizer.eot} and <|notimestamps|> at "
            f"{tokenizer.no_timestamps}; this checkpoint's vocabulary of {layout.d_vocab} has them at {layout.eot} and "
            f"{layout.no_timestamps}. Pass the tokenizer that belongs to it."
        )
    return tokenizer, origin


def _given(given: Tokenizer | WhisperTokenizer | str | Path, local_files_only: bool) -> tuple[Tokenizer, str]:
    if isinstance(given, Tokenizer):
        return given, "tokenizer as given"
    if not isinstance(given, (str, Path)):
        return Tokenizer(given), "tokenizer as given"
    path = Path(given).expanduser()
    if path.suffix == ".tiktoken":
        return Tokenizer.from_tiktoken(path), f"tokenizer {path}"
    if path.is_file() or path.suffix == ".json":
        return Tokenizer.from_file(path), f"tokenizer {path}"
    if not path.is_dir():
        path, _ = hub.download(str(given), local_files_only=local_files_only, tokenizer_only=True)
    tokenizer = _in_folder(path)
    if tokenizer is None:
        raise CheckpointError(f"{given} holds no tokenizer: expected tokenizer.json, or vocab.json and merges.txt.")
    return tokenizer, f"tokenizer {given}"


def _in_folder(folder: Path) -> Tokenizer | None:
    """The tokenizer that transformers saved in a folder, if any."""
    if (folder / "tokenizer.json").is_file():
        return Tokenizer.from_file(folder / "tokenizer.json")
    if (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        return Tokenizer.from_pretrained(folder, local_files_only=True)
    return None


def _search(raw: RawCheckpoint, local_files_only: bool) -> tuple[Tokenizer | None, str]:
    if raw.folder is not None:
        own = _in_folder(raw.folder)
        if own is not None:
            return own, "its own tokenizer"
        listed = vocabulary_as_tiktoken(raw.folder)
        if listed is not None:
            return _from_ranks(*listed), f"a tokenizer made of its {' or '.join(VOCABULARIES)}"
    layout = LAYOUTS.get(raw.config.d_vocab)
    if layout is None:
        return None, f"no tokenizer: its vocabulary of {raw.config.d_vocab} is none of Whisper's, pass tokenizer="
    asset = _openai_asset(layout)
    if asset is not None:
        return Tokenizer.from_tiktoken(asset, n_languages=layout.n_languages), "the tokenizer of openai-whisper"
    bundled = find_bundled() if layout.d_vocab == BUNDLED_VOCABULARY else None
    if bundled is not None:
        return Tokenizer.from_file(bundled.folder / "tokenizer.json"), "the bundled tokenizer"
    repository = _HUB_TOKENIZERS[layout.d_vocab]
    try:
        folder, _ = hub.download(repository, local_files_only=local_files_only, tokenizer_only=True)
        tokenizer = _in_folder(folder)
    except CheckpointError:
        tokenizer = None
    if tokenizer is None:
        return None, f"no tokenizer: none is beside it, and {repository} is out of reach; pass tokenizer= to use text"
    return tokenizer, f"the tokenizer of {repository}"


def _from_ranks(lines: bytes, n_languages: int) -> Tokenizer:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "vocabulary.tiktoken"
        path.write_bytes(lines)
        return Tokenizer.from_tiktoken(path, n_languages=n_languages)


def _openai_asset(layout: VocabularyLayout) -> Path | None:
    """The tokenizer file in an installed openai-whisper, found without running its code."""
    spec = importlib.util.find_spec("whisper")
    if spec is None or not spec.submodule_search_locations:
        return None
    name = "multilingual.tiktoken" if layout.is_multilingual else "gpt2.tiktoken"
    asset = Path(next(iter(spec.submodule_search_locations))) / "assets" / name
    return asset if asset.is_file() else None
