"""Plasticity of sparse connections: the kernel, its reference, and the rule of learning_rules."""

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

from spikebit.kernels.sparse import Transposed, csr_from_dense, csr_from_pairs, transposed
from spikebit.kernels.sparse_stdp import StdpSettings, sparse_stdp, update_reference
from spikebit.learning_rules.stdp import PairSTDP, advance, apply_update

pytestmark = pytest.mark.usefixtures("compile_quickly")
STEPS, K, N = 60, 9, 7


@pytest.fixture(params=["cpu", "reference"])
def path(request, monkeypatch):
    monkeypatch.setenv("SPIKEBIT_KERNELS", request.param)
    jax.clear_caches()
    return request.param


def trains(batch, seed=0, rate=0.15):
    random = np.random.default_rng(seed)
    return tuple(
        jnp.asarray(random.random((STEPS, *batch, units)) < rate, jnp.result_type(float))
        for units in (K, N)
    )


def start(connected):
    """Weights in the middle of their bounds, where there is a connection."""
    w = np.random.default_rng(5).uniform(0.3, 0.7, (K, N))
    return csr_from_dense(w.astype(jnp.result_type(float)), connected)


def by_sparse_rule(w, rule, pre, post):
    index, mu = transposed(w.pattern), rule.mu if rule.dependence == "multiplicative" else 0.0
    numbers = StdpSettings(rule.a_plus, rule.a_minus, rule.w_min, rule.w_max, mu)

    def step(carry, spikes):
        data, x, o = carry
        (x1, x), (o1, o) = (
            advance(rule, trace, s, tau, None)
            for trace, s, tau in zip((x, o), spikes, (rule.tau_plus, rule.tau_minus), strict=True)
        )
        read = (
            x if rule.coincidence in ("potentiate", "both") else x1,
            o if rule.coincidence in ("depress", "both") else o1,
        )
        new, stopped = sparse_stdp(w._replace(data=data), index, *spikes, *read, numbers)
        return (new.data, x, o), stopped

    zeros = jnp.zeros(pre.shape[1:]), jnp.zeros(post.shape[1:])
    (data, _, _), stopped = jax.jit(lambda *s: jax.lax.scan(step, (w.data, *zeros), s))(pre, post)
    return w._replace(data=data), stopped


def by_dense_rule(w, connected, rule, pre, post):
    def step(carry, spikes):
        state, w = carry
        state, delta = rule.step(state, w, *spikes)
        delta = jnp.where(connected, delta, 0)
        over = (w + delta < rule.w_min) | (w + delta > rule.w_max)
        return (state, apply_update(rule, w, delta)), (over & connected).sum()

    first = rule.init(pre.shape[1:], post.shape[1:]), w
    (_, w), stopped = jax.jit(lambda *s: jax.lax.scan(step, first, s))(pre, post)
    return w, stopped


@pytest.mark.parametrize(
    ("coincidence", "dependence", "mu", "batch", "density"),
    [
        ("ignore", "additive", 1.0, (), 1.0),
        ("potentiate", "additive", 1.0, (), 0.4),
        ("depress", "multiplicative", 1.0, (), 1.0),
        ("both", "additive", 1.0, (2, 2), 0.4),
        ("both", "multiplicative", 1.0, (), 0.4),
        ("ignore", "multiplicative", 0.5, (3,), 1.0),
    ],
    ids=str,
)
def test_it_is_the_dense_rule_of_learning_rules(coincidence, dependence, mu, batch, density):
    rule = PairSTDP(
        a_plus=0.2, a_minus=0.17, coincidence=coincidence, dependence=dependence, mu=mu,
    )  # fmt: skip
    with jax.enable_x64(True):
        connected = np.random.default_rng(1).random((K, N)) <= density
        pre, post = trains(batch)
        w, stopped = by_sparse_rule(start(connected), rule, pre, post)
        dense, over = by_dense_rule(start(connected).dense(), connected, rule, pre, post)
        assert abs(dense - start(connected).dense()).max() > 0.1
        # sums of up to four products and 60 changes of up to 1, each to 1.1e-16; a root doubles it
        np.testing.assert_allclose(w.dense(), dense, rtol=0, atol=1e-13)
        np.testing.assert_array_equal(stopped, over)
        if dependence == "additive" and not batch:
            assert stopped.sum() > 0


def test_the_reference_is_it_too(monkeypatch):
    monkeypatch.setenv("SPIKEBIT_KERNELS", "reference")
    jax.clear_caches()
    test_it_is_the_dense_rule_of_learning_rules("ignore", "multiplicative", 0.5, (), 0.4)
    test_it_is_the_dense_rule_of_learning_rules("both", "additive", 1.0, (2, 2), 1.0)


def test_one_step_by_hand(path):
    """Input 0 to outputs 0 and 1, input 1 to output 0; input 0 and output 0 fire."""
    w = csr_from_pairs([0, 0, 1], [0, 1, 0], [0.5, 0.5, 0.25], (2, 2))
    spikes = jnp.array([1.0, 0.0]), jnp.array([1.0, 0.0])
    traces = jnp.array([0.5, 1.0]), jnp.array([0.25, 1.0])
    numbers = StdpSettings(a_plus=0.5, a_minus=0.25, w_max=2.0)
    new, stopped = sparse_stdp(w, transposed(w.pattern), *spikes, *traces, numbers)
    assert new.data.tolist() == [0.5 + 0.25 - 0.0625, 0.5 - 0.25, 0.25 + 0.5]
    assert int(stopped) == 0
    numbers = numbers._replace(mu=1.0, w_min=0.125)
    new, _ = sparse_stdp(w, transposed(w.pattern), *spikes, *traces, numbers)
    expected = [0.5 + 0.25 * 1.5 - 0.0625 * 0.375, 0.5 - 0.25 * 0.375, 0.25 + 0.5 * 1.75]
    assert new.data.tolist() == expected


def test_bounds_stop_and_count_and_the_rest_is_left_alone(path):
    w = csr_from_pairs([0, 1, 2], [0, 1, 2], [0.9, 0.1, 7.0], (3, 3))
    spikes = jnp.array([0.0, 1.0, 0.0]), jnp.array([1.0, 0.0, 0.0])
    ones = jnp.ones(3), jnp.ones(3)
    new, stopped = sparse_stdp(w, transposed(w.pattern), *spikes, *ones, StdpSettings(0.5, 0.5))
    assert new.data.tolist() == [1.0, 0.0, 7.0]  # the last is beyond its bound, but no spike came
    assert int(stopped) == 2


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([0, 1, 20, 63]), st.floats(0, 1))
def test_the_kernel_is_the_reference_on_any_connections(seed, nnz, rate):
    """With quarters for the numbers all is exact."""
    random = np.random.default_rng(seed)
    places = random.permutation(K * N)[:nnz]
    w = csr_from_pairs(places // N, places % N, random.integers(0, 5, nnz) / 4, (K, N))
    arrays = [jnp.asarray(random.random((2, units)) < rate, jnp.float32) for units in (K, N)]
    arrays += [jnp.asarray(random.integers(0, 5, (2, units)) / 4, jnp.float32) for units in (K, N)]
    new, stopped = compiled(w, transposed(w.pattern), *arrays)
    data, count = expected(w, transposed(w.pattern), *arrays, jnp.array([0.5, 0.25, 0, 1, 1.0]))
    np.testing.assert_array_equal(new.data, data)
    assert stopped == count


compiled = jax.jit(lambda *args: sparse_stdp(*args, StdpSettings(0.5, 0.25, mu=1.0)))
expected = jax.jit(lambda *args: update_reference(*args))


def test_vmap_over_settings_and_networks(path):
    w = start(np.ones((K, N)))
    index, (pre, post) = transposed(w.pattern), trains((), 3, 0.5)
    spikes, traces = (pre[0], post[0]), (pre[1] / 2, post[1] / 2)
    sizes = jnp.array([0.1, 0.7])

    def one(data, a_plus):
        new, stopped = sparse_stdp(
            w._replace(data=data), index, *spikes, *traces, StdpSettings(a_plus, 0.25)
        )
        return new.data, stopped

    many = jax.jit(jax.vmap(one))(jnp.stack([w.data, w.data / 2]), sizes)
    for b, data in enumerate((w.data, w.data / 2)):
        for a, e in zip(many, jax.jit(one)(data, sizes[b]), strict=True):
            np.testing.assert_array_equal(a[b], e)


def test_nan_stays_nan(path):
    w = csr_from_pairs([0, 1], [0, 0], [np.nan, 0.5], (2, 1))
    one = jnp.ones(1)
    new, stopped = sparse_stdp(
        w, transposed(w.pattern), jnp.ones(2), one, jnp.ones(2), one, StdpSettings(0.25, 0.0)
    )
    np.testing.assert_array_equal(new.data, [np.nan, 0.75])
    assert int(stopped) == 0


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(-(2**31), 2**31 - 1), min_size=31, max_size=31), st.booleans())
def test_lists_that_are_out_of_order_touch_nothing_else(numbers, small):
    """As they can come about under `jit`, where values are not known."""
    numbers = np.array(numbers) % 9 - 2 if small else np.array(numbers)
    parts = np.split(numbers.astype(np.int32), [5, 11, 18, 24, 30])
    w = csr_from_pairs([0] * 6, range(6), [0.5] * 6, (4, 6))
    pattern = jax.tree.unflatten(jax.tree.structure(w.pattern), [*map(jnp.asarray, parts[:2])])
    index = Transposed(*map(jnp.asarray, parts[2:5]))
    ones = jnp.ones(4), jnp.ones(6)
    new, _ = compiled(w._replace(pattern=pattern), index, *ones, *ones)
    assert new.data.shape == (6,)
    assert (abs(new.data - 0.5) <= 0.5).all()


DIGEST = """
import os, sys
os.sched_setaffinity(0, list(os.sched_getaffinity(0))[: int(sys.argv[1])])
import hashlib, jax.numpy as jnp, numpy as np
from spikebit.kernels import spikes_sparse_cpu
from spikebit.kernels.sparse import csr_from_dense, transposed
from spikebit.kernels.sparse_stdp import StdpSettings, sparse_stdp
random = np.random.default_rng(0)
shape = 1500, 1600
w = csr_from_dense(random.random(shape).astype(np.float32), np.ones(shape))
assert len(w.data) > spikes_sparse_cpu._SERIAL
spikes = [jnp.asarray(random.random(units) < 0.1, jnp.float32) for units in shape]
traces = [jnp.asarray(random.random(units), jnp.float32) for units in shape]
new, stopped = sparse_stdp(
    w, transposed(w.pattern), *spikes, *traces, StdpSettings(0.5, 0.5)
)
print(hashlib.sha256(np.asarray(new.data)).hexdigest(), int(stopped))
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
    assert int(one.split()[1]) > 0


def test_what_does_not_fit_is_named():
    unchecked = inspect.unwrap(sparse_stdp)  # the tests' type checking would speak first
    w = start(np.ones((K, N)))
    index, pre, post = transposed(w.pattern), jnp.zeros((2, K)), jnp.zeros((2, N))
    for args, words in (
        ((pre[:, 1:], post, pre, post), r"shapes \(\(2, 8\), .* for weights of shape \(9, 7\)"),
        ((pre, post[0], pre, post), r"give \(\*batch, 9\), \(\*batch, 7\)"),
        ((pre, post, pre[0], post), "and the same again"),
        ((pre[:0], post[:0], pre[:0], post[:0]), "at least one sample"),
        ((pre, post.astype(jnp.float16), pre, post), "float16, float32; make weights"),
    ):
        with pytest.raises(ValueError, match=words):
            unchecked(w, index, *args, StdpSettings(0.1, 0.1))
    short = index._replace(indptr=index.indptr[1:])
    with pytest.raises(ValueError, match="index of 63 connections to 6 outputs for a pattern"):
        unchecked(w, short, pre, post, pre, post, StdpSettings(0.1, 0.1))
