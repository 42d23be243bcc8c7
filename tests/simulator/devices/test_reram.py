"""ReRAM for inference against the moments of Gaussians that are cut, and what nobody measured."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spikebit.simulator.devices import (
    by_name,
    memristive,
    reram_cmo,
    reram_milo,
    reram_wan,
    with_stuck_cells,
)
from spikebit.simulator.devices.tile import Tile, matmul, program

pytestmark = pytest.mark.usefixtures("compile_quickly")
N = 100_000
DAY = 86_400.0


def key(seed=0):
    return jax.random.key(seed)


def written(device, target, n=N, seed=0):
    state = device.init((n,), key(seed), 0.0)
    return device.program(state, jnp.full(n, target, jnp.float32), key(seed + 1), 0.0)


def cut_moments(mean, std, low=-math.inf, high=math.inf):
    """Mean and standard deviation of N(mean, std) cut to [low, high], by numbers on a fine grid."""
    z = np.linspace(-9, 9, 200_001)
    p = np.exp(-z * z / 2)
    p /= p.sum()
    g = np.clip(mean + std * z, low, high)
    first = p @ g
    return first, math.sqrt(p @ (g - first) ** 2)


def assert_moments(g, mean, std):
    g = np.asarray(g, float)
    assert abs(g.mean() - mean) < 4.5 * std / math.sqrt(g.size)
    kurtosis = np.mean(((g - g.mean()) / g.std()) ** 4)
    error = std * math.sqrt((kurtosis - 1) / 4 / g.size)  # of a standard deviation
    assert abs(g.std() - std) < 4.5 * error


WAN = {  # in powers of g / 40 uS, highest first
    1.0: (-16.815, 45.393, -43.853, 16.030, 0.348),
    DAY: (-16.458, 47.095, -50.773, 22.086, 0.701),
    2 * DAY: (-11.934, 37.062, -43.507, 20.274, 0.782),
}


@pytest.mark.parametrize("target", [0.0, 1.0, 10.0, 40.0])
def test_wan_has_the_measured_spread_at_each_measured_time(target):
    state, read = written(reram_wan(), target), reram_wan().read
    for t, powers in WAN.items():
        spread = np.polyval(powers, target / 40)
        assert_moments(read(state, None, t), *cut_moments(target, spread, 0))
    one, day = (np.asarray(read(state, None, t)) for t in (1.0, DAY))
    np.testing.assert_array_equal(read(state, None, 0.3), one)
    np.testing.assert_array_equal(read(state, key(9), DAY), day)  # no noise of a read
    between = np.asarray(read(state, None, math.sqrt(DAY)))
    away = np.asarray(state.missed) > 0  # where nothing is cut at 0
    np.testing.assert_allclose(between[away], (one + day)[away] / 2, rtol=1e-4, atol=1e-5)


def test_spreads_are_never_negative():
    r = np.linspace(0, 1, 1001)
    assert all(np.polyval(powers, r).min() > 0 for powers in WAN.values())


@pytest.mark.parametrize("target", [9.0, 50.0, 88.2])
@pytest.mark.parametrize(("acceptance", "spread"), [(0.002, 0.00106879), (0.02, 0.01129027418)])
def test_cmo_relaxes_and_is_cut_to_its_range(target, acceptance, spread):
    device = reram_cmo(acceptance)
    state = written(device, target)
    programming = spread * target + {0.002: 0.00081107, 0.02: 0.0112185391}[acceptance]
    for t in (1.0, 3600.0, 3.15e7):
        log = math.log(t)
        std = math.hypot(programming, 0.04201137 * log + 0.41183342)
        mean = target - 0.08900206 * log
        assert_moments(device.read(state, None, t), *cut_moments(mean, std, 9, 88.2))
    read = 0.0277316483 * math.log10(target) * math.sqrt(math.log(0.5e6))
    noisy = math.hypot(programming, 0.41183342, read)
    assert_moments(device.read(state, key(7), 1.0), *cut_moments(target, noisy, 9, 88.2))


def test_the_noise_of_a_read_is_new_at_each_and_the_place_of_a_cell_is_not():
    device = reram_cmo()
    state = written(device, 50.0, n=200)
    reads = jax.vmap(lambda k: device.read(state, k, 3600.0))(jax.random.split(key(3), 3000))
    spread = np.asarray(device.spread(state, 3600.0))
    np.testing.assert_allclose(np.asarray(reads).std(0), spread, rtol=4.5 / math.sqrt(2 * 3000))
    held = np.asarray(device.read(state, None, 3600.0))
    assert (np.abs(np.asarray(reads).mean(0) - held) < 4.5 * spread / math.sqrt(3000)).all()
    expected = 0.0277316483 * np.log10(held) * math.sqrt(math.log((3600 + 1e-6) / 2e-6))
    np.testing.assert_allclose(spread, expected, rtol=1e-5)
    soon, later = (np.asarray(device.read(state, None, t)) for t in (1.0, 1.1))
    moved = math.log(1.1) * (0.04201137 * np.asarray(state.moved) - 0.08900206)
    np.testing.assert_allclose(later - soon, moved, atol=1e-4)


@pytest.mark.parametrize("target", [50.0, 225.0])
def test_milo_misses_its_target_and_stays(target):
    device = reram_milo()
    state = written(device, target)
    g = device.read(state, key(), 1.0)
    assert_moments(g, target, 4.782321 - 0.009107 * target)
    np.testing.assert_array_equal(device.read(state, None, 1e9), g)


@pytest.mark.parametrize("name", ["reram_wan", "reram_cmo", "reram_milo"])
def test_they_hold_the_weights_of_memories_and_tiles(name):
    device = by_name(name)
    w = jnp.asarray(np.random.default_rng(0).normal(size=(60, 40)).clip(-2, 2), jnp.float32)
    memory = memristive(device, dt=1.0)
    state = jax.jit(memory.init)({"w": w}, key())
    state = jax.jit(memory.update)(state, {"w": jnp.zeros_like(w).at[0].set(0.1)}, key(1))
    unit = float(jnp.abs(w).max()) / (device.g_max - device.g_min)
    worst = {"reram_wan": 4.0, "reram_cmo": 0.6, "reram_milo": 4.4}[name]  # of a cell [uS]
    error = np.asarray(memory.read(state)["w"] - w.at[0].add(0.1))[1:]
    assert 0 < error.std() < math.sqrt(2) * worst * unit
    tile = Tile(device, dac=None, adc=None)
    y = jax.jit(lambda a, b: matmul(tile, program(tile, w, a), jnp.eye(60), b, 3600.0))(
        key(2), key(3)
    )
    assert np.std(np.asarray(y - w)) < 2 * math.sqrt(2) * worst * unit


def test_what_nobody_measured_is_refused():
    device = reram_wan()
    state = written(device, 10.0, n=3)
    with pytest.raises(ValueError, match=r"reram_wan.read: 172801 s after .* end at 172800 s"):
        device.read(state, None, 2 * DAY + 1)
    assert np.isnan(np.asarray(jax.jit(device.read)(state, None, 3 * DAY))).all()
    broken = with_stuck_cells(device, low=0.5)
    assert broken.until == 2 * DAY
    with pytest.raises(ValueError, match=r"reram_cmo.read: .* measurements end at 3.15576e\+08 s"):
        reram_cmo().read(written(reram_cmo(), 50.0, n=3), None, 4e8)
    with pytest.raises(ValueError, match=r"acceptance is 0.2; measured were 0.002 and 0.02"):
        reram_cmo(0.2)
    with pytest.raises(ValueError, match=r"reram_milo.program: targets from 10 to 10 uS"):
        written(reram_milo(), 10.0, n=3)
