"""Accumulators in a format against loops in ml_dtypes, and activations as layers."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from spikebit.quant import quantize
from spikebit.quant.training import Activation, accumulate, bounds, matmul


@pytest.mark.parametrize(("fmt", "dtype"), [("bfloat16", "bfloat16"), ("e5m2", "float8_e5m2")])
@pytest.mark.parametrize("chunk", [1, 4, 50])
def test_a_sum_is_the_loop_over_chunks(fmt, dtype, chunk):
    x = np.random.default_rng(0).integers(-8, 9, (3, 50)).astype(np.float32) / 8  # sums are exact
    total = np.zeros(3, np.float32)
    for i in range(0, 50, chunk):
        total = (total + x[:, i : i + chunk].sum(1)).astype(getattr(ml_dtypes, dtype))
        total = total.astype(np.float32)
    np.testing.assert_array_equal(accumulate(jnp.asarray(x), fmt, chunk=chunk), total)
    jitted = jax.jit(lambda x: accumulate(x, fmt, chunk=chunk))
    np.testing.assert_array_equal(jitted(jnp.asarray(x)), total)


def test_a_product_is_the_sum_of_its_products():
    rng = np.random.default_rng(1)
    a, b = (rng.integers(-8, 9, s).astype(np.float32) / 8 for s in ((2, 3, 20), (20, 4)))
    products = jnp.asarray(np.einsum("...n,no->...on", a, b))
    got = matmul(jnp.asarray(a), jnp.asarray(b), "e4m3fn", chunk=8)
    np.testing.assert_array_equal(got, accumulate(products, "e4m3fn", chunk=8))
    exact = matmul(jnp.asarray(a), jnp.asarray(b), "float32", chunk=8)
    np.testing.assert_array_equal(exact, a @ b)


def test_chunks_keep_the_error_of_long_sums_small():
    rng = np.random.default_rng(2)
    x = jnp.asarray(rng.uniform(0.5, 1, (20, 96)), jnp.float32)
    exact = np.asarray(x, np.float64).sum(1)
    worst = {}
    for chunk in (1, 12):
        got = np.asarray(accumulate(x, "bfloat16", chunk=chunk), np.float64)
        worst[chunk] = (abs(got - exact) / exact).max()
        assert 0 < worst[chunk] <= bounds.dot_error("bfloat16", 96 // chunk) + 12 * 2.0**-24
    assert worst[12] < worst[1]


def test_stochastic_accumulators_have_the_right_mean():
    keys = jax.random.split(jax.random.key(0), 2000)
    x = jnp.full(30, 0.01)

    def total(key):
        return accumulate(x, "fixed8.4", rounding="stochastic", key=key)

    got = np.asarray(jax.vmap(total)(keys))
    assert accumulate(x, "fixed8.4") == 0  # to nearest, every term is lost
    assert abs(got.mean() - 0.3) < 4.5 * np.sqrt(30 * 0.01 * (1 / 16 - 0.01) / 2000)


def test_the_derivative_is_that_of_the_exact_sum():
    x = jnp.linspace(0, 1, 10)
    np.testing.assert_array_equal(jax.grad(lambda x: accumulate(x, "e4m3fn", chunk=3))(x), 1)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda x: accumulate(x, "bfloat16", chunk=0), "chunk is 0"),
        (lambda x: accumulate(x, "int8"), "int8.*scale"),
        (lambda x: accumulate(x, "bfloat16", rounding="stochastic"), "key=None"),
        (lambda x: matmul(x, x[:, None], "nf4"), "nf4"),
        (lambda x: accumulate(x.at[1].set(jnp.nan), "fixed8.4"), "accumulate.*holds 1 NaN"),
        (lambda x: matmul(x, x[:, None].at[1].set(jnp.nan), "fixed8.4"), "matmul.*holds 1 NaN"),
        (
            lambda x: Activation("e5m2", "stochastic"),
            r"e5m2\): rounding is 'stochastic'",
        ),
        (lambda x: Activation("brain16"), "brain16"),
    ],
)
def test_what_is_wrong_is_named(call, said):
    with pytest.raises(ValueError, match=said):
        call(jnp.ones(4))


def test_an_activation_rounds_and_passes_the_gradient():
    layer, x = Activation("fixed6.3", "toward_zero"), jnp.array([0.2, -1.3, 9.0])
    np.testing.assert_array_equal(layer(x), quantize(x, "fixed6.3", rounding="toward_zero"))
    np.testing.assert_array_equal(layer(x), [0.125, -1.25, 3.875])
    np.testing.assert_array_equal(jax.grad(lambda x: layer(x).sum())(x), [1, 1, 0])
    assert layer == Activation("fixed6.3", "toward_zero")
