"""Every format of at most 16 bits at all its codes and all boundaries, against other packages."""

import gfloat
import gfloat.formats
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from spikebit.quant import (
    Minifloat,
    Posit,
    known_formats,
    parse,
    quantize,
)
from spikebit.quant.blocks import BlockFormat

ODD = ("e3m0", "e5m0b16fnuz", "e1m3b0", "e3m3b-4fn", "e4m6b125fn", "e7m3b0", "int1_full",
       "int7_half", "int5_asymmetric", "fixed8.4", "fixed9.-3_symmetric", "posit6")  # fmt: skip
FORMATS = [
    fmt
    for fmt in map(parse, dict.fromkeys((*known_formats(), *ODD)))
    if fmt.bits <= 16 and not isinstance(fmt, BlockFormat)
]
# gfloat gives numbers that are not in the format where it has one exponent bit and Inf
MINIFLOATS = [f for f in FORMATS if isinstance(f, Minifloat) and f.exponent_bits > 1]
MODES = {
    "nearest_even": gfloat.RoundMode.TiesToEven,
    "nearest_away": gfloat.RoundMode.TiesToAway,
    "toward_zero": gfloat.RoundMode.TowardZero,
    "up": gfloat.RoundMode.TowardPositive,
    "down": gfloat.RoundMode.TowardNegative,
}


def named(fmt):
    return fmt.name


def boundaries(values, most):
    """Values, midpoints and what lies an ulp beside both; at most so many gaps, ends included."""
    if len(values) > most:
        keep = np.random.default_rng(0).choice(len(values) - 1, most, replace=False)
        keep = np.union1d(keep, [0, 1, len(values) - 3, len(values) - 2])
    else:
        keep = np.arange(len(values) - 1)
    v = values.astype(np.float64)
    x = np.concatenate([v[keep], v[keep + 1], (v[keep] + v[keep + 1]) / 2]).astype(np.float32)
    with np.errstate(over="ignore"):
        near = [np.nextafter(x, np.float32(end)) for end in (np.inf, -np.inf)]
    x = np.concatenate([x, *near])
    return np.unique(x[np.isfinite(x)])


@pytest.mark.parametrize("fmt", FORMATS, ids=named)
def test_all_codes_decode_and_encode_back(fmt):
    codes = np.arange(2**fmt.bits).astype(fmt.code_dtype)
    values = np.asarray(fmt.decode(jnp.asarray(codes)))
    within = (values >= fmt.min) & (values <= fmt.max)
    back = np.asarray(fmt.encode(jnp.asarray(values[within])))
    assert back.dtype == fmt.code_dtype
    np.testing.assert_array_equal(np.asarray(fmt.decode(jnp.asarray(back))), values[within])
    # no two codes are one number, but for -0 and for codes that have no number of their own
    twice = len(codes[within]) - len(np.unique(values[within]))
    assert twice <= 1
    if not twice:
        np.testing.assert_array_equal(back, codes[within])


@pytest.mark.parametrize("fmt", FORMATS, ids=named)
def test_between_two_values_every_rounding_goes_to_the_right_one(fmt):
    """In units of the scale, by a search among the values in float64."""
    v = fmt.values().astype(np.float64)
    v = v[(v >= fmt.min) & (v <= fmt.max)]
    if len(v) < 2:
        pytest.skip("one value alone")
    x = boundaries(v, 500)
    x = x[(x >= v[0]) & (x <= v[-1])]
    low = np.clip(np.searchsorted(v, x, side="right") - 1, 0, len(v) - 2)
    below, above = v[low], v[low + 1]
    wide = x.astype(np.float64)
    nearer = np.where(wide - below < above - wide, below, above)
    tie = wide - below == above - wide

    def round_all(x):
        return {r: fmt._round(x, r, "saturate", None) for r in MODES}

    got = {r: np.asarray(y, np.float64) for r, y in jax.jit(round_all)(jnp.asarray(x)).items()}
    on = (wide == below) | (wide == above)
    for y in got.values():
        np.testing.assert_array_equal(y[on], wide[on])
    np.testing.assert_array_equal(got["down"], np.where(wide == above, above, below))
    np.testing.assert_array_equal(got["up"], np.where(wide == below, below, above))
    # between -1 and 1 without 0, no neighbour is nearer to zero
    one_sign = ~((below < 0) & (above > 0))
    inward = np.where(wide >= 0, got["down"], got["up"])
    np.testing.assert_array_equal(got["toward_zero"][one_sign], inward[one_sign])
    if isinstance(fmt, Posit):
        return  # their middle is a posit of one more bit, not the mean of both neighbours
    for rounding in ("nearest_even", "nearest_away"):
        np.testing.assert_array_equal(got[rounding][~tie], nearer[~tie])
        assert ((got[rounding] == below) | (got[rounding] == above))[tie].all()


def in_gfloat(fmt):
    return gfloat.FormatInfo(
        fmt.name,
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


def same(got, expected):
    """Equal with the sign of 0; gfloat gives every NaN the same sign."""
    got, expected = np.asarray(got), np.asarray(expected, np.float32)
    number = ~np.isnan(expected)
    np.testing.assert_array_equal(np.isnan(got), ~number)
    np.testing.assert_array_equal(got[number].view(np.uint32), expected[number].view(np.uint32))


@pytest.mark.parametrize("overflow", ["saturate", "spec"])
@pytest.mark.parametrize("fmt", MINIFLOATS, ids=named)
def test_minifloats_equal_gfloat_in_every_rounding(fmt, overflow):
    if overflow == "spec" and fmt.specials == "none":
        return  # the same as saturating
    x = boundaries(fmt.values(), 1500)
    top = fmt.max
    step = top - float(fmt.values()[-2])
    beyond = [top + step / 4, top + step / 2, top + step, 4 * top, np.inf, 2.0**-149]
    with np.errstate(over="ignore"):
        beyond = np.array(beyond).astype(np.float32)
    x = np.concatenate([x, beyond, np.nextafter(beyond, np.float32(0)), -beyond])

    def round_all(x):
        return {r: fmt._round(x, r, overflow, None) for r in MODES}

    for rounding, got in jax.jit(round_all)(jnp.asarray(x)).items():
        with np.errstate(all="ignore"):
            expected = gfloat.round_ndarray(
                in_gfloat(fmt), x.astype(np.float64), MODES[rounding], sat=overflow == "saturate"
            )
        same(got, expected)


def test_e8m0_equals_ml_dtypes_and_gfloat():
    """The package reads what is up to 2^-127 as 2^-126; OCP has a code for it."""
    fmt = parse("e8m0fnu")
    codes = np.arange(256).astype(np.uint8)
    values = np.asarray(fmt.decode(jnp.asarray(codes)))
    np.testing.assert_array_equal(values, codes.view(ml_dtypes.float8_e8m0fnu).astype(np.float32))
    np.testing.assert_array_equal(fmt.encode(jnp.asarray(values), overflow="spec"), codes)
    info = gfloat.formats.format_info_ocp_e8m0
    np.testing.assert_array_equal(values, [gfloat.decode_float(info, int(c)).fval for c in codes])
    x = boundaries(values[:-1], 300)
    x = np.concatenate([x, [0, -0.0, -1, np.inf, -np.inf, np.nan, 3e38]]).astype(np.float32)
    x = x[~((x > 0) & (x < 2.0**-126))]
    got = fmt.encode(jnp.asarray(x), rounding="nearest_away", overflow="spec")
    np.testing.assert_array_equal(got, x.astype(ml_dtypes.float8_e8m0fnu).view(np.uint8))
    tiny = jnp.array([2.0**-149, 2.0**-127, 1.4 * 2.0**-127, 0.0, -3.0])
    assert quantize(tiny, fmt).tolist() == [2.0**-127] * 5
