"""Several SAEs of one hook as a single SAE: naive bagging (Gadgil et al. 2025, "Ensembling Sparse Autoencoders",
arXiv:2505.16077).

    sae = ensemble_saes([load_sae("run-1/sae"), load_sae("run-2/sae"), load_sae("run-3/sae")])

What one SAE of a hook finds another misses, even one that differs in its first weights alone. The mean of their
reconstructions is the reconstruction of one dictionary that has the latents of all, each decoder row divided by how
many there are; latents fire as they did. It is an SAE of SAELens's like any other: attached, evaluated, saved.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

import hooked_whisper
from hooked_whisper.errors import SaeError
from hooked_whisper.saes.saelens import import_saelens

if TYPE_CHECKING:
    from sae_lens import SAE

# A latent of these fires by its own input alone, so that one of them fires as well among the latents of others.
_BY_THEMSELVES = ("standard", "jumprelu")

# Of the metadata of an SAE, what is true of an ensemble with others of its model and hook, too.
_KEPT = (
    "model_name",
    "model_class_name",
    "hook_name",
    "hook_head_index",
    "context_size",
    "frame_rate",
    "position",
    "weights_sha256",
)


@torch.no_grad()
def ensemble_saes(saes: Sequence[SAE[Any]]) -> SAE[Any]:
    """The mean of several SAEs' reconstructions, as one JumpReLU SAE that has the latents of all, in their order.

    It encodes rows [row d_in] into [row d_sae], d_sae being the sum of theirs, in which each latent has the activation
    that it has in its own SAE; it decodes into [row d_in].

    Args:
        saes: two or more, of one model and hook, whose latents fire by themselves: "standard" or "jumprelu", which
            BatchTopK and matryoshka SAEs are once they are saved.

    Raises:
        SaeError: fewer than two, other architectures, different widths, models or hooks, or an SAE that normalises what
            it reads.
    """
    if len(saes) < 2:
        raise SaeError(f"An ensemble of {len(saes)} SAEs: expected two or more.")
    first = saes[0].cfg
    for at, sae in enumerate(saes):
        architecture, cfg = sae.cfg.architecture(), sae.cfg
        if architecture not in _BY_THEMSELVES:
            raise SaeError(
                f"SAE {at} is {architecture!r}, whose latents do not fire by themselves alone: expected "
                f"{' or '.join(_BY_THEMSELVES)}. BatchTopK and matryoshka SAEs are 'jumprelu' once they are saved."
            )
        if cfg.normalize_activations not in ("none", None) or cfg.reshape_activations not in ("none", None):
            raise SaeError(
                f"SAE {at} changes what it reads (normalize_activations={cfg.normalize_activations!r}, "
                f"reshape_activations={cfg.reshape_activations!r}): expected SAEs that read rows as they are."
            )
        for name, own, other in (
            ("width", cfg.d_in, first.d_in),
            ("model", cfg.metadata.model_name, first.metadata.model_name),
            ("hook", cfg.metadata.hook_name, first.metadata.hook_name),
        ):
            if own != other:
                raise SaeError(f"SAE {at} has the {name} {own!r} and SAE 0 {other!r}: an ensemble is of one {name}.")
    weights: dict[str, list[torch.Tensor]] = {"W_enc": [], "b_enc": [], "threshold": [], "W_dec": [], "b_dec": []}
    for sae in saes:
        own: dict[str, torch.Tensor] = {name: value.detach().cpu() for name, value in sae.named_parameters()}
        # b_dec is taken off before encoding, or not; here it never is.
        taken_off = own["b_dec"] @ own["W_enc"] if sae.cfg.apply_b_dec_to_input else 0.0
        weights["W_enc"].append(own["W_enc"])
        weights["b_enc"].append(own["b_enc"] - taken_off)
        weights["threshold"].append(own.get("threshold", torch.zeros_like(own["b_enc"])))
        weights["W_dec"].append(own["W_dec"] / len(saes))
        weights["b_dec"].append(own["b_dec"] / len(saes))
    state = {
        "W_enc": torch.cat(weights["W_enc"], 1).contiguous(),
        "b_enc": torch.cat(weights["b_enc"]),
        "threshold": torch.cat(weights["threshold"]),
        "W_dec": torch.cat(weights["W_dec"]),
        "b_dec": torch.stack(weights["b_dec"]).sum(0),
    }
    sae_lens = import_saelens()
    about = {name: value for name, value in first.metadata.items() if name in _KEPT}
    cls, config = sae_lens.registry.get_sae_class("jumprelu")
    made = cls(
        config(
            d_in=first.d_in,
            d_sae=len(state["b_enc"]),
            dtype=str(state["W_enc"].dtype).removeprefix("torch."),
            apply_b_dec_to_input=False,
            metadata=sae_lens.saes.sae.SAEMetadata(
                **about,
                ensemble=[sae.cfg.d_sae for sae in saes],
                hooked_whisper_version=hooked_whisper.__version__,
            ),
        )
    )
    made.load_state_dict(state)
    return made
