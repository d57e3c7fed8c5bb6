"""What each axis of an activation is, from the hook's name alone."""

from __future__ import annotations

_OUTER = {
    "hook_mel": ("batch", "mel", "mel_frame"),
    "hook_logits": ("batch", "pos", "vocab"),
    "encoder.hook_conv1": ("batch", "mel_frame", "d_model"),
    "encoder.hook_pos_embed": ("frame", "d_model"),
}
_BY_HEAD = ("hook_attn_in", "hook_q_input", "hook_k_input", "hook_v_input", "hook_cross_attn_in", "hook_cross_q_input")
_FRAMES_BY_HEAD = ("hook_cross_k_input", "hook_cross_v_input")
_SAE = ".hook_sae_"

FRAME_AXES = ("frame", "key_frame", "mel_frame")


def axes(name: str, ndim: int | None = None) -> tuple[str, ...]:
    """Names of the axes of hook `name`'s activation, batch included; gradients have their activation's.

    "frame" is 20 ms of audio, "mel_frame" 10 ms, "pos" a decoder token; "key_frame" and "key_pos" are the same as keys
    of attention. `ndim`, where given, counts the batch too: norms read one input for each head while inputs by head are
    on, and an SAE may read heads laid side by side.
    """
    name = name.removesuffix("_grad")
    if name in _OUTER:
        return _OUTER[name]
    if _SAE in name:
        place, _, leaf = name.partition(_SAE)
        return _of_sae(axes(place), leaf, ndim)
    stack, _, rest = name.partition(".")
    position = "frame" if stack == "encoder" else "pos"
    module, _, leaf = rest.rpartition(".")
    cross = module.endswith("cross_attn")
    if leaf in ("hook_attn_scores", "hook_pattern"):
        return ("batch", "head", position, "key_frame" if cross or stack == "encoder" else "key_pos")
    if leaf in ("hook_q", "hook_z"):
        return ("batch", position, "head", "d_head")
    if leaf in ("hook_k", "hook_v"):
        return ("batch", "key_frame" if cross else position, "head", "d_head")
    if leaf == "hook_result" or leaf in _BY_HEAD:
        return ("batch", position, "head", "d_model")
    if leaf in _FRAMES_BY_HEAD:
        return ("batch", "frame", "head", "d_model")
    if leaf in ("hook_pre", "hook_post"):
        return ("batch", position, "d_mlp")
    if leaf in ("hook_scale", "hook_normalized"):
        last = "1" if leaf == "hook_scale" else "d_model"
        return ("batch", position, "head", last) if ndim == 4 else ("batch", position, last)
    return ("batch", position, "d_model")


def _of_sae(place: tuple[str, ...], leaf: str, ndim: int | None) -> tuple[str, ...]:
    """Axes of an SAE's own activation: those of the hook that it writes, heads side by side or one of them alone."""
    if leaf in ("error", "output"):
        return place if ndim in (None, len(place)) else (*place[:-2], place[-1])
    last = "feature" if leaf in ("acts_pre", "acts_post") else "d_in"
    if ndim == len(place):
        return (*place[:-1], last if last == "feature" else place[-1])
    return (*(axis for axis in place[:-1] if axis != "head"), last)
