"""Times low-bit products with cold weights beside torch, ONNX Runtime and XLA, on one thread.

What belongs here: the command line, the rounds, and the section of RESULTS.md. How each library
multiplies stands in `peers/low_bit_products.py`. All are in one process that is held to one core,
and are asked in turns; each call multiplies with weights that no call has touched for longer than
caches remember. Libraries that are not installed are left out, by name.

    python benchmarks/kernels.py --write benchmarks/RESULTS.md
"""

import argparse
import importlib.metadata
import json
import os
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1", JAX_PLATFORMS="cpu")

from peers.low_bit_products import OURS, SIDE, THEIRS
from peers.results import spread, table, writable, write_section
from snn_training import machine

SECTION = "kernels"
CALLS = {1: 12, 16: 6, 512: 1}  # by rows: calls a round
TARGETS = {  # times the fastest of these that is installed, by rows
    "W4A8": {"torch f32": (5.5, 6.5, 3.7), "ONNX Runtime 4-bit": (1.1, 1.4, None)},
    "W8A8": {"torch f32": (4, 7, 4.3)},
    "W4 table": {"torch f32": (4, 2.4, 1.05)},
}
for name in ("W4A8", "W8A8"):
    TARGETS[name]["torch int8"] = (None, None, 1.0)


class Row(NamedTuple):
    """One way of multiplying that many rows."""

    way: str
    rows: int
    cpu: list[float]  # [s] a call, one number a round
    error: str = ""


def last_level_cache() -> int:
    """The size of the last cache before the memory [bytes]; where it is not known, 64 MiB."""
    sizes = [1 << 26]
    for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        text = path.read_text().strip()
        sizes.append(int(text[:-1]) << {"K": 10, "M": 20}[text[-1]])
    return max(sizes)


def measure(
    ways: Sequence[str], counts: Sequence[int], rounds: int, say: Callable[[str], None]
) -> list[Row]:
    """Makes the ways, then times them in turns; each round starts with another."""
    working_set = last_level_cache() * 5 // 4
    calls, rows = {}, []
    for way in ways:
        say(way)
        try:
            calls[way] = (OURS | THEIRS)[way](working_set)
        except ImportError as error:
            rows.append(Row(way, 0, [], f"not installed ({error})"))
    for count in counts:
        say(f"{count} rows")
        timed = {way: Row(way, count, []) for way in calls}
        for way, row in timed.items():
            try:
                calls[way](count, 0)  # compiles
            except Exception as error:  # of any library
                timed[way] = row._replace(error=f"{type(error).__name__}: {error}")
        number, good = 1, [way for way in timed if not timed[way].error]
        for turn in range(rounds):
            start = turn % max(1, len(good))
            for way in good[start:] + good[:start]:
                begin = time.process_time()
                for i in range(CALLS[count]):
                    calls[way](count, number + i)
                timed[way].cpu.append((time.process_time() - begin) / CALLS[count])
            number += CALLS[count]
        rows += timed.values()
    return rows


def samples(rows: Sequence[Row], way: str, count: int) -> list[float]:
    """The times of a way, none where it was not measured."""
    return next((r.cpu for r in rows if (r.way, r.rows) == (way, count)), [])


def ratios(rows: Sequence[Row], ours: str, theirs: str, count: int) -> list[float]:
    """How many times longer theirs takes, within each round."""
    pairs = zip(samples(rows, theirs, count), samples(rows, ours, count), strict=False)
    return [b / a for b, a in pairs]


def ratio_table(rows: Sequence[Row]) -> str:
    """A line for each of our ways and number of rows: ratios to all others, with targets."""
    counts = list(dict.fromkeys(row.rows for row in rows if row.rows))
    theirs = [way for way in THEIRS if any(row.way == way and row.cpu for row in rows)]
    lines = []
    for count in counts:
        for ours in OURS:
            if not samples(rows, ours, count):
                continue
            line = [f"{ours}, M = {count}"]
            for other in theirs:
                found = ratios(rows, ours, other, count)
                target = TARGETS.get(ours, {}).get(other, (None,) * 3)[list(CALLS).index(count)]
                text = f"{statistics.median(found):.2f}" if found else ""
                line.append(text if target is None else f"{text} (aim {target})")
            lines.append(line)
    return table(["times faster than", *theirs], lines)


def time_table(rows: Sequence[Row]) -> str:
    """A line for each way: CPU time of a call, median and quartiles."""
    counts = list(dict.fromkeys(row.rows for row in rows if row.rows))
    lines = []
    for way in dict.fromkeys(row.way for row in rows):
        line = [way]
        for count in counts:
            times = samples(rows, way, count)
            errors = [r.error for r in rows if r.way == way and r.rows in (0, count) and r.error]
            if times:
                low, median, high = (1e3 * t for t in spread(times))
                line.append(f"{median:.2f} ({low:.2f} to {high:.2f})")
            else:
                line.append(errors[0].split(" (")[0] if errors else "")
        lines.append(line)
    return table(["CPU time of a call [ms]", *(f"M = {count}" for count in counts)], lines)


def report(rows: Sequence[Row], rounds: int, load: float) -> str:
    """The section of RESULTS.md; `load` is that before the run."""
    here = machine()
    versions = []
    for package in ("spikebit", "jax", "jaxlib", "numba", "numpy", "torch", "onnxruntime"):
        try:
            versions.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    command = shlex.join(["python", "benchmarks/kernels.py", *sys.argv[1:]])
    return "\n\n".join(
        [
            "## Low-bit products with cold weights",
            f"{here['date']}, {here['cpu']}, {here['system']}, Python {here['python']}. "
            f"{', '.join(versions)}. Load before the run {load:.1f}. `{command}`",
            f"M rows of floats times {SIDE} x {SIDE} weights, one thread, CPU time, medians "
            f"(quartiles) of {rounds} rounds; all ways in one process, in turns, weights from "
            f"more copies than a cache of {last_level_cache() >> 20} MiB holds. W4A8 and W8A8 "
            "round x to int8 within the time (groups of 128 rows with a scale each, and one scale "
            "a column); W4 table multiplies exact floats from an uneven table of 16 numbers; "
            "torch int8 is `_int_mm` without rounding or scales, ONNX Runtime is `MatMulNBits` at "
            "accuracy level 4. Ratios are medians of those within a round.",
            ratio_table(rows),
            time_table(rows),
        ]
    )


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    names = [*OURS, *THEIRS]
    parser.add_argument("--only", nargs="+", choices=names, default=names, help="some of the ways")
    parser.add_argument("--rows", nargs="+", type=int, choices=list(CALLS), default=list(CALLS))
    parser.add_argument("--rounds", type=int, default=9, help="rounds (default 9)")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    parser.add_argument("--write", type=Path, metavar="FILE", help="replace the section in FILE")
    args = parser.parse_args(argv)
    if args.rounds < 1:
        parser.error(f"--rounds {args.rounds}: give at least 1.")
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmark; 1 if an installed library failed, 2 for bad input."""
    args = parse(argv)
    if not writable(args.write, SECTION):  # before minutes of timing
        return 2
    if hasattr(os, "sched_setaffinity"):  # before any library has counted the cores
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    load = os.getloadavg()[0]
    rows = measure(
        args.only, args.rows, args.rounds, lambda line: print(line, file=sys.stderr, flush=True)
    )
    if args.json:
        print(json.dumps(machine()))
        for row in rows:
            print(json.dumps(row._asdict()))
    else:
        print(ratio_table(rows), time_table(rows), sep="\n\n")
    if args.write:
        write_section(args.write, SECTION, report(rows, args.rounds, load))
    return int(any(row.error and not row.error.startswith("not installed") for row in rows))


if __name__ == "__main__":
    sys.exit(main())
