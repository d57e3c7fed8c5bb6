"""Activations that follow from others: each against its definition, and against what the model computes."""

from __future__ import annotations

import math

import pytest
import torch
from small import small_config, small_inputs, small_model

from hooked_whisper.derived import derive, follows, head_results, norm_input, scores, sources

CFG = small_config()


@pytest.mark.parametrize("causal", [False, True])
def test_scores_by_hand(causal: bool) -> None:
    q, k = torch.randn(2, 3, 1, 4), torch.randn(2, 3, 1, 4)  # batch pos head d_head
    found = scores(q, k, causal=causal)
    for pos in range(3):
        for key in range(3):
            by_hand = (q[0, pos, 0] @ k[0, key, 0]).item() / math.sqrt(4)
            wanted = -math.inf if causal and key > pos else by_hand
            assert found[0, 0, pos, key].item() == pytest.approx(wanted, abs=1e-6)


def test_head_results_sum_to_the_attention_output() -> None:
    model = small_model()
    _, cache = model.run_with_cache(*small_inputs(CFG))
    attention = model.decoder.blocks[1].cross_attn
    assert isinstance(attention.b_O, torch.Tensor)
    results = head_results(cache["decoder.blocks.1.cross_attn.hook_z"], attention.W_O)
    torch.testing.assert_close(results.sum(2) + attention.b_O, cache["decoder.blocks.1.hook_cross_attn_out"])


def test_all_that_has_sources_is_what_the_model_computes() -> None:
    """Every hook of a small model that others tell, from each set of them."""
    model = small_model()
    model.set_use_attn_result(True)
    inputs = small_inputs(model.cfg)
    _, cache = model.run_with_cache(*inputs, names_filter=list(model.hook_names()))
    stored = cache.cache_dict
    checked = set()
    for name in model.hook_names():
        for needed in sources(name, model.cfg):
            found = derive(name, {n: stored[n] for n in needed}.get, model.cfg, model)
            assert found is not None, name
            torch.testing.assert_close(found, stored[name], msg=name)
            checked.add(name.rpartition(".")[2])
            for one in needed:
                assert name in follows(one) or one.endswith("hook_k")
    assert checked == {"hook_attn_scores", "hook_pattern", "hook_result", "hook_post", "hook_scale"}


def test_nothing_follows_from_what_was_edited() -> None:
    model = small_model()
    _, cache = model.run_with_cache(*small_inputs(CFG))
    name = "encoder.blocks.0.attn.hook_pattern"
    assert derive(name, cache.cache_dict.get, CFG, model) is not None
    assert derive(name, cache.cache_dict.get, CFG, model, frozenset({name})) is None
    edited = frozenset({"encoder.blocks.0.attn.hook_attn_scores"})
    assert derive(name, cache.cache_dict.get, CFG, model, edited) is None
    assert derive("encoder.blocks.0.attn.hook_q", cache.cache_dict.get, CFG, model) is None


def test_each_norm_reads_its_own_residual() -> None:
    assert norm_input("decoder.blocks.2.ln3", CFG) == "decoder.blocks.2.hook_resid_mid_cross"
    assert norm_input("encoder.blocks.1.ln2", CFG) == "encoder.blocks.1.hook_resid_mid"
    assert norm_input("encoder.ln_post", CFG) == "encoder.blocks.1.hook_resid_post"
    assert norm_input("decoder.ln_final", CFG) == "decoder.blocks.2.hook_resid_post"
