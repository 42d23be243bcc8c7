"""The largest magnitude of each block: any length, any float, infinities and NaN included."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spikebit.kernels import largest_magnitude

LENGTHS = [1, 2, 15, 16, 32, 33, 48, 64, 100, 128, 1024]


def numbers(shape, dtype=np.float32):
    """Every bit pattern is as likely as any other, but those of infinity and NaN."""
    random = np.random.default_rng(0)
    integer = np.dtype(dtype).str.replace("f", "u")
    bits = random.integers(0, np.iinfo(integer).max, shape, integer, endpoint=True)
    x = bits.view(dtype)
    return np.where(np.isfinite(x), x, dtype(-1))


@pytest.mark.parametrize("k", LENGTHS)
def test_it_is_the_largest(k):
    x = numbers((37, k))
    x[5] = 0
    x[6] = np.ldexp(np.float32(1), -149)  # subnormal
    for finite in (False, True):
        found = jax.jit(lambda x, finite=finite: largest_magnitude(x, finite=finite))(x)
        np.testing.assert_array_equal(found, abs(x).max(-1))


@pytest.mark.parametrize("k", [1, 16, 100, 128])
@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan, -np.nan])
def test_infinities_and_nan_count_unless_only_finite_numbers_do(k, value):
    x = numbers((k, k))
    np.fill_diagonal(x, value)  # at every place of a block
    assert (np.isnan if np.isnan(value) else np.isposinf)(largest_magnitude(jnp.array(x))).all()
    expected = np.where(np.isfinite(x), abs(x), 0).max(-1)
    np.testing.assert_array_equal(largest_magnitude(jnp.array(x), finite=True), expected)


def test_nan_is_beyond_infinity():
    x = jnp.array([jnp.inf, jnp.nan, -jnp.inf, 1.0])
    assert jnp.isnan(largest_magnitude(x))


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_other_floats(dtype):
    x = numbers((3, 5, 96), dtype)
    with jax.enable_x64(True):
        found = largest_magnitude(jnp.array(x))
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, abs(x).max(-1))


def test_empty_blocks_and_single_ones():
    assert largest_magnitude(jnp.zeros((4, 0))).tolist() == [0, 0, 0, 0]
    assert largest_magnitude(jnp.zeros((0, 64))).shape == (0,)
    assert largest_magnitude(jnp.array([-2.0])) == 2


def test_vmap_over_any_axis():
    x = numbers((3, 4, 96))
    for axis in (0, 1):
        found = jax.vmap(largest_magnitude, in_axes=axis)(jnp.array(x))
        np.testing.assert_array_equal(found, np.moveaxis(abs(x).max(-1), axis, 0))
