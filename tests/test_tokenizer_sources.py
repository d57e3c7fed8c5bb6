"""Each checkpoint finds the tokenizer that belongs to it, or says that there is none."""

from __future__ import annotations

from pathlib import Path

import pytest
from checkpoint_files import (
    bundled_folder,
    random_whisper,
)

from hooked_whisper.checkpoints import load_checkpoint
from hooked_whisper.errors import CheckpointError
from hooked_whisper.faster_whisper import vocabulary_as_tiktoken
from hooked_whisper.tokenizer import Tokenizer


def test_where_tokenizers_come_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = random_whisper(d_vocab=51865)
    assert load_checkpoint(model).source.endswith("; the bundled tokenizer")
    file = bundled_folder() / "tokenizer.json"
    for given_tokenizer in (str(file), Tokenizer.from_file(file).hf):
        checkpoint = load_checkpoint(model, tokenizer=given_tokenizer)
        assert checkpoint.tokenizer is not None
        assert checkpoint.tokenizer.sot == 50258
        assert "; tokenizer" in checkpoint.source
    model.save_pretrained(tmp_path / "mine")
    Tokenizer.from_file(file).hf.save_pretrained(tmp_path / "mine")
    assert load_checkpoint(tmp_path / "mine").source.endswith("; its own tokenizer")
    # An installed openai-whisper: its tokenizer file is read, its code is not run.
    assets = tmp_path / "site" / "whisper" / "assets"
    assets.mkdir(parents=True)
    (assets.parent / "__init__.py").write_text("raise RuntimeError('code was run')")
    listed = vocabulary_as_tiktoken(bundled_folder())
    assert listed is not None
    (assets / "multilingual.tiktoken").write_bytes(listed[0])
    monkeypatch.syspath_prepend(tmp_path / "site")
    checkpoint = load_checkpoint(model)
    assert checkpoint.source.endswith("; the tokenizer of openai-whisper")
    assert checkpoint.tokenizer is not None
    assert checkpoint.tokenizer.sot_prev == 50361


def test_the_tokenizer_of_another_vocabulary_is_refused() -> None:
    with pytest.raises(CheckpointError, match=r"has <.endoftext.> at 50257 and <.notimestamps.> at 50363; this"):
        load_checkpoint(random_whisper(d_vocab=51866), tokenizer=bundled_folder() / "tokenizer.json")
