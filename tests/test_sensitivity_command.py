"""`hooked-whisper sensitivity`: from clips to the file that `train --sensitivity` takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from short_windows import short_windows
from sounds import make_corpus
from typer.testing import CliRunner

from hooked_whisper import ConfigError, CorpusError, HookedWhisper, cli, saes
from hooked_whisper.saes import Corpus, Sensitivity, measure_sensitivity

HOOK = "encoder.blocks.0.hook_resid_post"


@pytest.fixture
def heard(monkeypatch: pytest.MonkeyPatch, shared_whisper_base: HookedWhisper) -> list[Corpus]:
    """What sensitivities were measured on, by the real model with short windows."""
    corpora: list[Corpus] = []

    def measure(model: HookedWhisper, corpus: Corpus, **options: Any) -> Sensitivity:
        corpora.append(corpus)
        return measure_sensitivity(model, corpus, **options)

    monkeypatch.setattr(saes, "measure_sensitivity", measure)
    model = short_windows(shared_whisper_base, seconds=1)
    monkeypatch.setattr(HookedWhisper, "from_pretrained", lambda *_, **__: model)
    return corpora


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    kinds = ["speech", "sound"] + ["speech"] * 6
    return make_corpus(tmp_path / "in", [0.1] * 8, kind=kinds, key=["a", "a", "b", "b", "c", "c", "d", "d"])


def run(*arguments: object) -> str:
    result = CliRunner().invoke(cli.app, ["sensitivity", *map(str, arguments)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_it_takes_the_clips_that_are_asked_for(heard: list[Corpus], manifest: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "of_it.safetensors"
    printed = run(manifest, "--hook", HOOK, "--where", "kind=speech", "--out", out)
    assert [item.columns["kind"] for item in heard[-1]] == ["speech"] * 7
    assert (Sensitivity.load(out).hook, Sensitivity.load(out).n_clips) == (HOOK, 7)
    assert str(Sensitivity.load(out)) in printed and "left out" not in printed
    assert printed.splitlines()[-1] == (
        f"Next: hooked-whisper train STORE --hook {HOOK} --sensitivity {out} --out runs/by_predictions"
    )
    everything = Corpus.from_manifest(manifest)
    run(manifest, "--held-out", 0.3, "--by", "key", "--out", out)
    assert [item.id for item in heard[-1]] == [item.id for item in everything.split(0.3, by="key")[0]]
    run(manifest, "--every", 3, "--out", out)
    assert [item.id for item in heard[-1]] == [item.id for item in everything][::3]


def test_what_is_left_out_is_told(heard: list[Corpus], manifest: Path, tmp_path: Path) -> None:
    (manifest.parent / "clip-003.wav").write_bytes(b"no sound")
    with pytest.raises(CorpusError):
        run(manifest, "--out", tmp_path / "a")
    assert not (tmp_path / "a").exists()
    assert "left out: 1 of 8 clips" in run(manifest, "--skip-broken", "--out", tmp_path / "a")


def test_a_folder_is_refused_before_the_work(heard: list[Corpus], manifest: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is a folder"):
        run(manifest, "--out", tmp_path)
    assert not heard
