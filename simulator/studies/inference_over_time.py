"""A classifier written into cells and left alone: its accuracy over a year.

Trained with and without the noise of the cells, read with and without compensation of their drift.
Noise and clipping in training are `devices.hardware_aware`'s, tiles are `devices.tiled`'s.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array
from pydantic import Field
from pydantic.dataclasses import dataclass

from ... import quant
from ...learning_rules import bptt, losses
from ..data import load
from ..data.dataset import Dataset, Split
from ..devices import by_name, hardware_aware, tiled
from ..devices.tile import Tile
from ..encoding import direct
from ..experiment import STRICT, Count, CountOrZero, NotNegative, Positive, Share
from ..job import Job
from ..network import Network
from ..train import named_leaves, train

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Training = Literal["plain", "hardware_aware"]
TRAININGS: tuple[Training, ...] = get_args(Training)
READINGS = ("as_is", "compensated")
TITLES = {"accuracy": "Test accuracy against the time since programming"}
TEXT = (
    "A network of dense layers, trained in float32, is written into tiles of memory cells and read "
    "at later times. Trained plainly, or aware of its hardware: each mini-batch sees matrices as "
    "cells hold them that were just written, or with Gaussian noise, and weights are clipped. "
    "Outputs of a tile are taken as they are, or multiplied by one number that makes up for the "
    "mean drift of its cells. Biases and activations are digital. Bars are one standard deviation "
    "over runs, each with its own training and tiles."
)
Layer = tuple[Array, Array]  # weights (n_in, n_out) and biases
_SOONEST = 0.1  # where 0 s is drawn on a logarithmic axis [s]
_BATCH = 2500  # images that are classified at a time


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Settings:
    """The network, its training, the tiles, and when they are read."""

    data: Literal["fashion_mnist", "fashion_mnist_sample", "mnist"] = "fashion_mnist"
    limit: CountOrZero = 0  # use only the first images of each split; 0: all
    trainings: Annotated[tuple[Training, ...], Field(min_length=1)] = TRAININGS
    runs: Count = 3  # trainings from different starts
    writings: Count = 5  # of each trained network into new tiles
    times: Annotated[tuple[NotNegative, ...], Field(min_length=1)] = (
        0, 1, 3600, 86_400, 31_536_000,
    )  # fmt: skip  # since programming [s]
    hidden: Annotated[tuple[Count, ...], Field(min_length=1)] = (256,)
    epochs: Count = 10
    batch: Count = 100
    learning_rate: Positive = 1e-3
    noise: NotNegative = 0.0  # in training, of the largest weight; 0: that of writing the device
    clip_stds: Positive = 2.5  # in training aware of hardware
    device: str = "pcm"
    rows: Count = 512  # of a tile, at most
    columns: Count = 256
    input_quantile: Share | None = None  # of |inputs|, the range of a tile's; None: of each vector
    calibration: Count = 1000  # training images that such ranges are found with
    ir_drop: NotNegative = 0.0  # share of what wires take; 1: all of it


def cases(settings: Settings, seed: int) -> list[dict[str, Any]]:
    """Every run of every training."""
    del seed
    try:
        device = by_name(settings.device)
    except ValueError as error:
        raise ValueError(f"study.device: {error}") from None
    if device.program is None:
        raise ValueError(f"study.device: {device.name} takes pulses only, and cannot be written")
    if max(settings.times) > device.until:
        raise ValueError(
            f"study.times: {max(settings.times):g} s, and {device.name} is known up to "
            f"{device.until:g} s after programming"
        )
    if settings.input_quantile == 0:
        raise ValueError("study.input_quantile is 0: no input is in that range")
    return [
        {"training": training, "run": run}
        for training in settings.trainings
        for run in range(settings.runs)
    ]


def measure(settings: Settings, seed: int, case: Mapping[str, Any]) -> dict[str, Any]:
    """Accuracy on test images in float32, and by reading at each time, a mean over writings."""
    dataset, key = _data(settings), jax.random.fold_in(jax.random.key(seed), case["run"])
    for_training, for_tiles = jax.random.split(key)
    layers = _trained(settings, dataset, case["training"], for_training)
    images, labels = (jnp.asarray(a) for a in dataset.test[:2])
    found = {name: [[] for _ in settings.times] for name in READINGS}
    built = Tile(by_name(settings.device), ir_drop=settings.ir_drop)
    seen = _digital(layers, jnp.asarray(dataset.train.inputs[: settings.calibration]))
    write, age, classify = _on_tiles(settings, built)
    for writing in range(settings.writings):
        for_cells, for_reads = jax.random.split(jax.random.fold_in(for_tiles, writing))
        held = write(layers, seen, for_cells)
        for i, t in enumerate(settings.times):
            for j, name in enumerate(READINGS):
                now = age(held, jnp.asarray(t, jnp.float32), compensate=name == "compensated")
                own = jax.random.fold_in(for_reads, 2 * i + j)
                logits = [classify(now, layers, x, k) for x, k in _batches(images, own)]
                found[name][i].append(_accuracy(logits, labels))
    digital = _accuracy([_digital(layers, images)[-1]], labels)
    means = {name: [float(np.mean(at)) for at in found[name]] for name in READINGS}
    return {"digital": digital} | means


def pictures(settings: Settings, rows: Sequence[Mapping[str, Any]]) -> "dict[str, Axes]":
    """A line for each training and reading."""
    from .. import plots

    ax, times = plots.new_axes(6.0, 4.0), [max(t, _SOONEST) for t in settings.times]
    for i, (training, own) in enumerate(_by_training(rows).items()):
        for name, style in zip(READINGS, ("s--", "o-"), strict=True):
            values = 100 * np.array([row[name] for row in own])
            spread = values.std(0, ddof=1) if len(own) > 1 else None
            words = f"{training.replace('_', ' ')}, {name.replace('_', ' ')}"
            ax.errorbar(
                times, values.mean(0), spread, fmt=style, ms=4, capsize=2, color=plots.COLOURS[i],
                label=words,
            )  # fmt: skip
        ax.axhline(
            100 * float(np.mean([row["digital"] for row in own])), lw=0.8, ls=":",
            color=plots.COLOURS[i], label=f"{training.replace('_', ' ')}, float32",
        )  # fmt: skip
    ax.set(xscale="log", xlabel="time since programming [s]", ylabel="test accuracy [%]")
    ax.legend(frameon=False, fontsize=8)
    return {"accuracy": ax}


def summary(settings: Settings, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Mean accuracy by training and reading, by time [s]."""
    found: dict[str, Any] = {}
    for training, own in _by_training(rows).items():
        found[training] = {"digital": round(float(np.mean([row["digital"] for row in own])), 4)}
        for name in READINGS:
            means = np.mean([row[name] for row in own], 0)
            found[training][name] = {
                f"{t:g}": round(float(m), 4) for t, m in zip(settings.times, means, strict=True)
            }
    return {"accuracy": found}


def _by_training(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    found: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        found.setdefault(row["training"], []).append(row)
    return found


def _data(settings: Settings) -> Dataset:
    dataset, most = load(settings.data), settings.limit or None

    def cut(part: Split) -> Split:
        return Split(part.inputs[:most], part.targets[:most])

    return Dataset(
        dataset.name, cut(dataset.train), cut(dataset.test), dataset.classes, dataset.kind
    )


def _trained(settings: Settings, dataset: Dataset, training: Training, key: Array) -> list[Layer]:
    """Weights and biases of each layer; the memory is all that differs between trainings."""
    rngs, sizes = nnx.Rngs(key), [dataset.train.inputs.shape[1], *settings.hidden]
    layers: list[Any] = []
    for n_in, n_out in itertools.pairwise(sizes):
        layers += [nnx.Linear(n_in, n_out, rngs=rngs), jax.nn.relu]
    layers.append(nnx.Linear(sizes[-1], len(dataset.classes), rngs=rngs))
    memory = quant.float32()
    if training == "hardware_aware":
        noise = settings.noise or by_name(settings.device)
        memory = hardware_aware(memory, noise, clip_stds=settings.clip_stds)
    updates = settings.epochs * (len(dataset.train.inputs) // settings.batch)
    job = Job(
        dataset,
        lambda x, key: direct(x, 1),
        Network(layers),
        losses.cross_entropy,
        bptt,
        optax.adam(optax.cosine_decay_schedule(settings.learning_rate, max(updates, 1))),
        memory,
        epochs=settings.epochs,
        batch=settings.batch,
        seed=int(jax.random.randint(jax.random.fold_in(key, 1), (), 0, 2**31 - 1)),
        log_every=10**9,
    )
    leaves = named_leaves(memory.read(train(job).memory))
    places = range(0, len(layers), 2)
    return [(leaves[f"{i}.kernel"], leaves[f"{i}.bias"]) for i in places]


def _digital(layers: Sequence[Layer], x: Array) -> list[Array]:
    """The inputs of each layer, and the outputs of the last."""
    found = [x]
    for i, (w, b) in enumerate(layers):
        x = x @ w + b
        x = jax.nn.relu(x) if i < len(layers) - 1 else x
        found.append(x)
    return found


def _on_tiles(settings: Settings, built: Tile) -> tuple[Any, Any, Any]:
    """Functions that write the network into tiles, take them at a time, and classify with them."""

    @jax.jit
    def write(layers: list[Layer], seen: list[Array], key: Array) -> list[tiled.Tiled]:
        held = []
        for (w, _), x, own in zip(layers, seen, jax.random.split(key, len(layers)), strict=False):
            tiles = tiled.program(built, w, own, rows=settings.rows, columns=settings.columns)
            if settings.input_quantile is not None:
                tiles = tiled.calibrated(tiles, x, quantile=settings.input_quantile)
            held.append(tiles)
        return held

    def age(held: list[tiled.Tiled], t: Array, *, compensate: bool) -> list[tiled.Tiled]:
        return [tiled.aged(built, tiles, t, compensate=compensate) for tiles in held]

    @jax.jit
    def classify(now: list[tiled.Tiled], layers: list[Layer], x: Array, key: Array) -> Array:
        for i, (tiles, (_, b)) in enumerate(zip(now, layers, strict=True)):
            x = tiled.matmul(built, tiles, x, jax.random.fold_in(key, i)) + b
            x = jax.nn.relu(x) if i < len(layers) - 1 else x
        return x

    return write, jax.jit(age, static_argnames="compensate"), classify


def _batches(images: Array, key: Array) -> list[tuple[Array, Array]]:
    """Portions of the images, each with a key of its own."""
    firsts = range(0, len(images), _BATCH)
    return [(images[i : i + _BATCH], jax.random.fold_in(key, i)) for i in firsts]


def _accuracy(logits: list[Array], labels: Array) -> float:
    return float(jnp.mean((jnp.concatenate(logits).argmax(-1) == labels).astype(jnp.float32)))
