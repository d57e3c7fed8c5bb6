from __future__ import annotations

from typing import Any, Literal

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from small import DECODER, ENCODER, small_config, small_model
from stack_runs import MODELS, close, run
from torch import Tensor
from transformer_lens import ActivationCache

from hooked_whisper import CacheError, ConfigError, HookedWhisper, StackConfig, TextError, WhisperCache
from hooked_whisper.component_cache import ComponentCache
from hooked_whisper.shorthand import hook_name

STACKS: list[Literal["encoder", "decoder"]] = ["encoder", "decoder"]


def stack_of(cache: WhisperCache, name: str) -> ComponentCache:
    return cache.encoder if name == "encoder" else cache.decoder


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest) -> HookedWhisper:
    return MODELS[request.param]()


@pytest.fixture
def cache(model: HookedWhisper) -> WhisperCache:
    return run(model)


# --- names ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "name"),
    [
        (("q", 2), "blocks.2.attn.hook_q"),
        (("q", 2, "attn"), "blocks.2.attn.hook_q"),
        (("q", 2, "cross"), "blocks.2.cross_attn.hook_q"),
        (("attn", 1, "cross_attn"), "blocks.1.cross_attn.hook_pattern"),
        (("attn_scores", 0), "blocks.0.attn.hook_attn_scores"),
        (("resid_post", -1), "blocks.2.hook_resid_post"),
        (("resid_mid_cross", 1), "blocks.1.hook_resid_mid_cross"),
        (("cross_attn_out", 0), "blocks.0.hook_cross_attn_out"),
        (("post", 0), "blocks.0.mlp.hook_post"),
        (("mlp_pre", 0, "mlp"), "blocks.0.mlp.hook_pre"),
        (("scale", 1, "ln3"), "blocks.1.ln3.hook_scale"),
        (("normalized",), "ln_final.hook_normalized"),
        ("embed", "hook_embed"),
        ("k1", "blocks.1.attn.hook_k"),
        ("scale1ln1", "blocks.1.ln1.hook_scale"),
        ("resid_pre2", "blocks.2.hook_resid_pre"),
        ("scale", "ln_final.hook_scale"),
        ("blocks.0.hook_mlp_out", "blocks.0.hook_mlp_out"),
    ],
)
def test_short_names(key: Any, name: str) -> None:
    cache = run(small_model())
    close(cache.decoder[key], cache[f"decoder.{name}"])


def test_short_names_of_the_encoder() -> None:
    cache = run(small_model())
    assert hook_name("conv2", final_norm="ln_post") == "hook_conv2"
    close(cache.encoder["conv1"], cache["encoder.hook_conv1"])
    close(cache.encoder["normalized"], cache["encoder.ln_post.hook_normalized"])
    close(cache.encoder["out"], cache["encoder.hook_out"])
    close(cache.encoder["pattern", -1], cache["encoder.blocks.1.attn.hook_pattern"])


def test_a_stack_holds_its_own_and_no_more() -> None:
    cache = run(small_model())
    assert {f"encoder.{name}" for name in cache.encoder} == {name for name in cache if name.startswith("encoder.")}
    assert {f"decoder.{name}" for name in cache.decoder} == {name for name in cache if name.startswith("decoder.")}
    assert isinstance(cache.decoder, ActivationCache)
    assert cache.encoder["hook_out"] is cache["encoder.hook_out"]
    assert cache.decoder.is_derived("blocks.0.cross_attn.hook_pattern")
    with pytest.raises(CacheError, match=r"No activation is called 'blocks.0.hook_resid_mid_cros' here. Did you mean"):
        cache.decoder["blocks.0.hook_resid_mid_cros"]
    with pytest.raises(CacheError, match="No activation is called 'blocks.0.hook_cross_attn_out'"):
        cache.encoder["cross_attn_out", 0]
    part = run(small_model(), names_filter="decoder.blocks.0.*")
    with pytest.raises(CacheError, match=r"'decoder.blocks.1.hook_resid_pre' was not kept.*names_filter"):
        part.decoder["resid_pre", 1]


# --- sums: every way of taking the stream apart puts it together again ----------------------------------------------


def places(stack: str) -> list[dict[str, Any]]:
    """Every place at which a norm reads the stream."""
    n = ENCODER.n_layers if stack == "encoder" else DECODER.n_layers
    found: list[dict[str, Any]] = [{"layer": i, **at} for i in range(n) for at in ({}, {"mlp_input": True})]
    found += [{"layer": i, "cross_input": True} for i in range(n) if stack == "decoder"]
    return [*found, {"layer": n}, {"layer": None}, {"layer": -1}]


def read(cache: WhisperCache, stack: str, place: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """The stream at a place and what the norm there makes of it, by their names in the cache."""
    n = ENCODER.n_layers if stack == "encoder" else DECODER.n_layers
    layer = place["layer"]
    if layer in (None, -1, n):
        norm = "ln_post" if stack == "encoder" else "ln_final"
        return cache[f"{stack}.blocks.{n - 1}.hook_resid_post"], cache[f"{stack}.{norm}.hook_normalized"]
    block = f"{stack}.blocks.{layer}"
    if place.get("mlp_input"):
        resid, norm = ("resid_mid", "ln2") if stack == "encoder" else ("resid_mid_cross", "ln3")
    else:
        resid, norm = ("resid_mid", "ln2") if place.get("cross_input") else ("resid_pre", "ln1")
    return cache[f"{block}.hook_{resid}"], cache[f"{block}.{norm}.hook_normalized"]


@pytest.mark.parametrize("stack", STACKS)
def test_components_sum_to_what_each_norm_reads(cache: WhisperCache, stack: str) -> None:
    part = stack_of(cache, stack)
    for place in places(stack):
        stream, normalized = read(cache, stack, place)
        bias = part.ln_bias(**place)
        for split in (
            part.decompose_resid(**place),
            part.get_full_resid_decomposition(**place),
            part.get_full_resid_decomposition(expand_neurons=False, **place),
        ):
            close(split.sum(0), stream)
            close(part.apply_ln_to_stack(split, **place).sum(0) + bias, normalized)
        close(part.decompose_resid(apply_ln=True, **place).sum(0) + bias, normalized)
        close(part.get_full_resid_decomposition(apply_ln=True, **place).sum(0) + bias, normalized)
        close(part.accumulated_resid(**place)[-1], stream)
        layer = place["layer"]
        if "mlp_input" in place or "cross_input" in place:
            continue
        for kind in ("all", "self", "cross")[: 3 if stack == "decoder" else 2]:
            heads = part.stack_head_results(layer, incl_remainder=True, kind=kind)  # type: ignore[arg-type]
            close(heads.sum(0), stream)
        close(part.stack_neuron_results(layer, incl_remainder=True).sum(0), stream)
        normed = part.stack_neuron_results(layer, incl_remainder=True, apply_ln=True)
        close(normed.sum(0) + bias, normalized)


@settings(deadline=None, max_examples=12)
@given(
    encoder_layers=st.integers(1, 3),
    decoder_layers=st.integers(1, 3),
    heads=st.sampled_from([1, 2, 4]),
    n_pos=st.integers(1, 6),
    remove=st.booleans(),
    stored_scale=st.booleans(),
)
def test_sums_hold_in_every_shape(
    encoder_layers: int, decoder_layers: int, heads: int, n_pos: int, remove: bool, stored_scale: bool
) -> None:
    cfg = small_config(StackConfig(encoder_layers, heads, 16, 12, 7), StackConfig(decoder_layers, heads, 16, 9, 8))
    model = small_model(cfg)
    names = None if stored_scale else lambda name: not name.endswith("hook_scale")
    cache = run(model, 1 if remove else 2, n_pos, remove_batch_dim=remove, names_filter=names)
    for part, output in ((cache.encoder, cache["encoder.hook_out"]), (cache.decoder, None)):
        whole = cache["decoder.ln_final.hook_normalized"] if output is None else output
        split = part.get_full_resid_decomposition(apply_ln=True)
        close(split.sum(0) + part.ln_bias(), whole)
        close(part.accumulated_resid(apply_ln=True)[-1], whole)
        layer = part.stack.n_layers - 1
        at = part.decompose_resid(layer, mlp_input=True, apply_ln=True).sum(0) + part.ln_bias(layer, mlp_input=True)
        norm = "ln2" if output is not None else "ln3"
        close(at, part[f"blocks.{layer}.{norm}.hook_normalized"])
    lens = cache.decoder.logit_lens()
    close(lens[-1], cache["hook_logits"])


# --- which component is which ---------------------------------------------------------------------------------------


def test_accumulated_states_and_labels(cache: WhisperCache) -> None:
    states, labels = cache.encoder.accumulated_resid(incl_mid=True, return_labels=True)
    assert labels == ["0_pre", "0_mid", "1_pre", "1_mid", "final_post"]
    for state, label in zip(states, labels, strict=True):
        i, leaf = label.split("_", 1)
        name = "blocks.1.hook_resid_post" if i == "final" else f"blocks.{i}.hook_resid_{leaf}"
        close(state, cache.encoder[name])
    states, labels = cache.decoder.accumulated_resid(2, incl_mid=True, mlp_input=True, return_labels=True)
    assert labels == ["0_pre", "0_mid", "0_mid_cross", "1_pre", "1_mid", "1_mid_cross", "2_pre", "2_mid", "2_mid_cross"]
    close(states[5], cache.decoder["resid_mid_cross", 1])
    assert cache.decoder.accumulated_resid(1, mlp_input=True, return_labels=True)[1] == [
        "0_pre",
        "1_pre",
        "1_mid_cross",
    ]
    assert cache.decoder.accumulated_resid(1, cross_input=True, return_labels=True)[1] == ["0_pre", "1_pre", "1_mid"]
    assert cache.decoder.accumulated_resid(0, return_labels=True)[1] == ["0_pre"]


def test_accumulated_states_through_norms(model: HookedWhisper, cache: WhisperCache) -> None:
    states = cache.decoder.accumulated_resid(apply_ln=True)
    for i, state in enumerate(states):
        stream = cache.decoder["resid_pre", i] if i < 3 else cache.decoder["resid_post", 2]
        close(state, model.decoder.ln_final(stream).detach())
    # Before the end: the scale is that of the layer's own input, and there is no bias, as TransformerLens has it.
    states = cache.decoder.accumulated_resid(1, apply_ln=True)
    close(states[-1] + cache.decoder.ln_bias(1), cache.decoder["normalized", 1, "ln1"])
    stream, scale = cache.decoder["resid_pre", 0], cache.decoder["scale", 1, "ln1"]
    ln: Any = model.get_submodule("decoder.blocks.1.ln1")
    close(states[0], (stream - stream.mean(-1, keepdim=True)) / scale * ln.w.detach())


def test_decomposition_and_labels(cache: WhisperCache) -> None:
    parts, labels = cache.decoder.decompose_resid(1, mlp_input=True, return_labels=True)
    assert labels == [
        "embed",
        "pos_embed",
        "0_attn_out",
        "0_cross_attn_out",
        "0_mlp_out",
        "1_attn_out",
        "1_cross_attn_out",
    ]
    names = ["hook_embed", "hook_pos_embed", *(f"blocks.{label[0]}.hook_{label[2:]}" for label in labels[2:])]
    for part, name in zip(parts, names, strict=True):
        close(part, cache.decoder[name])
    parts, labels = cache.encoder.decompose_resid(return_labels=True)
    assert labels == ["embed", "pos_embed", "0_attn_out", "0_mlp_out", "1_attn_out", "1_mlp_out"]
    close(parts[0], cache.encoder["conv2"])
    close(parts[1], cache.encoder["pos_embed"].expand_as(parts[1]))

    def only(mode: Any, **options: Any) -> list[str]:
        return cache.decoder.decompose_resid(mode=mode, incl_embeds=False, return_labels=True, **options)[1]

    assert only("attn") == [f"{i}_attn_out" for i in range(3)]
    assert only("cross") == [f"{i}_cross_attn_out" for i in range(3)]
    assert only("mlp", layer=2) == ["0_mlp_out", "1_mlp_out"]
    assert only("cross", layer=1, mlp_input=True) == ["0_cross_attn_out", "1_cross_attn_out"]
    assert only("attn", layer=1, cross_input=True) == ["0_attn_out", "1_attn_out"]


def test_heads_and_neurons_are_where_their_labels_say(model: HookedWhisper, cache: WhisperCache) -> None:
    heads, labels = cache.decoder.stack_head_results(return_labels=True)
    assert labels[:9] == [*(f"L0H{i}" for i in range(4)), *(f"L0C{i}" for i in range(4)), "L1H0"]
    assert len(labels) == len(heads) == 2 * 3 * 4
    for label, module in (("L2H3", "blocks.2.attn"), ("L1C2", "blocks.1.cross_attn")):
        attention: Any = model.get_submodule(f"decoder.{module}")
        head = int(label[3])
        width = slice(4 * head, 4 * head + 4)
        by_hand = cache.decoder[f"{module}.hook_z"][:, :, head] @ attention.out.weight[:, width].T.detach()
        close(heads[labels.index(label)], by_hand)
    only, names = cache.decoder.stack_head_results(2, return_labels=True, kind="cross", incl_remainder=True)
    assert names == [*(f"L{i}C{head}" for i in range(2) for head in range(4)), "remainder"]
    close(only[:4].sum(0) + model.decoder.blocks[0].cross_attn.out.bias.detach(), cache.decoder["cross_attn_out", 0])  # type: ignore[union-attr, operator]
    mlp: Any = model.encoder.blocks[1].mlp
    neurons, labels = cache.encoder.stack_neuron_results(return_labels=True)
    assert (labels[0], labels[-1], len(labels)) == ("L0N0", "L1N23", 48)
    acts = F.gelu(cache.encoder["pre", 1])
    close(neurons[labels.index("L1N5")], acts[..., 5, None] * mlp.fc_out.weight[:, 5].detach())
    close(neurons[24:].sum(0) + mlp.fc_out.bias.detach(), cache.encoder["mlp_out", 1])
    full, labels = cache.decoder.get_full_resid_decomposition(2, return_labels=True, expand_neurons=False)
    assert labels == [
        *(f"L{i}{kind}{head}" for i in range(2) for kind in "HC" for head in range(4)),
        "0_mlp_out",
        "1_mlp_out",
        "embed",
        "pos_embed",
        "bias",
    ]
    close(full[labels.index("1_mlp_out")], cache.decoder["mlp_out", 1])
    assert len(cache.decoder.get_full_resid_decomposition(2)) == 16 + 40 + 3


def test_an_edited_head_shows(cache: WhisperCache) -> None:
    """Heads come from z as the hooks left it."""

    def silence(z: Tensor, hook: Any) -> Tensor:
        z[:, :, 1] = 0
        return z

    edited = run(small_model(), fwd_hooks=[("decoder.blocks.1.cross_attn.hook_z", silence)])
    heads, labels = edited.decoder.stack_head_results(return_labels=True, incl_remainder=True)
    assert not heads[labels.index("L1C1")].any()
    assert heads[labels.index("L1C0")].any()
    close(heads.sum(0), edited.decoder["resid_post", 2])


def test_head_results_can_be_stored() -> None:
    decoder = run(small_model()).decoder
    told = decoder.stack_head_results()
    assert decoder.is_derived("blocks.0.cross_attn.hook_result")
    decoder.compute_head_results()
    assert "blocks.0.cross_attn.hook_result" in decoder
    close(decoder.stack_head_results(), told)


# --- slices and projections -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("pos", [0, -1, [1, 3], (1, 4), slice(None, None, 2), torch.tensor([4, 0])])
@pytest.mark.parametrize("remove", [False, True])
def test_positions_can_be_picked(pos: Any, remove: bool) -> None:
    cache = run(small_model(), 1, remove_batch_dim=remove)
    index = slice(*pos) if isinstance(pos, tuple) else pos
    for part in (cache.encoder, cache.decoder):
        for method in (
            part.accumulated_resid,
            part.decompose_resid,
            part.stack_head_results,
            part.stack_neuron_results,
            part.get_full_resid_decomposition,
        ):
            for apply_ln in (False, True):
                close(method(pos_slice=pos, apply_ln=apply_ln), method(apply_ln=apply_ln)[..., index, :])
    close(cache.decoder.logit_lens(pos_slice=pos), cache.decoder.logit_lens()[..., index, :])


@pytest.mark.parametrize("apply_ln", [False, True])
@pytest.mark.parametrize("n", [None, 1, 3])
@pytest.mark.parametrize("pos", [None, 2, (0, 3)])
def test_projections_are_what_projecting_afterwards_gives(
    cache: WhisperCache, apply_ln: bool, n: int | None, pos: Any
) -> None:
    onto = torch.randn(16, dtype=torch.float64) if n is None else torch.randn(16, n, dtype=torch.float64)
    options: dict[str, Any] = {"pos_slice": pos, "apply_ln": apply_ln}
    for part in (cache.encoder, cache.decoder):
        for remainder in (False, True):
            whole = part.stack_neuron_results(incl_remainder=remainder, **options)
            close(
                part.stack_neuron_results(incl_remainder=remainder, project_output_onto=onto, **options), whole @ onto
            )
        whole = part.get_full_resid_decomposition(1, mlp_input=True, **options)
        close(part.get_full_resid_decomposition(1, mlp_input=True, project_output_onto=onto, **options), whole @ onto)
    neurons = cache.encoder.get_neuron_results(0, neuron_slice=(2, 5), pos_slice=pos)
    close(cache.encoder.get_neuron_results(0, (2, 5), pos, onto), neurons @ onto)


def test_neurons_can_be_picked(cache: WhisperCache) -> None:
    whole, names = cache.encoder.stack_neuron_results(return_labels=True)
    some, labels = cache.encoder.stack_neuron_results(neuron_slice=[3, 5], return_labels=True)
    assert labels == ["L0N3", "L0N5", "L1N3", "L1N5"]
    close(some, whole[[names.index(label) for label in labels]])
    one, labels = cache.encoder.stack_neuron_results(2, neuron_slice=-1, return_labels=True)
    assert labels == ["L0N23", "L1N23"]
    close(one, whole[[23, 47]])
    close(cache.encoder.get_neuron_results(1, 7), whole[24 + 7])
    close(cache.decoder.stack_activation("q", 2), torch.stack([cache.decoder["q", 0], cache.decoder["q", 1]]))
    assert cache.decoder.stack_activation("pattern", sublayer_type="cross").shape == (3, 2, 4, 5, 10)


def test_a_slice_of_time_is_analysed_like_the_whole(cache: WhisperCache) -> None:
    part = cache.seconds(0.04, 0.1)
    close(part.encoder.decompose_resid(apply_ln=True), cache.encoder.decompose_resid(apply_ln=True)[:, :, 2:5])
    close(part.encoder.stack_head_results(), cache.encoder.stack_head_results()[:, :, 2:5])


# --- what cannot be done --------------------------------------------------------------------------------------------


def test_places_that_do_not_exist() -> None:
    cache = run(small_model())
    encoder, decoder = cache.encoder, cache.decoder
    with pytest.raises(ConfigError, match=r"layer=4 is not in the decoder: expected 0 to 3, where 3"):
        decoder.accumulated_resid(4)
    with pytest.raises(ConfigError, match="layer=3 is the final norm.*layer is 0 to 2"):
        decoder.decompose_resid(mlp_input=True)
    with pytest.raises(ConfigError, match="exclude each other"):
        decoder.decompose_resid(0, mlp_input=True, cross_input=True)
    with pytest.raises(ConfigError, match="the encoder has no cross-attention"):
        encoder.apply_ln_to_stack(encoder.accumulated_resid(), 0, cross_input=True)
    with pytest.raises(ConfigError, match=r"There are no heads before layer 0: expected a layer from 1"):
        encoder.stack_head_results(0)
    with pytest.raises(ConfigError, match=r"There are no neurons before layer 0"):
        encoder.stack_neuron_results(0)
    with pytest.raises(ConfigError, match=r"There are no neurons before layer 0"):
        encoder.stack_neuron_results(0, project_output_onto=torch.zeros(16).double())
    with pytest.raises(ConfigError, match=r"Nothing comes before layer 0 but the embeddings"):
        encoder.decompose_resid(0, incl_embeds=False)
    with pytest.raises(ConfigError, match=r"pos_slice=9 is out of range: there are 5 here"):
        decoder.accumulated_resid(pos_slice=9)
    with pytest.raises(ConfigError, match="There is no layer 2: the encoder has 0 to 1"):
        encoder.get_neuron_results(2)
    with pytest.raises(ConfigError, match=r"project_output_onto has shape \(5,\): expected \[16\] or \[16, n\]"):
        encoder.get_full_resid_decomposition(project_output_onto=torch.zeros(5))


def test_options_that_do_not_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    cache = run(small_model())
    with pytest.raises(ConfigError, match="Unknown mode 'cross': the encoder has 'all', 'attn', 'mlp'"):
        cache.encoder.decompose_resid(mode="cross")
    with pytest.raises(ConfigError, match="Unknown kind of head 'cross': the encoder has 'all', 'self'"):
        cache.encoder.stack_head_results(kind="cross")


def test_tokens_that_do_not_fit() -> None:
    cache = run(small_model())
    split = cache.decoder.decompose_resid()
    with pytest.raises(TextError, match="Token 31 is outside the vocabulary: expected 0 to 30"):
        cache.decoder.logit_attrs(split, 31)
    with pytest.raises(TextError, match="The token 'a' needs a tokenizer"):
        cache.decoder.logit_attrs(split, "a")
    with pytest.raises(ConfigError, match=r"tokens of shape \(3,\) do not fit components of shape \(2, 5\)"):
        cache.decoder.logit_attrs(split, [1, 2, 3])
    with pytest.raises(ConfigError, match=r"must have one shape, got \(2,\) and \(1,\)"):
        cache.decoder.logit_attrs(split, [1, 2], [3])
    with pytest.raises(CacheError, match="The encoder has no logits: cache.decoder.logit_attrs"):
        cache.encoder.logit_attrs(split, 3)


def test_what_was_not_kept() -> None:
    part = run(small_model(), names_filter=["*.hook_resid_pre", "*.hook_resid_post"])
    with pytest.raises(CacheError, match=r"'decoder.hook_embed' was not kept"):
        part.decoder.decompose_resid()
    with pytest.raises(CacheError, match=r"'encoder.blocks.0.attn.hook_z' was not kept|hook_result"):
        part.encoder.stack_head_results()
    # Scales are not there, and follow from the stream.
    assert part.encoder.accumulated_resid(1, apply_ln=True).shape == (2, 2, 10, 16)
    with pytest.raises(CacheError, match=r"'encoder.blocks.0.hook_resid_mid' was not kept"):
        part.encoder.apply_ln_to_stack(part.encoder.accumulated_resid(), 0, mlp_input=True)
    edit = ("decoder.ln_final.hook_scale", lambda scale, hook: 2 * scale)
    edited = run(small_model(), names_filter="*.hook_resid_post", fwd_hooks=[edit])
    with pytest.raises(CacheError, match="had a hook of its own in this run: add it to names_filter"):
        edited.decoder.apply_ln_to_stack(edited.decoder["resid_post", 0][None])


def test_an_edited_scale_is_the_one_that_counts() -> None:
    edit = ("decoder.ln_final.hook_scale", lambda scale, hook: 2 * scale)
    cache = run(small_model(), fwd_hooks=[edit])
    normed = cache.decoder.decompose_resid(apply_ln=True).sum(0) + cache.decoder.ln_bias()
    close(normed, cache.decoder["normalized"])


def test_norms_by_head_take_the_streams_own_scale() -> None:
    model = small_model()
    model.set_use_split_qkv_input(True)
    cache, plain = run(model), run(small_model())
    assert cache["decoder.blocks.1.ln1.hook_scale"].ndim == 4
    close(cache.decoder.decompose_resid(1, apply_ln=True), plain.decoder.decompose_resid(1, apply_ln=True))


def test_without_a_model_only_weights_are_missing() -> None:
    cache = run(small_model())
    cache.model = None
    assert cache.decoder.accumulated_resid().shape == (4, 2, 5, 16)
    close(cache.decoder.decompose_resid().sum(0), cache.decoder["resid_post", 2])
    assert cache.decoder["pattern", 0].shape == (2, 4, 5, 5)
    for method in (cache.decoder.logit_lens, cache.decoder.stack_head_results, cache.decoder.ln_bias):
        with pytest.raises(CacheError, match="needs the model's weights|was not kept|derived"):
            method()
