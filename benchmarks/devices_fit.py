"""Does `spikebit devices fit` find the parameters that traces were made with, and how fast?

Traces of cells with soft bounds, as `pulsed` makes them, at three levels of read noise: alike, and
with the spreads of the preset `reram_sb`. Prints estimates and z-scores over seeds, a regression
beside them, and the seconds of the command.

    python benchmarks/devices_fit.py --write benchmarks/RESULTS.md
"""

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from peers.results import table, writable, write_section
from snn_training import machine

from spikebit.simulator.devices import Variation, pulsed
from spikebit.simulator.devices.fit import Population, fit
from spikebit.simulator.devices.pulse_traces import Traces, as_rows
from spikebit.simulator.devices.pulsed import soft_bounds

SECTION = "devices_fit"
CELLS, PULSES = 40, 600  # up, then as many down
READ_NOISE = (0.0, 0.02, 0.112)
SPREADS = {"alike": (0.0, 0.0, 0.0, 0.0), "spread": (0.3, 0.01, 0.24, 0.4)}
SHOWN = ("up", "down", "high", "low", "step_spread", "high_spread", "low_spread", "pulse", "read")


def truth(kind, read):
    """Of card 8: the preset with equal steps up and down."""
    return Population(0.002, 0.002, 1.25, -0.75, *SPREADS[kind], 3.75, read)


def traces(kind, read, seed):
    """Reads after each pulse."""
    step, skew, high, low = SPREADS[kind]
    noise = {"pulse": 3.75, "write": read / 0.002}
    variation = Variation(step, high, low, skew, 0.0, **noise)
    bounds = {"low": -0.75, "high": 1.25, "reference": 0.0}
    device = pulsed(soft_bounds, step=0.002, additive=True, variation=variation, **bounds)
    for_cells, for_pulses = jax.random.split(jax.random.key(seed))
    signs = jnp.repeat(jnp.array([1, -1]), PULSES)

    def one(state, i):
        counts = jnp.full(CELLS, signs[i])
        state = device.pulse(state, counts, jax.random.fold_in(for_pulses, i), 0.0)
        return state, device.read(state, None, 0.0)

    state = device.init((CELLS,), for_cells, 0.0)
    g = jax.jit(lambda s: jax.lax.scan(one, s, jnp.arange(len(signs)))[1])(state)
    shape = (2 * PULSES, CELLS)
    pulses = np.broadcast_to(np.asarray(signs, float)[:, None], shape)
    fresh = np.arange(2 * PULSES)[:, None] == np.zeros(CELLS)
    return Traces(
        "traces", "1", tuple(map(str, range(CELLS))), pulses, np.asarray(g, float), fresh, 0
    )


def regression(measured):
    """Steps and bounds by least squares of the change on the read before; all cells together."""
    before, moved = measured.g[:-1], np.diff(measured.g, axis=0)
    found = []
    for sign in (1, -1):
        own = measured.pulses[1:] == sign
        slope, intercept = np.polyfit(before[own], moved[own], 1)
        found.append((sign * intercept, -intercept / slope))
    (up, high), (down, low) = found
    return {"up": up, "down": down, "high": high, "low": low}


def recover(kind, read, seed):
    """One fit: estimates, errors, z-scores of what is not 0, and the regression."""
    measured, true = traces(kind, read, seed), truth(kind, read)
    begin = time.perf_counter()
    found = fit(measured.over(0.0))
    row = {"kind": kind, "read_noise": read, "seed": seed, "converged": found.converged}
    row["seconds"] = round(time.perf_counter() - begin, 2)
    row["values"], row["errors"] = found.values._asdict(), found.errors._asdict()
    row["z"] = {
        name: (row["values"][name] - t) / row["errors"][name]
        for name, t in true._asdict().items()
        if t != 0
    }
    return row | {"regression": regression(measured)}


def command(seed):
    """Wall and CPU seconds of the command on one CSV file, imports and compiling included."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "traces.csv"
        rows = list(as_rows(traces("alike", 0.112, seed)))
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        program = "import sys; from spikebit.simulator.cli import main; sys.exit(main())"
        call = [sys.executable, "-c", program, "devices", "fit", str(path), "--json"]
        before, begin = os.times(), time.perf_counter()
        done = subprocess.run(call, cwd=folder, check=True, capture_output=True, text=True)
        wall, after = time.perf_counter() - begin, os.times()
    cpu = sum(after[2:4]) - sum(before[2:4])
    return {"wall": wall, "cpu": cpu, "fit": json.loads(done.stdout)["fit_seconds"]}


def report(rows, times, load):
    """The section of RESULTS.md."""
    here = machine()
    lines = []
    for kind in SPREADS:
        for read in READ_NOISE:
            own = [r for r in rows if (r["kind"], r["read_noise"]) == (kind, read)]
            for name in SHOWN:
                zs = [r["z"][name] for r in own if name in r["z"]]
                by_lines = [r["regression"][name] for r in own if name in r["regression"]]
                lines.append(
                    [
                        f"{kind}, {read:g}",
                        name,
                        f"{getattr(truth(kind, read), name):g}",
                        f"{np.mean([r['values'][name] for r in own]):.4g}",
                        f"{np.mean([r['errors'][name] for r in own]):.2g}",
                        " ".join(f"{z:.1f}" for z in zs),
                        f"{np.mean(by_lines):.4g}" if by_lines else "",
                    ]
                )
    walls = ", ".join(f"{t['wall']:.1f}" for t in times)
    cpus = ", ".join(f"{t['cpu']:.1f}" for t in times)
    beyond = {
        kind: [abs(z) > 3 for r in rows if r["kind"] == kind for z in r["z"].values()]
        for kind in SPREADS
    }
    within = "; ".join(f"{kind}: {sum(b)} of {len(b)}" for kind, b in beyond.items())
    seeds = len({r["seed"] for r in rows})
    header = [
        "cells, read noise",
        "parameter",
        "true",
        "mean",
        "error",
        "z of the seeds",
        "regression",
    ]
    return "\n\n".join(
        [
            "## Fits of pulse traces",
            f"{here['date']}, {here['cpu']}, {here['cores']} cores, Python {here['python']}, jax "
            f"{jax.__version__}, load before the run {load:.1f}. "
            f"`python benchmarks/devices_fit.py {' '.join(sys.argv[1:])}`",
            f"{CELLS} cells, {PULSES} pulses up and {PULSES} down, a read after each; "
            f"{seeds} seeds. Cells are alike, or spread as in `reram_sb` (the model of the fit "
            "does not know that "
            "they stop at their bounds). z is estimate minus truth over its standard error, where "
            f"the truth is not 0; beyond 3 are, {within}. `spikebit devices fit` of the cells that "
            f"are alike, at 0.112: wall {walls} s, CPU {cpus} s.",
            table(header, lines),
        ]
    )


def main():
    """Runs it; 2 for a file that cannot be written."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=5, help="of traces (5)")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    parser.add_argument("--write", type=Path, metavar="FILE", help="replace the section in FILE")
    args = parser.parse_args()
    if not writable(args.write, SECTION):  # before minutes of fits
        return 2
    load = os.getloadavg()[0]
    times = [command(seed) for seed in range(min(3, args.seeds))]
    rows = []
    for kind in SPREADS:
        for read in READ_NOISE:
            for seed in range(args.seeds):
                rows.append(recover(kind, read, seed))
                print(kind, read, seed, rows[-1]["seconds"], file=sys.stderr, flush=True)
    body = report(rows, times, load)
    if args.json:
        for row in [*rows, *times]:
            print(json.dumps(row))
    else:
        print(body)
    if args.write:
        write_section(args.write, SECTION, body)
    return 0


if __name__ == "__main__":
    sys.exit(main())
