"""The kernels of one decoding step against torch's ordinary operations."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from hooked_whisper.step_kernels import attend_step, linear_few_rows, n_blocks, takes_step


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    """With one thread and with several: kernels are chosen by it."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@given(st.integers(1, 20), st.integers(1, 3), st.booleans(), st.sampled_from([torch.float32, torch.float64]))
def test_few_rows_are_linear(batch: int, n_pos: int, with_bias: bool, dtype: torch.dtype) -> None:
    x, weight = torch.randn(batch, n_pos, 16, dtype=dtype), torch.randn(50, 16, dtype=dtype)
    bias = torch.randn(50, dtype=dtype) if with_bias else None
    with torch.no_grad():
        out = linear_few_rows(x, weight, bias)
    torch.testing.assert_close(out, F.linear(x, weight, bias), atol=1e-5, rtol=1e-5)


# Sizes on both sides of every threshold; 8191 is prime, 10373 x 5 the vocabulary's divisors in small.
@pytest.mark.parametrize("d_out", [512, 2048, 8191, 10370])
@pytest.mark.parametrize("n_rows", [1, 8, 9, 33])
@pytest.mark.parametrize("with_bias", [True, False])
@torch.no_grad()
def test_large_matrices_are_linear_whatever_kernel_serves_them(
    threads: int, d_out: int, n_rows: int, with_bias: bool
) -> None:
    x, weight = torch.randn(n_rows, 1, 512), torch.randn(d_out, 512) / 23
    bias = torch.randn(d_out) if with_bias else None
    wanted = F.linear(x.double(), weight.double(), None if bias is None else bias.double())
    out = linear_few_rows(x, weight, bias)
    assert out.shape == wanted.shape and out.dtype == torch.float32
    torch.testing.assert_close(out.double(), wanted, atol=1e-5, rtol=1e-5)
    part = weight[: d_out // 2]  # a view, as queries are of the fused matrix
    torch.testing.assert_close(linear_few_rows(x, part, None), F.linear(x, part), atol=1e-5, rtol=1e-5)


@given(st.integers(1, 60_000), st.sampled_from([384, 512, 1280]))
def test_blocks_are_equal(d_out: int, d_in: int) -> None:
    assert d_out % n_blocks(d_out, d_in) == 0
    assert n_blocks(2048, 512) == 8 and n_blocks(51865, 512) == 55


def test_few_rows_read_the_weights_as_they_are_now() -> None:
    """No packed copy is kept: an edit of the weights, even through `.data`, is obeyed."""
    x, weight = torch.randn(4, 1, 16), torch.nn.Parameter(torch.randn(50, 16))
    with torch.no_grad():
        before = linear_few_rows(x, weight, None)
        weight.data.mul_(2)
        torch.testing.assert_close(linear_few_rows(x, weight, None), 2 * before, atol=1e-5, rtol=1e-5)


def test_gradients_take_the_ordinary_path() -> None:
    x, weight = torch.randn(4, 1, 16, requires_grad=True), torch.randn(50, 16)
    linear_few_rows(x, weight, None).sum().backward()
    torch.testing.assert_close(x.grad, weight.sum(0).expand(4, 1, 16))
    q = torch.randn(1, 2, 1, 8)
    assert not takes_step(q)
    with torch.no_grad():
        assert takes_step(q) and not takes_step(torch.randn(1, 2, 3, 8))


@pytest.mark.parametrize("keys_innermost", [True, False])
def test_a_step_is_attention(keys_innermost: bool) -> None:
    q, k, v = torch.randn(3, 2, 1, 8), torch.randn(3, 2, 9, 8), torch.randn(3, 2, 9, 8)
    layout = (lambda x: x.transpose(2, 3).contiguous().transpose(2, 3)) if keys_innermost else (lambda x: x)
    torch.testing.assert_close(attend_step(q, layout(k), layout(v)), F.scaled_dot_product_attention(q, k, v))
