"""Patching: what it says is what a run patched by hand gives, for every kind of node, and a sweep can be continued."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from sae_files import random_sae
from short_windows import short_windows
from small import small_config, small_inputs, small_model
from torch import Tensor

from hooked_whisper import AnalysisError, HookedWhisper
from hooked_whisper.analysis.contrast import Contrast, ModelInput
from hooked_whisper.analysis.corruption import another, translation
from hooked_whisper.analysis.metrics import LogitDifference
from hooked_whisper.analysis.nodes import Node, nodes
from hooked_whisper.analysis.patching import PatchingResult, patch, patch_transcripts
from hooked_whisper.speech import clips


@dataclass(frozen=True)
class Difference:
    """A metric in the model's own precision."""

    answer: int = 3
    wrong: int = 4

    def __call__(self, logits: Tensor) -> Tensor:
        return logits[:, -1, self.answer] - logits[:, -1, self.wrong]


METRIC = Difference()
KINDS = ["head", "q", "k", "v", "attn", "mlp", "neuron", "resid", "resid_pre", "embed"]


def a_contrast(batch: int = 2) -> Contrast:
    sides = [ModelInput(*small_inputs(small_config(), batch, seed=seed)) for seed in (1, 2)]
    return Contrast(sides[0], sides[1], torch.ones(batch, 5, dtype=torch.bool), (1,) * batch)


@torch.no_grad()
def by_hand(model: HookedWhisper, donor: ModelInput, recipient: ModelInput, node: Node) -> Tensor:
    """The metric of a whole run with the node's slice of one activation from another whole run, indices spelt out."""
    _, cache = model.run_with_cache(donor.mel, donor.tokens, names_filter=node.hook)
    taken = cache[node.hook]

    def put(activation: Tensor, hook: Any) -> Tensor:
        mixed = activation.clone()
        here = slice(None) if node.span is None else slice(*node.span)
        if "hook_pattern" in node.hook or "hook_attn_scores" in node.hook:
            mixed[:, node.head, here] = taken[:, node.head, here]
        elif node.head is not None:
            mixed[:, here, node.head] = taken[:, here, node.head]
        elif node.unit is not None:
            mixed[:, here, node.unit] = taken[:, here, node.unit]
        elif node.hook == "hook_mel":
            mixed[:, :, here] = taken[:, :, here]
        else:
            mixed[:, here] = taken[:, here]
        return mixed

    logits = model.run_with_hooks(recipient.mel, recipient.tokens, fwd_hooks=[(node.hook, put)])
    return METRIC(logits)


def some_nodes(model: HookedWhisper) -> list[Node]:
    """Of every kind, whole and in part; few of those that are many."""
    spans = {"frame": [(3, 10)], "pos": [(1, 3)]}
    found = [node for node in nodes(model, KINDS, spans=spans, layers=[1]) if node.unit in (None, 19)]
    found += [node for node in nodes(model, ["mlp", "neuron", "embed"]) if node.unit in (None, 7)]
    found = [node for node in found if node.head in (None, 1)]
    attentions = [f"{stack}.blocks.1.{kind}" for stack, kind in
                  (("encoder", "attn"), ("decoder", "attn"), ("decoder", "cross_attn"))]  # fmt: skip
    for attention in attentions:
        found += [Node(f"{attention}.hook_pattern", head=1), Node(f"{attention}.hook_pattern", head=0, span=(2, 4))]
        found += [Node(f"{attention}.hook_attn_scores", head=1, span=(1, 5))]
    outside = ["hook_mel", "encoder.hook_conv1", "encoder.hook_conv2", "encoder.hook_out", "decoder.hook_embed"]
    found += [Node(hook) for hook in (*outside, "decoder.ln_final.hook_normalized", "hook_logits")]
    return [*dict.fromkeys([*found, Node("hook_mel", span=(3, 9)), Node("encoder.hook_out", span=(2, 4))])]


@pytest.mark.parametrize("direction", ["denoise", "noise"])
def test_every_kind_of_node_is_what_a_run_patched_by_hand_gives(direction: str) -> None:
    model, pair = small_model(), a_contrast()
    chosen = some_nodes(model)[:: 1 if direction == "denoise" else 5]
    result = patch(model, pair, chosen, METRIC, direction=direction, batch_size=7)
    donor, recipient = (pair.clean, pair.corrupted) if direction == "denoise" else (pair.corrupted, pair.clean)
    for i, node in enumerate(chosen):
        assert torch.allclose(result.effects[i], by_hand(model, donor, recipient, node), atol=1e-10), str(node)
    with torch.no_grad():
        assert torch.allclose(result.clean, METRIC(pair.clean.logits(model)), atol=1e-10)
        assert torch.allclose(result.corrupted, METRIC(pair.corrupted.logits(model)), atol=1e-10)
    assert len({node.kind for node in chosen}) > 20 or direction == "noise"
    assert (result.change.abs().amax(1) > 1e-6).sum() > 0.8 * len(chosen)  # the test is about something


def test_patching_all_that_is_put_in_recovers_the_other_run() -> None:
    model, pair = small_model(), a_contrast()
    whole = [Node("hook_logits"), Node("decoder.blocks.2.hook_resid_post")]
    result = patch(model, pair, whole, METRIC)
    assert torch.allclose(result.normalized, torch.ones(2, 2, dtype=torch.float64), atol=1e-9)
    same_text = Contrast(pair.clean, ModelInput(pair.corrupted.mel, pair.clean.tokens), pair.token_mask, (1, 1))
    audio = [Node("hook_mel"), Node("encoder.blocks.0.hook_resid_pre"), Node("encoder.hook_out")]
    for direction in ("denoise", "noise"):
        result = patch(model, same_text, audio, METRIC, direction=direction)
        assert torch.allclose(result.normalized, torch.ones(3, 2, dtype=torch.float64), atol=1e-9)


def test_two_runs_that_are_one_change_nothing() -> None:
    model, pair = small_model(), a_contrast()
    same = Contrast(pair.clean, pair.clean, pair.token_mask, (1, 1))
    result = patch(model, same, nodes(model, ["head", "resid", "k"]), METRIC)
    assert torch.allclose(result.change, torch.zeros_like(result.change), atol=1e-10)
    with pytest.raises(
        AnalysisError, match=r"the same in the clean and the corrupted run of clips \[0, 1\] .*no share"
    ):
        _ = result.normalized
    with pytest.raises(AnalysisError, match="read .effects and .change"):
        result.plot()


def test_what_the_metric_of_a_node_is_does_not_depend_on_the_batch() -> None:
    model, pair = small_model(), a_contrast(3)
    chosen = nodes(model, ["head", "mlp"], spans={"frame": [(0, 4)]})
    results = [patch(model, pair, chosen, METRIC, batch_size=size).effects for size in (1, 2, 64)]
    assert torch.allclose(results[0], results[1], atol=1e-10)
    assert torch.allclose(results[0], results[2], atol=1e-10)
    alone = patch(model, pair.select([2]), chosen, METRIC).effects
    assert torch.allclose(alone[:, 0], results[0][:, 2], atol=1e-10)


@pytest.mark.parametrize("use_error_term", [False, True])
@pytest.mark.parametrize(
    "hook", ["encoder.hook_out", "encoder.blocks.1.hook_resid_post", "decoder.blocks.1.hook_mlp_out"]
)
def test_features_of_an_sae(hook: str, use_error_term: bool) -> None:
    model, pair = small_model(), a_contrast()
    model.add_sae(random_sae(hook=hook), use_error_term=use_error_term)
    with torch.no_grad():
        _, cache = model.run_with_cache(pair.clean.mel, pair.clean.tokens, names_filter="*.hook_sae_acts_post")
    acts = f"{hook}.hook_sae_acts_post"
    active = cache[acts].amax((0, 1)).argsort(descending=True)[:3].tolist()
    chosen = [Node(acts, unit=unit) for unit in active] + [Node(acts, unit=active[0], span=(1, 3))]
    result = patch(model, pair, chosen, METRIC)
    for i, node in enumerate(chosen):
        assert torch.allclose(result.effects[i], by_hand(model, pair.clean, pair.corrupted, node), atol=1e-10)
    assert result.change.abs().max() > 1e-3


def test_hooks_of_the_model_are_active_in_every_run() -> None:
    model, pair = small_model(), a_contrast()
    node = Node("decoder.blocks.1.attn.hook_z", head=2)
    plain = patch(model, pair, [node], METRIC).effects
    model.add_hook("encoder.blocks.0.hook_mlp_out", lambda x, hook: x * 0)
    hooked = patch(model, pair, [node], METRIC).effects
    assert not torch.allclose(plain, hooked)
    assert torch.allclose(hooked[0], by_hand(model, pair.clean, pair.corrupted, node), atol=1e-10)
    assert len(model.list_hooks("*", dir="fwd")) == 1  # none of the sweep's is left


def test_a_sweep_goes_on_where_it_was(tmp_path: Path) -> None:
    model, pair = small_model(), a_contrast()
    chosen = nodes(model, ["head", "mlp"])
    whole = patch(model, pair, chosen, METRIC)
    out = tmp_path / "sweeps" / "heads.jsonl"

    class Stop(Exception):
        pass

    calls = 0

    def broken(logits: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == 12:
            raise Stop
        return METRIC(logits)

    def counted(logits: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return METRIC(logits)

    counted.__qualname__ = broken.__qualname__  # a function is known by its name, and by its values on both runs
    with pytest.raises(Stop):
        patch(model, pair, chosen, broken, out=out)
    done = len(out.read_text().splitlines()) - 1
    assert done == 9  # twelve calls less those for the two runs and the one that failed
    out.write_text(out.read_text() + '{"node": "decoder.1.mlp_o')  # a line that was being written
    calls = 0
    continued = patch(model, pair, chosen, counted, out=out)
    assert calls <= len(chosen) - done + 2 + 4  # the rest, both runs, and what shares a pass with the rest
    assert torch.equal(continued.effects, whole.effects)
    rows = [json.loads(line) for line in out.read_text().splitlines()[1:]]
    assert sorted(row["node"] for row in rows) == sorted(map(str, chosen))
    calls = 0
    assert torch.equal(patch(model, pair, chosen, counted, out=out).effects, whole.effects)
    assert calls == 2


def test_another_sweep_is_not_continued(tmp_path: Path) -> None:
    model, pair = small_model(), a_contrast()
    chosen = nodes(model, "mlp")
    out = tmp_path / "mlp.jsonl"
    patch(model, pair, chosen, METRIC, out=out)
    others: list[tuple[HookedWhisper, Contrast, Sequence[Node], Any, str]] = [
        (small_model(seed=1), pair, chosen, METRIC, "denoise"),
        (model, pair.select([1, 0]), chosen, METRIC, "denoise"),
        (model, pair, chosen[1:], METRIC, "denoise"),
        (model, pair, chosen, Difference(3, 5), "denoise"),
        (model, pair, chosen, METRIC, "noise"),
    ]
    for other, contrast, some, metric, direction in others:
        with pytest.raises(AnalysisError, match="is of another sweep: its fingerprint is .* choose another file"):
            patch(other, contrast, some, metric, direction=direction, out=out)
    model.add_sae(random_sae())
    with pytest.raises(AnalysisError, match="is of another sweep"):
        patch(model, pair, chosen, METRIC, out=out)
    model.reset_saes()
    assert len(out.read_text().splitlines()) == 1 + len(chosen)
    for text, message in (("no sweep\n", "holds no sweep"), ('{"a": 1}\n', "holds no sweep of this kind")):
        out.write_text(text)
        with pytest.raises(AnalysisError, match=message):
            patch(model, pair, chosen, METRIC, out=out)
        assert out.read_text() == text


def test_a_function_that_gives_other_figures_is_another_metric(tmp_path: Path) -> None:
    model, pair = small_model(), a_contrast()
    for factor in (1.0, 2.0):

        def metric(logits: Tensor, factor: float = factor) -> Tensor:
            return factor * METRIC(logits)

        if factor == 1.0:
            patch(model, pair, nodes(model, "mlp"), metric, out=tmp_path / "out.jsonl")
        else:
            with pytest.raises(AnalysisError, match="its clean is .*this one's"):
                patch(model, pair, nodes(model, "mlp"), metric, out=tmp_path / "out.jsonl")


def test_results_are_kept_and_drawn() -> None:
    model, pair = small_model(), a_contrast()
    for chosen in (
        nodes(model, ["head", "mlp"]),
        nodes(model, ["head"], spans={"frame": [(0, 5), (5, 10)], "pos": [(0, 1)]}),
        nodes(model, "resid", spans={"frame": [(0, 5), (5, 10)], "pos": [(0, 1), (1, 5)]}),
        nodes(model, "neuron", stacks=["decoder"], layers=[0]),
    ):
        result = patch(model, pair, chosen, METRIC)
        again = PatchingResult.from_json(result.to_json())
        assert again.nodes == result.nodes
        assert again.direction == result.direction
        for name in ("effects", "clean", "corrupted", "normalized"):
            assert torch.equal(getattr(again, name), getattr(result, name))
        panels = [ax for ax in result.plot().axes if ax.get_title(loc="left")]
        assert len(panels) == len({node.kind for node in chosen})
    best = result.top(3)
    assert best[0][1] == -1.0 * float(result.normalized.mean(1).abs().max())  # of either sign
    assert [abs(value) for _, value in result.top()] == sorted((abs(value) for _, value in result.top()), reverse=True)
    assert len(result.top()) == 10
    for text, message in (("{", "the text is no JSON"), ("{}", "expected what PatchingResult.to_json writes")):
        with pytest.raises(AnalysisError, match=message):
            PatchingResult.from_json(text)
    for n in (0, -1):
        with pytest.raises(AnalysisError, match=f"n={n}: expected a whole number of at least 1"):
            result.top(n)
    with pytest.raises(AnalysisError, match="Unknown values 'effect': expected .* Did you mean 'effects'"):
        result.plot(values="effect")


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("effects", [[0.0, 0.0]], r"'effects' has shape \(1, 2\), expected 2 x 2"),
        ("effects", [[0.0], [0.0, 1.0]], "'effects' holds no table of numbers"),
        ("corrupted", [0.0], r"'corrupted' has shape \(1,\), expected 2"),
        ("clean", None, "'clean' (holds no table|has shape)"),
        ("direction", "up", "'direction' is 'up': expected denoise, noise"),
        ("nodes", ["foo", "bar"], "'foo' is no node"),
        ("nodes", [1], "Expected names of nodes or edges, got a list of int"),
    ],
)
def test_a_result_that_does_not_hold_together_is_not_read(field: str, value: Any, message: str) -> None:
    zeros = torch.zeros(2, 2)
    chosen = (Node("hook_mel"), Node("encoder.hook_out"))
    data = json.loads(PatchingResult(chosen, zeros, zeros[0], zeros[1], "denoise").to_json())
    with pytest.raises(AnalysisError, match=message):
        PatchingResult.from_json(json.dumps({**data, field: value}))


def test_a_place_that_holds_no_sweep(tmp_path: Path) -> None:
    model, pair = small_model(), a_contrast()
    (tmp_path / "binary").write_bytes(b"\xff\xfe\n")
    for out in (tmp_path, tmp_path / "binary", tmp_path / "binary" / "mlp.jsonl"):
        with pytest.raises(AnalysisError, match=r"cannot hold a sweep \(.*\): choose another file for out="):
            patch(model, pair, nodes(model, "mlp"), METRIC, out=out)


def test_cells_of_a_picture_are_the_figures() -> None:
    model, pair = small_model(), a_contrast()
    chosen = nodes(model, "head", stacks=["encoder"])
    result = patch(model, pair, chosen, METRIC)
    image = result.plot(values="change").axes[0].images[0].get_array()
    assert image is not None
    assert image.shape == (2, 2)
    assert image[1, 0] == pytest.approx(float(result.change.mean(1)[chosen.index(Node(chosen[2].hook, head=0))]))


def test_what_cannot_be_patched_is_refused() -> None:
    model, pair = small_model(), a_contrast()
    head = Node("encoder.blocks.0.attn.hook_z", head=0)
    for call, message in (
        (lambda: patch(model, pair, [], METRIC), "No nodes were given"),
        (lambda: patch(model, pair, [head], METRIC, direction="both"), "Unknown direction 'both'"),
        (lambda: patch(model, pair, [Node(head.hook, head=9)], METRIC), "there is no head 9"),
        (
            lambda: patch(model, pair, [head], METRIC, batch_size=0),
            "batch_size=0: expected a whole number of at least 1",
        ),
        (lambda: patch(model, pair, [Node(head.hook, span=(5, 99))], METRIC), "there is no frame 98"),
        (lambda: patch(model, pair, [Node("encoder.hook_pos_embed")], METRIC), "is the same for every clip"),
        (lambda: patch(model, pair, [head], lambda logits: logits[0, 0, 0]), r"The metric returned shape \(\)"),
        (lambda: patch(model, pair, [head], lambda logits: logits[:, 0, 0] * torch.nan), "The metric is not finite"),
    ):
        with pytest.raises(AnalysisError, match=message):
            call()


@pytest.fixture
def five_seconds(whisper_base: HookedWhisper) -> HookedWhisper:
    return short_windows(whisper_base, 5)


def english_and_french(model: HookedWhisper) -> Contrast:
    english = clips("en", "vm-sorry")[0]
    waveform = english.load()
    other = another(waveform, translation(english, "fr").load())
    sot = model.tokenizer.sot  # type: ignore[union-attr]
    return Contrast.of(model, clean=waveform, corrupted=other, text=[sot])


def test_the_language_that_whisper_hears_is_in_the_audio(five_seconds: HookedWhisper) -> None:
    """After <|startoftranscript|> whisper-base writes the language: English in the clean run, French in the other."""
    model = five_seconds
    pair = english_and_french(model)
    languages = model.tokenizer.languages  # type: ignore[union-attr]
    metric = LogitDifference((languages["en"],), (languages["fr"],))
    last = model.cfg.decoder.n_layers - 1
    chosen = [
        Node("encoder.hook_out"),
        Node(f"decoder.blocks.{last}.hook_resid_post"),
        Node("decoder.blocks.0.hook_resid_pre"),
        *nodes(model, "attn", stacks=["decoder"]),
    ]
    result = patch(model, pair, chosen, metric)
    assert result.clean > 2
    assert result.corrupted < -2
    normalized = dict(zip(chosen, result.normalized[:, 0].tolist(), strict=True))
    assert normalized[chosen[0]] == pytest.approx(1, abs=1e-3)
    assert normalized[chosen[1]] == pytest.approx(1, abs=1e-3)
    assert normalized[chosen[2]] == pytest.approx(0, abs=1e-3)  # one token, the same on both sides
    cross = [node for node in chosen if "cross" in node.hook]
    assert sum(normalized[node] for node in cross) > 0.5  # what self-attention of one token cannot bring
    assert normalized[Node("decoder.blocks.0.hook_attn_out")] == pytest.approx(0, abs=1e-3)


def test_transcripts_of_patched_runs(whisper_base: HookedWhisper) -> None:
    model = short_windows(whisper_base, 3)
    one, two = (clip.load()[:48_000] for clip in clips("en")[:2])
    pair = Contrast.of(model, clean=one, corrupted=another(one, two), text="", language="en")
    result = patch_transcripts(model, pair, [Node("encoder.hook_out"), Node("hook_mel", span=(290, 300))])
    assert result.patched[0] == result.clean
    assert result.clean != result.corrupted
    assert result.wer[0] == 0
    assert result.wer[1] > 0.5
    assert result.corrupted_wer > 0.5
    assert result.plot().axes
    with pytest.raises(AnalysisError, match=r"decoder.0.mlp_out belongs to the decoder: .* with patch\(\)"):
        patch_transcripts(model, pair, [Node("decoder.blocks.0.hook_mlp_out")])
    nameless = Contrast.of(model, clean=one, corrupted=two[:48_000], text=[model.tokenizer.sot])  # type: ignore[union-attr]
    with pytest.raises(AnalysisError, match="The prompt of clip 0 names no language"):
        patch_transcripts(model, nameless, [Node("hook_mel")])
