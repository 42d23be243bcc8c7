"""Pulsed cells: closed forms of trains, symmetry points, bounds, spreads, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spikebit.simulator.devices.presets import DEVICES, by_name
from spikebit.simulator.devices.pulsed import (
    NONE,
    Variation,
    constant,
    exponential,
    linear,
    piecewise,
    power,
    pulsed,
    soft_bounds,
    symmetry_point,
)

pytestmark = pytest.mark.usefixtures("compile_quickly")
N = 100_000
RISING = exponential(-0.5, -0.5, (5.0, 5.0), (-1.2, -0.08))
SHAPES = {
    "constant": constant,
    "linear": linear,
    "soft bounds": soft_bounds,
    "exponential": RISING,
    "power": power(1.5),
    "piecewise": piecewise(jnp.array([1.0, 0.5, 0.1]), jnp.array([0.2, 0.6, 1.0])),
}


def exact(shape, step=0.02, **settings):
    settings = {"reference": 0.0, "variation": NONE, "slopes": (0.1, 0.4)} | settings
    return pulsed(shape, step=step, **settings)


def train(device, state, counts, seed=0):
    counts = jnp.broadcast_to(jnp.asarray(counts), state.w.shape)
    return jax.jit(device.pulse)(state, counts, jax.random.key(seed), 1.0)


def start(device, n):
    return jax.jit(device.init, static_argnums=0)((n,), jax.random.key(0), 0.0)


def by_hand(name, w, up):
    """One pulse of step 0.02 in plain floats, from the published equations."""
    if name == "constant":
        size = 1.0
    elif name == "linear":
        size = 1 - 0.1 * w if up else 1 + 0.4 * w
    elif name == "soft bounds":
        size = 1 - w if up else 1 + w
    elif name == "exponential":
        z = 2 * w * -0.5 / 2 - 0.5
        size = max(1 + 1.2 * np.exp(5 * z), 0) if up else max(1 + 0.08 * np.exp(-5 * z), 0)
    elif name == "power":
        left = (1 - w) / 2
        size = (left if up else 1 - left) ** 1.5
    else:
        nodes = (1.0, 0.5, 0.1) if up else (0.2, 0.6, 1.0)
        size = np.interp(w, (-1, 0, 1), nodes)
    return float(np.clip(w + (1 if up else -1) * 0.02 * size, -1, 1))


@pytest.mark.parametrize("name", SHAPES)
def test_a_train_is_the_published_step_again_and_again(name):
    device = exact(SHAPES[name])
    state = start(device, 3)
    w = [0.0] * 3
    for counts in ([7, -7, 3], [-4, 60, 0], [5, 5, -90]):
        state = train(device, state, counts)
        for i, n in enumerate(counts):
            for _ in range(abs(n)):
                w[i] = by_hand(name, w[i], n > 0)
        np.testing.assert_allclose(device.read(state, None, 1.0), w, atol=2e-6)
    back = train(device, train(device, start(device, 1), 5), -5)
    assert (abs(float(back.w[0])) < 1e-6) == (name == "constant")


@pytest.mark.parametrize("additive", [True, False])
@pytest.mark.parametrize("name", ["constant", "linear", "soft bounds"])
def test_a_train_has_the_moments_of_its_pulses_one_by_one(name, additive):
    """Moments by the recursion of the published step, a pulse at a time, in plain floats."""
    noise = Variation(0, 0, 0, 0, 0, pulse=0.5)
    device = exact(SHAPES[name], additive=additive, variation=noise)
    for pulses in (1, 5, -31):
        up, mean, variance = pulses > 0, 0.0, 0.0
        for _ in range(abs(pulses)):
            step = by_hand(name, mean, up) - mean
            keep = 1 + (by_hand(name, 0.5, up) - 0.5 - by_hand(name, 0.0, up)) / 0.5
            ways = (0.02 / step) ** 2 if additive else 1  # noise in squares of the mean step
            more = 0 if additive else 0.25 * (1 - keep) ** 2 * variance
            variance = keep**2 * variance + more + 0.25 * ways * step**2
            mean += step
        state = start(device, N)
        w = np.asarray(train(device, state, pulses, seed=abs(pulses)).w, float)
        assert abs(w.mean() - mean) < 4 * np.sqrt(variance / N)
        assert abs(w.var() - variance) < 4 * variance * np.sqrt(2 / N)


def test_alternating_pulses_lead_to_the_symmetry_point_from_anywhere():
    device = exact(soft_bounds, step=0.05, low=-0.75, high=1.25, asymmetry=0.2)
    state = start(device, 5)._replace(w=jnp.linspace(-0.7, 1.2, 5))
    both = jax.jit(lambda s: train(device, train(device, s, 1), -1))
    for _ in range(200):
        state = both(state)
    up, down = 0.05, 0.8 * 0.05
    expected = (up - down) / (up / 1.25 + down / 0.75)
    np.testing.assert_allclose(symmetry_point(state), expected, rtol=1e-5)
    assert np.abs(np.asarray(state.w) - expected).max() < 0.05
    np.testing.assert_allclose(state.w, state.w[0], atol=1e-5)  # nothing is left of the start


def test_cells_and_pulses_spread_as_they_are_told():
    spread = Variation(step=0.2, high=0.1, low=0.05, asymmetry=0.04, pulse=0.3, write=2.0)
    device = exact(constant, variation=spread, high=1.5)
    state = start(device, N)
    error = 4 / np.sqrt(2 * N)
    mean_step = (np.asarray(state.up) + np.asarray(state.down)) / 2 / 0.02
    difference = (np.asarray(state.up) - np.asarray(state.down)) / 2 / 0.02
    for sample, mean, std in (
        (mean_step, 1.0, 0.2),
        (difference, 0.0, 0.04),
        (np.asarray(state.high), 1.5, 0.15),
        (np.asarray(state.low), -1.0, 0.05),
    ):
        assert abs(sample.mean() - mean) < 4 * std / np.sqrt(N)
        assert sample.std() == pytest.approx(std, rel=error)
    new = train(device, state, 1)
    moved = np.asarray(new.w) / np.asarray(state.up)
    assert abs(moved.mean() - 1) < 4 * 0.3 / np.sqrt(N)
    assert moved.std() == pytest.approx(0.3, rel=error)
    seen = np.asarray(device.read(new, None, 1.0)) - np.asarray(new.w)
    assert seen.std() == pytest.approx(2.0 * 0.02, rel=error)
    still = train(device, new, 0, seed=5)
    assert (np.asarray(still.shown) == np.asarray(new.shown)).all()


def test_no_cell_leaves_its_bounds_and_steps_that_are_log_normal_have_one_sign():
    wild = Variation(step=0.8, pulse=3.0, log_normal=True)
    device = pulsed(constant, step=0.1, variation=wild)
    state = start(device, 10_000)
    logs = np.log(np.asarray(state.up) / 0.1)
    assert logs.std() == pytest.approx(0.8, rel=0.05)
    for seed, n in enumerate((20, -50)):
        state = train(device, state, n, seed)
        assert (np.asarray(state.w) <= np.asarray(state.high)).all()
        assert (np.asarray(state.w) >= np.asarray(state.low)).all()


@pytest.mark.parametrize("name", [n for n in DEVICES if by_name(n).g_min < 0])
def test_presets_go_up_by_their_step_and_can_be_batched(name):
    device = by_name(name)
    keys = jax.random.split(jax.random.key(0), 3)

    @jax.jit
    @jax.vmap
    def instance(key):
        cells, pulses = jax.random.split(key)
        state = device.init((50, 20), cells, 0.0)
        before = device.read(state, None, 0.0)
        new = device.pulse(state, jnp.ones((50, 20), int), pulses, 1.0)
        return new.w - state.w, before

    moved, before = instance(keys)
    assert np.isfinite(np.asarray(moved)).all()
    share = np.asarray(moved).mean() / device.step
    assert 0.2 < share < 3  # of the step; presets differ in shape and asymmetry
    assert np.abs(np.asarray(before)).mean() < 0.4


def test_what_is_refused():
    with pytest.raises(ValueError, match=r"step above 0 and low < high"):
        pulsed(step=0.0)
    with pytest.raises(ValueError, match=r"no device; known are pcm, "):
        by_name("memristor")
    device = exact(constant)
    state = start(device, 2)
    with pytest.raises(ValueError, match=r"pulsed.pulse: counts are float32"):
        device.pulse(state, jnp.ones(2), jax.random.key(0), 1.0)
    with pytest.raises(ValueError, match=r"pulsed.read: t = 0 s, but a cell was written at 1 s"):
        device.read(train(device, state, 1), None, 0.0)
