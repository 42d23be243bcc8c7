"""Event-driven against dense: the products of `spikebit.kernels.spike_matmul` on this machine.

Prints, for each operation and size, the share of non-zeros at which both are equally fast (the
constants in `kernels/spikes_cpu.py` come from this table), and the time of the sizes that spiking
networks have. `python benchmarks/spikes.py`, or with `--json` one object a line. On a machine
that others use, `taskset -c 0 python benchmarks/spikes.py` is steadier: on one core it counts the
time that the process computes, not the time it waits for the core.
"""

import argparse
import functools
import json
import os
import time

import jax
import jax.numpy as jnp
import numpy as np

from spikebit.kernels import spikes, spikes_cpu

OPERATIONS = ("forward", "weight_gradient", "input_gradient")
SHARES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 1.0)
SIZES = [(rows, 512, n) for n in (16, 64, 256, 512) for rows in (1, 8, 64, 512, 4096)]
TARGETS = [(6400, 784, 512), (6400, 512, 512), (16000, 700, 256), (64, 256, 256), (64, 784, 512)]
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
CLOCK = time.process_time if CORES == 1 else time.perf_counter


def data(operation, rows, k, n, share):
    """Arguments of an operation, a stack of them where one call is too short to time."""
    random = np.random.default_rng(0)
    copies = max(1, min(64, (1 << 18) // (rows * k)))
    chosen = random.random((copies, rows, k)) < share
    x = jnp.asarray(chosen * random.standard_normal(chosen.shape), jnp.float32)
    w = jnp.asarray(random.standard_normal((k, n)), jnp.float32)
    dy = jnp.asarray(random.standard_normal((copies, rows, n)), jnp.float32)
    if operation == "forward":
        return (x,), w
    return ((x, dy), None) if operation == "weight_gradient" else ((dy, jnp.asarray(chosen)), w)


def timed(function, operation, stacked, w):
    """The shortest time of one call [s], of many, each inside one compiled loop."""

    def call(xs):
        if operation == "input_gradient":
            return function(xs[0], w, xs[1])
        return function(*xs) if w is None else function(*xs, w)

    zero = jax.tree.map(
        lambda a: jnp.zeros(a.shape, a.dtype), jax.eval_shape(call, [s[0] for s in stacked])
    )
    loop = jax.jit(lambda xs: jax.lax.scan(lambda _, x: (call(x), None), zero, xs)[0])
    loop(list(stacked)).block_until_ready()
    best, start = np.inf, time.perf_counter()
    for _ in range(200):
        before = CLOCK()
        loop(list(stacked)).block_until_ready()
        best = min(best, CLOCK() - before)
        if time.perf_counter() - start > 0.2:
            break
    return best / len(stacked[0])


def crossover(operation, rows, k, n):
    """The share at which the event-driven time reaches the dense time, by interpolation."""
    dense = timed(
        getattr(spikes, f"{operation}_reference"), operation, *data(operation, rows, k, n, 0.05)
    )
    last_share, last = 0.0, 0.0
    for share in SHARES:
        event = timed(
            functools.partial(spikes_cpu.event_driven, operation),
            operation,
            *data(operation, rows, k, n, share),
        )
        if event > dense:
            return last_share + (share - last_share) * (dense - last) / (event - last)
        last_share, last = share, event
    return 1.0


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    as_json = parser.parse_args().json

    def show(row):
        print(
            json.dumps(row) if as_json else "  ".join(f"{k} {v}" for k, v in row.items()),
            flush=True,
        )

    for operation in OPERATIONS:
        for rows, k, n in SIZES:
            share = crossover(operation, rows, k, n)
            show(
                {
                    "operation": operation,
                    "rows": rows,
                    "k": k,
                    "n": n,
                    "crossover": round(share, 3),
                    "used": round(spikes_cpu.crossover(operation, rows, n), 3),
                }
            )
    for operation in OPERATIONS:
        for rows, k, n in TARGETS:
            for share in (0.02, 0.05, 0.1):
                args = data(operation, rows, k, n, share)
                dense = timed(getattr(spikes, f"{operation}_reference"), operation, *args)
                event = timed(
                    functools.partial(spikes_cpu.event_driven, operation), operation, *args
                )
                chosen = timed(getattr(spikes_cpu, operation), operation, *args)
                flop = 2 * share * rows * k * n
                show(
                    {
                        "operation": operation,
                        "rows": rows,
                        "k": k,
                        "n": n,
                        "share": share,
                        "dense_us": round(dense * 1e6, 1),
                        "event_us": round(event * 1e6, 1),
                        "chosen_us": round(chosen * 1e6, 1),
                        "event_gflops": round(flop / event / 1e9, 1),
                        "dense_gflops": round(flop / share / dense / 1e9, 1),
                        "ratio": round(dense / chosen, 2),
                    }
                )


if __name__ == "__main__":
    main()
