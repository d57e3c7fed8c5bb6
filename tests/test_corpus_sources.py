"""Corpora from folders, manifests and data sets."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from sounds import make_corpus, samples, write_manifest, write_wav

from hooked_whisper.errors import CorpusError
from hooked_whisper.saes import Corpus


def ids(corpus: Corpus) -> list[str]:
    return [item.id for item in corpus]


# Folders


def test_a_folder_and_the_folders_inside(tmp_path: Path) -> None:
    for name in ("b.wav", "a/2.WAV", "a/1.wav", ".hidden/x.wav", "a/.y.wav"):
        write_wav(tmp_path / name, 0.1)
    (tmp_path / "a" / "1.txt").write_text(" what is said \n", encoding="utf-8")
    (tmp_path / "notes.md").touch()
    corpus = Corpus.from_folder(tmp_path, language="en", speaker="someone")
    assert ids(corpus) == ["a/1.wav", "a/2.WAV", "b.wav"]
    assert [item.text for item in corpus] == ["what is said", None, None]
    assert {(item.language, item.speaker) for item in corpus} == {("en", "someone")}
    assert len(corpus[0].load()) == 1_600
    assert corpus.name == tmp_path.name


def test_folders_without_audio(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"No folder at .*none \(looked from"):
        Corpus.from_folder(tmp_path / "none")
    (tmp_path / "notes.txt").touch()
    with pytest.raises(CorpusError, match=r"holds no audio: expected files that end in \.aac, .*\.wma"):
        Corpus.from_folder(tmp_path)


# Manifests


def test_paths_start_at_the_manifest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_wav(tmp_path / "in" / "sub" / "a.wav", 0.1)
    write_wav(tmp_path / "b.wav", 0.2)
    rows = [{"path": "sub/a.wav"}, {"path": "../b.wav"}, {"path": str(tmp_path / "b.wav")}]
    manifest = write_manifest(tmp_path / "in" / "m.jsonl", rows)
    monkeypatch.chdir("/")
    corpus = Corpus.from_manifest(manifest)
    assert [len(item.load()) for item in corpus] == [1_600, 3_200, 3_200]
    assert ids(corpus)[:2] == ["sub/a.wav", "../b.wav"]


def test_a_path_that_climbs_out_must_exist(tmp_path: Path) -> None:
    manifest = write_manifest(tmp_path / "m.jsonl", [{"path": "a.wav"}, {"path": "../../none.wav"}])
    with pytest.raises(CorpusError, match=r"m.jsonl, line 2: '../../none.wav' leaves the manifest's folder, and"):
        Corpus.from_manifest(manifest)


def test_segments(tmp_path: Path) -> None:
    write_wav(tmp_path / "long.wav", 3.0)
    rows = [{"path": "long.wav", "offset": start, "duration": 1.0, "text": str(start)} for start in (0.0, 1.0, 2.0)]
    corpus = Corpus.from_manifest(write_manifest(tmp_path / "m.jsonl", rows))
    assert ids(corpus) == ["long.wav#0-1", "long.wav#1-2", "long.wav#2-3"]
    whole = Corpus.from_folder(tmp_path)[0].load()
    assert torch.equal(torch.cat([item.load() for item in corpus]), whole)
    assert corpus.survey().seconds == (1.0, 1.0, 1.0)


def test_other_names_of_columns(tmp_path: Path) -> None:
    row = {"audio_filepath": "a.wav", "sentence": "hi", "locale": "fr", "client_id": 3, "utt": "u1"}
    corpus = Corpus.from_manifest(
        write_manifest(tmp_path / "m.jsonl", [row]),
        path_column="audio_filepath",
        text_column="sentence",
        language_column="locale",
        speaker_column="client_id",
        id_column="utt",
    )
    item = corpus[0]
    assert (item.id, item.text, item.language, item.speaker, dict(item.columns)) == ("u1", "hi", "fr", "3", {})


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        ([{"file": "a.wav"}], {}, r"m.jsonl, line 1 has no column 'path': it has file."),
        ([{"path": "a"}, {"pth": "b"}], {}, r"line 2 has no path: expected text in column 'path', got None"),
        ([{"path": 3}], {}, r"line 1 has no path: expected text in column 'path', got 3"),
        ([{"path": "a"}], {"text_column": "sentence"}, r"line 1 has no column 'sentence': it has path"),
        ([], {}, r"m.jsonl is empty: expected one row for each clip"),
        ([{"path": "a"}, {"path": "a"}], {}, r"m.jsonl has two clips called 'a': ids must differ"),
        ([{"path": "a", "offset": "x"}], {}, r"line 1: offset is 'x', expected a time in seconds"),
    ],
)
def test_manifests_that_do_not_fit(tmp_path: Path, rows: list, options: dict, message: str) -> None:
    with pytest.raises(CorpusError, match=message):
        Corpus.from_manifest(write_manifest(tmp_path / "m.jsonl", rows), **options)


# Data sets


@pytest.fixture
def hub_dataset(tmp_path: Path) -> datasets.Dataset:
    corpus = Corpus.from_manifest(make_corpus(tmp_path, [0.1, 0.2, 0.3]))
    columns = {
        "audio": [{"bytes": item.audio.read_bytes(), "path": f"{item.id}"} for item in corpus],
        "sentence": ["one", "two", "three"],
        "n": [1, 2, 3],
    }
    return datasets.Dataset.from_dict(columns).cast_column("audio", datasets.Audio())


def test_a_hub_data_set_needs_no_torchcodec(hub_dataset: datasets.Dataset) -> None:
    corpus = Corpus.from_dataset(hub_dataset, text_column="sentence", name="prompts")
    assert [(item.id, item.text, item.columns["n"]) for item in corpus] == [
        ("00000000", "one", 1),
        ("00000001", "two", 2),
        ("00000002", "three", 3),
    ]
    assert [len(item.load()) for item in corpus] == [1_600, 3_200, 4_800]
    assert ids(corpus.where(n=[1, 3])) == ["00000000", "00000002"]
    assert corpus.survey().seconds == pytest.approx([0.1, 0.2, 0.3])
    assert corpus.describe()["name"] == "prompts"


def test_a_data_set_with_audio_alone(hub_dataset: datasets.Dataset) -> None:
    corpus = Corpus.from_dataset(hub_dataset.select_columns(["audio"]))
    assert [len(item.load()) for item in corpus] == [1_600, 3_200, 4_800]


def test_a_data_set_that_streams(hub_dataset: datasets.Dataset) -> None:
    listed = Corpus.from_dataset(hub_dataset, text_column="sentence")
    corpus = Corpus.from_dataset(hub_dataset.to_iterable_dataset(), text_column="sentence")
    assert corpus.streams
    for _ in range(2):
        assert [(item.id, item.text, len(item.load())) for item in corpus] == [
            (item.id, item.text, len(item.load())) for item in listed
        ]
    assert corpus.fingerprint() == listed.fingerprint()
    assert [item.text for item in corpus.shard(1, 2)] == ["two"]


def test_dictionaries_of_any_kind(tmp_path: Path) -> None:
    array = samples(0.2).astype(np.float32) / 32_768
    rows = [
        {"audio": {"array": array, "sampling_rate": 16_000}, "text": "a", "language": "en", "id": "x"},
        {"audio": write_wav(tmp_path / "a.wav", 0.2), "text": "b", "language": "en", "id": "y"},
        {"audio": {"path": str(tmp_path / "a.wav"), "bytes": None}, "text": "c", "language": "fr", "id": "z"},
    ]
    corpus = Corpus.from_dataset(rows)
    assert ids(corpus) == ["x", "y", "z"]
    assert [item.language for item in corpus] == ["en", "en", "fr"]
    first, second, third = (item.load() for item in corpus)
    assert torch.equal(first, second)
    assert torch.equal(second, third)
    assert corpus.survey().seconds == pytest.approx([0.2, 0.2, 0.2])


class Decoder:
    """What torchcodec's decoder looks like."""

    def get_all_samples(self):
        return type("Samples", (), {"data": torch.full((1, 320), 0.25), "sample_rate": 16_000})()


def test_torchcodecs_decoder() -> None:
    corpus = Corpus.from_dataset([{"audio": Decoder()}])
    assert torch.equal(corpus[0].load(), torch.full((320,), 0.25))
    assert corpus.survey().seconds == (0.02,)


class Rows:
    """Rows that can be gone through again and again, and not counted."""

    def __init__(self, rows: list) -> None:
        self.rows = rows

    def __iter__(self) -> Iterator:
        return iter(self.rows)


def test_data_sets_that_do_not_fit(hub_dataset: datasets.Dataset) -> None:
    with pytest.raises(CorpusError, match="This data set has the splits train: pass one of them"):
        Corpus.from_dataset(datasets.DatasetDict({"train": hub_dataset}))
    with pytest.raises(CorpusError, match="An iterator can be read only once: pass the data set itself"):
        Corpus.from_dataset(iter([{"audio": "a.wav"}]))
    with pytest.raises(CorpusError, match="Dataset has no column 'sound': it has audio, sentence, n"):
        Corpus.from_dataset(hub_dataset, audio_column="sound")
    with pytest.raises(CorpusError, match="Dataset has no column 'sentense': .* Did you mean 'sentence'"):
        Corpus.from_dataset(hub_dataset, text_column="sentense")
    with pytest.raises(CorpusError, match=r"list\[1\] has no column 'audio': it has sound"):
        Corpus.from_dataset([{"audio": "a.wav"}, {"sound": "b.wav"}])
    with pytest.raises(CorpusError, match=r"list\[0\] is a str: expected a dictionary of columns"):
        Corpus.from_dataset(["a.wav"])
    with pytest.raises(CorpusError, match="A int is no data set"):
        Corpus.from_dataset(3)
    with pytest.raises(CorpusError, match="list is empty"):
        Corpus.from_dataset([])
    with pytest.raises(CorpusError, match=r"Rows\[0\] is a int"):
        list(Corpus.from_dataset(Rows([3])))
    with pytest.raises(CorpusError, match="Rows is empty: expected at least one clip"):
        Corpus.from_dataset(Rows([])).survey()
