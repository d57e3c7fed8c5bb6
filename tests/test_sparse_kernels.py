"""The operations on sparse codes against dense products."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hooked_whisper.errors import ConfigError
from hooked_whisper.saes import sparse_kernels
from hooked_whisper.saes.sparse_kernels import Codes, TorchKernels, kernels_for

KERNELS = TorchKernels()


def random_codes(n_rows: int, n_latents: int, most: int, seed: int) -> tuple[Codes, Tensor, Tensor]:
    """Codes with 0 to `most` latents a row, their values, and the same as a dense matrix."""
    generator = torch.Generator().manual_seed(seed)
    dense = torch.zeros(n_rows, n_latents, dtype=torch.float64)
    latents, counts = [], []
    for row in range(n_rows):
        chosen = torch.randperm(n_latents, generator=generator)[: int(torch.randint(most + 1, (), generator=generator))]
        dense[row, chosen] = torch.randn(len(chosen), generator=generator, dtype=torch.float64)
        latents.append(chosen)
        counts.append(len(chosen))
    flat = torch.cat(latents)
    offsets = torch.tensor([0, *counts]).cumsum(0)
    codes = Codes(flat, offsets, n_latents)
    return codes, dense[codes.rows, flat], dense


@settings(deadline=None)
@given(st.integers(1, 9), st.integers(1, 12), st.integers(1, 6), st.integers(0, 99))
def test_operations_are_dense_products(n_rows: int, n_latents: int, width: int, seed: int) -> None:
    codes, values, dense = random_codes(n_rows, n_latents, n_latents, seed)
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(n_latents, width, generator=generator, dtype=torch.float64)
    rows = torch.randn(n_rows, width, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(KERNELS.weighted_rows(values, weight, codes), dense @ weight)
    torch.testing.assert_close(KERNELS.row_dots(rows, weight, codes), (rows @ weight.T)[codes.rows, codes.latents])
    torch.testing.assert_close(KERNELS.transposed_sums(values, rows, codes), dense.T @ rows)


def test_pairs_by_latent() -> None:
    codes, values, dense = random_codes(7, 5, 4, 1)
    assert codes.n_rows == 7
    order = codes.by_latent
    assert torch.equal(order.latents, codes.latents[order.order])
    for latent in range(5):
        mine = slice(int(order.offsets[latent]), int(order.offsets[latent + 1]))
        assert torch.equal(order.rows[mine], dense[:, latent].nonzero()[:, 0])
        assert torch.equal(values[order.order[mine]], dense[order.rows[mine], latent])


def test_the_backend_is_chosen_openly(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert isinstance(kernels_for(cpu, "auto"), TorchKernels)
    assert isinstance(kernels_for(cuda, "torch"), TorchKernels)
    with pytest.raises(ConfigError, match="the SAE is on cpu: choose kernels='torch'"):
        kernels_for(cpu, "triton")
    with pytest.raises(ConfigError, match="Unknown kernels 'cuda': expected 'auto', 'torch' or 'triton'"):
        kernels_for(cpu, "cuda")
    monkeypatch.setattr(sparse_kernels, "has_triton", lambda: False)
    assert isinstance(kernels_for(cuda, "auto"), TorchKernels)
    with pytest.raises(ConfigError, match="triton is not installed"):
        kernels_for(cuda, "triton")
