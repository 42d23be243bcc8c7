"""Delayed exclusive or: a task that rules solve only if they assign credit across time.

The rules are those of `simulator.rules_table`; here are the task, the training, and what is
compared.
"""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Float, PRNGKeyArray, PyTree
from pydantic import Field
from pydantic.dataclasses import dataclass

from ...learning_rules import LearningRule, losses, parameters, run_sequence
from ..build import make_network
from ..experiment import CELL_SETTINGS, STRICT, Count, CountOrZero, NetworkSettings, Positive
from ..network import Network
from ..rules_table import RULES

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CHANCE = float(np.log(2))  # [nats] for saying 1/2 always
TITLES = {
    "final_loss": "Loss at the end: every seed a point",
    "accuracy": "Accuracy at the end: every seed a point",
}
TEXT = (
    "Two bits, +1 or -1, come at different steps on lines of their own, and much later a cue on a "
    "third; at that step alone the network is asked whether the bits differ. No step holds both "
    "bits, and the one that is judged holds none: keeping the first bit until the second comes, "
    "and the result until the cue, is rewarded only later, so a rule must carry credit back in "
    "time to learn it. Loss and accuracy are those of the four sequences there are: they tell how "
    "well these are learned, and nothing of new ones. Chance is 0.693 nats. A rule may get below "
    "it without credit over time, since random recurrent weights keep something of the bits, from "
    "which the readout and the last steps can learn; truncated BPTT, in chunks that do not reach "
    "from the cue to the bits, shows how far that goes. Online rules are given one step at a time, "
    "and the weights change after the last. Learning rate and size are the same for all rules; "
    "the rate is not lowered, so a loss that was low may rise again: `reached` says that it once "
    "was below the level called solved."
)
Cell = Literal["snu", "soft_snu", "lif", "synaptic_lif", "alif", "lstm", "gru", "simple"]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Settings:
    """The task, the networks of one recurrent layer and a dense readout, and the training."""

    cells: Annotated[tuple[Cell, ...], Field(min_length=1)] = ("gru", "soft_snu")
    rules: Annotated[tuple[str, ...], Field(min_length=1)] = (  # names of simulator.rules_table
        "bptt",
        "ostl",
        "snap1",
        "ostl_no_h",
        "sltt",
    )
    truncated: tuple[Count, ...] = (7, 2)  # chunks of BPTT, beside the whole sequence
    chunk: Count = 1  # steps given to the other rules at a time
    bits: tuple[CountOrZero, CountOrZero] = (1, 5)  # steps at which they come, counted from 0
    cue: Count = 13  # the last step
    hidden: Count = 16
    decay: Annotated[float, Field(gt=0, lt=1)] = 0.9  # of membranes
    batch: Count = 64  # sequences an update, drawn from the four
    updates: Count = 400
    learning_rate: Positive = 0.01  # of Adam
    solved: Positive = 0.1  # loss [nats] below which it counts as solved
    seeds: Count = 5


def cases(settings: Settings, seed: int) -> list[dict[str, Any]]:
    """Each rule on each cell from each seed, and BPTT in chunks."""
    if max(settings.bits) >= settings.cue:
        raise ValueError(
            f"study.bits = {list(settings.bits)}: both must come before study.cue = {settings.cue}"
        )
    steps = settings.cue + 1
    for name, chunks in (("truncated", settings.truncated), ("chunk", (settings.chunk,))):
        for chunk in chunks:
            if steps % chunk:
                raise ValueError(
                    f"study.{name} = {chunk} does not divide the {steps} steps of a sequence "
                    "(study.cue + 1)"
                )
    return [
        {"cell": cell, "rule": rule, "chunk": chunk, "seed": seed + i}
        for cell in settings.cells
        for rule, chunk in _rules(settings, cell)
        for i in range(settings.seeds)
    ]


def _rules(settings: Settings, cell: str) -> Iterator[tuple[str, int]]:
    """Names of rules, with the steps they are given at a time; refuses those that do not fit."""
    steps = settings.cue + 1
    for name in settings.rules:
        if name not in RULES:
            raise ValueError(f"study.rules: {name!r} is not known; known are {', '.join(RULES)}")
        try:
            rule, params = _rule(settings, cell, name), parameters(_network(settings, cell, 0))
            xs = jax.ShapeDtypeStruct((1, 1, 3), jnp.float32)
            jax.eval_shape(lambda p, k: rule.init(p, xs, k), params, jax.random.key(0))  # noqa: B023
        except ValueError as error:
            raise ValueError(
                f"study.rules: {name} does not fit study.cells: {cell}; leave out one of them "
                f"({error})"
            ) from error
        yield name, steps if rule.truncates else settings.chunk
    yield from (("bptt", chunk) for chunk in settings.truncated if chunk != steps)


def measure(settings: Settings, seed: int, case: Mapping[str, Any]) -> dict[str, Any]:
    """Trains on random batches and judges all four sequences after every update.

    Returns:
        `loss` [nats] and `accuracy` at the end; `reached`, the updates after which the loss was
        first below `settings.solved`, None if it never was; `curve`, the loss before the first
        update and after each tenth of them (of each that there is, if fewer than ten).
    """
    del seed  # that of the case counts from it
    own = case["seed"]
    train = _trainer(settings, case["cell"], case["rule"], case["chunk"])
    params = parameters(_network(settings, case["cell"], own))
    base = jax.random.split(jax.random.key(own), 1)[0]  # the weights are drawn from the seed itself
    loss, accuracy = (np.asarray(a, np.float64) for a in train(params, base))
    if not np.isfinite(loss).all():
        raise ValueError(
            f"the training of {case['cell']} by {case['rule']} diverged: choose a smaller "
            "study.learning_rate"
        )
    below = np.flatnonzero(loss < settings.solved)
    return {
        "loss": float(loss[-1]),
        "accuracy": float(accuracy[-1]),
        "reached": int(below[0]) if below.size else None,
        "curve": [float(f"{loss[i]:.4g}") for i in curve_updates(settings)],
    }


def curve_updates(settings: Settings) -> list[int]:
    """The numbers of updates after which a row's curve says the loss."""
    parts = min(40, settings.updates)
    return [round(i * settings.updates / parts) for i in range(parts + 1)]


def sequences(
    settings: Settings, bits: Float[Array, "batch 2"]
) -> tuple[Float[Array, "time batch 3"], tuple[Array, Array]]:
    """Inputs of pairs of bits, and targets for `losses.weighted`.

    Args:
        settings: when bits and cue come.
        bits: +1 or -1.

    Returns:
        The inputs: first bit, second bit, cue, each 0 but at its own step. The targets: labels
        (time, batch, 1), 1 where the bits differ; and weights (time, batch), 1 at the last step and
        0 before.
    """
    steps, batch = settings.cue + 1, len(bits)
    first, second = settings.bits
    xs = jnp.zeros((steps, batch, 3)).at[first, :, 0].set(bits[:, 0])
    xs = xs.at[second, :, 1].set(bits[:, 1]).at[settings.cue, :, 2].set(1.0)
    weights = jnp.zeros((steps, batch)).at[-1].set(1.0)
    differ = (bits[:, :1] * bits[:, 1:] < 0).astype(jnp.float32)
    return xs, (jnp.broadcast_to(differ, (steps, batch, 1)), weights)


def random_batch(settings: Settings, key: PRNGKeyArray) -> Float[Array, "4"]:
    """Weights of the four sequences, by how often each is in a random batch; their mean is 1.

    The gradient of the batch is that of the four, weighted so, at a fraction of the work.
    """
    drawn = jax.random.randint(key, (settings.batch,), 0, 4)
    return 4 * jnp.bincount(drawn, length=4).astype(jnp.float32) / settings.batch


def _network(settings: Settings, cell: str, seed: int) -> Network:
    known, tau = CELL_SETTINGS[cell], -1e-3 / float(np.log(settings.decay))  # [s], at dt = 1e-3
    if "decay" in known:
        options: dict[str, Any] = {"decay": settings.decay}
    else:
        options = {"tau": tau} if "tau" in known else {}
    hidden = NetworkSettings(cell=cell, hidden=(settings.hidden,), recurrent=True, **options)  # pyright: ignore[reportArgumentType]
    return make_network(hidden, 3, 1, dt=1e-3, rngs=nnx.Rngs(seed))


def _rule(settings: Settings, cell: str, name: str) -> LearningRule:
    return RULES[name](_network(settings, cell, 0), losses.weighted(losses.sigmoid_cross_entropy))


@functools.lru_cache(maxsize=4)
def _trainer(
    settings: Settings, cell: str, name: str, chunk: int
) -> Callable[[PyTree, PRNGKeyArray], tuple[Array, Array]]:
    """From weights and a key to loss and accuracy before and after all updates; compiled once."""
    rule, tx = _rule(settings, cell, name), optax.adam(settings.learning_rate)
    graphdef, _ = nnx.split(_network(settings, cell, 0))
    all_bits = jnp.array([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
    xs, (labels, weights) = sequences(settings, all_bits)

    def judge(params: PyTree) -> tuple[Array, Array]:
        network = nnx.merge(graphdef, params)
        start = network.initialize_carry(xs.shape[1:], rngs=nnx.Rngs(0))
        _, outputs = jax.lax.scan(network, start, xs)
        loss = losses.sigmoid_cross_entropy(outputs[-1], labels[-1]).mean()
        return loss, ((outputs[-1] > 0) == (labels[-1] > 0)).mean()

    @jax.jit
    def train(params: PyTree, key: PRNGKeyArray) -> tuple[Array, Array]:
        def update(carried: Any, i: Array) -> tuple[Any, tuple[Array, Array]]:
            params, state = carried
            draw, own = jax.random.split(jax.random.fold_in(key, i))
            targets = (labels, weights * random_batch(settings, draw))
            found = run_sequence(rule, params, xs, targets, chunk=chunk, key=own)
            updates, state = tx.update(found.grads, state, params)
            params = optax.apply_updates(params, updates)
            return (params, state), judge(params)

        first = judge(params)
        steps = jnp.arange(settings.updates)
        _, later = jax.lax.scan(update, (params, tx.init(params)), steps)
        return jax.tree.map(lambda a, b: jnp.append(a[None], b), first, later)

    return train


def summary(settings: Settings, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """For each cell and rule: how many seeds solve it, how many did on the way, and the losses.

    `solved`: below `settings.solved` at the end; `reached`: ever, and after how many updates first
    (least and most).
    """
    result: dict[str, Any] = {}
    for cell in settings.cells:
        result[cell] = {}
        for label, found in _by_rule(settings, rows, cell).items():
            after = [r["reached"] for r in found if r["reached"] is not None]
            solved = sum(r["loss"] < settings.solved for r in found)
            result[cell][label] = {
                "solved": f"{solved} of {len(found)}",
                "reached": f"{len(after)} of {len(found)}",
                "updates": [min(after), max(after)] if after else None,
                "loss": [float(f"{r['loss']:.3g}") for r in found],
            }
    return result


def _by_rule(
    settings: Settings, rows: Sequence[Mapping[str, Any]], cell: str
) -> dict[str, list[Mapping[str, Any]]]:
    """The rows of a cell by rule, in the order measured; BPTT in chunks has a name of its own."""
    found: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        if row["cell"] == cell:
            cut = row["rule"] == "bptt" and row["chunk"] <= settings.cue
            label = f"{row['rule']}, {row['chunk']} steps" if cut else row["rule"]
            found.setdefault(label, []).append(row)
    return found


def pictures(settings: Settings, rows: Sequence[Mapping[str, Any]]) -> "dict[str, Axes]":
    """Learning curves of each cell; loss and accuracy of every run at the end."""
    from .. import plots

    drawn: dict[str, Axes] = {}
    groups = {cell: _by_rule(settings, rows, cell) for cell in settings.cells}
    for cell, by_rule in groups.items():
        if by_rule:
            drawn[f"curves_{cell}"] = _curves(settings, cell, by_rule)
    labels = list(dict.fromkeys(label for by_rule in groups.values() for label in by_rule))
    for name, key, unit in (("final_loss", "loss", " [nats]"), ("accuracy", "accuracy", "")):
        ax = drawn[name] = plots.new_axes(8.0, 4.5)
        width = 0.7 / len(groups)
        for i, (cell, by_rule) in enumerate(groups.items()):
            places = [
                labels.index(label) + width * (i - (len(groups) - 1) / 2 + 0.5 * spread)
                for label, found in by_rule.items()
                for spread in np.linspace(-1, 1, len(found) + 2)[1:-1]  # equal values stay apart
            ]
            values = [row[key] for found in by_rule.values() for row in found]
            ax.plot(places, values, "o", color=plots.COLOURS[i], alpha=0.7, label=cell)
        ax.set_xticks(range(len(labels)), [label.replace(", ", "\n") for label in labels])
        ax.set(ylabel=f"{key}{unit} of the four sequences")
        if key == "loss":
            _levels(settings, ax)
            ax.set_yscale("log")
        else:
            ax.axhline(0.5, color="k", ls="--", lw=1, label="chance")
            ax.grid(alpha=0.3, axis="y")
        ax.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    return drawn


def _curves(
    settings: Settings, cell: str, by_rule: Mapping[str, Sequence[Mapping[str, Any]]]
) -> "Axes":
    """A panel for each rule, a line for each seed."""
    from matplotlib.figure import Figure

    from .. import plots

    columns = min(4, len(by_rule))
    lines = -(-len(by_rule) // columns)
    figure = Figure(figsize=(2.8 * columns + 0.6, 2.4 * lines + 0.4), layout="constrained")
    panels = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False)
    for i in range(len(by_rule), panels.size):
        panels.flat[i].set_axis_off()
        panels.flat[i - columns].tick_params(labelbottom=True)
    for ax, (label, found) in zip(panels.flat, by_rule.items(), strict=False):
        for i, row in enumerate(found):
            colour = plots.COLOURS[i % len(plots.COLOURS)]
            ax.plot(curve_updates(settings), row["curve"], color=colour, lw=1.2)
        _levels(settings, ax)
        ax.set(yscale="log", title=label)
    figure.supxlabel("updates")
    figure.supylabel(f"{cell}: loss [nats]")
    panels[0, 0].legend(frameon=False, fontsize=8, loc="lower left")
    return panels[0, 0]


def _levels(settings: Settings, ax: "Axes") -> None:
    """Lines at chance and at what counts as solved."""
    ax.axhline(CHANCE, color="k", ls="--", lw=1, label=f"chance, {CHANCE:.3f}")
    ax.axhline(settings.solved, color="k", ls=":", lw=1, label=f"solved, {settings.solved:g}")
    ax.grid(alpha=0.3, axis="y")
