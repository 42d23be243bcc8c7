"""Ways to train on devices whose steps up and down differ, with exact and with wrong references.

A linear teacher is learnt by the cells of one array. Ways and devices are of `simulator/devices`;
here is the comparison.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from pydantic import Field
from pydantic.dataclasses import dataclass

from ..devices import Variation, memristive, pulsed, tiki_taka, update_by_trains
from ..devices.pulsed import soft_bounds
from ..experiment import STRICT, Count, NotNegative, Positive

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Way = Literal[
    "trains_without_reference", "trains", "sgd_without_reference", "sgd", "tiki_taka",
    "tiki_taka_v2", "chopped", "agad", "mixed_precision",
]  # fmt: skip
WAYS: tuple[Way, ...] = get_args(Way)
TITLES = {"errors": "What is left of the error, over the signal"}
TEXT = (
    "A linear teacher of 20 inputs and 10 outputs, learnt from batches of 8 by cells with soft "
    "bounds whose steps differ from cell to cell and up from down. Under a noisy gradient such a "
    "cell drifts to its symmetry point; the reference of a cell is meant to be that point, and is "
    "beside it by the error of the reference. `trains` are stochastic pulse trains, a sample at a "
    "time; `sgd` writes the mean gradient of a batch, with fewer pulses that undo each other. "
    "Learning rates are chosen on some seeds, what is drawn are others: each dot is one."
)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Settings:
    """Every way with every error of the reference."""

    ways: Annotated[tuple[Way, ...], Field(min_length=1)] = WAYS
    reference_errors: Annotated[tuple[NotNegative, ...], Field(min_length=1)] = (0.0, 0.2)
    rates: Annotated[tuple[Positive, ...], Field(min_length=1)] = (0.05, 0.1, 0.2)
    transfer_rates: Annotated[tuple[Positive, ...], Field(min_length=1)] = (0.01, 0.04, 0.15, 0.5)
    pulses: Positive = 4.0  # that the largest update gives to the cells of a gradient
    flip: Positive = 0.1  # probability that a line changes its sign after a read
    inputs: Count = 20
    outputs: Count = 10
    batch: Count = 8
    iterations: Count = 500
    step: Positive = 0.02
    seeds: Count = 10  # measured, and as many others to choose the rates by


def cases(settings: Settings, seed: int) -> list[dict[str, Any]]:
    """All ways; those without a reference once."""
    del seed
    if not settings.flip <= 1:
        raise ValueError(f"study.flip is {settings.flip}; a probability is at most 1")
    return [
        {"way": way, "reference_error": error}
        for way in settings.ways
        for error in settings.reference_errors
        if not way.endswith("without_reference") or error == settings.reference_errors[0]
    ]


def measure(settings: Settings, seed: int, case: Mapping[str, Any]) -> dict[str, Any]:
    """Errors of the seeds, each |W - W*|^2 / |W*|^2 at the end, with the best rates."""
    way, wrong = case["way"], case["reference_error"]
    transfers = settings.transfer_rates if _reads_gradients(way) else (1.0,)
    to_choose, to_measure = jax.random.split(jax.random.key(seed))
    found = []
    for transfer in transfers:
        learner = _learner(settings, way, wrong, transfer)

        def run(rate: Array, keys: Array, learner: _Learner = learner) -> Array:
            return jax.vmap(lambda key: _left(settings, learner, rate, key))(keys)

        runs = jax.jit(jax.vmap(run, in_axes=(0, None)))
        chosen = np.asarray(
            runs(jnp.array(settings.rates), jax.random.split(to_choose, settings.seeds))
        ).mean(1)
        best = int(np.argmin(np.where(np.isfinite(chosen), chosen, np.inf)))
        found.append((float(chosen[best]), settings.rates[best], transfer, runs))
    _, rate, transfer, runs = min(found, key=lambda f: f[0])
    keys = jax.random.split(to_measure, settings.seeds)
    errors = np.asarray(runs(jnp.array([rate]), keys))[0]
    return {
        "error": float(errors.mean()),
        "std": float(errors.std(ddof=1)) if len(errors) > 1 else None,
        "errors": [float(e) for e in errors],
        "rate": rate,
        "transfer_rate": transfer if _reads_gradients(way) else None,
    }


def pictures(settings: Settings, rows: Sequence[Mapping[str, Any]]) -> "dict[str, Axes]":
    """The seeds of each way, a colour for each error of the reference."""
    from .. import plots

    ax = plots.new_axes(7.0, 3.8)
    names = list(settings.ways)
    for i, error in enumerate(settings.reference_errors):
        own = [row for row in rows if row["reference_error"] == error]
        for row in own:
            at = names.index(row["way"]) + 0.16 * (i - (len(settings.reference_errors) - 1) / 2)
            ax.semilogy(
                [at] * len(row["errors"]), row["errors"], ".", color=plots.COLOURS[i], alpha=0.5
            )
            ax.semilogy([at], [row["error"]], "_", ms=14, mew=2, color=plots.COLOURS[i])
        ax.plot([], [], "_", mew=2, color=plots.COLOURS[i], label=f"error of the reference {error}")
    ax.set_xticks(range(len(names)), [n.replace("_", "\n") for n in names], fontsize=8)
    ax.set_ylabel("error / signal")
    ax.legend(frameon=False, fontsize=8)
    return {"errors": ax}


def summary(settings: Settings, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Mean errors by way, one for each error of the reference."""
    del settings
    means: dict[str, dict[str, float]] = {}
    for row in rows:
        means.setdefault(row["way"], {})[f"{row['reference_error']:g}"] = round(row["error"], 4)
    return {"error_over_signal": means}


def _reads_gradients(way: Way) -> bool:
    return way in ("tiki_taka", "tiki_taka_v2", "chopped", "agad")


class _Learner(NamedTuple):
    """`init(key) -> state`; `read(state, key) -> w`; `update(state, x, d, rate, key, i)`."""

    init: Callable[..., Any]
    read: Callable[..., Array]
    update: Callable[..., Any]


def _learner(settings: Settings, way: Way, wrong: float, transfer: float) -> _Learner:
    bare = way.endswith("without_reference")
    device = pulsed(
        soft_bounds,
        step=settings.step,
        reference=0.0 if bare else None,
        reference_std=0.0 if bare else wrong,
        variation=Variation(step=0.3, high=0.2, low=0.2, asymmetry=0.3, pulse=0.3),
    )
    shape = (settings.inputs, settings.outputs)
    if way.startswith("trains"):

        def send(cells: Any, x: Array, d: Array, rate: Array, key: Array, i: Array) -> Any:
            rate = rate / settings.batch
            return update_by_trains(device, cells, x, d, key, i.astype(jnp.float32), rate=rate)

        return _Learner(
            lambda key: device.init(shape, key, 0.0),
            lambda cells, key: device.read(cells, key, jnp.inf),
            send,
        )
    by_pulses = way in ("sgd_without_reference", "sgd", "tiki_taka")
    memory = memristive(device, writing="pulses" if by_pulses else "mixed_precision")
    if _reads_gradients(way):
        memory = tiki_taka(
            memory,
            device,
            way if way in ("chopped", "agad") else "plain",
            rate=transfer,
            pulses=settings.pulses,
            lines=settings.batch,
            flip=settings.flip,
        )

    def update(state: Any, x: Array, d: Array, rate: Array, key: Array, i: Array) -> Any:
        del i
        return memory.update(state, {"w": -rate * x.T @ d / settings.batch}, key)

    return _Learner(
        # a unit of weight is one of the cells
        lambda key: memory.init({"w": jnp.zeros(shape)}, key),
        lambda state, key: memory.read(state, key)["w"],
        update,
    )


def _left(settings: Settings, learner: _Learner, rate: Array, key: Array) -> Array:
    """The error over the signal at the end of one run."""
    for_teacher, for_cells, for_steps = jax.random.split(key, 3)
    teacher = 0.15 * jax.random.normal(for_teacher, (settings.inputs, settings.outputs))
    late = 7 * settings.iterations // 10  # from here with a tenth of the rate

    def step(state: Any, i: Array) -> tuple[Any, None]:
        own = jax.random.fold_in(for_steps, i)
        for_inputs, for_read, for_update = jax.random.split(own, 3)
        x = jax.random.normal(for_inputs, (settings.batch, settings.inputs))
        wrong = x @ (learner.read(state, for_read) - teacher)
        now = rate * jnp.where(i < late, 1.0, 0.1)
        return learner.update(state, x, wrong, now, for_update, i), None

    state, _ = jax.lax.scan(step, learner.init(for_cells), jnp.arange(settings.iterations))
    w = learner.read(state, None)
    return jnp.sum((w - teacher) ** 2) / jnp.sum(teacher**2)
