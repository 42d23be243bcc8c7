"""Losses of one time step, in the form rules take them: (batch, n_out) to (batch,).

Thin names over optax; a loss of your own is any function of the same form.
"""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int


def cross_entropy(
    outputs: Float[Array, "*batch classes"], targets: Int[Array, "*batch"]
) -> Float[Array, "*batch"]:
    """Softmax cross-entropy [nats] of the outputs as logits against class numbers."""
    return optax.softmax_cross_entropy_with_integer_labels(outputs, targets)


def sigmoid_cross_entropy(
    outputs: Float[Array, "*batch n"], targets: Float[Array, "*batch n"]
) -> Float[Array, "*batch"]:
    """Binary cross-entropy [nats] of the outputs as logits, summed over the n independent bits."""
    return optax.sigmoid_binary_cross_entropy(outputs, targets).sum(-1)


def squared_error(
    outputs: Float[Array, "*batch n"], targets: Float[Array, "*batch n"]
) -> Float[Array, "*batch"]:
    """Half the squared distance of the outputs from the targets."""
    return 0.5 * jnp.square(outputs - targets).sum(-1)


def weighted(loss: Callable[[Array, Any], Array]) -> Callable[[Array, Any], Array]:
    """The loss with a weight for each step and sample beside the target: a mask, where it is 0.

    Steps of weight 0 give no loss and no gradient, whatever output and target are.

    >>> loss = weighted(squared_error)
    >>> loss(jnp.array([[3.0], [jnp.nan]]), (jnp.array([[1.0], [0.0]]), jnp.array([0.5, 0.0])))
    Array([1., 0.], dtype=float32)

    Args:
        loss: loss of one time step, (batch, n_out), targets -> (batch,).

    Returns:
        A loss of one time step whose targets are pairs of target and weights (batch,).
    """

    def of_pair(outputs: Array, targets: tuple[Any, Array]) -> Array:
        target, weights = targets
        counts = weights != 0
        # what does not count is taken out before the loss, whose derivative may not be finite there
        outputs = jnp.where(counts.reshape(-1, *[1] * (outputs.ndim - 1)), outputs, 0)
        return jnp.where(counts, loss(outputs, target) * weights, 0)

    return of_pair
