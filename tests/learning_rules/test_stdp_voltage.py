"""Voltage-based STDP against its equation, summed over the history without any recursion."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spikebit.learning_rules import VoltageSTDP

EPS = float(np.finfo(np.float32).eps)


def run(rule, pre, voltage):
    """dW of each step, for (steps, batch, units)."""
    weights = jnp.zeros((pre.shape[-1], voltage.shape[-1]))
    xs = jnp.asarray(pre, jnp.float32), jnp.asarray(voltage, jnp.float32)
    start = rule.init(pre.shape[1:], voltage.shape[1:])

    @jax.jit
    def scan(xs):
        return jax.lax.scan(lambda state, x: rule.step(state, weights, *x), start, xs)[1]

    return np.asarray(scan(xs))


def average(values, tau, dt, start):
    """The average of a step function before each step: its integral with exp(-age / tau)."""
    steps = len(values)
    edges = np.arange(steps + 1) * dt
    out = []
    for t in edges[:-1]:
        since, until = np.minimum(edges[:-1], t), np.minimum(edges[1:], t)
        weight = np.exp(-(t - until) / tau) - np.exp(-(t - since) / tau)
        out.append(np.exp(-t / tau) * start + np.tensordot(weight, values, 1))
    return np.array(out)


def reference(rule, pre, voltage):
    """The equation in float64, each step's dW (steps, nin, n), averaged over the batch."""
    minus = average(voltage, rule.tau_minus, rule.dt, rule.rest)
    plus = average(voltage, rule.tau_plus, rule.dt, rule.rest)
    times = np.arange(len(pre)) * rule.dt
    ages = times[:, None] - times[None]
    kernel = np.where(ages > 0, np.exp(-np.maximum(ages, 0) / rule.tau_x) / rule.tau_x, 0)
    x = np.tensordot(kernel, pre.astype(np.float64), 1)
    down = rule.a_ltd * np.maximum(minus - rule.theta_minus, 0)
    if rule.u_ref is not None:
        mean = average(voltage - rule.rest, rule.tau_mean, rule.dt, 0)
        down = down * mean**2 / rule.u_ref**2
    up = rule.a_ltp * np.maximum(voltage - rule.theta_plus, 0)
    up = up * np.maximum(plus - rule.theta_minus, 0)
    batch = pre.shape[1]
    potentiation = rule.dt * np.einsum("tbi,tbj->tij", x, up) / batch
    return potentiation, np.einsum("tbi,tbj->tij", pre, down) / batch


@pytest.mark.parametrize("u_ref", [None, 8.0])
@pytest.mark.parametrize("dt", [1.0, 0.25])
def test_it_is_the_equation(dt, u_ref):
    rule = VoltageSTDP(dt=dt, u_ref=u_ref, tau_mean=40.0)
    rng = np.random.default_rng(0)
    pre = rng.random((60, 2, 3)) < 0.3
    voltage = rng.uniform(-80, -50, (60, 2, 2))
    voltage[rng.random(voltage.shape) < 0.2] = 30  # spikes
    up, down = reference(rule, pre, voltage)
    assert min(up.max(), down.max()) > 1e-4
    # a voltage of 80 mV rounds to 80 EPS, some 60 times over, before it is multiplied
    slack = 60 * 80 * EPS * (np.abs(up).max() / 10 + np.abs(down).max() / 10)
    np.testing.assert_allclose(run(rule, pre, voltage), up - down, atol=slack)


def test_depression_needs_a_depolarised_past_and_potentiation_a_spike():
    rule = VoltageSTDP()
    pre = np.ones((30, 1, 1))
    np.testing.assert_array_equal(run(rule, pre, np.full((30, 1, 1), -75.0)), 0)
    between = run(rule, pre, np.full((30, 1, 1), -50.0))  # above theta-, below theta+
    assert between[0] == 0
    assert (between[1:] < 0).all()
    # the average has come to -50 mV: A_LTD 20.6 mV for each spike
    settled = run(rule, np.ones((300, 1, 1)), np.full((300, 1, 1), -50.0))[-1]
    np.testing.assert_allclose(settled, -14e-5 * 20.6, rtol=1e-5)
    silent = run(rule, 0 * pre, np.full((30, 1, 1), 20.0))
    np.testing.assert_array_equal(silent, 0)


def test_pre_before_a_spike_potentiates_and_after_it_depresses():
    """The averages of a depolarised unit, in closed form up to the spike and down from it."""
    rule = VoltageSTDP(rest=-60.0, a_ltd=1e-3, a_ltp=1e-3)
    voltage = np.full((20, 1, 1), -60.0)
    voltage[10] = 20.0
    pre = np.zeros((20, 1, 1))
    pre[4] = 1
    # theta- is 10.6 mV below rest: the pre spike depresses at once, and the spike potentiates
    got = run(rule, pre, voltage)[:, 0, 0]
    expected = np.zeros(20)
    expected[4] = -1e-3 * 10.6
    expected[10] = 1e-3 * np.exp(-6 / 15) / 15 * (20 + 45.3) * 10.6
    np.testing.assert_allclose(got, expected, rtol=80 * EPS, atol=0)
    after = np.roll(pre, 10, 0)  # four steps after the spike, which stood for one step
    got = run(rule, after, voltage)[:, 0, 0]
    left = 80 * (1 - np.exp(-1 / 10)) * np.exp(-3 / 10)
    expected = np.zeros(20)
    expected[14] = -1e-3 * (10.6 + left)
    np.testing.assert_allclose(got, expected, rtol=200 * EPS, atol=0)


def test_bad_input_is_named():
    with pytest.raises(ValueError, match=r"VoltageSTDP: u_ref is 0\.0; it must be a positive"):
        VoltageSTDP(u_ref=0.0)
    for name in ("a_ltd", "a_ltp", "theta_minus", "theta_plus", "rest"):
        with pytest.raises(ValueError, match=f"{name} is nan; give a finite number"):
            VoltageSTDP(**{name: float("nan")})
    rule = VoltageSTDP()
    with pytest.raises(ValueError, match=r"VoltageSTDP.step: pre has shape \(1, 2\)"):
        rule.step(
            rule.init((1, 2), (1, 1)), jnp.zeros((3, 1)), jnp.zeros((1, 2)), jnp.zeros((1, 1))
        )
