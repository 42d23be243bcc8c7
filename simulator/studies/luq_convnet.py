"""A deep convolutional network trained with 4-bit products, beside float32 and biased rounding.

What is rounded to what is `quant.training.luq`; here are the network, its training, and what is
compared.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, PRNGKeyArray, PyTree
from pydantic import Field
from pydantic.dataclasses import dataclass

from ...quant.training import luq
from ...quant.training.products import Maximum, quantize_products, with_noise
from ..data import load
from ..experiment import STRICT, Count, Positive

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class Mode(NamedTuple):
    """What the products are rounded to, and what is done beside."""

    products: luq.LUQ | None = None
    all_layers: bool = False
    hindsight: bool = False  # the largest gradient is foretold from earlier steps
    tune: bool = False  # an epoch at the end in which only the weights have 4 bits


NEAREST = luq.LUQ(rounding="nearest_even")
MODES = {
    "float32": Mode(),
    "luq": Mode(luq.LUQ()),
    "nearest": Mode(NEAREST),
    "luq_all": Mode(luq.LUQ(), all_layers=True),
    "luq_all_smp2": Mode(luq.LUQ(samples=2), all_layers=True),
    "luq_all_hindsight": Mode(luq.LUQ(), all_layers=True, hindsight=True),
    "luq_all_fnt": Mode(luq.LUQ(), all_layers=True, tune=True),
    "nearest_all": Mode(NEAREST, all_layers=True),
}
TITLES = {"accuracy": "Test accuracy by rounding of the gradients", "loss": "Training loss"}
TEXT = (
    "The same network from the same start, its products in float32 or with all operands in 4 bits: "
    "activations and weights as integers, gradients as powers of two (LUQ). In `nearest` the "
    "gradients are rounded to the nearest power of two, which loses what is smaller than half of "
    "the smallest; `luq` rounds them stochastically, so that they are right on average. The first "
    "and the last layer stay in float32, but for the modes with `_all`, which are in 4 bits from "
    "end to end. `smp2` takes the mean of two roundings for the gradient of the weights, "
    "`hindsight` knows the scale of a gradient before it comes, `fnt` ends with one more epoch in "
    "which only the weights have 4 bits."
)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Settings:
    """A residual network of 3 x 3 convolutions without normalisation, trained by Adam."""

    modes: Annotated[
        tuple[
            Literal[
                "float32",
                "luq",
                "nearest",
                "luq_all",
                "luq_all_smp2",
                "luq_all_hindsight",
                "luq_all_fnt",
                "nearest_all",
            ],
            ...,
        ],
        Field(min_length=1),
    ] = tuple(MODES)  # pyright: ignore[reportAssignmentType]
    data: Literal["fashion_mnist_sample", "fashion_mnist", "mnist"] = "fashion_mnist_sample"
    data_dir: str | None = None
    limit: Annotated[int, Field(ge=0)] = 0  # images of each split; 0: all
    width: Count = 16  # channels
    blocks: Count = 4  # of two convolutions each
    epochs: Count = 8
    batch: Count = 50
    learning_rate: Positive = 2e-3
    seeds: Count = 3


class Convnet(nnx.Module):
    """A convolution, residual blocks at 7 x 7 pixels, and a dense layer on the mean over pixels."""

    def __init__(self, width: int, blocks: int, classes: int, *, rngs: nnx.Rngs):
        """Draws the weights; the last convolution of each block starts small, as its sum does."""
        self.first = nnx.Conv(1, width, (4, 4), strides=4, rngs=rngs)
        small = nnx.initializers.variance_scaling(1.0 / blocks, "fan_in", "truncated_normal")
        self.pairs = nnx.List(
            nnx.List(
                [
                    nnx.Conv(width, width, (3, 3), rngs=rngs),
                    nnx.Conv(width, width, (3, 3), kernel_init=small, rngs=rngs),
                ]
            )
            for _ in range(blocks)
        )
        self.last = nnx.Linear(width, classes, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        """Images (batch, 28, 28) to logits (batch, classes)."""
        x = self.first(x[..., None])
        for one, two in self.pairs:
            x = x + two(nnx.relu(one(nnx.relu(x))))
        return self.last(nnx.relu(x).mean((1, 2)))


class _State(NamedTuple):
    params: PyTree
    maxima: PyTree
    optimizer: PyTree


def cases(settings: Settings, seed: int) -> list[dict[str, Any]]:
    """Each mode from each of the seeds, the modes of a seed next to each other.

    Raises:
        ValueError: a batch of more than the training images; data that are not there.
    """
    (images, _), _, _ = _data(settings)
    if len(images) < settings.batch:
        raise ValueError(
            f"study.batch = {settings.batch} is more than the {len(images)} training images"
        )
    return [
        {"mode": mode, "seed": seed + i} for i in range(settings.seeds) for mode in settings.modes
    ]


def measure(settings: Settings, seed: int, case: Mapping[str, Any]) -> dict[str, Any]:
    """Trains one network: its test accuracy, and the training loss of each epoch."""
    del seed  # that of the case counts from it
    (images, labels), (test_images, test_labels), classes = _data(settings)
    mode, high = MODES[case["mode"]], settings.learning_rate
    low, batches = settings.learning_rate * 0.02, len(images) // settings.batch
    network = Convnet(settings.width, settings.blocks, classes, rngs=nnx.Rngs(case["seed"]))
    falling = optax.cosine_decay_schedule(high, settings.epochs * batches, low / high)
    key, ends = jax.random.fold_in(jax.random.key(case["seed"]), 1), mode.all_layers
    trained = network
    if mode.products is not None:
        trained = quantize_products(network, mode.products, first_and_last=ends)
    losses = _train(trained, settings, images, labels, key, falling, settings.epochs, mode)
    if mode.tune:
        weights_only = luq.LUQ(activations=None, gradients=None)
        tuned = quantize_products(network, weights_only, first_and_last=ends)
        nnx.update(tuned, nnx.state(trained, nnx.Param))
        trained, key = tuned, jax.random.fold_in(key, settings.epochs)
        rising = luq.fine_tuning_schedule(low, high, max(batches, 2))
        losses += _train(trained, settings, images, labels, key, rising, 1, mode)
    if not np.isfinite(losses).all():
        raise ValueError(
            f"the training of {case['mode']} diverged: choose a smaller study.learning_rate"
        )
    graphdef, state = nnx.split(trained)

    @jax.jit
    def correct(state: PyTree, x: Array, y: Array) -> Array:
        return (nnx.merge(graphdef, state)(x).argmax(-1) == y).mean()

    return {
        "test_accuracy": float(correct(state, test_images, test_labels)),
        "train_loss": losses,
    }


def _train(
    network: Any,
    settings: Settings,
    images: Array,
    labels: Array,
    key: PRNGKeyArray,
    learning_rate: optax.Schedule,
    epochs: int,
    mode: Mode,
) -> list[float]:
    """Changes the parameters of the network; the mean loss of each epoch."""
    graphdef, params, maxima, rest = nnx.split(network, nnx.Param, Maximum, ...)
    tx, batches = optax.adam(learning_rate), len(images) // settings.batch

    def loss(params: PyTree, maxima: PyTree, key: PRNGKeyArray, x: Array, y: Array) -> Array:
        logits = with_noise(nnx.merge(graphdef, params, maxima, rest), key)(x)
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

    @jax.jit
    def step(state: _State, index: Array, noise: PRNGKeyArray) -> tuple[_State, Array]:
        x, y = images[index], labels[index]
        value, (grads, seen) = jax.value_and_grad(loss, (0, 1))(
            state.params, state.maxima, noise, x, y
        )
        maxima = state.maxima
        if mode.hindsight:
            maxima = jax.tree.map(luq.in_hindsight, maxima, seen)
        updates, optimizer = tx.update(grads, state.optimizer, state.params)
        return _State(optax.apply_updates(state.params, updates), maxima, optimizer), value

    state, losses = _State(params, maxima, tx.init(params)), []
    # not a scan: on CPUs convolutions take several times longer inside a compiled loop
    for epoch in range(epochs):
        order_key, noise_key = jax.random.split(jax.random.fold_in(key, epoch))
        order = jax.random.permutation(order_key, len(images))[: batches * settings.batch]
        values = []
        for i, index in enumerate(order.reshape(batches, settings.batch)):
            state, value = step(state, index, jax.random.fold_in(noise_key, i))
            values.append(value)
        losses.append(float(jnp.stack(values).mean()))
    nnx.update(network, state.params, state.maxima)
    return losses


@functools.lru_cache(maxsize=1)
def _data(settings: Settings) -> tuple[tuple[Array, Array], tuple[Array, Array], int]:
    dataset = load(settings.data, settings.data_dir, download=True)

    def arrays(split: Any) -> tuple[Array, Array]:
        n = settings.limit or len(split.inputs)
        images = jnp.asarray(split.inputs[:n], jnp.float32).reshape(-1, 28, 28)
        return images, jnp.asarray(split.targets[:n])

    return arrays(dataset.train), arrays(dataset.test), len(dataset.classes)


def summary(settings: Settings, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Mean test accuracy by mode, and what each loses against float32, in points."""
    means = {
        m: float(np.mean(_accuracies(rows, m))) for m in settings.modes if _accuracies(rows, m)
    }
    result: dict[str, Any] = {"test_accuracy": means}
    if "float32" in means:
        result["points_lost"] = {
            m: round(100 * (means["float32"] - a), 3) for m, a in means.items() if m != "float32"
        }
    return result


def pictures(settings: Settings, rows: Sequence[Mapping[str, Any]]) -> "dict[str, Axes]":
    """Accuracy of every run by mode, and the mean training loss over epochs."""
    from .. import plots

    modes = [m for m in settings.modes if _accuracies(rows, m)]
    accuracy, loss = plots.new_axes(), plots.new_axes()
    for i, mode in enumerate(modes):
        found, colour = _accuracies(rows, mode), plots.COLOURS[i % len(plots.COLOURS)]
        accuracy.plot([i] * len(found), 100 * np.array(found), "o", color=colour, alpha=0.6)
        accuracy.plot([i - 0.25, i + 0.25], [100 * np.mean(found)] * 2, color=colour, lw=2)
        curves = np.array([row["train_loss"] for row in rows if row["mode"] == mode])
        loss.plot(range(1, curves.shape[1] + 1), curves.mean(0), color=colour, label=mode)
    accuracy.set_xticks(range(len(modes)), [m.replace("_", "\n") for m in modes])
    accuracy.set(ylabel="test accuracy [%]")
    accuracy.grid(alpha=0.3, axis="y")
    loss.set(xlabel="epoch", ylabel="training loss", yscale="log")
    loss.grid(alpha=0.3)
    loss.legend(frameon=False)
    return {"accuracy": accuracy, "loss": loss}


def _accuracies(rows: Sequence[Mapping[str, Any]], mode: str) -> list[float]:
    return [row["test_accuracy"] for row in rows if row["mode"] == mode]
