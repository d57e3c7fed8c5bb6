"""Figures of an SAE on held-out rows, and the threshold that BatchTopK leaves to be found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from hooked_whisper.errors import SaeError
from hooked_whisper.saes.selection import BatchSelector, chunk_rows

# What one batch of rows may take as dense activations: 64 MB in float32.
_MAX_ACTIVATIONS = 2**24


@dataclass(frozen=True)
class Figures:
    """How an SAE does on some rows.

    Attributes:
        n_rows: how many they are.
        fvu: fraction of variance unexplained: squared error over squared distance from the mean row.
        l0: mean number of active latents.
        silent: share of latents that are active in none of the rows.
    """

    n_rows: int
    fvu: float
    l0: float
    silent: float


@torch.no_grad()
def measure(
    sae: Any,
    rows: Float[Tensor, "row width"],
    *,
    scaler: Any = None,
    wanted: Float[Tensor, "row width_out"] | None = None,
) -> Figures:
    """Figures of a SAELens SAE, for training or for use; what selects over a batch does so over parts of the rows.

    Args:
        scaler: SAELens's `ActivationScaler` of a training that is under way; it is undone before comparing.
        wanted: what a transcoder is to write; `rows` themselves for others.
    """
    target = rows if wanted is None else wanted
    error = total = active = 0.0
    fired = torch.zeros(sae.cfg.d_sae, dtype=torch.bool, device=sae.W_dec.device)
    mean = target.double().mean(0).to(sae.W_dec.device)
    step = max(1, _MAX_ACTIVATIONS // sae.cfg.d_sae)
    for x, y in zip(rows.split(step), target.split(step), strict=True):
        x, y = x.to(sae.W_dec.device), y.to(sae.W_dec.device)
        x = x if scaler is None else scaler.scale(x)
        acts = sae.encode(x)
        out = sae.decode(acts) if wanted is None else sae(x)
        out = out if scaler is None else scaler.unscale(out)
        error += (y - out).double().pow(2).sum().item()
        total += (y.double() - mean).pow(2).sum().item()
        is_on = acts != 0
        active += is_on.sum().item()
        fired |= is_on.any(0)
    fvu = error / total if total else float("nan")  # of rows that are all alike nothing can be explained
    return Figures(len(rows), fvu, active / len(rows), 1 - fired.float().mean().item())


@torch.no_grad()
def threshold_for(sae: Any, rows: Float[Tensor, "row width"], k: float) -> float:
    """The threshold at which on average `k` latents a row are active: what a BatchTopK SAE is to be used with.

    In training SAELens keeps a moving average of each batch's smallest activation, which starts at 0 and lags by
    hundreds of steps; this looks at rows that the SAE was not trained on.

    Args:
        sae: a BatchTopK training SAE, any activation norm folded in.

    Raises:
        SaeError: fewer than `k` positive pre-activations a row.
    """
    count = round(k * len(rows))
    norms = sae.W_dec.norm(dim=-1) if sae.cfg.rescale_acts_by_decoder_norm else None
    selector = BatchSelector(count)
    step = chunk_rows(sae.cfg.d_sae, sae.W_enc.dtype, sae.W_enc.device)
    for index, part in enumerate(rows.split(step)):
        scores = sae.process_sae_in(part.to(sae.W_enc.device)) @ sae.W_enc + sae.b_enc
        selector.add((scores if norms is None else scores * norms).contiguous(), index * step)
    smallest = selector.selected().smallest
    if smallest is None or selector.n_found < count:
        raise SaeError(
            f"Only {selector.n_found / len(rows):.1f} latents a row are positive, fewer than k={k:g}: no threshold can "
            "activate that many. Train longer, or lower k."
        )
    return smallest.double().item() * (1 - 1e-6)  # what equals the threshold is not active
