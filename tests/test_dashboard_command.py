"""`hooked-whisper dashboard`: from clips to pages, with labels and a steering result, and the next step printed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from short_windows import short_windows
from test_dashboard_steering import result
from test_page import Reader
from typer.testing import CliRunner

from hooked_whisper import AnalysisError, ConfigError, HookedWhisper, cli
from hooked_whisper.speech import clips

CLIPS = [clips(language, "vm-sorry")[0] for language in ("en", "it")] + [clips("en", "vm-savefolder")[0]]


@pytest.fixture(autouse=True)
def loads(shared_whisper_base: HookedWhisper, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every model that is asked for is whisper-base with windows of 4 s."""
    model = short_windows(shared_whisper_base, 4)
    monkeypatch.setattr(HookedWhisper, "from_pretrained", lambda name, **options: model)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("clips") / "manifest.jsonl"
    rows = [{"path": str(one.path), "id": f"{one.language}/{one.key}", "language": one.language} for one in CLIPS]
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return path


def run(*arguments: object) -> str:
    """What the command prints; it must succeed."""
    result = CliRunner().invoke(cli.app, ["dashboard", *map(str, arguments)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_pages_of_some_features(manifest: Path, tmp_path: Path) -> None:
    (tmp_path / "steer.json").write_text(result().to_json())
    out, acts = tmp_path / "pages", tmp_path / "acts"
    shared = [manifest, "--store", acts, "--labels", "language", "--segments", 2]
    steered = ["--steering", f"7={tmp_path / 'steer.json'}"]
    printed = run(*shared, "--out", out, "--feature", 7, "--feature", 1310, "--effects", *steered)
    lines = printed.splitlines()
    assert lines[-3].startswith(f"2 features and 3 clips in {out}, ") or "2 features and" in lines[-3]
    assert lines[-2:] == [
        f"Open {out / 'index.html'} in a browser.",
        f"Next: hooked-whisper publish RUN USER/NAME --dashboard {out}",
    ]
    assert sorted(path.name for path in (out / "features").iterdir()) == ["00007.html", "01310.html"]
    seven, busy = (Reader((out / "features" / f"{n}.html").read_text(encoding="utf-8")) for n in ("00007", "01310"))
    assert seven.all("input")[0]["data-doses"] == "0|0.5|2"
    assert busy.all("audio") and any(text.startswith("language=") for text in busy.texts["th"])
    assert "Effect at the strongest segments" in busy.texts["caption"]
    single = tmp_path / "one"
    printed = run(*shared, "--feature", 1310, "--single", "--out", single)
    assert f"Written: {single / 'latent-1310.html'}" in printed
    assert Reader((single / "latent-1310.html").read_text(encoding="utf-8")).all("audio")[0]["src"].startswith("data:")


def test_what_cannot_be_is_refused_before_anything_is_computed(manifest: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--steering '7': expected LATENT=FILE"):
        run(manifest, "--steering", "7")
    with pytest.raises(AnalysisError, match="holds no steering result"):
        run(manifest, "--steering", f"7={manifest}")
    with pytest.raises(ConfigError, match="--single writes the page of one latent"):
        run(manifest, "--single")
    with pytest.raises(AnalysisError, match="no latent 4096"):
        run(manifest, "--feature", 4096)
    with pytest.raises(AnalysisError, match="holds other things"):
        run(manifest, "--out", manifest.parent)


def test_importing_the_command_costs_nothing() -> None:
    code = (
        "import sys, hooked_whisper.analysis.dashboard_command\nprint('torch' in sys.modules, 'numpy' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
