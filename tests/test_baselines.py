"""The bases that an SAE is measured against: exact at full rank, best of their kind below it."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hooked_whisper import SaeError
from hooked_whisper.saes.baselines import Basis, Moments, fit_baseline


def correlated(n: int = 400, d: int = 12) -> torch.Tensor:
    """Rows about a mean far from zero, with very unequal variances in directions between the axes."""
    turn, _ = torch.linalg.qr(torch.randn(d, d))
    return torch.randn(n, d) * torch.logspace(1, -2, d) @ turn + 5 * torch.randn(d)


def moments(rows: torch.Tensor, parts: int = 3) -> Moments:
    found = Moments.none(rows[0].numel())
    for part in rows.chunk(parts):
        found.add(part)
    return found


def fvu(basis: Basis, rows: torch.Tensor) -> float:
    out = basis.decode(basis.encode(rows))
    return float((rows - out).square().sum() / (rows - rows.mean(0)).square().sum())


def test_moments_of_parts_are_those_of_the_whole() -> None:
    rows = correlated().double()
    found = moments(rows)
    torch.testing.assert_close(found.mean, rows.mean(0))
    torch.testing.assert_close(found.covariance, torch.cov(rows.T, correction=0))


def test_heads_are_laid_side_by_side() -> None:
    rows = torch.randn(7, 3, 4)
    torch.testing.assert_close(moments(rows).mean, rows.flatten(1).double().mean(0))


@pytest.mark.parametrize("name", ["neurons", "pca"])
def test_all_coefficients_give_everything_back(name: str) -> None:
    rows = correlated()
    assert fvu(fit_baseline(name, moments(rows), k=12), rows) < 1e-9


def test_neurons_keep_those_furthest_from_the_mean() -> None:
    basis = fit_baseline("neurons", moments(torch.tensor([[0.0, 10.0, -4.0], [2.0, 10.0, -2.0]])), k=1)
    row = torch.tensor([[1.5, 10.2, -5.0]])  # 0.5, 0.2 and -2 from the mean (1, 10, -3)
    torch.testing.assert_close(basis.encode(row), torch.tensor([[0.0, 0.0, -2.0]]))
    torch.testing.assert_close(basis.decode(basis.encode(row)), torch.tensor([[1.0, 10.0, -5.0]]))


def test_pca_explains_what_its_eigenvalues_say() -> None:
    rows = correlated()
    found = moments(rows)
    basis = fit_baseline("pca", found, k=4)
    variances = torch.linalg.eigvalsh(found.covariance)
    torch.testing.assert_close(basis.W_dec @ basis.W_dec.T, torch.eye(12), atol=1e-5, rtol=0)
    leading = float(variances[:-4].sum() / variances.sum())  # what the four leading ones leave
    # Choosing for each row is at least as good, and here, where variances are far apart, hardly better.
    assert 0.5 * leading < fvu(basis, rows) <= leading
    assert fvu(basis, rows) < fvu(fit_baseline("neurons", found, k=4), rows)


@given(st.integers(1, 8), st.integers(0, 1000))
def test_no_other_choice_of_k_does_better(k: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(6, 8, generator=generator)
    basis = fit_baseline("pca", moments(rows), k=k)
    coefficients = (rows - basis.b_dec) @ basis.W_dec.T
    other = torch.stack([torch.randperm(8, generator=generator)[:k] for _ in rows])
    chosen = torch.zeros_like(coefficients).scatter(-1, other, coefficients.gather(-1, other))
    best = (rows - basis.decode(basis.encode(rows))).square().sum(-1)
    assert (best <= (rows - basis.decode(chosen)).square().sum(-1) + 1e-4).all()
    assert ((basis.encode(rows) != 0).sum(-1) <= k).all()


def test_impossible_settings_are_refused() -> None:
    found = moments(torch.randn(5, 3))
    with pytest.raises(SaeError, match="k=4 coefficients cannot be taken from a basis of 3: expected 1 to 3"):
        fit_baseline("pca", found, k=4)
    with pytest.raises(SaeError, match="Unknown baseline 'ica': expected one of neurons, pca"):
        fit_baseline("ica", found, k=1)  # type: ignore[arg-type]
    with pytest.raises(SaeError, match="No rows to take a mean of"):
        _ = Moments.none(3).mean
