"""Long sequences: time and memory against their length, and a stream that does not end.

What belongs here: what is run for how long, and the memory of this process.
"""

import contextlib
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from spikebit.learning_rules import LearningRule, bptt, ostl
from spikebit.simulator.studies.memory_and_time import resident_bytes

from . import gradients
from .results import table
from .rounds import in_turns

CHUNK = 50
STREAM_STEPS, WARM_STEPS = 100_000, 5_000


def length(sizes: Any) -> str:
    """Time and planned scratch against T, BPTT and OSTL without H in its trace."""
    n = sizes.stream[0]
    cell = gradients.snu(n, recurrent=True)
    ways = {
        "BPTT, spikebit": gradients.of_rule(bptt(cell, gradients.loss), None),
        f"OSTL, no_h, K = {CHUNK}": gradients.of_rule(
            ostl(cell, gradients.loss, scope="no_h"), CHUNK
        ),
    }
    lines, planned = {name: [name] for name in ways}, {}
    for steps in sizes.lengths:
        task = gradients.task(cell, steps, 1, n, n)
        programs = gradients.compiled(ways, task)
        times = in_turns(gradients.runs(programs, task), min(3, sizes.rounds))
        for name, program in programs.items():
            planned[name, steps] = gradients.scratch(program)
            cpu = 1e6 * times[name].median("cpu") / steps
            wall = 1e6 * times[name].median("wall") / steps
            lines[name].append(f"{wall:.1f}, {cpu:.1f}; {planned[name, steps] / 2**20:.1f}")
    header = ["wall, CPU [us a step]; scratch [MiB]", *(f"T = {t:,}" for t in sizes.lengths)]
    (first, *_, last), name = sizes.lengths, next(iter(ways))
    grows = (planned[name, last] - planned[name, first]) / (last - first)
    said = f"BPTT plans {grows:,.0f} bytes for a step more"
    memory = _physical_memory()
    if memory is not None:
        said += f": scratch alone fills the {memory / 2**30:.0f} GiB of this machine at T = "
        said += f"{memory / grows:,.0f}"
    return "\n\n".join(
        [
            f"### Length of the sequence, recurrent SNU, n = {n}, batch 1",
            table(header, list(lines.values())),
            f"{said}. Inputs and targets are {8 * n:,} bytes a step in both.",
        ]
    )


def stream(sizes: Any) -> str:
    """Memory of this process during 100,000 steps whose inputs are made on the way."""
    without, with_h = sizes.stream
    lines = []
    for n, settings in ((without, {"scope": "no_h"}), (without, {"scope": "unit"}), (with_h, {})):
        cell = gradients.snu(n, recurrent=True)
        rule = ostl(cell, gradients.loss, **settings)
        lines.append([f"{settings.get('scope', 'full')}, n = {n}", *_streamed(rule, cell, n)])
    header = [
        "scope", "state [MiB]", "RSS after start [MiB]", "at the end", "wall [us a step]", "CPU",
    ]  # fmt: skip
    return "\n\n".join(
        [
            f"### One stream of {STREAM_STEPS:,} steps, recurrent SNU, batch 1, K = {CHUNK}",
            f"Inputs and targets of each chunk are drawn within the step. Start: {WARM_STEPS:,} "
            "steps. RSS is what the process has in memory, all of JAX included.",
            table(header, lines),
        ]
    )


def _streamed(rule: LearningRule, cell: Any, n: int) -> list[str]:
    task = gradients.task(cell, CHUNK, 1, n, n)

    @jax.jit
    def step(state: Any, total: Any, number: jax.Array) -> tuple[Any, Any]:
        inputs, wanted = jax.random.split(jax.random.fold_in(jax.random.key(0), number))
        xs = jax.random.bernoulli(inputs, gradients.RATE, task.xs.shape).astype(jnp.float32)
        state, out = rule.step(task.params, state, xs, jax.random.uniform(wanted, xs.shape))
        return state, jax.tree.map(jnp.add, total, out.grads)

    state = rule.init(task.params, task.xs)
    size = sum(a.nbytes for a in jax.tree.leaves(state))
    total = jax.tree.map(jnp.zeros_like, task.params)
    start, wall, cpu = None, 0.0, 0.0
    for number in range(STREAM_STEPS // CHUNK):
        if number == WARM_STEPS // CHUNK:
            start = resident_bytes()
            wall, cpu = time.perf_counter(), time.process_time()
        state, total = jax.block_until_ready(step(state, total, jnp.asarray(number)))
    timed = STREAM_STEPS - WARM_STEPS
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    end = resident_bytes()
    found = [
        f"{size / 2**20:.2f}",
        *("" if m is None else f"{m / 2**20:.1f}" for m in (start, end)),
    ]
    return [*found, f"{1e6 * wall / timed:.1f}", f"{1e6 * cpu / timed:.1f}"]


def _physical_memory() -> int | None:
    with contextlib.suppress(OSError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemTotal:"):
                return 1024 * int(line.split()[1])
    return None
