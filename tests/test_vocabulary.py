"""Vocabulary files: what a converter lost is put back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hooked_whisper.bundled import find_bundled
from hooked_whisper.vocabulary import read_tokenizer_json


def bundled_json() -> dict:
    files = find_bundled()
    assert files is not None
    return json.loads((files.folder / "tokenizer.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("as_text", [True, False])
@pytest.mark.parametrize("lost", [True, False])
def test_words_with_t_are_whole_where_the_first_merge_is_missing(lost: bool, as_text: bool, tmp_path: Path) -> None:
    data = bundled_json()
    merges = [merge.split(" ") if isinstance(merge, str) else merge for merge in data["model"]["merges"]]
    assert merges[0] == ["Ġ", "a"]  # the published file lacks "Ġ t"
    merges = merges if lost else [["Ġ", "t"], *merges]
    data["model"]["merges"] = [" ".join(merge) for merge in merges] if as_text else merges
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(data), encoding="utf-8")
    found = read_tokenizer_json(path).encode(" to take the", add_special_tokens=False).tokens
    assert found == ["Ġto", "Ġtake", "Ġthe"]
