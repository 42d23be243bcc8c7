"""Weights that live in memristive cells between two training steps.

The contract is `quant.memory.WeightMemory`, so any rule trains on any device. What a cell does is
its model's, how cells make a weight is `cells.py`'s; here is when which cells are written, the
clock, and what is counted.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, PyTree, UInt32

from ...quant.memory import COUNTS, WeightMemory, add_counts, count
from .cells import Arrangement, usual
from .device import Device
from .presets import by_name
from .pulse_numbers import rounded

Writing = Literal["program", "pulses", "mixed_precision"]
DEVICE_COUNTS = (*COUNTS, "pulses", "cut", "refreshed")


class DeviceWeights(NamedTuple):
    """The state of `memristive`: all of it arrays, a leaf of the parameters at a time."""

    cells: PyTree  # state of the arrangement, most often that of the device, (*shape, cells)
    scale: PyTree[Float[Array, ""]]  # weight for one unit of conductance
    pending: PyTree[Float[Array, "..."]] | None  # what is not written yet [uS]
    t: Float[Array, ""]  # the time [s]
    like: PyTree[Float[Array, ""]]  # a 0 for each leaf, in the dtype that is read
    lost: dict[str, PyTree[UInt32[Array, "2"]]]


def memristive(
    device: Device | str,
    cells: Arrangement | None = None,
    *,
    writing: Writing | None = None,
    granularity: float | int | None = None,
    dt: float | int = 1.0,
    headroom: float | int = 1.0,
    rounding: Literal["stochastic", "nearest"] = "stochastic",
    length: int | None = None,
) -> WeightMemory:
    r"""Weights in cells of a device: p <- p + u as far as the cells can.

    - "program": every weight with an update is written anew, to its present value plus the update,
      with the noise of programming.
    - "pulses": an update becomes a whole number of pulses, each counted as `granularity`; rounded
      stochastically, its mean is the update where a pulse moves a cell by that much. It moves
      less near a bound, and a phase-change cell several times as far right after a RESET.
    - "mixed_precision": updates are summed in float32, and what amounts to whole steps is taken out
      of the sum and written: pulses, or for a device without them programming.

    The range of the cells is that of $\pm$ `headroom` max|p| at `init`, a leaf at a time. Time
    goes on by dt at each update; `at(state, t)` sets the clock, to see what drift does to weights
    that nobody writes. `read` reads at that time: with a key as an instrument would, with the noise
    of a read, without one as the cells are. The clock is float32: a dt below 6e-8 of it is lost.

    Counts in `state.lost`, see `quant.memory.losses`: as there, with `pulses` given, updates `cut`
    by `length` and weights `refreshed`; `saturated` are weights that should be written beyond the
    range.

    Args:
        device: the kind of cells, or its name in `DEVICES` or the path of a device file.
        cells: how they make a weight; None: `Single` for cells of both signs, else `Pair`.
        writing: see above; None: "mixed_precision" for a device with pulses, else "program".
        granularity: change that counts as one step [uS]; None: that of the device's pulse, or a
            fiftieth of its range.
        dt: time from update to update [s].
        headroom: how far beyond the first max|p| the range reaches.
        rounding: of an update to pulses, for "pulses".
        length: the most pulses a weight gets in an update; what is beyond is lost by "pulses" and
            stays in the sum of "mixed_precision".

    Raises:
        ValueError: a way of writing that the device has not, a setting out of range, or an unknown
            name.

    References:
        Nandakumar et al., Mixed-precision deep learning based on computational memory,
        arXiv:2001.11773.
    """
    if isinstance(device, str):
        device = by_name(device)
    who = f"memristive({device.name})"
    layout = cells or usual(device.g_min)
    if writing is None:
        writing = "program" if device.pulse is None else "mixed_precision"
    numbers = {"granularity": granularity, "dt": dt, "headroom": headroom, "length": length}
    _check(who, device, writing, numbers)
    span = layout.span(device)
    grain = granularity or device.step or span / 50

    def init(params: PyTree, key: PRNGKeyArray) -> DeviceWeights:
        leaves, tree = jax.tree.flatten(params)
        states, scales, lost = [], [], []
        for p, own in zip(leaves, _keys(key, leaves), strict=True):
            if not jnp.issubdtype(p.dtype, jnp.floating):
                raise ValueError(f"{who}.init: a parameter is {p.dtype}; weights are floats.")
            for_cells, for_writing = jax.random.split(own)
            w = p.astype(jnp.float32)
            reach = jnp.max(jnp.abs(w), initial=0) * headroom
            scale = jnp.where(reach > 0, reach, 1) / span
            state = layout.init(device, w.shape, for_cells, 0.0)
            states.append(layout.start(device, state, w / scale, for_writing, 0.0))
            scales.append(scale)
            none = jnp.zeros(w.shape, bool)
            lost.append(
                {**dict.fromkeys(DEVICE_COUNTS, none), "writes": ~none, "nan": jnp.isnan(w)}
            )
        counts = {k: tree.unflatten([count(at[k]) for at in lost]) for k in DEVICE_COUNTS}
        zeros = [jnp.zeros(p.shape, jnp.float32) for p in leaves]
        return DeviceWeights(
            tree.unflatten(states),
            tree.unflatten(scales),
            tree.unflatten(zeros) if writing == "mixed_precision" else None,
            jnp.zeros((), jnp.float32),
            tree.unflatten([jnp.zeros((), p.dtype) for p in leaves]),
            counts,
        )

    def read(state: DeviceWeights, key: PRNGKeyArray | None = None) -> PyTree:
        scales, tree = jax.tree.flatten(state.scale)
        parts = zip(
            tree.flatten_up_to(state.cells), scales, jax.tree.leaves(state.like), strict=True
        )
        keys = _keys(key, scales)
        return tree.unflatten(
            [
                (scale * layout.read(device, c, k, state.t)).astype(like.dtype)
                for (c, scale, like), k in zip(parts, keys, strict=True)
            ]
        )

    def update(state: DeviceWeights, updates: PyTree, key: PRNGKeyArray) -> DeviceWeights:
        scales, tree = jax.tree.flatten(state.scale)
        steps = tree.flatten_up_to(updates)
        t = state.t + dt
        states, pending, lost = [], [], []
        waiting: list[Any] = [None] * len(scales)
        if state.pending is not None:
            waiting = tree.flatten_up_to(state.pending)
        for c, scale, u, chi, k in zip(
            tree.flatten_up_to(state.cells), scales, steps, waiting, _keys(key, scales), strict=True
        ):
            nan = jnp.isnan(u)
            u = jnp.where(nan, 0, u).astype(jnp.float32) / scale
            for_rounding, for_cells = jax.random.split(k)
            draw = for_rounding if rounding == "stochastic" else None
            before = layout.read(device, c, None, t)
            cut = jnp.zeros(u.shape, bool)
            if length is not None:
                cut = jnp.abs(u if chi is None else u + chi) >= (length + 1) * grain
            whole, chi = _amount(u, chi, grain, draw, length)
            if device.program is not None and (writing == "program" or device.pulse is None):
                wanted = before + (u if writing == "program" else whole * grain)
                written = (wanted != before) & ~nan
                held = jnp.where(written, jnp.clip(wanted, -span, span), jnp.nan)
                c = layout.program(device, c, held, for_cells, t)
                saturated, pulses = jnp.abs(wanted) > span, jnp.zeros_like(whole)
                refreshed = jnp.zeros(u.shape, bool)
            else:
                written = whole != 0
                c, refreshed = layout.pulse(device, c, whole.astype(jnp.int32), for_cells, t)
                saturated, pulses = jnp.abs(before + whole * grain) > span, jnp.abs(whole)
            after = layout.read(device, c, None, t)
            lost.append(
                {
                    "writes": written,
                    "saturated": saturated & written,
                    "underflowed": jnp.zeros(u.shape, bool),
                    "stagnated": (u != 0) & (after == before),
                    "nan": nan,
                    "pulses": pulses,
                    "cut": cut & written,
                    "refreshed": refreshed,
                }
            )
            states.append(c)
            pending.append(chi)
        counts = {
            k: jax.tree.map(add_counts, state.lost[k], tree.unflatten([count(a[k]) for a in lost]))
            for k in DEVICE_COUNTS
        }
        return state._replace(
            cells=tree.unflatten(states),
            pending=None if state.pending is None else tree.unflatten(pending),
            t=t,
            lost=counts,
        )

    return WeightMemory(init, read, update)


def at(state: Any, t: float | Float[Array, ""]) -> Any:
    """The same cells, the clock at t [s]; reads are then at that time.

    Args:
        state: of `memristive`, or of a memory around it, whose field `weights` is that.
        t: not before the last update.

    Raises:
        ValueError: weights that are not in cells of a device.
    """
    if isinstance(state, DeviceWeights):
        return state._replace(t=jnp.asarray(t, jnp.float32))
    if not hasattr(state, "weights"):
        raise ValueError(f"at: {type(state).__name__} holds no cells, so time does not matter.")
    return state._replace(weights=at(state.weights, t))


def _amount(
    u: Array, pending: Array | None, grain: float, key: PRNGKeyArray | None, length: int | None
) -> tuple[Array, Array | None]:
    """How many steps to write, a whole number for each weight, and what is left for later."""
    if pending is not None:
        total = u + pending
        whole = jnp.trunc(total / grain)
        whole = whole if length is None else jnp.clip(whole, -length, length)
        return whole, total - whole * grain
    return rounded(u, grain, key, length).astype(u.dtype), pending


def _keys(key: PRNGKeyArray | None, leaves: list) -> list[Any]:
    return [None] * len(leaves) if key is None else list(jax.random.split(key, len(leaves)))


def _check(who: str, device: Device, writing: str, numbers: dict[str, float | int | None]) -> None:
    ways: dict[str, Callable | None] = {
        "program": device.program,
        "pulses": device.pulse,
        "mixed_precision": device.pulse or device.program,
    }
    if writing not in ways:
        raise ValueError(f"{who}: writing is {writing!r}; choose one of {', '.join(ways)}.")
    if ways[writing] is None:
        fitting = ", ".join(repr(k) for k, way in ways.items() if way is not None)
        raise ValueError(f"{who}: this device cannot do writing={writing!r}; it can do {fitting}.")
    for name, value in numbers.items():
        if value is not None and not value > 0:
            raise ValueError(f"{who}: {name} is {value}; it must be above 0.")
