"""Delays that are learned: each synapse has a weight and a real position among the lags (DCLS).

The kernel that weight and position make, how sigma narrows, how positions move, and what is left
of it all for evaluation. Delay lines and kernels of free weights stand in `delays`.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Float, Int

from .delays import DelayedDense, LagLayer
from .neurons import _check_size


def delay_kernel(
    weight: Float[Array, "n_in n"],
    position: Float[Array, "n_in n"],
    sigma: Float[Array, ""],
    lags: int,
) -> Float[Array, "lags n_in n"]:
    r"""Spreads each weight over the lags by a Gaussian around its position.

    $$K_d = w\, e^{-((d - P) / \sigma)^2 / 2} \Big/ \sum_{d'=0}^{lags-1} e^{-((d'-P)/\sigma)^2/2},$$

    so that the sum over lags is w, at the edges too. As sigma goes to 0 the whole weight goes to
    the lag nearest to P.

    Args:
        weight: w.
        position: P, in steps.
        sigma: width of the Gaussian, in steps, above 0.
        lags: number of lags.

    References:
        Learning Delays in Spiking Neural Networks using Dilated Convolutions with Learnable
        Spacings, arXiv:2306.17670.
    """
    # fewer bits would not tell lags apart
    dtype = position.dtype if jnp.finfo(position.dtype).bits > 32 else jnp.dtype(jnp.float32)
    d, nearest = jnp.arange(lags, dtype=jnp.int32)[:, None, None], _nearest(position, lags)
    # softmax is the same without the least square, which is left out before it could overflow:
    # (d - P)^2 - (d' - P)^2, exactly 0 at d' and above 0 elsewhere
    beyond = (d - nearest).astype(dtype) * (
        (d + nearest).astype(dtype) - 2 * position.astype(dtype)
    )
    sigma = jnp.maximum(sigma.astype(dtype), 1e-15)  # as good as 0, and its square is above 0
    return weight * jax.nn.softmax(-beyond / sigma**2 / 2, axis=0).astype(weight.dtype)


def rounded_kernel(
    weight: Float[Array, "n_in n"], position: Float[Array, "n_in n"], lags: int
) -> Float[Array, "lags n_in n"]:
    """The kernel of evaluation: each weight whole, at the lag nearest to its position."""
    d = jnp.arange(lags, dtype=jnp.int32)[:, None, None]
    return jnp.where(d == _nearest(position, lags), weight, 0)


def _nearest(position: Float[Array, "n_in n"], lags: int) -> Int[Array, "n_in n"]:
    return jnp.clip(jnp.round(position).astype(jnp.int32), 0, lags - 1)


def sigma_schedule(
    lags: int, steps: int, *, start: float | int | None = None, end: float = 0.23
) -> optax.Schedule:
    r"""Sigma after `count` updates: from `start` to `end` in equal ratios, then `end`.

    $\sigma = start\,(end / start)^{\min(count / steps, 1)}$. Wide at first, so that a gradient
    reaches every lag. The authors let it fall for the first quarter of the training.

    Args:
        lags: number of lags.
        steps: updates until `end` is reached.
        start: at the beginning; None: the authors' lags / 2.
        end: at the end; the default is the authors'.

    Raises:
        ValueError: if `steps`, `start` or `end` is not above 0.
    """
    start = lags / 2 if start is None else start
    if not (steps > 0 and start > 0 and end > 0):
        raise ValueError(
            f"sigma_schedule needs steps, start and end > 0; got steps={steps}, start={start}, "
            f"end={end}."
        )

    def schedule(count: Any) -> Array:
        return jnp.asarray(start * (end / start) ** jnp.minimum(count / steps, 1))

    return schedule


class LearnedDelays(LagLayer):
    """One weight and one learned delay for each pair of input and output.

    Put it above a `DelayLine`. Train it with `delay_updates` last in the optimizer's chain, which
    moves the positions and narrows sigma; evaluate the layer that `rounded` gives.

    What is exact, with BPTT over the whole sequence as the measure. The layer has no state and the
    line has no parameter, so the gradient of weight, position and bias is the learning signal at
    this step times the window of this step; no trace is kept.

    - `bptt` in one chunk: every leaf.
    - `ostl`, any scope and any chunk: weight, position and bias, where no layer above has a state.
    - `ostl` below a cell, as in [DelayLine, LearnedDelays, LIFCell(None, n)]: not exact, since this
      is a lower layer then; its gradient is BPTT's with the states above it held constant. Exact
      with a `Network` of the three as one layer of the network: scope "full", and "no_h" if the
      cell is not recurrent. The trace of that layer has S P numbers a sample, S = lags n_in + m n
      (m memory variables a unit, and y), P its parameters: for small layers.
    - Layers below the line: see `DelayLine`.

    Attributes:
        weight: w (n_in, n).
        position: P (n_in, n), in steps, within [0, lags - 1].
        sigma: width of the Gaussian (); a parameter that has no gradient: `delay_updates` sets it.
        bias: (n,).

    References:
        Learning Delays in Spiking Neural Networks using Dilated Convolutions with Learnable
        Spacings, arXiv:2306.17670.
    """

    def __init__(
        self,
        n_in: int,
        n: int,
        lags: int,
        *,
        sigma: float | int | None = None,
        param_dtype: Any = None,
        rngs: nnx.Rngs,
    ):
        """Draws weights Glorot uniform and positions uniform over the lags; the bias is 0.

        Args:
            n_in: inputs.
            n: outputs.
            lags: number of lags, delays 0 to lags - 1.
            sigma: width at the start, that of the schedule; None: lags / 2.
            param_dtype: dtype of the parameters; None: JAX's default float.
            rngs: where weights and positions are drawn from.

        Raises:
            ValueError: if a size is no whole number >= 1, or sigma not above 0.
        """
        for name, size in (("n_in", n_in), ("n", n), ("lags", lags)):
            _check_size("LearnedDelays", name, size)
        sigma = lags / 2 if sigma is None else sigma
        if not sigma > 0:
            raise ValueError(f"LearnedDelays needs sigma > 0; got {sigma}.")
        dtype = jnp.dtype(jnp.result_type(float) if param_dtype is None else param_dtype)
        self.n_in, self.lags = n_in, lags
        draw = nnx.initializers.glorot_uniform()
        self.weight = nnx.Param(draw(rngs.params(), (n_in, n), dtype))
        uniform = jax.random.uniform(rngs.params(), (n_in, n), dtype, 0, lags - 1)
        self.position = nnx.Param(uniform)
        self.sigma = nnx.Param(jnp.asarray(sigma, dtype))
        self.bias = nnx.Param(jnp.zeros((n,), dtype))

    def lag_kernel(self) -> Float[Array, "lags n_in n"]:
        """The Gaussians of width sigma; sigma has no derivative."""
        sigma = jax.lax.stop_gradient(self.sigma[...])
        return delay_kernel(self.weight[...], self.position[...], sigma, self.lags)

    def rounded(self) -> DelayedDense:
        """The layer for evaluation: every delay a whole number of steps, sigma gone."""
        kernel = rounded_kernel(self.weight[...], self.position[...], self.lags)
        return DelayedDense.of(kernel, self.bias[...])


class DelayUpdatesState(NamedTuple):
    """What `delay_updates` remembers."""

    done: Int[Array, ""]  # updates so far


def delay_updates(
    lags: int, sigma: optax.Schedule, *, position_rate: float | int = 100.0
) -> optax.GradientTransformation:
    """Last in a chain: positions move faster and stay among the lags, sigma follows its schedule.

    All leaves named `position` get `position_rate` times their update, cut so that they stay within
    [0, lags - 1] up to a rounding error; all named `sigma` become sigma(number of updates so far);
    others are left alone. Networks whose layers differ in their lags take one for each,
    with `optax.partition`.

    Args:
        lags: number of lags of the layers.
        sigma: updates so far -> sigma, such as `sigma_schedule`; start the layers with sigma(0).
        position_rate: how many times faster positions learn than weights; the default is the
            authors'.

    Raises:
        ValueError: called without params, or with none named `position`.
    """

    def init(params: Any) -> DelayUpdatesState:
        names = {_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)}
        if "position" not in names:
            raise ValueError(
                "delay_updates found no parameter named 'position', only "
                f"{', '.join(sorted(names)) or 'none at all'}: use it for networks with "
                "LearnedDelays."
            )
        return DelayUpdatesState(jnp.zeros((), jnp.int32))

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, DelayUpdatesState]:
        if params is None:
            raise ValueError("delay_updates: call update(grads, state, params).")
        done = jnp.asarray(optax.safe_increment(state.done))

        def change(path: Any, u: Array, p: Array) -> Any:
            if _name(path) == "position":
                return jnp.clip(p + position_rate * u, 0, lags - 1) - p
            if _name(path) == "sigma":
                return jnp.asarray(sigma(done), p.dtype) - p
            return u

        return jax.tree_util.tree_map_with_path(change, updates, params), DelayUpdatesState(done)

    return optax.GradientTransformation(init, update)


def _name(path: Any) -> str:
    """The last name on the way to a leaf, as the layer calls its parameter."""
    whole = jax.tree_util.keystr(path, simple=True, separator=".")
    return whole.removesuffix(".value").rpartition(".")[2]
