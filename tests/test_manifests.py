"""Reading manifests, and saying what is wrong with them."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from hooked_whisper.errors import CorpusError, MissingExtraError
from hooked_whisper.saes.manifests import read_manifest

ROWS = [{"path": "a.wav", "text": 'say "hi", twice'}, {"path": "b.wav", "text": None}]


def rows(path: Path) -> list[dict]:
    return [row for _, row in read_manifest(path)]


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_three_kinds_say_the_same(tmp_path: Path) -> None:
    json_lines = write(tmp_path / "m.jsonl", "\n".join(json.dumps(row) for row in ROWS) + "\n\n")
    csv = write(tmp_path / "m.csv", 'path,text\na.wav,"say ""hi"", twice"\nb.wav,\n')
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / "m.parquet")
    assert rows(json_lines) == rows(csv) == rows(tmp_path / "m.parquet") == ROWS


def test_a_byte_order_mark_is_no_part_of_a_name(tmp_path: Path) -> None:
    for name, text in (("m.jsonl", '\ufeff{"path": "a.wav"}\n'), ("m.csv", "\ufeffpath\na.wav\n")):
        assert rows(write(tmp_path / name, text)) == [{"path": "a.wav"}]


def test_lines_are_counted_as_an_editor_does(tmp_path: Path) -> None:
    path = write(tmp_path / "m.jsonl", '{"path": "a"}\n\n{"path": "b"}\n')
    assert [where for where, _ in read_manifest(path)] == [f"{path}, line 1", f"{path}, line 3"]
    path = write(tmp_path / "m.csv", 'path,text\na,"two\nlines"\nb,c\n')
    assert [where for where, _ in read_manifest(path)] == [f"{path}, line 3", f"{path}, line 4"]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("m.jsonl", '{"path": "a"}\n{"path": \n', r"m.jsonl, line 2 is no JSON: Expecting value at character"),
        ("m.jsonl", '["a"]\n', r"m.jsonl, line 1 is a list: expected an object"),
        ("m.csv", "path,text\na,b,c\n", r"m.csv, line 2 has more cells than the header's 2: texts with commas"),
        ("m.csv", "path,text\na,b\nc\n", r"m.csv, line 3 has fewer cells than the header's 2"),
        ("m.csv", 'path\n"a"b\n', r"m.csv, line 2 is no CSV"),
        ("m.parquet", "not parquet", r"m.parquet is no Parquet file, or a damaged one"),
        ("m.txt", "a", r"m.txt is no manifest: expected a name that ends in .jsonl, .csv, .parquet"),
    ],
)
def test_malformed_manifests(tmp_path: Path, name: str, text: str, message: str) -> None:
    with pytest.raises(CorpusError, match=message):
        rows(write(tmp_path / name, text))


def test_what_is_not_there_or_not_text(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"No manifest at .*none.jsonl \(looked from "):
        rows(tmp_path / "none.jsonl")
    (tmp_path / "m.jsonl").write_bytes(b'{"path": "\xff"}\n')
    with pytest.raises(CorpusError, match=r"m.jsonl is not UTF-8 text \(invalid start byte at byte 10\)"):
        rows(tmp_path / "m.jsonl")


def test_parquet_needs_its_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / "m.parquet")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'hooked-whisper\[train\]'"):
        rows(tmp_path / "m.parquet")
