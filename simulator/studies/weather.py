"""Which records vary together? Fatiguing STDP, STDP and normalised covariance on weather records.

How a record becomes spikes belongs here; the records are `_weather_records`, the rules
`learning_rules.fatigue` and `learning_rules.normcov`.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

import jax.numpy as jnp
import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass

from ...kernels.stdp_events import Events, pack_events
from ...learning_rules import normcov
from ..experiment import STRICT, Count, NotNegative, Positive
from ._plastic_neuron import DT, Synapses, Use, learn, matched
from ._weather_records import Records, nyc_2013, us_2016

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TITLES = {"separation": "processes of the group against the others"}
TEXT = (
    "Inputs are the processes of one group and some of every other group. `us_2016`: a process is "
    "a station, a group a state, and a spike says that the temperature is unusually high there in "
    "this week. `nyc_2013`: a process is a variable at one of three airports, a group a variable "
    "at all of them, and a spike says that it is unusually high for the month and the hour of the "
    "day. Of the others each has its times in an order of its own (unless `others` is real): they "
    "fire as before but do not vary together. Processes fire at rates that have nothing to do with "
    "the weather. `separation` is the probability that a process of the group has a larger weight "
    "than another one: 1 perfect, 0.5 chance. It counts only where it is high for every assignment "
    "of the rates: `slow` (the group is slow, the others are fast), `fast` (the other way round), "
    "`mixed` (drawn for each process). In the control the group is slow as well, but each of its "
    "processes has its times in an order of its own: what is separated there is separated by the "
    "rate."
)
RATES = ("slow", "fast", "mixed", "control")


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Settings(Synapses):
    """Every group with every assignment of rates, at each point [U, theta]; U = 0 is plain STDP."""

    data_dir: str | None = None  # None: the usual places of data files
    records: Literal["us_2016", "nyc_2013"] = "us_2016"
    groups: Annotated[tuple[str, ...], Field(min_length=1)] = (
        "California", "Florida", "Texas", "New York",
    )  # fmt: skip  # "A+B" is a group of both
    of_others: Count = 1  # processes of each other group, or all if it has fewer
    copies: Count = 1  # spike trains of each process, each with its own rate and its own chance
    rates: tuple[Literal["slow", "fast", "mixed", "control"], ...] = RATES
    others: Literal["alone", "real"] = "alone"  # alone: each with its times in its own order
    points: Annotated[tuple[tuple[Use, Positive], ...], Field(min_length=1)] = (
        *((0.0, theta) for theta in (2.0, 3.0, 4.0, 6.0, 8.0, 10.0, 12.0)),
        *((0.5, theta) for theta in (0.5, 1.0, 1.5, 2.0, 2.25)),
    )
    depression: Positive = 1.5
    tau_fatigue: Positive = 0.5
    lowest_rate: Positive = 2.0  # [Hz]
    highest_rate: Positive = 20.0  # [Hz]
    unusual: Annotated[float, Field(gt=0, lt=1)] = 0.2  # share of times when a process may fire
    window: Positive = 0.01  # [s], of a week or an hour of the records
    jitter: NotNegative = 1e-3  # [s]
    duration: Annotated[float, Field(ge=DT)] = 300.0  # [s]
    clusters: Count = 20  # of the normalised covariance
    seeds: Count = 4


def cases(settings: Settings, seed: int) -> list[dict[str, Any]]:
    """For every group and assignment the covariance, and each point.

    Raises:
        ValueError: no data, a group without two processes, rates that cannot be reached.
    """
    if settings.duration < settings.window:
        raise ValueError(
            f"study.duration = {settings.duration}: give at least study.window = {settings.window}"
        )
    found = records(settings.records, settings.data_dir)
    names, counts = np.unique(found.groups, return_counts=True)
    for group in settings.groups:
        for part in group.split("+"):
            if (count := int(counts[names == part].sum())) < 2:
                large = counts >= min(5, counts.max())
                raise ValueError(
                    f'study.groups has "{part}", of which {settings.records} has {count} complete '
                    f"records; choose among {', '.join(names[large])}"
                )
        if np.isin(names, group.split("+")).all():
            raise ValueError(f'study.groups has "{group}", beside which there is no other group')
    times = len(found.anomaly)
    limit = _unusual_times(settings, times) / times / settings.window
    if not settings.lowest_rate <= settings.highest_rate <= limit:
        raise ValueError(
            f"study.highest_rate = {settings.highest_rate}: give at least lowest_rate = "
            f"{settings.lowest_rate} and at most {limit:.4g} Hz, since a process fires at most "
            "once in a window and only in unusual ones"
        )
    rules = ({"rule": "normcov", "use": None, "theta": None},)
    rules += tuple(
        {"rule": "fatiguing" if use > 0 else "stdp", "use": use, "theta": theta}
        for use, theta in settings.points
    )
    return [
        {"group": group, "rates": rates} | rule
        for group in settings.groups
        for rates in settings.rates
        for rule in rules
    ]


def measure(settings: Settings, seed: int, case: Mapping[str, Any]) -> dict[str, Any]:
    """Mean over seeds of the mean weights, of `separation` and the output rate; and the worst."""
    found = []
    for i in range(settings.seeds):
        rng = np.random.default_rng([seed, i])
        events, members = encoded(settings, case["group"], case["rates"], rng)
        if case["rule"] == "normcov":
            w, rate = by_covariance(settings, events, len(members)), 0.0
        else:
            w, rate = learn(settings, case["use"], case["theta"], events, len(members))
        own, other = w[members], w[~members]
        found.append((own.mean(), other.mean(), separation(own, other), rate))
    group, others, separated, rate = np.transpose(found)
    read = records(settings.records, settings.data_dir)
    return {
        "group_weight": float(group.mean()),
        "other_weight": float(others.mean()),
        "separation": float(separated.mean()),
        "worst": float(separated.min()),
        "best": float(separated.max()),
        "rate": float(rate.mean()),
        "missing_values": read.missing,
        "left_out": read.left_out,
    }


def separation(own: np.ndarray, other: np.ndarray) -> float:
    """The probability that a weight of the first exceeds one of the second; equal ones count half.

    >>> separation(np.array([1.0, 0.5]), np.array([0.5, 0.0]))
    0.875
    """
    larger, equal = own[:, None] > other, own[:, None] == other
    return float((larger + equal / 2).mean())


@functools.cache
def records(which: str, data_dir: str | None) -> Records:
    """The records of a name, read once."""
    return {"us_2016": us_2016, "nyc_2013": nyc_2013}[which](data_dir)


def encoded(
    settings: Settings, group: str, rates: str, rng: np.random.Generator
) -> tuple[Events, np.ndarray]:
    """Spikes of a group's processes and of some of each other group, and which are the first.

    Times are drawn at random, one after the other. In those that are among its highest a process
    fires once with the probability that gives it its rate, a jitter after the window's beginning.
    """
    found = records(settings.records, settings.data_dir)
    inside = np.isin(found.groups, group.split("+"))
    own, others = np.flatnonzero(inside), []
    for other in np.unique(found.groups[~inside]):
        all_of_it = np.flatnonzero(found.groups == other)
        others.append(np.roll(all_of_it, -rng.integers(len(all_of_it)))[: settings.of_others])
    chosen = np.repeat(np.concatenate([own, *others]), settings.copies)
    members = inside[chosen]
    height = found.anomaly[:, chosen].copy()
    alone = (members & (rates == "control")) | (~members & (settings.others == "alone"))
    height[:, alone] = rng.permuted(height[:, alone], axis=0)
    lowest, highest = settings.lowest_rate, settings.highest_rate
    if rates == "mixed":
        rate = np.exp(rng.uniform(np.log(lowest), np.log(highest), len(chosen)))
    else:
        rate = np.where(members == (rates == "fast"), highest, lowest)
    times = len(height)
    count = _unusual_times(settings, times)
    high = np.argsort(np.argsort(-height, axis=0), axis=0) < count
    drawn = rng.integers(0, times, round(settings.duration / settings.window))
    chance = rate * settings.window * times / count
    which, who = np.nonzero(high[drawn] & (rng.uniform(size=(len(drawn), len(chosen))) < chance))
    time = which * settings.window + settings.jitter * rng.normal(size=len(which))
    step = np.floor(time / DT).astype(np.int64)
    return pack_events(step, who, round(settings.duration / DT)), members


def _unusual_times(settings: Settings, times: int) -> int:
    return max(1, round(settings.unusual * times))


def by_covariance(settings: Settings, events: Events, inputs: int) -> np.ndarray:
    """Weights from the clusters of the normalised covariance of counts in bins of a window."""
    inside = np.asarray(events.inputs)[: int(events.first[-1])]
    step = np.repeat(np.arange(len(events.first) - 1), np.diff(events.first))
    # half a bin later, so that jitter does not cut through the spikes of one
    bins = np.floor((step + 0.5) * DT / settings.window + 0.5).astype(np.int64)
    counts = np.zeros((int(bins.max(initial=0)) + 1, inputs), np.float32)
    np.add.at(counts, (bins, inside), 1)
    similarity = np.asarray(normcov.normalised_covariance(jnp.asarray(counts)))
    labels = normcov.cluster(similarity, min(settings.clusters, inputs))
    return normcov.weights_by_cluster(similarity, labels)


def pictures(settings: Settings, rows: Sequence[Mapping[str, Any]]) -> "dict[str, Axes]":
    """Separation over the output rate, a field for each assignment; mean over the groups."""
    from matplotlib.figure import Figure

    from .. import plots

    figure = Figure(figsize=(3.2 * len(settings.rates), 3.4), layout="constrained")
    fields = figure.subplots(1, len(settings.rates), sharey=True, squeeze=False)[0]
    means = over_groups(rows)
    for ax, rates in zip(fields, settings.rates, strict=True):
        here = [row for row in means if row["rates"] == rates]
        for i, rule in enumerate(("stdp", "fatiguing")):
            line = sorted((r["rate"], r["separation"]) for r in here if r["rule"] == rule)
            ax.plot([r for r, _ in line], [s for _, s in line], "o-", color=plots.COLOURS[i],
                    ms=4, label=rule)  # fmt: skip
        level = next(row["separation"] for row in here if row["rule"] == "normcov")
        ax.axhline(level, color=plots.COLOURS[2], ls="--", label="normalised covariance")
        ax.axhline(0.5, color="0.6", lw=0.7)
        ax.set(title=rates, xlabel="output rate [Hz]", ylim=(-0.03, 1.03))
        ax.grid(alpha=0.3)
    fields[0].set_ylabel("separation")
    fields[-1].legend(frameon=False, fontsize=8)
    return {"separation": fields[0]}


def over_groups(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Means over the groups, a row for each rule, point and assignment."""
    groups: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault(tuple(row[k] for k in ("rule", "use", "theta", "rates")), []).append(row)
    return [
        {k: same[0][k] for k in ("rule", "use", "theta", "rates")}
        | {k: float(np.mean([row[k] for row in same])) for k in ("separation", "rate")}
        | {"worst": min(row["worst"] for row in same)}
        for same in groups.values()
    ]


def summary(settings: Settings, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """For each rule the point whose least separation over the assignments is best; equal rates."""
    means = over_groups(rows)
    best: dict[str, dict[str, Any]] = {}
    for rule, theta in dict.fromkeys((row["rule"], row["theta"]) for row in means):
        same = [row for row in means if (row["rule"], row["theta"]) == (rule, theta)]
        found = {row["rates"]: row["separation"] for row in same}
        least = min((v for k, v in found.items() if k != "control"), default=0.0)
        rates = {row["rates"]: row["rate"] for row in same}
        if rule not in best or least > best[rule]["least"]:
            best[rule] = {"theta": theta, "least": least, "separation": found, "rate": rates}
    plastic = [row for row in means if row["use"] is not None]
    return {
        "best_point": best,
        "at_equal_rate": {
            rates: matched([row for row in plastic if row["rates"] == rates], "separation")
            for rates in settings.rates
        },
    }
