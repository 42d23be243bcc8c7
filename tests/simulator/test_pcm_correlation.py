"""The study of correlations found by cells: against the event-driven kernel, and its processes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spikebit.quant.memory import float32
from spikebit.simulator.correlated import Group, correlated_poisson
from spikebit.simulator.devices import set_pcm
from spikebit.simulator.studies import _plastic_neuron
from spikebit.simulator.studies import pcm_correlation as study

pytestmark = pytest.mark.usefixtures("compile_quickly")
SMALL = study.Settings(
    points=((0.5, 1.0),), correlated=6, fast=8, duration=2.0, seeds=2, detected=(0.5,),
    processes=60, caused=20, activity=0.1, steps=400, arrays=4,
)  # fmt: skip


def test_numbers_learn_what_the_event_driven_kernel_learns(monkeypatch):
    monkeypatch.setenv("SPIKEBIT_KERNELS", "reference")  # which takes no time to compile
    weights, rates = study.learn(SMALL, float32(), 0.5, 1.0, 3)
    groups = (Group(6, 5.0, 0.4, 3e-3), Group(8, 50.0))
    for i in range(2):
        events = correlated_poisson(np.random.default_rng([3, i]), groups, 2.0, 1e-3)
        expected, rate = _plastic_neuron.learn(SMALL, 0.5, 1.0, events, 14)
        np.testing.assert_allclose(weights[i], expected, rtol=1e-4)
        # the kernel's last third is a step longer, as 2000 is no multiple of 3
        assert rates[i] == pytest.approx(rate, rel=2e-3)
        assert rate > 1


def test_processes_correlate_as_they_are_told_and_are_told_apart():
    settings, c = study.Settings(processes=8, caused=4, activity=0.2), 0.3
    n = 20_000

    @jax.jit
    def drawn(key):
        return jax.vmap(lambda i: study.processes(settings, c, jax.random.fold_in(key, i)))(
            jnp.arange(n)
        )

    found = np.corrcoef(np.asarray(drawn(jax.random.key(0))).T)
    wanted = np.eye(8)
    wanted[:4, :4] += c * (1 - np.eye(4))
    # a correlation r of n binary draws is off by about (1 - r^2) / sqrt(n); skew adds some
    np.testing.assert_allclose(found, wanted, atol=5 / np.sqrt(n))
    error = np.sqrt(61 / (12 * 20 * 40) / 4)  # of the mean of four areas, were groups alike
    for device in (None, set_pcm()):
        for c, low, high in ((0.0, 0.5 - 4 * error, 0.5 + 4 * error), (0.5, 0.5 + 4 * error, 1)):
            g = study.detected(SMALL, device, c, 0)
            assert g.shape == (4, 60)
            assert low < np.mean([study.area(a[:20], a[20:]) for a in g]) <= high


def test_an_area_is_the_share_of_pairs_in_order():
    assert study.area(np.array([2.0, 3.0]), np.array([1.0, 2.0])) == (1 + 0.5 + 2) / 4
    assert study.area(np.array([1.0]), np.array([1.0])) == 0.5


def test_cells_learn_with_pulses_and_all_is_drawn():
    cases = study.cases(SMALL, 0)
    assert len(cases) == 4
    rows = [c | dict(study.measure(SMALL, 0, c)) for c in cases]
    assert rows[0]["slow"] != rows[1]["slow"]
    assert 0 <= rows[1]["slow_spread"][0] <= rows[1]["slow_spread"][1] <= 1.2
    assert set(study.pictures(SMALL, rows)) == {"groups", "detection"}
    told = study.summary(SMALL, rows)
    assert set(told["area"]) == {"number, 0.5", "set_pcm, 0.5"}
    with pytest.raises(ValueError, match=r"study.caused is 1000 of 1000"):
        study.cases(study.Settings(caused=1000), 0)
