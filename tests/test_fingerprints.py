"""Checksums of weights."""

from __future__ import annotations

import torch
from small import small_model

from hooked_whisper.saes.fingerprints import weights_fingerprint


def test_the_same_weights_have_the_same_checksum() -> None:
    assert weights_fingerprint(small_model()) == weights_fingerprint(small_model())
    model = small_model()
    model.log_mel.window.mul_(2)  # no weight, and the same in every model
    assert weights_fingerprint(model) == weights_fingerprint(small_model())


def test_any_change_of_a_weight_changes_it() -> None:
    found = {weights_fingerprint(small_model()), weights_fingerprint(small_model(seed=1))}
    for name in ("encoder.W_pos", "decoder.blocks.2.cross_attn.qkv.bias", "decoder.ln_final.w"):
        model = small_model()
        with torch.no_grad():
            model.get_parameter(name).view(-1)[-1] += 1e-12
        found.add(weights_fingerprint(model))
    found.add(weights_fingerprint(small_model(dtype=torch.float32)))
    found.add(weights_fingerprint(small_model(dtype=torch.bfloat16)))
    assert len(found) == 7


def test_names_and_shapes_count() -> None:
    one, other = torch.nn.Linear(2, 3, bias=False), torch.nn.Linear(3, 2, bias=False)
    with torch.no_grad():
        other.weight.copy_(one.weight.reshape(2, 3))
    assert weights_fingerprint(one) != weights_fingerprint(other)
    scalar = torch.nn.Module()
    scalar.register_parameter("x", torch.nn.Parameter(torch.tensor(1.0)))
    assert len(weights_fingerprint(scalar)) == 64
