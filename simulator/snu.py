"""Spiking neural units: the SNU and its soft (graded) form, whose gate 1 - y resets the potential.

One idea belongs here: the two equations of the SNU family. What all cells share is in `neurons`.
"""

from typing import Any, ClassVar, NamedTuple

import jax
from flax import nnx
from jaxtyping import Array, Bool, Float

from .neurons import NeuronCell, decay_of
from .surrogate import Surrogate, check, tanh

_TANH = tanh()


class SNUState(NamedTuple):
    """State of a spiking neural unit, in units of the first threshold."""

    s: Float[Array, "*batch n"]  # membrane potential
    y: Float[Array, "*batch n"]  # output: spikes, or values in (0, 1) of the soft unit


def gated_potential(
    s: Float[Array, "*dims"],
    y: Float[Array, "*dims"],
    z: Float[Array, "*dims"],
    decay: float | Float[Array, "*#dims"],
) -> Float[Array, "*dims"]:
    r"""$z_t + d s_{t-1} (1 - y_{t-1})$: what is left of the potential where y did not gate it."""
    return z + decay * s * (1 - y)


class SNUCell(NeuronCell):
    r"""Layer of spiking neural units.

    $$s_t = relu(x_t W + y_{t-1} H + d s_{t-1} (1 - y_{t-1})), \quad y_t = [s_t + b > 0].$$

    The reset comes from the previous spike and is differentiated; an input can make a unit fire in
    its own step. The firing threshold is -b. Spikes are differentiated as tanh unless told
    otherwise.

    References:
        Deep learning incorporating biologically-inspired neural dynamics, arXiv:1812.07040;
        Online spatio-temporal learning in deep neural networks, arXiv:2007.12723.
    """

    memory_fields: ClassVar[tuple[str, ...]] = ("s",)
    roles: ClassVar[dict[str, str]] = {"membrane": "s"}

    def __init__(
        self,
        n_in: int | None,
        n: int,
        *,
        recurrent: bool = False,
        decay: float | int | None = None,
        tau: float | int | None = None,
        dt: float | int = 1e-3,
        bias: float | int = -1.0,
        train_decay: bool = False,
        surrogate: Surrogate = _TANH,
        param_dtype: Any = None,
        rngs: nnx.Rngs | None = None,
    ):
        """Draws W and H Glorot uniform.

        Args:
            n_in: size of the input; None: no W, the input acts on the units directly.
            n: units, or channels if `n_in` is None.
            recurrent: whether there is H.
            decay: d, in [0, 1]; 0.8 unless `decay` or `tau` is given.
            tau: membrane time constant [s] in place of a decay: d = exp(-dt / tau).
            dt: time step [s]; used only with `tau`.
            bias: first value of b, minus the threshold.
            train_decay: whether each unit's decay is a parameter (`NeuronCell.d`).
            surrogate: how the spike is differentiated, as a function of s + b.
            param_dtype: dtype of the parameters; None: JAX's default float.
            rngs: where W and H are drawn from; needed if there are any.

        Raises:
            ValueError: if a size, the decay or a time is out of range, or `rngs` is missing.
        """
        super().__init__(
            n_in,
            n,
            carry_type=SNUState,
            decay=_decay("SNUCell", decay, tau, dt, default=0.8),
            train_decay=train_decay,
            recurrent=recurrent,
            param_dtype=param_dtype,
            rngs=rngs,
        )
        self.surrogate = check("SNUCell", surrogate)
        self.b = self._per_unit(bias)

    def charge(self, carry: SNUState, z: Float[Array, "*dims"]) -> SNUState:
        """The new potential s, from the last s and y and the summed input z."""
        s = jax.nn.relu(gated_potential(carry.s, carry.y, z, self.decay))
        return carry._replace(s=s)

    def fire(self, carry: SNUState) -> Float[Array, "*dims"]:
        """A spike where s + b > 0."""
        return self.surrogate(carry.s + self.b[...])

    def support(self, carry: SNUState) -> Bool[Array, "*dims"] | None:
        """Where the surrogate can have a derivative; None: everywhere."""
        return self.surrogate.inside(carry.s + self.b[...])


class SoftSNUCell(NeuronCell):
    r"""Layer of soft spiking neural units: graded outputs, differentiable without a surrogate.

    $$s_t = x_t W + y_{t-1} H + d s_{t-1} (1 - y_{t-1}), \quad y_t = \sigma(s_t + b).$$

    As in the authors' experiments the potential has no relu. The first step has y_0 = 0, not σ(b).

    References:
        Deep learning incorporating biologically-inspired neural dynamics, arXiv:1812.07040;
        Online spatio-temporal learning in deep neural networks, arXiv:2007.12723.
    """

    memory_fields: ClassVar[tuple[str, ...]] = ("s",)
    roles: ClassVar[dict[str, str]] = {"membrane": "s"}

    def __init__(
        self,
        n_in: int | None,
        n: int,
        *,
        recurrent: bool = False,
        decay: float | int | None = None,
        tau: float | int | None = None,
        dt: float | int = 1e-3,
        bias: float | int = -1.0,
        train_decay: bool = False,
        param_dtype: Any = None,
        rngs: nnx.Rngs | None = None,
    ):
        """Draws W and H Glorot uniform.

        Args:
            n_in: size of the input; None: no W, the input acts on the units directly.
            n: units, or channels if `n_in` is None.
            recurrent: whether there is H.
            decay: d, in [0, 1]; 0.4 unless `decay` or `tau` is given.
            tau: membrane time constant [s] in place of a decay: d = exp(-dt / tau).
            dt: time step [s]; used only with `tau`.
            bias: first value of b, minus the threshold.
            train_decay: whether each unit's decay is a parameter (`NeuronCell.d`).
            param_dtype: dtype of the parameters; None: JAX's default float.
            rngs: where W and H are drawn from; needed if there are any.

        Raises:
            ValueError: if a size, the decay or a time is out of range, or `rngs` is missing.
        """
        super().__init__(
            n_in,
            n,
            carry_type=SNUState,
            decay=_decay("SoftSNUCell", decay, tau, dt, default=0.4),
            train_decay=train_decay,
            recurrent=recurrent,
            param_dtype=param_dtype,
            rngs=rngs,
        )
        self.b = self._per_unit(bias)

    def charge(self, carry: SNUState, z: Float[Array, "*dims"]) -> SNUState:
        """The new potential s, from the last s and y and the summed input z."""
        return carry._replace(s=gated_potential(carry.s, carry.y, z, self.decay))

    def fire(self, carry: SNUState) -> Float[Array, "*dims"]:
        """The logistic function of s + b."""
        return jax.nn.sigmoid(carry.s + self.b[...])


def _decay(who, decay, tau, dt, default):
    if decay is not None and tau is not None:
        raise ValueError(f"{who} takes a decay or a tau, not both; got {decay} and {tau}.")
    if tau is not None:
        return decay_of(who, tau, dt)
    decay = default if decay is None else decay
    if not 0 <= decay <= 1:
        raise ValueError(f"{who} needs 0 <= decay <= 1; got {decay}.")
    return float(decay)
