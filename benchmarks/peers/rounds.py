"""Opponents timed in turns within one process, so that noise hits all of them alike.

What belongs here: the clock and what it gives; no library and no network.
"""

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

MIN_SECONDS = 0.05  # of one sample: shorter runs are repeated


class Times(NamedTuple):
    """Seconds of one run, one number a round."""

    wall: list[float]
    cpu: list[float]  # all threads of the process

    def median(self, clock: str) -> float:
        """The median on a clock, "wall" or "cpu"."""
        return statistics.median(getattr(self, clock))


def in_turns(runs: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, Times]:
    """Times every run once a round, each round starting with another one.

    Each run has to wait for its result; each is called once before, which is not counted.
    """
    counts, times = {}, {name: Times([], []) for name in runs}
    for name, run in runs.items():
        run()
        start = time.perf_counter()
        run()
        counts[name] = max(1, int(MIN_SECONDS / max(time.perf_counter() - start, 1e-9)))
    names = list(runs)
    for number in range(repeats):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            wall, cpu = time.perf_counter(), time.process_time()
            for _ in range(counts[name]):
                runs[name]()
            times[name].cpu.append((time.process_time() - cpu) / counts[name])
            times[name].wall.append((time.perf_counter() - wall) / counts[name])
    return times
