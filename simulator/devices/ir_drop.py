r"""What the resistance of wires takes from the sums of a crossbar, to first order.

The current of an output falls over the wire on its way to the converter. With conductances and
inputs in units of their largest, and currents that are small against what the wire could carry, an
output of n inputs loses
$$\Delta y_i = c_i \sum_j w_{ij} x_j (1 - (1 - j / n)^2), \quad
c_i = a_i (0.05 a_i^2 - 0.2 a_i + 0.5), \quad a_i = \frac{n}{\gamma} \sum_j |w_{ij} x_j|,$$
the first input being the farthest from the converter. No network of resistors is solved here.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

#: Conductance of the wire from cell to cell (0.35 ohm) over that of a cell at its largest (5 uS).
GAMMA = 1 / (0.35 * 5e-6)


def lost(
    x: Float[Array, "*batch n_in"], w: Float[Array, "n_in n_out"], gamma: float | int = GAMMA
) -> Float[Array, "*batch n_out"]:
    """What is missing of x @ w.

    Args:
        x: inputs, in units of the largest.
        w: weights, in units of the largest.
        gamma: conductance of a piece of wire between two cells, over the largest of a cell.

    Raises:
        ValueError: gamma that is not above 0.

    References:
        The cubic is that of the IBM Analog Hardware Acceleration Kit (Rasch et al., A flexible and
        fast PyTorch toolkit for simulating training and inference on analog crossbar arrays,
        arXiv:2104.02184).
    """
    if not gamma > 0:
        raise ValueError(f"ir_drop.lost: gamma is {gamma}; a ratio of conductances is above 0.")
    n = x.shape[-1]
    a = n / gamma * (jnp.abs(x) @ jnp.abs(w))
    nearness = 1 - (1 - jnp.arange(n, dtype=w.dtype) / n) ** 2
    return a * (0.05 * a**2 - 0.2 * a + 0.5) * ((x * nearness) @ w)
