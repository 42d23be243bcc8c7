"""Fatiguing STDP against STDP: slow inputs that fire together among fast ones that do not.

The simulation is `kernels.stdp_events`, the rule and its mathematics are `learning_rules.fatigue`.
What is compared is the mean weight of both groups where both rules fire the neuron equally often.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass

from ..experiment import STRICT, Count, Positive
from ._plastic_neuron import TwoGroups, Use, learn, matched, summarised

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TITLES = {
    "weights": "weights of the groups and output rate",
    "control": "the same without the common source",
}
TEXT = (
    "One neuron, slow inputs with a common source and fast independent ones, the same trains for "
    "every rule and threshold. Mean weights at the end; bars reach from the least to the largest "
    "of the seeds. Fatigue lowers the drive, so a threshold means another output rate with another "
    "rule: compare where the output rates are alike. `difference` is the weight of the slow group "
    "minus that of the fast one. Control: the same slow inputs without their common source; what a "
    "rule prefers there it prefers for the rate."
)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Settings(TwoGroups):
    """Every use at each of its thresholds: pairs [U, theta]; U = 0 is plain STDP."""

    points: Annotated[tuple[tuple[Use, Positive], ...], Field(min_length=1)] = (
        *((0.0, theta) for theta in (3.0, 4.0, 6.0, 8.0, 12.0, 16.0, 18.0)),
        *((0.5, theta) for theta in (0.5, 1.0, 2.0, 4.0)),
        (0.8, 1.0),
    )
    seeds: Count = 8


def cases(settings: Settings, seed: int) -> list[dict[str, Any]]:
    """The points, with the common source and, as a control, without."""
    return [
        {"use": use, "theta": theta, "correlation": c}
        for c in dict.fromkeys((settings.correlation, 0.0))
        for use, theta in settings.points
    ]


def measure(settings: Settings, seed: int, case: Mapping[str, Any]) -> dict[str, Any]:
    """Mean over seeds of the groups' mean weights, of the output rate, and the least difference.

    `rate` [Hz] is that of the last third.
    """
    slow, fast, rates = [], [], []
    for i in range(settings.seeds):
        events = settings.events(seed, i, case["correlation"])
        inputs = settings.correlated + settings.fast
        w, rate = learn(settings, case["use"], case["theta"], events, inputs)
        slow.append(float(w[: settings.correlated].mean()))
        fast.append(float(w[settings.correlated :].mean()))
        rates.append(rate)
    return summarised(slow, fast) | {"rate": float(np.mean(rates))}


def pictures(settings: Settings, rows: Sequence[Mapping[str, Any]]) -> "dict[str, Axes]":
    """Both groups' weights over the output rate, a field for each use."""
    drawn = {"weights": _picture([r for r in rows if r["correlation"] == settings.correlation])}
    if settings.correlation != 0:
        drawn["control"] = _picture([r for r in rows if r["correlation"] == 0])
    return drawn


def _picture(rows: Sequence[Mapping[str, Any]]) -> "Axes":
    from matplotlib.figure import Figure

    from .. import plots

    uses = list(dict.fromkeys(row["use"] for row in rows))
    figure = Figure(figsize=(3.4 * len(uses), 3.4), layout="constrained")
    fields = figure.subplots(1, len(uses), sharey=True, squeeze=False)[0]
    for ax, use in zip(fields, uses, strict=True):
        chosen = sorted((r for r in rows if r["use"] == use), key=lambda row: row["rate"])
        for i, group in enumerate(("slow", "fast")):
            mean = np.array([row[group] for row in chosen])
            spread = np.array([row[f"{group}_spread"] for row in chosen]).T
            ax.errorbar(
                [row["rate"] for row in chosen], mean, np.abs(spread - mean), fmt="o-",
                color=plots.COLOURS[i], ms=4, label=f"{group} inputs",
            )  # fmt: skip
        ax.set(title="STDP" if use == 0 else f"fatiguing, U = {use}", xlabel="output rate [Hz]")
        ax.set(xscale="log", ylim=(-0.05, 1.05))
        ax.grid(alpha=0.3)
    fields[0].set_ylabel("mean weight")
    fields[-1].legend(frameon=False, fontsize=8)
    return fields[0]


def summary(settings: Settings, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Over the points of each rule: its worst seed, and what its control prefers by the rate."""
    said: dict[str, Any] = {}
    for name, chosen in (
        ("stdp", [r for r in rows if r["use"] == 0]),
        ("fatiguing", [r for r in rows if r["use"] > 0]),
    ):
        own = [r for r in chosen if r["correlation"] == settings.correlation]
        control = [r["difference"] for r in chosen if r["correlation"] == 0]
        said[f"worst_{name}"] = min((r["worst"] for r in own), default=None)
        said[f"control_{name}"] = [min(control), max(control)] if control else None
    own = [r for r in rows if r["correlation"] == settings.correlation]
    return said | {"at_equal_rate": matched(own, "difference")}
