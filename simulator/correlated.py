"""Correlated Poisson processes: inputs whose spikes coincide more often than their rates explain.

Spike trains that are given by rates and pair correlations belong here; encoders that turn data into
spikes are those of `encoding`.
"""

import math
import numbers
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..kernels.stdp_events import Events, pack_events

_AT_ONCE = 1 << 20  # copies drawn at a time


@dataclass(frozen=True)
class Group:
    """Inputs that share a source.

    Attributes:
        count: how many inputs.
        rate: of each [Hz].
        correlation: c, of the spike counts of each pair over times much longer than the jitter,
            in [0, 1]; 0: independent.
        jitter: standard deviation of the time between a spike and that of the source [s].
    """

    count: int
    rate: float
    correlation: float = 0.0
    jitter: float = 0.0

    def __post_init__(self):
        """Checks the settings."""
        if not isinstance(self.count, numbers.Integral) or self.count < 1:
            raise ValueError(f"Group: count is {self.count}; give a whole number of inputs >= 1.")
        if not (0 <= self.rate < math.inf and 0 <= self.jitter < math.inf):
            raise ValueError(
                f"Group: rate is {self.rate} and jitter {self.jitter}; give 0 or more, in Hz and s."
            )
        if not 0 <= self.correlation <= 1:
            raise ValueError(
                f"Group: correlation is {self.correlation}; give 0 (independent) to 1 (copies)."
            )


def correlated_poisson(
    rng: np.random.Generator, groups: Sequence[Group], duration: float, dt: float = 1e-3
) -> Events:
    r"""Spikes of all groups, one after the other; inputs of different groups are independent.

    With c > 0 a source fires as a Poisson process of rate $r / c$, and each input copies each of
    its spikes with probability c, moved by a normal jitter: a Poisson process of rate r, and of any
    two inputs the counts have covariance $c r T$, hence correlation c. Steps are filled with one
    spike at most, which loses a share of about $r\,dt / 2$.

    Args:
        rng: source of randomness.
        groups: their inputs are numbered in this order.
        duration: [s].
        dt: of a step [s].

    Raises:
        ValueError: a duration that has no step.

    References:
        Higher-order statistics of input ensembles and the response of simple model neurons,
        Neural Computation 15, 2003 (multiple interaction processes).
    """
    if not (dt > 0 and 0.5 < duration / dt < math.inf):
        raise ValueError(
            f"correlated_poisson: duration is {duration} and dt {dt}, in s; give a duration of at "
            "least one step, and dt above 0."
        )
    steps, base = round(duration / dt), 0
    step, source = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for group in groups:
        if group.correlation > 0:
            c = group.correlation
            spikes = rng.uniform(0, duration, rng.poisson(group.rate / c * duration))
            copies, rows = [np.zeros((2, 0), np.int64)], max(1, _AT_ONCE // group.count)
            for row in range(0, len(spikes), rows):
                shape = len(spikes[row : row + rows]), group.count
                which, who = np.nonzero(rng.uniform(size=shape) < c)
                copies.append(np.stack([which + row, who]))
            which, who = np.concatenate(copies, 1)
            time = spikes[which] + group.jitter * rng.normal(size=len(which))
        else:
            counts = rng.poisson(group.rate * duration, group.count)
            who = np.repeat(np.arange(group.count), counts)
            time = rng.uniform(0, duration, len(who))
        step.append(np.floor(time / dt).astype(np.int64))
        source.append(who + base)
        base += group.count
    return pack_events(np.concatenate(step), np.concatenate(source), steps)
