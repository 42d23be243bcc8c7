"""What the states and traces of a network lose in their number formats, seen on one batch.

Of weights nothing is said: their memory counts for itself.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import PyTree

from ..learning_rules import sequence_losses
from .data import Split
from .job import Job, Purpose, Samples, key_for


def lost_in_formats(job: Job, params: PyTree, split: Split) -> dict[str, dict[str, float]]:
    """Runs the network and its rule over the first batch of a split, frames of padding included.

    Args:
        job: what was trained.
        params: the weights.
        split: part of the data.

    Returns:
        For each role that has a format: the shares `saturated` and `underflowed` of the numbers
        that were stored.
    """
    samples = Samples(job, split)
    index = jnp.arange(min(job.batch, len(split.inputs)))
    batch = samples.batch(samples.arrays, index, key_for(job.seed, Purpose.TEST_ENCODE, 0))
    graphdef, _, constants = nnx.split(job.network, nnx.Param, ...)
    rule = job.make_rule(job.network, job.loss)

    def run(params: PyTree):
        return sequence_losses(
            nnx.merge(graphdef, params, constants),
            rule,
            batch.xs,
            batch.targets,
            chunk=job.chunk or job.update_every or None,
            key=key_for(job.seed, Purpose.TEST_STATE, 0),
        )

    lost = jax.jit(run)(params)
    return {role: {k: float(v) for k, v in of._asdict().items()} for role, of in lost.items()}
