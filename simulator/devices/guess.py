"""Where the search for the parameters of a fit begins: rough moments of the traces.

Right to a factor of two or three, from sums that the noise of reads does not bias.
"""

from typing import NamedTuple

import numpy as np

from .kalman import Trace

_APART = 20  # rows between the reads of a difference in which pulses have added up


class Guess(NamedTuple):
    """One cell for all."""

    up: float
    down: float
    high: float
    low: float
    pulse: float
    read: float


def guess(trace: Trace) -> Guess:
    """The parameters of a middle cell.

    Bounds are the range of the reads and a quarter more; steps what pulses moved over what was left
    to the bound. Noise of pulses is what the variance of differences over many rows has more than
    that over one.
    """
    g, fresh = np.asarray(trace.g), np.asarray(trace.fresh)
    pulses = np.asarray(trace.numbers)[np.asarray(trace.kind)]
    known = g[~np.isnan(g)]
    low, high = np.quantile(known, (0.01, 0.99))
    more = 0.25 * max(high - low, 1e-9)
    low, high = min(low - more, -more), max(high + more, more)
    moved, before, given = np.diff(g, axis=0), g[:-1], pulses[1:]
    usable = ~np.isnan(moved) & ~fresh[1:]
    up, down = usable & (given > 0), usable & (given < 0)
    rise = moved[up].sum() / max((given[up] * (high - before[up])).sum(), 1e-9)
    fall = moved[down].sum() / min((given[down] * (before[down] - low)).sum(), -1e-9)
    rise, fall = (float(np.clip(rate, 1e-5, 0.5)) for rate in (rise, fall))
    near, apart = _spread(trace, 1), _spread(trace, min(_APART, max(2, len(g) // 4)))
    variance, number = near
    per_pulse = 0.25 * variance / max(number, 1)
    if apart[1] > number:
        per_pulse = max((apart[0] - variance) / (apart[1] - number), 0.02 * per_pulse)
    of_read = max((variance - number * per_pulse) / 2, 1e-3 * variance)
    step = (rise * high - fall * low) / 2
    tiny = 1e-9 * (high - low)
    return Guess(
        rise * high,
        -fall * low,
        high,
        low,
        max(per_pulse**0.5, tiny) / step,
        max(of_read**0.5, tiny),
    )


def _spread(trace: Trace, rows: int) -> tuple[float, float]:
    """Variance of what so many rows of pulses of one sign move, and the mean number of pulses."""
    g, pulses = np.asarray(trace.g), np.asarray(trace.numbers)[np.asarray(trace.kind)]
    totals = np.cumsum(np.stack([pulses, np.abs(pulses), np.asarray(trace.fresh)]), 1)
    net, number, restarts = totals[:, rows:] - totals[:, :-rows]
    moved = g[rows:] - g[:-rows]
    usable = ~np.isnan(moved) & (restarts == 0) & (number > 0) & (np.abs(net) == number)
    groups = [usable & (net > 0), usable & (net < 0)]
    count = sum(int(own.sum()) for own in groups)
    if count == 0:
        return 0.0, 0.0
    variance = sum(float(moved[own].var()) * int(own.sum()) for own in groups if own.any()) / count
    return variance, float(number[usable].mean())
