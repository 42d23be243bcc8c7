"""Pair STDP: its window, its drift, its bounds, and weights in a number format."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spikebit.learning_rules import PairSTDP, apply_update, bounded_update
from spikebit.learning_rules.stdp import check_positive, check_spikes
from spikebit.quant.memory import float32, losses, number_format
from spikebit.quant.storage import storage

COINCIDENCES = {"ignore": (0, 0), "potentiate": (1, 0), "depress": (0, 1), "both": (1, 1)}
EPS = float(np.finfo(np.float32).eps)


def changes(rule, pre, post, weight=0.5):
    """Summed dW of one synapse with frozen weight, for spikes (steps,)."""
    weights = jnp.full((1, 1), weight)
    pre, post = (jnp.asarray(s, jnp.float32).reshape(-1, 1) for s in (pre, post))

    def step(state, spikes):
        return rule.step(state, weights, *spikes)

    return float(jax.lax.scan(step, rule.init((1,), (1,)), (pre, post))[1].sum())


def train(steps, *times):
    spikes = np.zeros(steps)
    spikes[list(times)] = 1
    return spikes


@pytest.mark.parametrize("interaction", ["all_to_all", "nearest"])
@pytest.mark.parametrize("lag", [1, 7, 40])
def test_a_single_pair_changes_the_weight_by_the_window(lag, interaction):
    rule = PairSTDP(
        a_plus=0.01, a_minus=0.02, tau_plus=17.0, tau_minus=34.0, dt=0.5, interaction=interaction
    )
    early, late = train(50, 3), train(50, 3 + lag)
    # each of up to 40 products rounds once
    up, down = 0.01 * np.exp(-lag * 0.5 / 17), -0.02 * np.exp(-lag * 0.5 / 34)
    np.testing.assert_allclose(changes(rule, early, late), up, rtol=42 * EPS)
    np.testing.assert_allclose(changes(rule, late, early), down, rtol=42 * EPS)


@pytest.mark.parametrize("coincidence", COINCIDENCES)
@pytest.mark.parametrize("interaction", ["all_to_all", "nearest"])
def test_a_pair_in_one_step_does_what_the_option_says(coincidence, interaction):
    rule = PairSTDP(a_plus=0.01, a_minus=0.02, coincidence=coincidence, interaction=interaction)
    up, down = COINCIDENCES[coincidence]
    got = changes(rule, train(3, 1), train(3, 1))
    np.testing.assert_allclose(got, up * 0.01 - down * 0.02, rtol=EPS, atol=0)


def event_pairs(rule, pre, post):
    """The same rule in float64, over all pairs of spike times, without any trace."""
    total = 0.0
    pre, post = np.flatnonzero(pre) * rule.dt, np.flatnonzero(post) * rule.dt
    up, down = COINCIDENCES[rule.coincidence]

    def window(event, others, tau, now):
        lags = event - others
        lags = lags[(lags > 0) | ((lags == 0) & bool(now))]
        if rule.interaction == "nearest":
            lags = lags.min(keepdims=True) if lags.size else lags
        return np.exp(-lags / tau).sum()

    for t in post:
        total += rule.a_plus * window(t, pre, rule.tau_plus, up)
    for t in pre:
        total -= rule.a_minus * window(t, post, rule.tau_minus, down)
    return total


@pytest.mark.parametrize("coincidence", COINCIDENCES)
@pytest.mark.parametrize("interaction", ["all_to_all", "nearest"])
def test_dense_trains_give_the_sum_over_all_pairs_of_events(coincidence, interaction):
    rule = PairSTDP(
        a_plus=0.3,
        a_minus=0.2,
        tau_plus=9.0,
        dt=2.0,
        interaction=interaction,
        coincidence=coincidence,
    )
    pre, post = np.random.default_rng(1).random((2, 80)) < 0.3
    assert (pre & post).any()
    # sums of up to 80 terms below 2, each off by a few roundings
    np.testing.assert_allclose(
        changes(rule, pre, post), event_pairs(rule, pre, post), atol=80 * 8 * EPS
    )


@pytest.mark.parametrize("coincidence", COINCIDENCES)
def test_independent_poisson_trains_drift_with_the_area_of_the_window(coincidence):
    """<dW/dt> = r_pre r_post (A+ tau+ - A- tau-), the areas being sums over the steps."""
    rule = PairSTDP(a_plus=0.01, a_minus=0.012, tau_minus=15.0, coincidence=coincidence)
    p_pre, p_post, steps, nin, n, batch = 0.02, 0.05, 1500, 40, 40, 4
    keys = jax.random.split(jax.random.key(3), 2)
    pre = jax.random.bernoulli(keys[0], p_pre, (steps, batch, nin)).astype(jnp.float32)
    post = jax.random.bernoulli(keys[1], p_post, (steps, batch, n)).astype(jnp.float32)
    weights = jnp.zeros((nin, n))

    @jax.jit
    def total(pre, post):
        def step(carry, spikes):
            state, total = carry
            state, delta = rule.step(state, weights, *spikes)
            return (state, total + delta), None

        start = rule.init((batch, nin), (batch, n)), weights
        return jax.lax.scan(step, start, (pre, post))[0][1]

    got = np.asarray(total(pre, post), np.float64) / steps
    up, down = COINCIDENCES[coincidence]
    area_up = up + 1 / np.expm1(1 / 20)  # of exp(-k / tau) over k >= 1
    area_down = down + 1 / np.expm1(1 / 15)
    expected = p_pre * p_post * (0.01 * area_up - 0.012 * area_down)
    # synapses of one row or column share a train: only a mean over n of them counts as independent
    spread = np.hypot(got.mean(0).std(), got.mean(1).std()) / np.sqrt(40)
    assert abs(got.mean() - expected) < 4 * spread < abs(expected)


def test_multiplicative_changes_scale_with_the_distance_to_the_bounds():
    rule = PairSTDP(
        a_plus=0.01, a_minus=0.02, dependence="multiplicative", mu=0.5, w_min=-1.0, w_max=3.0
    )
    early, late = train(4, 0), train(4, 2)
    decay = np.exp(-2 / 20)
    for w in (-1.0, 0.25, 3.0):
        up, down = changes(rule, early, late, w), changes(rule, late, early, w)
        np.testing.assert_allclose(up, 0.01 * (3 - w) ** 0.5 * decay, rtol=8 * EPS, atol=0)
        np.testing.assert_allclose(down, -0.02 * (w + 1) ** 0.5 * decay, rtol=8 * EPS, atol=0)
    assert changes(rule, early, late, 3.5) == 0  # and no NaN


def test_multiplicative_with_mu_0_is_additive():
    pre, post = np.random.default_rng(2).random((2, 40)) < 0.3
    soft = PairSTDP(dependence="multiplicative", mu=0.0)
    assert changes(soft, pre, post) == changes(PairSTDP(), pre, post)


def test_the_change_is_the_mean_over_the_batch():
    rule = PairSTDP()
    rng = np.random.default_rng(0)
    pre, post = ((rng.random((2, 3, m)) < 0.5).astype(np.float32) for m in (4, 5))
    weights = jnp.zeros((4, 5))

    def two_steps(pre, post):  # (2 steps, *batch, units)
        state = rule.init(pre.shape[1:], post.shape[1:])
        state, _ = rule.step(state, weights, pre[0], post[0])
        return rule.step(state, weights, pre[1], post[1])[1]

    singles = jax.vmap(two_steps, in_axes=1)(jnp.asarray(pre), jnp.asarray(post))
    whole = two_steps(jnp.asarray(pre), jnp.asarray(post))
    assert float(jnp.abs(whole).max()) > 0
    np.testing.assert_allclose(whole, singles.mean(0), atol=4 * EPS * 0.006)


@pytest.mark.parametrize("bounds", [(-0.1, 0.7), (-0.7, 0.1)])
def test_updates_stay_within_the_bounds_to_the_last_bit(bounds):
    """For bounds that are no float32 numbers, of which the sum w + (bound - w) goes beyond one."""
    rule = PairSTDP(w_min=bounds[0], w_max=bounds[1])
    low, high = np.float32(bounds)
    weights = jnp.asarray(np.random.default_rng(0).uniform(low, high, 4000).astype(np.float32))
    naive = weights + (low - weights), weights + (high - weights)
    assert (naive[0] < low).any() or (naive[1] > high).any()
    for delta in (1.0, -1.0):
        new = weights + bounded_update(rule, weights, jnp.full_like(weights, delta))
        assert low <= new.min()
        assert new.max() <= high
        ended = apply_update(rule, weights, jnp.full_like(weights, delta))
        np.testing.assert_allclose(new, ended, atol=EPS)
    small = jnp.asarray(np.random.default_rng(1).normal(0, 1e-3, 4000).astype(np.float32))
    inside = (weights + small > low) & (weights + small < high)
    change = bounded_update(rule, weights, small)
    np.testing.assert_array_equal(change[inside], small[inside])


def test_rules_and_bounds_have_derivatives():
    """Of dW = A+ (1 - w) x, and of its part within the bounds: w + (1 - w) does not depend on w."""
    rule = PairSTDP(a_plus=0.1, a_minus=0.0, dependence="multiplicative")
    state, _ = rule.step(rule.init((1,), (1,)), jnp.ones((1, 1)), jnp.ones(1), jnp.zeros(1))

    def change(w, scale):
        delta = rule.step(state, w[None, None], jnp.zeros(1), jnp.ones(1))[1]
        return bounded_update(rule, w[None, None], scale * delta)[0, 0]

    slope = jax.jit(jax.vmap(jax.grad(change), (None, 0)))(jnp.array(0.4), jnp.array([1.0, 100.0]))
    np.testing.assert_allclose(slope, [-0.1 * np.exp(-1 / 20), -1], rtol=4 * EPS)


def run_in(memory, steps=60):
    """2000 synapses, the same train for all: 1 potentiating pair a step of 3, weights from 0.25."""
    rule = PairSTDP(a_plus=0.002, a_minus=0.001)
    ones = jnp.ones((1, 1, 2000))
    spikes = jnp.arange(steps) % 3
    key = jax.random.key(5)
    kept = memory.init(jnp.full((1, 2000), 0.25), key)

    def step(carry, at):
        kept, traces, key = carry
        key, own = jax.random.split(key)
        weights = memory.read(kept)
        pre = (at == 0).astype(jnp.float32) * jnp.ones((1, 1))
        traces, delta = rule.step(traces, weights, pre, (at == 1).astype(jnp.float32) * ones[0])
        return (memory.update(kept, bounded_update(rule, weights, delta), own), traces, key), None

    start = kept, rule.init((1, 1), (1, 2000)), jax.random.key(6)
    kept = jax.jit(lambda c: jax.lax.scan(step, c, spikes)[0][0])(start)
    return np.asarray(memory.read(kept)), losses(kept)


def test_it_learns_in_eight_bit_weights_where_rounding_to_nearest_stands_still():
    exact, _ = run_in(float32())
    moved = float(exact[0, 0]) - 0.25
    assert moved > 0.02
    got, _ = run_in(number_format("e4m3fn", "stochastic"))
    # E[Q(w)] = w at each write, and the updates do not depend on w: the means agree
    assert abs(got.mean() - exact.mean()) < 4.5 * got.std() / np.sqrt(got.size)
    assert len(np.unique(got)) > 1
    assert np.isin(got, np.arange(65) / 64).all()  # or coarser: the values of e4m3
    still, lost = run_in(number_format("e4m3fn"))
    np.testing.assert_array_equal(still, 0.25)
    (counts,) = lost.values()
    assert counts["stagnated"] == counts["writes"] - 2000 > 0


def test_a_memory_keeps_to_the_bounds():
    rule, memory = PairSTDP(), number_format("e4m3fn", "stochastic")
    weights = jax.random.uniform(jax.random.key(0), (500,))
    for sign, end in ((1.0, 1.0), (-1.0, 0.0)):
        kept = memory.init(weights, jax.random.key(1))
        at = memory.read(kept)
        kept = memory.update(
            kept, bounded_update(rule, at, jnp.full((500,), sign)), jax.random.key(2)
        )
        np.testing.assert_array_equal(memory.read(kept), end)


def test_traces_can_be_kept_in_a_format():
    """To steps of 1/4 from the first store on: 1 -> 0.75 -> 0.5 (0.5625 and 0.42 to nearest)."""
    rule = PairSTDP(a_plus=1.0, tau_plus=float(1 / np.log(4 / 3)), kept=storage("test", "fixed8.2"))
    got = changes(rule, train(3, 0), train(3, 2))
    np.testing.assert_allclose(got, 0.75 * 0.75, rtol=2 * EPS)
    rounded = PairSTDP(kept=storage("test", "fixed8.2", "stochastic"))
    state, ones = rounded.init((1, 300), (1, 1)), jnp.ones((1, 1))
    for key in jax.random.split(jax.random.key(0), 2):
        state, _ = rounded.step(state, jnp.zeros((300, 1)), jnp.ones((1, 300)), ones, key)
    assert set(np.unique(state.pre)) == {1.75, 2.0}  # 1.95 between them


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tau_plus": 0.0}, "PairSTDP: tau_plus is 0.0; it must be a positive number"),
        ({"dt": float("nan")}, "PairSTDP: dt is nan"),
        ({"interaction": "closest"}, "interaction is 'closest'; choose one of all_to_all, nearest"),
        ({"dependence": "soft"}, "choose one of additive, multiplicative"),
        ({"coincidence": "none"}, "choose one of ignore, potentiate, depress, both"),
        ({"w_min": 1.0}, "w_min must be the smaller"),
        ({"mu": -1.0}, "mu is -1.0; it must be at least 0"),
        ({"mu": float("inf")}, "mu is inf; give a finite number"),
        ({"a_plus": float("nan")}, "a_plus is nan; give a finite number"),
        ({"a_minus": float("inf")}, "a_minus is inf"),
        ({"tau_plus": float("nan")}, "tau_plus is nan; it must be a positive number"),
    ],
)
def test_bad_settings_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        PairSTDP(**settings)


def test_no_time_at_all_is_named():
    with pytest.raises(ValueError, match="tau_e is None; it must be a positive number"):
        check_positive(SimpleNamespace(tau_e=None), "tau_e")


def test_spikes_that_do_not_fit_are_named():
    rule, weights = PairSTDP(), jnp.zeros((3, 2))
    for nin, batch in ((2, 4), (3, 0)):
        pre, post = jnp.zeros((batch, nin)), jnp.zeros((batch, 2))
        with pytest.raises(ValueError, match=r"and \(\*batch, n\) for .* at least one sample"):
            rule.step(rule.init(pre.shape, post.shape), weights, pre, post)
    with pytest.raises(ValueError, match=r"weights of shape \(3,\); they must be"):
        check_spikes(rule, weights[:, 0], jnp.zeros(3), jnp.zeros(2), jnp.zeros(3), jnp.zeros(2))
    with pytest.raises(ValueError, match=r"make it with init\(\(5, 3\), \(5, 2\)\)"):
        rule.step(rule.init((4, 3), (4, 2)), weights, jnp.zeros((5, 3)), jnp.zeros((5, 2)))
