"""Products of floats with low-bit weights: within float32 roundings, and their gradients."""

import dataclasses

import jax
import jax.numpy as jnp
import low_bit_cases as cases
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spikebit.kernels import layouts, low_bit_cpu
from spikebit.kernels.low_bit import low_bit_matmul, matmul_reference
from spikebit.kernels.matrix import BITS, quantized_matrix

pytestmark = pytest.mark.usefixtures("compile_quickly")
FULL = [case for case in cases.CASES if 0 not in case[:3]]
EPS = 2.0**-24


def packed(case, seed=0):
    codes, scale, zero, table = cases.parts(case, seed)
    return layouts.pack(quantized_matrix(codes, scale, zero, table=table, bits=case.bits), "vnni")


def assert_near(case, y, x, eps=EPS):
    """Within the roundings of weights, products and sums: k + 3 of each term at most."""
    codes, scale, zero, table = cases.parts(case)
    w = cases.weights(case, codes, scale, zero, table)
    wide = np.repeat(scale, case.group, 0)
    # differences of codes and zero points are rounded, so their sizes before that count
    sizes = abs(w) if zero is None else (codes + np.repeat(zero, case.group, 0)) * wide
    x = np.asarray(x).astype(np.float64)
    bound = (case.k + 3) * EPS * (abs(x) @ sizes) + eps * abs(x @ w)
    assert (abs(np.asarray(y).astype(np.float64) - x @ w) <= bound).all()


@pytest.mark.parametrize("m", [None, 1, 6])
@pytest.mark.parametrize("case", FULL, ids=lambda c: c.name)
def test_kernel_and_reference_are_exact_up_to_roundings(case, m):
    case = case if m is None else case._replace(m=m)
    x, w = jnp.asarray(cases.inputs(case)), packed(case)
    assert_near(case, jax.jit(low_bit_cpu.matmul)(x, w), x)
    if m is None:
        assert_near(case, jax.jit(matmul_reference)(x, w), x)


@settings(max_examples=6, deadline=None)
@given(st.integers(1, 9), st.sampled_from([1, 3, 20, 200]), st.integers(1, 2), st.integers(1, 70),
       st.sampled_from(BITS), st.sampled_from(["symmetric", "integer", "float"]))  # fmt: skip
def test_shapes_of_any_kind(m, group, groups, n, bits, kind):
    case = cases.Case(m, group * groups, n, bits, group, kind)
    x = jnp.asarray(cases.inputs(case))
    assert_near(case, low_bit_matmul(x, packed(case)), x)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_sums_of_short_floats_are_rounded_once(dtype):
    case = FULL[1]._replace(m=3)
    x = jnp.asarray(cases.inputs(case)).astype(dtype)
    y = low_bit_matmul(x, packed(case))
    assert y.dtype == dtype
    assert_near(case, y, x.astype(jnp.float32), eps=float(jnp.finfo(dtype).eps) / 2)


def test_a_table_of_any_numbers_is_taken_as_it_is():
    table = np.array([0, 1e-3, -7, 1e5, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, np.pi], np.float32)
    codes = np.arange(16, dtype=np.uint8)[:, None].repeat(3, 1)
    w = layouts.pack(quantized_matrix(codes, np.ones(3, np.float32), table=table), "vnni")
    y = low_bit_matmul(jnp.eye(16), w)
    np.testing.assert_array_equal(y, table[:, None].repeat(3, 1))
    one_by_one = jnp.concatenate([low_bit_matmul(row[None], w) for row in jnp.eye(16)])
    np.testing.assert_array_equal(one_by_one, y)


def test_parts_of_a_product_are_the_same_bits():
    """So threads, which take parts, change nothing; here they are two for the whole product."""
    case = cases.Case(150, 128, 320, 4, 32, "float")
    x, w = jnp.asarray(cases.inputs(case)), packed(case)
    y = np.asarray(low_bit_matmul(x, w))
    codes, s, zero, _ = cases.parts(case)
    narrow = layouts.pack(quantized_matrix(codes[:, 64:128], s[:, 64:128], zero[:, 64:128]), "vnni")
    np.testing.assert_array_equal(low_bit_matmul(x[:30], narrow), y[:30, 64:128])


@pytest.mark.parametrize("shape", [(0, 64, 8), (3, 64, 0), (2, 0, 5)])
def test_empty(shape):
    m, k, n = shape
    w = quantized_matrix(np.zeros((k, n), np.uint8), np.ones((1, n), np.float32))
    y = low_bit_matmul(jnp.ones((m, k)), layouts.pack(w, "vnni"))
    np.testing.assert_array_equal(y, np.zeros((m, n)))


def test_jit_vmap_and_scan():
    case = cases.Case(6, 64, 24, 4, 32, "integer")
    x, w = jnp.asarray(cases.inputs(case)), packed(case)
    y = np.asarray(low_bit_matmul(x, w))
    by_threes = x.reshape(2, 3, -1)
    np.testing.assert_array_equal(jax.jit(low_bit_matmul)(by_threes, w), y.reshape(2, 3, -1))
    folded = jax.jit(jax.vmap(low_bit_matmul, (0, None)))(by_threes, w)
    np.testing.assert_array_equal(folded, y.reshape(2, 3, -1))
    ws = jax.tree.map(lambda *leaves: jnp.stack(leaves), w, packed(case, 5))
    many = jax.jit(jax.vmap(low_bit_matmul, (None, 0)))(x, ws)
    np.testing.assert_array_equal(many[0], y)
    np.testing.assert_array_equal(many[1], low_bit_matmul(x, packed(case, 5)))
    _, rows = jax.lax.scan(lambda c, x: (c, low_bit_matmul(x, w)), 0, by_threes)
    np.testing.assert_array_equal(rows, y.reshape(2, 3, -1))
    per_example = jax.vmap(jax.grad(lambda x: jnp.sum(low_bit_matmul(x, w))))(x)
    expected = cases.weights(case, *cases.parts(case)).sum(1)
    np.testing.assert_allclose(per_example, np.broadcast_to(expected, (6, 64)), rtol=1e-5)


@pytest.mark.parametrize("case", [FULL[2], FULL[4], FULL[9]], ids=lambda c: c.name)
def test_gradients(case):
    x, w = jnp.asarray(cases.inputs(case)), packed(case)
    dy = np.random.default_rng(3).standard_normal((case.m, case.n)).astype(np.float32)
    codes, s, zero, table = cases.parts(case)
    full = cases.weights(case, codes, s, zero, table)

    def pulled(x, scale, zero, table):
        w_ = dataclasses.replace(w, scale=scale, zero=zero, table=table)
        return jnp.sum(low_bit_matmul(x, w_) * dy)

    which = [i for i, a in enumerate((x, w.scale, w.zero, w.table)) if a is not None]
    dx, ds, *rest = jax.jit(jax.grad(pulled, which))(x, w.scale, w.zero, w.table)
    alone = jax.grad(pulled)(x, w.scale, w.zero, w.table)  # of x only: another path
    grad = np.asarray(x).astype(np.float64).T @ dy  # of the weights as floats
    wide, slack = np.repeat(s, case.group, 0).astype(np.float64), dict(rtol=1e-5, atol=1e-4)
    of_codes = full / wide
    grouped = lambda a: a.reshape(-1, case.group, case.n).sum(1)  # noqa: E731
    np.testing.assert_allclose(dx, dy @ full.T, **slack)
    np.testing.assert_allclose(alone, dy @ full.T, **slack)
    np.testing.assert_allclose(ds, grouped(of_codes * grad), **slack)
    if zero is not None:
        np.testing.assert_allclose(rest[0], grouped(-wide * grad), **slack)
    if table is not None:
        sums = [(wide * grad)[codes == c].sum() for c in range(1 << case.bits)]
        np.testing.assert_allclose(rest[0], sums, **slack)


def test_gradient_keeps_the_dtype_of_x():
    case = FULL[0]
    x, w = jnp.asarray(cases.inputs(case)).astype(jnp.bfloat16), packed(case)
    dx = jax.grad(lambda x: jnp.sum(low_bit_matmul(x, w).astype(jnp.float32)))(x)
    assert dx.dtype == jnp.bfloat16


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(0, 5), max_size=3),
       st.sampled_from(["float32", "bfloat16", "float16", "int8", "complex64"]))  # fmt: skip
def test_bad_input_is_refused(shape, dtype):
    w = layouts.pack(quantized_matrix(np.zeros((4, 3), np.uint8), np.ones(3, np.float32)), "vnni")
    plain, x = low_bit_matmul.__wrapped__, jnp.ones(shape, dtype)
    if "float" in dtype and shape and shape[-1] == 4:
        assert plain(x, w).shape == (*shape[:-1], 3)
    else:
        with pytest.raises(ValueError, match=r"low_bit_matmul\(x, w\) got x of shape"):
            plain(x, w)


def test_weights_that_are_not_packed_are_refused():
    w = quantized_matrix(np.zeros((4, 3), np.uint8), np.ones(3, np.float32))
    with pytest.raises(ValueError, match="got a QuantizedMatrix for w: make it by `pack`"):
        low_bit_matmul.__wrapped__(jnp.ones((1, 4)), w)
