"""Triplet STDP: the published protocol, an event-based reference, and pairs as its special case."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spikebit.learning_rules import PairSTDP, TripletSTDP

EPS = float(np.finfo(np.float32).eps)


def changes(rule, pre, post):
    """Summed dW of each of many synapses, each with its own trains (steps, synapses)."""
    weights = jnp.zeros((1, 1))

    def one(pre, post):
        def step(carry, spikes):
            state, total = carry
            state, delta = rule.step(state, weights, *spikes)
            return (state, total + delta[0, 0]), None

        start = rule.init((1,), (1,)), jnp.zeros(())
        return jax.lax.scan(step, start, (pre[:, None], post[:, None]))[0][1]

    trains = (jnp.asarray(s, jnp.float32) for s in (pre, post))
    return np.asarray(jax.jit(jax.vmap(one, in_axes=1))(*trains))


def event_triplets(rule, pre_times, post_times):
    """The rule in float64 over spike times, each trace summed anew from all earlier spikes."""

    def trace(now, times, tau):
        times = times[times < now]
        if rule.interaction == "nearest":
            times = times[-1:]
        return np.exp(-(now - times) / tau).sum()

    total = 0.0
    for t in post_times:
        o2 = trace(t, post_times, rule.tau_y)
        total += trace(t, pre_times, rule.tau_plus) * (rule.a2_plus + rule.a3_plus * o2)
    for t in pre_times:
        x2 = trace(t, pre_times, rule.tau_x)
        total -= trace(t, post_times, rule.tau_minus) * (rule.a2_minus + rule.a3_minus * x2)
    return total


#: Pairing frequency [Hz] -> dW of the pairs at +10 and at -10 ms, from an independent prototype.
TABLE = {
    0.1: (0.000, -0.264),
    10.0: (0.119, -0.332),
    20.0: (0.228, -0.342),
    40.0: (0.532, 0.174),
    50.0: (0.763, 0.749),
}
DT = 5.0  # divides the lag and all periods; the decay is exact, so any step gives one answer


def pairings():
    """Spike times of pre and post [ms] for each frequency and sign of the lag."""
    for f in TABLE:
        times = np.arange(50 if f == 0.1 else 60) * 1000 / f
        yield times, times + 10
        yield times + 10, times


def test_the_pairing_protocol_gives_the_table():
    rule = TripletSTDP(
        a2_plus=0.0,
        a2_minus=7.1e-3,
        a3_plus=6.5e-3,
        a3_minus=0.0,
        tau_plus=16.8,
        tau_minus=33.7,
        tau_x=101.0,
        tau_y=114.0,
        dt=DT,
    )
    cases = list(pairings())
    steps = 1 + round(max(t.max() for case in cases for t in case) / DT)
    pre, post = np.zeros((2, steps, len(cases)), np.float32)
    for i, (before, after) in enumerate(cases):
        pre[np.rint(before / DT).astype(int), i] = 1
        post[np.rint(after / DT).astype(int), i] = 1
    got = changes(rule, pre, post)
    reference = [event_triplets(rule, *case) for case in cases]
    # 120 terms, none above 0.05, each off by the roundings of a trace and of the sum
    np.testing.assert_allclose(got, reference, atol=120 * 0.05 * 10 * EPS)
    table = np.ravel([*TABLE.values()])
    np.testing.assert_allclose(reference, table, atol=0.5e-3)  # three digits
    np.testing.assert_allclose(got, table, atol=0.51e-3)


@pytest.mark.parametrize("interaction", ["all_to_all", "nearest"])
def test_random_trains_give_the_sum_over_events(interaction):
    rule = TripletSTDP(
        a2_plus=0.3,
        a2_minus=0.2,
        a3_plus=0.7,
        a3_minus=0.4,
        tau_plus=9.0,
        tau_minus=14.0,
        tau_x=30.0,
        tau_y=20.0,
        dt=2.0,
        interaction=interaction,
    )
    trains = np.random.default_rng(4).random((2, 60, 3)) < 0.25
    times = [[np.flatnonzero(s[:, i]) * 2.0 for s in trains] for i in range(3)]
    reference = [event_triplets(rule, *pair) for pair in times]
    # 60 terms of up to 10 with some ten roundings each
    np.testing.assert_allclose(changes(rule, *trains), reference, atol=60 * 10 * 10 * EPS)


@pytest.mark.parametrize("coincidence", ["ignore", "potentiate", "depress", "both"])
@pytest.mark.parametrize("interaction", ["all_to_all", "nearest"])
def test_without_triplets_it_is_pair_stdp(interaction, coincidence):
    options = {"interaction": interaction, "coincidence": coincidence}
    triplet = TripletSTDP(a2_plus=0.1, a2_minus=0.2, a3_plus=0.0, a3_minus=0.0, **options)
    pair = PairSTDP(a_plus=0.1, a_minus=0.2, tau_plus=16.8, tau_minus=33.7, **options)
    trains = np.random.default_rng(5).random((2, 50, 2)) < 0.3
    expected = changes(pair, *trains)
    assert np.abs(expected).min() > 0
    # 50 terms of up to 1, multiplied in another order
    np.testing.assert_allclose(changes(triplet, *trains), expected, atol=50 * 4 * EPS)


def test_the_slow_traces_never_see_the_spike_that_reads_them():
    """A first post spike finds o2 = 0, whatever the option for coincidences."""
    for coincidence in ("ignore", "both"):
        rule = TripletSTDP(a2_minus=0.0, a3_plus=1.0, coincidence=coincidence)
        pre, post = np.zeros((2, 4, 1))
        pre[0], post[2] = 1, 1
        assert changes(rule, pre, post)[0] == 0
        post[1] = 1  # now post at step 2 finds the one at step 1
        expected = math.exp(-2 / 16.8) * math.exp(-1 / 114)
        np.testing.assert_allclose(changes(rule, pre, post)[0], expected, rtol=8 * EPS)


def test_bad_settings_are_named():
    with pytest.raises(ValueError, match=r"TripletSTDP: tau_y is -1.0; it must be a positive"):
        TripletSTDP(tau_y=-1.0)
