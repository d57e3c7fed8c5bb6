"""SAELens SAEs of every architecture with random weights, and what each computes, written out in plain torch."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

with warnings.catch_warnings():  # it imports a module that TransformerLens has moved
    warnings.simplefilter("ignore", DeprecationWarning)
    import sae_lens
from sae_lens.saes.sae import SAEMetadata

# Architecture -> settings besides the widths. Every way in which an SAE can be used after training.
VARIANTS: dict[str, dict[str, Any]] = {
    "standard": {},
    "standard, b_dec not taken off": {"apply_b_dec_to_input": False},
    "standard, layer_norm": {"normalize_activations": "layer_norm"},
    "standard, constant_norm_rescale": {"normalize_activations": "constant_norm_rescale"},
    "gated": {},
    "topk": {"k": 4},
    "topk, by norm": {"k": 4, "rescale_acts_by_decoder_norm": True},
    "abstopk": {"k": 4},
    "jumprelu": {},
    "matching_pursuit": {"max_iterations": 5},
    "temporal": {"n_heads": 2, "bottleneck_factor": 8, "kval_topk": 4},
    "transcoder": {"apply_b_dec_to_input": False},
    "skip_transcoder": {"apply_b_dec_to_input": False},
    "jumprelu_transcoder": {"apply_b_dec_to_input": False},
    "jumprelu_skip_transcoder": {"apply_b_dec_to_input": False},
}
SAE_VARIANTS = [name for name in VARIANTS if "transcoder" not in name]
TRANSCODERS = [name for name in VARIANTS if "transcoder" in name]


def metadata(hook: str | None, **more: Any) -> SAEMetadata:
    return SAEMetadata(hook_name=hook, **more)


def random_sae(
    variant: str = "standard",
    hook: str | None = "encoder.hook_out",
    d_in: int = 16,
    d_sae: int = 32,
    *,
    dtype: str = "float64",
    seed: int = 0,
    about: dict[str, Any] | None = None,
    **settings: Any,
) -> Any:
    """An SAE for inference whose every parameter is away from its neutral value."""
    cls, config = sae_lens.registry.get_sae_class(variant.partition(",")[0])
    settings = {**VARIANTS[variant], **settings}
    if "transcoder" in variant:
        settings.setdefault("d_out", d_in)
    sae = cls(config(d_in=d_in, d_sae=d_sae, dtype=dtype, metadata=metadata(hook, **(about or {})), **settings))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sae.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            scale = 0.2 if parameter.ndim == 1 else parameter.shape[0] ** -0.5
            parameter.copy_(noise.abs() * scale if name == "threshold" else noise * scale)
    return sae


def by_hand(sae: Any, x: Tensor, change: Callable[[Tensor], Tensor] = lambda acts: acts) -> Tensor:
    """What the SAE makes of `x`, from its published formula; `change` is applied to the features."""
    kind, cfg = sae.cfg.architecture(), sae.cfg
    x_in = x
    mean, std = x.mean(-1, keepdim=True), x.std(-1, keepdim=True)
    factor = cfg.d_in**0.5 / x.norm(dim=-1, keepdim=True)
    if cfg.normalize_activations == "layer_norm":
        x = (x - mean) / (std + 1e-5)
    if cfg.normalize_activations == "constant_norm_rescale":
        x = x * factor
    x = x - sae.b_dec if cfg.apply_b_dec_to_input else x
    pre = x @ sae.W_enc + (0 if kind == "gated" else sae.b_enc)
    if kind == "gated":
        open_gate = x @ sae.W_enc + sae.b_gate > 0
        acts = open_gate * torch.relu(x @ sae.W_enc * sae.r_mag.exp() + sae.b_mag)
    elif "jumprelu" in kind:
        acts = torch.relu(pre) * (pre > sae.threshold)
    elif kind == "topk":
        norm = sae.W_dec.norm(dim=-1) if cfg.rescale_acts_by_decoder_norm else torch.ones_like(sae.b_enc)
        pre = pre * norm
        kth = pre.topk(cfg.k, dim=-1).values[..., -1:]
        acts = torch.relu(pre) * (pre >= kth)
        return change(acts) / norm @ sae.W_dec + sae.b_dec
    elif kind == "abstopk":
        kth = pre.abs().topk(cfg.k, dim=-1).values[..., -1:]
        acts = pre * (pre.abs() >= kth)
    elif kind in ("standard", "transcoder", "skip_transcoder"):
        acts = torch.relu(pre)
    else:
        raise ValueError(f"{kind} has no formula here")
    out = change(acts) @ sae.W_dec + sae.b_dec
    if "skip" in kind:
        out = out + x_in @ sae.W_skip.T
    if cfg.normalize_activations == "layer_norm":
        out = out * std + mean
    if cfg.normalize_activations == "constant_norm_rescale":
        out = out / factor
    return out


def mirror_sae(hook: str, width: int, *, noise: float = 0.0, dtype: str = "float32", **settings: Any) -> Any:
    """An SAE that gives back what it gets (positive and negative parts as features), up to noise in its weights."""
    sae = random_sae("standard", hook, width, 2 * width, dtype=dtype, **settings)
    eye = torch.eye(width, dtype=torch.float64)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter, value in (
            (sae.W_enc, torch.cat([eye, -eye], dim=1)),
            (sae.W_dec, torch.cat([eye, -eye])),
        ):
            parameter.copy_(value + noise * torch.randn(value.shape, generator=generator, dtype=torch.float64))
        sae.b_enc.zero_()
        sae.b_dec.zero_()
    return sae
