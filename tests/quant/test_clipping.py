"""Clips against integrals, searches and histograms written here in numpy, in float64."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spikebit.quant import parse, quantize
from spikebit.quant.clipping import clip_of, gaussian_clip, laplace_clip, steps_of
from spikebit.quant.scaling import absmax_scale

pytestmark = pytest.mark.usefixtures("compile_quickly")

RULES = ("absmax", "percentile99", "mse", "kl", "gaussian", "laplace")


def samples(density, shape, seed=0):
    rng = np.random.default_rng(seed)
    return getattr(rng, density)(size=shape).astype(np.float32)


compiled = jax.jit(clip_of, static_argnums=(1, 2))


def clips(x, name, rule):
    return np.asarray(compiled(jnp.asarray(x, jnp.float32), parse(name), rule))


def rounded(x, name, clip):
    """The nearest value of a format, in units of the clip over its steps, in float64."""
    fmt = parse(name)
    values, unit = fmt.values().astype(np.float64), clip / steps_of(fmt)
    values = values[values >= fmt.min]  # narrow integers have a code below, which is never used
    middles = (values[1:] + values[:-1]) / 2
    return values[np.searchsorted(middles, x / unit)] * unit


# The closed forms, for a density with b = 1 or sigma = 1 --------------------------------------


def laplace_density(x):
    return np.exp(-np.abs(x)) / 2


def gaussian_density(x):
    return np.exp(-x * x / 2) / math.sqrt(2 * math.pi)


DENSITIES = {
    "laplace": (laplace_density, laplace_clip, 60.0),
    "gaussian": (gaussian_density, gaussian_clip, 14.0),
}
NODES, WEIGHTS = np.polynomial.legendre.leggauss(200)


def integral(f, low, high):
    middle, half = (low + high) / 2, (high - low) / 2
    return half * (WEIGHTS * f(middle + half * NODES)).sum()


@pytest.mark.parametrize("n", [1.0, 2.0, 3.5, 7.0, 8.0, 127.0, 32768.0])
@pytest.mark.parametrize("name", DENSITIES)
def test_closed_form_is_the_minimum_of_the_integral(name, n):
    """Of the squared error beyond the clip, integrated, and a twelfth of the squared step."""
    density, closed, end = DENSITIES[name]

    def error(a):
        beyond = 2 * integral(lambda x: (x - a) ** 2 * density(x), a, a + end)
        return beyond + (a / n) ** 2 / 12

    a = closed(n)
    # the error is flat at its minimum: a derivative finds the place to more digits
    slope = {s: error(a * (1 + s + 1e-5)) - error(a * (1 + s - 1e-5)) for s in (-1e-4, 1e-4)}
    assert slope[-1e-4] < 0 < slope[1e-4]
    assert error(a) <= min(error(other) for other in np.linspace(0.02, 40, 400)) * (1 + 1e-12)


@pytest.mark.parametrize(
    ("closed", "published"),
    [
        (laplace_clip, {1: 1.86, 2: 2.83, 3: 3.89, 4: 5.03}),
        (gaussian_clip, {2: 1.71, 3: 2.15, 4: 2.55}),  # the digits of 2.559 cut off, not rounded
    ],
)
def test_closed_forms_give_the_published_multiples(closed, published):
    """Of b and sigma, for 2^b steps over the whole range, that is 2^(b-1) up to the clip."""
    for bits, multiple in published.items():
        assert 0 <= closed(2.0 ** (bits - 1)) - multiple + 0.005 < 0.015


@pytest.mark.parametrize("name", ["int2", "int4", "fixed6.2"])
def test_closed_form_takes_its_width_from_the_block(name):
    x = samples("laplace", (3, 4096)) * np.float32([[1], [0.37], [50]])
    wide, fmt = x.astype(np.float64), parse(name)
    n = steps_of(fmt) / fmt.smallest
    amax = np.abs(wide).max(-1)
    sigma = np.minimum(np.sqrt((wide**2).mean(-1)) * gaussian_clip(n), amax)
    b = np.minimum(np.abs(wide).mean(-1) * laplace_clip(n), amax)
    np.testing.assert_allclose(clips(x, name, "gaussian"), sigma, rtol=1e-5)
    np.testing.assert_allclose(clips(x, name, "laplace"), b, rtol=1e-5)


@pytest.mark.parametrize("name", DENSITIES)
@pytest.mark.parametrize("bits", [3, 4, 5])
def test_closed_form_is_near_the_best_clip_of_the_format_itself(name, bits):
    """The model takes rounding errors for uniform and all numbers for rounded: good from 3 bits."""
    density, closed, _ = DENSITIES[name]
    x = (np.arange(-50_000, 50_000) + 0.5) / 2_500
    weights, n = density(x), 2.0 ** (bits - 1) - 1

    def error(a):
        return (weights * np.square(x - np.clip(np.rint(x * n / a), -n, n) * a / n)).sum()

    assert error(closed(n)) < 1.02 * min(error(a) for a in np.linspace(1, 10, 200))


# Percentiles and searches ---------------------------------------------------------------------


def test_percentile_is_that_of_numpy_and_never_zero():
    x = samples("laplace", (4, 1001))
    x[3] = 0
    x[3, 7] = -3
    for p in (99.9, 50.0):
        expected = np.percentile(np.abs(x[:3].astype(np.float64)), p, axis=-1)
        found = clips(x, "e2m1fn", f"percentile{p}")
        np.testing.assert_allclose(found, [*expected, 3], rtol=1e-5)


@pytest.mark.parametrize("name", ["int2", "int4", "e2m1fn", "nf4", "log4"])
def test_mse_is_as_small_as_on_a_fine_grid_of_clips(name):
    x = np.stack([samples(density, 300) for density in ("normal", "laplace", "uniform")])
    for block, clip in zip(x.astype(np.float64), clips(x, name, "mse"), strict=True):
        grid = np.linspace(0.01, 2, 1000) * np.abs(block).max()
        best = min(((rounded(block, name, c) - block) ** 2).sum() for c in grid)
        assert ((rounded(block, name, float(clip)) - block) ** 2).sum() <= best * 1.02


def test_mse_finds_the_scale_of_numbers_that_lie_on_the_grid():
    values = parse("nf4").values()
    x = np.float32(0.3) * values[np.random.default_rng(0).integers(1, len(values), (3, 300))]
    np.testing.assert_allclose(clips(x, "nf4", "mse"), 0.3, rtol=1e-6)


def test_mse_of_many_numbers_is_the_minimum():
    """Half a step of the last search is 2^(1/128); the error there is quadratic in it.

    It grows by its square, 3e-5, times a curvature of about 1.
    """
    x = samples("laplace", 1 << 14)
    wide = x.astype(np.float64)

    def error(clip):
        return np.square(rounded(wide, "int4", clip) - wide).sum()

    best = min(error(c) for c in np.linspace(4, 6, 100))
    assert error(float(clips(x, "int4", "mse"))) < best * (1 + 1e-4)


@pytest.mark.parametrize("name", ["int3", "int4", "e2m1fn"])
def test_no_rule_has_a_smaller_error_than_mse(name):
    x = np.stack([samples("normal", 4096), samples("laplace", 4096)])
    error = {}
    for rule in rules_of(name):
        found = clips(x, name, rule).astype(np.float64)
        y = np.stack(
            [rounded(b, name, c) for b, c in zip(x.astype(np.float64), found, strict=True)]
        )
        error[rule] = ((y - x) ** 2).mean(-1)
        assert (error[rule] >= error.get("mse", 0)).all(), rule
    if name != "e2m1fn":  # each closed form is at its best on its own density
        assert (
            error["mse"][0] <= error["gaussian"][0] < min(error["laplace"][0], error["absmax"][0])
        )
        assert (
            error["mse"][1] <= error["laplace"][1] < min(error["gaussian"][1], error["absmax"][1])
        )


# Divergence of histograms ---------------------------------------------------------------------


def least_divergence(x, name, bins=2048, thresholds=128):
    """Histograms bin by bin; gives the clips whose divergence is the least, up to rounding."""
    magnitude = np.abs(x[np.isfinite(x) & (x != 0)])
    amax = magnitude.max()
    counts = np.bincount(np.minimum((magnitude / amax * bins).astype(int), bins - 1))
    divergence = {}
    for t in {round(v) for v in np.linspace(2 ** (parse(name).bits - 1), bins, thresholds)}:
        p, q = counts[:t].astype(float), counts[:t].astype(float)
        p[-1] += counts[t:].sum()
        value = rounded((np.arange(t) + 0.5) / t, name, 1.0)
        for v in np.unique(value):
            used = (value == v) & (p > 0)
            q[used] = q[value == v].sum() / max(used.sum(), 1)
        p, q, used = p / p.sum(), q / q.sum(), p > 0
        with np.errstate(divide="ignore"):
            divergence[t] = (p[used] * np.log(p[used] / q[used])).sum()
    best = min(divergence.values())
    return [amax * t / bins for t, d in divergence.items() if d <= best + 1e-5]


@pytest.mark.parametrize("name", ["int4", "e2m1fn"])
def test_kl_is_the_least_divergence_of_histograms(name):
    x = np.stack([samples("normal", 4096), samples("laplace", 4096), samples("normal", 4096)])
    x[:, 5], x[:, 6], x[2, 0] = np.nan, 0, 40
    found = clips(x, name, "kl")
    for block, clip in zip(x, found, strict=True):
        assert np.isclose(least_divergence(block, name), clip, rtol=1e-6).any()
    assert found[2] < 8  # a lonely outlier is cut off


# All rules --------------------------------------------------------------------------------------


def rules_of(name):
    """With `mse` first."""
    even = name.startswith(("int", "fixed"))
    closed = ("gaussian", "laplace") if even else ()
    return ("mse", "absmax", "percentile99", "kl", *closed)


@pytest.mark.parametrize("name", ["int4", "e4m3fn"])
def test_blocks_are_independent_and_powers_of_two_pass_through(name):
    x = samples("laplace", (2, 3, 64))
    powers = np.float32(2.0) ** np.array([[-90, 3, 0], [100, -1, 40]], np.float32)
    others = samples("normal", (2, 3, 64), seed=1)
    others[1, 2] = x[1, 2]
    for rule in rules_of(name):
        found, scaled, among = clips(np.stack([x, x * powers[..., None], others]), name, rule)
        assert found.dtype == np.float32
        assert (found > 0).all()
        np.testing.assert_array_equal(scaled, found * powers)
        assert among[1, 2] == found[1, 2]


@pytest.mark.parametrize("rule", [r for r in RULES if r != "kl"])  # which has a NaN in its own
def test_what_is_not_finite_counts_for_nothing(rule):
    x = samples("normal", 500)
    spoilt = np.concatenate([x, np.float32([np.nan, np.inf, -np.inf, np.nan])])
    np.testing.assert_allclose(clips(spoilt, "int4", rule), clips(x, "int4", rule), rtol=1e-6)


@pytest.mark.parametrize("rule", RULES)
def test_blocks_of_zeros_of_one_number_and_of_none(rule):
    found = clips([[0, 0], [np.nan, np.inf], [-0.0, np.nan], [1e-40, 0]], "int4", rule)
    np.testing.assert_array_equal(found[:3], 0)
    np.testing.assert_array_equal(absmax_scale(jnp.asarray(found), 7.0), 1)
    assert clips(np.zeros((2, 0), np.float32), "int4", rule).tolist() == [0, 0]
    one = clips(np.float32([[-2.0], [0.5]]), "int4", rule)
    np.testing.assert_allclose(rounded(np.float64(2), "int4", one[0]), 2, rtol=1e-6)


@pytest.mark.parametrize("rule", ["mse", "percentile99", "gaussian"])
def test_scale_of_quantize_is_the_clip_over_the_steps_and_a_constant(rule):
    x = samples("laplace", (3, 256))
    s = clips(x, "int4", rule)[:, None] / np.float32(7)

    def total(x):
        y = quantize(x, "int4", axis=-1, scale=rule)
        return y.sum(), y

    grad, y = jax.grad(total, has_aux=True)(jnp.asarray(x))
    np.testing.assert_array_equal(y, np.clip(np.rint(x / s), -7, 7) * s)
    np.testing.assert_array_equal(grad, np.abs(x / s) <= 7 * (1 + 2e-7))


@pytest.mark.parametrize("rule", ["mse", "kl"])
def test_vmap_gives_the_same_clips(rule):
    fmt, x = parse("int4"), jnp.asarray(samples("normal", (3, 128)))
    mapped = jax.jit(jax.vmap(lambda x: clip_of(x, fmt, rule)))(x)
    np.testing.assert_array_equal(mapped, clips(x, "int4", rule))


@pytest.mark.parametrize(
    ("name", "rule", "message"),
    [
        ("int4", "msee", r"scale is 'msee'; the nearest rule is 'mse': choose absmax, percentile"),
        ("int4", "percentile0", r"scale is 'percentile0'; a percentile is above 0 and at most 100"),
        ("int4", "percentile101", r"percentile101.*at most 100"),
        ("nf4", "gaussian", r"'gaussian', which needs evenly spaced .* nf4 are not: use 'mse'"),
        ("e4m3fn", "laplace", r"'laplace', which needs evenly spaced values.*e4m3fn"),
        ("binary", "kl", r"'kl', which compares values.*binary has but one magnitude: use 'mse'"),
        ("fixed1.0", "mse", r"'mse'; fixed1.0 has no value above 0.*more bits"),
    ],
)
def test_refusals_name_the_rule_the_format_and_the_remedy(name, rule, message):
    with pytest.raises(ValueError, match=message):
        clip_of(jnp.ones(8), parse(name), rule)
