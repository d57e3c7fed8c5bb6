"""What the explorer shows: features over time, and transcripts under one of them, with their controls."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sae_files import random_sae
from sounds import write_wav

from hooked_whisper import AnalysisError, AudioError, HookedWhisper
from hooked_whisper.analysis.explorer import Explorer, Heard
from hooked_whisper.analysis.steered_transcripts import Steer, dose_transcripts
from hooked_whisper.saes import load_sae
from hooked_whisper.speech import clips

CLIP = clips("en", key="vm-sorry")[0]


@pytest.fixture(scope="module")
def explorer(shared_short_whisper_base: HookedWhisper) -> Explorer:
    """whisper-base with a window of 4 s, and the shipped SAE."""
    return Explorer(shared_short_whisper_base, load_sae("whisper-base/encoder.hook_out"))


@pytest.fixture(scope="module")
def heard(explorer: Explorer) -> Heard:
    return explorer.hear(CLIP.path)


def test_a_clip_is_heard(explorer: Explorer, heard: Heard) -> None:
    assert (heard.language, heard.text) == ("en", "I'm sorry I did not understand your response.")
    assert heard.seconds == pytest.approx(CLIP.seconds, abs=1e-3) and explorer.seconds == 4
    frames = explorer.model.run_with_hooks(CLIP.path, stop_at="encoder.hook_out")[0, : heard.codes.n_rows]
    acts = explorer.sae.encode(frames)
    latent = heard.fires(1)[0]["latent"]
    assert np.allclose(heard.activation(latent), acts[:, latent].detach().numpy(), atol=1e-4)
    assert heard.codes.n_rows == 154 and explorer.n_latents == 4096


def test_what_fires_when(heard: Heard) -> None:
    rows = heard.fires(5)
    sums = [float(heard.activation(row["latent"]).sum()) for row in rows]
    assert sums == sorted(sums, reverse=True)
    apart = heard.fires(3, (0.2, 0.6))
    inside = heard.activation(apart[0]["latent"]) > 0
    assert inside[10:30].mean() == pytest.approx(apart[0]["here"]) and apart[0]["auc"] > 0.9
    with pytest.raises(AnalysisError, match="No frame of"):
        heard.fires(3, (3.5, 3.9))


def test_magnitudes(heard: Heard) -> None:
    latent = heard.fires(1)[0]["latent"]
    acts = heard.activation(latent)
    assert heard.magnitude(latent) == (pytest.approx(acts[acts > 0].mean(), rel=1e-4), True)
    silent = int((heard.clip.activity.density == 0).nonzero()[0])
    guess, fires = heard.magnitude(silent)
    assert not fires and guess == pytest.approx(float(heard.clip.activity.magnitude.nanmedian()))
    with pytest.raises(AnalysisError, match="Latent 4096 does not exist"):
        heard.magnitude(4096)


def test_transcripts_stand_beside_their_controls(heard: Heard) -> None:
    latent = heard.fires(1)[0]["latent"]
    found = heard.steered("add", latent, dose=12.0, span=(0.2, 0.8))
    assert [one.version for one in found] == ["unhooked", "sae", "steered", "random-0"]
    assert found == dose_transcripts(heard.clip, Steer("add", latent, spans=[[(0.2, 0.8)]]), [12.0])
    silent = int((heard.clip.activity.density == 0).nonzero()[0])
    assert heard.steered("add", silent, dose=1.0)[2].latents == (silent,)
    with pytest.raises(AnalysisError, match="there is nothing to scale"):
        heard.steered("scale", silent, dose=1.0)


def test_pictures(heard: Heard) -> None:
    latents = [row["latent"] for row in heard.fires(3)]
    figure = heard.plot(latents, (0.2, 0.6))
    top, bottom = figure.axes
    assert [label.get_text() for label in bottom.get_yticklabels()] == [str(latent) for latent in latents]
    shown = bottom.images[0].get_array()
    assert shown is not None and shown.shape == (3, 154) and np.allclose(shown.max(1), 1)
    assert np.allclose(shown[0], heard.activation(latents[0]) / heard.activation(latents[0]).max())
    assert [line.get_xdata()[0] for line in top.lines] == [0.2, 0.6] and top.images
    for wrong in ([], list(range(13))):
        with pytest.raises(AnalysisError, match="a picture shows 1 to 12"):
            heard.plot(wrong)


def test_what_is_refused(explorer: Explorer, tmp_path: Path) -> None:
    with pytest.raises(AudioError, match=r"lasts 5.0 s, and the explorer shows one window of 4 s: cut it"):
        explorer.hear(write_wav(tmp_path / "long.wav", 5.0))
    sae = random_sae("topk", "decoder.blocks.1.hook_resid_post", d_in=512, dtype="float32")
    with pytest.raises(AnalysisError, match="the explorer shows frames of 20 ms"):
        Explorer(explorer.model, sae)
