"""TransformerLens's short names for activations of one stack: ("q", 2), ("resid_post", 3), "k6", "scale4ln1"."""

from __future__ import annotations

import re

_MODULES = {
    "a": "attn",
    "attention": "attn",
    "self": "attn",
    "c": "cross_attn",
    "cross": "cross_attn",
    "m": "mlp",
    "b": "",
    "block": "",
    "blocks": "",
}
_LEAVES = {
    "attn": "pattern",
    "attn_logits": "attn_scores",
    "key": "k",
    "query": "q",
    "value": "v",
    "mlp_pre": "pre",
    "mlp_post": "post",
}
_OF_ATTENTION = ("q", "k", "v", "z", "result", "pattern", "attn_scores")
_OF_MLP = ("pre", "post")
_OF_NORM = ("scale", "normalized")
# Names that end in a digit of their own.
_WITH_DIGIT = ("conv1", "conv2")


def hook_name(name: str, layer: int | None = None, module: str | None = None, *, final_norm: str) -> str:
    """The hook that a short name means, as in TransformerLens's `get_act_name`.

    Args:
        name: a hook's name without "hook_", or an alias; may bring its layer and module ("scale4ln1").
        layer: of the block, or None outside the blocks.
        module: "attn" (the default for q, k, v, z, scores, pattern, result), "cross_attn", "mlp", "ln1", ...
        final_norm: what "scale" and "normalized" mean without a layer.
    """
    if layer is None and module is None:
        if "." in name or name.startswith("hook_"):
            return name
        found = None if name in _WITH_DIGIT else re.fullmatch(r"([a-z_]+?)(\d+)([a-z]?.*)", name)
        if found is not None:
            name, layer, module = found[1], int(found[2]), found[3] or None
    module = _MODULES.get(module or "", module or "")
    name = _LEAVES.get(name, name)
    if name in _OF_ATTENTION:
        module = "cross_attn" if module == "cross_attn" else "attn"
    elif name in _OF_MLP:
        module = "mlp"
    elif name in _OF_NORM and layer is None:
        module = final_norm
    block = "" if layer is None else f"blocks.{layer}."
    return f"{block}{module}{'.' if module else ''}hook_{name}"
