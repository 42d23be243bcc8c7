"""`quantize` as a function of JAX: derivatives, transformations, names, and what it refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spikebit.quant import (
    FixedPoint,
    Integer,
    Minifloat,
    known_formats,
    parse,
    quantize,
    straight_through,
)
from spikebit.quant.grid import check_input


@pytest.mark.parametrize(
    ("name", "x", "expected"),
    [
        ("e4m3fn", [0.3, -447.0, 448.0, 448.1, -500.0, np.inf], [1, 1, 1, 0, 0, 0]),
        ("e2m1fn", [0.1, 5.9, 6.1], [1, 1, 0]),
        ("bfloat16", [1e-39, 1.0, -np.inf], [1, 1, 0]),
        ("fixed8.4", [-8.0, -8.1, 7.9375, 7.94], [1, 0, 1, 0]),
        ("int8", [-1.0, 0.3, 0.9], [1, 1, 1]),  # the scale is set by the largest: none saturates
        ("int3_half", [2.0, -2.0, 1.6, 0.1], [0, 1, 1, 1]),  # in steps: 3.5, -3.5, 2.8 of -4 to 3
    ],
)
def test_derivative_is_one_inside_and_zero_where_it_saturates(name, x, expected):
    x = jnp.array(x, jnp.float32)

    def loss(x):
        return (3 * quantize(x, name)).sum()

    np.testing.assert_array_equal(jax.grad(loss)(x), 3 * np.array(expected))


def test_forward_mode_gives_the_same_values_and_derivatives():
    x = jnp.array([0.3, -448.0, 500.0])
    y, tangent = jax.jvp(lambda x: quantize(x, "e4m3fn"), (x,), (jnp.full_like(x, 2),))
    np.testing.assert_array_equal(tangent, [2, 2, 0])
    np.testing.assert_array_equal(y, quantize(x, "e4m3fn"))
    key = jax.random.key(0)
    grad = jax.grad(lambda x: quantize(x, "e4m3fn", rounding="stochastic", key=key).sum())(x)
    np.testing.assert_array_equal(grad, [1, 1, 0])


def test_wrap_has_derivative_one():
    x = jnp.array([3.0, 9.0, -100.3])
    grad = jax.grad(lambda x: quantize(x, "fixed8.4", overflow="wrap").sum())(x)
    np.testing.assert_array_equal(grad, 1)


def test_int_derivative_at_the_largest_value_is_one_for_any_scale():
    """The two roundings in x / (max|x| / n) can give slightly more than n."""
    for seed in range(20):
        x = jax.random.normal(jax.random.key(seed), (50,))
        np.testing.assert_array_equal(jax.grad(lambda x: quantize(x, "int8").sum())(x), 1)


def test_straight_through_takes_any_pair():
    x, key = jnp.array([-2.0, 0.5, 3.0]), jax.random.key(0)
    y = jax.random.normal(key, (3,))
    out, grad = jax.value_and_grad(lambda x: straight_through(x, y, jnp.abs(x) < 1).sum())(x)
    assert out == y.sum()
    np.testing.assert_array_equal(grad, [0, 1, 0])


def test_vmap_scan_and_jit_agree():
    x = jax.random.normal(jax.random.key(0), (5, 7))
    keys = jax.random.split(jax.random.key(1), 5)

    def row(x, key):
        return quantize(x, "e3m2fn", rounding="stochastic", key=key)

    loop = jnp.stack([row(a, k) for a, k in zip(x, keys, strict=True)])
    np.testing.assert_array_equal(jax.vmap(row)(x, jax.random.split(jax.random.key(1), 5)), loop)
    again = jax.random.split(jax.random.key(1), 5)
    scanned = jax.lax.scan(lambda c, xs: (c, row(*xs)), 0, (x, again))[1]
    np.testing.assert_array_equal(scanned, loop)
    np.testing.assert_array_equal(
        jax.vmap(lambda x: quantize(x, "int4"))(x)[2], quantize(x[2], "int4")
    )


def test_nan():
    x = jnp.array([[1.0, jnp.nan], [jnp.nan, -2.0]])
    for name in ("e2m1fn", "fixed8.4", "int4", "e3m0"):
        with pytest.raises(
            ValueError, match=rf"quantize\({name}\): x of shape \(2, 2\) holds 2 NaN.*"
        ):
            quantize(x, name)
        with pytest.raises(ValueError, match="use a format with NaN such as e4m3fn"):
            parse(name).encode(x)
        got = jax.jit(lambda x, name=name: quantize(x, name))(x)
        np.testing.assert_array_equal(got == 0, np.isnan(x))
    for name in ("e4m3fn", "e5m2", "e4m3fnuz", "bfloat16"):
        for overflow in ("saturate", "spec"):
            got = quantize(x, name, overflow=overflow)
            np.testing.assert_array_equal(np.isnan(got), np.isnan(x))


@pytest.mark.parametrize("name", ["e4m3fn", "e5m2", "e4m3fnuz", "e2m1fn", "fixed8.4"])
def test_infinities_saturate_or_follow_the_definition(name):
    fmt, x = parse(name), jnp.array([jnp.inf, -jnp.inf])
    assert quantize(x, name).tolist() == [fmt.max, fmt.min]
    spec = np.asarray(quantize(x, name, overflow="spec"))
    beyond = {"e5m2": np.inf, "e4m3fn": np.nan, "e4m3fnuz": np.nan}.get(name, fmt.max)
    np.testing.assert_array_equal(
        np.abs(spec), np.abs([beyond, fmt.min if beyond == fmt.max else beyond])
    )


def test_wrong_dtype_and_overflow():
    with pytest.raises(
        ValueError, match=r"x of shape \(3,\) has dtype int32; convert it to one of"
    ):
        check_input("quantize", jnp.arange(3), parse("int8"), "nearest_even", "saturate", None)
    with pytest.raises(ValueError, match="overflow is 'clip'; e4m3fn knows saturate, spec"):
        quantize(jnp.ones(2), "e4m3fn", overflow="clip")


@pytest.mark.parametrize(
    ("name", "fmt"),
    [
        ("float32", Minifloat(8, 23, 127)),
        ("float16", Minifloat(5, 10, 15)),
        ("bfloat16", Minifloat(8, 7, 127)),
        ("e4m3fn", Minifloat(4, 3, 7, "fn")),
        ("e4m3b11fnuz", Minifloat(4, 3, 11, "fnuz")),
        ("e2m1fn", Minifloat(2, 1, 1, "none")),
        ("e2m1b1fn", Minifloat(2, 1, 1, "fn")),
        ("e3m3", Minifloat(3, 3, 3)),
        ("e3m3b-2none", Minifloat(3, 3, -2, "none")),
        ("int4", Integer(4)),
        ("int4_half", Integer(4, "half")),
        ("fixed8.4", FixedPoint(8, 4)),
        ("fixed8.-2_symmetric", FixedPoint(8, -2, symmetric=True)),
    ],
)
def test_names(name, fmt):
    assert parse(name) == fmt
    assert fmt.name == name
    assert parse(fmt) is fmt
    assert hash(parse(name)) == hash(fmt)


def test_every_known_format_has_its_own_name():
    assert [parse(name).name for name in known_formats()] == list(known_formats())
    assert len({parse(name) for name in known_formats()}) == len(known_formats())


@pytest.mark.parametrize(
    ("name", "near"),
    [("e4m3fm", "e4m3fn"), ("E4M3FN", "e4m3fn"), ("bfloat", "bfloat16"), ("fixed8", "fixed8.4"),
     ("int_8", "int8"), ("fp16", "float16")],
)  # fmt: skip
def test_unknown_names_propose_the_nearest(name, near):
    with pytest.raises(ValueError, match=f"is called {name!r}; the nearest names are.* {near}[,.]"):
        parse(name)


@pytest.mark.parametrize(
    "name", ["int0", "int1", "int1_half", "int99", "fixed99.1", "fixed8.400", "e9m9", "e0m3"]
)
def test_names_of_impossible_formats(name):
    with pytest.raises(ValueError, match=r"Integer\(|FixedPoint\(|Minifloat\("):
        parse(name)


@pytest.mark.parametrize("shape", [(32,), (4, 32)])
@pytest.mark.parametrize("name", ["int4", "nf4", "log4", "binary"])
def test_subnormal_numbers_keep_their_sign_in_units_of_a_scale(name, shape):
    """Compiled quotients may take them for 0; the answer must not depend on shape or compiler."""
    x = np.zeros(shape, np.float32)
    x.flat[0], x.flat[1], x.flat[-1] = 1e-45, -1e-45, 3e38
    x = jnp.asarray(x)
    for rounding in ("up", "down", "nearest_even"):
        one = np.asarray(quantize(x, name, rounding=rounding)).ravel()[:2]
        with jax.disable_jit():
            other = np.asarray(quantize(x, name, rounding=rounding)).ravel()[:2]
        np.testing.assert_array_equal(one, other)
        if name == "binary":
            expected = {"up": [1, 1], "down": [-1, -1], "nearest_even": [1, -1]}[rounding]
        else:
            expected = {"up": [1, 0], "down": [0, -1], "nearest_even": [0, 0]}[rounding]
        np.testing.assert_array_equal(np.sign(one), expected)
