"""Weather records: a small table, the real files, and files that are wrong."""

import csv
import gzip
import io
from pathlib import Path

import numpy as np
import pytest

from spikebit.simulator.data import weather
from spikebit.simulator.data.files import Source

SHARED = Path(__file__).parents[3] / "shared" / "data"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="needs the data in ../shared/data")

US = """\
Data.Precipitation,Date.Full,Station.Code,Station.State,Data.Temperature.Avg Temp,\
Data.Temperature.Max Temp,Data.Temperature.Min Temp,Data.Wind.Speed
0.5,2016/1/10,BBB,Ohio,30,35,20,1.5
0,2016/1/3,AAA,"New, York",60,60,60,2
NA,2016/1/3,BBB,Ohio,60,61,59,3
"""
NYC = """\
origin,time_hour,temp,dewp,humid,wind_speed,precip,pressure,visib
JFK,2013-11-03T05:00:00Z,39.02,26,59,10,0,1012,10
JFK,2013-11-03T06:00:00Z,NA,26,59,10,0,NA,9
"""


def put(tmp_path, text, name="a.csv"):
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_a_small_table(tmp_path):
    data = weather.read_us(put(tmp_path, US))
    assert data.times == ((2016, 1, 3), (2016, 1, 10))  # by date, not as text
    assert (data.stations, data.regions) == (("AAA", "BBB"), ("New, York", "Ohio"))
    np.testing.assert_array_equal(data.values["rain"], [[0, np.nan], [np.nan, 0.5]])
    # 60, 60, 60 is how this file writes that nothing was measured
    np.testing.assert_array_equal(data.values["temperature"], [[np.nan, 60], [np.nan, 30]])
    np.testing.assert_array_equal(data.values["wind"], [[2, 3], [np.nan, 1.5]])
    hours = weather.read_nyc(put(tmp_path, gzip.compress(NYC.encode())))
    assert hours.times == ((2013, 11, 3, 5), (2013, 11, 3, 6))
    np.testing.assert_array_equal(hours.values["pressure"][:, 0], [1012, np.nan])


def test_what_is_missing_is_counted(tmp_path):
    """NA, a row that lacks, and a wind faster than any: one each for LGA, of 3 hours."""
    more = NYC + "LGA,2013-11-03T07:00:00Z,40,NA,59,1048.36,0,1012,10\n"
    data = weather.read_nyc(put(tmp_path, more))
    assert (data.stations, len(data.times)) == (("JFK", "LGA"), 3)
    wanted = dict.fromkeys(data.values, (1, 2)) | {"temperature": (2, 2), "pressure": (2, 2)}
    assert data.missing() == wanted | {"dew_point": (1, 3), "wind": (1, 3)}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (NYC.replace("humid", "hum"), "has no column 'humid', expected a table of weather"),
        (NYC[:-14], "line 3 has another number of fields than the 9"),
        (gzip.compress(NYC.encode())[:-20], "truncated"),
        (NYC.replace("03T05", "03T25"), "line 2 has no date that can be read: JFK, 2013-11-03T25"),
        (NYC.replace("03T06", "03T05"), r"line 3 has station 'JFK' a second time at \(2013, 11"),
        (NYC.replace("39.02", "nan"), "'nan' for temp, expected a number or NA"),
    ],
    ids=["column", "cut off", "gzip", "hour", "twice", "nan"],
)
def test_hourly_files_that_are_wrong_are_refused_in_one_line(tmp_path, text, message):
    path = put(tmp_path, text)
    with pytest.raises(ValueError, match=message) as found:
        weather.read_nyc(path)
    assert str(path) in str(found.value)
    assert "\n" not in str(found.value)


@needs_shared
def test_real_files():
    data = weather.us_weekly(Source(SHARED, download=False))
    assert (len(data.stations), len(data.times)) == (318, 53)
    texts = gzip.decompress((SHARED / "weather" / "us-2016-weekly.csv.gz").read_bytes()).decode()
    rows = list(csv.DictReader(io.StringIO(texts)))
    assert int(np.isfinite(data.values["wind"]).sum()) == len(rows) == 16743
    for row in rows[:: len(rows) // 50]:
        time = data.times.index(tuple(int(p) for p in row["Date.Full"].split("/")))
        station = data.stations.index(row["Station.Code"])
        assert data.values["wind"][time, station] == float(row["Data.Wind.Speed"])
        assert data.regions[station] == row["Station.State"]
    hours = weather.nyc_hourly(Source(SHARED, download=False))
    assert hours.stations == ("EWR", "JFK", "LGA")
    assert hours.values["wind"][np.isfinite(hours.values["wind"])].max() < 50
    text = gzip.decompress((SHARED / "weather" / "nyc-2013-hourly.csv.gz").read_bytes()).decode()
    pressure = [row["pressure"] for row in csv.DictReader(io.StringIO(text))]
    there = len(pressure) - pressure.count("NA")
    assert sum(hours.missing()["pressure"]) == 3 * len(hours.times) - there
    t = hours.values["temperature"]
    t = t[np.isfinite(t).all(1)]
    assert np.corrcoef(t.T).min() > 0.95  # the three airports lie 30 km apart


BAD = {
    "empty": (b"", r"is empty \(0 bytes\)"),
    "no rows": (US.splitlines()[0], "holds no rows"),
    "column": (US.replace("Station.Code", "Code"), "no column 'Station.Code'"),
    "cut off": (US[:-9], "line 4 has another number of fields than the 8"),
    "too many": (US + "1,2,3,4,5,6,7,8,9\n", "line 5 has another number of fields"),
    "gzip": (gzip.compress(US.encode())[:-20], "truncated"),
    "date": (US.replace("2016/1/10", "2016/x"), "line 2 has no date that can be read: 2016/x"),
    "twice": (US + US.splitlines()[1] + "\n", "'BBB' a second time"),
    "text": (US.replace("1.5", "fast"), "'fast' for Data.Wind.Speed, expected a number"),
    "infinite": (US.replace("1.5", "inf"), "'inf' for Data.Wind.Speed"),
    "not text": (b"\xff\xfe\x00" + US.encode(), "damaged or not a table"),
    "quote": (US.replace('"New, York"', '"New, York'), "damaged or not a table|number of fields"),
}


@pytest.mark.parametrize("kind", BAD)
def test_files_that_are_wrong_are_refused_in_one_line(tmp_path, kind):
    text, message = BAD[kind]
    path = put(tmp_path, text)
    with pytest.raises(ValueError, match=message) as found:
        weather.read_us(path)
    assert str(path) in str(found.value)
    assert "\n" not in str(found.value)


def test_another_file_of_that_name_is_refused(tmp_path, monkeypatch):
    monkeypatch.delenv("SPIKEBIT_DATA", raising=False)  # a second place to look into
    put(tmp_path, US, "us-2016-weekly.csv")
    with pytest.raises(ValueError, match="wrong checksum"):
        weather.us_weekly(Source(tmp_path, download=False))
    with pytest.raises(ValueError, match=r"nyc-2013-hourly\.csv\.gz was not found"):
        weather.nyc_hourly(Source(tmp_path, download=False))
