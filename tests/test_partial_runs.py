"""Partial runs: taken up anywhere, with hooks, SAEs and options, they end where the whole run ends."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from sae_files import random_sae
from small import small_config, small_inputs, small_model

from hooked_whisper import AnalysisError, HookedWhisper
from hooked_whisper.analysis.contrast import ModelInput
from hooked_whisper.analysis.nodes import Node
from hooked_whisper.analysis.partial_runs import INPUT, Chunk, RecordedRun, Start, check_replaceable, plan, start_of

STARTS = [
    *(Start(False, layer) for layer in (INPUT, 0, 1, 2)),
    *(Start(True, layer) for layer in (INPUT, 0, 1, 2, 3)),
]


def an_input(batch: int = 2, seed: int = 1) -> ModelInput:
    return ModelInput(*small_inputs(small_config(), batch, seed=seed))


def wrong_places(model: HookedWhisper, inputs: ModelInput) -> list[Start]:
    """Starts from which the run ends elsewhere than the whole one, rows shuffled and repeated."""
    with torch.no_grad():
        whole = inputs.logits(model)
    rows = torch.tensor([1, 0, 1, 1] if len(inputs) > 1 else [0, 0, 0])
    recorded = RecordedRun(model, inputs, STARTS)
    assert torch.allclose(recorded.logits, whole, atol=1e-12)
    return [start for start in STARTS if not torch.allclose(recorded.logits_from(start, rows), whole[rows], atol=1e-11)]


@pytest.mark.parametrize("batch", [1, 2])
def test_every_start_ends_where_the_whole_run_ends(batch: int) -> None:
    assert not wrong_places(small_model(), an_input(batch))


@pytest.mark.parametrize("option", ["use_split_qkv_input", "use_attn_in", "use_hook_mlp_in", "use_attn_result"])
def test_with_every_option(option: str) -> None:
    model = small_model()
    getattr(model, f"set_{option}")(True)
    assert not wrong_places(model, an_input())


def test_hooks_and_saes_act_once() -> None:
    model = small_model()

    def add(activation: torch.Tensor, hook: Any) -> torch.Tensor:
        activation += 0.7  # in place, and on memory that the layer before shares
        return activation

    for name in ("hook_mel", "*.hook_resid_pre", "*.hook_resid_post", "encoder.hook_out", "*.hook_pattern"):
        model.add_hook(name, add)
    model.add_hook("decoder.blocks.*.cross_attn.hook_k", add)
    model.add_sae(random_sae(hook="encoder.blocks.1.hook_resid_pre"))
    model.add_sae(random_sae("transcoder", "decoder.blocks.0.hook_mlp_out"), hook_out="decoder.blocks.2.hook_mlp_out",
                  hook="decoder.blocks.0.hook_mlp_out")  # fmt: skip
    inputs = an_input()
    with torch.no_grad():
        whole = inputs.logits(model)
    recorded = RecordedRun(model, inputs, STARTS)
    for hook in model.hook_names():
        start = start_of(model, hook)
        assert torch.allclose(recorded.logits_from(start, torch.arange(2)), whole, atol=1e-11), (hook, start)


@pytest.mark.parametrize("split", [False, True])
def test_activations_are_those_of_the_whole_run(split: bool) -> None:
    model = small_model()
    model.set_use_split_qkv_input(split)
    inputs = an_input()
    names = [name for name in model.hook_names() if not (split and ".ln1." in name)]
    kept, hooks, _ = model.get_caching_hooks(names)
    with model.hooks(fwd_hooks=hooks), model._guarded(), torch.no_grad():
        inputs.logits(model)
    starts = {name: start_of(model, name) for name in names}
    recorded = RecordedRun(model, inputs, starts.values())
    for start in set(starts.values()):
        here = [name for name in names if starts[name] == start]
        found = recorded.activations(start, here)
        assert set(found) == set(here)
        for name in here:
            assert torch.allclose(found[name], kept[name], atol=1e-11), name


def test_nothing_that_stands_is_computed_again() -> None:
    model = small_model()
    recorded = RecordedRun(model, an_input(), STARTS)
    seen: list[str] = []
    model.add_hook(lambda name: name.endswith("hook_resid_pre"), lambda _, hook: seen.append(hook.name))
    recorded.logits_from(Start(True, 2), torch.arange(2))
    assert seen == ["decoder.blocks.2.hook_resid_pre"]
    seen.clear()
    recorded.frames_from(Start(False, 1), torch.arange(2))
    assert seen == ["encoder.blocks.1.hook_resid_pre"]


def test_where_hooks_start() -> None:
    model = small_model()
    for hook, start in (
        ("hook_mel", Start(False, INPUT)),
        ("encoder.hook_conv2", Start(False, INPUT)),
        ("encoder.blocks.1.mlp.hook_post", Start(False, 1)),
        ("encoder.hook_out", Start(False, 2)),
        ("encoder.hook_out.hook_sae_acts_post", Start(False, 2)),
        ("decoder.hook_embed", Start(True, INPUT)),
        ("decoder.blocks.2.cross_attn.hook_pattern", Start(True, 2)),
        ("hook_logits", Start(True, 3)),
    ):
        assert start_of(model, hook) == start
    assert sorted(STARTS) == STARTS


def test_chunks_hold_one_start_and_so_many_rows() -> None:
    model = small_model()
    chosen = [Node("decoder.blocks.1.attn.hook_z", head=head) for head in range(4)] + [Node("hook_mel")]
    first = Start(False, INPUT)
    assert plan(model, chosen, 2, 5) == [
        Chunk(first, (4,)),
        Chunk(Start(True, 1), (0, 1)),
        Chunk(Start(True, 1), (2, 3)),
    ]
    assert [chunk.numbers for chunk in plan(model, chosen, 9, 2)] == [(4,), (0,), (1,), (2,), (3,)]
    with pytest.raises(AnalysisError, match="batch_size=0: expected a whole number of at least 1"):
        plan(model, chosen, 1, 0)


def test_what_cannot_be_replaced_is_refused() -> None:
    model = small_model()
    with pytest.raises(AnalysisError, match="encoder.hook_pos_embed is the same for every clip"):
        check_replaceable(model, [Node("encoder.hook_pos_embed")])
    node = Node("decoder.blocks.0.ln1.hook_scale")
    check_replaceable(model, [node])
    model.set_use_attn_in(True)
    with pytest.raises(AnalysisError, match="computed several times in a pass .* take q, k or v"):
        check_replaceable(model, [node])
