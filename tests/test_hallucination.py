"""False transcripts: what counts as one, which latents separate, and what an experiment makes of known sounds."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import numpy as np
import pytest
from sae_files import random_sae
from short_windows import tiny_whisper

from hooked_whisper import AnalysisError, HookedWhisper
from hooked_whisper.analysis.edits import Zero
from hooked_whisper.analysis.hallucination import (
    HallucinationResult,
    hallucination_experiment,
    is_false,
    separating_latents,
)
from hooked_whisper.analysis.non_speech import noises, silences
from hooked_whisper.analysis.steering import Steering, steer
from hooked_whisper.saes.corpus import Corpus
from hooked_whisper.saes.corpus_item import CorpusItem
from hooked_whisper.saes.error_rates import count_errors, text_normalizer
from hooked_whisper.speech import clips


def test_what_is_false() -> None:
    assert is_false("Thanks for watching!") and is_false("you")
    assert not any(map(is_false, ("", " . ", "[Music]", "(applause)", "...", "♪♪")))


def test_separating_latents_are_ranked_by_auc() -> None:
    from sklearn.metrics import roc_auc_score

    generator = np.random.default_rng(0)
    speech, false = generator.random((30, 6)), generator.random((20, 6))
    false[:, 2] += 2  # separates wholly
    false[:, 4] += 0.4
    false[:, 1] -= 0.9  # fires in speech
    speech[:, 5] = false[:, 5] = 0.3  # tells nothing
    speech[:, 3], false[:, 3] = np.round(speech[:, 3]), np.round(false[:, 3])  # ties
    found = separating_latents(false, speech, 2)
    truth = np.array([1.0] * 20 + [0.0] * 30)
    both = np.concatenate([false, speech])
    auc = [roc_auc_score(truth, both[:, latent]) for latent in range(6)]
    assert [latent for latent, _ in found] == [2, 4] and found[0][1] == 1.0
    for latent, area in separating_latents(false, speech, sum(one > 0.5 for one in auc)):
        assert area == pytest.approx(auc[latent])
    with pytest.raises(AnalysisError, match="latents fire more in false windows than in speech: ask for fewer"):
        separating_latents(false, speech, 6)
    with pytest.raises(AnalysisError, match="0 false windows and 30 of speech"):
        separating_latents(false[:0], speech, 2)


@pytest.fixture(scope="module")
def model(shared_whisper_base: HookedWhisper) -> HookedWhisper:
    return tiny_whisper(shared_whisper_base)  # writes nonsense whatever it hears: every sound is false


SAE: Any = random_sae("topk", "encoder.hook_out", 32, 64, dtype="float32")


def speech(n: int = 4) -> Corpus:
    items = []
    for number, clip in enumerate(clips("en")[:n]):
        sound = {"array": clip.load()[:16_000].numpy(), "sampling_rate": 16_000}
        items.append(CorpusItem(id=f"en/{number}", audio=sound, text=clip.text, language="en"))
    return Corpus(items, name="speech")


def run(model: HookedWhisper, **options: Any) -> HallucinationResult:
    sounds = options.pop("sounds", None) or [*silences((1.0, 2.0)), *noises((-20,), n_each=4, seconds=1)]
    named: dict[str, Any] = {"n_latents": 5, "n_random": 2, "batch_size": 3, "progress": False, **options}
    return hallucination_experiment(model, SAE, sounds, named.pop("speech", None) or speech(), **named)


@pytest.fixture(scope="module")
def result(model: HookedWhisper) -> HallucinationResult:
    return run(model)


def test_versions(result: HallucinationResult, model: HookedWhisper) -> None:
    assert [(one.condition, one.error_term, one.strength) for one in result.versions] == [
        ("unhooked", None, 0),
        ("sae", "dropped", 0),
        *[
            (name, error_term, strength)
            for error_term in ("kept", "dropped")
            for strength in (1, 2)
            for name in ("steered", "random")
        ],
    ]
    assert result.n_sounds == {"all": 3, "silence": 1, "noise -20 dB": 2} and result.n_speech == 2
    assert len(result.latents) == 5 and result.n_false_chosen_on == len(result.examples) == 3
    assert set(result.examples) == {"silence/1s", "noise-20dB/0", "noise-20dB/2"}
    plain = result.version("unhooked")
    assert plain.false["all"].value == 1 and plain.wer_change.value == 0
    # The measured half, by hand, under the steering that was chosen on the other.
    how = Steering([Zero(latent) for latent, _ in result.latents], SAE, strength=2.0)
    clip = list(speech())[1]
    with steer(model, how):
        errors = []
        for item in list(speech())[1::2]:
            said: Any = model.transcribe(speech().load(item), language="en")
            errors.append(count_errors(item.text or "", said.text, text_normalizer("en")))
    wer = sum(one.word_errors for one in errors) / sum(one.words for one in errors)
    assert clip.id == "en/1" and result.version("steered", error_term="kept", strength=2).wer.value == pytest.approx(
        wer
    )


def test_reports(result: HallucinationResult) -> None:
    text = result.to_markdown()
    assert "| version | error term | strength | all (3) | silence (1) | noise -20 dB (2) | WER of speech (2) |" in text
    assert "| sae | dropped | 0 |" in text and "| random | kept | 2 |" in text and "with their AUC" in text
    assert len(json.loads(result.to_json())["versions"]) == 10
    with pytest.raises(AnalysisError, match="No version 'steered' with error_term=None and strength=7"):
        result.version("steered", strength=7)
    with pytest.raises(AnalysisError, match="and random is missing"):
        dataclasses.replace(result, versions=[one for one in result.versions if one.condition != "random"])


def test_refusals(model: HookedWhisper) -> None:
    with pytest.raises(AnalysisError, match="n_random=0: no result is made without random controls"):
        run(model, n_random=0)
    late: Any = random_sae("topk", "decoder.blocks.0.hook_resid_post", 32, 64, dtype="float32")
    with pytest.raises(AnalysisError, match="is in the decoder: features of sounds are looked for in the encoder"):
        hallucination_experiment(model, late, silences(), speech())
    items = [CorpusItem(id="x", audio=clips("en")[0].path, language="en")]
    with pytest.raises(AnalysisError, match="x has no sound or no text"):
        run(model, speech=Corpus(items))


def test_a_model_that_writes_nothing_cannot_be_steered(whisper_base: HookedWhisper) -> None:
    model = tiny_whisper(whisper_base)
    tokenizer: Any = model.tokenizer
    model.generation_config.suppress_tokens = [i for i in range(model.cfg.d_vocab) if i != tokenizer.eot]
    with pytest.raises(AnalysisError, match="The model wrote nothing in any window"):
        run(model)
