"""whisper-base with short windows, and SAEs whose figures are known, for tests of what an SAE does to a model."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import torch
from sae_files import metadata, sae_lens
from small import randomise
from torch import Tensor

from hooked_whisper import HookedWhisper, HookedWhisperConfig, StackConfig
from hooked_whisper.windows import with_window


def short_windows(base: HookedWhisper, seconds: int = 5) -> HookedWhisper:
    """The same weights, shared, with windows of a few seconds, which cost that much less to encode and to read."""
    return with_window(base, seconds)


def exact_sae(d_in: int = 512, *, k: int | None = None, hook: str = "encoder.hook_out", **options: Any) -> Any:
    """Two latents for each dimension, one for each sign: with k = d_in it gives everything back, with less the largest.

    Latent i fires where dimension i is positive, latent d_in + i where it is negative.
    """
    cfg = sae_lens.TopKSAEConfig(d_in=d_in, d_sae=2 * d_in, k=k or d_in, metadata=metadata(hook), **options)
    sae = sae_lens.TopKSAE(cfg)
    eye = torch.eye(d_in)
    with torch.no_grad():
        sae.W_enc.copy_(torch.cat([eye, -eye], dim=1))
        sae.W_dec.copy_(torch.cat([eye, -eye]))
        sae.b_enc.zero_()
        sae.b_dec.zero_()
    return sae


def constant_sae(mean: Tensor, *, hook: str = "encoder.hook_out") -> Any:
    """An SAE whose latents never fire: it gives back `mean` whatever it reads."""
    sae = exact_sae(len(mean), k=1, hook=hook)
    with torch.no_grad():
        sae.W_enc.zero_()
        sae.b_enc.fill_(-1)
        sae.b_dec.copy_(mean)
    return sae


def tiny_whisper(base: HookedWhisper) -> HookedWhisper:
    """A random Whisper of width 32 with whisper-base's tokens: it writes nonsense, and costs next to nothing."""
    stack = StackConfig(n_layers=2, n_heads=2, d_model=32, d_mlp=48, n_ctx=150)
    cfg = HookedWhisperConfig(
        encoder=stack, decoder=replace(stack, n_ctx=40), n_mels=80, d_vocab=base.cfg.d_vocab, model_name="tiny"
    )
    generation = copy.deepcopy(base.generation_config)
    assert generation is not None
    generation.max_length = 12
    model = HookedWhisper(cfg, base.tokenizer, generation).eval()
    randomise(dict(model.named_parameters()))
    return model
