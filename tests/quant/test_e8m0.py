"""Power-of-two scales: the format against ml_dtypes, the four modes and the products exactly."""

import math
from fractions import Fraction

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from spikebit.kernels import largest_magnitude
from spikebit.quant import parse
from spikebit.quant.e8m0 import (
    E8M0,
    SCALE_MODES,
    from_name,
    scale_codes,
    times_power,
)

FMT = E8M0()
TINY, MOST = 2.0**-149, float(np.finfo(np.float32).max)
DETERMINISTIC = ["nearest_even", "nearest_away", "toward_zero", "up", "down"]


def binades(parts):
    """Each power of two of float32, times each of the parts, and the floats beside them."""
    x = np.outer(2.0 ** np.arange(-149, 128), parts).ravel()
    x = x[x <= MOST].astype(np.float32)
    x = np.concatenate([x, np.nextafter(x, np.float32(0)), np.nextafter(x, np.float32(np.inf))])
    return np.unique(x[(x > 0) & np.isfinite(x)])


def test_codes_decode_to_the_package_values_and_encode_back():
    codes = np.arange(256).astype(np.uint8)
    expected = codes.view(ml_dtypes.float8_e8m0fnu).astype(np.float32)
    values = FMT.decode(jnp.asarray(codes))
    np.testing.assert_array_equal(np.asarray(values)[:255].view("u4"), expected[:255].view("u4"))
    assert np.isnan(values[255])
    for overflow in ("saturate", "spec"):
        np.testing.assert_array_equal(FMT.encode(values, overflow=overflow), codes)
    assert (FMT.min, FMT.smallest, FMT.max) == (expected[0], expected[0], expected[254])
    np.testing.assert_array_equal(FMT.values(), expected[:255])
    assert from_name("e8m0fnu") == FMT
    assert from_name("e8m0") is None


def test_halves_go_up_as_in_the_package():
    """Subnormal numbers aside: the package sends all that lies above 2^-127 to 2^-126."""
    x = binades([1, 1.25, 1.5, 1.75])
    x = np.concatenate([x[x >= 2.0**-126], [0, -0.0, -1, -3e38, np.inf, -np.inf, np.nan]])
    x = x.astype(np.float32)
    with np.errstate(invalid="ignore", over="ignore"):
        expected = x.astype(ml_dtypes.float8_e8m0fnu).view(np.uint8)
    got = FMT.encode(jnp.asarray(x), rounding="nearest_away", overflow="spec")
    np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("rounding", DETERMINISTIC)
@pytest.mark.parametrize("overflow", ["saturate", "spec"])
def test_rounding_by_exact_fractions(rounding, overflow):
    x = binades([1, 1.1, 1.5, 1.9])
    expected = []
    for a in map(Fraction, x.tolist()):
        k = max(math.frexp(float(a))[1] - 1, -127)
        low, high = Fraction(2) ** k, Fraction(2) ** (k + 1)
        middle = (low + high) / 2
        up = {
            "nearest_even": a > middle or (a == middle and (k + 127) % 2 == 1),
            "nearest_away": a >= middle,
            "up": a > low,
        }.get(rounding, False)
        code = k + 127 + up
        expected.append(min(code, 254) if overflow == "saturate" else code)  # 255 is NaN
    for got in (
        FMT.encode(jnp.asarray(x), rounding=rounding, overflow=overflow),
        jax.jit(lambda x: FMT._encode(x, rounding, overflow, None))(x),
    ):
        np.testing.assert_array_equal(got, expected)
    with jax.enable_x64(True):  # and far below
        wide = jnp.asarray(np.append(x.astype(np.float64), [1e-300, 1e-39, 1e300]))
        got = FMT.encode(wide, rounding=rounding, overflow=overflow)
        beyond = 254 if overflow == "saturate" or rounding in ("toward_zero", "down") else 255
        np.testing.assert_array_equal(got, [*expected, 0, 0, beyond])


def test_what_is_not_positive():
    x = jnp.array([0.0, -0.0, -1e-40, -5.0, -jnp.inf, jnp.inf, jnp.nan], jnp.float32)
    assert FMT.encode(x).tolist() == [0, 0, 0, 0, 0, 254, 255]
    assert FMT.encode(x, overflow="spec").tolist() == [255] * 7


@pytest.mark.parametrize("part", [0.25, 0.5, 0.9])
@pytest.mark.parametrize("k", [-127, 0, 126])
def test_stochastic_rounding_is_unbiased(k, part):
    n, low = 50_000, 2.0**k
    x = np.float32(low * (1 + part))
    codes = FMT.encode(jnp.full(n, x), rounding="stochastic", key=jax.random.key(1))
    up = np.asarray(codes, int) - (k + 127)
    assert set(up) == {0, 1}
    p = float(x) / low - 1
    assert abs(up.mean() - p) < 4.5 * math.sqrt(p * (1 - p) / n)


ELEMENTS = {"e4m3fn": 3, "e5m2": 2, "e3m2fn": 2, "e2m3fn": 3, "e2m1fn": 1, "fixed8.6_symmetric": 6}


def log2_ceil(a: Fraction) -> int:
    k = math.frexp(float(a))[1] + 1
    while Fraction(2) ** (k - 1) >= a:
        k -= 1
    return k


def log2_floor(a: Fraction) -> int:
    k = log2_ceil(a)
    return k if Fraction(2) ** k == a else k - 1


def by_definition(a, mode, largest, m):
    """The exponent of the scale as the card states it, in exact arithmetic."""
    a, largest = Fraction(a), Fraction(largest)
    emax = log2_floor(largest)
    if mode == "even":  # amax to m bits behind the point, halves to even (Python's round)
        step = Fraction(2) ** (log2_floor(a) - m)
        a = round(a / step) * step
    c = {
        "floor": lambda: log2_floor(a) - emax,
        "even": lambda: log2_floor(a) - emax,
        "ceil": lambda: log2_ceil(a) - emax,
        "rceil": lambda: log2_ceil(a / largest),
    }[mode]()
    return min(max(c, -127), 127)


@pytest.mark.parametrize("mode", SCALE_MODES)
@pytest.mark.parametrize("element", ELEMENTS)
def test_the_four_modes_by_exact_fractions(element, mode):
    fmt, m = parse(element), ELEMENTS[element]
    top = fmt.max / 2.0 ** log2_floor(Fraction(fmt.max))
    halves = 2 - 2.0 ** -(m + 1)  # from here on `even` rounds up
    x = binades([1, top, halves])
    x = x[(x < 2.0**-118) | (x > 2.0**118) | ((x > 0.1) & (x < 1000))]
    expected = [by_definition(a, mode, fmt.max, m) + 127 for a in x.tolist()]
    x = np.append(x, np.float32([0, np.inf, np.nan]))
    find = jax.jit(lambda a: scale_codes(a, mode, largest=fmt.max, mantissa_bits=m))
    np.testing.assert_array_equal(find(x), [*expected, 0, 255, 255])
    with jax.enable_x64(True):
        wide = np.append(x.astype(np.float64), [1e-310, 1e-200, 1e200])
        np.testing.assert_array_equal(find(wide), [*expected, 0, 255, 255, 0, 0, 254])


def test_just_below_a_power_of_two_is_below_it():
    """The logarithm in float32 gives 3 for nextafter(8, 0)."""
    a = jnp.nextafter(jnp.float32(8), jnp.float32(0))
    assert scale_codes(a, "floor", largest=1.0, mantissa_bits=6).item() - 127 == 2


def test_largest_magnitude():
    x = np.array([[1, -3, 2], [-TINY, 0, -0.0], [np.inf, -1, 0], [-np.nan, np.inf, 1]], np.float32)
    got = jax.jit(largest_magnitude)(x)
    np.testing.assert_array_equal(np.asarray(got), [3, TINY, np.inf, np.nan])
    assert largest_magnitude(jnp.zeros((2, 0))).tolist() == [0, 0]


def test_products_with_powers_of_two_are_exact():
    """Against ldexp in float64, which holds each product; below 2^-149 rounded to odd."""
    rng = np.random.default_rng(0)
    x = rng.integers(0, 2**32, 4000, np.uint32).view(np.float32)
    x = np.concatenate([x[np.isfinite(x)], rng.normal(size=1000), [0, -0.0, TINY, -TINY, MOST]])
    x = x.astype(np.float32)
    e = rng.integers(-260, 260, len(x)).astype(np.int32)
    e[: len(x) // 2] //= 8
    exact = np.ldexp(x.astype(np.float64), e)
    unit = exact / TINY
    odd = np.trunc(unit)
    odd = np.where((odd != unit) & (odd % 2 == 0), odd + np.sign(unit), odd) * TINY
    expected = np.where(np.abs(exact) < 2.0**-126, odd, np.clip(exact, -MOST, MOST))
    assert (np.abs(expected) < 2.0**-126).mean() > 0.1
    assert (np.abs(exact) > MOST).mean() > 0.1
    expected = expected.astype(np.float32)
    for product in (times_power, jax.jit(times_power)):
        got = np.asarray(product(jnp.asarray(x), jnp.asarray(e)))
        np.testing.assert_array_equal(got.view("u4"), np.copysign(expected, x).view("u4"))
    special = jnp.array([jnp.inf, -jnp.inf, jnp.nan], jnp.float32)
    np.testing.assert_array_equal(times_power(special, jnp.array([-9, 9, 3])), special)
    with jax.enable_x64(True):
        wide = np.array([1.5, -(2.0**-1070), 2.0**1000, 0.0])
        e = np.array([-1030, 1000, 100, 5], np.int32)
        got = np.asarray(times_power(jnp.asarray(wide), jnp.asarray(e)))
        expected = [1.5 * 2.0**-1030, -(2.0**-70), np.finfo(np.float64).max, 0]
        np.testing.assert_array_equal(got, expected)
