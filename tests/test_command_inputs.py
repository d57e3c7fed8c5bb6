"""What commands of the analysis share: clips and models by name, spans, tables."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import pytest
from sounds import make_corpus, write_wav

from hooked_whisper import AnalysisError, ConfigError
from hooked_whisper.analysis.command_inputs import (
    check_latents,
    check_table,
    open_clips,
    read_span,
    text_table,
    write_table,
)


def test_clips_of_several_sources(tmp_path: Path) -> None:
    manifest = make_corpus(tmp_path / "in", [0.1, 0.2], language=["en", "fr"])
    alone = write_wav(tmp_path / "alone.wav", 0.3)
    assert [item.id for item in open_clips([str(alone)])] == [str(alone)]
    ids = [str(alone), "clip-000.wav", "clip-001.wav"]
    assert [item.id for item in open_clips([str(alone), str(manifest)])] == ids
    assert [item.id for item in open_clips([str(manifest), str(alone)], ["fr"])] == ["clip-001.wav"]
    assert [item.id for item in open_clips([str(manifest)], [], ["language=en"])] == ["clip-000.wav"]
    assert len(open_clips(["shipped"])) == 100
    with pytest.raises(ConfigError, match="No clips were given"):
        open_clips([])


def test_spans() -> None:
    assert read_span("0.5:1.25") == (0.5, 1.25)
    for text, message in (("1", "is no span"), ("a:b", "is no span"), ("2:1", "is empty"), ("nan:1", "is empty")):
        with pytest.raises(ConfigError, match=message):
            read_span(text)


def test_latents_that_there_are() -> None:
    check_latents([0, 9], 10)
    with pytest.raises(AnalysisError, match="There is no latent 10: the SAE has 10, counted from 0"):
        check_latents([3, 10], 10)


def test_a_table_that_has_no_place(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be made"):
        write_table([{"x": 1}], tmp_path / "file" / "a.csv")


def test_tables(tmp_path: Path) -> None:
    rows = [{"name": "a", "x": 0.123456789, "n": 3}, {"name": "long one", "x": math.inf, "more": True}]
    write_table(rows, tmp_path / "in" / "a.json")
    assert json.loads((tmp_path / "in" / "a.json").read_text()) == [
        {"name": "a", "x": 0.123456789, "n": 3},
        {"name": "long one", "x": None, "more": True},
    ]
    write_table(rows, tmp_path / "a.csv")
    read = list(csv.DictReader((tmp_path / "a.csv").read_text().splitlines()))
    assert read[0] == {"name": "a", "x": "0.123456789", "n": "3", "more": ""}
    lines = text_table(rows, {"x": ".2f"}).splitlines()
    assert lines[0].split() == ["name", "x", "n", "more"]
    assert lines[1].split() == ["a", "0.12", "3"] and "only here" in lines[2]
    assert lines[1].startswith("a      ") and len({line.index("x") for line in lines[:1]}) == 1
    assert text_table([]) == "(nothing)"
    with pytest.raises(ConfigError, match=r"a.txt is of an unknown kind: expected a file that ends in .csv or .json"):
        check_table(tmp_path / "a.txt")
