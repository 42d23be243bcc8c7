"""Fatiguing STDP: pair STDP without fatigue, the closed forms, the drift, and the conditions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spikebit.learning_rules import fatigue
from spikebit.learning_rules.fatigue import FatiguingSTDP
from spikebit.learning_rules.stdp import PairSTDP, TripletSTDP, apply_update, bounded_update

PAIR = PairSTDP(a_plus=0.03, a_minus=0.033, tau_plus=17.0, tau_minus=34.0)


def run(rule, pre, post, weights):
    """Weights, state and delta after spikes (steps, nin) and (steps, n)."""

    def step(carry, spikes):
        state, w = carry
        share = rule.transmitted(state) if isinstance(rule, FatiguingSTDP) else None
        state, delta = rule.step(state, w, *spikes)
        return (state, apply_update(PAIR, w, delta)), (share, delta)

    start = rule.init(pre.shape[1:], post.shape[1:]), weights
    return jax.jit(lambda *xs: jax.lax.scan(step, start, xs))(pre, post)


def spikes(seed, steps, n, share=0.1):
    random = np.random.default_rng(seed)
    return jnp.asarray(random.uniform(size=(steps, n)) < share, jnp.float32)


def test_without_fatigue_it_is_pair_stdp_bit_for_bit():
    rule, w = FatiguingSTDP(PAIR, use=0.0), jnp.full((7, 3), 0.5)
    state, pair = rule.init((7,), (3,)), PAIR.init((7,), (3,))
    # step by step: XLA may round two programs differently where it fuses them as a whole
    for pre, post in zip(spikes(0, 60, 7, 0.3), spikes(1, 60, 3, 0.3), strict=True):
        assert (rule.transmitted(state) == 1).all()
        state, delta = rule.step(state, w, pre, post)
        pair, change = PAIR.step(pair, w, pre, post)
        np.testing.assert_array_equal(delta, change)
        np.testing.assert_array_equal(state.pair.pre, pair.pre)
        w = apply_update(rule, w, delta)
        assert (bounded_update(rule, w, 2 - w) == 1 - w).all()
    assert len(np.unique(w)) > 3


def test_fatigue_is_the_recursion_read_before_its_increment():
    rule = FatiguingSTDP(PAIR, use=0.3, tau_fatigue=20.0)
    pre = spikes(2, 200, 4, 0.3)
    (state, w), (share, _) = run(rule, pre, spikes(3, 200, 2), jnp.full((4, 2), 0.5))
    f = np.zeros(4)
    for t in range(200):
        f = f * np.exp(-1 / 20)
        np.testing.assert_allclose(share[t], 1 - f, atol=2e-6)  # 200 roundings of 6e-8, decaying
        f = np.where(np.asarray(pre[t]) > 0, f + 0.3 * (1 - f), f)
    assert (np.asarray(state.fatigue) >= 0).all()
    assert (np.asarray(state.fatigue) < 1).all()
    assert (np.asarray(w) >= 0).all()
    assert (np.asarray(w) <= 1).all()


def test_permuted_inputs_have_permuted_weights():
    pre, post, w = spikes(4, 100, 6), spikes(5, 100, 2), spikes(6, 6, 2, 0.5)
    order = np.array([3, 0, 5, 1, 2, 4])
    rule = FatiguingSTDP(PAIR)
    (_, a), _ = run(rule, pre, post, w)
    (_, b), _ = run(rule, pre[:, order], post, w[order])
    np.testing.assert_array_equal(np.asarray(a)[order], b)


def test_another_efficacy_and_fatigued_updates():
    pre, post, w = spikes(7, 50, 3, 0.3), spikes(8, 50, 2, 0.3), jnp.full((3, 2), 0.5)
    square = FatiguingSTDP(PAIR, efficacy=lambda f: (1 - f) ** 2)
    _, (share, delta) = run(square, pre, post, w)
    _, (plain, same) = run(FatiguingSTDP(PAIR), pre, post, w)
    np.testing.assert_allclose(share, plain**2, rtol=1e-6)
    np.testing.assert_array_equal(delta, same)  # by default only the transmission is tired
    tired = FatiguingSTDP(PAIR, fatigued_update=True)
    _, (share, delta) = run(tired, pre, post, w)
    np.testing.assert_allclose(delta, same * share[:, :, None], rtol=1e-6)
    with pytest.raises(ValueError, match=r"fatigued_update=True.*\(2, 3\)"):
        tired.step(tired.init((2, 3), (2, 2)), w, pre[:2], post[:2])


@pytest.mark.parametrize("rate", [5.0, 25.0, 100.0])
def test_efficacy_of_a_poisson_train(rate):
    use, tau = 0.5, 0.2
    random = np.random.default_rng(int(rate))
    f, seen = jnp.zeros(1000), []  # a thousand trains, each spike by its exact interval
    for _ in range(60):
        f = f * jnp.exp(-jnp.asarray(random.exponential(1 / rate / tau, 1000), jnp.float32))
        seen.append(1 - f)
        f = fatigue.tire(f, jnp.ones(1000), use)
    expected = fatigue.poisson_efficacy(rate, use, tau)
    assert float(jnp.stack(seen[30:]).mean()) == pytest.approx(expected, rel=0.01)
    # the rule, in steps of 1 ms: E[F] = l p U / (1 - l (1 - p U)) for p spikes a step
    rule = FatiguingSTDP(PAIR, use=use, tau_fatigue=tau * 1e3)
    decay, pu = np.exp(-1 / 200), rate * 1e-3 * use
    train = spikes(int(rate), 4000, 300, rate * 1e-3)
    _, (share, _) = run(rule, train, jnp.zeros((4000, 1)), jnp.zeros((300, 1)))
    heard = np.asarray(share)[1000:][np.asarray(train[1000:]) > 0].mean()
    assert heard == pytest.approx(1 - decay * pu / (1 - decay * (1 - pu)), rel=0.012)


@pytest.mark.parametrize("period", [4, 30, 250])
def test_efficacy_of_a_regular_train(period):
    rule = FatiguingSTDP(PAIR, use=0.4, tau_fatigue=60.0)
    pre = jnp.zeros((3000 // period * period, 1)).at[::period].set(1)
    _, (share, _) = run(rule, pre, jnp.zeros_like(pre), jnp.zeros((1, 1)))
    expected = fatigue.regular_efficacy(1 / period, 0.4, 60.0)
    assert float(share[-period, 0]) == pytest.approx(expected, rel=1e-5)


def test_fast_inputs_drive_alike_whatever_their_rate():
    use, tau = 0.5, 0.2
    limit = fatigue.saturated_drive(0.7, use, tau)
    for form in (fatigue.poisson_efficacy, fatigue.regular_efficacy):
        assert 1e5 * 0.7 * form(1e5, use, tau) == pytest.approx(limit, rel=1e-3)
        assert form(0.0, use, tau) == 1  # a spike that no other comes before
    assert fatigue.saturated_drive(0.7, 0.0, tau) == np.inf
    assert fatigue.regular_efficacy(3.0, 0.0, tau) == 1 == fatigue.poisson_efficacy(3.0, 0.0, tau)


@pytest.mark.parametrize("use", [0.0, 0.5])
def test_drift_is_that_of_the_rule(use):
    """Three inputs, two of them with 3 in 4 spikes in common; a neuron that fires at random.

    It fires with a probability of 0.3 times its input in the same step, so kappa = 0.3 exactly.
    """
    rate, gain, batch, skip, steps = 0.002, 0.3, 6000, 1500, 2000  # of a step of 1 ms
    pair = PairSTDP(a_plus=1.0, a_minus=1.1, coincidence="potentiate")
    rule = FatiguingSTDP(pair, use=use, tau_fatigue=500.0)
    w = jnp.array([[1.0], [0.6], [0.8]])

    random = np.random.default_rng(5)  # a random number of JAX costs twenty times as much

    def happens(chance):
        return random.random((skip + steps, batch), np.float32) < chance

    both = happens(0.75 * rate)
    pairs = both | happens(0.25 * rate), both | happens(0.25 * rate)
    inputs = np.stack([*pairs, happens(rate)], -1)

    def step(state, drawn):
        pre = drawn[0].astype(jnp.float32)
        chance = gain * ((pre * rule.transmitted(state)) @ w)[:, 0] + 0.002
        post = (drawn[1] < chance).astype(jnp.float32)[:, None]
        state, delta = rule.step(state, w, pre, post)
        return state, (delta[:, 0], post.mean())

    drawn = inputs, random.random((skip + steps, batch), np.float32)
    start = rule.init((batch, 3), (batch, 1))
    _, (delta, post) = jax.jit(lambda d: jax.lax.scan(step, start, d))(drawn)
    found, post_rate = np.asarray(delta[skip:].mean(0)), float(post[skip:].mean())
    shared = jnp.array([[0, 0.75, 0], [0.75, 0, 0], [0, 0, 0]]) * rate
    # in steps, the chance pairs are geometric series with and without the same step
    sums = {"tau_plus": 1 / (1 - np.exp(-1 / 20)), "tau_minus": 1 / (np.exp(1 / 20) - 1)}
    summed = PairSTDP(a_plus=1.0, a_minus=1.1, **{k: float(v) for k, v in sums.items()})
    share = fatigue.poisson_efficacy(rate, use, 500.0)
    expected = fatigue.drift(summed, jnp.full(3, rate), w[:, 0] * share, shared, post_rate, gain)
    # 24,000 spikes of each input cause about 7,000 of the neuron: 1.2 %, and as much from chance
    np.testing.assert_allclose(found, expected, rtol=0.07)
    alone = fatigue.drift(summed, jnp.full(3, rate), w[:, 0] * share, 0 * shared, post_rate, gain)
    assert (np.abs(found - alone) > 0.3 * np.abs(found)).tolist() == [True, True, False]


@pytest.mark.parametrize("a_minus", [0.0033, 0.003, 0.0027])
def test_conditions_are_the_signs_of_the_drift(a_minus):
    """Also where chance pairs change nothing, or potentiate."""
    rule = PairSTDP(a_plus=0.003, a_minus=a_minus, tau_plus=0.02, tau_minus=0.02)
    use, tau, gain, count, c = 0.5, 0.2, 0.05, 20, 0.4
    for post_rate in (5.0, 20.0, 60.0, 300.0):
        for rate in (5.0, 50.0):
            share = fatigue.poisson_efficacy(rate, use, tau)
            # the group: c r pairs a second; rates of others do not come into it
            shared = jnp.full((count, count), c * rate)
            ones = jnp.full(count, rate), jnp.full(count, share)
            of_group = fatigue.drift(rule, *ones, shared, post_rate, gain)[0]
            of_fast = fatigue.drift(rule, *ones, 0 * shared, post_rate, gain)[0]
            settings = rate, use, tau, post_rate, gain
            assert (fatigue.potentiation_of_fast(rule, *settings) > 1) == (of_fast > 0)
            group = fatigue.potentiation_of_group(rule, count, c, *settings)
            assert (group > 1) == (of_group > 0)
            if a_minus > rule.a_plus:  # at `group` times the output rate both terms are equal
                balanced = fatigue.drift(rule, *ones, shared, group * post_rate, gain)[0]
                assert abs(balanced) < 1e-5 * (of_group - of_fast)
    assert fatigue.rate_suppression(jnp.array([50.0, 5.0]), use, tau) == pytest.approx(0.5)
    fast, learning = fatigue.time_separation(tau, jnp.array([0.01, 0.02]), 60.0)
    assert (float(fast), learning) == (pytest.approx(10.0), pytest.approx(300.0))


def test_threshold_falls_with_the_drive():
    rates, w = jnp.array([5.0, 50.0]), jnp.array([1.0, 0.5])
    # of 5 and 25 a second, 1 / 1.5 and 1 / 6 are left
    expected = 8 * (5 / 1.5 + 25 / 6) / 30
    assert fatigue.fatigued_threshold(8.0, rates, w, 0.5, 0.2) == pytest.approx(expected, rel=1e-6)
    assert fatigue.fatigued_threshold(8.0, rates, w, 0.0, 0.2) == pytest.approx(8.0, rel=1e-6)


def test_bad_settings_are_refused():
    for other in ({"dependence": "multiplicative"}, {"interaction": "nearest"}):
        with pytest.raises(ValueError, match=r"hold for additive all-to-all STDP; the rule is"):
            fatigue.potentiation_of_fast(PairSTDP(**other), 5.0, 0.5, 0.2, 5.0, 0.1)
    with pytest.raises(ValueError, match=r"use is 1\.0; give 0"):
        FatiguingSTDP(use=1.0)
    rule = FatiguingSTDP()
    object.__setattr__(rule, "pair", TripletSTDP())  # past the type check of the tests
    with pytest.raises(ValueError, match="pair is TripletSTDP; give a PairSTDP"):
        rule.__post_init__()
    with pytest.raises(ValueError, match=r"tau_fatigue is 0\.0"):
        FatiguingSTDP(tau_fatigue=0.0)
