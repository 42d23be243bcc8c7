"""Times online learning: OSTL against BPTT, braintrace's rules, and plasticity against Brian2.

What belongs here: the command line, what is run beside what, and the section of RESULTS.md. The
networks stand in `peers/gradients.py`, the long runs in `peers/long_runs.py`, plasticity in
`peers/plasticity.py`, braintrace in `peers/braintrace_rules.py`, the clock in `peers/rounds.py`.

    python benchmarks/online_learning.py --write benchmarks/RESULTS.md
"""

import argparse
import importlib.metadata
import importlib.util
import json
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from peers import gradients, long_runs, plasticity
from peers.results import table, writable, write_section
from peers.rounds import Times, in_turns
from snn_training import cores, machine

from spikebit.kernels import keep_memory
from spikebit.learning_rules import bptt, compare, eprop, ostl, ottt, sltt
from spikebit.learning_rules.rule import parameters
from spikebit.simulator.lif import LIFCell
from spikebit.simulator.network import Network

SECTION = "online_learning"
PACKAGES = ("spikebit", "jax", "jaxlib", "flax", "numpy", "numba", "braintrace", "brainstate")
FLAX_CELLS = {"rnn": nnx.SimpleCell, "gru": nnx.GRUCell, "lstm": nnx.LSTMCell}


class Sizes(NamedTuple):
    """How large everything is; `--quick` and the tests have smaller ones."""

    rounds: int = 7
    feedforward: tuple[int, int, int] = (256, 8, 2000)  # n, B, T
    memory: tuple[int, ...] = (200, 2000, 10_000)
    recurrent: tuple[int, ...] = (64, 128)
    recurrent_steps: int = 256
    recurrent_chunks: tuple[int, ...] = (1, 8, 32, 64, 128)
    chunks: tuple[int, ...] = (1, 20, 50, 100, 200)
    scopes: tuple[int, int, int] = (128, 8, 1000)
    lengths: tuple[int, ...] = (100, 1000, 10_000, 100_000)
    stream: tuple[int, int] = (256, 32)  # units without and with H in the trace
    cells: tuple[int, int] = (64, 256)  # n, T
    seconds: float = 600.0
    plastic_rounds: int = 5


QUICK = Sizes(
    rounds=3,
    chunks=(1, 50),
    recurrent=(64,),
    recurrent_chunks=(1, 64),
    lengths=(100, 1000, 10_000),
    cells=(16, 64),
    seconds=20.0,
    plastic_rounds=2,
)


def comparison(
    task: gradients.Task,
    opponents: dict[str, Callable[..., Any]],
    ours: dict[str, Callable[..., Any]],
    rounds: int,
) -> tuple[str, dict[str, Times]]:
    """A table of times, scratch and errors; ratios are to the fastest opponent on each clock."""
    programs = gradients.compiled({**opponents, **ours}, task)
    runs = gradients.runs(programs, task)
    exact = runs[next(iter(opponents))]()
    errors = {name: gradients.error(run(), exact) for name, run in runs.items()}
    times = in_turns(runs, rounds)
    steps = task.xs.shape[0]
    best = {c: min(times[name].median(c) for name in opponents) for c in ("wall", "cpu")}
    lines = [
        [
            name,
            *(
                text
                for clock in ("wall", "cpu")
                for text in (
                    f"{1e6 * t.median(clock) / steps:.1f}",
                    f"{t.median(clock) / best[clock]:.2f}",
                )
            ),
            f"{gradients.scratch(programs[name]) / 2**20:.2f}",
            f"{errors[name]:.1e}",
        ]
        for name, t in times.items()
    ]
    header = ["rule", "wall [us]", "/ BPTT", "CPU [us]", "/ BPTT", "scratch [MiB]", "error"]
    return table(header, lines), times


def feedforward(sizes: Sizes) -> str:
    n, batch, steps = sizes.feedforward
    cell = gradients.snu(n, recurrent=False)
    parts = [f"### Feed-forward SNU, n = {n}, batch {batch}, {steps} steps"]
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as other:
        plain = other.submit(_plain_malloc, sizes).result()
    opponents, ours = gradients.bptts(cell), gradients.chunked(cell, sizes.chunks)
    spikes = gradients.task(cell, steps, batch, n, n)
    normal = gradients.task(cell, steps, batch, n, n, rate=0)
    for text, task in (
        ("A tenth of the inputs spike", spikes),
        ("The inputs are normal numbers", normal),
    ):
        parts += [f"{text}:", comparison(task, opponents, ours, sizes.rounds)[0]]
    parts += ["A tenth of the inputs spike, in a process without `keep_memory()`:", plain]
    lengths = []
    for name, way in {**opponents, **ours}.items():
        row = [name]
        for length in sizes.memory:
            if length % (int(name.rpartition("= ")[2]) if "K = " in name else 1):
                row.append("")
                continue
            long = spikes._replace(
                xs=jax.ShapeDtypeStruct((length, *spikes.xs.shape[1:]), jnp.float32),
                targets=jax.ShapeDtypeStruct((length, *spikes.targets.shape[1:]), jnp.float32),
            )
            program = gradients.compiled({name: way}, long)[name]
            row.append(f"{gradients.scratch(program) / 2**20:.2f}")
        lengths.append(row)
    header = ["scratch as XLA plans it [MiB]", *(f"T = {length:,}" for length in sizes.memory)]
    return "\n\n".join([*parts, table(header, lengths)])


def _plain_malloc(sizes: Sizes) -> str:
    """The first table of `feedforward` where malloc is as it comes."""
    n, batch, steps = sizes.feedforward
    cell = gradients.snu(n, recurrent=False)
    task = gradients.task(cell, steps, batch, n, n)
    ours = gradients.chunked(cell, sizes.chunks)
    return comparison(task, gradients.bptts(cell), ours, sizes.rounds)[0]


def recurrent(sizes: Sizes) -> str:
    steps, parts = sizes.recurrent_steps, []
    for n in sizes.recurrent:
        cell = gradients.snu(n, recurrent=True)
        task = gradients.task(cell, steps, 1, n, n)
        ours = gradients.chunked(cell, sizes.recurrent_chunks)
        body, times = comparison(task, gradients.bptts(cell), ours, sizes.rounds)
        first = times[next(iter(ours))]
        gain = {c: first.median(c) / min(times[k].median(c) for k in ours) for c in ("wall", "cpu")}
        parts += [
            f"### Recurrent SNU with H, n = {n}, batch 1, {steps} steps",
            body,
            f"The best chunk is {gain['wall']:.1f} times faster than "
            f"K = {sizes.recurrent_chunks[0]} in wall time, {gain['cpu']:.1f} times in CPU time.",
        ]
    return "\n\n".join(parts)


def scopes(sizes: Sizes) -> str:
    n, batch, steps = sizes.scopes
    chunk, outputs, parts = 50, 10, ["### Approximate scopes, dense readout of 10, K = 50"]
    loss = gradients.loss
    for recurrent in (True, False):
        units = n if recurrent else sizes.feedforward[0]
        readout = nnx.Linear(units, outputs, rngs=nnx.Rngs(1))
        lif = LIFCell(
            units, units, recurrent=recurrent, tau=10e-3, detach_reset=True, rngs=nnx.Rngs(0)
        )
        lif.w[...] = gradients.snu(units, recurrent=False).w[...]
        if recurrent:  # with Glorot's weights its gradient grows beyond float32 in 1,000 steps
            lif.h[...] = lif.h[...] / 4
        for cell, kind in ((gradients.snu(units, recurrent=recurrent), "SNU"), (lif, "LIF")):
            network = Network([cell, readout])
            rules = (
                {
                    f"{name}, K = {chunk}": gradients.of_rule(rule, chunk)
                    for name, rule in (
                        ("OSTL, no_h", ostl(network, loss, scope="no_h")),
                        ("OSTL, unit", ostl(network, loss, scope="unit")),
                        ("SLTT", sltt(network, loss)),
                        ("e-prop", eprop(network, loss)),
                    )
                }
                if kind == "SNU"
                else {f"OTTT, K = {chunk}": gradients.of_rule(ottt(network, loss), chunk)}
            )
            task = gradients.task(network, steps, batch, units, outputs)
            opponent = {"BPTT, spikebit": gradients.of_rule(bptt(network, loss), None)}
            what = "recurrent" if recurrent else "feed-forward"
            parts += [f"{what} {kind}, n = {units}, batch {batch}, {steps} steps:"]
            parts += [comparison(task, opponent, rules, sizes.rounds)[0]]
    return "\n\n".join(parts)


def other_cells(sizes: Sizes) -> str:
    """Flax's cells by our rules, braintrace's by its own, each against BPTT of the same cell."""
    n, steps = sizes.cells
    task = gradients.task(None, steps, 1, n, n, rate=0)
    parts = [
        f"### RNN, GRU and LSTM, n = {n}, one sample, {steps} steps, against braintrace",
        "Flax's cells by spikebit's rules, braintrace's own cells by its rules: the same kind of "
        "layer and the same inputs, each compared with BPTT of the same library through the same "
        "cell. Error and cosine of the leaf that is worst; a leaf without any gradient has no "
        "cosine.",
    ]
    if importlib.util.find_spec("braintrace") is None:
        return "\n\n".join([*parts, "braintrace is not installed."])
    from peers import braintrace_rules

    for kind, cell in FLAX_CELLS.items():
        network = cell(n, n, rngs=nnx.Rngs(0))
        chunk = min(64, steps)
        ours = {
            "spikebit, BPTT": gradients.of_rule(bptt(network, gradients.loss), None),
            **{
                f"spikebit, OSTL, K = {k}": gradients.of_rule(ostl(network, gradients.loss), k)
                for k in (1, chunk, steps)
            },
        }
        no_h = ostl(network, gradients.loss, scope="no_h")
        ours[f"spikebit, OSTL, no_h, K = {chunk}"] = gradients.of_rule(no_h, chunk)
        mine = task._replace(params=parameters(network))
        theirs = braintrace_rules.ways(kind, n, task.xs[:, 0], task.targets[:, 0])
        runs = gradients.runs(gradients.compiled(ours, mine), mine)
        runs |= {f"braintrace, {name}": run for name, run in theirs.items()}
        got = {name: run() for name, run in runs.items()}
        times = in_turns(runs, sizes.rounds)
        lines = []
        for name, t in times.items():
            exact = got[f"{name.partition(',')[0]}, BPTT"]
            leaves = compare.compare_leaves(got[name], exact)
            worst = max(leaves, key=lambda leaf: leaf["relative_error"])
            lines.append(
                [
                    name,
                    *(f"{1e6 * t.median(clock) / steps:.1f}" for clock in ("wall", "cpu")),
                    f"{worst['relative_error']:.1e}",
                    f"{worst['cosine']:.3f}" if worst["verdict"] != "not learned" else "none",
                    f"{compare.relative_error(got[name], exact):.1e}",
                ]
            )
        header = ["rule", "wall [us]", "CPU [us]", "worst leaf, error", "cosine", "all, error"]
        parts += [f"{kind}:", table(header, lines)]
    return "\n\n".join(parts)


PARTS: dict[str, Callable[[Sizes], str]] = {
    "feedforward": feedforward,
    "recurrent": recurrent,
    "scopes": scopes,
    "length": long_runs.length,
    "stream": long_runs.stream,
    "cells": other_cells,
    "stdp": plasticity.against_brian2,
}


def report(parts: Sequence[str], rounds: int, load: float) -> str:
    """The section of RESULTS.md; `load` is that of the machine before the run."""
    here = machine()
    versions = [
        f"{name} {importlib.metadata.version(name)}"
        for name in PACKAGES
        if importlib.util.find_spec(name) is not None
    ]
    command = shlex.join(["python", "benchmarks/online_learning.py", *sys.argv[1:]])
    return "\n\n".join(
        [
            "## Online learning: time and memory",
            f"{here['date']}, {here['cpu']}, {here['cores']} cores, {here['system']}, "
            f"Python {here['python']}. {', '.join(versions)}. Load before the run "
            f"{load:.1f}. `{command}`",
            "float32, seed 0 for weights and 1 for inputs. Times are of one time step: medians of "
            f"{rounds} rounds, in each of which every opponent is timed once, in turn. CPU time "
            "counts all threads; `keep_memory()` is called first. Ratios are to the fastest BPTT "
            "of the table on the same clock; errors are relative, against the first row, all "
            "leaves together.",
            *parts,
        ]
    )


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", nargs="+", choices=list(PARTS), help="some of the parts")
    parser.add_argument("--rounds", type=int, help="instead of 7")
    parser.add_argument("--quick", action="store_true", help="smaller sizes, fewer rounds")
    parser.add_argument("--json", action="store_true", help="one JSON object a part")
    parser.add_argument("--write", type=Path, metavar="FILE", help="replace the section in FILE")
    args = parser.parse_args(argv)
    if args.rounds is not None and args.rounds < 1:
        parser.error(f"--rounds {args.rounds}: give at least 1.")
    return args


def main(argv: Sequence[str] | None = None, sizes: Sizes | None = None) -> int:
    """Runs the benchmark; 2 for a file that cannot be written."""
    args = parse(argv)
    if not writable(args.write, SECTION):  # before minutes of timing
        return 2
    sizes = sizes or (QUICK if args.quick else Sizes())
    sizes = sizes if args.rounds is None else sizes._replace(rounds=args.rounds)
    keep_memory()  # has an effect only before anything large is allocated
    parts, load = [], os.getloadavg()[0]
    for name in args.only or PARTS:
        print(f"{name}, {cores()} cores", file=sys.stderr, flush=True)
        parts.append(PARTS[name](sizes))
        print(json.dumps({"part": name, "table": parts[-1]}) if args.json else parts[-1])
        sys.stdout.flush()
    if args.write:
        write_section(args.write, SECTION, report(parts, sizes.rounds, load))
    return 0


if __name__ == "__main__":
    sys.exit(main())
