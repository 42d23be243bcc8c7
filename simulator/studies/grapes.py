"""GRAPES beside the rule without it and controls of the same scale: accuracy, speed, forgetting.

The rule is `learning_rules.grapes`; here are the networks, their training, and what is compared.
"""

import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Float, PRNGKeyArray, PyTree
from pydantic import Field
from pydantic.dataclasses import dataclass

from ...learning_rules import (
    LearningRule,
    bptt,
    direct_feedback_alignment,
    feedback_alignment,
    feedback_weights,
    grapes,
    local_grapes,
    losses,
    parameters,
)
from ..data import load
from ..experiment import STRICT, Count, Positive
from ..network import Network

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FACTORS = {"propagating": "grapes", "mean": "mean", "perm": "perm", "two": "two"}
VARIANTS = ("plain", *FACTORS, "local")
METRICS = ("first_epoch", "test_accuracy", "slowness", "forgetting")
TEXT = (
    "A dense network, trained by backpropagation or feedback alignment (`plain`), or by GRAPES, "
    "which multiplies the error of each hidden unit with a factor, the larger, the more weight "
    "comes in to it: `propagating` sends these errors on to the layers below, `local` does not. "
    "Under backpropagation factors are 1 to 2; under feedback alignment 0 to 2, without a floor; "
    "under direct feedback alignment too, and it is the weight that goes out that counts (no error "
    "is sent on there, so `local` is left out). Factors change the steps of all units together, "
    "too. The controls keep that and drop the rest: every unit of a layer has the mean of the "
    "factors (`mean`), the factors go to other units (`perm`), or all are 2 (`two`). What GRAPES "
    "has over `mean` is what the choice of units is worth. Slowness: s of accuracy = highest e / "
    "(s + e) over epochs e. Forgetting: what is lost of the accuracy on a task, images whose "
    "pixels are shuffled in its own way, by learning later tasks."
)

Variant = Literal["plain", "propagating", "local", "mean", "perm", "two"]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Settings:
    """Rectified linear units without biases; every variant has the same learning rates."""

    errors: Literal["backpropagation", "feedback_alignment", "direct_feedback_alignment"] = (
        "backpropagation"  # how they come down
    )
    variants: Annotated[tuple[Variant, ...], Field(min_length=1)] = VARIANTS  # pyright: ignore[reportAssignmentType]
    optimizers: Annotated[tuple[Literal["sgd", "momentum", "adam"], ...], Field(min_length=1)] = (
        "sgd",
        "momentum",
        "adam",
    )
    data: Literal["fashion_mnist_sample", "fashion_mnist", "mnist"] = "fashion_mnist_sample"
    data_dir: str | None = None
    limit: Annotated[int, Field(ge=0)] = 0  # images of each split; 0: all
    hidden: Annotated[tuple[Count, ...], Field(min_length=1, strict=False)] = (128, 128, 128)
    epochs: Annotated[int, Field(ge=2)] = 12
    tasks: Annotated[int, Field(ge=2)] = 3
    task_epochs: Count = 2
    batch: Count = 50
    sgd_rate: Positive = 0.01
    momentum_rate: Positive = 0.001
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    adam_rate: Positive = 5e-4
    seeds: Count = 3


def cases(settings: Settings, seed: int) -> list[dict[str, Any]]:
    """Each variant with each optimizer from each seed.

    Raises:
        ValueError: no variant is left.
    """
    if (settings.errors, settings.variants) == ("direct_feedback_alignment", ("local",)):
        raise ValueError(
            'study.variants = ["local"]: with study.errors = "direct_feedback_alignment" no error '
            'is sent on, so this is "propagating": take that'
        )
    return [
        {"optimizer": optimizer, "variant": variant, "seed": seed + i}
        for optimizer in settings.optimizers
        for variant in settings.variants
        if (settings.errors, variant) != ("direct_feedback_alignment", "local")
        for i in range(settings.seeds)
    ]


def measure(settings: Settings, seed: int, case: Mapping[str, Any]) -> dict[str, Any]:
    """Trains on the images, and anew on one task after the other."""
    del seed  # that of the case counts from it
    train, test, classes = _data(settings)
    if len(train[0]) < settings.batch:
        raise ValueError(
            f"study.batch = {settings.batch} is more than the {len(train[0])} training images"
        )
    own = case["seed"]
    start, epoch, correct = _trainer(settings, case["variant"], case["optimizer"], classes)
    base = jax.random.split(jax.random.key(own), 1)[0]  # the weights are drawn from the seed itself
    keys = (jax.random.fold_in(base, i) for i in itertools.count())
    shuffle = next(keys)  # of the factors in `perm`, the same for all steps
    fixed = (jax.random.fold_in(base, 2**31), shuffle)  # that of the feedback weights comes first
    state, curve = start(own), []
    for _ in range(settings.epochs):
        state = epoch(state, *train, next(keys), fixed)
        curve.append(correct(state, *test))
    state, seen = start(own), []
    orders = [jax.random.permutation(next(keys), 28 * 28) for _ in range(settings.tasks)]
    for order in orders:
        for _ in range(settings.task_epochs):
            state = epoch(state, train[0][:, order], train[1], next(keys), fixed)
        seen.append([correct(state, test[0][:, o], test[1]) for o in orders])
    if not all(bool(jnp.isfinite(p).all()) for p in jax.tree.leaves(state[0])):
        raise ValueError(
            f"the training of {case['variant']} with {case['optimizer']} diverged: choose a "
            f"smaller study.{case['optimizer']}_rate"
        )
    accuracy = np.array([float(a) for a in curve])
    matrix = np.array([[float(a) for a in row] for row in seen])
    highest, slowness = fit_learning_curve(accuracy)
    return {
        "test_accuracy": float(accuracy[-1]),
        "first_epoch": float(accuracy[0]),
        "slowness": slowness,
        "highest": highest,
        "forgetting": forgetting(matrix),
        "curve": accuracy.tolist(),
        "tasks": matrix.tolist(),
    }


def fit_learning_curve(accuracy: Float[np.ndarray, " epochs"]) -> tuple[float, float]:
    """Least squares of accuracy = highest e / (s + e) over the epochs e = 1, 2, ...

    Returns:
        highest, the accuracy after endless training; and s, the slowness: epochs to half of it,
        looked for from 0.0001 to 10,000.
    """
    e, low, high = np.arange(1.0, len(accuracy) + 1), np.log(1e-4), np.log(1e4)
    tops, slow = np.zeros(1), np.ones(1)
    best = 0
    for _ in range(10):  # each time the points lie 50 times closer around the best
        slow = np.exp(np.linspace(low, high, 101))
        shape = e / (slow[:, None] + e)
        tops = shape @ accuracy / (shape**2).sum(1)
        best = int(((tops[:, None] * shape - accuracy) ** 2).sum(1).argmin())
        low, high = np.log(slow[max(best - 1, 0)]), np.log(slow[min(best + 1, 100)])
    return float(tops[best]), float(slow[best])


def forgetting(accuracy: Float[np.ndarray, "tasks tasks"]) -> float:
    """What later tasks cost: accuracy on a task once learned less that at the end, mean over tasks.

    Args:
        accuracy: on each task (column) after each task (row); the last task counts for nothing.
    """
    return float((np.diag(accuracy) - accuracy[-1])[:-1].mean())


State = tuple[PyTree, PyTree]  # parameters, state of the optimizer
Keys = tuple[PRNGKeyArray, PRNGKeyArray]  # of the feedback weights, of `perm`


@functools.cache
def _trainer(
    settings: Settings, variant: str, optimizer: str, classes: int
) -> tuple[Callable[[int], State], Callable[..., State], Callable[..., Array]]:
    """A start from a seed, one epoch, and the test; compiled once for all seeds."""
    template = _network(settings.hidden, classes, 0)
    graphdef, _ = nnx.split(template)
    tx = {
        "sgd": optax.sgd(settings.sgd_rate),
        "momentum": optax.sgd(settings.momentum_rate, momentum=settings.momentum),
        "adam": optax.adam(settings.adam_rate),
    }[optimizer]
    if variant == "local":
        floor = 1 if settings.errors == "backpropagation" else 0
        tx = optax.chain(local_grapes(template, floor=floor), tx)

    def start(seed: int) -> State:
        params = parameters(_network(settings.hidden, classes, seed))
        return params, tx.init(params)

    @jax.jit
    def epoch(state: State, images: Array, labels: Array, key: PRNGKeyArray, fixed: Keys) -> State:
        rule = _rule(settings, variant, template, *fixed)
        batches = len(images) // settings.batch
        order = jax.random.permutation(key, len(images))[: batches * settings.batch]

        def step(state: State, index: Array) -> tuple[State, None]:
            params, optimizer = state
            x, y = images[index][None], labels[index][None]  # a sequence of one step
            grads = rule.step(params, rule.init(params, x), x, y)[1].grads
            updates, optimizer = tx.update(grads, optimizer, params)
            return (optax.apply_updates(params, updates), optimizer), None

        return jax.lax.scan(step, state, order.reshape(batches, -1))[0]

    @jax.jit
    def correct(state: State, images: Array, labels: Array) -> Array:
        network = nnx.merge(graphdef, state[0])
        logits = network(network.initialize_carry(images.shape[1:]), images)[1]
        return (logits.argmax(-1) == labels).mean()

    return start, epoch, correct


def _rule(
    settings: Settings, variant: str, network: Network, draw: PRNGKeyArray, shuffle: PRNGKeyArray
) -> LearningRule:
    """The rule that a variant trains with; the factors of `local` are the optimizer's."""
    factor = FACTORS.get(variant)
    if settings.errors == "backpropagation":
        make = bptt if factor is None else grapes(bptt, factor=factor, key=shuffle)
        return make(network, losses.cross_entropy)
    direct = settings.errors == "direct_feedback_alignment"
    # the same weights in every epoch, hence a clone of the key
    weights = feedback_weights(network, jax.random.clone(draw), direct=direct)
    make = direct_feedback_alignment if direct else feedback_alignment
    return make(network, losses.cross_entropy, weights, factor=factor, floor=0, key=shuffle)


def _network(hidden: Sequence[int], classes: int, seed: int) -> Network:
    rngs, layers = nnx.Rngs(seed), []
    he = nnx.initializers.he_uniform()
    for n_in, n in itertools.pairwise((28 * 28, *hidden, classes)):
        layers += [nnx.Linear(n_in, n, use_bias=False, kernel_init=he, rngs=rngs), jax.nn.relu]
    return Network(layers[:-1])


@functools.lru_cache(maxsize=1)
def _data(settings: Settings) -> tuple[tuple[Array, Array], tuple[Array, Array], int]:
    dataset = load(settings.data, settings.data_dir, download=True)

    def arrays(split: Any) -> tuple[Array, Array]:
        n = settings.limit or len(split.inputs)
        images = jnp.asarray(split.inputs[:n], jnp.float32).reshape(-1, 28 * 28)
        return images, jnp.asarray(split.targets[:n])

    return arrays(dataset.train), arrays(dataset.test), len(dataset.classes)


def summary(settings: Settings, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Means over seeds; and what `propagating` has over each other variant, seed by seed.

    Differences come with their standard error, None for a single seed.
    """
    result: dict[str, Any] = {}
    for optimizer in settings.optimizers:
        found = {v: _of(rows, optimizer, v) for v in settings.variants}
        found = {v: rows for v, rows in found.items() if rows}
        result[optimizer] = {
            v: {m: float(np.mean([row[m] for row in rows])) for m in METRICS}
            for v, rows in found.items()
        }
        ours = {row["seed"]: row for row in found.get("propagating", [])}
        result[f"{optimizer}: propagating minus"] = {
            v: {m: _difference(m, ours, rows) for m in METRICS}
            for v, rows in found.items()
            if v != "propagating" and any(row["seed"] in ours for row in rows)
        }
    return result


def _difference(metric: str, ours: Mapping[int, Any], rows: Sequence[Any]) -> list[float | None]:
    d = [ours[row["seed"]][metric] - row[metric] for row in rows if row["seed"] in ours]
    error = float(np.std(d, ddof=1) / np.sqrt(len(d))) if len(d) > 1 else None
    return [float(np.mean(d)), error]


def pictures(settings: Settings, rows: Sequence[Mapping[str, Any]]) -> "dict[str, Axes]":
    """Mean accuracy over epochs for each optimizer; slowness and forgetting of every run."""
    from .. import plots

    drawn = {}
    for optimizer in settings.optimizers:
        ax = plots.new_axes()
        for i, variant in enumerate(settings.variants):
            curves = np.array([row["curve"] for row in _of(rows, optimizer, variant)])
            if curves.size:
                epochs, colour = range(1, curves.shape[1] + 1), plots.COLOURS[i]
                ax.plot(epochs, 100 * curves.mean(0), color=colour, label=variant)
        ax.set(xlabel="epoch", ylabel="test accuracy [%]", title=optimizer)
        ax.grid(alpha=0.3)
        ax.legend(frameon=False)
        drawn[f"accuracy_{optimizer}"] = ax
    for metric, unit in (("slowness", "epochs"), ("forgetting", "share of images")):
        ax = plots.new_axes(9.0)
        places = [(o, v) for o in settings.optimizers for v in settings.variants]
        for x, (optimizer, variant) in enumerate(places):
            values = [row[metric] for row in _of(rows, optimizer, variant)]
            colour = plots.COLOURS[settings.variants.index(variant)]
            ax.plot([x] * len(values), values, "o", color=colour, alpha=0.6)
        ax.set_xticks(range(len(places)), [f"{v}\n{o}" for o, v in places], rotation=60)
        ax.set(ylabel=f"{metric} [{unit}]")
        ax.grid(alpha=0.3, axis="y")
        drawn[metric] = ax
    return drawn


def _of(rows: Sequence[Mapping[str, Any]], optimizer: str, variant: str) -> list[Mapping[str, Any]]:
    return [r for r in rows if (r["optimizer"], r["variant"]) == (optimizer, variant)]
