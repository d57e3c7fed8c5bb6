"""Integrated gradients: complete, right where they are known, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from short_windows import tiny_whisper
from torch import Tensor

from hooked_whisper import AnalysisError, HookedWhisper
from hooked_whisper.analysis.input_gradients import integrated_gradients
from hooked_whisper.analysis.metrics import LogProbability
from hooked_whisper.speech import clips

N_SAMPLES = 40_000  # 2.5 s


@pytest.fixture(scope="module")
def tiny(shared_whisper_base: HookedWhisper) -> HookedWhisper:
    return tiny_whisper(shared_whisper_base)


def sound(key: str = "tt-weasels") -> Tensor:
    return clips("en", key)[0].load()[:N_SAMPLES]


def fed(model: HookedWhisper, text: str = " Weasels") -> Tensor:
    tokenizer: Any = model.tokenizer
    return torch.tensor([[*tokenizer.prompt("en", "transcribe", False), *tokenizer.to_tokens(text)]])


@pytest.mark.parametrize("wrt", ["mel", "waveform"])
def test_attributions_add_up_to_the_change_of_the_metric(tiny: HookedWhisper, wrt: Any) -> None:
    tokens = fed(tiny)
    metric = LogProbability(tokens, 4)
    found = integrated_gradients(tiny, sound(), tokens, metric, wrt=wrt)
    assert float(found.relative_delta[0]) < 0.01
    with torch.no_grad():
        assert float(found.value[0]) == pytest.approx(float(metric(tiny(sound(), tokens))[0]), abs=1e-5)
        silent = tiny(torch.zeros(N_SAMPLES), tokens)
    assert float(found.baseline_value[0]) == pytest.approx(float(metric(silent)[0]), abs=1e-5)
    assert abs(float((found.value - found.baseline_value)[0])) > 0.1
    assert torch.allclose(found.by_frame.sum(1), found.attributions.flatten(1).sum(1))
    expected = (80, 300) if wrt == "mel" else (N_SAMPLES,)
    assert tuple(found.attributions.shape[1:]) == expected
    assert len(found.plot().axes) == 2
    for clip in (1, -1):
        with pytest.raises(AnalysisError, match=f"There is no clip {clip}: there are 1"):
            found.plot(clip=clip)


def test_agrees_with_a_plain_sum_over_many_steps(tiny: HookedWhisper) -> None:
    tokens = fed(tiny)
    metric = LogProbability(tokens, 4)
    near = sound() * 0.7
    found = integrated_gradients(tiny, sound(), tokens, metric, baseline=near, tolerance=0.001)
    start, end = tiny.to_mel(near), tiny.to_mel(sound())
    total = torch.zeros_like(start)
    for step in range(100):
        mel = torch.lerp(start, end, (step + 0.5) / 100).requires_grad_()
        total += torch.autograd.grad(metric(tiny.decode(tokens, tiny.encode_mel(mel))).sum(), mel)[0] / 100
    by_hand = (total * (end - start)).double()
    assert torch.allclose(found.attributions, by_hand, atol=0.02 * float(by_hand.abs().max()))


def test_clips_of_a_batch_and_their_own_baselines(tiny: HookedWhisper) -> None:
    tokens = fed(tiny)
    pair = [sound(), sound("vm-sorry")[:32_000]]
    metric = LogProbability(tokens, 4)
    together = integrated_gradients(
        tiny, pair, tokens, metric, wrt="waveform", baseline=[clip * 0.5 for clip in pair], max_steps=64
    )
    assert together.attributions.shape == (2, N_SAMPLES)
    assert not together.attributions[1, 32_000:].any()
    alone = integrated_gradients(tiny, pair[1], tokens, metric, wrt="waveform", baseline=pair[1] * 0.5, max_steps=64)
    assert torch.allclose(together.attributions[1, :32_000], alone.attributions[0], atol=1e-5)


def test_stopping_short_of_the_tolerance_is_said(tiny: HookedWhisper) -> None:
    tokens = fed(tiny)
    with pytest.warns(UserWarning, match=r"more than tolerance=1e-09, after \d+ steps: raise max_steps=32"):
        found = integrated_gradients(tiny, sound(), tokens, LogProbability(tokens, 4), tolerance=1e-9, max_steps=32)
    assert float(found.relative_delta) > 1e-9


def test_what_cannot_be_integrated_is_refused(tiny: HookedWhisper) -> None:
    tokens = fed(tiny)
    metric = LogProbability(tokens, 4)

    def call(text: Any = tokens, judged: Any = metric, **options: Any) -> Callable[[], Any]:
        return lambda: integrated_gradients(tiny, sound(), text, judged, **options)

    for refused, message in (
        (call(wrt="audio"), "Unknown wrt='audio'"),
        (call(tolerance=0.0), "tolerance=0.0, max_steps=1024: expected a share"),
        (call(max_steps=8), "at least 32 steps"),
        (call(text=None), "No text: transcribe first"),
        (call(baseline=[sound(), sound()]), "2 baselines were given for 1 clips"),
        (call(baseline=sound()), "Nothing differs: both sides have the same sound"),
        (call(judged=lambda logits: metric(logits).detach()), "The metric has no gradient"),
    ):
        with pytest.raises(AnalysisError, match=message):
            refused()
