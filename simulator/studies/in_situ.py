"""A network that learns where its weights are: in memory cells, or in few bits, on one plot.

What weight memories and rules do is said where they are; here a network is trained in each memory,
with and without GRAPES, and cells are read again long after the training.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass

from ..experiment import STRICT, Count, Experiment, Positive
from ._variants import variant

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LOST = ("writes", "saturated", "stagnated", "pulses", "refreshed")
TITLES = {
    "learning": "While it learns",
    "afterwards": "Long after the training, nothing written since",
}
TEXT = (
    "A spiking network learns online with OSTL, its weights in each of several memories: float32, "
    "formats of 8 and 4 bits, pairs of phase-change cells that are programmed (`pcm`), and pairs "
    "that know only SET pulses and RESET (`set_pcm`). For cells, updates are summed digitally "
    "until they amount to a write. Learning rates are those of the experiment for all, so a memory "
    "could do better with its own. Cells are read with noise, and drift while the network learns; "
    "after the training they go on to drift."
)


def _memories() -> dict[str, dict[str, Any]]:
    few = {"rounding": "stochastic"}
    return {
        "float32": {"format": "float32", "rounding": "nearest_even"},
        "e4m3fn": {"format": "e4m3fn", **few},
        "int4": {"format": "int4", **few},
        "pcm": {"device": "pcm", "writing": "mixed_precision"},
        "set_pcm": {"device": "set_pcm", "writing": "mixed_precision"},
    }


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Settings:
    """One experiment in every memory, with and without GRAPES, for each seed."""

    experiment: str = "fashion_snu"  # a TOML file, or the name of an experiment of the package
    memories: Annotated[dict[str, dict[str, Any]], Field(min_length=1)] = Field(
        default_factory=_memories
    )  # name in the plots -> settings of the section `memory`
    grapes: Annotated[tuple[bool, ...], Field(min_length=1)] = (True, False)
    times: Annotated[tuple[Positive, ...], Field(min_length=1)] = (
        1, 3600, 86_400, 31_536_000,
    )  # fmt: skip  # since the last update [s]
    fixed: dict[str, Any] = Field(default_factory=dict)  # what else differs: "section.key" -> value
    seeds: Count = 3


def cases(settings: Settings, seed: int) -> list[dict[str, Any]]:
    """All memories, with and without GRAPES, with each seed.

    Raises:
        ValueError: an experiment, a setting or a value that does not exist.
    """
    from ..build import make_memory, make_rule

    found = [
        {"memory": memory, "grapes": grapes, "seed": seed + i}
        for memory in settings.memories
        for grapes in settings.grapes
        for i in range(settings.seeds)
    ]
    for case in found:
        experiment = _experiment(settings, case)
        make_memory(experiment.memory)
        make_rule(experiment.rule)
    return found


def measure(settings: Settings, seed: int, case: Mapping[str, Any]) -> dict[str, Any]:
    """Accuracy on the test split after each epoch and, for cells, at times after the training.

    Also the sums over all weights of what their memory counted.
    """
    del seed
    from ..build import build
    from ..devices import DeviceWeights, at
    from ..evaluate import make_evaluation
    from ..train import check, read_parameters, train

    job = build(_experiment(settings, case))
    check(job)
    test, lines = make_evaluation(job, job.dataset.test), []
    state = train(job, test=test, on_metrics=lines.append)
    ends = [line for line in lines if "test_accuracy" in line]
    lost = {
        kind: sum(of_leaf.get(kind, 0) for of_leaf in ends[-1]["lost"].values()) for kind in LOST
    }
    later = None
    if isinstance(state.memory, DeviceWeights):
        later = [
            test(read_parameters(job, at(state.memory, float(state.memory.t) + t))).accuracy
            for t in settings.times
        ]
    return {"accuracy": [line["test_accuracy"] for line in ends], "later": later, **lost}


def _experiment(settings: Settings, case: Mapping[str, Any]) -> Experiment:
    if case["grapes"]:
        changes = {"rule.grapes": "propagating"}
    else:
        changes = {}
    changes |= {f"memory.{k}": v for k, v in settings.memories[case["memory"]].items()}
    changes |= {**settings.fixed, "run.seed": case["seed"]}
    return variant(settings.experiment, changes, source="study")


def pictures(settings: Settings, rows: Sequence[Mapping[str, Any]]) -> "dict[str, Axes]":
    """Accuracy by epochs, a colour a memory; and over the time since, where there are cells."""
    from .. import plots

    ax = plots.new_axes()
    for i, memory in enumerate(settings.memories):
        for grapes in settings.grapes:
            found = _of(rows, memory, grapes, "accuracy")
            if len(found):
                _line(ax, range(1, found.shape[1] + 1), found, i, memory, grapes=grapes)
    ax.set(xlabel="epoch", ylabel="test accuracy")
    ax.legend(frameon=False, fontsize=8)
    drawn = {"learning": ax}
    if any(row["later"] for row in rows):
        drawn["afterwards"] = later = plots.new_axes()
        for i, memory in enumerate(settings.memories):
            for grapes in settings.grapes:
                found = _of(rows, memory, grapes, "later")
                if len(found):
                    _line(later, settings.times, found, i, memory, grapes=grapes)
        later.set(xscale="log", xlabel="time since training [s]", ylabel="test accuracy")
        later.legend(frameon=False, fontsize=8)
    return drawn


def _line(ax: "Axes", x: Any, found: np.ndarray, i: int, memory: str, *, grapes: bool) -> None:
    """The mean over seeds, with what they span."""
    from .. import plots

    colour = plots.COLOURS[i % len(plots.COLOURS)]
    label = memory + (" + GRAPES" if grapes else "")
    ax.plot(x, found.mean(0), "o-" if grapes else "o--", ms=3, color=colour, label=label)
    ax.fill_between(x, found.min(0), found.max(0), color=colour, alpha=0.12, lw=0)


def _of(rows: Sequence[Mapping[str, Any]], memory: str, grapes: bool, what: str) -> np.ndarray:
    """Lines (seeds, points) of one memory."""
    own = [r[what] for r in rows if (r["memory"], r["grapes"]) == (memory, grapes)]
    return np.array([line for line in own if line is not None], float)


def summary(settings: Settings, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Mean accuracies at the end of the training and, of cells, at the last time."""
    told: dict[str, Any] = {}
    for memory in settings.memories:
        for grapes in settings.grapes:
            name = memory + ("+grapes" if grapes else "")
            for key, what in (("accuracy", "accuracy"), ("at_the_last_time", "later")):
                found = _of(rows, memory, grapes, what)
                if len(found):
                    told.setdefault(key, {})[name] = round(float(found[:, -1].mean()), 4)
    return told
