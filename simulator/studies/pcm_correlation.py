"""Correlations found by phase-change synapses, beside ones that hold any number.

Twice: a neuron that learns by fatiguing STDP which of its inputs fire together, and an array that
is given a SET pulse wherever an input is active while many are. Rules and cells are where they are;
here synapses are put in place of each other.
"""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from pydantic import Field
from pydantic.dataclasses import dataclass

from ...learning_rules.fatigue import FatiguingSTDP
from ...learning_rules.stdp import PairSTDP, bounded_update
from ...quant.memory import WeightMemory, float32
from ..devices import Device, by_name, memristive
from ..experiment import STRICT, Count, Positive
from ._plastic_neuron import DT, Share, TwoGroups, Use, summarised

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Synapse = Literal["number", "set_pcm"]
SYNAPSES: tuple[Synapse, ...] = get_args(Synapse)
TITLES = {
    "groups": "What a neuron learns: mean weights of both groups of inputs",
    "detection": "What an array finds: correlated processes by their conductance",
}
TEXT = (
    "Above: one neuron, slow inputs with a common source among fast independent ones, learning by "
    "STDP (U = 0) and fatiguing STDP, its weights numbers or pairs of phase-change cells that take "
    "SET pulses, as many as the change amounts to on average, and are RESET in pairs when they are "
    "full; bars reach over the seeds. Below: binary processes, some of which share a cause; "
    "whenever many are active at once, those that are get one SET pulse. How well conductances "
    "tell the groups apart is the area under the receiver operating characteristic; `number` is a "
    "synapse of equal steps without noise."
)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Settings(TwoGroups):
    """The neuron at each of its points [U, theta], and the array at each correlation."""

    points: tuple[tuple[Use, Positive], ...] = ((0.0, 8.0), (0.0, 12.0), (0.5, 1.0), (0.5, 2.0))
    seeds: Count = 4
    detected: tuple[Share, ...] = (0.05, 0.1, 0.3)  # correlation of any two processes
    processes: Count = 1000
    caused: Count = 100  # of them share a cause
    activity: Annotated[float, Field(gt=0, lt=1)] = 0.01  # share of steps in which one is active
    steps: Count = 1500
    arrays: Count = 10  # seeds of the array


def cases(settings: Settings, seed: int) -> list[dict[str, Any]]:
    """Each point and each correlation with both synapses."""
    del seed
    if settings.caused >= settings.processes:
        raise ValueError(
            f"study.caused is {settings.caused} of {settings.processes} processes; leave some "
            "without the cause."
        )
    none = {"use": None, "theta": None, "correlation": None}
    found = [
        none | {"use": use, "theta": theta, "synapse": synapse}
        for use, theta in settings.points
        for synapse in SYNAPSES
    ]
    return found + [
        none | {"correlation": c, "synapse": synapse}
        for c in settings.detected
        for synapse in SYNAPSES
    ]


def measure(settings: Settings, seed: int, case: Mapping[str, Any]) -> dict[str, Any]:
    """Of the neuron mean weights and rate, as in the study `fatigue`; of the array its areas."""
    if case["use"] is None:
        device = None if case["synapse"] == "number" else by_name(case["synapse"])
        found = detected(settings, device, case["correlation"], seed)
        areas = [area(g[: settings.caused], g[settings.caused :]) for g in found]
        return {"area": float(np.mean(areas)), "spread": float(np.std(areas))}
    memory = float32() if case["synapse"] == "number" else pcm_synapses()
    weights, rates = learn(settings, memory, case["use"], case["theta"], seed)
    slow, fast = weights[:, : settings.correlated], weights[:, settings.correlated :]
    found = summarised(slow.mean(1).tolist(), fast.mean(1).tolist())
    return found | {"rate": float(rates.mean())}


def pcm_synapses() -> WeightMemory:
    """Pairs of cells under SET pulses; weights begin at half of their range."""
    return memristive(by_name("set_pcm"), writing="pulses", dt=DT, headroom=2)


def learn(
    settings: Settings, memory: WeightMemory, use: float, theta: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Weights (seeds, inputs) at the end, and the output rates in the last third [Hz]."""
    steps = round(settings.duration / DT)
    rasters = np.zeros((settings.seeds, steps, settings.correlated + settings.fast), bool)
    for i, raster in enumerate(rasters):
        events = settings.events(seed, i)
        first = np.asarray(events.first)
        raster[np.repeat(np.arange(steps), np.diff(first)), events.inputs[: first[-1]]] = True
    pair = PairSTDP(
        a_plus=settings.a_plus,
        a_minus=settings.a_plus * settings.depression,
        tau_plus=settings.tau_stdp,
        tau_minus=settings.tau_stdp,
        dt=DT,
        coincidence="potentiate",
    )
    rule = FatiguingSTDP(pair, use, settings.tau_fatigue)
    decay = math.exp(-DT / settings.tau_membrane)

    def one(raster: Array, number: Array) -> tuple[Array, Array]:
        begin, key = jax.random.split(jax.random.fold_in(jax.random.key(seed), number))
        kept = memory.init(jnp.full((raster.shape[1], 1), settings.start), begin)

        def step(carry: Any, i: Array) -> tuple[Any, Array]:
            kept, v, state = carry
            read, write = jax.random.split(jax.random.fold_in(key, i))
            w, pre = memory.read(kept, read), raster[i].astype(jnp.float32)
            v = decay * v + (pre * rule.transmitted(state)) @ w
            post = (v > theta).astype(jnp.float32)
            state, delta = rule.step(state, w, pre, post)
            kept = memory.update(kept, bounded_update(rule, w, delta), write)
            return (kept, v * (1 - post), state), post[0]

        start = (kept, jnp.zeros(1), rule.init((raster.shape[1],), (1,)))
        (kept, _, _), fired = jax.lax.scan(step, start, jnp.arange(len(raster)))
        return memory.read(kept)[:, 0], fired[-len(raster) // 3 :].mean() / DT

    found = jax.jit(jax.vmap(one))(jnp.asarray(rasters), jnp.arange(settings.seeds))
    weights, rates = (np.asarray(a, float) for a in found)
    return weights, rates


def processes(settings: Settings, c: float, key: Any) -> Array:
    """Which processes are active in one step, those with the cause first."""
    n, share = settings.processes, settings.activity
    own, cause, copies = jax.random.split(key, 3)
    has_cause = jnp.arange(n) < settings.caused
    # copied with the root of c, two processes correlate by c
    copied = has_cause & (jax.random.uniform(copies, (n,)) < math.sqrt(c))
    return jnp.where(
        copied, jax.random.uniform(cause) < share, jax.random.uniform(own, (n,)) < share
    )


def detected(settings: Settings, device: Device | None, c: float, seed: int) -> np.ndarray:
    """Conductances (arrays, processes) after all steps; for no device the numbers of pulses."""
    n, share = settings.processes, settings.activity
    many = math.floor(n * share + 2 * math.sqrt(n * share * (1 - share)))

    def one(number: Array) -> Array:
        key = jax.random.fold_in(jax.random.key(seed), number)
        for_cells, for_inputs, for_pulses = jax.random.split(key, 3)
        pulse = None if device is None else device.pulse

        def step(state: Any, i: Array) -> tuple[Any, None]:
            active = processes(settings, c, jax.random.fold_in(for_inputs, i))
            counts = (active & (active.sum() > many)).astype(jnp.int32)
            if pulse is None:
                return state + counts, None
            return pulse(state, counts, jax.random.fold_in(for_pulses, i), 0.0), None

        start = jnp.zeros(n, jnp.int32) if device is None else device.init((n,), for_cells, 0.0)
        state = jax.lax.scan(step, start, jnp.arange(settings.steps))[0]
        return state if device is None else device.read(state, None, 0.0)

    return np.asarray(jax.jit(jax.vmap(one))(jnp.arange(settings.arrays)), float)


def area(positive: np.ndarray, negative: np.ndarray) -> float:
    """The share of pairs in which the positive one is larger; a draw counts half."""
    below = np.searchsorted(np.sort(negative), positive, "left")
    upto = np.searchsorted(np.sort(negative), positive, "right")
    return float((below + upto).sum() / (2 * len(positive) * len(negative)))


def pictures(settings: Settings, rows: Sequence[Mapping[str, Any]]) -> "dict[str, Axes]":
    """Bars of both groups for each point and synapse, and areas over the correlation."""
    from .. import plots

    drawn = {}
    learnt = [row for row in rows if row["use"] is not None]
    if learnt:
        drawn["groups"] = ax = plots.new_axes()
        places = np.arange(len(learnt))
        for i, group in enumerate(("slow", "fast")):
            mean = np.array([row[group] for row in learnt])
            spread = np.array([row[f"{group}_spread"] for row in learnt]).T
            ax.bar(
                places + 0.4 * i - 0.2, mean, 0.4, yerr=np.abs(spread - mean), capsize=2,
                color=plots.COLOURS[i], label=f"{group} inputs",
            )  # fmt: skip
        labels = [f"{r['synapse']}\nU={r['use']:g}, theta={r['theta']:g}" for r in learnt]
        ax.set_xticks(places, labels, fontsize=7, rotation=30)
        ax.set(ylabel="mean weight", ylim=(0, 1.05))
        ax.legend(frameon=False, fontsize=8)
    found = [row for row in rows if row["correlation"] is not None]
    if found:
        drawn["detection"] = ax = plots.new_axes()
        for i, synapse in enumerate(SYNAPSES):
            own = [row for row in found if row["synapse"] == synapse]
            ax.errorbar(
                [r["correlation"] for r in own], [r["area"] for r in own],
                [r["spread"] for r in own], fmt="o-", capsize=3, color=plots.COLOURS[i],
                label=synapse,
            )  # fmt: skip
        ax.set(xlabel="correlation", ylabel="area under the curve")
        ax.legend(frameon=False)
    return drawn


def summary(settings: Settings, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The difference between both groups at each point, and the areas."""
    told: dict[str, Any] = {"worst_difference": {}, "area": {}}
    for row in rows:
        if row["use"] is not None:
            name = f"{row['synapse']}, U={row['use']:g}, theta={row['theta']:g}"
            told["worst_difference"][name] = round(row["worst"], 3)
        else:
            name = f"{row['synapse']}, {row['correlation']:g}"
            told["area"][name] = round(row["area"], 3)
    return told
