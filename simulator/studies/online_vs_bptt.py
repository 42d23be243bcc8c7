"""OSTL beside BPTT on real sequences: how far apart they end, by the steps given at a time.

Tasks, networks and training stand here; how exact single gradients are is measured by
`learning_rules.compare_to_bptt`, and a task made to tell rules apart is `delayed_xor`.
"""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, PRNGKeyArray, PyTree
from pydantic import Field
from pydantic.dataclasses import dataclass

from ... import quant
from ...learning_rules import losses, parameters, run_sequence
from ..build import (
    make_dataset,
    make_encoder,
    make_loss,
    make_network,
    make_optimizer,
    make_rule,
)
from ..data import Dataset
from ..evaluate import Evaluation, make_evaluation
from ..experiment import STRICT, Count, Data, Encoder, NetworkSettings, Optimizer, Positive, Rule
from ..job import Job, Samples

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class Task(NamedTuple):
    """Data, how they are told over time, and the chunks; the last is the whole sequence."""

    data: Data
    encoder: Encoder
    chunks: tuple[int, ...]


_SEQUENCES, _CHUNKS = Encoder(name="none"), (1, 4, 16, 64)
TASKS = {
    "chorales": Task(Data(name="jsb", steps=64), _SEQUENCES, _CHUNKS),
    "digits": Task(Data(name="spoken_digits", n_mels=20, steps=64), _SEQUENCES, _CHUNKS),
    "rows": Task(Data(name="fashion_mnist"), Encoder(name="rows", steps=28), (1, 4, 14, 28)),
    "characters": Task(Data(name="characters", length=64), _SEQUENCES, _CHUNKS),
}
NETWORKS = ("lstm", "lstm_2", "soft_snu", "soft_snu_2")  # "_2": two layers
TITLES = {
    "loss": "Test loss at the end",
    "ratio": "Test loss over that of BPTT from the same seed",
}
TEXT = (
    "Every rule starts from the same weights as BPTT and sees the same batches in the same order. "
    "OSTL with H is given so many steps at a time as the horizontal axis says; the weights change "
    'after the whole sequence. "chunk": paths through the state of an upper layer are dropped '
    "where they cross the border of a chunk, so one step at a time is the textbook rule, and the "
    'whole sequence is BPTT. "spatial" drops them everywhere and is given the whole sequence: the '
    "gradient of the textbook rule at the cost of BPTT, so it is drawn at one step. In a network "
    "of one recurrent layer nothing is dropped: what is left there is rounding, which training "
    "makes larger; it says how far two runs of one rule may lie apart. SLTT, which gives no credit "
    "over time, says what the task can tell: where it ends with the loss of BPTT or a lower one, "
    "the task tells nothing of such credit. The band is from the least to the largest loss of BPTT "
    "over seeds."
)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Settings:
    """Tasks, networks and the training, which is the same for all rules."""

    tasks: Annotated[
        tuple[Literal["chorales", "digits", "rows", "characters"], ...], Field(min_length=1)
    ] = ("chorales", "digits", "rows", "characters")
    networks: Annotated[
        tuple[Literal["lstm", "lstm_2", "soft_snu", "soft_snu_2"], ...], Field(min_length=1)
    ] = ("lstm", "soft_snu_2")
    data_dir: str | None = None
    lstm: Count = 8  # units of a layer
    soft_snu: Count = 24
    decay: Annotated[float, Field(gt=0, lt=1)] = 0.8  # of soft SNU
    batch: Count = 8
    updates: Count = 500
    learning_rate: Positive = 0.01  # of Adam, lowered to 0 along a cosine
    seeds: Count = 2
    shortest: Count = 4  # chunks below it, which cost most, are left out
    shortest_exact: Count = 28  # the same of networks of one layer, whose gradient they leave as is


def cases(settings: Settings, seed: int) -> list[dict[str, Any]]:
    """Each task with each network, rule and chunk, from each seed."""
    return [
        {"task": task, "network": network, "rule": rule, "chunk": chunk, "seed": seed + i}
        for task in settings.tasks
        for network in settings.networks
        for rule, chunk in _rules(settings, task, network)
        for i in range(settings.seeds)
    ]


def _rules(settings: Settings, task: str, network: str) -> Iterator[tuple[str, int]]:
    """Rules of a task and the steps they are given at a time; BPTT is the first."""
    *parts, steps = TASKS[task].chunks
    shortest = settings.shortest if network.endswith("_2") else settings.shortest_exact
    yield "bptt", steps
    yield from (("chunk", k) for k in parts if k >= shortest)
    yield "chunk", steps
    yield "spatial", steps
    yield "sltt", steps


_RULES = {
    "bptt": Rule(name="bptt"),
    "chunk": Rule(name="ostl", scope="full", cross_layer="chunk"),
    "spatial": Rule(name="ostl", scope="full", cross_layer="spatial"),
    "sltt": Rule(name="ostl", scope="none"),
}


def measure(settings: Settings, seed: int, case: Mapping[str, Any]) -> dict[str, Any]:
    """Trains on random batches and judges on the test split.

    Returns:
        `test_loss` [nats], for predictions the mean over all steps, else over samples of the mean
        over their steps; `test_accuracy` of classes, None for predictions.
    """
    del seed  # that of the case counts from it
    task, network, own = case["task"], case["network"], case["seed"]
    base = jax.random.split(jax.random.key(own), 1)[0]  # the weights are drawn from the seed itself
    train = _trainer(settings, task, network, case["rule"], case["chunk"])
    params = train(parameters(_job(settings, task, network, own).network), base)
    found = _judge(settings, task, network)(params)
    if not np.isfinite(found.loss):
        raise ValueError(
            f"the training of {network} on {task} by {case['rule']} diverged: choose a smaller "
            "study.learning_rate"
        )
    return {"test_loss": found.loss, "test_accuracy": found.accuracy}


@functools.lru_cache(maxsize=1)
def _dataset(data: Data) -> Dataset:
    return make_dataset(data)


def _job(settings: Settings, task: str, network: str, seed: int, rule: str = "bptt") -> Job:
    """All that a run is made of; the seed is that of the weights."""
    data, encoder, _ = TASKS[task]
    dataset = _dataset(Data(**{**vars(data), "data_dir": settings.data_dir}))
    encode = make_encoder(encoder, dataset)
    inputs = jax.eval_shape(encode, jnp.asarray(dataset.train.inputs[:1]), jax.random.key(0))
    cell, layers = network.removesuffix("_2"), 2 if network.endswith("_2") else 1
    size = settings.lstm if cell == "lstm" else settings.soft_snu
    own = {} if cell == "lstm" else {"decay": settings.decay}
    hidden = NetworkSettings(cell=cell, hidden=(size,) * layers, **own)  # pyright: ignore[reportArgumentType]
    return Job(
        dataset=dataset,
        encode=encode,
        network=make_network(
            hidden, inputs.shape[-1], len(dataset.classes), dt=encoder.dt, rngs=nnx.Rngs(seed)
        ),
        loss=make_loss("auto", dataset),
        make_rule=make_rule(_RULES[rule]),
        tx=make_optimizer(
            Optimizer(learning_rate=settings.learning_rate, schedule="cosine"), settings.updates
        ),
        memory=quant.float32(),
        batch=settings.batch,
    )


@functools.lru_cache(maxsize=1)
def _trainer(
    settings: Settings, task: str, network: str, rule: str, chunk: int
) -> Callable[[PyTree, PRNGKeyArray], PyTree]:
    """From the first weights and a key to the last weights; compiled once for all seeds."""
    job = _job(settings, task, network, 0, rule)
    samples, n = Samples(job, job.dataset.train), len(job.dataset.train.inputs)
    learn = job.make_rule(job.network, losses.weighted(job.loss))

    @jax.jit
    def train(params: PyTree, key: PRNGKeyArray, arrays: Any) -> PyTree:
        def update(carried: Any, i: Array) -> tuple[Any, None]:
            params, state = carried
            draw, encode = jax.random.split(jax.random.fold_in(key, i))
            index = jax.random.randint(draw, (job.batch,), 0, n)
            xs, targets, present = samples.batch(arrays, index, encode)
            targets = (targets, present / present.sum(0))
            grads = run_sequence(learn, params, xs, targets, chunk=chunk).grads
            changes, state = job.tx.update(grads, state, params)
            return (optax.apply_updates(params, changes), state), None

        start = (params, job.tx.init(params))
        return jax.lax.scan(update, start, jnp.arange(settings.updates))[0][0]

    return lambda params, key: train(params, key, samples.arrays)


@functools.lru_cache(maxsize=1)
def _judge(settings: Settings, task: str, network: str) -> Callable[[PyTree], Evaluation]:
    job = _job(settings, task, network, 0)
    return make_evaluation(job, job.dataset.test)


def summary(settings: Settings, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """For each task and network: loss of BPTT, and what each rule has of it.

    `loss`, and `accuracy` of classes, are means over seeds. `percent` is the test loss over that of
    BPTT from the same seed: mean, its standard error (None for a single seed), least and largest.
    `verdict` is "within 1 %" where two standard errors around the mean are so, "worse" or "better"
    where they are wholly beyond that, else "open".
    """
    result: dict[str, Any] = {}
    for task, network in _places(settings):
        by_rule = _by_rule(rows, task, network)
        result[f"{task}, {network}"] = told = {}
        for (rule, chunk), found in by_rule.items():
            label = rule if rule != "chunk" else f"chunk {chunk}"
            told[label] = {"loss": _mean(found, "test_loss")}
            if found[0]["test_accuracy"] is not None:
                told[label]["accuracy"] = _mean(found, "test_accuracy")
            percent = _percent(by_rule, rule, chunk)
            if rule != "bptt" and percent:
                mean, error = float(np.mean(percent)), None
                if len(percent) > 1:
                    error = float(np.std(percent, ddof=1) / np.sqrt(len(percent)))
                spread = (mean, error, min(percent), max(percent))
                told[label]["percent"] = [p if p is None else round(p, 3) for p in spread]
                told[label]["verdict"] = verdict(mean, error)
    return result


def verdict(mean: float, error: float | None) -> str:
    """What a mean [%] with a standard error says about a limit of 1 % around 100."""
    if error is None:
        return "open"
    low, high = mean - 2 * error, mean + 2 * error
    if low > 101 or high < 99:
        return "worse" if low > 101 else "better"
    return "within 1 %" if low >= 99 and high <= 101 else "open"


Key = tuple[str, int]  # rule, chunk


def _places(settings: Settings) -> list[tuple[str, str]]:
    return [(task, network) for task in settings.tasks for network in settings.networks]


def _by_rule(
    rows: Sequence[Mapping[str, Any]], task: str, network: str
) -> dict[Key, list[Mapping[str, Any]]]:
    found: dict[Key, list[Mapping[str, Any]]] = {}
    for row in rows:
        if (row["task"], row["network"]) == (task, network):
            found.setdefault((row["rule"], row["chunk"]), []).append(row)
    return found


def _percent(
    by_rule: Mapping[Key, Sequence[Mapping[str, Any]]], rule: str, chunk: int
) -> list[float]:
    """The loss of each seed over that of BPTT from the same seed; of seeds that have both."""
    exact = {r["seed"]: r["test_loss"] for (k, _), rs in by_rule.items() if k == "bptt" for r in rs}
    found = by_rule.get((rule, chunk), ())
    return [100 * r["test_loss"] / exact[r["seed"]] for r in found if r["seed"] in exact]


def _mean(rows: Sequence[Mapping[str, Any]], name: str) -> float:
    return round(float(np.mean([row[name] for row in rows])), 4)


def pictures(settings: Settings, rows: Sequence[Mapping[str, Any]]) -> "dict[str, Axes]":
    """A panel for each task and network, chunk length on the horizontal axis."""
    from matplotlib.figure import Figure

    drawn: dict[str, Axes] = {}
    for name in ("loss", "ratio"):
        size = (2.9 * len(settings.tasks) + 0.6, 2.7 * len(settings.networks) + 0.7)
        figure = Figure(figsize=size, layout="constrained")
        shape = (len(settings.networks), len(settings.tasks))
        panels = figure.subplots(*shape, sharex="col", squeeze=False)
        for (i, j), ax in np.ndenumerate(panels):
            task, network = settings.tasks[j], settings.networks[i]
            by_rule = _by_rule(rows, task, network)
            (_draw_losses if name == "loss" else _draw_ratios)(ax, task, by_rule)
            chunks = TASKS[task].chunks
            ax.set_xscale("log", base=2)
            ax.set_xticks(chunks, [str(k) for k in (*chunks[:-1], f"T={chunks[-1]}")])
            ax.minorticks_off()
            ax.set_xlim(chunks[0] / 1.5, chunks[-1] * 1.5)
            ax.grid(alpha=0.3)
            ax.set_title(f"{task}, {network}", fontsize=10)
        figure.supxlabel("steps given at a time")
        figure.supylabel(
            "test loss [nats]" if name == "loss" else "test loss over that of BPTT, same seed [%]"
        )
        handles = {
            h.get_label(): h for ax in panels.flat for h in ax.get_legend_handles_labels()[0]
        }
        columns = min(len(handles), len(settings.tasks))
        place: dict[str, Any] = {"loc": "outside upper center", "ncols": columns, "frameon": False}
        figure.legend(list(handles.values()), list(handles), **place)
        drawn[name] = panels[0, 0]
    return drawn


def _draw_losses(ax: "Axes", task: str, by_rule: Mapping[Key, Sequence[Mapping[str, Any]]]) -> None:
    from ..plots import COLOURS

    steps = TASKS[task].chunks[-1]
    losses = {key: [r["test_loss"] for r in found] for key, found in by_rule.items()}
    exact, cut = losses.get(("bptt", steps)), losses.get(("sltt", steps))
    if exact:
        ax.axhspan(min(exact), max(exact), color="k", alpha=0.12, lw=0)
        ax.axhline(float(np.mean(exact)), color="k", lw=1, label="BPTT: mean, and band of seeds")
    if cut:
        ax.axhline(float(np.mean(cut)), color=COLOURS[2], ls=":", label="SLTT: mean")
    _draw_rules(ax, task, losses)


def _draw_ratios(ax: "Axes", task: str, by_rule: Mapping[Key, Sequence[Mapping[str, Any]]]) -> None:
    from ..plots import COLOURS

    ax.axhspan(99, 101, color="k", alpha=0.12, lw=0, label="1 % around BPTT")
    percents = {key: _percent(by_rule, *key) for key in by_rule}
    cut = percents.get(("sltt", TASKS[task].chunks[-1]))
    if cut:
        ax.axhline(float(np.mean(cut)), color=COLOURS[2], ls=":", label="SLTT: mean")
    _draw_rules(ax, task, percents)


def _draw_rules(ax: "Axes", task: str, values: Mapping[Key, Sequence[float]]) -> None:
    """OSTL over chunks, every seed a point, and a line through the means."""
    from ..plots import COLOURS

    chunks = [k for k in TASKS[task].chunks if values.get(("chunk", k))]
    points = [(k, v) for k in chunks for v in values["chunk", k]]
    if points:
        ax.plot(*zip(*points, strict=True), "o", color=COLOURS[0], ms=4, alpha=0.5)
        means = [float(np.mean(values["chunk", k])) for k in chunks]
        ax.plot(chunks, means, color=COLOURS[0], label="OSTL, chunk: seeds and mean")
    textbook = values.get(("spatial", TASKS[task].chunks[-1]))
    if textbook:  # it is that of one step at a time
        ax.plot([1] * len(textbook), textbook, "x", color=COLOURS[1], ms=5, alpha=0.7)
        ax.plot([1], [float(np.mean(textbook))], "D", color=COLOURS[1], label="OSTL, spatial")
