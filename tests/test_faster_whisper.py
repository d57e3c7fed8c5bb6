"""faster-whisper's folders: configuration and vocabulary beside model.bin."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from checkpoint_files import (
    bundled_folder,
    random_whisper,
    write_ctranslate2,
)

from hooked_whisper.checkpoints import load_checkpoint
from hooked_whisper.errors import CheckpointError
from hooked_whisper.faster_whisper import vocabulary_as_tiktoken
from hooked_whisper.tokenizer import Tokenizer


@pytest.mark.parametrize("tokens", ["all", [1, -2], [1.5], {"a": 1}])
def test_suppressed_tokens_that_are_none_are_refused(tmp_path: Path, tokens: Any) -> None:
    write_ctranslate2(random_whisper(), tmp_path / "ct2", suppress_ids=tokens)
    with pytest.raises(CheckpointError, match=r"'suppress_ids' in .* must be a list of tokens"):
        load_checkpoint(tmp_path / "ct2")


def test_a_tokenizer_is_made_of_ctranslate2s_vocabulary(tmp_path: Path) -> None:
    """The vocabulary alone gives the tokens that tokenizer.json gives."""
    folder = write_ctranslate2(random_whisper(d_vocab=51865), tmp_path / "ct2")
    (folder / "vocabulary.txt").write_bytes((bundled_folder() / "vocabulary.txt").read_bytes())
    checkpoint = load_checkpoint(folder)
    assert "a tokenizer made of its vocabulary" in checkpoint.source
    reference = Tokenizer.from_file(bundled_folder() / "tokenizer.json")
    assert checkpoint.tokenizer is not None
    for text in ("Sono spiacente, ma non so chi.", " it's 3.14% of naïve ☃ 漢字\n\tdone", "<|en|> hello", "  spaces  "):
        assert checkpoint.tokenizer.to_tokens(text) == reference.to_tokens(text)
    assert checkpoint.tokenizer.languages == reference.languages
    # The later form of the same list.
    tokens = (folder / "vocabulary.txt").read_text().removesuffix("\n").split("\n")
    (folder / "vocabulary.json").write_text(json.dumps(tokens))
    as_text = vocabulary_as_tiktoken(folder)
    (folder / "vocabulary.txt").unlink()
    assert vocabulary_as_tiktoken(folder) == as_text


def test_vocabularies_that_are_not_whispers_give_no_tokenizer(tmp_path: Path) -> None:
    assert vocabulary_as_tiktoken(tmp_path) is None
    (tmp_path / "vocabulary.json").write_text(json.dumps(["a", "b"]))
    assert vocabulary_as_tiktoken(tmp_path) is None
    (tmp_path / "vocabulary.json").write_text(json.dumps([7] * 51865))
    assert vocabulary_as_tiktoken(tmp_path) is None
    (tmp_path / "vocabulary.json").write_text("[")
    with pytest.raises(CheckpointError, match="is not a readable vocabulary"):
        vocabulary_as_tiktoken(tmp_path)
