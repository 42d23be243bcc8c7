r"""A crossbar tile: one matrix product by currents through cells, between two converters.

Inputs go through a DAC, products and sums are currents, outputs go through an ADC. The noise of all
reads is added where it is seen, at the outputs: a sum of independent Gaussians is one Gaussian of
the summed variance, $y_i = \sum_j w_{ij} x_j + \sqrt{\sum_j \sigma_{ij}^2 x_j^2}\, \xi_i$, so no
cell is sampled for a vector. What cells do is their model's, how they make weights `cells.py`'s.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float

from ...kernels.normals import random_normals
from . import ir_drop
from .cells import Arrangement, usual
from .device import Device, Key

_SMALLEST = 1e-4  # of what is left of a tile's outputs, for their compensation
_HALVINGS = 10


@dataclass(frozen=True)
class Converter:
    """A DAC or an ADC: to a grid of `levels` (an even number) steps from -bound to bound.

    Raises:
        ValueError: a bound or a number of levels that makes no such grid.
    """

    bound: float | int = 1.0
    levels: int = 254

    def __post_init__(self):
        """Checks the grid."""
        if not self.bound > 0 or self.levels < 2 or self.levels % 2:
            raise ValueError(
                f"Converter(bound={self.bound}, levels={self.levels}): needs a bound above 0 and "
                "an even number of levels, so that 0 is on the grid."
            )

    def __call__(self, x: Float[Array, "*dims"]) -> Float[Array, "*dims"]:
        """The converted values; their derivative is 1 within the bounds, 0 beyond."""
        step = 2 * self.bound / self.levels
        # not jnp.clip, whose derivative is a half where x is at a bound, as the largest input is
        inside = jnp.where(
            jnp.abs(x) <= self.bound,
            x,
            jax.lax.stop_gradient(jnp.clip(x, -self.bound, self.bound)),
        )
        rounded = jnp.clip(jnp.round(x / step) * step, -self.bound, self.bound)
        return inside + jax.lax.stop_gradient(rounded - inside)


_DAC, _ADC = Converter(1.0, 254), Converter(10.0, 254)


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
        ir_drop: how much of what wires take of the outputs, see `ir_drop.lost`, is missing; 1: all.
    """

    device: Device
    cells: Arrangement | None = None
    dac: Converter | None = _DAC
    adc: Converter | None = _ADC
    output_noise: float = 0.0
    manage_bounds: bool = True
    ir_drop: float = 0.0


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
        ValueError: a device that only takes pulses, weights that are no matrix or, where values
            can be seen, NaN, and noise or drop below 0.
    """
    if tile.device.program is None:
        raise ValueError(
            f"tile.program: {tile.device.name} takes pulses only; train it as a memory instead."
        )
    if w.ndim != 2:
        raise ValueError(f"tile.program: weights of shape {w.shape}; a tile holds a matrix.")
    if tile.output_noise < 0 or tile.ir_drop < 0:
        raise ValueError(
            f"tile.program: output_noise is {tile.output_noise} and ir_drop {tile.ir_drop}; give 0 "
            "or more."
        )
    if not isinstance(w, Tracer) and np.isnan(np.asarray(w)).any():
        raise ValueError(
            f"tile.program: {np.isnan(np.asarray(w)).sum()} weights are NaN; a cell cannot hold "
            "that: look where they came from."
        )
    layout = _layout(tile)
    for_cells, for_writing = jax.random.split(key)
    largest = jnp.max(jnp.abs(w))
    scale = jnp.where(largest > 0, largest, 1) / layout.span(tile.device)
    state = layout.init(tile.device, w.shape, for_cells, t)
    state = layout.program(tile.device, state, w / scale, for_writing, t)
    held = Programmed(state, scale, largest, jnp.zeros_like(scale))
    return held._replace(response=_mean_magnitude(weights(tile, held, t)))


def weights(tile: Tile, held: Programmed, t: Any) -> Float[Array, "n_in n_out"]:
    """The weights that the cells hold at a time, without the noise of a read."""
    return held.scale * _layout(tile).read(tile.device, held.state, None, t)


def compensation(tile: Tile, held: Programmed, t: Any) -> Float[Array, ""]:
    """What outputs are multiplied by to make up for the mean drift of all cells.

    From the mean |w|, which inputs of one line at a time show, now and right after programming.
    """
    return _compensation(held, weights(tile, held, t))


def _compensation(held: Programmed, w: Array) -> Array:
    return held.response / jnp.maximum(_mean_magnitude(w), _SMALLEST * held.response)


class Aged(NamedTuple):
    """What a tile holds at one time, for any number of products: `aged`."""

    w: Float[Array, "n_in n_out"]  # weights, in units of the largest that was written
    variance: Float[Array, "n_in n_out"] | None  # of one read of each, in that unit; None: no noise
    shared: Float[Array, "n_in 1"] | None  # the part of a read's variance that a row shares
    unit: Float[Array, ""]  # what outputs are multiplied by, compensation included


def aged(tile: Tile, held: Programmed, t: Any, *, compensate: bool = False) -> Aged:
    """The tile at a time: drift and the spread of reads, worked out once for many products.

    Args:
        tile: how it is built.
        held: what is in it.
        t: the time [s].
        compensate: for the mean drift, see `compensation`.
    """
    unit = jnp.where(held.largest > 0, held.largest, 1)
    w = weights(tile, held, t)
    found = _layout(tile).variances(tile.device, held.state, t)
    variance, shared = jax.lax.stop_gradient(
        jax.tree.map(lambda v: v * (held.scale / unit) ** 2, found or (None, None))
    )
    return Aged(w / unit, variance, shared, unit * _compensation(held, w) if compensate else unit)


def matmul(
    tile: Tile,
    held: Programmed | Aged,
    x: Float[Array, "*batch n_in"],
    key: Key | None,
    t: Any = None,
    *,
    compensate: bool = False,
    reach: Float[Array, ""] | None = None,
) -> Float[Array, "*batch n_out"]:
    """The product x @ w as the tile gives it; differentiable in x, the drop over wires left out.

    The noise of a vector depends on the key and its place in the batch, and nothing of it on what
    else is in the batch.

    Args:
        tile: how it is built.
        held: what is in it; of `aged`, where several products share a time.
        x: inputs.
        key: of the noise of reads and outputs; None: none.
        t: the time [s]; None for a tile of `aged`, which has its own.
        compensate: for the mean drift, see `compensation`; as t.
        reach: the |x| that the DAC takes for its largest; None: for each vector its own.

    Raises:
        ValueError: no time, or a second one; inputs that do not fit the weights.
    """
    if isinstance(held, Aged) != (t is None) or (t is None and compensate):
        raise ValueError(
            f"tile.matmul(t={t}, compensate={compensate}): give the time and the compensation "
            "once, here or to `aged`."
        )
    now = held if isinstance(held, Aged) else aged(tile, held, t, compensate=compensate)
    if x.ndim == 0 or x.shape[-1] != len(now.w):
        raise ValueError(
            f"tile.matmul: inputs of shape {x.shape} for a tile of {len(now.w)} lines; the last "
            "axis must be that of the lines."
        )
    y = _vectors(tile, now, x.reshape(-1, x.shape[-1]), key, reach) * now.unit
    return y.reshape(*x.shape[:-1], now.w.shape[1])


def _vectors(tile: Tile, now: Aged, x: Array, key: Key | None, reach: Array | None) -> Array:
    """Outputs (vectors, n_out) in units of the largest |w|; one matrix product for all vectors."""
    largest = jnp.max(jnp.abs(x), -1, keepdims=True) if reach is None else reach[None, None]
    largest = jax.lax.stop_gradient(largest)
    largest = jnp.where(largest > 0, largest, 1)
    xi = common = None
    if key is not None:
        words = jax.random.bits(key, (2, 2), jnp.uint32)
        xi = random_normals(words[0], 0, (len(x), now.w.shape[1]))[0]
        common = random_normals(words[1], 0, (len(x), 1))[0]

    def given(share: Array) -> Array:
        inputs = x / largest * share
        return inputs if tile.dac is None else tile.dac(inputs)

    def currents(share: Array) -> Array:
        """What the ADC sees."""
        inputs = given(share)
        y = inputs @ now.w
        if tile.ir_drop:
            y = y - tile.ir_drop * ir_drop.lost(inputs, now.w)
        if xi is None or common is None:
            return y
        variance = jnp.asarray(tile.output_noise, y.dtype) ** 2
        if now.variance is not None:
            variance = variance + inputs**2 @ now.variance
        y = y + jnp.sqrt(variance) * xi  # two sources, one Gaussian
        return y if now.shared is None else y + jnp.sqrt(inputs**2 @ now.shared) * common

    share = jnp.ones((len(x), 1), now.w.dtype)
    y = jax.lax.stop_gradient(currents(share))
    if tile.adc is not None and tile.manage_bounds:
        bound = tile.adc.bound

        def again(state: tuple[Array, Array]) -> Array:
            return jnp.any(_too_large(*state, bound))

        def halve(state: tuple[Array, Array]) -> tuple[Array, Array]:
            share = jnp.where(_too_large(*state, bound), state[0] / 2, state[0])
            return share, currents(share)

        share, y = jax.lax.stop_gradient(jax.lax.while_loop(again, halve, (share, y)))
    y = _with_derivative(y, given(share), now.w)
    return (y if tile.adc is None else tile.adc(y)) / share * largest


def _too_large(share: Array, y: Array, bound: float) -> Array:
    """The vectors (vectors, 1) that reach a bound and can still be given with half the input."""
    clipped = jnp.any(jnp.abs(y) >= bound, -1, keepdims=True)
    return clipped & (share > 2.0**-_HALVINGS)


@jax.custom_jvp
def _with_derivative(y: Array, inputs: Array, w: Array) -> Array:
    """y, which holds inputs @ w, differentiated as that product and not computed again."""
    del inputs, w
    return y


@_with_derivative.defjvp
def _(primals: tuple[Array, Array, Array], tangents: tuple[Array, Array, Array]) -> Any:
    y, inputs, w = primals
    return y, tangents[1] @ w + inputs @ tangents[2]


def _layout(tile: Tile) -> Arrangement:
    return tile.cells or usual(tile.device.g_min)


def _mean_magnitude(w: Array) -> Array:
    # a product, since XLA would fuse a sum with all that makes w, one weight after the other
    return jnp.mean(jnp.matmul(jnp.ones(len(w), w.dtype), jnp.abs(w), precision="highest")) / len(w)
