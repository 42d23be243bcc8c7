"""Reward-modulated STDP: what waits for a reward, how long, and what no reward leaves alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spikebit.learning_rules import (
    FatiguingSTDP,
    PairSTDP,
    RewardSTDP,
    TripletSTDP,
    VoltageSTDP,
    bounded_update,
)
from spikebit.quant.storage import storage

EPS = float(np.finfo(np.float32).eps)
PAIR = PairSTDP(a_plus=0.3, a_minus=0.2)


def run(rule, pre, post, *rewards):
    """dW of each step, for spikes (steps, *batch, units) and, with rewards, (steps, *batch)."""
    weights = jnp.full((pre.shape[-1], post.shape[-1]), 0.5)
    xs = tuple(jnp.asarray(a, jnp.float32) for a in (pre, post, *rewards))
    start = rule.init(pre.shape[1:], post.shape[1:])

    @jax.jit
    def scan(xs):
        return jax.lax.scan(lambda state, x: rule.step(state, weights, *x), start, xs)[1]

    return np.asarray(scan(xs))


def trains(steps=40, batch=2):
    rng = np.random.default_rng(3)
    pre, post = rng.random((steps, batch, 3)) < 0.3, rng.random((steps, batch, 2)) < 0.3
    return pre, post, rng.normal(size=(steps, batch))


def test_a_late_reward_finds_what_is_left_of_the_pair():
    """dW = eta r (1 - l) l^k A+ exp(-D / tau+), k steps after the pair; at k = 0 it counts too."""
    rule = RewardSTDP(PAIR, eta=2.0, tau_e=5.0)
    pre, post = np.zeros((2, 12, 1, 1))
    pre[1], post[3] = 1, 1
    decay = np.exp(-1 / 5)
    for k in (0, 1, 6):
        reward = np.zeros((12, 1))
        reward[3 + k] = -1.5
        expected = np.zeros(12)
        expected[3 + k] = 2 * -1.5 * (1 - decay) * decay**k * 0.3 * np.exp(-2 / 20)
        got = run(rule, pre, post, reward)[:, 0, 0]
        np.testing.assert_allclose(got, expected, rtol=(8 + k) * EPS, atol=0)


def test_it_is_the_eligibility_of_each_sample_times_its_reward():
    """Against sums over the history in float64, with a baseline."""
    rule = RewardSTDP(PAIR, eta=0.7, tau_e=6.0, tau_baseline=9.0)
    pre, post, reward = trains()
    terms = np.stack(
        [run(PAIR, pre[:, b : b + 1], post[:, b : b + 1]) for b in range(2)], 1
    ).astype(np.float64)
    late, mean = np.exp(-1 / 6), np.exp(-1 / 9)
    expected = []
    for t in range(40):
        waits = np.arange(t, -1, -1)
        e = np.einsum("s,sbij->bij", (1 - late) * late**waits, terms[: t + 1])
        baseline = ((1 - mean) * mean ** waits[1:]) @ reward[:t]
        expected.append(0.7 * np.einsum("b,bij->ij", reward[t] - baseline, e) / 2)
    assert np.abs(expected).max() > 0.1
    # 40 terms of up to 1.5 in each of two sums
    np.testing.assert_allclose(run(rule, pre, post, reward), expected, atol=100 * EPS)


@pytest.mark.parametrize("rule", [PAIR, TripletSTDP(a2_plus=0.1)], ids=["pair", "triplet"])
def test_without_waiting_it_is_the_reward_times_the_rule(rule):
    pre, post, _ = trains()
    shared = np.repeat(np.random.default_rng(0).normal(size=(40, 1)), 2, 1)
    instantaneous = run(RewardSTDP(rule, tau_e=None), pre, post, shared)
    limit = run(RewardSTDP(rule, tau_e=1e-3), pre, post, shared)  # exp(-1000) is 0
    np.testing.assert_array_equal(limit, instantaneous)
    expected = shared[:, :1, None] * run(rule, pre, post)
    assert np.abs(expected).max() > 1e-3
    np.testing.assert_allclose(instantaneous, expected, rtol=1e-5, atol=10 * EPS)


def test_a_constant_reward_gives_the_rule_itself_in_the_end():
    pre, post, _ = trains()
    quiet = np.zeros((300, 2, 1))
    pre, post = (np.concatenate([s, quiet.repeat(s.shape[-1], -1)]) for s in (pre, post))
    got = run(RewardSTDP(PAIR, tau_e=10.0), pre, post, np.ones((340, 2))).sum(0)
    # what the quiet time leaves: exp(-30) of the last eligibility, and the roundings of 340 terms
    np.testing.assert_allclose(got, run(PAIR, pre, post).sum(0), atol=340 * 4 * EPS)


@pytest.mark.parametrize("tau_e", [None, 25.0])
@pytest.mark.parametrize("tau_baseline", [None, 50.0])
def test_no_reward_no_change(tau_e, tau_baseline):
    pre, post, reward = trains()
    rule = RewardSTDP(PAIR, tau_e=tau_e, tau_baseline=tau_baseline)
    np.testing.assert_array_equal(run(rule, pre, post, 0 * reward), 0)


def test_it_works_on_one_sample_with_rounded_traces_and_keeps_to_the_bounds_of_its_rule():
    rule = RewardSTDP(PairSTDP(w_max=0.75, kept=storage("test", "fixed8.2", "stochastic")))
    state = rule.init((200,), (1,))
    for key in jax.random.split(jax.random.key(0), 2):
        weights = jnp.full((200, 1), 0.5)
        state, delta = rule.step(state, weights, jnp.ones(200), jnp.ones(1), jnp.asarray(1e6), key)
    assert set(np.unique(state.traces.pre)) == {1.75, 2.0}  # 1.95, to either side
    new = weights + bounded_update(rule, weights, jnp.abs(delta))
    np.testing.assert_array_equal(new, 0.75)
    batched = rule.init((2, 200), (2, 1))
    pre, post, reward = jnp.ones((2, 200)), jnp.ones((2, 1)), jnp.ones(2)
    for key in jax.random.split(jax.random.key(1), 2):
        batched, _ = rule.step(batched, weights, pre, post, reward, key)
    assert (np.asarray(batched.traces.pre[0]) != np.asarray(batched.traces.pre[1])).any()


def test_the_reward_may_be_that_of_a_fatiguing_rule():
    tired, weights = FatiguingSTDP(PAIR), jnp.full((2, 1), 0.5)
    rule = RewardSTDP(tired, tau_e=None)
    state, alone = rule.init((2,), (1,)), tired.init((2,), (1,))
    for pre in (jnp.array([1.0, 0.0]), jnp.array([0.0, 1.0])):
        post = jnp.ones(1)
        state, got = rule.step(state, weights, pre, post, 2.0)
        alone, delta = tired.step(alone, weights, pre, post)
        np.testing.assert_allclose(got, 2 * delta, rtol=2 * EPS)
        assert delta.any() == (pre[1] > 0)
    np.testing.assert_array_equal(state.traces.fatigue, alone.fatigue)


def test_bad_input_is_named():
    with pytest.raises(ValueError, match=r"RewardSTDP: tau_e is 0\.0; it must be a positive"):
        RewardSTDP(PAIR, tau_e=0.0)
    with pytest.raises(ValueError, match="eta is nan; give a finite number"):
        RewardSTDP(PAIR, eta=float("nan"))
    rule = RewardSTDP(PAIR)
    object.__setattr__(rule, "rule", VoltageSTDP())  # past the type check of the tests
    with pytest.raises(ValueError, match="rule is VoltageSTDP; give a PairSTDP"):
        rule.__post_init__()
    rule = RewardSTDP(PAIR)
    spikes = jnp.zeros((4, 1))
    for made, batch in ((rule, 3), (RewardSTDP(PAIR, tau_e=None), 4)):
        state = made.init((batch, 1), (batch, 1))
        with pytest.raises(ValueError, match=r"with tau_e=25.0; make it with this rule's init"):
            rule.step(state, jnp.zeros((1, 1)), spikes, spikes, jnp.zeros(4))
    with pytest.raises(ValueError, match=r"RewardSTDP\.step: pre has shape \(4, 1\) and post \(3,"):
        rule.step(rule.init((4, 1), (4, 1)), jnp.zeros((1, 1)), spikes, spikes[1:], jnp.zeros(4))
    with pytest.raises(ValueError, match=r"one reward for each sample has shape \(4,\)"):
        rule.step(rule.init((4, 1), (4, 1)), jnp.zeros((1, 1)), spikes, spikes, jnp.zeros(()))
