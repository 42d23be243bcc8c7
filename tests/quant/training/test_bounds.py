"""The floor of low-precision SGD: its constants against the formats, its formula against SGD."""

import math
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spikebit.quant import parse, quantize
from spikebit.quant.training import bounds
from spikebit.quant.training.bounds import EXACT, Errors

LISTED = ("fixed8.4", "fixed6.-2", "e4m3fn", "e5m2", "e2m1fn", "e3m4", "bfloat16", "e3m0")


@pytest.mark.parametrize("name", LISTED)
def test_spacing_is_that_of_the_listed_values(name):
    values = parse(name).values().astype(np.float64)
    relative, absolute = bounds.spacing(name)
    low, gaps = values[values >= 0][:-1], np.diff(values[values >= 0])
    assert (gaps <= np.maximum(relative * low, absolute)).all()
    # neither number could be smaller
    assert gaps[0] == absolute
    if relative:
        assert (gaps[1:] / low[1:])[gaps[1:] > absolute].max() == relative


def test_spacing_of_any_other_format_is_found_from_its_values():
    class Listed(type(parse("e4m3fn")).__mro__[1]):  # a format of no known family
        bits, name, max, min, smallest = 3, "listed", 4.0, -3.0, 0.5

        def _encode(self, x, rounding, overflow, key): ...

        def _decode(self, codes, dtype):
            table = jnp.array([0.0, 0.5, 1.0, 1.5, 4.0, -1.0, -3.0, -3.0], dtype)
            return table[codes]

    assert bounds.spacing(Listed()) == (2.0, 1.0)  # -3 to -1, and -1 to 0


@pytest.mark.parametrize("name", ["int8", "int4_full"])
def test_a_format_without_a_unit_has_no_spacing(name):
    with pytest.raises(ValueError, match=f"{name}.*scale.*such as fixed8.4"):
        bounds.spacing(name)


VECTORS = st.lists(st.floats(-6, 6, width=32), min_size=1, max_size=12)
KINDS = st.sampled_from(["nearest_even", "nearest_away", "toward_zero", "up", "down"])


@settings(max_examples=60, deadline=None)
@given(VECTORS, st.sampled_from((*LISTED[:1], *LISTED[2:], "log4_from-3_geometric")), KINDS)
def test_no_vector_moves_further_than_said(x, name, rounding):
    x = jnp.asarray(x, jnp.float32)
    moved = np.asarray(quantize(x, name, rounding=rounding), np.float64) - np.asarray(x)
    norm = float(np.linalg.norm(np.asarray(x, np.float64)))
    errors = bounds.rounding_errors(name, rounding, len(x), norm)
    assert np.linalg.norm(moved) <= errors.bias * (1 + 1e-6)
    assert errors.variance == 0


def test_the_nearest_in_the_logarithm_moves_further_than_half_a_gap():
    x = 0.125 * 0.7071  # just below the smallest value over sqrt(2)
    assert quantize(jnp.float32(x), "log4_from-3_geometric") == 0
    bias = bounds.rounding_errors("log4_from-3_geometric", "nearest_even", 1, 0.0).bias
    assert x <= bias <= 1.001 * x


def test_the_constants_are_reached():
    n, step = 7, 1 / 16
    halves = jnp.full(n, 1 + step / 2)
    moved = np.linalg.norm(np.asarray(quantize(halves, "fixed8.4") - halves))
    assert bounds.rounding_errors("fixed8.4", "nearest_even", n, 0.0).bias == pytest.approx(moved)
    assert moved == pytest.approx(math.sqrt(n) * step / 2)
    # a float just above a power of two: half a gap is u of it, u = 2^-(M+1)
    x = jnp.array([4 * (1 + 2.0**-4)])
    moved = abs(float((quantize(x, "e4m3fn") - x)[0]))
    said = bounds.rounding_errors("e4m3fn", "nearest_even", 1, 4.0).bias
    assert said == pytest.approx(moved, rel=1e-5)  # beside the subnormals
    assert moved == 2.0**-4 * 4


@pytest.mark.parametrize(("name", "gap"), [("fixed8.4", 1 / 16), ("e4m3fn", 1 / 4)])
def test_stochastic_rounding_has_the_variance_that_is_said(name, gap):
    low, n, draws = 2.0, 4, 20000
    for part in (0.5, 0.25):
        x = jnp.full((draws, n), low + part * gap)
        moved = np.asarray(quantize(x, name, rounding="stochastic", key=jax.random.key(3)) - x)
        square = (moved.astype(np.float64) ** 2).sum(1)
        exact = n * part * (1 - part) * gap**2  # (x - lo)(hi - x)
        assert abs(square.mean() - exact) <= 4.5 * square.std() / math.sqrt(draws) + 1e-12
        assert abs(moved.mean()) <= 4.5 * math.sqrt(exact / n / (n * draws))
        norm = math.sqrt(n) * low  # the gap is said for the end of it that is nearer to 0
        errors = bounds.rounding_errors(name, "stochastic", n, norm)
        assert errors.bias == 0
        assert errors.variance >= exact * (1 - 1e-9)
        if part == 0.5:
            assert errors.variance == pytest.approx(exact, rel=1e-3)


def test_dot_error_bounds_a_sum_in_the_format():
    rng = np.random.default_rng(0)
    for name, n in (("bfloat16", 50), ("e4m3", 6), ("float16", 200)):
        worst = 0.0
        for _ in range(20 if n < 100 else 3):
            a, b = (
                np.asarray(quantize(jnp.asarray(rng.uniform(0.5, 1, n), jnp.float32), name))
                for _ in range(2)
            )
            products = np.asarray(quantize(jnp.asarray(a * b), name))
            total = jnp.float32(0)
            for p in products:
                total = quantize(total + p, name)
            exact = sum(Fraction(float(x)) * Fraction(float(y)) for x, y in zip(a, b, strict=True))
            worst = max(worst, abs(float(total) - float(exact)) / float(exact))
        assert 0 < worst <= bounds.dot_error(name, n)
    u = 2.0**-8
    assert bounds.dot_error("bfloat16", 10) == pytest.approx(10 * u / (1 - 10 * u))
    with pytest.raises(ValueError, match="below 2\\^4, or sum in chunks"):
        bounds.dot_error("e4m3fn", 16)
    with pytest.raises(ValueError, match="minifloats only"):
        bounds.dot_error("fixed8.4", 16)


def test_the_floor_has_the_two_known_forms_and_its_best_step():
    v, d, r, s = 0.1, 3.0, 0.2, 0.01
    biased = bounds.distance_floor(v, distance=d, gradient=Errors(r, 0), update=Errors(s, 0))
    assert biased == pytest.approx((r + s / v) * d + v / 2 * (1 + r + s / v) ** 2)
    unbiased = bounds.distance_floor(v, distance=d, gradient=Errors(0, r), update=Errors(0, s))
    assert unbiased == pytest.approx(v / 2 * (1 + r) + s / (2 * v))
    finite = bounds.distance_floor(v, distance=d, start=2.0, steps=50)
    assert finite == pytest.approx(v / 2 + 4 / (2 * v * 50))
    for update in (Errors(s, 0.0), Errors(0.0, s), Errors(s, s)):
        best = bounds.best_step(update, distance=d)
        at = [bounds.distance_floor(best * c, distance=d, update=update) for c in (0.99, 1, 1.01)]
        assert at[1] < min(at[0], at[2])
    assert bounds.suboptimality_floor(0.25, constant=3.0, power=0.5) == 1.5


def test_an_adversary_can_do_no_more_than_the_bound_and_nearly_as_much():
    """On |x|, errors that always point away from the minimum: SGD stands still at the floor."""
    r, s = 0.25, 0.02
    v = s / (1 - r)  # the step that they just undo
    x = np.float64(1.0)
    for _ in range(50):
        g = np.sign(x)
        x = x - v * (g - r * g) + s * g
    assert x == pytest.approx(1.0)
    errors = {"gradient": Errors(r, 0), "update": Errors(s, 0)}
    floor = bounds.distance_floor(v, distance=1.0, **errors)
    assert 1.0 <= floor <= 1.0 + 2 * v  # the rest is the step itself
    # a little more step and it moves, down to where the step oscillates
    v, x, seen = 2 * v, 1.0, []
    for _ in range(500):
        g = np.sign(x)
        x = x - v * (g - r * g) + s * g
        seen.append(abs(x))
    assert min(seen) <= bounds.distance_floor(v, distance=1.0, start=1.0, steps=500, **errors) < 1


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: bounds.rounding_errors("e4m3fn", "nearest", 3, 1.0), "rounding is 'nearest'"),
        (lambda: bounds.rounding_errors("e4m3fn", "up", 0, 1.0), "size is 0"),
        (lambda: bounds.rounding_errors("e4m3fn", "up", 3, math.nan), "norm nan"),
        (lambda: bounds.distance_floor(0.0, distance=1.0), "step > 0.*step=0.0"),
        (lambda: bounds.distance_floor(0.1, distance=-1.0), "distance=-1.0"),
        (lambda: bounds.distance_floor(0.1, distance=1.0, steps=0), "steps=0"),
        (lambda: bounds.distance_floor(0.1, distance=1.0, gradient=Errors(-1, 0)), "gradient is"),
        (lambda: bounds.distance_floor(0.1, distance=1.0, update=Errors(0, math.nan)), "update is"),
        (lambda: bounds.best_step(Errors(0, -1), distance=1.0), "best_step: update is"),
        (lambda: bounds.best_step(EXACT, distance=-3.0), "distance >= 0; got -3.0"),
        (lambda: bounds.suboptimality_floor(-1.0, constant=1.0, power=0.5), "delta=-1.0"),
        (lambda: bounds.suboptimality_floor(1.0, constant=1.0, power=0.0), "power=0.0"),
        (lambda: bounds.dot_error("e4m3fn", -3), "length is -3"),
        (lambda: bounds.spacing("e8m0fnu"), "spacing: e8m0fnu is a format of scales"),
    ],
)
def test_what_is_out_of_range_is_named(call, said):
    with pytest.raises(ValueError, match=said):
        call()
