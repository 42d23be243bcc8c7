"""Spatial learning through time (SLTT): no gradient crosses from one time step to the next."""

from typing import Any, NamedTuple

import jax
from flax import nnx
from jaxtyping import Array, PRNGKeyArray, PyTree

from .bptt import sequence_loss
from .restart import restarts
from .rule import LearningRule, Loss, RuleOutput, check_chunk
from .same_step import at_steps, backward, forward, pull_same_step
from .stack import as_stack


class SLTTState(NamedTuple):
    """What SLTT remembers: the carries, and with `k` the key of the next draw of steps."""

    carries: tuple[Any, ...]
    key: PRNGKeyArray | None = None


def sltt(
    network: nnx.Module, loss: Loss, *, k: int | None = None, scale: bool = True
) -> LearningRule:
    """Reverse mode within each time step; every carry is a constant.

    The gradient is BPTT's with the carry held constant at the start of each step: exact for
    stateless layers above the last state and where there is one time step; for every other leaf
    whatever reaches the loss through an earlier state is missing. The direction stays good where
    inputs are static rates; the length falls with slow membranes. The same for every chunk; memory
    does not grow with time. The scope of `ostl` of this meaning is "none".

    With `k`, the gradient of k steps of each chunk, drawn without replacement (SLTT-K); the loss is
    that of all. The published code leaves out the scale K/k and so has k/K of the gradient on
    average.

    Args:
        network: a `Network`, or one bare cell.
        loss: loss of one time step, (batch, n_out), targets -> (batch,).
        k: steps of a chunk that are differentiated; None: all. It needs a key at `init`.
        scale: whether the gradient of k out of K steps is multiplied by K/k, so that it is SLTT's
            on average.

    Raises:
        ValueError: k below 1, a chunk of fewer than k steps, or no key.

    References:
        Towards Memory- and Time-Efficient Backpropagation for Training Spiking Neural Networks,
        arXiv:2302.14311.
    """
    if k is not None and k < 1:
        raise ValueError(f"sltt(k={k}): give a number of steps of at least 1, or None for all.")
    stack = as_stack(network)

    def init(params: PyTree, batch: Any, key: PRNGKeyArray | None = None) -> SLTTState:
        if k is not None and key is None:
            raise ValueError(
                f"sltt(k={k}) draws its steps and found key=None: call "
                "rule.init(params, batch, key=jax.random.key(seed)), a new key for each sequence."
            )
        own = None if k is None or key is None else jax.random.fold_in(key, len(stack.layers))
        return SLTTState(stack.initialize_carries(params, batch, key), own)

    def step(
        params: PyTree,
        state: SLTTState,
        xs: Array,
        targets: Any,
        resets: Array | None = None,
    ) -> tuple[SLTTState, RuleOutput]:
        parts, join = stack.split(params)
        check_chunk(xs, targets, state.carries)
        anew = restarts(stack, params, xs, resets)
        carries, ys, kept = forward(stack, parts, state.carries, xs, anew)
        total = sequence_loss(loss, ys, targets)
        key, outputs, weight = state.key, ys, 1.0
        if k is not None and key is not None:
            steps = xs.shape[0]
            if steps < k:
                raise ValueError(f"sltt(k={k}) was given a chunk of {steps} steps: take k <= it.")
            key, draw = jax.random.split(key)
            index = jax.random.permutation(draw, steps)[:k]
            kept = at_steps(kept, index)
            outputs, targets = jax.tree.map(lambda a: a[index], (ys, targets))
            weight = steps / k if scale else 1.0
        dys = jax.grad(lambda ys: weight * sequence_loss(loss, ys, targets))(outputs)
        grads = backward(stack, parts, kept, dys, [pull_same_step] * len(parts))
        carries = jax.lax.stop_gradient(carries)
        return SLTTState(carries, key), RuleOutput(total, ys, join(grads))

    return LearningRule(init, step)
