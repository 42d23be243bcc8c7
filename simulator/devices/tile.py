r"""A crossbar tile: one matrix product by currents through cells, between two converters.

Inputs go through a DAC, products and sums are currents, outputs go through an ADC. The noise of all
reads is added where it is seen, at the outputs: a sum of independent Gaussians is one Gaussian of
the summed variance, $y_i = \sum_j w_{ij} x_j + \sqrt{\sum_j \sigma_{ij}^2 x_j^2}\, \xi_i$, so no
cell is sampled for a vector. What cells do is their model's, how they make weights `cells.py`'s.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .cells import Arrangement, Pair, Single
from .device import Device, Key

_SMALLEST = 1e-4  # of what is left of a tile's outputs, for their compensation
_HALVINGS = 10


class Converter(NamedTuple):
    """A DAC or an ADC: to a grid of `levels` (an even number) steps from -bound to bound."""

    bound: float | int = 1.0
    levels: int = 254

    def __call__(self, x: Float[Array, "*dims"]) -> Float[Array, "*dims"]:
        """The converted values; their derivative is 1 within the bounds, 0 beyond."""
        step = 2 * self.bound / self.levels
        inside = jnp.clip(x, -self.bound, self.bound)
        rounded = jnp.clip(jnp.round(x / step) * step, -self.bound, self.bound)
        return inside + jax.lax.stop_gradient(rounded - inside)


class Tile(NamedTuple):
    """How a tile is built.

    Attributes:
        device: its cells.
        cells: how they make a weight; None: as `memristive` chooses.
        dac: of inputs, in units of the largest |x| of a vector.
        adc: of outputs, in units of the largest |w| and |x|; None: none.
        output_noise: standard deviation of what the ADC adds, in its unit.
        manage_bounds: a vector whose outputs reach the bound of the ADC is given again with half
            the input, until they do not; each vector by itself.
    """

    device: Device
    cells: Arrangement | None = None
    dac: Converter | None = Converter(1.0, 254)
    adc: Converter | None = Converter(10.0, 254)
    output_noise: float = 0.0
    manage_bounds: bool = True


class Programmed(NamedTuple):
    """A tile with weights in it."""

    state: Any  # of the cells
    scale: Float[Array, ""]  # weight for one unit of conductance
    largest: Float[Array, ""]  # |w|
    response: Float[Array, ""]  # mean |w| as read right after programming, for compensation


def program(tile: Tile, w: Array, key: Key, t: float = 0.0) -> Programmed:
    """Writes weights into a tile.

    Args:
        tile: its device must be one that can be programmed.
        w: the weights (n_in, n_out).
        key: of the noise of programming.
        t: the time [s].

    Raises:
        ValueError: a device that only takes pulses, or weights that are no matrix.
    """
    if tile.device.program is None:
        raise ValueError(
            f"tile.program: {tile.device.name} takes pulses only; train it as a memory instead."
        )
    if w.ndim != 2:
        raise ValueError(f"tile.program: weights of shape {w.shape}; a tile holds a matrix.")
    layout = _layout(tile)
    for_cells, for_writing = jax.random.split(key)
    largest = jnp.max(jnp.abs(w))
    scale = jnp.where(largest > 0, largest, 1) / layout.span(tile.device)
    state = tile.device.init((*w.shape, layout.cells), for_cells, t)
    state = tile.device.program(state, layout.targets(tile.device, w / scale), for_writing, t)
    held = Programmed(state, scale, largest, jnp.zeros_like(scale))
    return held._replace(response=_response(tile, held, t))


def weights(tile: Tile, held: Programmed, t: Any) -> Float[Array, "n_in n_out"]:
    """The weights that the cells hold at a time, without the noise of a read."""
    return held.scale * _layout(tile).decode(tile.device.read(held.state, None, t))


def compensation(tile: Tile, held: Programmed, t: Any) -> Float[Array, ""]:
    """What outputs are multiplied by to make up for the mean drift of all cells.

    From the mean |w|, which inputs of one line at a time show, now and right after programming.
    """
    return held.response / jnp.maximum(_response(tile, held, t), _SMALLEST * held.response)


def matmul(
    tile: Tile,
    held: Programmed,
    x: Float[Array, "*batch n_in"],
    key: Key | None,
    t: Any,
    *,
    compensate: bool = False,
) -> Float[Array, "*batch n_out"]:
    """The product x @ w as the tile gives it; differentiable in x.

    Args:
        tile: how it is built.
        held: what is in it.
        x: inputs.
        key: of the noise of reads and outputs; None: none.
        t: the time [s].
        compensate: for the mean drift, see `compensation`.
    """
    unit = jnp.where(held.largest > 0, held.largest, 1)
    w = weights(tile, held, t) / unit
    variance = None
    if key is not None and tile.device.spread is not None:
        spread = tile.device.spread(held.state, t) * held.scale / unit
        variance = jnp.sum(spread**2, -1)
    flat = x.reshape(-1, x.shape[-1])
    keys = None if key is None else jax.random.split(key, len(flat))
    y = jax.vmap(lambda x, k: _vector(tile, w, variance, x, k), (0, None if key is None else 0))(
        flat, keys
    )
    y = y * unit * (compensation(tile, held, t) if compensate else 1)
    return y.reshape(*x.shape[:-1], w.shape[1])


def _vector(tile: Tile, w: Array, variance: Array | None, x: Array, key: Key | None) -> Array:
    largest = jax.lax.stop_gradient(jnp.max(jnp.abs(x)))
    largest = jnp.where(largest > 0, largest, 1)
    xi = (0.0, 0.0) if key is None else jax.random.normal(key, (2, w.shape[1]), w.dtype)

    def attempt(share: Array) -> tuple[Array, Array]:
        given = x / largest * share
        given = given if tile.dac is None else tile.dac(given)
        y = given @ w
        if variance is not None:
            y = y + jnp.sqrt(jax.lax.stop_gradient(given) ** 2 @ variance) * xi[0]
        y = y + tile.output_noise * xi[1]
        if tile.adc is None:
            return y / share, jnp.zeros((), bool)
        return tile.adc(y) / share, jnp.any(jnp.abs(y) >= tile.adc.bound)

    share = jnp.ones((), w.dtype)
    if tile.manage_bounds and tile.adc is not None:

        def again(state: tuple[Array, Array]) -> Array:
            share, clipped = state
            return clipped & (share > 2.0**-_HALVINGS)

        def halve(state: tuple[Array, Array]) -> tuple[Array, Array]:
            share = state[0] / 2
            return share, attempt(share)[1]

        share = jax.lax.stop_gradient(
            jax.lax.while_loop(again, halve, (share, attempt(share)[1]))[0]
        )
    return attempt(share)[0] * largest


def _layout(tile: Tile) -> Arrangement:
    return tile.cells or (Single() if tile.device.g_min < 0 else Pair())


def _response(tile: Tile, held: Programmed, t: Any) -> Array:
    return jnp.mean(jnp.abs(weights(tile, held, t)))
