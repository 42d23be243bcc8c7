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

import jax
import jax.numpy as jnp
import numpy as np
import plastic_synapses

from .results import table

HERE = Path(__file__).resolve().parent
BRIAN2 = {"numpy": 10.0, "cpp": 1.0}  # code generation, and how many times faster we want to be
SHORT = 60.0  # [s] of biological time for "numpy", at most: it takes minutes for more
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
        for target in BRIAN2:
            seconds = min(sizes.seconds, SHORT) if target == "numpy" else sizes.seconds
            problem = plastic_synapses.Problem(plastic_synapses.INPUTS, 1, RATE, seconds, use)
            found, version = _compared(problem, target, sizes.plastic_rounds)
            lines += [[name, f"{seconds:.0f}", *line] for line in found]
    header = [
        "rule", "time [s]", "run by", "wall [s]", "/ spikebit", "CPU [s]", "/ spikebit", "target",
        "compile [s]", "output spikes", "weights differ",
    ]  # fmt: skip
    return "\n\n".join(
        [
            title,
            f"Inputs of {RATE:.0f} Hz, the same spikes in both, onto one LIF neuron. Brian2 "
            f"{version} with event-driven traces, in processes of their own; medians of "
            f"{sizes.plastic_rounds} rounds, in turn. `cpp` is its C++ standalone mode, its wall "
            "time that of the simulation loop alone; `numpy` gets less biological time, and "
            "spikebit beside it the same. Brian2 computes in float64, spikebit in float32. In "
            "brackets are spikebit's spikes in float64, with which weights are compared: in "
            "float32 a spike that rounding moves changes all that follow.",
            table(header, lines),
        ]
    )


def _compared(
    problem: plastic_synapses.Problem, target: str, rounds: int
) -> tuple[list[list[str]], str]:
    """Two lines of the table, spikebit and Brian2 on one problem, and Brian2's version."""
    events = problem.events()
    count = int(events.first[-1])
    steps = np.repeat(np.arange(len(events.first) - 1), np.diff(events.first))
    ours, theirs = [], []
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "problem.npz"
        numbers = {**problem._asdict(), "threshold": problem.threshold}
        np.savez(file, source=events.inputs[:count], step=steps, **numbers)
        worker = Brian2(file, target)
        try:
            start = time.perf_counter()
            run = problem.compiled(events)
            run()
            compiled = time.perf_counter() - start
            for _ in range(rounds):
                wall, cpu = time.perf_counter(), time.process_time()
                fired = run()[1]
                cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
                ours.append({"wall": wall, "cpu": cpu, "spikes": int(np.asarray(fired).sum())})
                theirs.append(worker.run())
            weights = np.load(f"{folder}/{target}.npy")
            with jax.enable_x64(True):
                exact, same = problem.compiled(events, jnp.float64)()
        finally:
            worker.stop()
    apart = np.abs(weights - np.asarray(exact.weights).ravel()).max()
    lines = []
    for name, samples in (("spikebit", ours), (f"Brian2, {target}", theirs)):
        line = [name]
        for clock in ("wall", "cpu"):
            median = statistics.median(s[clock] for s in samples)
            line += [f"{median:.3f}", f"{median / statistics.median(s[clock] for s in ours):.1f}"]
        lines.append(line)
    lines[0] += ["", f"{compiled:.1f}", str(ours[-1]["spikes"]), ""]
    lines[1] += [f"{BRIAN2[target]:.0f}", f"{worker.facts['set_up']:.1f}"]
    lines[1] += [f"{theirs[-1]['spikes']} ({int(np.asarray(same).sum())})", f"{apart:.1e}"]
    return lines, worker.facts["version"]
