"""What the components of the decoder's stream do to the logits: lens, attribution, and what taking one out does."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from small import small_inputs, small_model
from stack_runs import MODELS, close, run
from torch import Tensor

from hooked_whisper import ConfigError, HookedWhisper, TextError, WhisperCache
from hooked_whisper.speech import clips


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest) -> HookedWhisper:
    return MODELS[request.param]()


@pytest.fixture
def cache(model: HookedWhisper) -> WhisperCache:
    return run(model)


def test_the_lens_ends_in_the_logits(model: HookedWhisper, cache: WhisperCache) -> None:
    lens, labels = cache.decoder.logit_lens(incl_mid=True, return_labels=True)
    assert labels[-1] == "final_post"
    assert len(labels) == 10
    close(lens[-1], cache["hook_logits"])
    stream = cache.decoder["resid_mid_cross", 1]
    close(lens[labels.index("1_mid_cross")], model.decoder.unembed(model.decoder.ln_final(stream)).detach())
    close(cache.decoder.logit_lens(1), cache.decoder.logit_lens()[:2])


@pytest.mark.parametrize("shape", ["one", "clip", "place"])
@pytest.mark.parametrize("difference", [False, True])
def test_attributions_sum_to_the_logit(cache: WhisperCache, shape: str, difference: bool) -> None:
    generator = torch.Generator().manual_seed(3)
    sizes = {"one": (), "clip": (2,), "place": (2, 5)}[shape]
    right, wrong = torch.randint(31, (2, *sizes), generator=generator).unbind(0)
    other = wrong if difference else None

    def picked(ids: Tensor) -> Tensor:
        places = ids.reshape(*ids.shape, *[1] * (2 - ids.ndim)).expand(2, 5)
        return cache["hook_logits"].gather(2, places[..., None])[..., 0]

    expected = picked(right) - picked(wrong) if difference else picked(right)
    bias = cache.decoder.logit_bias(right, other)
    bias = bias.reshape(*bias.shape, *[1] * (2 - bias.ndim))
    for split in (cache.decoder.decompose_resid(), cache.decoder.get_full_resid_decomposition()):
        close(cache.decoder.logit_attrs(split, right, other).sum(0) + bias, expected)
    if shape != "place":
        last = cache.decoder.decompose_resid(pos_slice=-1)
        attributed = cache.decoder.logit_attrs(last, right, other, pos_slice=-1).sum(0)
        close(attributed + cache.decoder.logit_bias(right, other), expected[:, -1])
    row = cache.decoder.decompose_resid()[:, 1]
    one = right if shape == "one" else right[1]
    other = None if other is None else other if shape == "one" else other[1]
    attributed = cache.decoder.logit_attrs(row, one, other, batch_slice=1, has_batch_dim=False).sum(0)
    close(attributed + cache.decoder.logit_bias(one, other), expected[1])


def test_attributions_predict_what_removing_a_component_does() -> None:
    """With the norm's scale held, taking a head out of the stream changes the logit by its attribution."""
    model = small_model()
    cache = run(model)
    heads, labels = cache.decoder.stack_head_results(return_labels=True, kind="cross")
    found = labels.index("L2C1")
    attribution = cache.decoder.logit_attrs(heads, 7)[found]
    stream = cache.decoder["resid_post", 2] - heads[found]
    scale = cache.decoder["scale"]
    ln = model.decoder.ln_final
    normed = (stream - stream.mean(-1, keepdim=True)) / scale * ln.w + ln.b
    close(cache["hook_logits"][..., 7] - model.decoder.unembed(normed)[..., 7].detach(), attribution)


def test_real_logits_come_apart(whisper_base: HookedWhisper) -> None:
    clip = clips("en")[1]
    with torch.no_grad():
        logits, cache = whisper_base.run_with_cache(clip.load(), language="en")
    decoder = cache.decoder
    at = cache.str_tokens().index(" conference") - 1
    place: dict[str, Any] = {"pos_slice": at}
    full, labels = decoder.get_full_resid_decomposition(expand_neurons=False, return_labels=True, **place)
    attributed = decoder.logit_attrs(full, " conference", **place)
    total = attributed.sum() + decoder.logit_bias(" conference")
    token = whisper_base.tokenizer.to_tokens(" conference")[0]  # type: ignore[union-attr]
    torch.testing.assert_close(total, logits[0, at, token], rtol=0, atol=1e-4)
    difference = decoder.logit_attrs(full, " conference", " meeting", **place).sum()
    difference = difference + decoder.logit_bias(" conference", " meeting")
    assert difference > 1
    assert len(labels) == 2 * 6 * 8 + 6 + 3
    lens = decoder.logit_lens(pos_slice=at)
    torch.testing.assert_close(lens[-1, 0], logits[0, at], rtol=0, atol=1e-4)
    encoded = cache.encoder.decompose_resid(apply_ln=True).sum(0) + cache.encoder.ln_bias()
    largest = cache["encoder.hook_out"].abs().max().item()
    torch.testing.assert_close(encoded, cache["encoder.hook_out"], rtol=0, atol=1e-4 * largest)
    with pytest.raises(TextError, match=r"' conference call' is 2 tokens, .* give one"):
        decoder.logit_attrs(full, " conference call", **place)
    half = cache.half().decoder
    assert half.logit_lens(pos_slice=at).dtype == torch.float16
    torch.testing.assert_close(half.logit_lens(pos_slice=at)[-1, 0].float(), logits[0, at], rtol=0, atol=0.2)


def test_neurons_that_no_memory_holds_are_refused_before_they_are_made(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small_model()
    _, cache = model.run_with_cache(*small_inputs(model.cfg))
    sizes = {"SC_PHYS_PAGES": 1, "SC_PAGE_SIZE": 4096}
    monkeypatch.setattr("os.sysconf", sizes.__getitem__)
    for call in (
        lambda: cache.encoder.get_full_resid_decomposition(),
        lambda: cache.encoder.stack_neuron_results(-1),
        lambda: cache.encoder.get_neuron_results(0),
    ):
        with pytest.raises(ConfigError, match=r"Neuron by neuron, [12] layers? would take 0 GB, .*pos_slice="):
            call()
    assert cache.encoder.get_neuron_results(0, neuron_slice=0, pos_slice=0).shape == (2, 16)
    assert len(cache.encoder.get_full_resid_decomposition(expand_neurons=False)) > 0
    assert len(cache.decoder.stack_neuron_results(1, pos_slice=0, neuron_slice=[1, 2])) == 2
