"""One library in a process of its own, driven by `../snn_training.py` over standard input.

What belongs here: build, check and time one side; no library and no statistics. Called as
`worker.py LIBRARY NETWORK VARIANT CORES`, it answers one JSON line when it is ready and one for
each line that it reads, until the input ends.
"""

import contextlib
import importlib
import importlib.metadata
import sys
import time

import numpy as np
import workload
from answering import answering

MIN_SECONDS = 0.2
TOLERANCE = 1e-3  # what the order of a sum over threads may change


def norms_of(grads: dict) -> dict[str, float]:
    """The Euclidean norm of every gradient."""
    return {key: float(np.linalg.norm(np.asarray(g, np.float64))) for key, g in grads.items()}


def check(side) -> dict:
    """The loss, the gradient norms and the firing rates; "problem" says what is wrong or None."""
    loss, grads = side.step()
    norms = norms_of(grads)
    rates = [float(np.asarray(y).mean()) for y in side.spikes()]
    bad = [key for key, norm in norms.items() if not (np.isfinite(norm) and norm > 0)]
    problem = f"zero or non-finite gradients of {', '.join(bad)}" if bad else None
    return {"loss": loss, "gradient_norms": norms, "firing_rates": rates, "problem": problem}


def measure(side, checked: dict) -> dict:
    """Seconds of wall and CPU time (all threads) of one step, after one that is not counted.

    An error if the last step's loss and gradients are not those of the first step ever.
    """
    side.step()
    steps, wall, cpu = 1, time.perf_counter(), time.process_time()
    loss, grads = side.step()
    while time.perf_counter() - wall < MIN_SECONDS:
        loss, grads = side.step()
        steps += 1
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    now = {"loss": loss, **norms_of(grads)}
    first = {"loss": checked["loss"], **checked["gradient_norms"]}
    changed = [k for k in first if not abs(now[k] - first[k]) <= TOLERANCE * abs(first[k])]
    if changed:
        told = ", ".join(f"{k} from {first[k]:.6g} to {now[k]:.6g}" for k in changed)
        return {"error": f"not reproducible: {told}"}
    return {"wall": wall / steps, "cpu": cpu / steps}


def main(library: str, network: str, variant: str, cores: str) -> None:
    """Builds what is timed, says when it is ready, and times it once for each line."""
    answer = answering(int(cores))
    try:
        peer = importlib.import_module(f"{library}_side")
    except ImportError as error:
        return answer({"error": f"not installed ({error})"})
    versions = {name: importlib.metadata.version(name) for name in peer.PACKAGES}
    started = time.perf_counter()
    try:
        side = peer.build(workload.make(network), variant)
        checked = check(side)
        side.step()
    except Exception as error:  # one library's failure must not end the others' run
        return answer({"error": f"{type(error).__name__}: {error}".splitlines()[0]})
    seconds = time.perf_counter() - started
    answer({**checked, "versions": versions, "set_up_seconds": seconds})
    for _ in sys.stdin:
        answer(measure(side, checked))


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError, KeyboardInterrupt):
        main(*sys.argv[1:])
