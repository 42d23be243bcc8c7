"""Correlated inputs, and the study of fatiguing STDP: slow and correlated against fast."""

import numpy as np
import pytest

from spikebit.simulator import correlated, experiment_file, report
from spikebit.simulator.correlated import Group, correlated_poisson
from spikebit.simulator.studies import _plastic_neuron, fatigue


def raster(events, inputs):
    spikes = np.zeros((len(events.first) - 1, inputs), bool)
    step = np.repeat(np.arange(len(spikes)), np.diff(events.first))
    spikes[step, events.inputs[: events.first[-1]]] = True
    return spikes


def test_rates_and_correlations_are_those_asked_for():
    groups = (Group(6, 5.0, 0.4, 3e-3), Group(4, 50.0))
    spikes = raster(correlated_poisson(np.random.default_rng(0), groups, 1000.0, 2e-4), 10)
    assert spikes.shape == (5_000_000, 10)
    rates = spikes.mean(0) / 2e-4
    # 5,000 and 50,000 spikes each: 1.4 % and 0.45 %; a step loses 0.5 % at most
    np.testing.assert_allclose(rates, [5.0] * 6 + [50.0] * 4, rtol=0.05)
    counts = spikes.reshape(10_000, 500, 10).sum(1)  # 100 ms, much longer than the jitter
    c = np.corrcoef(counts.T)
    # 15 pairs, each to about 1 %; a window's ends cut 2 jitter / sqrt(pi) / 0.1 = 3.4 % of pairs
    assert c[:6, :6][np.triu_indices(6, 1)].mean() == pytest.approx(0.4 * 0.966, abs=0.02)
    assert np.abs(c[6:, :6]).max() < 0.05
    assert np.abs(c[6:, 6:][np.triu_indices(4, 1)]).max() < 0.05
    # within 1 ms hardly any pair falls together, so the jitter is there
    fine = np.corrcoef(spikes[:, :2].reshape(-1, 5, 2).sum(1).T)[0, 1]
    # density of the difference of two jitters at 0: 1 / (2 sqrt(pi) 3 ms) = 0.094 / ms
    assert fine == pytest.approx(0.4 * 0.094, abs=0.012)


def test_bad_groups_are_refused():
    for bad, message in (
        ({"count": 0, "rate": 5.0}, "count is 0"),
        ({"count": 1, "rate": -5.0}, r"rate is -5\.0"),
        ({"count": 1, "rate": 5.0, "correlation": 1.5}, r"correlation is 1\.5"),
    ):
        with pytest.raises(ValueError, match=message):
            Group(**bad)
    group = Group(1, 5.0)
    for dt, duration in ((-1.0, 1.0), (1.0, 0.1), (0.1, float("nan"))):
        with pytest.raises(ValueError, match="give a duration of at least one step"):
            correlated_poisson(np.random.default_rng(0), [group], duration, dt)
    object.__setattr__(group, "count", 1.5)  # past the type check of the tests
    with pytest.raises(ValueError, match=r"count is 1\.5; give a whole number"):
        group.__post_init__()


def test_copies_drawn_in_parts_are_those_drawn_at_once(monkeypatch):
    def drawn(at_once):
        monkeypatch.setattr(correlated, "_AT_ONCE", at_once)
        groups = [Group(7, 20.0, 0.3, 2e-3), Group(3, 0.0, 0.5), Group(2, 9.0)]
        return correlated_poisson(np.random.default_rng(3), groups, 10.0)

    for a, b in zip(drawn(30), drawn(1 << 20), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("study", ["fatigue", "weather"])
@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("points = [[1.0, 2.0]]", r"study\.points.* < 1"),
        ("duration = 0.0001", r"study\.duration = 0\.0001.* >= 0\.001"),
    ],
)
def test_settings_that_cannot_be_simulated_are_named(tmp_path, study, setting, message):
    path = tmp_path / "a.toml"
    path.write_text(f'[study]\nname = "{study}"\n{setting}\n')
    with pytest.raises(ValueError, match=message):
        experiment_file.load(path)


SMALL = fatigue.Settings(points=((0.0, 12.0), (0.5, 1.0)), duration=120.0, seeds=2)


@pytest.fixture(scope="module")
def rows():
    return [case | fatigue.measure(SMALL, 3, case) for case in fatigue.cases(SMALL, 3)]


def test_fatigue_prefers_the_slow_correlated_inputs_and_stdp_the_fast(rows):
    stdp, fatiguing, stdp_control, control = rows
    assert fatiguing["worst"] > 0.3
    assert stdp["difference"] < 0.1
    assert 20 < stdp["rate"] < 80
    assert 20 < fatiguing["rate"] < 80
    # the control: what is learned without a common source is the rate
    assert control["correlation"] == stdp_control["correlation"] == 0
    assert control["difference"] > 0.3
    said = fatigue.summary(SMALL, rows)
    assert said["worst_fatiguing"] == fatiguing["worst"]
    assert said["control_fatiguing"] == [control["difference"]] * 2


def test_matching_interpolates_in_the_logarithm_of_the_rate():
    rows = [
        {"use": 0.0, "theta": t, "rate": r, "d": d}
        for t, r, d in ((1, 64.0, 0.4), (2, 4.0, 0.0), (3, 0.5, 9.0))
    ]
    asked = [{"use": 0.5, "theta": 1, "rate": r, "d": 0.9} for r in (16.0, 3.0, 100.0)]
    found = _plastic_neuron.matched(rows + asked, "d")
    assert [f["stdp"] for f in found] == [pytest.approx(0.2), None, None]


def test_pictures_have_a_control(rows):
    drawn = fatigue.pictures(SMALL, rows)
    assert list(drawn) == ["weights", "control"] == list(fatigue.TITLES)
    assert report.png(drawn["control"]).startswith(b"\x89PNG")
