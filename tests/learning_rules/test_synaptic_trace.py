"""Exponential traces in number formats: exact decay, the dead band and its cure."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spikebit.learning_rules.synaptic_trace import dead_band, decayed_trace
from spikebit.quant.storage import storage


def run(x, spikes, decay, kept=None, key=None):
    """The trace after each step."""

    def step(carry, s):
        x, key = carry
        here = None
        if key is not None:
            key, here = jax.random.split(key)
        x = decayed_trace(x, s, decay, kept=kept, key=here)
        return (x, key), x

    return jax.lax.scan(step, (x, key), spikes)[1]


def test_a_trace_is_the_sum_of_decayed_spikes():
    decay = float(np.exp(-1e-3 / 20e-3))
    spikes = jax.random.bernoulli(jax.random.key(0), 0.1, (60, 3)).astype(jnp.float32)
    got = run(jnp.zeros(3), spikes, decay)
    ages = np.arange(60)[:, None] - np.arange(60)[None]
    kernel = np.where(ages >= 0, decay ** np.maximum(ages, 0), 0)
    np.testing.assert_allclose(got, kernel @ np.asarray(spikes), rtol=1e-5)


@pytest.mark.parametrize("decay", [0.75, 0.9, 0.951229, 0.99])
@pytest.mark.parametrize("fraction", [3, 6])
def test_to_nearest_every_start_above_the_dead_band_ends_at_its_edge(decay, fraction):
    """Trace k D stays where (1 - decay) k < 1/2; on a tie (k = 2 at 0.75) even k stays."""
    step = 2.0**-fraction
    kept = storage("test", f"fixed16.{fraction}")
    top = round(dead_band(step, decay) / step, 6)
    edge = int(np.ceil(top) - 1)  # the largest k below the band's edge
    tie = top == round(top) and round(top) % 2 == 0
    start = jnp.arange(0.0, 4 * edge + 8) * step
    both = jnp.stack([start, -start])
    end = np.asarray(run(both, jnp.zeros((600, *both.shape)), decay, kept)[-1]) / step
    stays = edge + tie
    expected = np.minimum(np.asarray(start) / step, stays)
    np.testing.assert_array_equal(end, [expected, -expected])
    assert stays > 0


@pytest.mark.parametrize("fmt", ["fixed12.4", "e4m3fn"])
def test_stochastic_rounding_decays_as_the_exact_trace_on_average(fmt):
    """E[x_t] = decay^t x_0, so what nearest rounding holds for ever goes to zero."""
    decay, start, draws = 0.95, 0.5, 20_000
    kept = storage("test", fmt, "stochastic")
    xs = run(jnp.full(draws, start), jnp.zeros((150, draws)), decay, kept, jax.random.key(2))
    xs = np.asarray(xs, np.float64)
    exact = start * decay ** np.arange(1, 151)
    sigma = xs.std(1) / np.sqrt(draws)
    # a mean of many is normal only while many of them are not zero
    shown = (xs != 0).sum(1) > 100
    assert shown.sum() > 60
    assert np.all(np.abs(xs.mean(1) - exact)[shown] <= 4.5 * sigma[shown])
    # Markov's inequality: what is not 0 is at least the smallest value
    least = 1 - exact[-1] / kept.fmt.smallest - 4.5 * np.sqrt(0.25 / draws)
    assert (xs[-1] == 0).mean() >= least > 0.8
    nearest = run(jnp.full(1, start), jnp.zeros((150, 1)), decay, storage("test", fmt))
    assert float(nearest[-1, 0]) > 0.9 * start if fmt == "fixed12.4" else float(nearest[-1, 0]) > 0


def test_spikes_come_after_the_decay_and_saturate_at_the_end_of_the_range():
    kept = storage("test", "fixed4.1")  # to 3.5
    got = run(jnp.zeros(1), jnp.ones((12, 1)), 0.9, kept)
    assert float(got[0, 0]) == 1.0
    assert float(got[1, 0]) == 2.0  # 1.9 to the nearest half
    assert float(got.max()) == 3.5
