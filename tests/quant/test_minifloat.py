"""Minifloats: every code, every rounding boundary, against ml_dtypes, gfloat, the definition."""

import gfloat
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from spikebit.quant import Minifloat, parse, quantize

PACKAGE = {
    "float16": np.float16,
    "bfloat16": ml_dtypes.bfloat16,
    "e5m2": ml_dtypes.float8_e5m2,
    "e4m3": ml_dtypes.float8_e4m3,
    "e3m4": ml_dtypes.float8_e3m4,
    "e4m3fn": ml_dtypes.float8_e4m3fn,
    "e4m3fnuz": ml_dtypes.float8_e4m3fnuz,
    "e5m2fnuz": ml_dtypes.float8_e5m2fnuz,
    "e4m3b11fnuz": ml_dtypes.float8_e4m3b11fnuz,
    "e3m2fn": ml_dtypes.float6_e3m2fn,
    "e2m3fn": ml_dtypes.float6_e2m3fn,
    "e2m1fn": ml_dtypes.float4_e2m1fn,
}
# No mantissa, with both parities of the bias; a single exponent bit; odd biases; grids that reach
# down into float32's subnormals and up to its end.
UNUSUAL = [
    Minifloat(3, 0, 3, "none"),
    Minifloat(3, 0, 4, "none"),
    Minifloat(4, 0, 7, "fn"),
    Minifloat(3, 0, 3, "ieee"),
    Minifloat(5, 0, 16, "fnuz"),
    Minifloat(1, 3, 0, "ieee"),
    Minifloat(3, 3, -4, "fn"),
    Minifloat(6, 5, 95, "fnuz"),
    Minifloat(4, 6, 125, "fn"),
    Minifloat(4, 8, 127, "none"),
    Minifloat(8, 3, 127, "ieee"),
    Minifloat(7, 3, 0, "ieee"),
]
named = pytest.mark.parametrize("name", PACKAGE)


def bits(x):
    """The pattern of x, with one NaN for each sign."""
    x = np.asarray(x)
    pattern = x.view(f"u{x.dtype.itemsize}")
    return np.where(np.isnan(x), np.signbit(x) + np.uint64(2**63), pattern)


def ladder(fmt):
    """The magnitudes of the codes 0, 1, ... and, last, of the code behind the largest value."""
    m = 2**fmt.mantissa_bits
    top = 2 ** (fmt.exponent_bits + fmt.mantissa_bits)
    top -= {"ieee": m, "fn": 1, "fnuz": 0, "none": 0}[fmt.specials]
    code = np.arange(top + 1)
    e, f = code // m, code % m
    return np.where(e == 0, f / m, 1 + f / m) * 2.0 ** (np.maximum(e, 1) - fmt.bias)


def points(fmt, dtype=np.float32):
    """All values, all midpoints, their neighbours in dtype, and what is special, of both signs."""
    v = ladder(fmt)
    with np.errstate(over="ignore"):
        x = np.concatenate([v, (v[1:] + v[:-1]) / 2, [2 * v[-1], 3 * v[-1]]]).astype(dtype)
        x = np.concatenate([x, np.nextafter(x, dtype(np.inf)), np.nextafter(x, dtype(-np.inf))])
    info = np.finfo(dtype)
    special = [info.max, np.inf, np.nan, info.tiny, info.smallest_subnormal, info.tiny * 0.7]
    x = np.concatenate([x, np.array(special, dtype)])
    return np.concatenate([x, -x])


def reference(fmt, x, overflow):
    """The definition: the nearest of the ladder, of two the one with the even code; in float64."""
    v = ladder(fmt)
    a = np.abs(x.astype(np.float64))
    low = np.clip(np.searchsorted(v, a, side="right") - 1, 0, len(v) - 2)
    middle = (v[low] + v[low + 1]) / 2
    up = (a > middle) | ((a == middle) & (low % 2 == 1))
    code = np.where(np.isfinite(a), low + up, len(v) - 1)
    y = v[code]
    beyond = {"ieee": np.inf, "fn": np.nan, "fnuz": np.nan, "none": v[-2]}[fmt.specials]
    y = np.where(code == len(v) - 1, v[-2] if overflow == "saturate" else beyond, y)
    y = np.where(np.isnan(a), np.nan if fmt.has_nan else 0.0, y)
    y = np.copysign(y, x)
    if fmt.specials == "fnuz":
        y = np.where(np.isnan(y), -np.abs(y), np.where(y == 0, 0, y))  # NaN has the code of -0
    return y.astype(x.dtype)


@named
def test_codes_decode_to_the_package_values_and_encode_back(name):
    fmt, dtype = parse(name), PACKAGE[name]
    codes = np.arange(2**fmt.bits).astype(fmt.code_dtype)
    expected = codes.view(dtype).astype(np.float32)
    values = np.asarray(fmt.decode(jnp.asarray(codes)))
    np.testing.assert_array_equal(bits(values), bits(expected))
    number = ~np.isnan(expected)
    back = np.asarray(fmt.encode(jnp.asarray(values), overflow="spec"))
    np.testing.assert_array_equal(back[number], codes[number])
    assert back.dtype == fmt.code_dtype
    np.testing.assert_array_equal(bits(fmt.decode(jnp.asarray(back))), bits(expected))
    np.testing.assert_array_equal(fmt.values(), np.unique(expected[np.isfinite(expected)]))
    finite = expected[np.isfinite(expected)]
    assert (fmt.min, fmt.max) == (finite.min(), finite.max())
    assert fmt.smallest == finite[finite > 0].min()


@named
def test_codes_and_values_equal_the_package_at_every_boundary(name):
    fmt, dtype = parse(name), PACKAGE[name]
    x = points(fmt)
    if not fmt.has_nan:
        x = x[np.isfinite(x)]  # the package leaves the others open
    with np.errstate(over="ignore", invalid="ignore"):
        expected = x.astype(dtype)
    codes = np.asarray(fmt.encode(jnp.asarray(x), overflow="spec"))
    number = ~np.isnan(expected.astype(np.float32))
    np.testing.assert_array_equal(codes[number], expected.view(codes.dtype)[number])
    np.testing.assert_array_equal(
        bits(quantize(jnp.asarray(x), name, overflow="spec")), bits(expected.astype(np.float32))
    )


@named
def test_saturation_equals_gfloat_at_every_boundary(name):
    fmt = parse(name)
    info = gfloat.FormatInfo(
        name,
        fmt.bits,
        fmt.mantissa_bits + 1,
        bias=fmt.bias,
        is_signed=True,
        domain=gfloat.Domain.Extended if fmt.specials == "ieee" else gfloat.Domain.Finite,
        has_nz=fmt.specials != "fnuz",
        num_high_nans={"ieee": 2**fmt.mantissa_bits - 1, "fn": 1}.get(fmt.specials, 0),
        has_subnormals=True,
        is_twos_complement=False,
    )
    x = points(fmt)
    x = x if fmt.has_nan else x[~np.isnan(x)]
    expected = gfloat.round_ndarray(info, x.astype(np.float64), sat=True).astype(np.float32)
    got = np.asarray(quantize(jnp.asarray(x), fmt))
    number = ~np.isnan(expected)  # gfloat gives every NaN the same sign
    np.testing.assert_array_equal(bits(got)[number], bits(expected)[number])
    np.testing.assert_array_equal(np.isnan(got), ~number)


@pytest.mark.parametrize(
    ("fmt", "overflow"),
    [
        *((fmt, overflow) for fmt in UNUSUAL for overflow in ("saturate", "spec")),
        *((parse(name), "saturate") for name in ("e4m3fn", "bfloat16", "e2m1fn", "e5m2fnuz")),
    ],
    ids=str,
)
def test_jit_eager_and_numpy_agree_to_the_bit(fmt, overflow):
    x = points(fmt)

    @jax.jit
    def both(x):
        return quantize(x, fmt, overflow=overflow), fmt.decode(fmt.encode(x, overflow=overflow))

    for got in both(x):
        np.testing.assert_array_equal(bits(got), bits(reference(fmt, x, overflow)))
    if overflow == "spec":
        return
    some = x if fmt.has_nan else x[~np.isnan(x)]
    some = np.resize(some[:: len(some) // 200 + 1], 256)  # one shape: operations compile only once
    with jax.disable_jit():
        got = quantize(jnp.asarray(some), fmt, overflow=overflow)
    np.testing.assert_array_equal(bits(got), bits(reference(fmt, some, overflow)))


@pytest.mark.parametrize(
    "fmt",
    [parse("e4m3fn"), parse("float16"), parse("bfloat16"), parse("e2m1fn"), *UNUSUAL[::2]],
    ids=lambda fmt: fmt.name,
)
def test_float64_is_rounded_once(fmt):
    with jax.enable_x64(True):
        x = points(fmt, np.float64)
        got = jax.jit(lambda x: quantize(x, fmt, overflow="spec"))(x)
        assert got.dtype == np.float64
        np.testing.assert_array_equal(bits(got), bits(reference(fmt, x, "spec")))


def test_float32_as_a_format():
    fmt = parse("float32")
    assert (fmt.bits, fmt.code_dtype, fmt.max) == (32, np.uint32, np.finfo(np.float32).max)
    x = np.random.default_rng(0).integers(0, 2**32, 10_000, np.uint32).view(np.float32)
    x = x[np.isfinite(x)]  # a third of a percent of them subnormal
    np.testing.assert_array_equal(fmt.encode(jnp.asarray(x)), x.view(np.uint32))
    np.testing.assert_array_equal(bits(fmt.decode(jnp.asarray(x.view(np.uint32)))), bits(x))
    np.testing.assert_array_equal(bits(quantize(jnp.asarray(x), fmt)), bits(x))
    with jax.enable_x64(True):  # halves of the last bit, and one float64 step beside them
        wide = x.astype(np.float64)
        middle = (wide + np.nextafter(x, np.float32(np.inf)).astype(np.float64)) / 2
        for y in (middle, np.nextafter(middle, np.inf), np.nextafter(middle, -np.inf)):
            got = quantize(jnp.asarray(y), fmt, overflow="spec")
            np.testing.assert_array_equal(bits(got), bits(y.astype(np.float32).astype(np.float64)))
    with pytest.raises(ValueError, match=r"float32\.values\(\) would list 2\^32"):
        fmt.values()


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        *((name, ml_dtypes.bfloat16) for name in PACKAGE),
        *((name, np.float16) for name in ("e4m3fn", "e5m2", "float16", "bfloat16")),
    ],
)
def test_16_bit_inputs_keep_their_dtype(name, dtype):
    x = np.arange(2**16).astype(np.uint16).view(dtype)
    x = x[np.isfinite(x.astype(np.float32))]
    with np.errstate(over="ignore"):
        expected = reference(parse(name), x.astype(np.float32), "spec").astype(dtype)
    got = quantize(jnp.asarray(x), name, overflow="spec")
    assert got.dtype == dtype
    np.testing.assert_array_equal(bits(got), bits(expected))


def test_saturation_stays_finite_in_the_dtype_of_x():
    """65504 in bfloat16 is 65536, which float16 cannot hold."""
    x = jnp.array([65504.0, -65504.0], jnp.float16)
    assert quantize(x, "bfloat16").tolist() == [65504, -65504]
    assert quantize(x, "bfloat16", overflow="spec").tolist() == [np.inf, -np.inf]


def test_excess_precision_does_not_reach_the_rounding():
    """XLA may skip the rounding of a * b to bfloat16 if it is only widened again."""
    a, b = np.random.default_rng(1).normal(size=(2, 20_000)).astype(ml_dtypes.bfloat16)
    expected = (a * b).astype(ml_dtypes.float8_e4m3fn).astype(ml_dtypes.bfloat16)
    got = jax.jit(lambda a, b: quantize(a * b, "e4m3fn"))(a, b)
    np.testing.assert_array_equal(np.asarray(got), expected)


@named
def test_fused_with_a_matmul_it_gives_the_same_numbers(name):
    fmt = parse(name)
    rng = np.random.default_rng(2)
    # small integers times a power of two: every sum of the products is exact in float32
    scale = np.float32(2.0 ** np.floor(np.log2(fmt.max) - 14))
    a, b = (rng.integers(-8, 9, (33, 33)).astype(np.float32) for _ in range(2))

    @jax.jit
    def fused(a, b):
        q = quantize((a @ b) * scale, fmt)
        return q, q @ jnp.eye(33)

    expected = reference(fmt, (a @ b) * scale, "saturate")
    for got in fused(a, b):
        np.testing.assert_array_equal(got, expected)


# Columns of the table in the method card: max, smallest normal, smallest, first that overflows.
TABLE = {
    "float16": (65504, 2**-14, 2**-24, 65520),
    "bfloat16": (3.3895313892515355e38, 2**-126, 2**-133, 3.3961775292304601e38),
    "e5m2": (57344, 2**-14, 2**-16, 61440),
    "e4m3fn": (448, 2**-6, 2**-9, np.nextafter(464, 500, dtype=np.float32)),
    "e4m3": (240, 2**-6, 2**-9, 248),
    "e3m4": (15.5, 0.25, 2**-6, 15.75),
    "e4m3fnuz": (240, 2**-7, 2**-10, 248),
    "e5m2fnuz": (57344, 2**-15, 2**-17, 61440),
    "e4m3b11fnuz": (30, 2**-10, 2**-13, 31),
}


@pytest.mark.parametrize("name", TABLE)
def test_table_of_the_formats(name):
    fmt = parse(name)
    largest, normal, smallest, overflows = TABLE[name]
    assert (fmt.max, fmt.smallest) == (largest, smallest)
    at = np.array([overflows, np.nextafter(np.float32(overflows), np.float32(0))], np.float32)
    got = np.asarray(quantize(jnp.asarray(at), name, overflow="spec"))
    assert not np.isfinite(got[0])
    assert got[1] == largest
    v = fmt.values()
    steps = np.diff(v[v >= 0])
    assert (steps[v[v >= 0][1:] <= 2 * normal] == smallest).all()  # the step doubles at 2 normal
    assert steps[(v[v >= 0][1:] > 2 * normal).argmax()] == 2 * smallest


def test_fp4_values():
    assert parse("e2m1fn").values().tolist() == [
        -6, -4, -3, -2, -1.5, -1, -0.5, 0, 0.5, 1, 1.5, 2, 3, 4, 6
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ((4, 3, 7, "nan"), "specials must be one of"),
        ((0, 3, 1, "none"), "exponent_bits >= 1"),
        ((4, -1, 7, "fn"), "mantissa_bits >= 0"),
        ((8, 8, 127, "ieee"), "would take 17 bits"),
        ((1, 0, 0, "ieee"), "no code is left"),
        ((4, 3, 200, "fn"), "exponents would run from -199"),
        ((8, 3, 127, "fn"), "to 128"),
    ],
)
def test_impossible_formats(settings, message):
    with pytest.raises(ValueError, match=message):
        Minifloat(*settings)
