"""Spikes x sparse weights: every path equals x @ W and its gradients, in every way JAX calls it.

Whole-number data make every sum exact in any order, so most comparisons are for equality.
"""

import inspect
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.test_util import check_grads

from spikebit.kernels.sparse import Csr, Pattern, csr_from_dense, csr_from_pairs, inputs_of
from spikebit.kernels.spikes_sparse import spike_matmul_sparse

pytestmark = pytest.mark.usefixtures("compile_quickly")

SHAPES = [  # rows, k, n: around the sizes of groups (16) and blocks of inputs (64), of tasks (4)
    (1, 1, 1),
    (1, 16, 16),
    (3, 17, 15),
    (2, 100, 17),
    (65, 63, 31),
    (4, 64, 64),
    (5, 65, 33),
    (7, 200, 130),
]


@pytest.fixture(params=["cpu", "reference"])
def path(request, monkeypatch):
    force(monkeypatch, request.param)
    return request.param


@pytest.fixture
def cpu(monkeypatch):
    force(monkeypatch, "cpu")


def force(monkeypatch, path):
    monkeypatch.setenv("SPIKEBIT_KERNELS", path)
    jax.clear_caches()  # the choice is made while tracing, and JAX remembers traces


def whole_numbers(shape, rate, seed, dtype=np.float32):
    """Whole numbers from -3 to 3, non-zero with a probability of `rate`."""
    random = np.random.default_rng(seed)
    signs = random.integers(0, 2, shape) * 2 - 1
    return np.asarray((random.random(shape) < rate) * signs * random.integers(1, 4, shape), dtype)


def data(rows, k, n, rate=0.1, density=0.3, dtype=np.float32):
    """x, W, dy, needed; every fifth input and every seventh output without connections."""
    connected = np.random.default_rng(4).random((k, n)) < density
    connected[4::5], connected[:, 6::7] = False, False
    w = csr_from_dense(whole_numbers((k, n), 1.0, 1, dtype), connected)
    x, dy = whole_numbers((rows, k), rate, 0, dtype), whole_numbers((rows, n), 1.0, 2, dtype)
    needed = np.random.default_rng(3).random((rows, k)) < 0.3
    return jnp.asarray(x), w, jnp.asarray(dy), jnp.asarray(needed)


def gradients(x, w, dy, needed=None):
    def product(x, data):
        return spike_matmul_sparse(x, w._replace(data=data), needed=needed)

    y, pull = jax.vjp(product, x, w.data)
    return (y, *pull(dy))


def dense_gradients(x, w, dy, needed=None):
    """The same by dense products in numpy."""
    at = np.asarray(inputs_of(w.pattern)), np.asarray(w.pattern.indices)
    x, dense, dy = (np.asarray(a, np.float64) for a in (x, w.dense(), dy))
    dx = dy @ dense.T
    return x @ dense, dx if needed is None else dx * np.asarray(needed), (x.T @ dy)[at]


def assert_all_equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_value_and_gradients_are_exact_at_every_density(cpu, shape):
    exact_at_every_density(*shape)


def test_the_reference_is_exact_at_every_density(monkeypatch):
    force(monkeypatch, "reference")
    exact_at_every_density(5, 65, 33)


def exact_at_every_density(*shape):
    compiled = jax.jit(gradients)
    for rate in (0.0, 0.1, 1.0):
        x, w, dy, needed = data(*shape, rate)
        assert_all_equal(compiled(x, w, dy), dense_gradients(x, w, dy))
        assert_all_equal(compiled(x, w, dy, needed), dense_gradients(x, w, dy, needed))


@pytest.mark.parametrize("shape", [(0, 3, 2), (2, 0, 3), (3, 2, 0), (0, 0, 0)], ids=str)
def test_empty_shapes(path, shape):
    x, w, dy, needed = data(*shape, 1.0, 1.0)
    assert_all_equal(gradients(x, w, dy, needed), dense_gradients(x, w, dy, needed))


compiled = jax.jit(gradients)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0, 1), st.sampled_from([0, 3, 10, 63, 180]))
def test_any_matrix(seed, rate, nnz):
    """One shape for each number of connections, so that little is compiled."""
    random = np.random.default_rng(seed)
    places = random.permutation(9 * 20)[:nnz]
    w = csr_from_pairs(places // 20, places % 20, random.integers(-3, 4, nnz) * 1.0, (9, 20))
    x, dy = whole_numbers((5, 9), rate, seed), whole_numbers((5, 20), 1.0, seed + 1)
    needed = random.random((5, 9)) < 0.5
    assert_all_equal(compiled(x, w, dy, needed), dense_gradients(x, w, dy, needed))


def test_float64(cpu):
    with jax.enable_x64(True):
        x, w, dy, needed = data(9, 50, 33, dtype=np.float64)
        results = gradients(x, w._replace(data=w.data / 3), dy / 3, needed)
        y, dx, dw = dense_gradients(x, w, dy, needed)
        for result, exact in zip(results, (y / 3, dx / 9, dw / 3), strict=True):
            assert result.dtype == jnp.float64
            np.testing.assert_allclose(result, exact, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_other_floats_take_the_reference(cpu, dtype):
    x, w, dy, needed = data(4, 40, 20)
    x, w, dy = jax.tree.map(lambda a: a.astype(dtype) if a.dtype == x.dtype else a, (x, w, dy))
    results = gradients(x, w, dy, needed)
    assert {r.dtype for r in results} == {jnp.dtype(dtype)}
    assert_all_equal([r.astype(np.float64) for r in map(np.asarray, results)],
                     list(dense_gradients(x, w, dy, needed)))  # fmt: skip


def test_graded_values_are_within_the_bound_of_a_sum(cpu):
    x, w, dy, _ = data(70, 300, 90)
    random = np.random.default_rng(5)
    x, dy = (jnp.asarray(a * random.normal(size=a.shape), jnp.float32) for a in (x, dy))
    w = w._replace(data=jnp.asarray(random.normal(size=w.data.shape), jnp.float32))
    exact = dense_gradients(x, w, dy)
    sizes = dense_gradients(abs(x), w._replace(data=abs(w.data)), abs(dy))
    results = gradients(x, w, dy)
    for result, right, size, terms in zip(results, exact, sizes, (300, 90, 70), strict=True):
        # |error| <= terms * unit roundoff * sum of magnitudes, to first order; twice for safety
        assert (abs(np.asarray(result) - right) <= 2 * terms * 2**-24 * size).all()


def test_gradient_equals_finite_differences(cpu):
    with jax.enable_x64(True):
        x, w, _, _ = data(3, 20, 11, dtype=np.float64)

        def product(x, data):
            return spike_matmul_sparse(jnp.asarray(x), w._replace(data=jnp.asarray(data)))

        check_grads(product, (x, w.data), 1, modes=["rev"])


def test_the_reference_has_forward_mode(monkeypatch):
    force(monkeypatch, "reference")
    x, w, _, needed = data(6, 40, 35)
    tangent = jax.jvp(lambda x: spike_matmul_sparse(x, w, needed=needed), (x,), (x,))[1]
    assert_all_equal(tangent, jnp.where(needed, x, 0) @ w.dense())


def test_any_number_of_leading_axes(cpu):
    x, w, dy, needed = data(12, 30, 20)
    y, dx, dw = gradients(x, w, dy, needed)
    shaped = gradients(*(a if a is w else a.reshape(3, 2, 2, -1) for a in (x, w, dy, needed)))
    assert_all_equal(shaped, (y.reshape(3, 2, 2, 20), dx.reshape(3, 2, 2, 30), dw))
    assert_all_equal(spike_matmul_sparse(x[0], w), y[0])


@pytest.mark.parametrize("batched", ["x", "data", "x data", "dy", "x data dy needed pattern"])
def test_vmap_of_the_gradient(cpu, batched):
    x, w, dy, needed = data(5, 40, 21)
    scales = jnp.arange(1.0, 4.0)
    stacks = {
        "x": x * scales[:, None, None],
        "data": w.data * scales[:, None],
        "dy": dy * scales[:, None, None],
        "needed": jnp.stack([needed, ~needed, needed]),
        "pattern": jax.tree.map(lambda a: jnp.stack([a, a, a]), w.pattern),
    }
    single = {"x": x, "data": w.data, "dy": dy, "needed": needed, "pattern": w.pattern}
    chosen = batched.split()

    def one(x, data, dy, needed, pattern):
        return gradients(x, Csr(data, pattern), dy, needed)

    arguments = [stacks[name] if name in chosen else single[name] for name in single]
    axes = [0 if name in chosen else None for name in single]
    results = jax.jit(jax.vmap(one, axes))(*arguments)
    for b in range(3):
        mine = {
            name: jax.tree.map(lambda a, b=b: a[b], stacks[name]) if name in chosen else value
            for name, value in single.items()
        }
        w_b = Csr(mine["data"], mine["pattern"])
        expected = dense_gradients(mine["x"], w_b, mine["dy"], mine["needed"])
        assert_all_equal(tuple(r[b] for r in results), expected)


def test_jacrev_is_the_matrix(cpu):
    x, w, _, _ = data(2, 20, 18)
    jacobian = jax.jacrev(lambda x: spike_matmul_sparse(x, w))(x)
    expected = jnp.einsum("ab,jk->ajbk", jnp.eye(2), w.dense().T)
    assert_all_equal(jacobian, expected)


@pytest.mark.parametrize("remat", [False, True])
def test_scan_jit_and_checkpoint(cpu, remat):
    xs = jnp.asarray(whole_numbers((6, 4, 30), 0.2, 5))
    _, w, _, _ = data(4, 30, 22)
    _, h, _, _ = data(4, 22, 22, density=0.1)

    def loss(product, w, h, xs):
        def step(y, x):
            z = product(x, w) + product(y, h)
            return jnp.clip(z, 0, 2), z.sum()

        step = jax.checkpoint(step) if remat else step
        return jax.lax.scan(step, jnp.zeros((4, 22)), xs)[1].sum()

    def sparse_loss(a, b, xs):
        return loss(spike_matmul_sparse, w._replace(data=a), h._replace(data=b), xs)

    value, (dw, dh, dxs) = jax.jit(jax.value_and_grad(sparse_loss, (0, 1, 2)))(w.data, h.data, xs)
    dense = jax.value_and_grad(lambda *a: loss(jnp.dot, *a), (0, 1, 2))(w.dense(), h.dense(), xs)
    at = [(inputs_of(m.pattern), m.pattern.indices) for m in (w, h)]
    assert_all_equal(
        (value, (dw, dh, dxs)), (dense[0], (dense[1][0][at[0]], dense[1][1][at[1]], dense[1][2]))
    )


def test_saves_only_what_the_gradient_needs(cpu):
    x, w, _, needed = data(40, 30, 20)
    structure = sum(a.size for a in jax.tree.leaves(w.pattern))
    only_w = jax.vjp(lambda d: spike_matmul_sparse(x, w._replace(data=d)), w.data)[1]
    only_x = jax.vjp(lambda x: spike_matmul_sparse(x, w, needed=needed), x)[1]
    assert sum(a.size for a in jax.tree.leaves(only_w)) == x.size + structure
    assert sum(a.size for a in jax.tree.leaves(only_x)) == w.data.size + structure + needed.size


def test_weights_of_silent_inputs_are_not_read_and_nan_is_an_event(cpu):
    x, w, _, _ = data(3, 20, 18)
    silent = (np.asarray(x) == 0).all(0)
    assert silent.any()
    w = w._replace(data=jnp.where(silent[inputs_of(w.pattern)], jnp.nan, w.data))
    assert not np.isnan(spike_matmul_sparse(x, w)).any()
    i = int(np.flatnonzero(silent & (np.diff(w.pattern.indptr) > 0))[0])
    targets = w.pattern.indices[w.pattern.indptr[i] : w.pattern.indptr[i + 1]]
    y = spike_matmul_sparse(x.at[1, i].set(1.0), w)
    assert sorted(np.flatnonzero(np.isnan(y[1]))) == targets.tolist()
    assert not np.isnan(y[0]).any()


DIGEST = """
import os, sys
os.sched_setaffinity(0, list(os.sched_getaffinity(0))[: int(sys.argv[1])])
import hashlib, jax, numpy as np
from spikebit.kernels import spikes_sparse_cpu as cpu
from spikebit.kernels.sparse import csr_from_dense
random = np.random.default_rng(0)
w = random.normal(size=(300, 400)).astype(np.float32)
w = csr_from_dense(w, random.random((300, 400)) < 0.2)
x = ((random.random((130, 300)) < 0.1) * random.normal(size=(130, 300))).astype(np.float32)
dy = random.normal(size=(130, 400)).astype(np.float32)
assert x.shape[0] * len(w.data) > cpu._SERIAL
for result in (
    cpu.forward(x, *w), cpu.weight_gradient(x, dy, w.pattern),
    cpu.input_gradient(dy, *w, x != 0),
):
    print(hashlib.sha256(np.asarray(result)).hexdigest())
"""


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="cannot choose cores here")
def test_the_bits_do_not_depend_on_the_number_of_threads():
    one, two = (
        subprocess.run(
            [sys.executable, "-c", DIGEST, cores], capture_output=True, text=True, check=True
        ).stdout
        for cores in ("1", "2")
    )
    assert one == two
    assert len(one.split()) == 3


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(-(2**31), 2**31 - 1), min_size=12, max_size=12), st.booleans())
def test_a_pattern_that_is_out_of_order_touches_nothing_else(numbers, small):
    """As it can come about under `jit`, where values are not known."""
    numbers = np.array(numbers)
    numbers = numbers % 9 - 2 if small else numbers
    indptr, indices = (jnp.asarray(a, jnp.int32) for a in np.split(numbers, [5]))
    w = Csr(jnp.ones(7), Pattern(indptr, indices, (4, 6)))
    y, dx, dw = compiled(jnp.ones((2, 4)), w, jnp.ones((2, 6)))
    assert (y.shape, dx.shape, dw.shape) == ((2, 6), (2, 4), (7,))
    assert y.max() <= 4 * 7


def test_what_does_not_fit_is_named():
    unchecked = inspect.unwrap(spike_matmul_sparse)  # the tests' type checking would speak first
    x, w, _, _ = data(3, 5, 7)
    with pytest.raises(ValueError, match=r"\(3, 6\) and float32 .* \(5, 7\).* must be as long"):
        unchecked(jnp.ones((3, 6)), w)
    with pytest.raises(ValueError, match=r"and int32 for weights .* both of one dtype"):
        unchecked(x.astype(jnp.int32), w)
    with pytest.raises(ValueError, match=r"and float32 for weights .* bfloat16"):
        unchecked(x, w._replace(data=w.data.astype(jnp.bfloat16)))
    with pytest.raises(ValueError, match=r"needed of shape \(5,\) for x of shape \(3, 5\)"):
        unchecked(x, w, needed=jnp.ones(5, bool))
    with pytest.raises(ValueError, match="and float32 for weights"):
        unchecked(jnp.float32(1), w)
