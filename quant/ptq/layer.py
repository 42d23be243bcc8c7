"""One linear layer: what is known of its inputs, and what an error in its weights costs.

Y = X W^T with a weight (outputs, inputs). Where the statistics come from is said in `statistics`.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ..granularity import Granularity
from ..qtensor import QTensor
from ..scaled import Scale
from .grid import Grid


def padded(
    w: Float[Array, "outputs inputs"], group: int | None
) -> Float[Array, "outputs more_inputs"]:
    """The weight with inputs of weight 0 added, up to a whole number of groups.

    Raises:
        ValueError: a group below 1.
    """
    if group is None:
        return w
    if group < 1:
        raise ValueError(f"groups of {group}: needs at least one input, or None for all.")
    return jnp.pad(w, ((0, 0), (0, -w.shape[1] % group)))


def as_groups(w: Float[Array, "outputs inputs"], group: int | None) -> Float[Array, "o groups k"]:
    """Weights with those that share a scale along the last axis; groups divide the inputs."""
    outputs, inputs = w.shape
    k = inputs if group is None else group
    return w.reshape(outputs, inputs // k, k)


def as_qtensor(grid: Grid, codes: Array, scale: Scale, group: int | None, dtype: str) -> QTensor:
    """Codes (outputs, inputs) with scales (outputs, groups)."""
    shared = Granularity((1,), None if group is None else (group,))
    codes = codes.astype(grid.fmt.code_dtype)
    return QTensor(codes, scale._replace(divisor=None), grid.fmt, shared, dtype)


def round_to_nearest(
    w: Float[Array, "outputs inputs"], grid: Grid, group: int | None = None
) -> QTensor:
    """Every weight by itself to the nearest value of its group's grid.

    Where the inputs are no whole number of groups, the codes are those of the `padded` weight.

    Raises:
        ValueError: a group below 1, or a rule the format cannot take.
    """
    groups = as_groups(padded(w.astype(jnp.float32), group), group)
    scale = grid.fit(groups)
    codes = grid.codes(groups, each_number(scale)).reshape(len(w), -1)
    return as_qtensor(grid, codes, scale, group, str(w.dtype))


def each_number(scale: Scale) -> Scale:
    """Scales with one axis more, for the numbers that share them; one of the tensor as it is."""
    unit, zero, tensor, divisor = scale
    return Scale(
        unit[..., None],
        None if zero is None else zero[..., None],
        tensor,
        None if divisor is None else divisor[..., None],
    )


def proxy_loss(
    w: Float[Array, "outputs inputs"],
    rounded: Float[Array, "outputs inputs"],
    hessian: Float[np.ndarray | Array, "inputs inputs"],
) -> float:
    r"""$\mathrm{tr}(\Delta H \Delta^\top)$ in float64: the mean squared error of the outputs."""
    delta = np.asarray(w, np.float64) - np.asarray(rounded, np.float64)
    return float(((delta @ np.asarray(hessian, np.float64)) * delta).sum())
