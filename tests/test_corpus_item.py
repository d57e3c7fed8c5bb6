"""One clip of a corpus: its audio, its segment, its columns."""

from __future__ import annotations

from datetime import date
from pathlib import Path

import numpy as np
import pytest
import torch
from sounds import samples, write_wav

from hooked_whisper.errors import CorpusError
from hooked_whisper.saes.corpus_item import ColumnNames, CorpusItem, DatasetAudio, scalar


@pytest.fixture
def wav(tmp_path: Path) -> Path:
    return write_wav(tmp_path / "long.wav", 2.0)


def test_loading_a_file(wav: Path) -> None:
    waveform = CorpusItem("x", wav).load()
    assert waveform.dtype == torch.float32
    assert torch.equal(waveform, torch.from_numpy(samples(2.0).astype(np.float32) / 32_768))


def test_loading_a_segment(wav: Path) -> None:
    whole = CorpusItem("x", wav).load()
    assert torch.equal(CorpusItem("x", wav, offset=0.5, duration=0.25).load(), whole[8_000:12_000])
    assert torch.equal(CorpusItem("x", wav, offset=1.5).load(), whole[24_000:])
    assert torch.equal(CorpusItem("x", wav, duration=0.1).load(), whole[:1_600])
    assert len(CorpusItem("x", wav, offset=1.5, duration=0.51).load()) == 8_000  # manifests round


def test_segments_of_a_file_that_changes(wav: Path) -> None:
    item = CorpusItem("x", wav, offset=1.0)
    before = item.load()
    write_wav(wav, 2.5, seed=1)
    assert len(item.load()) == len(before) + 8_000


def test_a_segment_outside_of_its_file(wav: Path) -> None:
    with pytest.raises(
        CorpusError, match=r"Clip 'x': the segment from 1.5 s to 2.6 s is not in its audio, which is 2.00"
    ):
        CorpusItem("x", wav, offset=1.5, duration=1.1).load()
    with pytest.raises(CorpusError, match=r"from 3 s to its end is not in its audio"):
        CorpusItem("x", wav, offset=3).load()


def test_audio_that_is_fetched(wav: Path) -> None:
    dataset = [{"sound": {"bytes": wav.read_bytes(), "path": None}}]
    assert len(CorpusItem("x", DatasetAudio(dataset, 0, "sound")).load()) == 32_000


def test_a_missing_file_names_the_clip(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"Clip 'a clip': No audio file at .*none.wav"):
        CorpusItem("a clip", tmp_path / "none.wav").load()
    with pytest.raises(CorpusError, match=r"Clip 'a clip': No audio file at .*none.wav"):
        CorpusItem("a clip", tmp_path / "none.wav", offset=1).load()


def test_columns() -> None:
    item = CorpusItem("x", "x.wav", language="en", columns={"key": "k"})
    assert [item.get(name) for name in ("id", "language", "speaker", "offset", "key")] == ["x", "en", None, 0.0, "k"]
    with pytest.raises(CorpusError, match="Clip 'x' has no column 'kex': it has id, .*, key. Did you mean 'key'"):
        item.get("kex")


def test_scalars() -> None:
    assert [scalar(value) for value in (None, "a", 1, 1.5, True)] == [None, "a", 1, 1.5, True]
    assert (scalar(np.float32(0.5)), scalar(np.int64(3)), scalar(Path("a"))) == (0.5, 3, "a")
    assert scalar(date(2026, 1, 2)) == "2026-01-02"
    assert scalar({"b": [1, "é"], "a": None}) == '{"a": null, "b": [1, "é"]}'


def item_of(row: dict, names: ColumnNames | None = None, segments: bool = True) -> CorpusItem:
    names = names or ColumnNames("path")
    return names.item(row, where="row 1", audio="a.wav", default_id="a.wav", segments=segments)


def test_rows_become_clips() -> None:
    row = {"path": "a.wav", "text": "hi", "language": "en", "speaker": 7, "offset": "1.5", "duration": 2, "k": [1]}
    item = item_of(row)
    assert (item.id, item.text, item.language, item.speaker) == ("a.wav#1.5-3.5", "hi", "en", "7")
    assert (item.offset, item.duration, dict(item.columns)) == (1.5, 2.0, {"k": "[1]"})
    assert item_of({"path": "a.wav", "offset": 0.5}).id == "a.wav#0.5"
    assert item_of({"path": "a.wav", "id": 12, "offset": 0.5}).id == "12"


def test_other_column_names() -> None:
    names = ColumnNames("path", text="sentence", id="name")
    item = item_of({"path": "a.wav", "sentence": "hi", "name": "n", "text": "other"}, names)
    assert (item.text, item.id, dict(item.columns)) == ("hi", "n", {"text": "other"})


def test_durations_of_data_sets_are_information() -> None:
    item = item_of({"path": "a.wav", "duration": 2.0}, segments=False)
    assert (item.duration, dict(item.columns)) == (None, {"duration": 2.0})


@pytest.mark.parametrize(("name", "value"), [("offset", -1), ("offset", "soon"), ("duration", 0), ("duration", "nan")])
def test_times_that_are_none(name: str, value: object) -> None:
    with pytest.raises(CorpusError, match=f"row 1: {name} is {value!r}, expected a time in seconds"):
        item_of({"path": "a.wav", name: value})
