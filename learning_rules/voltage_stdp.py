"""STDP that reads the membrane voltage of the post side in place of its spikes.

The rule of Clopath and others belongs here. Bounds are applied as in `stdp`.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .stdp import check_bounds, check_finite, check_positive, check_spikes, mean_product
from .synaptic_trace import decayed_trace


class VoltageState(NamedTuple):
    """Averages over the past, up to and with the last step."""

    pre: Float[Array, "*batch nin"]  # trace of spikes, each 1: tau_x times x
    minus: Float[Array, "*batch n"]  # u-, with tau_minus [mV]
    plus: Float[Array, "*batch n"]  # u+, with tau_plus [mV]
    depolarised: Float[Array, "*batch n"]  # mean of u - rest, with tau_mean [mV]


@dataclass(frozen=True)
class VoltageSTDP:
    r"""Voltage-based STDP.

    $$\frac{dW_{ij}}{dt} = -A_{LTD}\, X_i\, [\bar u_{-,j} - \theta_-]_+
        + A_{LTP}\, \bar x_i\, [u_j - \theta_+]_+\, [\bar u_{+,j} - \theta_-]_+,$$

    with X the pre spikes (as pulses of area 1), $\bar x$ their average, $1/\tau_x$ for each spike,
    and $\bar u_\pm$ the averages of the voltage u. Averages decay exactly; u counts as constant
    within a step. All averages are read before the spikes and the voltage of this step come in, so
    nothing pairs with itself. A published simulation reads $\bar u_\pm$ some ms later still; that
    delay is not part of this rule.

    With `u_ref` depression is homeostatic: $A_{LTD}\, \bar{\bar u}^2 / u_{ref}^2$, where
    $\bar{\bar u}$ averages u - rest over `tau_mean`.

    Amplitudes, thresholds and `tau_x` are those of a public simulator (NEST, visual cortex); the
    other times and `rest` are recalled, and none was checked against the paper. Times in ms and
    voltages in mV, as there.

    Attributes:
        a_ltd: $A_{LTD}$ [1/mV].
        a_ltp: $A_{LTP}$ [1/mV^2].
        theta_minus: $\theta_-$ [mV].
        theta_plus: $\theta_+$ [mV].
        tau_x: of $\bar x$ [ms].
        tau_minus: of $\bar u_-$ [ms].
        tau_plus: of $\bar u_+$ [ms].
        u_ref: $u_{ref}$ [mV]; None: $A_{LTD}$ is constant.
        tau_mean: of $\bar{\bar u}$ [ms].
        rest: the voltage before the first step [mV].
        dt: the step [ms].
        w_min: the least weight, see `stdp.bounded_update`.
        w_max: the largest weight.

    References:
        Connectivity reflects coding: a model of voltage-based STDP with homeostasis, Nature
        Neuroscience 13, 2010.
    """

    a_ltd: float = 14e-5
    a_ltp: float = 8e-5
    theta_minus: float = -70.6
    theta_plus: float = -45.3
    tau_x: float = 15.0
    tau_minus: float = 10.0
    tau_plus: float = 7.0
    u_ref: float | None = None
    tau_mean: float = 1000.0
    rest: float = -70.6
    dt: float = 1.0
    w_min: float = 0.0
    w_max: float = 1.0

    def __post_init__(self):
        """Checks the settings."""
        check_positive(self, "dt", "tau_x", "tau_minus", "tau_plus", "tau_mean")
        check_finite(self, "a_ltd", "a_ltp", "theta_minus", "theta_plus", "rest")
        check_bounds(self)
        if self.u_ref is not None:
            check_positive(self, "u_ref")

    def init(self, pre_shape: tuple[int, ...], post_shape: tuple[int, ...]) -> VoltageState:
        """At rest and before any spike, for shapes (*batch, nin) and (*batch, n)."""
        rest = jnp.full(post_shape, self.rest)
        return VoltageState(jnp.zeros(pre_shape), rest, rest, jnp.zeros(post_shape))

    def step(
        self,
        state: VoltageState,
        weights: Float[Array, "nin n"],
        pre: Float[Array, "..."],
        voltage: Float[Array, "..."],
    ) -> tuple[VoltageState, Float[Array, "nin n"]]:
        """One time step: the new averages, and the change of the weights, the mean over the batch.

        Args:
            state: after the last step.
            weights: W; only the shape is read.
            pre: spikes of the inputs, 0 or 1, (*batch, nin).
            voltage: u of the units in this step, spikes included, (*batch, n) [mV].

        Raises:
            ValueError: arrays that do not fit.
        """
        check_spikes(self, weights, pre, voltage, state.pre, state.minus)
        depression = self.a_ltd * jax.nn.relu(state.minus - self.theta_minus)
        if self.u_ref is not None:
            depression = depression * (state.depolarised / self.u_ref) ** 2
        potentiation = (
            self.a_ltp
            * jax.nn.relu(voltage - self.theta_plus)
            * jax.nn.relu(state.plus - self.theta_minus)
        )
        decay = math.exp(-self.dt / self.tau_x)
        average = decay * state.pre / self.tau_x
        delta = self.dt * mean_product(average, potentiation) - mean_product(pre, depression)
        new = VoltageState(
            decayed_trace(state.pre, pre, decay),
            self._follow(state.minus, voltage, self.tau_minus),
            self._follow(state.plus, voltage, self.tau_plus),
            self._follow(state.depolarised, voltage - self.rest, self.tau_mean),
        )
        return new, delta

    def _follow(self, average: Array, value: Array, tau: float) -> Array:
        """The exact average after a step in which the value is constant."""
        return average - math.expm1(-self.dt / tau) * (value - average)
