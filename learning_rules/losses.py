"""Losses of one time step, in the form rules take them: (batch, n_out) to (batch,).

Thin names over optax; a loss of your own is any function of the same form.
"""

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
