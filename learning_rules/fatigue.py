"""Fatiguing STDP: synapses that tire with use, so that coincidences are learned and not rates.

What belongs here: the short-term state F of an input, the efficacy that it leaves of the weight,
and the mathematics of what is learned. The long-term rule is `stdp`; the simulation from spike to
spike is `kernels.stdp_events`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from .stdp import PairState, PairSTDP, check_positive


def linear_efficacy(fatigue: Float[Array, "*dims"]) -> Float[Array, "*dims"]:
    """The share 1 - F of the weight that a tired synapse transmits."""
    return 1 - fatigue


class FatigueState(NamedTuple):
    """Fatigue and traces up to and with the last step."""

    fatigue: Float[Array, "*batch nin"]  # F, in [0, 1)
    pair: PairState


@dataclass(frozen=True)
class FatiguingSTDP:
    r"""Pair STDP on W, while $G = W (1 - F)$ is what reaches the membrane.

    On a spike of input i, $F_i \leftarrow F_i + U (1 - F_i)$ after it was transmitted; between
    spikes F decays as $e^{-t/\tau_F}$. F belongs to the input, so it costs one number each. With
    U = 0 it is the pair rule, bit for bit. The published structure is a weight times a presynaptic
    fatigue; this law of efficacy is the simplest of that structure and not read from the paper.

    Attributes:
        pair: the rule of W, with dt and the unit of time.
        use: U, in [0, 1).
        tau_fatigue: $\tau_F$ [as pair.dt].
        efficacy: from F to the transmitted share of W, element by element.
        fatigued_update: whether the change of W is multiplied by the efficacy too: another rule.

    References:
        Fatiguing STDP: learning from spike-timing codes in the presence of rate codes,
        arXiv:1706.05563.
    """

    pair: PairSTDP = field(default_factory=PairSTDP)
    use: float = 0.5
    tau_fatigue: float = 200.0
    efficacy: Callable[[Array], Array] = linear_efficacy
    fatigued_update: bool = False

    def __post_init__(self):
        """Checks the settings."""
        check_positive(self, "tau_fatigue")
        if not isinstance(self.pair, PairSTDP):
            raise ValueError(f"FatiguingSTDP: pair is {type(self.pair).__name__}; give a PairSTDP.")
        if not 0 <= self.use < 1:
            raise ValueError(
                f"FatiguingSTDP: use is {self.use}; give 0 (no fatigue) or more, but less than 1, "
                "at which a synapse that fired once would be silent."
            )

    @property
    def dt(self) -> float:
        """The step of the pair rule."""
        return self.pair.dt

    @property
    def w_min(self) -> float:
        """That of the pair rule, for `stdp.bounded_update`."""
        return self.pair.w_min

    @property
    def w_max(self) -> float:
        """That of the pair rule, for `stdp.bounded_update`."""
        return self.pair.w_max

    def init(self, pre_shape: tuple[int, ...], post_shape: tuple[int, ...]) -> FatigueState:
        """The state before any spike, for spikes of shapes (*batch, nin) and (*batch, n)."""
        return FatigueState(jnp.zeros(pre_shape), self.pair.init(pre_shape, post_shape))

    def transmitted(self, state: FatigueState) -> Float[Array, "*batch nin"]:
        """The share of W that a spike in the coming step meets, read before F grows.

        The current into the membrane is `(pre * rule.transmitted(state)) @ weights`.
        """
        return self.efficacy(self._decay() * state.fatigue)

    def step(
        self,
        state: FatigueState,
        weights: Float[Array, "nin n"],
        pre: Float[Array, "..."],
        post: Float[Array, "..."],
        key: PRNGKeyArray | None = None,
    ) -> tuple[FatigueState, Float[Array, "nin n"]]:
        """One time step: the new state and dW, which `stdp.apply_update` adds within bounds.

        Args:
            state: after the last step.
            weights: W.
            pre: spikes of the inputs, 0 or 1, (*batch, nin).
            post: spikes of the units, 0 or 1, (*batch, n).
            key: as of `PairSTDP.step`.

        Raises:
            ValueError: spikes that do not fit the weights or the state; fatigued updates of a
                batch, which have no single efficacy for a synapse.
        """
        if self.fatigued_update and pre.ndim > 1:
            raise ValueError(
                f"FatiguingSTDP(fatigued_update=True): pre has shape {pre.shape}; give one "
                "example at a time, (nin,), since each has a fatigue of its own."
            )
        pair, delta = self.pair.step(state.pair, weights, pre, post, key)
        if self.fatigued_update:
            delta = delta * self.transmitted(state)[:, None]
        fatigue = self._decay() * state.fatigue
        return FatigueState(tire(fatigue, pre, self.use), pair), delta

    def _decay(self) -> float:
        return math.exp(-self.pair.dt / self.tau_fatigue)


def tire(
    fatigue: Float[Array, "*dims"], pre: Float[Array, "*dims"], use: float
) -> Float[Array, "*dims"]:
    r"""What spikes leave: $F + U (1 - F) s$."""
    return fatigue + use * (1 - fatigue) * pre


# Closed forms of the linear efficacy. Rates are in 1 / the unit of tau: Hz and s, or 1/ms and ms.


def poisson_efficacy(rate: float, use: float, tau: float) -> float:
    r"""Mean of 1 - F at the spikes of a Poisson train: $1 / (1 + U r \tau_F)$.

    >>> round(poisson_efficacy(5.0, 0.5, 0.2), 4)
    0.6667
    """
    return 1 / (1 + use * rate * tau)


def regular_efficacy(rate: float, use: float, tau: float) -> float:
    r"""1 - F at the spikes of a regular train: $(1 - q) / (1 - (1 - U) q)$, $q=e^{-1/(r\tau_F)}$.

    >>> regular_efficacy(1.0, 0.0, 0.2)
    1.0
    """
    q = math.exp(-1 / (rate * tau)) if rate > 0 else 0.0
    return (1 - q) / (1 - (1 - use) * q)


def saturated_drive(weight: float, use: float, tau: float) -> float:
    r"""The limit of $r G$ for fast inputs, $W / (U \tau_F)$: there the rate has dropped out.

    Infinite without fatigue, U = 0.
    """
    return weight / (use * tau) if use > 0 else math.inf


def net_depression(rule: PairSTDP) -> float:
    r"""$\beta = A_- \tau_- - A_+ \tau_+$: chance pairs change W by $-\beta r_{pre} r_{post}$.

    Raises:
        ValueError: a rule that is not additive or not all-to-all, for which this does not hold.
    """
    if (rule.dependence, rule.interaction) != ("additive", "all_to_all"):
        raise ValueError(
            f"The closed forms hold for additive all-to-all STDP; the rule is {rule.dependence} "
            f'and {rule.interaction}: take PairSTDP(dependence="additive", '
            'interaction="all_to_all"), or simulate.'
        )
    return rule.a_minus * rule.tau_minus - rule.a_plus * rule.tau_plus


def drift(
    rule: PairSTDP,
    rates: Float[Array, " nin"],
    efficacies: Float[Array, " nin"],
    covariance: Float[Array, "nin nin"],
    post_rate: float | Float[Array, ""],
    gain: float,
) -> Float[Array, " nin"]:
    r"""Mean change of the weights onto one unit in a unit of time.

    $$\langle \dot W_i \rangle \approx -\beta r_i r_{post}
      + A_+ \kappa \left[ r_i G_i + \sum_{j \ne i} G_j c_{ij} \right]$$

    Args:
        rule: additive, with times in the unit of 1 / rates.
        rates: r_i.
        efficacies: G_i = W_i times the mean transmitted share, such as `poisson_efficacy`.
        covariance: c_ij, rate of pairs of spikes beyond chance within the window of the rule; the
            diagonal is not read.
        post_rate: of the unit.
        gain: kappa, the expected number of output spikes that a transmitted weight of 1 causes,
            weighted by the window of potentiation.
    """
    pairs = covariance * (1 - jnp.eye(len(rates), dtype=covariance.dtype))
    caused = rates * efficacies + pairs @ efficacies
    return -net_depression(rule) * rates * post_rate + rule.a_plus * gain * caused


# When the code in spike times is learned, and only that: what each function gives should be as it
# says; c_ij, kappa and the unit of time are those of `drift`.


def rate_suppression(rates: Float[Array, " nin"], use: float, tau: float) -> Float[Array, ""]:
    r"""Condition 1: $U r_{min} \tau_F$, not much below 1, or the drive still tells the rate."""
    return use * jnp.min(rates) * tau


def time_separation(
    tau: float, fast: Float[Array, " times"], learning: float
) -> tuple[Float[Array, ""], float]:
    r"""Condition 2: $\tau_F$ over the slowest of the fast times, and learning time over $\tau_F$.

    Both well above 1: else fatigue eats coincidences, or W follows the moment.

    Args:
        tau: tau_F.
        fast: the times of membrane and STDP.
        learning: time in which a weight crosses its range.
    """
    return tau / jnp.max(fast), learning / tau


def potentiation_of_fast(
    rule: PairSTDP, rate: float, use: float, tau: float, post_rate: float, gain: float,
    weight: float = 1.0,
) -> float:  # fmt: skip
    r"""Condition 3: $A_+ \kappa W / (1 + U r_H \tau_F)$ over $\beta r_{post}$, below 1.

    Then fast inputs without correlation, of rate r_H, are depressed. Where chance pairs do not
    depress, $\beta r_{post} \le 0$, nothing is, and it is infinite.
    """
    up = rule.a_plus * gain * weight * poisson_efficacy(rate, use, tau)
    down = net_depression(rule) * post_rate
    return up / down if down > 0 else math.inf


def potentiation_of_group(
    rule: PairSTDP, count: int, correlation: float, rate: float, use: float, tau: float,
    post_rate: float, gain: float, weight: float = 1.0,
) -> float:  # fmt: skip
    r"""Condition 4: that of condition 3 times $1 + (N_c - 1) c$, at the group's rate; above 1.

    Then the group, `count` inputs of pair correlation c, is potentiated.
    """
    alone = potentiation_of_fast(rule, rate, use, tau, post_rate, gain, weight)
    return alone * (1 + (count - 1) * correlation)


def fatigued_threshold(
    threshold: float, rates: Float[Array, " nin"], weights: Float[Array, " nin"],
    use: float, tau: float,
) -> Float[Array, ""]:  # fmt: skip
    """The threshold scaled by what fatigue leaves of the total mean drive of Poisson inputs.

    STDP with the one and fatiguing STDP with the other begin near the same output rate.
    """
    drive = rates * weights
    return threshold * jnp.sum(drive / (1 + use * rates * tau)) / jnp.sum(drive)
