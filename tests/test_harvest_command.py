"""`hooked-whisper harvest` and `prompts`: from audio files to a store, and the next step printed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from small import small_model
from sounds import make_corpus
from typer.testing import CliRunner

from hooked_whisper import ConfigError, CorpusError, HookedWhisper, cli
from hooked_whisper.saes import ActivationStore, Corpus, harvest_command
from hooked_whisper.saes.harvest_command import choose, open_corpus

HOOK = "encoder.hook_out"


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, object]]:
    """Models that were asked for, and where to put them; each is a small one."""
    asked: list[tuple[str, object]] = []

    def from_pretrained(name: str, device: object = None, dtype: str = "float32") -> HookedWhisper:
        asked.append((name, device))
        return small_model(dtype=torch.float32)

    monkeypatch.setattr(HookedWhisper, "from_pretrained", from_pretrained)
    return asked


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    kinds = ["speech", "speech", "sound", "speech"]
    return make_corpus(tmp_path / "in", [0.1, 0.2, 0.1, 0.3], language=["en", "fr", "en", "it"], kind=kinds)


def run(*arguments: object) -> str:
    """What a command prints; it must succeed."""
    result = CliRunner().invoke(cli.app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_a_manifest_becomes_a_store(loads: list, manifest: Path, tmp_path: Path) -> None:
    out = tmp_path / "acts"
    arguments = ["harvest", manifest, "--hook", HOOK, "--hook", "encoder.blocks.0.hook_resid_*", "--out", out]
    printed = run(*arguments, "--packing", "windows", "--store-dtype", "float32", "--shard-rows", 20)
    store = ActivationStore.open(out)
    assert store.hooks == (
        "encoder.blocks.0.hook_resid_pre", "encoder.blocks.0.hook_resid_mid", "encoder.blocks.0.hook_resid_post", HOOK,
    )  # fmt: skip
    assert (store.n_rows, store.dtype) == (35, torch.float32)
    lines = printed.splitlines()
    assert lines[0] == f"35 rows of {', '.join(store.hooks)} in {out}"
    assert "of it outside the model" in lines[1]
    assert lines[-1] == f"Next: hooked-whisper train {out} --hook {HOOK} --out runs/acts"
    assert loads == [("openai/whisper-base", None)]
    again = run(*arguments, "--packing", "windows", "--store-dtype", "float32", "--shard-rows", 20)
    assert "It was complete already." in again


def test_some_of_the_clips(loads: list, manifest: Path, tmp_path: Path) -> None:
    arguments = ["harvest", manifest, "--hook", HOOK, "--out", tmp_path / "acts", "--where", "kind=speech"]
    run(*arguments, "--language", "en", "--language", "it", "--model", "other")
    store = ActivationStore.open(tmp_path / "acts")
    assert store.clips["clip"].to_pylist() == ["clip-000.wav", "clip-003.wav"]
    assert loads == [("other", None)]


def test_broken_files_are_named(loads: list, manifest: Path, tmp_path: Path) -> None:
    (manifest.parent / "clip-001.wav").write_bytes(b"RIFF")
    arguments = ["harvest", manifest.parent, "--hook", HOOK, "--out", tmp_path / "acts"]
    with pytest.raises(CorpusError, match=r"clip-001.wav"):
        run(*arguments)
    assert "left out: Clip 'clip-001.wav': " in run(*arguments, "--skip-broken")


def test_only_the_first_process_speaks(
    loads: list, manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["harvest", manifest, "--hook", HOOK, "--out", tmp_path / "acts"]
    run(*arguments)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert run(*arguments) == ""


def test_each_process_takes_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    assert harvest_command._own_device() is None
    monkeypatch.setenv("LOCAL_RANK", "5")
    assert harvest_command._own_device() is None
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert harvest_command._own_device() == "cuda:1"


def test_prompts(monkeypatch: pytest.MonkeyPatch, manifest: Path, tmp_path: Path) -> None:
    asked: list[object] = []

    def fetch_prompts(out: Path, *, packages: Path | None, wav: bool) -> Path:
        asked.extend((out, packages, wav))
        return manifest

    monkeypatch.setattr("hooked_whisper.saes.prompts.fetch_prompts", fetch_prompts)
    printed = run("prompts", tmp_path / "p", "--packages", tmp_path, "--wav")
    assert asked == [tmp_path / "p", tmp_path, True]
    assert f"4 files in {manifest}; licences in {tmp_path / 'p' / 'licences'}" in printed
    assert f"Next: hooked-whisper harvest {manifest} --hook encoder.hook_out --packing windows --out acts" in printed


def test_corpora_by_name(manifest: Path) -> None:
    assert len(open_corpus("shipped")) == 100
    assert [item.id for item in open_corpus(str(manifest.parent))] == [item.id for item in open_corpus(str(manifest))]
    assert open_corpus(str(manifest), "skip").on_error == "skip"
    rows = [json.loads(line) for line in manifest.read_text().splitlines()]
    corpus = Corpus.from_dataset([row | {"audio": row["path"], "n": n} for n, row in enumerate(rows)])
    assert [item.columns["n"] for item in choose(corpus, [], ["n=2", "language=en"])] == [2]
    with pytest.raises(ConfigError, match="--where 'n' names no value: expected column=value, such as kind=speech"):
        choose(corpus, [], ["n"])
