"""Corpora: parts of them, broken files, fingerprints."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sounds import make_corpus, write_wav

from hooked_whisper.errors import ConfigError, CorpusError, HookedWhisperError
from hooked_whisper.saes import Corpus
from hooked_whisper.saes.corpus import NoLengthError
from hooked_whisper.saes.corpus_item import CorpusItem
from hooked_whisper.speech import clips

LANGUAGES = ["en", "en", "fr", "fr", "it", "it"]


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    keys = ["a", "b", "a", "b", "a", None]
    return make_corpus(tmp_path, [0.1, 0.2, 0.3, 0.4, 0.5, 0.6], language=LANGUAGES, key=keys, n=[1, 2, 3, 4, 5, 6])


@pytest.fixture
def corpus(manifest: Path) -> Corpus:
    return Corpus.from_manifest(manifest)


def silent(n: int) -> Corpus:
    return Corpus([CorpusItem(f"c{i}", torch.zeros(160), columns={"group": i % 7}) for i in range(n)])


def streaming(n: int) -> Corpus:
    def begin() -> Iterator[CorpusItem]:
        return (CorpusItem(f"c{i}", torch.zeros(160), language="en" if i % 2 else "fr") for i in range(n))

    return Corpus(begin, name="a stream")


def ids(corpus: Corpus) -> list[str]:
    return [item.id for item in corpus]


def test_the_shipped_speech() -> None:
    corpus = Corpus.from_clips()
    assert len(corpus) == 100
    item = corpus.where(language="fr", key="vm-sorry")[0]
    assert (item.id, item.speaker) == ("fr/vm-sorry", "June Wallack")
    assert torch.equal(item.load(), clips("fr", key="vm-sorry")[0].load())
    assert ids(Corpus.from_clips(clips("it")))[0] == "it/auth-incorrect"
    assert corpus.describe()["languages"] == ["en", "es", "fr", "it", "ru"]


def test_joined(corpus: Corpus) -> None:
    both = Corpus.join([corpus.where(language="fr"), silent(2)])
    assert ids(both) == [*ids(corpus.where(language="fr")), "c0", "c1"]
    assert both.name == "manifest.jsonl + corpus" and both.values("group") == [None, None, 0, 1]
    parts = [corpus.where(language=language) for language in ("it", "en")]
    assert Corpus.join(parts).name == "manifest.jsonl" and len(Corpus.join(parts, name="two")) == 4
    stream = Corpus.join([silent(1), streaming(2).where(language="en")])
    assert ids(stream) == ["c0", "c1"] == ids(stream) and stream.n_clips is None  # also at the second pass


def test_join_refuses_what_does_not_go_together(manifest: Path, corpus: Corpus) -> None:
    with pytest.raises(CorpusError, match="has two clips called 'c0': ids must differ"):
        Corpus.join([silent(2), silent(1)])
    with pytest.raises(ConfigError, match="No corpora to join"):
        Corpus.join([])
    with pytest.raises(ConfigError, match="Some of these corpora have on_error='raise' and some 'skip'"):
        Corpus.join([silent(1), Corpus.from_manifest(manifest, on_error="skip")])


def test_shards_are_the_corpus_together(corpus: Corpus) -> None:
    shards = [ids(corpus.shard(index, 4)) for index in range(4)]
    assert shards == [[f"clip-00{i}.wav" for i in part] for part in ([0, 4], [1, 5], [2], [3])]
    assert ids(streaming(5).shard(1, 2)) == ["c1", "c3"]
    with pytest.raises(ConfigError, match=r"shard\(4, 4\) does not exist: expected 0 <= index < of"):
        corpus.shard(4, 4)
    with pytest.raises(CorpusError, match=r"manifest.jsonl has no clip in shard 6 of 9"):
        corpus.shard(6, 9)


def test_where(corpus: Corpus) -> None:
    assert ids(corpus.where(language="fr")) == ["clip-002.wav", "clip-003.wav"]
    assert ids(corpus.where(language=["it", "fr"], key="a")) == ["clip-002.wav", "clip-004.wav"]
    assert ids(corpus.where(n=lambda n: n > 5)) == ["clip-005.wav"]
    assert ids(corpus.where(key=None)) == ["clip-005.wav"]
    assert ids(streaming(4).where(language="en")) == ["c1", "c3"]


def test_where_refuses_what_cannot_match(corpus: Corpus) -> None:
    with pytest.raises(CorpusError, match="no column 'langauge': it has id, text, .*, n. Did you mean 'language'"):
        corpus.where(langauge="fr")
    with pytest.raises(CorpusError, match=r"no clip in where\(language='de'\). language is one of 'en', 'fr', 'it'"):
        corpus.where(language="de")
    with pytest.raises(ConfigError, match="needs at least one column"):
        corpus.where()
    with pytest.raises(CorpusError, match="has no column 'key'"):
        list(streaming(3).where(key="a"))


def test_split_keeps_groups_together(corpus: Corpus) -> None:
    rest, held_out = corpus.split(0.3, seed=0, by="key")
    assert sorted(ids(rest) + ids(held_out)) == ids(corpus)
    assert not set(rest.values("key")) & set(held_out.values("key"))
    assert ids(corpus.split(0.3, seed=0, by="key")[1]) == ids(held_out)
    assert len({tuple(ids(corpus.split(0.3, seed=seed, by="key")[1])) for seed in range(20)}) > 1


@settings(deadline=None, max_examples=50)
@given(
    n=st.integers(2, 60), held_out=st.floats(0.01, 0.99), seed=st.integers(0, 99), by=st.sampled_from(["id", "group"])
)
def test_split_is_a_partition_of_about_the_right_size(n: int, held_out: float, seed: int, by: str) -> None:
    corpus = silent(n)
    rest, outside = corpus.split(held_out, seed=seed, by=by)
    assert sorted(ids(rest) + ids(outside)) == sorted(ids(corpus))
    assert not set(rest.values(by)) & set(outside.values(by))
    largest = 1 if by == "id" else -(-n // 7)
    assert len(outside) < held_out * n + largest
    assert len(outside) >= min(held_out * n, n - largest)


def test_split_refuses_what_cannot_be_split(corpus: Corpus) -> None:
    with pytest.raises(CorpusError, match="cannot be split by 'language': all its clips are of one group, 'fr'"):
        corpus.where(language="fr").split(by="language")
    with pytest.raises(CorpusError, match="a stream streams, so it cannot be split: do that with the data set"):
        streaming(3).split()
    with pytest.raises(ConfigError, match="held_out must be a part between 0 and 1, got 1"):
        corpus.split(1)
    with pytest.raises(CorpusError, match="has no column 'sentence'"):
        corpus.split(by="sentence")


def test_a_stream_begins_anew_and_has_no_length() -> None:
    corpus = streaming(3)
    assert (ids(corpus), ids(corpus)) == (["c0", "c1", "c2"], ["c0", "c1", "c2"])
    assert len(list(corpus)) == 3
    assert corpus.n_clips is None
    with pytest.raises(NoLengthError, match="a stream streams: how many clips it has is known only after a pass"):
        len(corpus)
    with pytest.raises(CorpusError, match="cannot be indexed"):
        corpus[0]
    with pytest.raises(CorpusError, match="cannot list its columns"):
        _ = corpus.columns
    assert corpus.describe() == {"name": "a stream", "n_clips": None}


def test_empty_and_ambiguous_corpora_are_refused() -> None:
    with pytest.raises(CorpusError, match="nothing is empty: expected at least one clip"):
        Corpus([], name="nothing")
    with pytest.raises(CorpusError, match="corpus has two clips called 'x': ids must differ"):
        Corpus([CorpusItem("x", "a.wav"), CorpusItem("x", "b.wav")])
    with pytest.raises(ConfigError, match="Unknown on_error 'ignore': expected 'raise' or 'skip'"):
        Corpus([CorpusItem("x", "a.wav")], on_error="ignore")  # type: ignore[arg-type]


def test_a_broken_file_stops_the_work_unless_it_may_be_skipped(
    manifest: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (manifest.parent / "clip-001.wav").write_bytes(b"RIFF, but no more")
    (manifest.parent / "clip-003.wav").unlink()
    corpus = Corpus.from_manifest(manifest)
    with pytest.raises(CorpusError, match=r"Clip 'clip-001.wav': .*clip-001.wav cannot be decoded"):
        corpus.load(corpus[1])
    with pytest.raises(CorpusError, match=r"clip-001.wav"):
        corpus.survey()
    assert corpus.skipped == []

    corpus = Corpus.from_manifest(manifest, on_error="skip")
    with caplog.at_level(logging.WARNING):
        for part in (corpus, corpus.where(language=["en", "fr"])):
            part.survey()
        assert corpus.load(corpus[3]) is None
        loaded = corpus.load(corpus[0])
    assert loaded is not None
    assert [skipped.id for skipped in corpus.skipped] == ["clip-001.wav", "clip-003.wav"]
    assert "No audio file at" in corpus.skipped[1].error
    assert [record.getMessage().split(":")[1].strip() for record in caplog.records] == [
        "Clip 'clip-001.wav'",
        "Clip 'clip-003.wav'",
    ]


def test_fingerprint_is_of_content_and_not_of_place(manifest: Path, tmp_path: Path) -> None:
    first = Corpus.from_manifest(manifest).fingerprint()
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(manifest.parent, elsewhere)
    assert Corpus.from_manifest(elsewhere / manifest.name).fingerprint() == first
    assert Corpus.from_manifest(manifest).where(language="en").fingerprint() != first

    changed = elsewhere / manifest.name
    changed.write_text(changed.read_text().replace('"key": "a"', '"key": "c"'))
    assert Corpus.from_manifest(changed).fingerprint() != first
    write_wav(manifest.parent / "clip-004.wav", 0.5, seed=99)  # as long as before, other samples
    assert Corpus.from_manifest(manifest).fingerprint() != first


def test_survey_tells_lengths(corpus: Corpus) -> None:
    found = corpus.survey()
    assert found.ids == tuple(ids(corpus))
    assert found.seconds == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5, 0.6])
    assert found.columns == {"key": "string", "n": "int64"}
    assert corpus.survey() is found


def test_describe_and_repr(corpus: Corpus) -> None:
    assert repr(corpus) == "Corpus('manifest.jsonl', 6 clips)"
    assert repr(streaming(2)) == "Corpus('a stream', streaming)"
    assert corpus.describe() == {
        "name": "manifest.jsonl",
        "n_clips": 6,
        "languages": ["en", "fr", "it"],
        "speakers": [],
        "licences": [],
    }


def test_errors_are_the_librarys_own() -> None:
    assert issubclass(NoLengthError, HookedWhisperError)
    assert issubclass(NoLengthError, TypeError)  # or list(corpus) would not take it for "no length"
