"""Times one training step, forward and backward, of spikebit and of its peers side by side.

What belongs here: the command line and the rounds. What is computed stands in `peers/workload.py`,
how each library computes it in `peers/*_side.py`, how one step is timed in `peers/worker.py`, and
the statistics and tables in `peers/results.py`.

    python benchmarks/snn_training.py --write benchmarks/RESULTS.md
"""

import argparse
import contextlib
import datetime
import json
import os
import platform
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from peers.process import Process
from peers.results import (
    Row,
    as_json,
    detail_table,
    name_of,
    ratio,
    summary_table,
    writable,
    write_section,
)

HERE = Path(__file__).resolve().parent
SECTION = "snn_training"
COMPILED = "torch.compile"
LIBRARIES = {  # the ways to run the same network; a library's fastest counts
    "spikebit": ("bptt",),
    "snntorch": ("eager", COMPILED),
    "spikingjelly": ("eager", COMPILED),
    "norse": ("eager", COMPILED),
    "spyx": ("run(Sequential)", "run per layer"),
}
NETWORKS = {
    "a": "(a) 784-512-512-10 feed-forward LIF, batch 64, 100 steps, 5 % input rate",
    "b": "(b) 700-256-20 recurrent LIF, batch 64, 250 steps, 5 % input rate",
}
KEEP_MEMORY = {  # glibc's malloc: one arena that never gives memory back
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(1 << 40),
}
SET_UP_SECONDS = 1800  # torch.compile on a busy machine
ROUND_SECONDS = 300


class Worker(Process):
    """A process that holds one library with one network."""

    def __init__(self, row: Row, env: dict[str, str]):
        self.row = row
        command = [row.library, row.network, row.variant, str(row.cores)]
        super().__init__([sys.executable, str(HERE / "peers" / "worker.py"), *command], env)

    def measure(self) -> dict[str, Any]:
        """Asks for one sample."""
        return self.ask("", ROUND_SECONDS)


def run_network(plan: Sequence[Row], repeats: int, env: dict[str, str], say: Any) -> list[Row]:
    """Sets all workers of one network up, then times them in turns: `repeats` rounds of all.

    Each round starts with another worker, so that no worker always follows the same one.
    """
    rows, workers = [], []
    try:
        for row in plan:
            worker = Worker(row, env)
            workers.append(worker)
            row = row._replace(facts=worker.answer(SET_UP_SECONDS))
            worker.row = row
            rows.append(row)
            found = row.facts.get("error") or f"ready in {row.facts['set_up_seconds']:.0f} s"
            say(f"{row.network}: {name_of(row)}: {found}")
            if "error" in row.facts:
                worker.stop()
                workers.remove(worker)
        for number in range(repeats):
            say(f"round {number + 1} of {repeats}")
            start = number % max(1, len(workers))
            for worker in workers[start:] + workers[:start]:
                sample = worker.measure()
                if "error" in sample:
                    worker.row.facts["error"] = sample["error"]
                    worker.stop()
                    workers.remove(worker)
                    continue
                worker.row.wall.append(sample["wall"])
                worker.row.cpu.append(sample["cpu"])
    finally:
        for worker in workers:
            worker.stop()
    return rows


def machine() -> dict[str, Any]:
    """What the times depend on."""
    model = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                model = line.partition(":")[2].strip()
                break
    return {
        "date": str(datetime.date.today()),
        "cpu": model,
        "cores": cores(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
    }


def cores() -> int:
    """The cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def versions(rows: Sequence[Row]) -> dict[str, str]:
    """The version of every package that took part."""
    found: dict[str, str] = {}
    for row in rows:
        found |= row.facts.get("versions", {})
    return dict(sorted(found.items()))


def report(results: dict[str, list[Row]], repeats: int, env: dict[str, str]) -> str:
    """The section of RESULTS.md."""
    rows = [row for found in results.values() for row in found]
    here, used = machine(), versions(rows)
    command = shlex.join(["python", "benchmarks/snn_training.py", *sys.argv[1:]])
    parts = [
        "## One training step against other libraries",
        f"{here['date']}, {here['cpu']}, {here['cores']} cores, {here['system']}, "
        f"Python {here['python']}. "
        + ", ".join(f"{name} {version}" for name, version in used.items())
        + f". `{command}`",
        "One step is forward and backward over the whole sequence: the gradients of all weights, "
        "no optimizer, float32. Each library runs in a process of its own with the same weights, "
        f"input spikes and labels (`peers/workload.py`); {repeats} rounds, in each of which every "
        "process is timed once. Medians over the rounds; CPU time counts all threads. A library's "
        "fastest way of running counts, for each clock by itself; the ratio is its time over "
        "spikebit's."
        + (" glibc's malloc was told to keep freed memory, in every process." if env else ""),
        "Equal losses and gradient norms say that the libraries computed the same. Two cannot: "
        "Spyx resets by subtraction, differentiates through the reset and shows a spike one step "
        "late; snnTorch's recurrent layer resets by subtraction.",
    ]
    for network, found in results.items():
        parts += [f"### {NETWORKS[network]}", summary_table(found), detail_table(found)]
    return "\n\n".join(parts)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", choices=list(NETWORKS), help="time one of the networks")
    parser.add_argument(
        "--libraries", nargs="+", choices=list(LIBRARIES), default=list(LIBRARIES), metavar="NAME"
    )
    parser.add_argument("--repeats", type=int, default=9, help="rounds (default 9)")
    parser.add_argument(
        "--quick", action="store_true", help=f"no {COMPILED}, no runs on one core: minutes less"
    )
    parser.add_argument(
        "--keep-memory",
        action="store_true",
        help="tell glibc's malloc in every worker to keep freed memory",
    )
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    parser.add_argument("--write", type=Path, metavar="FILE", help="replace the section in FILE")
    args = parser.parse_args(argv)
    if args.repeats < 1:
        parser.error(f"--repeats {args.repeats}: give at least 1.")
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmark; 1 if an installed library failed or its gradients, 2 for bad input."""
    args = parse(argv)
    if not writable(args.write, SECTION):  # before minutes of timing
        return 2
    env = KEEP_MEMORY if args.keep_memory else {}
    counts = [cores()] if args.quick or cores() == 1 else [cores(), 1]
    results = {}
    for network in [args.only] if args.only else NETWORKS:
        plan = [
            Row(network, library, variant, count, [], [], {})
            for library in args.libraries
            for variant in LIBRARIES[library]
            if not (args.quick and variant == COMPILED)
            for count in counts
        ]
        results[network] = run_network(
            plan, args.repeats, env, lambda line: print(line, file=sys.stderr, flush=True)
        )
    body = report(results, args.repeats, env)
    rows = [row for found in results.values() for row in found]
    if args.json:
        print(json.dumps({**machine(), "versions": versions(rows), "keep_memory": bool(env)}))
        for row in rows:
            print(json.dumps(as_json(row)))
        for network, found in results.items():
            for library in args.libraries:
                ratios = {f"{c}_ratio": ratio(found, library, c) for c in ("wall", "cpu")}
                print(json.dumps({"network": network, "library": library, **ratios}))
    else:
        print(body)
    if args.write:
        write_section(args.write, SECTION, body)
    wrong = [row.facts.get("error") or row.facts["problem"] or "" for row in rows]
    return int(any(text and not text.startswith("not installed") for text in wrong))


if __name__ == "__main__":
    sys.exit(main())
