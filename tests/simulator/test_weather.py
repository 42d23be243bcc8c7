"""The study of weather: stations that vary together, whatever their rates."""

import numpy as np
import pytest

from spikebit.simulator import report
from spikebit.simulator.studies import weather

SMALL = weather.Settings(
    data_dir="made", states=("A",), points=((0.0, 4.0), (0.5, 2.0)), duration=200.0, seeds=1
)


@pytest.fixture(autouse=True)
def made(monkeypatch):
    """12 stations of state A that share their weather, 30 states of one station each."""
    random = np.random.default_rng(0)
    common, own = random.normal(size=(53, 1)), random.normal(size=(53, 42))
    anomaly = own * np.where(np.arange(42) < 12, 0.4, 1.0)
    anomaly[:, :12] += common
    states = np.array(["A"] * 12 + [f"S{i}" for i in range(30)])
    monkeypatch.setattr(weather, "records", lambda data_dir: weather.Records(anomaly, states))


def raster(events, inputs):
    steps = len(events.first) - 1
    spikes = np.zeros((steps, inputs))
    step = np.repeat(np.arange(steps), np.diff(events.first))
    spikes[step, events.inputs[: events.first[-1]]] = 1
    return spikes


@pytest.mark.parametrize("rates", weather.RATES)
def test_stations_fire_at_their_rates_and_with_their_weather(rates):
    events, members = weather.encoded(SMALL, "A", rates, np.random.default_rng(1))
    assert members.tolist() == [True] * 12 + [False] * 30
    spikes = raster(events, 42)
    found = spikes.mean(0) / 1e-3
    if rates == "mixed":
        assert found.min() > 1.5
        assert found.max() < 22
        assert np.std(np.log(found)) > 0.4  # of a uniform logarithm: ln(10) / sqrt(12) = 0.66
    else:
        fast = members if rates == "fast" else ~members
        # 400 and 4,000 spikes; a station's weeks come up in 20 % of 20,000 draws, to 1.4 %
        np.testing.assert_allclose(found[fast], 20, rtol=0.08)
        np.testing.assert_allclose(found[~fast], 2, rtol=0.25)
    weekly = np.roll(spikes, 5, axis=0).reshape(-1, 10, 42).sum(1)
    assert weekly[1:-1].max() <= 2  # once in a week; jitter may carry one over
    c = np.cov(weekly.T) / np.outer(weekly.mean(0), weekly.mean(0))
    pairs = np.triu_indices(12, 1)
    assert (c[:12, :12][pairs].mean() > 0.8) == (rates != "control")
    assert abs(c[12:, 12:][np.triu_indices(30, 1)].mean()) < 0.15


def test_separation_is_a_probability():
    random = np.random.default_rng(2)
    own, other = random.integers(0, 5, 30) * 1.0, random.integers(0, 5, 20) * 1.0
    pairs = [(a > b) + 0.5 * (a == b) for a in own for b in other]
    assert weather.separation(own, other) == pytest.approx(np.mean(pairs))


def test_the_group_is_found_at_every_assignment_of_rates_but_not_in_the_control():
    cases = weather.cases(SMALL, 0)
    assert len(cases) == 4 * 3
    rows = [case | weather.measure(SMALL, 0, case) for case in cases]
    at = {(r["rule"], r["rates"]): r["separation"] for r in rows}
    for rates in ("slow", "fast", "mixed"):
        assert at["normcov", rates] > 0.8  # 42 stations, 12 of them in one cluster or two
        assert at["fatiguing", rates] > 0.75
    assert at["fatiguing", "slow"] > at["stdp", "slow"]
    assert at["fatiguing", "slow"] > at["fatiguing", "control"]
    said = weather.summary(SMALL, rows)
    best = said["best_point"]["fatiguing"]
    assert best["theta"] == 2.0
    assert best["least"] == min(at["fatiguing", r] for r in ("slow", "fast", "mixed"))
    assert set(said["at_equal_rate"]) == set(weather.RATES)
    drawn = weather.pictures(SMALL, rows)
    assert report.png(drawn["separation"]).startswith(b"\x89PNG")


def test_settings_that_cannot_be_measured_are_refused():
    with pytest.raises(ValueError, match=r'has "B", of which there are 0 .*among A'):
        weather.cases(weather.Settings(data_dir="made", states=("B",)), 0)
    with pytest.raises(ValueError, match=r"highest_rate = 40\.0: .*at most 20\.75 Hz"):
        weather.cases(weather.Settings(data_dir="made", states=("A",), highest_rate=40.0), 0)
