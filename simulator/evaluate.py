"""How well a network does on a split it does not learn from, and what it looks like inside.

Nothing here changes a weight.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, PyTree

from .data import Split
from .job import Job, Purpose, Samples, key_for
from .network import Network, simulate
from .readout import LeakyReadout


class Evaluation(NamedTuple):
    """How a network does on a split."""

    loss: float  # mean over samples of the mean over time; for prediction the mean over all frames
    accuracy: float | None  # None for prediction
    predictions: np.ndarray | None  # (n,) class numbers, None for prediction
    activity: dict[str, float]  # mean output of a unit in a step, of each cell with an output y


def make_evaluation(job: Job, split: Split) -> Callable[[PyTree], Evaluation]:
    """A function from parameters to how the network does; it is compiled once.

    The class of a sample is the largest sum over time of the outputs.
    """
    n, samples = len(split.inputs), Samples(job, split)
    prediction = job.dataset.kind == "prediction"
    count = -(-n // job.batch)
    flat = np.arange(count * job.batch)
    index = jnp.asarray((flat % n).reshape(count, job.batch))
    real = jnp.asarray((flat < n).reshape(count, job.batch))
    graphdef, _, constants = nnx.split(job.network, nnx.Param, ...)
    active = spiking_layers(job.network)

    def one_batch(params: PyTree, arrays: Any, piece: tuple[Array, Array, Array]):
        index, real, number = piece
        network = nnx.merge(graphdef, params, constants)
        batch = samples.batch(arrays, index, key_for(job.seed, Purpose.TEST_ENCODE, number))
        present = batch.present * real.astype(batch.present.dtype)
        weights = present if prediction else present / jnp.maximum(batch.present.sum(0), 1)

        def step(carry, inputs):
            x, target, present, weight = inputs
            state, votes, loss, activity = carry
            state, out = network(state, x)
            votes = votes + out * present[:, None]
            loss = loss + (job.loss(out, target) * weight).sum()
            mean = [state[i].y.reshape(len(x), -1).mean(1) @ present for i in active]
            return (state, votes, loss, activity + jnp.stack([*mean, present.sum()])), None

        rngs = nnx.Rngs(key_for(job.seed, Purpose.TEST_STATE, number))
        carry = network.initialize_carry(batch.xs.shape[1:], rngs=rngs)
        out = jax.eval_shape(network, carry, batch.xs[0])[1]
        zeros = [jnp.zeros(shape, out.dtype) for shape in (out.shape, (), (len(active) + 1,))]
        inputs = (batch.xs, batch.targets, present, weights)
        (_, votes, loss, activity), _ = jax.lax.scan(step, (carry, *zeros), inputs)
        return votes.argmax(-1), loss, activity

    @jax.jit
    def run(params: PyTree, arrays: Any):
        pieces = (index, real, jnp.arange(count))
        return jax.lax.map(lambda piece: one_batch(params, arrays, piece), pieces)

    def evaluate(params: PyTree) -> Evaluation:
        winners, losses, activity = jax.device_get(run(params, samples.arrays))
        predictions = None if prediction else winners.reshape(-1)[:n]
        *sums, frames = activity.astype(np.float64).sum(0)
        return Evaluation(
            loss=float(losses.astype(np.float64).sum() / (samples.frames if prediction else n)),
            accuracy=None if prediction else float((predictions == split.targets).mean()),
            predictions=predictions,
            activity={str(i): float(s / frames) for i, s in zip(active, sums, strict=True)},
        )

    return evaluate


class Inside(NamedTuple):
    """What one sample does to the network, and where the potentials are for a batch of them."""

    inputs: np.ndarray  # (time, features) of the first sample
    outputs: dict[str, np.ndarray]  # by cell: (time, units) of the first sample
    potentials: dict[str, np.ndarray]  # by cell: all values of its membrane potential


def look_inside(job: Job, params: PyTree, split: Split) -> Inside:
    """Runs the first batch of a split and records the cells that have an output y."""
    samples = Samples(job, split)
    index = jnp.arange(min(job.batch, len(split.inputs)))
    batch = samples.batch(samples.arrays, index, key_for(job.seed, Purpose.TEST_ENCODE, 0))
    graphdef, _, constants = nnx.split(job.network, nnx.Param, ...)
    network = nnx.merge(graphdef, params, constants)
    layers = spiking_layers(network)
    fields = {i: network.layers[i].roles["membrane"] for i in layers}
    record = [f"{i}.y" for i in layers] + [f"{i}.{f}" for i, f in fields.items()]
    rngs = nnx.Rngs(key_for(job.seed, Purpose.TEST_STATE, 0))
    carry = network.initialize_carry(batch.xs.shape[1:], rngs=rngs)
    records = simulate(network, batch.xs, record=record, carry=carry).records
    inside = np.asarray(batch.present, bool)
    end = int(inside[:, 0].sum())
    return Inside(
        np.asarray(batch.xs)[:end, 0].reshape(end, -1),
        {str(i): np.asarray(records[f"{i}.y"])[:end, 0].reshape(end, -1) for i in layers},
        {str(i): np.asarray(records[f"{i}.{f}"])[inside].ravel() for i, f in fields.items()},
    )


def spiking_layers(network: Network) -> list[int]:
    """The cells whose output y is their activity: those with memory fields, but for readouts."""
    return [
        i
        for i, layer in enumerate(network.layers)
        if hasattr(layer, "memory_fields") and not isinstance(layer, LeakyReadout)
    ]
