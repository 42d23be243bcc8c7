"""A device beside measured pulse traces: does it give what was measured?

The traces are compared with as many new cells of the device that get the same pulses, several times
over; and each cell's reads with what a Kalman filter expects of the next one. How a device is
fitted is `simulator/devices/fit.py`'s.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from pydantic.dataclasses import dataclass

from ..devices import device_file, pulse_traces
from ..devices.fit import Population, cells_given
from ..devices.kalman import filtered
from ..devices.pulse_traces import Traces
from ..experiment import STRICT, Count

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TITLES = {
    "curve": "Mean of the cells",
    "spread": "Spread between cells",
    "steps": "Change from read to read, against where the cell was",
    "memory": "What a change tells of the next ones",
    "innovations": "Reads minus what the filter expected, in its standard deviations",
    "symmetry": "Symmetry points of the cells",
}
TEXT = (
    "Lines and dots are the traces, bands what new cells of the device give when they get the same "
    "pulses from the same first reads (95 % of the repetitions, each with as many cells as "
    "were measured). Where a line leaves its band the model does not hold. Innovations of a model "
    "that holds are independent and standard normal."
)
_PARTS, _LAGS, _EDGES = 10, 10, np.linspace(-4, 4, 33)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Settings:
    """Traces and a device file."""

    traces: str
    device: str
    repetitions: Count = 20


def cases(settings: Settings, seed: int) -> list[dict[str, Any]]:
    """One comparison, of traces and a device that fit together."""
    del seed
    try:
        traces = pulse_traces.read(settings.traces)
    except ValueError as error:
        raise ValueError(f"study.traces: {error}") from None
    try:
        unit = device_file.load(settings.device).unit
    except ValueError as error:
        raise ValueError(f"study.device: {error}") from None
    if unit != traces.unit:
        raise ValueError(
            f'study.device: is in the unit "{unit}", and {settings.traces} in "{traces.unit}"'
        )
    return [{"traces": settings.traces, "device": settings.device}]


def measure(settings: Settings, seed: int, case: Mapping[str, Any]) -> dict[str, Any]:
    """What the pictures show, of the traces and of the repetitions; and the parameters."""
    del case
    traces, content = pulse_traces.read(settings.traces), device_file.load(settings.device)
    made = simulated(traces, content, settings.repetitions, jax.random.key(seed))
    low, high = _edges(traces.g)
    edges = np.linspace(low, high, _PARTS + 1)
    found = {"edges": edges.tolist(), "own": _shown(traces.g, traces, edges)}
    each = [_shown(g, traces, edges) for g in made]
    found["band"] = {name: _band([one[name] for one in each]) for name in each[0]}
    found |= _innovations(traces, content)
    return found | {"parameters": table(content)}


def table(content: device_file.DeviceFile) -> list[dict[str, Any]]:
    """The parameters of a device with their standard errors, one a row."""
    units: dict[str, str] = dict.fromkeys(("up", "down", "high", "low", "read"), content.unit)
    over = {"high": content.reference, "low": content.reference}
    return [
        {
            "parameter": name,
            "value": value + over.get(name, 0.0),
            "error": getattr(content.errors, name),
            "unit": units.get(name, "1"),
        }
        for name, value in dataclasses.asdict(content.values).items()
    ]


def simulated(
    traces: Traces, content: device_file.DeviceFile, repetitions: int, key: Any
) -> np.ndarray:
    """Reads of new cells (repetitions, rows, cells) that get the pulses of the traces.

    A fresh cell begins at its first read; where nothing was measured nothing is read.
    """
    device = content.device("fitted")
    assert device.pulse is not None
    give = device.pulse
    begin = np.where(traces.fresh, _next_read(traces.g), np.nan) - content.reference
    rows = (jnp.asarray(traces.pulses, jnp.int32), jnp.asarray(begin, jnp.float32))

    @jax.jit
    def run(key: Any) -> Any:
        for_cells, for_pulses = jax.random.split(key)
        cells = (repetitions, traces.g.shape[1])
        state = device.init(cells, for_cells, 0.0)

        def row(state: Any, x: Any) -> Any:
            i, pulses, start = x
            counts = jnp.broadcast_to(pulses, cells)
            state = give(state, counts, jax.random.fold_in(for_pulses, i), 0.0)
            place = jnp.clip(start, state.low, state.high)
            anew = ~jnp.isnan(start)
            state = state._replace(
                w=jnp.where(anew, place, state.w), shown=jnp.where(anew, start, state.shown)
            )
            return state, device.read(state, None, 0.0)

        return jax.lax.scan(row, state, (jnp.arange(len(rows[0])), *rows))[1]

    g = np.moveaxis(np.asarray(run(key), float), 1, 0)
    return np.where(np.isnan(traces.g), np.nan, g)


def _next_read(g: np.ndarray) -> np.ndarray:
    """The first number at or after each row."""
    found = g.copy()
    for i in range(len(g) - 2, -1, -1):
        found[i] = np.where(np.isnan(found[i]), found[i + 1], found[i])
    return found


def _edges(g: np.ndarray) -> tuple[float, float]:
    low, high = np.nanquantile(g, (0.005, 0.995))
    return float(low), float(high)


def _shown(g: np.ndarray, traces: Traces, edges: np.ndarray) -> dict[str, list[float | None]]:
    """What is compared, of reads (rows, cells)."""
    with np.errstate(invalid="ignore"):
        moved = np.where(traces.fresh[1:], np.nan, np.diff(g, axis=0))
    told = ~np.isnan(g)
    count = told.sum(1)
    mean = np.where(told, g, 0).sum(1) / np.maximum(count, 1)
    square = (np.where(told, g - mean[:, None], 0) ** 2).sum(1) / np.maximum(count - 1, 1)
    shown = {
        "mean": np.where(count > 0, mean, np.nan),
        "between": np.where(count > 1, np.sqrt(square), np.nan),
        "memory": _correlations(moved),
    }
    part = np.digitize(g[:-1], edges) - 1
    for sign, name in ((1, "up"), (-1, "down")):
        given = (np.sign(traces.pulses[1:]) == sign) & ~np.isnan(moved)
        own = [moved[given & (part == k)] for k in range(_PARTS)]
        shown[f"{name}_mean"] = np.array([m.mean() if len(m) > 9 else np.nan for m in own])
        shown[f"{name}_spread"] = np.array([m.std() if len(m) > 9 else np.nan for m in own])
    return {name: _plain(values) for name, values in shown.items()}


def _correlations(x: np.ndarray) -> np.ndarray:
    """Of values (rows, cells) with those some rows later, for the first lags."""
    x = x - np.nanmean(x)
    found = []
    for lag in range(1, _LAGS + 1):
        pairs = x[lag:] * x[:-lag]
        found.append(np.nanmean(pairs) if np.isfinite(pairs).any() else np.nan)
    return np.array(found) / np.nanmean(x**2)


def _band(rows: list[list[float | None]]) -> list[list[float | None]]:
    values = np.array(rows, float)
    known = ~np.isnan(values).any(0)
    ends = np.full((2, values.shape[1]), np.nan)
    ends[:, known] = np.quantile(values[:, known], (0.025, 0.975), axis=0)
    return [_plain(end) for end in ends]


def _innovations(traces: Traces, content: device_file.DeviceFile) -> dict[str, Any]:
    """Of each cell with its own most likely parameters."""
    trace = traces.over(content.reference)
    cells = cells_given(Population(**dataclasses.asdict(content.values)), trace)
    with jax.enable_x64(True):
        own = type(cells)(*(jnp.asarray(a)[None] for a in cells))
        seen = jax.jit(filtered)(own, type(trace)(*map(jnp.asarray, trace)))
        z = np.asarray(seen.innovation / seen.spread)[:, 0]
    known = z[~np.isnan(z)]
    counts = np.histogram(known, _EDGES)[0] / (len(known) * np.diff(_EDGES))
    points = (cells.up - cells.down) / (cells.up / cells.high - cells.down / cells.low)
    return {
        "histogram": counts.tolist(),
        "whiteness": _plain(_correlations(z)),
        "innovation_std": float(known.std()),
        "innovations": len(known),
        "symmetry": (points + content.reference).tolist(),
    }


def _plain(values: np.ndarray) -> list[float | None]:
    return [float(v) if np.isfinite(v) else None for v in values]


def pictures(settings: Settings, rows: Sequence[Mapping[str, Any]]) -> "dict[str, Axes]":
    """Six."""
    from .. import plots

    row = rows[0]
    unit = "" if row["parameters"][0]["unit"] == "1" else " [uS]"
    reads, drawn = range(len(row["own"]["mean"])), {}
    for name, key, label in (
        ("curve", "mean", "mean of the reads"),
        ("spread", "between", "standard deviation"),
    ):
        drawn[name] = _over(plots.new_axes(), row, key, reads, "traces")
        drawn[name].set(xlabel="row of the traces", ylabel=label + unit)
    edges = np.array(row["edges"])
    middles = ((edges[1:] + edges[:-1]) / 2).tolist()
    ax = drawn["steps"] = plots.new_axes()
    for i, name in enumerate(("up", "down")):
        _over(ax, row, f"{name}_mean", middles, f"mean, {name}", 2 * i, "o-")
        _over(ax, row, f"{name}_spread", middles, f"spread, {name}", 2 * i + 1, "s--")
    ax.set(xlabel="read before" + unit, ylabel="change by the next row" + unit)
    ax.legend(frameon=False, fontsize=8)
    lags = range(1, _LAGS + 1)
    drawn["memory"] = _over(plots.new_axes(), row, "memory", lags, "changes", 0, "o-")
    drawn["memory"].plot(lags, _numbers(row["whiteness"]), "s--", label="innovations")
    drawn["memory"].axhspan(*_white(row["innovations"]), alpha=0.3, color="gray")
    drawn["memory"].set(xlabel="rows later", ylabel="correlation")
    drawn["memory"].legend(frameon=False)
    ax = drawn["innovations"] = plots.new_axes()
    ax.stairs(row["histogram"], _EDGES.tolist(), label="traces")
    ax.plot(_EDGES, np.exp(-(_EDGES**2) / 2) / np.sqrt(2 * np.pi), "--", label="standard normal")
    ax.set(xlabel="innovation / its standard deviation", ylabel="density")
    ax.legend(frameon=False)
    drawn["symmetry"] = plots.histogram(
        {"cells": np.array(row["symmetry"])}, xlabel="symmetry point" + unit, bins=20, log=False
    )
    return drawn


def _white(count: int) -> tuple[float, float]:
    """Where 95 % of the correlations of independent numbers are."""
    return -1.96 / np.sqrt(count), 1.96 / np.sqrt(count)


def _numbers(values: Sequence[float | None]) -> np.ndarray:
    return np.array([np.nan if v is None else v for v in values])


def _over(
    ax: "Axes", row: Mapping[str, Any], key: str, x: Sequence[float] | range, label: str,
    colour: int = 0, style: str = "-",
) -> "Axes":  # fmt: skip
    """A line of the traces and the band of the device."""
    from .. import plots

    shade = plots.COLOURS[colour]
    ax.plot(x, _numbers(row["own"][key]), style, ms=3, color=shade, label=label)
    low, high = map(_numbers, row["band"][key])
    ax.fill_between(x, low, high, alpha=0.3, color=shade)
    return ax


def summary(settings: Settings, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The share of the means inside the band, the innovations, the parameters."""
    row = rows[0]
    inside = {}
    for key in ("mean", "between", "up_mean", "down_mean", "up_spread", "down_spread"):
        own, (low, high) = _numbers(row["own"][key]), map(_numbers, row["band"][key])
        known = ~np.isnan(own) & ~np.isnan(low)
        within = (own >= low) & (own <= high)
        inside[f"{key}_in_band"] = round(float(within[known].mean()), 3) if known.any() else None
    parameters = {
        p["parameter"]: f"{p['value']:.4g} ± {p['error']:.2g}"
        if p["error"]
        else f"{p['value']:.4g}"
        for p in row["parameters"]
    }
    return (
        {
            "device": settings.device,
            "innovation_std": round(row["innovation_std"], 4),
            "first_correlation": row["whiteness"][0],
        }
        | inside
        | parameters
    )
