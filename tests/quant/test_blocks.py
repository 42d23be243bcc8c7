"""Block floating point, OCP MX and NVFP4, against definitions written here in numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spikebit.quant import encode, parse, quantize
from spikebit.quant.blocks import NVFP4, SharedExponent, bfp, from_name

F = np.float32
MX = {  # mantissa bits, exponent of the largest binade, exponent of the smallest normal, largest
    "mxfp8_e4m3": (3, 8, -6, 448.0),
    "mxfp8_e5m2": (2, 15, -14, 57344.0),
    "mxfp6_e3m2": (2, 4, -2, 28.0),
    "mxfp6_e2m3": (3, 2, 0, 7.5),
    "mxfp4": (1, 2, 0, 6.0),
    "mxint8": (6, 0, 0, 127 / 64),
    "bfp5_k16": (3, 0, 0, 15 / 8),
}


def element(r, m, low, largest):
    """R to nearest, ties to even, in steps of 2^-m of its binade; exact in float64."""
    e = np.maximum(np.frexp(r)[1] - 1, low)
    if low == 0 and largest < 2:  # integers: one step everywhere
        e = np.zeros_like(e)
    return np.clip(np.rint(np.ldexp(r, m - e)) * np.ldexp(1.0, e - m), -largest, largest)


def mx(x, name, mode="floor"):
    """The numbers that the format stands for, in float64, and the codes of the scales."""
    m, emax, low, largest = MX[name]
    k = 16 if name == "bfp5_k16" else 32
    x = x.astype(np.float64).reshape(-1, k)
    amax = np.abs(x).max(1)
    floor = np.frexp(amax)[1] - 1
    if mode == "even":
        floor = np.frexp(np.rint(np.ldexp(amax, m - floor)) * np.ldexp(1.0, floor - m))[1] - 1
    c = floor - emax + (mode == "ceil") * (amax > np.ldexp(1.0, floor))
    if mode == "rceil":
        c = c + (amax > largest * np.ldexp(1.0, c))
    c = np.where(amax == 0, -127, np.clip(c, -127, 127))
    y = np.ldexp(element(np.ldexp(x, -c[:, None]), m, low, largest), c[:, None])
    return y, c + 127


def numbers(seed=0):
    """Rows of 96 from 2^-149 to 2^127, with zeros, ties and powers of two."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(272, 96)) * np.ldexp(1.0, np.arange(-148, 124))[:, None]
    x[:, 5] = 0
    x[:, 32:64] = np.rint(x[:, 32:64] / (s := np.abs(x).max(1, keepdims=True)) * 16) * s / 16
    x[::7, :32] = 0
    return x.astype(F)


@pytest.mark.parametrize("mode", ["floor", "ceil", "even", "rceil"])
@pytest.mark.parametrize("name", MX)
def test_mx_equals_the_definition_bit_for_bit(name, mode):
    x = numbers()
    fmt = from_name(name + ("" if mode == "floor" else f"_{mode}"))
    assert from_name(fmt.name) == fmt
    y, codes = mx(x, name, mode)
    q = encode(jnp.asarray(x), fmt)
    np.testing.assert_array_equal(np.asarray(q.scale.unit).ravel(), codes)
    assert (np.abs(y[(np.abs(y) > 0)]) < 2.0**-126).any()  # subnormal numbers of float32 too
    for got in (q.dequantize(), jax.jit(lambda x: quantize(x, fmt))(x)):
        np.testing.assert_array_equal(np.asarray(got).reshape(y.shape), y.astype(F))


def nvfp4(x):
    """The definition in float32, one operation after the other."""
    amax = np.abs(x).max()
    t = F(amax / F(448 * 6))
    peak = np.abs(x.reshape(-1, 16)).max(1)
    s = element(np.clip(peak / F(6) / t, F(2.0**-6), F(448)).astype(np.float64), 3, -6, 448.0)
    r = x.reshape(-1, 16) * ((F(1) / t) / s.astype(F))[:, None]
    q = element(r.astype(np.float64), 1, 0, 6.0).astype(F)
    return (q * (s.astype(F) * t)[:, None]).reshape(x.shape), s, t


@pytest.mark.parametrize("spread", [0, 1, 4])
@pytest.mark.parametrize("size", [1e-20, 1.0, 1e20])
def test_nvfp4_equals_the_definition_bit_for_bit(size, spread):
    rng = np.random.default_rng(1)
    x = (size * rng.normal(size=(50, 64)) * np.exp(spread * rng.normal(size=(50, 1)))).astype(F)
    y, s, t = nvfp4(x)
    q = encode(jnp.asarray(x), "nvfp4")
    assert q.scale.tensor == t
    scales = parse("e4m3fn").decode(q.scale.unit).ravel()
    np.testing.assert_array_equal(scales, s)
    for got in (q.dequantize(), jax.jit(lambda x: quantize(x, "nvfp4"))(x)):
        np.testing.assert_array_equal(got, y)


# dB on N(0, 1), and on the Laplace distribution where it is known
SQNR = {
    "mxfp8_e4m3": (30.6, None), "mxfp8_e4m3_rceil": (31.5, None), "mxfp8_e5m2": (25.4, None),
    "mxfp6_e2m3": (30.9, None), "mxfp6_e3m2": (25.4, None), "mxfp4": (18.8, 17.9),
    "mxfp4_rceil": (None, 17.6), "nvfp4": (20.4, 20.7), "mxint8": (41.7, None),
}  # fmt: skip


@pytest.mark.parametrize("name", SQNR)
def test_signal_to_noise(name):
    """Within 0.05 dB for the figure, 0.05 for its last digit, and 4.5 sigma of the estimate."""
    for draw, expected in zip((jax.random.normal, jax.random.laplace), SQNR[name], strict=True):
        if expected is None:
            continue
        x = draw(jax.random.key(0), (16384, 32))
        error = ((quantize(x, name) - x) ** 2).sum(1)
        got = 10 * np.log10(float((x**2).sum() / error.sum()))
        sigma = 10 / np.log(10) * float(error.std() / error.mean()) / 128
        assert abs(got - expected) < 0.05 + 0.05 + 4.5 * sigma, got


def test_floor_saturates_and_rceil_does_not():
    """The largest of a block lies above 6 of [4, 8) in units, and is more than 6 only by floor."""
    x = np.exp2(np.random.default_rng(0).uniform(-8, 8, (20_000, 1))).astype(F)
    fmt = SharedExponent(parse("e2m1fn"), 1)
    share = np.mean(np.asarray(fmt.to_units(jnp.asarray(x), *fmt.block_scales(jnp.asarray(x)))) > 6)
    p = np.log2(8 / 6)  # of log-uniform numbers
    assert abs(share - p) < 4.5 * np.sqrt(p * (1 - p) / len(x))
    fmt = SharedExponent(parse("e2m1fn"), 1, "rceil")
    assert fmt.to_units(jnp.asarray(x), *fmt.block_scales(jnp.asarray(x))).max() <= 6


@pytest.mark.parametrize("name", ["mxfp4", "mxfp8_e4m3_rceil", "mxint8", "nvfp4"])
def test_blocks_are_independent_and_permute(name):
    x = jax.random.normal(jax.random.key(0), (8, 4, 32))
    y = quantize(x, name)
    order = jnp.array([2, 0, 3, 1])
    np.testing.assert_array_equal(quantize(x[:, order], name), y[:, order])
    other = x.at[0, 0].multiply(0.5).at[0, 0, 3].set(0)
    if name == "nvfp4":  # which has one scale for all: the largest number stays
        other = other.at[0, 0].set(jnp.where(jnp.abs(x[0, 0]) == jnp.abs(x).max(), x[0, 0],
                                             other[0, 0]))  # fmt: skip
    np.testing.assert_array_equal(quantize(other, name)[1:], y[1:])


def test_nan_and_infinity_stay_in_their_block():
    x = np.ones((4, 64), F)
    x[0, 3], x[1, 40] = np.nan, np.inf
    y = np.asarray(quantize(jnp.asarray(x), "mxfp4"))
    assert np.isnan(y[0, :32]).all()
    assert np.isnan(y[1, 32:]).all()
    assert np.isfinite(y).sum() == y.size - 64
    assert encode(jnp.asarray(x), "mxint8").scale.unit.ravel().tolist().count(255) == 2
    y = np.asarray(quantize(jnp.asarray(x), "nvfp4"))
    assert np.isnan(y[0, :16]).all()
    assert y[1, 40] == 1
    assert np.isnan(y).sum() == 16
    for name in ("mxfp4", "nvfp4", "bfp5_k16"):
        assert not np.asarray(quantize(jnp.zeros((2, 64)), name)).any()


def test_names_and_bits():
    assert (bfp(8, 32).name, bfp(8, 16).name) == ("mxint8", "bfp8_k16")
    assert [from_name(n).bits_per_element for n in ("mxfp4", "mxint8", "nvfp4", "bfp5_k16")] == [
        4.25, 8.25, 4.5, 5.5
    ]  # fmt: skip
    assert from_name("nvfp4") == NVFP4()
    assert from_name("mxfp5") is None


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: bfp(1, 16), "bits must be from 2 to 16"),
        (lambda: bfp(8, 0), "at least one number"),
        (lambda: SharedExponent(parse("e3m4")), "the element must be one of e4m3fn"),
        (lambda: from_name("mxfp4_up"), "mode must be one of floor, ceil, even, rceil"),
    ],
)
def test_impossible_formats(make, message):
    with pytest.raises(ValueError, match=message):
        make()
