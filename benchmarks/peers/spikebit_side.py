"""spikebit: `LIFCell` layers and a `LeakyReadout` under the rule `bptt`.

What belongs here: how spikebit builds and runs the networks of `workload.py`, and nothing else.
"""

import math

import jax
import jax.numpy as jnp
from flax import nnx
from side import Side
from workload import DECAY, THRESHOLD, Workload

from spikebit.kernels import keep_memory
from spikebit.learning_rules import bptt, losses, parameters
from spikebit.simulator.lif import LIFCell
from spikebit.simulator.network import Network, simulate
from spikebit.simulator.readout import LeakyReadout
from spikebit.simulator.surrogate import triangular

PACKAGES = ("spikebit", "jax", "numba")


def _network(work: Workload) -> Network:
    times = {"dt": 1e-3, "tau": -1e-3 / math.log(DECAY)}
    rngs = nnx.Rngs(0)
    layers = []
    for k in range(work.depth):
        cell = LIFCell(
            *work.weights[f"w{k}"].shape,
            recurrent=work.recurrent,
            threshold=THRESHOLD,
            reset="zero",
            detach_reset=True,
            surrogate=triangular(width=1.0),
            rngs=rngs,
            **times,
        )
        cell.w[...] = jnp.asarray(work.weights[f"w{k}"])
        if work.recurrent:
            cell.h[...] = jnp.asarray(work.weights[f"h{k}"])
        layers.append(cell)
    w = work.weights[f"w{work.depth}"]
    readout = LeakyReadout(*w.shape, rngs=rngs, **times)
    readout.w[...] = jnp.asarray(w)
    return Network([*layers, readout])


def build(work: Workload, variant: str) -> Side:
    """The network on its one variant."""
    keep_memory()  # as `spikebit run` does
    network = _network(work)
    rule = bptt(network, losses.cross_entropy)
    params = parameters(network)
    xs = jnp.asarray(work.inputs)
    targets = jnp.tile(jnp.asarray(work.labels, jnp.int32), (len(xs), 1))
    state = rule.init(params, xs)
    rule_step = jax.jit(rule.step)

    def step():
        _, out = jax.block_until_ready(rule_step(params, state, xs, targets))
        named = {}
        for path, leaf in nnx.to_flat_state(out.grads):
            named[f"{path[-1]}{path[1]}"] = leaf[...]
        return float(out.loss), named

    def spikes():
        names = [f"{k}.y" for k in range(work.depth)]
        records = simulate(network, xs, record=names).records
        return [records[name] for name in names]

    return Side(step, spikes)
