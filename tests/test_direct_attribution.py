"""Direct attribution: parts sum to the logit, and each is what the logit loses when that part alone is taken away."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from sae_files import random_sae
from small import small_inputs, small_model
from torch import Tensor
from transformer_lens.hook_points import HookPoint

from hooked_whisper import AnalysisError, HookedWhisper, WhisperCache
from hooked_whisper.analysis.direct_attribution import DirectAttribution, direct_attribution
from hooked_whisper.speech import clips

KINDS = ("component", "head", "neuron")
RESID, LAST = "decoder.blocks.1.hook_resid_post", "decoder.blocks.2"


@pytest.fixture(scope="module")
def base_cache(shared_whisper_base: HookedWhisper) -> WhisperCache:
    paths = [clips(language, "vm-sorry")[0].path for language in ("en", "fr")]
    return shared_whisper_base.run_with_cache(paths, [" Sorry, one", " Je"], language=["en", "fr"])[1]


def small_cache(**options: object) -> tuple[HookedWhisper, WhisperCache]:
    model = small_model()
    mel, tokens = small_inputs(model.cfg)
    return model, model.run_with_cache(mel, tokens, **options)[1]


@pytest.mark.parametrize("by", KINDS)
def test_parts_sum_to_the_logit_of_whisper_base(
    shared_whisper_base: HookedWhisper, base_cache: WhisperCache, by: str
) -> None:
    logits = base_cache["hook_logits"]
    lengths = base_cache.token_mask.sum(1).tolist()
    assert lengths[0] != lengths[1]  # each clip's own last token is meant, not the padding after it
    answer, wrong = (int(shared_whisper_base.to_tokens(word)[0]) for word in (" one", " two"))
    for pos in (None, 3):
        found = direct_attribution(base_cache, answer, wrong, pos=pos, by=by)
        at = [length - 1 if pos is None else pos for length in lengths]
        assert found.positions == tuple(at)
        for clip in range(2):
            expected = logits[clip, at[clip], answer] - logits[clip, at[clip], wrong]
            assert float(found.values[:, clip].sum()) == pytest.approx(float(expected), abs=1e-4)
    alone = direct_attribution(base_cache, by=by)
    likeliest = logits[torch.arange(2), torch.tensor(lengths) - 1].max(-1).values
    torch.testing.assert_close(alone.values.sum(0).float(), likeliest, atol=1e-4, rtol=0)


def test_tokens_of_a_side_are_averaged(base_cache: WhisperCache) -> None:
    both = direct_attribution(base_cache, [400, 500], " two")
    one, other = direct_attribution(base_cache, 400, " two"), direct_attribution(base_cache, 500, " two")
    torch.testing.assert_close(both.values, (one.values + other.values) / 2)


@pytest.mark.parametrize(
    ("label", "name", "out", "index"),
    [
        ("embed", "decoder.hook_embed", "decoder.hook_embed", ()),
        ("L1.attn.H2", "decoder.blocks.1.attn.hook_z", "decoder.blocks.1.hook_attn_out", (..., 2, slice(None))),
        ("L2.cross.H3", "decoder.blocks.2.cross_attn.hook_z", f"{LAST}.hook_cross_attn_out", (..., 3, slice(None))),
        ("L0.mlp.N5", "decoder.blocks.0.mlp.hook_post", "decoder.blocks.0.hook_mlp_out", (..., 5)),
    ],
)  # fmt: skip
def test_each_part_is_what_taking_it_away_alone_costs(label: str, name: str, out: str, index: tuple[Any, ...]) -> None:
    """All other outputs and the final scale are held at their values; then the logit loses the part, nothing else."""
    model, cache = small_cache()
    by = "component" if label == "embed" else "neuron"
    clean = direct_attribution(cache, 7, 3, by=by)
    held = [f"decoder.blocks.{i}.hook_{leaf}" for i in range(3) for leaf in ("attn_out", "cross_attn_out", "mlp_out")]

    def hold(value: Tensor, hook: HookPoint) -> Tensor:
        return cache[str(hook.name)].clone()

    def take_away(value: Tensor, hook: HookPoint) -> Tensor:
        value = value.clone()
        value[index] = 0
        return value

    hooks = [(other, hold) for other in [*held, "decoder.ln_final.hook_scale"] if other != out]
    mel, tokens = small_inputs(model.cfg)
    edited = model.run_with_hooks(mel, tokens, fwd_hooks=[*hooks, (name, take_away)])
    lost = clean.total - (edited[:, -1, 7] - edited[:, -1, 3])
    lost = lost.detach()
    torch.testing.assert_close(clean[label], lost, atol=1e-10, rtol=1e-8)
    assert float(lost.abs().min()) > 1e-4


def test_a_whole_output_is_its_parts_without_its_bias() -> None:
    _, cache = small_cache()
    whole, parts = direct_attribution(cache, 7), direct_attribution(cache, 7, by="neuron")
    for label in whole.labels[2:-1]:
        inside = [parts[name] for name in parts.labels if name.startswith(f"{label}.")]
        torch.testing.assert_close(torch.stack(inside).sum(0), whole[label])
    torch.testing.assert_close(parts["bias"], whole["bias"])


@pytest.mark.parametrize(
    "hook",
    [
        "decoder.blocks.1.hook_resid_post",
        "decoder.blocks.0.hook_resid_pre",
        "decoder.blocks.1.hook_resid_mid_cross",
        "decoder.blocks.2.hook_mlp_out",
    ],
)
@pytest.mark.parametrize("attached", [False, True])
@pytest.mark.parametrize("use_error_term", [False, True])
def test_features_sum_to_the_logit_with_the_parts_after_them(hook: str, attached: bool, use_error_term: bool) -> None:
    model = small_model()
    sae = random_sae(hook=hook, d_sae=40)
    mel, tokens = small_inputs(model.cfg)
    if attached:
        _, cache = model.run_with_cache_with_saes(mel, tokens, saes=[sae], use_error_term=use_error_term)
    else:
        _, cache = model.run_with_cache(mel, tokens)
    found = direct_attribution(cache, 7, by="feature", sae=sae)
    torch.testing.assert_close(found.values.sum(0), cache["hook_logits"][:, -1, 7], atol=1e-9, rtol=0)
    assert sum(label.startswith("F") for label in found.labels) == 40
    assert ("embed" in found.labels) == hook.endswith("mlp_out")
    # A feature's part by hand: its value, along its direction, through the norm.
    acts = cache[f"{hook}.hook_sae_acts_post"] if attached else sae.encode(cache[hook])
    feature = int(acts[0, -1].argmax())
    written = acts[0, -1, feature] * sae.W_dec[feature]
    norm = model.decoder.ln_final
    scale = cache["decoder.ln_final.hook_scale"][0, -1]
    by_hand = ((written - written.mean()) / scale * norm.w) @ model.W_U[:, 7]
    torch.testing.assert_close(found[f"F{feature}"][0], by_hand.detach())
    assert float(by_hand.detach().abs()) > 1e-4


def test_top_and_plot(base_cache: WhisperCache) -> None:
    found = direct_attribution(base_cache, by="head")
    best = found.top(5, clip=1)
    assert best[0][1] == pytest.approx(float(found.values[:, 1].abs().max()), abs=1e-9) or best[0][1] < 0
    assert [abs(value) for _, value in best] == sorted((abs(value) for _, value in best), reverse=True)
    assert found[best[0][0]][1] == best[0][1]
    stop = direct_attribution(base_cache, ".")  # exactly that token, as `logit_attrs` takes it
    assert float(stop.total[0]) == pytest.approx(float(base_cache["hook_logits"][0, stop.positions[0], 13]), abs=1e-4)
    axes = found.plot(5, clip=1).axes[0]
    shown = [label.get_text() for label in axes.get_yticklabels()]
    assert sorted(shown) == sorted(label for label, _ in best)
    assert shown == [label for label in found.labels if label in shown]  # in the model's order
    assert [bar.get_width() for bar in axes.patches] == [float(found[label][1]) for label in shown]


def test_what_cannot_be_explained_is_refused() -> None:
    model, cache = small_cache()
    sae = random_sae(hook=RESID)

    def refused(message: str, cache: WhisperCache = cache, **options: object) -> None:
        with pytest.raises(AnalysisError, match=message):
            direct_attribution(cache, 7, **options)

    refused("Unknown by='layer': expected component, head, neuron, feature", by="layer")
    refused('by="feature" needs sae=', by="feature")
    refused("nothing else takes one", sae=sae)
    refused(r"Clip 0 has no position 9: it was fed 5 tokens", pos=9)
    refused(r"Clip 0 has no position -6", pos=-6)
    refused("Features of 'encoder.hook_out' are not parts", by="feature", sae=sae, hook="encoder.hook_out")
    refused("The SAE writes 8 numbers", by="feature", sae=random_sae(hook=RESID, d_in=8))
    refused("metadata name no hook", by="feature", sae=random_sae(hook=None))
    refused("needs a cache that has its model", cache=cache.apply_slice_to_batch_dim(0))
    found = direct_attribution(cache, 7)
    for call, message in (
        (lambda: found["L9.attn"], "There is no part 'L9.attn'"),
        (lambda: found.top(clip=4), "There is no clip 4: there are 2"),
        (lambda: found.plot(clip=-1), "There is no clip -1"),
        (lambda: found.top(-1), "n=-1: expected a whole number"),
    ):
        with pytest.raises(AnalysisError, match=message):
            call()
    mel, tokens = small_inputs(model.cfg)
    _, edited = model.run_with_cache(mel, tokens, fwd_hooks=[(RESID, lambda x, hook: x + torch.arange(16))])
    refused("something else wrote into the residual stream", cache=edited)


def test_result_is_what_it_says() -> None:
    _, cache = small_cache()
    found = direct_attribution(cache, 7)
    assert isinstance(found, DirectAttribution)
    assert found.labels[:3] == ("embed", "pos_embed", "L0.attn") and found.labels[-1] == "bias"
    assert len(found.labels) == 2 + 3 * 3 + 1
