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
from ...quant.training.products import quantize_products, with_noise
from ..data import load
from ..experiment import STRICT, Count, Positive

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MODES: dict[str, luq.LUQ | None] = {
    "float32": None,
    "luq": luq.LUQ(),
    "luq_smp2": luq.LUQ(samples=2),
    "nearest": luq.LUQ(rounding="nearest_even"),
    "luq_all": luq.LUQ(),
    "nearest_all": luq.LUQ(rounding="nearest_even"),
}
TITLES = {"accuracy": "Test accuracy by rounding of the gradients", "loss": "Training loss"}
TEXT = (
    "The same network from the same start, its products in float32 or with all operands in 4 bits: "
    "activations and weights as integers, gradients as powers of two (LUQ). In `nearest` the "
    "gradients are rounded to the nearest power of two, which loses what is smaller than half of "
    "the smallest; `luq` rounds them stochastically, so that they are "
    "right on average; `luq_smp2` takes the mean of two such roundings for the gradient of the "
    "weights. The first and the last layer stay in float32, but for the modes with `_all`."
)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Settings:
    """A residual network of 3 x 3 convolutions without normalisation, trained by Adam."""

    modes: Annotated[
        tuple[
            Literal[
                "float32",
                "luq",
                "luq_smp2",
                "nearest",
                "luq_all",
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
    optimizer: PyTree


def cases(settings: Settings, seed: int) -> list[dict[str, Any]]:
    """Each mode from each of the seeds, the modes of a seed next to each other."""
    return [
        {"mode": mode, "seed": seed + i} for i in range(settings.seeds) for mode in settings.modes
    ]


def measure(settings: Settings, seed: int, case: Mapping[str, Any]) -> dict[str, Any]:
    """Trains one network: its test accuracy, and the training loss of each epoch."""
    del seed  # that of the case counts from it
    (images, labels), (test_images, test_labels), classes = _data(settings)
    network = Convnet(settings.width, settings.blocks, classes, rngs=nnx.Rngs(case["seed"]))
    mode = MODES[case["mode"]]
    if mode is not None:
        network = quantize_products(network, mode, first_and_last=case["mode"].endswith("_all"))
    graphdef, params, rest = nnx.split(network, nnx.Param, ...)
    batches = len(images) // settings.batch
    if not batches:
        raise ValueError(
            f"study.batch = {settings.batch} is more than the {len(images)} training images"
        )
    tx = optax.adam(
        optax.cosine_decay_schedule(settings.learning_rate, settings.epochs * batches, 0.02)
    )

    def loss(params: PyTree, key: PRNGKeyArray, x: Array, y: Array) -> Array:
        logits = with_noise(nnx.merge(graphdef, params, rest), key)(x)
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

    @jax.jit
    def step(state: _State, index: Array, noise: PRNGKeyArray) -> tuple[_State, Array]:
        x, y = images[index], labels[index]
        value, grads = jax.value_and_grad(loss)(state.params, noise, x, y)
        updates, optimizer = tx.update(grads, state.optimizer, state.params)
        return _State(optax.apply_updates(state.params, updates), optimizer), value

    # not a scan: on CPUs convolutions take several times longer inside a compiled loop
    def epoch(state: _State, key: PRNGKeyArray) -> tuple[_State, float]:
        order_key, noise_key = jax.random.split(key)
        order = jax.random.permutation(order_key, len(images))[: batches * settings.batch]
        values = []
        for i, index in enumerate(order.reshape(batches, settings.batch)):
            state, value = step(state, index, jax.random.fold_in(noise_key, i))
            values.append(value)
        return state, float(jnp.stack(values).mean())

    @jax.jit
    def correct(params: PyTree, x: Array, y: Array) -> Array:
        return (nnx.merge(graphdef, params, rest)(x).argmax(-1) == y).mean()

    state, losses = _State(params, tx.init(params)), []
    for i in range(settings.epochs):
        state, value = epoch(state, jax.random.fold_in(_key(case), i))
        losses.append(value)
    if not np.isfinite(losses).all():
        raise ValueError(
            f"the training of {case['mode']} diverged: choose a smaller study.learning_rate"
        )
    accuracy = float(correct(state.params, test_images, test_labels))
    return {"test_accuracy": accuracy, "train_loss": losses}


def _key(case: Mapping[str, Any]) -> PRNGKeyArray:
    """The same order of images for all modes of a seed."""
    return jax.random.fold_in(jax.random.key(case["seed"]), 1)


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
    accuracy.set_xticks(range(len(modes)), modes)
    accuracy.set(ylabel="test accuracy [%]")
    accuracy.grid(alpha=0.3, axis="y")
    loss.set(xlabel="epoch", ylabel="training loss", yscale="log")
    loss.grid(alpha=0.3)
    loss.legend(frameon=False)
    return {"accuracy": accuracy, "loss": loss}


def _accuracies(rows: Sequence[Mapping[str, Any]], mode: str) -> list[float]:
    return [row["test_accuracy"] for row in rows if row["mode"] == mode]
