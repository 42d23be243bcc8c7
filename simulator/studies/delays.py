"""Delays of a teacher: which schedules of sigma find them, and how few synapses are enough.

The layers are those of `simulator.delays` and `simulator.delay_learning`.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Float, Int
from pydantic import Field
from pydantic.dataclasses import dataclass

from ..delay_learning import LearnedDelays, delay_updates, rounded_kernel, sigma_schedule
from ..delays import DelayedDense, LagLayer, causal_convolution, prune, shorten
from ..experiment import STRICT, Count, Positive

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TITLES = {
    "schedules": "Delays recovered, by schedule of sigma",
    "pruning": "Dense kernel, small weights pruned",
    "shortening": "Dense kernel, late lags cut off",
}
TEXT = (
    "A teacher fires when enough of its delayed inputs meet. Layers learn it from one sequence and "
    "are judged on another: learned delays rounded to whole steps, a dense kernel with its largest "
    "weights or its first lags only. What rounding and pruning take away is not learned again, but "
    "for the bias, since weights that are gone can no longer balance it. Recovered: the share of "
    "inputs whose largest weight is at the lag of the teacher."
)
_MEASURED = ("recovered", "bce", "accuracy", "recall", "precision")
Share = Annotated[float, Field(gt=0, le=1)]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Settings:
    """The teacher, the training, and what is compared."""

    inputs: Count = 10
    rate: Share = 0.08  # of the inputs: probability of a spike in a step
    lags: Count = 25  # delays are 0 to lags - 1
    threshold: Count = 3  # delayed spikes at once that make the teacher fire
    steps: Count = 6000  # of the sequence to learn from, and of the one to be judged on
    updates: Count = 600  # each on the whole sequence
    learning_rate: Positive = 0.02  # of Adam, at the start of a cosine
    position_rate: Positive = 50.0
    sigmas: tuple[tuple[Positive, Positive, Share], ...] = (  # start, end, share of the updates
        (12.0, 0.23, 0.5),
        (12.0, 0.23, 0.1),
        (0.23, 0.23, 1.0),
        (3.0, 3.0, 1.0),
        (12.0, 12.0, 1.0),
    )
    keep: tuple[Count, ...] = (250, 100, 50, 20, 10, 7, 5, 3)  # weights of the dense kernel
    shortened: tuple[Count, ...] = (24, 22, 20, 15, 10, 5)  # lags of the dense kernel
    seeds: Count = 3


def cases(settings: Settings, seed: int) -> list[dict[str, Any]]:
    """Every schedule of learned delays, then every pruned and every shortened dense kernel."""
    weights = settings.inputs * settings.lags
    for name, values, most in (
        ("keep", settings.keep, weights),
        ("shortened", settings.shortened, settings.lags),
    ):
        if max(values, default=0) > most:
            raise ValueError(
                f"study.{name} = {max(values)}: {settings.inputs} inputs with {settings.lags} lags "
                f"have {most} at most"
            )
    if settings.threshold > settings.inputs:
        raise ValueError(
            f"study.threshold = {settings.threshold}: a teacher with study.inputs = "
            f"{settings.inputs} fires at {settings.inputs} at most"
        )
    learned = [
        {"kernel": "learned", "start": start, "end": end, "share": share}
        for start, end, share in settings.sigmas
    ]
    dense = [(settings.lags, keep) for keep in settings.keep]
    dense += [(lags, lags * settings.inputs) for lags in settings.shortened]
    return learned + [{"kernel": "dense", "lags": lags, "keep": keep} for lags, keep in dense]


def measure(settings: Settings, seed: int, case: Mapping[str, Any]) -> dict[str, Any]:
    """Trains all seeds of a case, or takes the dense kernels trained before, and judges them.

    Every value is a list over the seeds: `recovered` as said in `TEXT`; of the outputs of the
    sequence that was not learned from, `bce` the binary cross-entropy [nats], `accuracy`, `recall`
    and `precision` (0 where nothing was called a spike).
    """
    sigma = (case["start"], case["end"], case["share"]) if case["kernel"] == "learned" else None
    found = []
    for i, (kernel, bias) in enumerate(_trained(settings, seed, sigma)):
        if sigma is None:
            kernel = prune(shorten(kernel, case["lags"]), case["keep"])
        found.append(_judge(_problem(settings, seed, i), kernel, bias))
    return {name: [round(row[name], 4) for row in found] for name in _MEASURED}


def pictures(settings: Settings, rows: Sequence[Mapping[str, Any]]) -> "dict[str, Axes]":
    """Recovered delays by schedule; recall and precision by weights kept and by lags kept."""
    from matplotlib.ticker import MaxNLocator

    from .. import plots

    drawn = {}
    learned = [row for row in rows if row["kernel"] == "learned"]
    if learned:
        ax = drawn["schedules"] = plots.new_axes()
        for i, row in enumerate(learned):
            ax.plot([i] * len(row["recovered"]), row["recovered"], "o", color=plots.COLOURS[0])
            ax.plot([i - 0.2, i + 0.2], [np.mean(row["recovered"])] * 2, color=plots.COLOURS[1])
        ax.set_xticks(
            range(len(learned)), [_schedule(row).replace(" in ", "\nin ") for row in learned]
        )
        ax.set(xlabel="sigma [steps]", ylabel="share of delays recovered", ylim=(-0.05, 1.05))
        ax.grid(alpha=0.3)
    full = settings.lags
    for name, key, chosen in (
        ("pruning", "keep", [r for r in rows if r.get("lags") == full]),
        ("shortening", "lags", [r for r in rows if r.get("lags", full) < full]),
    ):
        if not chosen:
            continue
        ax = drawn[name] = plots.new_axes()
        chosen = sorted(chosen, key=lambda row: row[key])
        x = [row[key] for row in chosen]
        for i, quantity in enumerate(("recall", "precision", "recovered")):
            values = np.array([row[quantity] for row in chosen])
            ax.plot(x, values.mean(1), "o-", color=plots.COLOURS[i], ms=4, label=quantity)
            ax.fill_between(x, values.min(1), values.max(1), color=plots.COLOURS[i], alpha=0.2)
        if name == "pruning":
            ax.set_xscale("log")
        else:
            ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.set(xlabel="weights kept" if name == "pruning" else "lags kept", ylim=(-0.05, 1.05))
        ax.legend(frameon=False)
        ax.grid(alpha=0.3)
    return drawn


def summary(settings: Settings, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Means over the seeds: recovered delays of each schedule, recall of each dense kernel."""
    recovered, pruned, shortened = {}, {}, {}
    for row in rows:
        if row["kernel"] == "learned":
            recovered[_schedule(row)] = round(float(np.mean(row["recovered"])), 3)
        else:
            part, key = (pruned, "keep") if row["lags"] == settings.lags else (shortened, "lags")
            part[str(row[key])] = round(float(np.mean(row["recall"])), 3)
    return {
        "recovered_by_sigma": recovered,
        "recall_by_weights_kept": pruned,
        "recall_by_lags_kept": shortened,
    }


class _Problem(NamedTuple):
    """A teacher with its two sequences."""

    delays: Int[Array, "inputs"]
    xs: Float[Array, "2 steps inputs"]  # to learn from, to be judged on
    ys: Float[Array, "2 steps"]


@functools.lru_cache(maxsize=32)
def _problem(settings: Settings, seed: int, index: int) -> _Problem:
    delay_key, spike_key = jax.random.split(jax.random.fold_in(jax.random.key(seed), index))
    delays = jax.random.randint(delay_key, (settings.inputs,), 0, settings.lags)
    shape = (2, settings.steps, settings.inputs)
    xs = jax.random.bernoulli(spike_key, settings.rate, shape).astype(jnp.float32)
    teacher = (jnp.arange(settings.lags)[:, None] == delays).astype(jnp.float32)[..., None]
    count = causal_convolution(jnp.moveaxis(xs, 0, 1), teacher)[..., 0].T
    fires = count > settings.threshold - 0.5
    if (often := int(fires[0].sum())) in (0, settings.steps):
        raise ValueError(
            f"the teacher fires in {often} of study.steps = {settings.steps}, so there is nothing "
            f"to learn: {'lower' if often == 0 else 'raise'} study.threshold = "
            f"{settings.threshold}, or change study.rate = {settings.rate}"
        )
    return _Problem(delays, xs, fires.astype(jnp.float32))


@functools.lru_cache(maxsize=8)  # all dense cases judge the same kernels
def _trained(
    settings: Settings, seed: int, sigma: tuple[float, float, float] | None
) -> list[tuple[Array, Array]]:
    """Kernel and bias of every seed; with sigma (start, end, share) of learned delays, rounded."""
    rate = optax.cosine_decay_schedule(settings.learning_rate, settings.updates)
    optimizer = optax.adam(rate)
    if sigma is not None:
        start, end, share = sigma
        steps = max(1, round(share * settings.updates))
        schedule = sigma_schedule(settings.lags, steps, start=start, end=end)
        moves = delay_updates(settings.lags, schedule, position_rate=settings.position_rate)
        optimizer = optax.chain(optimizer, moves)

    @jax.jit
    def train(layer: LagLayer, xs: Array, ys: Array) -> LagLayer:
        graphdef, params = nnx.split(layer)

        def loss(params: Any) -> Array:
            logits = nnx.merge(graphdef, params).convolve(xs)[:, 0]
            return optax.sigmoid_binary_cross_entropy(logits, ys).mean()

        def update(carry: Any, _: None) -> tuple[Any, None]:
            params, state = carry
            updates, state = optimizer.update(jax.grad(loss)(params), state, params)
            return (optax.apply_updates(params, updates), state), None

        start = (params, optimizer.init(params))
        (params, _), _ = jax.lax.scan(update, start, length=settings.updates)
        return nnx.merge(graphdef, params)

    found = []
    for i in range(settings.seeds):
        problem, rngs = _problem(settings, seed, i), nnx.Rngs(seed + i)
        sizes = (settings.inputs, 1, settings.lags)
        share = problem.ys[0].mean()
        # else Adam remembers for long the large gradients of the first steps, all of the bias
        bias = jnp.log(share / (1 - share))[None]
        if sigma is None:
            layer = DelayedDense(*sizes, rngs=rngs)
        else:
            layer = LearnedDelays(*sizes, sigma=sigma[0], rngs=rngs)
            # a negative weight drives its position away from the lag of the teacher
            layer.weight[...] = jnp.abs(layer.weight[...])
        layer.bias[...] = bias
        layer = train(layer, problem.xs[0], problem.ys[0])
        kernel = layer.lag_kernel()
        if isinstance(layer, LearnedDelays):
            kernel = rounded_kernel(layer.weight[...], layer.position[...], settings.lags)
        found.append((kernel, layer.bias[...]))
    return found


def _judge(problem: _Problem, kernel: Array, bias: Array) -> dict[str, float]:
    """What a kernel makes of the second sequence, with a bias fitted to the first."""
    logits = np.asarray(causal_convolution(jnp.moveaxis(problem.xs, 0, 1), kernel), np.float64)
    learned, judged = logits[..., 0].T + float(bias[0])
    shift = _calibration(learned, float(problem.ys[0].mean()))
    z, y = judged + shift, np.asarray(problem.ys[1]) > 0
    hit, size = z > 0, np.abs(np.asarray(kernel)[..., 0])
    right = (size.argmax(0) == np.asarray(problem.delays)) & (size.max(0) > 0)
    return {
        "recovered": float(right.mean()),
        "bce": float(np.mean(np.logaddexp(0, z) - y * z)),
        "accuracy": float((hit == y).mean()),
        "recall": float((hit & y).sum() / max(1, y.sum())),
        "precision": float((hit & y).sum() / max(1, hit.sum())),
    }


def _calibration(logits: np.ndarray, share: float) -> float:
    """The shift of the bias that minimises the cross-entropy: mean probability = share."""
    low, high = -1e3, 1e3
    for _ in range(60):  # 2e3 / 2^60 is below what float64 tells apart
        middle = (low + high) / 2
        mean = np.mean(np.exp(-np.logaddexp(0, -(logits + middle))))
        low, high = (middle, high) if mean < share else (low, middle)
    return (low + high) / 2


def _schedule(row: Mapping[str, Any]) -> str:
    if row["start"] == row["end"]:
        return f"{row['start']:g}"
    return f"{row['start']:g} to {row['end']:g} in {row['share']:.0%}"
