"""Broken cells: stuck at a value, whatever is written to them.

Any model of a device can have some. What a sound cell does is its model's.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .device import Cells, Counts, Device, Key


class Faulty(NamedTuple):
    """Cells and the values of those that are stuck."""

    cells: Any  # state of the device
    stuck: Float[Array, "*cells"]  # what a read sees; NaN: the cell is sound


def with_stuck_cells(
    device: Device, *, low: float = 0.0, high: float = 0.0, anywhere: float = 0.0
) -> Device:
    """The same device, some of whose cells are stuck from the start.

    A stuck cell is read without noise and does not drift. `stuck_share` counts them.

    Args:
        device: the model of a sound cell.
        low: share of cells stuck at the lowest conductance.
        high: share stuck at the highest.
        anywhere: share stuck at a value drawn evenly from the range.

    Raises:
        ValueError: shares that are none, or more than all cells.
    """
    shares = (low, high, anywhere)
    if not (min(shares) >= 0 and sum(shares) <= 1):
        raise ValueError(
            f"with_stuck_cells({device.name}): shares low={low}, high={high}, anywhere={anywhere}; "
            "each is at least 0 and all of them at most 1."
        )
    sound_program, sound_pulse = device.program, device.pulse
    sound_trains, sound_spread = device.trains, device.spread

    def init(shape: tuple[int, ...], key: Key, t: Any = 0.0) -> Faulty:
        for_cells, for_kind, for_value = jax.random.split(key, 3)
        kind = jax.random.uniform(for_kind, shape)
        drawn = jax.random.uniform(for_value, shape, minval=device.g_min, maxval=device.g_max)
        value = jnp.where(
            kind < low, device.g_min, jnp.where(kind < low + high, device.g_max, drawn)
        )
        return Faulty(
            device.init(shape, for_cells, t), jnp.where(kind < sum(shares), value, jnp.nan)
        )

    def read(state: Faulty, key: Key | None, t: Any) -> Cells:
        seen = device.read(state.cells, key, t)
        return jnp.where(jnp.isnan(state.stuck), seen, state.stuck)

    def program(state: Faulty, target: Cells, key: Key, t: Any) -> Faulty:
        assert sound_program is not None
        return state._replace(cells=sound_program(state.cells, target, key, t))

    def pulse(state: Faulty, counts: Counts, key: Key, t: Any) -> Faulty:
        assert sound_pulse is not None
        return state._replace(cells=sound_pulse(state.cells, counts, key, t))

    def trains(state: Faulty, rows: Any, columns: Any, key: Key, t: Any) -> Faulty:
        assert sound_trains is not None
        return state._replace(cells=sound_trains(state.cells, rows, columns, key, t))

    def spread(state: Faulty, t: Any) -> Cells:
        assert sound_spread is not None
        return jnp.where(jnp.isnan(state.stuck), sound_spread(state.cells, t), 0)

    return device._replace(
        name=f"{device.name} with stuck cells",
        init=init,
        read=read,
        program=program if sound_program else None,
        pulse=pulse if sound_pulse else None,
        spread=spread if sound_spread else None,
        trains=trains if sound_trains else None,
    )


def stuck_share(state: Faulty) -> Float[Array, ""]:
    """The share of cells that are stuck."""
    return jnp.mean((~jnp.isnan(state.stuck)).astype(jnp.float32))
