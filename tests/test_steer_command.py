"""`hooked-whisper steer`: transcripts at each dose, with the controls, in print and in a file."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from sae_files import metadata
from short_windows import exact_sae
from typer.testing import CliRunner

from hooked_whisper import AnalysisError, ConfigError, HookedWhisper, cli
from hooked_whisper.analysis.dashboard_steering import SteeringView
from hooked_whisper.analysis.steer_command import spans_of_word, summary
from hooked_whisper.analysis.steered_transcripts import Steer, SteeredClips, SteeredText, dose_transcripts
from hooked_whisper.saes import Corpus, load_sae
from hooked_whisper.speech import clips

CLIP = clips("en", key="vm-sorry")[0]

pytestmark = pytest.mark.usefixtures("commands_load_it")


@pytest.fixture(scope="module")
def model(shared_short_whisper_base: HookedWhisper) -> HookedWhisper:
    return shared_short_whisper_base


def run(*arguments: object) -> str:
    """What a command prints; it must succeed."""
    result = CliRunner().invoke(cli.app, ["steer", *map(str, arguments)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_transcripts_beside_each_other(model: HookedWhisper, tmp_path: Path) -> None:
    out = tmp_path / "steered.csv"
    heard = SteeredClips(model, load_sae("whisper-base/encoder.hook_out"), [CLIP.load()])
    latent = int(heard.activity.density.argmax())
    doses = ["--dose", 12]
    printed = run(CLIP.path, "--latent", latent, *doses, "--span", "0.2:0.8", "--out", out).splitlines()
    expected = dose_transcripts(heard, Steer("add", latent, spans=[[(0.2, 0.8)]]), (12.0,))
    assert printed[0] == f"{CLIP.path} (en)"
    assert [line.split()[0] for line in printed[2:6]] == ["unhooked", "SAE", "steered", "random-0"]
    assert all(line.endswith(one.text) for line, one in zip(printed[2:6], expected, strict=True))
    rows = list(csv.DictReader(out.read_text(encoding="utf-8").splitlines()))
    assert [row["text"] for row in rows] == [one.text for one in expected]
    assert [float(row["changed"]) for row in rows] == pytest.approx([one.changed for one in expected])
    assert printed[-1].startswith("Next: many clips, a target")


def test_several_clips_and_a_word(tmp_path: Path) -> None:
    rows = [{"path": str(clips(code, key="vm-sorry")[0].path), "language": code} for code in ("en", "it")]
    manifest = tmp_path / "manifest.jsonl"
    manifest.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    out = tmp_path / "steer.json"
    options = ["--latent", 1, "--magnitude", 8, "--dose", 1, "--word", "Sorry", "--random", 0, "--out", out]
    printed = run(manifest, *options)
    assert f"hooked-whisper dashboard CLIPS --feature 1 --steering 1={out}" in printed
    view = SteeringView.read(out)
    assert view.doses == [1.0] and view.conditions == ["steered"] and len(view.clips) == 2
    assert dict(view.about) == {"latents": "1", "clips": "2"}
    clip = view.clips[0][0]
    assert view.text(clip, "steered", 1.0) is not None and str(view.text(clip, "unhooked", 0.0)) in printed
    assert "All 2 clips" in printed and "nothing tells this latent from any other" in printed
    table = printed[printed.index("All 2 clips") :].splitlines()
    assert [line.split()[0] for line in table[2:4]] == ["SAE", "steered"]
    # Where the word is not said nothing is pushed.
    italian = printed[printed.index("(it)") :].splitlines()
    assert italian[4].split("0.0%")[1].strip() == italian[2].removeprefix("unhooked").strip()


def test_when_a_word_is_said(model: HookedWhisper) -> None:
    corpus = Corpus.from_clips([CLIP, clips("it", key="vm-sorry")[0]])
    spans = spans_of_word(model, corpus, "sorry", 2)
    assert len(spans[0]) == 1 and 0 < spans[0][0][0] < spans[0][0][1] < 1.5 and spans[1] == []
    with pytest.raises(AnalysisError, match="The model hears 'banana' in none of 2 clips; in the first one: i'm sorry"):
        spans_of_word(model, corpus, "banana", 2)


def test_summary_counts_clips() -> None:
    texts = [
        SteeredText(clip, "en", version, (), dose, "", changed)
        for version, dose, both in (("unhooked", 0.0, (0, 0)), ("sae", 0.0, (0, 0.5)), ("steered", 2.0, (0.5, 0.25)))
        for clip, changed in enumerate(both)
    ]
    assert summary(texts) == [
        {"version": "SAE alone", "dose": None, "clips changed": 1, "changed": 0.25},
        {"version": "steered", "dose": 2.0, "clips changed": 2, "changed": 0.375},
    ]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (["--latent", "4096"], AnalysisError, "There is no latent 4096: the SAE has 4,096"),
        (["--latent", "1", "--mode", "push"], AnalysisError, "Unknown mode 'push'"),
        (["--latent", "1", "--mode", "swap"], AnalysisError, "A target is what 'swap' puts"),
        (["--latent", "1", "--span", "0:1", "--word", "a"], ConfigError, "both say where"),
        (["--latent", "1", "--error-term", "half"], ConfigError, "expected 'kept' or 'dropped'"),
        (["--latent", "1", "--magnitude", "8", "--span", "3:9"], AnalysisError, "ends after clip 0"),
    ],
)
def test_bad_input(arguments: list[str], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        run(CLIP.path, *arguments)


def test_an_sae_of_another_hook(tmp_path: Path) -> None:
    sae = exact_sae(64)
    sae.cfg.metadata = metadata("encoder.hook_out", model_name="openai/whisper-base")
    sae.save_model(tmp_path / "sae")
    with pytest.raises(Exception, match="it was made for another hook or another model"):
        run(CLIP.path, "--latent", 1, "--sae", tmp_path / "sae")
