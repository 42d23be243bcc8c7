"""The leaky readout: a membrane that never fires.

One idea belongs here: outputs read off a filtered sum. What all cells share is in `neurons`.
"""

from typing import Any, ClassVar, NamedTuple

from flax import nnx
from jaxtyping import Array, Float

from .neurons import NeuronCell, decay_of


class ReadoutState(NamedTuple):
    """State of a leaky readout."""

    v: Float[Array, "*batch n"]  # membrane potential
    y: Float[Array, "*batch n"]  # output, any value


class LeakyReadout(NeuronCell):
    r"""Layer of leaky integrators whose potential is the output.

    $$v_t = \kappa v_{t-1} + x_t W + y_{t-1} H, \quad y_t = v_t + b, \quad \kappa = e^{-dt/\tau}.$$

    The input is not scaled by 1 - kappa.

    References:
        A solution to the learning dilemma for recurrent networks of spiking neurons,
        Nature Communications 11:3625 (2020); arXiv:1901.09049.
    """

    memory_fields: ClassVar[tuple[str, ...]] = ("v",)
    roles: ClassVar[dict[str, str]] = {"membrane": "v"}

    def __init__(
        self,
        n_in: int | None,
        n: int,
        *,
        recurrent: bool = False,
        tau: float | int = 20e-3,
        dt: float | int = 1e-3,
        train_decay: bool = False,
        param_dtype: Any = None,
        rngs: nnx.Rngs | None = None,
    ):
        """Draws W and H Glorot uniform; the bias b starts at 0.

        Args:
            n_in: size of the input; None: no W, the input acts on the units directly.
            n: outputs, or channels if `n_in` is None.
            recurrent: whether there is H.
            tau: membrane time constant [s].
            dt: time step [s].
            train_decay: whether each unit's kappa is a parameter (`NeuronCell.d`).
            param_dtype: dtype of the parameters; None: JAX's default float.
            rngs: where W and H are drawn from; needed if there are any.

        Raises:
            ValueError: if a size or a time is out of range, or `rngs` is missing.
        """
        super().__init__(
            n_in,
            n,
            carry_type=ReadoutState,
            decay=decay_of("LeakyReadout", tau, dt),
            train_decay=train_decay,
            recurrent=recurrent,
            param_dtype=param_dtype,
            rngs=rngs,
        )
        self.b = self._per_unit(0.0)

    def charge(self, carry: ReadoutState, z: Float[Array, "*dims"]) -> ReadoutState:
        """The new potential v, from the last v and the summed input z."""
        return carry._replace(v=self.decay * carry.v + z)

    def fire(self, carry: ReadoutState) -> Float[Array, "*dims"]:
        """The potential plus the bias."""
        return carry.v + self.b[...]
