"""Spike-timing-dependent plasticity from pairs and triplets of spikes.

Rules that turn the spikes of one step into a change of weights belong here, and how that change
stays within the bounds of the weights. The traces are those of `synaptic_trace`; rewards, membrane
voltages and homeostasis have files of their own.
"""

import math
import numbers
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from ..quant.storage import Storage
from .synaptic_trace import decayed_trace

INTERACTIONS = ("all_to_all", "nearest")
DEPENDENCES = ("additive", "multiplicative")
COINCIDENCES = ("ignore", "potentiate", "depress", "both")


@runtime_checkable
class Bounded(Protocol):
    """Any rule whose weights stay in [w_min, w_max]."""

    @property
    def w_min(self) -> float:
        """The least weight."""
        ...

    @property
    def w_max(self) -> float:
        """The largest weight."""
        ...


class PairState(NamedTuple):
    """Traces of spikes up to and with the last step."""

    pre: Float[Array, "*batch nin"]  # x1
    post: Float[Array, "*batch n"]  # o1


@dataclass(frozen=True)
class PairSTDP:
    r"""Pair STDP with exact exponential decay, for dense layers.

    With the traces $x_1$ and $o_1$ of the spikes of earlier steps, decayed by $e^{-dt/\tau}$,

    $$\Delta W_{ij} = f_+(W_{ij})\, x_{1,i}\, s^{post}_j - f_-(W_{ij})\, s^{pre}_i\, o_{1,j},$$

    so that a single pair at lag D steps gives exactly $A_\pm e^{-D\,dt/\tau_\pm}$ if additive.

    Where pre and post spike in one step, the time between them is unknown. The traces are read
    before the spikes of their own step are added, so by default such a pair changes nothing.

    The change is the mean over the batch, and no learning rate but $A_\pm$ comes into it.

    Attributes:
        a_plus: $A_+$, potentiation by a post spike after a pre spike; the default is common in
            software, no measured value.
        a_minus: $A_-$, depression by a pre spike after a post spike; likewise.
        tau_plus: $\tau_+$, of the pre trace [ms, or any unit that dt has too].
        tau_minus: $\tau_-$, of the post trace [as tau_plus].
        dt: the step [as tau_plus].
        interaction: "all_to_all", traces add up; "nearest", a spike sets its trace to 1, so that
            each spike pairs with the last one before it only.
        dependence: "additive", $f_\pm = A_\pm$; "multiplicative",
            $f_+ = A_+ (w_{max} - W)^\mu$ and $f_- = A_- (W - w_{min})^\mu$.
        mu: $\mu$ of multiplicative STDP; 0 is additive, 1 fully multiplicative.
        w_min: the least weight, see `apply_update` and `bounded_update`.
        w_max: the largest weight.
        coincidence: what a pair in one step does: "ignore", nothing; "potentiate", pre counts as
            before post ($A_+$); "depress", pre counts as after post ($A_-$); "both", $A_+$ and
            $A_-$ together, as in software that updates traces before it reads them.
        kept: the format of both traces, see `quant.storage.storage`; None: as computed.

    References:
        Competitive Hebbian learning through spike-timing-dependent synaptic plasticity, Nature
        Neuroscience 3, 2000 (additive). Learning input correlations through nonlinear temporally
        asymmetric Hebbian plasticity, Journal of Neuroscience 23, 2003 (multiplicative).
    """

    a_plus: float = 0.005
    a_minus: float = 0.00525
    tau_plus: float = 20.0
    tau_minus: float = 20.0
    dt: float = 1.0
    interaction: str = "all_to_all"
    dependence: str = "additive"
    mu: float = 1.0
    w_min: float = 0.0
    w_max: float = 1.0
    coincidence: str = "ignore"
    kept: Storage | None = None

    def __post_init__(self):
        """Checks the settings."""
        check_positive(self, "dt", "tau_plus", "tau_minus")
        check_choice(self, "interaction", INTERACTIONS)
        check_choice(self, "dependence", DEPENDENCES)
        check_choice(self, "coincidence", COINCIDENCES)
        check_bounds(self)
        check_finite(self, "a_plus", "a_minus", "mu")
        if not self.mu >= 0:
            raise ValueError(
                f"PairSTDP: mu is {self.mu}; it must be at least 0 (0 is additive, 1 fully "
                "multiplicative)."
            )

    def init(self, pre_shape: tuple[int, ...], post_shape: tuple[int, ...]) -> PairState:
        """Traces before any spike, for spikes of shapes (*batch, nin) and (*batch, n)."""
        return PairState(jnp.zeros(pre_shape), jnp.zeros(post_shape))

    def step(
        self,
        state: PairState,
        weights: Float[Array, "nin n"],
        pre: Float[Array, "..."],
        post: Float[Array, "..."],
        key: PRNGKeyArray | None = None,
    ) -> tuple[PairState, Float[Array, "nin n"]]:
        """One time step: traces with this step's spikes, and the change of the weights.

        Args:
            state: the traces after the last step.
            weights: W; read by multiplicative STDP only.
            pre: spikes of the inputs, 0 or 1, (*batch, nin).
            post: spikes of the units, 0 or 1, (*batch, n).
            key: of stochastically rounded traces (`kept`), a new one at each step.

        Returns:
            The new state and dW, the mean over the batch. dW knows no bounds: add it with
            `apply_update`, or hand `bounded_update` to a weight memory.

        Raises:
            ValueError: spikes that do not fit the weights or the state.
        """
        check_spikes(self, weights, pre, post, state.pre, state.post)
        key_pre, key_post = trace_keys(self.kept, key, 2)
        x1, pre_trace = advance(self, state.pre, pre, self.tau_plus, key_pre)
        o1, post_trace = advance(self, state.post, post, self.tau_minus, key_post)
        before_post = pre_trace if self.coincidence in ("potentiate", "both") else x1
        before_pre = post_trace if self.coincidence in ("depress", "both") else o1
        up, down = self.a_plus, self.a_minus
        if self.dependence == "multiplicative":
            # weights beyond a bound have no power of their negative distance to it
            up = up * jnp.maximum(self.w_max - weights, 0) ** self.mu
            down = down * jnp.maximum(weights - self.w_min, 0) ** self.mu
        delta = up * mean_product(before_post, post) - down * mean_product(pre, before_pre)
        return PairState(pre_trace, post_trace), delta


class TripletState(NamedTuple):
    """Traces of spikes up to and with the last step."""

    pre: Float[Array, "*batch nin"]  # x1, with tau_plus
    pre_slow: Float[Array, "*batch nin"]  # x2, with tau_x
    post: Float[Array, "*batch n"]  # o1, with tau_minus
    post_slow: Float[Array, "*batch n"]  # o2, with tau_y


@dataclass(frozen=True)
class TripletSTDP:
    r"""Triplet STDP: pairs whose size depends on the earlier spikes of the same side.

    $$\Delta W_{ij} = x_{1,i} (A_2^+ + A_3^+ o_{2,j})\, s^{post}_j
                    - o_{1,j} (A_2^- + A_3^- x_{2,i})\, s^{pre}_i,$$

    every trace read before the spikes of this step are added; $o_2$ and $x_2$ always, $x_1$ and
    $o_1$ unless `coincidence` says otherwise. With $A_3^\pm = 0$ it is additive `PairSTDP`.

    The defaults are recalled, not checked against the paper: a fit to visual cortex of the
    "minimal" rule, all-to-all. The attributes that are not listed are those of `PairSTDP`.

    Attributes:
        a2_plus: $A_2^+$, potentiation by a pair.
        a2_minus: $A_2^-$, depression by a pair.
        a3_plus: $A_3^+$, potentiation by a post-pre-post triplet.
        a3_minus: $A_3^-$, depression by a pre-post-pre triplet.
        tau_x: of the slow pre trace $x_2$ [as tau_plus].
        tau_y: of the slow post trace $o_2$ [as tau_plus].

    References:
        Triplets of spikes in a model of spike timing-dependent plasticity, Journal of Neuroscience
        26, 2006.
    """

    a2_plus: float = 0.0
    a2_minus: float = 7.1e-3
    a3_plus: float = 6.5e-3
    a3_minus: float = 0.0
    tau_plus: float = 16.8
    tau_minus: float = 33.7
    tau_x: float = 101.0
    tau_y: float = 114.0
    dt: float = 1.0
    interaction: str = "all_to_all"
    w_min: float = 0.0
    w_max: float = 1.0
    coincidence: str = "ignore"
    kept: Storage | None = None

    def __post_init__(self):
        """Checks the settings."""
        check_positive(self, "dt", "tau_plus", "tau_minus", "tau_x", "tau_y")
        check_finite(self, "a2_plus", "a2_minus", "a3_plus", "a3_minus")
        check_choice(self, "interaction", INTERACTIONS)
        check_choice(self, "coincidence", COINCIDENCES)
        check_bounds(self)

    def init(self, pre_shape: tuple[int, ...], post_shape: tuple[int, ...]) -> TripletState:
        """Traces before any spike, for spikes of shapes (*batch, nin) and (*batch, n)."""
        pre, post = jnp.zeros(pre_shape), jnp.zeros(post_shape)
        return TripletState(pre, pre, post, post)

    def step(
        self,
        state: TripletState,
        weights: Float[Array, "nin n"],
        pre: Float[Array, "..."],
        post: Float[Array, "..."],
        key: PRNGKeyArray | None = None,
    ) -> tuple[TripletState, Float[Array, "nin n"]]:
        """One time step, as that of `PairSTDP`; of the weights only the shape is read."""
        check_spikes(self, weights, pre, post, state.pre, state.post)
        keys = trace_keys(self.kept, key, 4)
        x1, pre_trace = advance(self, state.pre, pre, self.tau_plus, keys[0])
        x2, pre_slow = advance(self, state.pre_slow, pre, self.tau_x, keys[1])
        o1, post_trace = advance(self, state.post, post, self.tau_minus, keys[2])
        o2, post_slow = advance(self, state.post_slow, post, self.tau_y, keys[3])
        before_post = pre_trace if self.coincidence in ("potentiate", "both") else x1
        before_pre = post_trace if self.coincidence in ("depress", "both") else o1
        up = mean_product(before_post, (self.a2_plus + self.a3_plus * o2) * post)
        down = mean_product((self.a2_minus + self.a3_minus * x2) * pre, before_pre)
        return TripletState(pre_trace, pre_slow, post_trace, post_slow), up - down


def apply_update(
    rule: Bounded, weights: Float[Array, "*dims"], delta: Float[Array, "*dims"]
) -> Float[Array, "*dims"]:
    """W + dW, clipped into [w_min, w_max] of the rule: for weights that are plain arrays.

    >>> apply_update(PairSTDP(), jnp.array([0.5, 1.0]), jnp.array([0.25, 0.25])).tolist()
    [0.75, 1.0]
    """
    return jnp.clip(weights + delta, rule.w_min, rule.w_max)


def bounded_update(
    rule: Bounded, weights: Float[Array, "*dims"], delta: Float[Array, "*dims"]
) -> Float[Array, "*dims"]:
    """The part of dW that stays within [w_min, w_max]: what a `quant.memory.WeightMemory` is given.

    A memory adds what it is given, so a rule of this package runs on any of them:

        weights = memory.read(kept)
        traces, delta = rule.step(traces, weights, pre, post)
        kept = memory.update(kept, bounded_update(rule, weights, delta), key)

    Computed in the dtype of the weights, W plus the result never leaves the bounds. A memory that
    rounds keeps to them too if both bounds are values of its format, such as 0 and 1 in a float
    format; a synapse whose dW is 0, as it is without spikes, is not written.
    """
    change = jnp.clip(delta, rule.w_min - weights, rule.w_max - weights)
    # those differences are rounded, so that W + (w_max - W) can end one step beyond w_max
    at = jax.lax.stop_gradient(change)
    back = jnp.where(weights + at > rule.w_max, jnp.nextafter(at, -jnp.inf) - at, 0)
    forth = jnp.where(weights + at < rule.w_min, jnp.nextafter(at, jnp.inf) - at, 0)
    return change + back + forth


def advance(
    rule: PairSTDP | TripletSTDP,
    trace: Float[Array, "*dims"],
    spikes: Float[Array, "*dims"],
    tau: float,
    key: PRNGKeyArray | None,
) -> tuple[Float[Array, "*dims"], Float[Array, "*dims"]]:
    """A trace as the spikes of this step find it, and after they are added."""
    decay = math.exp(-rule.dt / tau)
    # the nearest spike replaces all before it
    earlier = trace * (1 - spikes) if rule.interaction == "nearest" else trace
    return decay * trace, decayed_trace(earlier, spikes, decay, kept=rule.kept, key=key)


def mean_product(
    pre: Float[Array, "*batch nin"], post: Float[Array, "*batch n"]
) -> Float[Array, "nin n"]:
    """The outer product of pre and post, averaged over all batch axes."""
    rows, columns = pre.reshape(-1, pre.shape[-1]), post.reshape(-1, post.shape[-1])
    return rows.T @ columns / rows.shape[0]


def trace_keys(
    kept: Storage | None, key: PRNGKeyArray | None, count: int
) -> list[PRNGKeyArray | None]:
    """A key for each trace, where rounding reads one."""
    if kept is None or not kept.draws or key is None:
        return [None] * count
    return list(jax.random.split(key, count))


def check_positive(rule: object, *names: str) -> None:
    """Refuses settings that must be positive numbers and are not."""
    for name in names:
        value = getattr(rule, name)
        if value is None or not 0 < value < math.inf:
            raise ValueError(
                f"{type(rule).__name__}: {name} is {value}; it must be a positive number, and all "
                "times of a rule are in one unit, such as ms."
            )


def check_finite(rule: object, *names: str) -> None:
    """Refuses numbers that would make every weight NaN; traced ones cannot be looked at."""
    for name in names:
        value = getattr(rule, name)
        if isinstance(value, numbers.Real) and not math.isfinite(value):
            raise ValueError(f"{type(rule).__name__}: {name} is {value}; give a finite number.")


def check_choice(rule: object, name: str, choices: tuple[str, ...]) -> None:
    """Refuses a setting that is none of the choices."""
    value = getattr(rule, name)
    if value not in choices:
        raise ValueError(
            f"{type(rule).__name__}: {name} is {value!r}; choose one of {', '.join(choices)}."
        )


def check_bounds(rule: Bounded) -> None:
    """Refuses bounds of weights that leave no room."""
    if not rule.w_min < rule.w_max:
        raise ValueError(
            f"{type(rule).__name__}: w_min is {rule.w_min} and w_max is {rule.w_max}; "
            "w_min must be the smaller one."
        )


def check_spikes(
    rule: object, weights: Array, pre: Array, post: Array, pre_trace: Array, post_trace: Array
) -> None:
    """Refuses spikes that do not fit the weights, each other or the traces."""
    check_shapes(rule, weights, pre, post)
    if (pre_trace.shape, post_trace.shape) != (pre.shape, post.shape):
        raise ValueError(
            f"{type(rule).__name__}.step: the state has traces of shapes {pre_trace.shape} and "
            f"{post_trace.shape} for spikes of shapes {pre.shape} and {post.shape}; make it with "
            f"init({pre.shape}, {post.shape})."
        )


def check_shapes(rule: object, weights: Array, pre: Array, post: Array) -> None:
    """Refuses spikes that do not fit the weights or each other, and batches without a sample."""
    batch, fits = pre.shape[:-1], False
    if weights.ndim == 2:
        nin, n = weights.shape
        fits = (pre.shape, post.shape) == ((*batch, nin), (*batch, n)) and 0 not in batch
    if not fits:
        raise ValueError(
            f"{type(rule).__name__}.step: pre has shape {pre.shape} and post {post.shape} for "
            f"weights of shape {weights.shape}; they must be (*batch, nin) and (*batch, n) for "
            "weights (nin, n), with one batch of at least one sample."
        )
