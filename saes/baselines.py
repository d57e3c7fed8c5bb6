"""What an SAE has to beat: the same number of coefficients of a basis that nobody had to learn.

A basis of d_in orthogonal directions stands where the dictionary stands: the neurons themselves, or the principal
components. For each row the k coefficients of largest magnitude are kept, measured from the mean. Of all choices of k
from an orthogonal basis that one has the smallest error, the k leading principal components included.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from hooked_whisper.errors import SaeError

BASELINES = ("neurons", "pca")
if TYPE_CHECKING:
    BaselineName = Literal["neurons", "pca"]
else:
    BaselineName = str  # checked here, with a message that says more than a type checker's


@dataclass
class Moments:
    """Mean and covariance of rows, summed up in float64 on the CPU as batches come."""

    d_in: int
    n_rows: int
    total: Float[Tensor, " d_in"]
    outer: Float[Tensor, "d_in d_in"]

    @classmethod
    def none(cls, d_in: int) -> Moments:
        """Of no rows yet."""
        return cls(d_in, 0, torch.zeros(d_in, dtype=torch.float64), torch.zeros(d_in, d_in, dtype=torch.float64))

    def add(self, rows: Float[Tensor, "row *width"]) -> None:
        """Counts in rows; heads are laid side by side."""
        flat = rows.reshape(len(rows), -1).double().cpu()
        self.n_rows += len(flat)
        self.total += flat.sum(0)
        self.outer += flat.T @ flat

    def __add__(self, other: Moments) -> Moments:
        """Of the rows of both."""
        return Moments(self.d_in, self.n_rows + other.n_rows, self.total + other.total, self.outer + other.outer)

    @property
    def mean(self) -> Float[Tensor, " d_in"]:
        """Mean row.

        Raises:
            SaeError: no rows were counted.
        """
        if not self.n_rows:
            raise SaeError("No rows to take a mean of: the corpus or the store is empty.")
        return self.total / self.n_rows

    @property
    def covariance(self) -> Float[Tensor, "d_in d_in"]:
        """Covariance of the rows."""
        mean = self.mean
        return self.outer / self.n_rows - mean[:, None] * mean


@dataclass
class BasisConfig:
    """The settings of a basis, under SAELens's names."""

    d_in: int
    d_sae: int
    k: int
    kind: str
    reshape_activations: str = "none"

    def architecture(self) -> str:
        """What it is called where SAEs tell their architecture."""
        return self.kind


class Basis:
    """An orthogonal basis that codes a row by its k largest coefficients, with the methods of an SAE.

    Args:
        directions: orthonormal rows, [d_sae d_in].
        mean: what coefficients are measured from.
        k: how many of them a row keeps.
        kind: its name in reports.

    Raises:
        SaeError: a k that the basis cannot fill.
    """

    def __init__(
        self, directions: Float[Tensor, "d_sae d_in"], mean: Float[Tensor, " d_in"], *, k: int, kind: str
    ) -> None:
        d_sae, d_in = directions.shape
        if not 1 <= k <= d_sae:
            raise SaeError(f"k={k} coefficients cannot be taken from a basis of {d_sae}: expected 1 to {d_sae}.")
        self.cfg = BasisConfig(d_in=d_in, d_sae=d_sae, k=k, kind=kind)
        self.W_dec = directions.float()
        self.b_dec = mean.float()

    def encode(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_sae"]:
        """Coefficients, all but the k of largest magnitude set to zero."""
        coefficients = (x - self.b_dec) @ self.W_dec.T
        kept = coefficients.abs().topk(self.cfg.k, dim=-1).indices
        return torch.zeros_like(coefficients).scatter(-1, kept, coefficients.gather(-1, kept))

    def decode(self, feature_acts: Float[Tensor, "*batch d_sae"]) -> Float[Tensor, "*batch d_in"]:
        """Rows from coefficients."""
        return feature_acts @ self.W_dec + self.b_dec


def fit_baseline(name: BaselineName, moments: Moments, *, k: int, device: torch.device | str = "cpu") -> Basis:
    """The baseline called `name` ("neurons" or "pca"), keeping k coefficients a row.

    Raises:
        SaeError: another name, no rows, or more coefficients than dimensions.
    """
    if name not in BASELINES:
        raise SaeError(f"Unknown baseline {name!r}: expected one of {', '.join(BASELINES)}.")
    mean = moments.mean
    if name == "neurons":
        directions = torch.eye(moments.d_in)
    else:
        _, vectors = torch.linalg.eigh(moments.covariance)
        directions = vectors.T.flip(0)  # largest variance first
    return Basis(directions.to(device), mean.to(device), k=k, kind=name)
