"""Splicing at every kind of hook, against hooks set by hand; losses and divergences against their definitions."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from sae_files import random_sae
from short_windows import short_windows
from torch import Tensor

from hooked_whisper import AudioError, HookedWhisper
from hooked_whisper.axes import axes
from hooked_whisper.inputs import DecoderInput
from hooked_whisper.saes.coding import Site, find_site, reconstruct
from hooked_whisper.saes.estimates import Estimate
from hooked_whisper.saes.spliced_evaluation import (
    MEAN,
    ZERO,
    Batch,
    LossSums,
    Replacement,
    Spliced,
    listen,
    mean_ablation,
    predicted,
    rows_at,
    teacher_forced,
    transcripts,
    zero_ablation,
)
from hooked_whisper.speech import clips

OUT = "encoder.hook_out"
HOOKS = [
    OUT,
    "encoder.hook_conv1",
    "encoder.blocks.2.hook_resid_post",
    "encoder.blocks.3.attn.hook_z",
    "decoder.blocks.1.hook_resid_post",
    "decoder.blocks.4.cross_attn.hook_k",
]


@pytest.fixture(scope="module")
def shared_model(shared_whisper_base: HookedWhisper) -> HookedWhisper:
    return short_windows(shared_whisper_base, seconds=3)


@pytest.fixture
def model(shared_model: HookedWhisper) -> Iterator[HookedWhisper]:
    yield shared_model
    assert not any(point.live for point in shared_model.hook_dict.values()), "a hook was left behind"


@pytest.fixture(scope="module")
def waveforms() -> list[Tensor]:
    """An English and an Italian clip of 2.27 and 2.15 s."""
    return [clips("en", "conf-leaderhasleft")[0].load(), clips("it", "vm-sorry")[0].load()]


@pytest.fixture(scope="module")
def batch(shared_model: HookedWhisper, waveforms: list[Tensor]) -> Batch:
    return listen(shared_model, waveforms, ["en", "it"])


@pytest.fixture(scope="module")
def own(shared_model: HookedWhisper, batch: Batch) -> list[list[int]]:
    return transcripts(shared_model, batch.encoder_out, batch.languages)


@pytest.fixture(scope="module")
def fed(shared_model: HookedWhisper, batch: Batch, own: list[list[int]]) -> DecoderInput:
    return teacher_forced(shared_model, batch, own)


def site_at(hook: str) -> Site:
    position = axes(hook)[1]
    return Site(hook, hook, "frame" if position == "key_frame" else position)


def same(_read: Tensor, written: Tensor) -> Tensor:
    return written.clone()


def halved(read: Tensor, _written: Tensor) -> Tensor:
    return read / 2


def spliced(model: HookedWhisper, site: Site, how: Replacement, batch: Batch, *, padding: bool = False) -> Spliced:
    return Spliced(model, site, [how] * len(batch.mel), batch, padding)


def test_listening_is_the_models_own_encoding(model: HookedWhisper, waveforms: list[Tensor], batch: Batch) -> None:
    _, cache = model.run_with_cache(waveforms, names_filter=OUT)
    torch.testing.assert_close(batch.encoder_out, cache[OUT])
    assert torch.equal(batch.frame_mask, cache.frame_mask)
    assert batch.languages == ["en", "it"]
    assert listen(model, waveforms, [None, None]).languages == ["en", "it"]
    with pytest.raises(AudioError, match="4.00 s long, but the window holds 3 s"):
        listen(model, [torch.zeros(16_000 * 4)], ["en"])


def test_transcripts_are_the_models_own(model: HookedWhisper, waveforms: list[Tensor], own: list[list[int]]) -> None:
    _, cache = model.run_with_cache(waveforms, language=["en", "it"], names_filter="hook_logits")
    assert [model.to_string(tokens) for tokens in own] == cache.texts
    assert cache.texts[0] == " The leader has left the conference."


def test_transcripts_can_be_cut_short(model: HookedWhisper, batch: Batch, own: list[list[int]]) -> None:
    cut = transcripts(model, batch.encoder_out, batch.languages, [3, 2])
    assert cut == [own[0][:3], own[1][:2]]
    # More than the context holds is no error.
    assert transcripts(model, batch.encoder_out, batch.languages, [10_000, 10_000]) == own


@pytest.mark.parametrize("hook", HOOKS)
def test_rows_are_the_activations_without_padding(
    model: HookedWhisper, waveforms: list[Tensor], own: list[list[int]], hook: str
) -> None:
    batch = listen(model, waveforms, ["en", "it"], site_at(hook))
    fed = teacher_forced(model, batch, own)
    _, cache = model.run_with_cache(waveforms, fed.tokens, names_filter=hook)
    found = rows_at(model, site_at(hook), batch, fed)
    lengths = [114, 108] if axes(hook)[1] != "pos" else fed.token_mask.sum(-1).tolist()
    if axes(hook)[1] == "mel_frame":
        lengths = [2 * n for n in lengths]
    for i, (read, written) in enumerate(found):
        assert abs(len(read) - lengths[i]) <= 2 * (axes(hook)[1] != "pos")
        torch.testing.assert_close(read, cache[hook][i, : len(read)])
        assert torch.equal(read, written)


@pytest.mark.parametrize("hook", HOOKS)
def test_putting_back_what_was_there_changes_nothing(
    model: HookedWhisper, batch: Batch, fed: DecoderInput, own: list[list[int]], hook: str
) -> None:
    found = spliced(model, site_at(hook), same, batch)
    torch.testing.assert_close(found.logits(fed), model.decode(fed.tokens, batch.encoder_out), atol=1e-3, rtol=1e-4)
    if hook in (OUT, "decoder.blocks.4.cross_attn.hook_k"):  # writing is the slow part
        assert found.transcripts() == own


@pytest.mark.parametrize(
    ("hook", "padding"), [*((hook, False) for hook in HOOKS), (OUT, True), ("decoder.blocks.4.cross_attn.hook_k", True)]
)
def test_splicing_is_a_hook_set_by_hand(
    model: HookedWhisper, batch: Batch, fed: DecoderInput, hook: str, padding: bool
) -> None:
    mask = batch.positions(hook, fed.token_mask)
    if padding and axes(hook)[1] != "pos":
        mask = torch.ones_like(mask)

    def by_hand(activation: Tensor, hook: Any) -> Tensor:
        changed = activation.clone()
        changed[mask] = changed[mask] / 2
        return changed

    with torch.no_grad(), model.hooks(fwd_hooks=[(hook, by_hand)]):
        wanted = model.decode(fed.tokens, model.encode_mel(batch.mel))
    found = spliced(model, site_at(hook), halved, batch, padding=padding).logits(fed)
    at = fed.token_mask
    torch.testing.assert_close(found[at], wanted[at], atol=1e-3, rtol=1e-4)
    assert (found[at] - model.decode(fed.tokens, batch.encoder_out)[at]).abs().max() > 0.01


def test_padding_frames_matter(model: HookedWhisper, batch: Batch, fed: DecoderInput) -> None:
    kept = spliced(model, site_at(OUT), zero_ablation, batch)
    all_gone = spliced(model, site_at(OUT), zero_ablation, batch, padding=True)
    assert torch.equal(kept.encoder_out[~batch.frame_mask], batch.encoder_out[~batch.frame_mask])
    assert kept.encoder_out[batch.frame_mask].abs().max() == all_gone.encoder_out.abs().max() == 0
    assert not torch.allclose(kept.logits(fed), all_gone.logits(fed), atol=0.1)


def test_hooks_in_the_decoder_hold_while_it_writes(model: HookedWhisper, batch: Batch) -> None:
    site = site_at("decoder.blocks.1.hook_resid_post")
    seen: list[int] = []

    def count(read: Tensor, written: Tensor) -> Tensor:
        seen.append(len(read))
        return written

    spliced(model, site, count, batch).transcripts([3, 3])
    # The prompt of four, then one position at a time, each for two clips.
    assert seen[:2] == [4, 4]
    assert set(seen[2:]) == {1}
    with torch.no_grad(), model.hooks(fwd_hooks=[(site.write, lambda activation, hook: activation * 0.9)]):
        wanted = transcripts(model, batch.encoder_out, batch.languages, [5, 5])
    assert spliced(model, site, lambda read, _: read * 0.9, batch).transcripts([5, 5]) == wanted


def test_a_transcoder_writes_where_it_does_not_read(
    model: HookedWhisper, waveforms: list[Tensor], fed: DecoderInput
) -> None:
    block = "encoder.blocks.2"
    read, write = f"{block}.ln2.hook_normalized", f"{block}.hook_mlp_out"
    sae = random_sae("transcoder", read, 512, 64, dtype="float32", about={"hook_name_out": write})
    site = find_site(model, sae)
    batch = listen(model, waveforms, ["en", "it"], site)
    _, cache = model.run_with_cache(waveforms, "", names_filter=[read, write])
    for i, (x, y) in enumerate(rows_at(model, site, batch, None)):
        torch.testing.assert_close(x, cache[read][i, : len(x)])
        torch.testing.assert_close(y, cache[write][i, : len(y)])

    normalised: list[Tensor] = []

    def by_hand(activation: Tensor, hook: Any) -> Tensor:
        out = activation.clone()
        out[batch.frame_mask] = sae(normalised[0])[batch.frame_mask]
        return out

    hooks = [(read, lambda activation, hook: normalised.append(activation)), (write, by_hand)]
    with torch.no_grad(), model.hooks(fwd_hooks=hooks):
        wanted = model.decode(fed.tokens, model.encode_mel(batch.mel))
    found = spliced(model, site, lambda x, _: reconstruct(sae, x), batch).logits(fed)
    torch.testing.assert_close(found, wanted, atol=1e-3, rtol=1e-4)


def test_an_sae_spliced_in_is_an_sae_attached(model: HookedWhisper, waveforms: list[Tensor], fed: DecoderInput) -> None:
    for hook in (OUT, "encoder.blocks.3.attn.hook_z"):
        sae = random_sae("topk", hook, 512, 64, dtype="float32")
        site = find_site(model, sae)
        batch = listen(model, waveforms, ["en", "it"], site)
        found = spliced(model, site, lambda x, y, sae=sae: reconstruct(sae, x).reshape(y.shape), batch).logits(fed)
        with torch.no_grad():
            wanted = model.run_with_saes(waveforms, fed.tokens, saes=[sae], use_error_term=False, skip_padding=True)
        torch.testing.assert_close(found, wanted, atol=1e-3, rtol=1e-4)


def test_each_clip_has_its_own_replacement(model: HookedWhisper, batch: Batch) -> None:
    found = Spliced(model, site_at(OUT), [same, zero_ablation], batch, False).encoder_out
    assert torch.equal(found[0], batch.encoder_out[0])
    assert not found[1, batch.frame_mask[1]].any()


def test_the_mean_stands_in_every_row_and_head() -> None:
    found = mean_ablation(torch.arange(6.0))(torch.zeros(4, 2, 3), torch.zeros(4, 2, 3))
    assert torch.equal(found, torch.arange(6.0).reshape(1, 2, 3).expand(4, 2, 3))


def test_losses_and_divergences_are_those_of_their_definitions(
    model: HookedWhisper, batch: Batch, own: list[list[int]], fed: DecoderInput
) -> None:
    ways = {
        name: spliced(model, site_at(OUT), how, batch)
        for name, how in {"half": halved, ZERO: zero_ablation, MEAN: mean_ablation(torch.zeros(512))}.items()
    }
    sums = LossSums()
    sums.add(model, batch, fed, ways, range(2))
    with torch.no_grad():
        plain, half = model.decode(fed.tokens, batch.encoder_out), ways["half"].logits(fed)
    ce, kl, agreed = [], [], []
    assert model.tokenizer is not None
    for i, tokens in enumerate(own):
        # The prompt's last position predicts the first token, the last token predicts the end.
        start = fed.prompt_lengths[i] - 1
        for j, token in enumerate([*tokens, model.tokenizer.eot]):
            p, q = (logits[i, start + j].double().softmax(-1) for logits in (plain, half))
            ce.append(-q[token].log())
            kl.append((p * (p / q).log()).sum())
            agreed.append(float(p.argmax() == q.argmax()))
    found = sums.result("half")
    assert found is not None
    assert found.n_tokens == len(ce) == sum(map(len, own)) + 2 == int(predicted(fed).sum())
    assert found.ce_spliced == pytest.approx(float(torch.stack(ce).mean()), rel=1e-4)
    assert found.kl.value == pytest.approx(float(torch.stack(kl).mean()), rel=1e-4)
    assert found.agreement.value == pytest.approx(sum(agreed) / len(agreed))
    saved, cost = found.ce_zero - found.ce_spliced, found.ce_zero - found.ce_unhooked
    assert found.recovered_from_zero.value == pytest.approx(saved / cost)
    assert found.recovered_from_mean == found.recovered_from_zero  # the mean given is zero
    nothing = sums.result(ZERO)
    assert nothing is not None
    assert nothing.recovered_from_zero.value == 0


def filled(unhooked: list[float], sae: list[float], zero: list[float], mean: list[float]) -> LossSums:
    n = len(unhooked)
    ce = {"unhooked": unhooked, "sae": sae, ZERO: zero, MEAN: mean}
    return LossSums([10.0] * n, ce, {"sae": [0.5] * n}, {"sae": [9.0] * n}, list(range(n)))


def test_recovered_is_pooled_over_tokens_and_clips() -> None:
    sums = filled([1.0, 3.0], [2.0, 3.0], [11.0, 23.0], [6.0, 13.0])
    found = sums.result("sae")
    assert found is not None
    assert (found.n_clips, found.n_tokens) == (2, 20)
    assert (found.ce_unhooked, found.ce_spliced, found.ce_zero, found.ce_mean) == (0.2, 0.25, 1.7, 0.95)
    assert found.recovered_from_zero.value == pytest.approx(29 / 30)
    assert found.recovered_from_mean.value == pytest.approx(14 / 15)
    assert (found.kl.value, found.agreement.value) == (0.05, 0.9)
    second = sums.result("sae", [1])
    assert second is not None
    assert second.recovered_from_zero == Estimate(1.0)
    assert sums.result("sae", []) is None
    assert LossSums().result("sae") is None


def test_an_ablation_that_costs_nothing_leaves_it_undefined() -> None:
    found = filled([1.0, 3.0], [2.0, 3.0], [1.0, 3.0], [6.0, 13.0]).result("sae")
    assert found is not None
    assert found.recovered_from_zero == Estimate(None)
    assert found.recovered_from_mean.value is not None


def test_clips_can_be_left_out(model: HookedWhisper, batch: Batch, fed: DecoderInput) -> None:
    way = spliced(model, site_at(OUT), same, batch)
    sums = LossSums()
    sums.add(model, batch, fed, {"sae": way, ZERO: way, MEAN: way}, [7, 8], keep=[False, True])
    assert sums.clips == [8]
    found = sums.result("sae", [8])
    assert found is not None
    assert found.n_tokens == int(predicted(fed)[1].sum())
    assert sums.result("sae", [7]) is None
