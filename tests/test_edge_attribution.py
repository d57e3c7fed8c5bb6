"""Edges: scores are those of exact path patching for small differences."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from scipy.stats import spearmanr
from short_windows import short_windows
from small import small_inputs, small_model
from torch import Tensor

from hooked_whisper import AnalysisError, HookedWhisper
from hooked_whisper.analysis.contrast import Contrast, ModelInput
from hooked_whisper.analysis.edge_attribution import attribute_edges
from hooked_whisper.analysis.edge_patching import patch_edges
from hooked_whisper.analysis.edges import Edge, edges
from hooked_whisper.analysis.metrics import LogitDifference
from hooked_whisper.analysis.nodes import Node
from hooked_whisper.speech import clips


def last(logits: Tensor) -> Tensor:
    return logits[:, -1, 3] - logits[:, -1, 7]


def test_edges_are_what_patching_one_reader_does() -> None:
    model = small_model()
    mel, tokens = small_inputs(model.cfg, 1)
    far, _ = small_inputs(model.cfg, 1, seed=2)
    mask = torch.ones_like(tokens, dtype=torch.bool)
    pair = Contrast(ModelInput(mel, tokens), ModelInput(torch.lerp(mel, far, 1e-4), tokens), mask, (2,))
    found = attribute_edges(model, pair, last)
    assert torch.equal(attribute_edges(model, pair, last, steps=1).scores.isnan(), found.scores.isnan())
    assert not model.cfg.use_split_qkv_input
    model.set_use_split_qkv_input(True)
    model.set_use_hook_mlp_in(True)
    mlp = "encoder.blocks.0.hook_mlp_out"
    with torch.no_grad():
        kept: list[dict[str, Tensor]] = []
        for side in (pair.clean, pair.corrupted):
            values: dict[str, Tensor] = {}

            def keep(activation: Tensor, hook: Any, values: dict[str, Tensor] = values) -> None:
                values[hook.name] = activation.clone()

            names = [mlp, "encoder.blocks.1.hook_resid_post", "decoder.blocks.0.cross_attn.hook_z"]
            with model.hooks(fwd_hooks=[(name, keep) for name in names]):
                base = last(side.logits(model))
            kept.append(values)
        clean, corrupted = kept
        delta = clean[mlp] - corrupted[mlp]
        head = (clean[names[2]] - corrupted[names[2]])[:, :, 1] @ model.decoder.blocks[0].cross_attn.W_O[1]
        final = corrupted[names[1]]
        across = model.encoder.ln_post(final + delta) - model.encoder.ln_post(final)
        for writer, reader, moved in (
            (Node(mlp), Node("encoder.blocks.1.hook_v_input", 1), delta),
            (Node(mlp), Node("encoder.blocks.1.hook_mlp_in"), delta),
            (Node(mlp), Node("decoder.blocks.1.hook_cross_v_input", 2), across),
            (Node(names[2], 1), Node("decoder.blocks.2.hook_q_input", 3), head),
            (Node(names[2], 1), Node("decoder.blocks.2.hook_resid_post"), head),
        ):

            def patch(activation: Tensor, hook: Any, reader: Node = reader, moved: Tensor = moved) -> Tensor:
                activation = activation.clone()
                reader.write(activation, reader.read(activation) + moved)
                return activation

            with model.hooks(fwd_hooks=[(reader.hook, patch)]):
                exact = last(pair.corrupted.logits(model)) - base
            assert torch.allclose(found[writer, reader], exact, rtol=0.02, atol=1e-9), (str(writer), str(reader))
    assert abs(found.top(1)[0][2]) == float(found.scores.nan_to_num().abs().max())
    every = edges(model)
    assert {Edge(writer, reader) for writer, reader, _ in found.top(9999)} == set(
        every
    )  # and what is no edge is left out
    assert len(found.top()) == 10
    with pytest.raises(AnalysisError, match="n=-1: expected a whole number of at least 1"):
        found.top(-1)
    with pytest.raises(AnalysisError, match="There is no edge from"):
        found[Node("encoder.blocks.1.hook_mlp_out"), Node("encoder.blocks.0.hook_mlp_in")]
    with pytest.raises(AnalysisError, match="steps=0: expected a whole number of at least 1"):
        attribute_edges(model, pair, last, steps=0)


@pytest.mark.slow
def test_follows_exact_patching_on_real_speech(whisper_base: HookedWhisper) -> None:
    """200 edges of two tasks are in benchmarks/attribution.py."""
    model = short_windows(whisper_base, 3)
    tokenizer = model.tokenizer
    assert tokenizer is not None
    clean, corrupted = (clips(language, "vm-sorry")[0].load()[: 3 * 16_000] for language in ("en", "fr"))
    pair = Contrast.of(model, clean=clean, corrupted=corrupted, text=[tokenizer.sot])
    english, french = (tokenizer.prompt(code, "transcribe", False)[1] for code in ("en", "fr"))
    metric = LogitDifference((english,), (french,), 0)
    every = edges(model)
    assert len(every) == 18_049
    sampled = random.Random(1).sample(every, 40)
    exact = patch_edges(model, pair, sampled, metric, progress=False).change[:, 0]
    found = attribute_edges(model, pair, metric).of(sampled)[:, 0]
    assert float(spearmanr(found, exact)[0]) > 0.7
