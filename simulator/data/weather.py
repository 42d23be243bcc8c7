"""Weather records: what stations measured, as one array (times, stations) for each variable.

Reading and checking belong here; how a record becomes spikes is the studies'.
"""

import csv
import io
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np
from jaxtyping import Float64

from .files import DataFile, Source, check_sha256, open_content, sha256

_US = "https://raw.githubusercontent.com/JuliaYu2002/weather"
_NYC = "https://raw.githubusercontent.com/tidyverse/nycflights13"
US_WEEKLY = DataFile(
    "us-2016-weekly.csv.gz",
    "weather",
    "508e789343ba027b50e48299189b87d89cdd6401aab5bb40467c4db9e9dd0dfe",
    (f"{_US}/71056d0275d053c5d165aa2fe3ecc027ad2c7e9c/data-raw/USweather.csv",),
)
NYC_HOURLY = DataFile(
    "nyc-2013-hourly.csv.gz",
    "weather",
    "5d1ea2548a3941eac0b4a9ca70805daa9fa49bbb711a0c7557b2bba0bd7c3f64",
    (f"{_NYC}/main/data-raw/weather.csv",),
)
_LARGEST = 2**25  # [bytes]; the larger one has 2.3 MB
_US_VARIABLES = {
    "rain": "Data.Precipitation",  # [inch]
    "temperature": "Data.Temperature.Avg Temp",  # [degree Fahrenheit], as the next two
    "highest": "Data.Temperature.Max Temp",
    "lowest": "Data.Temperature.Min Temp",
    "wind": "Data.Wind.Speed",  # [mile / h]
}
_NYC_VARIABLES = {
    "temperature": "temp",  # [degree Fahrenheit], as the dew point
    "dew_point": "dewp",
    "humidity": "humid",  # [%]
    "wind": "wind_speed",  # [mile / h]
    "rain": "precip",  # [inch]
    "pressure": "pressure",  # [mbar]
    "visibility": "visib",  # [mile]
}
_NO_TEMPERATURE = 60.0  # mean, highest and lowest all so: nothing was measured
_NO_WIND = 254.0  # [mile / h]; no gust was ever faster, and one row of New York has 1048


@dataclass(frozen=True, eq=False)
class Weather:
    """Records of stations at common times.

    Attributes:
        times: in order, as the file writes them: (year, month, day) or with the hour.
        stations: short codes, in alphabetical order.
        regions: of each station: its state; for New York the city.
        values: variable -> (times, stations), NaN where nothing was measured.
    """

    times: tuple[tuple[int, ...], ...]
    stations: tuple[str, ...]
    regions: tuple[str, ...]
    values: Mapping[str, Float64[np.ndarray, "times stations"]]

    def missing(self) -> dict[str, tuple[int, ...]]:
        """How many values each station lacks, for each variable; lacking rows count as such."""
        return {
            name: tuple(int(n) for n in np.isnan(values).sum(0))
            for name, values in self.values.items()
        }


def us_weekly(source: Source) -> Weather:
    """318 stations of the USA in the 53 weeks of 2016: rain, three temperatures, wind.

    Raises:
        ValueError: the file is missing, damaged, cut off or another one.
    """
    return source.read(US_WEEKLY, lambda path, called: read_us(path, US_WEEKLY.sha256, called))


def nyc_hourly(source: Source) -> Weather:
    """The three airports of New York in each hour of 2013: seven variables.

    Raises:
        ValueError: the file is missing, damaged, cut off or another one.
    """
    return source.read(NYC_HOURLY, lambda path, called: read_nyc(path, NYC_HOURLY.sha256, called))


def read_us(path: Path, checksum: str | None = None, called: str | None = None) -> Weather:
    """Reads a file of the columns of `us_weekly`.

    Args:
        path: the file.
        checksum: SHA-256 of the content, if known.
        called: its name in errors, else the path.

    Raises:
        ValueError: a damaged file, missing columns, a row that is none, a wrong checksum.
    """

    def key(row: Mapping[str, str]) -> tuple[tuple[int, ...], str, str]:
        date = tuple(int(part) for part in row["Date.Full"].split("/"))
        return date, row["Station.Code"], row["Station.State"]

    keys = ("Date.Full", "Station.Code", "Station.State")
    weather = _read(path, checksum, called or str(path), keys, key, _US_VARIABLES)
    parts = [weather.values[name] for name in ("temperature", "highest", "lowest")]
    nothing = np.all([part == _NO_TEMPERATURE for part in parts], axis=0)
    for part in parts:
        part[nothing] = np.nan
    return weather


def read_nyc(path: Path, checksum: str | None = None, called: str | None = None) -> Weather:
    """Reads a file of the columns of `nyc_hourly`; arguments and errors are those of `read_us`.

    A wind that no storm has reached is a fault of the instrument, and missing.
    """

    def key(row: Mapping[str, str]) -> tuple[tuple[int, ...], str, str]:
        # universal time: the local hour occurs twice in autumn
        time = datetime.fromisoformat(row["time_hour"])
        return (time.year, time.month, time.day, time.hour), row["origin"], "New York"

    keys = ("origin", "time_hour")
    weather = _read(path, checksum, called or str(path), keys, key, _NYC_VARIABLES)
    wind = weather.values["wind"]
    wind[wind >= _NO_WIND] = np.nan
    return weather


def _read(
    path: Path,
    checksum: str | None,
    called: str,
    keys: tuple[str, ...],
    key: Callable[[Mapping[str, str]], tuple[tuple[int, ...], str, str]],
    variables: Mapping[str, str],
) -> Weather:
    with open_content(path, called) as stream:
        content = stream.read(_LARGEST + 1)
    if len(content) > _LARGEST:
        raise ValueError(f"{called} has more than {_LARGEST:,} bytes, expected less.")
    found: dict[tuple[tuple[int, ...], str], list[float]] = {}
    regions: dict[str, str] = {}
    try:
        rows = csv.DictReader(io.StringIO(content.decode()), strict=True)
        missing = [c for c in (*keys, *variables.values()) if c not in (rows.fieldnames or ())]
        if missing:
            raise ValueError(f"{called} has no column {missing[0]!r}, expected a table of weather.")
        for row in rows:
            where = f"{called}, line {rows.line_num}"
            if None in row or None in row.values():
                raise ValueError(
                    f"{where} has another number of fields than the {len(rows.fieldnames or ())} "
                    "columns: the file is truncated or damaged."
                )
            try:
                time, station, region = key(row)
            except ValueError:
                text = ", ".join(row[k] for k in keys)
                raise ValueError(f"{where} has no date that can be read: {text:.60}.") from None
            if (time, station) in found:
                raise ValueError(f"{where} has station {station!r:.40} a second time at {time}.")
            found[time, station] = [_number(where, c, row[c]) for c in variables.values()]
            regions[station] = region
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{called} is damaged or not a table in CSV ({error}).") from None
    if not found:
        raise ValueError(f"{called} holds no rows, expected a table of weather.")
    check_sha256(called, sha256(content), checksum)
    times, stations = tuple(sorted({t for t, _ in found})), tuple(sorted(regions))
    at_time, at_station = ({v: i for i, v in enumerate(values)} for values in (times, stations))
    table = np.full((len(variables), len(times), len(stations)), np.nan)
    for (time, station), numbers in found.items():
        table[:, at_time[time], at_station[station]] = numbers
    values = dict(zip(variables, table, strict=True))
    return Weather(times, stations, tuple(regions[s] for s in stations), values)


def _number(where: str, column: str, text: str) -> float:
    if text in ("", "NA"):
        return math.nan
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"{where} has {text!r:.40} for {column}, expected a number or NA.")
    return value
