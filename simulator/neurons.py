"""What all our cells share: weights, the call, the initial carry, a decay fixed or trained.

No neuron's equation belongs here; those stand in `snu`, `lif` and `readout`.
"""

import math
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from ..kernels import spike_matmul


class NeuronCell(nnx.RNNCellBase):
    """A layer of units that meet only in its two matrix products: `(carry, x) -> (carry, y)`.

    A cell adds the type of its carry, its per-unit parameters and two functions that are
    element-wise over units, `charge` and `fire`; learning rules use them as their fast path. A
    carry is a `NamedTuple` of arrays (*batch, *features), its last field y the last output.

    With `n_in=None` the layer has no input weights: it is the neurons behind a convolution or a
    dense layer, keeps the shape of its input, and its per-unit parameters belong to the last axis
    (the n channels).

    Works under `jax.lax.scan`, `nnx.RNN(cell, rngs=False)`, `jit`, `vmap` and reverse mode;
    `charge`, `fire` and `unit_step` in forward mode too, the matrix products where `spike_matmul`
    has it. On inputs with several feature axes give `nnx.RNN` `time_major=True`.

    Attributes:
        n: units, or channels.
        in_features: size of the last axis of the input, None if `n_in` is.
        out_features: size of the last axis of the output, None if the cell keeps its input's shape.
        w: input weights (n_in, n), or None.
        h: recurrent weights (n, n), or None.
        d: logit of the decay of each unit (n,) if it is trained, so that it stays in (0, 1); else
            None.
        memory_fields: the fields of the carry that derivatives flow through from step to step.
        product: how inputs and weights are multiplied, called as product(x, w, needed=...); see
            `quant.training.quantize_products`.
        roles: what those fields are ("membrane", "synaptic_current", "adaptation"), for
            `quant.state_formats`.
    """

    memory_fields: ClassVar[tuple[str, ...]]
    product: Callable[..., Array] = staticmethod(spike_matmul)
    roles: ClassVar[dict[str, str]]

    def __init__(
        self,
        n_in: int | None,
        n: int,
        *,
        carry_type: type,
        decay: float,
        train_decay: bool,
        recurrent: bool,
        param_dtype: Any,
        rngs: nnx.Rngs | None,
    ):
        """Takes the sizes, the type of the carry and the decay per step; draws the weights."""
        who = type(self).__name__
        _check_size(who, "n", n)
        if n_in is not None:
            _check_size(who, "n_in", n_in)
        if rngs is None and (n_in is not None or recurrent):
            raise ValueError(f"{who} draws its weights at random: give rngs=nnx.Rngs(seed).")
        if train_decay and not 0 < decay < 1:
            raise ValueError(f"{who}(train_decay=True) needs 0 < decay < 1; got {decay}.")
        self.n, self.in_features = n, n_in
        self.out_features = None if n_in is None else n
        self.param_dtype = jnp.dtype(jnp.result_type(float) if param_dtype is None else param_dtype)
        self.carry_type = carry_type
        self.fixed_decay = decay
        self.w: nnx.Param | None = None if n_in is None else self._weights(rngs, n_in)
        self.h: nnx.Param | None = self._weights(rngs, n) if recurrent else None
        self.d: nnx.Param | None = self._per_unit(_logit(decay)) if train_decay else None

    def charge(self, carry: Any, z: Float[Array, "*dims"]) -> Any:
        """One step of the memory, element-wise over units.

        Args:
            carry: the carry of the last step.
            z: the summed input of this step, (*batch, *features).

        Returns:
            The carry with new memory fields and counters; y is still that of the last step.
        """
        raise NotImplementedError

    def fire(self, carry: Any) -> Float[Array, "*dims"]:
        """The output that the (new) memory fields give, element-wise over units."""
        raise NotImplementedError

    def support(self, carry: Any) -> Bool[Array, "*dims"] | None:
        """Where the derivative of `fire` at this carry can be non-zero; None: everywhere."""
        return None

    def drive(
        self, carry: Any, x: Float[Array, "*dims"], *, needed: Bool[Array, "*dims"] | None = None
    ) -> Float[Array, "..."]:
        """The summed input $z_t = x_t W + y_{t-1} H$.

        The derivative to y_{t-1} is left out where `support(carry)` says that y_{t-1} had none;
        it would be multiplied by 0 on its way to any parameter.

        Args:
            carry: the carry of the last step.
            x: input of this step, (*batch, n_in); any shape that ends in n if `n_in` is None.
            needed: where a derivative to x is wanted; None: everywhere.

        Raises:
            ValueError: if the last axis of x is not what the cell takes.
        """
        self._check_features(x.shape)
        z = x if self.w is None else self.product(x, self.w[...], needed=needed)
        if self.h is not None:
            z = z + self.product(carry.y, self.h[...], needed=self.support(carry))
        return z

    def unit_step(self, carry: Any, z: Float[Array, "*dims"]) -> Any:
        """One step after the matrix products: `charge`, then y from `fire`."""
        carry = self.charge(carry, z)
        return carry._replace(y=self.fire(carry))

    def __call__(self, carry: Any, x: Float[Array, "*dims"]) -> tuple[Any, Float[Array, "..."]]:
        """One step: `(carry, x_t) -> (carry, y_t)`.

        Raises:
            ValueError: if the last axis of x is not what the cell takes.
        """
        carry = self.unit_step(carry, self.drive(carry, x))
        return carry, carry.y

    def initialize_carry(
        self, input_shape: tuple[int, ...], rngs: Any = None, carry_init: Any = None
    ) -> Any:
        """Zeros, in the dtype of the parameters; needs no random numbers.

        Args:
            input_shape: shape of the input of one step.
            rngs: an `nnx.Rngs` or one of its streams, for `carry_init`.
            carry_init: initializer `(key, shape, dtype) -> array` for the memory fields.

        Raises:
            ValueError: if the last axis is not what the cell takes, or `carry_init` has no `rngs`.
        """
        self._check_features(input_shape)
        shape = input_shape if self.in_features is None else (*input_shape[:-1], self.n)
        carry = self.carry_type(*(jnp.zeros(shape, self.dtype) for _ in self.carry_type._fields))
        if carry_init is None:
            return carry
        if rngs is None:
            raise ValueError(f"{type(self).__name__}: a carry_init needs rngs to draw from.")
        draw = rngs.carry if isinstance(rngs, nnx.Rngs) else rngs
        return carry._replace(
            **{name: carry_init(draw(), shape, self.dtype) for name in self.memory_fields}
        )

    @property
    def decay(self) -> float | Float[Array, "..."]:
        """Share of the membrane potential left after one step: fixed, or trained per unit (n,)."""
        return self.fixed_decay if self.d is None else jax.nn.sigmoid(self.d[...])

    @property
    def dtype(self) -> Any:
        """The dtype of the weights, or `param_dtype` where there are none."""
        return next((p.dtype for p in (self.w, self.h) if p is not None), self.param_dtype)

    @property
    def num_feature_axes(self) -> int:
        """One: features are the last axis."""
        return 1

    def _weights(self, rngs, fan_in):
        glorot = nnx.initializers.glorot_uniform()
        return nnx.Param(glorot(rngs.params(), (fan_in, self.n), self.param_dtype))

    def _per_unit(self, value):
        return nnx.Param(jnp.full((self.n,), value, self.param_dtype))

    def _check_features(self, shape):
        wanted = self.n if self.in_features is None else self.in_features
        if not shape or shape[-1] != wanted:
            raise ValueError(
                f"{type(self).__name__} takes {wanted} features on the last axis of its input; "
                f"got an input of shape {tuple(shape)}."
            )


def decay_of(who: str, tau: float | int, dt: float | int, name: str = "tau") -> float:
    r"""The share $e^{-dt / \tau}$ left after a step dt [s] of a decay with time constant tau [s].

    Raises:
        ValueError: naming the cell `who` and its setting `name`, if not 0 < dt <= tau.
    """
    if not 0 < dt <= tau:
        raise ValueError(f"{who} needs 0 < dt <= {name}, in seconds; got dt={dt}, {name}={tau}.")
    return math.exp(-dt / tau)


def _logit(share):
    return math.log(share / (1 - share))


def _check_size(who, name, size):
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise ValueError(f"{who} needs a whole number {name} >= 1; got {size!r}.")
