"""Which stations vary together? Fatiguing STDP, STDP and normalised covariance on weather records.

How a record becomes spikes belongs here; the records are `data.weather`, the rules
`learning_rules.fatigue` and `learning_rules.normcov`.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

import jax.numpy as jnp
import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass

from ...kernels.stdp_events import Events, pack_events
from ...learning_rules import normcov
from ..data.files import Source
from ..data.weather import us_weekly
from ..experiment import STRICT, Count, NotNegative, Positive
from ._plastic_neuron import DT, Share, Synapses, learn, matched

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TITLES = {"separation": "stations of the state against the others"}
TEXT = (
    "Inputs are the stations of one state and one station of every other state; a spike says that "
    "the temperature is unusually high there in this week. Of the others each has its weeks in an "
    "order of its own (unless `others` is real): they fire as before but do not vary together. "
    "Stations fire at rates that have nothing to do with the weather. `separation` is the "
    "probability that a station of the state has a larger weight than another one: 1 perfect, 0.5 "
    "chance. It counts only where it is high for every assignment of the rates: `slow` (the state "
    "is slow, the others are fast), `fast` (the other way round), `mixed` (drawn for each "
    "station). In the control the state is slow as well, but each of its stations has its weeks in "
    "an order of its own: what is separated there is separated by the rate."
)
RATES = ("slow", "fast", "mixed", "control")


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Settings(Synapses):
    """Every state with every assignment of rates, at each point [U, theta]; U = 0 is plain STDP."""

    data_dir: str | None = None  # None: the usual places of data files
    states: Annotated[tuple[str, ...], Field(min_length=1)] = (
        "California", "Florida", "Texas", "New York",
    )  # fmt: skip
    rates: tuple[Literal["slow", "fast", "mixed", "control"], ...] = RATES
    others: Literal["alone", "real"] = "alone"  # alone: each with its weeks in its own order
    points: Annotated[tuple[tuple[Share, Positive], ...], Field(min_length=1)] = (
        *((0.0, theta) for theta in (2.0, 3.0, 4.0, 6.0, 8.0, 10.0, 12.0)),
        *((0.5, theta) for theta in (0.5, 1.0, 1.5, 2.0, 2.25)),
    )
    depression: Positive = 1.5
    tau_fatigue: Positive = 0.5
    lowest_rate: Positive = 2.0  # [Hz]
    highest_rate: Positive = 20.0  # [Hz]
    unusual: Annotated[float, Field(gt=0, lt=1)] = 0.2  # share of weeks in which a station may fire
    week: Positive = 0.01  # [s]
    jitter: NotNegative = 1e-3  # [s]
    duration: Positive = 300.0  # [s]
    clusters: Count = 20  # of the normalised covariance
    seeds: Count = 4


class Records(NamedTuple):
    """Stations with complete records."""

    anomaly: np.ndarray  # (weeks, stations)
    states: np.ndarray  # (stations,)


def cases(settings: Settings, seed: int) -> list[dict[str, Any]]:
    """For every state and assignment the covariance, and each point.

    Raises:
        ValueError: no data, a state without two stations, rates that cannot be reached.
    """
    anomaly, states = records(settings.data_dir)
    for state in settings.states:
        if (count := int((states == state).sum())) < 2:
            raise ValueError(
                f'study.states has "{state}", of which there are {count} complete records; choose '
                f"among {', '.join(s for s in np.unique(states) if (states == s).sum() > 4)}"
            )
    weeks = len(anomaly)
    limit = _unusual_weeks(settings, weeks) / weeks / settings.week
    if not settings.lowest_rate <= settings.highest_rate <= limit:
        raise ValueError(
            f"study.highest_rate = {settings.highest_rate}: give at least lowest_rate = "
            f"{settings.lowest_rate} and at most {limit:.4g} Hz, since a station fires at most "
            "once in a week and only in unusual ones"
        )
    rules = ({"rule": "normcov", "use": None, "theta": None},)
    rules += tuple(
        {"rule": "fatiguing" if use > 0 else "stdp", "use": use, "theta": theta}
        for use, theta in settings.points
    )
    return [
        {"state": state, "rates": rates} | rule
        for state in settings.states
        for rates in settings.rates
        for rule in rules
    ]


def measure(settings: Settings, seed: int, case: Mapping[str, Any]) -> dict[str, Any]:
    """Mean over seeds of the mean weights, of `separation` and the output rate; and the worst."""
    found = []
    for i in range(settings.seeds):
        rng = np.random.default_rng([seed, i])
        events, members = encoded(settings, case["state"], case["rates"], rng)
        if case["rule"] == "normcov":
            w, rate = by_covariance(settings, events, len(members)), 0.0
        else:
            w, rate = learn(settings, case["use"], case["theta"], events, len(members))
        own, other = w[members], w[~members]
        found.append((own.mean(), other.mean(), separation(own, other), rate))
    state, others, separated, rate = np.transpose(found)
    return {
        "state_weight": float(state.mean()),
        "other_weight": float(others.mean()),
        "separation": float(separated.mean()),
        "worst": float(separated.min()),
        "best": float(separated.max()),
        "rate": float(rate.mean()),
    }


def separation(own: np.ndarray, other: np.ndarray) -> float:
    """The probability that a weight of the first exceeds one of the second; equal ones count half.

    >>> separation(np.array([1.0, 0.5]), np.array([0.5, 0.0]))
    0.875
    """
    larger, equal = own[:, None] > other, own[:, None] == other
    return float((larger + equal / 2).mean())


@functools.cache
def records(data_dir: str | None) -> Records:
    """How much warmer each week was than the country's mean of it and the station's of the year."""
    weather = us_weekly(Source(data_dir))
    temperature = weather.values["temperature"]
    complete = np.isfinite(temperature).all(0)
    anomaly = temperature[:, complete]
    anomaly = anomaly - anomaly.mean(1, keepdims=True)
    return Records(anomaly - anomaly.mean(0), np.array(weather.regions)[complete])


def encoded(
    settings: Settings, state: str, rates: str, rng: np.random.Generator
) -> tuple[Events, np.ndarray]:
    """Spikes of a state's stations and of one station of each other state, and which are the first.

    Weeks are drawn at random, one after the other. In those that are among a station's warmest it
    fires once with the probability that gives it its rate, a jitter after their beginning.
    """
    anomaly, states = records(settings.data_dir)
    own = np.flatnonzero(states == state)
    others = [rng.choice(np.flatnonzero(states == s)) for s in np.unique(states) if s != state]
    chosen, members = np.concatenate([own, others]), np.arange(len(own) + len(others)) < len(own)
    warmth = anomaly[:, chosen].copy()
    alone = (members & (rates == "control")) | (~members & (settings.others == "alone"))
    warmth[:, alone] = rng.permuted(warmth[:, alone], axis=0)
    lowest, highest = settings.lowest_rate, settings.highest_rate
    if rates == "mixed":
        rate = np.exp(rng.uniform(np.log(lowest), np.log(highest), len(chosen)))
    else:
        rate = np.where(members == (rates == "fast"), highest, lowest)
    weeks = len(warmth)
    count = _unusual_weeks(settings, weeks)
    warm = np.argsort(np.argsort(-warmth, axis=0), axis=0) < count
    drawn = rng.integers(0, weeks, round(settings.duration / settings.week))
    chance = rate * settings.week * weeks / count
    which, who = np.nonzero(warm[drawn] & (rng.uniform(size=(len(drawn), len(chosen))) < chance))
    time = which * settings.week + settings.jitter * rng.normal(size=len(which))
    step = np.floor(time / DT).astype(np.int64)
    return pack_events(step, who, round(settings.duration / DT)), members


def _unusual_weeks(settings: Settings, weeks: int) -> int:
    return max(1, round(settings.unusual * weeks))


def by_covariance(settings: Settings, events: Events, inputs: int) -> np.ndarray:
    """Weights from the clusters of the normalised covariance of counts in bins of a week."""
    inside = np.asarray(events.inputs)[: int(events.first[-1])]
    step = np.repeat(np.arange(len(events.first) - 1), np.diff(events.first))
    # half a bin later, so that jitter does not cut through the spikes of a week
    bins = np.floor((step + 0.5) * DT / settings.week + 0.5).astype(np.int64)
    counts = np.zeros((int(bins.max(initial=0)) + 1, inputs), np.float32)
    np.add.at(counts, (bins, inside), 1)
    similarity = np.asarray(normcov.normalised_covariance(jnp.asarray(counts)))
    labels = normcov.cluster(similarity, min(settings.clusters, inputs))
    return normcov.weights_by_cluster(similarity, labels)


def pictures(settings: Settings, rows: Sequence[Mapping[str, Any]]) -> "dict[str, Axes]":
    """Separation over the output rate, a field for each assignment; mean over the states."""
    from matplotlib.figure import Figure

    from .. import plots

    figure = Figure(figsize=(3.2 * len(settings.rates), 3.4), layout="constrained")
    fields = figure.subplots(1, len(settings.rates), sharey=True, squeeze=False)[0]
    means = over_states(rows)
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


def over_states(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Means over the states, a row for each rule, point and assignment."""
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
    means = over_states(rows)
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
