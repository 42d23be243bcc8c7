"""Trains on the lines of a matrix of cells: the kernel, its reference, and both in plain numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spikebit.kernels.normals import random_normals
from spikebit.kernels.pulse_trains import LinearCells, Noise, Trains, coincidences, pulse_trains

BATCH, N, M = 4, 18, 7  # more rows than one task of the kernel takes
KEY = jnp.array([3, 11], jnp.uint32)


@pytest.fixture(params=["cpu", "reference"])
def path(request, monkeypatch):
    monkeypatch.setenv("SPIKEBIT_KERNELS", request.param)
    jax.clear_caches()
    return request.param


def cells(seed=0, shape=(N, M)):
    rng = np.random.default_rng(seed)

    def even(low, high):
        return jnp.asarray(rng.uniform(low, high, shape), jnp.float32)

    w = even(-0.4, 0.4)
    return LinearCells(
        w=w, shown=w + 0.1, low=even(-0.6, -0.5), high=even(0.5, 0.6), up=even(0.01, 0.1),
        down=even(0.01, 0.1), slope_up=even(0.5, 12.0), slope_down=even(-12.0, -0.5),
    )  # fmt: skip


def trains(words=1, seed=1, batch=BATCH, n=N, m=M, p=0.3):
    """Bits and signs; one line of each has no sign, one row no bit in any sample."""
    rng = np.random.default_rng(seed)
    made = []
    for lines in (n, m):
        slots = rng.uniform(size=(batch, words, 32, lines)) < p
        slots[..., 0] = False
        weights = (1 << np.arange(32, dtype=np.uint64))[:, None]
        bits = (slots * weights).sum(2).astype(np.uint32)
        signs = rng.choice([-1.0, 1.0], (batch, lines)).astype(np.float32)
        signs[:, 2] = 0
        made.append((Trains(jnp.asarray(bits), jnp.asarray(signs)), slots))
    return made


def by_hand(cells, rows, columns, noise, key):
    """Cell by cell and pulse by pulse in float64, from the equations of the docstring."""
    (rows, slots_x), (columns, slots_d) = rows, columns
    c = LinearCells(*(np.asarray(a, float) for a in cells))
    w, shown, touched = c.w.copy(), c.shown.copy(), np.zeros(c.w.shape, bool)
    signs = np.asarray(rows.signs)[:, :, None] * np.asarray(columns.signs)[:, None, :]
    for b in range(len(slots_x)):
        xi, eta = (np.asarray(z, float) for z in random_normals(key, b, w.shape))
        for i, j in np.ndindex(w.shape):
            pulses = int((slots_x[b, :, :, i] & slots_d[b, :, :, j]).sum())
            if pulses == 0 or signs[b, i, j] == 0:
                continue
            up = signs[b, i, j] > 0
            s = c.up[i, j] if up else -c.down[i, j]
            slope = c.slope_up[i, j] if up else c.slope_down[i, j]
            share = min(s * slope, 1)
            m, v, move = w[i, j], 0.0, s * (1 - slope * w[i, j])
            for _ in range(pulses):
                own = s if noise.additive else move
                again = 0 if noise.additive else noise.pulse * share
                v = ((1 - share) ** 2 + again**2) * v + (noise.pulse * own) ** 2
                m, move = m + move, move * (1 - share)
                # what a pulse adds is s (1 - c m) of where the last one left the mean
                assert share == 1 or np.isclose(move, s * (1 - slope * m))
            w[i, j] = np.clip(m + np.sqrt(v) * xi[i, j], c.low[i, j], c.high[i, j])
            shown[i, j], touched[i, j] = w[i, j] + noise.write * eta[i, j], True
    return w, shown, touched


@pytest.mark.parametrize("words", [1, 2])
@pytest.mark.parametrize("noise", [Noise(0.4, 0.0, False), Noise(0.4, 0.05, True)])
def test_trains_move_cells_as_pulse_after_pulse_would(path, noise, words):
    rows, columns = trains(words)
    start = cells()
    found = jax.jit(pulse_trains)(start, rows[0], columns[0], KEY, noise)
    exact = by_hand(start, rows, columns, noise, KEY)
    for a, b in zip(found[:2], exact[:2], strict=True):
        np.testing.assert_allclose(a, b, atol=3e-6)
    np.testing.assert_array_equal(found[2], exact[2])
    assert not exact[2][0].any()  # a row without pulses
    assert 0.3 < exact[2].mean() < 1


def test_the_rows_below_and_other_instances_change_nothing(path):
    rows, columns = trains()
    noise, start = Noise(0.3, 0.02, False), cells()
    whole = pulse_trains(start, rows[0], columns[0], KEY, noise)
    upper = pulse_trains(
        LinearCells(*(a[:5] for a in start)),
        Trains(rows[0].bits[..., :5], rows[0].signs[:, :5]),
        columns[0],
        KEY,
        noise,
    )
    for a, b in zip(upper, whole, strict=True):
        np.testing.assert_allclose(a, b[:5], atol=1e-6)
    keys = jnp.stack([KEY, KEY + 7])
    many = jax.vmap(lambda k: pulse_trains(start, rows[0], columns[0], k, noise))(keys)
    for a, b in zip(many, whole, strict=True):
        np.testing.assert_allclose(a[0], b, atol=1e-6)
    assert not np.allclose(many[0][0], many[0][1])


def test_coincidences_are_counted_with_the_sign_of_both():
    (rows, slots_x), (columns, slots_d) = trains(2)
    counts = np.einsum("bwti,bwtj->bij", slots_x.astype(int), slots_d.astype(int))
    signs = np.asarray(rows.signs)[:, :, None] * np.asarray(columns.signs)[:, None, :]
    np.testing.assert_array_equal(coincidences(rows, columns), counts * signs)
