"""Phase-change cells: moments against closed forms, drift, reads, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spikebit.simulator.devices.pcm import (
    HERMES,
    MILLION_CELLS,
    censored_moments,
    expected_read,
    pcm,
)

pytestmark = pytest.mark.usefixtures("compile_quickly")
N = 100_000
TARGETS = np.array([0.0, 2.0, 5.0, 12.5, 20.0, 25.0])
TIMES = {"1 s": 1.0, "1 h": 3600.0, "1 d": 86400.0, "1 y": 3.15e7}


def programmed(device, targets, n=N, seed=0):
    target = jnp.broadcast_to(jnp.asarray(targets, jnp.float32)[:, None], (len(targets), n))

    @jax.jit
    def run(target):
        state = device.init(target.shape, jax.random.key(seed), 0.0)
        return device.program(state, target, jax.random.key(seed + 1), 0.0)

    return run(target)


def seen(device, *arguments):
    return jax.jit(device.read)(*arguments)


def assert_within_standard_errors(sample, mean, std, errors=4.0):
    n = sample.shape[-1]
    centred = (sample - sample.mean()) / sample.std()
    kurtosis = np.mean(centred**4)  # a standard deviation of one that is far from normal
    assert abs(sample.mean() - mean) < errors * std / np.sqrt(n)
    assert abs(sample.std() - std) < errors * std * np.sqrt((kurtosis - 1) / 4 / n)


def test_programming_meets_the_moments_of_a_gaussian_cut_at_zero():
    g = np.asarray(programmed(pcm(), TARGETS).g, float)
    assert g.min() >= 0
    r = TARGETS / 25
    spread = 0.26348 + 1.9650 * r - 1.1731 * r**2
    for sample, target, s in zip(g, TARGETS, spread, strict=True):
        mean, square = censored_moments(target, s)
        assert_within_standard_errors(sample, mean, np.sqrt(square - mean**2))
    zero = g[0] / spread[0]  # of N(0, 1) cut at 0: 1 / sqrt(2 pi), and sqrt(1/2 - 1 / (2 pi))
    assert_within_standard_errors(zero, 1 / np.sqrt(2 * np.pi), np.sqrt(0.5 - 0.5 / np.pi))


@pytest.mark.parametrize("parameters", [MILLION_CELLS, HERMES], ids=["million", "hermes"])
def test_reads_over_a_year_meet_the_moments_by_quadrature(parameters):
    targets = parameters.g_max * np.array([0.08, 0.2, 0.4, 0.6, 0.8, 1.0])
    device = pcm(parameters)
    state = programmed(device, targets)
    for i, t in enumerate(TIMES.values()):
        g = np.asarray(seen(device, state, jax.random.key(10 + i), t), float)
        for sample, target in zip(g, targets, strict=True):
            assert_within_standard_errors(sample, *expected_read(parameters, target, t))


def test_a_cell_drifts_by_its_exponent_in_logarithms_of_time():
    device = pcm(read_noise=0)
    state = programmed(device, [2.0, 12.5, 25.0], 1000)
    times = np.geomspace(1, 3.15e7, 20)
    logs = np.stack([np.log(np.asarray(seen(device, state, None, t), float)) for t in times])
    x = np.log1p(times / 20)
    slopes = np.tensordot(x - x.mean(), logs, 1) / np.sum((x - x.mean()) ** 2)
    np.testing.assert_allclose(-slopes, state.nu, rtol=1e-4)  # float32 over eight decades
    late = seen(device, state, None, 1e6)
    assert (np.asarray(late) == np.asarray(seen(device, state, None, 1e6))).all()


def test_the_exponents_of_cells_are_magnitudes_of_a_gaussian():
    nu = np.asarray(programmed(pcm(), [2.0, 25.0]).nu, float)
    for sample, r in zip(nu, (0.08, 1.0), strict=True):
        m = np.clip(-0.0155 * np.log(r) + 0.0244, 0.049, 0.1)
        s = np.clip(-0.0125 * np.log(r) - 0.0059, 0.008, 0.045)
        mean, square = censored_moments(m, s)
        other, more = censored_moments(-m, s)  # the part below zero, turned round
        assert_within_standard_errors(
            sample, mean + other, np.sqrt(m * m + s * s - (mean + other) ** 2)
        )
        np.testing.assert_allclose(square + more, m * m + s * s)


def test_reading_again_changes_the_noise_only_and_it_grows_with_time():
    device = pcm(programming_noise=0, drift=0)
    state = programmed(device, [12.5])
    q = 0.0088 / 0.5**0.65
    for t in (1.0, 3.15e7):
        factor = np.sqrt(np.log((t + 20 + 250e-9) / 500e-9))
        reads = [np.asarray(seen(device, state, jax.random.key(k), t)) for k in (0, 1)]
        for read in reads:
            assert_within_standard_errors(read[0] / 12.5, 1.0, q * factor)
        assert (reads[0] != reads[1]).all()
    year, second = (np.sqrt(np.log((t + 20) / 500e-9)) for t in (3.15e7, 1.0))
    assert (round(float(second), 2), round(float(year), 2)) == (4.19, 5.64)  # as published


def test_the_same_key_gives_the_same_cells_and_more_cells_change_none():
    device = pcm()
    few = programmed(device, [5.0, 12.5], 50)
    again = programmed(device, [5.0, 12.5], 50)
    more = programmed(device, [5.0, 12.5, 20.0], 50)
    for a, b, c in zip(few, again, more, strict=True):
        assert (np.asarray(a) == np.asarray(b)).all()
        assert (np.asarray(a) == np.asarray(c[:2])).all()

    def one(key):
        state = device.init((50,), None, 0.0)
        return device.program(state, jnp.full(50, 5.0), key, 0.0).g

    keys = jax.random.split(jax.random.key(3), 4)
    instances = jax.jit(jax.vmap(one))(keys)
    again = jax.random.split(jax.random.key(3), 4)
    alone = jnp.stack([jax.jit(one)(k) for k in again])
    np.testing.assert_allclose(instances, alone, rtol=1e-6)


def test_a_target_that_is_nan_is_not_written():
    device = pcm()
    state = programmed(device, [5.0, 12.5], 10)
    target = jnp.stack([jnp.full(10, jnp.nan), jnp.full(10, 20.0)])
    new = device.program(state, target, jax.random.key(5), 7.0)
    for a, b in zip(state, new, strict=True):
        assert (np.asarray(a[0]) == np.asarray(b[0])).all()
    assert (np.asarray(new.written) == [[0.0] * 10, [7.0] * 10]).all()


def test_what_is_refused():
    device = pcm()
    state = programmed(device, [5.0], 3)
    for target, message in (
        (30.0, r"targets from 30 to 30 uS, but the model holds for 0 to 25 uS"),
        (-1.0, r"targets from -1 to -1 uS"),
        (5e-6, r"5e-06 uS .* looks like siemens: multiply by 1e6"),
    ):
        with pytest.raises(ValueError, match=message):
            device.program(state, jnp.full((1, 3), target), jax.random.key(0), 1.0)
    later = device.program(state, jnp.full((1, 3), 5.0), jax.random.key(0), 10.0)
    with pytest.raises(ValueError, match=r"pcm.read: t = 9 s, but a cell was written at 10 s"):
        device.read(later, None, 9.0)
    with pytest.raises(ValueError, match=r"known sets are million_cells, hermes"):
        pcm("joshi")
    with pytest.raises(ValueError, match=r"drift=-1"):
        pcm(drift=-1)
