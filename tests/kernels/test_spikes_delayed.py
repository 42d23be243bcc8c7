"""Delayed spikes: what arrives is a causal convolution, and so are its gradients.

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

from spikebit.kernels import spikes_delayed as family
from spikebit.kernels.sparse import Csr, Pattern, csr_from_pairs, inputs_of
from spikebit.kernels.spikes_delayed import deliver
from spikebit.simulator.delays import causal_convolution

pytestmark = pytest.mark.usefixtures("compile_quickly")
LAGS, STEPS = 4, 9


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


def whole(random, shape, dtype=np.float32):
    return jnp.asarray(random.integers(-3, 4, shape), dtype)


def sparse_case(seed=0, k=17, n=11, nnz=60):
    """W, and its delays."""
    random = np.random.default_rng(seed)
    places = random.permutation(k * n)[:nnz]
    w = csr_from_pairs(places // n, places % n, random.integers(1, 4, nnz) * 1.0, (k, n))
    return w, jnp.asarray(random.integers(0, LAGS, nnz), jnp.int32)


def dense_case(seed=0, k=17, n=11):
    random = np.random.default_rng(seed)
    return whole(random, (k, n)), jnp.asarray(random.integers(0, LAGS, (k, n)), jnp.int32)


def kernel_over_lags(w, delays):
    """K_d (lags, k, n): the weights of delay d."""
    if isinstance(w, Csr):
        at = delays, inputs_of(w.pattern), w.pattern.indices
        return jnp.zeros((LAGS, *w.shape), w.data.dtype).at[at].set(w.data)
    i, j = jnp.indices(w.shape)
    return jnp.zeros((LAGS, *w.shape), w.dtype).at[delays, i, j].set(w)


def run(xs, w, delays, first_step=0):
    """All steps: what arrives in each, and what is still on its way."""

    def step(carry, x):
        buffer, t = carry
        buffer, y = deliver(buffer, x, w, delays, t)
        return (buffer, t + 1), y

    buffer = jnp.zeros((LAGS, *xs.shape[1:-1], w.shape[1]), xs.dtype)
    (buffer, _), ys = jax.lax.scan(step, (buffer, jnp.int32(first_step)), xs)
    return ys, buffer


def with_data(w, data):
    return w._replace(data=data) if isinstance(w, Csr) else data


def data_of(w):
    return w.data if isinstance(w, Csr) else w


def trains(shape, seed=1, dtype=np.float32):
    random = np.random.default_rng(seed)
    return jnp.asarray(random.integers(-3, 4, shape) * (random.random(shape) < 0.3), dtype)


CASES = {"sparse": sparse_case, "dense": dense_case}


@pytest.mark.parametrize("kind", CASES)
def test_a_sequence_and_its_gradients_are_those_of_the_convolution(path, kind):
    w, delays = CASES[kind]()
    xs, dys = trains((STEPS, 5, 17)), whole(np.random.default_rng(2), (STEPS, 5, 11))

    @jax.jit
    def ours(xs, data, dys):
        ys, pull = jax.vjp(lambda xs, data: run(xs, with_data(w, data), delays)[0], xs, data)
        return (ys, *pull(dys))

    @jax.jit
    def theirs(xs, data, dys):
        def product(xs, data):
            return causal_convolution(xs, kernel_over_lags(with_data(w, data), delays))

        ys, pull = jax.vjp(product, xs, data)
        return (ys, *pull(dys))

    for a, b in zip(ours(xs, data_of(w), dys), theirs(xs, data_of(w), dys), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("first_step", [-5, 3, 2**31 - 9])
def test_any_step_may_be_the_first(path, first_step):
    w, delays = sparse_case()
    xs = trains((6, 17))
    expected = causal_convolution(xs, kernel_over_lags(w, delays))
    np.testing.assert_array_equal(run(xs, w, delays, first_step)[0], expected)


def test_what_is_on_its_way_arrives_after_the_last_spike(path):
    w, delays = sparse_case()
    xs = jnp.concatenate([trains((3, 2, 17)), jnp.zeros((LAGS, 2, 17))])
    ys, buffer = run(xs, w, delays)
    assert not buffer.any()
    np.testing.assert_array_equal(ys.sum(0), xs.sum(0) @ w.dense())


def test_the_gradient_of_the_buffer(path):
    """Of all that is handed on and of what arrives, against the equation written out."""
    w, delays = sparse_case()
    random = np.random.default_rng(3)
    buffer, x = whole(random, (LAGS, 2, 11)), trains((2, 17))
    new_bar, now_bar = whole(random, (LAGS, 2, 11)), whole(random, (2, 11))

    def one(buffer, x, data):
        return deliver(buffer, x, w._replace(data=data), delays, 6)

    (new, now), pull = jax.vjp(one, buffer, x, w.data)
    due, due_bar = np.array(buffer), np.array(new_bar)
    due_bar[6 % LAGS] = now_bar
    x_bar, data_bar = np.zeros(x.shape), np.zeros(len(w.data))
    ends = zip(inputs_of(w.pattern).tolist(), w.pattern.indices.tolist(), strict=True)
    for e, (i, j) in enumerate(ends):
        at = (6 + int(delays[e])) % LAGS
        due[at, :, j] += x[:, i] * w.data[e]
        x_bar[:, i] += w.data[e] * due_bar[at, :, j]
        data_bar[e] = x[:, i] @ due_bar[at, :, j]
    np.testing.assert_array_equal(now, due[2])
    due[2] = 0
    np.testing.assert_array_equal(new, due)
    for a, b in zip(pull((new_bar, now_bar)), (due_bar, x_bar, data_bar), strict=True):
        np.testing.assert_array_equal(a, b)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([0, 1, 20, 35]), st.booleans())
def test_any_connections_in_both_paths(seed, nnz, dense):
    random = np.random.default_rng(seed)
    places = random.permutation(35)[: 35 if dense else nnz]
    w = csr_from_pairs(places // 7, places % 7, random.integers(1, 4, len(places)) * 1.0, (5, 7))
    delays = jnp.asarray(random.integers(-1, LAGS + 1, len(places)), jnp.int32)
    pattern = w.pattern
    if dense:
        pattern = Pattern(pattern.indptr, jnp.zeros(0, jnp.int32), pattern.shape)
    buffer, x = whole(random, (LAGS, 3, 7)), trains((3, 5), seed)
    now = jnp.int32(seed % LAGS)
    results = (
        compiled(buffer, x, w.data, delays, pattern, now),
        family.deliver_reference(buffer, x, w.data, delays, pattern, now),
    )
    for a, b in zip(*results, strict=True):
        np.testing.assert_array_equal(a, b)


compiled = jax.jit(lambda *args: family._deliver(*args))


@pytest.mark.parametrize("shape", [(0, 5, 3), (4, 0, 3), (4, 5, 0)], ids=str)
@pytest.mark.parametrize("kind", CASES)
def test_empty_shapes(path, kind, shape):
    rows, k, n = shape
    w, delays = sparse_case(0, k, n, k * n) if kind == "sparse" else dense_case(0, k, n)
    xs = jnp.ones((3, rows, k))

    def total(xs, data):
        return run(xs, with_data(w, data), delays)[0].sum()

    grads = jax.grad(total, (0, 1))(xs, data_of(w))
    assert [g.shape for g in grads] == [xs.shape, data_of(w).shape]


def test_float64_and_other_floats(cpu):
    w, delays = sparse_case()
    xs = trains((STEPS, 17))
    halves = jax.tree.map(lambda a: a.astype(jnp.bfloat16) if a.dtype == xs.dtype else a, w)
    ys = run(xs.astype(jnp.bfloat16), halves, delays)[0]
    assert ys.dtype == jnp.bfloat16
    np.testing.assert_array_equal(ys.astype(jnp.float32), run(xs, w, delays)[0])
    with jax.enable_x64(True):
        exact = run(xs, w, delays)[0].astype(np.float64) / 3
        w = w._replace(data=w.data.astype(jnp.float64) / 3)
        ys = run(xs.astype(jnp.float64), w, delays)[0]
        assert ys.dtype == jnp.float64
        np.testing.assert_allclose(ys, exact, rtol=1e-14, atol=1e-14)


def test_vmap_over_all_and_over_weights(cpu):
    w, delays = sparse_case()
    xs, scales = trains((3, STEPS, 2, 17)), jnp.arange(1.0, 4.0)

    def gradients(xs, data):
        return jax.value_and_grad(lambda d: run(xs, w._replace(data=d), delays)[0].sum())(data)

    many = jax.jit(jax.vmap(gradients))(xs, w.data * scales[:, None])
    for b in range(3):
        one = gradients(xs[b], w.data * scales[b])
        for a, e in zip(many, one, strict=True):
            np.testing.assert_array_equal(a[b], e)


def test_under_jit_impossible_delays_send_nothing(path):
    w, delays = sparse_case()
    beyond = delays.at[::2].set(jnp.where(jnp.arange(30) % 2 == 0, -1, 2**31 - 1))
    one = jax.jit(lambda d, x: run(x, w, d)[0])
    half = w._replace(data=w.data.at[::2].set(0))
    xs = trains((STEPS, 17))
    np.testing.assert_array_equal(one(beyond, xs), run(xs, half, delays)[0])


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(-(2**31), 2**31 - 1), min_size=19, max_size=19), st.booleans())
def test_a_pattern_that_is_out_of_order_touches_nothing_else(numbers, small):
    """As it can come about under `jit`, where values are not known."""
    numbers = np.array(numbers) % 9 - 2 if small else np.array(numbers)
    indptr, indices, delays = (jnp.asarray(a, jnp.int32) for a in np.split(numbers, [5, 12]))
    new, now = gradients_of_disorder(indptr, indices, delays)[0]
    assert (new.shape, now.shape) == ((3, 2, 6), (2, 6))
    assert max(new.max(), now.max()) <= 4 * 7


@jax.jit
def gradients_of_disorder(indptr, indices, delays):
    pattern = Pattern(indptr, indices, (4, 6))

    def one(x, data):
        return deliver(jnp.zeros((3, 2, 6)), x, Csr(data, pattern), delays, 1)

    outputs, pull = jax.vjp(one, jnp.ones((2, 4)), jnp.ones(7))
    return outputs, pull(outputs)


DIGEST = """
import os, sys
os.sched_setaffinity(0, list(os.sched_getaffinity(0))[: int(sys.argv[1])])
import hashlib, jax, jax.numpy as jnp, numpy as np
from spikebit.kernels import spikes_delayed_cpu as cpu, spikes_sparse_cpu
from spikebit.kernels.sparse import csr_from_dense
random = np.random.default_rng(0)
w = random.normal(size=(300, 400)).astype(np.float32)
w = csr_from_dense(w, random.random((300, 400)) < 0.2)
delays = jnp.asarray(random.integers(0, 3, len(w.data)), jnp.int32)
x = ((random.random((130, 300)) < 0.1) * random.normal(size=(130, 300))).astype(np.float32)
ring = random.normal(size=(3, 130, 400)).astype(np.float32)
assert x.shape[0] * len(w.data) > spikes_sparse_cpu._SERIAL
rest = delays, w.pattern, jnp.int32(1)
for result in (
    *cpu.deliver(jnp.asarray(ring), x, w.data, *rest), cpu.input_gradient(ring, w.data, *rest),
    cpu.weight_gradient(ring, x, *rest),
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
    assert len(one.split()) == 4


def test_what_does_not_fit_is_named():
    unchecked = inspect.unwrap(deliver)  # the tests' type checking would speak first
    w, delays = sparse_case()
    buffer, x = jnp.zeros((LAGS, 2, 11)), jnp.zeros((2, 17))
    for args, words in (
        ((buffer[0], x, w, delays), r"buffer of shape \(2, 11\) and spikes of shape \(2, 17\)"),
        ((buffer[:0], x, w, delays), "lags >= 1"),
        ((buffer, x[:, 1:], w, delays), r"spikes of shape \(2, 16\) for weights of shape \(17, 11"),
        ((buffer, x[0], w, delays), r"give \(lags, \*batch, n\)"),
        ((buffer, x, w.data, delays), r"weights of shape \(60,\)"),
        ((buffer, x.astype(jnp.int32), w, delays), r"spikes of int32 .* make them one dtype"),
        ((buffer, x, w, delays[1:]), r"delays of int32\[59\] for weights \[60\]"),
        ((buffer, x, w, delays.astype(jnp.float32)), r"delays of float32.*whole number of steps"),
        ((buffer[:2], x, w, delays), "delays from 0 to 3 for a buffer of 2 lags"),
        ((buffer, x, w, delays - 1), "delays from -1 to 2"),
    ):
        with pytest.raises(ValueError, match=words):
            unchecked(*args, 0)
