"""What must hold for every format: neighbours, nearest, monotone, odd, idempotent, unbiased."""

from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spikebit.quant import LookUp, parse
from spikebit.quant.e8m0 import E8M0

NAMES = ["bfloat16", "e5m2", "e4m3fn", "e4m3fnuz", "e2m3fn", "e2m1fn", "e4m0fn", "e1m3"]
NAMES += ["int4", "int8_half", "int1_full", "fixed12.6_symmetric", "fixed6.-3", "int3_asymmetric"]
NAMES += ["log4", "log5_8", "log4_from-6", "log4_geometric", "posit8", "nf4", "binary", "ternary"]
NAMES += ["mxfp4", "bfp5_k16"]  # in units of their scale
APART = LookUp("apart", (-3.0, -1.0, 2.0, 5.0))  # 0 lies between two values
FORMATS = [*map(parse, NAMES), E8M0(), APART]
NEAREST = ["nearest_even", "nearest_away"]
DETERMINISTIC = [*NEAREST, "toward_zero", "up", "down"]
# Their nearest is that of the code or of the logarithm
BY_CODE = {"posit3", "posit6", "posit8", "posit16", "log4_geometric"}
N = 8


def values_of(fmt):
    """The values in use: not the most negative code of integers that leave it out."""
    v = fmt.values().astype(np.float64)
    return v[v >= fmt.min]


def all_roundings(fmt):
    @jax.jit
    def f(x):
        codes = [fmt.encode(x, rounding=r) for r in DETERMINISTIC]
        again = [fmt.encode(fmt.decode(c), rounding=r)
                 for r, c in zip(DETERMINISTIC, codes, strict=True)]  # fmt: skip
        return jnp.stack(codes), jnp.stack([fmt.decode(c) for c in codes]), jnp.stack(again)

    return f


ROUND = {fmt.name: all_roundings(fmt) for fmt in FORMATS}
part = st.one_of(
    st.floats(-1.25, 1.25, width=16), st.floats(-4, 4, width=16).map(lambda a: a * 1e-2)
)
anything = st.floats(width=32, allow_nan=False)


@settings(max_examples=10, deadline=None)
@given(st.data())
@pytest.mark.parametrize("fmt", FORMATS, ids=lambda f: f.name)
def test_every_rounding_goes_to_the_neighbour_it_names(fmt, data):
    units = st.tuples(part, st.sampled_from([fmt.max, fmt.smallest, 100 * fmt.smallest]))
    number = st.one_of(units.map(lambda u: u[0] * u[1]), anything)
    some = data.draw(st.lists(number, min_size=N, max_size=N))
    with np.errstate(over="ignore"):
        x = np.sort(np.array(some, np.float32))
    codes, got, again = map(np.asarray, ROUND[fmt.name](x))
    np.testing.assert_array_equal(codes, again)  # idempotent, bit for bit
    assert (np.diff(got, axis=1) >= 0).all()  # monotone, as x is sorted
    v = values_of(fmt)
    inside = np.clip(x.astype(np.float64), v[0], v[-1])
    low = v[np.searchsorted(v, inside, side="right") - 1]
    high = v[np.searchsorted(v, inside, side="left")]
    q = dict(zip(DETERMINISTIC, got.astype(np.float64), strict=True))
    np.testing.assert_array_equal(q["down"], low)
    np.testing.assert_array_equal(q["up"], high)
    if 0 in v:
        np.testing.assert_array_equal(q["toward_zero"], np.where(inside > 0, low, high))
    for rounding in NEAREST:
        assert ((q[rounding] == low) | (q[rounding] == high)).all()
        if fmt.name in BY_CODE:
            continue
        for a, y, below, above in zip(inside, q[rounding], low, high, strict=True):
            a, y, below, above = map(Fraction, (a, y, below, above))
            assert abs(a - y) == min(a - below, above - a)
    if 0 in v and np.array_equal(v, -v[::-1]):  # odd
        values = np.asarray(ROUND[fmt.name](-x)[1])
        for i, j in enumerate([0, 1, 2, 4, 3]):  # `up` and `down` change places
            np.testing.assert_array_equal(values[i], -got[j])


@pytest.mark.parametrize("fmt", FORMATS, ids=lambda f: f.name)
def test_stochastic_rounding_is_unbiased(fmt):
    """Mean within 4.5 sigma of x, sigma from (x - lo)(hi - x), in gaps from all over the range."""
    n, v = 6000, values_of(fmt)
    gaps = np.unique(np.linspace(0, len(v) - 2, 9).astype(int))
    middle = int(np.searchsorted(v, 0)) % (len(v) - 1)
    gaps = np.unique([*gaps, middle, max(middle - 1, 0), min(middle + 1, len(v) - 2)])
    low, high = np.repeat(v[gaps], 3), np.repeat(v[gaps + 1], 3)
    share = np.tile([1 / 16, 0.5, 0.8], len(gaps))
    x = (low + share * (high - low)).astype(np.float32).astype(np.float64)
    share = (x - low) / (high - low)  # x is rounded to float32
    tall = jnp.asarray(np.repeat(x[:, None], n, 1), jnp.float32)
    codes = fmt.encode(tall, rounding="stochastic", key=jax.random.key(11))
    q = np.asarray(fmt.decode(codes)).astype(np.float64)
    assert ((q == low[:, None]) | (q == high[:, None])).all()
    up = (q == high[:, None]).mean(1)
    # the probability itself may be off by a few units of 2^-24, in tables
    assert (np.abs(up - share) <= 4.5 * np.sqrt(share * (1 - share) / n) + 2.0**-22).all()


@pytest.mark.parametrize("fmt", FORMATS, ids=lambda f: f.name)
def test_stochastic_rounding_never_moves_a_value(fmt):
    v = values_of(fmt)
    v = jnp.asarray(v[:: len(v) // 500 + 1], jnp.float32)
    codes = fmt.encode(v, rounding="stochastic", key=jax.random.key(0))
    np.testing.assert_array_equal(fmt.decode(codes), v)
