"""Tables, NF4, posits, binary and ternary: against exact fractions, and their definitions."""

import itertools
import math
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spikebit.quant import NF4, Binary, LookUp, Posit, Ternary, encode, parse, quantize

THIRDS = LookUp("thirds", (-1.0, -0.375, 0.0, 0.3125, 0.4375, 1.0))
APART = LookUp("apart", (-3.0, -1.0, 2.0, 5.0))  # 0 lies between two values
FORMATS = [NF4, THIRDS, APART, Ternary(), Posit(6), Posit(8)]
DETERMINISTIC = ["nearest_even", "nearest_away", "toward_zero", "up", "down"]


def grid(fmt):
    """Values in ascending order with their codes, by decoding every code."""
    codes = np.arange(2**fmt.bits)
    v = np.asarray(fmt.decode(jnp.asarray(codes.astype(np.uint8))))
    known = {Fraction(float(a)): int(c) for c, a in zip(codes[::-1], v[::-1], strict=True)
             if np.isfinite(a)}  # fmt: skip
    return sorted(known.items())


def rounded(x, table, rounding, borders=None):
    """Exact rounding of a float to one of the values; borders between them if not the middles."""
    x = min(max(Fraction(float(x)), table[0][0]), table[-1][0])
    i = max(k for k in range(len(table)) if table[k][0] <= x)
    low = table[i]
    if low[0] == x:
        return float(x)
    high = table[i + 1]
    middle = (low[0] + high[0]) / 2 if borders is None else borders[i]
    if rounding == "up" or rounding == "down":
        return float((high if rounding == "up" else low)[0])
    if rounding == "toward_zero" and low[0] >= 0:
        return float(low[0])
    if rounding == "toward_zero" and high[0] <= 0:
        return float(high[0])
    if x != middle:
        return float((high if x > middle else low)[0])
    if rounding == "nearest_away":
        return float(max(low, high, key=lambda p: abs(p[0]))[0])
    return float((low if low[1] % 2 == 0 else high)[0])


def points(fmt, borders=None):
    values = [v for v, _ in grid(fmt)]
    middles = borders or [(a + b) / 2 for a, b in itertools.pairwise(values)]
    x = np.array([float(v) for v in [*values, *middles]], np.float32)
    x = np.concatenate([x, np.nextafter(x, np.float32(9e9)), np.nextafter(x, np.float32(-9e9))])
    more = [1e-40, -1e-40, -0.0, fmt.max * 3, fmt.min * 3, 1e30, -1e30, 0.1, -0.1]
    return np.concatenate([x, np.array(more, np.float32)])


@pytest.mark.parametrize("rounding", DETERMINISTIC)
@pytest.mark.parametrize("fmt", FORMATS[:4], ids=str)
def test_rounding_is_that_of_exact_fractions(fmt, rounding):
    x, table = points(fmt), grid(fmt)
    expected = [rounded(a, table, rounding) for a in x]
    wide = jnp.asarray(np.pad(x, (0, 128 - len(x))))  # one shape: operations are compiled once
    for got in (
        jax.jit(lambda x: fmt._round(x, rounding, "saturate", None))(wide),
        fmt._round(wide, rounding, "saturate", None),
        fmt.decode(fmt.encode(wide, rounding=rounding)),
    ):
        np.testing.assert_array_equal(got[: len(x)], expected)


def by_the_standard(code, n):
    """The formula of the posit standard, which reads negative codes without negating them."""
    bits = [code >> k & 1 for k in reversed(range(n))]
    s, rest = bits[0], bits[1:]
    run = next((k for k, b in enumerate(rest) if b != rest[0]), len(rest))
    r = run - 1 if rest[0] else -run
    tail = [*rest[run + 1 :], 0, 0, 0]
    e = 2 * tail[0] + tail[1]
    f = sum(Fraction(b, 2 ** (k + 1)) for k, b in enumerate(tail[2:]))
    return ((1 - 3 * s) + f) * Fraction(2) ** ((1 - 2 * s) * (4 * r + e + s))


@pytest.mark.parametrize("n", [3, 5, 6, 8, 11, 16])
def test_posit_codes_read_as_the_standard_says(n):
    fmt = Posit(n)
    codes = np.arange(2**n).astype(fmt.code_dtype)
    values = np.asarray(fmt.decode(jnp.asarray(codes)))
    expected = [0.0 if c == 0 else math.nan if c == 2 ** (n - 1) else float(by_the_standard(c, n))
                for c in range(2**n)]  # fmt: skip
    np.testing.assert_array_equal(values, np.array(expected, np.float32))
    assert (fmt.max, fmt.smallest) == (2.0 ** (4 * (n - 2)), 2.0 ** (-4 * (n - 2)))
    np.testing.assert_array_equal(fmt.encode(jnp.asarray(values)), codes)


@pytest.mark.parametrize("rounding", DETERMINISTIC)
@pytest.mark.parametrize("n", [4, 6, 8])
def test_posit_borders_are_posits_of_one_more_bit(n, rounding):
    fmt, half = Posit(n), 2 ** (n - 1)
    up = [by_the_standard(2 * c + 1, n + 1) for c in range(1, half - 1)]
    borders = [-b for b in reversed(up)] + [Fraction(0), Fraction(0)] + up
    x, table = points(fmt, borders), grid(fmt)
    expected = []
    for a in x.tolist():
        tiny = 0 < abs(a) < fmt.smallest and rounding.startswith("nearest")
        expected.append(
            math.copysign(fmt.smallest, a) if tiny else rounded(a, table, rounding, borders)
        )
    got = jax.jit(lambda x: fmt._round(x, rounding, "spec", None))(x)
    np.testing.assert_array_equal(got, expected)


def test_posit_has_one_not_a_real():
    x = jnp.array([jnp.nan, jnp.inf, -jnp.inf, 1e38])
    saturated = quantize(x, "posit8")
    np.testing.assert_array_equal(saturated, [jnp.nan, 2.0**24, -(2.0**24), 2.0**24])
    np.testing.assert_array_equal(
        quantize(x, "posit8", overflow="spec"), [jnp.nan, jnp.nan, jnp.nan, 2.0**24]
    )
    assert parse("posit8").encode(x, overflow="spec").tolist() == [128, 128, 128, 127]


@pytest.mark.parametrize("fmt", [NF4, THIRDS, APART, Posit(6), Binary()], ids=str)
def test_stochastic_rounding_is_unbiased_between_any_two_values(fmt):
    values = fmt.values().astype(np.float64)
    low, high = values[:-1], values[1:]
    n, round_ = 20_000, jax.jit(lambda x, key: fmt._round(x, "stochastic", "saturate", key))
    for share in (0.1, 0.5, 0.85):
        x = (low + share * (high - low)).astype(np.float32)
        wide = jnp.asarray(np.repeat(x[:, None], n, 1))
        q = np.asarray(round_(wide, jax.random.key(3)), np.float64)
        assert ((q == low[:, None]) | (q == high[:, None])).all()
        sigma = np.sqrt((x - low) * (high - x) / n)
        assert (np.abs(q.mean(1) - x) < 4.5 * sigma + 2.0**-24 * (high - low)).all()
    on_grid = jnp.asarray(fmt.values())
    for seed in range(5):
        moved = round_(on_grid, jax.random.key(seed))
        np.testing.assert_array_equal(moved, on_grid)


def erf_quantile(p):
    """The normal quantile by bisection of erf: another way than the one of the code."""
    low, high = -10.0, 10.0
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if 0.5 * (1 + math.erf(middle / 2**0.5)) < p else (low, middle)
    return low


def test_nf4_is_the_published_construction():
    edge = 0.5 * ((1 - 1 / 30) + (1 - 1 / 32))
    up = [erf_quantile(p) for p in np.linspace(edge, 0.5, 9)[:-1]]
    down = [-erf_quantile(p) for p in np.linspace(edge, 0.5, 8)[:-1]]
    expected = np.sort([*up, *down, 0.0]) / max(up)
    np.testing.assert_allclose(NF4.values(), expected, rtol=2e-7, atol=1e-9)
    assert NF4.bits == 4
    x = jnp.array([-3.0, 0.0, 1.5, 3.0])
    assert quantize(x, "nf4").tolist()[0] == -3  # max|x| goes to 1
    assert encode(x, "nf4", axis=0, block=2).scale.unit.tolist() == [3.0, 3.0]


def test_binary_is_sign_times_the_mean():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(4, 300)).astype(np.float32)
    x[0, :3] = 0, -0.0, -1e-40
    y = np.asarray(quantize(jnp.asarray(x), "binary", axis=-1))
    alpha = np.abs(x.astype(np.float64)).mean(1, keepdims=True)
    np.testing.assert_allclose(np.abs(y), np.broadcast_to(alpha, x.shape), rtol=1e-6)
    np.testing.assert_array_equal(np.sign(y), np.where(x >= 0, 1, -1))
    assert np.sign(y[0, :3]).tolist() == [1, 1, -1]
    error = ((x - y) ** 2).sum(1)
    for factor in (0.99, 1.01):  # the mean is the best scale
        assert (((x - factor * y) ** 2).sum(1) > error).all()


def test_ternary_by_both_rules():
    x = np.random.default_rng(1).normal(size=(3, 500)).astype(np.float32)
    wide = x.astype(np.float64)
    mean = np.abs(wide).mean(1, keepdims=True)
    y = np.asarray(quantize(jnp.asarray(x), "ternary", axis=1))
    np.testing.assert_allclose(y, np.clip(np.rint(wide / mean), -1, 1) * mean, rtol=1e-6)
    above = np.abs(wide) > 0.7 * mean
    alpha = (np.abs(wide) * above).sum(1, keepdims=True) / above.sum(1, keepdims=True)
    y = np.asarray(quantize(jnp.asarray(x), "ternary_twn", axis=1))
    np.testing.assert_allclose(y, np.sign(wide) * above * alpha, rtol=1e-6)
    q = encode(jnp.asarray(x), "ternary_twn", axis=1)
    np.testing.assert_array_equal(q.dequantize(), y)
    assert q.bits_per_weight == 2 + 32 / 500
    for name in ("binary", "ternary", "ternary_twn"):  # an array of zeros has the scale 1
        assert np.isfinite(quantize(jnp.zeros(5), name)).all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LookUp("a", (1.0,)), "table holds 1 values; it must be 2 to 65536 finite"),
        (lambda: LookUp("a", (1.0, 1.0)), "in ascending order"),
        (lambda: LookUp("a", (0.1, 1.0)), "float32 cannot hold all values"),
        (lambda: LookUp("a", (0.0, 1e-20)), r"at least 2\^-50 in magnitude"),
        (lambda: Posit(2), "bits must be from 3 to 16"),
        (lambda: Ternary("mean"), "choose absmean or twn"),
        (lambda: quantize(jnp.array([jnp.nan]), "nf4"), r"holds 1 NaN, for which nf4 has no code"),
    ],
)
def test_what_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
