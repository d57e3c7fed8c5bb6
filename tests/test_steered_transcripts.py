"""Transcripts under a dose: each is that of the edit itself, and every control stands beside it."""

from __future__ import annotations

import pytest
import torch
from sae_files import random_sae
from short_windows import exact_sae, short_windows, tiny_whisper

from hooked_whisper import AnalysisError, HookedWhisper
from hooked_whisper.analysis.activity import Activity
from hooked_whisper.analysis.edits import Add, Clamp, Scale, Span, Swap, Zero
from hooked_whisper.analysis.steered_transcripts import Steer, SteeredClips, dose_transcripts
from hooked_whisper.analysis.steering import Steering, steer
from hooked_whisper.saes import load_sae
from hooked_whisper.speech import clips

ACTIVITY = Activity(torch.tensor([0.5, 0.25, 0.0, 0.2, 0.1]), torch.tensor([2.0, 4.0, torch.nan, 1.0, 3.0]), 100)


@pytest.mark.parametrize(
    ("how", "dose", "edit", "strength"),
    [
        (Steer("add", 1), 2.0, Add(1, 2.0, 4.0), 1.0),
        (Steer("add", 2, magnitude=7.0), 2.0, Add(2, 2.0, 7.0), 1.0),
        (Steer("scale", 1), 0.5, Scale(1, 0.5), 1.0),
        (Steer("clamp", 0), 3.0, Clamp(0, 6.0, 6.0), 1.0),
        (Steer("zero", 1), 2.0, Zero(1), 2.0),
        (Steer("swap", 0, 1), 3.0, Swap(0, 1, 4.0), 3.0),
    ],
)
def test_what_a_dose_is(how: Steer, dose: float, edit: object, strength: float) -> None:
    assert how.edit(dose, ACTIVITY) == (edit, strength)


def test_what_is_refused() -> None:
    with pytest.raises(AnalysisError, match="Unknown mode 'ad': expected add, .* Did you mean 'add'"):
        Steer("ad", 1)
    for how in (lambda: Steer("swap", 1), lambda: Steer("add", 1, 2)):
        with pytest.raises(AnalysisError, match="A target is what 'swap' puts"):
            how()


@pytest.fixture(scope="module")
def heard(shared_whisper_base: HookedWhisper) -> SteeredClips:
    """Two clips of two languages in windows of 4 s, one after the other."""
    model, sae = short_windows(shared_whisper_base, 4), load_sae("whisper-base/encoder.hook_out")
    sounds = [clips(language, key="vm-sorry")[0].load() for language in ("en", "it")]
    return SteeredClips(model, sae, sounds, batch_size=1)


def test_clips_are_heard_as_they_are(heard: SteeredClips) -> None:
    assert heard.languages == ["en", "it"] and "sorry" in heard.texts[0] and "spiacent" in heard.texts[1].lower()
    both = torch.cat([heard.codes(0), heard.codes(1)])
    assert torch.equal(heard.activity.density, (both != 0).double().mean(0).float())
    with pytest.raises(AnalysisError, match="There is no clip 2"):
        heard.codes(2)


def test_each_transcript_is_that_of_the_edit(heard: SteeredClips) -> None:
    model, sae = heard.model, heard.sae
    latent = int(heard.activity.density.argmax())
    found = dose_transcripts(heard, Steer("add", latent, spans=[[(0.2, 0.8)]] * 2), (5.0,))
    assert [one.version for one in found[::2]] == ["unhooked", "sae", "steered", "random-0"]
    steered = next(one for one in found if one.version == "steered")
    assert steered.latents == (latent,) and all(one.latents not in ((), (latent,)) for one in found[6:])
    push = Add(latent, 5.0, heard.activity.magnitude_of(latent), Span(0.2, 0.8))
    sound = clips("en", key="vm-sorry")[0].load()
    for steering, text in (
        (Steering([push], sae), steered.text),
        (Steering((), sae, error_term="dropped"), found[2].text),
    ):
        with steer(model, steering):
            said = model.transcribe(sound, language="en")
        assert said.text.strip() == text
    assert found[0].changed == 0 and steered.changed > 0 and steered.text != heard.texts[0]


def test_a_silent_latent_is_switched_on(heard: SteeredClips) -> None:
    silent = int((heard.activity.density == 0).nonzero()[0])
    with pytest.raises(AnalysisError, match="its typical magnitude is not known: pass one"):
        dose_transcripts(heard, Steer("add", silent), (1.0,))
    with pytest.raises(
        AnalysisError, match=r"fires on none of these clips: there is nothing to scale. Add switches it"
    ):
        dose_transcripts(heard, Steer("scale", silent, magnitude=5.0), (1.0,))
    found = dose_transcripts(heard, Steer("add", silent, magnitude=5.0), (40.0,))
    assert any(one.changed > 0 for one in found if one.version == "steered")


def test_bad_doses_and_spans(heard: SteeredClips) -> None:
    for doses in ((), (float("nan"),)):
        with pytest.raises(AnalysisError, match="expected finite numbers"):
            dose_transcripts(heard, Steer("add", 0), doses)
    with pytest.raises(AnalysisError, match="There is no latent 4096"):
        dose_transcripts(heard, Steer("add", 4096), (1.0,))
    with pytest.raises(AnalysisError, match="Spans of 1 clips were given, and there are 2"):
        heard.under(Steering((), heard.sae, error_term="dropped"), [[(0.0, 1.0)]])
    with pytest.raises(AnalysisError, match="No clips to transcribe"):
        SteeredClips(heard.model, heard.sae, [])


def test_an_sae_of_the_decoder(shared_whisper_base: HookedWhisper) -> None:
    model = tiny_whisper(shared_whisper_base)
    sae = random_sae("topk", "decoder.blocks.1.hook_resid_post", d_in=32, dtype="float32")
    heard = SteeredClips(model, sae, [clips("en", key="vm-sorry")[0].load()[:32_000]], ["en"])
    latent = int(heard.activity.density.argmax())
    steered = [one for one in dose_transcripts(heard, Steer("add", latent), (50.0,)) if one.version == "steered"]
    assert steered[0].changed > 0
    with pytest.raises(AnalysisError, match="runs over tokens, not frames"):
        heard.codes(0)


def test_an_exact_sae_alone_changes_nothing(shared_whisper_base: HookedWhisper) -> None:
    model = tiny_whisper(shared_whisper_base)
    heard = SteeredClips(model, exact_sae(32), [clips("en", key="vm-sorry")[0].load()[:32_000]], ["en"])
    assert heard.under(Steering((), heard.sae, error_term="dropped")) == heard.texts
