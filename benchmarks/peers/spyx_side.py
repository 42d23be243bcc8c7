"""Spyx: `LIF` layers, `RLIF` where recurrent, an `LI` readout, all under `jax.jit`.

What belongs here: how Spyx builds and runs the networks of `workload.py`, and nothing else.

Spyx has reset by subtraction only, differentiates through it, and shows a spike one step late.
"run(Sequential)" is what its documentation does: one scan of the whole stack. "run per layer" calls
`spyx.nn.run` on each layer, so that each input product is one matrix product over all steps.
"""

import jax
import jax.numpy as jnp
import optax
import spyx
from flax import nnx
from side import Side
from workload import DECAY, THRESHOLD, Workload

PACKAGES = ("spyx", "jax", "flax")


def _model(work: Workload) -> spyx.nn.Sequential:
    rngs = nnx.Rngs(0)
    layers = []
    for k in range(work.depth + 1):
        w = work.weights[f"w{k}"]
        n = (w.shape[1],)
        layers.append(nnx.Linear(*w.shape, use_bias=False, rngs=rngs))
        layers[-1].kernel[...] = jnp.asarray(w)
        settings = {"threshold": THRESHOLD, "activation": spyx.axn.triangular(k=1.0)}
        if k == work.depth:
            layers.append(spyx.nn.LI(n, beta=DECAY, rngs=rngs))
        elif work.recurrent:
            layers.append(spyx.nn.RLIF(n, beta=DECAY, rngs=rngs, **settings))
            layers[-1].recurrent_w[...] = jnp.asarray(work.weights[f"h{k}"])
        else:
            layers.append(spyx.nn.LIF(n, beta=DECAY, rngs=rngs, **settings))
    return spyx.nn.Sequential(*layers)


def _per_layer(model: spyx.nn.Sequential, x: jax.Array) -> list[jax.Array]:
    """The outputs of every stateful layer."""
    outputs = []
    for linear, cell in zip(model.layers[::2], model.layers[1::2], strict=True):
        x = spyx.nn.run(cell, linear(x))[0]
        outputs.append(x)
    return outputs


def build(work: Workload, variant: str) -> Side:
    """The network on `variant`, as in the head of this file; decay rates are not trained."""
    graph, weights, rest = nnx.split(
        _model(work), lambda path, _: path[-1] in ("kernel", "recurrent_w"), ...
    )
    xs, labels = jnp.asarray(work.inputs), jnp.asarray(work.labels, jnp.int32)

    def loss_of(weights, rest, xs, labels):
        model = nnx.merge(graph, weights, rest)
        if variant == "run(Sequential)":
            logits, _ = spyx.nn.run(model, xs)
        else:
            logits = _per_layer(model, xs)[-1]
        every = optax.softmax_cross_entropy_with_integer_labels
        return jax.vmap(every, in_axes=(0, None))(logits, labels).mean(1).sum()

    value_and_grad = jax.jit(jax.value_and_grad(loss_of))

    def step():
        loss, grads = jax.block_until_ready(value_and_grad(weights, rest, xs, labels))
        named = {}
        for path, leaf in nnx.to_flat_state(grads):
            name = "w" if path[-1] == "kernel" else "h"
            named[f"{name}{path[1] // 2}"] = leaf[...]
        return float(loss), named

    def spikes():
        return _per_layer(nnx.merge(graph, weights, rest), xs)[:-1]

    return Side(step, spikes)
