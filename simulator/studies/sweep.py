"""A sweep: any experiment, once for each combination of some of its settings and for each seed.

What a setting means is said where experiments are; here runs are only combined and drawn.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from flax import nnx
from pydantic import Field
from pydantic.dataclasses import dataclass

from ..experiment import STRICT, Count, Experiment
from ._variants import variant

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Values = Annotated[tuple[Any, ...], Field(min_length=1)]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Settings:
    """Every combination of `over`, with each seed; settings are named "section.key"."""

    experiment: str  # a TOML file, or the name of an experiment of the package
    over: Annotated[dict[str, Values], Field(min_length=1)]  # setting -> the values it takes
    fixed: dict[str, Any] = Field(default_factory=dict)  # what else differs from the experiment
    seeds: Count = 1  # runs of each combination, with the seeds run.seed, run.seed + 1 ...


def cases(settings: Settings, seed: int) -> list[dict[str, Any]]:
    """All combinations, in the order of the file, the last setting fastest; then the seeds.

    Raises:
        ValueError: an experiment, a setting or a value that does not exist.
    """
    from ..build import make_memory, make_network, make_rule

    if "run.seed" in settings.over:
        raise ValueError(
            'study.over: "run.seed" counts by itself, from run.seed on: set study.seeds'
        )
    combined = [
        dict(zip(settings.over, values, strict=True)) | {"run.seed": seed + i}
        for values in itertools.product(*settings.over.values())
        for i in range(settings.seeds)
    ]
    for case in combined:
        experiment = experiment_of(settings, case)
        make_memory(experiment.memory)
        make_rule(experiment.rule)
        dt, made = experiment.encoder.dt, experiment.network
        nnx.eval_shape(lambda dt=dt, made=made: make_network(made, 1, 1, dt=dt, rngs=nnx.Rngs(0)))
    return combined


def measure(settings: Settings, seed: int, case: Mapping[str, Any]) -> dict[str, Any]:
    """Trains one combination.

    Of the values: accuracies and losses as in the last line of a run's metrics; of all that was
    written to the weights the shares that `saturated`, `underflowed` (became 0) or `stagnated` (did
    not move); and of states and traces with a format, on the first batch of the test split after
    training, what `state_losses` says, as `membrane_saturated` and the like.
    """
    from ..build import build
    from ..state_losses import lost_in_formats
    from ..train import check, read_parameters, train

    job = build(experiment_of(settings, case))
    check(job)
    lines: list[dict[str, Any]] = []
    state = train(job, on_metrics=lines.append)
    last = lines[-1]
    names = ("test_accuracy", "test_loss", "train_accuracy", "train_loss")
    row = {name: last[name] for name in names}
    counts = {
        kind: sum(of_leaf.get(kind, 0) for of_leaf in last["lost"].values())
        for kind in ("writes", "saturated", "underflowed", "stagnated")
    }
    writes = max(counts.pop("writes"), 1)
    row |= {f"weights_{kind}": count / writes for kind, count in counts.items()}
    lost = lost_in_formats(job, read_parameters(job, state.memory), job.dataset.test)
    return row | {f"{role}_{k}": v for role, shares in lost.items() for k, v in shares.items()}


def pictures(settings: Settings, rows: Sequence[Mapping[str, Any]]) -> "dict[str, Axes]":
    """A line over the values of one setting; of two and more, heat maps of the first two."""
    from .. import plots

    quantity = quantity_of(rows)
    first, *others = settings.over
    if not others:
        means, spread = _grid(rows, {first: settings.over[first]}, quantity)
        labels = [_label(v) for v in settings.over[first]]
        ax = plots.new_axes()
        ax.errorbar(labels, means, spread, fmt="o-", color=plots.COLOURS[0], capsize=3)
        ax.set(xlabel=first, ylabel=quantity.replace("_", " "))
        ax.grid(alpha=0.3)
        return {"sweep": ax}
    second, *rest = others
    drawn = {}
    for i, values in enumerate(itertools.product(*(settings.over[name] for name in rest))):
        here = dict(zip(rest, values, strict=True))
        chosen = [row for row in rows if here.items() <= row.items()]
        axes = {second: settings.over[second], first: settings.over[first]}
        means, spread = _grid(chosen, axes, quantity)
        ax = plots.heat_map(
            means,
            [_label(v) for v in settings.over[second]],
            [_label(v) for v in settings.over[first]],
            spread=spread if settings.seeds > 1 else None,
            unit=quantity.replace("_", " "),
        )
        ax.set(xlabel=first, ylabel=second)
        if here:
            ax.set_title(", ".join(f"{name} = {_label(value)}" for name, value in here.items()))
        drawn[f"sweep_{i}" if here else "sweep"] = ax
    return drawn


def summary(settings: Settings, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The best and the worst combination, by the mean over seeds."""
    quantity = quantity_of(rows)
    means: dict[tuple[str, ...], list[float]] = {}
    for row in rows:
        means.setdefault(tuple(_label(row[name]) for name in settings.over), []).append(
            row[quantity]
        )
    ordered = sorted(means, key=lambda place: float(np.mean(means[place])))
    if quantity == "test_loss":
        ordered.reverse()
    told = {
        which: dict(zip(settings.over, place, strict=True))
        | {quantity: round(float(np.mean(means[place])), 4)}
        for which, place in (("best", ordered[-1]), ("worst", ordered[0]))
    }
    return {"runs": len(rows), **told}


def experiment_of(settings: Settings, case: Mapping[str, Any]) -> Experiment:
    """The experiment of a case.

    Raises:
        ValueError: in one line, with the setting.
    """
    return variant(settings.experiment, {**settings.fixed, **case}, source="study.over")


def quantity_of(rows: Sequence[Mapping[str, Any]]) -> str:
    """What the runs are judged by: accuracy, or loss where there are no classes."""
    return "test_loss" if rows[0]["test_accuracy"] is None else "test_accuracy"


def _grid(
    rows: Sequence[Mapping[str, Any]], axes: Mapping[str, Sequence[Any]], quantity: str
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation over seeds, one axis a setting; NaN where there is no row."""
    shape = tuple(len(values) for values in axes.values())
    means, spread = np.full(shape, np.nan), np.full(shape, np.nan)
    for index in np.ndindex(shape):
        place = {name: values[i] for (name, values), i in zip(axes.items(), index, strict=True)}
        found = [row[quantity] for row in rows if all(row[k] == v for k, v in place.items())]
        if found:
            means[index], spread[index] = np.mean(found), np.std(found)
    return means, spread


def _label(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{k} {v}" for k, v in value.items()) or "none"
    return str(value)
