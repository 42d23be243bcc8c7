"""Delays of whole steps: a line that keeps past inputs, and dense kernels over all of its lags.

Lag 0 is this step: what enters now is seen now. Delays that are themselves learned stand in
`delay_learning`; what a neuron makes of its delayed input stands with the neurons.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Shaped

from ..kernels import spike_matmul
from .neurons import _check_size


class DelayState(NamedTuple):
    """What a delay line holds: the input of this step and of the steps before it."""

    window: Float[Array, "*batch lags n"]  # window[..., d, :] = x_{t-d}; 0 before the start


def push(window: Float[Array, "*batch lags n"], x: Float[Array, "*batch n"]) -> Array:
    """The window (*batch, lags, n) one step later: x at lag 0, the oldest input gone.

    >>> push(jnp.array([[3.0], [2.0], [1.0]]), jnp.array([4.0])).ravel().tolist()
    [4.0, 3.0, 2.0]
    """
    # shifted, not overwritten in a ring: reading a ring in the order of lags copies it as well
    return jnp.concatenate([x[..., None, :], window[..., :-1, :]], axis=-2)


class DelayLine(nnx.RNNCellBase):
    """Gives x_t, x_{t-1}, ..., x_{t-lags+1} side by side: `(carry, x) -> (carry, y)`, no parameter.

    y has lags * n_in features, lag by lag (feature d * n_in + i is input i at lag d), on any number
    of axes before them. The layer above has one weight for every input and lag: `DelayedDense` or
    `LearnedDelays`, `nnx.Linear`, a cell such as `LIFCell(lags * n_in, n)`, or, on a grid of
    pixels, `nnx.Conv(lags * n_in, n, ...)`, which makes it a spatio-temporal kernel.

    What is exact under which rule of `learning_rules`, with the whole sequence under BPTT (`bptt`
    in one chunk) as the measure. The window depends on no weight above the line, so delays before
    the synapse add no trace and cost no exactness; they do stand in the way of what is below.

    - Of a cell right above the line, top of the states: every leaf, the weights of all lags
      included, wherever `ostl` is exact for that cell without delays: scope "full", and scope
      "no_h" without a recurrent kernel. Its traces are those of a cell with lags * n_in inputs.
    - Of layers without state above the line and below no other state: every leaf, in all scopes.
    - Of layers below the line: `bptt` only. `ostl(cross_layer="spatial")` learns from lag 0 alone;
      "chunk" from the lags that do not reach back over the border of a chunk.

    References:
        Learning heterogeneous delays in a layer of spiking neurons for fast motion detection,
        Biological Cybernetics (2023), doi:10.1007/s00422-023-00975-8.
    """

    def __init__(self, n_in: int, lags: int, *, dtype: Any = None):
        """Takes the number of inputs, of lags (delays 0 to lags - 1) and the dtype of the inputs.

        Raises:
            ValueError: if `n_in` or `lags` is no whole number >= 1.
        """
        _check_size("DelayLine", "n_in", n_in)
        _check_size("DelayLine", "lags", lags)
        self.n_in, self.lags = n_in, lags
        self.in_features, self.out_features = n_in, lags * n_in
        self.dtype = jnp.dtype(jnp.result_type(float) if dtype is None else dtype)

    def __call__(
        self, carry: DelayState, x: Float[Array, "*batch n"]
    ) -> tuple[DelayState, Float[Array, "*batch lags_n"]]:
        """One step; `lags_n` stands for lags * n_in.

        Raises:
            ValueError: if the last axis of x is not n_in, or the carry of another batch.
        """
        self._check_features(x.shape)
        if carry.window.shape != (*x.shape[:-1], self.lags, self.n_in):
            raise ValueError(
                f"DelayLine has a window of shape {carry.window.shape} for an input of shape "
                f"{x.shape}: begin with initialize_carry({x.shape})."
            )
        window = push(carry.window, x)
        return DelayState(window), window.reshape(*x.shape[:-1], self.out_features)

    def initialize_carry(
        self, input_shape: tuple[int, ...], rngs: Any = None, carry_init: Any = None
    ) -> DelayState:
        """Zeros, for inputs of shape (*batch, n_in); needs no random numbers."""
        self._check_features(input_shape)
        return DelayState(jnp.zeros((*input_shape[:-1], self.lags, self.n_in), self.dtype))

    @property
    def num_feature_axes(self) -> int:
        """One: features are the last axis."""
        return 1

    def _check_features(self, shape: tuple[int, ...]) -> None:
        if not shape or shape[-1] != self.n_in:
            raise ValueError(
                f"DelayLine takes {self.n_in} features on the last axis of its input; got an input "
                f"of shape {tuple(shape)}."
            )


def causal_convolution(
    xs: Shaped[Array, "time *batch n_in"], kernel: Float[Array, "lags n_in n"]
) -> Float[Array, "time *batch n"]:
    r"""The whole sequence at once: $y_t = \sum_{d=0}^{lags-1} x_{t-d} K_d$, x = 0 before the start.

    What a `DelayLine` and a product with K give step by step, up to the order of summation. Inputs
    of any dtype, spikes as bools too, are taken in that of K.

    Raises:
        ValueError: if xs and K have another number of inputs.
    """
    lags, n_in, n = kernel.shape
    if xs.ndim < 2 or xs.shape[-1] != n_in:
        raise ValueError(
            f"causal_convolution takes inputs (time, *batch, {n_in}) for a kernel of shape "
            f"{kernel.shape}; got shape {xs.shape}."
        )
    rows = xs.reshape(xs.shape[0], math.prod(xs.shape[1:-1]), n_in).astype(kernel.dtype)
    rows = jnp.moveaxis(rows, 0, 1)
    ys = jax.lax.conv_general_dilated(
        rows,
        jnp.flip(kernel, 0),  # XLA correlates: its last tap meets this step
        window_strides=(1,),
        padding=[(lags - 1, 0)],
        dimension_numbers=("NWC", "WIO", "NWC"),
    )
    return jnp.moveaxis(ys, 1, 0).reshape(*xs.shape[:-1], n)


class LagLayer(nnx.Module):
    """A layer without state that reads a delay line with a kernel over lags, plus a bias.

    A subclass has the size of its input, `n_in`, the parameter `bias` (n,) and `lag_kernel`.
    """

    n_in: int
    lags: int
    bias: nnx.Param

    def lag_kernel(self) -> Float[Array, "lags n_in n"]:
        """The weight from each input at each lag to each output."""
        raise NotImplementedError

    def __call__(self, y: Float[Array, "*batch lags_n"]) -> Float[Array, "*batch n"]:
        """One step: the output y of `DelayLine(n_in, lags)` to the n outputs.

        Raises:
            ValueError: if the last axis of y is not lags * n_in.
        """
        if y.shape[-1] != self.in_features:
            raise ValueError(
                f"{type(self).__name__} reads {self.lags} lags of {self.n_in} inputs, "
                f"{self.in_features} features; got shape {tuple(y.shape)}: put a "
                f"DelayLine({self.n_in}, {self.lags}) below it."
            )
        kernel = self.lag_kernel()
        return spike_matmul(y, kernel.reshape(-1, kernel.shape[-1])) + self.bias[...]

    def convolve(self, xs: Shaped[Array, "time *batch n_in"]) -> Float[Array, "time *batch n"]:
        """All steps at once, for training offline: the line and this layer, from an empty window.

        Raises:
            ValueError: if the last axis of xs is not n_in.
        """
        if xs.shape[-1] != self.n_in:
            raise ValueError(
                f"{type(self).__name__}.convolve takes (time, *batch, {self.n_in}), without a "
                f"delay line; got shape {tuple(xs.shape)}."
            )
        return causal_convolution(xs, self.lag_kernel()) + self.bias[...]

    @property
    def in_features(self) -> int:
        """Size of what it reads: lags * n_in."""
        return self.lags * self.n_in

    @property
    def out_features(self) -> int:
        """The outputs n."""
        return self.bias.shape[0]


class DelayedDense(LagLayer):
    r"""One weight for every input, lag and output: $y_t = b + \sum_d x_{t-d} K_d$.

    As the evidence for n classes, with a sigmoid and a binary cross-entropy, it is HD-SNN's layer.
    Put it above a `DelayLine`, which says under which rules its gradients are exact. Below a cell
    without weights of its own, as in [DelayLine, DelayedDense, LIFCell(None, n)], it is a lower
    layer to `ostl`, so not exact. There leave it out and give the cell the weights,
    `LIFCell(lags * n_in, n)`; or make one cell of the three, by a `Network` of them in the network.

    Attributes:
        kernel: K (lags, n_in, n).
        bias: b (n,).

    References:
        Learning heterogeneous delays in a layer of spiking neurons for fast motion detection,
        Biological Cybernetics (2023), doi:10.1007/s00422-023-00975-8.
    """

    def __init__(self, n_in: int, n: int, lags: int, *, param_dtype: Any = None, rngs: nnx.Rngs):
        """Draws the kernel Glorot uniform; the bias is 0.

        Raises:
            ValueError: if a size is no whole number >= 1.
        """
        for name, size in (("n_in", n_in), ("n", n), ("lags", lags)):
            _check_size("DelayedDense", name, size)
        dtype = jnp.dtype(jnp.result_type(float) if param_dtype is None else param_dtype)
        draw = nnx.initializers.glorot_uniform()
        self.n_in, self.lags = n_in, lags
        self.kernel = nnx.Param(draw(rngs.params(), (lags, n_in, n), dtype))
        self.bias = nnx.Param(jnp.zeros((n,), dtype))

    @classmethod
    def of(cls, kernel: Float[Array, "lags n_in n"], bias: Float[Array, "n"]) -> "DelayedDense":
        """The layer with these weights: pruned, shortened or rounded ones, say."""
        lags, n_in, n = kernel.shape
        layer = cls(n_in, n, lags, param_dtype=kernel.dtype, rngs=nnx.Rngs(0))
        layer.kernel[...], layer.bias[...] = kernel, bias
        return layer

    def lag_kernel(self) -> Float[Array, "lags n_in n"]:
        """K itself."""
        return self.kernel[...]


def prune(kernel: Float[Array, "*dims"], keep: int) -> Float[Array, "*dims"]:
    """Keeps the `keep` weights of the largest size, sets all others to 0; of equals the first.

    Raises:
        ValueError: if there are not so many weights.

    >>> prune(jnp.array([0.5, -2.0, 1.0, 0.1]), 2).tolist()
    [0.0, -2.0, 1.0, 0.0]
    """
    if not 0 <= keep <= kernel.size:
        raise ValueError(
            f"prune(keep={keep}): a kernel of shape {kernel.shape} has {kernel.size} weights; "
            f"keep 0 to {kernel.size} of them."
        )
    largest = jnp.argsort(-jnp.abs(kernel).ravel())[:keep]
    kept = jnp.zeros(kernel.size, bool).at[largest].set(True)
    return jnp.where(kept.reshape(kernel.shape), kernel, 0)


def shorten(kernel: Float[Array, "lags n_in n"], lags: int) -> Float[Array, "fewer n_in n"]:
    """The weights of the first lags 0 to lags - 1 only.

    Raises:
        ValueError: if there are not so many lags.
    """
    if not 1 <= lags <= kernel.shape[0]:
        raise ValueError(
            f"shorten(lags={lags}): the kernel has {kernel.shape[0]} lags; keep 1 to "
            f"{kernel.shape[0]} of them."
        )
    return kernel[:lags]
