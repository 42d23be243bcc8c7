"""Spikes x cold weights beside XLA's dense product: float32, 8-bit and 4-bit, 4096 x 4096.

One thread, CPU time, medians; all in one process and in turns, each call with weights that no call
has touched for longer than caches remember. `python benchmarks/spikes_low_bit.py --write
benchmarks/RESULTS.md`, or with `--json` one object a line.
"""

import argparse
import json
import os
import statistics
import time
from pathlib import Path

os.environ.setdefault(
    "XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
)

import jax
import jax.numpy as jnp
import numpy as np
from peers.results import table, writable, write_section
from snn_training import machine

from spikebit.kernels import (
    pack,
    pack_spikes,
    quantized_matrix,
    spike_matmul,
    spike_matmul_low_bit,
)

SECTION = "spikes_low_bit"
SIDE = 4096
SHARES = (0.01, 0.05, 0.2)
ROWS = (1, 16)
TARGETS = {0.01: 100, 0.05: 25, 0.2: 6}  # times XLA's dense product; of 8 bits twice as much
HEADER = ["rows", "events", "XLA dense [ms]", "float32", "8 bits", "4 bits", "bits x 8 bits", "aim"]


def copies(make, size):
    """So many of what `make` gives that going round takes longer than caches remember."""
    return [make(i) for i in range(max(2, -(-WORKING_SET // size)))]


WORKING_SET = 1 << 29  # bytes


def weights():
    """Float weights and packed ones by their bits, each several times."""
    random = np.random.default_rng(0)
    codes = {b: random.integers(0, 1 << b, (SIDE, SIDE)).astype(np.uint8) for b in (4, 8)}
    floats = random.standard_normal((SIDE, SIDE)).astype(np.float32)

    def packed(bits):
        one = pack(quantized_matrix(codes[bits], np.ones(SIDE), bits=bits), "rows")
        return copies(lambda i: jax.tree.map(lambda a: a + a.dtype.type(0), one), one.nbytes)

    return {
        "float32": copies(lambda i: jnp.asarray(floats) + np.float32(i), floats.nbytes),
        8: packed(8),
        4: packed(4),
    }


def seconds(calls, rounds):
    """Median CPU time of one call each, in turns."""
    times = {name: [] for name in calls}
    for i in range(rounds + 1):
        for name, (function, x, ws) in calls.items():
            begin = time.process_time()
            function(x, ws[i % len(ws)]).block_until_ready()
            times[name].append(time.process_time() - begin)
    return {name: statistics.median(t[1:]) for name, t in times.items()}


def rows(rounds):
    """One dictionary for each number of rows and share of events."""
    ws, random = weights(), np.random.default_rng(1)
    dense, events, low = jax.jit(jnp.dot), jax.jit(spike_matmul), jax.jit(spike_matmul_low_bit)
    for count in ROWS:
        for share in SHARES:
            x = jnp.asarray(random.random((count, SIDE)) < share)
            floats = x.astype(jnp.float32)
            yield {"rows": count, "events": share} | seconds(
                {
                    "dense": (dense, floats, ws["float32"]),
                    "float32": (events, floats, ws["float32"]),
                    "8 bits": (low, x, ws[8]),
                    "4 bits": (low, x, ws[4]),
                    "bits x 8 bits": (low, pack_spikes(x), ws[8]),
                },
                rounds,
            )


def report(found, load):
    """The section of RESULTS.md."""
    here = machine()
    lines = [
        [
            str(row["rows"]),
            f"{100 * row['events']:g} %",
            f"{1e3 * row['dense']:.2f}",
            *(f"{row['dense'] / row[name]:.1f}" for name in HEADER[3:7]),
            f"{TARGETS[row['events']]}, 8 bits {2 * TARGETS[row['events']]}",
        ]
        for row in found
    ]
    return (
        f"## Spikes x cold weights\n\n{here['date']}, {here['cpu']}, one thread, Python "
        f"{here['python']}, jax {jax.__version__}, load before the run {load:.1f}. "
        f"`python benchmarks/spikes_low_bit.py --write benchmarks/RESULTS.md`\n\nWeights {SIDE} x "
        f"{SIDE}, CPU time, how many times faster than XLA's dense float32 product of the same "
        f"call:\n\n{table(HEADER, lines)}\n\nWhere both read from memory at one rate, event-driven "
        "float32 cannot gain more than one over the share of events for a single row."
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--write", type=Path, metavar="FILE", help="replace its section")
    args = parser.parse_args()
    if not writable(args.write, SECTION):
        return 2
    load, found = os.getloadavg()[0], []
    for row in rows(args.rounds):
        found.append(row)
        print(json.dumps(row) if args.json else row, flush=True)
    if args.write:
        write_section(args.write, SECTION, report(found, load))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
