"""`hooked-whisper publish`, from a run's folder to a hub on this machine."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from loopback_hub import Hub, running_hub
from sae_files import metadata
from short_windows import exact_sae
from typer.testing import CliRunner

from hooked_whisper import cli
from hooked_whisper.errors import PublishError

NAME = "someone/some-sae"
# The client's own, of the library below it.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    with running_hub(tmp_path / "cache", monkeypatch) as running:
        yield running


@pytest.fixture
def sae(tmp_path: Path) -> Path:
    """A run's folder with an SAE that gives everything back."""
    made = exact_sae(32)
    made.cfg.metadata = metadata("encoder.hook_out", model_name="openai/whisper-base")
    made.save_model(tmp_path / "run" / "sae")
    (tmp_path / "run" / "evaluation.md").write_text("# Evaluation\n\nThe figures.\n")
    return tmp_path / "run"


def run(*arguments: object) -> str:
    result = CliRunner().invoke(cli.app, ["publish", *map(str, arguments)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_a_run_is_published(sae: Path, hub: Hub) -> None:
    shown = run(sae, NAME, "--licence", "cc-by-sa-4.0", "--private", "--message", "The first")
    repository = hub.repositories[NAME]
    assert (repository.titles, repository.private) == (["The first"], True)
    files = repository.files() or {}
    assert {"README.md", "encoder.hook_out/cfg.json", "encoder.hook_out/evaluation.md"} <= set(files)
    card = files["README.md"].decode()
    assert 'license: "cc-by-sa-4.0"' in card
    assert "The figures." in card
    commit = repository.branches["main"]
    assert shown.splitlines() == [
        f"Published: {hub.url}/{NAME}/commit/{commit}",
        f'Next: load_sae("{NAME}", hook="encoder.hook_out")',
    ]


def test_a_dry_run_shows_the_card_and_sends_nothing(sae: Path, hub: Hub) -> None:
    shown = run(sae, NAME, "--license", "mit", "--dry-run")
    assert hub.repositories == {}
    assert 'license: "mit"' in shown
    assert "# Sparse autoencoder on openai/whisper-base, `encoder.hook_out`" in shown
    assert shown.endswith(
        f"Would go to {NAME}:\n  README.md\n  encoder.hook_out/cfg.json\n  encoder.hook_out/evaluation.md\n"
        "  encoder.hook_out/sae_weights.safetensors\nNext: the same command without --dry-run\n"
    )


def test_a_dashboard_goes_along(sae: Path, hub: Hub, tmp_path: Path) -> None:
    pages = tmp_path / "pages"
    (pages / "features").mkdir(parents=True)
    (pages / "index.html").write_text("<html>")
    (pages / "features" / "00001.html").write_text("<html>")
    (pages / "dashboard.json").write_text('{"complete": true, "hook": "encoder.hook_out"}')
    shown = run(sae, NAME, "--dashboard", pages, "--dry-run")
    assert "encoder.hook_out/dashboard/features/00001.html\n" in shown
    assert "[`dashboard/index.html`](encoder.hook_out/dashboard/index.html)" in shown
    (pages / "dashboard.json").write_text('{"complete": true, "hook": "encoder.blocks.0.hook_resid_post"}')
    with pytest.raises(PublishError, match="is of 'encoder.blocks.0.hook_resid_post', and the SAE of 'encoder.hook_o"):
        run(sae, NAME, "--dashboard", pages)
    (pages / "dashboard.json").write_text('{"complete": false}')
    with pytest.raises(PublishError, match="is unfinished: make it again"):
        run(sae, NAME, "--dashboard", pages)
    with pytest.raises(PublishError, match="holds no dashboard: expected a folder with index.html"):
        run(sae, NAME, "--dashboard", tmp_path / "missing")
    assert hub.repositories == {}


def test_a_pull_request_is_opened_on_request(sae: Path, hub: Hub) -> None:
    run(sae, NAME)
    shown = run(sae, NAME, "--create-pr", "--message", "Better")
    assert shown.startswith(f"Published: {hub.url}/{NAME}/discussions/1\n")


def test_what_cannot_be_published_is_refused(sae: Path, hub: Hub, tmp_path: Path) -> None:
    with pytest.raises(PublishError, match="'nowhere' is no hub repository: expected 'user/name'"):
        run(sae, "nowhere")
    with pytest.raises(PublishError, match="There is no folder .*missing: expected a run"):
        run(tmp_path / "missing", NAME)
    with pytest.raises(PublishError, match="leave out either"):
        run(sae, NAME, "--create-pr", "--revision", "branch")


def test_importing_the_command_costs_nothing() -> None:
    code = "import sys, hooked_whisper.saes.publish_command\nprint('torch' in sys.modules, 'numpy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
