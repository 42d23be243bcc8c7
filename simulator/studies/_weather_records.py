"""Weather records as processes that are unusually high or not, and in groups; no study itself.

What is taken off the records belongs here (season, hour of the day, the mean of all stations); what
a file says is `data.weather`'s, spikes are the study's.
"""

from typing import NamedTuple

import numpy as np

from ..data.files import Source
from ..data.weather import Weather, nyc_hourly, us_weekly

# Rain (0 in 93 % of the hours) and visibility (10 miles in 84 %) have no highest fifth.
_HOURLY = ("temperature", "dew_point", "humidity", "wind", "pressure")


class Records(NamedTuple):
    """What varies, without the parts that all have in common.

    Attributes:
        anomaly: (times, processes).
        groups: (processes,) the group that each is said to vary with.
        missing: values that were not measured.
        left_out: stations or hours that are left out for this.
    """

    anomaly: np.ndarray
    groups: np.ndarray
    missing: int = 0
    left_out: int = 0


def us_2016(data_dir: str | None) -> Records:
    """How much warmer each week was than the country's mean of it and the station's of the year.

    A process is a station with a record of every week, a group those of a state.
    """
    weather = us_weekly(Source(data_dir))
    temperature = weather.values["temperature"]
    lacking = np.isnan(temperature)
    complete = ~lacking.any(0)
    anomaly = temperature[:, complete]
    anomaly = anomaly - anomaly.mean(1, keepdims=True)
    return Records(
        anomaly - anomaly.mean(0),
        np.array(weather.regions)[complete],
        int(lacking.sum()),
        int((~complete).sum()),
    )


def nyc_2013(data_dir: str | None) -> Records:
    """`hourly` of the three airports of New York: five variables at each of them."""
    return hourly(nyc_hourly(Source(data_dir)))


def hourly(weather: Weather) -> Records:
    """How much higher each hour was than the mean of its month and hour of the day.

    A process is a variable at a station, a group a variable at all of them. Hours in which one of
    these values is missing are left out.

    Raises:
        ValueError: no hour is complete.
    """
    values = np.stack([weather.values[name] for name in _HOURLY], 1)  # (hours, variables, stations)
    lacking = np.isnan(values)
    complete = ~lacking.any((1, 2))
    if not complete.any():
        raise ValueError(
            f"none of the {len(values)} hours has all of {', '.join(_HOURLY)} at each of the "
            f"stations {', '.join(weather.stations)}: give records that overlap"
        )
    anomaly = values[complete].reshape(int(complete.sum()), -1)
    _, month, _, hour = np.array(weather.times)[complete].T
    season = np.unique(month * 24 + hour, return_inverse=True)[1]
    sums = np.zeros((season.max() + 1, anomaly.shape[1]))
    np.add.at(sums, season, anomaly)
    anomaly -= (sums / np.bincount(season)[:, None])[season]
    groups = np.repeat(_HOURLY, len(weather.stations))
    return Records(anomaly, groups, int(lacking.sum()), int((~complete).sum()))
