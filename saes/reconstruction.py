"""How well an SAE gives back what it reads, and how its latents fire: sums by clip, from which any group follows.

FVU, the fraction of variance unexplained, is the squared error over the squared distance from the mean (1 - R²). Over
all rows the mean is that of the group of clips in question. Within clips it is each clip's own: what sets speakers,
languages and recordings apart then counts for nothing, so this is the harder and more telling figure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from hooked_whisper.errors import SaeError
from hooked_whisper.saes.coding import SparseCoder, code
from hooked_whisper.saes.estimates import N_RESAMPLES, Estimate, bootstrap, divide, ratio

DENSE = 0.1  # a latent that fires on more than this share of rows is called dense
# Edges of the histogram of firing densities: quarters of a decade.
DENSITY_EDGES = tuple(10 ** (exponent / 4) for exponent in range(-24, 1))


@dataclass(frozen=True)
class Reconstruction:
    """What reconstruction is like over a group of clips.

    Attributes:
        n_clips, n_rows: how much it was measured on; padding is never a row.
        fvu: fraction of variance unexplained, about the mean of the group; explained variance is 1 - fvu.
        fvu_within_clips: about each clip's own mean, summed over clips.
        cosine: mean cosine of row and reconstruction.
        norm_ratio: mean length of the reconstruction over that of the row; below 1 it shrinks.
        l0: mean number of latents that are not zero.
    """

    n_clips: int
    n_rows: int
    fvu: Estimate
    fvu_within_clips: Estimate
    cosine: Estimate
    norm_ratio: Estimate
    l0: Estimate

    @property
    def explained_variance(self) -> float | None:
        """1 - FVU."""
        return None if self.fvu.value is None else 1 - self.fvu.value


@dataclass(frozen=True)
class Firing:
    """How many latents fire at all, and how many almost always, over a group of clips.

    Attributes:
        n_rows: rows that were looked at. A latent that would fire on one row in n_rows is missed with probability 1/e.
        n_latents: size of the dictionary.
        n_silent: latents that fire on no row; over a whole corpus they are called dead.
        n_dense: latents that fire on more than a tenth of the rows.
    """

    n_rows: int
    n_latents: int
    n_silent: int
    n_dense: int

    @property
    def silent(self) -> float:
        """Share of latents that fire on no row."""
        return self.n_silent / self.n_latents


@dataclass(frozen=True)
class DensityHistogram:
    """How many latents fire how often: `counts[i]` of them on a share of rows from `edges[i]` up to `edges[i + 1]`.

    The first bin also holds what is rarer, the last what fires on every row; `never` counts those that fire on none.
    """

    edges: list[float]
    counts: list[int]
    never: int


@dataclass
class ReconstructionSums:
    """Fills up clip by clip; every figure is a function of these sums.

    Memory is d_in numbers for each clip, and d_sae for each group of clips.
    """

    n_latents: int
    n_rows: list[int] = field(default_factory=list)
    total: list[Float[np.ndarray, " d_out"]] = field(default_factory=list)
    squares: list[float] = field(default_factory=list)
    errors: list[float] = field(default_factory=list)
    cosines: list[float] = field(default_factory=list)
    norm_ratios: list[float] = field(default_factory=list)
    active: list[int] = field(default_factory=list)
    groups: list[str] = field(default_factory=list)
    fired: dict[str, Int[Tensor, " d_sae"]] = field(default_factory=dict)

    def add(self, sae: SparseCoder, rows: Tensor, target: Tensor | None = None, *, group: str = "") -> None:
        """One clip's rows [row *width], and what they should become where that is not themselves.

        Raises:
            SaeError: no rows, or rows or reconstructions that are not finite.
        """
        if not len(rows):
            raise SaeError(f"Clip {len(self.n_rows)} has no rows: it holds no audio.")
        wanted = rows if target is None else target
        counts = self.fired.setdefault(group, torch.zeros(self.n_latents, dtype=torch.int64))
        sums = np.zeros(5)  # squares, errors, cosines, norm ratios, active
        for part, acts, out in code(sae, rows):
            x = wanted[part].reshape(len(out), -1).double().to(out.device)
            y = out.reshape(len(out), -1).double()
            fired = (acts.to_dense() if acts.is_sparse else acts) != 0
            counts += fired.sum(0).cpu()
            x_norm, y_norm = x.norm(dim=-1), y.norm(dim=-1)
            both = (x_norm * y_norm).clamp(min=1e-30)
            sums += np.array([
                float(x.square().sum()),
                float((x - y).square().sum()),
                float(((x * y).sum(-1) / both).sum()),
                float((y_norm / x_norm.clamp(min=1e-30)).sum()),
                float(fired.sum()),
            ])  # fmt: skip
        if not np.isfinite(sums).all():
            raise SaeError(
                f"Clip {len(self.n_rows)} gives activations or reconstructions that are NaN or infinite: look at the "
                "audio, at the model's dtype (float16 overflows in the large models), and at the SAE's weights."
            )
        self.n_rows.append(len(rows))
        self.total.append(wanted.reshape(len(rows), -1).double().sum(0).cpu().numpy())
        self.squares.append(sums[0])
        self.errors.append(sums[1])
        self.cosines.append(sums[2])
        self.norm_ratios.append(sums[3])
        self.active.append(int(sums[4]))
        self.groups.append(group)

    def reconstruction(
        self, clips: Sequence[int] | None = None, *, n_resamples: int = N_RESAMPLES, seed: int = 0
    ) -> Reconstruction:
        """Figures over some clips, all when None."""
        chosen = np.arange(len(self.n_rows)) if clips is None else np.asarray(clips, dtype=np.int64)
        n = np.array(self.n_rows, dtype=np.float64)[chosen]
        total = np.stack(self.total)[chosen]
        squares, errors = np.array(self.squares)[chosen], np.array(self.errors)[chosen]
        within = squares - np.square(total).sum(-1) / n

        def fvu(weights: Float[np.ndarray, "resample clip"]) -> Float[np.ndarray, " resample"]:
            sums, rows = weights @ total, weights @ n
            return divide(weights @ errors, weights @ squares - np.square(sums).sum(-1) / rows)

        def over_rows(values: Sequence[float]) -> Estimate:
            over = np.array(values, dtype=np.float64)[chosen]
            return bootstrap(ratio(over, n), len(chosen), n_resamples=n_resamples, seed=seed)

        return Reconstruction(
            n_clips=len(chosen),
            n_rows=int(n.sum()),
            fvu=bootstrap(fvu, len(chosen), n_resamples=n_resamples, seed=seed),
            fvu_within_clips=bootstrap(ratio(errors, within), len(chosen), n_resamples=n_resamples, seed=seed),
            cosine=over_rows(self.cosines),
            norm_ratio=over_rows(self.norm_ratios),
            l0=over_rows(self.active),
        )

    def counts(self, group: str | None = None) -> Int[Tensor, " d_sae"]:
        """On how many rows each latent fires, over one group or over all."""
        chosen = list(self.fired.values()) if group is None else [self.fired[group]]
        return sum(chosen, torch.zeros(self.n_latents, dtype=torch.int64))

    def firing(self, group: str | None = None) -> Firing:
        """How many latents fire, over one group or over all."""
        n_rows = sum(n for n, name in zip(self.n_rows, self.groups, strict=True) if group in (None, name))
        counts = self.counts(group)
        return Firing(n_rows, self.n_latents, int((counts == 0).sum()), int((counts > DENSE * n_rows).sum()))

    def histogram(self) -> DensityHistogram:
        """Firing densities of all latents over all rows."""
        density = self.counts().double().numpy() / max(1, sum(self.n_rows))
        alive = density[density > 0].clip(DENSITY_EDGES[0], DENSITY_EDGES[-1])
        counts, _ = np.histogram(alive, bins=np.array(DENSITY_EDGES))
        return DensityHistogram(list(DENSITY_EDGES), [int(count) for count in counts], int((density == 0).sum()))
