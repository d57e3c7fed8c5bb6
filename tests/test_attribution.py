"""Attribution: equal to patching where the model is linear, near it where it is not, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from scipy.stats import spearmanr
from short_windows import short_windows
from small import small_inputs, small_model
from torch import Tensor

from hooked_whisper import AnalysisError, HookedWhisper
from hooked_whisper.analysis.attribution import Attribution, attribute, deal
from hooked_whisper.analysis.contrast import Contrast, ModelInput
from hooked_whisper.analysis.metrics import LogitDifference
from hooked_whisper.analysis.nodes import Node, nodes, windows
from hooked_whisper.analysis.patching import patch
from hooked_whisper.speech import clips

EVERYTHING = ["head", "q", "k", "v", "attn", "mlp", "neuron", "resid", "resid_pre"]
SPANS = {"frame": windows(0, 10, 4), "pos": windows(0, 5, 3)}
METHODS: list[dict[str, Any]] = [
    {"method": "patching"},
    {"method": "integrated", "along": "nodes", "steps": 3},
    {"method": "integrated", "along": "inputs", "steps": 2},
]


def METRIC(logits: Tensor) -> Tensor:
    """In float64, which LogitDifference is not."""
    return logits[:, -1, 3] - logits[:, -1, 7] + logits[:, 1, 4]


def contrast(model: HookedWhisper, *, step: float = 1.0, batch: int = 2) -> Contrast:
    """Two random inputs, the corrupted one `step` of the way towards a third."""
    mel, tokens = small_inputs(model.cfg, batch)
    far, others = small_inputs(model.cfg, batch, seed=2)
    corrupted = ModelInput(torch.lerp(mel, far, step), others if step == 1.0 else tokens)
    return Contrast(ModelInput(mel, tokens), corrupted, torch.ones_like(tokens, dtype=torch.bool), (2,) * batch)


def linearise(model: HookedWhisper) -> None:
    """Hooks that leave nothing but linear maps behind the embeddings: fixed scales and patterns, no GELU."""
    pre: dict[str, Tensor] = {}

    def fixed(activation: Tensor, hook: Any) -> Tensor:
        shape = (1, *activation.shape[1:])
        noise = torch.rand(shape, generator=torch.Generator().manual_seed(len(hook.name)), dtype=activation.dtype)
        return (0.5 + noise).expand_as(activation).clone()

    def pattern(activation: Tensor, hook: Any) -> Tensor:
        return fixed(activation, hook).softmax(-1)  # not causal, and as linear for that

    def keep(activation: Tensor, hook: Any) -> None:
        pre[hook.name] = activation

    def no_gelu(activation: Tensor, hook: Any) -> Tensor:
        return 0.7 * pre[hook.name.replace("hook_post", "hook_pre")]

    model.add_perma_hook(lambda name: name.endswith("hook_scale"), fixed)
    model.add_perma_hook(lambda name: name.endswith("hook_pattern"), pattern)
    model.add_perma_hook(lambda name: name.endswith("hook_pre"), keep)
    model.add_perma_hook(lambda name: name.endswith("hook_post"), no_gelu)


@pytest.fixture(scope="module")
def linear() -> tuple[HookedWhisper, Contrast, list[Node], Tensor]:
    model = small_model()
    linearise(model)
    pair = contrast(model)
    chosen = [*nodes(model, EVERYTHING), *nodes(model, ["head", "mlp", "k", "resid"], spans=SPANS)]
    return model, pair, chosen, patch(model, pair, chosen, METRIC).change


@pytest.mark.parametrize("options", METHODS)
def test_equals_patching_where_the_model_is_linear(
    linear: tuple[HookedWhisper, Contrast, list[Node], Tensor], options: dict[str, Any]
) -> None:
    model, pair, chosen, exact = linear
    found = attribute(model, pair, chosen, METRIC, **options)
    assert (exact.abs() > 1e-3).float().mean() > 0.5
    assert torch.allclose(found.scores, exact, atol=1e-5, rtol=0)


@pytest.mark.parametrize("direction", ["denoise", "noise"])
def test_errors_shrink_with_the_contrast_as_they_should(direction: Any) -> None:
    """The tangent misses the second order of a small difference, the midpoint rule the third."""
    model = small_model()
    chosen = nodes(model, ["head", "mlp", "q"], spans=SPANS)[::8]
    worst: dict[str, list[float]] = {"patching": [], "integrated": []}
    for step in (0.008, 0.004):
        pair = contrast(model, step=step)
        exact = patch(model, pair, chosen, METRIC, direction=direction).change
        for method, errors in worst.items():
            steps = None if method == "patching" else len(chosen)  # each node alone in its pass
            found = attribute(model, pair, chosen, METRIC, method=method, steps=steps, direction=direction)  # type: ignore[arg-type]
            errors.append(float((found.scores - exact).abs().max()))
    assert 3.2 < worst["patching"][0] / worst["patching"][1] < 5
    assert 6.4 < worst["integrated"][0] / worst["integrated"][1] < 10


def test_along_inputs_is_the_mean_gradient_between_the_inputs() -> None:
    model = small_model()
    pair = contrast(model)
    node = Node("encoder.blocks.1.hook_mlp_out", span=(2, 6))
    embeds = [model.decoder.W_E.detach()[side.tokens] for side in (pair.corrupted, pair.clean)]
    kept: dict[float, Tensor] = {}
    gradients = []
    for alpha in (0.0, 0.25, 0.75, 1.0):

        def keep(activation: Tensor, hook: Any, alpha: float = alpha) -> Tensor:
            kept[alpha] = activation.detach().requires_grad_()
            return kept[alpha]

        def embed(_activation: Tensor, hook: Any, alpha: float = alpha) -> Tensor:
            return torch.lerp(*embeds, alpha)

        mel = torch.lerp(pair.corrupted.mel, pair.clean.mel, alpha)
        with model.hooks(fwd_hooks=[(node.hook, keep), ("decoder.hook_embed", embed)]):
            METRIC(model.decode(pair.clean.tokens, model.encode_mel(mel))).sum().backward()
        gradients.append(kept[alpha].grad)
    mean = (gradients[1] + gradients[2]) / 2
    by_hand = ((kept[1.0] - kept[0.0]) * mean)[:, 2:6].sum((1, 2))
    found = attribute(model, pair, [node], METRIC, method="integrated", along="inputs", steps=2)
    assert torch.allclose(found[node], by_hand.detach())


def test_clips_do_not_depend_on_their_batch_and_nothing_is_left_behind() -> None:
    model = small_model()
    pair = contrast(model, batch=3)
    chosen = nodes(model, ["head", "neuron"])
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    for options in METHODS:
        together = attribute(model, pair, chosen, METRIC, batch_size=3, **options)
        for batch_size in (1, 2):
            apart = attribute(model, pair, chosen, METRIC, batch_size=batch_size, **options)
            assert torch.allclose(together.scores, apart.scores, atol=1e-10)
            assert torch.allclose(together.other, apart.other)
        alone = attribute(model, pair.select([1]), chosen, METRIC, **options)
        assert torch.allclose(together.scores[:, 1:2], alone.scores, atol=1e-10)
        with torch.no_grad():
            assert torch.allclose(together.base, METRIC(pair.corrupted.logits(model)))
            assert torch.allclose(together.other, METRIC(pair.clean.logits(model)))
    assert not any(point.live for point in model.hook_dict.values())
    for name, weight in model.named_parameters():
        assert weight.requires_grad and weight.grad is None and torch.equal(weight, before[name])


def test_every_node_is_dealt_once_and_neighbours_apart() -> None:
    model = small_model()
    chosen = nodes(model, ["head", "mlp"], spans={"frame": windows(0, 10, 2)})
    groups = deal(chosen, 6)
    assert len(groups) == 12
    assert sorted(place for group in groups for place in group) == list(range(len(chosen)))
    for group in groups:
        assert len({chosen[place].stack for place in group}) == 1
        mlps = [chosen[place].span for place in group if chosen[place].hook.endswith("mlp_out")]
        assert len(set(mlps)) == len(mlps)
    assert deal(chosen, 6) == groups


@pytest.mark.slow
def test_follows_exact_patching_on_real_speech(whisper_base: HookedWhisper) -> None:
    """The full sweeps, of 30 s windows and over 500 nodes, are in benchmarks/attribution.py."""
    model = short_windows(whisper_base, 3)
    tokenizer = model.tokenizer
    assert tokenizer is not None
    clean, corrupted = (clips(language, "vm-sorry")[0].load()[: 3 * 16_000] for language in ("en", "fr"))
    pair = Contrast.of(model, clean=clean, corrupted=corrupted, text=[tokenizer.sot])
    english, french = (tokenizer.prompt(code, "transcribe", False)[1] for code in ("en", "fr"))
    metric = LogitDifference((english,), (french,), 0)
    sampled = nodes(model, ["head", "mlp"], spans={"frame": windows(0, 150, 30)})[::5]
    exact = patch(model, pair, sampled, metric).change[:, 0]
    plain = attribute(model, pair, sampled, metric).scores[:, 0]
    integrated = attribute(model, pair, sampled, metric, method="integrated", steps=16).scores[:, 0]
    figures = [float(spearmanr(found, exact)[0]) for found in (plain, integrated)]
    assert figures[1] > 0.8
    assert figures[1] > figures[0] > 0.4


def test_reading_a_result() -> None:
    chosen = [Node("encoder.blocks.0.hook_mlp_out"), Node("decoder.blocks.0.hook_mlp_out")]
    scores = torch.tensor([[1.0, 1.0], [-3.0, -1.0]], dtype=torch.float64)
    zero = torch.zeros(2, dtype=torch.float64)
    found = Attribution(chosen, scores, zero, zero, "denoise", "patching", 1)
    assert found.top(2) == found.top() == [(chosen[1], -2.0), (chosen[0], 1.0)]
    with pytest.raises(AnalysisError, match="n=0: expected a whole number of at least 1"):
        found.top(0)
    assert torch.equal(found[chosen[1]], scores[1])
    assert len(found.plot().axes) > 1
    with pytest.raises(AnalysisError, match="hook_mel|mel was not among the 2 nodes"):
        found[Node("hook_mel")]


def test_what_cannot_be_attributed_is_refused() -> None:
    model = small_model()
    pair = contrast(model)
    chosen = nodes(model, "mlp")

    def call(metric: Any = METRIC, some: Any = chosen, **options: Any) -> Callable[[], Any]:
        return lambda: attribute(model, pair, some, metric, **options)

    for refused, message in (
        (call(lambda logits: METRIC(logits).detach()), "The metric has no gradient: .* sweep them with exact patching"),
        (call(lambda logits: logits), "The metric returned shape"),
        (call(some=[]), "No nodes were given"),
        (
            call(some=[Node("encoder.hook_pos_embed")]),
            r"hook_pos_embed holds \[frame d_model\], the same",
        ),
        (call(some=[Node("encoder.blocks.0.attn.hook_z", head=9)]), "there is no head 9"),
        (call(steps=4), "steps=4 does not go with method='patching'"),
        (call(method="integrated", steps=0), "steps=0 does not go with method='integrated'"),
        (call(along="inputs"), "along='inputs' does not go with method='patching'"),
        (call(method="exact"), "Unknown method 'exact'"),
        (call(method="integrated", along="layers"), "Unknown along='layers'"),
        (call(direction="clean"), "Unknown direction 'clean'"),
        (call(batch_size=0), "batch_size=0: expected a whole number of at least 1"),
    ):
        with pytest.raises(AnalysisError, match=message):
            refused()

    def overflow(logits: Tensor) -> Tensor:
        return (METRIC(logits) * 0).abs().sqrt()  # finite, with a gradient that is not

    with pytest.raises(AnalysisError, match="The score of encoder.0.mlp_out is not finite"):
        call(overflow)()
