"""Finetuning against the evaluation's own divergence, and against what it promises to leave alone."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from sae_files import random_sae
from short_windows import short_windows
from torch import Tensor

from hooked_whisper import HookedWhisper
from hooked_whisper.errors import ConfigError, CorpusError, LanguageError, SaeError
from hooked_whisper.saes import Corpus, evaluate_sae, finetune_sae, finetuning, load_sae
from hooked_whisper.saes.spliced_evaluation import listen
from hooked_whisper.speech import clips

OUT = "encoder.hook_out"


@pytest.fixture(scope="module")
def model(shared_whisper_base: HookedWhisper) -> HookedWhisper:
    return short_windows(shared_whisper_base, seconds=3)


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    """Two clips of about two seconds."""
    return Corpus.from_clips(sorted(clips(), key=lambda clip: clip.seconds)[:2])


def shipped() -> Any:
    return load_sae("whisper-base/encoder.hook_out").to(dtype=torch.float32)


def divergence(model: HookedWhisper, sae: Any, corpus: Corpus) -> float:
    report = evaluate_sae(model, sae, corpus, transcribe=False, baselines=(), n_resamples=0, progress=False)
    assert report.overall.on_transcript is not None
    kl = report.overall.on_transcript.kl.value
    assert kl is not None
    return kl


def test_the_divergence_falls_and_is_the_evaluations(model: HookedWhisper, corpus: Corpus) -> None:
    sae = shipped()
    sae.cfg.k = sae.activation_fn.k = 24  # a quarter of the latents that it learnt with leaves something to gain
    before = divergence(model, sae, corpus)
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    asked = [weight.requires_grad for weight in model.parameters()]
    report = finetune_sae(model, sae, corpus, epochs=4, batch_size=2, lr=2e-4, progress=False)
    assert report.kl[0] == pytest.approx(before, rel=1e-3)  # before the first step
    assert divergence(model, sae, corpus) < 0.7 * before
    assert report.n_clips == 8 and len(report.kl) == len(report.fvu) == 4
    assert "4 steps over 8 clips" in str(report)
    assert sae.cfg.metadata.finetuned["steps"] == 4
    for name, value in model.state_dict().items():
        assert torch.equal(value, weights[name])
    assert [weight.requires_grad for weight in model.parameters()] == asked
    assert all(weight.grad is None for weight in [*model.parameters(), *sae.parameters()])
    assert not any(point.live for point in model.hook_dict.values())


def test_in_the_decoder_too(model: HookedWhisper, corpus: Corpus) -> None:
    hook = "decoder.blocks.1.hook_resid_post"
    sae = random_sae("standard", d_in=model.cfg.d_model, hook=hook, dtype="float32")
    before = {name: value.clone() for name, value in sae.state_dict().items()}
    report = finetune_sae(model, sae, corpus, batch_size=2, lr=1e-3, progress=False)
    assert report.kl[0] > 0 and report.fvu[0] > 0
    assert any(not torch.equal(value, before[name]) for name, value in sae.state_dict().items())


def test_the_seed_fixes_it(model: HookedWhisper, corpus: Corpus) -> None:
    one, other = (finetune_sae(model, shipped(), corpus, batch_size=1, seed=3, progress=False) for _ in range(2))
    assert one == other


@pytest.mark.parametrize("hook", [OUT, "encoder.blocks.3.hook_resid_post"])
def test_what_is_remembered_changes_nothing(
    hook: str, model: HookedWhisper, corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[int] = []

    def listened(model: HookedWhisper, waveforms: list[Tensor], *rest: Any) -> Any:
        heard.append(len(waveforms))
        return listen(model, waveforms, *rest)

    monkeypatch.setattr(finetuning, "listen", listened)
    found = []
    of_one = 80 * 300 * 4 + 150 * 512 * 4 * (1 if hook == OUT else 2)  # mel, encoder_out, what stands at the hook
    for memory, times in ((0, [2, 2, 2]), (1.5 * of_one, [2, 1, 1]), (2 * of_one, [2])):
        heard.clear()
        sae = random_sae("topk", d_in=model.cfg.d_model, hook=hook, dtype="float32")
        report = finetune_sae(model, sae, corpus, epochs=3, batch_size=2, lr=1e-3, memory=memory, progress=False)
        assert heard == times
        found.append((report, sae.W_dec.detach().clone()))
    for report, weights in found[1:]:
        assert report.kl == pytest.approx(found[0][0].kl, rel=1e-4)
        torch.testing.assert_close(weights, found[0][1], rtol=1e-4, atol=1e-5)


def test_one_that_was_stopped_goes_on(
    model: HookedWhisper, corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings: dict[str, Any] = {"batch_size": 1, "epochs": 2, "lr": 1e-4, "progress": False}
    undisturbed = shipped()
    wanted = finetune_sae(model, undisturbed, corpus, **settings)
    settings |= {"checkpoint": tmp_path / "new" / "checkpoint", "checkpoint_every": 1}
    losses, calls = finetuning._losses, iter(range(100))

    def stopped(*args: Any) -> Any:
        if next(calls) == 3:
            raise KeyboardInterrupt
        return losses(*args)

    monkeypatch.setattr(finetuning, "_losses", stopped)
    with pytest.raises(KeyboardInterrupt):
        finetune_sae(model, shipped(), corpus, **settings)
    sae = shipped()
    assert finetune_sae(model, sae, corpus, **settings) == wanted
    assert next(calls) == 5  # of four steps, the last one was all that was left
    assert torch.equal(sae.W_dec, undisturbed.W_dec) and torch.equal(sae.W_enc, undisturbed.W_enc)
    again = shipped()
    assert finetune_sae(model, again, corpus, **settings) == wanted and next(calls) == 6
    assert torch.equal(again.W_dec, undisturbed.W_dec)
    with pytest.raises(SaeError, match=r"of another finetuning \(sae: '.*', now '.*'\): name another file"):
        finetune_sae(model, sae, corpus, **settings)
    with pytest.raises(SaeError, match=r"of another finetuning \(lr: 0.0001, now 0.001\)"):
        finetune_sae(model, shipped(), corpus, **{**settings, "lr": 1e-3})


def test_what_cannot_be(model: HookedWhisper, corpus: Corpus) -> None:
    with pytest.raises(ConfigError, match="epochs=0 and batch_size=4: expected at least 1"):
        finetune_sae(model, shipped(), corpus, epochs=0)
    with pytest.raises(ConfigError, match="checkpoint_every=0: expected at least 1 batch"):
        finetune_sae(model, shipped(), corpus, checkpoint="checkpoint", checkpoint_every=0)
    odd = Corpus([dataclasses.replace(item, language="xx") for item in corpus])
    with pytest.raises(LanguageError, match="Unknown language 'xx'"):  # also in the last of many clips
        finetune_sae(model, shipped(), odd)
    with pytest.raises(ConfigError, match="a rate above 0"):
        finetune_sae(model, shipped(), corpus, lr=0.0)
    with pytest.raises(SaeError, match=r"The SAE is in float16, too coarse .* sae.to\(dtype=torch.float32\)"):
        finetune_sae(model, load_sae("whisper-base/encoder.hook_out").to(dtype=torch.float16), corpus)
    with pytest.raises(ConfigError, match=r"After 1 steps the loss is (nan|inf): lower the learning rate"):
        finetune_sae(model, shipped(), corpus, batch_size=1, lr=1e30, progress=False)
    long = Corpus.from_clips([max(clips(), key=lambda clip: clip.seconds)])
    with pytest.raises(CorpusError, match="None of the 1 clips .* must fit one window"):
        finetune_sae(model, shipped(), long, progress=False)
