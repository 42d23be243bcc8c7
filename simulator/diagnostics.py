"""What the number formats of a run do to its gradients and weights, looked at now and then.

Only runs with `train.diagnostics` come here. The numbers are those of `quant.training.diagnostics`.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PyTree

from .. import quant
from ..learning_rules.rule import Loss, run_sequence
from ..quant.training import loss_scale, quantize_gradients
from ..quant.training.diagnostics import gradient_quality, write_shares
from .job import Job, Purpose, Samples, key_for


def make_diagnosis(job: Job, samples: Samples, loss: Loss) -> Callable[..., dict[str, Any]]:
    """A function that tells of each parameter how it fares in its formats.

    `diagnose(state, arrays, index, epoch, batch)`: the `TrainState` at a line of metrics, the
    arrays of the samples, the numbers of those in the batch, and where the run is. The gradient is
    that of the whole sequence of this batch for the weights as they are now; shares of updates are
    of those since the line before.

    Args:
        job: a job with `exact`.
        samples: of the training split.
        loss: with weights of the samples, as the rule takes it.
    """
    exact = job.exact
    assert exact is not None
    rules = {
        "exact": exact.make_rule(exact.network, loss),
        "actual": job.make_rule(job.network, loss),
    }
    rounded = optax.with_extra_args_support(optax.identity())
    if exact.gradient_format is not None:
        rounded = quantize_gradients(exact.gradient_format, exact.format_rounding)

    @jax.jit
    def gradients(memory: PyTree, scale: Array, arrays: Any, index: Array, place: list[Array]):
        read, encode, state, optimizer = (
            key_for(job.seed, purpose, *place)
            for purpose in (Purpose.READ, Purpose.ENCODE, Purpose.STATE, Purpose.OPTIMIZER)
        )
        xs, targets, present = samples.batch(arrays, index, encode)
        weights = present / present.sum(0) * scale
        params = {"exact": exact.read(memory, read), "actual": job.memory.read(memory, read)}
        chunk = job.chunk or job.update_every or None
        grads = {
            name: run_sequence(
                rule, params[name], xs, (targets, weights), chunk=chunk,
                key=state if name == "actual" else None,
            ).grads
            for name, rule in rules.items()
        }  # fmt: skip
        grads["actual"], _ = rounded.update(grads["actual"], optax.EmptyState(), key=optimizer)
        unscaled = jax.tree.map(lambda g: g / scale, grads)
        return gradient_quality(
            unscaled["exact"], unscaled["actual"], exact.gradient_format, scale=scale
        )

    def diagnose(
        state: Any, arrays: Any, index: Array, epoch: int, batch: int
    ) -> dict[str, dict[str, float]]:
        scale = loss_scale(state.optimizer)
        scale = jnp.ones(()) if scale is None else scale
        place = [jnp.asarray(n, jnp.int32) for n in (epoch, batch)]
        quality = jax.device_get(gradients(state.memory, scale, arrays, index, place))
        shares = write_shares(quant.losses(state.sums), quant.losses(state.memory))
        leaves = {k: jax.tree.leaves(tree) for k, tree in quality.items()}
        return {
            name: share | {kind: float(values[i]) for kind, values in leaves.items()}
            for i, (name, share) in enumerate(shares.items())
        }

    return diagnose
