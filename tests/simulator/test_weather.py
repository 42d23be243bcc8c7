"""The study of weather: records that vary together, whatever their rates."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from spikebit.simulator import report
from spikebit.simulator.data.weather import Weather
from spikebit.simulator.studies import _weather_records, weather

SHARED = Path(__file__).parents[3] / "shared" / "data"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="needs the data in ../shared/data")
SMALL = weather.Settings(
    data_dir="made", groups=("A",), points=((0.0, 4.0), (0.5, 2.0)), duration=200.0, seeds=1
)


@pytest.fixture(autouse=True)
def made(monkeypatch):
    """12 stations of state A that share their weather, 30 states of one station each."""
    random = np.random.default_rng(0)
    common, own = random.normal(size=(53, 1)), random.normal(size=(53, 42))
    anomaly = own * np.where(np.arange(42) < 12, 0.4, 1.0)
    anomaly[:, :12] += common
    states = np.array(["A"] * 12 + [f"S{i}" for i in range(30)])
    monkeypatch.setattr(weather, "records", lambda *_: weather.Records(anomaly, states, 5, 2))


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
    assert {(r["missing_values"], r["left_out"]) for r in rows} == {(5, 2)}
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


def test_copies_of_a_process_share_its_times_but_not_their_spikes_or_rates():
    settings = dataclasses.replace(SMALL, copies=3, jitter=0.0, window=0.02, highest_rate=10.0)
    events, members = weather.encoded(settings, "A", "mixed", np.random.default_rng(3))
    assert members.tolist() == [True] * 36 + [False] * 90
    weekly = np.roll(raster(events, 126), 10, axis=0).reshape(-1, 20, 126).sum(1)
    assert weekly.max() == 1
    rates = weekly.mean(0) / 0.02
    assert len(np.unique(rates)) > 60
    c = np.cov(weekly.T) / np.outer(weekly.mean(0), weekly.mean(0))
    copies = [c[i + a, i + b] for i in range(0, 36, 3) for a, b in ((0, 1), (0, 2), (1, 2))]
    # fires in one of five weeks: the chance of both over that of each is 5, less 1
    assert np.mean(copies) == pytest.approx(53 / 11 - 1, rel=0.1)
    assert abs(np.mean([c[i, i + 1] for i in range(36, 126, 3)])) < 0.3  # each in its own order


@pytest.mark.parametrize(("asked", "got"), [(1, [1, 1]), (2, [2, 2]), (9, [3, 2])])
def test_so_many_processes_of_each_other_group(monkeypatch, asked, got):
    groups = np.array(["C", "A", "B", "B", "A", "C", "B"])
    anomaly = np.random.default_rng(0).normal(size=(50, 7))
    monkeypatch.setattr(weather, "records", lambda *_: weather.Records(anomaly, groups))
    settings = dataclasses.replace(SMALL, of_others=asked, duration=1.0)
    _, members = weather.encoded(settings, "A", "slow", np.random.default_rng(0))
    assert members.tolist() == [True, True] + [False] * sum(got)
    _, members = weather.encoded(settings, "C+B", "slow", np.random.default_rng(0))
    assert members.tolist() == [True] * 5 + [False] * min(asked, 2)
    with pytest.raises(ValueError, match=r'"A\+B\+C", beside which there is no other group'):
        weather.cases(dataclasses.replace(settings, groups=("A+B+C",)), 0)


def test_hourly_records_lose_their_season_and_the_hours_that_are_not_complete():
    """A wave over the day and the year in all values; what is left is what was put on top."""
    times = tuple((2013, m, d, h) for m in (1, 2) for d in range(1, 11) for h in range(24))
    random, names = np.random.default_rng(4), _weather_records._HOURLY
    top = random.normal(size=(len(times), len(names), 2))
    month, hour = np.array(times)[:, 1], np.array(times)[:, 3]
    for m in (1, 2):  # nothing that the mean of a month and hour would take along
        for h in range(24):
            top[(month == m) & (hour == h)] -= top[(month == m) & (hour == h)].mean(0)
    wave = (30 * month + 5 * np.sin(hour / 24 * 2 * np.pi))[:, None]
    values = {name: wave + top[:, i] for i, name in enumerate(names)}
    found = _weather_records.hourly(Weather(times, ("X", "Y"), ("N", "N"), values))
    assert found.groups.tolist() == [name for name in names for _ in range(2)]
    np.testing.assert_allclose(found.anomaly, top.reshape(len(times), -1), atol=1e-12)
    assert (found.missing, found.left_out) == (0, 0)
    holes = {name: v.copy() for name, v in values.items()}
    holes["wind"][3, 1] = holes["pressure"][3, 0] = holes["pressure"][240:245, 0] = np.nan
    lacking = Weather(times, ("X", "Y"), ("N", "N"), holes)
    found = _weather_records.hourly(lacking)
    assert (found.missing, found.left_out, len(found.anomaly)) == (7, 6, 480 - 6)
    assert lacking.missing()["pressure"] == (6, 0)
    holes["pressure"][:] = np.nan
    with pytest.raises(ValueError, match=r"none of the 480 hours has all of temperature, .*X, Y"):
        _weather_records.hourly(lacking)


@needs_shared
def test_real_hours_vary_together_across_airports():
    found = _weather_records.nyc_2013(str(SHARED))
    assert found.anomaly.shape == (8714 - found.left_out, 15)
    c = np.corrcoef(found.anomaly.T)
    same = found.groups[:, None] == found.groups[None]
    assert c[same].min() > 0.6  # 30 km apart
    assert c[same].min() > c[~same].mean() + 0.5


def test_settings_that_cannot_be_measured_are_refused():
    with pytest.raises(ValueError, match=r'has "B", of which us_2016 has 0 .*among A'):
        weather.cases(weather.Settings(data_dir="made", groups=("B",)), 0)
    with pytest.raises(ValueError, match=r'has "B", of which'):
        weather.cases(weather.Settings(data_dir="made", groups=("A+B",)), 0)
    with pytest.raises(ValueError, match=r"duration = 0\.005: give at least study\.window = 0\.01"):
        weather.cases(weather.Settings(data_dir="made", groups=("A",), duration=0.005), 0)
    with pytest.raises(ValueError, match=r"highest_rate = 40\.0: .*at most 20\.75 Hz"):
        weather.cases(weather.Settings(data_dir="made", groups=("A",), highest_rate=40.0), 0)
