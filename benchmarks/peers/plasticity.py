"""STDP and fatiguing STDP beside Brian2, round by round.

What belongs here: the processes of Brian2 and the table; its model stands in `plastic_brian2.py`,
the problem in `../plastic_synapses.py`.
"""

import importlib.util
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import plastic_synapses

from .results import table

HERE = Path(__file__).resolve().parent
BRIAN2 = {"numpy": 10.0, "cpp": 1.0}  # code generation, and how many times faster we want to be
RATE = 10.0  # of each input [Hz]


class Brian2:
    """A process that holds one problem, made for one target of code generation."""

    def __init__(self, file: Path, target: str):
        self.errors = tempfile.TemporaryFile("w+")
        self.process = subprocess.Popen(
            [sys.executable, str(HERE / "plastic_brian2.py"), str(file), target, str(file.parent)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
        )
        self.facts = self.answer()

    def answer(self) -> dict[str, Any]:
        """The next line of the process."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if line:
            return json.loads(line)
        self.errors.seek(0)
        last = (self.errors.read().strip() or "no message").splitlines()[-1]
        raise RuntimeError(f"Brian2 ended with code {self.process.wait()}: {last}")

    def run(self) -> dict[str, Any]:
        """One run from the start."""
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return self.answer()

    def stop(self) -> None:
        """Ends the process."""
        self.process.communicate()
        self.errors.close()


def against_brian2(sizes: Any) -> str:
    """Runs pair STDP and fatiguing STDP of as many synapses as `plastic_synapses` has."""
    title = (
        f"### {plastic_synapses.INPUTS:,} synapses, {sizes.seconds:,.0f} s of biological time, "
        "steps of 1 ms"
    )
    if importlib.util.find_spec("brian2") is None:
        return f"{title}\n\nBrian2 is not installed."
    lines, version = [], ""
    for name, use in (("pair STDP", 0.0), ("fatiguing STDP", 0.5)):
        problem = plastic_synapses.Problem(plastic_synapses.INPUTS, 1, RATE, sizes.seconds, use)
        found, version = _compared(problem, sizes.plastic_rounds)
        lines += [[name, *line] for line in found]
    header = [
        "rule", "run by", "wall [s]", "/ spikebit", "CPU [s]", "/ spikebit", "target",
        "compile [s]", "output spikes", "weights differ by",
    ]  # fmt: skip
    return "\n\n".join(
        [
            title,
            f"Inputs of {RATE:.0f} Hz, the same spikes in all, onto one LIF neuron. Brian2 "
            f"{version} with event-driven traces, in processes of their own, {sizes.plastic_rounds}"
            " rounds, `numpy` once; `cpp` is its C++ standalone mode, its wall time that of the "
            "simulation loop alone. Brian2 computes in float64, spikebit in float32. The "
            "ratio is their time over spikebit's in float32.",
            table(header, lines),
        ]
    )


def _compared(problem: plastic_synapses.Problem, rounds: int) -> tuple[list[list[str]], str]:
    events = problem.events()
    count = int(events.first[-1])
    steps = np.repeat(np.arange(len(events.first) - 1), np.diff(events.first))
    samples: dict[str, list[dict]] = {name: [] for name in ("spikebit", *BRIAN2)}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "problem.npz"
        numbers = {**problem._asdict(), "threshold": problem.threshold}
        np.savez(file, source=events.inputs[:count], step=steps, **numbers)
        workers = {}
        try:
            for target in BRIAN2:
                workers[target] = Brian2(file, target)
            start = time.perf_counter()
            run = problem.compiled(events)
            compiled = {"spikebit": time.perf_counter() - start}
            compiled |= {name: w.facts["set_up"] for name, w in workers.items()}
            for number in range(rounds):
                wall, cpu = time.perf_counter(), time.process_time()
                state, fired = run()
                cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
                samples["spikebit"].append(
                    {"wall": wall, "cpu": cpu, "spikes": int(np.asarray(fired).sum())}
                )
                for target, worker in workers.items():
                    if target == "numpy" and number:  # minutes, and far from the others
                        continue
                    samples[target].append(worker.run())
            version = workers["numpy"].facts["version"]
            ours = np.asarray(state.weights)
            apart = {t: np.abs(np.load(f"{folder}/{t}.npy") - ours.ravel()).max() for t in workers}
        finally:
            for worker in workers.values():
                worker.stop()
    lines = []
    for name, found in samples.items():
        line = [name if name == "spikebit" else f"Brian2, {name}"]
        for clock in ("wall", "cpu"):
            mine = statistics.median(s[clock] for s in samples["spikebit"])
            median = statistics.median(s[clock] for s in found)
            line += [f"{median:.3f}", f"{median / mine:.1f}"]
        line += [f"{BRIAN2[name]:.0f}" if name in BRIAN2 else "", f"{compiled[name]:.1f}"]
        line += [str(found[-1]["spikes"]), f"{apart[name]:.1e}" if name in apart else ""]
        lines.append(line)
    return lines, version
