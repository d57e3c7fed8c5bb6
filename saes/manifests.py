"""Tables that list audio files: JSON lines, CSV, Parquet. They are data: reading one runs no code."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hooked_whisper.errors import CorpusError
from hooked_whisper.saes.arrow import import_pyarrow

SUFFIXES = (".jsonl", ".csv", ".parquet")


def read_manifest(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The rows of a manifest, each with what to call it in messages.

    Raises:
        CorpusError: a file that is missing, unreadable, of another kind, or malformed; with the line.
        MissingExtraError: Parquet without pyarrow.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise CorpusError(f"{path} is no manifest: expected a name that ends in {', '.join(SUFFIXES)}.")
    if not path.is_file():
        raise CorpusError(f"No manifest at {path} (looked from {Path.cwd()}).")
    readers = {".jsonl": _read_json_lines, ".csv": _read_csv, ".parquet": _read_parquet}
    try:
        yield from readers[path.suffix.lower()](path)
    except OSError as error:
        raise CorpusError(f"{path} cannot be read: {error.strerror or error}.") from error
    except UnicodeDecodeError as error:
        raise CorpusError(f"{path} is not UTF-8 text ({error.reason} at byte {error.start}): convert it.") from error


def _read_json_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            where = f"{path}, line {number}"
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise CorpusError(f"{where} is no JSON: {error.msg} at character {error.pos}.") from error
            if not isinstance(row, dict):
                raise CorpusError(f'{where} is a {type(row).__name__}: expected an object, such as {{"path": ...}}.')
            yield where, row


def _read_csv(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, strict=True)
        try:
            for row in reader:
                where = f"{path}, line {reader.line_num}"
                if None in row or None in row.values():
                    raise CorpusError(
                        f"{where} has {'more' if None in row else 'fewer'} cells than the header's "
                        f"{len(reader.fieldnames or [])}: texts with commas or quotes need quotes around them."
                    )
                yield where, {name: cell or None for name, cell in row.items()}
        except csv.Error as error:
            raise CorpusError(f"{path}, line {reader.reader.line_num} is no CSV: {error}.") from error


def _read_parquet(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    pyarrow, parquet = import_pyarrow()
    try:
        with parquet.ParquetFile(path) as file:
            number = 0
            for batch in file.iter_batches():
                for row in batch.to_pylist():
                    number += 1
                    yield f"{path}, row {number}", row
    except pyarrow.ArrowException as error:
        raise CorpusError(f"{path} is no Parquet file, or a damaged one: {error}.") from error
