"""Steering experiments: every measure against a run by hand, every control in place, resumed where they broke off."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from sae_files import random_sae
from short_windows import tiny_whisper

from hooked_whisper import AnalysisError, HookedWhisper
from hooked_whisper.analysis.activity import Activity
from hooked_whisper.analysis.edits import Add, Span, Swap, Zero
from hooked_whisper.analysis.steering import Steering, steer
from hooked_whisper.analysis.steering_experiment import steering_experiment
from hooked_whisper.analysis.steering_result import SteeringResult
from hooked_whisper.analysis.steering_target import Target, character_errors
from hooked_whisper.analysis.steering_vectors import SteeringVector
from hooked_whisper.saes.corpus import Corpus
from hooked_whisper.saes.corpus_item import CorpusItem
from hooked_whisper.speech import clips

HOOK, LATE = "encoder.hook_out", "decoder.blocks.0.hook_resid_post"
TARGET = Target(inserted="aeiou", deleted="nrst")  # the small model writes nonsense, in these letters too
VECTOR = torch.randn(32, generator=torch.Generator().manual_seed(5))


def sae_at(hook: str) -> Any:
    return random_sae("topk", hook, 32, 64, dtype="float32")


def corpus() -> Corpus:
    items = []
    for language, seconds in (("en", 2.0), ("en", 1.0), ("it", 1.5)):
        samples = clips(language)[len(items)].load()[: round(16_000 * seconds)]
        sound = {"array": samples.numpy(), "sampling_rate": 16_000}
        items.append(CorpusItem(id=f"{language}/{len(items)}", audio=sound, language=language, speaker=language))
    return Corpus(items, name="three clips")


ACTIVITY = Activity(torch.linspace(0.05, 0.2, 64), torch.linspace(1, 3, 64), 1000)


def run(model: HookedWhisper, sae: Any, edits: Any = (), **options: Any) -> SteeringResult:
    vector = SteeringVector(sae.cfg.metadata.hook_name, VECTOR, ("k", "p"), 10, 12)
    named: dict[str, Any] = {"doses": (1, 3), "n_random": 2, "batch_size": 2, "progress": False, "selected_in": "en"}
    return steering_experiment(
        model,
        sae,
        corpus(),
        list(edits) or [Add(5, 4.0)],
        TARGET,
        activity=ACTIVITY,
        vector=vector,
        **{**named, **options},
    )


@pytest.fixture(scope="module")
def model(shared_whisper_base: HookedWhisper) -> HookedWhisper:
    return tiny_whisper(shared_whisper_base)


@pytest.fixture(scope="module")
def result(model: HookedWhisper) -> SteeringResult:
    return run(model, sae_at(HOOK))


def test_everything_is_run(result: SteeringResult) -> None:
    places = [(one.condition, one.dose) for one in result.outcomes]
    dosed = [(name, dose) for name in ("steered", "random-0", "random-1", "vector", "activation") for dose in (1, 3)]
    assert sorted(set(places)) == sorted([("unhooked", 0), ("sae", 0), *dosed])
    assert len(places) == 12 * 3 and result.languages == ["en", "it"] and result.doses == [1, 3]


@pytest.mark.parametrize(("hook", "error_term"), [(HOOK, "dropped"), (LATE, "kept")])
def test_outcomes_are_those_of_runs_by_hand(model: HookedWhisper, hook: str, error_term: Any) -> None:
    sae = sae_at(hook)
    tokenizer: Any = model.tokenizer
    found = run(model, sae, error_term=error_term)
    assert len({one.text for one in found.outcomes}) > 5
    item = next(iter(corpus()))
    samples = corpus().load(item)
    assert samples is not None
    by_name = {one.condition: one for one in found.outcomes if one.clip == item.id and one.dose in (0, 3)}
    how = Steering([Add(5, 12.0)], sae, error_term=error_term, activity=ACTIVITY)
    said: Any = model.transcribe(samples, language="en")
    unhooked = by_name["unhooked"]
    assert unhooked.text == said.text
    with steer(model, how):
        steered: Any = model.transcribe(samples, language="en")
        logits = model(samples, said.tokens, language="en").detach()
        ranked = model.detect_language(samples)[0]
    one = by_name["steered"]
    assert one.text == steered.text != said.text
    assert (one.heard, one.p_language) == (next(iter(ranked)), pytest.approx(ranked["en"], rel=1e-4))
    letters = steered.text.lower()
    assert one.inserted == sum(letters.count(letter) for letter in "aeiou")
    # The log-probabilities, position by position: those of tokens with a letter to delete.
    prompt = logits.shape[1] - len(said.tokens)
    logprobs = logits[0].log_softmax(-1)
    masks = TARGET.vocabulary(tokenizer, model.cfg.d_vocab)
    at = [prompt - 1 + i for i, token in enumerate(said.tokens) if bool(masks[1][token])]
    assert one.n_positions == len(at) > 0
    for figure, mask in zip((one.logp_inserted, one.logp_deleted), masks, strict=True):
        assert figure == pytest.approx(float(logprobs[at][:, mask].exp().sum(-1).log().sum()), rel=1e-3)
    assert found.bases["steered"] == ("sae" if error_term == "dropped" else "unhooked")


def test_effects_are_those_of_the_outcomes(result: SteeringResult) -> None:
    effect = result.effect("steered", 3)
    pairs = [
        (one, next(base for base in result.outcomes if base.condition == "unhooked" and base.clip == one.clip))
        for one in result.outcomes
        if one.condition == "steered" and one.dose == 3
    ]
    assert effect.n_clips == 3 and effect.inserted == sum(one.inserted - base.inserted for one, base in pairs)
    assert effect.deleted == sum(one.deleted - base.deleted for one, base in pairs)
    eligible = [(one, base) for one, base in pairs if base.deleted]
    won = [one.inserted > base.inserted and one.deleted < base.deleted for one, base in eligible]
    assert effect.n_eligible == len(eligible) > 0 and effect.success.value == pytest.approx(sum(won) / len(won))
    edits = [character_errors(base.off_target, one.off_target) for one, base in pairs]
    assert effect.off_target.value == pytest.approx(sum(e for e, _ in edits) / sum(n for _, n in edits))
    gain = sum(one.logp_inserted - base.logp_inserted for one, base in pairs) / sum(one.n_positions for one, _ in pairs)
    assert effect.logp_inserted.value == pytest.approx(gain)
    draws = [result.effect(f"random-{number}", 3) for number in range(2)]
    together = result.effect("random", 3)
    assert together.n_clips == 3 and together.n_eligible == effect.n_eligible
    assert together.inserted == pytest.approx(sum(one.inserted for one in draws) / 2)
    assert together.success.value == pytest.approx(sum(one.success.value or 0 for one in draws) / 2)
    assert result.effect("steered", 3, language="it").n_clips == 1
    with pytest.raises(AnalysisError, match="No clip was run as 'steered' at dose 9 in 'it': versions are unhooked"):
        result.effect("steered", 9, language="it")


def test_the_best_dose_within_the_limit(result: SteeringResult) -> None:
    assert result.at_limit("steered", max_cer_change=-1) is None
    curve = result.curve("steered")
    best = result.at_limit("steered", max_cer_change=9)
    assert best is not None and best.success.value == max(effect.success.value or 0 for effect in curve)


def test_reports(result: SteeringResult) -> None:
    text = result.to_markdown()
    for said in (
        "| SAE alone, against unhooked | 0 |",
        "| random | 3 |",
        "| activation | 1 |",
        "## it",
        "chosen in: en",
    ):
        assert said in text
    assert "3 clips are few: a direction to follow, not a finding" in text and "what differs between languages" in text
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert {line.count("|") for line in rows} == {6, 12}
    whole = json.loads(result.to_json())
    assert len(whole["outcomes"]) == 36 and set(whole["effects"]) == {"all", "en", "it"}
    figure = result.plot(language="en")
    assert [axis.get_title() for axis in figure.axes] == ["success, share of eligible clips", "CER off the target"]
    assert len(figure.axes[0].lines) == 5


def test_a_result_needs_its_controls(result: SteeringResult) -> None:
    for name in ("sae", "random", "vector", "activation"):
        rest = tuple(one for one in result.outcomes if not one.condition.startswith(name))
        with pytest.raises(AnalysisError, match=f"and {name} is missing"):
            dataclasses.replace(result, outcomes=rest)


def test_it_goes_on_where_it_broke_off(model: HookedWhisper, result: SteeringResult, tmp_path: Path) -> None:
    out = tmp_path / "log" / "steer.jsonl"
    assert run(model, sae_at(HOOK), out=out).outcomes == result.outcomes
    lines = out.read_text().splitlines(keepends=True)
    assert len(lines) == 37
    changed = json.loads(lines[1]) | {"text": "not run again"}
    out.write_text("".join([lines[0], json.dumps(changed) + "\n", *lines[2:20]]) + lines[20][:9])  # killed in a line
    again = run(model, sae_at(HOOK), out=out)
    assert again.outcomes[0].text == "not run again" and again.outcomes[1:] == result.outcomes[1:]
    with pytest.raises(AnalysisError, match=r"steer\.jsonl is of another sweep: its fingerprint is"):
        run(model, sae_at(HOOK), [Add(6, 4.0)], out=out)
    out.write_text(lines[0] + '{"clip": 3}\n')
    with pytest.raises(AnalysisError, match=r"line 2 of .*steer\.jsonl is damaged: delete it"):
        run(model, sae_at(HOOK), out=out)


def test_spans_hold_edits_to_their_seconds(model: HookedWhisper) -> None:
    some = run(model, sae_at(HOOK), spans={"en/0": [(0.0, 1.0)]}, doses=(3,), n_random=1)
    texts = {(one.clip, one.condition): one.text for one in some.outcomes}
    assert (
        texts["en/0", "steered"] != texts["en/0", "unhooked"] and texts["it/2", "steered"] == texts["it/2", "unhooked"]
    )
    how = Steering([Add(5, 12.0, where=Span(0, 1))], sae_at(HOOK), activity=ACTIVITY)
    with steer(model, how):
        by_hand: Any = model.transcribe(corpus().load(next(iter(corpus()))), language="en")
    assert by_hand.text == texts["en/0", "steered"]
    assert some.effect("steered", 3, language="it").off_target.value == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"doses": (0, 1)}, "0 is the base already"),
        ({"doses": (1, 1)}, "expected different finite numbers"),
        ({"doses": (float("nan"),)}, "expected different finite numbers"),
        ({"batch_size": 0}, "batch_size=0: expected at least 1"),
        ({"spans": {"xx": []}}, "spans= names 'xx', which is no clip of three clips"),
        ({"n_random": 0}, "no result is made without random controls"),
        ({"edits": [Zero(64)]}, "there is no latent 64"),
        ({"edits": [Swap(3, 99)]}, "there is no latent 99"),
    ],
)
def test_refusals(model: HookedWhisper, options: dict[str, Any], message: str) -> None:
    with pytest.raises(AnalysisError, match=message):
        run(model, sae_at(HOOK), **options)
