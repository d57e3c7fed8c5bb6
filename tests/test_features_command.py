"""`hooked-whisper features`: what it prints is what the functions behind it find."""

from __future__ import annotations

import csv
import json
import math
import wave
from pathlib import Path

import numpy as np
import pytest
from small_store import make_store
from typer.testing import CliRunner

from hooked_whisper import AnalysisError, ConfigError, HookedWhisper, SaeError, cli
from hooked_whisper.analysis import feature_rows, features_command
from hooked_whisper.analysis.codes import FeatureCodes
from hooked_whisper.analysis.feature_scores import score_features
from hooked_whisper.analysis.feature_search import search_span
from hooked_whisper.analysis.feature_stats import feature_statistics, top_segments
from hooked_whisper.analysis.label_files import write_labels
from hooked_whisper.analysis.labels import Labels
from hooked_whisper.saes import load_sae
from hooked_whisper.speech import clips

KEYS = ("vm-sorry", "conf-leaderhasleft", "vm-savefolder")
CLIPS = [clips(language, key)[0] for key in KEYS for language in ("en", "it")]
SORRY = "en/vm-sorry"


@pytest.fixture(scope="module")
def model(shared_short_whisper_base: HookedWhisper) -> HookedWhisper:
    return shared_short_whisper_base


@pytest.fixture(autouse=True)
def loads(model: HookedWhisper, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Models that were asked for; each is that with short windows."""
    asked: list[str] = []

    def from_pretrained(name: str, **options: object) -> HookedWhisper:
        asked.append(name)
        return model

    monkeypatch.setattr(HookedWhisper, "from_pretrained", from_pretrained)
    return asked


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A manifest of six clips."""
    path = tmp_path_factory.mktemp("clips")
    rows = [
        {"path": str(one.path), "id": f"{one.language}/{one.key}", "language": one.language, "key": one.key}
        for one in CLIPS
    ]
    (path / "manifest.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return path


def run(*arguments: object) -> str:
    """What a command prints; it must succeed."""
    result = CliRunner().invoke(cli.app, ["features", *map(str, arguments)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def kept(folder: Path) -> list[object]:
    """The arguments of a corpus whose activations are kept, so that they are made once."""
    return [folder / "manifest.jsonl", "--store", folder / "acts", "--packing", "windows"]


@pytest.fixture(scope="module")
def codes(folder: Path, model: HookedWhisper) -> FeatureCodes:
    """The codes of all clips, made without the command line."""
    corpus, _ = features_command._clips([str(folder / "manifest.jsonl")], [], [], [], None)
    sae = load_sae("whisper-base/encoder.hook_out")
    return features_command.read_codes(model, sae, None, corpus, folder / "acts", packing="windows")


def test_one_clip_alone(tmp_path: Path, loads: list[str]) -> None:
    out = tmp_path / "made" / "fires.csv"
    printed = run(CLIPS[0].path, "-n", 3, "--out", out).splitlines()
    assert printed[0].startswith("4,096 latents at encoder.hook_out, ") and " of 1 clip, 96.0 active" in printed[0]
    assert "nothing here to tell the clip from" in printed[1]
    assert printed[-1].startswith(f"Next: hooked-whisper features {CLIPS[0].path} --span START:END")
    rows = list(csv.DictReader(out.read_text(encoding="utf-8").splitlines()))
    totals = [float(row["share"]) * float(row["mean"]) for row in rows]
    assert len(rows) > 96 and totals == sorted(totals, reverse=True)
    assert all(float(row["start"]) < float(row["peak at"]) < float(row["end"]) <= 4 for row in rows)
    assert printed[3].split()[0] == rows[0]["latent"]
    assert loads == ["openai/whisper-base"]


def test_a_span_of_a_clip(folder: Path, codes: FeatureCodes, tmp_path: Path) -> None:
    out = tmp_path / "found.json"
    printed = run(*kept(folder), "--clip", SORRY, "--span", "0.2:0.6", "--out", out)
    found, rows = search_span(codes, SORRY, 0.2, 0.6, n=100), json.loads(out.read_text(encoding="utf-8"))
    assert [row["latent"] for row in rows] == [one.latent for one in found]
    assert [row["auc"] for row in rows] == pytest.approx([one.auc for one in found])
    assert [row["strength"] for row in rows] == [one.strength if math.isfinite(one.strength) else None for one in found]
    assert f"--latent {found[0].latent}\n" in printed.splitlines(keepends=True)[-1]


def test_one_clip_against_others(folder: Path) -> None:
    printed = run(CLIPS[0].path, "--against", folder / "manifest.jsonl", "--packing", "windows", "-n", 2)
    assert "of 7 clips" in printed.splitlines()[0]
    assert len(printed.splitlines()) == 5 and str(CLIPS[0].path) in printed.splitlines()[2]


def test_a_word(folder: Path) -> None:
    printed = run(*kept(folder), "--word", "Sorry!", "--language", "en", "--store", folder / "english", "-n", 2)
    clip, peak = printed.splitlines()[2].split()[-1], float(printed.splitlines()[2].split()[-2])
    assert clip == SORRY and 0 < peak < 1.5


def test_all_latents(folder: Path, codes: FeatureCodes, tmp_path: Path) -> None:
    printed = run(*kept(folder), "--out", tmp_path / "all.csv", "-n", 4)
    stats = feature_statistics(codes, by=["language"])
    assert printed.splitlines()[1].startswith(f"{stats.n_silent:,} latents are silent here")
    rows = list(csv.DictReader((tmp_path / "all.csv").read_text(encoding="utf-8").splitlines()))
    assert len(rows) == 4096 and int(rows[0]["latent"]) == int(stats.density.argmax())
    density = np.array([float(row["density"]) for row in rows])
    assert (np.diff(density) <= 0).all()
    by_language = stats.by["language"].density[int(rows[0]["latent"])]
    assert [rows[0]["in en"], rows[0]["in it"]] == [f"{part:.2%}" for part in by_language]


def test_a_latent_and_its_sound(folder: Path, codes: FeatureCodes, tmp_path: Path) -> None:
    latent = int(feature_statistics(codes, by=()).maximum.argmax())
    labels = Labels.from_rows([(clip, "half", 0.0, 1.0, "first") for clip in codes.clips])
    file = write_labels(labels, tmp_path / "halves.json")
    out, wav = tmp_path / "top.json", tmp_path / "sounds"
    printed = run(
        *kept(folder), "--latent", latent, "-n", 2, "--wav", wav, "--out", out, "--labels", file, "--labels", "key"
    )
    rows, top = json.loads(out.read_text(encoding="utf-8")), top_segments(codes, latent, 2)
    assert [(row["clip"], row["peak"]) for row in rows] == [(one.clip, pytest.approx(one.peak)) for one in top]
    assert [row["half"] for row in rows] == ["first" if one.peak_time < 1 else "" for one in top]
    for row, one in zip(rows, top, strict=True):
        with wave.open(row["sound"]) as sound:
            assert sound.getnframes() / sound.getframerate() == pytest.approx(one.context[1] - one.context[0], abs=0.02)
    assert f"steer {folder / 'manifest.jsonl'} --latent {latent}" in printed


def test_labels_are_scored_on_the_other_half(folder: Path, codes: FeatureCodes, tmp_path: Path) -> None:
    out = tmp_path / "best.csv"
    printed = run(*kept(folder), "--labels", "language", "--labels", "sound", "--by", "key", "--out", out)
    assert "labels in both: 2 of language, 5 of loudness, 4 of pitch" in printed
    rows = {row["label"]: row for row in csv.DictReader(out.read_text(encoding="utf-8").splitlines())}
    table = features_command.read_sources(None, None, codes, ["language"]).table  # type: ignore[arg-type]
    for match in score_features(codes, table, by="key").best("language"):
        found = rows[match.label]
        assert int(found["latent"]) == match.latent and float(found["F1"]) == pytest.approx(match.f1)


def test_a_store_without_clips(folder: Path, codes: FeatureCodes) -> None:
    printed = run("--store", folder / "acts", "--clip", SORRY, "-n", 1)
    assert printed.splitlines()[2].split()[0] == str(search_span(codes, SORRY)[0].latent)
    with pytest.raises(ConfigError, match="--labels words listens to the clips: name them, too"):
        run("--store", folder / "acts", "--labels", "words")
    with pytest.raises(ConfigError, match="--language and --where choose among clips"):
        run("--store", folder / "acts", "--language", "en")


def test_labels_that_do_not_match(folder: Path, codes: FeatureCodes, tmp_path: Path) -> None:
    phone = ("phone", 0.0, 0.5, "p")
    file = write_labels(Labels.from_rows([("other/clip", *phone), ("and/another", *phone)]), tmp_path / "other.json")
    with pytest.raises(AnalysisError, match="The clip 'other/clip' of the labels fits none of 6 clips"):
        run(*kept(folder), "--labels", file)
    some = write_labels(Labels.from_rows([("other/clip", *phone), (SORRY, *phone)]), tmp_path / "some.json")
    assert "1 labelled clips are none of those asked for" in run(*kept(folder), "--labels", some, "--label", "phone=p")
    classes = features_command.read_sources(None, None, codes, [str(some), "classes"]).labels  # type: ignore[arg-type]
    assert classes is not None and {"phone", "voicing", "place"} <= set(classes.tier_names)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ([], ConfigError, "No clips were given"),
        (["nothing.wav"], Exception, "nothing.wav"),
        (["CLIP", "--sae", "whisper"], SaeError, "There is no SAE 'whisper'"),
        (["CLIP", "--latent", "4096"], AnalysisError, "There is no latent 4096: the SAE has 4,096, counted from 0"),
        (["CLIP", "--span", "2"], ConfigError, "'2' is no span: expected START:END in seconds"),
        (["CLIP", "--span", "2:1"], ConfigError, "The span '2:1' is empty"),
        (["CLIP", "--span", "0:1", "--word", "a"], ConfigError, "One question at a time"),
        (["CLIP", "--label", "word=a"], ConfigError, "pass --labels"),
        (["CLIP", "--wav", "x"], ConfigError, "pass --latent"),
        (["CLIP", "--out", "x.txt"], ConfigError, "expected a file that ends in .csv or .json"),
        (["shipped", "--span", "0:1"], ConfigError, "of which clip"),
    ],
)
def test_bad_input(arguments: list[str], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        run(*[CLIPS[0].path if one == "CLIP" else one for one in arguments])


def test_labels_and_spans_that_there_are_not(codes: FeatureCodes) -> None:
    for names, message in ((["wrods"], "Did you mean 'words'"), (["classes"], "made from a tier 'phone'")):
        with pytest.raises(ConfigError, match=message):
            features_command.read_sources(None, None, codes, names)  # type: ignore[arg-type]
    with pytest.raises(AnalysisError, match="No frame of"):
        feature_rows.of_search(codes, SORRY, (90.0, 91.0), None, None, 3)
    table = features_command.read_sources(None, None, codes, ["language"]).table  # type: ignore[arg-type]
    with pytest.raises(AnalysisError, match="There is no label 'language=eng' here. Did you mean 'language=en'"):
        feature_rows.of_search(codes, None, None, "language=eng", table, 3)
    silent = int((codes.acts.sum(0) == 0).nonzero()[0][0])
    with pytest.raises(AnalysisError, match="fires on none of"):
        feature_rows.of_latents(codes, [silent], None, 3)


def test_an_sae_of_another_model_or_hook(model: HookedWhisper, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model.cfg, "model_name", "openai/whisper-small")
    with pytest.raises(ConfigError, match="was trained on openai/whisper-base, and --model is openai/whisper-small"):
        run(CLIPS[0].path, "--model", "openai/whisper-small")
    monkeypatch.undo()
    sae = load_sae("whisper-base/encoder.hook_out")
    make_store(tmp_path / "small", [[4, 4]])
    with pytest.raises(AnalysisError, match="it was made for another hook or another model"):
        features_command.read_codes(model, sae, None, None, tmp_path / "small")
    with pytest.raises(AnalysisError, match="pass an SAE of the encoder"):
        features_command.read_codes(model, sae, "decoder.blocks.0.hook_resid_post", None, tmp_path)
