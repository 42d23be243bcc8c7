"""What SLTT's gradient keeps of BPTT's in slow membranes, and what its length does to learning.

Networks, gradients and training stand in `_slow_membranes.py`; here is what is compared.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from pydantic import Field
from pydantic.dataclasses import dataclass

from ..data import load
from ..experiment import STRICT, Count, CountOrZero, Positive
from ._slow_membranes import (
    Kind,
    compare_gradients,
    make_network,
    predicted_ratio,
    train_and_judge,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: kind of network -> what it changes of the first, whose reset has no gradient, as in SLTT's code
KINDS: dict[str, dict[str, str]] = {
    "base": {},
    "differentiated reset": {"reset": "subtract"},
    "no reset": {"reset": "none"},
    "arctan": {"surrogate": "arctan"},
    "leaky readout": {"readout": "leaky"},
    "linear": {"reset": "none", "surrogate": "straight_through"},
}
#: learner -> rule, optimizer, whether SLTT-K has its factor T/k
LEARNERS = {
    "bptt": ("bptt", "sgd", True),
    "sltt": ("sltt", "sgd", True),
    "sltt, rescaled": ("sltt", "sgd", True),
    "readout only": ("sltt", "sgd", True),
    "sltt-k": ("sltt", "sgd", True),
    "sltt-k, no T/k": ("sltt", "sgd", False),
    "bptt, adam": ("bptt", "adam", True),
    "sltt, adam": ("sltt", "adam", True),
}
TITLES = {
    "norm": "Norm of SLTT's gradient over that of BPTT's, by decay of the membranes",
    "cosine": "Cosine between SLTT's gradient and BPTT's, by decay of the membranes",
    "kinds": "The lowest layer in other kinds of network, mean over seeds",
    "sgd": "Accuracy by learning rate of SGD, mean over seeds and their range",
    "sltt_k": "SLTT-K with and without the factor T/k, mean over seeds and their range",
    "adam": "Accuracy by learning rate of Adam, mean over seeds and their range",
}
TEXT = (
    "SLTT differentiates each time step by itself and drops all paths through a membrane's memory. "
    "First, the gradients of random networks, not yet trained, of leaky integrate-and-fire layers, "
    "for random labels and inputs that spike at rates which do not change: cosine and ratio of "
    "norms against BPTT, layer by layer, for a loss at each step and one at the last alone. "
    "`predicted` counts the dropped paths as if each mattered as much as the kept ones. In `base` "
    "the reset has no gradient, for BPTT neither, and the readout no memory; the other kinds "
    "change one thing of it, and `linear` has no reset and differentiates a spike as 1. Then the "
    "same rules learn pictures of clothes shown as constant currents (14 x 14 pixels, part of the "
    "sample), with SGD at the same rates for all. `sltt, rescaled` divides the rate of each layer "
    "by the ratio of norms measured before training; in `readout only` the hidden layers stay as "
    "they were drawn, which is what a gradient that is too short comes to. SLTT-K differentiates k "
    "steps out of T, drawn for each batch, with the factor T/k and without. Images do not change "
    "in time: the study does not show what SLTT loses where credit must be carried over a delay."
)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Settings:
    """The networks, whose inputs and outputs the first part chooses, and the training."""

    decays: Annotated[tuple[Annotated[float, Field(gt=0, lt=1)], ...], Field(min_length=1)] = (
        0.091,
        0.5,
        0.9,
        0.97,
    )  # share of a membrane that is left after a step
    kinds: tuple[
        Literal["base", "differentiated reset", "no reset", "arctan", "leaky readout", "linear"],
        ...,
    ] = ("base", "differentiated reset", "no reset", "arctan", "leaky readout", "linear")
    inputs: Count = 40
    hidden: Annotated[tuple[Count, ...], Field(min_length=1, strict=False)] = (64, 64)
    outputs: Annotated[int, Field(ge=2)] = 10
    gain: Positive = 2.0  # of the hidden kernels, so that the layers spike
    steps: Count = 10
    batch: Count = 32
    seeds: Count = 5
    learners: tuple[
        Literal[
            "bptt",
            "sltt",
            "sltt, rescaled",
            "readout only",
            "sltt-k",
            "sltt-k, no T/k",
            "bptt, adam",
            "sltt, adam",
        ],
        ...,
    ] = tuple(LEARNERS)  # pyright: ignore[reportAssignmentType]
    sgd_rates: Annotated[tuple[Positive, ...], Field(min_length=1)] = (
        0.01,
        0.03,
        0.1,
        0.3,
        1.0,
        3.0,
    )
    adam_rates: Annotated[tuple[Positive, ...], Field(min_length=1)] = (3e-4, 1e-3, 3e-3, 1e-2)
    k: Count = 2  # steps of SLTT-K
    images: CountOrZero = 2000  # to learn from; 0: all 5,000
    image_batch: Count = 50
    epochs: Count = 5
    learning_seeds: Count = 3


def cases(settings: Settings, seed: int) -> list[dict[str, Any]]:
    """Gradients of each kind of network; then each learner from each seed; all with each decay."""
    if settings.k > settings.steps:
        raise ValueError(f"study.k = {settings.k} is more than study.steps = {settings.steps}")
    gradients = [
        {"part": "gradient", "kind": kind, "loss": loss, "decay": decay}
        for kind in settings.kinds
        for loss in ("each", "last")
        for decay in settings.decays
    ]
    learning = [
        {"part": "learning", "learner": learner, "decay": decay, "seed": seed + i}
        for learner in settings.learners
        for decay in settings.decays
        for i in range(settings.learning_seeds)
    ]
    return gradients + learning


def measure(settings: Settings, seed: int, case: Mapping[str, Any]) -> dict[str, Any]:
    """The gradients of all seeds, or a training at each rate.

    Gradients: `cosine` and `ratio` have a list for each layer with a membrane, lowest first, of a
    value for each seed; `predicted` is a ratio for each layer. Learning: `rate`, and after the
    training at it `train_loss` [nats], `train_accuracy` and `test_accuracy`, None where it
    diverged; `factor` of each layer is what its rate is multiplied with.
    """
    if case["part"] == "gradient":
        return _measure_gradients(settings, seed, case)
    return _measure_learning(settings, case)


def _measure_gradients(settings: Settings, seed: int, case: Mapping[str, Any]) -> dict[str, Any]:
    sizes = (settings.inputs, *settings.hidden, settings.outputs)
    kind = Kind(sizes, gain=settings.gain, **KINDS[case["kind"]])
    found = []
    for i in range(settings.seeds):
        network = make_network(kind, case["decay"], seed + i)
        rate, spike, label = jax.random.split(jax.random.fold_in(jax.random.key(seed + i), 1), 3)
        rates = jax.random.uniform(rate, (settings.batch, settings.inputs))
        xs = jax.random.bernoulli(spike, rates, (settings.steps, *rates.shape))
        labels = jax.random.randint(label, (settings.batch,), 0, settings.outputs)
        found.append(compare_gradients(kind, network, xs.astype(jnp.float32), labels, case["loss"]))
    layers = len(found[0].ratio)
    return {
        "cosine": [[round(f.cosine[i], 4) for f in found] for i in range(layers)],
        "ratio": [[_short(f.ratio[i]) for f in found] for i in range(layers)],
        "predicted": [
            _short(predicted_ratio(case["decay"], layers - i, settings.steps, case["loss"]))
            for i in range(layers)
        ],
    }


def _measure_learning(settings: Settings, case: Mapping[str, Any]) -> dict[str, Any]:
    rule, optimizer, scale = LEARNERS[case["learner"]]
    data = _data(settings.images)
    if len(data[0][0]) < settings.image_batch:
        raise ValueError(
            f"study.image_batch = {settings.image_batch} is more than the {len(data[0][0])} "
            "training images"
        )
    kind = Kind((data[0][0].shape[1], *settings.hidden, 10), gain=settings.gain)
    network, factors = make_network(kind, case["decay"], case["seed"]), [1.0] * len(settings.hidden)
    if case["learner"] == "readout only":
        factors = [0.0] * len(settings.hidden)
    elif case["learner"] == "sltt, rescaled":
        images, labels = (a[:256] for a in data[0])
        xs = jnp.broadcast_to(images, (settings.steps, *images.shape))
        factors = [1 / r for r in compare_gradients(kind, network, xs, labels, "each").ratio]
    rates = settings.adam_rates if optimizer == "adam" else settings.sgd_rates
    k = settings.k if case["learner"].startswith("sltt-k") else None
    found = [
        train_and_judge(
            kind,
            network,
            data,
            rule=rule,
            factors=[*factors, 1.0],
            optimizer=optimizer,
            rate=rate,
            steps=settings.steps,
            batch=settings.image_batch,
            epochs=settings.epochs,
            key=jax.random.fold_in(jax.random.key(case["seed"]), 2),  # the same for all rates
            k=k,
            scale=scale,
        )
        for rate in rates
    ]
    measured: dict[str, Any] = {
        name: [_short(getattr(f, name)) if np.isfinite(f.train_loss) else None for f in found]
        for name in ("train_loss", "train_accuracy", "test_accuracy")
    }
    return {"rate": list(rates)} | measured | {"factor": [_short(f) for f in factors]}


def _short(value: float) -> float:
    return float(f"{value:.4g}")


@functools.lru_cache(maxsize=1)
def _data(images: int) -> list[tuple[Array, Array]]:
    """Training and test images, each pixel the mean of four, with their labels."""
    dataset = load("fashion_mnist_sample")

    def arrays(split: Any, n: int) -> tuple[Array, Array]:
        pixels = np.asarray(split.inputs[:n], np.float32).reshape(-1, 14, 2, 14, 2).mean((2, 4))
        return jnp.asarray(pixels.reshape(len(pixels), -1)), jnp.asarray(split.targets[:n])

    train = arrays(dataset.train, images or len(dataset.train.inputs))
    return [train, arrays(dataset.test, len(dataset.test.inputs))]


def summary(settings: Settings, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Cosine and ratio of the lowest layer of `base`; each learner at its best rate.

    That is the one with the highest mean training accuracy.
    """
    result: dict[str, Any] = {}
    for row in _of(rows, part="gradient", kind="base"):
        name = f"lowest layer, loss at {row['loss']}: decay -> cosine, ratio, predicted"
        values = np.mean(row["cosine"][0]), np.mean(row["ratio"][0]), row["predicted"][0]
        result.setdefault(name, {})[str(row["decay"])] = [float(f"{v:.3g}") for v in values]
    for learner in settings.learners:
        name = f"{learner}: decay -> rate, training and test accuracy"
        for decay in settings.decays:
            found = _of(rows, part="learning", learner=learner, decay=decay)
            if found:
                train, test = (_mean(found, key) for key in ("train_accuracy", "test_accuracy"))
                best = int(np.argmax(train))
                values = found[0]["rate"][best], round(train[best], 4), round(test[best], 4)
                result.setdefault(name, {})[str(decay)] = values
    return result


def _of(rows: Sequence[Mapping[str, Any]], **wanted: Any) -> list[Mapping[str, Any]]:
    return [row for row in rows if wanted.items() <= row.items()]


def _values(rows: Sequence[Mapping[str, Any]], key: str) -> np.ndarray:
    """(seeds, rates) of a quantity; what diverged counts as an accuracy of 0."""
    return np.array([[0.0 if v is None else v for v in row[key]] for row in rows])


def _mean(rows: Sequence[Mapping[str, Any]], key: str) -> list[float]:
    return _values(rows, key).mean(0).tolist()


def pictures(settings: Settings, rows: Sequence[Mapping[str, Any]]) -> "dict[str, Axes]":
    """Ratio and cosine by decay; the kinds of network; accuracy by learning rate."""
    drawn: dict[str, Axes] = {}
    gradients = _of(rows, part="gradient")
    if _of(gradients, kind="base"):
        drawn |= {key: _by_decay(settings, gradients, key) for key in ("ratio", "cosine")}
        drawn["norm"] = drawn.pop("ratio")
    if gradients:
        drawn["kinds"] = _by_kind(settings, gradients)
    for name, shown in (
        ("sgd", ("bptt", "sltt", "sltt, rescaled", "readout only")),
        ("sltt_k", ("sltt", "sltt-k", "sltt-k, no T/k")),
        ("adam", ("bptt, adam", "sltt, adam")),
    ):
        learners = [learner for learner in shown if learner in settings.learners]
        if learners and _of(rows, part="learning"):
            drawn[name] = _by_rate(settings, rows, learners)
    return drawn


def _panels(number: int, *, sharey: bool = True) -> "list[Axes]":
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.8 * number + 1, 3.8), layout="constrained")
    return list(figure.subplots(1, number, sharey=sharey, squeeze=False)[0])


def _by_decay(settings: Settings, rows: Sequence[Mapping[str, Any]], key: str) -> "Axes":
    """One panel a loss; a line a layer through the means, a point a seed, dashes the prediction."""
    from .. import plots

    panels = _panels(2)
    for ax, loss in zip(panels, ("each", "last"), strict=True):
        found = _of(rows, kind="base", loss=loss)
        x = _decay_axis(settings, ax, found)
        for i in range(len(found[0][key])):
            colour, values = plots.COLOURS[i], np.array([row[key][i] for row in found])
            ax.plot(x, values.mean(1), color=colour, lw=3, alpha=0.6, label=f"layer {i + 1}")
            ax.plot(x, values, "o", color=colour, ms=4, alpha=0.5)
            if key == "ratio":
                predicted = [row["predicted"][i] for row in found]
                ax.plot(x, predicted, "k--", lw=1, label=None if i else "predicted")
        ax.set_title("loss at each step" if loss == "each" else "loss at the last step alone")
    panels[0].set_ylabel("ratio of norms" if key == "ratio" else key)
    if key == "ratio":
        panels[0].set_yscale("log")
    panels[-1].legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    return panels[0]


def _by_kind(settings: Settings, rows: Sequence[Mapping[str, Any]]) -> "Axes":
    """Ratio and cosine of the lowest layer, for the loss at each step."""
    from .. import plots

    panels = _panels(2, sharey=False)
    for ax, key in zip(panels, ("ratio", "cosine"), strict=True):
        for i, kind in enumerate(settings.kinds):
            found = _of(rows, kind=kind, loss="each")
            x = _decay_axis(settings, ax, found)
            y = [np.mean(row[key][0]) for row in found]
            style = {"ls": "--" if i else "-", "lw": 1.5 if i else 4, "alpha": 1 if i else 0.5}
            ax.plot(x, y, color=plots.COLOURS[i], marker="o", ms=4, label=kind, **style)
        ax.set_ylabel("ratio of norms" if key == "ratio" else key)
    panels[0].set_yscale("log")
    panels[-1].legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    return panels[0]


def _decay_axis(settings: Settings, ax: "Axes", rows: Sequence[Mapping[str, Any]]) -> list[float]:
    """Decays by the steps 1 / (1 - decay) that a membrane remembers, on a logarithmic axis."""
    ax.set(xscale="log", xlabel="decay of the membranes")
    ax.set_xticks([1 / (1 - d) for d in settings.decays], [f"{d:g}" for d in settings.decays])
    ax.minorticks_off()
    ax.grid(alpha=0.3)
    return [1 / (1 - row["decay"]) for row in rows]


def _by_rate(
    settings: Settings, rows: Sequence[Mapping[str, Any]], learners: Sequence[str]
) -> "Axes":
    from .. import plots

    panels = _panels(len(settings.decays))
    for ax, decay in zip(panels, settings.decays, strict=True):
        for learner in learners:
            found = _of(rows, part="learning", learner=learner, decay=decay)
            if found:
                colour = plots.COLOURS[list(LEARNERS).index(learner) % 6]  # Adam as SGD
                x, y = found[0]["rate"], 100 * _values(found, "test_accuracy")
                ax.plot(x, y.mean(0), "o-", ms=4, color=colour, label=learner)
                ax.fill_between(x, y.min(0), y.max(0), color=colour, alpha=0.2)
        ax.set(xscale="log", xlabel="learning rate", title=f"decay {decay:g}")
        ax.grid(alpha=0.3)
    panels[0].set_ylabel("test accuracy [%]")
    panels[-1].legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    return panels[0]
