"""One pass over all audio: lengths, checksums, types of columns."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from sounds import make_corpus, write_wav

from hooked_whisper.errors import CorpusError
from hooked_whisper.saes import Corpus
from hooked_whisper.saes.corpus_item import CorpusItem
from hooked_whisper.saes.survey import metadata_fingerprint
from hooked_whisper.speech import clips

WAVE = np.linspace(-0.5, 0.5, 800, dtype=np.float32)


def of(*audio: object, **columns: list) -> Corpus:
    items = [
        CorpusItem(f"{i}", sound, columns={name: values[i] for name, values in columns.items()})
        for i, sound in enumerate(audio)
    ]
    return Corpus(items)


def test_lengths_of_every_kind_of_audio(tmp_path: Path) -> None:
    wav = write_wav(tmp_path / "a: strange name.wav", 0.25, rate=22_050)
    corpus = of(
        wav,
        wav.read_bytes(),
        {"bytes": wav.read_bytes(), "path": None},
        {"path": str(wav)},
        {"array": WAVE, "sampling_rate": 8_000},
        WAVE,
        torch.from_numpy(WAVE),
        clips("it", key="vm-sorry")[0].path,
    )
    found = corpus.survey().seconds
    assert found == pytest.approx([0.25] * 4 + [0.1, 0.05, 0.05, clips("it", key="vm-sorry")[0].seconds], abs=1e-3)


def test_headers_are_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus = Corpus.from_manifest(make_corpus(tmp_path, [0.1, 0.2]))

    def load(self: CorpusItem) -> torch.Tensor:
        raise AssertionError("decoded")

    monkeypatch.setattr(CorpusItem, "load", load)
    assert corpus.survey().seconds == pytest.approx([0.1, 0.2])


def test_every_part_of_a_clip_is_in_the_fingerprint() -> None:
    base = {"audio": WAVE, "text": "t", "language": "l", "speaker": "s", "columns": {"k": 1}, "offset": 0.0}
    changed = [
        base,
        base | {"audio": WAVE + 1e-3},
        base | {"audio": {"array": WAVE, "sampling_rate": 16_001}},
        base | {"text": None},
        base | {"language": "s", "speaker": "l"},
        base | {"columns": {"k": 2}},
        base | {"columns": {"k": "1"}},
        base | {"offset": 0.01},
        base | {"duration": 0.04},
    ]
    prints = {Corpus([CorpusItem("x", **known)]).fingerprint() for known in changed}
    assert len(prints) == len(changed)
    pair = [CorpusItem("x", WAVE), CorpusItem("y", -WAVE)]
    assert Corpus(pair).fingerprint() != Corpus(pair[::-1]).fingerprint()


def test_metadata_alone() -> None:
    items = [CorpusItem("x", WAVE), CorpusItem("y", "none.wav")]
    other = [CorpusItem("x", -WAVE), CorpusItem("y", "other.wav")]
    assert metadata_fingerprint(items) == metadata_fingerprint(other) != metadata_fingerprint(items[:1])
    assert Corpus(items[:1]).survey().metadata == metadata_fingerprint(items[:1])


def test_order_of_columns_does_not_matter() -> None:
    one, two = (CorpusItem("x", WAVE, columns=columns) for columns in ({"a": 1, "b": 2}, {"b": 2, "a": 1}))
    assert metadata_fingerprint([one]) == metadata_fingerprint([two])


def test_types_of_columns() -> None:
    corpus = of(
        WAVE, WAVE, WAVE,
        whole=[1, None, 3], real=[1.5, 2, None], mixed=[1, "a", None], truth=[True, False, None],
        none=[None] * 3, huge=[2**70, 1, 1], half=[True, 1, None],
    )  # fmt: skip
    assert corpus.survey().columns == {
        "whole": "int64",
        "real": "double",
        "mixed": "string",
        "truth": "bool",
        "none": "string",
        "huge": "string",
        "half": "string",
    }


def test_what_cannot_be_read_is_zero_seconds_if_it_may_be_skipped(tmp_path: Path) -> None:
    corpus = of(tmp_path / "none.wav", WAVE, {"other": 1}, b"", 7)
    corpus.on_error = "skip"
    assert corpus.survey().seconds == pytest.approx([0, 0.05, 0, 0, 0])
    assert [skipped.id for skipped in corpus.skipped] == ["0", "2", "3", "4"]
    assert "An audio item needs 'array' and 'sampling_rate'" in corpus.skipped[1].error


def test_a_stream_is_surveyed_and_an_empty_one_refused() -> None:
    def begin(n: int) -> Iterator[CorpusItem]:
        return (CorpusItem(str(i), WAVE) for i in range(n))

    assert Corpus(lambda: begin(2)).fingerprint() == of(WAVE, WAVE).fingerprint()
    with pytest.raises(CorpusError, match="corpus is empty"):
        Corpus(lambda: begin(0)).survey()


def test_checksum_is_of_the_files_bytes(tmp_path: Path) -> None:
    wav = write_wav(tmp_path / "a.wav", 0.1)
    item = CorpusItem("x", wav)
    line = b'["x", null, null, null, 0.0, null, {}]\n'
    expected = hashlib.sha256(line + hashlib.sha256(wav.read_bytes()).hexdigest().encode()).hexdigest()
    assert Corpus([item]).fingerprint() == expected
