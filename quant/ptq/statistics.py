"""What is known of the inputs of a linear map: second moments, largest magnitudes, their number.

Inputs are watched while a block computes; sums of many batches are float64 on the host. What the
statistics are used for is said by the solvers.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from ..models.layers import Linear


class Statistics(NamedTuple):
    """Of all inputs that were seen."""

    hessian: Float[np.ndarray, "inputs inputs"]  # E[x x^T]
    mean: Float[np.ndarray, " inputs"]  # E[|x|]
    largest: Float[np.ndarray, " inputs"]  # max |x|
    tokens: int


class Sums(nnx.Variable):
    """Sums over the inputs since they were taken last."""


class Watched(nnx.Module):
    """A linear map that sums what it reads."""

    def __init__(self, linear: Linear):
        """Begins with no inputs."""
        self.linear, inputs = linear, linear.weight[...].shape[1]
        self.moments = Sums(jnp.zeros((inputs, inputs), jnp.float32))
        self.sizes = Sums(jnp.zeros((2, inputs), jnp.float32))  # sum and largest of |x|
        self.tokens = Sums(jnp.zeros((), jnp.int32))

    def __call__(self, x: Float[Array, "*batch inputs"]) -> Float[Array, "*batch outputs"]:
        """The map, and the sums of a batch in place of those before."""
        rows = x.reshape(-1, x.shape[-1]).astype(jnp.float32)
        self.moments[...] = rows.T @ rows
        self.sizes[...] = jnp.stack([jnp.abs(rows).sum(0), jnp.abs(rows).max(0)])
        self.tokens[...] = jnp.int32(len(rows))
        return self.linear(x)


class Collected:
    """Sums of batches, in float64."""

    def __init__(self) -> None:
        """Begins with no batch."""
        self._moments: Any = 0.0
        self._sizes: Any = 0.0
        self._largest: Any = 0.0
        self._tokens = 0

    def take(self, watched: Watched) -> None:
        """Adds the last batch that a map has seen."""
        sizes = np.asarray(watched.sizes[...], np.float64)
        self._moments = self._moments + np.asarray(watched.moments[...], np.float64)
        self._sizes = self._sizes + sizes[0]
        self._largest = np.maximum(self._largest, sizes[1])
        self._tokens += int(watched.tokens[...])

    def statistics(self) -> Statistics:
        """Of all batches.

        Raises:
            ValueError: there was none.
        """
        if not self._tokens:
            raise ValueError("statistics: no token was seen; is the calibration text empty?")
        count = self._tokens
        return Statistics(self._moments / count, self._sizes / count, self._largest, count)
