"""Products of integer inputs with low-bit weights: exact sums, in every way of computing them."""

import functools

import jax
import jax.numpy as jnp
import low_bit_cases as cases
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spikebit.kernels import integer_cpu, layouts
from spikebit.kernels.integer import integer_matmul, matmul_reference, two_level_scales
from spikebit.kernels.matrix import BITS, quantized_matrix

pytestmark = pytest.mark.usefixtures("compile_quickly")
FULL = [case for case in cases.CASES if case.kind != "table" and 0 not in case[:3]]
KINDS = {"reference": None} | {f"kind {kind}": kind for kind in integer_cpu.kinds()}


def packed(case, scale=None, seed=0):
    codes, own, zero, table = cases.parts(case, seed)
    scale = own if scale is None else np.broadcast_to(np.float32(scale), own.shape)
    return layouts.pack(quantized_matrix(codes, scale, zero, table=table, bits=case.bits), "vnni")


def product(kind, x, scale, w):
    function = matmul_reference if kind is None else functools.partial(integer_cpu.with_kind, kind)
    return np.asarray(jax.jit(function)(x, scale, w))


def inputs(case):
    x, scale = cases.integer_inputs(case)
    return jnp.asarray(x), jnp.asarray(scale)[:, None]


def exact_cases():
    """All with whole zero points, and some with the rows that single rows and tiles take."""
    whole = [case for case in FULL if case.kind != "float"]
    return whole + [case._replace(m=m) for m, case in zip((6, 40, 40, 3, 1, 1, 40, 1), whole)]  # noqa: B905


@pytest.mark.parametrize("case", exact_cases(), ids=lambda c: c.name)
def test_sums_are_exact(case):
    codes, _, zero, table = cases.parts(case)
    (x, _), ones = inputs(case), np.ones((case.k // case.group, case.n))
    exact = np.asarray(x).astype(np.float64) @ cases.weights(case, codes, ones, zero, table)
    assert abs(exact).max() < 2**23  # halves and whole numbers of this size are float32
    w = packed(case, 1.0)
    for kind in KINDS.values():
        np.testing.assert_array_equal(product(kind, x, jnp.ones((case.m, 1)), w), exact)


def error_bound(case, x, scale, codes, s, zero, table):
    """Of float32 arithmetic after the exact sums: a rounding of each sum, product and addition."""
    groups = case.k // case.group
    sizes = abs(np.asarray(x).astype(np.float64)).reshape(case.m, groups, case.group)
    reach = 1.0 * (1 << case.bits) if table is None else 2 * abs(table).max()
    part = (sizes.sum(2)[:, :, None] * 2 * reach * s[None].astype(np.float64)).sum(1)
    return (groups + 6) * 2.0**-24 * part * np.asarray(scale)


@pytest.mark.parametrize("case", FULL, ids=lambda c: c.name)
def test_all_kinds_are_within_the_roundings_of_the_scales(case):
    (x, scale), (codes, s, zero, table) = inputs(case), cases.parts(case)
    exact = np.asarray(scale) * (
        np.asarray(x).astype(np.float64) @ cases.weights(case, *cases.parts(case))
    )
    bound = error_bound(case, x, scale, codes, s, zero, table)
    for kind in KINDS.values():
        y = product(kind, x, scale, packed(case))
        assert (abs(y - exact) <= bound).all()


@settings(max_examples=6, deadline=None)
@given(st.integers(1, 37), st.sampled_from([1, 3, 20]), st.integers(1, 3), st.integers(1, 70),
       st.sampled_from(BITS), st.booleans(), st.sampled_from(list(KINDS.values())[1:]))  # fmt: skip
def test_shapes_of_any_kind(m, group, groups, n, bits, with_zero, kind):
    case = cases.Case(m, group * groups, n, bits, group, "integer" if with_zero else "symmetric")
    codes, _, zero, _ = cases.parts(case)
    x, _ = inputs(case)
    exact = np.asarray(x) @ cases.weights(case, codes, np.ones((groups, n)), zero, None)
    np.testing.assert_array_equal(product(kind, x, jnp.ones((m, 1)), packed(case, 1.0)), exact)


def test_whole_zero_points_beyond_the_codes():
    case = FULL[0]
    codes, scale, _, _ = cases.parts(case)
    x, _ = inputs(case)
    for z in (-3.0, 20.0):
        w = quantized_matrix(codes, scale * 0 + 1, scale * 0 + z)
        exact = np.asarray(x).astype(int) @ (codes.astype(int) - int(z))
        for kind in KINDS.values():
            np.testing.assert_array_equal(
                product(kind, x, jnp.ones((case.m, 1)), layouts.pack(w, "vnni")), exact
            )


def test_parts_of_a_product_are_the_same_bits():
    """So threads, which take parts, change nothing; here they are two for the whole product."""
    case = cases.Case(300, 128, 320, 4, 32, "float")
    (x, scale), w = inputs(case), packed(case)
    y = np.asarray(integer_matmul(x, scale, w))
    np.testing.assert_array_equal(integer_matmul(x[:7], scale[:7], w), y[:7])
    codes, s, zero, _ = cases.parts(case)
    narrow = quantized_matrix(codes[:, 64:128], s[:, 64:128], zero[:, 64:128])
    some = integer_matmul(x[:100], scale[:100], layouts.pack(narrow, "vnni"))
    np.testing.assert_array_equal(some, y[:100, 64:128])


@pytest.mark.parametrize("shape", [(0, 64, 8), (3, 64, 0), (2, 0, 5)])
def test_empty(shape):
    m, k, n = shape
    w = quantized_matrix(np.zeros((k, n), np.uint8), np.ones((1, n), np.float32))
    x, scale = jnp.ones((m, k), jnp.int8), jnp.ones((m, 1))
    y = integer_matmul(x, scale, layouts.pack(w, "vnni"))
    np.testing.assert_array_equal(y, np.zeros((m, n)))


def test_jit_vmap_and_scan():
    case = cases.Case(6, 64, 24, 4, 32, "integer")
    (x, scale), w = inputs(case), packed(case)
    y = np.asarray(integer_matmul(x, scale, w))
    np.testing.assert_array_equal(jax.jit(integer_matmul)(x, scale, w), y)
    by_threes = x.reshape(2, 3, -1), scale.reshape(2, 3, 1)
    np.testing.assert_array_equal(integer_matmul(*by_threes, w), y.reshape(2, 3, -1))
    folded = jax.vmap(integer_matmul, (0, 0, None))(*by_threes, w)
    np.testing.assert_array_equal(folded, y.reshape(2, 3, -1))
    same_scale = jax.vmap(integer_matmul, (0, None, None))(x, scale[0], w)
    np.testing.assert_allclose(same_scale, y / scale * scale[0], rtol=1e-6)
    ws = jax.tree.map(lambda *leaves: jnp.stack(leaves), w, packed(case, seed=5))
    many = jax.jit(jax.vmap(integer_matmul, (None, None, 0)))(x, scale, ws)
    np.testing.assert_array_equal(many[0], y)
    np.testing.assert_array_equal(many[1], integer_matmul(x, scale, packed(case, seed=5)))
    _, rows = jax.lax.scan(lambda c, row: (c, integer_matmul(*row, w)), 0, by_threes)
    np.testing.assert_array_equal(rows, y.reshape(2, 3, -1))


def test_gradients_in_scales_and_zero():
    case = cases.Case(5, 64, 12, 4, 32, "float")
    (x, scale), w = inputs(case), packed(case)
    dy = np.random.default_rng(3).standard_normal((5, 12)).astype(np.float32)

    def pulled(scale, w):
        return jnp.sum(integer_matmul(x, scale, w) * dy)

    d_scale, dw = jax.jit(jax.grad(pulled, (0, 1), allow_int=True))(scale, w)
    codes, s, zero, _ = (None if a is None else a.astype(np.float64) for a in cases.parts(case))
    sx, q = np.asarray(scale).astype(np.float64), np.asarray(x).astype(np.float64)
    full = cases.weights(case, *cases.parts(case))
    np.testing.assert_allclose(d_scale[:, 0], (dy * (q @ full)).sum(1), rtol=1e-5)
    grad = (sx * q).T @ dy  # of the weights as floats
    grouped = ((codes - np.repeat(zero, 32, 0)) * grad).reshape(2, 32, -1).sum(1)
    np.testing.assert_allclose(dw.scale, grouped, rtol=1e-5, atol=1e-5 * abs(grad).max() * 32)
    of_zero = -s * grad.reshape(2, 32, -1).sum(1)
    np.testing.assert_allclose(dw.zero, of_zero, rtol=1e-5, atol=1e-5 * abs(grad).max() * 32)


def test_two_level_scales_stay_within_int8():
    scale = jnp.asarray(np.random.default_rng(0).uniform(0.1, 1, (16, 5)), jnp.float32)
    for reach in (1, 8, 15, 127):
        multiplier, column = two_level_scales(scale, reach)
        m = np.asarray(multiplier).astype(int)
        assert m.min() >= 1
        assert m.max() * reach <= 127
        within = abs(m * np.asarray(column) - scale) <= np.asarray(column) * (0.5 + 1e-4)
        assert (within | (m == 1)).all()
    multiplier, column = two_level_scales(jnp.array([[0.0, -3.75], [0.0, 1.0]]), 8)
    assert multiplier.tolist() == [[0, -15], [0, 4]]
    assert column[0] == 1
    with pytest.raises(ValueError, match=r"reach=128.*1 to 127"):
        two_level_scales(scale, 128)


def test_nan_in_a_scale_of_rows_marks_its_row():
    case = FULL[2]
    x, scale = inputs(case)
    y = np.asarray(integer_matmul(x, scale.at[1].set(jnp.nan), packed(case)))
    np.testing.assert_array_equal(np.isnan(y).all(1), [False, True, False])
    np.testing.assert_array_equal(np.isnan(y).any(1), [False, True, False])


def test_tables_that_are_not_in_halves():
    codes = np.zeros((8, 3), np.uint8)
    w = quantized_matrix(codes, np.ones(3, np.float32), table=np.linspace(0, 1, 16))
    x, scale = jnp.ones((2, 8), jnp.int8), jnp.ones((2, 1))
    w = layouts.pack(w, "vnni")
    with pytest.raises(ValueError, match=r"tables in halves"):
        integer_matmul(x, scale, w)
    assert np.isnan(jax.jit(integer_matmul)(x, scale, w)).all()
    good = quantized_matrix(codes + 3, np.ones(3, np.float32), table=cases.E2M1)
    assert (
        jax.jit(integer_matmul)(x, scale, layouts.pack(good, "vnni")).tolist() == [[12.0] * 3] * 2
    )


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(0, 5), max_size=3), st.lists(st.integers(0, 5), max_size=3),
       st.sampled_from(["int8", "uint8", "int32", "float32"]),
       st.sampled_from(["float32", "bfloat16", "int32"]))  # fmt: skip
def test_bad_input_is_refused(shape, scale_shape, dtype, scale_dtype):
    w = layouts.pack(quantized_matrix(np.zeros((4, 3), np.uint8), np.ones(3, np.float32)), "vnni")
    x, scale = jnp.ones(shape, dtype), jnp.ones(scale_shape, scale_dtype)
    good = (dtype, scale_dtype) == ("int8", "float32") and shape and shape[-1] == 4
    plain = integer_matmul.__wrapped__ if hasattr(integer_matmul, "__wrapped__") else integer_matmul
    if good and scale.shape == (*x.shape[:-1], 1):
        assert plain(x, scale, w).shape == (*x.shape[:-1], 3)
    else:
        with pytest.raises(ValueError, match=r"integer_matmul\(x_codes, x_scale, w\) got"):
            plain(x, scale, w)


def test_other_arguments_are_refused():
    plain = integer_matmul.__wrapped__
    w = quantized_matrix(np.zeros((4, 3), np.uint8), np.ones(3, np.float32))
    with pytest.raises(ValueError, match=r"got a QuantizedMatrix for w: make it by `pack`"):
        plain(jnp.ones((1, 4), jnp.int8), jnp.ones((1, 1)), w)
    with pytest.raises(ValueError, match="this machine has instructions"):
        integer_cpu.with_kind(9, jnp.ones((1, 4), jnp.int8), jnp.ones((1, 1)), layouts.pack(w))
    tall = quantized_matrix(np.zeros(((1 << 16) + 1, 1), np.uint8), np.ones(1, np.float32))
    with pytest.raises(ValueError, match=r"group of 65537 rows"):
        plain(jnp.ones((1, (1 << 16) + 1), jnp.int8), jnp.ones((1, 1)), layouts.pack(tall, "vnni"))
