"""Rows as small integers: every path has the bits of the reference, and those of `quantize`."""

import functools

import elementwise_cases as cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spikebit.kernels.quantize_rows import Codes, quantize_rows, rows_reference
from spikebit.quant import quantize


def hard_rows(n):
    """Ties, numbers that round over the edge, subnormal ones, zeros, and what is not finite."""
    x = np.random.default_rng(3).standard_normal((9, n)).astype(np.float32)
    x[1] = np.random.default_rng(4).integers(-254, 255, n) / np.float32(2)
    x[1, 0] = 127
    x[2] *= np.float32(1e-37)
    x[3] = 0
    x[4] = np.float32(3e38) * np.sign(x[4])
    x[5, n // 2] = np.inf
    x[6, n - 1] = np.nan
    x[7] = np.float32(1e-42)
    x[8] = np.float32(0.1) * np.arange(n)
    return jnp.asarray(x)


@pytest.mark.parametrize(("bits", "groups"), [(8, 1), (8, 5), (4, 10), (2, 1), (5, 300)])
def test_the_kernel_has_the_bits_of_the_reference(bits, groups):
    x = hard_rows(300)
    found = jax.jit(lambda x: quantize_rows(x, bits, group=300 // groups))(x)
    expected = jax.jit(functools.partial(rows_reference, Codes(bits, groups)))(x)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(("m", "n", "bits", "group"), cases.QUANTIZED)
def test_codes_are_the_nearest(m, n, bits, group):
    x = cases.rows(m, n)
    found = jax.jit(lambda x: quantize_rows(x, bits, group=group))(x)
    cases.is_quantized(*map(np.asarray, found), x.astype(np.float64), bits, group)


def test_products_with_the_scale_are_what_quantize_gives():
    x = hard_rows(64)[jnp.array([0, 1, 2, 3, 8])]
    codes, scale, _ = quantize_rows(x, 8, group=16)
    scale = jnp.repeat(scale, 16, axis=1)
    expected = quantize(x, "int8", axis=1, block=16)
    np.testing.assert_array_equal(codes.astype(jnp.float32) * scale, expected)


def test_what_is_not_finite_makes_the_scale_nan_and_the_codes_zero():
    codes, scale, sums = quantize_rows(hard_rows(32), 8, group=16)
    bad = np.isnan(np.asarray(scale))
    assert np.argwhere(bad).tolist() == [[5, 1], [6, 1]]
    assert not np.asarray(codes).reshape(9, 2, 16)[bad].any()
    assert not np.asarray(sums)[bad].any()


def test_half_precision_vmap_and_nothing():
    x = hard_rows(32)[:3].astype(jnp.bfloat16)
    one = jax.vmap(quantize_rows)(x)
    for a, b in zip(one, quantize_rows(x.astype(jnp.float32)), strict=True):
        assert (a == b).all()
    assert [a.shape for a in quantize_rows(jnp.zeros((2, 0)))] == [(2, 0), (2, 1), (2, 1)]


@pytest.mark.parametrize(
    ("x", "bits", "group", "message"),
    [
        (np.ones((2, 6)), 8, 4, "group=4.*6 numbers"),
        (np.ones((2, 6)), 1, None, "bits=1.*2 to 8"),
        (np.ones((2, 6), int), 8, None, "x is int32"),
        (np.float32(3), 8, None, r"shape \(\)"),
    ],
)
def test_what_does_not_fit_is_said(x, bits, group, message):
    with pytest.raises(ValueError, match=message):
        quantize_rows(x, bits, group=group)
