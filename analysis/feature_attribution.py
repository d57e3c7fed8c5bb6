"""Which features of an SAE, at which frames, make the model write what it writes; and how much they leave out.

    found = attribute_features(model, sae, contrast, metric)
    found.top(10)                                            # (latent, position, score), largest first
    found.error                                              # what the SAE misses of the activation

The SAE stands in for its activation with its error term, so the model does what it does without it. A latent's score at
a position is (its activation in the other run - that in the base run) . gradient of the metric, as for every node; the
error is one more node, a vector. Latents and error together have the score of the activation itself, so the error's
share says how much of the model's doing the features do not explain (Marks et al. 2024, arXiv:2403.19647).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from hooked_whisper.analysis.attribution import Direction, sides
from hooked_whisper.analysis.checks import check_clip, described, largest
from hooked_whisper.analysis.contrast import Contrast, ModelInput
from hooked_whisper.analysis.gradient_passes import ChunkMetric, Path, frozen
from hooked_whisper.analysis.metrics import Metric
from hooked_whisper.analysis.nodes import Node
from hooked_whisper.errors import AnalysisError
from hooked_whisper.model import HookedWhisper

if TYPE_CHECKING:
    from sae_lens import SAE


@dataclass(frozen=True)
class FeatureAttribution:
    """What each latent of an SAE does to a metric, position by position.

    Attributes:
        hook: the activation that the SAE stands for.
        scores: [batch position latent], estimated change of the metric when that latent at that position takes its
            activation of the other run; most are 0, so they are kept sparse.
        error: [batch position], the same for what the SAE misses.
        base, other: [batch], the metric of the run that would be patched, and of that which latents come from.
    """

    hook: str
    scores: Tensor
    error: Float[Tensor, "batch position"]
    base: Float[Tensor, "batch"]
    other: Float[Tensor, "batch"]

    @property
    def by_latent(self) -> Float[Tensor, "batch latent"]:
        """Scores summed over positions."""
        return torch.sparse.sum(self.scores, dim=1).to_dense()

    @property
    def by_position(self) -> Float[Tensor, "batch position"]:
        """Scores summed over latents, the error left out."""
        return torch.sparse.sum(self.scores, dim=2).to_dense()

    @property
    def error_share(self) -> Float[Tensor, "batch"]:
        """Size of the error's scores as a share of all: 0 where latents explain everything."""
        latents = torch.sparse.sum(self.scores.abs(), dim=(1, 2)).to_dense()
        error = self.error.abs().sum(1)
        return error / (error + latents)

    def top(self, n: int = 10, *, clip: int = 0) -> list[tuple[int, int, float]]:
        """The n largest scores of either sign, as (latent, position, score), largest first.

        Raises:
            AnalysisError: n below 1, or a clip that is not there.
        """
        of_clip = self.scores[check_clip(clip, self.scores.shape[0])].coalesce()
        values = of_clip.values()
        order = largest(values, n)
        places = of_clip.indices()[:, order].T.tolist()
        return [(latent, at, float(score)) for (at, latent), score in zip(places, values[order], strict=True)]


def attribute_features(
    model: HookedWhisper,
    sae: SAE[Any],
    contrast: Contrast,
    metric: Metric,
    *,
    hook: str | None = None,
    direction: Direction = "denoise",
) -> FeatureAttribution:
    """Scores of every latent of an SAE at every position, and of its error, from one backward pass.

    The SAE is attached for the length of the call, with its error term. To judge what latents do at all, not what
    differs between two speech clips, contrast the speech with silence.

    Args:
        sae: of SAELens; not a transcoder.
        metric: logits to one number for each clip, each clip's from its own logits alone.
        hook: where the SAE goes; None takes its metadata's.

    Raises:
        AnalysisError: no SAE, a transcoder, an SAE of heads on their own, a metric without a gradient.
        SaeError, HookNameError: an SAE that does not fit.
    """
    base, other = sides(contrast, direction)
    if not hasattr(sae, "cfg"):
        raise AnalysisError(
            f"Expected an SAE, such as load_sae('whisper-base/encoder.hook_out') of hooked_whisper.saes gives, got "
            f"{described(sae)}."
        )
    if sae.cfg.metadata.hook_name_out not in (None, sae.cfg.metadata.hook_name):
        raise AnalysisError(
            "A transcoder has no error term of its own input: attribute to its latents as nodes instead."
        )
    parts, errors, ends = [], [], []
    with model.saes(sae if hook is None else {hook: sae}, use_error_term=True), frozen(model):
        place = next(name for name, attached in model.acts_to_saes.items() if attached is sae)
        latents, error = f"{place}.hook_sae_acts_post", f"{place}.hook_sae_error"
        for number in range(len(contrast)):
            judge = ChunkMetric(metric, [number], len(contrast))
            start, end = (
                ModelInput(side.mel[number : number + 1], side.tokens[number : number + 1]) for side in (base, other)
            )
            path = Path.between(model, start, end, [Node(latents), Node(error)], judge)
            if path.deltas[latents].ndim != 3:
                raise AnalysisError(
                    f"The SAE at {place} codes each head on its own: attribute to its latents as nodes instead."
                )
            products = path.products(model, judge)
            parts.append(products[latents].cpu().to_sparse())
            errors.append(products[error].flatten(2).sum(2).cpu())
            ends.append([float(value[0]) for value in path.ends])
    before, after = torch.tensor(ends, dtype=torch.float64).unbind(1)
    return FeatureAttribution(place, torch.cat(parts).coalesce(), torch.cat(errors), before, after)
