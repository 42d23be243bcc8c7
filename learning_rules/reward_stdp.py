"""STDP under a reward: the change of the weights waits, as an eligibility, for what comes of it.

Only the reward and the eligibility belong here; which pairs of spikes count is `stdp`'s.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from .fatigue import FatigueState, FatiguingSTDP
from .stdp import (
    PairState,
    PairSTDP,
    TripletState,
    TripletSTDP,
    check_finite,
    check_positive,
    check_shapes,
)


class RewardState(NamedTuple):
    """What is kept between two steps."""

    traces: PairState | TripletState | FatigueState  # of the rule
    eligibility: Float[Array, "*batch nin n"] | None  # e; None where none is kept (tau_e None)
    baseline: Float[Array, "*batch"]  # the mean reward so far


@dataclass(frozen=True)
class RewardSTDP:
    r"""MSTDPET, and without `tau_e` MSTDP: STDP that a reward turns into learning.

    With $\xi$ the change that the rule makes of a sample's spikes in this step, and
    $\lambda = e^{-dt/\tau_e}$,

    $$e \leftarrow \lambda e + (1 - \lambda)\, \xi, \qquad \Delta W = \eta\, (r - \bar r)\, e,$$

    averaged over the batch. The eligibility takes in $\xi$ before the reward of the same step is
    applied. The weights $(1 - \lambda) \lambda^k$ of a $\xi$ sum to 1, so a constant reward of
    $1/\eta$ gives the rule itself, spread over $\tau_e$, and $\tau_e \to 0$ gives MSTDP,
    $\Delta W = \eta (r - \bar r)\, \xi$. The usual factor $dt/\tau_e$ in place of $1 - \lambda$ is
    its limit for $\tau_e \gg dt$, and larger by $dt / 2\tau_e$, about.

    Memory: a weight matrix for each sample.

    Attributes:
        rule: which pairs of spikes count, and how much; its times are in the unit of these.
        eta: $\eta$, the learning rate, times the amplitudes of the rule.
        tau_e: $\tau_e$, how long a change waits for its reward [unit of rule.dt]; None: not at all.
        tau_baseline: of the mean reward $\bar r$ of each sample, from 0 on [unit of rule.dt]; it is
            read before the reward of this step comes in. None: $\bar r = 0$.

    References:
        Reinforcement learning through modulation of spike-timing-dependent synaptic plasticity,
        Neural Computation 19, 2007.
    """

    rule: PairSTDP | TripletSTDP | FatiguingSTDP
    eta: float = 1.0
    tau_e: float | None = 25.0
    tau_baseline: float | None = None

    def __post_init__(self):
        """Checks the settings."""
        if not isinstance(self.rule, PairSTDP | TripletSTDP | FatiguingSTDP):
            raise ValueError(
                f"RewardSTDP: rule is {type(self.rule).__name__}; give a PairSTDP, TripletSTDP or "
                "FatiguingSTDP."
            )
        check_finite(self, "eta")
        times = ("tau_e", "tau_baseline")
        check_positive(self, *(name for name in times if getattr(self, name) is not None))

    @property
    def w_min(self) -> float:
        """That of the rule, for `stdp.bounded_update`."""
        return self.rule.w_min

    @property
    def w_max(self) -> float:
        """That of the rule, for `stdp.bounded_update`."""
        return self.rule.w_max

    def init(self, pre_shape: tuple[int, ...], post_shape: tuple[int, ...]) -> RewardState:
        """Nothing yet, for spikes of shapes (*batch, nin) and (*batch, n)."""
        pending = None if self.tau_e is None else jnp.zeros((*pre_shape, post_shape[-1]))
        return RewardState(
            self.rule.init(pre_shape, post_shape), pending, jnp.zeros(pre_shape[:-1])
        )

    def step(
        self,
        state: RewardState,
        weights: Float[Array, "nin n"],
        pre: Float[Array, "..."],
        post: Float[Array, "..."],
        reward: Float[Array, "..."] | float,
        key: PRNGKeyArray | None = None,
    ) -> tuple[RewardState, Float[Array, "nin n"]]:
        """One time step: the new state, and the change of the weights.

        Args:
            state: after the last step.
            weights: W.
            pre: spikes of the inputs, 0 or 1, (*batch, nin).
            post: spikes of the units, 0 or 1, (*batch, n).
            reward: r of each sample in this step, (*batch); a number for one sample without batch.
            key: of stochastically rounded traces, a new one at each step.

        Raises:
            ValueError: rewards, spikes or a state that do not fit.
        """
        check_shapes(self, weights, pre, post)
        batch, reward = pre.shape[:-1], jnp.asarray(reward)
        if reward.shape != batch:
            raise ValueError(
                f"RewardSTDP.step: reward has shape {reward.shape} and the spikes {pre.shape}; "
                f"one reward for each sample has shape {batch}."
            )
        fitting = jax.eval_shape(lambda: self.init(pre.shape, post.shape))
        if _shapes(state) != _shapes(fitting):
            raise ValueError(
                f"RewardSTDP.step: the state is not that of spikes of shapes {pre.shape} and "
                f"{post.shape} with tau_e={self.tau_e}; make it with this rule's "
                f"init({pre.shape}, {post.shape})."
            )
        step: Callable[..., Any] = self.rule.step
        for _ in batch:  # the rule averages over a batch, and each sample has its own reward
            step = jax.vmap(step, in_axes=(0, None, 0, 0, None if key is None else 0))
        keys = None if key is None else jax.random.split(key, batch) if batch else key
        traces, term = step(state.traces, weights, pre, post, keys)

        eligibility: Any = state.eligibility
        if self.tau_e is not None:
            decay = math.exp(-self.rule.dt / self.tau_e)
            eligibility = term = decay * eligibility + (1 - decay) * term
        baseline, success = state.baseline, reward - state.baseline
        if self.tau_baseline is not None:
            baseline = baseline - math.expm1(-self.rule.dt / self.tau_baseline) * success
        learned = success[..., None, None] * term
        delta = self.eta * jnp.mean(learned.reshape(-1, *weights.shape), 0)
        return RewardState(traces, eligibility, baseline), delta


def _shapes(state: RewardState) -> list[tuple[str, tuple[int, ...]]]:
    leaves = jax.tree_util.tree_leaves_with_path(state)
    return [(jax.tree_util.keystr(path), leaf.shape) for path, leaf in leaves]
