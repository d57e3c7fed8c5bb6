"""`hooked-whisper evaluate`, from an SAE on disk to a report beside it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from sae_files import metadata
from short_windows import exact_sae, tiny_whisper
from typer.testing import CliRunner

from hooked_whisper import ConfigError, CorpusError, HookedWhisper, cli
from hooked_whisper.saes.report import SaeReport
from hooked_whisper.speech import clips


@pytest.fixture(scope="module")
def tiny(shared_whisper_base: HookedWhisper) -> HookedWhisper:
    return tiny_whisper(shared_whisper_base)


@pytest.fixture
def loads(tiny: HookedWhisper, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the models that were asked for; each is the tiny one."""
    asked: list[str] = []

    def from_pretrained(name: str, **options: object) -> HookedWhisper:
        asked.append(name)
        return tiny

    monkeypatch.setattr(HookedWhisper, "from_pretrained", from_pretrained)
    return asked


@pytest.fixture
def sae(tmp_path: Path) -> Path:
    """A run's folder with an SAE that gives everything back."""
    made = exact_sae(32)
    made.cfg.metadata = metadata("encoder.hook_out", model_name="openai/whisper-base")
    made.save_model(tmp_path / "run" / "sae")
    return tmp_path / "run"


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    """Four clips, two of them held out."""
    rows = [
        {"path": str(clip.path), "text": clip.text, "language": clip.language, "key": clip.key, "split": split}
        for key, split in (("conf-leaderhasleft", "train"), ("vm-savefolder", "held-out"))
        for clip in (clips("en", key)[0], clips("it", key)[0])
    ]
    path = tmp_path / "manifest.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return path


def run(*arguments: object) -> str:
    result = CliRunner().invoke(cli.app, ["evaluate", *map(str, arguments)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_the_report_lies_beside_the_sae(sae: Path, manifest: Path, loads: list[str]) -> None:
    shown = run(sae, "--corpus", manifest, "--no-baselines")
    assert loads == ["openai/whisper-base"]
    report = SaeReport.from_json((sae / "evaluation.json").read_text(encoding="utf-8"))
    assert report.overall.reconstruction.n_clips == 4
    assert report.overall.reconstruction.fvu.value == pytest.approx(0, abs=1e-9)
    assert report.baselines == {}
    assert report.overall.transcripts is not None
    assert (sae / "evaluation.md").read_text(encoding="utf-8") == report.to_markdown()
    assert (sae / "evaluation.png").stat().st_size > 1000
    lines = shown.splitlines()
    assert lines[0].split(maxsplit=1) == ["pass", f"FVU: {report.overall.reconstruction.fvu} (≤ 0.1)"]
    assert [line.split()[0] for line in lines[: len(report.gates())]].count("pass") >= 3
    assert lines[-2] == f"Written: {sae}/evaluation.json, {sae}/evaluation.md, {sae}/evaluation.png"
    assert lines[-1] == f"Next: hooked-whisper publish {sae} USER/NAME"


def test_a_part_of_the_corpus_can_be_chosen(sae: Path, manifest: Path, loads: list[str], tmp_path: Path) -> None:
    options = ("--corpus", manifest, "--no-splice", "--no-baselines", "--out", tmp_path / "there")

    def evaluated(*chosen: str) -> SaeReport:
        run(sae, *options, *chosen)
        return SaeReport.from_json((tmp_path / "there" / "evaluation.json").read_text(encoding="utf-8"))

    assert evaluated("--where", "split=held-out").overall.reconstruction.n_clips == 2
    one = evaluated("--where", "split=held-out", "--language", "it")
    assert (one.overall.reconstruction.n_clips, list(one.languages)) == (1, ["it"])
    half = evaluated("--held-out", "0.5", "--by", "key")
    assert half.overall.reconstruction.n_clips == 2
    assert list(half.languages) == ["en", "it"]
    assert evaluated("--clips-per-language", "1").overall.reconstruction.n_clips == 2
    assert not (sae / "evaluation.json").exists()


def test_model_and_hook_can_be_given(sae: Path, manifest: Path, loads: list[str]) -> None:
    hook = "encoder.blocks.1.hook_resid_post"
    run(sae, "--corpus", manifest, "--no-splice", "--no-baselines", "--model", "other/model", "--hook", hook)
    assert loads == ["other/model"]
    assert json.loads((sae / "evaluation.json").read_text(encoding="utf-8"))["hook"] == hook


def test_a_folder_of_audio_is_a_corpus(sae: Path, loads: list[str], data: Path) -> None:
    run(sae, "--corpus", data / "speech" / "it", "--no-splice", "--no-baselines")
    report = SaeReport.from_json((sae / "evaluation.json").read_text(encoding="utf-8"))
    assert report.overall.reconstruction.n_clips > 10


def test_what_cannot_be_done_is_refused(sae: Path, manifest: Path, loads: list[str], tmp_path: Path) -> None:
    def refused(*arguments: object) -> None:
        CliRunner().invoke(cli.app, ["evaluate", *map(str, arguments)], catch_exceptions=False)

    with pytest.raises(ConfigError, match="'user/name' is no folder to write the report into: pass --out"):
        refused("user/name", "--corpus", manifest)
    with pytest.raises(ConfigError, match="--where 'held-out' names no value: expected column=value"):
        refused(sae, "--corpus", manifest, "--where", "held-out")
    with pytest.raises(CorpusError, match="has no clip in where"):
        refused(sae, "--corpus", manifest, "--where", "split=test")
    nameless = exact_sae(32)
    nameless.save_model(tmp_path / "nameless")
    with pytest.raises(ConfigError, match="names no model: pass --model"):
        refused(tmp_path / "nameless", "--corpus", manifest)


def test_importing_the_command_costs_nothing() -> None:
    code = "import sys, hooked_whisper.saes.evaluate_command\nprint('torch' in sys.modules, 'numpy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.split() == ["False", "False"], done.stderr
