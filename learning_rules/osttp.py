"""Online spatio-temporal learning with target projection (OSTTP): no error travels downwards."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from .broadcast import broadcast, check_weights, layers_that_learn
from .ostl import of_traces, trace_of
from .rule import LearningRule, Loss, parameters
from .stack import as_stack


def osttp(
    network: nnx.Module,
    loss: Loss,
    feedback: Sequence[Float[Array, "n_out _"]],
    *,
    scope: str = "full",
) -> LearningRule:
    r"""The traces of OSTL with a projection of the target as learning signal: $L_t = y^*_t B$.

    Every hidden layer learns from the target of the step alone, so that its update waits neither
    for the layers above nor for the output. The readout learns from the error.

    Exact, against BPTT: the readout. No hidden leaf follows the gradient of a loss.

    Args:
        network: hidden layers and a readout.
        loss: loss of one time step, which only the readout sees. Its targets are class numbers
            (batch,), taken as 0/1 vectors, or arrays (batch, n_out); of a pair, as of
            `losses.weighted`, the second is a weight of the step.
        feedback: B, (n_out, features) for each layer but the lowest, see `broadcast_weights`.
        scope: of the traces, "full", "unit" or "no_h", as in `ostl`.

    Raises:
        ValueError: no hidden layer, feedback weights or targets of other shapes, an unknown scope.

    References:
        Online Spatio-Temporal Learning with Target Projection, arXiv:2304.05124.
    """
    if scope not in ("full", "unit", "no_h"):
        raise ValueError(f"osttp(scope={scope!r}): known are 'full', 'unit', 'no_h'.")
    stack = as_stack(network)
    parts, _ = stack.split(parameters(network))
    learning = layers_that_learn("osttp", stack, parts)
    check_weights("osttp", feedback, stack, parts, learning)
    makers = [trace_of(layer, scope, spatial=True) for layer in stack.layers]
    route = broadcast(_projected, lambda parts: feedback, learning)
    return of_traces(stack, makers, loss, route=route)


def _projected(error: Array, targets: Any) -> Array:
    """The targets as vectors (time, batch, n_out), by the scale of the error: a batch's mean."""
    weights = None
    if isinstance(targets, tuple) and len(targets) == 2:
        targets, weights = targets
    if not isinstance(targets, jax.Array):
        raise ValueError(
            f"osttp projects targets that are one array, found {type(targets).__name__}: give "
            "class numbers, or vectors as long as the output."
        )
    if targets.shape == error.shape[:2] and jnp.issubdtype(targets.dtype, jnp.integer):
        targets = jax.nn.one_hot(targets, error.shape[-1], dtype=error.dtype)
    if targets.shape != error.shape:
        raise ValueError(
            f"osttp: targets of shape {targets.shape} are neither class numbers "
            f"{error.shape[:2]} nor vectors {error.shape}."
        )
    targets = targets.astype(error.dtype) / error.shape[1]
    return targets if weights is None else targets * weights[..., None]
