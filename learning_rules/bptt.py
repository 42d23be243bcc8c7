"""Backpropagation through time: no traces, exact inside a chunk, cut between chunks."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, PRNGKeyArray, PyTree

from .restart import restarts
from .rule import LearningRule, Loss, RuleOutput, check_chunk
from .stack import as_stack
from .unroll import run_stack


def bptt(network: nnx.Module, loss: Loss, *, remat_every: int | None = None) -> LearningRule:
    """Backpropagation through time over each chunk it is given.

    Exact for every parameter of every layer when the chunk is the whole sequence; between chunks
    the carry goes on and the gradient does not (truncated BPTT). Memory grows with the chunk: all
    activations of K steps, or with `remat_every=k` those of k steps and K / k carries, at the
    price of a second forward pass.

    Args:
        network: a `Network`, or one bare cell.
        loss: loss of one time step, (batch, n_out), targets -> (batch,).
        remat_every: k, must divide the chunk.

    Returns:
        A rule whose state is the carries alone.
    """
    if remat_every is not None and remat_every < 1:
        raise ValueError(f"bptt(remat_every={remat_every}): give a number of steps >= 1, or None.")
    stack = as_stack(network)

    def init(params: PyTree, batch: Any, key: PRNGKeyArray | None = None) -> PyTree:
        return stack.initialize_carries(params, batch, key)

    def piece_loss(params, carries, piece):
        xs, targets, resets = piece
        parts, _ = stack.split(params)
        anew = restarts(stack, params, xs, resets)
        carries, ys = run_stack(stack, parts, carries, xs, anew)
        return carries, (sequence_loss(loss, ys, targets), ys)

    def chunk_loss(params, carries, xs, targets, resets):
        steps = xs.shape[0]
        k = steps if remat_every is None else remat_every
        if steps % k:
            raise ValueError(f"bptt(remat_every={k}) does not divide a chunk of {steps} steps.")
        if k == steps:
            carries, (total, ys) = piece_loss(params, carries, (xs, targets, resets))
            return total, (carries, ys)
        whole = (xs, targets, resets)
        pieces = jax.tree.map(lambda a: a.reshape(steps // k, k, *a.shape[1:]), whole)
        body = jax.checkpoint(lambda c, piece: piece_loss(params, c, piece))
        carries, (totals, ys) = jax.lax.scan(body, carries, pieces)
        return totals.sum(), (carries, ys.reshape(steps, *ys.shape[2:]))

    def step(
        params: PyTree,
        state: PyTree,
        xs: Array,
        targets: Any,
        resets: Array | None = None,
    ) -> tuple[PyTree, RuleOutput]:
        check_chunk(xs, targets, state)
        value_and_grad = jax.value_and_grad(chunk_loss, has_aux=True)
        (total, (state, ys)), grads = value_and_grad(params, state, xs, targets, resets)
        return jax.lax.stop_gradient(state), RuleOutput(total, ys, grads)

    return LearningRule(init, step, truncates=True)


def sequence_loss(loss: Loss, ys: Array, targets: Any) -> Array:
    """The loss of a chunk: the sum over its time steps of the mean over the batch."""
    per_step = jax.vmap(loss)(ys, targets)
    if per_step.shape != ys.shape[:2]:
        raise ValueError(
            f"The loss returned shape {per_step.shape[1:]} for a batch of {ys.shape[1]}: it must "
            "give one number a sample, (batch, n_out), targets -> (batch,)."
        )
    return jnp.sum(jnp.mean(per_step, axis=1))
