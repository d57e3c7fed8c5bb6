"""The command line, as its user sees it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

import hooked_whisper
from hooked_whisper import cli


def invoke(*arguments: str) -> str:
    """What a command prints; it must succeed."""
    result = CliRunner().invoke(cli.app, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_help_names_every_command() -> None:
    shown = invoke("--help")
    for command in ("demo", "transcribe", "hooks", "version"):
        assert f"  {command} " in shown


def test_version() -> None:
    assert invoke("version").strip() == hooked_whisper.__version__


def test_command_is_installed() -> None:
    command = Path(sys.executable).parent / "hooked-whisper"
    done = subprocess.run([command, "version"], capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, hooked_whisper.__version__), done.stderr


def test_transcribe_prints_the_text(data: Path) -> None:
    clip = str(data / "speech" / "en" / "vm-sorry.g722")
    assert invoke("transcribe", clip).strip() == "I'm sorry I did not understand your response."


def test_transcribe_prints_words_with_times(data: Path) -> None:
    lines = invoke("transcribe", "--words", "--language", "french", str(data / "speech" / "fr" / "vm-sorry.g722"))
    rows = [line.split(maxsplit=2) for line in lines.splitlines()]
    starts = [float(start) for start, _, _ in rows]
    assert starts == sorted(starts)
    assert "désolé" in " ".join(word for _, _, word in rows).lower()


def test_transcribe_prints_json_for_each_file(data: Path) -> None:
    files = [str(data / "speech" / language / "vm-sorry.g722") for language in ("es", "it")]
    found = [json.loads(line) for line in invoke("transcribe", "--json", *files).splitlines()]
    assert [item["file"] for item in found] == files
    assert [item["language"] for item in found] == ["es", "it"]
    assert all(item["text"] and item["segments"] for item in found)


def test_hooks_prints_the_table() -> None:
    lines = invoke("hooks").splitlines()
    assert "encoder.blocks.0-5.attn.hook_pattern" in [line.split()[0] for line in lines]
    (row,) = [line for line in lines if line.startswith("decoder.blocks.0-5.cross_attn.hook_k ")]
    assert row.split()[1:] == ["batch", "key_frame", "head", "d_head"]


def test_hooks_takes_a_pattern() -> None:
    names = invoke("hooks", "--names", "--pattern", "encoder.*.hook_resid_post").split()
    assert names == [f"encoder.blocks.{i}.hook_resid_post" for i in range(6)]


def test_refusals_are_one_message_without_a_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["hooked-whisper", "hooks", "--pattern", "encoder.*.hook_resid_pots"])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    message = str(stop.value.code)
    assert message.startswith("hooked-whisper: ")
    assert "hook_resid_pots" in message
    assert "\n" not in message


def test_missing_audio_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("sys.argv", ["hooked-whisper", "transcribe", str(tmp_path / "nothing.wav")])
    with pytest.raises(SystemExit, match=r"nothing\.wav"):
        cli.main()
