"""Power-of-two formats: their values, both nearest rules, stochastic underflow."""

import math
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spikebit.quant import quantize
from spikebit.quant.logarithmic import Logarithmic, from_name

LOG4 = Logarithmic(4)
FIXED = Logarithmic(4, lowest=-6)  # the same values, in a unit of their own


def test_log4_has_seven_magnitudes_and_zero():
    codes = jnp.arange(16, dtype=jnp.uint8)
    magnitudes = [0, *(2.0**k for k in range(-6, 1))]
    assert LOG4.decode(codes).tolist() == magnitudes + [-m for m in magnitudes]
    assert (LOG4.smallest, LOG4.max, LOG4.min, LOG4.steps) == (2**-6, 1, -1, 1)
    np.testing.assert_array_equal(LOG4.encode(LOG4.decode(codes)), codes)
    assert FIXED.steps is None
    np.testing.assert_array_equal(FIXED.values(), LOG4.values())


def test_eight_magnitudes_take_five_bits():
    fmt = Logarithmic(5, magnitudes=8)
    assert len(fmt.values()) == 2 * 8 + 1
    assert (fmt.smallest, fmt.max) == (2**-7, 1)
    behind = jnp.arange(9, 16, dtype=jnp.uint8)
    np.testing.assert_array_equal(fmt.decode(behind), 1)
    assert fmt.encode(jnp.array([1.9, 1e30, -np.inf])).tolist() == [8, 8, 16 + 8]


def edges(low, high):
    """Floats around each power of two and each kind of middle, and below and beyond all."""
    grid = 2.0 ** np.arange(low - 3, high + 3)
    x = np.concatenate([grid, 1.5 * grid, math.sqrt(2) * grid, 0.75 * grid]).astype(np.float32)
    x = np.concatenate([x, np.nextafter(x, np.float32(0)), np.nextafter(x, np.float32(np.inf))])
    return np.concatenate([x, -x])


def test_nearest_away_is_equation_14():
    """2^floor(log2(4 |x| / 3)), by exact fractions, from half the smallest magnitude on."""
    x = edges(-6, 0)
    got = np.asarray(FIXED.decode(FIXED.encode(jnp.asarray(x), rounding="nearest_away")))
    for a, q in zip(x.tolist(), got.tolist(), strict=True):
        r = Fraction(abs(a)) * 4 / 3
        k = math.frexp(abs(a))[1] - 1  # |x| in [2^k, 2^(k+1))
        k += r >= Fraction(2) ** (k + 1)
        expected = 0.0 if abs(a) < 2.0**-7 else 2.0 ** min(max(k, -6), 0)
        assert q == math.copysign(expected, a), a


@pytest.mark.parametrize(
    "fmt",
    [
        Logarithmic(4, lowest=-6, midpoint="geometric"),
        Logarithmic(8, lowest=-126, midpoint="geometric"),
    ],
    ids=str,
)
def test_geometric_rounds_the_logarithm(fmt):
    """Up from x^2 >= 2 * 4^k on, by exact fractions; also where k is that of a subnormal."""
    top = round(math.log2(fmt.max))
    x = edges(fmt.lowest, top)
    x = np.concatenate([x, np.float32([np.finfo(np.float32).max, np.inf, -np.inf])])
    got = np.asarray(jax.jit(lambda x: quantize(x, fmt))(x))
    for a, q in zip(x.tolist(), got.tolist(), strict=True):
        if math.isinf(a):
            assert q == math.copysign(fmt.max, a)
            continue
        k = math.frexp(a)[1] - 1
        k += Fraction(a) ** 2 >= 2 * Fraction(4) ** k
        expected = 0.0 if k < fmt.lowest else 2.0 ** min(k, top)
        assert q == math.copysign(expected, a), a


def test_the_two_rules_differ_between_their_middles():
    """On log-uniform numbers with the share log2(1.5) - 1/2."""
    n = 20_000
    x = jnp.asarray(2 ** np.random.default_rng(0).uniform(-6, 0, n), jnp.float32)
    geometric = Logarithmic(4, lowest=-6, midpoint="geometric")
    share = np.mean(np.asarray(quantize(x, FIXED) != quantize(x, geometric)))
    p = math.log2(1.5) - 0.5
    assert abs(share - p) < 4.5 * math.sqrt(p * (1 - p) / n)


@pytest.mark.parametrize("part", [1 / 64, 0.3, 0.9])
@pytest.mark.parametrize("midpoint", ["arithmetic", "geometric"])
def test_stochastic_underflow_is_unbiased(part, midpoint):
    """Below the smallest magnitude a, +-a with probability |x| / a, else 0."""
    n, fmt = 100_000, Logarithmic(4, lowest=-6, midpoint=midpoint)
    a = fmt.smallest
    x = jnp.asarray(np.tile(np.float32([part, -part]) * a, n))
    q = np.asarray(quantize(x, fmt, rounding="stochastic", key=jax.random.key(2))).reshape(n, 2)
    assert set(np.unique(q)) == {-a, 0, a}
    share = np.float32(part)
    for column, sign in ((0, 1), (1, -1)):
        assert np.all(sign * q[:, column] >= 0)
        up = (q[:, column] != 0).mean()
        assert abs(up - share) < 4.5 * math.sqrt(share * (1 - share) / n)


@pytest.mark.parametrize("fmt", [LOG4, Logarithmic(5, magnitudes=8), Logarithmic(8)], ids=str)
def test_the_largest_number_maps_to_itself(fmt):
    x = jax.random.normal(jax.random.key(0), (50, 100))
    for rounding in ("nearest_even", "stochastic"):
        q = quantize(x, fmt, rounding=rounding, key=jax.random.key(1), axis=-1)
        amax = jnp.max(jnp.abs(x), -1)
        np.testing.assert_array_equal(jnp.max(jnp.abs(q), -1), amax)
        ratio = np.abs(q) / np.asarray(amax, np.float64)[:, None]
        assert set(np.frexp(ratio[ratio > 0])[0]) == {0.5}  # powers of two


def test_names():
    for name, fmt in {
        "log4": LOG4,
        "log5_8": Logarithmic(5, magnitudes=8),
        "log4_from-6": FIXED,
        "log6_9_from3_geometric": Logarithmic(6, 9, 3, "geometric"),
    }.items():
        assert from_name(name) == fmt
        assert fmt.name == name
        assert hash(from_name(name)) == hash(fmt)
    assert from_name("log") is from_name("int4") is None


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Logarithmic(1), "bits must be from 2 to 8"),
        (lambda: Logarithmic(9), "bits must be from 2 to 8"),
        (lambda: Logarithmic(4, magnitudes=8), "4 bits hold from 1 to 7 magnitudes"),
        (lambda: Logarithmic(4, lowest=122), "lowest must be from -126 to 121"),
        (lambda: Logarithmic(4, lowest=-127), "lowest must be from -126 to 121"),
        (lambda: Logarithmic(4, midpoint="log"), "one of arithmetic, geometric"),
    ],
)
def test_impossible_formats(make, message):
    with pytest.raises(ValueError, match=message):
        make()
