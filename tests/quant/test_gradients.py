"""Derivatives through rounding: values kept to the last bit, slopes as the formulas say."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spikebit.quant import encode, lsq, lsq_init, parse, quantize, rounding_pair, straight_through

X = jnp.array([-3.0, -1.0, -0.4, 0.0, 0.7, 1.0, 1.2, 5.0])
#: F, B', and B' in numpy
PAIRS = {
    "identity": (jnp.round, jnp.ones_like, np.ones_like),
    "clipped": (jnp.sign, lambda x: jnp.abs(x) <= 1, lambda x: (np.abs(x) <= 1) * 1.0),
    "tanh": (jnp.sign, lambda x: 1 - jnp.tanh(x) ** 2, lambda x: 1 - np.tanh(x) ** 2),
    "format": (
        lambda x: quantize(x, "e2m1fn"),
        lambda x: jnp.abs(x) <= 1.1,
        lambda x: (np.abs(x) <= 1.1) * 1.0,
    ),
}


@pytest.mark.parametrize("name", PAIRS)
def test_a_pair_has_the_values_of_one_and_the_derivative_of_the_other(name):
    forward, backward, expected = PAIRS[name]
    pair = rounding_pair(forward, backward)
    slope = expected(np.asarray(X))
    weights = jnp.arange(1.0, 9.0)
    y, tangent = jax.jvp(pair, (X,), (weights,))
    np.testing.assert_array_equal(y, forward(X))
    # 1 - tanh^2 cancels: what is left are some ulp of tanh near 1, and the weights go up to 8
    np.testing.assert_allclose(tangent, slope * weights, rtol=1e-6, atol=4e-6)
    value, pullback = jax.vjp(pair, X)
    np.testing.assert_array_equal(value, forward(X))
    np.testing.assert_array_equal(pullback(weights)[0], tangent)  # element by element, so the same
    rows = jax.vmap(jax.grad(lambda x: (pair(x) * weights).sum()))(jnp.stack([X, -X]))
    np.testing.assert_allclose(rows, np.stack([slope, slope]) * weights, rtol=1e-6, atol=4e-6)


def test_a_forward_function_without_a_derivative():
    def looked_up(x):
        return jax.pure_callback(lambda x: np.float32(np.rint(x)), x, x)

    grad = jax.jit(jax.grad(lambda x: rounding_pair(looked_up, jnp.ones_like)(x).sum()))(X)
    np.testing.assert_array_equal(grad, 1)


def test_second_derivative_is_that_of_the_stand_in():
    pair = rounding_pair(*PAIRS["tanh"][:2])
    x = 0.5
    expected = -2 * np.tanh(x) * (1 - np.tanh(x) ** 2)
    assert jax.grad(jax.grad(pair))(x) == pytest.approx(expected, rel=1e-6)


def test_a_pair_inside_scan():
    """The product of the slopes at 0.5 c, with c the signs that it passes through."""
    pair = rounding_pair(*PAIRS["tanh"][:2])

    def last(x):
        return jax.lax.scan(lambda c, _: (pair(0.5 * c), None), x, length=3)[0]

    value, grad = jax.value_and_grad(last)(0.8)
    assert value == 1
    slopes = [1 - np.tanh(0.5 * c) ** 2 for c in (0.8, 1, 1)]
    assert grad == pytest.approx(0.5**3 * np.prod(slopes), rel=1e-5)


def test_straight_through_keeps_y_and_stops_nan_where_it_is_closed():
    y = jnp.array([np.float32(0.1), -0.0, np.inf])
    out, pullback = jax.vjp(
        lambda x: straight_through(x, y, jnp.array([True, True, False])), jnp.ones(3)
    )
    assert np.asarray(out).tobytes() == np.asarray(y).tobytes()
    assert pullback(jnp.array([2.0, -1.0, np.nan]))[0].tolist() == [2, -1, 0]
    assert jax.grad(lambda y: straight_through(X, y, X > 0).sum())(X).tolist() == [0] * 8


def lsq_by_hand(x, step, fmt):
    """Values and slopes in float64, and the scale of the gradient, from the paper's formulas."""
    v = x.astype(np.float64) / step
    values = fmt.values().astype(np.float64)
    values = values[values >= fmt.min]
    q = values[np.abs(v[..., None] - values).argmin(-1)]
    inside = (v > fmt.min) & (v < fmt.max)
    return q, inside, np.where(inside, q - v, q), np.sqrt(np.size(step) / x.size / fmt.max)


@pytest.mark.parametrize("name", ["int4", "int4_full", "int3_asymmetric", "nf4", "log4", "ternary"])
def test_lsq(name):
    fmt, weights = parse(name), jax.random.normal(jax.random.key(1), (4, 25))
    x = jax.random.normal(jax.random.key(0), (4, 25))
    step = jnp.array([[0.2], [0.3], [0.41], [0.07]]) * 7 / fmt.max
    q, inside, slope, g = lsq_by_hand(np.asarray(x), np.asarray(step), fmt)
    assert 0 < inside.mean() < 1

    @jax.jit
    def run(x, step, weights):
        y, pullback = jax.vjp(lambda x, s: lsq(x, s, fmt), x, step)
        return y, *pullback(weights)

    y, dx, ds = run(x, step, weights)
    np.testing.assert_array_equal(y, np.float32(q) * step)
    np.testing.assert_array_equal(y, lsq(x, step, fmt))
    np.testing.assert_array_equal(dx, np.where(inside, weights, 0))
    expected = g * (slope * np.asarray(weights)).sum(-1, keepdims=True)
    # sums of 25 terms, each x / s - q with an error of an ulp of x / s
    np.testing.assert_allclose(ds, expected, rtol=1e-5, atol=1e-5)
    tangents = jnp.cos(x), jnp.ones_like(step)
    _, forward = jax.jvp(lambda x, s: lsq(x, s, fmt), (x, step), tangents)
    np.testing.assert_allclose(
        (forward * weights).sum(), (dx * tangents[0]).sum() + ds.sum(), rtol=1e-4
    )


def test_lsq_derivative_to_the_step_is_that_of_its_surrogate():
    """With the rounding offset Q(v) - v held fixed, y = s (clip(v) + offset) has a derivative."""
    x = np.linspace(-3, 3, 60)
    s0, n, h = 0.3, 7, 1e-4
    offset = np.rint(np.clip(x / s0, -n, n)) - np.clip(x / s0, -n, n)

    def surrogate(s):
        return (s * (np.clip(x / s, -n, n) + offset)).sum()

    difference = (surrogate(s0 + h) - surrogate(s0 - h)) / (2 * h)
    got = jax.grad(lambda s: lsq(jnp.asarray(x, jnp.float32), s, "int4").sum())(jnp.float32(s0))
    # linear in s between the ends: what is left is rounding, 60 terms of up to 7 in float32
    assert float(got) * np.sqrt(60 * 7) == pytest.approx(difference, abs=60 * 7 * 1e-6)


def test_lsq_at_the_ends_of_the_format_is_outside():
    x = jnp.array([-7.0, 7.0, 6.999])
    dx, ds = jax.grad(lambda x, s: lsq(x, s, "int4").sum(), (0, 1))(x, jnp.float32(1))
    assert dx.tolist() == [0, 0, 1]
    assert float(ds) == pytest.approx(0.001 / np.sqrt(21), rel=1e-3)


def test_lsq_equals_quantize_for_its_step():
    x = jax.random.normal(jax.random.key(2), (5, 64))
    for name in ("int4", "nf4"):
        scale = encode(x, name, axis=-1).scale
        assert scale is not None
        np.testing.assert_array_equal(lsq(x, scale.unit, name), quantize(x, name, axis=-1))


def test_lsq_vmap_scan_and_16_bit_numbers():
    x = jax.random.normal(jax.random.key(3), (3, 40))
    steps = jnp.array([0.1, 0.2, 0.3])
    grad = jax.jit(jax.grad(lambda s, x: lsq(x, s, "int4").sum()))
    loop = [grad(s, a) for s, a in zip(steps, x, strict=True)]
    np.testing.assert_allclose(jax.vmap(grad)(steps, x), loop, rtol=1e-5)
    scanned = jax.lax.scan(lambda c, sx: (c, grad(*sx)), 0, (steps, x))[1]
    np.testing.assert_allclose(scanned, loop, rtol=1e-5)
    short = x.astype(jnp.bfloat16)
    both = jax.grad(lambda x, s: lsq(x, s, "int4").astype(jnp.float32).sum(), (0, 1))
    dx, ds = jax.jit(both)(short, steps[:, None])
    assert (dx.dtype, ds.dtype) == (jnp.bfloat16, jnp.float32)
    wide = short.astype(jnp.float32)
    expected = jax.jit(jax.grad(lambda s: lsq(wide, s, "int4").sum()))(steps[:, None])
    np.testing.assert_allclose(ds, expected, rtol=1e-5)
    assert lsq(short, steps[:, None], "int4").dtype == jnp.bfloat16


def test_lsq_finds_the_step_of_least_error():
    """Gradient descent on |y - x|^2 alone ends near the clip that the search finds."""
    x = jax.random.normal(jax.random.key(4), (4096,))

    def error(s, x):
        return jnp.square(lsq(x, s, "int4") - x).mean()

    @jax.jit
    def descend(s, x):
        rate = 0.1 * (x.size * 7) ** 0.5  # without the scale of the gradient
        return jax.lax.scan(lambda s, _: (s - rate * jax.grad(error)(s, x), None), s, length=300)[0]

    start = lsq_init(x, "int4")
    best = jnp.square(quantize(x, "int4", axis=-1, scale="mse") - x).mean()
    # the derivative leaves out that numbers change their neighbours: it comes near, not there
    assert error(descend(start, x), x) < 1.05 * best < error(start, x)


def test_lsq_of_a_constant_under_a_transformation():
    """Checks of numbers at hand do not get in the way of tracing."""
    step = jnp.array(0.25)
    y = jax.jit(lambda x: lsq(x, step, "int4"))(X)
    np.testing.assert_array_equal(y, lsq(X, step, "int4"))


def test_lsq_init():
    x = jax.random.normal(jax.random.key(5), (64,))
    expected = 2 * np.abs(np.asarray(x)).mean() / np.sqrt(7)
    np.testing.assert_allclose(lsq_init(x, "int4"), expected, rtol=1e-6)
    assert lsq_init(jnp.zeros(3), "int4") == 1


@pytest.mark.parametrize("name", ["e4m3fn", "fixed8.4", "mxfp4", "int1_full"])
def test_lsq_refuses_formats_without_a_step(name):
    message = rf"\({name}\): a step can be learned for a format whose unit is a scale"
    with pytest.raises(ValueError, match="lsq" + message):
        lsq(X, jnp.array(0.1), name)
    with pytest.raises(ValueError, match="lsq_init" + message):
        lsq_init(X, name)


def test_lsq_refuses_steps_that_are_not_positive():
    with pytest.raises(ValueError, match=r"lsq\(int4\): step of shape \(2, 1\) holds numbers"):
        lsq(jnp.ones((2, 3)), jnp.array([[0.1], [0.0]]), "int4")
