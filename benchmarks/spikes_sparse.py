"""Spikes x cold sparse weights beside XLA's dense product, BCSR of JAX and SciPy: 4096 x 4096.

Also the gradients beside dense ones, and a step of STDP beside the dense rule of learning_rules.
One thread, CPU time, medians; all in one process and in turns, each call with weights that no call
has touched for longer than caches remember. `python benchmarks/spikes_sparse.py --write
benchmarks/RESULTS.md`, or with `--json` one object a line.
"""

import argparse
import functools
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
from jax.experimental import sparse as jax_sparse
from peers.results import table, writable, write_section
from snn_training import machine

from spikebit.kernels import spike_matmul
from spikebit.kernels.sparse import csr_from_dense, transposed
from spikebit.kernels.sparse_stdp import StdpSettings, sparse_stdp
from spikebit.kernels.spikes_sparse import spike_matmul_sparse
from spikebit.learning_rules.stdp import PairSTDP, apply_update

SECTION = "spikes_sparse"
SIDE = 4096
DENSITIES = (0.01, 0.1)
SHARES = (0.01, 0.05, 0.2)
ROWS = (1, 16)
WORKING_SET = 1 << 29  # bytes
SPIKEBIT = "spikebit"


def copies(make, size):
    """So many of what `make` gives that going round takes longer than caches remember."""
    return [make() for _ in range(max(2, -(-WORKING_SET // size)))]


def copied(tree):
    return jax.tree.map(lambda a: a + a.dtype.type(0), tree)


def scipy_ways(w, x):
    """SciPy's product with x as it is, and with x made sparse within the time; {} without SciPy."""
    try:
        import scipy.sparse
    except ImportError:
        return {}
    matrix = scipy.sparse.csr_array(np.asarray(w.dense()))
    ws = copies(matrix.copy, 8 * matrix.nnz)
    turned = [a.T for a in ws]
    x = np.asarray(x)
    return {
        "SciPy": (lambda w: (w @ x.T).T, turned),
        "SciPy, sparse x": (lambda w: scipy.sparse.csr_array(x) @ w, ws),
    }


def forward_ways(w, dense, x):
    """Functions of a weight, and weights in turns."""
    turned = jax_sparse.BCSR.fromdense(w[0].dense().T)
    bcsr = jax.jit(lambda x, m: (m @ x.T).T)
    size = 8 * w[0].data.size
    return {
        SPIKEBIT: (functools.partial(jax.jit(spike_matmul_sparse), x), w),
        "XLA dense": (functools.partial(jax.jit(jnp.dot), x), dense),
        "events, dense": (functools.partial(jax.jit(spike_matmul), x), dense),
        "JAX BCSR": (functools.partial(bcsr, x), copies(lambda: copied(turned), size)),
    }


def gradient_ways(w, dense, x, needed):
    """Of weights and of inputs (needed at a fifth of them), by what a product of 1s is pulled."""

    def pull(product, data, x):
        y, back = jax.vjp(product, x, data)
        return back(jnp.ones_like(y))

    ours = jax.jit(
        lambda x, w: pull(
            lambda x, data: spike_matmul_sparse(x, w._replace(data=data), needed=needed), w.data, x
        )
    )
    theirs = jax.jit(lambda x, w: pull(jnp.dot, w, x))
    return {
        SPIKEBIT: (functools.partial(ours, x), w),
        "XLA dense": (functools.partial(theirs, x), dense),
    }


def stdp_ways(w, dense, pre, post):
    """A step of additive STDP, the weights given away and got back."""
    rule = PairSTDP()
    index, state = transposed(w[0].pattern), rule.init((SIDE,), (SIDE,))
    state = jax.tree.map(lambda a: a + 0.5, state)
    numbers = StdpSettings(rule.a_plus, rule.a_minus)
    pattern = w[0].pattern

    def ours(data):
        new, _ = sparse_stdp(type(w[0])(data, pattern), index, pre, post, *state, numbers)
        return new.data

    def theirs(weights):
        return apply_update(rule, weights, rule.step(state, weights, pre, post)[1])

    return {
        SPIKEBIT: (jax.jit(ours, donate_argnums=0), [jnp.copy(a.data) for a in w]),
        "XLA dense": (jax.jit(theirs, donate_argnums=0), [jnp.copy(a) for a in dense]),
    }


def seconds(ways, rounds, gives_back=False):
    """Median CPU time of one call each, in turns."""
    times = {name: [] for name in ways}
    for i in range(rounds + 1):
        for name, (function, ws) in ways.items():
            at = i % len(ws)
            begin = time.process_time()
            result = jax.block_until_ready(function(ws[at]))
            times[name].append(time.process_time() - begin)
            if gives_back:
                ws[at] = result
    return {name: statistics.median(t[1:]) for name, t in times.items()}


def rows(rounds):
    """One dictionary for each operation, density, number of rows and share of events."""
    random = np.random.default_rng(0)
    floats = random.random((SIDE, SIDE)).astype(np.float32)
    dense = copies(lambda: jnp.asarray(floats), floats.nbytes)
    for density in DENSITIES:
        one = csr_from_dense(floats, random.random((SIDE, SIDE)) < density)
        w = copies(lambda one=one: copied(one), 8 * one.data.size)
        for share in SHARES:
            for count in ROWS:
                x = jnp.asarray(random.random((count, SIDE)) < share, jnp.float32)
                needed = jnp.asarray(random.random((count, SIDE)) < 0.2)
                facts = {"density": density, "rows": count, "events": share}
                ways = forward_ways(w, dense, x) | scipy_ways(one, x)
                yield {"operation": "forward", **facts} | seconds(ways, rounds)
                ways = gradient_ways(w, dense, x, needed)
                yield {"operation": "gradients", **facts} | seconds(ways, rounds)
            pre, post = (jnp.asarray(random.random(SIDE) < share, jnp.float32) for _ in range(2))
            facts = {"density": density, "rows": 1, "events": share}
            ways = stdp_ways(w, dense, pre, post)
            yield {"operation": "STDP", **facts} | seconds(ways, rounds, gives_back=True)


def ratio_table(found, operation):
    """A line for each case: our time, and how many times longer others take."""
    mine = [row for row in found if row["operation"] == operation]
    others = [n for n in mine[0] if n not in ("operation", "density", "rows", "events", SPIKEBIT)]
    lines = [
        [
            f"{100 * row['density']:g} %",
            str(row["rows"]),
            f"{100 * row['events']:g} %",
            f"{1e3 * row[SPIKEBIT]:.3f}",
            *(f"{row[name] / row[SPIKEBIT]:.1f}" for name in others),
        ]
        for row in mine
    ]
    return table(["connections", "rows", "events", "spikebit [ms]", *others], lines)


def report(found, load):
    """The section of RESULTS.md."""
    here = machine()
    return "\n\n".join(
        [
            "## Spikes x cold sparse weights",
            f"{here['date']}, {here['cpu']}, one thread, Python {here['python']}, jax "
            f"{jax.__version__}, load before the run {load:.1f}. `python "
            "benchmarks/spikes_sparse.py --write benchmarks/RESULTS.md`",
            f"Weights {SIDE} x {SIDE}, float32, CPU time; of others, how many times longer they "
            'take. "events, dense" is `spike_matmul` with all weights. SciPy has two ways: x as it '
            "is, and made sparse within the time.",
            ratio_table(found, "forward"),
            "Both gradients and the product, that of the inputs where needed, at a fifth of them:",
            ratio_table(found, "gradients"),
            "A step of additive pair STDP with spikes of that share of inputs and of outputs, "
            "weights changed in place, beside the dense rule of `learning_rules`:",
            ratio_table(found, "STDP"),
        ]
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    parser.add_argument("--rounds", type=int, default=15)
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
