"""One library with one case of `../devices.py` in a process of its own, on one thread.

What belongs here: build, check and time; no library and no statistics. Called as
`devices_worker.py LIBRARY CASE VARIANT`, it answers one JSON line when it is ready and one for each
line that it reads, until the input ends.
"""

import contextlib
import importlib
import importlib.metadata
import sys
import time

from answering import answering

MIN_SECONDS = 0.2


def measure(call) -> dict:
    """Seconds of wall and CPU time (all threads) of one call."""
    count, wall, cpu = 0, time.perf_counter(), time.process_time()
    while count == 0 or time.perf_counter() - wall < MIN_SECONDS:
        call()
        count += 1
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return {"wall": wall / count, "cpu": cpu / count}


def main(library: str, case: str, variant: str) -> None:
    """Builds what is timed, says when it is ready, and times it once for each line."""
    answer = answering(1)
    from devices_workload import Sizes

    try:
        side = importlib.import_module(f"devices_{library}")
    except ImportError as error:
        return answer({"error": f"not installed ({error})"})
    versions = {name: importlib.metadata.version(name) for name in side.PACKAGES}
    try:
        run = side.build(case, variant, Sizes())
        checked = run.check()
        run.call()
    except Exception as error:  # one library's failure must not end the others' run
        return answer({"error": f"{type(error).__name__}: {error}".splitlines()[0]})
    answer({"check": checked, "versions": versions})
    for _ in sys.stdin:
        answer(measure(run.call))


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError, KeyboardInterrupt):
        main(*sys.argv[1:])
