"""The filter of pulse traces against the Gaussian of a whole trace, and differences of itself."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spikebit.simulator.devices.kalman import (
    SoftBounds,
    Trace,
    filtered,
    log_likelihood,
    scores,
)

pytestmark = pytest.mark.usefixtures("compile_quickly")
CELL = SoftBounds(0.03, 0.05, 1.2, -0.7, 1.5, 0.04)
PULSES = np.array([0, 1, 1, -3, 0, 2, -1, -1, 7, 1, -2, 1], float)


@pytest.fixture(autouse=True)
def in_double_precision():
    with jax.enable_x64(True):
        yield


def sets(*cells):
    """Parameters as the filter takes them: (sets, one cell)."""
    return SoftBounds(*(jnp.asarray([[v] for v in values]) for values in zip(*cells, strict=True)))


def trace_of(g, pulses=PULSES, fresh=()):
    numbers, kind = np.unique(pulses, return_inverse=True)
    begins = np.zeros(len(pulses), bool)
    begins[[0, *fresh]] = True
    columns = (np.asarray(a)[:, None] for a in (kind, g, begins))
    return Trace(*map(jnp.asarray, (numbers, *columns)))


def drawn(seed, pulses=PULSES, cell=CELL):
    """Reads of a cell that is moved a pulse at a time, in plain floats."""
    rng = np.random.default_rng(seed)
    w, g = 0.1, []
    for n in pulses:
        for _ in range(int(abs(n))):
            step, bound = (cell.up, cell.high) if n > 0 else (-cell.down, cell.low)
            w += step * (1 - w / bound) + cell.pulse * step * rng.standard_normal()
        g.append(w + cell.read * rng.standard_normal())
    return np.array(g)


def dense(cell, g, pulses):
    """Log density of all reads but the first, given the first: with the covariance of a trace.

    The prior of the start is flat, so that the cell is about its first read, with the noise of it.
    """
    mean, factors, noises = [g[0]], [[1.0]], []
    for n in pulses[1:]:
        shift, keep, parts = 0.0, 1.0, []
        for _ in range(int(abs(n))):
            step, bound = (cell.up, cell.high) if n > 0 else (-cell.down, cell.low)
            a = 1 - step / bound
            shift, keep, parts = a * shift + step, a * keep, [a * p for p in parts]
            parts.append(abs(cell.pulse * step))
        mean.append(keep * mean[-1] + shift)
        # each source of noise so far (the first read, then every pulse) and its weight in w now
        factors.append([keep * f for f in factors[-1]] + [1.0] * len(parts))
        noises += parts
    scale = np.array([cell.read, *noises])
    rows = np.zeros((len(g), len(scale)))
    for i, row in enumerate(factors):
        rows[i, : len(row)] = row
    rows = (rows * scale)[1:]
    known = ~np.isnan(g[1:])
    covariance = (rows @ rows.T + cell.read**2 * np.eye(len(rows)))[np.ix_(known, known)]
    error = (g[1:] - np.array(mean[1:]))[known]
    return -0.5 * (
        error @ np.linalg.solve(covariance, error) + np.linalg.slogdet(2 * np.pi * covariance)[1]
    )


def test_the_likelihood_is_the_density_of_the_whole_trace():
    g = drawn(0)
    g[[3, 7]] = np.nan
    other = CELL._replace(up=0.02, low=-2.0, read=0.1)
    found = np.asarray(log_likelihood(sets(CELL, other), trace_of(g)))[:, 0]
    np.testing.assert_allclose(found, [dense(c, g, PULSES) for c in (CELL, other)], rtol=1e-10)


def test_a_fresh_cell_begins_a_trace_of_its_own():
    g = drawn(1)
    found = log_likelihood(sets(CELL), trace_of(g, fresh=(5,)))[0, 0]
    parts = dense(CELL, g[:5], PULSES[:5]) + dense(CELL, g[5:], PULSES[5:])
    assert float(found) == pytest.approx(parts, rel=1e-10)


def test_reads_that_are_missing_are_as_if_pulses_came_together():
    pulses = np.array([0, 1, 2, -1, -2, 3], float)
    g = drawn(2, pulses)
    g[[1, 3]] = np.nan
    whole = log_likelihood(sets(CELL), trace_of(g, pulses))
    left = log_likelihood(sets(CELL), trace_of(g[[0, 2, 4, 5]], np.array([0.0, 3, -3, 3])))
    np.testing.assert_allclose(whole, left, rtol=1e-10)


def test_gradient_and_information():
    """Gradients by finite differences; the information is the mean of their products."""
    broken = trace_of(drawn(3), fresh=(5,))
    scored = scores(sets(CELL), broken)
    np.testing.assert_allclose(
        scored.log_likelihood, log_likelihood(sets(CELL), broken), rtol=1e-12
    )
    for k, name in enumerate(SoftBounds._fields):
        size = 1e-5 * abs(CELL[k])
        ends = [CELL._replace(**{name: CELL[k] + s * size}) for s in (1, -1)]
        up, down = np.asarray(log_likelihood(sets(*ends), broken))[:, 0]
        assert float(scored.gradient[k, 0, 0]) == pytest.approx((up - down) / (2 * size), rel=1e-5)
    many = np.stack([drawn(seed) for seed in range(2000)], 1)
    wide = trace_of(many[:, 0])
    wide = wide._replace(
        g=jnp.asarray(many), kind=jnp.tile(wide.kind, 2000), fresh=jnp.tile(wide.fresh, 2000)
    )
    cells = SoftBounds(*(jnp.full((1, 2000), v) for v in CELL))
    scored = scores(cells, wide)
    gradient, information = (
        np.asarray(scored.gradient[:, 0]),
        np.asarray(scored.information[:, :, 0]),
    )
    scale = np.sqrt(np.diagonal(information.mean(-1)))
    products = gradient[:, None] * gradient / (scale * scale[:, None])[..., None]
    wanted = information.mean(-1) / (scale * scale[:, None])
    assert np.abs(gradient.mean(1) / scale).max() < 4 / np.sqrt(2000)
    error = products.std(-1) / np.sqrt(2000)
    assert (np.abs(products.mean(-1) - wanted) < 4.5 * error).all()


def test_innovations_of_the_true_cell_are_white_and_standard():
    pulses = np.tile([1.0, 1, 1, -1, -1], 400)
    seen = filtered(sets(CELL), trace_of(drawn(4, pulses), pulses))
    z = np.asarray(seen.innovation / seen.spread)[1:, 0, 0]
    assert np.isnan(np.asarray(seen.innovation)[0]).all()
    n = len(z)
    assert abs(z.mean()) < 4 / np.sqrt(n)
    assert abs(z.std() - 1) < 4 / np.sqrt(2 * n)
    for lag in (1, 2, 5):
        assert abs((z[lag:] * z[:-lag]).mean()) < 4 / np.sqrt(n)
