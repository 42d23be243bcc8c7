"""What keeps local learning stable: homeostasis, normalised weights, lateral inhibition.

Slow or global influences on units and weights belong here; what single spikes do to weights is that
of the STDP rules.
"""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .stdp import check_bounds, check_positive


@dataclass(frozen=True)
class SynapticScaling:
    r"""All inputs of a unit grow together while it fires too little, and shrink if too much.

    $$\Delta W_{ij} = \alpha\, dt\, W_{ij}\, (r^* - \bar r_j), \qquad
      \bar r \leftarrow e^{-dt/\tau} \bar r + (1 - e^{-dt/\tau})\, s / dt,$$

    so the ratios of a unit's weights stay. Rates are spikes per unit of dt: with times in ms, 10 Hz
    are 0.01. The constants are choices, and `target` has none that would do for all.

    Attributes:
        target: $r^*$, the rate to be reached.
        rate: $\alpha$, how fast weights follow.
        tau: $\tau$, over which the rate is averaged [ms, or any unit that dt has too].
        dt: the step [as tau].
        w_min: the least weight, see `stdp.bounded_update`.
        w_max: the largest weight.

    References:
        Stable Hebbian learning from spike timing-dependent plasticity, Journal of Neuroscience 20,
        2000 (activity-dependent scaling).
    """

    target: float
    rate: float = 0.01
    tau: float = 1000.0
    dt: float = 1.0
    w_min: float = 0.0
    w_max: float = 1.0

    def __post_init__(self):
        """Checks the settings."""
        check_positive(self, "target", "rate", "tau", "dt")
        check_bounds(self)

    def init(self, post_shape: tuple[int, ...]) -> Float[Array, "*batch n"]:
        """The rates at the start: the target, so that nothing moves before there is evidence."""
        return jnp.full(post_shape, self.target)

    def step(
        self,
        rates: Float[Array, "..."],
        weights: Float[Array, "nin n"],
        post: Float[Array, "..."],
    ) -> tuple[Float[Array, "*batch n"], Float[Array, "nin n"]]:
        """One time step: the rates, and the change of the weights, the mean over the batch.

        Args:
            rates: after the last step, (*batch, n).
            weights: W.
            post: spikes of the units in this step, (*batch, n).

        Raises:
            ValueError: arrays that do not fit, or a batch without a sample.
        """
        if rates.shape != post.shape or post.shape[-1:] != weights.shape[1:] or 0 in post.shape:
            raise ValueError(
                f"SynapticScaling.step: rates have shape {rates.shape} and post {post.shape} for "
                f"weights of shape {weights.shape}; both must be (*batch, n) for weights (nin, n), "
                "with at least one sample: make the rates with init(post.shape)."
            )
        rates = rates - math.expm1(-self.dt / self.tau) * (post / self.dt - rates)
        error = self.target - jnp.mean(rates.reshape(-1, rates.shape[-1]), 0)
        return rates, self.rate * self.dt * weights * error


def threshold_change(
    spikes: Float[Array, "*batch n"], target: float, rate: float
) -> Float[Array, " n"]:
    r"""$\Delta\theta = \alpha (s - p^*)$: intrinsic homeostasis, to be added to the thresholds.

    The changes of T steps add up to $\alpha$ (spikes - T p*), so while the threshold stays bounded
    the mean number of spikes goes to p* as 1/T, whatever the unit.

    Args:
        spikes: s, of this step, 0 or 1; averaged over the batch.
        target: p*, the spikes per step to be reached.
        rate: alpha, the change of a threshold for one spike [unit of the threshold].

    Raises:
        ValueError: no sample.
    """
    if 0 in spikes.shape:
        raise ValueError(
            f"threshold_change: spikes of shape {spikes.shape} have no mean: give one or more."
        )
    return rate * (jnp.mean(spikes.reshape(-1, spikes.shape[-1]), 0) - target)


def normalised(
    weights: Float[Array, "nin n"], total: float, *, order: int = 1
) -> Float[Array, "nin n"]:
    """Weights scaled so that those into each unit have the norm `total`; all-zero ones stay zero.

    Args:
        weights: W, a column for each unit.
        total: the norm of each column afterwards.
        order: 1, the sum of |W|; 2, the Euclidean norm.

    Raises:
        ValueError: another order, or a total that is not positive.

    >>> normalised(jnp.array([[1.0, 0.0], [3.0, 0.0]]), total=2.0).tolist()
    [[0.5, 0.0], [1.5, 0.0]]
    """
    if order not in (1, 2) or not 0 < total < math.inf:
        raise ValueError(
            f"normalised: order is {order} and total {total}; the order must be 1 or 2, and the "
            "total a positive number."
        )
    # divided by the largest first, for squares of small weights vanish
    largest = jnp.max(jnp.abs(weights), 0)
    ratios = weights / jnp.where(largest > 0, largest, 1)
    power = jnp.sum(jnp.abs(ratios) ** order, 0)
    power = jnp.where(largest > 0, power, 1)  # before the root, which has no derivative at 0
    return ratios * (total / (power if order == 1 else jnp.sqrt(power)))


def lateral_inhibition(
    spikes: Float[Array, "*batch n"], strength: float
) -> Float[Array, "*batch n"]:
    """What each unit is inhibited by: strength for each spike of the others, none for its own.

    Subtract it from the input of the next step.

    >>> lateral_inhibition(jnp.array([1.0, 0.0, 1.0]), 0.5).tolist()
    [0.5, 1.0, 0.5]
    """
    return strength * (jnp.sum(spikes, -1, keepdims=True) - spikes)


def winner_takes_all(
    spikes: Float[Array, "*batch n"], potential: Float[Array, "*batch n"]
) -> Float[Array, "*batch n"]:
    """Inhibition within the step: of the units that spike only that of the highest potential does.

    Of equal ones the first. Samples without a spike stay without.

    >>> spikes, potential = jnp.array([1.0, 0.0, 1.0]), jnp.array([1.0, 3.0, 2.0])
    >>> winner_takes_all(spikes, potential).tolist()
    [0.0, 0.0, 1.0]
    """
    best = jnp.argmax(jnp.where(spikes > 0, potential, -jnp.inf), -1)
    return spikes * jax.nn.one_hot(best, spikes.shape[-1], dtype=spikes.dtype)
