"""Numbers of pulses: rounding without bias, and trains with the moments of their coincidences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spikebit.simulator.devices import pulsed, set_pcm, with_stuck_cells
from spikebit.simulator.devices.pulse_numbers import coincidences, rounded, update_by_trains
from spikebit.simulator.devices.pulsed import NONE, Variation, soft_bounds

pytestmark = pytest.mark.usefixtures("compile_quickly")
X, D = np.array([0.8, -0.3, 0.0, 0.5]), np.array([0.4, -0.1, 0.0])
RUNS = 20_000


def many(runs=RUNS, x=X, d=D, **settings):
    """Numbers (runs, inputs, outputs) of independent trains."""
    x, d = jnp.asarray(x, jnp.float32), jnp.asarray(d, jnp.float32)
    keys = jax.random.split(jax.random.key(0), runs)
    one = jax.jit(jax.vmap(lambda k: coincidences(x, d, k, **settings)))
    return np.asarray(one(keys), float)


def test_numbers_are_rounded_without_bias_alike_for_both_signs_and_cut():
    change = jnp.array([0.31, -0.31, 2.75, 0.0, -40.0])

    def draw(of):
        keys = jax.random.split(jax.random.key(1), RUNS)
        return np.asarray(jax.vmap(lambda k: rounded(of, 0.5, k, 31))(keys))

    numbers = draw(change)
    for at, wanted in enumerate((0.62, -0.62, 5.5, 0.0, -31.0)):
        part = abs(wanted) % 1
        error = 4 * np.sqrt(part * (1 - part) / RUNS)
        assert abs(numbers[:, at].mean() - wanted) <= error
    np.testing.assert_array_equal(draw(-change), -numbers)
    np.testing.assert_array_equal(rounded(change, 0.5, None), [1, -1, 6, 0, -80])


@pytest.mark.parametrize("fixed", [True, False])
def test_trains_are_the_outer_product_on_average_with_its_spread(fixed):
    """Mean, variance BL p (1 - p), and the covariance of a line, whose train is one."""
    rate, step, length = 0.097, 0.002, 31
    n = many(rate=rate, step=step, length=length, fixed=fixed)
    wanted = rate * 0.8 * 0.4 / step  # 15.52 pulses for the largest product
    sent = length if fixed else np.ceil(wanted)
    p_x = np.sqrt(rate / (step * sent) * 0.4 / 0.8) * np.abs(X)
    p_d = np.sqrt(rate / (step * sent) * 0.8 / 0.4) * np.abs(D)
    assert max(p_x.max(), p_d.max()) <= 1
    p = np.outer(p_x, p_d)
    np.testing.assert_allclose(sent * p, rate * np.abs(np.outer(X, D)) / step, atol=1e-12)
    variance = sent * p * (1 - p)
    sign = -np.sign(np.outer(X, D))
    assert (np.abs(n.mean(0) - sign * sent * p) <= 4 * np.sqrt(variance / RUNS)).all()
    assert (n[:, 2] == 0).all()  # nothing at all on a line of 0
    assert (n[:, :, 2] == 0).all()
    assert (np.abs(n.var(0) - variance) <= 4 * variance * np.sqrt(3 / RUNS) + 1e-12).all()
    size = n * sign  # two outputs that share the train of input 0
    together = np.mean(size[:, 0, 0] * size[:, 1, 0]) - size[:, 0, 0].mean() * size[:, 1, 0].mean()
    expected = sent * p_x[0] * p_x[1] * p_d[0] * (1 - p_d[0])
    spread = np.sqrt(variance[0, 0] * variance[1, 0] / RUNS)
    assert abs(together - expected) < 4 * spread
    assert expected > 8 * spread or fixed is False  # so that independent draws are told apart


def test_long_updates_are_cut_and_products_of_nothing_move_nothing():
    n = np.abs(many(200, rate=1000.0, step=0.002))
    assert n.max() == 31
    assert n[:, 0, 0].min() == 31
    assert (many(10, x=np.zeros(4), rate=0.1, step=0.002) == 0).all()
    assert (many(10, d=np.zeros(3), rate=0.1, step=0.002) == 0).all()
    device = pulsed(step=0.01, reference=0.0)
    state = device.init((4, 3), jax.random.key(0), 0.0)
    none, some = jnp.zeros((2, 4)), jnp.ones((2, 3))
    update = jax.jit(lambda *given: update_by_trains(device, *given, 1.0, rate=0.1))
    still = update(state, none, some, jax.random.key(1))
    jax.tree.map(np.testing.assert_array_equal, still, state)


def test_a_batch_of_trains_is_a_step_of_gradient_descent_on_average():
    """Constant steps without noise: the sum of the samples' numbers, times the step."""
    device = pulsed(step=0.001, reference=0.0, variation=NONE)
    state = device.init((4, 3), jax.random.key(0), 0.0)
    x = jnp.asarray(np.stack([X, X[::-1]]), jnp.float32)
    d = jnp.asarray(np.stack([D, -D]), jnp.float32)

    @jax.jit
    @jax.vmap
    def one(key):
        new = update_by_trains(device, state, x, d, key, 1.0, rate=0.05)
        return device.read(new, None, 1.0)

    w = np.asarray(one(jax.random.split(jax.random.key(2), RUNS)), float)
    wanted = -0.05 * np.asarray(x).T @ np.asarray(d)
    error = 4 * w.std(0) / np.sqrt(RUNS) + 1e-6  # sums of 32-bit steps
    assert (np.abs(w.mean(0) - wanted) <= error).all()
    with pytest.raises(ValueError, match=r"set_pcm.*does not; take one with gradual pulses"):
        update_by_trains(set_pcm(), state, x, d, jax.random.key(0), 1.0, rate=0.1)


@pytest.mark.parametrize("stuck", [False, True])
def test_trains_on_lines_are_the_pulses_of_their_counts_sample_after_sample(stuck):
    """Without noise of pulses both ways are exact; cells differ, and their steps feed back."""
    device = pulsed(
        soft_bounds, step=0.02, reference=0.0, variation=Variation(0.3, 0.2, 0.2, 0.1, 0.0, 0.0)
    )
    device = with_stuck_cells(device, low=0.2, high=0.2) if stuck else device
    rng = np.random.default_rng(3)
    x, d = (jnp.asarray(rng.normal(size=(6, n)), jnp.float32) for n in (9, 5))
    state = device.init((9, 5), jax.random.key(0), 0.0)
    ways = [
        jax.jit(lambda s, k, own=own: update_by_trains(own, s, x, d, k, 2.0, rate=0.1))(
            state, jax.random.key(1)
        )
        for own in (device, device._replace(trains=None))
    ]
    for a, b in zip(*map(jax.tree.leaves, ways), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
    moved = np.asarray(device.read(ways[0], None, 2.0) - device.read(state, None, 2.0))
    assert np.abs(moved).max() > 0.02
    assert (np.mean(moved == 0) > 0.1) == stuck


def test_trains_of_more_than_a_word_have_the_same_moments():
    n, length, rate = many(rate=0.4, step=0.002, length=80, fixed=True), 80, 0.4
    p = rate * np.abs(np.outer(X, D)) / 0.002 / length  # 64 of 80 pulses for the largest product
    variance = length * p * (1 - p)
    mean = -np.sign(np.outer(X, D)) * length * p
    assert (np.abs(n.mean(0) - mean) <= 4 * np.sqrt(variance / RUNS)).all()
    assert (np.abs(n.var(0) - variance) <= 4 * variance * np.sqrt(3 / RUNS)).all()


def test_a_step_grows_with_the_rate_until_the_trains_are_full():
    """Against gradient and by the signs of both; a thousand times the rate is no more than 31."""
    x, d = np.array([0.9, -0.9]), np.array([0.7, -0.7])
    moved = {rate: many(300, x=x, d=d, rate=rate, step=0.01) for rate in (0.1, 100.0)}
    for n in moved.values():
        assert (np.sign(n.mean(0)) == [[-1, 1], [1, -1]]).all()
        assert np.abs(n).max() <= 31
    assert np.abs(moved[100.0]).min() == 31
