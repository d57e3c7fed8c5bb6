"""A corpus of synthetic speech with exact times."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hooked_whisper.analysis.frame_labels import frame_labels
from hooked_whisper.analysis.phone_speech import (
    PHONE_VOICES,
    PhoneCorpus,
    PhoneVoice,
    make_phone_corpus,
    parallel_texts,
)
from hooked_whisper.errors import AnalysisError
from hooked_whisper.saes import Corpus
from hooked_whisper.speech import clips

pytest.importorskip("espeakng_loader", reason="libespeak-ng is not installed")

TEXTS = {"en": ["Take two cats.", "Stop at the top."], "es": ["Toma dos gatos.", "Para en la cima."]}
VOICES = (PhoneVoice("m1", 45, 160), PhoneVoice("f2", split="test"))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> PhoneCorpus:
    return make_phone_corpus(TEXTS, tmp_path_factory.mktemp("phones"), voices=VOICES, progress=False)


def test_a_corpus_with_labels(made: PhoneCorpus) -> None:
    corpus, labels = made.corpus, made.labels
    assert len(corpus) == 8 and labels.clips == tuple(item.id for item in corpus)
    assert labels.tier_names == ("phone", "stress", "length", "closure", "word")
    for item in corpus:
        assert item.text == TEXTS[str(item.language)][int(str(item.columns["key"]))]
        assert len(item.load()) / 16_000 == pytest.approx(labels.durations[item.id])
        words = [one.value for one in labels[item.id]["word"]]
        assert words == item.text.lower().strip(".").split()
    # Speakers are on one side each, and speak every language and every sentence.
    sides = {(item.speaker, item.columns["split"]) for item in corpus}
    assert sides == {("m1-45-160", "train"), ("f2-50-175", "test")}
    assert len({(item.speaker, item.language, item.columns["key"]) for item in corpus}) == 8


def test_times_hold_at_16_khz(made: PhoneCorpus) -> None:
    labels = made.labels
    for item in made.corpus:
        sound = np.abs(item.load().numpy())
        sound /= sound.max()
        first = labels[item.id]["phone"][0]
        onset = np.flatnonzero(sound > 0.02)[0] / 16_000
        assert first.start > 0.1 and abs(onset - first.start) < 0.015
        last = labels[item.id]["phone"][-1]
        assert sound[round((last.end + 0.01) * 16_000) :].max() < 0.01
        for closure in labels[item.id]["closure"]:
            # The filter of the resampling rings a little into the silence.
            inside = sound[round((closure.start + 0.002) * 16_000) : round((closure.end - 0.002) * 16_000)]
            assert inside.max(initial=0) < 0.03


def test_rows_of_frames(made: PhoneCorpus) -> None:
    corpus, labels = made.corpus, made.labels
    ids = [item.id for item in corpus]
    frames = [int(labels.durations[clip] * 50) for clip in ids]
    clip = np.repeat(np.arange(len(ids)), frames)
    table = frame_labels(labels, clip, np.concatenate([np.arange(n) for n in frames]), ids, tiers=["phone", "word"])
    assert {"phone=t", "phone=s", "phone=a", "word=cats", "word=gatos"} <= set(table.names) and table.known is None
    heard = table.counts[table.index("phone=t")] / 50
    assert heard == pytest.approx(labels.seconds("phone")["t"], rel=0.15)


def test_the_same_at_every_run(made: PhoneCorpus, tmp_path: Path) -> None:
    again = make_phone_corpus(TEXTS, tmp_path, voices=VOICES, progress=False)
    for file in sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file()):
        same = (tmp_path / file).read_bytes() == (made.folder / file).read_bytes()
        assert same, file
    before = (tmp_path / "labels.json").stat().st_mtime_ns
    assert make_phone_corpus(TEXTS, tmp_path, voices=VOICES) == again  # complete: left alone
    assert (tmp_path / "labels.json").stat().st_mtime_ns == before
    with pytest.raises(AnalysisError, match="holds a corpus of other texts, voices or another espeak-ng"):
        make_phone_corpus({"en": ["Another."]}, tmp_path)


def test_parallel_texts() -> None:
    corpus = Corpus.from_clips()
    texts = parallel_texts(corpus, ["en", "fr", "ru"], 5)
    assert [list(own) for own in texts.values()] == [list(texts["en"])] * 3 and len(texts["en"]) == 5
    assert texts["fr"]["vm-sorry"] if "vm-sorry" in texts["fr"] else texts["fr"]
    assert len(parallel_texts(corpus, ["en", "es"])["es"]) > 10
    with pytest.raises(AnalysisError, match="has .* sentences of at most 120 letters in all of en, fr: expected 500"):
        parallel_texts(corpus, ["en", "fr"], 500)
    with pytest.raises(AnalysisError, match="in all of en, de: expected one or more"):
        parallel_texts(Corpus.from_clips(clips("en")), ["en", "de"])


def test_the_voices_that_come_along() -> None:
    assert len({voice.speaker for voice in PHONE_VOICES}) == len(PHONE_VOICES) == 6
    assert sum(voice.split == "test" for voice in PHONE_VOICES) == 2
    with pytest.raises(AnalysisError, match="Voice 'm1' is for 'dev': expected 'train' or 'test'"):
        PhoneVoice("m1", split="dev")


@pytest.mark.parametrize(
    ("texts", "options", "message"),
    [
        ({}, {}, "0 languages and 6 voices: expected at least one of each"),
        ({"en": ["Hi."]}, {"voices": ()}, "1 languages and 0 voices"),
        ({"en": "Hi."}, {}, "The texts of 'en' are one text: expected a list"),
        ({"en": []}, {}, "There is no text in 'en'"),
        ({"en": {"../a": "Hi."}}, {}, "The key '../a' cannot name a file"),
        ({"en": ["Hi."]}, {"voices": VOICES[:1] * 2}, "Two voices are called 'm1-45-160': vary pitch or speed"),
        ({"en": ["Hi."]}, {"padding": -1.0}, "padding=-1.0: expected 0 to 10 seconds"),
        ({"xx": ["Hi."]}, {}, "cannot say 'Hi.' with 'xx.m1': no voice"),
        ({"en": ["Hi."]}, {"espeak_names": {"en": "en-uk"}}, "no voice 'en-uk.m1'. Did you mean"),
    ],
)
def test_corpora_that_cannot_be_made(texts: Any, options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(AnalysisError, match=message):
        make_phone_corpus(texts, tmp_path, progress=False, **options)
    assert not (tmp_path / "manifest.jsonl").exists()


def test_settings_are_written(made: PhoneCorpus) -> None:
    settings = json.loads((made.folder / "settings.json").read_text(encoding="utf-8"))
    assert settings["names"] == {"en": "en-us", "es": "es"} and settings["voices"][1]["split"] == "test"
