"""Spikes x weights: every path equals x @ w and its gradient, in every way JAX calls it.

Whole-number data make every sum exact in any order, so most comparisons are for equality.
"""

import hashlib
import inspect
import os
import subprocess
import sys
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from spikebit.kernels import spike_matmul, spikes, spikes_cpu
from spikebit.kernels.spikes import spike_matmul_reference

PATHS = {"event": 1e9, "dense": 0.0}
SHAPES = [  # rows, k, n: around the sizes of vectors (16), tiles (64, 256) and blocks (512)
    (1, 1, 1),
    (1, 16, 16),
    (3, 17, 15),
    (2, 100, 17),
    (65, 31, 63),
    (64, 48, 64),
    (5, 33, 255),
    (130, 3, 257),
    (7, 64, 337),
    (515, 20, 40),
]


@pytest.fixture(params=PATHS)
def path(request, monkeypatch):
    """Forces the event-driven or the dense path for every size."""
    force(monkeypatch, request.param)
    return request.param


@pytest.fixture
def event(monkeypatch):
    force(monkeypatch, "event")


def force(monkeypatch, path):
    jax.clear_caches()  # the choice is made while tracing, and JAX remembers traces
    monkeypatch.delenv("SPIKEBIT_KERNELS", raising=False)
    monkeypatch.setattr(spikes, "_SMALL", 1)
    limits = dict.fromkeys(spikes_cpu._CROSSOVER, (PATHS[path], 0.0, 0.0))
    monkeypatch.setattr(spikes_cpu, "_CROSSOVER", limits)


def whole_numbers(shape, rate, seed, dtype=np.float32):
    """Whole numbers from -3 to 3, non-zero with a probability of `rate`."""
    random = np.random.default_rng(seed)
    signs = random.integers(0, 2, shape) * 2 - 1
    return jnp.asarray((random.random(shape) < rate) * signs * random.integers(1, 4, shape), dtype)


def data(rows, k, n, rate=0.1, dtype=np.float32):
    x = whole_numbers((rows, k), rate, 0, dtype)
    w, dy = whole_numbers((k, n), 1.0, 1, dtype), whole_numbers((rows, n), 1.0, 2, dtype)
    return x, w, dy, jnp.asarray(np.random.default_rng(3).random((rows, k)) < 0.3)


def gradients(function, x, w, dy, needed=None):
    y, pull = jax.vjp(lambda x, w: function(x, w, needed=needed), x, w)
    return (y, *pull(dy))


def assert_all_equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_value_and_gradients_are_exact_at_every_density(event, shape):
    for with_needed in (False, True):
        compiled = jax.jit(lambda *a: gradients(spike_matmul, *a))
        for rate in (0.0, 0.05, 0.5, 1.0):
            x, w, dy, needed = data(*shape, rate)
            a, b, g, keep = (np.asarray(v).astype(int) for v in (x, w, dy, needed))
            extra = (needed,) if with_needed else ()
            expected = a @ b, (g @ b.T) * (keep if with_needed else 1), a.T @ g
            assert_all_equal(compiled(x, w, dy, *extra), expected)


def test_float64(event):
    with jax.enable_x64(True):
        for shape in ((9, 50, 33), (5, 33, 300)):
            x, w, dy, needed = data(*shape, dtype=np.float64)
            result = gradients(spike_matmul, x, w, dy, needed)
            assert all(r.dtype == jnp.float64 for r in result)
            third = [r / 3 for r in result]
            exact = gradients(spike_matmul, x, w / 3, dy / 3, needed)
            # Thirds show that no float32 is on the way.
            np.testing.assert_allclose(exact[0], third[0], rtol=1e-13, atol=1e-13)
            np.testing.assert_allclose(exact[2], third[2], rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_other_floats_take_the_dense_product(event, dtype):
    x, w, dy, needed = data(4, 40, 20)
    x, w, dy = (a.astype(dtype) for a in (x, w, dy))
    y, dx, dw = gradients(spike_matmul, x, w, dy, needed)
    assert y.dtype == dx.dtype == dw.dtype == dtype
    assert_all_equal(y, x @ w)


def test_graded_values_are_within_the_bound_of_a_sum(path):
    random = np.random.default_rng(4)
    rows, k, n = 70, 300, 90
    x = (random.random((rows, k)) < 0.2) * random.normal(size=(rows, k))
    x, w = x.astype(np.float32), random.normal(size=(k, n)).astype(np.float32)
    dy = random.normal(size=(rows, n)).astype(np.float32)
    results = gradients(spike_matmul, *map(jnp.asarray, (x, w, dy)))
    x, w, dy = (a.astype(np.float64) for a in (x, w, dy))
    for result, (a, b) in zip(results, ((x, w), (dy, w.T), (x.T, dy)), strict=True):
        # |error| <= terms * unit roundoff * sum of magnitudes, to first order; twice for safety
        bound = 2 * a.shape[1] * 2**-24 * (abs(a) @ abs(b))
        assert (abs(np.asarray(result) - a @ b) <= bound).all()


def test_gradient_equals_finite_differences(path):
    with jax.enable_x64(True):
        x, w, _, _ = data(6, 40, 21, dtype=np.float64)
        check_grads(lambda *a: spike_matmul(*map(jnp.asarray, a)), (x, w), 1, modes=["rev"])


def test_needed_masks_only_the_gradient_of_x(path):
    x, w, dy, needed = data(11, 60, 35)
    y, dx, dw = gradients(spike_matmul, x, w, dy, needed)
    y_all, dx_all, dw_all = gradients(spike_matmul, x, w, dy)
    assert_all_equal((y, dw), (y_all, dw_all))
    assert_all_equal(dx, np.where(needed, dx_all, 0))
    for entries in (jnp.zeros_like(needed), jnp.ones_like(needed)):
        dx = gradients(spike_matmul, x, w, dy, entries)[1]
        assert_all_equal(dx, np.where(entries, dx_all, 0))


def test_reference_has_the_same_derivatives_and_forward_mode(monkeypatch):
    x, w, dy, needed = data(300, 40, 35)
    monkeypatch.setenv("SPIKEBIT_KERNELS", "reference")
    expected = np.where(needed, dy @ w.T, 0), x.T @ dy
    assert_all_equal(gradients(spike_matmul, x, w, dy, needed)[1:], expected)
    tangent = jax.jvp(lambda x: spike_matmul(x, w, needed=needed), (x,), (x,))[1]
    assert_all_equal(tangent, jnp.where(needed, x, 0) @ w)


def test_any_number_of_leading_axes(event):
    x, w, dy, needed = data(12, 30, 20)
    flat = gradients(spike_matmul, x, w, dy, needed)
    shaped = (a.reshape(3, 2, 2, -1) for a in (x, dy, needed))
    x, dy, needed = shaped
    y, dx, dw = gradients(spike_matmul, x, w, dy, needed)
    assert y.shape == (3, 2, 2, 20)
    assert dx.shape == x.shape
    assert_all_equal((y.reshape(12, 20), dx.reshape(12, 30), dw), flat)
    assert_all_equal(spike_matmul(x[0, 0, 0], w), flat[0][0])


@pytest.mark.parametrize("axes", [(0, None, 0), (None, 0, 0), (0, 0, 0), (0, None, None)])
def test_vmap_of_the_gradient(event, axes):
    """vmap over x, w, both; the cotangent and `needed` batched or not."""
    x, w, dy, needed = data(5, 40, 21)
    batch = jnp.arange(1.0, 4.0)[:, None, None]
    arguments = [x, w, dy, needed]
    for i, axis in enumerate((*axes, axes[0])):
        if axis == 0:
            arguments[i] = arguments[i] * batch if i < 3 else jnp.stack([needed, ~needed, needed])
    in_axes = (*axes, axes[0])
    result = jax.jit(jax.vmap(lambda *a: gradients(spike_matmul, *a), in_axes))(*arguments)
    expected = jax.vmap(lambda *a: gradients(reference, *a), in_axes)(*arguments)
    assert_all_equal(result, expected)


def reference(x, w, *, needed=None):
    return spike_matmul_reference(x, w, needed)


def test_vmap_of_the_cotangent_and_jacrev(event):
    x, w, _, needed = data(3, 20, 18)
    result = jax.jacrev(lambda x, w: spike_matmul(x, w, needed=needed), (0, 1))(x, w)
    assert_all_equal(result, jax.jacrev(lambda x, w: reference(x, w, needed=needed), (0, 1))(x, w))


def test_nested_vmap_and_gradient_of_vmap(event):
    x, w, _, needed = data(24, 20, 18)
    x, needed = x.reshape(2, 3, 4, 20), needed.reshape(2, 3, 4, 20)

    def loss(function, x, w):
        def one(x, needed):
            return function(x, w, needed=needed)

        y = jax.vmap(jax.vmap(one), in_axes=1)(x, needed)
        return (y * (jnp.arange(y.size, dtype=y.dtype) % 5).reshape(y.shape)).sum()

    result = jax.grad(loss, (1, 2))(spike_matmul, x, w)
    assert_all_equal(result, jax.grad(loss, (1, 2))(reference, x, w))


@pytest.mark.parametrize("remat", [False, True])
def test_scan_jit_and_checkpoint(event, remat):
    xs = whole_numbers((6, 4, 30), 0.2, 5)
    w, h = whole_numbers((30, 22), 1.0, 6), whole_numbers((22, 22), 0.1, 7)

    def loss(function, w, h, xs):
        def step(y, x):
            z = function(x, w) + function(y, h, needed=y >= 0)
            return jnp.clip(z, 0, 2), z.sum()

        step = jax.checkpoint(step) if remat else step
        return jax.lax.scan(step, jnp.zeros((4, 22)), xs)[1].sum()

    result = jax.jit(jax.value_and_grad(lambda *a: loss(spike_matmul, *a), (0, 1, 2)))(w, h, xs)
    assert_all_equal(
        result, jax.value_and_grad(lambda *a: loss(reference, *a), (0, 1, 2))(w, h, xs)
    )


def test_saves_only_what_the_gradient_needs(event):
    x, w, _, needed = data(40, 30, 20)
    only_w = jax.vjp(lambda w: spike_matmul(x, w), w)[1]
    only_x = jax.vjp(lambda x: spike_matmul(x, w, needed=needed), x)[1]
    assert sum(a.size for a in jax.tree.leaves(only_w)) == x.size
    assert sum(a.size for a in jax.tree.leaves(only_x)) == w.size + needed.size


def test_the_density_decides_while_running(monkeypatch):
    """An infinite weight shows the path: times 0 it is nothing to events, NaN to a dense sum."""
    monkeypatch.delenv("SPIKEBIT_KERNELS", raising=False)
    few = np.zeros((64, 128), np.float32)
    few[:, 1] = 1
    many = np.ones((64, 128), np.float32)
    many[:, 0] = 0
    w = np.zeros((128, 64), np.float32)
    w[0] = np.inf
    jax.clear_caches()
    function = jax.jit(spike_matmul)
    assert not np.isnan(function(few, w)).any()
    assert np.isnan(function(many, w)).all()


def test_nan_in_x_is_an_event(event):
    x, w, _, _ = data(3, 20, 18)
    y = spike_matmul(x.at[1, 2].set(jnp.nan), w)
    assert np.isnan(y[1]).all()
    assert not np.isnan(y[0]).any()


def test_threads_share_the_work_exactly(event):
    """Large enough for several tasks and several partial sums of the weight gradient."""
    x, w, dy, needed = data(4100, 90, 131)
    assert x.size * w.shape[1] >= spikes_cpu._SERIAL
    result = jax.jit(lambda *a: gradients(spike_matmul, *a))(x, w, dy, needed)
    a, b, g, keep = (np.asarray(v).astype(np.float64) for v in (x, w, dy, needed))
    assert_all_equal(result, (a @ b, (g @ b.T) * keep, a.T @ g))


DIGEST = """
import os, sys
os.sched_setaffinity(0, list(os.sched_getaffinity(0))[: int(sys.argv[1])])
import hashlib, jax, numpy as np
from spikebit.kernels import spikes_cpu
random = np.random.default_rng(0)
x = ((random.random((4100, 90)) < 0.1) * random.normal(size=(4100, 90))).astype(np.float32)
dy = random.normal(size=(4100, 131)).astype(np.float32)
dw = jax.jit(lambda x, dy: spikes_cpu.event_driven("weight_gradient", x, dy))(x, dy)
print(jax.local_device_count(), hashlib.sha256(np.asarray(dw)).hexdigest())
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
    assert len(one.split()[1]) == hashlib.sha256().digest_size * 2


def test_two_python_threads_at_once(event):
    x, w, dy, needed = data(4100, 90, 131)
    function = jax.jit(lambda *a: gradients(spike_matmul, *a))
    expected = function(x, w, dy, needed)
    failures = []

    def work():
        for _ in range(5):
            try:
                assert_all_equal(function(x, w, dy, needed), expected)
            except AssertionError as failure:
                failures.append(failure)

    workers = [threading.Thread(target=work) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not failures


@pytest.mark.parametrize("shape", [(0, 5, 3), (4, 0, 3), (4, 5, 0)])
def test_empty_arrays(event, shape):
    x, w, dy, needed = (
        jnp.zeros(s) for s in (shape[:2], shape[1:], (shape[0], shape[2]), shape[:2])
    )
    y, dx, dw = gradients(spike_matmul, x, w, dy, needed > 0)
    assert (y.shape, dx.shape, dw.shape) == (dy.shape, x.shape, w.shape)
    assert not y.any()


def test_bad_shapes_are_named():
    unchecked = inspect.unwrap(spike_matmul)  # the tests' type checking would speak first
    with pytest.raises(ValueError, match=r"\(3, 5\).*\(4, 7\).*must be as long"):
        unchecked(jnp.ones((3, 5)), jnp.ones((4, 7)))
    with pytest.raises(ValueError, match=r"needed of shape \(5,\) for x of shape \(3, 5\)"):
        unchecked(jnp.ones((3, 5)), jnp.ones((5, 7)), needed=jnp.ones(5, bool))
