"""Activations that need not be stored, because others tell them.

Scores and patterns of 30 s of audio are two thirds of everything a Whisper computes, and follow from queries and keys;
so do head outputs from `hook_z`, an MLP's `hook_post` from its `hook_pre`, and a norm's scale from its input. Each is
computed here with the operations of the model's own forward.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from hooked_whisper.components import causal_mask
from hooked_whisper.config import HookedWhisperConfig

if TYPE_CHECKING:
    from hooked_whisper.model import HookedWhisper

Read = Callable[[str], "Tensor | None"]


def sources(name: str, cfg: HookedWhisperConfig) -> tuple[tuple[str, ...], ...]:
    """The sets of activations any one of which tells `name`, likeliest first; empty when nothing does."""
    module, _, leaf = name.rpartition(".")
    if leaf == "hook_attn_scores":
        return ((f"{module}.hook_q", f"{module}.hook_k"),)
    if leaf == "hook_pattern":
        return ((f"{module}.hook_attn_scores",), (f"{module}.hook_q", f"{module}.hook_k"))
    if leaf == "hook_result":
        return ((f"{module}.hook_z",),)
    if leaf == "hook_post" and module.endswith(".mlp"):
        return ((f"{module}.hook_pre",),)
    if leaf == "hook_scale":
        by_head = cfg.use_attn_in or cfg.use_split_qkv_input  # then each head's norm has a scale of its own
        return () if by_head and ".blocks." in module and not before_mlp(module) else ((norm_input(module, cfg),),)
    return ()


# What may follow from an activation (see `sources` for when it does): its leaf -> what stands beside it.
_FOLLOWS = {
    "hook_q": ("hook_attn_scores", "hook_pattern"),
    "hook_attn_scores": ("hook_pattern",),
    "hook_z": ("hook_result",),
    "hook_pre": ("hook_post",),
    "hook_resid_pre": ("ln1.hook_scale",),
    "hook_resid_mid": ("ln2.hook_scale",),
    "hook_resid_mid_cross": ("ln3.hook_scale",),
    "hook_mlp_in": ("ln2.hook_scale", "ln3.hook_scale"),
}


def follows(name: str) -> tuple[str, ...]:
    """Names that might be derived from activation `name`."""
    module, _, leaf = name.rpartition(".")
    if leaf == "hook_resid_post":
        return ("encoder.ln_post.hook_scale",) if name.startswith("encoder.") else ("decoder.ln_final.hook_scale",)
    return tuple(f"{module}.{other}" for other in _FOLLOWS.get(leaf, ()))


def norm_input(norm: str, cfg: HookedWhisperConfig) -> str:
    """The residual stream that a norm (such as "decoder.blocks.2.ln3") reads."""
    stack = norm.partition(".")[0]
    if norm in ("encoder.ln_post", "decoder.ln_final"):
        return f"{stack}.blocks.{cfg.stack(stack).n_layers - 1}.hook_resid_post"
    block, _, which = norm.rpartition(".")
    if before_mlp(norm) and cfg.use_hook_mlp_in:
        return f"{block}.hook_mlp_in"
    resid = {"ln1": "hook_resid_pre", "ln2": "hook_resid_mid", "ln3": "hook_resid_mid_cross"}[which]
    return f"{block}.{resid}"


def before_mlp(norm: str) -> bool:
    """True for the norm before an MLP: ln3 in the decoder, ln2 in the encoder."""
    return norm.endswith(".ln3" if norm.startswith("decoder.") else ".ln2")


def derive(
    name: str,
    read: Read,
    cfg: HookedWhisperConfig,
    model: HookedWhisper | None,
    not_derivable: frozenset[str] = frozenset(),
) -> Tensor | None:
    """The activation `name` computed from others, or None where they do not tell it.

    `read` gives a stored activation or None. Names in `not_derivable` had hooks of their own, so what
    they were computed from does not say what they became.
    """
    if name in not_derivable:
        return None
    module, _, leaf = name.rpartition(".")
    for needed in sources(name, cfg):
        if leaf == "hook_pattern" and len(needed) == 2 and f"{module}.hook_attn_scores" in not_derivable:
            continue
        found = [value for value in map(read, needed) if value is not None]
        if len(found) < len(needed):
            continue
        if leaf == "hook_attn_scores":
            return scores(*found, causal=_is_causal(module))
        if leaf == "hook_pattern":
            return (found[0] if len(found) == 1 else scores(*found, causal=_is_causal(module))).softmax(dim=-1)
        if leaf == "hook_result":
            attention: Any = None if model is None else model.get_submodule(module)
            return None if attention is None else head_results(found[0], attention.W_O.detach())
        if leaf == "hook_post":
            return F.gelu(found[0])
        return norm_scale(found[0], cfg.eps)
    return None


def _is_causal(attention: str) -> bool:
    return attention.startswith("decoder.") and not attention.endswith("cross_attn")


def scores(
    q: Float[Tensor, "*batch pos head d_head"], k: Float[Tensor, "*batch key head d_head"], *, causal: bool
) -> Float[Tensor, "*batch head pos key"]:
    """q.k / sqrt(d_head), with keys that lie ahead of a query at -inf when `causal`."""
    q, k = q.transpose(-3, -2), k.transpose(-3, -2)
    result = torch.matmul(q * q.shape[-1] ** -0.5, k.transpose(-2, -1))
    if causal and q.shape[-2] > 1:
        result = result.masked_fill(~causal_mask(q.shape[-2], k.shape[-2], q.device), -torch.inf)
    return result


def head_results(
    z: Float[Tensor, "*place head d_head"], W_O: Float[Tensor, "head d_head d_model"]
) -> Float[Tensor, "*place head d_model"]:
    """What each head adds to the residual stream, the output bias left out."""
    return torch.einsum("...hd,hdm->...hm", z, W_O.to(z.device, z.dtype))


def norm_scale(x: Float[Tensor, "*place d_model"], eps: float) -> Float[Tensor, "*place 1"]:
    """A layer norm's divisor, sqrt(variance + eps), in float32 for half precision, as the model's hook has it."""
    wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    centred = wide - wide.mean(-1, keepdim=True)
    return (centred.pow(2).mean(-1, keepdim=True) + eps).sqrt()
