"""The explorer's page: what its buttons do, and, where gradio is installed, that it is served on this machine alone."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from hooked_whisper import AnalysisError, HookedWhisper, MissingExtraError, cli
from hooked_whisper.analysis import explorer_app
from hooked_whisper.analysis.explorer import Explorer, Heard
from hooked_whisper.saes import load_sae
from hooked_whisper.speech import clips

CLIP = clips("en", key="vm-sorry")[0]


@pytest.fixture(scope="module")
def explorer(shared_short_whisper_base: HookedWhisper) -> Explorer:
    """whisper-base with a window of 4 s, and the shipped SAE."""
    return Explorer(shared_short_whisper_base, load_sae("whisper-base/encoder.hook_out"))


@pytest.fixture(scope="module")
def heard(explorer: Explorer) -> Heard:
    return explorer_app.listen(explorer, str(CLIP.path), explorer_app.DETECTED)[0]


def test_listening(explorer: Explorer, heard: Heard) -> None:
    assert heard.text.startswith("I'm sorry")
    _, said = explorer_app.listen(explorer, str(CLIP.path), "it")
    assert said.startswith("3.1 s, it: ")
    for nothing in (None, ""):
        with pytest.raises(AnalysisError, match="There is no clip yet"):
            explorer_app.listen(explorer, nothing, "en")


def test_tables_and_pictures(heard: Heard) -> None:
    table, picture = explorer_app.fires_table(heard, 0.0, 0.0)
    rows = heard.fires(20)
    assert [row[0] for row in table] == [row["latent"] for row in rows]
    assert table[0][1] == "" and table[0][2] == round(rows[0]["share"], 3) and len(picture.axes) == 2
    apart, _ = explorer_app.fires_table(heard, 0.2, 0.6)
    assert apart[0][1] == round(heard.fires(1, (0.2, 0.6))[0]["auc"], 3)


def test_one_latent(heard: Heard) -> None:
    latent = heard.fires(1)[0]["latent"]
    _, magnitude, said = explorer_app.latent_view(heard, latent)
    assert magnitude == round(heard.magnitude(latent)[0], 3) and said.startswith(f"Latent {latent} fires on ")
    silent = int((heard.clip.activity.density == 0).nonzero()[0])
    assert "is silent on this clip" in explorer_app.latent_view(heard, silent)[2]
    for wrong in (None, 1.5):
        with pytest.raises(AnalysisError, match="Which latent"):
            explorer_app.latent_view(heard, wrong)


def test_steering_shows_all_controls(heard: Heard) -> None:
    latent = heard.fires(1)[0]["latent"]
    table = explorer_app.steered_table(heard, latent, "add", 12.0, None, 0.2, 0.8, "kept")
    assert [row[0] for row in table] == ["unhooked", "SAE alone", "steered", "random latent"]
    expected = heard.steered("add", latent, dose=12.0, span=(0.2, 0.8))
    assert [row[4] for row in table] == [one.text for one in expected]
    assert (table[0][3], table[2][1:3]) == ("", [str(latent), 12.0])


def test_without_gradio_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)  # importing it fails then
    with pytest.raises(MissingExtraError, match=r"pip install 'hooked-whisper\[explorer\]'"):
        CliRunner().invoke(cli.app, ["explore"], catch_exceptions=False)


def test_a_missing_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(explorer_app, "import_gradio", lambda: None)
    with pytest.raises(AnalysisError, match="There is no file"):
        CliRunner().invoke(cli.app, ["explore", "--clip", str(tmp_path / "no.wav")], catch_exceptions=False)


def test_it_is_served_on_this_machine_alone() -> None:
    asked: dict[str, Any] = {}

    class Page:
        def launch(self, **options: Any) -> None:
            asked.update(options)

    explorer_app.serve(Page(), port=7861)
    assert (asked["server_name"], asked["share"], asked["server_port"]) == ("127.0.0.1", False, 7861)


PAGE = """
import json, socket, sys
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from hooked_whisper import HookedWhisper
from hooked_whisper.analysis import explorer_app
from hooked_whisper.analysis.explorer import Explorer
from hooked_whisper.saes import load_sae
from hooked_whisper.windows import with_window

model = with_window(HookedWhisper.from_pretrained("openai/whisper-base", device="cpu"), 4)
explorer = Explorer(model, load_sae("whisper-base/encoder.hook_out"))
page = explorer_app.build(explorer_app.import_gradio(), explorer)
with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
explorer_app.serve(page, port=port, block=False)
asks = Client(f"http://127.0.0.1:{port}", verbose=False)
found = asks.predict(handle_file(sys.argv[1]), "en", api_name="/listen")
texts = asks.predict(found[5], "add", 12, None, 0.2, 0.8, "kept", api_name="/steer")
try:
    asks.predict(5000, "add", 1, None, 0, 0, "kept", api_name="/steer")
except AppError as error:
    refused = str(error)
page.close()
print(json.dumps([found[0], [row[0] for row in texts["data"]], refused]))
"""


def test_the_page_itself(root: Path) -> None:
    pytest.importorskip("gradio")
    pytest.importorskip("gradio_client")
    # In a process of its own: gradio leaves event loops behind, of which Python warns when it ends.
    done = subprocess.run([sys.executable, "-c", PAGE, str(CLIP.path)], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    said, versions, refused = json.loads(done.stdout.splitlines()[-1])
    assert "I'm sorry I did not understand your response." in said
    assert versions == ["unhooked", "SAE alone", "steered", "random latent"]
    assert "Latent 5000 does not exist: there are 4096" in refused
