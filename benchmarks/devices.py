"""Times memristive tiles and pulse trains beside aihwkit's C++ tile, on one thread.

What belongs here: the command line, the rounds, and the section of RESULTS.md. The cases stand in
`peers/devices_workload.py`, how each library does them in `peers/devices_spikebit.py` and
`peers/devices_aihwkit.py`, the clock in `peers/devices_worker.py`.

    python benchmarks/devices.py --write benchmarks/RESULTS.md
"""

import argparse
import json
import os
import shlex
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from peers.devices_workload import CASES, SCALES, Sizes
from peers.process import Process
from peers.results import spread, table, writable, write_section
from snn_training import machine

HERE = Path(__file__).resolve().parent
SECTION = "devices"
ONE_THREAD = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "JAX_PLATFORMS": "cpu",
    "CUDA_VISIBLE_DEVICES": "",
}
SET_UP_SECONDS = 900
ROUND_SECONDS = 300


class Row(NamedTuple):
    """One library with one case."""

    library: str
    case: str
    variant: str
    cpu: list[float]  # [s] a call, one number a round
    wall: list[float]
    facts: dict[str, Any]  # what the process said when it was ready, or {"error": ...}


def plan(cases: Sequence[str], libraries: Sequence[str]) -> list[Row]:
    """The rows of some cases; aihwkit draws trains in two ways, of which the fastest counts."""
    variants = {"spikebit": ("jit",), "aihwkit": ("compressed", "bits")}
    return [
        Row(library, case, variant, [], [], {})
        for case in cases
        for library in libraries
        for variant in variants[library][: None if case.split("_")[0] in SCALES else 1]
    ]


def run_case(
    rows: Sequence[Row], rounds: int, pythons: dict[str, str], say: Callable[[str], None]
) -> list[Row]:
    """Sets up the processes of a case, then times them in turns; each round starts with another."""
    found: list[Row] = []
    running: list[tuple[Row, Process]] = []
    try:
        for row in rows:
            script = str(HERE / "peers" / "devices_worker.py")
            command = [pythons[row.library], script, row.library, row.case, row.variant]
            try:
                process = Process(command, ONE_THREAD)
            except OSError as error:
                found.append(row._replace(facts={"error": f"not installed ({error})"}))
                continue
            row = row._replace(facts=process.answer(SET_UP_SECONDS))
            found.append(row)
            if "error" in row.facts:
                say(f"{row.case}: {row.library}: {row.facts['error']}")
                process.stop()
                continue
            running.append((row, process))
        for number in range(rounds):
            start = number % max(1, len(running))
            for row, process in running[start:] + running[:start]:
                sample = process.ask("", ROUND_SECONDS)
                if "error" in sample:
                    row.facts["error"] = sample["error"]
                    continue
                row.cpu.append(sample["cpu"])
                row.wall.append(sample["wall"])
    finally:
        for _, process in running:
            process.stop()
    return found


def fastest(rows: Sequence[Row], library: str, case: str) -> Row | None:
    """The row with the smallest median of CPU time that was measured to the end."""
    good = [
        row
        for row in rows
        if (row.library, row.case) == (library, case) and "error" not in row.facts and row.cpu
    ]
    return min(good, key=lambda row: statistics.median(row.cpu), default=None)


def ratio(rows: Sequence[Row], case: str) -> tuple[float, float, float] | None:
    """How many times longer aihwkit takes, of CPU time: quartile, median and quartile of rounds."""
    ours, theirs = fastest(rows, "spikebit", case), fastest(rows, "aihwkit", case)
    if ours is None or theirs is None:
        return None
    return spread([b / a for a, b in zip(ours.cpu, theirs.cpu, strict=False)])


def results_table(rows: Sequence[Row]) -> str:
    """One line a case."""
    lines = []
    for case in dict.fromkeys(row.case for row in rows):
        line = [CASES[case].text]
        for library in ("spikebit", "aihwkit"):
            best = fastest(rows, library, case)
            mine = [row for row in rows if (row.library, row.case) == (library, case)]
            if best is None:
                reason = mine[0].facts.get("error", "not measured") if mine else "not asked"
                line += [reason.split(" (")[0], ""]
                continue
            low, median, high = (1e3 * t for t in spread(best.cpu))
            shown = f"{best.facts['check']:.3g}"
            line += [f"{median:.2f} ({low:.2f} to {high:.2f})", f"{CASES[case].check} {shown}"]
        times, target = ratio(rows, case), CASES[case].target
        line.append("" if times is None else f"{times[1]:.2f} ({times[0]:.2f} to {times[2]:.2f})")
        line.append("" if target is None else f"{target:.3g}")
        lines.append(line)
    header = ["case", "spikebit [ms]", "check", "aihwkit [ms]", "check", "ratio", "target"]
    return table(header, lines)


def report(rows: Sequence[Row], rounds: int, load: float, other_python: str) -> str:
    """The section of RESULTS.md; `load` is that before the run, `other_python` runs aihwkit."""
    here, sizes = machine(), Sizes()
    used: dict[str, str] = {}
    for row in rows:
        for name, version in row.facts.get("versions", {}).items():
            used[f"{name} ({row.library})" if name == "numpy" else name] = version
    command = shlex.join(["python", "benchmarks/devices.py", *sys.argv[1:]])
    command = command.replace(shlex.quote(other_python), "aihwkit/bin/python")  # as in README.md
    return "\n\n".join(
        [
            "## Memristive tiles and pulse trains against aihwkit",
            f"{here['date']}, {here['cpu']}, {here['cores']} cores, {here['system']}, "
            f"Python {here['python']} (spikebit). "
            + ", ".join(f"{name} {version}" for name, version in sorted(used.items()))
            + f". Load before the run {load:.1f}. `{command}`",
            "CPU time of one call, median (quartiles), in processes of their own that are held to "
            f"one core and one thread and asked in turns, {rounds} rounds. The ratio is aihwkit's "
            "time over spikebit's within a round; aihwkit draws trains in two ways, and the faster "
            "counts. Seeds: 0 for weights and cells, 1 for inputs, 2 for those of trains.",
            f"Tiles: {sizes.tile} x {sizes.tile} Gaussian weights cut at 2.5 standard deviations, "
            f"{sizes.vectors} vectors, pairs of PCM cells, converters of 254 steps, scaling by the "
            "largest |x|, bounds managed by halving, output noise 0.04. Both add the noise of "
            "reads at the outputs: spikebit from the spread of each cell at that time, aihwkit "
            "with its preset for PCM. For products at one time drift is worked out before, once "
            "(`tile.aged`; aihwkit: `drift_analog_weights`, which also puts one read into the "
            "weights). For compensation aihwkit sends the identity through its tile, spikebit "
            "takes the mean |w| that such inputs show; programming is without that probe in "
            "aihwkit. Errors are relative to the numbers asked for, all of them together.",
            f"Trains: {sizes.cells} x {sizes.cells} cells with spreads of 0.3, {sizes.samples} "
            "samples of even numbers. The slope is that of the mean change of 20 updates from 0 "
            "on the step of gradient descent; the last two lines are what bounds the others.",
            results_table(rows),
        ]
    )


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", nargs="+", choices=list(CASES), help="some of the cases")
    parser.add_argument("--rounds", type=int, default=9, help="rounds (default 9)")
    parser.add_argument(
        "--aihwkit-python", default=sys.executable, metavar="FILE", help="the Python that has it"
    )
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
    pythons = {"spikebit": sys.executable, "aihwkit": args.aihwkit_python}
    load, rows = os.getloadavg()[0], []
    for case in args.only or CASES:
        print(case, file=sys.stderr, flush=True)
        rows += run_case(
            plan([case], list(pythons)),
            args.rounds,
            pythons,
            lambda line: print(line, file=sys.stderr, flush=True),
        )
    if args.json:
        print(json.dumps(machine()))
        for row in rows:
            print(json.dumps(row._asdict()))
        for case in dict.fromkeys(row.case for row in rows):
            print(json.dumps({"case": case, "ratio": ratio(rows, case)}))
    else:
        print(results_table(rows))
    if args.write:
        write_section(args.write, SECTION, report(rows, args.rounds, load, args.aihwkit_python))
    wrong = [row.facts.get("error", "") for row in rows]
    return int(any(text and not text.startswith("not installed") for text in wrong))


if __name__ == "__main__":
    sys.exit(main())
