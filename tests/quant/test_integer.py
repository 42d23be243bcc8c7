"""Integers with a scale and fixed point, against the formulas in numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spikebit.quant import FixedPoint, Integer, parse, quantize
from spikebit.quant.grid import check_whole

FIXED = ["fixed8.4", "fixed12.6", "fixed16.15", "fixed8.-3", "fixed6.20", "fixed1.0"]
FIXED += ["fixed8.4_symmetric"]


def fixed_point(x, wl, fl, symmetric, overflow):
    """K 2^-fl with k from the rounded x 2^fl, by float64 and Python integers."""
    with np.errstate(over="ignore"):
        k = np.rint(x.astype(np.float64) * 2.0**fl)
    if overflow == "wrap":
        k = [(int(a) + 2 ** (wl - 1)) % 2**wl - 2 ** (wl - 1) if np.isfinite(a) else 0 for a in k]
    else:
        k = np.clip(k, -(2 ** (wl - 1)) + symmetric, 2 ** (wl - 1) - 1)
    return np.array(k, np.float64) * 2.0**-fl


def fixed_points(wl, fl):
    """All half steps of the range and beyond, their float32 neighbours, and huge numbers."""
    half = np.arange(-(2**wl) - 5, 2**wl + 6, 1 if wl < 14 else 61) * 0.5
    x = np.concatenate([half, half + 2.0**wl, half - 3 * 2.0**wl]) * 2.0**-fl
    x = x.astype(np.float32)
    big = np.random.default_rng(0).normal(size=500) * np.logspace(0, 36, 500)
    x = np.concatenate([x, np.nextafter(x, np.inf), np.nextafter(x, -np.inf), big, [1e-40, -0.0]])
    return np.concatenate([x, [np.inf, -np.inf]]).astype(np.float32)


@pytest.mark.parametrize(
    ("name", "overflow"),
    [("fixed8.4", "spec"), *((name, o) for name in FIXED for o in parse(name).overflows[::2])],
)
def test_fixed_point_equals_the_formula(name, overflow):
    fmt = parse(name)
    x = fixed_points(fmt.word_length, fmt.fraction_length)
    settings = (fmt.word_length, fmt.fraction_length, fmt.symmetric)
    expected = fixed_point(x, *settings, overflow)
    got = jax.jit(lambda x: quantize(x, fmt, overflow=overflow))(x)
    np.testing.assert_array_equal(got, expected)
    codes = np.asarray(fmt.encode(jnp.asarray(x), overflow=overflow))
    k = expected * 2.0**fmt.fraction_length
    np.testing.assert_array_equal(codes, (k.astype(np.int64) % 2**fmt.bits).astype(fmt.code_dtype))
    with jax.enable_x64(True):
        wide = np.concatenate([x, np.nextafter(x.astype(float), 0)])  # float64 steps beside ties
        got = quantize(jnp.asarray(wide), fmt, overflow=overflow)
        np.testing.assert_array_equal(got, fixed_point(wide, *settings, overflow))


@pytest.mark.parametrize(
    "name", [*FIXED, "int2", "int4", "int8", "int16", "int4_half", "int1_full"]
)
def test_codes_are_twos_complement(name):
    fmt = parse(name)
    k = np.arange(-(2 ** (fmt.bits - 1)), 2 ** (fmt.bits - 1))
    step = 2.0 ** -getattr(fmt, "fraction_length", 0)
    codes = jnp.asarray((k % 2**fmt.bits).astype(fmt.code_dtype))
    values = fmt.decode(codes)
    np.testing.assert_array_equal(values, k * step)
    used = k * step >= fmt.min  # all but the most negative one, where that is left out
    np.testing.assert_array_equal(np.asarray(fmt.encode(values))[used], np.asarray(codes)[used])
    v = (k * step)[used]
    assert (fmt.min, fmt.max, fmt.smallest) == (v[0], v[-1], step)
    np.testing.assert_array_equal(fmt.values(), v)


@pytest.mark.parametrize("bits", [2, 4, 8, 16])
@pytest.mark.parametrize("span", ["narrow", "half", "full"])
def test_integer_equals_the_formula_bit_for_bit(bits, span):
    """S = amax / n and x / s in float32, as numpy divides; also with an addition fused behind."""
    fmt = Integer(bits, span)
    n = np.float32({"narrow": 2 ** (bits - 1) - 1, "half": 2 ** (bits - 1) - 0.5}.get(span, 0))
    n = n or np.float32(2 ** (bits - 1))
    low, high = -(2 ** (bits - 1)) + (span == "narrow"), 2 ** (bits - 1) - 1

    @jax.jit
    def both(x, y):
        q = quantize(x, fmt)
        return q, q + y

    for seed in range(5):
        rng = np.random.default_rng(seed)
        x, y = rng.normal(size=(2, 2000)).astype(np.float32)
        s = np.abs(x).max() / n
        expected = np.clip(np.rint(x / s), low, high) * s
        assert expected.dtype == np.float32
        q, q_plus_y = both(x, y)
        np.testing.assert_array_equal(q, expected)
        np.testing.assert_array_equal(q_plus_y, expected + y)


def test_integer_edges():
    assert parse("int4").decode(jnp.array([0xF5, 0x0F], jnp.uint8)).tolist() == [5, -1]
    assert not np.asarray(quantize(jnp.zeros(4), "int8")).any()
    assert quantize(jnp.zeros((0,)), "int8").shape == (0,)
    # the scale comes from the finite numbers, and infinities saturate
    got = quantize(jnp.array([1.0, -2.0, jnp.inf, -jnp.inf]), "int3")
    np.testing.assert_array_equal(
        got, np.float32(2) / np.float32(3) * np.array([2, -3, 3, -3], "f4")
    )
    # 16-bit inputs: the arithmetic is float32, the result is rounded once
    x = np.random.default_rng(0).normal(size=300).astype(np.float16)
    s = np.float32(np.abs(x).max()) / np.float32(127)
    expected = (np.clip(np.rint(x.astype(np.float32) / s), -127, 127) * s).astype(np.float16)
    np.testing.assert_array_equal(quantize(jnp.asarray(x), "int8"), expected)
    # ... and is rounded even where a compiler could skip that, as it is only widened again
    widened = jax.jit(lambda x: quantize(x, "int8").astype(jnp.float32))(x)
    np.testing.assert_array_equal(widened, expected.astype(np.float32))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Integer(0), "bits must be from 2 to 16"),
        (lambda: check_whole("X", bits="4"), "X: bits must be a whole number; got '4'"),
        (lambda: check_whole("X", bits=True), "X: bits must be a whole number; got True"),
        (lambda: Integer(1), "bits must be from 2 to 16"),
        (lambda: Integer(17, "full"), "bits must be from 1 to 16"),
        (lambda: Integer(8, "wide"), "one of narrow, full, half"),
        (lambda: FixedPoint(0, 0), "word_length must be from 1"),
        (lambda: FixedPoint(1, 0, symmetric=True), "word_length must be from 2"),
        (lambda: FixedPoint(17, 4), "word_length must be from 1 to 16"),
        (lambda: FixedPoint(8, 65), "fraction_length from -64 to 64"),
        (lambda: quantize(jnp.ones(2), "fixed8.4_symmetric", overflow="wrap"), "knows saturate"),
        (lambda: quantize(jnp.ones(2), "int8", overflow="wrap"), "knows saturate, spec"),
    ],
)
def test_impossible_formats(make, message):
    with pytest.raises(ValueError, match=message):
        make()
