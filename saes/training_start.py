"""Training that goes on from the weights of an SAE there is, with another k, learning rate or other activations.

An SAE for use reads activations as they are and has SAELens's foldings in its weights; one in training may read them
scaled. Where both reconstruct alike, one's weights follow from the other's by two factors, of rows and of latents.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from hooked_whisper.errors import SaeError
from hooked_whisper.saes.hub import load_sae
from hooked_whisper.saes.sensitivity import Sensitivity
from hooked_whisper.saes.source import ActivationSource
from hooked_whisper.saes.training_settings import SaeSettings

# How a weight changes where rows are multiplied by `rows`, and latents count in units `latents` times as small.
_BY_LATENTS = ("b_enc", "b_gate", "b_mag", "threshold")
_AS_IT_IS = ("r_mag", "W_skip")


@dataclass(frozen=True)
class Start:
    """The weights that a training starts from.

    Attributes:
        name: as it was asked for.
        sha256: of the weights: a run goes on only from the ones that it began with.
        weights: of the SAE for use, by name, on the CPU.
    """

    name: str
    sha256: str
    weights: dict[str, Tensor]

    def describe(self) -> dict[str, str]:
        """What training.json says of it."""
        return {"name": self.name, "sha256": self.sha256}

    def check(self, sae: Any) -> None:
        """Raises SaeError where an SAE in training has weights that this one has not, or of other shapes."""
        self._for(sae, 1.0)

    @torch.no_grad()
    def put_into(self, sae: Any, scale: float, matrix: Tensor | None = None) -> None:
        """Sets the weights of an SAE in training, which reads rows that are multiplied by `scale`, or by `matrix`.

        Latents are then chosen by what they add to rows so multiplied, where an SAE chooses by that.

        Raises:
            SaeError: as `check`.
        """
        start = self if matrix is None else replace(self, weights=_multiplied(self.weights, matrix))
        found = start._for(sae, scale)
        for name, there in (*sae.named_parameters(), *sae.named_buffers()):
            if name in found:
                there.copy_(found[name].to(there))

    def _for(self, sae: Any, scale: float) -> dict[str, Tensor]:
        """What the weights of `sae` are to be, by name."""
        # Decoder rows get a length of 1 on average, save where they are the encoder's as well.
        latents = scale * self.weights["W_dec"].norm(dim=-1).mean().item() if "W_enc" in self.weights else scale
        found = {name: _scaled(name, weight, scale, latents) for name, weight in self.weights.items()}
        if "threshold" in found:
            found["log_threshold"] = found["threshold"].log()
            found["topk_threshold"] = found["threshold"].mean()
        needed = dict(sae.named_parameters())
        wanted = needed | {name: there for name, there in sae.named_buffers() if name in found}
        for name, there in wanted.items():
            if name not in found or found[name].shape != there.shape:
                given = f"one of shape {tuple(found[name].shape)}" if name in found else "none"
                raise SaeError(
                    f"The SAE to be trained has a {name} of shape {tuple(there.shape)}, and start={self.name!r} has "
                    f"{given}: start from one of the same architecture, d_sae and hook."
                )
        return found


def _multiplied(weights: Mapping[str, Tensor], matrix: Tensor) -> dict[str, Tensor]:
    """Weights for rows that are multiplied by a matrix, [width width]."""
    found = {name: weight.double() for name, weight in weights.items()}
    found["W_enc"] = torch.linalg.solve(matrix, found["W_enc"])
    found["W_dec"] = found["W_dec"] @ matrix
    found["b_dec"] = found["b_dec"] @ matrix
    return {name: weight.float() for name, weight in found.items()}


def _scaled(name: str, weight: Tensor, rows: float, latents: float) -> Tensor:
    if name == "W_enc":
        return weight * (latents / rows)
    if name == "W_dec":
        return weight * (rows / latents)
    if name.startswith("b_dec"):
        return weight * rows
    if name in _BY_LATENTS:
        return weight * latents
    if name in _AS_IT_IS:
        return weight
    raise SaeError(f"Training cannot start from an SAE with a weight {name!r}, which it does not know.")


def find_sensitivity(settings: SaeSettings, widths: Sequence[int], source: ActivationSource) -> Sensitivity | None:
    """What `settings.sensitivity` names; None where it names nothing.

    Raises:
        SaeError: no such file, one of another hook or model, or settings that it does not go with.
    """
    if settings.sensitivity is None:
        return None
    if settings.hook_out is not None or settings.architecture == "matching_pursuit":
        raise SaeError(
            f"sensitivity= multiplies rows before and after, and {settings.architecture!r} has one matrix for both or "
            "two hooks: leave it out, or choose another architecture."
        )
    if settings.normalize_activations != "none":
        raise SaeError(
            f"sensitivity= has a scale of its own, and normalize_activations={settings.normalize_activations!r} is "
            "another: leave that at 'none'."
        )
    found = Sensitivity.load(settings.sensitivity)
    found.check(settings.hook, widths[0], source.describe().get("weights_sha256"))
    found.root(settings.sensitivity_share)  # refuses a share that is none
    return found


def find_start(settings: SaeSettings, widths: Sequence[int]) -> Start | None:
    """The SAE that `settings.start` names; None where it names none.

    Args:
        widths: of the hooks of `settings`.

    Raises:
        SaeError: there is none, or it is not one that such a training can go on from.
    """
    if settings.start is None:
        return None
    name = str(settings.start)
    if settings.normalize_activations == "covariance_whitening":
        raise SaeError(
            f"start={name!r} does not go with normalize_activations='covariance_whitening', which is not undone in "
            "its weights: choose 'none' or 'expected_average_only_in'."
        )
    if settings.architecture == "matching_pursuit" and settings.normalize_activations != "none":
        raise SaeError(
            f"start={name!r} does not go with normalize_activations={settings.normalize_activations!r} of "
            "'matching_pursuit', whose one matrix reads rows and writes them: choose 'none'."
        )
    sae = load_sae(name)
    normalized = "layer_norm" if settings.normalize_activations == "layer_norm" else "none"
    if sae.cfg.normalize_activations != normalized:
        raise SaeError(
            f"start={name!r} has normalize_activations={sae.cfg.normalize_activations!r} in use, and what is to be "
            f"trained {normalized!r}: give both the same."
        )
    weights = {key: weight.detach().float().cpu().clone() for key, weight in sae.state_dict().items()}
    if "W_dec" not in weights or weights["W_dec"].shape != (settings.d_sae, widths[-1]):
        shape = tuple(weights["W_dec"].shape) if "W_dec" in weights else None
        raise SaeError(
            f"start={name!r} has a decoder of shape {shape}, and d_sae={settings.d_sae} latents of {widths[-1]} "
            f"dimensions were asked for: ({settings.d_sae}, {widths[-1]})."
        )
    digest = hashlib.sha256()
    for key in sorted(weights):
        digest.update(f"{key} {tuple(weights[key].shape)}".encode())
        digest.update(weights[key].contiguous().numpy().data)
    return Start(name, digest.hexdigest(), weights)
