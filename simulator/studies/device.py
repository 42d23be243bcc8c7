"""What a device engineer looks at first: reads over time, pulses up and down, a tile that ages.

The measurements stand here; what cells do is said in `simulator/devices/`.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass

from ..devices import Device, by_name, tile
from ..experiment import STRICT, Count, NotNegative, Positive

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TITLES = {
    "drift": "Reads over time",
    "programming": "Error of programming",
    "curve": "Pulses up, then down",
    "steps": "Step of a pulse against where the cell is",
    "kept": "Reads long after the pulses up",
    "product": "Error of a matrix product over time",
}
TEXT = (
    "Cells written to each target and left alone: what they hold right after programming, and what "
    "a read sees later. Bars are one standard deviation over cells. Pulses start from cells as "
    "they are made, all cells get the same; the band holds 68 % of them. The product is that of a "
    "tile of Gaussian weights, cut at 2.5 standard deviations, with converters of 8 bits; its "
    "outputs are also shown multiplied by one number that makes up for the mean drift."
)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Settings:
    """One device, by its name."""

    device: str = "pcm"
    targets: Annotated[tuple[NotNegative, ...], Field(min_length=1)] = (
        2, 5, 10, 15, 20, 25, 40, 60, 80, 120, 200,
    )  # fmt: skip  # [uS]
    times: Annotated[tuple[NotNegative, ...], Field(min_length=1)] = (
        0, 1, 3600, 86_400, 31_536_000,
    )  # fmt: skip  # since programming [s]
    cells: Count = 100_000  # for each target
    pulses: Count = 60  # up, then down
    rows: Count = 256  # of the tile
    columns: Count = 128
    vectors: Count = 64
    weight_std: Positive = 0.1


def cases(settings: Settings, seed: int) -> list[dict[str, Any]]:
    """What the device can show: reads and a tile if it can be programmed, pulses if it takes them.

    Targets beyond its range are left out, and times of which its model says nothing.
    """
    del seed
    try:
        device = by_name(settings.device)
    except ValueError as error:
        raise ValueError(f"study.device: {error}") from None
    found: list[dict[str, Any]] = []
    if device.program is not None:
        targets = [g for g in settings.targets if device.g_min <= g <= device.g_max]
        if not targets:
            raise ValueError(
                f"study.targets: none is in the range of {device.name}, {device.g_min:g} to "
                f"{device.g_max:g} uS"
            )
        times = [t for t in settings.times if t <= device.until]
        found += [{"shows": "reads", "target_uS": g, "time_s": t} for g in targets for t in times]
        found += [{"shows": "product", "target_uS": None, "time_s": t} for t in times]
    if device.pulse is not None:
        found.append({"shows": "pulses", "target_uS": None, "time_s": None})
    return found


def measure(settings: Settings, seed: int, case: Mapping[str, Any]) -> dict[str, Any]:
    """Of reads mean, spread and number; of products their error; of pulses what cells went through.

    The same cells are read at all times, and each tile ages.
    """
    device, key = by_name(settings.device), jax.random.key(seed)
    if case["shows"] == "reads":
        own = jax.random.fold_in(key, 2 + settings.targets.index(case["target_uS"]))
        return _reads(device, float(case["target_uS"]), float(case["time_s"]), settings.cells, own)
    if case["shows"] == "product":
        return _product(settings, device, float(case["time_s"]), key)
    later = [float(t) for t in settings.times if 0 < t <= device.until]
    return _pulses(device, settings.pulses, later, key)


def _reads(device: Device, target: float, t: float, cells: int, key: Any) -> dict[str, Any]:
    assert device.program is not None
    for_cells, for_writing, for_read = jax.random.split(key, 3)
    state = device.init((cells,), for_cells, 0.0)
    state = device.program(state, jnp.full(cells, target, jnp.float32), for_writing, 0.0)
    g = np.asarray(device.read(state, None if t == 0 else for_read, t), float)
    return {"mean_uS": float(g.mean()), "std_uS": float(g.std(ddof=1)), "n": cells}


def _product(settings: Settings, device: Device, t: float, key: Any) -> dict[str, Any]:
    for_w, for_x, for_cells, for_reads, again = jax.random.split(jax.random.fold_in(key, 0), 5)
    shape = (settings.rows, settings.columns)
    w = settings.weight_std * jax.random.truncated_normal(for_w, -2.5, 2.5, shape)
    x = jax.random.normal(for_x, (settings.vectors, settings.rows))
    built = tile.Tile(device)
    held, exact = tile.program(built, w, for_cells), x @ w

    def error(noise: Any, *, compensate: bool) -> float:
        y = tile.matmul(built, held, x, noise, t, compensate=compensate)
        return float(jnp.linalg.norm(y - exact) / jnp.linalg.norm(exact))

    return {
        "error": error(for_reads, compensate=False),
        "error_compensated": error(again, compensate=True),
    }


def _pulses(device: Device, pulses: int, later: list[float], key: Any) -> dict[str, Any]:
    """Each cell gets `pulses` up, then as many down, or one RESET where that is the only way.

    `kept` has time, mean and spread of what is read after the pulses up, were there none down.
    """
    assert device.pulse is not None
    give, cells = device.pulse, 2000
    for_cells, for_pulses, for_reads = jax.random.split(jax.random.fold_in(key, 1), 3)
    state = device.init((cells,), for_cells, 0.0)
    down = 1 if device.resets else pulses
    signs = jnp.repeat(jnp.array([1, -1]), jnp.array([pulses, down]))

    def one(state: Any, i: Any) -> tuple[Any, Any]:
        counts = jnp.full(cells, signs[i])
        state = give(state, counts, jax.random.fold_in(for_pulses, i), 0.0)
        return state, device.read(state, None, 0.0)

    start = device.read(state, None, 0.0)
    state, rising = jax.lax.scan(one, state, jnp.arange(pulses))
    reads = [device.read(state, jax.random.fold_in(for_reads, i), t) for i, t in enumerate(later)]
    falling = jax.lax.scan(one, state, jnp.arange(pulses, len(signs)))[1]
    parts = (np.asarray(start)[None], np.asarray(rising), np.asarray(falling))
    g = np.concatenate(parts).astype(float)
    low, high = np.percentile(g, (16, 84), axis=1)
    ups = _steps(g[:pulses], np.diff(g[: pulses + 1], axis=0))
    downs = _steps(g[pulses:-1], np.diff(g[pulses:], axis=0)) if not device.resets else []
    return {
        "mean": g.mean(1).tolist(),
        "low": low.tolist(),
        "high": high.tolist(),
        "up": ups,
        "down": downs,
        "kept": [[t, float(r.mean()), float(r.std())] for t, r in zip(later, reads, strict=True)],
    }


def _steps(before: np.ndarray, moved: np.ndarray) -> list[list[float]]:
    """Where cells were, and the mean and spread of their steps there, in ten equal parts."""
    edges = np.linspace(before.min(), before.max(), 11)
    part = np.clip(np.digitize(before, edges) - 1, 0, 9)
    rows = []
    for k in range(10):
        own = part == k
        if own.sum() > 1:
            rows.append(
                [float(before[own].mean()), float(moved[own].mean()), float(moved[own].std())]
            )
    return rows


def pictures(settings: Settings, rows: Sequence[Mapping[str, Any]]) -> "dict[str, Axes]":
    """Those of what the device can show."""
    device, drawn = by_name(settings.device), {}
    unit = "" if device.g_min < 0 else " [uS]"
    reads = [row for row in rows if row["shows"] == "reads"]
    if reads:
        drawn |= {"drift": _drift(reads), "programming": _programming(reads)}
    for row in rows:
        if row["shows"] == "pulses":
            drawn |= {"curve": _curve(row, unit), "steps": _step_picture(row, unit)}
            means = [mean for _, mean, _ in row["kept"]]
            if means and max(means) - min(means) > 1e-6 * max(map(abs, means)):  # else all stays
                drawn["kept"] = _kept(row, unit)
    products = [row for row in rows if row["shows"] == "product"]
    if products:
        drawn["product"] = _product_picture(products)
    return drawn


_SOONEST = 0.1  # where "right after programming" is drawn on a logarithmic axis [s]


def _drift(reads: Sequence[Mapping[str, Any]]) -> "Axes":
    from .. import plots

    ax = plots.new_axes()
    targets = list(dict.fromkeys(row["target_uS"] for row in reads))
    for i, target in enumerate(targets):
        own = [row for row in reads if row["target_uS"] == target]
        ax.errorbar(
            [max(row["time_s"], _SOONEST) for row in own],
            [row["mean_uS"] for row in own],
            [row["std_uS"] for row in own],
            fmt="o-", ms=3, capsize=2, color=plots.COLOURS[i % len(plots.COLOURS)],
            label=f"{target:g} uS",
        )  # fmt: skip
    ax.set(xscale="log", xlabel="time since programming [s]", ylabel="conductance [uS]")
    ax.legend(frameon=False, fontsize=8, title="target")
    return ax


def _programming(reads: Sequence[Mapping[str, Any]]) -> "Axes":
    from .. import plots

    ax, first = plots.new_axes(), min(row["time_s"] for row in reads)
    own = [row for row in reads if row["time_s"] == first]
    targets = [row["target_uS"] for row in own]
    ax.plot(targets, [row["std_uS"] for row in own], "o-", label="spread")
    ax.plot(targets, [row["mean_uS"] - row["target_uS"] for row in own], "s--", label="mean error")
    ax.set(xlabel="target [uS]", ylabel="error of what is held [uS]")
    ax.legend(frameon=False)
    return ax


def _curve(row: Mapping[str, Any], unit: str) -> "Axes":
    from .. import plots

    ax, pulses = plots.new_axes(), range(len(row["mean"]))
    ax.plot(pulses, row["mean"], label="mean of the cells")
    ax.fill_between(pulses, row["low"], row["high"], alpha=0.3, label="68 % of the cells")
    ax.set(xlabel="pulse", ylabel=("conductance" if unit else "weight") + unit)
    ax.legend(frameon=False)
    return ax


def _kept(row: Mapping[str, Any], unit: str) -> "Axes":
    from .. import plots

    ax = plots.new_axes()
    ax.errorbar(*zip(*row["kept"], strict=True), fmt="o-", ms=3, capsize=2)
    ax.set(xscale="log", xlabel="time since the last pulse [s]")
    ax.set(ylabel=("conductance" if unit else "weight") + unit)
    return ax


def _step_picture(row: Mapping[str, Any], unit: str) -> "Axes":
    from .. import plots

    ax = plots.new_axes()
    for name in ("up", "down"):
        if row[name]:
            at, mean, spread = zip(*row[name], strict=True)
            ax.errorbar(at, mean, spread, fmt="o-", ms=3, capsize=2, label=name)
    ax.set(xlabel=("conductance" if unit else "weight") + unit, ylabel="step" + unit)
    ax.legend(frameon=False)
    return ax


def _product_picture(products: Sequence[Mapping[str, Any]]) -> "Axes":
    from .. import plots

    ax = plots.new_axes()
    times = [max(row["time_s"], _SOONEST) for row in products]
    ax.plot(times, [row["error"] for row in products], "o-", label="as it is")
    ax.plot(times, [row["error_compensated"] for row in products], "s--", label="compensated")
    ax.set(
        xscale="log", xlabel="time since programming [s]", ylabel="relative error", ylim=(0, None)
    )
    ax.legend(frameon=False)
    return ax


def summary(settings: Settings, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The device, and the error of its products at the last time."""
    products = [row for row in rows if row["shows"] == "product"]
    last = (
        {k: round(products[-1][k], 4) for k in ("error", "error_compensated")} if products else {}
    )
    return {"device": settings.device} | last
