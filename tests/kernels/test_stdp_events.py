"""Plastic synapses from spike to spike: the kernel, its reference, and the equations in numpy."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spikebit.kernels.stdp_events import (
    Events,
    EventSettings,
    event_state,
    pack_events,
    stdp_events,
    step_reference,
)
from spikebit.learning_rules.fatigue import FatiguingSTDP
from spikebit.learning_rules.stdp import PairSTDP, apply_update

STEPS, NIN, N = 600, 9, 3
TAU = {"membrane": 10.0, "pre": 20.0, "post": 15.0, "fatigue": 60.0}


def settings(use=0.5, coincident=1.0, threshold=0.9):
    decays = {f"decay_{k}": math.exp(-1 / v) for k, v in TAU.items()}
    return EventSettings(
        threshold=threshold, use=use, a_plus=0.05, a_minus=0.06, w_max=1.0,
        coincident=coincident, **decays,
    )  # fmt: skip


def raster(seed=0, steps=STEPS, nin=NIN):
    return np.random.default_rng(seed).uniform(size=(steps, nin)) < 0.05


def packed(spikes):
    return pack_events(*np.nonzero(spikes), len(spikes))


def weights(dtype=np.float32):
    return jnp.asarray(np.random.default_rng(9).uniform(0.2, 0.8, (NIN, N)), dtype)


@pytest.fixture(params=["cpu", "reference"])
def path(request, monkeypatch):
    monkeypatch.setenv("SPIKEBIT_KERNELS", request.param)
    jax.clear_caches()
    return request.param


def in_numpy(spikes, w, s):
    """The equations of the docstring, one synapse after the other, in float64."""
    w = np.array(w, np.float64)
    f, x, v, y = np.zeros(NIN), np.zeros(NIN), np.zeros(N), np.zeros(N)
    posts = np.zeros((len(spikes), N), bool)
    for t, row in enumerate(spikes):
        f, x = f * s.decay_fatigue, x * s.decay_pre
        v, y = v * s.decay_membrane, y * s.decay_post
        for i in np.flatnonzero(row):
            v = v + w[i] * (1 - f[i])
        posts[t] = v > s.threshold
        for i in range(NIN):
            for j in range(N):
                change = s.a_plus * (x[i] + s.coincident * row[i]) * posts[t, j]
                change -= s.a_minus * row[i] * y[j]
                w[i, j] = min(max(w[i, j] + change, 0), s.w_max)
        v[posts[t]] = 0
        f, x, y = np.where(row, f + s.use * (1 - f), f), x + row, y + posts[t]
    return w, f, x, v, y, posts


@pytest.mark.parametrize("coincident", [0.0, 1.0])
@pytest.mark.parametrize("use", [0.0, 0.5])
def test_it_is_the_equations_in_numpy(path, use, coincident):
    s, spikes = settings(use, coincident), raster()
    with jax.enable_x64(True):
        state, posts = stdp_events(event_state(weights(np.float64)), packed(spikes), s)
        *expected, fired = in_numpy(spikes, weights(np.float64), s)
        assert fired.sum() > 50
        np.testing.assert_array_equal(posts, fired)
        for found, right in zip(state, expected, strict=True):
            # a power of a decay against up to 600 products, each to 1.1e-16
            np.testing.assert_allclose(found, right, rtol=1e-12, atol=1e-13)


def test_the_step_of_the_reference_is_that_in_numpy():
    s, spikes = settings(), raster(steps=40)
    with jax.enable_x64(True):
        state = event_state(weights(np.float64))
        step = jax.jit(lambda *given: step_reference(*given))
        for row in spikes:
            state, _ = step(state, jnp.asarray(row, jnp.float64), s)
        *expected, fired = in_numpy(spikes, weights(np.float64), s)
        assert fired.any()
        for found, right in zip(state, expected, strict=True):
            np.testing.assert_allclose(found, right, rtol=1e-12, atol=1e-13)


def by_rule(rule, spikes, w, s):
    """The same neurons with the rule of `learning_rules`, which steps densely."""

    def step(carry, pre):
        state, w, v = carry
        v = s.decay_membrane * v + (pre * rule.transmitted(state)) @ w
        post = (v > s.threshold).astype(w.dtype)
        state, delta = rule.step(state, w, pre, post)
        return (state, apply_update(rule.pair, w, delta), v * (1 - post)), post

    start = rule.init((NIN,), (N,)), w, jnp.zeros(N)
    (_, w, _), posts = jax.lax.scan(step, start, jnp.asarray(spikes, w.dtype))
    return w, posts


@pytest.mark.parametrize(("coincidence", "counts"), [("ignore", 0.0), ("potentiate", 1.0)])
@pytest.mark.parametrize("use", [0.0, 0.5])
def test_it_is_the_rule_of_learning_rules(path, use, coincidence, counts):
    pair = PairSTDP(
        a_plus=0.05, a_minus=0.06, tau_plus=TAU["pre"], tau_minus=TAU["post"],
        coincidence=coincidence,
    )  # fmt: skip
    s, spikes = settings(use, counts), raster(2)
    with jax.enable_x64(True):
        w = weights(np.float64)
        state, posts = stdp_events(event_state(w), packed(spikes), s)
        rule = FatiguingSTDP(pair, use=use, tau_fatigue=TAU["fatigue"])
        expected, fired = by_rule(rule, spikes, w, s)
        np.testing.assert_array_equal(posts, fired > 0)
        np.testing.assert_allclose(state.weights, expected, rtol=1e-12, atol=1e-13)


def test_float32_keeps_its_dtype_and_bounds(path):
    state, posts = jax.jit(stdp_events)(event_state(weights()), packed(raster(3)), settings())
    assert {a.dtype for a in state} == {np.dtype(np.float32)}
    assert posts.shape == (STEPS, N)
    w, f = np.asarray(state.weights), np.asarray(state.fatigue)
    assert w.min() >= 0
    assert w.max() <= 1
    assert w.min() < 0.01 or w.max() > 0.99  # a bound is reached, so it was needed
    assert f.min() >= 0
    assert f.max() < 1


def test_a_stream_in_two_parts_is_the_stream(path):
    spikes = raster(4)
    with jax.enable_x64(True):
        start = event_state(weights(np.float64))
        whole, posts = stdp_events(start, packed(spikes), settings())
        state, early = stdp_events(start, packed(spikes[:217]), settings())
        state, late = stdp_events(state, packed(spikes[217:]), settings())
        np.testing.assert_array_equal(np.concatenate([early, late]), posts)
        for a, b in zip(state, whole, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-13)


def test_permuted_inputs_have_permuted_weights(path):
    spikes, order = raster(5), np.random.default_rng(0).permutation(NIN)
    with jax.enable_x64(True):
        w = weights(np.float64)
        a, _ = stdp_events(event_state(w), packed(spikes), settings())
        b, _ = stdp_events(event_state(w[order]), packed(spikes[:, order]), settings())
        np.testing.assert_allclose(a.weights[order], b.weights, rtol=1e-12, atol=1e-13)


def test_vmap_over_settings_is_run_after_run(path):
    start, events = event_state(weights()), packed(raster(6))
    thresholds = jnp.array([0.5, 2.0])
    states, posts = jax.vmap(lambda th: stdp_events(start, events, settings(threshold=th)))(
        thresholds
    )
    for i, threshold in enumerate((0.5, 2.0)):
        state, fired = stdp_events(start, events, settings(threshold=threshold))
        np.testing.assert_array_equal(posts[i], fired)
        np.testing.assert_allclose(states.weights[i], state.weights, rtol=1e-5)


def test_events_that_make_no_sense_are_skipped(path):
    start, spikes = event_state(weights()), raster(7, 20)
    right, fired = stdp_events(start, packed(spikes), settings())
    rows = [np.flatnonzero(row) for row in spikes]
    rows[4] = np.concatenate([rows[4], [NIN, -1, 2**30], rows[4]])  # not there, and once more
    first = np.cumsum([0, *map(len, rows)])
    first[-1] += 100  # beyond the list
    events = Events(np.concatenate(rows).astype(np.int32), first.astype(np.int32))
    found, posts = stdp_events(start, events, settings())
    np.testing.assert_array_equal(posts, fired)
    np.testing.assert_array_equal(found.weights, right.weights)


def test_silence_only_decays(path):
    start = event_state(weights())._replace(fatigue=jnp.full(NIN, 0.5), pre=jnp.full(NIN, 2.0))
    nothing = pack_events(np.zeros(0), np.zeros(0), 30)
    state, posts = stdp_events(start, nothing, settings())
    assert not posts.any()
    np.testing.assert_array_equal(state.weights, start.weights)
    # 30 products of 6e-8 each
    np.testing.assert_allclose(state.fatigue, 0.5 * np.exp(-30 / TAU["fatigue"]), rtol=4e-6)
    np.testing.assert_allclose(state.pre, 2 * np.exp(-30 / TAU["pre"]), rtol=4e-6)


def test_packing_sorts_and_drops_what_is_outside():
    events = pack_events(np.array([5, -1, 0, 3, 3]), np.array([0, 1, 2, 1, 0]), 5)
    assert events.inputs.tolist() == [2, 0, 1, -1]
    assert events.first.tolist() == [0, 1, 1, 1, 3, 3]


@pytest.mark.parametrize(
    ("step", "source"), [([1, 2], [0, -1]), ([1.0], [0]), ([1], [np.nan]), ([1, 2], [0]), (1, 0)]
)
def test_spikes_that_are_no_lists_of_inputs_are_refused(step, source):
    with pytest.raises(ValueError, match=r"pack_events: got steps of .* with inputs from 0 on"):
        pack_events(np.array(step), np.array(source), 5)


def test_bad_arrays_are_refused():
    start, events = event_state(weights()), packed(raster())
    with pytest.raises(ValueError, match=r"event_state: .*\(9,\); give \(nin, n\)"):
        event_state(weights()[:, 0])
    with pytest.raises(ValueError, match=r"event_state\(weights\)"):
        stdp_events(start._replace(post=jnp.zeros(NIN)), events, settings())
    with pytest.raises(ValueError, match="make all of it float32"):
        stdp_events(start._replace(post=jnp.zeros(N, jnp.float16)), events, settings())
    with pytest.raises(ValueError, match="pack_events"):
        stdp_events(start, Events(events.inputs, events.first[:1]), settings())
