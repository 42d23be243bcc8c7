"""Block formats against their definitions, written again here in numpy, over every rounding."""

import math

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from spikebit.quant import QTensor, decode, encode, parse, quantize
from spikebit.quant.blocks import NVFP4, SharedExponent, bfp, from_name
from spikebit.quant.minifloat import Minifloat

MODES = ("floor", "ceil", "even", "rceil")
DETERMINISTIC = ("nearest_even", "nearest_away", "toward_zero", "up", "down")


def minifloat(exponent_bits, mantissa_bits, bias, top):
    """Magnitudes up to the code `top`, by the sum over the bits."""
    code = np.arange(top + 1)
    e, m = code >> mantissa_bits, (code & (2**mantissa_bits - 1)) / 2**mantissa_bits
    return np.where(e > 0, (1 + m) * 2.0 ** (e - bias), m * 2.0 ** (1 - bias))


def integers(bits):
    return np.arange(2 ** (bits - 1)) / 2.0 ** (bits - 2)


# name: the block, the magnitudes of the element by code, its mantissa bits, the exponent of its max
ELEMENTS = {
    "mxfp8_e4m3": (32, minifloat(4, 3, 7, 126), 3, 8),
    "mxfp8_e5m2": (32, minifloat(5, 2, 15, 123), 2, 15),
    "mxfp6_e3m2": (32, minifloat(3, 2, 3, 31), 2, 4),
    "mxfp6_e2m3": (32, minifloat(2, 3, 1, 31), 3, 2),
    "mxfp4": (32, minifloat(2, 1, 1, 7), 1, 2),
    "mxint8": (32, integers(8), 6, 0),
    "bfp2_k4": (4, integers(2), 0, 0),
    "bfp5_k8": (8, integers(5), 3, 0),
    "bfp16_k16": (16, integers(16), 14, 0),
}
every = pytest.mark.parametrize("name", ELEMENTS)


def in_mode(name, mode):
    return name + ("" if mode == "floor" else f"_{mode}")


def log2_floor(a):
    return math.frexp(a)[1] - 1


def scale_exponent(amax, mode, magnitudes, mantissa_bits, emax):
    """The definition for one block, in Python's floats, where all of this is exact."""
    if amax == 0:
        return -127
    if mode == "floor":
        c = log2_floor(amax) - emax
    elif mode == "ceil":
        c = log2_floor(amax) + (math.frexp(amax)[0] != 0.5) - emax
    elif mode == "even":
        step = 2.0 ** (log2_floor(amax) - mantissa_bits)
        c = log2_floor(round(amax / step) * step) - emax
    else:
        c = log2_floor(amax) - emax - 1
        while amax > magnitudes[-1] * 2.0**c:
            c += 1
    return min(max(c, -127), 127)


def nearest(r, magnitudes, rounding="nearest_even"):
    """One of the magnitudes for each |r|, with the sign of r, saturating."""
    a = np.minimum(np.abs(r), magnitudes[-1])
    low = np.minimum(np.searchsorted(magnitudes, a, side="right") - 1, len(magnitudes) - 2)
    below, above = a - magnitudes[low], magnitudes[low + 1] - a
    up = {
        "nearest_even": (below > above) | ((below == above) & (low % 2 == 1)),
        "nearest_away": below >= above,
        "toward_zero": above == 0,
        "up": (above == 0) | ((below > 0) & (r > 0)),
        "down": (above == 0) | ((below > 0) & (r < 0)),
    }[rounding]
    return np.copysign(magnitudes[low + up], r)


def reference(x, name, mode="floor", rounding="nearest_even"):
    """Codes of the scales and numbers of x (blocks, k), which is float32."""
    _, magnitudes, mantissa_bits, emax = ELEMENTS[name]
    x = x.astype(np.float64)
    amax = np.abs(x).max(1)
    known = np.isfinite(amax)
    c = np.array([
        scale_exponent(a, mode, magnitudes, mantissa_bits, emax) if ok else 128
        for a, ok in zip(amax.tolist(), known, strict=True)
    ])  # fmt: skip
    scale = 2.0 ** c[:, None]
    y = nearest(np.where(known[:, None], x, 0) / scale, magnitudes, rounding) * scale
    largest = np.finfo(np.float32).max
    y = np.where(known[:, None], np.clip(y, -largest, largest), np.nan)
    return (c + 127).astype(np.uint8), y.astype(np.float32)


def hard_blocks(name):
    """Blocks (n, k) with scales from end to end, at every boundary of scale and of element."""
    k, magnitudes, mantissa_bits, emax = ELEMENTS[name]
    rng = np.random.default_rng(0)
    # largest numbers: powers of two, the element's largest, where `even` carries, and ulps beside
    tops = np.array([1, magnitudes[-1] / 2.0**emax, 2 - 2.0 ** -(mantissa_bits + 1), 1.37])
    c = np.array([*range(-149, -110, 3), -2, 0, 1, *range(100, 128, 4), 127])
    with np.errstate(over="ignore"):
        tops = (tops[:, None] * 2.0**c).ravel().astype(np.float32)
    beside = [np.nextafter(tops, np.float32(np.inf)), np.nextafter(tops, np.float32(0))]
    tops = np.concatenate([tops, *beside])
    tops = tops[np.isfinite(tops) & (tops > 0)]
    # the others: values and midpoints of the element, and their neighbours
    points = np.concatenate([magnitudes, (magnitudes[1:] + magnitudes[:-1]) / 2]) / 2.0**emax
    unit = 2.0 ** np.floor(np.log2(tops.astype(np.float64)))[:, None]
    x = rng.choice(points, (len(tops), k)) * unit
    x = np.where(np.abs(x) > tops[:, None], 0, x).astype(np.float32)
    x = np.nextafter(x, x + rng.choice(np.array([-1, 0, 0, 1], np.float32), x.shape))
    x[:, 1 % k] = np.float32(2.0**-149)  # for `up` and `down`
    x[:, 0] = tops
    x = np.minimum(np.abs(x), tops[:, None])
    special = np.zeros((5, k), np.float32)  # all zero; NaN; Inf; all subnormal; the largest number
    special[1:4, 0], special[2, -1] = 1, -np.inf
    special[1, -1] = np.nan
    special[3] = np.arange(k) * np.float32(2.0**-149)
    special[4] = np.finfo(np.float32).max
    x = np.concatenate([x * rng.choice(np.array([-1, 1], np.float32), x.shape), special])
    return np.concatenate([x, rng.normal(size=(64, k)).astype(np.float32)])


def same(a, b):
    """Equal to the bit, but for payloads of NaN and the sign of 0, which integers do not have."""
    a, b = np.asarray(a), np.asarray(b)
    assert a.dtype == b.dtype
    np.testing.assert_array_equal(np.where(a == 0, 0, a), np.where(b == 0, 0, b))


@every
@pytest.mark.parametrize("mode", MODES)
def test_scales_and_numbers_are_those_of_the_definition(name, mode):
    x = hard_blocks(name)
    codes, y = reference(x, name, mode)
    q = encode(jnp.asarray(x), in_mode(name, mode))
    np.testing.assert_array_equal(q.scale.unit[:, 0], codes)
    same(decode(q), y)
    if mode == "floor":  # the others differ in the scale alone
        same(quantize(jnp.asarray(x), name), y)


@pytest.mark.parametrize("name", ["mxfp8_e4m3", "mxfp4", "bfp5_k8"])
@pytest.mark.parametrize("rounding", DETERMINISTIC[1:])
def test_elements_take_every_rounding(name, rounding):
    x = hard_blocks(name)
    _, y = reference(x, name, rounding=rounding)
    same(quantize(jnp.asarray(x), name, rounding=rounding), y)


@pytest.mark.parametrize("name", ["mxfp8_e4m3", "mxfp4", "bfp5_k8"])
def test_compiled_eager_and_fused_agree(name):
    x = jnp.asarray(hard_blocks(name))
    y = quantize(x, name)

    @jax.jit
    def fused(x):
        q = quantize(x * 1, name)
        return q, q + 0, decode(encode(x, name))

    for got in fused(x):
        same(got, y)
    rows = np.linspace(0, len(x) - 1, 40).astype(int)
    with jax.disable_jit():
        same(quantize(x[rows], name), y[rows])


@every
def test_quantizing_twice_is_quantizing_once(name):
    y = quantize(jnp.asarray(hard_blocks(name)), name)
    same(quantize(y, name), y)


@pytest.mark.parametrize("name", ["mxfp8_e4m3", "mxfp4_rceil", "bfp5_k8"])
def test_float64_and_16_bit_numbers(name):
    plain, _, mode = name.partition("_r")
    k, magnitudes, _, _ = ELEMENTS[plain]
    x = hard_blocks(plain)
    _, expected = reference(x, plain, "r" + mode if mode else "floor")
    with jax.enable_x64(True):
        y = quantize(jnp.asarray(x.astype(np.float64)), name)
        assert y.dtype == np.float64
        inside = np.abs(x).max(1) < 2.0**127  # beyond, float64 can hold what float32 cannot
        np.testing.assert_array_equal(y[inside], expected[inside])
        # a number that float32 cannot tell from a midpoint
        middle = (magnitudes[-2] + magnitudes[-1]) / 2
        block = np.zeros(k)
        block[:3] = magnitudes[-1], np.nextafter(middle, 0), np.nextafter(middle, np.inf)
        up = quantize(jnp.asarray(block), name)
        assert up[1:3].tolist() == magnitudes[-2:].tolist()
    for dtype in (jnp.bfloat16, jnp.float16):
        short = jnp.asarray(np.random.default_rng(1).normal(size=(9, k))).astype(dtype)
        y = quantize(short, name)
        wide = quantize(short.astype(jnp.float32), name)
        assert y.dtype == dtype
        np.testing.assert_array_equal(y, wide.astype(dtype))


def nvfp4(x):
    """NVFP4 of x (blocks, 16) in numpy's float32, subnormal numbers taken for 0."""
    f = np.float32
    e4m3, e2m1 = ELEMENTS["mxfp8_e4m3"][1].astype(f), ELEMENTS["mxfp4"][1].astype(f)
    x = np.where(np.abs(x) < 2.0**-126, f(0), x)
    t = f(np.abs(x).max() / f(448 * 6))
    s = nearest(np.clip(np.abs(x).max(1) / f(6) / t, f(2**-6), f(448)), e4m3)
    q = nearest(x * (f(1) / t / s)[:, None], e2m1)
    return t, s, q * (s * t)[:, None]


@pytest.mark.parametrize("exponent", [-105, -40, 0, 3, 126])
def test_nvfp4_is_that_of_the_definition(exponent):
    rng = np.random.default_rng(exponent + 200)
    spread = 2.0 ** rng.integers(-30, 1, (200, 1))
    x = (rng.normal(size=(200, 16)) * spread).astype(np.float32)
    x[7] = 0
    x = x * np.float32(2.0**exponent / np.abs(x).max())
    t, s, y = nvfp4(x)
    q = encode(jnp.asarray(x), "nvfp4")
    assert q.scale.tensor == t
    np.testing.assert_array_equal(
        q.scale.unit[:, 0], s.astype(ml_dtypes.float8_e4m3fn).view(np.uint8)
    )
    same(decode(q), y)
    same(jax.jit(lambda x: quantize(x, "nvfp4") + 0)(x), y)
    if exponent == 0:
        with jax.disable_jit():
            same(quantize(jnp.asarray(x), "nvfp4"), y)
    # the largest number sets t again, up to the last bit of t; the codes do not change
    again = encode(jnp.asarray(y), "nvfp4")
    np.testing.assert_array_equal(again.codes & 7, q.codes & 7)
    np.testing.assert_allclose(decode(again), y, rtol=2**-22)


def test_nvfp4_of_nan_infinity_and_numbers_near_zero():
    x = np.ones((4, 16), np.float32)
    x[1, 3], x[2, 5] = np.nan, -np.inf
    y = np.asarray(quantize(jnp.asarray(x), "nvfp4"))
    assert np.isnan(y[1]).all()
    assert np.isfinite(y[[0, 2, 3]]).all()
    assert y[2, 5] == y.min(where=np.isfinite(y), initial=0)
    np.testing.assert_allclose(y[[0, 3]], 1, rtol=2**-22)
    for tiny in (np.zeros((2, 16)), np.full((2, 16), 2.0**-140), np.full((2, 16), 2.0**-110)):
        assert not np.asarray(quantize(jnp.asarray(tiny.astype(np.float32)), "nvfp4")).any()


@every
def test_blocks_do_not_know_of_each_other(name):
    x = hard_blocks(name)
    order = np.random.default_rng(2).permutation(len(x))
    y = np.asarray(quantize(jnp.asarray(x), name))
    same(quantize(jnp.asarray(x[order]), name), y[order])
    same(quantize(jnp.asarray(x[:3].ravel()), name), y[:3].ravel())


def test_nvfp4_blocks_share_only_the_largest_number():
    x = np.random.default_rng(3).normal(size=(20, 16)).astype(np.float32)
    x[0, 0] = 9
    y = np.asarray(quantize(jnp.asarray(x), "nvfp4"))
    other = x.copy()
    other[5] *= 0.3
    same(np.delete(quantize(jnp.asarray(other), "nvfp4"), 5, 0), np.delete(y, 5, 0))
    same(quantize(jnp.asarray(x[::-1].copy()), "nvfp4"), y[::-1])


@pytest.mark.parametrize("name", ["mxfp4", "bfp5_k8", "nvfp4"])
def test_along_another_axis(name):
    x = jax.random.normal(jax.random.key(0), (3, 64, 5))
    turned = quantize(jnp.moveaxis(x, 1, -1), name)
    same(quantize(x, name, axis=1), jnp.moveaxis(turned, -1, 1))
    q = encode(x, name, axis=1)
    assert q.scale.unit.shape == (3, 64 // parse(name).block, 5)
    same(decode(q), quantize(x, name, axis=1))


@pytest.mark.parametrize(
    ("name", "bits"),
    [("mxfp8_e4m3", 8.25), ("mxfp8_e5m2", 8.25), ("mxfp6_e3m2", 6.25), ("mxfp6_e2m3", 6.25),
     ("mxfp4", 4.25), ("mxint8", 8.25), ("nvfp4", 4.5), ("bfp5_k8", 6.0), ("bfp8_k16", 8.5)],
)  # fmt: skip
def test_bits(name, bits):
    assert parse(name).bits_per_element == bits
    tensor = 32 / (64 * 128) if name == "nvfp4" else 0
    assert QTensor.from_dense(jnp.ones((64, 128)), name).bits_per_weight == bits + tensor


# Signal to noise [dB] of N(0, 1) and of a Laplace distribution, as the method card lists it.
@pytest.mark.parametrize(
    ("name", "normal", "laplace"),
    [
        ("mxfp8_e4m3", 30.6, None),
        ("mxfp8_e4m3_rceil", 31.5, None),
        ("mxfp8_e5m2", 25.4, None),
        ("mxfp6_e2m3", 30.9, None),
        ("mxfp6_e3m2", 25.4, None),
        ("mxfp4", 18.8, 17.9),
        ("mxfp4_rceil", None, 17.6),
        ("nvfp4", 20.4, 20.7),
        ("mxint8", 41.7, None),
    ],
)
def test_signal_to_noise(name, normal, laplace):
    rng = np.random.default_rng(4)
    for expected, x in ((normal, rng.normal(size=2**19)), (laplace, rng.laplace(size=2**19))):
        if expected is None:
            continue
        error = (np.asarray(quantize(jnp.asarray(x.astype(np.float32)), name)) - x) ** 2
        found = 10 * np.log10(np.mean(x**2) / error.mean())
        blocks = (error / error.mean() - x**2 / np.mean(x**2)).reshape(-1, 32).mean(1)
        sigma = 10 / np.log(10) * blocks.std() / np.sqrt(len(blocks))
        assert abs(found - expected) < 0.05 + 4.5 * sigma  # the card gives one digit
        assert sigma < 0.025


def test_share_of_fp4_blocks_that_saturate_in_closed_form():
    """`floor` saturates where the largest of 32 is beyond 6/4 of a power of two."""
    n = 2**15
    x = np.random.default_rng(5).normal(size=(n, 32)).astype(np.float32)

    def below(a):  # P(all of 32 numbers below a)
        return math.erf(a / math.sqrt(2)) ** 32

    share = sum(below(2.0 ** (k + 1)) - below(1.5 * 2.0**k) for k in range(-6, 5))
    unit = 2.0 ** (np.asarray(encode(jnp.asarray(x), "mxfp4").scale.unit, np.float64) - 127)
    found = np.mean(np.abs(x).max(1) > 6 * unit[:, 0])
    assert abs(found - share) < 4.5 * math.sqrt(share * (1 - share) / n)
    unit = 2.0 ** (np.asarray(encode(jnp.asarray(x), "mxfp4_rceil").scale.unit, np.float64) - 127)
    assert (np.abs(x).max(1) <= 6 * unit[:, 0]).all()


@pytest.mark.parametrize("name", ["mxfp4", "bfp5_k8", "nvfp4"])
def test_stochastic_rounding_is_unbiased(name):
    k, n = parse(name).block, 2**15
    block = np.random.default_rng(6).normal(size=k).astype(np.float32)
    block[0] = 2 if name != "nvfp4" else 6  # sets the scale: none of the numbers saturates
    x = jnp.asarray(np.tile(block, (n, 1)))
    y = np.asarray(quantize(x, name, rounding="stochastic", key=jax.random.key(0)), np.float64)
    low, high = (
        np.asarray(quantize(x[:1], name, rounding=r), np.float64)[0] for r in ("down", "up")
    )
    assert ((y == low) | (y == high)).all()
    variance = (block - low) * (high - block)
    assert (np.abs(y.mean(0) - block) <= 4.5 * np.sqrt(variance / n) + 1e-6).all()


def test_derivative_is_zero_where_an_element_saturates():
    x = hard_blocks("mxfp4")
    x = x[np.isfinite(x).all(1)]
    codes, _ = reference(x, "mxfp4")
    inside = np.abs(x.astype(np.float64)) <= 6 * 2.0 ** (codes.astype(np.float64)[:, None] - 127)
    assert 0 < (~inside).sum() < x.size / 10
    grad = jax.grad(lambda x: (3 * quantize(x, "mxfp4")).sum())(jnp.asarray(x))
    np.testing.assert_array_equal(grad, 3 * inside)
    x = jax.random.normal(jax.random.key(1), (8, 64))
    for name in ("mxfp4_rceil", "mxfp8_e4m3_rceil", "mxfp6_e3m2_ceil", "nvfp4"):
        np.testing.assert_array_equal(jax.grad(lambda x, n=name: quantize(x, n).sum())(x), 1)


def test_names():
    for name in (
        *ELEMENTS,
        "nvfp4",
        "bfp8_k16",
        "mxfp6_e2m3_k16_even",
        "mxint8_ceil",
        "mxfp4_rceil",
    ):
        fmt = from_name(name)
        assert fmt is not None
        assert fmt.name == name
        assert parse(name) == fmt
        assert hash(parse(name)) == hash(fmt)
    assert from_name("bfp8_k32") == from_name("mxint8") == bfp(8, 32)
    assert parse("mxfp4") == SharedExponent(Minifloat(2, 1, 1, "none"))
    assert parse("nvfp4") == NVFP4()
    for other in ("mxfp5", "int8", "bfp8", "mxfp4_", "xmxfp4", "nvfp4_ceil"):
        assert from_name(other) is None


@every
def test_a_format_shows_its_element_in_units_of_the_scale(name):
    k, magnitudes, _, _ = ELEMENTS[name]
    fmt = parse(name)
    assert (fmt.block, fmt.max, fmt.min) == (k, magnitudes[-1], -magnitudes[-1])
    assert (fmt.smallest, fmt.steps) == (magnitudes[1], magnitudes[-1])
    values = np.concatenate([-magnitudes[:0:-1], magnitudes])
    listed = fmt.values()  # two's complement has one more code, below min, that is never given
    np.testing.assert_array_equal(listed[listed >= fmt.min], values)
    same(fmt.decode(fmt.encode(jnp.asarray(values))), values.astype(np.float32))
    assert fmt.encode(jnp.array([2 * fmt.max]), overflow="spec") == fmt.encode(jnp.array([fmt.max]))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: quantize(jnp.ones((2, 40)), "mxfp4"), r"mxfp4.*block=32 does not divide axis -1"),
        (lambda: quantize(jnp.ones((2, 32)), "mxfp4", scale="mse"), "finds its scales by its own"),
        (lambda: parse("mxfp4_odd"), "mode must be one of floor, ceil, even, rceil"),
        (lambda: parse("bfp1_k8"), r"bfp\(1, 8\): bits must be from 2 to 16"),
        (lambda: bfp(17, 8), r"bfp\(17, 8\): bits must be from 2 to 16"),
        (lambda: parse("mxfp4_k0"), "a block holds at least one number"),
        (lambda: SharedExponent(parse("float16")), "the element must be one of e4m3fn, e5m2"),
        (lambda: SharedExponent(parse("float32")), "the element must be one of e4m3fn, e5m2"),
        (lambda: NVFP4().from_units(jnp.ones((1, 16)), jnp.zeros(1, jnp.uint8), None), "got None"),
    ],
)
def test_errors(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("name", ["mxfp4", "nvfp4", "bfp6_k16"])
def test_a_nan_makes_its_block_nan_in_compiled_code_too(name):
    block = parse(name).block
    x = jnp.ones((2, 2 * block)).at[0, 3].set(jnp.nan)
    got = np.isnan(np.asarray(jax.jit(lambda x: quantize(x, name))(x)))
    expected = np.zeros((2, 2 * block), bool)
    expected[0, :block] = True
    np.testing.assert_array_equal(got, expected)
