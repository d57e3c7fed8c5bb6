"""Gates and the direction towards ending at once: by hand, by intervention, and beside every control."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from sae_files import random_sae
from short_windows import tiny_whisper
from test_hallucination import speech

from hooked_whisper import AnalysisError, HookedWhisper
from hooked_whisper.analysis.hallucination import HallucinationResult, is_false
from hooked_whisper.analysis.non_speech import made_sounds, noises, silences
from hooked_whisper.analysis.quieting import Quieting, find_quieting, quieting_experiment
from hooked_whisper.analysis.steering import Steerer, steer
from hooked_whisper.saes.spliced_evaluation import listen

SOUNDS = [*silences((1.0,)), *noises((-20,), n_each=3, seconds=1)]


@pytest.fixture(scope="module")
def model(shared_whisper_base: HookedWhisper) -> HookedWhisper:
    return tiny_whisper(shared_whisper_base)


def sae(hook: str = "encoder.hook_out") -> Any:
    return random_sae("topk", hook, 32, 64, dtype="float32")


def found(model: HookedWhisper, hook: str = "encoder.hook_out", **options: Any) -> Quieting:
    return find_quieting(model, sae(hook), SOUNDS, speech(), batch_size=3, progress=False, **options)


@pytest.fixture(scope="module")
def quieting(model: HookedWhisper) -> Quieting:
    return found(model)


def test_gates_fire_more_in_sounds(model: HookedWhisper, quieting: Quieting) -> None:
    assert (quieting.n_sounds, quieting.n_false, quieting.n_speech) == (4, 4, 4)
    corpus = speech()
    talk: list[Any] = [corpus.load(item) for item in corpus]
    shares = []
    for clips in ([sound.samples for sound in SOUNDS], talk):
        batch = listen(model, clips, ["en"] * len(clips))
        rows = [batch.encoder_out[i, batch.frame_mask[i]] for i in range(len(clips))]
        shares.append(torch.stack([(quieting.sae.encode(one) > 0).float().mean(0) for one in rows]))
    gates = [latent for latent, _ in quieting.gates]
    assert len(gates) == 2 and (shares[0][:, gates].mean(0) > shares[1][:, gates].mean(0)).all()


@pytest.mark.parametrize("hook", ["encoder.hook_out", "encoder.blocks.0.hook_resid_post"])
def test_the_direction_is_the_gradient_of_ending_at_once(model: HookedWhisper, hook: str) -> None:
    """A small push along it does what the gradient says, and more than one along any of ten other directions."""
    quieting = found(model, hook)
    tokenizer: Any = model.tokenizer
    prompt = torch.tensor([tokenizer.prompt("en", "transcribe", False)])

    def ends(vector: torch.Tensor | None) -> float:
        total = 0.0
        for sound in SOUNDS:
            batch = listen(model, [sound.samples], ["en"])
            mask = batch.frame_mask[..., None].float()
            hooks: Any = [] if vector is None else [(hook, lambda x, hook, mask=mask: x + mask * vector)]
            with model.hooks(fwd_hooks=hooks), torch.no_grad():
                logits = model.decode(prompt, model.encode_mel(batch.mel))[0, -1].double()
            total += float(logits.log_softmax(-1)[tokenizer.eot])
        return total

    unit = quieting.towards_end.vector / quieting.towards_end.norm
    generator = torch.Generator().manual_seed(0)
    others = torch.randn(10, len(unit), generator=generator)
    base, step = ends(None), 0.01
    along = ends(step * unit) - base
    assert along > 0
    for other in others / others.norm(dim=1, keepdim=True):
        slope = along * float(other @ unit)  # of a gradient that points along `unit`
        assert ends(step * other) - base == pytest.approx(slope, abs=0.05 * along)


def test_nothing_changes_where_a_gate_is_silent(model: HookedWhisper, quieting: Quieting) -> None:
    batch = listen(model, [SOUNDS[1].samples, SOUNDS[2].samples], ["en", "en"])
    out = Steerer(model, quieting.steering(1.5))(batch.encoder_out, batch.frame_mask)
    fires = torch.stack([quieting.sae.encode(batch.encoder_out)[..., latent] > 0 for latent, _ in quieting.gates])
    here = fires.all(0) & batch.frame_mask
    assert here.any() and not here.all()
    torch.testing.assert_close(out[here], batch.encoder_out[here] + 1.5 * quieting.towards_end.vector)
    assert torch.equal(out[~here], batch.encoder_out[~here])
    everywhere = Steerer(model, quieting.steering(1.5, everywhere=True))(batch.encoder_out, batch.frame_mask)
    moved = (everywhere != batch.encoder_out).any(-1)
    assert torch.equal(moved, batch.frame_mask)


@pytest.fixture(scope="module")
def result(model: HookedWhisper, quieting: Quieting) -> HallucinationResult:
    others = [*noises((-20,), n_each=2, seconds=1, seed=1), *made_sounds(1, 1.0)]
    return quieting_experiment(
        model, quieting, others, speech(2), doses=(1.0, 40.0), n_random=2, batch_size=3, progress=False
    )  # fmt: skip


def test_versions(result: HallucinationResult, model: HookedWhisper, quieting: Quieting) -> None:
    names = ["steered", "random", "vector", "everywhere"]
    assert [(one.condition, one.strength) for one in result.versions] == [
        ("unhooked", 0), ("sae", 0), *[(name, dose) for dose in (1, 40) for name in names],
    ]  # fmt: skip
    assert result.n_sounds == {"all": 5, "noise -20 dB": 2, "hum": 1, "ticks": 1, "chords": 1} and result.n_speech == 2
    said = []
    with steer(model, quieting.steering(40.0)):  # by hand
        for sound in [*noises((-20,), n_each=2, seconds=1, seed=1), *made_sounds(1, 1.0)]:
            written: Any = model.transcribe(sound.samples, language="en")
            said.append(is_false(written.text))
    assert result.version("steered", strength=40).false["all"].value == pytest.approx(sum(said) / 5)
    assert "Latents that have to fire, with their AUC" in result.to_markdown()


def test_refusals(model: HookedWhisper, quieting: Quieting) -> None:
    late: Any = random_sae("topk", "decoder.blocks.0.hook_resid_post", 32, 64, dtype="float32")
    with pytest.raises(AnalysisError, match="is no hook of the encoder over frames"):
        find_quieting(model, late, SOUNDS, speech(), progress=False)
    with pytest.raises(AnalysisError, match="n_random=0, 3 doses, 4 sounds: expected at least one of each"):
        quieting_experiment(model, quieting, SOUNDS, speech(), n_random=0, progress=False)
    with pytest.raises(AnalysisError, match="0 false windows and 4 of speech"):
        find_quieting(model, sae(), [], speech(), progress=False)
