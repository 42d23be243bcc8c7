"""Leaky integrate-and-fire units: with a current or second-order synapse, or adaptive threshold.

One idea belongs here: membranes that leak, cross a threshold and are reset. What all cells share is
in `neurons`, the readout that never fires in `readout`.
"""

from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from .neurons import NeuronCell, decay_of
from .surrogate import Surrogate, check, triangular

_TRIANGULAR = triangular()
_EPROP = triangular(gain=0.3)
_RESETS = ("subtract", "zero", "none")


class LIFState(NamedTuple):
    """State of a LIF unit, in the units of its threshold."""

    v: Float[Array, "*batch n"]  # membrane potential
    y: Float[Array, "*batch n"]  # spikes, 0 or 1


class RefractoryLIFState(NamedTuple):
    """State of a LIF unit with a refractory period."""

    v: Float[Array, "*batch n"]  # membrane potential
    wait: Float[Array, "*batch n"]  # steps left, this one included, in which it cannot fire
    y: Float[Array, "*batch n"]  # spikes, 0 or 1


class SynapticLIFState(NamedTuple):
    """State of a LIF unit with a second-order synapse."""

    i: Float[Array, "*batch n"]  # synaptic current
    v: Float[Array, "*batch n"]  # membrane potential
    y: Float[Array, "*batch n"]  # spikes, 0 or 1


class RefractorySynapticLIFState(NamedTuple):
    """State of a LIF unit with a second-order synapse and a refractory period."""

    i: Float[Array, "*batch n"]  # synaptic current
    v: Float[Array, "*batch n"]  # membrane potential
    wait: Float[Array, "*batch n"]  # steps left, this one included, in which it cannot fire
    y: Float[Array, "*batch n"]  # spikes, 0 or 1


class ALIFState(NamedTuple):
    """State of an adaptive LIF unit."""

    v: Float[Array, "*batch n"]  # membrane potential
    a: Float[Array, "*batch n"]  # adaptation: the unit's own spikes, filtered
    y: Float[Array, "*batch n"]  # spikes, 0 or 1


class RefractoryALIFState(NamedTuple):
    """State of an adaptive LIF unit with a refractory period."""

    v: Float[Array, "*batch n"]  # membrane potential
    a: Float[Array, "*batch n"]  # adaptation: the unit's own spikes, filtered
    wait: Float[Array, "*batch n"]  # steps left, this one included, in which it cannot fire
    y: Float[Array, "*batch n"]  # spikes, 0 or 1


def after_reset(
    v: Float[Array, "*dims"], y: Float[Array, "*dims"], reset: str, threshold: float | int
) -> Float[Array, "*dims"]:
    r"""The potential after the reset by a spike y of the same step.

    "subtract": $v - \theta y$; "zero": $v (1 - y)$; "none": v.
    """
    if reset == "subtract":
        return v - threshold * y
    return v * (1 - y) if reset == "zero" else v


class LIFCell(NeuronCell):
    r"""Layer of leaky integrate-and-fire units with current synapses.

    $$v_t = \alpha R(v_{t-1}, y_{t-1}) + x_t W + y_{t-1} H, \quad y_t = [v_t > \theta],$$

    $\alpha = e^{-dt / \tau}$, R the reset (`after_reset`), applied one step after the spike. For
    `refractory` steps after a spike a unit cannot fire, and its spike has no derivative; its
    potential goes on integrating.

    References:
        Long short-term memory and learning-to-learn in networks of spiking neurons,
        arXiv:1803.09574.
    """

    memory_fields: ClassVar[tuple[str, ...]] = ("v",)
    roles: ClassVar[dict[str, str]] = {"membrane": "v"}
    _carry_types: ClassVar[tuple[type, type]] = (LIFState, RefractoryLIFState)

    def __init__(
        self,
        n_in: int | None,
        n: int,
        *,
        recurrent: bool = False,
        tau: float | int = 20e-3,
        dt: float | int = 1e-3,
        threshold: float | int = 1.0,
        reset: str = "subtract",
        refractory: int = 0,
        detach_reset: bool = False,
        train_decay: bool = False,
        surrogate: Surrogate = _TRIANGULAR,
        param_dtype: Any = None,
        rngs: nnx.Rngs | None = None,
    ):
        r"""Draws W and H Glorot uniform.

        Args:
            n_in: size of the input; None: no W, the input acts on the units directly.
            n: units, or channels if `n_in` is None.
            recurrent: whether there is H.
            tau: membrane time constant [s].
            dt: time step [s].
            threshold: $\theta$, above 0.
            reset: "subtract" the threshold, to "zero", or "none".
            refractory: steps after a spike in which the unit cannot fire.
            detach_reset: whether no derivative flows through the reset.
            train_decay: whether each unit's alpha is a parameter (`NeuronCell.d`).
            surrogate: how the spike is differentiated, as a function of v minus the threshold. The
                default has a bounded support, which the backward pass makes use of.
            param_dtype: dtype of the parameters; None: JAX's default float.
            rngs: where W and H are drawn from; needed if there are any.

        Raises:
            ValueError: if a size, a time, the threshold, the reset or the refractory period is not
                one of these, or `rngs` is missing.
        """
        who = type(self).__name__
        if not threshold > 0:
            raise ValueError(f"{who} needs a threshold > 0; got {threshold}.")
        if reset not in _RESETS:
            raise ValueError(f"{who} knows the resets {', '.join(_RESETS)}; got {reset!r}.")
        if isinstance(refractory, bool) or not isinstance(refractory, int) or refractory < 0:
            raise ValueError(f"{who} needs a whole number refractory >= 0; got {refractory!r}.")
        super().__init__(
            n_in,
            n,
            carry_type=self._carry_types[refractory > 0],
            decay=decay_of(who, tau, dt),
            train_decay=train_decay,
            recurrent=recurrent,
            param_dtype=param_dtype,
            rngs=rngs,
        )
        self.threshold, self.reset, self.refractory = threshold, reset, refractory
        self.detach_reset = detach_reset
        self.surrogate = check(type(self).__name__, surrogate)

    def charge(self, carry: Any, z: Float[Array, "*dims"]) -> Any:
        """The new potential v, and the refractory count if there is one."""
        y = jax.lax.stop_gradient(carry.y)
        reset_by = y if self.detach_reset else carry.y
        v = self.decay * after_reset(carry.v, reset_by, self.reset, self.threshold) + z
        if not self.refractory:
            return carry._replace(v=v)
        left = jnp.maximum(jax.lax.stop_gradient(carry.wait) - 1, 0)
        return carry._replace(v=v, wait=jnp.where(y > 0, self.refractory, left))

    def fire(self, carry: Any) -> Float[Array, "*dims"]:
        """A spike where v is above the threshold and the unit is not refractory."""
        y = self.surrogate(self.excess(carry))
        return jnp.where(carry.wait > 0, 0, y) if self.refractory else y

    def excess(self, carry: Any) -> Float[Array, "*dims"]:
        """The potential minus the threshold, as `fire` sees it."""
        return carry.v - self.threshold

    def support(self, carry: Any) -> Bool[Array, "*dims"] | None:
        """Where the surrogate can have a derivative and the unit is not refractory."""
        inside = self.surrogate.inside(self.excess(carry))
        if not self.refractory:
            return inside
        ready = carry.wait <= 0
        return ready if inside is None else inside & ready


class SynapticLIFCell(LIFCell):
    r"""Layer of leaky integrate-and-fire units with second-order synapses.

    $$i_t = \kappa i_{t-1} + x_t W + y_{t-1} H, \quad v_t = \alpha R(v_{t-1}, y_{t-1}) + i_t,
    \quad y_t = [v_t > \theta],$$

    $\kappa = e^{-dt / \tau_{syn}}$; all else as in `LIFCell`.
    """

    memory_fields: ClassVar[tuple[str, ...]] = ("i", "v")
    roles: ClassVar[dict[str, str]] = {"membrane": "v", "synaptic_current": "i"}
    _carry_types: ClassVar[tuple[type, type]] = (SynapticLIFState, RefractorySynapticLIFState)

    def __init__(
        self,
        n_in: int | None,
        n: int,
        *,
        tau_syn: float | int = 5e-3,
        dt: float | int = 1e-3,
        **settings: Any,
    ):
        """Takes what `LIFCell` takes, and the synapse's time constant.

        Args:
            n_in: size of the input; None: no W, the input acts on the units directly.
            n: units, or channels if `n_in` is None.
            tau_syn: time constant of the synaptic current [s]; the default is Norse's.
            dt: time step [s].
            **settings: those of `LIFCell`.

        Raises:
            ValueError: as in `LIFCell`, and if `tau_syn` < `dt`.
        """
        self.synaptic_decay = decay_of(type(self).__name__, tau_syn, dt, "tau_syn")
        super().__init__(n_in, n, dt=dt, **settings)

    def charge(self, carry: Any, z: Float[Array, "*dims"]) -> Any:
        """The new current i and potential v, and the refractory count if there is one."""
        i = self.synaptic_decay * carry.i + z
        return super().charge(carry, i)._replace(i=i)


class ALIFCell(LIFCell):
    r"""Layer of LIF units whose threshold rises with their own spikes.

    $$v_t = \alpha R(v_{t-1}, y_{t-1}) + x_t W + y_{t-1} H, \quad a_t = \rho a_{t-1} + y_{t-1},
    \quad y_t = [v_t > \theta + \beta a_t],$$

    $\rho = e^{-dt / \tau_a}$; all else as in `LIFCell`. A reset by subtraction takes off θ, not the
    raised threshold. `detach_reset` leaves the path from y to a as it is.

    References:
        A solution to the learning dilemma for recurrent networks of spiking neurons,
        Nature Communications 11:3625 (2020); arXiv:1901.09049.
    """

    memory_fields: ClassVar[tuple[str, ...]] = ("v", "a")
    roles: ClassVar[dict[str, str]] = {"membrane": "v", "adaptation": "a"}
    _carry_types: ClassVar[tuple[type, type]] = (ALIFState, RefractoryALIFState)

    def __init__(
        self,
        n_in: int | None,
        n: int,
        *,
        tau_adapt: float | int = 200e-3,
        beta: float | int = 0.17,
        dt: float | int = 1e-3,
        surrogate: Surrogate = _EPROP,
        **settings: Any,
    ):
        r"""Takes what `LIFCell` takes, and the adaptation's strength and time constant.

        Args:
            n_in: size of the input; None: no W, the input acts on the units directly.
            n: units, or channels if `n_in` is None.
            tau_adapt: $\tau_a$, time constant of the adaptation [s].
            beta: how far a spike raises the threshold, >= 0. The default is the authors' rule
                $1.7 (1 - \rho) / (1 - \alpha)$ at the default times.
            dt: time step [s].
            surrogate: how the spike is differentiated, as a function of $v - \theta - \beta a$; the
                default is e-prop's for a threshold of 1.
            **settings: those of `LIFCell`.

        Raises:
            ValueError: as in `LIFCell`, and if `tau_adapt` < `dt` or `beta` < 0.
        """
        who = type(self).__name__
        if not beta >= 0:
            raise ValueError(f"{who} needs beta >= 0; got {beta}.")
        self.beta = beta
        self.adaptation_decay = decay_of(who, tau_adapt, dt, "tau_adapt")
        super().__init__(n_in, n, dt=dt, surrogate=surrogate, **settings)

    def charge(self, carry: Any, z: Float[Array, "*dims"]) -> Any:
        """The new potential v and adaptation a, and the refractory count if there is one."""
        a = self.adaptation_decay * carry.a + carry.y
        return super().charge(carry, z)._replace(a=a)

    def excess(self, carry: Any) -> Float[Array, "*dims"]:
        """The potential minus the raised threshold, as `fire` sees it."""
        return carry.v - self.threshold - self.beta * carry.a
