"""One cell a weight, and one column of cells that all columns of an array are read against.

It halves the cells of pairs; the error of a reference is one that a whole row of weights shares.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from .cells import Counts, Pulsed, Variances, Weights, approach, give, start, write
from .device import Device, Key


class Referenced(NamedTuple):
    """Cells of weights (*rows, columns) and of the references (*rows, 1), states of a device."""

    cells: Any
    references: Any


@dataclass(frozen=True)
class ReferenceColumn:
    """w = G - G_ref, with G_ref set to the middle of the range once, at the start.

    References are cells like the others: they are set with the noise of writing, drift, and are
    read with noise. Weights of one row share theirs.
    """

    @property
    def cells(self) -> int:
        """Cells a weight, without its share of the reference."""
        return 1

    def span(self, device: Device) -> float:
        """Half the width of the range.

        Raises:
            ValueError: a device whose pulses go up only.
        """
        if device.resets:
            raise ValueError(
                f"ReferenceColumn: weights fall by pulses down, and {device.name} knows RESET "
                "only; take Pair()."
            )
        return (device.g_max - device.g_min) / 2

    def init(self, device: Device, shape: tuple[int, ...], key: Key, t: Any) -> Referenced:
        """New cells; weights and references are set to the middle."""
        if not shape:
            raise ValueError("ReferenceColumn: a single number has no column; take Pair().")
        keys = jax.random.split(key, 4)
        parts = [
            _to_middle(device, device.init(own, keys[i], t), keys[2 + i], t)
            for i, own in enumerate((shape, (*shape[:-1], 1)))
        ]
        return Referenced(*parts)

    def read(self, device: Device, state: Referenced, key: Key | None, t: Any) -> Weights:
        """The difference to the reference of the row."""
        for_cells, for_references = (None, None) if key is None else jax.random.split(key)
        references = device.read(state.references, for_references, t)
        return device.read(state.cells, for_cells, t) - references

    def variances(self, device: Device, state: Referenced, t: Any) -> Variances | None:
        """Of the weights' own cells, and of their row's reference."""
        if device.spread is None:
            return None
        return device.spread(state.cells, t) ** 2, device.spread(state.references, t) ** 2

    def program(
        self, device: Device, state: Referenced, w: Weights, key: Key, t: Any
    ) -> Referenced:
        """Writes cells to the middle of the range plus w; the references stay."""
        middle = (device.g_max + device.g_min) / 2
        return state._replace(cells=write(device)(state.cells, middle + w, key, t))

    def start(self, device: Device, state: Referenced, w: Weights, key: Key, t: Any) -> Referenced:
        """Brings cells from the middle of the range to weights near w."""
        return start(self, device, state, w, key, t)

    def pulse(self, device: Device, state: Referenced, counts: Counts, key: Key, t: Any) -> Pulsed:
        """Pulses of both signs on the weights' own cells."""
        cells = give(device)(state.cells, counts, key, t)
        return state._replace(cells=cells), jnp.zeros(counts.shape, bool)


def _to_middle(device: Device, state: Any, key: Key, t: Any) -> Any:
    middle = jnp.full_like(device.read(state, None, t), (device.g_max + device.g_min) / 2)
    if device.program is not None:
        return device.program(state, middle, key, t)

    def seen(state: Any) -> Array:
        return device.read(state, None, t)

    def moved(state: Any, counts: Counts, key: Key) -> Any:
        return give(device)(state, counts, key, t)

    return approach(middle, state, seen, moved, key, device.step or 1)
