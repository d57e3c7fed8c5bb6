"""Sparse codes and the three operations that training on them needs, each proportional to the number of active latents.

A batch of codes is a list of pairs (row, latent), in the order of the rows. With k active latents a row, a step of
`saes.sparse` does one dense product (the encoder's), looks at its result once (`saes.selection`), and otherwise does
only these:

| operation | result | reads |
|---|---|---|
| `weighted_rows` | decoder output, [row width] | one weight row a pair |
| `row_dots` | a dot product for each pair | one weight row a pair |
| `transposed_sums` | gradient of a weight, [latent width] | one activation row a pair |

On the CPU `embedding_bag` is the fastest gather-and-add that torch has (measured against CSR products, `index_add_` and
gather-and-`bmm`); its transpose is the same operation on the pairs sorted by latent. On CUDA `sparse_triton` does it.
"""

from __future__ import annotations

import functools
import importlib.util
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from hooked_whisper.errors import ConfigError

Backend = Literal["auto", "torch", "triton"]


@dataclass(frozen=True)
class Codes:
    """Which latents are active in which rows.

    Attributes:
        latents: the latent of each pair; pairs are in the order of their rows.
        offsets: row i has the pairs offsets[i] to offsets[i + 1].
        n_latents: how many latents there are.
    """

    latents: Int[Tensor, " pair"]
    offsets: Int[Tensor, " row_and_one"]
    n_latents: int

    @property
    def n_rows(self) -> int:
        return self.offsets.shape[0] - 1

    @functools.cached_property
    def rows(self) -> Int[Tensor, " pair"]:
        """The row of each pair."""
        counts = self.offsets.diff()
        at = torch.arange(self.n_rows, device=self.latents.device)
        return torch.repeat_interleave(at, counts, output_size=self.latents.shape[0])

    @functools.cached_property
    def by_latent(self) -> LatentOrder:
        """The same pairs sorted by latent."""
        latents, order = self.latents.sort(stable=True)
        ends = torch.bincount(self.latents, minlength=self.n_latents).cumsum(0)
        return LatentOrder(order, self.rows[order], latents, F.pad(ends, (1, 0)))


@dataclass(frozen=True)
class LatentOrder:
    """The pairs of `Codes` sorted by latent, and within a latent by row.

    Attributes:
        order: positions in the codes.
        rows, latents: of the pairs in this order.
        offsets: latent i has the pairs offsets[i] to offsets[i + 1].
    """

    order: Int[Tensor, " pair"]
    rows: Int[Tensor, " pair"]
    latents: Int[Tensor, " pair"]
    offsets: Int[Tensor, " latent_and_one"]


@runtime_checkable
class Kernels(Protocol):
    """What a backend has to do; gradients are `saes.sparse`'s business."""

    def weighted_rows(
        self, values: Float[Tensor, " pair"], weight: Float[Tensor, "latent width"], codes: Codes
    ) -> Float[Tensor, "row width"]:
        """For each row, the sum of its latents' weight rows times their values."""
        ...

    def row_dots(
        self, dense: Float[Tensor, "row width"], weight: Float[Tensor, "latent width"], codes: Codes
    ) -> Float[Tensor, " pair"]:
        """For each pair, the dot product of the dense row and the latent's weight row."""
        ...

    def transposed_sums(
        self, values: Float[Tensor, " pair"], dense: Float[Tensor, "row width"], codes: Codes
    ) -> Float[Tensor, "latent width"]:
        """For each latent, the sum of the dense rows where it is active times its values there."""
        ...


class TorchKernels:
    """The operations in torch alone: `embedding_bag`, on any device."""

    def weighted_rows(self, values: Tensor, weight: Tensor, codes: Codes) -> Tensor:
        return F.embedding_bag(
            codes.latents, weight, codes.offsets, mode="sum", per_sample_weights=values, include_last_offset=True
        )

    def row_dots(self, dense: Tensor, weight: Tensor, codes: Codes) -> Tensor:
        # What embedding_bag's backward calls for per_sample_weights; called here so that the forward need not be kept.
        return torch.ops.aten._embedding_bag_per_sample_weights_backward(
            dense.contiguous(), weight, codes.latents, codes.offsets[:-1], codes.rows, 0
        )

    def transposed_sums(self, values: Tensor, dense: Tensor, codes: Codes) -> Tensor:
        sorted_ = codes.by_latent
        return F.embedding_bag(
            sorted_.rows,
            dense,
            sorted_.offsets,
            mode="sum",
            per_sample_weights=values[sorted_.order],
            include_last_offset=True,
        )


def has_triton() -> bool:
    """Whether triton, which comes with torch's CUDA builds, is installed."""
    return importlib.util.find_spec("triton") is not None


def kernels_for(device: torch.device, backend: str) -> Kernels:
    """The backend for tensors on `device`: "auto" takes triton on CUDA where it is installed, torch otherwise.

    Raises:
        ConfigError: "triton" where there is no triton or no CUDA, or a backend that does not exist.
    """
    if backend not in ("auto", "torch", "triton"):
        raise ConfigError(f"Unknown kernels {backend!r}: expected 'auto', 'torch' or 'triton'.")
    usable = device.type == "cuda" and has_triton()
    if backend == "triton" and not usable:
        missing = "triton is not installed" if device.type == "cuda" else f"the SAE is on {device}"
        raise ConfigError(
            f"kernels='triton' needs a CUDA device and the triton package, but {missing}: choose kernels='torch', "
            "which runs everywhere, or 'auto'."
        )
    if usable and backend != "torch":
        from hooked_whisper.saes.sparse_triton import TritonKernels

        return TritonKernels()
    return TorchKernels()
