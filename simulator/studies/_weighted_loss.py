"""A loss that counts at some time steps and not at others, in the form rules take losses."""

from typing import Any

from jaxtyping import Array

from ...learning_rules.rule import Loss


def weighted(loss: Loss) -> Loss:
    """The loss times a weight of each sample and step.

    Args:
        loss: (batch, n_out), targets -> (batch,).

    Returns:
        The same with targets (weights, targets), both of whose leaves start with the batch.
    """

    def of_weighted(outputs: Array, targets: tuple[Array, Any]) -> Array:
        weights, inner = targets
        return weights * loss(outputs, inner)

    return of_weighted
