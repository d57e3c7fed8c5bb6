"""Whether two SAEs found the same latents: matching by decoder direction and by when latents fire.

Two SAEs trained alike but for the seed share only part of their latents (Paulo & Belrose 2025, "Sparse Autoencoders
Trained on the Same Data Learn Different Features", arXiv:2501.16615). A latent may be matched to its nearest one, which
several may then share (argmax), or one to one so that the sum of cosines is largest (Hungarian): the first is what is
found again at all, the second what is found again as often as it was.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hooked_whisper.errors import MissingExtraError, SaeError
from hooked_whisper.saes.coding import SparseCoder, check_coder, code

FOUND_AGAIN = 0.7  # cosine from which a latent counts as found again, as in Paulo & Belrose 2025
_BLOCK = 1024  # latents of `a` that are compared with all of `b` at a time


@dataclass(frozen=True)
class Matching:
    """One latent of `b` for latents of `a`, and how alike they are.

    Attributes:
        partner: for each latent of `a`, its latent of `b`; -1 where one to one left none over.
        cosine: of their decoder directions; 0 without partner.
        iou: rows on which both fire over rows on which either does; None where no rows were given.
    """

    partner: Int[Tensor, " d_sae"]
    cosine: Float[Tensor, " d_sae"]
    iou: Float[Tensor, " d_sae"] | None = None

    def found(self, at_least: float = FOUND_AGAIN, among: Bool[Tensor, " d_sae"] | None = None) -> float:
        """Share of latents whose partner has a cosine of `at_least`, among all or some."""
        return _share(self.cosine >= at_least, among)


@dataclass(frozen=True)
class SaeMatch:
    """Two SAEs, `a` and `b`, latent by latent.

    Attributes:
        nearest: each latent of `a` with the latent of `b` of largest cosine.
        nearest_back: each latent of `b` with its nearest one of `a`.
        one_to_one: the assignment with the largest sum of cosines (Hungarian); None where it was not asked for.
        alive, alive_back: which latents of `a` and of `b` fire on the rows; all True without rows.
        best_iou: for each latent of `a` the largest IoU with any of `b`, whatever their directions; None without rows.
        n_rows: rows that were compared.
    """

    nearest: Matching
    nearest_back: Matching
    one_to_one: Matching | None
    alive: Bool[Tensor, " d_sae_a"]
    alive_back: Bool[Tensor, " d_sae_b"]
    best_iou: Float[Tensor, " d_sae_a"] | None
    n_rows: int

    def summary(self) -> StabilitySummary:
        """The figures that one reports, over the latents that fire."""
        alive = self.alive
        chosen = self.one_to_one
        best = self.best_iou
        iou = chosen.iou if chosen is not None else None
        mutual = self.nearest_back.partner[self.nearest.partner] == torch.arange(len(alive))
        return StabilitySummary(
            n_rows=self.n_rows,
            n_alive_a=int(alive.sum()),
            n_alive_b=int(self.alive_back.sum()),
            mean_nearest_cosine=_mean(self.nearest.cosine, alive),
            mean_nearest_cosine_back=_mean(self.nearest_back.cosine, self.alive_back),
            mean_one_to_one_cosine=_mean(chosen.cosine, alive) if chosen is not None else None,
            found_again_nearest=self.nearest.found(among=alive),
            found_again_nearest_back=self.nearest_back.found(among=self.alive_back),
            found_again_one_to_one=chosen.found(among=alive) if chosen is not None else None,
            mutually_nearest=_share(mutual, alive),
            mean_best_iou=_mean(best, alive) if best is not None else None,
            mean_one_to_one_iou=_mean(iou, alive) if iou is not None else None,
            fire_together=_share(best >= 0.5, alive) if best is not None else None,
        )


@dataclass(frozen=True)
class StabilitySummary:
    """Shares and means over the latents that fire on the rows (over all without rows).

    Attributes:
        n_rows, n_alive_a, n_alive_b: rows compared, and latents of each SAE that fire on them.
        mean_nearest_cosine, mean_nearest_cosine_back: of latents of `a` (of `b`) with the nearest of the other.
        mean_one_to_one_cosine: under the one-to-one assignment.
        found_again_nearest, found_again_nearest_back, found_again_one_to_one: share with a cosine of 0.7 or more.
        mutually_nearest: share of latents of `a` whose nearest one's nearest one they are.
        mean_best_iou: of latents of `a` with whichever latent of `b` fires most alike.
        mean_one_to_one_iou: with the latent of `b` assigned by direction.
        fire_together: share of latents of `a` with an IoU of 0.5 or more with some latent of `b`.
    """

    n_rows: int
    n_alive_a: int
    n_alive_b: int
    mean_nearest_cosine: float
    mean_nearest_cosine_back: float
    mean_one_to_one_cosine: float | None
    found_again_nearest: float
    found_again_nearest_back: float
    found_again_one_to_one: float | None
    mutually_nearest: float
    mean_best_iou: float | None
    mean_one_to_one_iou: float | None
    fire_together: float | None

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


@torch.no_grad()
def match_saes(
    a: SparseCoder,
    b: SparseCoder,
    rows: Float[Tensor, "row *width"] | Iterable[Tensor] | None = None,
    *,
    one_to_one: bool = True,
) -> SaeMatch:
    """Matches the latents of two SAEs of one hook, by decoder cosine and, on `rows`, by when they fire.

    Args:
        rows: activations of the hook, [row *width], in one tensor or in several (say, one a clip).
        one_to_one: also find the best one-to-one assignment. It holds d_sae_a x d_sae_b numbers in memory (2 GB for two
            of 16,000) and takes about half a minute for that; switch it off for much larger dictionaries.

    Raises:
        SaeError: SAEs of different widths, a training SAE whose latents depend on the batch, or no rows in `rows`.
        MissingExtraError: scipy is not installed.
    """
    for sae in (a, b):
        check_coder(sae)
    if a.cfg.d_in != b.cfg.d_in or a.W_dec.shape[1] != b.W_dec.shape[1]:
        raise SaeError(
            f"Two SAEs of different widths cannot be matched: {a.cfg.d_in} to {a.W_dec.shape[1]} and {b.cfg.d_in} to "
            f"{b.W_dec.shape[1]}. Match SAEs of one hook of one model."
        )
    directions = [torch.nn.functional.normalize(sae.W_dec.detach().float().cpu(), dim=-1) for sae in (a, b)]
    nearest, nearest_back = _nearest(*directions), _nearest(*reversed(directions))
    assigned = _assign(*directions) if one_to_one else None
    if rows is None:
        alive, alive_back = (torch.ones(sae.cfg.d_sae, dtype=torch.bool) for sae in (a, b))
        return SaeMatch(nearest, nearest_back, assigned, alive, alive_back, None, 0)

    fired, fired_back = _firing(a, b, [rows] if isinstance(rows, Tensor) else rows)
    alive, alive_back = (torch.from_numpy(np.asarray(f.sum(0)).ravel() > 0) for f in (fired, fired_back))
    best, ious = _overlaps(fired, fired_back, [m.partner for m in (nearest, assigned) if m is not None])
    (_, [iou_back]) = _overlaps(fired_back, fired, [nearest_back.partner])
    return SaeMatch(
        nearest=Matching(nearest.partner, nearest.cosine, ious[0]),
        nearest_back=Matching(nearest_back.partner, nearest_back.cosine, iou_back),
        one_to_one=None if assigned is None else Matching(assigned.partner, assigned.cosine, ious[1]),
        alive=alive,
        alive_back=alive_back,
        best_iou=best,
        n_rows=fired.shape[0],
    )


def _share(wanted: Bool[Tensor, " d_sae"], among: Bool[Tensor, " d_sae"] | None) -> float:
    return _mean(wanted.double(), torch.ones_like(wanted) if among is None else among)


def _mean(values: Tensor, among: Bool[Tensor, " d_sae"]) -> float:
    return float(values[among].double().mean()) if bool(among.any()) else 0.0


def _nearest(a: Float[Tensor, "d_sae_a d_out"], b: Float[Tensor, "d_sae_b d_out"]) -> Matching:
    found = [(part @ b.T).max(dim=-1) for part in a.split(_BLOCK)]
    return Matching(torch.cat([f.indices for f in found]), torch.cat([f.values for f in found]))


def _assign(a: Float[Tensor, "d_sae_a d_out"], b: Float[Tensor, "d_sae_b d_out"]) -> Matching:
    _need_scipy()
    from scipy.optimize import linear_sum_assignment

    cosines = (a @ b.T).numpy()
    left, right = linear_sum_assignment(cosines, maximize=True)
    partner = torch.full((len(a),), -1)
    partner[torch.from_numpy(left)] = torch.from_numpy(right)
    cosine = torch.zeros(len(a))
    cosine[torch.from_numpy(left)] = torch.from_numpy(cosines[left, right])
    return Matching(partner, cosine)


def _need_scipy() -> None:
    try:
        import scipy.sparse  # noqa: F401
    except ImportError as error:
        raise MissingExtraError(
            "Matching SAEs needs scipy, which cannot be imported: pip install 'hooked-whisper[analysis]'."
        ) from error


def _firing(a: SparseCoder, b: SparseCoder, parts: Iterable[Tensor]) -> tuple[Any, Any]:
    """Which latents of each SAE fire on each row, as two scipy CSR matrices [row d_sae] of ones."""
    _need_scipy()
    from scipy import sparse

    found: list[list[Any]] = [[], []]
    for rows in parts:
        for sae, where in ((a, found[0]), (b, found[1])):
            for _, acts, _ in code(sae, rows):
                fired = (acts.to_dense() if acts.is_sparse else acts) != 0
                row, latent = fired.cpu().nonzero(as_tuple=True)
                ones = np.ones(len(row), dtype=np.float32)
                where.append(sparse.csr_matrix((ones, (row.numpy(), latent.numpy())), shape=tuple(fired.shape)))
    if not found[0]:
        raise SaeError("No rows to match by: pass activations [row d_in], or leave rows out to go by direction alone.")
    return sparse.vstack(found[0]).tocsr(), sparse.vstack(found[1]).tocsr()


def _overlaps(
    a: Any, b: Any, partners: list[Int[Tensor, " d_sae_a"]]
) -> tuple[Float[Tensor, " d_sae_a"], list[Float[Tensor, " d_sae_a"]]]:
    """Each latent's largest IoU with any of the other SAE, and its IoU with each of its partners."""
    of_a, of_b = (np.asarray(fired.sum(0), dtype=np.float64).ravel() for fired in (a, b))
    best = np.zeros(a.shape[1])
    ious = [np.zeros(a.shape[1]) for _ in partners]
    by_latent = a.T.tocsr()
    for at in range(0, a.shape[1], _BLOCK):
        both = (by_latent[at : at + _BLOCK] @ b).tocoo()
        left, right, together = both.row + at, both.col, both.data.astype(np.float64)
        iou = together / (of_a[left] + of_b[right] - together)
        np.maximum.at(best, left, iou)
        for partner, where in zip(partners, ious, strict=True):
            chosen = partner.numpy()[left] == right
            where[left[chosen]] = iou[chosen]
    return torch.from_numpy(best).float(), [torch.from_numpy(where).float() for where in ious]
